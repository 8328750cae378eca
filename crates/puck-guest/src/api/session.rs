//! Sessions: one per command, whoever watches it.
//!
//! A session outlives its clients. Its owner is one task ([`live`]), which reads the process's output into a bounded ring
//! ([`output`]), feeds its input ([`input`]) and waits for its end; clients read from the ring at their own pace. The
//! slowest attached client slows the process down; without a client the oldest output is forgotten. A client that comes back to a
//! terminal is sent what it shows ([`screen`]). A session is in the
//! table exactly as long as its process runs; a reader that is attached at the end still reads everything.
//!
//! Ids are decimal numbers that are counted up and never used twice while the agent lives.

mod descriptor;
mod input;
mod live;
mod output;
mod screen;

pub(crate) use self::{
    input::{Input, Piece},
    output::{Reader, Step},
};

use self::output::Output;
use super::{activity::Activity, sandbox::Process};
use api::exec::{FRAME_PAYLOAD_MAX, Frame, TerminalSize};
use bytes::Bytes;
use guest::container::{ProcessIo, SignalError};
use jiff::Timestamp;
use rustix::process::Signal;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

/// The most sessions that run at once.
pub(crate) const SESSIONS_MAX: usize = 1000;

/// A command, running or just ended.
#[derive(Debug)]
pub(crate) struct Session {
    /// The number.
    pub(crate) id: u64,
    /// What it is and was told.
    pub(crate) facts: Facts,
    /// `None` if none could be started.
    process: Option<Arc<dyn Process>>,
    output: Arc<Output>,
    input: Option<Input>,
    /// The size of the terminal, as the last client said.
    size: Mutex<Option<TerminalSize>>,
}

/// What is known of a session from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The resolved path and its arguments.
    pub(crate) command: String,
    /// The working directory.
    pub(crate) workdir: String,
    /// When it was started.
    pub(crate) created: Timestamp,
    /// The terminal's first size; `None` without a terminal.
    pub(crate) tty: Option<TerminalSize>,
    /// The process, for people; 0 if none could be started.
    pub(crate) pid: i32,
}

/// How a session treats its process and its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The most payload bytes of one frame of output.
    pub(crate) payload_max: usize,
    /// How long the process lives on without a client; `None` means for ever.
    pub(crate) run_after_disconnect: Option<Duration>,
}

/// A client's place in a session.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The session.
    pub(crate) session: Arc<Session>,
    /// What it shows so far, to be sent before what is left to read.
    pub(crate) shown: Vec<Bytes>,
    /// Where in its output the client begins: bytes of both streams before, without a terminal's picture.
    pub(crate) offset: u64,
    /// What is left to read of its output.
    pub(crate) reader: Reader,
    /// Whether this client started it.
    pub(crate) is_owner: bool,
}

impl Session {
    fn new(
        id: u64,
        facts: Facts,
        (process, output, input): (Option<Arc<dyn Process>>, Arc<Output>, Option<Input>),
    ) -> Self {
        let size = Mutex::new(facts.tty);
        Self { id, facts, process, output, input, size }
    }

    /// A client that goes on at a byte of the output; without one it sees what the terminal shows, or reads from what is still kept on
    /// where there is no terminal.
    pub(crate) async fn attach(self: &Arc<Self>, offset: Option<u64>) -> Attached {
        let session = Arc::clone(self);
        let size = *self.size.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(size) = size.filter(|_| offset.is_none()) else {
            let (reader, shown, offset) = Output::attach_at(&self.output, offset.unwrap_or(0));
            return Attached { session, shown, offset, reader, is_owner: false };
        };
        // What is printed meanwhile waits for this reader.
        let (reader, kept, offset) = Output::attach_live(&self.output);
        let frames = kept.clone();
        let rendering = tokio::task::spawn_blocking(move || screen::render(size, &frames.concat()));
        let shown = match rendering.await {
            Ok(shown) => pieces(shown.into()),
            // A model that does not survive what was printed; the client's own terminal may.
            Err(error) => {
                tracing::error!(%error, session = self.id, "render a terminal");
                kept
            }
        };
        Attached { session, shown, offset, reader, is_owner: false }
    }

    /// Where bytes for the process go; `None` if its standard input is empty.
    pub(crate) fn input(&self) -> Option<&Input> {
        self.input.as_ref()
    }

    /// Sends a signal to the process group.
    pub(crate) async fn signal(&self, signal: i32) -> Result<(), SignalError> {
        match &self.process {
            Some(process) => process.signal_group(signal).await,
            None => Err(SignalError::Ended),
        }
    }

