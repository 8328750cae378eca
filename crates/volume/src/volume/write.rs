//! Writing: append to the journal at once, acknowledge when there is room; flushing, and waiting for the bucket.
//!
//! A write is in the journal before anything waits, so whoever waits holds no data and needs no thread: the block device
//! answers it later ([`Admission`]). What waits like that is bounded by the requests that the kernel keeps under way, and
//! the tail passes its bound by at most that.

use super::{Durability, Shared};
use crate::{
    error::{Error, ErrorKind},
    journal::RecordKind,
    map::CutSlot,
    pace::Pace,
    sync::{lock, wait_at_most, write},
};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// Between two questions whether a flush may be acknowledged, and two tries of a write that found the disk full.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// What was written and is not shipped, and who waits for that.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub bytes: u64,
    /// Batches that are committed and not yet shipped: bytes and first write.
    pub committed: VecDeque<(u64, Option<Instant>)>,
    /// The local disk has room for little more than the writes that are under way.
    tight: bool,
    pace: Pace,
    waiting: usize,
    waiting_since: Option<Instant>,
    blocked: Duration,
}

impl Backlog {
    /// Since when writers have waited without a pause.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// For how long some writer waited, in all.
    pub(crate) fn blocked(&self, now: Instant) -> Duration {
        let this_time = self.waiting_since.map(|since| now.saturating_duration_since(since));
        self.blocked + this_time.unwrap_or_default()
    }

    fn is_full(&self, bytes_max: u64) -> bool {
        self.bytes >= bytes_max || (self.tight && self.bytes > 0)
    }
}

/// When a write that is in the journal may be acknowledged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Admission {
    due: Option<Instant>,
    full: bool,
}

impl Admission {
    /// Whether there is nothing to wait for.
    pub(crate) fn is_immediate(&self) -> bool {
        !self.full && self.due.is_none_or(|due| due <= Instant::now())
    }

    fn and(self, other: Self) -> Self {
        Self { due: self.due.max(other.due), full: self.full || other.full }
    }
}

/// What a flush that is not acknowledged yet waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unflushed {
    /// This batch and all before it in the bucket.
    Batch(u64),
    /// The right to acknowledge from the local disk.
    Right,
}

/// A writer that waits, for as long as this lives.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared) -> Self {
        let mut backlog = lock(&shared.backlog);
        backlog.waiting += 1;
        backlog.waiting_since.get_or_insert_with(Instant::now);
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut backlog = lock(&self.0.backlog);
        backlog.waiting -= 1;
        if backlog.waiting == 0 {
            backlog.blocked = backlog.blocked(Instant::now());
            backlog.waiting_since = None;
        }
    }
}

