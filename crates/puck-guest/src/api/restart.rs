//! `POST restart`: everything that runs in the sprite ends and the container starts anew. The disk, the machine and its URL stay.

use super::{
    Agent,
    answer::{Refusal, chain},
};
use api::sprite::Restarted;
use async_trait::async_trait;
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use std::sync::Arc;

/// What has a container that can be started anew.
#[async_trait]
pub(crate) trait Restart: Send + Sync {
    /// Ends the container and starts the next one. Returns when it takes commands.
    async fn restart(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// The route.
pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new().route("/restart", post(restart))
}

async fn restart(
    State(agent): State<Arc<Agent>>,
) -> Result<(StatusCode, Json<Restarted>), Refusal> {
    let _hold = agent.activity.hold("restart");
    let machine = Arc::clone(&agent.machine);
    // In a task of its own: half a restart is none, whether or not the client stays.
    let restarted = tokio::spawn(async move { machine.restart().await }).await;
    let failed = |error: &dyn std::error::Error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("restart: {}", chain(error)))
    };
    match restarted {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(failed(&*error)),
        Err(error) => return Err(failed(&error)),
    }
    let identity = agent.identity.borrow().clone();
    let (name, id) = identity.map(|identity| (identity.name, identity.id)).unwrap_or_default();
    let message = "Container restarted".to_owned();
    Ok((StatusCode::ACCEPTED, Json(Restarted { sprite_name: name, machine_id: id, message })))
}
