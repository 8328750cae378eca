//! Exec: the query, the frames, the text messages, the sessions.

use crate::{
    duration::{self, ParseDurationError},
    query::{Query, QueryError},
};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The most payload bytes that a server puts into one frame.
pub const FRAME_PAYLOAD_MAX: usize = 32 * 1024;

/// The most payload bytes of a frame in an HTTP exec, where a client takes each chunk it reads for one frame.
pub const HTTP_FRAME_PAYLOAD_MAX: usize = 16 * 1024;

/// An idle socket gets an empty binary message after this long, because some clients cannot ping.
pub const KEEPALIVE: Duration = Duration::from_secs(15);

/// What a query value keeps as it is: letters, digits and the marks that mean nothing in a query.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'/').remove(b'_').remove(b'~');

/// How long a process without a terminal lives on after its client is gone, by default.
pub const RUN_AFTER_DISCONNECT: Duration = Duration::from_secs(10);

/// A binary message of an exec without a terminal: one byte of stream id, then the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The exit code; after it comes nothing.
    Exit(u8),
    /// Bytes of standard error.
    Stderr(&'a [u8]),
    /// Bytes for standard input.
    Stdin(&'a [u8]),
    /// Standard input ends.
    StdinEof,
    /// Bytes of standard output.
    Stdout(&'a [u8]),
}

impl<'a> Frame<'a> {
    /// Parses a message. `None` for an empty message, which is a keep-alive.
    pub fn parse(message: &'a [u8]) -> Result<Option<Self>, FrameError> {
        let Some((id, payload)) = message.split_first() else { return Ok(None) };
        Ok(Some(match (id, payload) {
            (0, bytes) => Self::Stdin(bytes),
            (1, bytes) => Self::Stdout(bytes),
            (2, bytes) => Self::Stderr(bytes),
            (3, [code]) => Self::Exit(*code),
            (4, _) => Self::StdinEof,
            (3, _) => return Err(FrameError::ExitLength(payload.len())),
            (id, _) => return Err(FrameError::UnknownStream(*id)),
        }))
    }

    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (id, payload): (u8, &[u8]) = match self {
            Self::Stdin(bytes) => (0, bytes),
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Exit(code) => (3, std::slice::from_ref(code)),
            Self::StdinEof => (4, &[]),
        };
        let mut message = Vec::with_capacity(1 + payload.len());
        message.push(id);
        message.extend_from_slice(payload);
        message
    }
}

/// Why a binary message is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An exit frame whose payload is not one byte.
    #[error("exit frame with {0} bytes of payload, expected 1")]
    ExitLength(usize),
    /// A stream id outside 0..=4.
    #[error("unknown stream id {0}")]
    UnknownStream(u8),
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

/// What a client asks for when it starts a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecQuery {
    /// The argument vector; empty means the default shell.
    pub cmd: Vec<String>,
    /// The executable, found on `PATH` unless it has a `/`; `None` means `cmd[0]`.
    pub path: Option<String>,
    /// Additions to the environment.
    pub env: Vec<(String, String)>,
    /// The working directory; relative to the home directory.
    pub dir: Option<String>,
    /// The terminal's size, if one is wanted.
    pub tty: Option<TerminalSize>,
    /// Whether standard input is open; always so with a terminal.
    pub stdin: bool,
    /// The session to attach to, in the old way.
    pub id: Option<String>,
    /// At an attach, the byte of the output to go on at.
    pub offset: Option<u64>,
    /// How long the process lives on without a client; `Some(ZERO)` means for ever.
    pub max_run_after_disconnect: Option<Duration>,
}

