//! The launcher: turns a process into a machine of the `ns` driver, and keeps it.
//!
//! The server starts `puck-guest launch` with a [`LaunchSpec`] as one line of JSON on standard input, and leaves that open:
//! its end means that the server is gone or wants the machine gone. The launcher forks. The child becomes the machine's
//! first process: it enters new namespaces, builds a minimal root ([`root`]), sets up its network ([`network`]) and executes
//! the agent. The parent stays outside as the [`keeper`] of the machine.
//!
//! On standard output the launcher writes one [`Report`] a line: that the agent runs or could not be started, and how it
//! ended. Standard error is that of the agent too.

mod connections;
mod keeper;
mod network;
mod root;

use crate::{
    cgroup::{self, Trees},
    freeze,
    protocol::Boot,
    sys::{self, Fork},
};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType},
    pipe::PipeFlags,
    process::{PidfdFlags, Signal},
    thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::CString,
    fs::File,
    io::{self, BufRead, Read, Write},
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What a machine is made of, as the server describes it to the launcher. Holds no secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The machine's control group, relative to the root of the trees. It must exist.
    pub cgroup: String,
    /// The keeper's control group. It must exist.
    pub keeper_cgroup: String,
    /// An empty directory of the host to mount the machine's root at, in the machine's mount namespace only.
    pub root: PathBuf,
    /// The agent's executable, linked statically.
    pub agent: PathBuf,
    /// The mounted base image.
    pub base: PathBuf,
    /// The volume's local directory.
    pub data: PathBuf,
    /// The directory of the channel.
    pub channel: PathBuf,
    /// What the agent is told.
    pub boot: Boot,
    /// Where the machine is on the host's network.
    pub network: Network,
    /// What the agent logs, in the notation of `RUST_LOG`.
    pub log: String,
}

/// Where a machine is on the host's network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Network {
    /// The name of the host's end of the machine's cable.
    pub interface: String,
    /// The machine's address, unique on the host.
    pub address: Ipv4Addr,
}

/// What the launcher tells the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The agent runs.
    Started {
        /// Its process id on the host.
        pid: i32,
    },
    /// The machine could not be built. Nothing of it is left but its control groups and directories.
    Failed {
        /// The step, and why.
        reason: String,
    },
    /// The agent has ended, and everything else of the machine with it.
    Exited {
        /// Its exit status.
        status: i32,
    },
    /// A signal has ended the agent, and everything else of the machine with it.
    Killed {
        /// The signal.
        signal: i32,
    },
}

/// The longest [`LaunchSpec`] on the wire.
const SPEC_BYTES_MAX: u64 = 1 << 20;

/// The control group of the agent, in the machine's.
const AGENT_CGROUP: &str = "agent";

/// Where the agent mounts its volume in the machine.
pub const VOLUME: &str = "/volume";

/// Where the agent's executable is in the machine.
const AGENT_PATH: &str = "/puck-guest";

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
struct StepError {
    step: String,
    source: io::Error,
}

trait Step<T> {
    fn step(self, step: &str) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, StepError> {
        self.map_err(|source| StepError { step: step.into(), source: source.into() })
    }
}

impl<T> Step<T> for Result<T, cgroup::Error> {
    fn step(self, step: &str) -> Result<T, StepError> {
        self.map_err(|error| StepError { step: step.into(), source: io::Error::other(error) })
    }
}

