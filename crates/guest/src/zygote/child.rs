//! The process between the zygote's fork and the exec of a program.
//!
//! It runs with the zygote's rights for a moment, so it gives them up before it looks at anything that a user controls:
//! the working directory and the program are found with the user's rights.

use super::{identity, inside, message::Program};
use crate::{
    container::{SpawnError, Stdio, User},
    protocol::SPRITE_UID,
    sys,
};
use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags},
    process::{DumpableBehavior, Gid, Resource, Rlimit, Uid},
    pty::OpenptFlags,
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::CString,
    fs, io,
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

/// What a starting process tells the zygote, one JSON value a line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The program was found and is executed next.
    Runs {
        /// Its absolute path.
        resolved: String,
    },
    /// The program is not executed.
    Failed {
        /// Why.
        error: SpawnError,
    },
}

impl Report {
    /// The last complete report of a process.
    pub(super) fn last(bytes: &[u8]) -> Self {
        let last =
            bytes.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
        serde_json::from_slice(last).unwrap_or_else(|_| {
            let reason = "the process was killed before its program ran".to_owned();
            Self::Failed { error: SpawnError::Exhausted { reason } }
        })
    }
}

/// Becomes the program. Never returns.
pub(super) fn run(
    program: &Program,
    descriptors: Vec<OwnedFd>,
    master: Option<OwnedFd>,
    report: OwnedFd,
) -> ! {
    let mut report = fs::File::from(report);
    let error = match become_program(program, descriptors, master, &mut report) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    tell(&mut report, &Report::Failed { error });
    sys::exit_now(127)
}

/// If the zygote does not listen any more, the process is about to die with it.
fn tell(report: &mut fs::File, what: &Report) {
    if let Ok(mut line) = serde_json::to_vec(what) {
        line.push(b'\n');
        drop(report.write_all(&line));
    }
}

enum Never {}

fn become_program(
    program: &Program,
    descriptors: Vec<OwnedFd>,
    master: Option<OwnedFd>,
    report: &mut fs::File,
) -> Result<Never, SpawnError> {
    let failed = |action| move |error: io::Error| SpawnError::from_errno(action, &error);
    let kept = descriptors.iter().chain(&master).map(AsRawFd::as_raw_fd);
    let mut kept: Vec<_> = kept.chain([report.as_raw_fd()]).collect();
    // The zygote's socket, above all, must be gone before this process lets itself be traced.
    // SAFETY: this process only execs or exits from here on, and never comes back to what the zygote owns.
    unsafe { sys::close_all_but(&mut kept) }.map_err(failed("close descriptors"))?;
    sys::reset_signals();
    rustix::process::setsid().map_err(io::Error::from).map_err(failed("make a session"))?;
    let account = Account::find(program.user);
    let streams = match (program.stdio, master) {
        (Stdio::Terminal { .. }, Some(master)) => {
            terminal_streams(&master, &account).map_err(failed("open the terminal"))?
        }
        _ => descriptors,
    };
    place_streams(streams).map_err(failed("set up the standard streams"))?;
    prefer_for_oom();
    lower_descriptor_limit().map_err(failed("set the limit of open files"))?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    sys::close_on_exec_from(3).map_err(failed("close descriptors"))?;
    // Before the change of user, which takes the right to lower them away.
    identity::limit(program.privileges).map_err(failed("give up privileges"))?;
    account.enter().map_err(failed("change to the user"))?;
    enter_directory(program.dir.as_deref(), &account.home)?;
    let argv = strings(program.argv.iter().cloned())?;
    let env = strings(program.env.iter().map(|(key, value)| format!("{key}={value}")))?;
    let found = find(program)?;
    let resolved = std::path::absolute(&found)
        .map_or_else(|_| found.clone(), |path| path.to_string_lossy().into_owned());
    tell(report, &Report::Runs { resolved });
    Err(execute(&found, &argv, &env))
}

fn strings(values: impl Iterator<Item = String>) -> Result<Vec<CString>, SpawnError> {
    values.map(CString::new).collect::<Result<_, _>>().map_err(|_| SpawnError::Invalid {
        reason: "an argument or variable holds a NUL byte".into(),
    })
}

/// Whom a program runs as.
struct Account {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    home: String,
}

/// The most that is read of `/etc/passwd` and `/etc/group`.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;

/// The most groups of a user, the kernel's own limit.
const GROUPS_MAX: usize = 65_536;

impl Account {
    /// Looks the user up in the container's files. What is missing there falls back to what the base image has.
    fn find(user: User) -> Self {
        let (uid, home) = match user {
            User::Root => (0, "/root"),
            User::Sprite => (SPRITE_UID, "/home/sprite"),
        };
        let passwd = read_accounts("/etc/passwd");
        let entry = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.get(2).and_then(|uid| uid.parse().ok()) == Some(uid));
        let field = |index: usize| entry.as_ref().and_then(|fields| fields.get(index).copied());
        let gid = field(3).and_then(|gid| gid.parse().ok()).unwrap_or(uid);
        let groups = field(0).map(|name| groups_of(name, gid)).unwrap_or_default();
        let home = field(5).filter(|home| home.starts_with('/')).unwrap_or(home).to_owned();
        Self { uid, gid, groups, home }
    }

    /// Gives up the zygote's rights for the user's. Root of the container keeps its capabilities through the exec.
    fn enter(&self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::thread::set_thread_groups(&self.groups)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
    }
}

