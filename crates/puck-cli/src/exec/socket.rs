//! The connection of one command: a web socket whose first message tells which session it is.

use crate::{
    endpoint::Endpoint,
    transport::{self, TransportError, WebSocket},
};
use api::exec::ServerMessage;
use futures::StreamExt;
use std::time::Duration;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message};

/// How long the first message may take: the server may accept the connection first and wake the sprite then.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(120);

/// The session of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) tty: bool,
}

/// An open connection.
pub(crate) struct Socket {
    /// The web socket, from its second message on if the first named the session.
    pub(crate) stream: WebSocket,
    /// The first message, if it was something else.
    pub(crate) first: Option<Message>,
    session: Option<Session>,
}

impl Socket {
    /// Opens the connection at an already encoded path and query and waits for its first message.
    pub(crate) async fn open(endpoint: &Endpoint, target: &str) -> Result<Self, TransportError> {
        let mut stream = transport::upgrade(endpoint, target).await?;
        let first = timeout(FIRST_MESSAGE_TIMEOUT, first_message(&mut stream)).await;
        let first = first.map_err(|_elapsed| TransportError::Timeout)??;
        let session = match &first {
            Message::Text(text) => session(text),
            _ => None,
        };
        Ok(Self { stream, first: if session.is_some() { None } else { Some(first) }, session })
    }

    /// The session, if the server named it.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }
}

/// The first message that says something; pings and keep-alives may come before it.
async fn first_message(stream: &mut WebSocket) -> Result<Message, TransportError> {
    loop {
        match stream.next().await {
            None => return Err(TransportError::Ended),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => {}
            Some(Ok(message)) => return Ok(message),
            Some(Err(tungstenite::Error::Io(error))) => return Err(TransportError::Receive(error)),
            Some(Err(error)) => return Err(TransportError::WebSocket(Box::new(error))),
        }
    }
}

fn session(text: &str) -> Option<Session> {
    match serde_json::from_str(text) {
        Ok(ServerMessage::SessionInfo { session_id, tty, .. }) => {
            Some(Session { id: session_id, tty })
        }
        _ => None,
    }
}
