//! The bucket, as the log uses it: a few requests, retried where a second try means the same as the first.

use crate::{
    clock,
    error::Error,
    layout::{LEVEL_SNAPSHOTS, LEVEL_TRANSACTIONS, Layout, Name},
    ltx::Header,
    ownership::{Answer, Entry, Ownership, Step, Writer},
    source::{MERGED_LEVELS, Pending},
};
use base::backoff::Backoff;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::try_join_all};
use jiff::Timestamp;
use object_store::{
    Attribute, Attributes, Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutOptions, path::Path as Key,
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tracing::debug;

/// Waits between tries of a request that failed for a reason that may pass.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_secs(1);
const RETRIES: u32 = 6;

/// Where Litestream looks for the time of a file, which it prefers to the time at which the bucket got it.
const TIMESTAMP_ATTRIBUTE: &str = "litestream-timestamp";

/// One log's part of the bucket.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    layout: Layout,
    /// Cleared when the store has refused attributes.
    takes_attributes: Arc<AtomicBool>,
}

/// How an append ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    /// Another writer owns the log.
    Fenced,
    /// It was a claim, and the old owner has written meanwhile.
    Outrun,
    /// It is in the log.
    Settled,
}

/// A file that a list has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: Name,
    pub(crate) bytes: u64,
    /// When the bucket got it, in milliseconds since 1970.
    pub(crate) modified_ms: i64,
}

impl Store {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: Key, layout: Layout) -> Self {
        Self { store, prefix, layout, takes_attributes: Arc::new(AtomicBool::new(true)) }
    }

    /// The key of a file.
    pub(crate) fn key(&self, name: Name) -> Key {
        self.layout.key(&self.prefix, name)
    }

    /// The files of a level, after one of them or all, ordered by name.
    pub(crate) async fn list(&self, level: u8, after: Option<Name>) -> Result<Vec<Found>, Error> {
        let prefix = self.layout.level(&self.prefix, level);
        let mut retries = Retries::new();
        let mut files = loop {
            let list = match after {
                Some(name) => self.store.list_with_offset(Some(&prefix), &self.key(name)),
                None => self.store.list(Some(&prefix)),
            };
            match list.try_collect::<Vec<ObjectMeta>>().await {
                Ok(files) => {
                    break files.iter().filter_map(|meta| found(level, meta)).collect::<Vec<_>>();
                }
                Err(error) => retries.wait_after(error).await.map_err(bucket("list", &prefix))?,
            }
        };
        files.sort_unstable_by_key(|found| found.name);
        Ok(files)
    }

    /// The files of all levels.
    pub(crate) async fn list_all(&self) -> Result<Vec<Found>, Error> {
        let mut files = self.list(LEVEL_TRANSACTIONS, None).await?;
        files.append(&mut self.list_above().await?);
        Ok(files)
    }

    /// The files of all levels but the lowest.
    pub(crate) async fn list_above(&self) -> Result<Vec<Found>, Error> {
        let lists =
            (1..=MERGED_LEVELS).chain([LEVEL_SNAPSHOTS]).map(|level| self.list(level, None));
        Ok(try_join_all(lists).await?.into_iter().flatten().collect())
    }

    /// Reads a whole file.
    pub(crate) async fn read(&self, name: Name) -> Result<Bytes, Error> {
        self.get(name, None).await
    }

    /// Reads the first bytes of a file.
    pub(crate) async fn read_start(&self, name: Name, bytes: u64) -> Result<Bytes, Error> {
        self.get(name, Some(GetRange::Bounded(0..bytes))).await
    }

    async fn get(&self, name: Name, range: Option<GetRange>) -> Result<Bytes, Error> {
        let key = self.key(name);
        let mut retries = Retries::new();
        loop {
            let options = GetOptions { range: range.clone(), ..GetOptions::default() };
            let got = match self.store.get_opts(&key, options).await {
                Ok(got) => got.bytes().await,
                Err(error) => Err(error),
            };
            match got {
                Ok(bytes) => return Ok(bytes),
                Err(error) => retries.wait_after(error).await.map_err(bucket("read", &key))?,
            }
        }
    }

    /// Puts a file at the end of the log, as the protocol says, until it is settled whose the number is. An error leaves it in
    /// flight: the next call with the same file goes on.
    pub(crate) async fn append(
        &self,
        ownership: &Mutex<Ownership>,
        file: &Pending,
    ) -> Result<Appended, Error> {
        let lock = || ownership.lock().unwrap_or_else(PoisonError::into_inner);
        let key = self.key(file.name);
        if lock().append(file.position.checksum, clock::since_boot()).is_err() {
            return Ok(Appended::Fenced);
        }
        let mut retries = Retries::new();
        let mut step = Step::Again;
        loop {
            step = match step {
                Step::Again => match self.put(&key, &file.bytes, file.time_ms).await {
                    Ok(()) => lock().answered(Answer::Created, clock::since_boot()),
                    Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                        lock().answered(Answer::Taken, clock::since_boot())
                    }
                    Err(error) => {
                        let step = lock().answered(Answer::Unknown, clock::since_boot());
                        retries.wait_after(error).await.map_err(bucket("create", &key))?;
                        step
                    }
                },
                Step::Look => {
                    let there = self.read(file.name).await?;
                    lock().found(entry(file.name, &there), clock::since_boot())
                }
                Step::Settled => return Ok(Appended::Settled),
                Step::Outrun => return Ok(Appended::Outrun),
                Step::Fenced => return Ok(Appended::Fenced),
            }
        }
    }

    /// Creates a file of a higher level. One of the same name is as good: it holds the same numbers of the same chain.
    pub(crate) async fn create(
        &self,
        name: Name,
        bytes: &Bytes,
        time_ms: u64,
    ) -> Result<(), Error> {
        let key = self.key(name);
        let mut retries = Retries::new();
        loop {
            match self.put(&key, bytes, time_ms).await {
                Ok(())
                | Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    return Ok(());
                }
                Err(error) => retries.wait_after(error).await.map_err(bucket("create", &key))?,
            }
        }
    }

    async fn put(&self, key: &Key, bytes: &Bytes, time_ms: u64) -> Result<(), StoreError> {
        let mut options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        if self.takes_attributes.load(Ordering::Relaxed) {
            options.attributes = timestamp_attribute(time_ms);
            match self.store.put_opts(key, bytes.clone().into(), options.clone()).await {
                Err(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }) => {
                    self.takes_attributes.store(false, Ordering::Relaxed);
                    options.attributes = Attributes::new();
                }
                other => return other.map(drop),
            }
        }
        self.store.put_opts(key, bytes.clone().into(), options).await.map(drop)
    }

    /// Deletes a file; one that is gone already is no error.
    pub(crate) async fn delete(&self, name: Name) -> Result<(), Error> {
        let key = self.key(name);
        let mut retries = Retries::new();
        loop {
            match self.store.delete(&key).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => return Ok(()),
                Err(error) => retries.wait_after(error).await.map_err(bucket("delete", &key))?,
            }
        }
    }

    /// Reads many files, some at a time, and gives them back in order.
    pub(crate) fn read_all(
        &self,
        names: Vec<Name>,
        at_once: usize,
    ) -> impl futures::Stream<Item = Result<(Name, Bytes), Error>> + Send + use<> {
        let store = self.clone();
        futures::stream::iter(names)
            .map(move |name| {
                let store = store.clone();
                async move { Ok((name, store.read(name).await?)) }
            })
            .buffered(at_once)
    }
}

