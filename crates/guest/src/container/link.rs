//! The agent's end of the socket to the zygote.
//!
//! Requests are sent by whoever makes them; one task receives all replies and hands them out. When the connection ends, the
//! container has died: everyone who waits is told, and everyone who comes later too.

use super::{SpawnError, command::Process};
use crate::{
    wire::{self, Packet, Received},
    zygote::message::{Program, Reply, Request, SignalOutcome},
};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{oneshot, watch},
};

/// The socket, and who waits for what.
#[derive(Debug)]
pub(crate) struct Link {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    ended: bool,
    starting: HashMap<u64, oneshot::Sender<Result<Started, SpawnError>>>,
    running: HashMap<u64, watch::Sender<Option<u8>>>,
    signals: HashMap<u64, oneshot::Sender<SignalOutcome>>,
}

#[derive(Debug)]
struct Started {
    pid: i32,
    resolved: String,
    master: Option<OwnedFd>,
    exit: watch::Receiver<Option<u8>>,
}

/// What became of a signal.
pub(crate) type SignalAnswer = SignalOutcome;

impl Link {
    /// A link over this socket, which must be non-blocking. [`Link::receive`] must run for anything to be answered.
    pub(crate) fn new(socket: AsyncFd<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { socket, next: AtomicU64::new(1), waiting: Mutex::default() })
    }

    /// Starts a program; `streams` are its three streams, or none for a terminal.
    pub(crate) async fn spawn(
        self: &Arc<Self>,
        program: Program,
        streams: &[OwnedFd],
    ) -> Result<(Process, Option<OwnedFd>), SpawnError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let packet = Packet::new(&Request::Spawn { id, program }).map_err(|error| lost(&error))?;
        let (answer, started) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.ended {
                return Err(died());
            }
            waiting.starting.insert(id, answer);
        }
        let streams: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.send(&packet, &streams).await {
            self.waiting().starting.remove(&id);
            return Err(lost(&error));
        }
        let Started { pid, resolved, master, exit } = started.await.map_err(|_| died())??;
        let terminal =
            master.as_ref().map(OwnedFd::try_clone).transpose().map_err(|error| lost(&error))?;
        let terminal = terminal.map(Arc::new);
        Ok((Process { id, pid, resolved, terminal, exit, link: Arc::clone(self) }, master))
    }

    /// Sends a signal to the group of the process with this number.
    pub(crate) async fn signal(&self, id: u64, signal: i32) -> SignalAnswer {
        let serial = self.next.fetch_add(1, Ordering::Relaxed);
        let Ok(packet) = Packet::new(&Request::Signal { id, serial, signal }) else {
            return SignalOutcome::Ended;
        };
        let (answer, outcome) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.ended {
                return SignalOutcome::Ended;
            }
            waiting.signals.insert(serial, answer);
        }
        if self.send(&packet, &[]).await.is_err() {
            self.waiting().signals.remove(&serial);
            return SignalOutcome::Ended;
        }
        outcome.await.unwrap_or(SignalOutcome::Ended)
    }

    async fn send(&self, packet: &Packet, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, |socket| packet.send(socket.as_fd(), descriptors))
            .await
    }

    /// Receives one reply, and the descriptors that came with it; `None` at the end of the connection.
    pub(crate) async fn receive_one(&self) -> io::Result<Option<Received<Reply>>> {
        self.socket.async_io(Interest::READABLE, |socket| wire::receive(socket.as_fd())).await
    }

    /// Receives replies until the connection ends, then tells everyone who still waits.
    pub(crate) async fn receive(&self) {
        loop {
            match self.receive_one().await {
                Ok(Some(Received { message: Ok(reply), descriptors })) => {
                    self.hand_out(reply, descriptors);
                }
                Ok(Some(Received { message: Err(error), .. })) => {
                    tracing::warn!(%error, "the zygote sent something that is not a reply");
                }
                Ok(None) => break,
                // It was killed before it had read a request.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => {
                    tracing::warn!(%error, "the connection to the zygote failed");
                    break;
                }
            }
        }
        let mut waiting = self.waiting();
        // Dropping the senders wakes everyone who waits.
        *waiting = Waiting { ended: true, ..Waiting::default() };
    }

    fn hand_out(&self, reply: Reply, mut descriptors: Vec<OwnedFd>) {
        let mut waiting = self.waiting();
        match reply {
            Reply::Started { id, pid, resolved } => {
                let Some(answer) = waiting.starting.remove(&id) else { return };
                let (code, exit) = watch::channel(None);
                waiting.running.insert(id, code);
                // Whoever asked may have gone; the process runs all the same.
                drop(answer.send(Ok(Started { pid, resolved, master: descriptors.pop(), exit })));
            }
            Reply::Failed { id, error } => {
                if let Some(answer) = waiting.starting.remove(&id) {
                    drop(answer.send(Err(error)));
                }
            }
            Reply::Exited { id, code } => {
                if let Some(exit) = waiting.running.remove(&id) {
                    exit.send_replace(Some(code));
                }
            }
            Reply::Signalled { serial, outcome } => {
                if let Some(answer) = waiting.signals.remove(&serial) {
                    let _ = answer.send(outcome);
                }
            }
            Reply::Forked | Reply::Built | Reply::BuildFailed { .. } => {
                tracing::warn!("the zygote sent a reply of its start again");
            }
        }
    }

    /// No code panics while it holds the lock, so a poisoned one is whole.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn died() -> SpawnError {
    SpawnError::Container { reason: "it has died".into() }
}

fn lost(error: &io::Error) -> SpawnError {
    SpawnError::Container { reason: error.to_string() }
}
