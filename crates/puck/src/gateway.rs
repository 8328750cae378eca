//! The object gateway: what one machine may see of the bucket, over the Unix socket of its channel.
//!
//! The guest holds no credentials. Its machine's [`Scope`] names one volume that it may read and write, and the ancestors that it may read;
//! every key is checked against that before the bucket is asked. Bodies are streamed where the bucket streams, and are never
//! decrypted here. The same socket gives the machine its keys, passes its queries of the domain name system on ([`dns`]), and takes the
//! agent's events. One [`Gateway`] serves one machine and ends with it; whatever a hostile guest sends is
//! answered with a status and changes nothing outside of its volume.

mod answer;
mod dns;
mod range;
mod scope;

use answer::{Body, empty, failed, refused};
use bytes::Bytes;
use dns::Transport;
use futures::TryStreamExt;
use guest::protocol::{
    DNS_TCP, DNS_UDP, EVENTS, Event, KEYS, KeyBytes, OBJECTS, ObjectEntry, ObjectList, VolumeKeys,
};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    path::Path as Key,
};
use std::{convert::Infallible, io, net::IpAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    net::UnixListener,
    sync::{Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};
use volume::Keys;

pub(crate) use scope::Scope;

/// The largest object that a guest may write. A segment has 8 MiB; a snapshot of the largest map some hundred.
pub(crate) const OBJECT_BYTES_MAX: usize = 512 << 20;

/// The longest event.
const EVENT_BYTES_MAX: usize = 64 << 10;

/// The most entries of one answer of a list.
const LIST_ENTRIES_MAX: usize = 1_000_000;

/// The most connections of one machine.
const CONNECTIONS_MAX: usize = 64;

/// How many events may wait for the worker.
const EVENTS_WAITING_MAX: usize = 16;

/// The pause after a failure to accept, which is most likely a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The gateway of one machine. Dropping it ends it and cuts its connections.
#[derive(Debug)]
pub(crate) struct Gateway {
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Service {
    store: Arc<dyn ObjectStore>,
    scope: Scope,
    keys: VolumeKeys,
    name_servers: Vec<IpAddr>,
    events: mpsc::Sender<Event>,
}

impl Gateway {
    /// Listens on `socket`, which must not exist, and returns the agent's events as they come.
    pub(crate) fn listen(
        socket: &Path,
        store: Arc<dyn ObjectStore>,
        scope: Scope,
        keys: &Keys,
        name_servers: Vec<IpAddr>,
    ) -> io::Result<(Self, mpsc::Receiver<Event>)> {
        let listener = UnixListener::bind(socket)?;
        let (events, received) = mpsc::channel(EVENTS_WAITING_MAX);
        let keys = keys.iter().map(|(volume, key)| (volume.to_string(), KeyBytes(key.to_bytes())));
        let keys = VolumeKeys(keys.collect());
        let service = Arc::new(Service { store, scope, keys, name_servers, events });
        let gateway = Self { stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let accepting = accept(listener, service, gateway.stop.clone(), gateway.tasks.clone());
        gateway.tasks.spawn(accepting);
        Ok((gateway, received))
    }

    /// Ends the gateway and waits until nothing of it runs.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(
    listener: UnixListener,
    service: Arc<Service>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "accept a guest's connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (service, stop) = (service.clone(), stop.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let answer = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            // Without a time limit: an idle connection is the agent's to keep, and a slow one only takes its own places.
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::select! {
                () = stop.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    debug!(error = &error as &dyn std::error::Error, "a guest's connection ended");
                },
            }
        });
    }
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if path == EVENTS {
            return self.event(request).await;
        }
        if path == KEYS && request.method() == Method::GET {
            return answer::json(&self.keys);
        }
        match path {
            DNS_TCP => return self.resolve(request, Transport::Tcp).await,
            DNS_UDP => return self.resolve(request, Transport::Udp).await,
            _ => {}
        }
        let Some(rest) = path.strip_prefix(OBJECTS) else {
            return refused(StatusCode::NOT_FOUND, "no such route");
        };
        if rest.is_empty() && request.method() == Method::GET {
            return self.list(request.uri().query().unwrap_or_default()).await;
        }
        let Some(raw) = rest.strip_prefix('/') else {
            return refused(StatusCode::NOT_FOUND, "no such route");
        };
        let write = matches!(*request.method(), Method::PUT | Method::DELETE);
        let key = match self.scope.key(raw, write) {
            Ok(key) => key,
            Err(error) => {
                warn!(volume = %self.scope.volume(), key = raw, %error, "a guest asked for what is not its own");
                return refused(error.status(), &error.to_string());
            }
        };
        match *request.method() {
            Method::GET | Method::HEAD => self.read(&key, &request).await,
            Method::PUT => self.write(&key, request).await,
            Method::DELETE => match self.store.delete(&key).await {
                Ok(()) => empty(StatusCode::NO_CONTENT),
                Err(error) => failed(&key, &error),
            },
            _ => refused(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"),
        }
    }

    async fn read(&self, key: &Key, request: &Request<Incoming>) -> Response<Body> {
        let range = match request.headers().get(header::RANGE) {
            None => None,
            Some(text) => match range::parse(text.as_bytes()) {
                Some(range) => Some(range),
                None => return refused(StatusCode::RANGE_NOT_SATISFIABLE, "malformed range"),
            },
        };
        let partial = range.is_some();
        let head = request.method() == Method::HEAD;
        // A head has no range: the length that it names is that of the whole object.
        let options = GetOptions {
            range: if head { None } else { range.clone() },
            head,
            ..GetOptions::default()
        };
        match self.store.get_opts(key, options).await {
            Ok(result) => answer::object(result, partial && !head, head),
            Err(error) => match range {
                Some(range) if !head => self.out_of_range(key, range, &error).await,
                _ => failed(key, &error),
            },
        }
    }

    /// The bucket has no error of its own for a range outside of an object, so the object's size decides.
    async fn out_of_range(
        &self,
        key: &Key,
        range: GetRange,
        error: &object_store::Error,
    ) -> Response<Body> {
        if matches!(
            error,
            object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. }
        ) {
            return failed(key, error);
        }
        match self.store.head(key).await {
            Ok(meta) if range.as_range(meta.size).is_err() => answer::unsatisfiable(meta.size),
            _ => failed(key, error),
        }
    }

    async fn write(&self, key: &Key, request: Request<Incoming>) -> Response<Body> {
        let mode = match request.headers().get(header::IF_NONE_MATCH).map(|value| value.as_bytes())
        {
            None => PutMode::Overwrite,
            Some(b"*") => PutMode::Create,
            Some(_) => return refused(StatusCode::BAD_REQUEST, "if-none-match takes only *"),
        };
        let mut body = Limited::new(request.into_body(), OBJECT_BYTES_MAX);
        let mut parts: Vec<Bytes> = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) => parts.push(data),
                Ok(Err(_trailers)) => {}
                Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                    return refused(StatusCode::PAYLOAD_TOO_LARGE, "object is too large");
                }
                // The guest vanished in the middle of an object; nothing was written.
                Err(_) => return refused(StatusCode::BAD_REQUEST, "incomplete object"),
            }
        }
        let payload: PutPayload = parts.into_iter().collect();
        match self.store.put_opts(key, payload, PutOptions::from(mode)).await {
            Ok(_) => empty(StatusCode::CREATED),
            Err(error) => failed(key, &error),
        }
    }

    async fn list(&self, query: &str) -> Response<Body> {
        let query = api::query::Query::parse(query).ok();
        let parameter = |name| query.as_ref().and_then(|query| query.first(name));
        let Some(prefix) = parameter("prefix") else {
            return refused(StatusCode::BAD_REQUEST, "prefix is required");
        };
        let after = parameter("after").map(|after| self.scope.prefix(after)).transpose();
        let (prefix, after) = match self.scope.prefix(prefix).and_then(|own| Ok((own, after?))) {
            Ok(both) => both,
            Err(error) => {
                warn!(volume = %self.scope.volume(), prefix, %error, "a guest asked for what is not its own");
                return refused(error.status(), &error.to_string());
            }
        };
        let mut found = match &after {
            Some(after) => self.store.list_with_offset(Some(&prefix), after),
            None => self.store.list(Some(&prefix)),
        };
        let mut objects = Vec::new();
        loop {
            match found.try_next().await {
                Ok(Some(_)) if objects.len() == LIST_ENTRIES_MAX => {
                    return refused(StatusCode::INTERNAL_SERVER_ERROR, "the list is too long");
                }
                Ok(Some(meta)) => objects.push(ObjectEntry {
                    key: meta.location.to_string(),
                    size: meta.size,
                    last_modified: meta.last_modified.to_rfc3339(),
                }),
                Ok(None) => break,
                Err(error) => return failed(&prefix, &error),
            }
        }
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        answer::json(&ObjectList { objects })
    }

    async fn resolve(&self, request: Request<Incoming>, transport: Transport) -> Response<Body> {
        if request.method() != Method::POST {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        }
        let body = Limited::new(request.into_body(), dns::MESSAGE_BYTES_MAX).collect().await;
        let Ok(query) = body else {
            return refused(StatusCode::PAYLOAD_TOO_LARGE, "query is too long");
        };
        match dns::ask(&self.name_servers, &query.to_bytes(), transport).await {
            Ok(message) => answer::bytes(message),
            Err(error) => refused(StatusCode::BAD_GATEWAY, &error.to_string()),
        }
    }

    async fn event(&self, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::POST {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        }
        let Ok(body) = Limited::new(request.into_body(), EVENT_BYTES_MAX).collect().await else {
            return refused(StatusCode::PAYLOAD_TOO_LARGE, "event is too long");
        };
        let Ok(event) = serde_json::from_slice::<Event>(&body.to_bytes()) else {
            return refused(StatusCode::BAD_REQUEST, "not an event");
        };
        match self.events.try_send(event) {
            Ok(()) => empty(StatusCode::NO_CONTENT),
            // The worker is busy with an earlier event of this machine; the agent sends idleness again.
            Err(_) => refused(StatusCode::SERVICE_UNAVAILABLE, "too many events"),
        }
    }
}

#[cfg(test)]
mod tests;
