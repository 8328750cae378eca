//! Commands in a sprite: started, watched to their end, left running, found again.
//!
//! A command without a terminal is over when its connection is: the server ends it soon after. A session with a terminal
//! lives on in the sprite. The client leaves it on Ctrl+\ and says how to come back; when the connection drops, the client
//! tries for a while to come back by itself.
//!
//! Parts: [`socket`] opens the connection, [`pump`] moves bytes between it and the process's own streams, [`http`] does the
//! same over a plain request where web sockets do not get through, [`controls`] brings what arrives beside the streams:
//! signals, and a new size of the terminal.

mod controls;
mod http;
mod pump;
mod socket;

#[cfg(test)]
mod tests;

use crate::{
    client::{Client, encode},
    exit::Exit,
    output::{self, OutputError},
    spinner,
    terminal::{self, Modes, RawMode},
    transport::TransportError,
    tunnel::Forwards,
};
use api::{exec::ExecQuery, name::SpriteName};
use base::backoff::Backoff;
use controls::{Controls, Signal};
pub(crate) use pump::Streams;
use pump::{Lost, Mode, Outcome};
use socket::Socket;
use std::{io, time::Duration};
use tokio::io::AsyncWriteExt;

/// Waits between the tries to come back to a session: about 20 s in all.
const RECONNECT: (Duration, Duration, u32) =
    (Duration::from_millis(250), Duration::from_secs(4), 8);

