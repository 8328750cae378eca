//! Checkpoints of this machine's disk, as the API asks for them.

use crate::{
    api::checkpoints::{CheckpointError, Checkpoints},
    browse::BrowseError,
    diff::diff,
    disk::DiskError,
    machine::{Machine, MachineError},
    view::MountedView,
};
use api::{
    checkpoint::{CURRENT, Checkpoint},
    sprite::Durability,
    volume::{Change, VolumeState, VolumeStatus},
};
use async_trait::async_trait;
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::mpsc;
use volume::{ErrorKind, State};

/// The machine's disk and its history.
pub(crate) struct DiskCheckpoints(pub(crate) Arc<Machine>);

#[async_trait]
impl Checkpoints for DiskCheckpoints {
    async fn create(&self, comment: &str) -> Result<Checkpoint, CheckpointError> {
        self.0.checkpoint(comment, false).await.map(checkpoint).map_err(failed)
    }

    async fn list(&self) -> Result<Vec<Checkpoint>, CheckpointError> {
        let volume = self.0.volume().await.map_err(failed)?;
        let all = volume.checkpoints().map_err(volume_failed)?;
        let base = volume.current_base().map_err(volume_failed)?;
        let mut history: Vec<String> = base.iter().cloned().collect();
        if let Some(base) = all.iter().find(|checkpoint| Some(&checkpoint.id) == base.as_ref()) {
            history.extend(base.history.iter().cloned());
        }
        let current = Checkpoint {
            id: CURRENT.to_owned(),
            create_time: Timestamp::now(),
            comment: String::new(),
            is_auto: false,
            source_id: base,
            history,
            health: String::new(),
        };
        Ok(std::iter::once(current).chain(all.into_iter().map(checkpoint)).collect())
    }

    async fn delete(&self, id: &str) -> Result<(), CheckpointError> {
        self.0.delete_checkpoint(id).await.map_err(failed)
    }

    async fn restore(&self, id: &str) -> Result<(), CheckpointError> {
        self.0.restore(id).await.map_err(failed)
    }

    async fn rewind(&self, at: Timestamp) -> Result<(), CheckpointError> {
        self.0.rewind(at).await.map_err(failed)
    }

    async fn browse(&self, id: &str) -> Result<(), CheckpointError> {
        self.0.browse(id).await.map_err(failed)
    }

    async fn diff(
        &self,
        from: &str,
        to: &str,
        changes: mpsc::Sender<Change>,
    ) -> Result<(), CheckpointError> {
        let volume = self.0.volume().await.map_err(failed)?;
        let container = self.0.container().await.map_err(failed)?;
        let (from, to) = (from.to_owned(), to.to_owned());
        let comparing = tokio::task::spawn_blocking(move || {
            let mount = |id| MountedView::mount(&volume, id, &container).map_err(disk_failed);
            compare(&mount(&from)?, &mount(&to)?, &changes)
        });
        comparing.await.map_err(|error| CheckpointError::Failed(error.into()))?
    }

    async fn status(&self) -> Result<VolumeStatus, CheckpointError> {
        let volume = self.0.volume().await.map_err(failed)?;
        let oldest_rewind = self.0.oldest().await.map_err(failed)?;
        let (lag, state, durability) = (volume.lag(), volume.state(), volume.durability());
        let stats = tokio::task::spawn_blocking(move || volume.stats())
            .await
            .map_err(|error| CheckpointError::Failed(error.into()))?
            .map_err(volume_failed)?;
        Ok(VolumeStatus {
            durability: match durability {
                volume::Durability::Default => Durability::Default,
                volume::Durability::Strict => Durability::Strict,
            },
            state: match state {
                State::Settled => VolumeState::Settled,
                State::Sealing => VolumeState::Sealing,
                State::Behind(_) => VolumeState::Behind,
                State::Blocked(_) => VolumeState::Blocked,
            },
            trouble: match state {
                State::Behind(trouble) | State::Blocked(trouble) => trouble.error,
                State::Settled | State::Sealing => None,
            },
            lag_bytes: lag.bytes,
            lag_seconds: lag.seconds,
            logical_bytes: stats.logical_bytes,
            live_bytes: stats.live_bytes,
            stored_bytes: stats.stored_bytes,
            reclaimable_bytes: stats.reclaimable_bytes,
            cached_bytes: stats.cached_bytes,
            oldest_rewind,
        })
    }
}

/// Walks both states. Blocks the thread.
fn compare(
    from: &MountedView,
    to: &MountedView,
    changes: &mpsc::Sender<Change>,
) -> Result<(), CheckpointError> {
    let trees = (from.tree().map_err(disk_failed)?, to.tree().map_err(disk_failed)?);
    let told = diff(&trees.0, &trees.1, |change| changes.blocking_send(change).is_ok());
    told.map_err(|error| CheckpointError::Failed(error.into()))
}

fn checkpoint(checkpoint: volume::Checkpoint) -> Checkpoint {
    Checkpoint {
        id: checkpoint.id,
        create_time: checkpoint.created,
        comment: checkpoint.comment,
        is_auto: checkpoint.auto,
        source_id: checkpoint.source,
        history: checkpoint.history,
        health: String::new(),
    }
}

fn failed(error: MachineError) -> CheckpointError {
    match error {
        MachineError::Disk(error) | MachineError::Browse(BrowseError::Disk(error)) => {
            disk_failed(error)
        }
        MachineError::Browse(error) => CheckpointError::Conflict(error.to_string()),
        MachineError::Asleep => CheckpointError::Conflict(error.to_string()),
        error => CheckpointError::Failed(error.into()),
    }
}

fn disk_failed(error: DiskError) -> CheckpointError {
    match error {
        DiskError::Volume { source, .. } => volume_failed(source),
        DiskError::Log(replica::Error::Unreachable { .. }) => {
            CheckpointError::Conflict("the disk's history does not reach that far back".to_owned())
        }
        error => CheckpointError::Failed(error.into()),
    }
}

fn volume_failed(error: volume::Error) -> CheckpointError {
    match error.kind() {
        ErrorKind::NotFound => CheckpointError::NotFound,
        ErrorKind::Conflict => CheckpointError::Conflict(error.to_string()),
        _ => CheckpointError::Failed(error.into()),
    }
}
