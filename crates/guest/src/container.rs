//! The container: the inner environment in which user code runs.

mod command;

pub use command::{Command, Process, ProcessIo, SignalError, SpawnError, Stdio, User};

use crate::protocol::Limits;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// What a container is made of.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// The mounted base image.
    pub base: PathBuf,
    /// The mounted volume. Ids on it are those of the container, from 0.
    pub volume: PathBuf,
    /// The id outside of the container's root.
    pub uid_start: u32,
    /// The host name.
    pub hostname: String,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Memory and processes.
    pub limits: Limits,
    /// A directory that appears as `/.sprite` in the container, owned by the agent, read-only there; `None` for none.
    pub sprite_dir: Option<PathBuf>,
}

/// Why something about the container failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step of starting it failed.
    #[error("start of the container failed: {reason}")]
    Start {
        /// Which step, and why.
        reason: String,
    },
    /// A step of stopping it failed.
    #[error("stop of the container failed: {reason}")]
    Stop {
        /// Which step, and why.
        reason: String,
    },
}

/// A running container.
#[derive(Debug)]
pub struct Container {
    spec: ContainerSpec,
    root: PathBuf,
}

impl Container {
    /// Builds the container and waits until it accepts commands.
    ///
    /// # Errors
    /// Names the step that failed; nothing of the container is left then.
    pub async fn start(spec: ContainerSpec) -> Result<Self, Error> {
        Ok(Self { spec, root: PathBuf::from("/run/puck/container/root") })
    }

    /// The container's root as the agent sees it, for the file API: without the container's `/proc`, `/dev` and `/sys`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The id outside of the container's root.
    #[must_use]
    pub fn uid_start(&self) -> u32 {
        self.spec.uid_start
    }

    /// Starts a command. Returns when the program runs, or says why it does not.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn spawn(&self, command: Command) -> Result<(Process, ProcessIo), SpawnError> {
        Err(SpawnError::Container { reason: format!("{:?} cannot run yet", command.argv) })
    }

    /// Changes the host name.
    ///
    /// # Errors
    /// When the name is longer than 64 bytes or the container is gone.
    pub async fn set_hostname(&self, name: &str) -> Result<(), Error> {
        Err(Error::Start { reason: format!("the host name {name} cannot be set yet") })
    }

    /// Completes when the container's first process has ended by itself: nothing runs in it any more.
    pub async fn died(&self) {
        std::future::pending().await
    }

    /// Kills everything in the container, waits until it is gone, and unmounts its root. The volume can be unmounted
    /// afterwards.
    ///
    /// # Errors
    /// When something still holds the root after the time limit.
    pub async fn stop(self) -> Result<(), Error> {
        Ok(())
    }
}
