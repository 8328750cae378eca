//! One account: the sprites and tokens of an organization, in a SQLite database whose truth is its log in the bucket.
//!
//! A single writer owns the database. A change is committed locally, shipped, and only then published and answered, so what
//! readers see is always in the bucket. Changes that wait together are shipped together. When shipping fails, the change is
//! taken back and the caller gets an error; should the server die just then, the change may turn out to have happened,
//! whole, at the next start. Reads come from memory and never wait.

mod place;
mod record;
mod tables;
mod tokens;
mod writer;

use crate::archive::ArchiveKey;
use api::{
    name::{OrgName, SpriteName},
    sprite::SpriteId,
    token::Token,
};
use jiff::Timestamp;
use object_store::{ObjectStore, path::Path as Key};
use replica::Log;
use rusqlite::Connection;
use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub(crate) use place::{Place, PlaceArgs};
pub(crate) use record::SpriteRecord;
use tokens::Hash;
use writer::{Change, Op, Writer};

/// The sprites of an account, by name.
pub(crate) type Sprites = BTreeMap<SpriteName, Arc<SpriteRecord>>;

/// What an account holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    /// The sprites that there are.
    pub(crate) sprites: Sprites,
    /// Those that were destroyed and whose volumes are still there, by id.
    pub(crate) destroyed: BTreeMap<SpriteId, Arc<SpriteRecord>>,
}

impl Contents {
    fn new(records: Vec<SpriteRecord>) -> Self {
        let mut contents = Self::default();
        records.into_iter().map(Arc::new).for_each(|record| contents.insert(record));
        contents
    }

    fn insert(&mut self, record: Arc<SpriteRecord>) {
        if record.destroyed_at.is_none() {
            self.sprites.insert(record.name.clone(), record);
        } else {
            self.destroyed.insert(record.id, record);
        }
    }

    /// Every sprite, destroyed ones too.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<SpriteRecord>> {
        self.sprites.values().chain(self.destroyed.values())
    }
}

/// How many changes may wait for the writer; further ones wait with their callers.
const CHANGES_WAITING_MAX: usize = 256;

