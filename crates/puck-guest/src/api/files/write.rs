//! `PUT fs/write`: a file's new content, from the request's body.
//!
//! The content goes to a temporary file in the same directory, is flushed to the disk, and then takes the name: a reader
//! sees the old file or the new one, and a client that leaves half-way changes nothing. A file that is replaced keeps its
//! owner (as far as the actor may give it) and, unless the client says otherwise, its mode. A symbolic link is followed.

use super::{
    Call, FileError, SpritePath, act,
    actor::{self, Actor},
    path::child,
    root::{Place, Root, check_regular, stat_in},
};
use crate::api::{Agent, Withdrawal, answer::Refusal};
use api::files::Written;
use axum::{
    Json,
    body::Body,
    extract::{RawQuery, State},
    http::StatusCode,
};
use futures::StreamExt;
use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use std::{
    fs::File,
    hash::{BuildHasher, Hasher, RandomState},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};
use tokio::{io::AsyncWriteExt, sync::Semaphore};

/// The mode of a new file.
const FILE_MODE: u32 = 0o644;

/// The mode of a new directory.
const DIRECTORY_MODE: u32 = 0o755;

/// The most pieces of a path, as a bound of the work for one call. The kernel takes no longer path at once.
const DEPTH_MAX: usize = 2048;

/// Files by which clients make a directory: they write one and delete it.
const PLACEHOLDERS: [&str; 2] = [".keep", ".mkdir_placeholder"];

/// How to write.
#[derive(Debug, Clone, Copy)]
struct Options {
    mode: Option<u32>,
    parents: Parents,
}

/// Which missing directories are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parents {
    All,
    Last,
    None,
}

/// A file that has no name of its own yet.
struct Draft {
    place: Place,
    temporary: String,
    mode: u32,
    owner: Option<(u32, u32)>,
    uid_start: u32,
    actor: Actor,
    operations: Arc<Semaphore>,
    is_named: bool,
}

pub(super) async fn write(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
    body: Body,
) -> Result<Json<Written>, Refusal> {
    let Call { query, path, actor } = Call::read(&agent, raw.as_deref()).await?;
    let is_placeholder = path.split().is_some_and(|(_, name)| PLACEHOLDERS.contains(&name));
    let options = Options {
        mode: query.first("mode").filter(|mode| !mode.is_empty()).map(parse_mode).transpose()?,
        parents: match query.flag("mkdirParents") || query.flag("mkdir") {
            true => Parents::All,
            false if is_placeholder => Parents::Last,
            false => Parents::None,
        },
    };
    let (draft, file, mut withdrawal) = begin(&agent, &path, actor, options).await?;
    let size = tokio::select! {
        size = fill(file, body, path.as_str()) => size?,
        () = withdrawal.wait() => return Err(Refusal::unavailable()),
    };
    let mode = format!("{:04o}", draft.mode);
    finish(draft, path.as_str()).await?;
    Ok(Json(Written { path: path.as_str().to_owned(), size, mode }))
}

pub(super) fn parse_mode(text: &str) -> Result<u32, Refusal> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let is_octal = !digits.is_empty() && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    is_octal
        .then(|| u32::from_str_radix(digits, 8).ok())
        .flatten()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| {
            Refusal::new(StatusCode::BAD_REQUEST, "mode must be an octal number such as 0644")
        })
}

/// Makes the draft as the actor, or, if only its rights are missing, as the container's root.
async fn begin(
    agent: &Agent,
    path: &SpritePath,
    actor: Actor,
    options: Options,
) -> Result<(Draft, File, Withdrawal), Refusal> {
    let operations = Arc::clone(&agent.files.operations);
    let attempt = async |actor: Actor, heir: Option<Actor>| {
        let (path, operations) = (path.clone(), Arc::clone(&operations));
        act(agent, actor, move |root| Ok(draft(root, &path, actor, heir, options, operations)))
            .await
    };
    let (drafted, withdrawal) = match attempt(actor, None).await? {
        (Err(error), _)
            if actor == Actor::Sprite && matches!(error.errno, Errno::ACCESS | Errno::PERM) =>
        {
            attempt(Actor::Root, path.is_in_home().then_some(Actor::Sprite)).await?
        }
        other => other,
    };
    let (draft, file) = drafted.map_err(FileError::into_refusal)?;
    Ok((draft, file, withdrawal))
}

/// Makes missing directories and an empty temporary file. What is new is given to `heir`.
fn draft(
    root: &Root,
    path: &SpritePath,
    actor: Actor,
    heir: Option<Actor>,
    options: Options,
    operations: Arc<Semaphore>,
) -> Result<(Draft, File), FileError> {
    let failed = |errno| FileError::new("open", path.as_str(), errno);
    let (dir_path, name) = path.split().ok_or_else(|| failed(Errno::ISDIR))?;
    make_directories(root, dir_path, heir, options.parents)?;
    let place = root.place(dir_path, name).map_err(failed)?;
    let old = match stat_in(&place.dir, &place.name) {
        Ok(stat) => {
            check_regular(&stat).map_err(failed)?;
            Some(stat)
        }
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(failed(errno)),
    };
    let temporary = temporary_name();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(&place.dir, temporary.as_str(), flags, Mode::from_raw_mode(0o600))
            .map_err(failed)?;
    let heir = heir.map(|heir| (heir.id(root.uid_start), heir.id(root.uid_start)));
    let draft = Draft {
        place,
        temporary,
        mode: options.mode.or(old.map(|stat| stat.st_mode & 0o7777)).unwrap_or(FILE_MODE),
        owner: old.map(|stat| (stat.st_uid, stat.st_gid)).or(heir),
        uid_start: root.uid_start,
        actor,
        operations,
        is_named: false,
    };
    Ok((draft, File::from(file)))
}

