//! The log of one database in the bucket, from outside: where it ends, restoring it, becoming its writer.

use crate::{
    error::Error,
    layout::{LEVEL_SNAPSHOTS, LEVEL_TRANSACTIONS, Layout, Name},
    local,
    plan::plan,
    restore::{Head, blocking, restore, verify_head},
    shipper::{Shipper, Since},
    source::Source,
    store::Store,
};
use object_store::{Error as StoreError, ObjectStore, path::Path as Key};
use std::{path::Path, sync::Arc};
use tracing::warn;

/// How often a list and the reads after it are begun again when files vanish or appear in between.
const TRIES: u32 = 3;

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The transaction number; 0 before the first.
    pub txid: u64,
    /// The checksum of the log file that carries it; 0 before the first.
    pub checksum: u64,
}

/// What [`Log::open`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The local database was kept: it is what the log holds, perhaps with more commits, which the next ship will take.
    Continued,
    /// The bucket has no log. The local database may or may not exist.
    New,
    /// The local database was missing, behind, diverged or damaged. It was set aside, and the log's was restored.
    Restored,
}

/// The log of one database. Cheap to clone; holds no state but where the log is.
#[derive(Debug, Clone)]
pub struct Log {
    store: Store,
}

/// What the lists of a log say.
struct Listed {
    chain: Vec<Name>,
    /// The file that carries the last transaction.
    head: Name,
    since: Since,
}

impl Log {
    /// The log under a prefix of the bucket. Nothing is requested yet.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Key) -> Self {
        Self::with_layout(store, prefix, Layout::Bucket)
    }

    /// A log whose objects are named in another way than [`Layout::Bucket`].
    #[must_use]
    pub fn with_layout(store: Arc<dyn ObjectStore>, prefix: Key, layout: Layout) -> Self {
        Self { store: Store::new(store, prefix, layout) }
    }

    /// Where the log ends; `None` when there is none.
    pub async fn head(&self) -> Result<Option<Position>, Error> {
        let mut tries = Tries::new();
        loop {
            match self.try_head().await {
                Err(error) => tries.again_after(error)?,
                Ok(head) => return Ok(head.map(|head| head.position)),
            }
        }
    }

    /// Writes the database at the head in the place of `db`, and removes the WAL of what was there. Nobody may have `db`
    /// open. `None`: the log is empty, and nothing was written. On an error `db` is what it was.
    pub async fn restore(&self, db: &Path) -> Result<Option<Position>, Error> {
        let mut tries = Tries::new();
        loop {
            match self.try_restore(db).await {
                Err(error) => tries.again_after(error)?,
                Ok(head) => return Ok(head.map(|head| head.position)),
            }
        }
    }

    /// Brings the local database and the log together, and makes the caller the writer of the log as `node`. Nobody may
    /// have `db` open; the owner opens it after this.
    pub async fn open(&self, db: &Path, node: u64) -> Result<(Shipper, Opened), Error> {
        let mut tries = Tries::new();
        loop {
            match self.try_open(db, node).await {
                Err(error) => tries.again_after(error)?,
                Ok(opened) => return Ok(opened),
            }
        }
    }

    async fn try_head(&self) -> Result<Option<Head>, Error> {
        let Some(listed) = self.list().await? else { return Ok(None) };
        self.read_head(listed.head).await.map(Some)
    }

    async fn try_restore(&self, db: &Path) -> Result<Option<Head>, Error> {
        let Some(listed) = self.list().await? else { return Ok(None) };
        let (head, _) = restore(&self.store, listed.chain, db).await?;
        Ok(Some(head))
    }

    async fn try_open(&self, db: &Path, node: u64) -> Result<(Shipper, Opened), Error> {
        let Some(listed) = self.list().await? else {
            let shipper =
                Shipper::new(self.store.clone(), node, None, Source::new(db), Since::default());
            return Ok((shipper, Opened::New));
        };
        let head = self.read_head(listed.head).await?;
        let local = db.to_owned();
        let (head, source, opened) =
            match blocking(move || Source::recognize(&local, &head)).await? {
                Some(source) => (head, source, Opened::Continued),
                None => {
                    let (head, source) = self.replace(db, listed.chain).await?;
                    (head, source, Opened::Restored)
                }
            };
        Ok((Shipper::new(self.store.clone(), node, Some(head), source, listed.since), opened))
    }

    async fn replace(&self, db: &Path, chain: Vec<Name>) -> Result<(Head, Source), Error> {
        let local = db.to_owned();
        let aside = blocking(move || local::set_aside(&local)).await?;
        if let Some(aside) = aside {
            warn!(db = %db.display(), aside = %aside.display(), "local database is not the log's and was set aside");
        }
        let (head, digest) = restore(&self.store, chain, db).await?;
        let local = db.to_owned();
        let source = blocking(move || Source::restored(&local, digest)).await?;
        Ok((head, source))
    }

    async fn read_head(&self, name: Name) -> Result<Head, Error> {
        let bytes = self.store.read(name).await?;
        let store = self.store.clone();
        blocking(move || verify_head(&store, name, &bytes)).await
    }

    /// Finds the newest snapshot and what comes after it.
    async fn list(&self) -> Result<Option<Listed>, Error> {
        let snapshots = self.store.list(LEVEL_SNAPSHOTS, None).await?;
        let snapshot = snapshots.iter().map(|found| found.name).max_by_key(|name| name.max);
        let snapshot_txid = snapshot.map_or(0, |name| name.max);
        // The file of the snapshot's own transaction is wanted too, as it may be the head.
        let after = (snapshot_txid > 1).then(|| Name::transaction(snapshot_txid - 1));
        let transactions = self.store.list(LEVEL_TRANSACTIONS, after).await?;
        let names =
            snapshot.into_iter().chain(transactions.iter().map(|found| found.name)).collect();
        let chain = plan(names).map_err(|txid| Error::Gap { txid })?;
        let Some(&last) = chain.last() else { return Ok(None) };
        let head = transactions
            .last()
            .map(|found| found.name)
            .filter(|name| name.max == last.max)
            .unwrap_or(last);
        let newer = transactions.iter().filter(|found| found.name.max > snapshot_txid);
        let since = newer.fold(Since::default(), |since, found| since.and(found.bytes));
        Ok(Some(Listed { chain, head, since }))
    }
}

/// Begins again when the log changed between a list and the reads after it.
struct Tries(u32);

impl Tries {
    fn new() -> Self {
        Self(TRIES)
    }

    fn again_after(&mut self, error: Error) -> Result<(), Error> {
        let changed = matches!(
            error,
            Error::Gap { .. } | Error::Bucket { source: StoreError::NotFound { .. }, .. }
        );
        self.0 -= 1;
        if changed && self.0 > 0 { Ok(()) } else { Err(error) }
    }
}
