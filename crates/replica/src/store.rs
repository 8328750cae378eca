//! The bucket, as the log uses it: a few requests, retried where a second try means the same as the first.

use crate::{
    error::Error,
    layout::{Layout, Name},
};
use base::backoff::Backoff;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::{
    Attribute, Attributes, Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutOptions, path::Path as Key,
};
use std::{
    sync::{
        Arc,
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

/// A file that a list has found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) name: Name,
    pub(crate) bytes: u64,
    /// When the bucket got it, in milliseconds since 1970.
    pub(crate) modified_ms: i64,
}

/// How a create-only PUT ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    /// The object holds what was put, by this request or by one before it whose answer was lost.
    Ours,
    /// The object holds something else.
    Taken,
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

    /// Creates a file, unless there is one of this name. An answer that was lost is found out by comparing bytes.
    pub(crate) async fn create(
        &self,
        name: Name,
        bytes: &Bytes,
        time_ms: u64,
    ) -> Result<Created, Error> {
        let key = self.key(name);
        let mut retries = Retries::new();
        loop {
            match self.put(&key, bytes, time_ms).await {
                Ok(()) => return Ok(Created::Ours),
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    let there = self.read(name).await?;
                    return Ok(if there == *bytes { Created::Ours } else { Created::Taken });
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
