//! What the agent and the zygote tell each other.

use crate::{
    container::{SpawnError, Stdio, User},
    protocol::{Limits, Privileges},
    wire::Packet,
};
use serde::{Deserialize, Serialize};
use std::{io, os::fd::BorrowedFd, path::PathBuf};

/// The first message: the container to build.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Build {
    /// The files that move a process into the container's control group.
    pub(crate) cgroup_doors: Vec<PathBuf>,
    /// The version 1 controllers that are shown in the container.
    pub(crate) cgroup_legacy: Vec<String>,
    /// The base image.
    pub(crate) base: PathBuf,
    /// The volume.
    pub(crate) volume: PathBuf,
    /// A directory of the agent's with the mount points `base`, `disk` and `root` and what is bound into the container.
    pub(crate) run: PathBuf,
    /// What is bound at `/.sprite/logs/services`.
    pub(crate) logs: Option<PathBuf>,
    /// Whether checkpoints can be browsed.
    pub(crate) checkpoints: bool,
    /// The container's ids.
    pub(crate) uid_start: u32,
    /// The first host name.
    pub(crate) hostname: String,
    /// The limits, from which the sizes of memory filesystems follow.
    pub(crate) limits: Limits,
}

/// What the agent asks of a zygote that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Start a program. With [`Stdio::Pipes`], three descriptors come along.
    Spawn {
        /// The agent's number for the process, never used before.
        id: u64,
        /// The program.
        program: Program,
    },
    /// Send a signal to a process's group.
    Signal {
        /// The agent's number for the process.
        id: u64,
        /// The agent's number for this request.
        serial: u64,
        /// The signal.
        signal: i32,
    },
}

/// A program to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    /// The argument vector.
    pub(crate) argv: Vec<String>,
    /// The executable, if it is not the first argument.
    pub(crate) path: Option<String>,
    /// The environment.
    pub(crate) env: Vec<(String, String)>,
    /// The working directory.
    pub(crate) dir: Option<String>,
    /// Whom it runs as.
    pub(crate) user: User,
    /// Its streams.
    pub(crate) stdio: Stdio,
    /// What it may be.
    pub(crate) privileges: Privileges,
}

/// What the zygote, and before it the builder, tells the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The zygote exists; the descriptors of its process and of its user namespace come along.
    Forked,
    /// The zygote takes requests.
    Built,
    /// The container could not be built.
    BuildFailed {
        /// The step, and why.
        reason: String,
    },
    /// The program runs. A terminal's master comes along.
    Started {
        /// Which.
        id: u64,
        /// Its process id in the container.
        pid: i32,
        /// The executable that was found.
        resolved: String,
    },
    /// The program does not run.
    Failed {
        /// Which.
        id: u64,
        /// Why.
        error: SpawnError,
    },
    /// A started program has ended.
    Exited {
        /// Which.
        id: u64,
        /// Its exit code, or 128 + the signal that ended it.
        code: u8,
    },
    /// Whether a signal was sent.
    Signalled {
        /// The request.
        serial: u64,
        /// Whether the process still lived and the signal exists.
        outcome: SignalOutcome,
    },
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SignalOutcome {
    /// It was sent.
    Sent,
    /// The process has ended.
    Ended,
    /// There is no such signal.
    Invalid,
}

impl Reply {
    /// Sends this reply.
    pub(crate) fn send(
        &self,
        socket: BorrowedFd<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        Packet::new(self)?.send(socket, descriptors)
    }
}
