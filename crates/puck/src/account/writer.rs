//! The one owner of an account's database: commits, ships, publishes, answers, in this order.

use super::{AccountError, Contents, SpriteRecord, database, tables};
use api::{name::SpriteName, sprite::SpriteId};
use jiff::Timestamp;
use replica::Shipper;
use rusqlite::Connection;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// How many changes are shipped together at most.
const BATCH_MAX: usize = 64;

/// How long the bucket may take to have a change, retries included. Clients give up after 30 s.
const SHIP_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) type Reply = Result<Arc<SpriteRecord>, AccountError>;

/// What is asked for, and who wants to know.
pub(super) struct Change {
    pub(super) op: Op,
    pub(super) reply: oneshot::Sender<Reply>,
}

/// What can be asked for.
pub(super) enum Op {
    Create(Box<SpriteRecord>),
    Destroy(SpriteName, SpriteId, Timestamp),
    Forget(SpriteId),
    Undelete(SpriteId, SpriteName),
    Update(SpriteName, SpriteId, Box<dyn FnOnce(&mut SpriteRecord) + Send>),
}

pub(super) struct Writer {
    db: Connection,
    shipper: Shipper,
    published: watch::Sender<Arc<Contents>>,
    fenced: CancellationToken,
    /// Sprites whose row may differ from what is published, after a change that failed half-way.
    dirty: BTreeSet<SpriteId>,
}

impl Writer {
    pub(super) fn new(
        db: Connection,
        shipper: Shipper,
        published: watch::Sender<Arc<Contents>>,
        fenced: CancellationToken,
    ) -> Self {
        Self { db, shipper, published, fenced, dirty: BTreeSet::new() }
    }

    /// Works until it is closed and what was asked for by then is done.
    pub(super) async fn run(
        mut self,
        mut waiting: mpsc::Receiver<Change>,
        closed: CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            let count = tokio::select! {
                () = closed.cancelled(), if !waiting.is_closed() => {
                    waiting.close();
                    continue;
                }
                count = waiting.recv_many(&mut batch, BATCH_MAX) => count,
            };
            if count == 0 {
                break;
            }
            self.change(batch.drain(..)).await;
        }
        if !self.dirty.is_empty()
            && let Err(error) = self.ship().await
        {
            warn!(
                error = &error as &dyn std::error::Error,
                "the account's last change back is not in the bucket"
            );
        }
    }

    /// Puts what is committed into the bucket.
    pub(super) async fn ship(&mut self) -> Result<(), AccountError> {
        // A dropped ship harms nothing: the next one first finds out what became of the file that was on its way.
        match tokio::time::timeout(SHIP_TIMEOUT, self.shipper.ship()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(replica::Error::Fenced { .. })) => {
                self.fenced.cancel();
                Err(AccountError::Fenced)
            }
            Ok(Err(failure)) => {
                Err(AccountError::Log { action: "ship", source: Arc::new(failure) })
            }
            Err(_) => Err(AccountError::Silent),
        }
    }

    async fn change(&mut self, batch: impl Iterator<Item = Change>) {
        let before = self.published.borrow().clone();
        let mut after = Contents::clone(&before);
        let mut done = Vec::new();
        let mut touched = BTreeSet::new();
        for Change { op, reply } in batch {
            match apply(op, &mut after) {
                Ok(record) => {
                    touched.insert(record.id);
                    done.push((reply, record));
                }
                // A caller that has gone needs no answer, here and below.
                Err(refused) => drop(reply.send(Err(refused))),
            }
        }
        if done.is_empty() {
            return;
        }
        match self.commit(touched, &before, after).await {
            Ok(()) => done.into_iter().for_each(|(reply, record)| drop(reply.send(Ok(record)))),
            Err(failure) => {
                done.into_iter().for_each(|(reply, _)| drop(reply.send(Err(failure.clone()))));
            }
        }
    }

    async fn commit(
        &mut self,
        touched: BTreeSet<SpriteId>,
        before: &Contents,
        after: Contents,
    ) -> Result<(), AccountError> {
        self.dirty.extend(touched);
        let shipped = match self.write(&after) {
            Ok(()) => self.ship().await,
            Err(failure) => Err(database("write", failure)),
        };
        match shipped {
            Ok(()) => {
                self.dirty.clear();
                self.published.send_replace(Arc::new(after));
                Ok(())
            }
            Err(failure) => {
                error!(
                    error = &failure as &dyn std::error::Error,
                    "a change of the account failed and is taken back"
                );
                // The rows stay dirty: the next change writes them again, together with its own.
                if let Err(again) = self.write(before) {
                    error!(
                        error = &again as &dyn std::error::Error,
                        "take a change of the account back"
                    );
                }
                Err(failure)
            }
        }
    }

    /// Makes the rows of all dirty sprites those of `contents`.
    fn write(&mut self, contents: &Contents) -> rusqlite::Result<()> {
        let transaction = self.db.transaction()?;
        // All old rows go before a new one comes, since names move from one sprite to another.
        for id in &self.dirty {
            tables::delete(&transaction, *id)?;
        }
        for record in contents.all().filter(|record| self.dirty.contains(&record.id)) {
            tables::insert(&transaction, record)?;
        }
        transaction.commit()
    }
}

/// Makes the change in memory; returns the new record, or the forgotten one.
fn apply(op: Op, contents: &mut Contents) -> Reply {
    match op {
        Op::Create(record) => {
            if contents.sprites.contains_key(&record.name) {
                return Err(AccountError::Taken(record.name));
            }
            let record = Arc::new(*record);
            contents.insert(record.clone());
            Ok(record)
        }
        Op::Destroy(name, id, at) => {
            let mut record = match contents.sprites.get(&name) {
                Some(record) if record.id == id => SpriteRecord::clone(record),
                _ => return Err(AccountError::Missing(name)),
            };
            contents.sprites.remove(&name);
            record.destroyed_at = Some(at);
            let record = Arc::new(record);
            contents.insert(record.clone());
            Ok(record)
        }
        Op::Forget(id) => contents.destroyed.remove(&id).ok_or(AccountError::Gone(id)),
        Op::Undelete(id, name) => {
            if contents.sprites.contains_key(&name) {
                return Err(AccountError::Taken(name));
            }
            let record = contents.destroyed.remove(&id).ok_or(AccountError::Gone(id))?;
            let mut record = SpriteRecord::clone(&record);
            record.name = name;
            record.destroyed_at = None;
            let record = Arc::new(record);
            contents.insert(record.clone());
            Ok(record)
        }
        Op::Update(name, id, change) => match contents.sprites.get_mut(&name) {
            Some(record) if record.id == id => {
                change(Arc::make_mut(record));
                Ok(record.clone())
            }
            _ => Err(AccountError::Missing(name)),
        },
    }
}