/// Why a command's end is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    /// The connection broke while the command ran.
    #[error("the connection was lost before the command ended")]
    Lost(#[source] Lost),
    /// The terminal refuses raw mode.
    #[error("switch the terminal to raw mode")]
    Raw(#[source] io::Error),
    /// This process's signals cannot be listened to.
    #[error("listen to signals")]
    Signals(#[source] io::Error),
    /// A session that ended while the client was away.
    #[error("session {id} of {sprite} has ended")]
    SessionEnded { sprite: SpriteName, id: String },
    /// A session whose connection does not come back.
    #[error(
        "the connection to session {id} was lost; it may still be running: puck attach {id} -s {sprite}"
    )]
    SessionLost { sprite: SpriteName, id: String },
    /// Standard output or standard error did not take what the command printed.
    #[error("write what the command printed")]
    Write(#[source] io::Error),
}

/// Runs a command without a terminal to its end, with this process's streams. With `plain_request` no web socket is tried.
pub(crate) async fn run(
    client: &Client,
    sprite: &SpriteName,
    query: &ExecQuery,
    plain_request: bool,
    forwards: Forwards,
) -> anyhow::Result<Exit> {
    begin(client, sprite, query, plain_request, (Streams::of_process(), forwards)).await
}

/// The same with other streams.
pub(crate) async fn run_with(
    client: &Client,
    sprite: &SpriteName,
    query: &ExecQuery,
    streams: Streams,
) -> anyhow::Result<Exit> {
    begin(client, sprite, query, false, (streams, Forwards::none())).await
}

async fn begin(
    client: &Client,
    sprite: &SpriteName,
    query: &ExecQuery,
    plain_request: bool,
    (mut streams, mut forwards): (Streams, Forwards),
) -> anyhow::Result<Exit> {
    let mut opened = None;
    if !plain_request {
        match open(client, sprite, None, query).await {
            Ok(socket) => opened = Some(socket),
            Err(error) if error.is_worth_a_plain_request() => {
                client
                    .endpoint()
                    .tell(format_args!("no web socket ({error}), trying a plain request"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    // Only from here on a signal is for the command; before, it ends this process as usual.
    let mut controls = Controls::of_process().map_err(ExecError::Signals)?;
    let outcome = match opened {
        Some(mut socket) => {
            pump::pump(&mut socket, Mode::Frames, &mut streams, &mut controls, &mut forwards).await
        }
        None => http::run(client.endpoint(), sprite, query, &mut streams, &mut controls).await?,
    };
    finish(outcome, controls.received())
}

/// Runs a command with a terminal until it ends or the user leaves it.
pub(crate) async fn run_terminal(
    client: &Client,
    sprite: &SpriteName,
    query: &ExecQuery,
    forwards: Forwards,
) -> anyhow::Result<Exit> {
    let socket = open(client, sprite, None, query).await?;
    converse(client, sprite, socket, forwards).await
}

/// Comes back to a session. One without a terminal is shown from the start of what is kept of its output.
pub(crate) async fn attach(
    client: &Client,
    sprite: &SpriteName,
    id: &str,
    mut forwards: Forwards,
) -> anyhow::Result<Exit> {
    let query = ExecQuery { tty: Some(terminal::size()), stdin: true, ..ExecQuery::default() };
    let mut socket = open(client, sprite, Some(id), &query).await?;
    if socket.session().is_some_and(|session| session.tty) {
        return converse(client, sprite, socket, forwards).await;
    }
    let mut controls = Controls::of_process().map_err(ExecError::Signals)?;
    let mut streams = Streams::of_process();
    let outcome =
        pump::pump(&mut socket, Mode::Frames, &mut streams, &mut controls, &mut forwards).await;
    finish(outcome, controls.received())
}

async fn open(
    client: &Client,
    sprite: &SpriteName,
    session: Option<&str>,
    query: &ExecQuery,
) -> Result<Socket, TransportError> {
    let target = target(sprite, session, query);
    spinner::during(format!("Waking {sprite}"), Socket::open(client.endpoint(), &target)).await
}

/// The path and query of a new command, or of a session.
fn target(sprite: &SpriteName, session: Option<&str>, query: &ExecQuery) -> String {
    let session = session.map(|id| format!("/{}", encode(id))).unwrap_or_default();
    format!("/v1/sprites/{sprite}/exec{session}?{}", query.to_query())
}

/// Connects the user's terminal with a session until it ends, the user leaves, or the connection is lost for good.
async fn converse(
    client: &Client,
    sprite: &SpriteName,
    mut socket: Socket,
    mut forwards: Forwards,
) -> anyhow::Result<Exit> {
    let id = socket.session().map(|session| session.id.clone());
    let mut streams = Streams::of_process();
    let mut controls = Controls::of_process().map_err(ExecError::Signals)?;
    let mut modes = Modes::default();
    let raw = RawMode::enter().map_err(ExecError::Raw)?;
    let is_interactive = raw.is_some();
    let end = loop {
        let mode = Mode::Terminal { is_interactive, modes: &mut modes };
        let pumped =
            pump::pump(&mut socket, mode, &mut streams, &mut controls, &mut forwards).await;
        match (pumped, &id) {
            (Outcome::Lost(lost), Some(id)) if is_interactive => {
                client.endpoint().tell(format_args!("connection lost: {lost}\r"));
                match reconnect(client, sprite, id, &mut streams, &mut controls).await {
                    Ok(Some(reconnected)) => socket = reconnected,
                    Ok(None) => break Ok(Outcome::Detached),
                    Err(error) => break Err(error),
                }
            }
            (outcome, _) => break Ok(outcome),
        }
    };
    if matches!(end, Ok(Outcome::Exited(128..))) && !modes.is_at_line_start() {
        // A program that was killed leaves its last line as it is, and the shell's prompt would stand behind it.
        output::note("\r\n");
    } else if !matches!(end, Ok(Outcome::Exited(_))) {
        // The program still runs or went without a word, so what it did to the terminal is undone for it. A terminal that
        // does not take this is gone.
        drop(streams.stdout.write_all(modes.reset().as_bytes()).await);
        drop(streams.stdout.flush().await);
    }
    drop(raw);
    match (end?, id) {
        (Outcome::Detached, Some(id)) => {
            output::note(&format!(
                "\nDetached from session {id}. Come back with: puck attach {id} -s {sprite}\n"
            ));
            Ok(Exit::SUCCESS)
        }
        (outcome, _) => finish(outcome, controls.received()),
    }
}

/// Tries to come back to a session whose connection dropped. `None` if the user gives up first.
async fn reconnect(
    client: &Client,
    sprite: &SpriteName,
    id: &str,
    streams: &mut Streams,
    controls: &mut Controls,
) -> Result<Option<Socket>, ExecError> {
    output::note(&format!(
        "\r\n[puck] connection lost, reconnecting to session {id} (Ctrl+\\ to leave)\r\n"
    ));
    let query = ExecQuery { tty: Some(terminal::size()), stdin: true, ..ExecQuery::default() };
    let target = target(sprite, Some(id), &query);
    let (first, most, tries) = RECONNECT;
    let retry = async {
        for wait in Backoff::new(first, most, tries) {
            match Socket::open(client.endpoint(), &target).await {
                Ok(socket) => return Ok(Some(socket)),
                Err(TransportError::Refused(refusal)) if refusal.status < 500 => {
                    return Err(ExecError::SessionEnded { sprite: sprite.clone(), id: id.into() });
                }
                Err(error) => client.endpoint().tell(format_args!("{error}\r")),
            }
            tokio::time::sleep(wait).await;
        }
        Err(ExecError::SessionLost { sprite: sprite.clone(), id: id.into() })
    };
    tokio::select! {
        reconnected = retry => reconnected,
        () = pump::leave_key(&mut streams.stdin) => Ok(None),
        _ = controls.signal() => Ok(None),
    }
}

/// How this process ends after an outcome, or the error that it is.
fn finish(outcome: Outcome, received: Option<Signal>) -> anyhow::Result<Exit> {
    match outcome {
        // A shell stops its loop only when the program itself ends by the signal.
        Outcome::Exited(code) if received.is_some_and(|signal| 128 + signal.number == code) => {
            Ok(Exit::Signal(code - 128))
        }
        Outcome::Detached => Ok(Exit::SUCCESS),
        Outcome::Exited(code) => Ok(Exit::Code(code)),
        Outcome::Interrupted(Signal { number, .. }) => Ok(Exit::Signal(number)),
        Outcome::Lost(lost) => Err(ExecError::Lost(lost).into()),
        Outcome::Unwritten(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(OutputError::Closed.into())
        }
        Outcome::Unwritten(error) => Err(ExecError::Write(error).into()),
    }
}
