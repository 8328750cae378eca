//! The writer of a log.
//!
//! ```text
//! idle --prepare--> pending --create--> settled = idle          the number was free
//!                      |   \--answer lost--> pending            the next ship tries the same bytes again
//!                      \-------taken-------> fenced             for good
//! ```
//!
//! After a ship, what keeps the log short is done: a checkpoint of the WAL when it is long, a snapshot when a restore would
//! have to read many files, and the deletion of old files that a snapshot covers. Failures of these lose nothing and are tried
//! again after later ships.

use crate::{
    Position,
    error::Error,
    layout::Name,
    restore::{Head, blocking},
    retention,
    source::{Source, Stamp},
    store::{Created, Store},
};
use bytes::Bytes;
use jiff::Timestamp;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::{debug, warn};

/// The WAL is moved into the database when it is longer, so that opening after a crash stays quick.
const WAL_BYTES_MAX: u64 = 4 << 20;

/// A snapshot is written after this many files, so that a restore reads no more than that.
const SNAPSHOT_FILES: u64 = 1000;

/// A snapshot is written when the files since the last one are this many times as large as the database.
const SNAPSHOT_BYTES_RATIO: u64 = 4;

/// Below this a snapshot is not worth its request, however small the database is.
const SNAPSHOT_BYTES_MIN: u64 = 16 << 20;

/// Makes the commits of one database durable in its log. There is at most one per database in a process.
pub struct Shipper {
    store: Store,
    node: u64,
    nonce: u64,
    /// The node of the head wrote before this one, and the next file must say so.
    takeover: bool,
    head: Position,
    since: Since,
    /// Shared only with work on blocking threads that a dropped call may leave behind.
    source: Arc<Mutex<Source>>,
}

/// What a restore would read besides the newest snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Since {
    files: u64,
    bytes: u64,
}

impl Since {
    /// With one more file.
    pub(crate) fn and(self, bytes: u64) -> Self {
        Self { files: self.files + 1, bytes: self.bytes + bytes }
    }

    fn wants_snapshot(self, database_bytes: u64) -> bool {
        let bytes_max = SNAPSHOT_BYTES_MIN.max(database_bytes.saturating_mul(SNAPSHOT_BYTES_RATIO));
        self.files >= SNAPSHOT_FILES || self.bytes > bytes_max
    }
}

impl Shipper {
    pub(crate) fn new(
        store: Store,
        node: u64,
        head: Option<Head>,
        source: Source,
        since: Since,
    ) -> Self {
        Self {
            store,
            node,
            nonce: rand::random(),
            takeover: head.is_some_and(|head| head.header.node != node),
            head: head.map_or(Position { txid: 0, checksum: 0 }, |head| head.position),
            since,
            source: Arc::new(Mutex::new(source)),
        }
    }

    /// Where the log ends, as far as this writer knows: the last position that a ship returned.
    #[must_use]
    pub fn position(&self) -> Position {
        self.head
    }

    /// Ships all commits since the last ship as one file with the next transaction number. Without any there is no request,
    /// and the head is returned.
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

    /// Makes a pending file of what has not been shipped.
    async fn prepare(&self) -> Result<bool, Error> {
        let (source, stamp) = (self.source.clone(), self.stamp(self.head.txid + 1));
        blocking(move || lock(&source).prepare(&stamp)).await
    }

    /// Puts the pending file into the bucket, if there is one.
    async fn deliver(&mut self) -> Result<(), Error> {
        let Some(pending) = lock(&self.source).pending() else { return Ok(()) };
        match self.store.create(pending.name, &pending.bytes, pending.time_ms).await? {
            Created::Ours => {}
            Created::Taken => return Err(Error::Fenced { txid: pending.position.txid }),
        }
        // From here on to the end there is no await: a dropped call leaves either all of this undone or none of it.
        lock(&self.source).settle();
        self.head = pending.position;
        self.since = self.since.and(pending.bytes.len() as u64);
        self.takeover = false;
        debug!(txid = self.head.txid, bytes = pending.bytes.len(), "shipped");
        Ok(())
    }

    /// Keeps WAL and log short.
    async fn tidy(&mut self) {
        let source = self.source.clone();
        if let Err(error) = blocking(move || lock(&source).checkpoint(WAL_BYTES_MAX)).await {
            warn!(error = &error as &dyn std::error::Error, "WAL stays long");
        }
        let database_bytes = lock(&self.source).bytes();
        if self.since.wants_snapshot(database_bytes)
            && let Err(error) = self.snapshot().await
        {
            warn!(error = &error as &dyn std::error::Error, "log stays long");
        }
    }

    async fn snapshot(&mut self) -> Result<(), Error> {
        let stamp = self.stamp(self.head.txid);
        let source = self.source.clone();
        let bytes: Bytes = blocking(move || lock(&source).snapshot(&stamp)).await?;
        // A snapshot of this transaction that is there already was written by an earlier writer at the same place.
        self.store.create(Name::snapshot(stamp.txid), &bytes, stamp.time_ms).await?;
        self.since = Since::default();
        retention::delete_old(&self.store, stamp.txid, stamp.time_ms).await
    }

    fn stamp(&self, txid: u64) -> Stamp {
        let time_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
        Stamp { txid, node: self.node, nonce: self.nonce, takeover: self.takeover, time_ms }
    }
}

impl std::fmt::Debug for Shipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shipper")
            .field("head", &self.head)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// A panic under the lock can leave nothing half done that matters: what was prepared is either stored as pending or not.
fn lock(source: &Mutex<Source>) -> MutexGuard<'_, Source> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}
