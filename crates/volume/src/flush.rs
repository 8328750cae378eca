//! Group commit: one `fdatasync` for all flushes that wait at the same time.
//!
//! A flush that finds another running waits for it, and if that one began too early, exactly one of the waiting runs the
//! next for all. After a failed `fdatasync` every later flush fails: the kernel reports the loss of dirty pages once and
//! then forgets it, so a retry would acknowledge what is gone.

use crate::{
    error::{Attempt as _, Error, ErrorKind},
    failpoint::{Failpoints, Point},
    journal::JournalFile,
    sync::{lock, wait},
};
use std::sync::{Arc, Condvar, Mutex};

/// What is appended and what is durable.
#[derive(Debug, Default)]
pub(crate) struct Flush {
    state: Mutex<State>,
    changed: Condvar,
    failpoints: Failpoints,
}

#[derive(Debug, Default)]
struct State {
    appended: u64,
    durable: u64,
    running: bool,
    failed: bool,
    /// Files with records that may not be durable.
    dirty: Vec<Arc<JournalFile>>,
}

impl Flush {
    pub(crate) fn new(durable: u64, failpoints: Failpoints) -> Self {
        let state = State { appended: durable, durable, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new(), failpoints }
    }

    /// A record is in the file.
    pub(crate) fn appended(&self, file: &Arc<JournalFile>, sequence: u64) {
        let mut state = lock(&self.state);
        state.appended = sequence;
        if !state.dirty.last().is_some_and(|last| Arc::ptr_eq(last, file)) {
            state.dirty.push(file.clone());
        }
    }

    /// The file's records are in the bucket, which is better than durable here.
    pub(crate) fn forget(&self, file: &Arc<JournalFile>) {
        lock(&self.state).dirty.retain(|dirty| !Arc::ptr_eq(dirty, file));
    }

    /// Returns when everything that was appended before the call is durable.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        let mut state = lock(&self.state);
        let target = state.appended;
        loop {
            if state.failed {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "the journal could not be synced; nothing more is accepted",
                ));
            }
            if state.durable >= target {
                return Ok(());
            }
            if !state.running {
                break;
            }
            state = wait(&self.changed, state);
        }
        state.running = true;
        let reached = state.appended;
        let files = state.dirty.clone();
        drop(state);
        let result = self
            .failpoints
            .pass(Point::JournalSync)
            .and_then(|()| files.iter().try_for_each(|file| file.sync()))
            .and_then(|()| self.failpoints.pass(Point::JournalSynced));
        let mut state = lock(&self.state);
        state.running = false;
        match &result {
            Ok(()) => {
                state.durable = state.durable.max(reached);
                // The file that was the newest may have got records since; the others were full.
                let clean = if state.appended == reached {
                    files.len()
                } else {
                    files.len().saturating_sub(1)
                };
                state
                    .dirty
                    .retain(|dirty| !files[..clean].iter().any(|file| Arc::ptr_eq(file, dirty)));
            }
            Err(_) => state.failed = true,
        }
        drop(state);
        self.changed.notify_all();
        result.attempt("sync the journal")
    }

    /// Whether a sync failed, after which nothing may be acknowledged.
    pub(crate) fn failed(&self) -> bool {
        lock(&self.state).failed
    }
}
