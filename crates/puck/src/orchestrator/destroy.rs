//! `DELETE /v1/sprites/{name}`: the record first, then the machine, then everything of the volume.

use super::{Orchestrator, Refusal, disk};
use crate::account::SpriteRecord;
use axum::{
    extract::State,
    http::{StatusCode, Uri},
};
use std::sync::Arc;
use tracing::info;

pub(super) async fn destroy(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
) -> Result<StatusCode, Refusal> {
    let record = orchestrator.find(&uri)?;
    // A caller that goes away must not leave half a sprite.
    let work = orchestrator.clone();
    let destroyed = orchestrator.tasks.spawn(async move { work.destroy(&record).await }).await;
    destroyed.map_err(|error| Refusal::unavailable(&error))??;
    Ok(StatusCode::NO_CONTENT)
}

impl Orchestrator {
    async fn destroy(&self, record: &SpriteRecord) -> Result<(), Refusal> {
        let doom = self.worker.doom(record.volume).map_err(|error| Refusal::unavailable(&error))?;
        if let Err(failure) = self.account.destroy(&record.name, record.id).await {
            self.worker.spare(doom);
            return Err(failure.into());
        }
        self.worker.destroy(record.id, &disk(record)).await;
        info!(sprite = %record.name, volume = %record.volume, "sprite destroyed");
        Ok(())
    }
}
