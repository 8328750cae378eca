//! Bytes on their way to a process. The queue is bounded in bytes and pieces; whoever writes waits when it is full.

use super::descriptor;
use crate::api::activity::Activity;
use bytes::{Buf, Bytes};
use std::{io, os::fd::OwnedFd, sync::Arc};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

/// The most bytes that wait, unless a single piece is larger.
const BYTES_MAX: usize = 1024 * 1024;

/// The most pieces that wait.
const PIECES_MAX: usize = 64;

/// The writing end that clients share.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pieces: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// What a client sends to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes.
    Bytes(Bytes),
    /// The end of input.
    End,
}

#[derive(Debug)]
struct Waiting {
    piece: Piece,
    _room: Option<OwnedSemaphorePermit>,
}

/// The other end, which writes to the process.
pub(super) struct Feeder {
    fd: AsyncFd<OwnedFd>,
    pieces: mpsc::Receiver<Waiting>,
    activity: Arc<Activity>,
}

impl Input {
    /// A queue in front of a descriptor.
    pub(super) fn open(fd: OwnedFd, activity: Arc<Activity>) -> io::Result<(Self, Feeder)> {
        let fd = descriptor::watch(fd, Interest::WRITABLE)?;
        let (tx, pieces) = mpsc::channel(PIECES_MAX);
        let input = Self { pieces: tx, room: Arc::new(Semaphore::new(BYTES_MAX)) };
        Ok((input, Feeder { fd, pieces, activity }))
    }

    /// Queues a piece, waiting while the queue is full. What is written after the end of input, or after the end of the
    /// process, is dropped.
    pub(crate) async fn write(&self, piece: Piece) {
        let room = match &piece {
            Piece::Bytes(bytes) => {
                let wanted = u32::try_from(bytes.len().min(BYTES_MAX)).unwrap_or(u32::MAX);
                Arc::clone(&self.room).acquire_many_owned(wanted).await.ok()
            }
            Piece::End => None,
        };
        if self.pieces.send(Waiting { piece, _room: room }).await.is_err() {
            tracing::trace!("input after its end");
        }
    }
}

impl Feeder {
    /// Writes until the end of input, or until nobody reads any more; then closes.
    pub(super) async fn run(mut self) {
        while let Some(Waiting { piece, _room }) = self.pieces.recv().await {
            let Piece::Bytes(bytes) = piece else { return };
            self.activity.touch();
            if let Err(error) = self.write(bytes).await {
                // A process that closes its input early is common and no fault.
                tracing::debug!(%error, "write to a process");
                return;
            }
        }
    }

    async fn write(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| rustix::io::write(fd, &bytes).map_err(io::Error::from)) {
                Ok(Ok(written)) => bytes.advance(written),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}
