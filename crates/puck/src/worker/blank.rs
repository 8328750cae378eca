//! The blank volume: formatted once, and forked by every new sprite.
//!
//! The object `blank/FORMAT` names it, created once per bucket and format. It is written after the volume is whole in the
//! bucket, so whoever reads it finds a volume that can be forked. Of two servers that make one at the same time, one wins and
//! the other removes its own.
//!
//! An encrypted account has a blank volume of its own, encrypted as all of its volumes are, and named by `accounts/ORG/blank/FORMAT`:
//! who can write to the bucket could otherwise put something on the disk of every new sprite.

use crate::keys::AccountKeys;
use api::name::OrgName;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    path::Path as Key,
};
use replica::{Log, Shipper};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::{info, warn};
use volume::{Settings, Ship, Volume, VolumeId};

/// How the blank volume is formatted. A change of the formatting takes a new name, and old sprites keep their own ancestor.
const FORMAT: &str = "ext4-1";

/// The longest pointer that is read.
const POINTER_BYTES_MAX: u64 = 4096;

/// The content of the pointer object.
#[derive(Debug, Serialize, Deserialize)]
struct Pointer {
    volume: VolumeId,
}

/// Why there is no blank volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlankError {
    /// The pointer could not be read or written.
    #[error("{action} the pointer to the blank volume")]
    Pointer {
        /// `read` or `create`.
        action: &'static str,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The pointer is not what a server of this kind writes.
    #[error("understand the pointer to the blank volume")]
    Foreign(#[source] serde_json::Error),
    /// The directory for making it could not be used.
    #[error("use {path}")]
    Local {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its log could not be begun.
    #[error("begin the log of the blank volume")]
    Log(#[source] replica::Error),
    /// It could not be formatted or put into the bucket.
    #[error("{action} the blank volume")]
    Volume {
        /// `open`, `format` or `close`.
        action: &'static str,
        /// Why.
        #[source]
        source: volume::Error,
    },
}

/// The blank volume of this bucket, or of an encrypted account; made if there is none.
pub(crate) async fn blank_volume(
    store: &Arc<dyn ObjectStore>,
    volumes: &Path,
    org: &OrgName,
    keys: &AccountKeys,
) -> Result<VolumeId, BlankError> {
    let (pointers, pointer) = (keys.store(store), pointer(org, keys));
    if let Some(volume) = read(&pointers, &pointer).await? {
        return Ok(volume);
    }
    let volume = VolumeId::now();
    info!(%volume, "make the blank volume");
    let directory = volumes.join(volume.to_string());
    let made = make(store, keys, volume, &directory).await;
    if let Err(error) = tokio::fs::remove_dir_all(&directory).await {
        warn!(%volume, error = &error as &dyn std::error::Error, "remove what the blank volume was made in");
    }
    made?;
    let body = serde_json::to_vec(&Pointer { volume }).expect("an id is always JSON");
    let create = PutOptions::from(PutMode::Create);
    match pointers.put_opts(&pointer, PutPayload::from(body), create).await {
        Ok(_) => Ok(volume),
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
            let winner = read(&pointers, &pointer).await?.unwrap_or(volume);
            if winner != volume {
                remove(store, volume).await;
            }
            Ok(winner)
        }
        Err(source) => Err(BlankError::Pointer { action: "create", source }),
    }
}

async fn read(store: &Arc<dyn ObjectStore>, pointer: &Key) -> Result<Option<VolumeId>, BlankError> {
    match store.get_range(pointer, 0..POINTER_BYTES_MAX).await {
        Ok(bytes) => {
            let pointer: Pointer = serde_json::from_slice(&bytes).map_err(BlankError::Foreign)?;
            Ok(Some(pointer.volume))
        }
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(source) => Err(BlankError::Pointer { action: "read", source }),
    }
}

async fn make(
    store: &Arc<dyn ObjectStore>,
    keys: &AccountKeys,
    id: VolumeId,
    directory: &Path,
) -> Result<(), BlankError> {
    crate::data::create_private(directory)
        .map_err(|source| BlankError::Local { path: directory.to_owned(), source })?;
    let failed = |action| move |source| BlankError::Volume { action, source };
    let keys = keys.of_volume(id, &[]);
    let log = Log::new(keys.log_store(id, store.clone()), volume::log_prefix(id));
    let (shipper, _) = log.open(&directory.join("map.db")).await.map_err(BlankError::Log)?;
    let mut settings = Settings::new(id, shipper.epoch(), directory.to_owned());
    settings.keys = keys;
    let volume = Volume::open(settings, store.clone(), Box::new(LogShip(shipper)))
        .await
        .map_err(failed("open"))?;
    volume::blank::create(&volume, &directory.join("blank.img")).await.map_err(failed("format"))?;
    volume.close().await.map_err(failed("close"))
}

async fn remove(store: &Arc<dyn ObjectStore>, volume: VolumeId) {
    let prefix = Key::from(format!("volumes/{volume}"));
    let keys = store.list(Some(&prefix)).map_ok(|meta| meta.location).boxed();
    if let Err(error) = store.delete_stream(keys).try_for_each(|_| async { Ok(()) }).await {
        warn!(%volume, error = &error as &dyn std::error::Error, "remove a blank volume that nobody uses");
    }
}

/// Where the pointer is.
fn pointer(org: &OrgName, keys: &AccountKeys) -> Key {
    if keys.is_encrypted() {
        Key::from(format!("accounts/{org}/blank/{FORMAT}"))
    } else {
        Key::from(format!("blank/{FORMAT}"))
    }
}

/// The log, as the volume sees it.
struct LogShip(Shipper);

#[async_trait]
impl Ship for LogShip {
    async fn ship(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.ship().await?;
        Ok(())
    }
}
