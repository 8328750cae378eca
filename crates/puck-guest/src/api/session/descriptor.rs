//! Descriptors that the runtime watches.

use std::{io, os::fd::OwnedFd};
use tokio::io::{Interest, unix::AsyncFd};

/// Makes a descriptor non-blocking and has the runtime watch it.
pub(super) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: an `OwnedFd` answers with the same descriptor every time and keeps it open until it is dropped, which the
    // `AsyncFd` that takes it over does only after it has told the runtime.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
