//! The log of one database in the bucket, from outside: where it ends, restoring it, becoming its writer.

use crate::{
    clock,
    error::Error,
    layout::{LEVEL_TRANSACTIONS, Layout, Name},
    local, note,
    ownership::{CLAIM_TIME_MAX, Claimant, Next, Ownership, Rules},
    plan::{follow, plan},
    restore::{Head, blocking, restore, verify_head},
    settings::Settings,
    shipper::{Shipper, Start},
    source::{Pending, Source, Stamp},
    store::{Appended, Found, Store},
    upkeep::Upkeep,
    writer::Note,
};
use object_store::{Error as StoreError, ObjectStore, path::Path as Key};
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use tracing::{info, warn};

/// How often a list and the reads after it are begun again when files vanish or appear in between.
const TRIES: u32 = 3;

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The transaction number; 0 before the first.
    pub txid: u64,
    /// The checksum of the log file with which it ends, of whatever level; 0 before the first.
    pub checksum: u64,
}

/// Before the first transaction.
const NOWHERE: Position = Position { txid: 0, checksum: 0 };

/// What [`Log::open`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The local database was kept: it is what the log holds, perhaps with more commits, which the next ship will take.
    Continued,
    /// The bucket has no log. The local database may or may not exist.
    New,
    /// The local database was missing, behind, diverged, damaged, or another writer has had the log since. It was set aside,
    /// and the log's was restored.
    Restored,
}

/// The log of one database. Cheap to clone; holds no state but where the log is.
#[derive(Debug, Clone)]
pub struct Log {
    pub(crate) store: Store,
    settings: Settings,
}

