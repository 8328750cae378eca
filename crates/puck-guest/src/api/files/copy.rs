//! `POST fs/copy`: a file or a tree a second time.
//!
//! The source itself may be a symbolic link and is followed; below it links are copied as links. Each file is copied beside
//! its place and then takes the name, so nobody sees half of it; a copy that fails half-way has copied what it had come to.
//! What is neither a file, a directory nor a link is refused.

use super::{
    FileError, SpritePath, act,
    actor::Actor,
    parse,
    path::child,
    root::{Place, Root, check_regular, stat_in},
    tree,
    write::temporary_name,
};
use crate::api::{Agent, answer::Refusal};
use ::api::files::{Copied, Copy, Renamed};
use axum::{Json, body::Bytes, extract::State};
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};
use std::{os::fd::OwnedFd, sync::Arc};

/// A file is copied in pieces of this size, so that a copy ends soon when its container is stopped.
const PIECE_BYTES: usize = 8 << 20;

/// What a copy has of its source's mode if it is not to have all.
const MODE_MASK: u32 = 0o755;

pub(super) async fn copy(
    State(agent): State<Arc<Agent>>,
    body: Bytes,
) -> Result<Json<Copied>, Refusal> {
    let call: Copy = parse(&body)?;
    let source = super::path(&agent, &call.source, call.working_dir.as_deref()).await?;
    let dest = super::path(&agent, &call.dest, call.working_dir.as_deref()).await?;
    let (copied, _) = act(&agent, Actor::of(call.as_root), move |root| {
        let mut copying =
            Copying { root, preserve: call.preserve_attrs, copied: Vec::new(), bytes: 0 };
        copying.run(&source, &dest, call.recursive)?;
        let Copying { copied, bytes, .. } = copying;
        Ok(Copied { count: copied.len(), copied, total_bytes: bytes })
    })
    .await?;
    Ok(Json(copied))
}

struct Copying<'a> {
    root: &'a Root,
    preserve: bool,
    copied: Vec<Renamed>,
    bytes: u64,
}

