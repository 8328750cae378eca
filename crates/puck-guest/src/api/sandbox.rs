//! What the API needs of the container: its root, its ids, and processes in it.
//!
//! Two real things stand behind this seam: the machine's container, and, in tests, a directory with plain child processes.

use async_trait::async_trait;
use guest::container::{self, Command, Container, ProcessIo, SignalError, SpawnError};
use std::{path::Path, sync::Arc};

/// See [`Sandbox::services`].
const SERVICES: &str = "/volume/services";

/// What programs see as `/.sprite/api.sock`.
const SOCKET: &str = "/run/puck/container/shared/sprite/api.sock";

/// A running container.
#[async_trait]
pub(crate) trait Sandbox: Send + Sync {
    /// The root directory, as the agent sees it.
    fn root(&self) -> &Path;

    /// The id outside of the container's user 0.
    fn uid_start(&self) -> u32;

    /// The directory of the services' definitions: on the sprite's disk, and not seen by its programs.
    fn services(&self) -> &Path;

    /// The directory of the services' logs, which its programs may read.
    fn logs(&self) -> &Path;

    /// Where programs find the agent.
    fn socket(&self) -> &Path;

    /// Starts a process. It leads its own session and process group.
    async fn spawn(&self, command: Command) -> Result<(Arc<dyn Process>, ProcessIo), SpawnError>;
}

/// A process that was started.
#[async_trait]
pub(crate) trait Process: Send + Sync + std::fmt::Debug {
    /// Its id, for people.
    fn pid(&self) -> i32;

    /// The executable's path.
    fn resolved(&self) -> &str;

    /// Waits for the end: the exit code, or 128 + the signal. May be dropped and called again.
    async fn wait(&self) -> u8;

    /// Sends a signal to the process group.
    async fn signal_group(&self, signal: i32) -> Result<(), SignalError>;

    /// Gives the terminal a new size.
    fn resize(&self, rows: u16, cols: u16) -> std::io::Result<()>;
}

#[async_trait]
impl Sandbox for Container {
    fn root(&self) -> &Path {
        Self::root(self)
    }

    fn uid_start(&self) -> u32 {
        Self::uid_start(self)
    }

    fn services(&self) -> &Path {
        Path::new(SERVICES)
    }

    fn logs(&self) -> &Path {
        Path::new(container::LOGS)
    }

    fn socket(&self) -> &Path {
        Path::new(SOCKET)
    }

    async fn spawn(&self, command: Command) -> Result<(Arc<dyn Process>, ProcessIo), SpawnError> {
        let (process, io) = Self::spawn(self, command).await?;
        Ok((Arc::new(process), io))
    }
}

#[async_trait]
impl Process for container::Process {
    fn pid(&self) -> i32 {
        Self::pid(self)
    }

    fn resolved(&self) -> &str {
        Self::resolved(self)
    }

    async fn wait(&self) -> u8 {
        Self::wait(self).await
    }

    async fn signal_group(&self, signal: i32) -> Result<(), SignalError> {
        Self::signal_group(self, signal).await
    }

    fn resize(&self, rows: u16, cols: u16) -> std::io::Result<()> {
        Self::resize(self, rows, cols)
    }
}
