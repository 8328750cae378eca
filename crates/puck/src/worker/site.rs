//! What all machines of a worker share.

use super::{machine::BootError, marks::Marks};
use crate::{image, keys::AccountKeys};
use guest::protocol::Limits;
use object_store::ObjectStore;
use runtime::Host;
use std::{collections::BTreeMap, io, net::IpAddr, path::PathBuf, sync::Arc};
use tokio::sync::{AcquireError, Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::warn;
use volume::VolumeId;

/// How many machines boot at the same time: more would only make each slower.
pub(super) const BOOTS_MAX: usize = 8;

/// The surroundings of the machines of one worker.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) host: Arc<Host>,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) keys: AccountKeys,
    /// The directory of the local state of all volumes.
    pub(super) volumes: PathBuf,
    /// The directory of the local state of the volumes of pooled machines, apart so that volumes whose sprites sleep can be
    /// deleted together.
    pub(super) pooled: PathBuf,
    /// The directory of the base images.
    pub(super) images: PathBuf,
    /// The volume that new ones are forked from.
    pub(super) blank: VolumeId,
    /// The digest of the image that new sprites get.
    pub(super) image: String,
    pub(super) epoch: u64,
    pub(super) cache_bytes_max: u64,
    pub(super) dns: Vec<IpAddr>,
    pub(super) limits: Limits,
    pub(super) unsettled: Marks,
    /// What must have ended before the worker has.
    pub(super) tasks: TaskTracker,
    pub(super) turns: Arc<Semaphore>,
    /// Where each image is mounted.
    pub(super) mounted: Mutex<BTreeMap<String, PathBuf>>,
}

impl Site {
    /// The directory of the local state of one volume.
    pub(super) fn volume_directory(&self, volume: VolumeId) -> PathBuf {
        self.volumes.join(volume.to_string())
    }

    /// The directory of the local state of the volume of a pooled machine.
    pub(super) fn pooled_directory(&self, volume: VolumeId) -> PathBuf {
        self.pooled.join(volume.to_string())
    }

    /// Waits until another machine may boot.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.turns.clone().acquire_owned().await
    }

    /// The directory where a base image is mounted; gets and mounts it at its first use.
    pub(super) async fn base_image(&self, digest: &str) -> Result<PathBuf, BootError> {
        let mut mounted = self.mounted.lock().await;
        if let Some(path) = mounted.get(digest) {
            return Ok(path.clone());
        }
        let parsed: image::Digest =
            digest.parse().map_err(|error| BootError::Image(digest.to_owned(), Box::new(error)))?;
        let file = image::fetch(&*self.store, &parsed, &self.images)
            .await
            .map_err(|error| BootError::Image(digest.to_owned(), Box::new(error)))?;
        let path = self.host.mount_image(&file, digest).await.map_err(BootError::Host)?;
        mounted.insert(digest.to_owned(), path.clone());
        Ok(path)
    }

    /// Removes what this disk has of a volume that the bucket has all of.
    pub(super) async fn remove_local(&self, volume: VolumeId) {
        if self.unsettled.has(volume) {
            return;
        }
        match tokio::fs::remove_dir_all(self.volume_directory(volume)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%volume, error = &error as &dyn std::error::Error, "the cache of a destroyed sprite stays");
            }
            _ => {}
        }
    }

    /// Removes all that there is of a volume, here and in the bucket, and its mark.
    pub(super) async fn remove_volume(&self, volume: VolumeId) {
        super::removal::remove(self, volume).await;
    }
}
