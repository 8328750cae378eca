//! One machine of the `ns` driver.
//!
//! A machine is a launcher process (`guest::launch`) and what it started. It runs from [`crate::Host::boot`] until its agent
//! ends, by itself or by [`Machine::kill`]. The launcher kills the rest of the machine when the agent ends, and all of it
//! when its standard input ends: when this server dies, or drops the [`Machine`]. What remains then (control groups,
//! directories, the slot) is removed by [`Machine::kill`], [`crate::Host::shutdown`] or the next [`crate::Host::prepare`].

use crate::{Error, leftovers, log, slots::Slot};
use guest::{
    cgroup::Cgroup,
    launch::{LaunchSpec, Network, Report},
    protocol::Boot,
};
use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
};

/// The control group of the keepers of all machines, beside those of the machines.
pub(crate) const KEEPER_CGROUP: &str = "keepers";

/// How long a machine may take until its agent runs.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long a killed machine may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// The longest report of a launcher.
const REPORT_BYTES_MAX: u64 = 64 * 1024;

/// What agents log if this server's `RUST_LOG`, which holds for them too, says nothing.
const LOG_DEFAULT: &str = "info";

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Unique on this host while the machine lives: 1 to 32 of `[a-z0-9-]`.
    pub name: String,
    /// The volume's local directory, at `/data` in the machine.
    pub data: PathBuf,
    /// The mounted base image, from [`crate::Host::mount_image`].
    pub base: PathBuf,
    /// What the agent is told. `uid_start` is replaced by the host's choice.
    pub boot: Boot,
}

/// What the host gives a machine.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) agent: PathBuf,
    pub(crate) cgroup: Cgroup,
    /// The name of the group that holds `cgroup`.
    pub(crate) parent: String,
    pub(crate) interface: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) uid_start: u32,
    /// The machine's directory on the host.
    pub(crate) directory: PathBuf,
    pub(crate) slot: Slot,
}

/// How a machine's agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status; 0 after a sleep.
    Status(i32),
    /// A signal ended it.
    Signal(i32),
}

/// One machine. Dropping it kills the machine; [`Machine::kill`] also waits until nothing of it is left.
#[derive(Debug)]
pub struct Machine {
    name: String,
    channel: PathBuf,
    pid: i32,
    ground: Ground,
    exit: watch::Receiver<Option<Exit>>,
    /// The machine's mount namespace, in case its keeper, which holds it too, is killed: it must not end before the agent
    /// has.
    mounts: Option<File>,
    /// The machine lives while this is open.
    lifeline: ChildStdin,
}

impl Machine {
    pub(crate) async fn boot(ground: Ground, spec: MachineSpec) -> Result<Self, Error> {
        let name = spec.name.clone();
        match Self::try_boot(&ground, spec).await {
            Ok((pid, exit, lifeline)) => {
                let channel = ground.directory.join("channel");
                let mounts = File::open(format!("/proc/{pid}/ns/mnt")).ok();
                Ok(Self { name, channel, pid, ground, exit, mounts, lifeline })
            }
            Err(reason) => {
                if let Err(error) = remove(&name, ground).await {
                    tracing::error!(machine = %name, %error, "a machine that did not start could not be removed");
                }
                Err(Error::Boot { name, reason })
            }
        }
    }

    async fn try_boot(
        ground: &Ground,
        spec: MachineSpec,
    ) -> Result<(i32, watch::Receiver<Option<Exit>>, ChildStdin), String> {
        ground.cgroup.create().map_err(|error| error.to_string())?;
        ground.cgroup.child("agent").create().map_err(|error| error.to_string())?;
        let name = spec.name.clone();
        let launch = LaunchSpec {
            cgroup: format!("{}/{name}", ground.parent),
            keeper_cgroup: format!("{}/{KEEPER_CGROUP}", ground.parent),
            root: ground.directory.join("root"),
            agent: ground.agent.clone(),
            base: spec.base,
            data: spec.data,
            channel: ground.directory.join("channel"),
            boot: Boot { uid_start: ground.uid_start, ..spec.boot },
            network: Network { interface: ground.interface.clone(), address: ground.address },
            log: std::env::var("RUST_LOG").unwrap_or_else(|_| LOG_DEFAULT.to_owned()),
        };
        let (child, mut stdin, stdout) =
            start(&ground.agent, &name).map_err(|error| error.to_string())?;
        let mut line = serde_json::to_vec(&launch).map_err(|error| error.to_string())?;
        line.push(b'\n');
        stdin.write_all(&line).await.map_err(|error| error.to_string())?;
        let mut reports = BufReader::new(stdout);
        let report = tokio::time::timeout(START_LIMIT, next_report(&mut reports)).await;
        let pid =
            match report.map_err(|_| format!("its agent did not run within {START_LIMIT:?}"))? {
                Some(Report::Started { pid }) => pid,
                Some(Report::Failed { reason }) => return Err(reason),
                Some(_) | None => return Err("its launcher ended without a word".into()),
            };
        let (sender, exit) = watch::channel(None);
        tokio::spawn(follow(child, reports, sender));
        Ok((pid, exit, stdin))
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory on the host with the channel's sockets.
    #[must_use]
    pub fn channel(&self) -> &Path {
        &self.channel
    }

    /// The agent's process id on the host. Of use only while the machine lives.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The machine's address on the host's network.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.ground.address
    }

