//! The writer of a log.
//!
//! ```text
//! idle --prepare--> pending --append--> settled = idle          see `ownership`
//!                      |   \--answer lost--> pending            the next ship tries the same bytes again
//!                      \-------taken-------> fenced             for good
//! ```
//!
//! After a ship, what keeps the log short is done: a checkpoint of the WAL when it is long, files of higher levels and snapshots
//! when they are due, and the deletion of what has become old. Failures of these lose nothing and are tried again after later
//! ships.

use crate::{
    Position, clock,
    error::Error,
    layout::Name,
    ownership::Ownership,
    restore::blocking,
    retention,
    settings::Settings,
    source::{Source, Stamp},
    store::{Appended, Store},
    upkeep::{Upkeep, Work},
};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;
use tracing::{debug, warn};

/// The WAL is moved into the database when it is longer, so that opening after a crash stays quick.
const WAL_BYTES_MAX: u64 = 4 << 20;

/// Makes the commits of one database durable in its log. There is at most one per database in a process.
pub struct Shipper {
    store: Store,
    settings: Settings,
    /// Shared with those who ask whether they may acknowledge.
    ownership: Arc<Mutex<Ownership>>,
    epoch_first: u64,
    head: Position,
    /// The time that the last file states.
    time_ms: u64,
    upkeep: Upkeep,
    /// Shared only with work on blocking threads that a dropped call may leave behind.
    source: Arc<Mutex<Source>>,
}

/// Whether the owner of a log may promise anything from its local disk. Cheap to clone, and quick to ask from any thread.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Mutex<Ownership>>);

impl Lease {
    /// Whether a flush may be acknowledged now. Always, where there is no lease and no other writer is known.
    #[must_use]
    pub fn may_acknowledge(&self) -> bool {
        lock(&self.0).may_acknowledge(clock::since_boot())
    }
}

/// Where a writer begins.
pub(crate) struct Start {
    pub(crate) ownership: Ownership,
    /// See [`Shipper::epoch_first`].
    pub(crate) epoch_first: u64,
    pub(crate) head: Position,
    pub(crate) time_ms: u64,
    pub(crate) upkeep: Upkeep,
}

impl Shipper {
    pub(crate) fn new(store: Store, settings: Settings, start: Start, source: Source) -> Self {
        Self {
            store,
            settings,
            ownership: Arc::new(Mutex::new(start.ownership)),
            epoch_first: start.epoch_first,
            head: start.head,
            time_ms: start.time_ms,
            upkeep: start.upkeep,
            source: Arc::new(Mutex::new(source)),
        }
    }

    /// Where the log ends, as far as this writer knows: the last position that a ship returned.
    #[must_use]
    pub fn position(&self) -> Position {
        self.head
    }

