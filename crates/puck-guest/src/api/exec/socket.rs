//! One command on one WebSocket.
//!
//! Two halves run at the same time until either ends: `transmit` writes output as fast as the client takes it, `receive` obeys
//! the client. Output comes before the exit, and after the exit the socket is closed at once, without waiting for
//! anybody. A client that is gone only leaves its place; the command goes on under its terms.

use super::{Target, signal, start};
use crate::api::{
    Agent,
    activity::Hold,
    message,
    ports::{Changes, Ports},
    session::{Attached, Piece, Session, Step},
};
use api::{
    exec::{ClientMessage, FRAME_PAYLOAD_MAX, Frame, KEEPALIVE, ServerMessage, TerminalSize},
    ports::PortChange,
};
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use guest::container::SignalError;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// How long a closed socket waits for the client's own close, so that nothing sent is lost to a reset.
const LINGER: Duration = Duration::from_secs(2);

/// Remarks to the client that wait to be sent; more are dropped.
const REMARKS_MAX: usize = 8;

/// The close code of a terminal whose command ended with an exit code other than 0 is this plus the code.
const CLOSE_CODE_EXIT: u16 = 4000;

/// The start of a text message that belongs to the control protocol.
pub(super) const CONTROL_PREFIX: &str = "control:";

/// Both halves of a socket.
pub(super) struct Socket {
    pub(super) tx: SplitSink<WebSocket, Message>,
    pub(super) rx: SplitStream<WebSocket>,
}

/// How a command's time on a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The command ended with this code, and the client has been told.
    Exited(u8),
    /// The client is gone.
    Gone,
}

/// Which protocol the socket speaks around the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// The socket is for this command alone.
    Exec,
    /// The same, by a client that learns only from `session_info` whether it looks at a terminal: until then it may end the
    /// input as if there were none.
    Attach,
    /// The socket carries one command after another.
    Control,
}

/// Serves a socket that is for one command alone. `connecting` keeps the sprite awake until the session does.
pub(super) async fn serve(websocket: WebSocket, agent: &Agent, target: Target, connecting: Hold) {
    let mut socket = Socket::new(websocket);
    let (attached, dialect) = match target {
        Target::Running { session, expects_tty, offset } => {
            let dialect = if expects_tty { Dialect::Exec } else { Dialect::Attach };
            (session.attach(offset).await, dialect)
        }
        Target::New(query) => match start(agent, *query, FRAME_PAYLOAD_MAX).await {
            Ok(attached) => (attached, Dialect::Exec),
            Err(refusal) => {
                let error = ServerMessage::Error { message: refusal.message().to_owned() };
                if socket.send(message::json(&error)).await {
                    socket.close(close_code::ERROR).await;
                }
                return;
            }
        },
    };
    let _hold = agent.activity.hold(format!("session {}", attached.session.id));
    drop(connecting);
    let has_terminal = attached.session.facts.tty.is_some();
    if let Ended::Exited(code) = socket.run(attached, dialect, &agent.ports).await {
        let failed_terminal = has_terminal && code != 0;
        socket
            .close(if failed_terminal {
                CLOSE_CODE_EXIT + u16::from(code)
            } else {
                close_code::NORMAL
            })
            .await;
    }
}

impl Socket {
    pub(super) fn new(websocket: WebSocket) -> Self {
        let (tx, rx) = websocket.split();
        Self { tx, rx }
    }

    /// Sends one message; false if the client is gone.
    pub(super) async fn send(&mut self, message: Message) -> bool {
        self.tx.send(message).await.is_ok()
    }

    /// Says that this is the end, and waits a little for the client to agree.
    pub(super) async fn close(mut self, code: u16) {
        if !self.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await {
            return;
        }
        let rest = async { while let Some(Ok(_)) = self.rx.next().await {} };
        if tokio::time::timeout(LINGER, rest).await.is_err() {
            tracing::debug!("a client did not answer a close");
        }
    }

    /// Runs one command to its end or the client's, and tells the client which ports open and close meanwhile.
    pub(super) async fn run(
        &mut self,
        mut attached: Attached,
        dialect: Dialect,
        ports: &Arc<Ports>,
    ) -> Ended {
        let mut changes = ports
            .changes()
            .await
            .inspect_err(|error| tracing::warn!(%error, "a client does not hear of ports"))
            .ok();
        if !self.send(message::json(&session_info(&attached))).await {
            return Ended::Gone;
        }
        let (remarks, mut remarked) = mpsc::channel(REMARKS_MAX);
        let session = Arc::clone(&attached.session);
        let client = Client { session: &session, is_owner: attached.is_owner, dialect, remarks };
        tokio::select! {
            ended = transmit(&mut self.tx, &mut attached, &mut remarked, &mut changes) => ended,
            () = client.receive(&mut self.rx) => Ended::Gone,
        }
    }
}

fn session_info(attached: &Attached) -> ServerMessage {
    let Attached { session, is_owner, offset, .. } = attached;
    let size = session.facts.tty.unwrap_or(TerminalSize { rows: 0, cols: 0 });
    ServerMessage::SessionInfo {
        session_id: session.id.to_string(),
        command: session.facts.command.clone(),
        created: session.facts.created.as_second(),
        cols: size.cols,
        rows: size.rows,
        is_owner: *is_owner,
        tty: session.facts.tty.is_some(),
        offset: *offset,
    }
}

