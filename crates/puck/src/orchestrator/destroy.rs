//! `DELETE /v1/sprites/{name}`, and what follows when nobody takes it back.
//!
//! ```text
//!  living --destroy--> destroyed: asleep, its name is free --time is up, no fork left--> gone, with everything of its volume
//!     ^                    |
//!     +------undelete------+
//! ```
//!
//! A volume that living sprites were forked from is never removed: they read what it holds.

use super::{Orchestrator, Refusal, disk};
use crate::account::{AccountError, Contents, SpriteRecord};
use axum::{
    extract::State,
    http::{StatusCode, Uri},
};
use jiff::{SignedDuration, Timestamp};
use std::{sync::Arc, time::Duration};
use tracing::{info, warn};

/// How often it is looked whose time is up, at most.
const REAP_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// The same, at least.
const REAP_INTERVAL_MIN: Duration = Duration::from_secs(1);

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
    async fn destroy(self: &Arc<Self>, record: &SpriteRecord) -> Result<(), Refusal> {
        let record = self.account.destroy(&record.name, record.id).await?;
        info!(sprite = %record.name, volume = %record.volume, "sprite destroyed");
        if self.undelete_window.is_zero() && !has_forks(&self.account.contents(), &record) {
            return self.reap(&record).await;
        }
        let orchestrator = self.clone();
        self.spawn(async move {
            orchestrator.worker.retire(record.id, &disk(&record)).await;
        });
        Ok(())
    }

    /// Removes what nobody can have back any more, for as long as the server runs.
    pub(crate) async fn reap_forever(self: Arc<Self>) {
        let interval = (self.undelete_window / 4).clamp(REAP_INTERVAL_MIN, REAP_INTERVAL_MAX);
        while tokio::time::timeout(interval, self.stop.cancelled()).await.is_err() {
            let contents = self.account.contents();
            for record in contents.destroyed.values().filter(|record| self.is_due(record)) {
                if has_forks(&contents, record) {
                    continue;
                }
                if let Err(refusal) = self.reap(record).await {
                    warn!(sprite = %record.name, volume = %record.volume, ?refusal, "a destroyed sprite is not removed yet");
                }
            }
        }
    }

    fn is_due(&self, record: &SpriteRecord) -> bool {
        let window = SignedDuration::try_from(self.undelete_window).unwrap_or(SignedDuration::MAX);
        record.destroyed_at.is_some_and(|at| Timestamp::now().duration_since(at) >= window)
    }

    /// Ends a destroyed sprite for good.
    async fn reap(&self, record: &SpriteRecord) -> Result<(), Refusal> {
        self.unpin(record).await?;
        let doom = self.worker.doom(record.volume).map_err(|error| Refusal::unavailable(&error))?;
        match self.account.forget(record.id).await {
            Ok(_) => {
                self.worker.destroy(record.id, &disk(record)).await;
                Ok(())
            }
            // Whoever destroys with no time to take it back, and whoever looks whose time is up, may meet here.
            Err(AccountError::Gone(_)) => Ok(()),
            Err(failure) => {
                self.worker.spare(doom);
                Err(failure.into())
            }
        }
    }

    /// Tells the sprite that this one was forked from that it need not keep anything for it any more.
    async fn unpin(&self, record: &SpriteRecord) -> Result<(), Refusal> {
        let Some(source) = record.ancestors.first() else { return Ok(()) };
        let contents = self.account.contents();
        // Of a source that is destroyed as well nothing is collected before all of it goes; the blank volume has no sprite.
        let Some(source) = contents.sprites.values().find(|sprite| sprite.volume == *source) else {
            return Ok(());
        };
        let lease = self.lease(source).await?;
        lease.agent().unpin(record.volume).await?;
        Ok(())
    }
}

/// Whether a sprite, living or destroyed, was forked from this one.
fn has_forks(contents: &Contents, record: &SpriteRecord) -> bool {
    contents.all().any(|other| other.ancestors.contains(&record.volume))
}
