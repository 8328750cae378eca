//! One service: kept running by a task of its own, for as long as its container lives.
//!
//! ```text
//!                 start                        runs
//! stopped ----------------> starting ----------------> running --asked to stop--> stopping --> stopped
//!    ^                          ^                          |
//!    |                          | after a pause            | ends
//!    +--- ended with code 0 ----|-------- failed <---------+ (with any other code)
//! ```
//!
//! The pause doubles with each crash up to a minute, and is short again once the service has run for a minute. The process
//! is a child of the container's zygote, known by its handle and never by its number.

use super::log::Log;
use crate::api::{
    exec::{environment, explain},
    sandbox::{Process, Sandbox},
};
use api::service::{
    Service as Shown, ServiceDefinition, ServiceEvent, ServiceHappening, ServiceName, ServiceState,
    ServiceStatus,
};
use guest::{
    container::{Command, ProcessIo, SignalError, Stdio, User},
    protocol::Identity,
};
use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use std::{convert::Infallible, os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{broadcast, watch},
    time::{Instant, timeout},
};

/// The pauses before a service that crashed is started again.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A service that ran for so long did not crash at its start.
const STEADY: Duration = Duration::from_secs(60);

/// The longest line that is told as one.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// What is printed without a line's end is told after this long.
const LINE_WAIT: Duration = Duration::from_millis(250);

/// How long what a process printed is still read when it has ended and its children keep its pipes open.
const DRAIN: Duration = Duration::from_millis(500);

/// Events that wait for a slow reader; more are dropped, and it is told.
const EVENTS_MAX: usize = 1024;

/// What somebody wants of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// That it runs. Another number is another start.
    Running(u64),
    /// That it does not; how long it may take to end before it is killed.
    Stopped(Duration),
}

/// What outlives a definition that is replaced.
#[derive(Debug, Clone)]
pub(super) struct Voice {
    pub(super) log: Arc<Log>,
    pub(super) events: broadcast::Sender<ServiceEvent>,
}

impl Voice {
    pub(super) fn new(log: Log) -> Self {
        Self { log: Arc::new(log), events: broadcast::Sender::new(EVENTS_MAX) }
    }

    /// Tells whoever follows. Nobody has to.
    fn tell(&self, what: ServiceHappening) {
        let timestamp = Timestamp::now().as_millisecond();
        drop(self.events.send(ServiceEvent { what, timestamp }));
    }

    fn print(&self, is_error: bool, data: String) {
        self.log.write(if is_error { "stderr" } else { "stdout" }, &data);
        self.tell(if is_error {
            ServiceHappening::Stderr { data }
        } else {
            ServiceHappening::Stdout { data }
        });
    }
}

/// A service under one definition.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: ServiceName,
    pub(super) definition: ServiceDefinition,
    pub(super) voice: Voice,
    wanted: watch::Sender<Wanted>,
    state: watch::Sender<State>,
    /// Whether its container has ended, and with it its task.
    is_over: watch::Sender<bool>,
}

#[derive(Debug, Clone, Default)]
struct State {
    status: ServiceStatus,
    process: Option<Arc<dyn Process>>,
    started_at: Option<Timestamp>,
    error: Option<String>,
    restart_count: u32,
    next_restart_at: Option<Timestamp>,
}

/// How a process ended.
enum Ended {
    /// By itself.
    Alone(u8),
    /// Because it was asked to.
    Asked(u8),
}

impl Service {
    pub(super) fn new(
        name: ServiceName,
        definition: ServiceDefinition,
        voice: Voice,
        wanted: Wanted,
    ) -> Arc<Self> {
        let (wanted, state) = (watch::Sender::new(wanted), watch::Sender::default());
        let is_over = watch::Sender::new(false);
        Arc::new(Self { name, definition, voice, wanted, state, is_over })
    }

    /// As the API shows it.
    pub(super) fn shown(&self) -> Shown {
        let state = self.state.borrow().clone();
        Shown {
            name: self.name.clone(),
            definition: self.definition.clone(),
            state: ServiceState {
                name: self.name.clone(),
                status: state.status,
                pid: state.process.map(|process| process.pid()),
                started_at: state.started_at.map(|time| time.to_string()),
                error: state.error,
                restart_count: state.restart_count,
                next_restart_at: state.next_restart_at.map(|time| time.to_string()),
            },
        }
    }

    pub(super) fn status(&self) -> ServiceStatus {
        self.state.borrow().status
    }

    /// Whether it is being started, or was less than `time` ago.
    pub(super) fn started_within(&self, time: Duration) -> bool {
        let state = self.state.borrow();
        match (state.status, state.started_at) {
            (ServiceStatus::Starting, _) => true,
            (ServiceStatus::Running, Some(at)) => {
                Timestamp::now().duration_since(at).unsigned_abs() < time
            }
            _ => false,
        }
    }

