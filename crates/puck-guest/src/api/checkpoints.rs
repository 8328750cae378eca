//! The checkpoint routes and their progress streams. What a checkpoint is belongs to whoever implements [`Checkpoints`].
//!
//! Once a stream has begun, its work goes on whether or not the client stays, and the stream ends with exactly one
//! `complete` or `error` line.

use super::{
    Agent,
    answer::{Refusal, chain},
    lines::{Lines, ndjson},
};
use api::{
    checkpoint::{
        COMMENT_BYTES_MAX, CURRENT, Checkpoint, CreateCheckpoint, Progress, ProgressKind,
    },
    query::Query,
    volume::{Change, VolumeStatus},
};
use async_trait::async_trait;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::mpsc;

/// The most bytes of a create call's body: the longest comment with every byte escaped, and the rest.
const BODY_BYTES_MAX: usize = 6 * COMMENT_BYTES_MAX + 1024;

/// The disk's history. Ids are texts as clients send them; an implementation must not trust their form.
#[async_trait]
pub(crate) trait Checkpoints: Send + Sync {
    /// Keeps the disk as it is now.
    async fn create(&self, comment: &str) -> Result<Checkpoint, CheckpointError>;

    /// All of them, newest first, with an entry [`CURRENT`] for the live state.
    async fn list(&self) -> Result<Vec<Checkpoint>, CheckpointError>;

    /// Forgets one.
    async fn delete(&self, id: &str) -> Result<(), CheckpointError>;

    /// Makes the disk what it was. The container is stopped, and started anew before this returns.
    async fn restore(&self, id: &str) -> Result<(), CheckpointError>;

    /// Makes the disk what it was at an instant, in the same way.
    async fn rewind(&self, at: Timestamp) -> Result<(), CheckpointError>;

    /// Makes one visible to this process below `/.sprite/checkpoints` of the container's root.
    async fn browse(&self, id: &str) -> Result<(), CheckpointError>;

    /// Sends each path that is different at `to` from what it was at `from`, until nobody listens.
    async fn diff(
        &self,
        from: &str,
        to: &str,
        changes: mpsc::Sender<Change>,
    ) -> Result<(), CheckpointError>;

    /// How the disk is doing.
    async fn status(&self) -> Result<VolumeStatus, CheckpointError>;
}

/// Why a checkpoint call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// No checkpoint has this id.
    #[error("no such checkpoint")]
    NotFound,
    /// It cannot be done in the present state; the text says why.
    #[error("{0}")]
    Conflict(String),
    /// It was tried and did not work.
    #[error("checkpoint operation failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CheckpointError {
    pub(super) fn refusal(&self, id: &str) -> Refusal {
        match self {
            Self::NotFound => not_found(id),
            Self::Conflict(reason) => Refusal::new(StatusCode::CONFLICT, reason.clone()),
            Self::Failed(_) => {
                let reason = chain(self);
                tracing::error!(checkpoint = id, reason, "checkpoint call");
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
            }
        }
    }
}

fn not_found(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("checkpoint not found: {id}"))
}

/// The routes.
pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/checkpoint", post(create).layer(DefaultBodyLimit::max(BODY_BYTES_MAX)))
        .route("/checkpoints", get(list))
        .route("/checkpoints/{id}", get(one).delete(delete))
        .route("/checkpoints/{id}/restore", post(restore))
}

type Id = Path<(String, String)>;

async fn create(State(agent): State<Arc<Agent>>, body: Bytes) -> Result<Response, Refusal> {
    let body: CreateCheckpoint = match body.trim_ascii() {
        [] => CreateCheckpoint::default(),
        json => serde_json::from_slice(json).map_err(|error| Refusal::invalid(&error))?,
    };
    let comment = body.comment.unwrap_or_default();
    if comment.len() > COMMENT_BYTES_MAX {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("comment is longer than {COMMENT_BYTES_MAX} bytes"),
        ));
    }
    let (lines, response) = ndjson();
    tokio::spawn(async move {
        let _hold = agent.activity.hold("checkpoint");
        info(&lines, "Creating checkpoint...").await;
        match agent.checkpoints.create(&comment).await {
            Ok(checkpoint) => report_created(&lines, &checkpoint).await,
            Err(error) => failed(&lines, "create checkpoint", &error).await,
        }
    });
    Ok(response)
}