/// Why a query is not an exec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecQueryError {
    /// A duration does not parse.
    #[error("parse max_run_after_disconnect")]
    Duration(#[from] ParseDurationError),
    /// A text with a NUL byte cannot be an argument, a path or an environment entry.
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
    /// `offset` is not a number of bytes.
    #[error("offset must be a number")]
    Offset,
    /// An `env` value without `=`, or with an empty key.
    #[error("env must have the form KEY=VALUE")]
    Env,
    /// The query itself does not parse.
    #[error("parse query")]
    Query(#[from] QueryError),
    /// `rows` or `cols` is not a number from 1 to 65,535.
    #[error("{0} must be a number from 1 to 65535")]
    Size(&'static str),
}

impl ExecQuery {
    /// Parses the query string of an exec request.
    pub fn parse(raw: &str) -> Result<Self, ExecQueryError> {
        Self::from_query(&Query::parse(raw)?)
    }

    /// The query string that [`ExecQuery::parse`] reads back.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut pairs: Vec<(&str, String)> = Vec::new();
        pairs.extend(self.cmd.iter().map(|arg| ("cmd", arg.clone())));
        pairs.extend(self.path.iter().map(|path| ("path", path.clone())));
        pairs.extend(self.env.iter().map(|(key, value)| ("env", format!("{key}={value}"))));
        pairs.extend(self.dir.iter().map(|dir| ("dir", dir.clone())));
        if let Some(TerminalSize { rows, cols }) = self.tty {
            pairs.extend([
                ("tty", "true".into()),
                ("rows", rows.to_string()),
                ("cols", cols.to_string()),
            ]);
        }
        if self.stdin {
            pairs.push(("stdin", "true".into()));
        }
        pairs.extend(self.id.iter().map(|id| ("id", id.clone())));
        pairs.extend(self.offset.map(|offset| ("offset", offset.to_string())));
        let life = self.max_run_after_disconnect.map(|life| format!("{}ms", life.as_millis()));
        pairs.extend(life.map(|life| ("max_run_after_disconnect", life)));
        let encoded = pairs
            .into_iter()
            .map(|(key, value)| format!("{key}={}", utf8_percent_encode(&value, PLAIN)));
        encoded.collect::<Vec<_>>().join("&")
    }

    /// The byte of the output that an attach wants to go on at.
    pub fn offset_of(query: &Query) -> Result<Option<u64>, ExecQueryError> {
        let text = query.first("offset").filter(|text| !text.is_empty());
        text.map(|text| text.parse().map_err(|_| ExecQueryError::Offset)).transpose()
    }

    /// Reads the parameters from parsed pairs, as the control socket sends them too.
    pub fn from_query(query: &Query) -> Result<Self, ExecQueryError> {
        let size = |key: &'static str, default: u16| match query.first(key) {
            None | Some("") => Ok(default),
            Some(text) => {
                text.parse().ok().filter(|size| *size > 0).ok_or(ExecQueryError::Size(key))
            }
        };
        let clean = |what: &'static str, text: &str| {
            if text.contains('\0') { Err(ExecQueryError::Nul(what)) } else { Ok(text.to_owned()) }
        };
        let default_size = TerminalSize::default();
        let tty = query.flag("tty");
        let size = TerminalSize {
            rows: size("rows", default_size.rows)?,
            cols: size("cols", default_size.cols)?,
        };
        let env = |entry: &str| {
            let entry = clean("env", entry)?;
            let (key, value) = entry
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or(ExecQueryError::Env)?;
            Ok::<_, ExecQueryError>((key.to_owned(), value.to_owned()))
        };
        let some = |what: &'static str| {
            query
                .first(what)
                .filter(|text| !text.is_empty())
                .map(|text| clean(what, text))
                .transpose()
        };
        Ok(Self {
            cmd: query.all("cmd").map(|arg| clean("cmd", arg)).collect::<Result<_, _>>()?,
            path: some("path")?,
            env: query.all("env").map(env).collect::<Result<_, _>>()?,
            dir: some("dir")?,
            tty: tty.then_some(size),
            stdin: tty || query.flag("stdin"),
            id: some("id")?,
            offset: Self::offset_of(query)?,
            max_run_after_disconnect: query
                .first("max_run_after_disconnect")
                .map(duration::parse)
                .transpose()?,
        })
    }
}

/// Text messages from a client on an exec socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// The terminal has a new size.
    Resize {
        /// Columns.
        cols: u16,
        /// Lines.
        rows: u16,
    },
    /// Send a signal to the process group: `TERM` or `SIGTERM`, in any case.
    Signal {
        /// The signal's name.
        signal: String,
    },
    /// Anything newer than this server.
    #[serde(other)]
    Unknown,
}

/// Text messages from the server on an exec socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// Something went wrong that is not the command's own failure.
    Error {
        /// What.
        message: String,
    },
    /// A command with a terminal has ended. Both members say the same; clients disagree on the name.
    Exit {
        /// The code.
        exit_code: u8,
        /// The code.
        code: u8,
    },
    /// Always the first message, on a new session and on an attached one.
    SessionInfo {
        /// A decimal number.
        session_id: String,
        /// The resolved path and its arguments.
        command: String,
        /// Unix seconds.
        created: i64,
        /// Columns; 0 without a terminal.
        cols: u16,
        /// Lines; 0 without a terminal.
        rows: u16,
        /// Whether this client started the session.
        is_owner: bool,
        /// Whether it has a terminal.
        tty: bool,
        /// How many bytes of output came before the next one; a client that counts on can attach there later.
        #[serde(default)]
        offset: u64,
    },
}

