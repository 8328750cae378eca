//! Exec: the routes that start, watch, list and end commands.
//!
//! | route | answer |
//! |---|---|
//! | `GET exec` with an upgrade | a new command, or with `id=` an old one, over a WebSocket ([`socket`]) |
//! | `GET exec/{id}` with an upgrade | an old command |
//! | `GET exec`, `HEAD exec` | the running sessions |
//! | `POST exec` | a command whose output is the body ([`post`]) |
//! | `POST exec/{id}/kill`, `DELETE exec/{id}` | ends a command ([`kill`]) |
//! | `GET control` with an upgrade | commands one after another over one WebSocket ([`control`]) |
//!
//! A command that cannot be started still gets a session: the client reads why on standard error, and an exit code as a shell
//! would give it: 127 if the executable is not found, 126 if it is not executable, 1 for a bad working directory or
//! anything else.

mod control;
pub(super) mod environment;
mod kill;
mod post;
pub(super) mod signal;
mod socket;

use super::{
    Agent,
    answer::{Refusal, chain},
    session::{Attached, Facts, Lookup, SESSIONS_MAX, Session, Terms},
};
use api::{
    error::ErrorBody,
    exec::{ExecQuery, RUN_AFTER_DISCONNECT, SessionList},
    query::Query,
};
use axum::{
    Json, Router,
    extract::{Path, RawQuery, State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use guest::container::{Command, SpawnError, Stdio, User};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// The largest message that a client may send. Clients that send all of their input at once split it below this.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The routes.
pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/exec", get(open).merge(post(post::exec)))
        .route("/exec/{id}", get(attach).delete(kill::delete))
        .route("/exec/{id}/kill", post(kill::kill))
        .route("/control", get(control::control))
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

async fn open(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) if headers.contains_key(header::UPGRADE) => {
            return Ok(rejection.into_response());
        }
        Err(_) => return Ok(list(&agent)),
    };
    let query = ExecQuery::parse(raw.as_deref().unwrap_or_default())
        .map_err(|error| Refusal::invalid(&error))?;
    match &query.id {
        Some(id) => {
            let session = running(&agent, id)?;
            Ok(upgraded(
                upgrade,
                agent,
                Target::Running { session, expects_tty: query.tty.is_some(), offset: query.offset },
            ))
        }
        None => {
            admit(&agent)?;
            Ok(upgraded(upgrade, agent, Target::New(Box::new(query))))
        }
    }
}

async fn attach(
    State(agent): State<Arc<Agent>>,
    Path((_, id)): Path<(String, String)>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let session = running(&agent, &id)?;
    match upgrade {
        Ok(upgrade) => {
            let query = Query::parse(raw.as_deref().unwrap_or_default())
                .map_err(|error| Refusal::invalid(&error))?;
            let expects_tty = query.flag("tty");
            let offset = ExecQuery::offset_of(&query).map_err(|error| Refusal::invalid(&error))?;
            Ok(upgraded(upgrade, agent, Target::Running { session, expects_tty, offset }))
        }
        Err(rejection) if headers.contains_key(header::UPGRADE) => Ok(rejection.into_response()),
        Err(_) => Ok(Json(session.entry()).into_response()),
    }
}

fn list(agent: &Agent) -> Response {
    let sessions: Vec<_> = agent.sessions.list().iter().map(|session| session.entry()).collect();
    Json(SessionList { count: sessions.len(), sessions }).into_response()
}

fn running(agent: &Agent, id: &str) -> Result<Arc<Session>, Refusal> {
    match agent.sessions.find(id) {
        Lookup::Running(session) => Ok(session),
        Lookup::Ended | Lookup::Unknown => Err(unknown(id)),
    }
}

fn unknown(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("session not found: {id}"))
}

/// Whether there is room for another session.
fn admit(agent: &Agent) -> Result<(), Refusal> {
    let count = agent.sessions.count();
    if count < SESSIONS_MAX {
        return Ok(());
    }
    let mut body = ErrorBody::new("concurrent_session_limit_exceeded");
    body.message = Some(format!("{count} sessions are running in this sprite"));
    body.limit = Some(SESSIONS_MAX as u64);
    body.current_count = Some(count as u64);
    Err(Refusal::with_body(StatusCode::TOO_MANY_REQUESTS, body))
}