async fn report_created(lines: &Lines, checkpoint: &Checkpoint) {
    let Checkpoint { id, create_time, .. } = checkpoint;
    info(lines, "Checkpoint created successfully").await;
    info(lines, "\nCheckpoint Details:").await;
    info(lines, format!("  ID: {id}")).await;
    info(lines, format!("  Created: {create_time}")).await;
    info(lines, format!("  Path: checkpoints/{id}")).await;
    info(lines, "\nTo restore this checkpoint, run:").await;
    info(lines, format!("  puck restore {id}")).await;
    complete(lines, format!("Checkpoint {id} created successfully")).await;
}

async fn list(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
) -> Result<Json<Vec<Checkpoint>>, Refusal> {
    let query = Query::parse(raw.as_deref().unwrap_or_default())
        .map_err(|error| Refusal::invalid(&error))?;
    let mut all = agent.checkpoints.list().await.map_err(|error| error.refusal(""))?;
    let with_auto = query.flag("includeAuto");
    let history = query.first("history").filter(|id| !id.is_empty());
    all.retain(|checkpoint| {
        (with_auto || !checkpoint.is_auto || checkpoint.id == CURRENT)
            && history.is_none_or(|id| checkpoint.history.iter().any(|ancestor| ancestor == id))
    });
    Ok(Json(all))
}

async fn one(
    State(agent): State<Arc<Agent>>,
    Path((_, id)): Id,
) -> Result<Json<Checkpoint>, Refusal> {
    find(&agent, &id).await.map(Json)
}

pub(super) async fn find(agent: &Agent, id: &str) -> Result<Checkpoint, Refusal> {
    let all = agent.checkpoints.list().await.map_err(|error| error.refusal(id))?;
    all.into_iter().find(|checkpoint| checkpoint.id == id).ok_or_else(|| not_found(id))
}

async fn delete(State(agent): State<Arc<Agent>>, Path((_, id)): Id) -> Result<Response, Refusal> {
    if id == CURRENT {
        return Err(Refusal::new(StatusCode::CONFLICT, "the current state cannot be deleted"));
    }
    // The work goes on in a task of its own, so that a client that leaves does not cut it in half.
    let deleted = tokio::spawn(async move {
        agent.checkpoints.delete(&id).await.map_err(|error| error.refusal(&id))
    });
    match deleted.await {
        Ok(Ok(())) => Ok(StatusCode::NO_CONTENT.into_response()),
        Ok(Err(refusal)) => Err(refusal),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error))),
    }
}

async fn restore(State(agent): State<Arc<Agent>>, Path((_, id)): Id) -> Result<Response, Refusal> {
    if id == CURRENT {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "the current state cannot be restored to itself",
        ));
    }
    // A missing one is refused before the stream begins, because not every client reads the stream's last line.
    find(&agent, &id).await?;
    let (lines, response) = ndjson();
    tokio::spawn(async move {
        let _hold = agent.activity.hold("restore");
        info(&lines, format!("Restoring from checkpoint {id}...")).await;
        match agent.checkpoints.restore(&id).await {
            Ok(()) => {
                info(&lines, "Container components started successfully").await;
                complete(&lines, format!("Restore from {id} complete")).await;
            }
            Err(error) => failed(&lines, "restore checkpoint", &error).await,
        }
    });
    Ok(response)
}

pub(super) async fn info(lines: &Lines, data: impl Into<String> + Send) {
    let data = Some(data.into());
    lines
        .write(&Progress { kind: ProgressKind::Info, data, error: None, time: Timestamp::now() })
        .await;
}

pub(super) async fn complete(lines: &Lines, data: String) {
    let data = Some(data);
    lines
        .write(&Progress {
            kind: ProgressKind::Complete,
            data,
            error: None,
            time: Timestamp::now(),
        })
        .await;
}

pub(super) async fn failed(lines: &Lines, action: &str, error: &CheckpointError) {
    let reason = format!("Failed to {action}: {}", chain(error));
    match error {
        CheckpointError::Failed(_) => tracing::warn!(reason, "checkpoint stream"),
        // The client asked for what cannot be, and is told.
        CheckpointError::Conflict(_) | CheckpointError::NotFound => {
            tracing::info!(reason, "checkpoint stream");
        }
    }
    let error = Some(reason);
    lines
        .write(&Progress { kind: ProgressKind::Error, data: None, error, time: Timestamp::now() })
        .await;
}
