//! Writing back a filesystem that this process serves the disk of, without becoming immortal.
//!
//! A thread in `syncfs` waits for the disk, and cannot be killed while it waits. If the process that serves the disk is
//! killed then, its serving threads end, but the kernel aborts their FUSE connection only when the last descriptor of it
//! is closed, and the waiting thread shares the process's descriptors: it waits for the disk, and the disk for it, forever,
//! with every other `sync` of the host behind them. So this thread has a descriptor table of its own, with nothing in it
//! but the filesystem: when the others are gone, the connection ends, the wait ends with an error, and so does the process.
//!
//! Whatever else waits for the volume inside this process (a read of a file on it, an `fsync`) has the same problem for as
//! long as it waits. The way out from outside is [`Device::connection`](super::Device::connection).

use crate::error::{Attempt as _, Error, ErrorKind};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, RawFd},
    sync::{
        Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

/// A thread that writes back one filesystem when it is asked.
#[derive(Debug)]
pub struct Syncer {
    requests: Option<SyncSender<SyncSender<io::Result<()>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Syncer {
    /// Starts the thread for the filesystem that the descriptor belongs to. Until this is dropped, it keeps a descriptor.
    pub fn new(filesystem: impl AsFd) -> Result<Self, Error> {
        // It is open in the table of this process until the thread has a table of its own, and in that one from then on.
        let file = filesystem.as_fd().try_clone_to_owned().attempt("keep the filesystem open")?;
        let number = file.as_raw_fd();
        let (requests, received) = sync_channel(1);
        let (ready, is_ready) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("volume-sync".into())
            .spawn(move || serve(number, &ready, &received))
            .attempt("start the thread that syncs")?;
        let syncer = Self { requests: Some(requests), thread: Mutex::new(Some(thread)) };
        is_ready
            .recv()
            .map_err(|error| ended(error.into()))?
            .attempt("give the thread that syncs its own descriptors")?;
        Ok(syncer)
    }

    /// Returns when everything that was written to the filesystem before the call is on its disk. Blocks the thread.
    pub fn sync(&self) -> Result<(), Error> {
        let requests = self.requests.as_ref().ok_or_else(Error::closed)?;
        let (answer, answered) = sync_channel(1);
        requests.send(answer).map_err(|error| ended(error.to_string().into()))?;
        answered.recv().map_err(|error| ended(error.into()))?.attempt("sync the filesystem")
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        // Without a sender the thread ends, and with it the descriptor that would keep the filesystem mounted.
        drop(self.requests.take());
        if let Some(thread) = crate::sync::lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that syncs panicked");
        }
    }
}

fn ended(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::with(ErrorKind::Internal, "the thread that syncs has ended", source)
}

/// Only `std` channels here: what wakes a task of an asynchronous runtime may need a descriptor that this thread lacks.
fn serve(
    number: RawFd,
    ready: &SyncSender<io::Result<()>>,
    requests: &Receiver<SyncSender<io::Result<()>>>,
) {
    if let Err(error) = keep_only(number) {
        // The receiver waits for exactly this, and for each answer below.
        drop(ready.send(Err(error)));
        return;
    }
    // SAFETY: The descriptor is open in this thread's own table, in which nobody else closes or uses it.
    let file = unsafe { File::from_raw_fd(number) };
    drop(ready.send(Ok(())));
    while let Ok(answer) = requests.recv() {
        drop(answer.send(rustix::fs::syncfs(&file).map_err(io::Error::from)));
    }
}

/// Gives the calling thread a descriptor table of its own, with the standard streams and one file.
fn keep_only(kept: RawFd) -> io::Result<()> {
    const FIRST: u32 = 3;
    const CLOSE_RANGE_UNSHARE: i32 = 2;
    unsafe extern "C" {
        fn close_range(first: u32, last: u32, flags: i32) -> i32;
    }
    let kept = u32::try_from(kept).map_err(io::Error::other)?;
    let checked = |result: i32| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: The descriptors are closed in a new table that only this thread uses, and it uses none of them but the kept
    // one, which neither range has. Whatever owns them elsewhere goes on using the table that they are in.
    unsafe {
        if kept > FIRST {
            checked(close_range(FIRST, kept - 1, CLOSE_RANGE_UNSHARE))?;
        }
        checked(close_range(kept.max(FIRST - 1) + 1, u32::MAX, CLOSE_RANGE_UNSHARE))
    }
}
