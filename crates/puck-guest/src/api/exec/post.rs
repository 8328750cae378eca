//! `POST exec`: a command whose output is the body of the answer, one HTTP chunk per frame.
//!
//! Clients take each piece that they read for one frame, and what arrives at once they read at once; so no two chunks may
//! arrive together, and none may be larger than what is read at once. Hence frames are small, and a pause follows each of
//! them, during which small pieces of output become one frame. This is the slow way; the fast one is the WebSocket.

use super::{admit, start};
use crate::api::{
    Agent,
    answer::{Refusal, chain},
    session::{Attached, Input, Piece, Step},
};
use api::{
    exec::{ExecQuery, Frame, HTTP_FRAME_PAYLOAD_MAX},
    query::Query,
};
use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};
use tokio::{task::JoinHandle, time::Instant};

/// The time from one frame to the next, in which a client reads the first.
const FRAME_PAUSE: Duration = Duration::from_millis(10);

/// The time from the first frame to the second, in which a client also takes in the answer's head.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// Parameters that make no sense without a socket.
const SOCKET_ONLY: [&str; 4] = ["cc", "detachable", "id", "tty"];

pub(super) async fn exec(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
    body: Body,
) -> Result<Response, Refusal> {
    let query = Query::parse(raw.as_deref().unwrap_or_default())
        .map_err(|error| Refusal::invalid(&error))?;
    if let Some(name) = SOCKET_ONLY.into_iter().find(|name| query.first(name).is_some()) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("{name} needs a WebSocket")));
    }
    let query = ExecQuery::from_query(&query).map_err(|error| Refusal::invalid(&error))?;
    admit(&agent)?;
    // In a task of its own: a client that leaves in the middle drops this call, and the command that has just been started
    // must be in the hands of its session by then.
    let starting = tokio::spawn(async move { start(&agent, query, HTTP_FRAME_PAYLOAD_MAX).await });
    let attached = starting
        .await
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error)))??;
    let input = attached.session.input().cloned();
    let output = Output {
        attached,
        batch: VecDeque::new(),
        due: None,
        is_over: false,
        _typing: input.map(|input| AbortOnDrop(tokio::spawn(type_body(body, input)))),
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(output, Output::next)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Feeds the request's body to the process. A body that breaks off is not the end of input: the process must not take half
/// of it for the whole.
async fn type_body(body: Body, input: Input) {
    let mut body = body.into_data_stream();
    while let Some(bytes) = body.next().await {
        match bytes {
            Ok(bytes) => input.write(Piece::Bytes(bytes)).await,
            Err(error) => {
                tracing::debug!(%error, "a request body broke off");
                return;
            }
        }
    }
    input.write(Piece::End).await;
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The answer's body. Dropping it, because it is over or because the client is gone, leaves the session.
struct Output {
    attached: Attached,
    batch: VecDeque<Bytes>,
    /// When the next frame may go out; `None` before the first.
    due: Option<Instant>,
    is_over: bool,
    _typing: Option<AbortOnDrop>,
}

impl Output {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.is_over {
            return None;
        }
        let first = match self.batch.pop_front() {
            Some(frame) => frame,
            None => self.read().await,
        };
        let frame = self.join(first);
        // Giving way to the server makes it flush what it has, even if no pause is due.
        tokio::task::yield_now().await;
        let pause = match self.due {
            Some(due) => {
                tokio::time::sleep_until(due).await;
                FRAME_PAUSE
            }
            None => FIRST_PAUSE,
        };
        self.due = Some(Instant::now() + pause);
        Some((Ok(frame), self))
    }

    /// Appends to a frame what follows of the same stream, as far as there is room.
    fn join(&mut self, frame: Bytes) -> Bytes {
        let continues = |frame: &[u8], next: &Bytes| {
            frame.first() == next.first() && frame.len() + next.len() <= HTTP_FRAME_PAYLOAD_MAX
        };
        if !self.batch.front().is_some_and(|next| continues(&frame, next)) {
            return frame;
        }
        let mut joined = frame.to_vec();
        while let Some(next) = self.batch.pop_front_if(|next| continues(&joined, next)) {
            joined.extend_from_slice(&next[1..]);
        }
        joined.into()
    }

    async fn read(&mut self) -> Bytes {
        let mut batch = Vec::new();
        match self.attached.reader.next(&mut batch).await {
            Step::Frames => {
                self.batch.extend(batch);
                self.batch.pop_front().unwrap_or_default()
            }
            Step::End(code) => {
                self.is_over = true;
                Frame::Exit(code).encode().into()
            }
        }
    }
}