    /// Waits until the agent has ended. The machine is dead then: its container was killed at once. Cancel-safe.
    pub async fn wait(&mut self) -> Exit {
        gone(&mut self.exit).await
    }

    /// Kills everything of the machine, waits until it is gone, and removes its cgroups, interface and directories.
    /// Also to be called after [`Machine::wait`] returned.
    ///
    /// # Errors
    /// When something is still there after the time limit.
    pub async fn kill(self) -> Result<(), Error> {
        let Self { name, ground, mut exit, mounts, lifeline, .. } = self;
        drop(lifeline);
        if tokio::time::timeout(KILL_LIMIT, gone(&mut exit)).await.is_err() {
            return Err(Error::Left { name, what: "the first process".into() });
        }
        let removed = remove(&name, ground).await;
        // Its last holder unmounts, which may take a moment.
        drop(tokio::task::spawn_blocking(move || drop(mounts)).await);
        removed
    }

    /// How the machine is isolated from its host, for people: `namespaces`.
    #[must_use]
    pub fn isolation(&self) -> &'static str {
        "namespaces"
    }
}

async fn gone(exit: &mut watch::Receiver<Option<Exit>>) -> Exit {
    // The sender is dropped without a value only when the runtime shuts down.
    let lost = Exit::Signal(9);
    exit.wait_for(Option::is_some).await.map_or(lost, |exit| exit.unwrap_or(lost))
}

fn start(agent: &Path, name: &str) -> io::Result<(Child, ChildStdin, ChildStdout)> {
    let mut command = Command::new(agent);
    command
        .arg("launch")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let pipes = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take());
    let ((stdin, stdout), stderr) = pipes.ok_or(io::Error::from(io::ErrorKind::BrokenPipe))?;
    // Ends when the last process of the machine has closed it.
    tokio::spawn(log::relay(name.to_owned(), stderr));
    Ok((child, stdin, stdout))
}

async fn next_report(reports: &mut BufReader<ChildStdout>) -> Option<Report> {
    let mut line = String::new();
    reports.take(REPORT_BYTES_MAX).read_line(&mut line).await.ok()?;
    serde_json::from_str(&line).ok()
}

/// Waits for the launcher's last report and its end.
async fn follow(
    mut child: Child,
    mut reports: BufReader<ChildStdout>,
    exit: watch::Sender<Option<Exit>>,
) {
    let report = next_report(&mut reports).await;
    if let Err(error) = child.wait().await {
        tracing::error!(%error, "a launcher could not be waited for");
    }
    let how = match report {
        Some(Report::Exited { status }) => Exit::Status(status),
        Some(Report::Killed { signal }) => Exit::Signal(signal),
        // A launcher that ends without a word was killed, and its machine with it.
        _ => Exit::Signal(9),
    };
    exit.send_replace(Some(how));
}

/// Removes what is left of a machine, and frees its slot if nothing is.
async fn remove(name: &str, ground: Ground) -> Result<(), Error> {
    let left = |what: &str| Error::Left { name: name.to_owned(), what: what.to_owned() };
    let (processes, interface) = tokio::join!(
        leftovers::remove_processes(&ground.cgroup),
        leftovers::remove_interface(&ground.interface)
    );
    processes.and(interface).map_err(|error| left(&error.to_string()))?;
    leftovers::remove_directory(&ground.directory).map_err(|error| left(&error.to_string()))?;
    ground.slot.free();
    Ok(())
}
