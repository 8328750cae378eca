//! The zygote: first process of a container, and the program that builds the container around it.
//!
//! The agent starts this program with one end of a socket as standard input and sends a [`message::Build`]. The *builder*
//! ([`build`]) joins the container's control group, makes its user namespace, mounts its root, enters new namespaces and
//! forks. The child is the *zygote*: it finishes the mounts from inside ([`inside`]), gives up every right that the
//! container must not have ([`confine`]), and then starts processes on request ([`serve`], [`child`]) until the socket
//! closes. Nothing enters the container's namespaces from outside later, so starting a process is one fork and one exec.
//!
//! All namespaces but the user namespace belong to the *initial* user namespace: whatever capabilities a program in the
//! container gets hold of, they say nothing about its mounts, network, host name or control groups.
//!
//! A zygote that fails ends, and with it, since it is the first process of its process namespace, the container. The agent
//! sees that as the container's death.

pub(crate) mod message;

mod build;
mod child;
mod confine;
mod identity;
mod inside;
mod serve;

use message::{Build, Reply};
use rustix::{
    fs::{Mode, OFlags},
    io::FdFlags,
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

/// A step of building the container that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub(crate) struct StepError {
    step: &'static str,
    source: io::Error,
}

/// Names the step that a failure belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, StepError> {
        self.map_err(|source| StepError { step, source: source.into() })
    }
}

/// The program `puck-guest zygote`. Must run before the process starts any thread.
#[must_use]
pub fn main() -> ExitCode {
    let socket = match take_socket() {
        Ok(socket) => socket,
        Err(error) => return complain(&error),
    };
    let build = match crate::wire::receive::<Build>(socket.as_fd()) {
        Ok(Some(received)) => received.message,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => return complain(&error),
    };
    let built = build.step("read the description").and_then(|build| build::run(&build, &socket));
    match built {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell_failure(&socket, &error);
            ExitCode::FAILURE
        }
    }
}

/// Tells the agent why the container is not there. If even that fails, it sees the connection end.
fn tell_failure(socket: &OwnedFd, error: &StepError) {
    let reply = Reply::BuildFailed { reason: error.to_string() };
    if let Err(error) = reply.send(socket.as_fd(), &[]) {
        complain(&error);
    }
}

/// Moves the socket away from standard input, whose place becomes `/dev/null`.
fn take_socket() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    Ok(socket)
}

/// Standard error is the agent's, thus the machine's log.
fn complain(error: &dyn std::error::Error) -> ExitCode {
    use std::io::Write;
    // There is nobody left to tell if the log is gone.
    drop(writeln!(io::stderr(), "zygote: {error}"));
    ExitCode::FAILURE
}
