//! What the gateway answers: objects, and the bucket's errors as statuses.

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use object_store::{Error, GetResult, GetResultPayload, path::Path as Key};
use serde::Serialize;
use std::{
    io::{Seek, SeekFrom},
    ops::Range,
};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use tracing::{debug, warn};

/// A body on its way to a guest.
pub(super) type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// How much of a local object is read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// An object or a part of it.
pub(super) fn object(result: GetResult, partial: bool, head: bool) -> Response<Body> {
    let range = result.range.clone();
    let size = result.meta.size;
    let modified = result.meta.last_modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let length = if head { size } else { range.end - range.start };
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length)
        .header(header::LAST_MODIFIED, modified)
        .header(header::ACCEPT_RANGES, "bytes");
    if partial {
        let last = range.end.saturating_sub(1);
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {}-{last}/{size}", range.start));
    }
    let body = if head {
        Full::default().map_err(|never| match never {}).boxed_unsync()
    } else {
        stream(result, range)
    };
    response.body(body).expect("the headers are numbers and dates")
}

/// Bytes that mean something to the agent.
pub(super) fn bytes(bytes: Bytes) -> Response<Body> {
    Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
}

fn stream(result: GetResult, range: Range<u64>) -> Body {
    match result.payload {
        // The store's own stream of a file reads 8 KiB at a time, each in a task of its own.
        GetResultPayload::File(mut file, _) => match file.seek(SeekFrom::Start(range.start)) {
            Ok(_) => {
                let part = tokio::fs::File::from_std(file).take(range.end - range.start);
                boxed(ReaderStream::with_capacity(part, CHUNK_BYTES))
            }
            Err(error) => boxed(futures::stream::once(async move { Err(error) })),
        },
        GetResultPayload::Stream(stream) => boxed(stream),
    }
}

fn boxed<E>(stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Body
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    StreamBody::new(stream.map_ok(Frame::data).map(|item| item.map_err(Into::into))).boxed_unsync()
}

/// A value as JSON.
pub(super) fn json(value: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(value).expect("plain structs are always JSON");
    let mut response = Response::new(full(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A status without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Vec::new()));
    *response.status_mut() = status;
    response
}

/// A status and why.
pub(super) fn refused(status: StatusCode, reason: &str) -> Response<Body> {
    let mut response = Response::new(full(reason.as_bytes().to_vec()));
    *response.status_mut() = status;
    response
}

/// The range lies outside of an object of `size` bytes.
pub(super) fn unsatisfiable(size: u64) -> Response<Body> {
    let mut response = refused(StatusCode::RANGE_NOT_SATISFIABLE, "range is outside of the object");
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// The bucket's error as a status, logged unless it is an ordinary answer.
pub(super) fn failed(key: &Key, error: &Error) -> Response<Body> {
    let status = match error {
        Error::NotFound { .. } => StatusCode::NOT_FOUND,
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => {
            StatusCode::PRECONDITION_FAILED
        }
        // A 403 would tell the guest that the key is not its own; but it is the bucket that refuses this server.
        _ => StatusCode::BAD_GATEWAY,
    };
    match status {
        StatusCode::BAD_GATEWAY => {
            warn!(%key, error = error as &dyn std::error::Error, "the bucket failed");
        }
        _ => debug!(%key, %status, "the bucket refused"),
    }
    refused(status, &error.to_string())
}

fn full(body: Vec<u8>) -> Body {
    Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync()
}
