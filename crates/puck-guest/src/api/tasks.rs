//! Tasks: promises of programs in the sprite that they are at work, each with an end. While there is one, the sprite stays awake.
//!
//! A task that is not renewed ends by itself, so a program that dies does not keep the sprite awake for longer than it said.

use super::{Agent, activity::Hold, answer::Refusal};
use api::duration;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::task::AbortHandle;

/// The most tasks at once.
const TASKS_MAX: usize = 64;

/// The longest name.
const NAME_BYTES_MAX: usize = 128;

/// The longest time until a task has to be renewed.
const EXPIRE_MAX: Duration = Duration::from_secs(3600);

pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/v1/tasks", get(list).post(create).put(renew))
        .route("/v1/tasks/{task}", get(show).put(renew_named).delete(end))
}

/// The tasks. One per agent.
#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<BTreeMap<String, Task>>);

#[derive(Debug)]
struct Task {
    started_at: Timestamp,
    expires_at: Timestamp,
    timer: AbortHandle,
    _hold: Hold,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// A task as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    started_at: String,
    expires_at: String,
}

#[derive(Debug, Serialize)]
struct List {
    tasks: Vec<Shown>,
}

/// What a client says of a task.
#[derive(Debug, Deserialize)]
struct Body {
    #[serde(default)]
    name: String,
    expire: Expire,
}

/// Seconds, or a text such as `5m`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Expire {
    Seconds(u64),
    Text(String),
}

impl Tasks {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Task>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown((name, task): (&String, &Task)) -> Shown {
    let (started_at, expires_at) = (task.started_at.to_string(), task.expires_at.to_string());
    Shown { name: name.clone(), started_at, expires_at }
}

async fn list(State(agent): State<Arc<Agent>>) -> Json<List> {
    Json(List { tasks: agent.tasks.all().iter().map(shown).collect() })
}

async fn show(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
) -> Result<Json<Shown>, Refusal> {
    let tasks = agent.tasks.all();
    tasks.get_key_value(&name).map(|found| Json(shown(found))).ok_or_else(unknown)
}

async fn create(
    State(agent): State<Arc<Agent>>,
    body: Bytes,
) -> Result<(StatusCode, Json<Shown>), Refusal> {
    let Body { name, expire } = parse(&body)?;
    Ok((StatusCode::CREATED, Json(put(&agent, name, &expire, true)?)))
}

async fn renew(State(agent): State<Arc<Agent>>, body: Bytes) -> Result<Json<Shown>, Refusal> {
    let Body { name, expire } = parse(&body)?;
    put(&agent, name, &expire, false).map(Json)
}

async fn renew_named(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Shown>, Refusal> {
    put(&agent, name, &parse(&body)?.expire, false).map(Json)
}

async fn end(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    agent.tasks.all().remove(&name).map(|_| StatusCode::NO_CONTENT).ok_or_else(unknown)
}

/// Makes a task, or gives one a new end unless it has to be new.
fn put(agent: &Arc<Agent>, name: String, expire: &Expire, is_new: bool) -> Result<Shown, Refusal> {
    let invalid = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(invalid(format!(
            "name must be 1 to {NAME_BYTES_MAX} bytes without control characters"
        )));
    }
    let time = match expire {
        Expire::Seconds(seconds) => Duration::from_secs(*seconds),
        Expire::Text(text) => duration::parse(text).map_err(|error| Refusal::invalid(&error))?,
    };
    if time.is_zero() || time > EXPIRE_MAX {
        return Err(invalid("expire must be more than 0 and at most 1h".to_owned()));
    }
    let mut tasks = agent.tasks.all();
    if is_new && tasks.contains_key(&name) {
        return Err(Refusal::new(StatusCode::CONFLICT, format!("task already exists: {name}")));
    }
    if !tasks.contains_key(&name) && tasks.len() >= TASKS_MAX {
        let message = format!("a sprite has at most {TASKS_MAX} tasks");
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, message));
    }
    let now = Timestamp::now();
    let expires_at =
        SignedDuration::try_from(time).ok().and_then(|time| now.checked_add(time).ok());
    let (ending, ended) = (Arc::clone(agent), name.clone());
    let timer = tokio::spawn(async move {
        tokio::time::sleep(time).await;
        ending.tasks.all().remove(&ended);
    });
    let task = Task {
        started_at: tasks.get(&name).map_or(now, |task| task.started_at),
        expires_at: expires_at.unwrap_or(now),
        timer: timer.abort_handle(),
        _hold: agent.activity.hold(format!("task {name}")),
    };
    let result = shown((&name, &task));
    tasks.insert(name, task);
    Ok(result)
}

fn parse(body: &Bytes) -> Result<Body, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("invalid request body: {error}"))
    })
}

fn unknown() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "task not found")
}
