//! `GET fs/list`: the entries of a directory, or the one entry of a file.
//!
//! A symbolic link in the path is followed, to a directory or a file; a symbolic link among the entries is told as itself. A
//! recursive list follows none, and passes over what the user may not look into, as `find` does.

use super::{Call, FileError, act, glob, path::child, root::Root};
use crate::api::{Agent, answer::Refusal};
use ::api::files::{Entry, EntryKind, Listing};
use axum::{
    extract::{RawQuery, State},
    http::header,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use rustix::{
    fs::{Dir, FileType, OFlags, Stat},
    io::Errno,
};
use std::{os::fd::OwnedFd, sync::Arc};

/// The most entries of one list: what fits into some tens of megabytes.
const ENTRIES_MAX: usize = 200_000;

pub(super) async fn list(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Refusal> {
    let Call { query, path, actor } = Call::read(&agent, raw.as_deref()).await?;
    let recursive = query.flag("recursive");
    let pattern = query.first("pattern").filter(|pattern| !pattern.is_empty()).map(str::to_owned);
    let (json, _) = act(&agent, actor, move |root| {
        let mut entries = entries(root, path.as_str(), recursive)?;
        if let Some(pattern) = pattern {
            let prefix = path.as_str().trim_end_matches('/').len() + 1;
            entries.retain(|entry| {
                let inner = entry.path.get(prefix..).unwrap_or(&entry.name);
                glob::matches(&pattern, if pattern.contains('/') { inner } else { &entry.name })
            });
        }
        let listing = Listing { path: path.as_str().to_owned(), count: entries.len(), entries };
        // Here and not on the runtime's threads, since a long list takes its time.
        serde_json::to_vec(&listing).map_err(|_| FileError::new("list", listing.path, Errno::IO))
    })
    .await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

fn entries(root: &Root, path: &str, recursive: bool) -> Result<Vec<Entry>, FileError> {
    let failed = |errno| FileError::new("open", path, errno);
    let found = root.open_path(path, OFlags::PATH).map_err(failed)?;
    let stat = rustix::fs::fstat(&found).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let name = path.rsplit('/').next().unwrap_or(path);
        return Ok(vec![entry(name, path.to_owned(), &stat)]);
    }
    let dir = root.open_path(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    let mut all = Vec::new();
    children(dir, path, &mut all).map_err(failed)?;
    if recursive {
        descend(root, path, &mut all)?;
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

/// Adds everything below the directories that are already in the list.
fn descend(root: &Root, path: &str, all: &mut Vec<Entry>) -> Result<(), FileError> {
    let mut next = 0;
    while let Some(entry) = all.get(next) {
        next += 1;
        if !entry.is_dir {
            continue;
        }
        let below = entry.path.clone();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match root.open_path(&below, flags).and_then(|dir| children(dir, &below, all)) {
            // Not ours to look into, or gone since, or deeper than a path can be.
            Ok(())
            | Err(
                Errno::ACCESS | Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG,
            ) => {}
            Err(errno) => return Err(FileError::new("list", path, errno)),
        }
    }
    Ok(())
}

/// Adds the entries of one directory.
fn children(dir: OwnedFd, path: &str, all: &mut Vec<Entry>) -> Result<(), Errno> {
    let looking = dir.try_clone().map_err(|_| Errno::MFILE)?;
    for found in Dir::new(dir)? {
        let found = found?;
        let name = found.file_name().to_string_lossy();
        if name == "." || name == ".." {
            continue;
        }
        if all.len() >= ENTRIES_MAX {
            return Err(Errno::FBIG);
        }
        match rustix::fs::statat(&looking, found.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => all.push(entry(&name, child(path, &name), &stat)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn entry(name: &str, path: String, stat: &Stat) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        _ => EntryKind::File,
    };
    let nanoseconds = i32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Entry {
        name: if name.is_empty() { "/".to_owned() } else { name.to_owned() },
        path,
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: format!("{:04o}", stat.st_mode & 0o7777),
        // Times before year 1 and after year 9999 can be set on a file but not written in RFC 3339.
        mod_time: Timestamp::new(stat.st_mtime, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH),
        is_dir: kind == EntryKind::Directory,
    }
}
