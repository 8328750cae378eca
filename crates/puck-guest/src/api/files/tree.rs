//! What is below a directory.

use super::root::Root;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use std::os::fd::{AsFd, OwnedFd};

/// The most entries of a tree that one call looks at or changes.
pub(super) const ENTRIES_MAX: usize = 200_000;

/// Something below a directory.
#[derive(Debug)]
pub(super) struct Found {
    /// Its path from there.
    pub(super) path: String,
    /// What it is; a symbolic link itself.
    pub(super) stat: Stat,
}

impl Found {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// Everything below a directory, each directory before what is in it. No symbolic link is followed, and what changes
/// meanwhile is seen or not.
pub(super) fn below(root: &Root, top: &OwnedFd) -> Result<Vec<Found>, Errno> {
    let mut all = Vec::new();
    list(top, "", &mut all)?;
    let mut next = 0;
    while let Some(found) = all.get(next) {
        next += 1;
        if found.kind() != FileType::Directory {
            continue;
        }
        root.check_present()?;
        let path = found.path.clone();
        list(top, &path, &mut all)?;
    }
    Ok(all)
}

/// Opens something below a directory. No symbolic link on the way or at the end is followed.
pub(super) fn open(top: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { "." } else { path };
    loop {
        // The kernel answers EAGAIN when a rename elsewhere kept it from being sure.
        match rustix::fs::openat2(&top, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The directory that something below is in, and its name there.
pub(super) fn parent(top: impl AsFd, path: &str) -> Result<(OwnedFd, &str), Errno> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((open(top, dir, OFlags::PATH | OFlags::DIRECTORY)?, name))
}

/// Adds what is in one directory below.
pub(super) fn list(top: &OwnedFd, path: &str, all: &mut Vec<Found>) -> Result<(), Errno> {
    let dir = open(top, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for found in Dir::read_from(&dir)? {
        let found = found?;
        // What is not text has no path that a client could be told.
        let name = found.file_name().to_str().map_err(|_| Errno::ILSEQ)?;
        if name == "." || name == ".." {
            continue;
        }
        if all.len() >= ENTRIES_MAX {
            return Err(Errno::FBIG);
        }
        let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        all.push(Found { path, stat });
    }
    Ok(())
}
