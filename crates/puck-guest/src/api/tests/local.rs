//! A sandbox without a container: a temporary directory as the root, child processes of the test as processes.

use crate::api::sandbox::{Process, Sandbox};
use async_trait::async_trait;
use guest::container::{Command, ProcessIo, SignalError, SpawnError, Stdio};
use rustix::{
    process::{Pid, Signal},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process,
    sync::Arc,
};
use tempfile::TempDir;
use tokio::sync::watch;

/// The first id of the users in the temporary directory.
pub(super) const UID_START: u32 = 300_000;

pub(super) struct Local {
    root: TempDir,
    /// What is on the disk beside the root.
    beside: TempDir,
    services: PathBuf,
    socket: PathBuf,
}

impl Local {
    pub(super) fn new() -> Self {
        let root = TempDir::new().unwrap();
        let beside = TempDir::new().unwrap();
        let services = beside.path().canonicalize().unwrap().join("services");
        let socket = beside.path().join("api.sock");
        let local = Self { root, beside, services, socket };
        for (dir, mode, uid) in
            [("", 0o755, 0), ("home", 0o755, 0), ("root", 0o700, 0), ("etc", 0o755, 0)]
        {
            local.directory(dir, mode, uid);
        }
        local.directory("tmp", 0o1777, 0);
        local.directory("home/sprite", 0o755, 1001);
        local
    }

    /// Makes a directory that belongs to a user of the sandbox.
    pub(super) fn directory(&self, path: &str, mode: u32, uid: u32) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&path, Some(UID_START + uid), Some(UID_START + uid)).unwrap();
        path
    }

    /// Makes a file that belongs to a user of the sandbox.
    pub(super) fn file(
        &self,
        path: &str,
        content: impl AsRef<[u8]>,
        mode: u32,
        uid: u32,
    ) -> PathBuf {
        let path = self.path(path);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&path, Some(UID_START + uid), Some(UID_START + uid)).unwrap();
        path
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn find(program: &str, env: &[(String, String)]) -> Result<PathBuf, SpawnError> {
        let not_found = || SpawnError::NotFound { program: program.to_owned() };
        let path = if program.contains('/') {
            Some(PathBuf::from(program)).filter(|path| path.exists())
        } else {
            let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
            path.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
        };
        let path = path.ok_or_else(not_found)?;
        if path.is_dir() || fs::metadata(&path).unwrap().permissions().mode() & 0o111 == 0 {
            let (program, reason) = (program.to_owned(), "permission denied".to_owned());
            return Err(SpawnError::NotExecutable { program, reason });
        }
        Ok(path)
    }
}

#[async_trait]
impl Sandbox for Local {
    fn root(&self) -> &Path {
        self.root.path()
    }

    fn uid_start(&self) -> u32 {
        UID_START
    }

    fn services(&self) -> &Path {
        &self.services
    }

    fn logs(&self) -> &Path {
        self.beside.path()
    }

    fn socket(&self) -> &Path {
        &self.socket
    }

    async fn spawn(&self, command: Command) -> Result<(Arc<dyn Process>, ProcessIo), SpawnError> {
        let program = command.path.as_deref().unwrap_or(&command.argv[0]);
        let resolved = Self::find(program, &command.env)?;
        let dir = command.dir.clone().unwrap();
        let real_dir =
            if dir.starts_with("/home/sprite") { self.path(&dir) } else { PathBuf::from(&dir) };
        if !real_dir.is_dir() {
            return Err(SpawnError::Dir { dir, reason: "no such file or directory".to_owned() });
        }
        let mut child = process::Command::new(&resolved);
        child
            .arg0(&command.argv[0])
            .args(&command.argv[1..])
            .env_clear()
            .envs(command.env)
            .current_dir(real_dir);
        let terminal = terminal(&mut child, command.stdio);
        let mut child =
            child.spawn().map_err(|error| SpawnError::Container { reason: error.to_string() })?;
        let pid = i32::try_from(child.id()).unwrap();
        let (end, ended) = watch::channel(None);
        let io = match terminal {
            Some(master) => ProcessIo::Terminal { master },
            None => ProcessIo::Pipes {
                stdin: child.stdin.take().map(OwnedFd::from),
                stdout: child.stdout.take().unwrap().into(),
                stderr: child.stderr.take().unwrap().into(),
            },
        };
        let terminal = match &io {
            ProcessIo::Terminal { master } => Some(master.try_clone().unwrap()),
            ProcessIo::Pipes { .. } => None,
        };
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            end.send_replace(Some(u8::try_from(code).unwrap()));
        });
        let resolved = resolved.to_str().unwrap().to_owned();
        Ok((Arc::new(Child { pid, resolved, ended, terminal }), io))
    }
}

/// Sets the child's standard streams and session; the master side of its terminal.
fn terminal(child: &mut process::Command, stdio: Stdio) -> Option<OwnedFd> {
    let Stdio::Terminal { rows, cols } = stdio else {
        let stdin = matches!(stdio, Stdio::Pipes { stdin: true });
        child.stdin(if stdin { process::Stdio::piped() } else { process::Stdio::null() });
        child.stdout(process::Stdio::piped()).stderr(process::Stdio::piped());
        child.process_group(0);
        return None;
    };
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })
        .unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    child.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    // SAFETY: only two system calls run between fork and exec, and neither allocates.
    unsafe {
        child.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    Some(master)
}

#[derive(Debug)]
struct Child {
    pid: i32,
    resolved: String,
    ended: watch::Receiver<Option<u8>>,
    terminal: Option<OwnedFd>,
}

#[async_trait]
impl Process for Child {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn resolved(&self) -> &str {
        &self.resolved
    }

    async fn wait(&self) -> u8 {
        let mut ended = self.ended.clone();
        let code = *ended.wait_for(Option::is_some).await.unwrap();
        code.unwrap()
    }

    async fn signal_group(&self, signal: i32) -> Result<(), SignalError> {
        if self.ended.borrow().is_some() {
            return Err(SignalError::Ended);
        }
        let signal = Signal::from_named_raw(signal).ok_or(SignalError::Invalid { signal })?;
        rustix::process::kill_process_group(Pid::from_raw(self.pid).unwrap(), signal)
            .map_err(|_| SignalError::Ended)
    }

    fn resize(&self, rows: u16, cols: u16) -> std::io::Result<()> {
        match &self.terminal {
            Some(terminal) => Ok(tcsetwinsize(
                terminal,
                Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 },
            )?),
            None => Ok(()),
        }
    }
}
