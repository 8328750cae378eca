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

#[cfg(test)]
mod tests {
    use super::{Root, Withdrawal};
    use rustix::{
        fs::{CWD, OFlags, RenameFlags},
        io::Errno,
    };
    use std::{
        fs::{self, File},
        io::Read,
        os::{fd::AsRawFd, unix::fs::symlink},
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };
    use tokio::sync::watch;

    /// How often a path is resolved while it changes.
    const TRIES: usize = 100_000;

    #[test]
    fn a_path_that_changes_all_the_time_never_leads_outside() {
        let outer = tempfile::tempdir().expect("a directory");
        let outer = outer.path().canonicalize().expect("its path");
        let (inner, outside) = (outer.join("root"), outer.join("outside"));
        for (dir, text) in [(&inner.join("true"), "inside"), (&outside, "outside")] {
            fs::create_dir_all(dir).expect("a directory");
            fs::write(dir.join("file"), text).expect("a file");
        }
        // Outside for whoever does not stop at the root.
        let to_outside = outside.to_str().expect("text");
        symlink(format!("../../../../../../../../{to_outside}"), inner.join("link"))
            .expect("a link");
        let fd = rustix::fs::open(&inner, OFlags::PATH, super::Mode::empty()).expect("the root");
        let root = Root { fd, uid_start: 0, withdrawal: Withdrawal(watch::channel(None).1) };
        let done = AtomicBool::new(false);
        let (mut found, mut refused) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (inner.join("true"), inner.join("link"));
                while !done.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE)
                        .expect("both are there");
                }
            });
            for number in 0..TRIES {
                let met = match number % 2 {
                    0 => root.open_file("/true/file").map(|(file, _)| {
                        let mut text = String::new();
                        File::from(file).read_to_string(&mut text).expect("readable");
                        assert_eq!(text, "inside");
                    }),
                    _ => root.place("/true", "file").map(|place| {
                        let way = format!("/proc/self/fd/{}", place.dir.as_raw_fd());
                        let way = fs::read_link(way).expect("a directory");
                        assert!(way.starts_with(&inner), "{way:?}");
                    }),
                };
                match met {
                    Ok(()) => found += 1,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(found > 0 && refused > 0, "nothing changed: {found} found, {refused} not");
    }
}
