//! NDJSON streams: one JSON value per line, each flushed, written by work that goes on when the reader leaves.

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures::stream;
use serde::Serialize;
use std::convert::Infallible;
use tokio::sync::mpsc;

/// Lines that wait for a slow reader. Every stream of ours is shorter than this, so no line is ever dropped.
const LINES_MAX: usize = 64;

/// The writing end of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Lines(mpsc::Sender<Bytes>);

impl Lines {
    /// Whether somebody still reads.
    pub(crate) fn is_read(&self) -> bool {
        !self.0.is_closed()
    }

    /// Writes one line. A reader that is gone is no error: the work that the lines tell of is not undone by that.
    pub(crate) async fn write(&self, line: &(impl Serialize + Sync)) {
        match serde_json::to_vec(line) {
            Ok(mut bytes) => {
                bytes.push(b'\n');
                if self.0.send(bytes.into()).await.is_err() {
                    tracing::debug!("the reader of a progress stream is gone");
                }
            }
            Err(error) => tracing::error!(%error, "encode a progress line"),
        }
    }
}

/// A stream and the response that carries it. The response ends when the last [`Lines`] is dropped.
pub(crate) fn ndjson() -> (Lines, Response) {
    let (tx, rx) = mpsc::channel(LINES_MAX);
    let body = stream::unfold(rx, async |mut rx: mpsc::Receiver<Bytes>| {
        let line = rx.recv().await?;
        Some((Ok::<_, Infallible>(line), rx))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    (Lines(tx), response)
}
