//! `GET /internal/web` with an upgrade: one connection to the sprite's web server, for the worker alone.
//!
//! The web server is the service that has an HTTP port, or else whatever listens on [`PORT`]. The worker speaks HTTP
//! through the connection; here it is bytes. An open one keeps the sprite awake.

use super::{Agent, answer::Refusal, proxy};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
    routing::get,
};
use guest::protocol::WEB;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{io, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// Where a sprite without a service that says otherwise has its web server.
const PORT: u16 = 8080;

/// The most connections at once. They have places of their own, or visitors could keep the owner's connections out.
pub(super) const VISITORS_MAX: usize = 1024;

/// How long it may take until the web server is connected, with all waiting for services.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long after its start a service may still be about to open its port.
const SETTLE: Duration = Duration::from_secs(5);

/// The pause between two tries to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// The size of each buffer of a connection.
const BUFFER_BYTES: usize = 64 << 10;

/// The route.
pub(crate) fn router(agent: Arc<Agent>) -> Router {
    Router::new().route(WEB, get(open)).with_state(agent)
}

async fn open(State(agent): State<Arc<Agent>>, mut request: Request) -> Result<Response, Refusal> {
    let upgrade = request
        .extensions_mut()
        .remove::<OnUpgrade>()
        .ok_or_else(|| Refusal::new(StatusCode::UPGRADE_REQUIRED, "this route is a connection"))?;
    let Ok(place) = Arc::clone(&agent.visitors).try_acquire_owned() else {
        let message = format!("more than {VISITORS_MAX} requests to one sprite");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
    };
    let (_, mut withdrawal) = agent.sandbox().await?;
    let port = agent.services.http_port().await.unwrap_or(PORT);
    let hold = agent.activity.hold(format!("connection to port {port}"));
    let connected = match timeout(CONNECT_TIMEOUT, connect(&agent, port)).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    };
    let mut stream = connected.map_err(|error| {
        let message = format!("nothing answers on port {port} of the sprite: {error}");
        Refusal::new(StatusCode::BAD_GATEWAY, message)
    })?;
    tokio::spawn(async move {
        let _held = (hold, place);
        tokio::select! {
            () = relay(upgrade, &mut stream) => {}
            () = withdrawal.wait() => {}
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    Ok(response)
}

/// Connects, and waits while services have only just been started, as after a wake: one may open the port without having said
/// so.
async fn connect(agent: &Agent, port: u16) -> io::Result<TcpStream> {
    loop {
        match proxy::connect_inside(agent, port).await {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && agent.services.started_within(SETTLE).await =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
}

/// Passes bytes both ways until both sides have said all, or either is gone.
async fn relay(upgrade: OnUpgrade, stream: &mut TcpStream) {
    let copied = async {
        let mut worker = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
        tokio::io::copy_bidirectional_with_sizes(&mut worker, stream, BUFFER_BYTES, BUFFER_BYTES)
            .await
    };
    if let Err(error) = copied.await {
        tracing::debug!(%error, "a connection to the web server ended");
    }
}