    /// Whether somebody wants it to run.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(*self.wanted.borrow(), Wanted::Running(_))
    }

    /// Starts it, unless it is wanted already.
    pub(super) fn start(&self) {
        self.wanted.send_if_modified(|wanted| {
            let is_stopped = matches!(wanted, Wanted::Stopped(_));
            if is_stopped {
                *wanted = Wanted::Running(0);
            }
            is_stopped
        });
    }

    /// Starts it anew, also out of a pause.
    pub(super) fn restart(&self) {
        self.wanted.send_modify(|wanted| {
            *wanted = match wanted {
                Wanted::Running(number) => Wanted::Running(*number + 1),
                Wanted::Stopped(_) => Wanted::Running(0),
            };
        });
    }

    /// Stops it; a process has so long to end by itself.
    pub(super) fn stop(&self, grace: Duration) {
        self.wanted.send_replace(Wanted::Stopped(grace));
    }

    /// Waits until it has ended after a stop, or its container has, or somebody wants it to run again.
    pub(super) async fn stopped(&self) {
        let (mut state, mut over) = (self.state.subscribe(), self.is_over.subscribe());
        let mut wanted = self.wanted.subscribe();
        // The senders live as long as this service.
        tokio::select! {
            _ = state.wait_for(|state| state.status == ServiceStatus::Stopped) => {}
            _ = over.wait_for(|is_over| *is_over) => {}
            _ = wanted.wait_for(|wanted| matches!(wanted, Wanted::Running(_))) => {}
        }
    }

    /// Its container has ended, or another has its name.
    pub(super) fn over(&self) {
        self.is_over.send_replace(true);
    }

    /// Sends a signal to the process and its group; false if there is none.
    pub(super) async fn signal(&self, signal: i32) -> Result<bool, SignalError> {
        let process = self.state.borrow().process.clone();
        match process {
            Some(process) => match process.signal_group(signal).await {
                Ok(()) => Ok(true),
                Err(SignalError::Ended) => Ok(false),
                Err(error) => Err(error),
            },
            None => Ok(false),
        }
    }

    /// Waits until it runs; with a port, until `is_open` says that it is open. False if it never will, because it is over.
    pub(super) async fn ready(&self, is_open: impl Fn(u16) -> bool) -> bool {
        const LOOK: Duration = Duration::from_millis(100);
        let mut over = self.is_over.subscribe();
        let ready = async {
            loop {
                let mut state = self.state.subscribe();
                drop(state.wait_for(|state| state.status == ServiceStatus::Running).await);
                match self.definition.http_port {
                    Some(port) if !is_open(port) => tokio::time::sleep(LOOK).await,
                    _ => return,
                }
            }
        };
        tokio::select! {
            () = ready => true,
            _ = over.wait_for(|is_over| *is_over) => false,
        }
    }

    /// Keeps it running in a container. `ready` completes when what it needs is ready.
    pub(super) async fn run<F: Future<Output = ()>>(
        &self,
        sandbox: &dyn Sandbox,
        identity: &watch::Receiver<Option<Identity>>,
        ready: impl Fn() -> F,
    ) {
        let mut wanted = self.wanted.subscribe();
        let mut pause = PAUSE_FIRST;
        loop {
            let now = *wanted.borrow_and_update();
            if let Wanted::Stopped(_) = now {
                self.state.send_replace(State::default());
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
            self.state.send_modify(|state| {
                state.status = ServiceStatus::Starting;
                state.next_restart_at = None;
            });
            tokio::select! {
                () = ready() => {}
                _ = wanted.changed() => continue,
            }
            let begin = Instant::now();
            let error = match self.once(sandbox, identity, &mut wanted).await {
                Ok(Ended::Asked(exit_code)) => {
                    self.voice.tell(ServiceHappening::Stopped { exit_code });
                    pause = PAUSE_FIRST;
                    continue;
                }
                Ok(Ended::Alone(exit_code)) => {
                    self.voice.tell(ServiceHappening::Exit { exit_code });
                    if exit_code == 0 {
                        self.state.send_replace(State::default());
                        if wanted.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                    format!("exited with code {exit_code}")
                }
                Err(reason) => reason,
            };
            if begin.elapsed() >= STEADY {
                pause = PAUSE_FIRST;
            }
            self.failed(error, pause);
            tokio::select! {
                () = tokio::time::sleep(pause) => self.state.send_modify(|state| state.restart_count += 1),
                _ = wanted.changed() => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn failed(&self, error: String, pause: Duration) {
        let pause = SignedDuration::try_from(pause).unwrap_or_default();
        self.state.send_modify(|state| {
            state.status = ServiceStatus::Failed;
            state.process = None;
            state.started_at = None;
            state.error = Some(error);
            state.next_restart_at = Timestamp::now().checked_add(pause).ok();
        });
    }

    /// Runs the process to its end. An error is that it could not be started.
    async fn once(
        &self,
        sandbox: &dyn Sandbox,
        identity: &watch::Receiver<Option<Identity>>,
        wanted: &mut watch::Receiver<Wanted>,
    ) -> Result<Ended, String> {
        self.voice.log.begin();
        let (process, io) = match sandbox.spawn(self.command(identity)).await {
            Ok(started) => started,
            Err(error) => {
                let (reason, exit_code) = explain(&error, &self.definition.cmd);
                self.voice.print(true, format!("{reason}\n"));
                self.voice.tell(ServiceHappening::Exit { exit_code });
                return Err(reason);
            }
        };
        self.state.send_modify(|state| {
            state.status = ServiceStatus::Running;
            state.process = Some(process.clone());
            state.started_at = Some(Timestamp::now());
            state.error = None;
        });
        self.voice.tell(ServiceHappening::Started);
        let ended = async {
            let code = tokio::select! {
                code = process.wait() => code,
                never = self.end(&*process, wanted) => match never {},
            };
            if self.status() == ServiceStatus::Stopping {
                Ended::Asked(code)
            } else {
                Ended::Alone(code)
            }
        };
        let print = async {
            let ProcessIo::Pipes { stdout, stderr, .. } = io else { return };
            tokio::join!(self.read(stdout, false), self.read(stderr, true));
        };
        let mut print = std::pin::pin!(print);
        let mut ended = std::pin::pin!(ended);
        let ended = tokio::select! {
            ended = &mut ended => {
                drop(timeout(DRAIN, print).await);
                ended
            }
            () = &mut print => ended.await,
        };
        self.state.send_modify(|state| state.process = None);
        Ok(ended)
    }

    fn command(&self, identity: &watch::Receiver<Option<Identity>>) -> Command {
        let definition = &self.definition;
        let variables: Vec<(String, String)> =
            definition.env.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let identity = identity.borrow();
        let sprite = identity.as_ref().map(|identity| &identity.environment);
        Command {
            argv: std::iter::once(&definition.cmd).chain(&definition.args).cloned().collect(),
            path: None,
            env: environment::of(sprite, &variables, false),
            dir: Some(environment::dir(definition.dir.as_deref())),
            user: User::Sprite,
            stdio: Stdio::Pipes { stdin: false },
        }
    }

    /// Ends the process when somebody wants that: with a polite signal, and after a grace with `SIGKILL`.
    async fn end(&self, process: &dyn Process, wanted: &mut watch::Receiver<Wanted>) -> Infallible {
        if wanted.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.state.send_modify(|state| state.status = ServiceStatus::Stopping);
        self.voice.tell(ServiceHappening::Stopping);
        let mut signal = Signal::TERM;
        loop {
            if let Err(error) = process.signal_group(signal.as_raw()).await {
                tracing::debug!(%error, service = %self.name, "end a service");
            }
            let grace = match *wanted.borrow_and_update() {
                Wanted::Stopped(grace) => grace,
                Wanted::Running(_) => super::STOP_TIMEOUT,
            };
            tokio::select! {
                () = tokio::time::sleep(grace) => signal = Signal::KILL,
                // Somebody is less patient than before.
                _ = wanted.changed() => {}
            }
        }
    }

    /// Tells what a stream says, line by line, to its end.
    async fn read(&self, stream: OwnedFd, is_error: bool) {
        let mut stream = match pipe::Receiver::from_owned_fd(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!(%error, service = %self.name, "read what a service prints");
                return;
            }
        };
        let mut buffer = Vec::with_capacity(LINE_BYTES_MAX);
        loop {
            // A service that says nothing wakes nobody.
            let patience = if buffer.is_empty() { Duration::MAX } else { LINE_WAIT };
            let is_over = match timeout(patience, stream.read_buf(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => true,
                Ok(Ok(_)) => false,
                Err(_silent) => {
                    self.tell_lines(&mut buffer, is_error, true);
                    continue;
                }
            };
            self.tell_lines(&mut buffer, is_error, is_over);
            if is_over {
                return;
            }
        }
    }

    /// Tells the lines that are whole, or too long to wait for the rest of; with `all` also the rest.
    fn tell_lines(&self, buffer: &mut Vec<u8>, is_error: bool, all: bool) {
        let mut told = 0;
        while told < buffer.len() {
            let rest = &buffer[told..];
            let end = rest.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let length = match end {
                Some(end) => end.min(LINE_BYTES_MAX),
                None if all || rest.len() >= LINE_BYTES_MAX => rest.len().min(LINE_BYTES_MAX),
                None => break,
            };
            let line = String::from_utf8_lossy(&rest[..length]).into_owned();
            self.voice.print(is_error, line);
            told += length;
        }
        buffer.drain(..told);
    }
}
