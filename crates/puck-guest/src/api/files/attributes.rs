//! `POST fs/chmod` and `POST fs/chown`: modes and owners, of one file or of a whole tree.
//!
//! The path itself is followed to where it leads. Below it no symbolic link is followed: `chmod` passes over them, `chown`
//! changes them themselves.

use super::{
    FileError, SpritePath, act, actor::Actor, parse, path::child, root::Root, tree,
    write::parse_mode,
};
use crate::api::{Agent, answer::Refusal};
use ::api::files::{Affected, Chmod, Chown, Owner, WithMode, WithOwners};
use axum::{Json, body::Bytes, extract::State};
use guest::protocol::UID_COUNT;
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

/// The most of a line of the sprite's `/etc/passwd` or `/etc/group`, and of such a file, that is looked at.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;

pub(super) async fn chmod(
    State(agent): State<Arc<Agent>>,
    body: Bytes,
) -> Result<Json<Affected<WithMode>>, Refusal> {
    let call: Chmod = parse(&body)?;
    let mode = parse_mode(&call.mode)?;
    let path = super::path(&agent, &call.path, call.working_dir.as_deref()).await?;
    let (affected, _) = act(&agent, Actor::of(call.as_root), move |root| {
        each(root, &path, "chmod", call.recursive, |file, path| {
            if kind(file)? == FileType::Symlink {
                return Ok(None);
            }
            // `fchmod` takes no descriptor that is only a path, and the kernels in use have no call that does.
            let file = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::chmodat(CWD, file, Mode::from_raw_mode(mode), AtFlags::empty())?;
            Ok(Some(WithMode { path, mode: format!("{mode:04o}") }))
        })
    })
    .await?;
    Ok(Json(Affected { count: affected.len(), affected }))
}

pub(super) async fn chown(
    State(agent): State<Arc<Agent>>,
    body: Bytes,
) -> Result<Json<Affected<WithOwners>>, Refusal> {
    let call: Chown = parse(&body)?;
    let path = super::path(&agent, &call.path, call.working_dir.as_deref()).await?;
    let (affected, _) = act(&agent, Actor::of(call.as_root), move |root| {
        let uid = call.uid.map(|owner| id(root, "/etc/passwd", owner)).transpose()?;
        let gid = call.gid.map(|owner| id(root, "/etc/group", owner)).transpose()?;
        each(root, &path, "chown", call.recursive, |file, path| {
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            let outside = |id: u32| root.uid_start.saturating_add(id);
            let user = uid.map(|uid| Uid::from_raw(outside(uid)));
            let group = gid.map(|gid| Gid::from_raw(outside(gid)));
            rustix::fs::chownat(file, "", user, group, flags)?;
            let stat = rustix::fs::fstat(file)?;
            let inside = |id: u32| id.saturating_sub(root.uid_start);
            Ok(Some(WithOwners { path, uid: inside(stat.st_uid), gid: inside(stat.st_gid) }))
        })
    })
    .await?;
    Ok(Json(Affected { count: affected.len(), affected }))
}

/// Does `change` to what the path leads to and, if wanted, to everything below. Ends with the first that fails.
fn each<T>(
    root: &Root,
    path: &SpritePath,
    action: &'static str,
    recursive: bool,
    change: impl Fn(&OwnedFd, String) -> Result<Option<T>, Errno>,
) -> Result<Vec<T>, FileError> {
    let failed = |path: &str| {
        let path = path.to_owned();
        move |errno| FileError::new(action, path, errno)
    };
    let top = root.open_path(path.as_str(), OFlags::PATH).map_err(failed(path.as_str()))?;
    let below = if recursive && kind(&top).map_err(failed(path.as_str()))? == FileType::Directory {
        tree::below(root, &top).map_err(failed(path.as_str()))?
    } else {
        Vec::new()
    };
    let mut changed = Vec::new();
    changed.extend(change(&top, path.as_str().to_owned()).map_err(failed(path.as_str()))?);
    for found in below {
        let path = child(path.as_str(), &found.path);
        root.check_present().map_err(failed(&path))?;
        // Not opened as a link's target: without `O_NOFOLLOW`, a path that must hold no link would be refused.
        let open = || {
            let (dir, name) = tree::parent(&top, &found.path)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, Mode::empty())
        };
        match open().and_then(|file| change(&file, path.clone())) {
            // Gone meanwhile.
            Err(Errno::NOENT) => {}
            done => changed.extend(done.map_err(failed(&path))?),
        }
    }
    Ok(changed)
}

fn kind(file: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

/// The number of a user or group: a number that the sprite has, or one that its file of accounts gives to a name.
fn id(root: &Root, accounts: &str, owner: Owner) -> Result<u32, FileError> {
    let number = match &owner {
        Owner::Id(id) => Some(*id),
        Owner::Name(name) => match name.parse() {
            Ok(id) => Some(id),
            Err(_) => find(root, accounts, name)
                .map_err(|errno| FileError::new("open", accounts, errno))?,
        },
    };
    number.filter(|id| *id < UID_COUNT).ok_or_else(|| {
        let named = match owner {
            Owner::Id(id) => id.to_string(),
            Owner::Name(name) => name,
        };
        FileError::new("find the owner", named, Errno::INVAL)
    })
}

fn find(root: &Root, accounts: &str, name: &str) -> Result<Option<u32>, Errno> {
    use std::io::Read;
    let (file, _) = root.open_file(accounts)?;
    let lines = BufReader::new(File::from(file).take(ACCOUNTS_BYTES_MAX)).lines();
    // A line that is not text is nobody's.
    Ok(lines.map_while(Result::ok).find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    }))
}
