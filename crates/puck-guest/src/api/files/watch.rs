//! `GET fs/watch` with an upgrade: what happens to files, as it happens.
//!
//! ```text
//! client -> {"type":"subscribe","paths":[..],"recursive":bool,"workingDir":".."}     may come again; "unsubscribe" likewise
//!        <- {"type":"subscribed","paths":[..]}                                        as they were understood
//!        <- {"type":"event","path":"..","event":"write|create|remove|rename|chmod",..}
//!        <- {"type":"error","message":".."}                                           also when events were dropped
//! ```
//!
//! The kernel's watches (`inotify(7)`) are on what a path led to when it was subscribed; what may be watched is what the user
//! `sprite` may read. Directories that appear below a recursive one are watched too, and what is in them by then is told.
//! A watch holds no file open, so it never keeps the disk from being unmounted, and it ends when the container does.
//!
//! Nothing is dropped silently: a client that is slow lets the kernel's queue fill, and is told when it overflowed.

use super::{
    Actor, FileError, Root, SpritePath, act,
    path::{InvalidPath, child},
    tree,
};
use crate::api::{Agent, Withdrawal, answer::Refusal, message};
use api::{
    exec::KEEPALIVE,
    files::{FileEvent, WatchMessage, WatchRequest},
};
use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use jiff::Timestamp;
use rustix::{
    fs::{
        FileType, OFlags,
        inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    },
    io::Errno,
};
use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};
use tokio::io::{Interest, unix::AsyncFd};

/// The most clients that watch at once: each takes one of the host's few inotify instances.
pub(super) const WATCHERS_MAX: usize = 8;

/// The most files and directories that one client watches.
const WATCHES_MAX: usize = 8192;

/// The most paths of one subscription.
const PATHS_MAX: usize = 64;

/// The largest message of a client.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// How much of the kernel's queue is read at once.
const BATCH_BYTES: usize = 64 * 1024;

/// What is watched for.
const MASK: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

pub(super) async fn watch(
    State(agent): State<Arc<Agent>>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let Ok(place) = Arc::clone(&agent.files.watchers).try_acquire_owned() else {
        let message = format!("more than {WATCHERS_MAX} clients watch files of one sprite");
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, message));
    };
    let (_, withdrawal) = agent.sandbox().await?;
    let watcher = Watcher::new().map_err(|error| {
        tracing::warn!(%error, "watch files");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("cannot watch files: {error}"))
    })?;
    let hold = agent.activity.hold("watch of files");
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(async move |socket| {
        watcher.serve(socket, &agent, withdrawal).await;
        drop((hold, place));
    }))
}

/// What one client watches.
struct Watcher {
    inotify: AsyncFd<OwnedFd>,
    watched: HashMap<i32, Watched>,
}

/// One watch of the kernel.
#[derive(Debug, Clone)]
struct Watched {
    path: String,
    is_recursive: bool,
    is_dir: bool,
    /// A client has named it; it is not only below something that a client has named, whose watch tells of it.
    is_top: bool,
}

/// An event as the kernel told it.
struct Seen {
    watch: i32,
    what: ReadFlags,
    name: Option<String>,
}