    /// Gives the terminal a new size, if there is one.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Some(known) = &mut *self.size.lock().unwrap_or_else(PoisonError::into_inner) {
            *known = size;
        }
        if let Some(process) = self.process.as_ref().filter(|_| self.facts.tty.is_some())
            && let Err(error) = process.resize(size.rows, size.cols)
        {
            tracing::debug!(%error, session = self.id, "resize a terminal");
        }
    }

    /// Waits for the process to end: its exit code.
    pub(crate) async fn ended(&self) -> u8 {
        match &self.process {
            Some(process) => process.wait().await,
            None => self.output.ended().unwrap_or_default(),
        }
    }

    /// The entry of a list.
    pub(crate) fn entry(&self) -> api::exec::Session {
        let flow = self.output.flow();
        api::exec::Session {
            id: self.id.to_string(),
            command: self.facts.command.clone(),
            workdir: self.facts.workdir.clone(),
            created: self.facts.created,
            bytes_per_second: flow.bytes_per_second,
            is_active: flow.is_active,
            last_activity: flow.last.max(self.facts.created),
            tty: self.facts.tty.is_some(),
        }
    }
}

/// Bytes of each frame of output that are no output.
fn prefix(facts: &Facts) -> usize {
    usize::from(facts.tty.is_none())
}

/// In messages of a size that clients take.
fn pieces(mut bytes: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        pieces.push(bytes.split_to(bytes.len().min(FRAME_PAYLOAD_MAX)));
    }
    pieces
}

/// Every running session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<RwLock<Table>>);

#[derive(Debug, Default)]
struct Table {
    running: BTreeMap<u64, Arc<Session>>,
    last_id: u64,
}

/// What an id means now.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// A running session.
    Running(Arc<Session>),
    /// One that has ended.
    Ended,
    /// None that ever was.
    Unknown,
}

impl Sessions {
    /// How many run.
    pub(crate) fn count(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).running.len()
    }

    /// The running ones, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<Session>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).running.values().cloned().collect()
    }

    /// What the text of an id means.
    pub(crate) fn find(&self, id: &str) -> Lookup {
        // Only the canonical spelling of a number is an id: no sign, no leading zero.
        let Some(number) = id.parse().ok().filter(|number: &u64| number.to_string() == id) else {
            return Lookup::Unknown;
        };
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match table.running.get(&number) {
            Some(session) => Lookup::Running(Arc::clone(session)),
            None if (1..=table.last_id).contains(&number) => Lookup::Ended,
            None => Lookup::Unknown,
        }
    }

    /// Takes care of a process that has just been started, and attaches its first client.
    pub(crate) fn adopt(
        &self,
        process: Arc<dyn Process>,
        io: ProcessIo,
        facts: Facts,
        terms: Terms,
        activity: &Arc<Activity>,
    ) -> std::io::Result<Attached> {
        let (sources, stdin) = match io {
            ProcessIo::Pipes { stdin, stdout, stderr } => {
                (output::Sources::pipes(stdout, stderr, terms.payload_max)?, stdin)
            }
            ProcessIo::Terminal { master } => {
                let writing = master.try_clone()?;
                (output::Sources::terminal(master, terms.payload_max)?, Some(writing))
            }
        };
        let (input, feeder) =
            stdin.map(|stdin| Input::open(stdin, Arc::clone(activity))).transpose()?.unzip();
        let output = Output::new(prefix(&facts));
        let reader = Output::attach(&output);
        let life = live::Life {
            process: Arc::clone(&process),
            sources,
            feeder,
            output: Arc::clone(&output),
            run_after_disconnect: terms.run_after_disconnect,
            // SIGHUP is what a terminal that goes away sends; without one SIGTERM is the polite word.
            farewell: if facts.tty.is_some() { Signal::HUP } else { Signal::TERM },
            activity: Arc::clone(activity),
        };
        let session = self.insert(|id| Session::new(id, facts, (Some(process), output, input)));
        let (table, ending) = (self.clone(), Arc::clone(&session));
        tokio::spawn(async move {
            let code = life.run().await;
            // Off the table first: whoever has read the exit code must not find the session any more.
            table.remove(ending.id);
            ending.output.end(code);
        });
        Ok(Attached { session, shown: Vec::new(), offset: 0, reader, is_owner: true })
    }

    /// A session whose process could not be started: it says why on standard error and has ended with `code`.
    pub(crate) fn stillborn(&self, facts: Facts, reason: &str, code: u8) -> Attached {
        let output = Output::new(prefix(&facts));
        let reader = Output::attach(&output);
        output.push(match facts.tty {
            Some(_) => format!("{reason}\r\n").into_bytes().into(),
            None => Frame::Stderr(format!("{reason}\n").as_bytes()).encode().into(),
        });
        output.end(code);
        let session = self.insert(|id| Session::new(id, facts, (None, output, None)));
        self.remove(session.id);
        Attached { session, shown: Vec::new(), offset: 0, reader, is_owner: true }
    }

    fn insert(&self, make: impl FnOnce(u64) -> Session) -> Arc<Session> {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.last_id += 1;
        let session = Arc::new(make(table.last_id));
        table.running.insert(session.id, Arc::clone(&session));
        session
    }

    fn remove(&self, id: u64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).running.remove(&id);
    }
}
