//! Commands and the processes they become.

use super::link::{Link, SignalAnswer};
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};
use tokio::sync::watch;

/// A program to run in the container.
#[derive(Debug, Clone)]
pub struct Command {
    /// The argument vector, program name first. Not empty.
    pub argv: Vec<String>,
    /// The program, if it is not `argv[0]`. Without a slash it is looked up in the `PATH` of `env`.
    pub path: Option<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working directory; a relative one starts at the user's home. `None`: the user's home.
    pub dir: Option<String>,
    /// Whom it runs as.
    pub user: User,
    /// What its standard streams are.
    pub stdio: Stdio,
}

/// Users that commands run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// `sprite`, see [`crate::protocol::SPRITE_UID`].
    Sprite,
    /// The container's root.
    Root,
}

/// What the standard streams of a command are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Three pipes; without `stdin`, standard input is `/dev/null`.
    Pipes {
        /// Whether there is a pipe for standard input.
        stdin: bool,
    },
    /// A new terminal of this size, the controlling one of the command's session.
    Terminal {
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
}

/// Our ends of a process's streams: non-blocking, close-on-exec.
#[derive(Debug)]
pub enum ProcessIo {
    /// Pipes. Background children may keep them open after the process has ended.
    Pipes {
        /// Standard input, if it was asked for. Dropping it is the end of file.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// The master side of the terminal. Reading it gives EIO when the last process has closed the other side.
    Terminal {
        /// The master.
        master: OwnedFd,
    },
}

/// A process that [`crate::container::Container::spawn`] started. A handle: clones mean the same process, and dropping
/// it does not end the process. With a terminal it keeps the master open, so the terminal hangs up only when the handles
/// are gone too.
#[derive(Debug, Clone)]
pub struct Process {
    pub(super) id: u64,
    pub(super) pid: i32,
    pub(super) resolved: String,
    pub(super) terminal: Option<Arc<OwnedFd>>,
    pub(super) exit: watch::Receiver<Option<u8>>,
    pub(super) link: Arc<Link>,
}

/// The exit code of a process whose container died: as if killed by SIGKILL, which it was.
const KILLED: u8 = 128 + 9;

impl Process {
    /// Its id in the container; also the id of its session and process group.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The absolute path of the program that was found.
    #[must_use]
    pub fn resolved(&self) -> &str {
        &self.resolved
    }

    /// Waits until the process has ended: its exit code, or 128 + n after signal n. Children may live on. If the container
    /// dies first, the answer is 137. Cancel-safe; after the first answer every later call gives the same.
    pub async fn wait(&self) -> u8 {
        let mut exit = self.exit.clone();
        // The sender is dropped without a code only when the container has died.
        exit.wait_for(Option::is_some).await.map_or(KILLED, |code| code.unwrap_or(KILLED))
    }

    /// Sends a signal to the process's group. Never hits a reused id: once the process has ended, the answer is
    /// [`SignalError::Ended`].
    ///
    /// # Errors
    /// See [`SignalError`].
    pub async fn signal_group(&self, signal: i32) -> Result<(), SignalError> {
        match self.link.signal(self.id, signal).await {
            SignalAnswer::Sent => Ok(()),
            SignalAnswer::Ended => Err(SignalError::Ended),
            SignalAnswer::Invalid => Err(SignalError::Invalid { signal }),
        }
    }

    /// Changes the size of the terminal. Nothing happens without one.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(terminal.as_fd(), size)?)
    }
}

/// Why a signal was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// There is no such signal.
    #[error("there is no signal {signal}")]
    Invalid {
        /// The number.
        signal: i32,
    },
}

/// Why a command did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum SpawnError {
    /// No such program; a shell would exit with 127.
    #[error("{program}: command not found")]
    NotFound {
        /// What was looked for.
        program: String,
    },
    /// The program cannot be executed; a shell would exit with 126.
    #[error("{program}: {reason}")]
    NotExecutable {
        /// What was found.
        program: String,
        /// Why not.
        reason: String,
    },
    /// The working directory cannot be entered.
    #[error("cannot enter directory {dir}: {reason}")]
    Dir {
        /// The directory.
        dir: String,
        /// Why not.
        reason: String,
    },
    /// The command cannot be expressed, such as a NUL byte in an argument.
    #[error("{reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// A limit of the container was reached (processes, memory, size of the arguments).
    #[error("{reason}")]
    Exhausted {
        /// Which, for people.
        reason: String,
    },
    /// The container cannot start anything, usually because it has died.
    #[error("the container cannot start commands: {reason}")]
    Container {
        /// Why.
        reason: String,
    },
}

impl SpawnError {
    /// What a failed system call of starting a process means to whoever asked for it.
    pub(crate) fn from_errno(action: &str, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::Exhausted {
                reason: format!("cannot {action}: the sprite's limit of processes is reached"),
            },
            Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::ENOSPC) => {
                Self::Exhausted { reason: format!("cannot {action}: {error}") }
            }
            _ => Self::Container { reason: format!("cannot {action}: {error}") },
        }
    }

    /// The exit code that a shell would give: 127 if there is no such program, 126 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::NotFound { .. }) { 127 } else { 126 }
    }
}