/// What a socket is about.
enum Target {
    New(Box<ExecQuery>),
    /// A viewer that may or may not know yet whether the session has a terminal.
    Running {
        session: Arc<Session>,
        expects_tty: bool,
        /// The byte of the output that it wants to go on at.
        offset: Option<u64>,
    },
}

/// Accepts the upgrade at once and does the rest behind it, so that a slow start never times a client's handshake out.
fn upgraded(upgrade: WebSocketUpgrade, agent: Arc<Agent>, target: Target) -> Response {
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    let hold = agent.activity.hold("exec connection");
    let mut response = upgrade
        .on_upgrade(async move |websocket| socket::serve(websocket, &agent, target, hold).await);
    response.headers_mut().insert(
        HeaderName::from_static(api::CAPABILITIES_HEADER),
        HeaderValue::from_static(api::CAPABILITIES),
    );
    response
}

/// Starts a command whose output comes in frames of at most `payload_max` bytes of payload. An error means that there is no container; a command that cannot start is a session that says so.
async fn start(agent: &Agent, query: ExecQuery, payload_max: usize) -> Result<Attached, Refusal> {
    let (sandbox, _) = agent.sandbox().await?;
    let environment = {
        let identity = agent.identity.borrow();
        environment::of(
            identity.as_ref().map(|identity| &identity.environment),
            &query.env,
            query.tty.is_some(),
        )
    };
    let terms = Terms { payload_max, run_after_disconnect: run_after_disconnect(&query) };
    let argv = environment::argv(query.cmd, query.path.as_deref(), query.tty.is_some());
    let program = query.path.clone().or_else(|| argv.first().cloned()).unwrap_or_default();
    let dir = environment::dir(query.dir.as_deref());
    let mut facts = Facts {
        command: environment::display(&program, &argv),
        workdir: dir.clone(),
        created: Timestamp::now(),
        tty: query.tty,
        pid: 0,
    };
    let command = Command {
        argv: argv.clone(),
        path: query.path,
        env: environment,
        dir: Some(dir),
        user: User::Sprite,
        stdio: match query.tty {
            Some(size) => Stdio::Terminal { rows: size.rows, cols: size.cols },
            None => Stdio::Pipes { stdin: query.stdin },
        },
    };
    match sandbox.spawn(command).await {
        Ok((process, io)) => {
            facts.command = environment::display(process.resolved(), &argv);
            facts.pid = process.pid();
            agent.sessions.adopt(process, io, facts, terms, &agent.activity).map_err(|error| {
                tracing::error!(%error, "take over a command's descriptors");
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error))
            })
        }
        Err(error) => {
            let (reason, code) = explain(&error, &program);
            tracing::debug!(reason, code, "a command was not started");
            Ok(agent.sessions.stillborn(facts, &reason, code))
        }
    }
}

/// How long a process outlives its client: with a terminal for ever unless told otherwise. Zero means for ever.
fn run_after_disconnect(query: &ExecQuery) -> Option<Duration> {
    let default = if query.tty.is_some() { Duration::ZERO } else { RUN_AFTER_DISCONNECT };
    Some(query.max_run_after_disconnect.unwrap_or(default)).filter(|limit| !limit.is_zero())
}

/// The line on standard error and the exit code of a command that was not started.
pub(super) fn explain(error: &SpawnError, program: &str) -> (String, u8) {
    match error {
        SpawnError::NotFound { .. } if program.contains('/') => {
            (format!("exec: {program:?}: no such file or directory"), 127)
        }
        SpawnError::NotFound { .. } => {
            (format!("exec: {program:?}: executable file not found in $PATH"), 127)
        }
        SpawnError::NotExecutable { reason, .. } => (format!("exec: {program:?}: {reason}"), 126),
        SpawnError::Dir { dir, reason } => (format!("chdir {dir}: {reason}"), 1),
        SpawnError::Invalid { .. }
        | SpawnError::Exhausted { .. }
        | SpawnError::Container { .. } => (format!("exec: {program:?}: {}", chain(error)), 1),
    }
}
