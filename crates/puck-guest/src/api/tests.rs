//! The API over real sockets, on a directory and plain child processes in place of a container.

mod changes;
mod checkpoints;
mod control;
mod exec;
mod files;
mod hostile;
mod local;
mod ports;
mod post;

use super::{
    Agent,
    checkpoints::{CheckpointError, Checkpoints},
    sandbox::Sandbox,
};
use api::{
    checkpoint::Checkpoint,
    volume::{Change, VolumeStatus},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use guest::protocol::{Identity, Privileges};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use local::Local;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest},
};

/// No single wait of a test is longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server for one test.
struct Bench {
    address: SocketAddr,
    agent: Arc<Agent>,
    local: Arc<Local>,
    sandbox: watch::Sender<Option<Arc<dyn Sandbox>>>,
    _identity: watch::Sender<Option<Identity>>,
}

impl Bench {
    async fn new() -> Self {
        Self::with_checkpoints(Arc::new(NoCheckpoints)).await
    }

    async fn with_checkpoints(checkpoints: Arc<dyn Checkpoints>) -> Self {
        let identity = Identity {
            id: "sprite-01890a5d-ac96-774b-bcce-b302099a8057".to_owned(),
            name: "s1".to_owned(),
            organization: "acme".to_owned(),
            url: "http://s1.test/".to_owned(),
            environment: [("FROM_SPRITE".to_owned(), "yes".to_owned())].into(),
            strict: false,
            network: Vec::new(),
            memory_bytes: None,
            privileges: Privileges::default(),
            policies: std::collections::BTreeMap::new(),
            idle_timeout_seconds: 30,
        };
        let local = Arc::new(Local::new());
        let (identity, identities) = watch::channel(Some(identity));
        let (sandbox, sandboxes) = watch::channel(Some(local.clone() as Arc<dyn Sandbox>));
        let agent = Agent::new(identities, sandboxes, checkpoints, Arc::new(Unbroken));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = super::router(agent.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, agent, local, sandbox, _identity: identity }
    }

