//! Files: read, write, list, delete, rename, copy, pack, watch, and whose they are, strictly inside the container's root.
//!
//! Every path is resolved by the kernel relative to a descriptor of the root, with `RESOLVE_IN_ROOT` and without magic
//! links, so `..` and symbolic links cannot leave it. Operations run as the user `sprite`, or with `asRoot=true` as the
//! container's root, never as the host's root ([`actor`]). A write that `sprite` may not do is done as the container's root,
//! since clients write to places such as `/root` and `/etc` without asking for it; what is new under the home directory
//! then belongs to `sprite` all the same. Nothing else has such a second try.
//!
//! A transfer ends when its container does, because an open file keeps a disk from being unmounted.
//!
//! Only regular files are read and written; a FIFO or a device is refused without being opened. Contents stream in
//! pieces, so memory does not grow with the file.

mod actor;
mod attributes;
mod copy;
mod delete;
mod error;
mod glob;
mod list;
mod path;
mod read;
mod rename;
mod root;
mod tar;
mod tree;
mod watch;
mod write;

use self::{
    actor::Actor,
    error::FileError,
    path::{InvalidPath, SpritePath},
    root::Root,
};
use super::{Agent, Withdrawal, answer::Refusal};
use ::api::query::Query;
use axum::{
    Router,
    body::{Body, Bytes},
    routing::{delete, get, post, put},
};
use futures::stream;
use std::{io, sync::Arc};
use tokio::sync::{Semaphore, mpsc};

/// The most file operations that use a thread at once; more wait.
const OPERATIONS_MAX: usize = 64;

/// The routes.
pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/fs/read", get(read::read))
        .route("/fs/write", put(write::write))
        .route("/fs/list", get(list::list))
        .route("/fs/delete", delete(delete::delete))
        .route("/fs/rename", post(rename::rename))
        .route("/fs/copy", post(copy::copy))
        .route("/fs/chmod", post(attributes::chmod))
        .route("/fs/chown", post(attributes::chown))
        .route("/fs/tar", get(tar::pack).put(tar::unpack))
        .route("/fs/watch", get(watch::watch))
}

/// What file operations share.
#[derive(Debug, Clone)]
pub(super) struct Files {
    operations: Arc<Semaphore>,
    archives: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
}

impl Default for Files {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            operations: places(OPERATIONS_MAX),
            archives: places(tar::ARCHIVES_MAX),
            watchers: places(watch::WATCHERS_MAX),
        }
    }
}

/// What a file call says in its query.
struct Call {
    query: Query,
    path: SpritePath,
    actor: Actor,
}

impl Call {
    async fn read(agent: &Agent, raw: Option<&str>) -> Result<Self, Refusal> {
        let query =
            Query::parse(raw.unwrap_or_default()).map_err(|error| Refusal::invalid(&error))?;
        let path = SpritePath::of(query.first("path"), query.first("workingDir"))
            .map_err(InvalidPath::refusal)?;
        show(agent, &path).await?;
        let actor = Actor::of(query.flag("asRoot"));
        Ok(Self { query, path, actor })
    }
}

/// A body of what comes through a channel. An error breaks it off.
fn streamed(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    Body::from_stream(stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    }))
}

/// What a file call says in its body.
fn parse<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::invalid(&error))
}

/// A path of a body.
async fn path(agent: &Agent, path: &str, working_dir: Option<&str>) -> Result<SpritePath, Refusal> {
    let path = SpritePath::of(Some(path), working_dir).map_err(InvalidPath::refusal)?;
    show(agent, &path).await?;
    Ok(path)
}

/// Makes a checkpoint that the path leads into visible. The kernel has it mounted for whoever looks into it, but not for this
/// process.
async fn show(agent: &Agent, path: &SpritePath) -> Result<(), Refusal> {
    match path.checkpoint() {
        Some(id) => agent.checkpoints.browse(id).await.map_err(|error| error.refusal(id)),
        None => Ok(()),
    }
}

/// Does `work` on the root of the present container, as `actor`. With the result comes word of the container's end.
async fn act<T: Send + 'static>(
    agent: &Agent,
    actor: Actor,
    work: impl FnOnce(&Root) -> Result<T, FileError> + Send + 'static,
) -> Result<(T, Withdrawal), Refusal> {
    let (sandbox, withdrawal) = agent.sandbox().await?;
    let root = Root::open(sandbox.as_ref(), withdrawal.clone()).map_err(FileError::into_refusal)?;
    let uid_start = sandbox.uid_start();
    drop(sandbox);
    let result = actor::act(&agent.files.operations, actor, uid_start, move || work(&root))
        .await
        .and_then(std::convert::identity)
        .map_err(FileError::into_refusal)?;
    Ok((result, withdrawal))
}