/// One session of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// A decimal number.
    pub id: String,
    /// The resolved path and its arguments.
    pub command: String,
    /// The working directory at the start.
    pub workdir: String,
    /// When it started.
    pub created: Timestamp,
    /// Output per second, averaged over the last few seconds.
    pub bytes_per_second: f64,
    /// Whether a client is attached or output came lately.
    pub is_active: bool,
    /// When it last printed or was typed to.
    pub last_activity: Timestamp,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// The answer of a session list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionList {
    /// How many.
    pub count: usize,
    /// The sessions, oldest first.
    pub sessions: Vec<Session>,
}

/// One line of the stream that answers a kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum KillEvent {
    /// The last line.
    Complete {
        /// The code with which the process ended, or `128 + signal`.
        exit_code: i32,
    },
    /// The signal could not be sent.
    Error {
        /// Why.
        message: String,
    },
    /// The process ended by itself in time.
    Exited {
        /// In words.
        message: String,
    },
    /// The process had to be killed.
    Killed {
        /// In words.
        message: String,
    },
    /// The signal was sent.
    Signal {
        /// In words.
        message: String,
        /// The signal's full name, such as `SIGTERM`.
        signal: String,
        /// The process.
        pid: i32,
    },
    /// The process did not end in time.
    Timeout {
        /// In words.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::{ClientMessage, ExecQuery, ExecQueryError, Frame, FrameError, TerminalSize};
    use std::time::Duration;

    #[test]
    fn frames_round_trip() {
        for frame in [
            Frame::Exit(130),
            Frame::Stderr(b"e"),
            Frame::Stdin(b""),
            Frame::StdinEof,
            Frame::Stdout(b"out"),
        ] {
            assert_eq!(Frame::parse(&frame.encode()), Ok(Some(frame)));
        }
        assert_eq!(Frame::parse(b""), Ok(None));
    }

    #[test]
    fn broken_frames_are_refused() {
        assert_eq!(Frame::parse(&[3]), Err(FrameError::ExitLength(0)));
        assert_eq!(Frame::parse(&[3, 0, 0, 0, 1]), Err(FrameError::ExitLength(4)));
        assert_eq!(Frame::parse(b"{"), Err(FrameError::UnknownStream(b'{')));
    }

    #[test]
    fn a_query_is_an_exec() {
        let exec = ExecQuery::parse(
            "cmd=ls&cmd=-l&path=ls&env=A=b%3Dc&dir=/tmp&tty=true&rows=30&cols=100&max_run_after_disconnect=5.0s",
        )
        .expect("well formed");
        assert_eq!(exec.cmd, ["ls", "-l"]);
        assert_eq!(exec.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(exec.tty, Some(TerminalSize { rows: 30, cols: 100 }));
        assert!(exec.stdin);
        assert_eq!(exec.max_run_after_disconnect, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_query_round_trips() {
        let exec = ExecQuery {
            cmd: vec!["sh".into(), "-c".into(), "echo \"a&b\" = ü+1\n".into(), String::new()],
            path: Some("/bin/sh".into()),
            env: vec![("A".into(), "b=c d".into())],
            dir: Some("/tmp/ x".into()),
            tty: Some(TerminalSize { rows: 30, cols: 100 }),
            stdin: true,
            id: Some("7".into()),
            offset: Some(7),
            max_run_after_disconnect: Some(Duration::from_millis(1500)),
        };
        assert_eq!(ExecQuery::parse(&exec.to_query()), Ok(exec));
        assert_eq!(ExecQuery::default().to_query(), "");
    }

    #[test]
    fn bad_queries_say_what_is_wrong() {
        for (raw, error) in [
            ("cmd=a%00b", ExecQueryError::Nul("cmd")),
            ("dir=%00", ExecQueryError::Nul("dir")),
            ("env=novalue", ExecQueryError::Env),
            ("env==x", ExecQueryError::Env),
            ("tty=true&rows=0", ExecQueryError::Size("rows")),
            ("tty=true&cols=wide", ExecQueryError::Size("cols")),
        ] {
            assert_eq!(ExecQuery::parse(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn unknown_messages_are_not_errors() {
        let message: ClientMessage =
            serde_json::from_str(r#"{"type":"dance","speed":3}"#).expect("tolerated");
        assert_eq!(message, ClientMessage::Unknown);
    }
}
