//! Moves bytes between a command's connection and this process's streams, until one of the two is done.
//!
//! Both directions run side by side, so that a command that prints before it reads, and a server that does not read while
//! we do not, never wait for each other. What a message means is decided by [`decode`], which knows no socket.

use super::{
    controls::{Control, Controls, Signal},
    socket::Socket,
};
use crate::{
    output,
    terminal::{self, Modes, detach_position},
    transport::TransportError,
    tunnel::Forwards,
};
use api::{
    exec::{ClientMessage, Frame, FrameError, KEEPALIVE, ServerMessage, TerminalSize},
    ports::PortChange,
};
use futures::{Sink, SinkExt, Stream, StreamExt};
use std::{io, pin::pin, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_tungstenite::tungstenite::{self, Message};

/// Without a message for this long the connection is taken for dead. The server says something three times as often.
const SILENCE_MAX: Duration = KEEPALIVE.saturating_mul(3);

/// How long a command that was sent a signal has to end before this process leaves it.
const SIGNAL_GRACE: Duration = Duration::from_secs(2);

/// How long a good-bye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How much of standard input goes into one message.
const STDIN_CHUNK_BYTES: usize = 32 * 1024;

/// What a terminal types for the end of input.
const END_OF_INPUT_KEY: u8 = 0x04;

/// Ctrl-C, as a raw terminal types it.
const INTERRUPT_KEY: u8 = 0x03;

/// The streams that a command is connected with.
pub(crate) struct Streams {
    pub(crate) stdin: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) stdout: Box<dyn AsyncWrite + Send + Unpin>,
    pub(crate) stderr: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Streams {
    /// The streams of this process.
    pub(crate) fn of_process() -> Self {
        Self {
            stdin: Box::new(tokio::io::stdin()),
            stdout: Box::new(tokio::io::stdout()),
            stderr: Box::new(tokio::io::stderr()),
        }
    }
}

/// How the messages are to be read.
#[derive(Debug)]
pub(crate) enum Mode<'a> {
    /// Numbered streams.
    Frames,
    /// The bytes of a terminal. `modes` learns what they switch on; only an interactive terminal has a detach key.
    Terminal { is_interactive: bool, modes: &'a mut Modes },
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The user left a session that goes on.
    Detached,
    /// The command ended with this code.
    Exited(u8),
    /// This process was asked to end; a command without a terminal was sent the signal first.
    Interrupted(Signal),
    /// The connection ended before the command did.
    Lost(Lost),
    /// What the command printed could not be written.
    Unwritten(io::Error),
}

/// Why the connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The server closed it.
    #[error("the server closed it{}{}", if .0.is_empty() { "" } else { ": " }, .0)]
    Closed(String),
    /// It broke.
    #[error("it broke")]
    Broken(#[source] Box<tungstenite::Error>),
    /// A message that is not one.
    #[error("a message is malformed")]
    Malformed(#[source] FrameError),
    /// A plain request broke.
    #[error("the answer broke off")]
    Request(#[source] TransportError),
    /// Nothing came for too long.
    #[error("nothing was heard for {} s", SILENCE_MAX.as_secs())]
    Silent,
}

/// Connects `streams` with `socket` until the command ends, the user leaves or the connection is lost.
pub(crate) async fn pump(
    socket: &mut Socket,
    mut mode: Mode<'_>,
    streams: &mut Streams,
    controls: &mut Controls,
    forwards: &mut Forwards,
) -> Outcome {
    let first = socket.first.take();
    let (sink, mut stream) = (&mut socket.stream).split();
    let typing = match mode {
        Mode::Frames => Typing::Frames,
        Mode::Terminal { is_interactive, .. } => Typing::Terminal { is_interactive },
    };
    let mut sender = Sender { sink, stdin: &mut streams.stdin, controls, typing };
    let outcome = tokio::select! {
        biased;
        outcome = receive(&mut stream, first, &mut mode, (&mut streams.stdout, &mut streams.stderr), forwards) => outcome,
        outcome = sender.run() => outcome,
    };
    if matches!((&outcome, typing), (Outcome::Unwritten(_), Typing::Frames)) {
        // Locally the command would be told by this signal that nobody reads it any more.
        let told = sender.sink.send(signal_message("PIPE"));
        // The server may read only while it is read from, so what still comes is taken and thrown away.
        let drained = async { while let Some(Ok(_)) = stream.next().await {} };
        drop(timeout(CLOSE_TIMEOUT, futures::future::join(told, drained)).await);
    }
    // The server learns of the end in any case, if not by a good-bye then by the closed connection.
    drop(timeout(CLOSE_TIMEOUT, sender.sink.close()).await);
    outcome
}

/// Waits until the user types the detach key, or Ctrl-C, into a raw terminal.
pub(crate) async fn leave_key(stdin: &mut (impl AsyncRead + Unpin)) {
    let mut typed = [0; 256];
    loop {
        match stdin.read(&mut typed).await {
            Ok(0) | Err(_) => return,
            Ok(n)
                if typed[..n].contains(&INTERRUPT_KEY)
                    || detach_position(&typed[..n]).is_some() =>
            {
                return;
            }
            Ok(_) => {}
        }
    }
}

/// What a message means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// The connection ends.
    Closed(String),
    /// The command has ended.
    Exit(u8),
    /// Nothing that is shown.
    Nothing,
    /// The server itself has something to say.
    Notice(String),
    /// A port of the sprite opens or closes.
    Port(PortChange),
    /// Bytes for standard error.
    Stderr(&'a [u8]),
    /// Bytes for standard output.
    Stdout(&'a [u8]),
}

/// Reads a message.
pub(crate) fn decode(is_terminal: bool, message: &Message) -> Result<Event<'_>, FrameError> {
    Ok(match message {
        Message::Binary(bytes) if is_terminal => Event::Stdout(bytes),
        Message::Binary(bytes) => match Frame::parse(bytes)? {
            Some(Frame::Exit(code)) => Event::Exit(code),
            Some(Frame::Stderr(bytes)) => Event::Stderr(bytes),
            Some(Frame::Stdout(bytes)) => Event::Stdout(bytes),
            // The other two only go the other way; an empty message keeps the connection alive.
            Some(Frame::Stdin(_) | Frame::StdinEof) | None => Event::Nothing,
        },
        Message::Text(text) => match serde_json::from_str(text) {
            Ok(ServerMessage::Exit { exit_code, .. }) if is_terminal => Event::Exit(exit_code),
            Ok(ServerMessage::Error { message }) => Event::Notice(output::clean(&message)),
            // Without a terminal the exit frame counts, since only it comes after the last output.
            Ok(ServerMessage::Exit { .. } | ServerMessage::SessionInfo { .. }) => Event::Nothing,
            Err(_) => serde_json::from_str(text).map_or(Event::Nothing, Event::Port),
        },
        Message::Close(frame) => Event::Closed(
            frame.as_ref().map(|frame| output::clean(&frame.reason)).unwrap_or_default(),
        ),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Event::Nothing,
    })
}

async fn receive(
    stream: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
    mut first: Option<Message>,
    mode: &mut Mode<'_>,
    (stdout, stderr): (&mut (impl AsyncWrite + Unpin), &mut (impl AsyncWrite + Unpin)),
    forwards: &mut Forwards,
) -> Outcome {
    loop {
        let message = match first.take() {
            Some(message) => message,
            None => match timeout(SILENCE_MAX, stream.next()).await {
                Err(_elapsed) => return Outcome::Lost(Lost::Silent),
                Ok(None) => return Outcome::Lost(Lost::Closed(String::new())),
                Ok(Some(Err(error))) => return Outcome::Lost(Lost::Broken(Box::new(error))),
                Ok(Some(Ok(message))) => message,
            },
        };
        let is_terminal = matches!(mode, Mode::Terminal { .. });
        let written = match decode(is_terminal, &message) {
            Err(error) => return Outcome::Lost(Lost::Malformed(error)),
            Ok(Event::Closed(reason)) => return Outcome::Lost(Lost::Closed(reason)),
            Ok(Event::Exit(code)) => return Outcome::Exited(code),
            Ok(Event::Nothing) => Ok(()),
            Ok(Event::Port(change)) => {
                forwards.follow(change).await;
                Ok(())
            }
            Ok(Event::Notice(notice)) => {
                write(stderr, format!("[puck] {notice}\r\n").as_bytes()).await
            }
            Ok(Event::Stderr(bytes)) => write(stderr, bytes).await,
            Ok(Event::Stdout(bytes)) => {
                if let Mode::Terminal { modes, .. } = mode {
                    modes.read(bytes);
                }
                write(stdout, bytes).await
            }
        };
        if let Err(error) = written {
            return Outcome::Unwritten(error);
        }
    }
}

pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// How standard input is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Typing {
    Frames,
    Terminal { is_interactive: bool },
}

/// The outgoing half: standard input, signals, sizes, pings.
struct Sender<'a, S> {
    sink: S,
    stdin: &'a mut Box<dyn AsyncRead + Send + Unpin>,
    controls: &'a mut Controls,
    typing: Typing,
}

impl<S: Sink<Message> + Unpin> Sender<'_, S> {
    /// Sends until there is a reason to leave. A failure to send is not one: the receiving half learns more about it.
    async fn run(&mut self) -> Outcome {
        let mut ping = interval_at(Instant::now() + KEEPALIVE, KEEPALIVE);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; STDIN_CHUNK_BYTES];
        let mut is_open = true;
        if self.typing == (Typing::Terminal { is_interactive: true }) {
            // The terminal may have changed its size since the command was asked for.
            if let Err(outcome) = self.send(resize_message(terminal::size())).await {
                return outcome;
            }
        }
        loop {
            let done = tokio::select! {
                read = self.stdin.read(&mut buffer), if is_open => {
                    // Standard input that cannot be read any more has ended.
                    let length = read.unwrap_or(0);
                    is_open = length > 0;
                    self.typed(&buffer[..length]).await
                }
                control = self.controls.next() => match control {
                    Control::Resize(_) if self.typing == Typing::Frames => Ok(()),
                    Control::Resize(size) => self.send(resize_message(size)).await,
                    Control::Signal(signal) => Err(self.interrupted(signal).await),
                },
                _ = ping.tick() => self.send(Message::Ping(Vec::new().into())).await,
            };
            if let Err(outcome) = done {
                return outcome;
            }
        }
    }

    /// Passes on what was read from standard input; nothing at all is its end.
    async fn typed(&mut self, typed: &[u8]) -> Result<(), Outcome> {
        match (self.typing, typed) {
            (Typing::Frames, []) => self.send(Message::binary(Frame::StdinEof.encode())).await,
            (Typing::Frames, bytes) => {
                self.send(Message::binary(Frame::Stdin(bytes).encode())).await
            }
            (Typing::Terminal { is_interactive: false }, []) => {
                self.send(Message::binary(vec![END_OF_INPUT_KEY])).await
            }
            (Typing::Terminal { is_interactive: false }, bytes) => {
                self.send(Message::binary(bytes.to_vec())).await
            }
            // The terminal is gone, and its user with it.
            (Typing::Terminal { is_interactive: true }, []) => Err(Outcome::Detached),
            (Typing::Terminal { is_interactive: true }, bytes) => match detach_position(bytes) {
                None => self.send(Message::binary(bytes.to_vec())).await,
                Some(end) => {
                    if end > 0 {
                        self.send(Message::binary(bytes[..end].to_vec())).await?;
                    }
                    Err(Outcome::Detached)
                }
            },
        }
    }

    /// Sends a message, and goes on listening for signals while the server is not taking it.
    async fn send(&mut self, message: Message) -> Result<(), Outcome> {
        let mut resized = None;
        let signal = {
            let mut sending = pin!(self.sink.send(message));
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sending => match sent {
                        Ok(()) => break None,
                        Err(_) => std::future::pending().await,
                    },
                    control = self.controls.next() => match control {
                        Control::Signal(signal) => break Some(signal),
                        Control::Resize(size) => resized = Some(size),
                    },
                }
            }
        };
        match (signal, resized) {
            (Some(signal), _) => Err(self.interrupted(signal).await),
            (None, Some(size)) if self.typing != Typing::Frames => {
                Box::pin(self.send(resize_message(size))).await
            }
            (None, _) => Ok(()),
        }
    }

    /// Tells the command of a signal and gives it a moment to end. A session with a terminal is left alone: it goes on.
    async fn interrupted(&mut self, signal: Signal) -> Outcome {
        if self.typing != Typing::Frames {
            return Outcome::Detached;
        }
        let told = async {
            // Where the signal does not get through, leaving ends the command as well.
            drop(self.sink.send(signal_message(signal.name)).await);
            self.controls.signal().await
        };
        tokio::select! {
            again = told => Outcome::Interrupted(again),
            () = sleep(SIGNAL_GRACE) => Outcome::Interrupted(signal),
        }
    }
}

fn resize_message(size: TerminalSize) -> Message {
    text_message(&ClientMessage::Resize { cols: size.cols, rows: size.rows })
}

fn signal_message(name: &str) -> Message {
    text_message(&ClientMessage::Signal { signal: name.into() })
}

fn text_message(message: &ClientMessage) -> Message {
    Message::text(serde_json::to_string(message).expect("numbers and strings are JSON"))
}