/// A name for what is not whole yet; random, so that it meets neither a user's file nor what an agent that died has left.
pub(super) fn temporary_name() -> String {
    format!(".puck-write-{:016x}", RandomState::new().build_hasher().finish())
}

pub(super) fn make_directories(
    root: &Root,
    dir_path: &str,
    heir: Option<Actor>,
    parents: Parents,
) -> Result<(), FileError> {
    let failed = |errno| FileError::new("mkdir", dir_path, errno);
    if parents == Parents::None
        || root.open_path(dir_path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    {
        return Ok(());
    }
    let parts: Vec<&str> = dir_path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.len() > DEPTH_MAX {
        return Err(failed(Errno::NAMETOOLONG));
    }
    let mut dir = root.open_path("/", OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?;
    let mut so_far = String::new();
    for (index, part) in parts.iter().enumerate() {
        so_far = child(&so_far, part);
        dir = match root.open_path(&so_far, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(next) => next,
            Err(Errno::NOENT) if parents == Parents::All || index + 1 == parts.len() => {
                make_directory(&dir, part, root, heir).map_err(failed)?;
                root.open_path(&so_far, OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?
            }
            Err(errno) => return Err(failed(errno)),
        };
    }
    Ok(())
}

fn make_directory(
    dir: &OwnedFd,
    name: &str,
    root: &Root,
    heir: Option<Actor>,
) -> Result<(), Errno> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
        // Somebody else has just made it.
        Err(Errno::EXIST) => return Ok(()),
        other => other?,
    }
    if let Some(heir) = heir {
        let (uid, gid) = ids(heir.id(root.uid_start), heir.id(root.uid_start));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn ids(uid: u32, gid: u32) -> (Uid, Gid) {
    (Uid::from_raw(uid), Gid::from_raw(gid))
}

/// Writes the body into the file: how many bytes.
async fn fill(file: File, body: Body, path: &str) -> Result<u64, Refusal> {
    let failed = |error: &std::io::Error| FileError::from_io("write", path, error).into_refusal();
    let mut file = tokio::fs::File::from_std(file);
    let mut body = body.into_data_stream();
    let mut size = 0;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| Refusal::invalid(&error))?;
        file.write_all(&piece).await.map_err(|error| failed(&error))?;
        size += piece.len() as u64;
    }
    file.flush().await.map_err(|error| failed(&error))?;
    Ok(size)
}

/// Gives the draft its mode, its owner and its name, durably.
async fn finish(mut draft: Draft, path: &str) -> Result<(), Refusal> {
    let (operations, actor, uid_start) =
        (Arc::clone(&draft.operations), draft.actor, draft.uid_start);
    let path = path.to_owned();
    actor::act(&operations, actor, uid_start, move || {
        draft.name().map_err(|errno| FileError::new("rename", path, errno))
    })
    .await
    .and_then(std::convert::identity)
    .map_err(FileError::into_refusal)
}

impl Draft {
    fn name(&mut self) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file =
            rustix::fs::openat(&self.place.dir, self.temporary.as_str(), flags, Mode::empty())?;
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = ids(uid, gid);
            match rustix::fs::fchown(&file, Some(uid), Some(gid)) {
                // A plain user cannot give a file away; it then is the writer's, as with any editor that replaces.
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        // After the owner, because a change of owner clears set-id bits.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode))?;
        rustix::fs::fsync(&file)?;
        let Place { dir, name, .. } = &self.place;
        rustix::fs::renameat(dir, self.temporary.as_str(), dir, name.as_str())?;
        self.is_named = true;
        sync_directory(dir)
    }
}

/// Makes a rename durable. A directory that the actor may write but not read cannot be flushed by it; the file system does so
/// with its next commit.
fn sync_directory(dir: impl AsFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, ".", flags, Mode::empty()) {
        Ok(dir) => rustix::fs::fsync(dir),
        Err(Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_named {
            return;
        }
        let (actor, uid_start) = (self.actor, self.uid_start);
        let operations = Arc::clone(&self.operations);
        let temporary = std::mem::take(&mut self.temporary);
        let Ok(dir) = self.place.dir.try_clone() else {
            tracing::warn!("no descriptor left to remove a temporary file with");
            return;
        };
        let remove = move || {
            if let Err(error) = rustix::fs::unlinkat(dir, temporary.as_str(), AtFlags::empty()) {
                tracing::debug!(%error, "remove a temporary file");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                if let Err(error) = actor::act(&operations, actor, uid_start, remove).await {
                    tracing::warn!(%error, "a temporary file stays");
                }
            })),
            // Outside of the runtime this is the actor's own thread, whose caller has left.
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_mode;

    #[test]
    fn modes_are_octal() {
        for (text, mode) in
            [("0644", 0o644), ("644", 0o644), ("0o755", 0o755), ("7777", 0o7777), ("0", 0)]
        {
            assert_eq!(parse_mode(text), Ok(mode), "{text}");
        }
        for text in ["", "0648", "-1", "+7", "rw-r--r--", "10000", "77777777777777777777", "0x1ff"]
        {
            assert!(parse_mode(text).is_err(), "{text:?}");
        }
    }
}
