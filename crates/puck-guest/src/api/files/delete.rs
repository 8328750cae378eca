//! `DELETE fs/delete`: a file, an empty directory, or with `recursive` a whole tree.
//!
//! A symbolic link is deleted itself, never what it leads to, wherever in a tree it is. A delete that fails half-way has
//! deleted what it had come to.

use super::{
    Call, FileError, SpritePath, act,
    root::{Root, stat_in},
};
use crate::api::{Agent, answer::Refusal};
use ::api::files::Deleted;
use axum::{
    Json,
    extract::{RawQuery, State},
};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};
use std::{ffi::CString, os::fd::OwnedFd, sync::Arc};

pub(super) async fn delete(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
) -> Result<Json<Deleted>, Refusal> {
    let Call { query, path, actor } = Call::read(&agent, raw.as_deref()).await?;
    let recursive = query.flag("recursive");
    let deleted = path.as_str().to_owned();
    act(&agent, actor, move |root| remove(root, &path, recursive)).await?;
    Ok(Json(Deleted { deleted: vec![deleted], count: 1 }))
}

fn remove(root: &Root, path: &SpritePath, recursive: bool) -> Result<(), FileError> {
    let failed = |errno| FileError::new("remove", path.as_str(), errno);
    let (dir_path, name) = path.split().ok_or_else(|| failed(Errno::BUSY))?;
    let place = root.place_itself(dir_path, name).map_err(failed)?;
    let stat = stat_in(&place.dir, name).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return rustix::fs::unlinkat(&place.dir, name, AtFlags::empty()).map_err(failed);
    }
    match rustix::fs::unlinkat(&place.dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if recursive => {
            remove_tree(root, &place.dir, name).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

/// A step down on the way: the name that was followed, and which directory it was in.
struct Step {
    name: CString,
    parent: (u64, u64),
}

/// Deletes a directory and all below. The walk needs two descriptors however deep the tree is: it goes back up by `..`, and
/// goes on only if that is the directory that it came from, so that nobody can lead it elsewhere meanwhile.
fn remove_tree(root: &Root, dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    let mut current = open_directory(dir, name)?;
    let mut way: Vec<Step> = Vec::new();
    loop {
        root.check_present()?;
        if let Some(name) = clear(&current)? {
            let parent = identity(&current)?;
            current = open_directory(&current, name.as_c_str())?;
            way.push(Step { name, parent });
            continue;
        }
        let Some(step) = way.pop() else {
            return rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
        };
        let parent = open_directory(&current, "..")?;
        if identity(&parent)? != step.parent {
            return Err(Errno::BUSY);
        }
        rustix::fs::unlinkat(&parent, step.name.as_c_str(), AtFlags::REMOVEDIR)?;
        current = parent;
    }
}

/// Deletes what can be deleted from a directory at once; the name of a directory in it that is not empty.
fn clear(dir: &OwnedFd) -> Result<Option<CString>, Errno> {
    for found in Dir::read_from(dir)? {
        let found = found?;
        let name = found.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_directory = match found.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            _ => false,
        };
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match rustix::fs::unlinkat(dir, name, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if is_directory => {
                return Ok(Some(name.to_owned()));
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

fn open_directory(dir: &OwnedFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Which directory this is, whatever its name.
fn identity(dir: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}