    /// A call whose path is under the sprite, unless it begins with `//`.
    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let path = match path.strip_prefix("//") {
            Some(rest) => format!("/{rest}"),
            None => format!("/v1/sprites/s1/{path}"),
        };
        let mut request = Request::builder().method(method).uri(path).header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = within(sender.send_request(request.body(Full::new(body.into())).unwrap()))
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let body = within(body.collect()).await.map(|body| body.to_bytes()).unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], Bytes::new()).await
    }

    async fn socket(&self, path: &str) -> Socket {
        self.try_socket(path, &[]).await.unwrap_or_else(|answer| panic!("{path}: {answer:?}"))
    }

    async fn try_socket(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Socket, Answer> {
        let mut request =
            format!("ws://{}/v1/sprites/s1/{path}", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        match within(tokio_tungstenite::client_async(request, stream)).await {
            Ok((websocket, response)) => {
                let info = String::new();
                Ok(Socket { websocket, info, headers: response.headers().clone() })
            }
            Err(tungstenite::Error::Http(response)) => {
                let (parts, body) = response.into_parts();
                let body = body.unwrap_or_default().into();
                Err(Answer { status: parts.status, headers: parts.headers, body })
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Waits until a condition on the agent holds.
    async fn until(&self, what: &str, condition: impl Fn(&Agent) -> bool) {
        let wait = async {
            while !condition(&self.agent) {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "{what} did not happen");
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("within the deadline")
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    fn lines(&self) -> Vec<serde_json::Value> {
        assert!(self.body.ends_with(b"\n"), "{:?}", self.body);
        self.body[..]
            .trim_ascii()
            .split(|b| *b == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// The client's end of a WebSocket.
struct Socket {
    websocket: WebSocketStream<TcpStream>,
    info: String,
    headers: HeaderMap,
}

/// Everything that a server said from the first message to the close.
#[derive(Debug, Default, PartialEq, Eq)]
struct Transcript {
    out: Vec<u8>,
    err: Vec<u8>,
    exit: Option<u8>,
    texts: Vec<String>,
    close: Option<u16>,
}

impl Transcript {
    fn out(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    fn err(&self) -> String {
        String::from_utf8_lossy(&self.err).into_owned()
    }
}

impl Socket {
    async fn send(&mut self, message: impl Into<Message>) {
        within(self.websocket.send(message.into())).await.unwrap();
    }

    async fn stdin(&mut self, bytes: &[u8]) {
        self.send(Message::binary([&[0], bytes].concat())).await;
    }

    async fn eof(&mut self) {
        self.send(Message::binary(vec![4])).await;
    }

    /// The next message that is not about ports: other tests open some in the same network.
    async fn next(&mut self) -> Option<Message> {
        loop {
            match self.any().await {
                Some(Message::Text(text)) if text.contains(r#""type":"port_"#) => {}
                message => return message,
            }
        }
    }

    async fn any(&mut self) -> Option<Message> {
        within(self.websocket.next()).await.and_then(Result::ok)
    }

    /// The first message, as JSON: the session's info.
    async fn session_info(&mut self) -> serde_json::Value {
        let Some(Message::Text(text)) = self.next().await else {
            panic!("session_info must come first")
        };
        self.info = text.to_string();
        let info: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(info["type"], "session_info");
        info
    }

    /// Reads until the output so far contains `wanted`.
    async fn expect(&mut self, wanted: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            match self.next().await {
                Some(Message::Binary(bytes)) => seen.extend_from_slice(&bytes),
                Some(
                    Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_),
                ) => {}
                Some(Message::Close(_)) | None => {
                    panic!("closed before {wanted:?}, after {:?}", String::from_utf8_lossy(&seen))
                }
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Reads to the end of a command without a terminal.
    async fn framed(mut self) -> Transcript {
        let mut all = Transcript::default();
        while let Some(message) = self.next().await {
            match message {
                Message::Binary(bytes) => {
                    assert!(all.exit.is_none() || bytes.is_empty(), "output after the exit");
                    match bytes.split_first() {
                        Some((1, payload)) => all.out.extend_from_slice(payload),
                        Some((2, payload)) => all.err.extend_from_slice(payload),
                        Some((3, [code])) => all.exit = Some(*code),
                        None => {}
                        other => panic!("{other:?}"),
                    }
                }
                Message::Text(text) => all.texts.push(text.to_string()),
                Message::Close(frame) => all.close = frame.map(|frame| frame.code.into()),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        all
    }

    /// Reads to the end of a command with a terminal.
    async fn raw(mut self) -> Transcript {
        let mut all = Transcript::default();
        while let Some(message) = self.next().await {
            match message {
                Message::Binary(bytes) => all.out.extend_from_slice(&bytes),
                Message::Text(text) => all.texts.push(text.to_string()),
                Message::Close(frame) => all.close = frame.map(|frame| frame.code.into()),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        all
    }
}

/// A query of a shell script.
fn script(text: &str) -> String {
    let text = percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
    format!("cmd=sh&cmd=-c&cmd={text}&path=sh")
}

struct NoCheckpoints;

#[async_trait]
impl Checkpoints for NoCheckpoints {
    async fn create(&self, _: &str) -> Result<Checkpoint, CheckpointError> {
        Err(CheckpointError::Failed("no disk".into()))
    }

    async fn list(&self) -> Result<Vec<Checkpoint>, CheckpointError> {
        Ok(Vec::new())
    }

    async fn delete(&self, _: &str) -> Result<(), CheckpointError> {
        Err(CheckpointError::NotFound)
    }

    async fn restore(&self, _: &str) -> Result<(), CheckpointError> {
        Err(CheckpointError::NotFound)
    }

    async fn rewind(&self, _: Timestamp) -> Result<(), CheckpointError> {
        Err(CheckpointError::Conflict("nothing is that old".to_owned()))
    }

    async fn browse(&self, _: &str) -> Result<(), CheckpointError> {
        Err(CheckpointError::NotFound)
    }

    async fn diff(&self, _: &str, _: &str, _: mpsc::Sender<Change>) -> Result<(), CheckpointError> {
        Err(CheckpointError::NotFound)
    }

    async fn status(&self) -> Result<VolumeStatus, CheckpointError> {
        Err(CheckpointError::Failed("no disk".into()))
    }
}

/// A container that starts anew whenever it is asked to.
struct Unbroken;

#[async_trait]
impl super::restart::Restart for Unbroken {
    async fn restart(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}