/// What the lists of a log say.
struct Listed {
    /// What a restore reads.
    chain: Vec<Found>,
    /// The file that carries the last transaction.
    head: Name,
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
        Self { store: Store::new(store, prefix, layout), settings: Settings::default() }
    }

    /// The same log with other settings for its writer.
    #[must_use]
    pub fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
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

    /// Makes the caller the writer of the log, and brings the local database and the log together. Nobody may have `db` open;
    /// the owner opens it after this.
    ///
    /// A log that exists is claimed with a file that changes nothing, which fences whoever wrote it before. A new log is claimed
    /// by its first ship. With a lease, this waits for the lease of another writer to end.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`]: another claim won. [`Error::Held`]: the owner goes on writing. After any error the local database is
    /// what it was, or set aside if it was not the log's, and the claim may have reached the bucket; calling again is always
    /// right.
    pub async fn open(&self, db: &Path) -> Result<(Shipper, Opened), Error> {
        let local = db.to_owned();
        let mut note = blocking(move || Note::read(&local)).await?;
        let rules = Rules { lease: self.settings.lease, claim_time_max: CLAIM_TIME_MAX };
        let mut claimant = Claimant::new(rand::random(), note.writers.clone(), rules);
        let mut tries = Tries::new();
        loop {
            match self.try_open(db, &mut note, &mut claimant).await {
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
        let (head, _) = restore(&self.store, names(&listed.chain), db).await?;
        note::write(db, &[head.position]);
        Ok(Some(head))
    }

    async fn try_open(
        &self,
        db: &Path,
        note: &mut Note,
        claimant: &mut Claimant,
    ) -> Result<(Shipper, Opened), Error> {
        let (found, ownership) = self.wait_for_turn(claimant).await?;
        let Some((listed, head)) = found else {
            return self.begin(db, note, ownership).await;
        };
        let local = db.to_owned();
        // Looking is all that is done before the claim, but what is not of this log goes before it: once the claim is in the
        // log, a database that is there counts as this machine's.
        let recognized = if claimant.wrote(head.writer()) {
            blocking(move || Source::recognize(&local, &head)).await?
        } else {
            None
        };
        if recognized.is_none() {
            set_aside(db).await?;
        }
        *note = note.claiming(Some(head.writer()), ownership.writer());
        write_note(db, note).await?;
        claimant.noted(note.writers.clone());
        let claim = claim_after(&head, &ownership);
        if let Some(source) = &recognized {
            source.note(&[head.position, claim.position]);
        }
        let ownership = self.append(ownership, &claim).await?;
        let (source, opened) = match recognized {
            Some(source) => (source, Opened::Continued),
            None => (self.replace(db, names(&listed.chain)).await?, Opened::Restored),
        };
        source.note(&[claim.position]);
        info!(
            epoch = ownership.writer().epoch,
            txid = claim.position.txid,
            ?opened,
            "claimed the log"
        );
        let mut upkeep = self.upkeep(&listed.chain);
        upkeep.appended(claim.name, claim.bytes.len() as u64, tokio::time::Instant::now());
        let start = Start {
            ownership,
            epoch_first: note.first,
            head: claim.position,
            time_ms: claim.time_ms,
            upkeep,
        };
        Ok((Shipper::new(self.store.clone(), self.settings.clone(), start, source), opened))
    }

    /// Looks at the head until it may be claimed.
    async fn wait_for_turn(
        &self,
        claimant: &mut Claimant,
    ) -> Result<(Option<(Listed, Head)>, Ownership), Error> {
        let mut waited_for = None;
        loop {
            let asked = clock::since_boot();
            let found = match self.list().await? {
                None => None,
                Some(listed) => {
                    let head = self.read_head(listed.head).await?;
                    Some((listed, head))
                }
            };
            let entry = found.as_ref().map(|(_, head)| head.entry());
            let now = clock::since_boot();
            match claimant.saw(entry, asked, now) {
                Next::Claim(ownership) => return Ok((found, ownership)),
                Next::Wait { .. } if waited_for.is_some_and(|seen| Some(seen) != entry) => {
                    return Err(Error::Held { txid: entry.map_or(0, |entry| entry.txid) });
                }
                Next::Wait { until } => {
                    waited_for = entry;
                    tokio::time::sleep(until.saturating_sub(now)).await;
                }
            }
        }
    }

    /// A log that nobody has written yet. Its first file is the claim.
    async fn begin(
        &self,
        db: &Path,
        note: &Note,
        ownership: Ownership,
    ) -> Result<(Shipper, Opened), Error> {
        let note = note.claiming(None, ownership.writer());
        write_note(db, &note).await?;
        let start = Start {
            ownership,
            epoch_first: note.first,
            head: NOWHERE,
            time_ms: 0,
            upkeep: self.upkeep(&[]),
        };
        let source = Source::new(db);
        Ok((Shipper::new(self.store.clone(), self.settings.clone(), start, source), Opened::New))
    }

    async fn append(&self, ownership: Ownership, claim: &Pending) -> Result<Ownership, Error> {
        let ownership = Mutex::new(ownership);
        let txid = claim.position.txid;
        match self.store.append(&ownership, claim).await? {
            Appended::Settled => Ok(ownership.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Appended::Outrun => Err(Error::Held { txid }),
            Appended::Fenced => Err(Error::Fenced { txid }),
        }
    }

    async fn replace(&self, db: &Path, chain: Vec<Name>) -> Result<Source, Error> {
        let (_, digest) = restore(&self.store, chain, db).await?;
        let local = db.to_owned();
        blocking(move || Source::restored(&local, digest)).await
    }

    fn upkeep(&self, chain: &[Found]) -> Upkeep {
        let files = chain.iter().map(|found| (found.name, found.bytes)).collect();
        let whole_ms = chain
            .first()
            .map_or_else(clock::now_ms, |found| u64::try_from(found.modified_ms).unwrap_or(0));
        Upkeep::new(&self.settings, files, whole_ms)
    }

    pub(crate) async fn read_head(&self, name: Name) -> Result<Head, Error> {
        let bytes = self.store.read(name).await?;
        let store = self.store.clone();
        blocking(move || verify_head(&store, name, &bytes)).await
    }

    /// Finds the shortest chain to the head. Of level 0, only what the levels above do not reach is listed.
    async fn list(&self) -> Result<Option<Listed>, Error> {
        let mut files = self.store.list_above().await?;
        let (short, _) = follow(names(&files), None);
        let reached = short.last().map_or(0, |name| name.max);
        // The file of the transaction that is reached is wanted too, as it may be the head.
        let after = (reached > 1).then(|| Name::transaction(reached - 1));
        files.append(&mut self.store.list(LEVEL_TRANSACTIONS, after).await?);
        let chain = plan(names(&files), None).map_err(|txid| Error::Gap { txid })?;
        let Some(&last) = chain.last() else { return Ok(None) };
        let transaction = Name::transaction(last.max);
        let carried = files.iter().any(|found| found.name == transaction);
        let head = if carried { transaction } else { last };
        let of_chain = |name: &Name| files.iter().find(|found| found.name == *name).copied();
        Ok(Some(Listed { chain: chain.iter().filter_map(of_chain).collect(), head }))
    }
}

fn names(files: &[Found]) -> Vec<Name> {
    files.iter().map(|found| found.name).collect()
}

/// The file that takes the log over.
fn claim_after(head: &Head, ownership: &Ownership) -> Pending {
    let stamp = Stamp {
        txid: head.position.txid + 1,
        writer: ownership.writer(),
        claim: true,
        time_ms: clock::label_after(head.header.time_ms),
    };
    Pending::empty(&stamp, &head.header)
}

async fn set_aside(db: &Path) -> Result<(), Error> {
    let local = db.to_owned();
    let aside = blocking(move || local::set_aside(&local)).await?;
    if let Some(aside) = aside {
        warn!(db = %db.display(), aside = %aside.display(), "local database is not the log's and was set aside");
    }
    Ok(())
}

async fn write_note(db: &Path, note: &Note) -> Result<(), Error> {
    let (local, note) = (db.to_owned(), note.clone());
    blocking(move || note.write(&local)).await
}

/// Begins again when the log changed between a list and the reads after it.
pub(crate) struct Tries(u32);

impl Tries {
    pub(crate) fn new() -> Self {
        Self(TRIES)
    }

    pub(crate) fn again_after(&mut self, error: Error) -> Result<(), Error> {
        let changed = matches!(
            error,
            Error::Gap { .. }
                | Error::Held { .. }
                | Error::Bucket { source: StoreError::NotFound { .. }, .. }
        );
        self.0 -= 1;
        if changed && self.0 > 0 { Ok(()) } else { Err(error) }
    }
}