/// The program `puck-guest launch`. Must run before the process starts any thread.
#[must_use]
pub fn main() -> ExitCode {
    match launch() {
        Ok(report) => {
            tell(&report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell(&Report::Failed { reason: error.to_string() });
            ExitCode::FAILURE
        }
    }
}

/// The server learns from the end of the pipe what it does not hear.
fn tell(report: &Report) {
    if let Ok(line) = serde_json::to_string(report) {
        let mut out = io::stdout().lock();
        drop(writeln!(out, "{line}").and_then(|()| out.flush()));
    }
}

fn launch() -> Result<Report, StepError> {
    let mut line = String::new();
    let mut stdin = io::BufReader::new(io::stdin()).take(SPEC_BYTES_MAX);
    stdin.read_line(&mut line).step("read the description")?;
    let spec: LaunchSpec = serde_json::from_str(&line).step("understand the description")?;
    let trees = Trees::detect(Path::new(cgroup::MOUNT)).step("find the control groups")?;
    let machine = trees.group(&spec.cgroup);
    trees.group(&spec.keeper_cgroup).join().step("join the keeper's control group")?;
    // A terminal's Ctrl-C goes to the server, which ends its machines in order.
    rustix::process::setsid().step("make a session")?;
    let (keeper, agent) = socket_pair().step("make the keeper's socket")?;
    let gates = Gates::new().step("make pipes")?;
    let own = File::open("/proc/self/ns/pid").step("open the process namespace")?;
    // SAFETY: this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }
        .step("make a process namespace")?;
    // SAFETY: this process has one thread.
    match unsafe { sys::fork() }.step("fork the machine")? {
        Fork::Child => {
            drop(keeper);
            become_machine(&spec, &trees, agent, gates)
        }
        Fork::Parent(pid) => {
            drop(agent);
            // What the keeper starts from now on is no part of the machine.
            rustix::thread::move_into_link_name_space(
                own.as_fd(),
                Some(LinkNameSpaceType::ProcessID),
            )
            .step("stay outside of the machine")?;
            let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                .step("open the machine's process")?;
            let started =
                gates.open(|| network::connect(&spec.network, pid).step("connect the network"));
            if let Err(error) = started {
                keeper::end(&machine, pid)?;
                return Err(error);
            }
            tell(&Report::Started { pid: pid.as_raw_nonzero().get() });
            keeper::keep(&machine, pid, &process, keeper)
        }
    }
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// How the two sides wait for each other: the parent for the child's network namespace, the child for its cable, the
/// parent for the agent's exec, which closes `failure`.
struct Gates {
    separated: (OwnedFd, OwnedFd),
    connected: (OwnedFd, OwnedFd),
    failure: (OwnedFd, OwnedFd),
}

impl Gates {
    fn new() -> io::Result<Self> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        Ok(Self { separated: pipe()?, connected: pipe()?, failure: pipe()? })
    }

    /// The parent's side. What the child says weighs more than what became of its cable: without the child there is
    /// nothing to connect.
    fn open(self, connect: impl FnOnce() -> Result<(), StepError>) -> Result<(), StepError> {
        let Self {
            separated: (separated, theirs),
            connected: (not_ours, connected),
            failure: (failure, other),
        } = self;
        // An end that stays open here would never let the other side's end be seen.
        drop((theirs, not_ours, other));
        let mut connection = Ok(());
        if rustix::io::read(&separated, &mut [0]).step("wait for the machine's namespaces")? > 0 {
            connection = connect();
        }
        if connection.is_ok() {
            // A child that has ended says why below.
            let _ = rustix::io::write(&connected, b"!");
        }
        drop(connected);
        let mut reason = String::new();
        File::from(failure).read_to_string(&mut reason).step("wait for the agent")?;
        if reason.is_empty() {
            connection
        } else {
            Err(io::Error::other(reason)).step("build the machine")
        }
    }
}

/// The child's side: never returns, but for the exec or the process's end.
fn become_machine(spec: &LaunchSpec, trees: &Trees, agent: OwnedFd, gates: Gates) -> ! {
    let Gates {
        separated: (theirs, separated),
        connected: (connected, not_ours),
        failure: (other, failure),
    } = gates;
    drop((theirs, not_ours, other));
    let error = match build_machine(spec, trees, separated, &connected) {
        Ok(()) => execute_agent(&agent, &spec.log),
        Err(error) => error,
    };
    drop(File::from(failure).write_all(error.to_string().as_bytes()));
    sys::exit_now(1)
}

fn build_machine(
    spec: &LaunchSpec,
    trees: &Trees,
    separated: OwnedFd,
    connected: &OwnedFd,
) -> Result<(), StepError> {
    // Without its keeper nobody would thaw or clean up after this machine.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("follow the keeper")?;
    // The kernel names the agent's group in its own terms to what is mounted for it, so it must be of this machine.
    rustix::process::setpgid(None, None).step("lead a process group")?;
    let machine = trees.group(&spec.cgroup);
    machine.join().step("join the machine's control group")?;
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWCGROUP;
    // SAFETY: this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.step("enter new namespaces")?;
    rustix::io::write(&separated, b"!").step("tell the keeper")?;
    drop(separated);
    // The namespace's root is the machine's group; processes live in leaves only, or version 2 could not delegate.
    machine.child(AGENT_CGROUP).join().step("join the agent's control group")?;
    machine.delegate().step("hand the controllers to the machine's groups")?;
    rustix::system::sethostname(b"puck").step("set the host name")?;
    root::build(spec, trees)?;
    if rustix::io::read(connected, &mut [0]).step("wait for the network")? == 0 {
        // The keeper knows better why there is no cable.
        sys::exit_now(1);
    }
    network::configure(&spec.network).step("configure the network")?;
    root::enter(&spec.root)?;
    give_up_capabilities().step("give up capabilities")
}

/// What the agent never needs. It is trusted, but it parses what strangers send.
const GIVEN_UP: [CapabilitySet; 12] = [
    CapabilitySet::AUDIT_CONTROL,
    CapabilitySet::AUDIT_READ,
    CapabilitySet::BLOCK_SUSPEND,
    CapabilitySet::IPC_LOCK,
    CapabilitySet::MAC_ADMIN,
    CapabilitySet::MAC_OVERRIDE,
    CapabilitySet::SYS_BOOT,
    CapabilitySet::SYS_MODULE,
    CapabilitySet::SYS_PACCT,
    CapabilitySet::SYS_RAWIO,
    CapabilitySet::SYS_TIME,
    CapabilitySet::WAKE_ALARM,
];

fn give_up_capabilities() -> io::Result<()> {
    for capability in GIVEN_UP {
        rustix::thread::remove_capability_from_bounding_set(capability)?;
    }
    Ok(())
}

/// Executes the agent with nothing of the host's but its socket to the keeper and the log. Returns why that failed.
fn execute_agent(keeper: &OwnedFd, log: &str) -> StepError {
    let run = || -> io::Result<io::Error> {
        let null =
            rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        drop(null);
        // Standard output carries the keeper's reports.
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        sys::reset_signals();
        sys::close_on_exec_from(3)?;
        sys::duplicate_for_exec(keeper, freeze::KEEPER_FD)?;
        let program = CString::new(AGENT_PATH).map_err(io::Error::other)?;
        let strings = |strings: &[&str]| {
            strings.iter().map(|string| CString::new(*string)).collect::<Result<Vec<_>, _>>()
        };
        let argv = strings(&["puck-guest", "agent"]).map_err(io::Error::other)?;
        let env = strings(&[&format!("RUST_LOG={log}")]).map_err(io::Error::other)?;
        Ok(sys::execve(&program, &argv, &env))
    };
    StepError { step: "execute the agent".into(), source: run().unwrap_or_else(|error| error) }
}