impl Copying<'_> {
    fn run(
        &mut self,
        source: &SpritePath,
        dest: &SpritePath,
        recursive: bool,
    ) -> Result<(), FileError> {
        let failed = |path: &SpritePath| {
            let path = path.as_str().to_owned();
            move |errno| FileError::new("copy", path, errno)
        };
        let (dir, name) = dest.split().ok_or_else(|| failed(dest)(Errno::EXIST))?;
        let from = self.root.open_path(source.as_str(), OFlags::PATH).map_err(failed(source))?;
        let stat = rustix::fs::fstat(&from).map_err(failed(source))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let (from, stat) = self.root.open_file(source.as_str()).map_err(failed(source))?;
            let to = self.root.place(dir, name).map_err(failed(dest))?;
            self.file(&from, &stat, &to).map_err(failed(dest))?;
            self.note(source.as_str(), dest.as_str());
            return Ok(());
        }
        if !recursive {
            return Err(failed(source)(Errno::ISDIR));
        }
        // All of it is known before anything is made, so that a copy into itself ends.
        let below = tree::below(self.root, &from).map_err(failed(source))?;
        let to = self.root.place(dir, name).map_err(failed(dest))?;
        make_directory(&to).map_err(failed(dest))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let copy = tree::open(&to.dir, &to.name, flags).map_err(failed(dest))?;
        self.note(source.as_str(), dest.as_str());
        for found in &below {
            let (old, new) =
                (child(source.as_str(), &found.path), child(dest.as_str(), &found.path));
            self.root
                .check_present()
                .and_then(|()| self.one(&from, &copy, found))
                .map_err(|errno| FileError::new("copy", old.as_str(), errno))?;
            self.note(&old, &new);
        }
        // A directory's mode and times come last: it may be one that nobody may write to, and what is made in it changes it.
        for found in below.iter().rev().filter(|found| found.kind() == FileType::Directory) {
            let finish =
                || self.finish(&tree::open(&copy, &found.path, OFlags::RDONLY)?, &found.stat);
            finish().map_err(|errno| {
                FileError::new("copy", child(dest.as_str(), &found.path), errno)
            })?;
        }
        let finish = || self.finish(&tree::open(&copy, "", OFlags::RDONLY)?, &stat);
        finish().map_err(failed(dest))
    }

    /// Copies something below one directory to the same path below another.
    fn one(&mut self, from: &OwnedFd, to: &OwnedFd, found: &tree::Found) -> Result<(), Errno> {
        let (dir, name) = tree::parent(to, &found.path)?;
        let place = Place { dir, dir_path: String::new(), name: name.to_owned() };
        match found.kind() {
            FileType::Directory => make_directory(&place),
            FileType::RegularFile => {
                // Another file may stand there by now, and opening a FIFO waits.
                let file = tree::open(from, &found.path, OFlags::RDONLY | OFlags::NONBLOCK)?;
                let stat = rustix::fs::fstat(&file)?;
                check_regular(&stat)?;
                self.file(&file, &stat, &place)
            }
            FileType::Symlink => {
                let (dir, name) = tree::parent(from, &found.path)?;
                let target = rustix::fs::readlinkat(&dir, name, Vec::new())?;
                let temporary = temporary_name();
                rustix::fs::symlinkat(&target, &place.dir, temporary.as_str())?;
                name_it(&place, &temporary)
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// Copies a file's content to a place, under the place's name when all of it is there.
    fn file(&mut self, from: &OwnedFd, stat: &Stat, place: &Place) -> Result<(), Errno> {
        if let Ok(there) = stat_in(&place.dir, &place.name) {
            match FileType::from_raw_mode(there.st_mode) {
                FileType::Directory => return Err(Errno::ISDIR),
                _ if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) => return Ok(()),
                _ => {}
            }
        }
        let temporary = temporary_name();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to =
            rustix::fs::openat(&place.dir, temporary.as_str(), flags, Mode::from_raw_mode(0o600))?;
        let done = self
            .content(from, &to)
            .and_then(|()| self.finish(&to, stat))
            .and_then(|()| name_it(place, &temporary));
        if done.is_err() {
            let _ = rustix::fs::unlinkat(&place.dir, temporary.as_str(), AtFlags::empty());
        }
        done
    }

    fn content(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
        loop {
            self.root.check_present()?;
            match rustix::fs::copy_file_range(from, None, to, None, PIECE_BYTES)? {
                0 => return Ok(()),
                copied => self.bytes += copied as u64,
            }
        }
    }

    /// Gives a copy what it shall have of its source's owners, mode and times.
    fn finish(&self, copy: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
        if !self.preserve {
            return rustix::fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode & MODE_MASK));
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        match rustix::fs::fchown(copy, Some(uid), Some(gid)) {
            // A plain user cannot give a file away.
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        // After the owner, because a change of owner clears set-id bits.
        rustix::fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        let time = |seconds, nanoseconds: u64| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.try_into().unwrap_or(0),
        };
        let times = Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        rustix::fs::futimens(copy, &times)
    }

    fn note(&mut self, source: &str, dest: &str) {
        self.copied.push(Renamed { source: source.to_owned(), dest: dest.to_owned() });
    }
}

fn name_it(place: &Place, temporary: &str) -> Result<(), Errno> {
    rustix::fs::renameat(&place.dir, temporary, &place.dir, place.name.as_str())
}

/// Makes a directory that can be filled; one that is there already is.
fn make_directory(place: &Place) -> Result<(), Errno> {
    match rustix::fs::mkdirat(&place.dir, place.name.as_str(), Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => match stat_in(&place.dir, &place.name) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(()),
            Ok(_) => Err(Errno::NOTDIR),
            Err(errno) => Err(errno),
        },
        made => made,
    }
}
