//! The sockets of one machine, however long the path to them is.

use guest::protocol::{AGENT_SOCKET, GATEWAY_SOCKET};
use rustix::fs::{Mode, OFlags};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// The directory of a machine's sockets, held open.
///
/// The path of a Unix socket has 107 bytes at most, which a data directory deep in somebody's home exceeds. Through the
/// descriptor every path is short.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(directory, flags, Mode::empty())?))
    }

    /// Where the agent listens.
    pub(super) fn agent(&self) -> PathBuf {
        self.path(AGENT_SOCKET)
    }

    /// Where the worker listens.
    pub(super) fn gateway(&self) -> PathBuf {
        self.path(GATEWAY_SOCKET)
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}
