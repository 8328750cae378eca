//! `GET proxy` with an upgrade: one TCP connection into the sprite, through a WebSocket.
//!
//! ```text
//! client -> {"host","port"}            where to
//!        <- {"status":"connected",..}  or "error", and a close
//!       <-> binary messages            the connection's bytes
//!        -> {"type":"eof"}             the client sends no more, but still reads (ours, beyond the public protocol)
//! ```
//!
//! The end of what the sprite sends closes the socket, and a closed socket ends the connection. An open one keeps the sprite
//! awake. The agent dials from the machine's own network, so nothing can be reached that the sprite could not reach itself.

use super::{Agent, activity::Hold, answer::Refusal, message};
use api::{
    exec::KEEPALIVE,
    ports::{PROXY_MESSAGE_BYTES_MAX, ProxyAnswer, ProxyMessage, ProxyTarget},
};
use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    http::StatusCode,
    response::Response,
    routing::get,
};
use bytes::{Bytes, BytesMut};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use guest::protocol::INSIDE;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::OwnedSemaphorePermit,
    time::timeout,
};

/// The most connections at once.
pub(super) const CONNECTIONS_MAX: usize = 1024;

/// How long a client may take to say where to.
const TARGET_TIMEOUT: Duration = Duration::from_secs(10);

/// How long connecting may take. Clients wait ten seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a closed socket waits for the client's own close, so that nothing sent is lost to a reset.
const LINGER: Duration = Duration::from_secs(2);

/// The largest message that a client may send.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The routes.
pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new().route("/proxy", get(open))
}

async fn open(
    State(agent): State<Arc<Agent>>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let Ok(place) = Arc::clone(&agent.connections).try_acquire_owned() else {
        let message = format!("more than {CONNECTIONS_MAX} connections to one sprite");
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, message));
    };
    let connecting = agent.activity.hold("connection without a target");
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(async move |socket| serve(socket, &agent, (connecting, place)).await))
}

/// Serves one connection to its end. What is held besides keeps the sprite awake and counts the connection.
async fn serve(mut socket: WebSocket, agent: &Agent, held: (Hold, OwnedSemaphorePermit)) {
    let target = match target(&mut socket).await {
        Ok(Some(target)) => target,
        Ok(None) => return,
        Err(reason) => return refuse(socket, close_code::UNSUPPORTED, reason).await,
    };
    let (connecting, _place) = held;
    let _hold = agent.activity.hold(format!("connection to port {}", target.port));
    drop(connecting);
    let is_own_name =
        agent.identity.borrow().as_ref().is_some_and(|identity| identity.name == target.host);
    let connected = if is_own_name || is_own_host(&target.host) {
        connect_inside(agent, target.port).await
    } else {
        match address(&target.host) {
            Ok(address) => connect(&[address], target.port).await,
            Err(error) => Err(error),
        }
    };
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            let reason = format!("connect to {}:{}: {error}", shown(&target.host), target.port);
            return refuse(socket, close_code::ERROR, reason).await;
        }
    };
    let reached = stream.peer_addr().map(|address| address.to_string()).unwrap_or_default();
    let answer = ProxyAnswer::Connected { target: reached };
    if socket.send(message::json(&answer)).await.is_ok() {
        relay(socket, stream).await;
    }
}

/// Where the client wants to go; `None` if it is gone.
async fn target(socket: &mut WebSocket) -> Result<Option<ProxyTarget>, String> {
    let said = timeout(TARGET_TIMEOUT, async {
        loop {
            match socket.recv().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                said => return said,
            }
        }
    });
    match said.await {
        Err(_elapsed) => Err("no target came".to_owned()),
        Ok(Some(Ok(Message::Text(text)))) => match serde_json::from_str::<ProxyTarget>(&text) {
            Ok(target) if target.port == 0 => Err("port 0 cannot be connected to".to_owned()),
            Ok(target) => Ok(Some(target)),
            Err(error) => Err(format!("not a target: {error}")),
        },
        Ok(Some(Ok(Message::Binary(_)))) => Err("the target must be a text message".to_owned()),
        Ok(_) => Ok(None),
    }
}

