//! Freezing the volume's filesystem without the danger that it stays frozen.
//!
//! A frozen filesystem whose server died would leak: its processes cannot be killed and its mount cannot be removed. So the
//! agent hands a descriptor of the mount to its keeper, a process outside of the machine ([`crate::launch`]), before it
//! freezes. The keeper thaws when the agent dies or when [`FREEZE_LIMIT`] has passed, and lets go of the descriptor when
//! the agent says that it has thawed, since the mount could not be unmounted while it is held.
//!
//! An agent that freezes without this is covered for its death only: the keeper then looks for the volume at its usual place.

use crate::{sys, wire};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

/// The descriptor of the agent's end of its socket to the keeper, open when the agent starts.
pub const KEEPER_FD: i32 = 3;

/// How long the keeper leaves a filesystem frozen.
pub const FREEZE_LIMIT: Duration = Duration::from_secs(1);

/// What the agent tells the keeper before it freezes, with the descriptor.
pub(crate) const HOLD: &[u8] = b"hold";

/// What it tells after it has thawed; answered with the same.
pub(crate) const RELEASE: &[u8] = b"release";

/// Why the filesystem was not frozen, or not thawed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no keeper.
    #[error("descriptor {KEEPER_FD} is not the keeper's socket")]
    NoKeeper(#[source] io::Error),
    /// The keeper did not answer.
    #[error("the keeper did not take or release the mount")]
    Keeper(#[source] io::Error),
    /// The kernel did not freeze.
    #[error("freeze failed")]
    Freeze(#[source] io::Error),
    /// The filesystem was not frozen any more: the keeper thawed it first, so what was done meanwhile did not see one
    /// instant.
    #[error("the filesystem was frozen for longer than {FREEZE_LIMIT:?} and was thawed")]
    Late(#[source] io::Error),
}

/// The agent's way to freeze its volume. One freeze at a time: the methods take `&mut self`.
#[derive(Debug)]
pub struct Freezer {
    /// Never closed by this process: its end tells the keeper that the agent has ended.
    keeper: BorrowedFd<'static>,
}

impl Freezer {
    /// Takes the socket that the launcher left at [`KEEPER_FD`].
    ///
    /// # Safety
    /// At most once in a process, and nothing else may own that descriptor.
    ///
    /// # Errors
    /// When the descriptor is not a socket: this process was not started by the launcher.
    pub unsafe fn inherit() -> Result<Self, Error> {
        // SAFETY: the launcher left this descriptor, and the caller promises that nobody else owns and thus closes it.
        let keeper = unsafe { BorrowedFd::borrow_raw(KEEPER_FD) };
        rustix::net::sockopt::socket_type(keeper)
            .and_then(|_| rustix::io::fcntl_setfd(keeper, rustix::io::FdFlags::CLOEXEC))
            .map_err(|source| Error::NoKeeper(source.into()))?;
        Ok(Self { keeper })
    }

    /// Freezes the filesystem that `mount` is a directory of, for [`FREEZE_LIMIT`] at most. Blocks while the kernel writes out
    /// what is dirty: call `syncfs` before, and not from an async task's thread.
    ///
    /// # Errors
    /// The filesystem is not frozen then.
    pub fn freeze<'a>(&'a mut self, mount: &'a impl AsFd) -> Result<Frozen<'a>, Error> {
        let mount = mount.as_fd();
        wire::send_bytes(self.keeper, HOLD, &[mount]).map_err(Error::Keeper)?;
        match sys::freeze(mount, true).map_err(Error::Freeze) {
            Ok(()) => Ok(Frozen { freezer: self, mount: Some(mount) }),
            Err(error) => {
                self.release()?;
                Err(error)
            }
        }
    }

    fn release(&self) -> Result<(), Error> {
        wire::send_bytes(self.keeper, RELEASE, &[]).map_err(Error::Keeper)?;
        let mut answer = [0; 16];
        let (len, _) = wire::receive_bytes(self.keeper, &mut answer).map_err(Error::Keeper)?;
        if answer.get(..len) == Some(RELEASE) {
            Ok(())
        } else {
            Err(Error::Keeper(io::ErrorKind::InvalidData.into()))
        }
    }
}

/// A frozen filesystem. Dropping it thaws; [`Frozen::thaw`] also tells whether it was frozen until then.
#[derive(Debug)]
pub struct Frozen<'a> {
    freezer: &'a mut Freezer,
    mount: Option<BorrowedFd<'a>>,
}

impl Frozen<'_> {
    /// Thaws. The keeper does not hold the mount any more afterwards.
    ///
    /// # Errors
    /// [`Error::Late`] when the keeper thawed first.
    pub fn thaw(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(mount) = self.mount.take() else { return Ok(()) };
        let thawed = sys::freeze(mount, false).map_err(Error::Late);
        self.freezer.release()?;
        thawed
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "a frozen volume could not be thawed in order");
        }
    }
}