async fn transmit(
    tx: &mut SplitSink<WebSocket, Message>,
    attached: &mut Attached,
    remarked: &mut mpsc::Receiver<Message>,
    changes: &mut Option<Changes>,
) -> Ended {
    let mut batch = std::mem::take(&mut attached.shown);
    if send_all(tx, &mut batch).await.is_err() {
        return Ended::Gone;
    }
    loop {
        let sent = tokio::select! {
            step = attached.reader.next(&mut batch) => match step {
                Step::Frames => send_all(tx, &mut batch).await,
                Step::End(code) => {
                    let exit = match attached.session.facts.tty {
                        Some(_) => message::json(&ServerMessage::Exit { exit_code: code, code }),
                        None => Message::binary(Frame::Exit(code).encode()),
                    };
                    return if tx.send(exit).await.is_ok() { Ended::Exited(code) } else { Ended::Gone };
                }
            },
            Some(remark) = remarked.recv() => tx.send(remark).await,
            changed = next(changes) => tell(tx, &changed).await,
            () = tokio::time::sleep(KEEPALIVE) => tx.send(Message::Binary(Bytes::new())).await,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a client is gone");
            return Ended::Gone;
        }
    }
}

/// The next changes of ports, if somebody looks.
async fn next(changes: &mut Option<Changes>) -> Vec<PortChange> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

async fn tell(
    tx: &mut SplitSink<WebSocket, Message>,
    changes: &[PortChange],
) -> Result<(), axum::Error> {
    for change in changes {
        tx.feed(message::json(change)).await?;
    }
    tx.flush().await
}

/// Sends a batch with a single flush.
async fn send_all(
    tx: &mut SplitSink<WebSocket, Message>,
    batch: &mut Vec<Bytes>,
) -> Result<(), axum::Error> {
    for frame in batch.drain(..) {
        tx.feed(Message::Binary(frame)).await?;
    }
    tx.flush().await
}

/// What one client may do to a session.
struct Client<'a> {
    session: &'a Session,
    is_owner: bool,
    dialect: Dialect,
    remarks: mpsc::Sender<Message>,
}

impl Client<'_> {
    /// Obeys until the client is gone.
    async fn receive(self, rx: &mut SplitStream<WebSocket>) {
        let mut has_typed = self.is_owner;
        let mut is_first = true;
        let mut has_complained = false;
        while let Some(Ok(message)) = rx.next().await {
            let complaint = match message {
                Message::Binary(bytes) => {
                    let may_be_blind = std::mem::take(&mut is_first)
                        && self.dialect == Dialect::Attach
                        && self.session.facts.tty.is_some();
                    if may_be_blind && *bytes == Frame::StdinEof.encode() {
                        continue;
                    }
                    self.binary(bytes, &mut has_typed).await
                }
                Message::Text(text) => self.text(text.as_str()).await,
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) => None,
            };
            // One complaint helps whoever writes a client; a stream of garbage is not answered with a stream.
            if let Some(message) = complaint.filter(|_| !has_complained) {
                has_complained = true;
                self.remark(message::json(&ServerMessage::Error { message }));
            }
        }
    }

    /// Obeys a binary message; says what is wrong with it.
    async fn binary(&self, bytes: Bytes, has_typed: &mut bool) -> Option<String> {
        let is_terminal = self.session.facts.tty.is_some();
        // Some clients send their text messages as binary ones: without a terminal `{` is no stream id, and on a control
        // socket the whole message has to be such a text.
        if bytes.first() == Some(&b'{')
            && (!is_terminal || self.dialect == Dialect::Control)
            && let Ok(message @ (ClientMessage::Resize { .. } | ClientMessage::Signal { .. })) =
                serde_json::from_slice(&bytes)
        {
            return self.obey(message).await;
        }
        if is_terminal {
            self.write(Piece::Bytes(bytes)).await;
            return None;
        }
        match Frame::parse(&bytes) {
            Ok(Some(Frame::Stdin(_))) => {
                *has_typed = true;
                self.write(Piece::Bytes(bytes.slice(1..))).await;
                None
            }
            // Clients that have nothing to say send the end of input at once. From one that merely watches it must not
            // end the input of the client that started the command.
            Ok(Some(Frame::StdinEof)) if *has_typed => {
                self.write(Piece::End).await;
                None
            }
            Ok(Some(Frame::StdinEof) | None) => None,
            Ok(Some(Frame::Exit(_) | Frame::Stderr(_) | Frame::Stdout(_))) => {
                Some("a client cannot send output or an exit".to_owned())
            }
            Err(error) => Some(error.to_string()),
        }
    }

    async fn write(&self, piece: Piece) {
        let is_empty = matches!(&piece, Piece::Bytes(bytes) if bytes.is_empty());
        if let Some(input) = self.session.input().filter(|_| !is_empty) {
            input.write(piece).await;
        }
    }

    /// Obeys a text message; says what is wrong with it.
    async fn text(&self, text: &str) -> Option<String> {
        if self.dialect == Dialect::Control && text.starts_with(CONTROL_PREFIX) {
            self.remark(super::control::busy());
            return None;
        }
        match serde_json::from_str(text) {
            Ok(message) => self.obey(message).await,
            Err(error) => Some(format!("not a message: {error}")),
        }
    }

    async fn obey(&self, message: ClientMessage) -> Option<String> {
        match message {
            ClientMessage::Resize { cols, rows } => {
                // A hidden terminal may report no size at all; a program would divide by it.
                if cols > 0 && rows > 0 {
                    self.session.resize(TerminalSize { rows, cols });
                }
                None
            }
            ClientMessage::Signal { signal } => match signal::parse(&signal) {
                Ok(signal) => match self.session.signal(signal.number).await {
                    Err(error @ SignalError::Invalid { .. }) => {
                        Some(format!("{}: {error}", signal.name))
                    }
                    Ok(()) | Err(SignalError::Ended) => None,
                },
                Err(error) => Some(error.to_string()),
            },
            ClientMessage::Unknown => None,
        }
    }

    fn remark(&self, message: Message) {
        if self.remarks.try_send(message).is_err() {
            tracing::debug!("a remark was dropped because the client is slow");
        }
    }
}