/// Connects to a port of the sprite itself, at whichever of its addresses a service has bound. One that is just starting,
/// as after a wake, gets the time to open it.
pub(super) async fn connect_inside(agent: &Agent, port: u16) -> io::Result<TcpStream> {
    drop(timeout(CONNECT_TIMEOUT, agent.services.ready(port)).await);
    let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), INSIDE.into()];
    connect(&addresses, port).await
}

/// Connects to the first of the addresses that takes the connection.
async fn connect(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut failure = None;
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((*address, port))).await {
            Ok(Ok(stream)) => {
                // Small messages must not wait for one another.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => _ = failure.get_or_insert(error),
            Err(_elapsed) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Whether a host is the sprite itself, under a name that every sprite has.
fn is_own_host(host: &str) -> bool {
    ["", "localhost", "sprite"].contains(&host)
}

/// The address that a host is written as.
fn address(host: &str) -> io::Result<IpAddr> {
    let unbracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    unbracketed.unwrap_or(host).parse().map_err(|_not_an_address| {
        let message = "the host must be `localhost` or an address";
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })
}

/// The start of a host, since a client may send a very long one.
fn shown(host: &str) -> &str {
    const CHARS_MAX: usize = 80;
    host.char_indices().nth(CHARS_MAX).map_or(host, |(end, _)| &host[..end])
}

/// Says why there is no connection, and closes.
async fn refuse(mut socket: WebSocket, code: u16, error: String) {
    // A reason is short by the rules of the protocol.
    let reason = error.chars().take(40).collect::<String>().into();
    if socket.send(message::json(&ProxyAnswer::Error { error })).await.is_ok() {
        let (tx, rx) = socket.split();
        close(tx, rx, CloseFrame { code, reason }).await;
    }
}

/// Passes bytes both ways until one side is done.
async fn relay(socket: WebSocket, stream: TcpStream) {
    let (mut tx, mut rx) = socket.split();
    let (read, write) = stream.into_split();
    let client_is_gone = tokio::select! {
        is_gone = to_client(read, &mut tx) => is_gone,
        () = to_sprite(&mut rx, write) => true,
    };
    if !client_is_gone {
        close(tx, rx, CloseFrame { code: close_code::NORMAL, reason: "".into() }).await;
    }
}

/// Until the sprite sends no more; true if the client is gone before.
async fn to_client(mut read: OwnedReadHalf, tx: &mut SplitSink<WebSocket, Message>) -> bool {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PROXY_MESSAGE_BYTES_MAX);
        let sent = match timeout(KEEPALIVE, read.read_buf(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return false,
            Ok(Ok(_)) => tx.send(Message::Binary(buffer.split().freeze())).await,
            // So that a client that is gone without a word is noticed, and what is between keeps the connection.
            Err(_elapsed) => tx.send(Message::Ping(Bytes::new())).await,
        };
        if sent.is_err() {
            return true;
        }
    }
}

/// Until the client is gone, or the sprite takes no more and the client is not told otherwise.
async fn to_sprite(rx: &mut SplitStream<WebSocket>, mut write: OwnedWriteHalf) {
    while let Some(Ok(message)) = rx.next().await {
        let written = match message {
            Message::Binary(bytes) => write.write_all(&bytes).await,
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ProxyMessage::Eof) => write.shutdown().await,
                Ok(ProxyMessage::Unknown) | Err(_) => Ok(()),
            },
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        };
        if let Err(error) = written {
            // The other half learns of the end too, and first passes on what the sprite has sent.
            tracing::debug!(%error, "a connection takes no more");
            std::future::pending::<()>().await;
        }
    }
}

async fn close(
    mut tx: SplitSink<WebSocket, Message>,
    mut rx: SplitStream<WebSocket>,
    frame: CloseFrame,
) {
    if tx.send(Message::Close(Some(frame))).await.is_err() {
        return;
    }
    let rest = async { while let Some(Ok(_)) = rx.next().await {} };
    if timeout(LINGER, rest).await.is_err() {
        tracing::debug!("a client did not answer a close");
    }
}