fn groups_of(name: &str, gid: u32) -> Vec<Gid> {
    let mut groups = vec![Gid::from_raw(gid)];
    for line in read_accounts("/etc/group").lines() {
        let fields: Vec<_> = line.split(':').collect();
        let (Some(group), Some(members)) =
            (fields.get(2).and_then(|gid| gid.parse().ok()), fields.get(3))
        else {
            continue;
        };
        if group != gid
            && members.split(',').any(|member| member == name)
            && groups.len() < GROUPS_MAX
        {
            groups.push(Gid::from_raw(group));
        }
    }
    groups
}

/// Reads what there is; the file is the user's, so it may be anything. A pipe would hold up this process, and who waits for it.
fn read_accounts(path: &str) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = Vec::new();
        fs::File::from(file).take(ACCOUNTS_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Opens the other side of the terminal, gives it to the user, and makes it the session's.
fn terminal_streams(master: &OwnedFd, account: &Account) -> io::Result<Vec<OwnedFd>> {
    let terminal = rustix::pty::ioctl_tiocgptpeer(
        master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    rustix::fs::fchown(
        &terminal,
        Some(Uid::from_raw(account.uid)),
        Some(Gid::from_raw(inside::TTY_GID)),
    )?;
    rustix::process::ioctl_tiocsctty(&terminal)?;
    Ok(vec![terminal.try_clone()?, terminal.try_clone()?, terminal])
}

fn place_streams(streams: Vec<OwnedFd>) -> io::Result<()> {
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(streams)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "three streams are needed"))?;
    rustix::stdio::dup2_stdin(&stdin)?;
    rustix::stdio::dup2_stdout(&stdout)?;
    Ok(rustix::stdio::dup2_stderr(&stderr)?)
}

/// How much rather a program is killed than the zygote when memory runs out, of 1000.
const OOM_PREFERENCE: &str = "500";

/// Best effort: where `/proc` refuses, the zygote is still the smallest process.
fn prefer_for_oom() {
    // The files of a process that must not be traced belong to nobody in the container.
    if rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).is_ok() {
        drop(fs::write("/proc/self/oom_score_adj", OOM_PREFERENCE));
    }
}

/// Programs that loop over all possible descriptors, or use `select`, want the usual soft limit; the hard one stays high.
const DESCRIPTORS_SOFT: u64 = 1024;

fn lower_descriptor_limit() -> io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(DESCRIPTORS_SOFT, |maximum| maximum.min(DESCRIPTORS_SOFT));
    Ok(rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: Some(current), maximum: limit.maximum },
    )?)
}

fn enter_directory(dir: Option<&str>, home: &str) -> Result<(), SpawnError> {
    let Some(dir) = dir else {
        // Without a wish, a removed home directory is no reason not to run.
        return rustix::process::chdir(home).or_else(|_| rustix::process::chdir("/")).map_err(
            |error| SpawnError::Dir {
                dir: home.into(),
                reason: io::Error::from(error).to_string(),
            },
        );
    };
    rustix::process::chdir(Path::new(home).join(dir)).map_err(|error| SpawnError::Dir {
        dir: dir.into(),
        reason: io::Error::from(error).to_string(),
    })
}

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds the executable as `execvp` does.
fn find(program: &Program) -> Result<String, SpawnError> {
    let name = program.path.as_ref().or(program.argv.first()).filter(|name| !name.is_empty());
    let Some(name) = name else {
        return Err(SpawnError::Invalid { reason: "no program is named".into() });
    };
    if name.contains('/') {
        return executable(name).map(|()| name.clone());
    }
    let path =
        program.env.iter().rfind(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let mut refused = None;
    for directory in path.split(':') {
        let candidate =
            if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") };
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error @ SpawnError::NotExecutable { .. }) => refused = Some(error),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| SpawnError::NotFound { program: name.clone() }))
}

fn executable(path: &str) -> Result<(), SpawnError> {
    let not =
        |reason: &str| SpawnError::NotExecutable { program: path.into(), reason: reason.into() };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(not("permission denied"))
        }
        Err(_) => Err(SpawnError::NotFound { program: path.into() }),
        Ok(metadata) if metadata.is_dir() => Err(not("is a directory")),
        Ok(_) if rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()).is_err() => {
            Err(not("permission denied"))
        }
        Ok(_) => Ok(()),
    }
}

/// The shell that runs executable files without a known format, as `execvp` does.
const SHELL: &str = "/bin/sh";

/// Executes the file. Returns why that failed.
fn execute(path: &str, argv: &[CString], env: &[CString]) -> SpawnError {
    let Ok(program) = CString::new(path) else {
        return SpawnError::Invalid { reason: "the program's name holds a NUL byte".into() };
    };
    let mut error = sys::execve(&program, argv, env);
    if error.raw_os_error() == Some(libc::ENOEXEC) {
        let shell = CString::new(SHELL).unwrap_or_default();
        let mut script = vec![shell.clone(), program];
        script.extend(argv.iter().skip(1).cloned());
        error = sys::execve(&shell, &script, env);
    }
    match error.raw_os_error() {
        Some(libc::E2BIG) => SpawnError::Exhausted {
            reason: "the arguments and the environment are too long".into(),
        },
        Some(libc::EAGAIN | libc::ENOMEM) => SpawnError::from_errno("start the program", &error),
        // The file exists: what is missing is its interpreter.
        Some(libc::ENOENT) => {
            SpawnError::NotExecutable { program: path.into(), reason: "bad interpreter".into() }
        }
        _ => SpawnError::NotExecutable { program: path.into(), reason: error.to_string() },
    }
}