/// What a file of level 0 is to the protocol. Whatever is no log file is somebody else's.
pub(crate) fn entry(name: Name, bytes: &[u8]) -> Entry {
    let writer = Header::decode(bytes).map_or(Writer { epoch: 0, nonce: 0 }, |header| Writer {
        epoch: header.node,
        nonce: header.ours.map_or(0, |ours| ours.nonce),
    });
    let checksum = bytes.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    Entry { txid: name.max, writer, checksum }
}

fn found(level: u8, meta: &ObjectMeta) -> Option<Found> {
    let name = Name::parse(level, meta.location.filename()?)?;
    Some(Found { name, bytes: meta.size, modified_ms: meta.last_modified.timestamp_millis() })
}

fn bucket(action: &'static str, key: &Key) -> impl FnOnce(StoreError) -> Error {
    let key = key.clone();
    move |source| Error::Bucket { action, key, source }
}

fn timestamp_attribute(time_ms: u64) -> Attributes {
    let time = i64::try_from(time_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or_default();
    Attributes::from_iter([(Attribute::Metadata(TIMESTAMP_ATTRIBUTE.into()), format!("{time:.3}"))])
}

/// Waits between the tries of one request.
struct Retries(Backoff);

impl Retries {
    fn new() -> Self {
        Self(Backoff::new(RETRY_FIRST, RETRY_MOST, RETRIES))
    }

    /// Returns when the request may be tried again, and fails with its error when another try is not worth it or too many
    /// were.
    async fn wait_after(&mut self, error: StoreError) -> Result<(), StoreError> {
        if !may_pass(&error) {
            return Err(error);
        }
        match self.0.next() {
            Some(wait) => {
                debug!(
                    error = &error as &dyn std::error::Error,
                    ?wait,
                    "bucket request failed, trying again"
                );
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None => Err(error),
        }
    }
}

/// Whether the same request could succeed later: the connection, the server or the local disk failed, and nobody refused.
fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Generic { .. } | StoreError::JoinError { .. })
}