    /// The number of this period of ownership: one more than that of whoever wrote the log before.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        lock(&self.ownership).writer().epoch
    }

    /// The first of the row of epochs up to [`Self::epoch`] in which nobody but this machine wrote the log. What was kept beside
    /// the database in an earlier one is out of date.
    #[must_use]
    pub fn epoch_first(&self) -> u64 {
        self.epoch_first
    }

    /// A handle to ask whether flushes may be acknowledged.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease(self.ownership.clone())
    }

    /// Ships all commits since the last ship as one file with the next transaction number. Without any there is no request,
    /// and the head is returned; but with a lease that is about to end, a file without pages is shipped, so an owner with a
    /// lease calls this several times within it.
    ///
    /// The caller guarantees that no transaction is open and none starts until this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`]: another writer has created that number. It stays so; the caller must stop being the owner. After
    /// any other error, and when the call is dropped, the next one goes on: it first finds out what became of the file
    /// that was on its way.
    pub async fn ship(&mut self) -> Result<Position, Error> {
        self.deliver().await?;
        if self.prepare().await? {
            self.deliver().await?;
            self.tidy().await;
        }
        Ok(self.head)
    }

    /// Makes a pending file of what has not been shipped, or one without pages to renew the lease.
    async fn prepare(&self) -> Result<bool, Error> {
        let stamp = self.stamp(self.head.txid + 1, clock::label_after(self.time_ms));
        let renew_at = lock(&self.ownership).renew_at();
        let renews = renew_at.is_some_and(|at| at <= clock::since_boot());
        let source = self.source.clone();
        blocking(move || {
            let mut source = lock(&source);
            let prepared = source.prepare(&stamp)?;
            if !prepared && renews {
                source.prepare_empty(&stamp);
            }
            Ok(prepared || renews)
        })
        .await
    }

    /// Puts the pending file into the bucket, if there is one.
    async fn deliver(&mut self) -> Result<(), Error> {
        let Some(pending) = lock(&self.source).pending() else { return Ok(()) };
        match self.store.append(&self.ownership, &pending).await? {
            Appended::Settled => {}
            Appended::Fenced | Appended::Outrun => {
                return Err(Error::Fenced { txid: pending.position.txid });
            }
        }
        // From here on to the end there is no await: a dropped call leaves either all of this undone or none of it.
        lock(&self.source).settle();
        self.head = pending.position;
        self.time_ms = pending.time_ms;
        let bytes = pending.bytes.len() as u64;
        self.upkeep.appended(pending.name, bytes, Instant::now());
        debug!(txid = self.head.txid, bytes, "shipped");
        Ok(())
    }

    /// Keeps WAL and log short.
    async fn tidy(&mut self) {
        let source = self.source.clone();
        if let Err(error) = blocking(move || lock(&source).checkpoint(WAL_BYTES_MAX)).await {
            warn!(error = &error as &dyn std::error::Error, "WAL stays long");
        }
        let database_bytes = lock(&self.source).bytes();
        let (now, now_ms) = (Instant::now(), clock::now_ms());
        if let Some(work) = self.upkeep.due(database_bytes, now, now_ms)
            && let Err(error) = self.shorten(work, now_ms).await
        {
            warn!(error = &error as &dyn std::error::Error, ?work, "log stays long");
            self.upkeep.failed(work, now, now_ms);
        }
        if self.upkeep.sweeps(now)
            && let Err(error) = retention::sweep(&self.store, &self.settings, database_bytes).await
        {
            warn!(error = &error as &dyn std::error::Error, "old files of the log stay");
        }
    }

    /// Writes a file of a higher level that ends at the head, under the time of the head.
    async fn shorten(&mut self, work: Work, now_ms: u64) -> Result<(), Error> {
        let stamp = self.stamp(self.head.txid, self.time_ms);
        let source = self.source.clone();
        let (name, bytes): (Name, Bytes) = blocking(move || {
            let source = lock(&source);
            match work {
                Work::Merge { level, min } => {
                    let name = Name { level, min, max: stamp.txid };
                    source.merged(&stamp, min, level).map(|bytes| (name, bytes))
                }
                Work::Snapshot => {
                    source.snapshot(&stamp).map(|bytes| (Name::snapshot(stamp.txid), bytes))
                }
            }
        })
        .await?;
        self.store.create(name, &bytes, stamp.time_ms).await?;
        lock(&self.source).ended(name.level);
        self.upkeep.done(name, bytes.len() as u64, now_ms);
        debug!(?work, txid = stamp.txid, bytes = bytes.len(), "shortened the log");
        Ok(())
    }

    fn stamp(&self, txid: u64, time_ms: u64) -> Stamp {
        let ownership = lock(&self.ownership);
        Stamp { txid, writer: ownership.writer(), claim: ownership.is_claiming(), time_ms }
    }
}

impl std::fmt::Debug for Shipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shipper")
            .field("head", &self.head)
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

/// A panic under a lock can leave nothing half done that matters: what was prepared is either stored as pending or not.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
