//! The end of a volume: local state first, then every object, then the mark.

use super::site::Site;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, path::Path as Key};
use std::io;
use tracing::{info, warn};
use volume::VolumeId;

/// Removes all that there is of a volume. What fails is tried again at the next start, since the mark stays.
pub(super) async fn remove(site: &Site, volume: VolumeId) {
    assert!(volume != site.blank, "the blank volume belongs to all sprites");
    match try_remove(site, volume).await {
        Ok(objects) => {
            site.unsettled.remove(volume);
            info!(%volume, objects, "volume removed");
        }
        Err(error) => {
            warn!(%volume, error = &*error as &dyn std::error::Error, "volume is not wholly removed");
        }
    }
}

async fn try_remove(
    site: &Site,
    volume: VolumeId,
) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    for directory in [site.volume_directory(volume), site.pooled_directory(volume)] {
        match tokio::fs::remove_dir_all(directory).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let prefix = Key::from(format!("volumes/{volume}"));
    let keys = site.store.list(Some(&prefix)).map_ok(|meta| meta.location).boxed();
    let removed = site
        .store
        .delete_stream(keys)
        .filter_map(|outcome| async move {
            match outcome {
                // Gone already, as after an earlier try.
                Err(object_store::Error::NotFound { .. }) => None,
                other => Some(other),
            }
        })
        .try_fold(0, |count, _| async move { Ok(count + 1) });
    Ok(removed.await?)
}
