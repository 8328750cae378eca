//! `GET check`: whether the sprite can run a command, found out by running one.

use super::{Agent, answer::chain, exec::environment};
use axum::{Json, Router, extract::State, routing::get};
use guest::container::{Command, Stdio, User};
use jiff::Timestamp;
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// A sprite whose command takes longer than this is not well.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The answer.
#[derive(Debug, Serialize)]
struct Check {
    sprite_name: String,
    sprite_id: String,
    status: &'static str,
    reason: Option<String>,
    checked_at: Timestamp,
    elapsed: f64,
}

/// The route.
pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new().route("/check", get(check))
}

async fn check(State(agent): State<Arc<Agent>>) -> Json<Check> {
    let start = Instant::now();
    let reason = match tokio::time::timeout(TIMEOUT, run_true(&agent)).await {
        Ok(Ok(0)) => None,
        Ok(Ok(code)) => Some(format!("a trivial command exited with {code}")),
        Ok(Err(error)) => Some(error),
        Err(_) => Some(format!("a trivial command did not end within {} s", TIMEOUT.as_secs())),
    };
    let (sprite_name, sprite_id) = agent
        .identity
        .borrow()
        .as_ref()
        .map(|identity| (identity.name.clone(), identity.id.clone()))
        .unwrap_or_default();
    Json(Check {
        sprite_name,
        sprite_id,
        status: if reason.is_none() { "healthy" } else { "unhealthy" },
        reason,
        checked_at: Timestamp::now(),
        elapsed: start.elapsed().as_secs_f64(),
    })
}

async fn run_true(agent: &Agent) -> Result<u8, String> {
    let (sandbox, _) = agent.sandbox().await.map_err(|refusal| refusal.message().to_owned())?;
    let command = Command {
        argv: vec!["true".to_owned()],
        path: None,
        env: environment::of(None, &[], false),
        dir: Some("/".to_owned()),
        user: User::Sprite,
        stdio: Stdio::Pipes { stdin: false },
    };
    let (process, _io) = sandbox.spawn(command).await.map_err(|error| chain(&error))?;
    Ok(process.wait().await)
}
