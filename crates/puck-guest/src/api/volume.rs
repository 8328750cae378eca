//! The routes about the disk itself: how it is doing, back to an instant, and what changed between two checkpoints.

use super::{
    Agent,
    answer::{Refusal, chain},
    checkpoints::{complete, failed, find, info},
    lines::ndjson,
};
use api::{
    checkpoint::CURRENT,
    volume::{DiffLine, Rewind, VolumeStatus},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Changes that wait for the client; the comparison waits when there are more.
const CHANGES_WAITING_MAX: usize = 256;

/// The routes.
pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/volume", get(status))
        .route("/rewind", post(rewind))
        .route("/checkpoints/{from}/diff/{to}", get(diff))
}

async fn status(State(agent): State<Arc<Agent>>) -> Result<Json<VolumeStatus>, Refusal> {
    agent.checkpoints.status().await.map(Json).map_err(|error| error.refusal(""))
}

async fn rewind(State(agent): State<Arc<Agent>>, body: Bytes) -> Result<Response, Refusal> {
    let Rewind { at } = serde_json::from_slice(&body).map_err(|error| Refusal::invalid(&error))?;
    if at > Timestamp::now() {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("{at} has not come yet")));
    }
    let (lines, response) = ndjson();
    tokio::spawn(async move {
        let _hold = agent.activity.hold("rewind");
        info(&lines, format!("Going back to {at}...")).await;
        match agent.checkpoints.rewind(at).await {
            Ok(()) => {
                info(&lines, "Container components started successfully").await;
                complete(&lines, format!("Rewind to {at} complete")).await;
            }
            Err(error) => failed(&lines, "rewind", &error).await,
        }
    });
    Ok(response)
}

async fn diff(
    State(agent): State<Arc<Agent>>,
    Path((_, from, to)): Path<(String, String, String)>,
) -> Result<Response, Refusal> {
    for id in [&from, &to] {
        if id == CURRENT {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "the current state cannot be compared: make a checkpoint of it",
            ));
        }
        find(&agent, id).await?;
    }
    let (changes, mut changed) = mpsc::channel(CHANGES_WAITING_MAX);
    // The first change, or the failure, is waited for, so that a comparison that does not work is an error of the call.
    let hold = agent.activity.hold("checkpoint diff");
    let mut comparing =
        tokio::spawn(async move { agent.checkpoints.diff(&from, &to, changes).await });
    let first = tokio::select! {
        biased;
        change = changed.recv() => change,
        ended = &mut comparing => {
            return match ended {
                Ok(Err(error)) => Err(error.refusal("")),
                _ => Ok(ndjson().1),
            };
        }
    };
    let (lines, response) = ndjson();
    tokio::spawn(async move {
        let _hold = hold;
        let mut next = first;
        while let Some(change) = next.filter(|_| lines.is_read()) {
            lines.write(&DiffLine::Change(change)).await;
            next = changed.recv().await;
        }
        drop(changed);
        // Half a list without a word would look like a whole one.
        if let Ok(Err(error)) = comparing.await {
            lines.write(&DiffLine::Failed { error: chain(&error) }).await;
        }
    });
    Ok(response)
}
