//! The HTTP and WebSocket API of one sprite, served by its own agent: exec, files, checkpoints, ports, connections,
//! services, health, restart.
//!
//! Paths arrive as the client sent them, `/v1/sprites/{name}/…`; a name that is not this machine's sprite is answered with
//! 404. Everything that a client can get wrong is answered with a JSON body ([`answer::Refusal`]); nothing here panics on
//! foreign input.
//!
//! State lives in [`Agent`]: who the machine is, the container that runs now (none while it is being restored or
//! bounced; commands and file operations wait for the next one), the sessions, and what keeps the sprite awake. The
//! worker's internal routes and the disk are not known here.

pub(crate) mod activity;
mod answer;
mod check;
pub(crate) mod checkpoints;
mod exec;
mod files;
pub(crate) mod inside;
mod lines;
mod message;
mod ports;
mod proxy;
pub(crate) mod restart;
pub(crate) mod sandbox;
mod services;
mod session;
mod tasks;
#[cfg(test)]
mod tests;
mod volume;
pub(crate) mod web;

use self::{
    activity::Activity, answer::Refusal, checkpoints::Checkpoints, files::Files, ports::Ports,
    restart::Restart, sandbox::Sandbox, services::Services, session::Sessions, tasks::Tasks,
};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use guest::protocol::Identity;
use percent_encoding::percent_decode_str;
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, watch};

/// How long a call waits for a container while there is none.
const SANDBOX_WAIT: Duration = Duration::from_secs(60);

/// What the API works on. One per agent.
pub(crate) struct Agent {
    identity: watch::Receiver<Option<Identity>>,
    sandbox: watch::Receiver<Option<Arc<dyn Sandbox>>>,
    checkpoints: Arc<dyn Checkpoints>,
    machine: Arc<dyn Restart>,
    activity: Arc<Activity>,
    sessions: Sessions,
    files: Files,
    ports: Arc<Ports>,
    services: Arc<Services>,
    tasks: Tasks,
    /// The places of proxied connections.
    connections: Arc<Semaphore>,
    /// The places of connections to the web server.
    visitors: Arc<Semaphore>,
}

impl Agent {
    /// An agent over what the machine publishes: its identity (`None` in the pool) and its running container (`None`
    /// while it is stopped). A stopped container must be withdrawn before its processes are killed, so that no command
    /// is started in it meanwhile.
    pub(crate) fn new(
        identity: watch::Receiver<Option<Identity>>,
        sandbox: watch::Receiver<Option<Arc<dyn Sandbox>>>,
        checkpoints: Arc<dyn Checkpoints>,
        machine: Arc<dyn Restart>,
    ) -> Arc<Self> {
        let services = Services::start(identity.clone(), sandbox.clone());
        Arc::new(Self {
            identity,
            sandbox,
            checkpoints,
            machine,
            activity: Activity::new(),
            sessions: Sessions::default(),
            files: Files::default(),
            ports: Ports::new(),
            services,
            tasks: Tasks::default(),
            connections: Arc::new(Semaphore::new(proxy::CONNECTIONS_MAX)),
            visitors: Arc::new(Semaphore::new(web::VISITORS_MAX)),
        })
    }

    /// What keeps the sprite awake now.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Returns once nothing has happened for the sprite's idle time, counted from the call at the earliest. Never
    /// returns while the machine has no identity.
    pub(crate) async fn idle(&self) {
        let mut identity = self.identity.clone();
        loop {
            let timeout = identity
                .borrow_and_update()
                .as_ref()
                .map(|identity| Duration::from_secs(identity.idle_timeout_seconds));
            let idle = async {
                match timeout {
                    Some(timeout) => self.activity.idle(timeout).await,
                    None => std::future::pending().await,
                }
            };
            let changed = async {
                if identity.changed().await.is_err() {
                    // Nobody can change the identity any more, so this one is final.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = idle => return,
                () = changed => {}
            }
        }
    }

    /// The container that runs now, or the next one if there is none at the moment, and word of its end.
    async fn sandbox(&self) -> Result<(Arc<dyn Sandbox>, Withdrawal), Refusal> {
        let mut published = self.sandbox.clone();
        let running = async {
            let running = published.wait_for(Option::is_some).await;
            running.ok().and_then(|sandbox| sandbox.clone())
        };
        let running = tokio::time::timeout(SANDBOX_WAIT, running).await;
        let sandbox = running.ok().flatten().ok_or_else(Refusal::unavailable)?;
        Ok((sandbox, Withdrawal(published)))
    }
}

/// Word that a container is about to be stopped. Whoever holds a file of it open must let go then, or its disk cannot be
/// unmounted.
#[derive(Clone)]
struct Withdrawal(watch::Receiver<Option<Arc<dyn Sandbox>>>);

impl Withdrawal {
    /// Whether the word has come.
    fn has_come(&self) -> bool {
        self.0.has_changed().unwrap_or(true)
    }

    /// Waits for the word.
    async fn wait(&mut self) {
        if self.0.changed().await.is_err() {
            tracing::debug!("the machine is gone");
        }
    }
}

/// Every route under one sprite that the agent answers.
pub(crate) fn router(agent: Arc<Agent>) -> Router {
    let sprite = Router::new()
        .merge(exec::router())
        .merge(files::router())
        .merge(checkpoints::router())
        .merge(check::router())
        .merge(ports::router())
        .merge(proxy::router())
        .merge(restart::router())
        .merge(services::router())
        .merge(volume::router())
        .fallback(no_such_route);
    Router::new()
        .nest("/v1/sprites/{name}", sprite)
        .fallback(no_such_route)
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&agent), guard))
        .with_state(agent)
}

async fn no_such_route() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not found")
}

/// Around every request: counts it as activity until its body is sent, checks the name, names the version.
async fn guard(State(agent): State<Arc<Agent>>, request: Request, next: Next) -> Response {
    let hold = agent.activity.hold(format!(
        "request {} {}",
        request.method(),
        shortened(request.uri().path())
    ));
    let known = is_this_sprite(agent.identity.borrow().as_ref(), request.uri().path());
    let response = if known {
        next.run(request).await
    } else {
        Refusal::new(StatusCode::NOT_FOUND, "sprite not found").into_response()
    };
    let response = if response.status().is_client_error() {
        answer::in_json(response).await
    } else {
        response
    };
    let mut response = response.map(|body| activity::held(body, hold));
    response.headers_mut().insert(
        HeaderName::from_static(api::VERSION_HEADER),
        HeaderValue::from_static(api::SPRITE_VERSION),
    );
    response
}

/// Whether the path is outside every sprite (an unknown route) or under the sprite that this machine is.
fn is_this_sprite(identity: Option<&Identity>, path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/v1/sprites/") else { return true };
    let name = rest.split('/').next().unwrap_or_default();
    identity.is_some_and(|identity| {
        percent_decode_str(name).decode_utf8().is_ok_and(|name| name == identity.name)
    })
}

/// The start of a path, since a client may send a very long one and the text is only for people.
fn shortened(path: &str) -> &str {
    const CHARS_MAX: usize = 80;
    path.char_indices().nth(CHARS_MAX).map_or(path, |(end, _)| &path[..end])
}
