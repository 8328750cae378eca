//! Checkpoints of this machine's disk, as the API asks for them.

use crate::{
    api::checkpoints::{CheckpointError, Checkpoints},
    disk::DiskError,
    machine::{Machine, MachineError},
};
use api::checkpoint::{CURRENT, Checkpoint};
use async_trait::async_trait;
use jiff::Timestamp;
use std::sync::Arc;
use volume::ErrorKind;

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
        let volume = self.0.volume().await.map_err(failed)?;
        volume.delete_checkpoint(id).await.map_err(volume_failed)
    }

    async fn restore(&self, id: &str) -> Result<(), CheckpointError> {
        self.0.restore(id).await.map_err(failed)
    }
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
        MachineError::Disk(DiskError::Volume { source, .. }) => volume_failed(source),
        MachineError::Asleep => CheckpointError::Conflict(error.to_string()),
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