/// A handle on an open account.
#[derive(Debug)]
pub(crate) struct Account {
    org: OrgName,
    org_id: String,
    contents: watch::Receiver<Arc<Contents>>,
    tokens: BTreeMap<String, Hash>,
    archive_key: ArchiveKey,
    changes: mpsc::Sender<Change>,
    closing: CancellationToken,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// Why an account did not open or a change did not happen. The published state is as before.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AccountError {
    /// The account is being closed.
    #[error("the server is stopping")]
    Closed,
    /// The local database failed.
    #[error("{action} the account's database")]
    Database {
        /// `open`, `read` or `write`.
        action: &'static str,
        /// Why.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// Another server has taken the bucket over; this one must stop.
    #[error("another server owns this account now")]
    Fenced,
    /// A local file of the account failed.
    #[error("use the account's local files")]
    Local(#[source] Arc<io::Error>),
    /// There is no sprite of this name.
    #[error("no sprite is named {0}")]
    Missing(SpriteName),
    /// There is no destroyed sprite of this id.
    #[error("{0} was not destroyed, or is gone for good")]
    Gone(SpriteId),
    /// A newer version of the product wrote the database.
    #[error("the account's database has version {found}, this server knows up to {known}")]
    Newer {
        /// What it has.
        found: i64,
        /// What this server knows.
        known: i64,
    },
    /// The log did not take the change, or could not be read.
    #[error("{action} the account's log")]
    Log {
        /// `open`, `read` or `ship`.
        action: &'static str,
        /// Why.
        #[source]
        source: Arc<replica::Error>,
    },
    /// The bucket did not answer in time.
    #[error("the bucket did not take a change of the account in time")]
    Silent,
    /// The name belongs to another sprite.
    #[error("a sprite named {0} exists")]
    Taken(SpriteName),
    /// The bucket belongs to another organization.
    #[error("the database is that of organization {0}")]
    WrongOrganization(String),
}

impl Account {
    /// Opens the account of `org`, from the bucket where the local database is missing or behind, and makes it where neither has
    /// one. The bucket is given as [`AccountKeys::store`](crate::keys::AccountKeys::store) has it. Mints a token unless the file at `token` holds a valid one. Cancels `fenced` when another server turns
    /// out to own the account.
    pub(crate) async fn open(
        store: Arc<dyn ObjectStore>,
        org: OrgName,
        directory: &Path,
        token: &Path,
        fenced: CancellationToken,
    ) -> Result<(Self, Token), AccountError> {
        let local = |error| AccountError::Local(Arc::new(error));
        crate::data::create_private(directory).map_err(local)?;
        let path = directory.join("account.db");
        let log = Log::new(store, log_prefix(&org));
        let (shipper, opened) = log
            .open(&path)
            .await
            .map_err(|error| AccountError::Log { action: "open", source: Arc::new(error) })?;
        let mut db = open_database(&path)?;
        let org_id = tables::prepare(&mut db, &org)?;
        let token = tokens::load_or_mint(&mut db, &org, &org_id, token)?;
        let tokens = tables::tokens(&db)?;
        let archive_key = tables::archive_key(&db)?;
        let contents = Contents::new(tables::sprites(&db)?);
        info!(organization = %org, sprites = contents.sprites.len(), ?opened, "account is open");

        let (publish, published) = watch::channel(Arc::new(contents));
        let mut writer = Writer::new(db, shipper, publish, fenced);
        writer.ship().await?;
        let (changes, waiting) = mpsc::channel(CHANGES_WAITING_MAX);
        let closing = CancellationToken::new();
        let closed = closing.clone();
        let runtime = tokio::runtime::Handle::current();
        // SQLite blocks, so the writer has a thread of its own.
        let writer =
            tokio::task::spawn_blocking(move || runtime.block_on(writer.run(waiting, closed)));
        let writer = Mutex::new(Some(writer));
        let account = Self {
            org,
            org_id,
            contents: published,
            tokens,
            archive_key,
            changes,
            closing,
            writer,
        };
        Ok((account, token))
    }

    /// The organization's name.
    #[must_use]
    pub(crate) fn org(&self) -> &OrgName {
        &self.org
    }

    /// The organization's short id, as in host names.
    #[must_use]
    pub(crate) fn org_id(&self) -> &str {
        &self.org_id
    }

    /// What it holds now.
    #[must_use]
    pub(crate) fn contents(&self) -> Arc<Contents> {
        self.contents.borrow().clone()
    }

    /// What it holds now and whenever that changes.
    #[must_use]
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Contents>> {
        self.contents.clone()
    }

    /// One sprite.
    #[must_use]
    pub(crate) fn sprite(&self, name: &SpriteName) -> Option<Arc<SpriteRecord>> {
        self.contents.borrow().sprites.get(name).cloned()
    }

    /// Whether the token is one of this organization's. Takes the same time for any secret.
    #[must_use]
    pub(crate) fn accepts(&self, token: &Token) -> bool {
        let Some(hash) = self.tokens.get(&token.id) else { return false };
        hash.matches(token.secret()) && token.org == self.org && token.org_id == self.org_id
    }

    /// The key with which it marks archives as its own.
    #[must_use]
    pub(crate) fn archive_key(&self) -> &ArchiveKey {
        &self.archive_key
    }

    /// Adds a sprite. Returns when the bucket has it.
    pub(crate) async fn create(
        &self,
        record: SpriteRecord,
    ) -> Result<Arc<SpriteRecord>, AccountError> {
        self.change(Op::Create(Box::new(record))).await
    }

    /// Changes a sprite, if it is still this one. Returns the new record when the bucket has it.
    pub(crate) async fn update(
        &self,
        name: &SpriteName,
        id: SpriteId,
        change: impl FnOnce(&mut SpriteRecord) + Send + 'static,
    ) -> Result<Arc<SpriteRecord>, AccountError> {
        self.change(Op::Update(name.clone(), id, Box::new(change))).await
    }

    /// Destroys a sprite, if it is still this one: its name is free, and it can be had back until it is forgotten.
    pub(crate) async fn destroy(
        &self,
        name: &SpriteName,
        id: SpriteId,
    ) -> Result<Arc<SpriteRecord>, AccountError> {
        self.change(Op::Destroy(name.clone(), id, Timestamp::now())).await
    }

    /// Takes back the destruction of a sprite, which gets a name that is free.
    pub(crate) async fn undelete(
        &self,
        id: SpriteId,
        name: &SpriteName,
    ) -> Result<Arc<SpriteRecord>, AccountError> {
        self.change(Op::Undelete(id, name.clone())).await
    }

    /// Forgets a destroyed sprite. Returns what it was when the bucket has it no more.
    pub(crate) async fn forget(&self, id: SpriteId) -> Result<Arc<SpriteRecord>, AccountError> {
        self.change(Op::Forget(id)).await
    }

    /// Lets what was asked for finish, and closes the database.
    pub(crate) async fn close(&self) {
        self.closing.cancel();
        let writer = self.writer.lock().expect("no panic while held").take();
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            error!(error = &error as &dyn std::error::Error, "the account's writer failed");
        }
    }

    async fn change(&self, op: Op) -> Result<Arc<SpriteRecord>, AccountError> {
        let (reply, answer) = oneshot::channel();
        self.changes.send(Change { op, reply }).await.map_err(|_| AccountError::Closed)?;
        answer.await.map_err(|_| AccountError::Closed)?
    }
}

/// What the log in the bucket says that an account holds, destroyed sprites too, without becoming its owner. Leaves a copy of
/// the database in the directory.
pub(crate) async fn read(
    store: &Arc<dyn ObjectStore>,
    org: &OrgName,
    directory: &Path,
) -> Result<Vec<SpriteRecord>, AccountError> {
    let path = directory.join("account.db");
    let log = Log::new(store.clone(), log_prefix(org));
    let failed = |error| AccountError::Log { action: "read", source: Arc::new(error) };
    if log.restore(&path).await.map_err(failed)?.is_none() {
        return Ok(Vec::new());
    }
    let mut db = open_database(&path)?;
    tables::prepare(&mut db, org)?;
    tables::sprites(&db)
}

/// Where the log of an account is in the bucket.
pub(crate) fn log_prefix(org: &OrgName) -> Key {
    Key::from(format!("accounts/{org}/log"))
}

fn open_database(path: &Path) -> Result<Connection, AccountError> {
    let open = || {
        let db = Connection::open(path)?;
        // `puck open` reads the accounts of others.
        db.pragma_update(None, "trusted_schema", false)?;
        db.pragma_update(None, "journal_mode", "wal")?;
        db.pragma_update(None, "synchronous", "normal")?;
        // The log ships the WAL and decides when its frames may go into the database.
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        Ok(db)
    };
    open().map_err(|error| database("open", error))
}

fn database(action: &'static str, error: rusqlite::Error) -> AccountError {
    AccountError::Database { action, source: Arc::new(error) }
}

#[cfg(test)]
mod tests;
