//! Calls to the guest agent of one machine.

use super::channel::Channel;
use bytes::Bytes;
use guest::protocol::{IDENTITY, Identity, KEEP, Kept, PIN, Pin, SLEEP, VOLUME, VolumeReport};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::{io, sync::Arc, time::Duration};
use tokio::net::UnixStream;
use tracing::debug;
use volume::VolumeId;

/// How long an agent may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an agent may take to become somebody.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of an answer is read at once. Clients of `POST exec` take each chunk that they read for one frame, so a frame
/// that the agent wrote whole has to be passed on whole.
const READ_BYTES: usize = 4 * api::exec::HTTP_FRAME_PAYLOAD_MAX;

/// How long an agent may take to note a pin in the log.
const PIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an agent may take to say how its disk is doing: a scrape waits for the slowest.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an agent may take to keep its disk. A guest that does not answer is told without.
const KEEP_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest report.
const REPORT_BYTES_MAX: usize = 64 << 10;

/// A client of one machine's agent. Every call has a connection of its own, so that an upgrade takes it over whole.
#[derive(Debug, Clone)]
pub(crate) struct Agent(Arc<Channel>);

/// Why an agent did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// It does not accept connections.
    #[error("connect to the guest agent")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("call the guest agent")]
    Call(#[source] hyper::Error),
    /// It answered with something other than success.
    #[error("the guest agent refused {call} with status {status}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// The status.
        status: StatusCode,
    },
    /// It took too long.
    #[error("the guest agent did not answer {call} in time")]
    Silent {
        /// Which call.
        call: &'static str,
    },
}

impl Agent {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        Self(channel)
    }

    /// A client of whatever listens in a directory in the place of an agent.
    #[cfg(test)]
    pub(crate) fn at(directory: &std::path::Path) -> io::Result<Self> {
        Ok(Self(Arc::new(Channel::open(directory)?)))
    }

    /// Sends a request and returns the answer as soon as its head is there. An upgrade of either works.
    pub(crate) async fn send<B>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Incoming>, AgentError>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        self.connect().await?.send_request(request).await.map_err(AgentError::Call)
    }

    /// Connects for one request, which nothing has been sent of if this fails.
    pub(crate) async fn connect<B>(&self) -> Result<http1::SendRequest<B>, AgentError>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        let connect = UnixStream::connect(self.0.agent());
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected.map_err(AgentError::Connect)?,
            Err(_) => return Err(AgentError::Silent { call: "a connection" }),
        };
        let (sender, connection) = http1::Builder::new()
            .read_buf_exact_size(Some(READ_BYTES))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(AgentError::Call)?;
        // The connection ends by itself: with its one answer, its upgrade, or its machine.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(
                    error = &error as &dyn std::error::Error,
                    "a connection to a guest agent ended"
                );
            }
        });
        Ok(sender)
    }

    /// Makes the machine a sprite's, or tells it what has changed about its sprite.
    pub(super) async fn identify(&self, identity: &Identity) -> Result<(), AgentError> {
        let body = serde_json::to_vec(identity).expect("an identity is always JSON");
        self.internal("its identity", Method::PUT, IDENTITY, body, IDENTIFY_TIMEOUT).await
    }

    /// Stops everything inside. On success all of the volume is in the bucket.
    pub(super) async fn sleep(&self, timeout: Duration) -> Result<(), AgentError> {
        self.internal("sleep", Method::POST, SLEEP, Vec::new(), timeout).await
    }

    /// Makes the sprite keep what a fork of it begins with: its disk now, or at a checkpoint.
    pub(crate) async fn pin(
        &self,
        child: VolumeId,
        checkpoint: Option<&str>,
    ) -> Result<(), AgentError> {
        let checkpoint = checkpoint.map(str::to_owned);
        let body = serde_json::to_vec(&Pin { child: child.to_string(), checkpoint })
            .expect("a pin is always JSON");
        self.internal("a pin", Method::PUT, PIN, body, PIN_TIMEOUT).await
    }

    /// The opposite; of a fork that nothing is kept for it is nothing.
    pub(crate) async fn unpin(&self, child: VolumeId) -> Result<(), AgentError> {
        let body = serde_json::to_vec(&Pin { child: child.to_string(), checkpoint: None })
            .expect("a pin is always JSON");
        self.internal("the end of a pin", Method::DELETE, PIN, body, PIN_TIMEOUT).await
    }

    /// Keeps the disk as it is now as an automatic checkpoint; nothing if the agent does not do so in time.
    pub(crate) async fn keep(&self) -> Option<Kept> {
        self.report(Method::POST, KEEP, KEEP_TIMEOUT).await
    }

    /// How the disk is doing; nothing if the agent does not say so in time.
    pub(crate) async fn volume_report(&self) -> Option<VolumeReport> {
        self.report(Method::GET, VOLUME, REPORT_TIMEOUT).await
    }

    async fn report<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        timeout: Duration,
    ) -> Option<T> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "agent")
            .body(Empty::<Bytes>::new())
            .expect("the parts are constants");
        let asking = async {
            let response = self.send(request).await.ok()?;
            let body = Limited::new(response.into_body(), REPORT_BYTES_MAX).collect().await.ok()?;
            serde_json::from_slice(&body.to_bytes()).ok()
        };
        tokio::time::timeout(timeout, asking).await.ok().flatten()
    }

    async fn internal(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<(), AgentError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "agent")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("the parts are constants");
        match tokio::time::timeout(timeout, self.send(request)).await {
            Err(_) => Err(AgentError::Silent { call }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(response)) if response.status().is_success() => Ok(()),
            Ok(Ok(response)) => Err(AgentError::Refused { call, status: response.status() }),
        }
    }
}
