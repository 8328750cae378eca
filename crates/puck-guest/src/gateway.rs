//! The agent's side of the worker's socket: objects of this volume and its ancestors, their keys, and events.
//!
//! The guest holds no bucket credentials. [`Gateway`] is an [`ObjectStore`] whose requests the worker checks against this
//! machine's volume and passes on. It retries nothing: the volume and the log know what a second try means.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use guest::protocol::{
    DNS_TCP, DNS_UDP, EVENTS, Event, KEYS, KeyBytes, OBJECTS, ObjectList, VolumeKeys,
};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::Connected, connect::Connection},
    rt::{TokioExecutor, TokioIo},
};
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, path::Path,
};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::{
    convert::Infallible,
    fmt,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::net::UnixStream;
use volume::{Keys, SecretKey};

type Body = BoxBody<Bytes, Infallible>;

/// A client of the worker's socket.
#[derive(Clone)]
pub(crate) struct Gateway {
    client: Client<Connector, Body>,
}

/// An event that did not reach the worker. Nothing changed; it may be sent again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    /// The worker answered with something other than success.
    #[error("worker refused the event with status {0}")]
    Refused(StatusCode),
    /// The event did not get there.
    #[error("send the event to the worker")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Gateway {
    /// A client of the worker that listens on `socket`. Connects on first use.
    #[must_use]
    pub(crate) fn new(socket: PathBuf) -> Self {
        let connector = Connector { socket: Arc::new(socket) };
        Self { client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// Tells the worker what happened.
    pub(crate) async fn send(&self, event: &Event) -> Result<(), EventError> {
        let body = serde_json::to_vec(event).expect("an event is always JSON");
        let request = request(Method::POST, EVENTS)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)).boxed())
            .expect("the parts are constants");
        let response =
            self.client.request(request).await.map_err(|error| EventError::Send(error.into()))?;
        if response.status().is_success() {
            Ok(())
        } else {
            Err(EventError::Refused(response.status()))
        }
    }

    /// The keys of this machine's volume and its ancestors.
    pub(crate) async fn keys(&self) -> Result<Keys> {
        let request = request(Method::GET, KEYS).body(empty()).map_err(generic)?;
        let response = self.call(&Path::from(KEYS), request).await?;
        let body = response.into_body().collect().await.map_err(generic)?.to_bytes();
        let VolumeKeys(keys) = serde_json::from_slice(&body).map_err(generic)?;
        keys.into_iter().try_fold(Keys::none(), |keys, (volume, KeyBytes(key))| {
            Ok(keys.with(volume.parse().map_err(generic)?, SecretKey::from_bytes(key)))
        })
    }

    /// The answer of the host's name servers to a query as it is on the wire.
    pub(crate) async fn resolve(&self, query: Bytes, over_tcp: bool) -> Result<Bytes> {
        let route = if over_tcp { DNS_TCP } else { DNS_UDP };
        let request =
            request(Method::POST, route).body(Full::new(query).boxed()).map_err(generic)?;
        let response = self.call(&Path::from(route), request).await?;
        Ok(response.into_body().collect().await.map_err(generic)?.to_bytes())
    }

    async fn call(&self, location: &Path, request: Request<Body>) -> Result<Response<Incoming>> {
        let create = request.headers().contains_key(header::IF_NONE_MATCH);
        let response = self.client.request(request).await.map_err(generic)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.into_body().collect().await.map_err(generic)?.to_bytes();
        Err(error_of(status, create, location, String::from_utf8_lossy(&text).into_owned()))
    }

    fn stream(
        &self,
        prefix: Option<Path>,
        after: Option<Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let gateway = self.clone();
        stream::once(async move { gateway.list_after(prefix, after).await })
            .map_ok(stream::iter)
            .try_flatten()
            .boxed()
    }

    async fn list_after(
        &self,
        prefix: Option<Path>,
        after: Option<Path>,
    ) -> Result<Vec<Result<ObjectMeta>>> {
        let prefix = prefix.unwrap_or_default();
        let mut uri = format!("{OBJECTS}?prefix={}", utf8_percent_encode(prefix.as_ref(), QUERY));
        if let Some(after) = after {
            uri.push_str(&format!("&after={}", utf8_percent_encode(after.as_ref(), QUERY)));
        }
        let request = request(Method::GET, &uri).body(empty()).map_err(generic)?;
        let body = self
            .call(&prefix, request)
            .await?
            .into_body()
            .collect()
            .await
            .map_err(generic)?
            .to_bytes();
        let list: ObjectList = serde_json::from_slice(&body).map_err(generic)?;
        Ok(list
            .objects
            .into_iter()
            .map(|entry| meta(&entry.key, entry.size, &entry.last_modified))
            .collect())
    }
}

