//! The API as programs in the sprite see it: a Unix socket at `/.sprite/api.sock`, without a token.
//!
//! | route | answer |
//! |---|---|
//! | `GET /info` | who the sprite is |
//! | `/v1/services…`, `/v1/checkpoint`, `/v1/checkpoints…` | what the public routes under the sprite answer |
//! | `/v1/tasks…` | keeps the sprite awake ([`super::tasks`]) |
//!
//! Everything else is unknown here: exec, files, tokens and policies are for those outside. The socket is for the user `sprite` and for
//! the container's root; a service that runs as somebody else has no say over the sprite. One socket lives as long as its container.

use super::{Agent, answer::Refusal, tasks};
use api::service::DEFINITION_BYTES_MAX;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use guest::protocol::SPRITE_UID;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{net::UnixListener, sync::Semaphore, task::JoinSet};
use tower_service::Service as _;

/// The most connections at once; further ones wait.
const CONNECTIONS_MAX: usize = 64;

/// How long a program may take for the head of a request, and how long that may be.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The pause after a failure to accept, which is most likely a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is answered as the public routes do.
const PUBLIC: [&str; 3] = ["services", "checkpoint", "checkpoints"];

/// Serves the container that runs, and the ones after it.
pub(crate) async fn serve(agent: Arc<Agent>) {
    let router = router(Arc::clone(&agent));
    let mut sandbox = agent.sandbox.clone();
    loop {
        let running = match sandbox.wait_for(Option::is_some).await {
            Ok(running) => running.clone(),
            Err(_) => return,
        };
        let Some(running) = running else { continue };
        match listen(running.socket()) {
            Ok(listener) => tokio::select! {
                () = accept(listener, &router) => {}
                _ = sandbox.changed() => {}
            },
            Err(error) => {
                tracing::error!(%error, "listen for programs of the sprite");
                drop(sandbox.changed().await);
            }
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The directory shows the container the ids as they are here.
    chown(path, Some(SPRITE_UID), Some(SPRITE_UID))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves connections until it is dropped, which ends them.
async fn accept(listener: UnixListener, router: &Router) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                Some(_ended) = connections.join_next() => {}
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept a program's connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| router.clone().call(request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a program's connection ended");
            }
            drop(permit);
        });
    }
}

fn router(agent: Arc<Agent>) -> Router {
    let public = super::router(Arc::clone(&agent));
    Router::new()
        .route("/info", get(info))
        .merge(tasks::router())
        .fallback(move |State(agent): State<Arc<Agent>>, request: Request| {
            pass(agent, public, request)
        })
        .layer(DefaultBodyLimit::max(DEFINITION_BYTES_MAX))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .with_state(agent)
}

async fn info(State(agent): State<Arc<Agent>>) -> Result<Json<serde_json::Value>, Refusal> {
    let identity = agent.identity.borrow();
    let identity = identity.as_ref().ok_or_else(Refusal::unavailable)?;
    Ok(Json(json!({
        "sprite_id": identity.id,
        "sprite_name": identity.name,
        "sprite_url": identity.url,
        "org": identity.organization,
        "version": api::SPRITE_VERSION,
    })))
}

/// Has the public routes answer what they answer here as well.
async fn pass(agent: Arc<Agent>, mut public: Router, mut request: Request) -> Response {
    let name = agent.identity.borrow().as_ref().map(|identity| identity.name.clone());
    let moved = name.and_then(|name| public_uri(request.uri(), &name));
    let Some(uri) = moved else {
        return Refusal::new(StatusCode::NOT_FOUND, "not found").into_response();
    };
    *request.uri_mut() = uri;
    match public.call(request).await {
        Ok(response) => response,
    }
}

/// `/v1/services/web` as `/v1/sprites/NAME/services/web`; `None` for what is not answered here.
fn public_uri(uri: &Uri, name: &str) -> Option<Uri> {
    let rest = uri.path_and_query()?.as_str().strip_prefix("/v1/")?;
    let first = rest.split(['/', '?']).next()?;
    let is_public = PUBLIC.contains(&first) && !uri.path().split('/').any(|step| step == "..");
    is_public.then(|| format!("/v1/sprites/{name}/{rest}").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::public_uri;

    #[test]
    fn only_some_routes_are_public() {
        for (from, to) in [
            ("/v1/services", Some("/v1/sprites/s1/services")),
            ("/v1/services/a%2fb?duration=1s", Some("/v1/sprites/s1/services/a%2fb?duration=1s")),
            ("/v1/checkpoints/v1/restore", Some("/v1/sprites/s1/checkpoints/v1/restore")),
            ("http://sprite/v1/checkpoint", Some("/v1/sprites/s1/checkpoint")),
            ("/v1/exec?cmd=id", None),
            ("/v1/fs/read?path=/", None),
            ("/v1/sprites/s1/services", None),
            ("/v1/services/../exec", None),
            ("/v1/servicesx", None),
            ("/v1/", None),
            ("/", None),
        ] {
            let moved = public_uri(&from.parse().unwrap(), "s1").map(|uri| uri.to_string());
            assert_eq!(moved.as_deref(), to, "{from}");
        }
    }
}
