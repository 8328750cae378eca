//! Everything under one sprite: passed through to the sprite's own agent, byte for byte, both ways.
//!
//! The agent sees the path and query as the client wrote them, so it splits and decodes them itself. It never sees the
//! client's credentials. A response's body, and an upgraded connection, hold a lease: the sprite stays awake while either
//! lasts.

use super::{Orchestrator, Refusal};
use crate::{
    account::SpriteRecord,
    worker::{AgentError, Lease},
};
use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header},
    response::Response,
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    client::conn::http1::SendRequest,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

/// The size of each buffer of an upgraded connection.
const COPY_BUFFER_BYTES: usize = 64 << 10;

/// How long the worker may take to notice that an agent is dead.
const DEATH_WAIT_MAX: Duration = Duration::from_secs(2);

/// What concerns one connection and not the call. `Upgrade` comes back where an upgrade is asked for.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What is between the client and this server only.
const CREDENTIALS: [HeaderName; 3] =
    [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];

pub(super) async fn proxy(
    State(orchestrator): State<Arc<Orchestrator>>,
    request: Request,
) -> Result<Response, Refusal> {
    let record = orchestrator.find(request.uri())?;
    if !is_plain(request.uri()) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid path"));
    }
    let (lease, agent) = reach(&orchestrator, &record).await?;
    let terms = Terms {
        withheld: &CREDENTIALS,
        broken: agent_broke,
        tasks: &orchestrator.tasks,
        stop: &orchestrator.stop,
    };
    pass(agent, request, lease, terms).await
}

/// A connection to the sprite's agent, and what keeps the sprite awake. An agent that has just died is not the caller's
/// business: as nothing has been sent to it, the call is held while the sprite wakes once more.
pub(super) async fn reach(
    orchestrator: &Orchestrator,
    record: &Arc<SpriteRecord>,
) -> Result<(Lease, SendRequest<Body>), Refusal> {
    let mut changes = orchestrator.worker.changes();
    let deadline = Instant::now() + DEATH_WAIT_MAX;
    loop {
        let lease = orchestrator.lease(record).await?;
        let error = match lease.agent().connect().await {
            Ok(agent) => return Ok((lease, agent)),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(error) => error,
        };
        debug!(error = &error as &dyn std::error::Error, "an agent does not take a call");
        drop(lease);
        // Any sprite's change ends the wait, and the deadline does.
        drop(tokio::time::timeout_at(deadline, changes.changed()).await);
    }
}

/// A path that every reader takes for the same route.
fn is_plain(uri: &Uri) -> bool {
    uri.path().split('/').all(|segment| {
        let decoded: Vec<u8> = percent_decode_str(segment).collect();
        decoded != b"." && decoded != b".." && !decoded.contains(&0)
    })
}

/// How a call is passed on.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    /// Headers that stay here.
    pub(super) withheld: &'a [HeaderName],
    /// What the caller reads when the other side does not answer.
    pub(super) broken: fn(hyper::Error) -> Refusal,
    /// Where upgraded connections live on.
    pub(super) tasks: &'a TaskTracker,
    /// What ends them.
    pub(super) stop: &'a CancellationToken,
}

fn agent_broke(error: hyper::Error) -> Refusal {
    warn!(error = &error as &dyn std::error::Error, "a call did not get through to a sprite");
    AgentError::Call(error).into()
}

/// Passes one request through. `keep` lives as long as the answer does.
pub(super) async fn pass<K: Send + Unpin + 'static>(
    mut agent: SendRequest<Body>,
    mut request: Request,
    keep: K,
    terms: Terms<'_>,
) -> Result<Response, Refusal> {
    let upgrade = requested_upgrade(request.headers());
    let client = request.extensions_mut().remove::<OnUpgrade>();
    for name in terms.withheld {
        request.headers_mut().remove(name);
    }
    let forwarded = forward(request);
    let mut response = match agent.send_request(forwarded).await {
        Ok(response) => response,
        // The client has gone in the middle of what it sent, or sends what it did not announce.
        Err(error) if error.is_user() => {
            debug!(error = &error as &dyn std::error::Error, "a request ended early");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "incomplete request body"));
        }
        Err(error) => return Err((terms.broken)(error)),
    };
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let accepted = if switching { requested_upgrade(response.headers()) } else { None };
    strip(response.headers_mut());
    if !switching {
        return Ok(response.map(|body| Body::new(Kept { body, _keep: keep })));
    }
    let Some(client) = client.filter(|_| upgrade.is_some()) else {
        return Err(Refusal::new(
            StatusCode::BAD_GATEWAY,
            "the sprite switched protocols without being asked",
        ));
    };
    let agent = hyper::upgrade::on(&mut response);
    let stop = terms.stop.clone();
    terms.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = join(client, agent) => {}
        }
        drop(keep);
    });
    restore_upgrade(response.headers_mut(), accepted.as_ref());
    Ok(response.map(|_| Body::empty()))
}

/// The request as the agent gets it.
fn forward(request: Request) -> Request {
    let (mut parts, body) = request.into_parts();
    end_hop(&mut parts.headers);
    // The agent is asked for a path and not for a host.
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().unwrap_or_default();
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Request::from_parts(parts, body)
}

/// The protocol that the headers ask for, if they do.
fn requested_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut tokens =
        headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked = tokens
        .any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")));
    if asked { headers.get(header::UPGRADE).cloned() } else { None }
}

/// Removes what concerns one connection only, also what `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| token.trim().parse().ok())
        .collect();
    // Whom a request is for is never for one hop alone.
    let named = named.iter().filter(|name| **name != header::HOST);
    for name in named.chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Removes from a request what was for the hop to here alone, but for the upgrade that it asks for.
pub(super) fn end_hop(headers: &mut HeaderMap) {
    let upgrade = requested_upgrade(headers);
    strip(headers);
    restore_upgrade(headers, upgrade.as_ref());
}

fn restore_upgrade(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
}

/// Copies between client and agent until both have said all, or either is gone.
async fn join(client: OnUpgrade, agent: OnUpgrade) {
    let (client, agent) = match tokio::try_join!(client, agent) {
        Ok(both) => both,
        Err(error) => {
            debug!(error = &error as &dyn std::error::Error, "an upgrade did not happen");
            return;
        }
    };
    let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
    let copied = tokio::io::copy_bidirectional_with_sizes(
        &mut client,
        &mut agent,
        COPY_BUFFER_BYTES,
        COPY_BUFFER_BYTES,
    );
    if let Err(error) = copied.await {
        debug!(error = &error as &dyn std::error::Error, "an upgraded connection ended");
    }
}

/// A body that keeps something for as long as it lasts.
struct Kept<K> {
    body: Incoming,
    _keep: K,
}

impl<K: Unpin> hyper::body::Body for Kept<K> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
