//! A directory whose subdirectories are mounted when somebody looks into one, by the kernel's autofs.
//!
//! Whoever enters a subdirectory in which nothing is mounted waits in the kernel, which sends a request through a pipe. The
//! agent mounts something there, or does not, and answers. The processes of the agent's own process group are not made to
//! wait, nor do they cause a mount: they see an empty directory.
//!
//! The mount is shared, and the container's copy of it a slave of the agent's: what is mounted here appears there.

use crate::{mount, sys};
use rustix::{
    io::Errno,
    ioctl::{IntegerSetter, Opcode, opcode},
    mount::{MountAttrFlags, MountPropagationFlags},
    pipe::PipeFlags,
};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};
use tokio::io::{Interest, unix::AsyncFd};

/// The version of the kernel's protocol, which has not changed since 2006.
const PROTOCOL: &str = "5";

/// The type of a request for something that is not mounted, in an indirect mount.
const MISSING_INDIRECT: u32 = 3;

/// Where the fields of a request are, in the order of `struct autofs_v5_packet`.
const KIND: usize = 4;
const TOKEN: usize = 8;
const NAME_BYTES: usize = 40;
const NAME: usize = 44;

/// The size of a request, rounded up to its alignment.
const REQUEST_BYTES: usize = 304;

const READY: Opcode = opcode::none(0x93, 0x60);
const FAIL: Opcode = opcode::none(0x93, 0x61);

/// The directory.
#[derive(Debug)]
pub struct Automount {
    path: PathBuf,
    requests: AsyncFd<OwnedFd>,
}

/// Somebody waits for something to be mounted.
#[derive(Debug)]
pub struct Wanted {
    /// The name of the subdirectory. It need not exist, and comes from a tenant.
    pub name: String,
    token: u32,
}

impl Automount {
    /// Mounts it at a directory that no user controls.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let (requests, kernel) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&requests, true)?;
        let (pipe, group) = (
            kernel.as_raw_fd().to_string(),
            rustix::process::getpgrp().as_raw_nonzero().to_string(),
        );
        let options = [
            ("source", "automount"),
            ("fd", pipe.as_str()),
            ("pgrp", &group),
            ("minproto", PROTOCOL),
            ("maxproto", PROTOCOL),
            ("indirect", ""),
        ];
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let directory = mount::filesystem("autofs", &options, flags)?;
        mount::attach_path(directory.as_fd(), path)?;
        rustix::mount::mount_change(path, MountPropagationFlags::SHARED)?;
        Ok(Self { path: path.to_owned(), requests: sys::watch(requests, Interest::READABLE)? })
    }

    /// The place for what is mounted under a name.
    #[must_use]
    pub fn place(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the subdirectories be these. One in which something is mounted stays.
    ///
    /// # Errors
    /// When one could not be made.
    pub fn offer(&self, names: &[String]) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if !names.iter().any(|name| entry.file_name() == name.as_str()) {
                match rustix::fs::unlinkat(
                    rustix::fs::CWD,
                    entry.path(),
                    rustix::fs::AtFlags::REMOVEDIR,
                ) {
                    Ok(()) | Err(Errno::BUSY | Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        for name in names {
            match std::fs::create_dir(self.place(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The next that somebody waits for. May be dropped and called again.
    ///
    /// # Errors
    /// When the kernel does not ask any more, or asks what is not understood.
    pub async fn wanted(&self) -> io::Result<Wanted> {
        let mut request = [0; REQUEST_BYTES];
        let read = self
            .requests
            .async_io(Interest::READABLE, |pipe| Ok(rustix::io::read(pipe, &mut request)?))
            .await?;
        parse(request.get(..read).unwrap_or_default()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "an unknown request of autofs")
        })
    }

    /// Lets go on whoever waits: what is wanted is mounted at its [`Self::place`], or is not there.
    ///
    /// # Errors
    /// When nobody waits any more.
    pub fn answer(&self, wanted: &Wanted, is_mounted: bool) -> io::Result<()> {
        let directory = File::open(&self.path)?;
        let token = wanted.token as usize;
        // SAFETY: both take the token by value and touch no memory of this process.
        unsafe {
            if is_mounted {
                rustix::ioctl::ioctl(&directory, IntegerSetter::<READY>::new_usize(token))?;
            } else {
                rustix::ioctl::ioctl(&directory, IntegerSetter::<FAIL>::new_usize(token))?;
            }
        }
        Ok(())
    }
}

fn parse(request: &[u8]) -> Option<Wanted> {
    let number = |at: usize| Some(u32::from_ne_bytes(*request.get(at..)?.first_chunk()?));
    if number(KIND)? != MISSING_INDIRECT {
        return None;
    }
    let length = usize::try_from(number(NAME_BYTES)?).ok()?;
    let name = request.get(NAME..NAME.checked_add(length)?)?;
    Some(Wanted { name: String::from_utf8_lossy(name).into_owned(), token: number(TOKEN)? })
}

#[cfg(test)]
mod tests {
    use super::{NAME, REQUEST_BYTES, parse};

    #[test]
    fn a_request_is_read_and_nonsense_is_not() {
        let mut request = [0; REQUEST_BYTES];
        let mut put =
            |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &5_u32.to_ne_bytes());
        put(4, &3_u32.to_ne_bytes());
        put(8, &77_u32.to_ne_bytes());
        put(40, &2_u32.to_ne_bytes());
        put(NAME, b"v1\0");
        let wanted = parse(&request).expect("a request");
        assert_eq!((wanted.name.as_str(), wanted.token), ("v1", 77));
        assert!(parse(&request[..NAME + 1]).is_none());
        request[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(parse(&request).is_none());
        request[4] = 4;
        assert!(parse(&request).is_none());
    }
}
