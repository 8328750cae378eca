//! TCP connections into a sprite, each through a web socket of its own.
//!
//! [`Tunnel`] is one connection. [`listen`] makes one for every connection to a port of this host; [`Forwards`] does that for
//! the ports that open in the sprite while a command runs. Only the loopback addresses of this host are listened on.

mod forwards;

pub(crate) use forwards::Forwards;

use crate::{
    endpoint::Endpoint,
    output,
    transport::{self, TransportError, WebSocket},
};
use api::{
    exec::KEEPALIVE,
    name::SpriteName,
    ports::{PROXY_MESSAGE_BYTES_MAX, ProxyAnswer, ProxyMessage, ProxyTarget},
};
use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use serde::Serialize;
use std::{fmt, io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::tungstenite::{self, Message};

/// How long the sprite may take to connect to the port, after it has been woken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a good-bye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait after a connection could not be accepted, as when there are too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// What the server answered is no answer.
    #[error("the server did not say whether it is connected")]
    Answer,
    /// The sprite could not connect.
    #[error("{0}")]
    Refused(String),
    /// Nothing came in time.
    #[error("no connection within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// The web socket was not opened, or broke.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// A place in a sprite to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// One connection into a sprite.
pub(crate) struct Tunnel(WebSocket);

impl Tunnel {
    /// Connects. A sleeping sprite is woken.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        sprite: &SpriteName,
        remote: &Remote,
    ) -> Result<Self, TunnelError> {
        let target = format!("/v1/sprites/{sprite}/proxy");
        let mut socket = transport::upgrade(endpoint, &target).await?;
        let target = ProxyTarget { host: remote.host.clone(), port: remote.port };
        socket.send(text(&target)).await.map_err(broken)?;
        let answer = timeout(ANSWER_TIMEOUT, answer(&mut socket)).await;
        match answer.map_err(|_elapsed| TunnelError::Timeout)?? {
            ProxyAnswer::Connected { .. } => Ok(Self(socket)),
            ProxyAnswer::Error { error } => Err(TunnelError::Refused(output::clean(&error))),
        }
    }

    /// Passes bytes both ways until the sprite's side is done, or writing here fails. The end of what is read here is passed
    /// on and does not end the connection.
    pub(crate) async fn relay(
        self,
        mut read: impl AsyncRead + Unpin,
        mut write: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let (mut sink, mut stream) = self.0.split();
        let send = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(PROXY_MESSAGE_BYTES_MAX);
                let message = match timeout(KEEPALIVE, read.read_buf(&mut buffer)).await {
                    // What cannot be read any more has ended.
                    Ok(Ok(0) | Err(_)) => break sink.send(text(&ProxyMessage::Eof)).await,
                    Ok(Ok(_)) => Message::Binary(buffer.split().freeze()),
                    Err(_elapsed) => Message::Ping(bytes::Bytes::new()),
                };
                if let Err(error) = sink.send(message).await {
                    break Err(error);
                }
            }
        };
        let receive = async {
            while let Some(Ok(message)) = stream.next().await {
                match message {
                    Message::Binary(bytes) => {
                        write.write_all(&bytes).await?;
                        write.flush().await?;
                    }
                    Message::Close(_) => break,
                    _ => {}
                }
            }
            write.shutdown().await
        };
        let ended = {
            let mut receive = std::pin::pin!(receive);
            tokio::select! {
                ended = &mut receive => ended,
                // Whether the input has ended or the connection has: the other half knows when it is over.
                _ = send => receive.await,
            }
        };
        // The server learns of the end in any case, if not by a good-bye then by the closed connection.
        drop(timeout(CLOSE_TIMEOUT, sink.close()).await);
        ended
    }
}

/// The server's answer; pings may come before it.
async fn answer(socket: &mut WebSocket) -> Result<ProxyAnswer, TunnelError> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                return serde_json::from_str(&text).map_err(|_other| TunnelError::Answer);
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) => return Err(TunnelError::Answer),
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(TransportError::Ended.into()),
        }
    }
}

fn broken(error: tungstenite::Error) -> TunnelError {
    match error {
        tungstenite::Error::Io(error) => TransportError::Receive(error).into(),
        error => TransportError::WebSocket(Box::new(error)).into(),
    }
}

fn text(message: &impl Serialize) -> Message {
    Message::text(serde_json::to_string(message).expect("numbers and strings are JSON"))
}

/// Makes a tunnel for each connection that comes, until it is dropped.
pub(crate) async fn listen(
    endpoint: Endpoint,
    sprite: SpriteName,
    remote: Remote,
    listener: TcpListener,
) {
    let mut tunnels = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = tunnels.join_next() => continue,
        };
        match accepted {
            Ok((stream, from)) => {
                _ = tunnels.spawn(tunnel(
                    endpoint.clone(),
                    sprite.clone(),
                    remote.clone(),
                    stream,
                    from,
                ));
            }
            Err(error) => {
                output::note(&format!("cannot accept a connection: {error}\n"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn tunnel(
    endpoint: Endpoint,
    sprite: SpriteName,
    remote: Remote,
    stream: TcpStream,
    from: SocketAddr,
) {
    let relayed = match Tunnel::open(&endpoint, &sprite, &remote).await {
        Ok(tunnel) => {
            let (read, write) = stream.into_split();
            tunnel.relay(read, write).await.map_err(anyhow::Error::from)
        }
        Err(error) => Err(anyhow::Error::from(error).context(format!("connect to {sprite}"))),
    };
    if let Err(error) = relayed {
        endpoint.tell(format_args!("connection of {from}: {error:#}\r"));
    }
}