#[async_trait::async_trait]
impl ObjectStore for Gateway {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let mut builder = request(Method::PUT, &object(location))
            .header(header::CONTENT_LENGTH, payload.content_length());
        match options.mode {
            PutMode::Overwrite => {}
            PutMode::Create => builder = builder.header(header::IF_NONE_MATCH, "*"),
            PutMode::Update(_) => return Err(unsupported("an update by version")),
        }
        let parts = payload.into_iter().map(|part| Ok::<_, Infallible>(Frame::data(part)));
        let request =
            builder.body(BodyExt::boxed(StreamBody::new(stream::iter(parts)))).map_err(generic)?;
        let response = self.call(location, request).await?;
        response.into_body().collect().await.map_err(generic)?;
        Ok(PutResult { e_tag: None, version: None, extensions: options.extensions })
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("a multipart upload"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let method = if options.head { Method::HEAD } else { Method::GET };
        let mut builder = request(method, &object(location));
        if let Some(range) = &options.range {
            builder = builder.header(header::RANGE, range_header(range));
        }
        let response = self.call(location, builder.body(empty()).map_err(generic)?).await?;
        let text = |name| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        let length: u64 = text(header::CONTENT_LENGTH).parse().map_err(generic)?;
        let (start, size) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                content_range(text(header::CONTENT_RANGE)).ok_or_else(|| {
                    generic(format!("malformed content-range {:?}", text(header::CONTENT_RANGE)))
                })?
            }
            _ => (0, length),
        };
        let meta = meta(location.as_ref(), size, text(header::LAST_MODIFIED))?;
        let body = BodyStream::new(response.into_body())
            .try_filter_map(|frame| async move { Ok(frame.into_data().ok()) })
            .map_err(generic);
        Ok(GetResult {
            payload: GetResultPayload::Stream(body.boxed()),
            meta,
            range: start..start + length,
            attributes: Attributes::new(),
            extensions: options.extensions,
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let gateway = self.clone();
        locations
            .and_then(move |location| {
                let gateway = gateway.clone();
                async move {
                    let request = request(Method::DELETE, &object(&location))
                        .body(empty())
                        .map_err(generic)?;
                    gateway
                        .call(&location, request)
                        .await?
                        .into_body()
                        .collect()
                        .await
                        .map_err(generic)?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.stream(prefix.cloned(), None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.stream(prefix.cloned(), Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(unsupported("a list with delimiters"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unsupported("a copy"))
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gateway")
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the worker's object gateway")
    }
}

fn request(method: Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://worker{path}"))
}

fn object(location: &Path) -> String {
    format!("{OBJECTS}/{}", utf8_percent_encode(location.as_ref(), KEY))
}

fn empty() -> Body {
    Full::default().boxed()
}

fn range_header(range: &GetRange) -> String {
    match range {
        GetRange::Bounded(range) => {
            format!("bytes={}-{}", range.start, range.end.saturating_sub(1))
        }
        GetRange::Offset(offset) => format!("bytes={offset}-"),
        GetRange::Suffix(length) => format!("bytes=-{length}"),
    }
}

/// The start and the whole size in `bytes START-END/SIZE`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _end) = range.split_once('-')?;
    Some((start.parse().ok()?, size.parse().ok()?))
}

fn meta(key: &str, size: u64, last_modified: &str) -> Result<ObjectMeta> {
    let last_modified = chrono::DateTime::parse_from_rfc3339(last_modified)
        .or_else(|_| chrono::DateTime::parse_from_rfc2822(last_modified))
        .map_err(generic)?
        .to_utc();
    Ok(ObjectMeta { location: Path::parse(key)?, last_modified, size, e_tag: None, version: None })
}

fn error_of(status: StatusCode, create: bool, location: &Path, text: String) -> Error {
    let path = location.to_string();
    match status {
        StatusCode::NOT_FOUND => Error::NotFound { path, source: text.into() },
        StatusCode::PRECONDITION_FAILED if create => {
            Error::AlreadyExists { path, source: text.into() }
        }
        StatusCode::PRECONDITION_FAILED => Error::Precondition { path, source: text.into() },
        StatusCode::FORBIDDEN => Error::PermissionDenied { path, source: text.into() },
        _ => generic(format!("status {status} for {path}: {text}")),
    }
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "gateway", source: source.into() }
}

fn unsupported(what: &str) -> Error {
    Error::NotSupported { source: format!("the object gateway does not take {what}").into() }
}

#[derive(Clone)]
struct Connector {
    socket: Arc<PathBuf>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Pipe;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Pipe>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let socket = self.socket.clone();
        Box::pin(async move { Ok(Pipe(TokioIo::new(UnixStream::connect(&*socket).await?))) })
    }
}

/// A Unix stream that the pooled client can hold.
struct Pipe(TokioIo<UnixStream>);

impl Connection for Pipe {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// What must be escaped in a key, which is a path of a URL.
const KEY: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`');

/// What must be escaped in a value of a query.
const QUERY: &AsciiSet = &KEY.add(b'&').add(b'+').add(b'=');

#[cfg(test)]
mod tests {
    use super::{content_range, range_header};
    use object_store::GetRange;

    #[test]
    fn ranges_are_inclusive_on_the_wire() {
        assert_eq!(range_header(&GetRange::Bounded(0..10)), "bytes=0-9");
        assert_eq!(range_header(&GetRange::Suffix(5)), "bytes=-5");
        assert_eq!(content_range("bytes 10-19/300"), Some((10, 300)));
        assert_eq!(content_range("bytes */300"), None);
    }
}
