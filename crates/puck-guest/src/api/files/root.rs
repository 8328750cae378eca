//! The container's root directory, and resolving paths in it.

use super::FileError;
use crate::api::{Withdrawal, sandbox::Sandbox};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use std::os::fd::{AsFd, OwnedFd};

/// The most symbolic links that are followed in one path, as in the kernel.
const LINKS_MAX: usize = 40;

/// A descriptor of the root, and whose ids its files have.
pub(super) struct Root {
    fd: OwnedFd,
    pub(super) uid_start: u32,
    withdrawal: Withdrawal,
}

/// A name in a directory: what a path leads to, whether or not it is there.
#[derive(Debug)]
pub(super) struct Place {
    /// The directory, to look in but not to read.
    pub(super) dir: OwnedFd,
    /// The directory's path.
    pub(super) dir_path: String,
    /// The name.
    pub(super) name: String,
}

impl Root {
    pub(super) fn open(sandbox: &dyn Sandbox, withdrawal: Withdrawal) -> Result<Self, FileError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(sandbox.root(), flags, Mode::empty())
            .map_err(|errno| FileError::new("open", "/", errno))?;
        Ok(Self { fd, uid_start: sandbox.uid_start(), withdrawal })
    }

    /// Fails when the container is about to be stopped. Asked between the steps of what may take long.
    pub(super) fn check_present(&self) -> Result<(), Errno> {
        if self.withdrawal.has_come() { Err(Errno::CANCELED) } else { Ok(()) }
    }

    /// Opens what the path leads to, following symbolic links.
    pub(super) fn open_path(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        // The kernel takes next to no other flag beside `O_PATH`.
        let flags = flags
            | if flags.contains(OFlags::PATH) {
                OFlags::CLOEXEC
            } else {
                OFlags::CLOEXEC | OFlags::NOCTTY
            };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // The kernel answers EAGAIN when a rename elsewhere kept it from being sure about a `..`.
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Opens a regular file for reading. Anything else is refused before it is opened, because opening a FIFO waits and
    /// opening a device may do something.
    pub(super) fn open_file(&self, path: &str) -> Result<(OwnedFd, Stat), Errno> {
        check_regular(&rustix::fs::fstat(self.open_path(path, OFlags::PATH)?)?)?;
        let file = self.open_path(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        // Another file may stand there by now.
        let stat = rustix::fs::fstat(&file)?;
        check_regular(&stat)?;
        Ok((file, stat))
    }

    /// Follows the symbolic links at the end of a path, to the place where a file of that path is or would be.
    pub(super) fn place(&self, dir_path: &str, name: &str) -> Result<Place, Errno> {
        let mut place = self.place_itself(dir_path, name)?;
        for _ in 0..LINKS_MAX {
            match stat_in(&place.dir, &place.name) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {}
                Ok(_) | Err(Errno::NOENT) => return Ok(place),
                Err(errno) => return Err(errno),
            }
            let target = rustix::fs::readlinkat(&place.dir, place.name.as_str(), Vec::new())?;
            let target = target.into_string().map_err(|_| Errno::ILSEQ)?;
            // Not cleaned: a `..` after a symbolic link means the parent of where the link leads, and the kernel knows it.
            let whole = if target.starts_with('/') {
                target
            } else {
                format!("{}/{target}", place.dir_path)
            };
            let (dir_path, name) = whole.rsplit_once('/').ok_or(Errno::INVAL)?;
            if matches!(name, "" | "." | "..") {
                return Err(Errno::ISDIR);
            }
            place = self.place_itself(dir_path, name)?;
        }
        Err(Errno::LOOP)
    }

    /// The place itself, even if a symbolic link is there.
    pub(super) fn place_itself(&self, dir_path: &str, name: &str) -> Result<Place, Errno> {
        let dir_path = if dir_path.is_empty() { "/" } else { dir_path };
        let dir = self.open_path(dir_path, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Place { dir, dir_path: dir_path.to_owned(), name: name.to_owned() })
    }
}

/// What is in a directory under a name, a symbolic link itself and not its target.
pub(super) fn stat_in(dir: impl AsFd, name: &str) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
}

/// Refuses everything that is not a regular file.
pub(super) fn check_regular(stat: &Stat) -> Result<(), Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}