impl Watcher {
    fn new() -> std::io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` answers with the same descriptor every time and keeps it open until it is dropped, which the
        // `AsyncFd` that takes it over does only after it has told the runtime.
        let inotify = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { inotify, watched: HashMap::new() })
    }

    async fn serve(mut self, mut socket: WebSocket, agent: &Agent, mut withdrawal: Withdrawal) {
        let mut messages: Vec<Message> = Vec::new();
        loop {
            for message in messages.drain(..) {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = withdrawal.wait() => break,
                said = socket.recv() => match said {
                    Some(Ok(Message::Text(text))) => messages = self.obey(agent, &text).await,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {}
                },
                seen = read(&self.inotify) => match seen {
                    Ok(seen) => messages = self.tell(agent, seen).await,
                    Err(error) => {
                        messages.push(complaint(format!("cannot go on watching: {error}")));
                        tracing::warn!(%error, "read what happens to files");
                    }
                },
                () = tokio::time::sleep(KEEPALIVE) => messages.push(Message::Binary(Bytes::new())),
            }
        }
        let reason = "the sprite's container ends";
        if socket.send(complaint(reason.to_owned())).await.is_ok() {
            let frame = CloseFrame { code: close_code::AWAY, reason: reason.into() };
            drop(socket.send(Message::Close(Some(frame))).await);
        }
    }

    /// Does what a client says: the answers.
    async fn obey(&mut self, agent: &Agent, text: &str) -> Vec<Message> {
        let request: WatchRequest = match serde_json::from_str(text) {
            Ok(request) => request,
            Err(error) => return vec![complaint(format!("not a message: {error}"))],
        };
        match request {
            WatchRequest::Subscribe { paths, recursive, working_dir } => {
                self.subscribe(agent, &paths, recursive, working_dir.as_deref()).await
            }
            WatchRequest::Unsubscribe { paths, working_dir } => {
                for path in
                    paths.iter().filter_map(|path| absolute(path, working_dir.as_deref()).ok())
                {
                    self.forget(&path);
                }
                Vec::new()
            }
        }
    }

    async fn subscribe(
        &mut self,
        agent: &Agent,
        paths: &[String],
        is_recursive: bool,
        working_dir: Option<&str>,
    ) -> Vec<Message> {
        if paths.is_empty() || paths.len() > PATHS_MAX {
            return vec![complaint(format!("paths must be 1 to {PATHS_MAX} paths"))];
        }
        let (mut watched, mut answers) = (Vec::new(), Vec::new());
        for path in paths {
            let path = match absolute(path, working_dir) {
                Ok(path) => path,
                Err(error) => {
                    answers.push(complaint(error.to_string()));
                    continue;
                }
            };
            match self.add(agent, &path, (is_recursive, true)).await {
                Ok(_) => watched.push(path),
                Err(reason) => answers.push(complaint(reason)),
            }
        }
        if !watched.is_empty() {
            answers.insert(0, message::json(&WatchMessage::Subscribed { paths: watched }));
        }
        answers
    }

    /// Watches a path and, if so asked, everything below: what is there by then.
    async fn add(
        &mut self,
        agent: &Agent,
        path: &str,
        (is_recursive, is_top): (bool, bool),
    ) -> Result<Vec<Watched>, String> {
        let room = WATCHES_MAX.saturating_sub(self.watched.len());
        let inotify = self.inotify.get_ref().try_clone().map_err(|error| error.to_string())?;
        let wanted = path.to_owned();
        let find = move |root: &Root| {
            watch_all(root, &inotify, &wanted, (is_recursive, is_top), room)
                .map_err(|errno| FileError::new("watch", wanted.as_str(), errno))
        };
        let (found, _) = act(agent, Actor::Sprite, find)
            .await
            .map_err(|refusal| refusal.message().to_owned())?;
        let there = found.iter().map(|(_, watched)| watched.clone()).collect();
        self.watched
            .extend(found.into_iter().filter_map(|(watch, watched)| Some((watch?, watched))));
        Ok(there)
    }

    /// Stops watching a path and what is below it.
    fn forget(&mut self, path: &str) {
        let is_below = |watched: &Watched| {
            let rest = watched.path.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || path == "/")
        };
        for (watch, _) in self.watched.extract_if(|_, watched| is_below(watched)) {
            if let Err(error) = inotify::remove_watch(self.inotify.get_ref(), watch) {
                tracing::debug!(%error, "a watch was gone already");
            }
        }
    }

    /// Tells what was seen.
    async fn tell(&mut self, agent: &Agent, seen: Vec<Seen>) -> Vec<Message> {
        let mut messages = Vec::new();
        for Seen { watch, what, name } in seen {
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                let reason = "events were dropped, because there were more than were read";
                messages.push(complaint(reason.to_owned()));
                continue;
            }
            if what.contains(ReadFlags::IGNORED) {
                self.watched.remove(&watch);
                continue;
            }
            let Some(watched) = self.watched.get(&watch).cloned() else { continue };
            let Some(event) = event_of(what) else { continue };
            if name.is_none() && !watched.is_top {
                continue;
            }
            let path = match &name {
                Some(name) => child(&watched.path, name),
                None => watched.path.clone(),
            };
            let is_dir = what.contains(ReadFlags::ISDIR) || (name.is_none() && watched.is_dir);
            messages.push(told(agent, &path, event, is_dir));
            if is_dir && name.is_some() && watched.is_recursive {
                match event {
                    FileEvent::Create => messages.extend(self.follow(agent, &path).await),
                    // Where it is now it has another path, or is none of the client's business.
                    FileEvent::Rename => self.forget(&path),
                    _ => {}
                }
            }
        }
        messages
    }

    /// Watches a directory that has appeared, and tells what is in it already.
    async fn follow(&mut self, agent: &Agent, path: &str) -> Vec<Message> {
        match self.add(agent, path, (true, false)).await {
            Ok(there) => there
                .iter()
                .filter(|watched| watched.path != path)
                .map(|watched| told(agent, &watched.path, FileEvent::Create, watched.is_dir))
                .collect(),
            Err(reason) => vec![complaint(reason)],
        }
    }
}

/// Watches what a path leads to and, if so asked, the directories below it. What is in them is returned as well, without a watch
/// of its own: the directories tell of it.
fn watch_all(
    root: &Root,
    inotify: &OwnedFd,
    path: &str,
    (is_recursive, is_top): (bool, bool),
    room: usize,
) -> Result<Vec<(Option<i32>, Watched)>, Errno> {
    let stat = rustix::fs::fstat(&root.open_path(path, OFlags::PATH)?)?;
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let top = if is_dir {
        root.open_path(path, OFlags::RDONLY | OFlags::DIRECTORY)?
    } else {
        root.open_file(path)?.0
    };
    let watched = Watched { path: path.to_owned(), is_recursive, is_dir, is_top };
    let mut all = vec![(Some(watch_open(inotify, &top)?), watched)];
    if !is_dir || !is_recursive {
        return Ok(all);
    }
    // Each directory is watched before it is listed, so that what appears meanwhile is seen one way or the other.
    let mut below = Vec::new();
    tree::list(&top, "", &mut below)?;
    let (mut watches, mut next) = (1, 0);
    while let Some(found) = below.get(next) {
        next += 1;
        let (relative, is_dir) = (found.path.clone(), found.kind() == FileType::Directory);
        let mut watch = None;
        if is_dir {
            root.check_present()?;
            watches += 1;
            if watches > room {
                return Err(Errno::NOSPC);
            }
            // One that is gone again, or that the user may not read, is not watched.
            let dir = tree::open(&top, &relative, OFlags::RDONLY | OFlags::DIRECTORY);
            watch = dir.and_then(|dir| watch_open(inotify, &dir)).ok();
            match tree::list(&top, &relative, &mut below) {
                Ok(()) | Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let path = child(path, &relative);
        all.push((watch, Watched { path, is_recursive, is_dir, is_top: false }));
    }
    Ok(all)
}

/// By its descriptor, so that it is what was found and nothing that a rename has put in its place.
fn watch_open(inotify: &OwnedFd, file: &OwnedFd) -> Result<i32, Errno> {
    inotify::add_watch(inotify, format!("/proc/self/fd/{}", file.as_raw_fd()), MASK)
}

/// What an event is to a client; `None` for none.
fn event_of(what: ReadFlags) -> Option<FileEvent> {
    [
        (ReadFlags::CREATE | ReadFlags::MOVED_TO, FileEvent::Create),
        (ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF, FileEvent::Rename),
        (ReadFlags::DELETE | ReadFlags::DELETE_SELF, FileEvent::Remove),
        (ReadFlags::MODIFY, FileEvent::Write),
        (ReadFlags::ATTRIB, FileEvent::Chmod),
    ]
    .into_iter()
    .find_map(|(flags, event)| what.intersects(flags).then_some(event))
}

fn told(agent: &Agent, path: &str, event: FileEvent, is_dir: bool) -> Message {
    let is_there = matches!(event, FileEvent::Create | FileEvent::Write | FileEvent::Chmod);
    let size = if is_there && !is_dir { size(agent, path) } else { None };
    let timestamp = Timestamp::now().to_string();
    let path = path.to_owned();
    message::json(&WatchMessage::Event { path, event, timestamp, size: size.unwrap_or(0), is_dir })
}

/// The size of a file, if it is still there.
fn size(agent: &Agent, path: &str) -> Option<u64> {
    let sandbox = agent.sandbox.borrow().clone()?;
    let root = Root::open(sandbox.as_ref(), Withdrawal(agent.sandbox.clone())).ok()?;
    let file = root.open_path(path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
    rustix::fs::fstat(&file).ok().and_then(|stat| u64::try_from(stat.st_size).ok())
}

fn complaint(message: String) -> Message {
    message::json(&WatchMessage::Error { message })
}

fn absolute(path: &str, working_dir: Option<&str>) -> Result<String, InvalidPath> {
    SpritePath::of(Some(path), working_dir).map(|path| path.as_str().to_owned())
}

/// Waits for events and takes those that wait.
async fn read(inotify: &AsyncFd<OwnedFd>) -> std::io::Result<Vec<Seen>> {
    loop {
        let mut guard = inotify.readable().await?;
        let read = guard.try_io(|inotify| {
            let mut buffer = vec![MaybeUninit::uninit(); BATCH_BYTES];
            let mut reader = inotify::Reader::new(inotify.get_ref(), &mut buffer);
            let mut seen = Vec::new();
            loop {
                let event = match reader.next() {
                    Ok(event) => event,
                    Err(_) if !seen.is_empty() => return Ok(seen),
                    Err(errno) => return Err(errno.into()),
                };
                let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                seen.push(Seen { watch: event.wd(), what: event.events(), name });
                if reader.is_buffer_empty() {
                    return Ok(seen);
                }
            }
        });
        match read {
            Ok(seen) => return seen,
            Err(_would_block) => {}
        }
    }
}