impl Shared {
    /// Appends a write of whole blocks. It must not be acknowledged before its admission.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<Admission, Error> {
        let mut at = offset;
        let mut admission = Admission::default();
        for chunk in data.chunks(self.settings.record_bytes_max()) {
            let crc = crc32c::crc32c(chunk);
            let appended = self.append(RecordKind::Write, at, chunk.len() as u64, (chunk, crc))?;
            admission = admission.and(appended.admission);
            at += chunk.len() as u64;
        }
        Ok(admission)
    }

    /// Appends a record and applies it to the tail. While the local disk is full and the bucket can take something that
    /// makes room, this waits.
    pub(super) fn append(
        &self,
        kind: RecordKind,
        offset: u64,
        length: u64,
        data: (&[u8], u32),
    ) -> Result<Applied, Error> {
        let mut waiting = None;
        loop {
            match self.try_append(kind, offset, length, data) {
                Err(error) if error.kind() == ErrorKind::Exhausted => {
                    if lock(&self.backlog).bytes == 0 {
                        return Err(error);
                    }
                    waiting.get_or_insert_with(|| Waiting::begin(self));
                    self.ask();
                    let backlog = lock(&self.backlog);
                    drop(wait_at_most(&self.room, backlog, ASK_INTERVAL));
                }
                result => return result,
            }
        }
    }

    fn try_append(
        &self,
        kind: RecordKind,
        offset: u64,
        length: u64,
        data: (&[u8], u32),
    ) -> Result<Applied, Error> {
        let mut journal = lock(&self.journal);
        self.check_open()?;
        if self.flush.failed() {
            return Err(Error::new(
                ErrorKind::Internal,
                "the journal could not be synced; nothing more is accepted",
            ));
        }
        let record = self.with_room(|| journal.append(kind, offset, length, data))?;
        if journal.is_tight() && self.cache.bytes() > 0 {
            tracing::warn!("the local disk is nearly full; the cache is given up for the journal");
            self.cache.clear();
            journal.look_at_disk()?;
        }
        let tight = journal.is_tight();
        let admission = self.admit(record.bytes, tight);
        let mut tail = write(&self.tail);
        let first = tail.due(Duration::ZERO).is_none();
        let batch = tail.active_number();
        let slot = tail.apply(record, Instant::now());
        let full = tail.active_bytes() >= self.settings.seal_bytes;
        if full {
            tail.freeze();
        }
        if tight {
            tail.ask();
        }
        drop(tail);
        drop(journal);
        if first || full || tight {
            self.wake.notify_one();
        }
        Ok(Applied { batch, slot, admission })
    }

    fn admit(&self, bytes: u64, tight: bool) -> Admission {
        let bound = self.settings.tail_bytes_max;
        let mut backlog = lock(&self.backlog);
        backlog.bytes += bytes;
        backlog.tight = tight;
        let unsealed = backlog.bytes;
        let due = backlog.pace.due(bytes, unsealed, bound, Instant::now());
        Admission { due, full: backlog.is_full(bound) }
    }

    /// Runs something that writes to the local disk, and once more without the cache if the disk is full.
    pub(crate) fn with_room<T>(
        &self,
        mut work: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        match work() {
            Err(error) if error.kind() == ErrorKind::Exhausted && self.cache.bytes() > 0 => {
                tracing::warn!("the local disk is full; the cache is given up for the journal");
                self.cache.clear();
                work()
            }
            result => result,
        }
    }

    /// Blocks the thread until the write may be acknowledged.
    pub(super) fn wait_admitted(&self, admission: Admission) {
        if admission.is_immediate() {
            return;
        }
        let _waiting = admission.full.then(|| Waiting::begin(self));
        let mut backlog = lock(&self.backlog);
        while !self.is_closed() {
            let left = admission.due.map(|due| due.saturating_duration_since(Instant::now()));
            let pause = match left.filter(|left| !left.is_zero()) {
                Some(left) => left,
                None if backlog.is_full(self.settings.tail_bytes_max) && admission.full => {
                    ASK_INTERVAL
                }
                None => return,
            };
            backlog = wait_at_most(&self.room, backlog, pause);
        }
    }

    /// Returns when the write may be acknowledged.
    pub(crate) async fn admitted(&self, admission: Admission) {
        let _waiting = admission.full.then(|| Waiting::begin(self));
        if let Some(due) = admission.due {
            tokio::time::sleep_until(due.into()).await;
        }
        let mut progress = self.progress.subscribe();
        while admission.full
            && lock(&self.backlog).is_full(self.settings.tail_bytes_max)
            && !self.is_closed()
            && progress.changed().await.is_ok()
        {}
    }

    /// Makes everything durable that was written before the call, as far as that takes no waiting for the bucket. Returns
    /// what is left to wait for.
    pub(crate) fn begin_flush(&self) -> Result<Option<Unflushed>, Error> {
        self.check_open()?;
        match self.health.durability() {
            Durability::Default => {
                self.flush.flush()?;
                Ok((!self.may_acknowledge()).then_some(Unflushed::Right))
            }
            Durability::Strict => {
                let batch = self.ask();
                let shipped = self.progress.borrow().shipped >= batch;
                Ok((!shipped).then_some(Unflushed::Batch(batch)))
            }
        }
    }

    /// Blocks the thread until a flush may be acknowledged.
    pub(super) fn wait_flushed(&self, unflushed: Unflushed) -> Result<(), Error> {
        let _waiting = matches!(unflushed, Unflushed::Right).then(|| self.health.unacknowledged());
        loop {
            let backlog = lock(&self.backlog);
            if let Some(done) = self.is_flushed(unflushed) {
                return done;
            }
            drop(wait_at_most(&self.room, backlog, ASK_INTERVAL));
        }
    }

    /// Returns when a flush may be acknowledged.
    pub(crate) async fn flushed(&self, unflushed: Unflushed) -> Result<(), Error> {
        if let Unflushed::Batch(batch) = unflushed {
            return self.wait_shipped(batch).await;
        }
        let _waiting = self.health.unacknowledged();
        loop {
            if let Some(done) = self.is_flushed(unflushed) {
                return done;
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    fn is_flushed(&self, unflushed: Unflushed) -> Option<Result<(), Error>> {
        let progress = *self.progress.borrow();
        match unflushed {
            Unflushed::Batch(batch) if progress.shipped >= batch => Some(Ok(())),
            Unflushed::Right if self.may_acknowledge() => Some(Ok(())),
            Unflushed::Right if self.is_closed() => Some(Err(Error::closed())),
            _ if progress.ended => Some(Err(Error::closed())),
            _ => None,
        }
    }

    fn may_acknowledge(&self) -> bool {
        self.settings.acknowledge.as_ref().is_none_or(|right| right.may())
    }

    /// Asks the sealer for everything that is there. Returns the batch that it ends with.
    pub(crate) fn ask(&self) -> u64 {
        let batch = write(&self.tail).ask();
        self.wake.notify_one();
        batch
    }

    /// Seals what is there and waits until the bucket has it.
    pub(crate) async fn seal_all(&self) -> Result<(), Error> {
        let batch = self.ask();
        self.wait_shipped(batch).await
    }

    /// Waits until a batch and all before it are in the bucket, the log included.
    pub(crate) async fn wait_shipped(&self, batch: u64) -> Result<(), Error> {
        let mut progress = self.progress.subscribe();
        let reached =
            progress.wait_for(|progress| progress.shipped >= batch || progress.ended).await;
        match reached {
            Ok(progress) if progress.shipped >= batch => Ok(()),
            _ => Err(Error::closed()),
        }
    }

    /// Everything up to the batch, whose last record is `sequence`, is in the bucket.
    pub(crate) fn shipped(&self, batch: u64, sequence: u64) {
        let mut journal = lock(&self.journal);
        journal.release(sequence);
        let tight = journal.is_tight();
        drop(journal);
        let mut backlog = lock(&self.backlog);
        let bytes: u64 = backlog.committed.drain(..).map(|(bytes, _)| bytes).sum();
        backlog.bytes -= bytes;
        backlog.tight = tight;
        backlog.pace.took(bytes, Instant::now());
        // Both kinds of waiters look at the backlog before they wait: blocking ones under its lock, asynchronous ones after
        // they subscribed.
        self.progress.send_modify(|progress| progress.shipped = batch);
        drop(backlog);
        self.room.notify_all();
    }

    /// Lets everybody look again who waits.
    pub(super) fn wake_waiters(&self) {
        self.progress.send_modify(|_| ());
        self.room.notify_all();
    }
}

/// A record that is in the tail.
pub(super) struct Applied {
    /// The number of its batch.
    pub batch: u64,
    /// Where a cut's layer goes.
    pub slot: Option<Arc<CutSlot>>,
    pub admission: Admission,
}
