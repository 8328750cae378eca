//! Giving space back: merging dead layers and deleting segments that nothing names, a bounded step at a time.

use crate::{
    error::{Attempt as _, Error},
    failpoint::Point,
    map::{Garbage, MergeCursor},
    seal::{blocking, ship_until_done},
    volume::Shared,
};
use object_store::ObjectStoreExt as _;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Garbage is looked for so long after the last change, and then as long as there is any.
pub(crate) const RECLAIM_DELAY: Duration = Duration::from_secs(5);

/// The most steps of merging, and the most deleted objects, between two looks for writes to seal.
const MERGE_STEPS_MAX: usize = 4;
const DELETES_MAX: usize = 32;

/// What is known about garbage.
pub(crate) struct Reclaim {
    /// When to look next.
    pub(crate) at: Option<Instant>,
    cursor: MergeCursor,
}

impl Reclaim {
    pub(crate) fn new(at: Instant) -> Self {
        Self { at: Some(at), cursor: MergeCursor::default() }
    }

    /// Merges some layers and deletes some segments. A failure is tried again later; nothing depends on it.
    pub(crate) async fn step(&mut self, shared: &Arc<Shared>) {
        self.at = match self.try_step(shared).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot give space back; trying later"
                );
                Some(Instant::now() + RECLAIM_DELAY)
            }
        };
    }

    async fn try_step(&mut self, shared: &Arc<Shared>) -> Result<Option<Instant>, Error> {
        let operations = shared.operations.clone();
        let mut ship = operations.lock().await;
        let mut cursor = std::mem::take(&mut self.cursor);
        let merging = shared.clone();
        let (more, cursor) = blocking(move || {
            let mut more = false;
            for _ in 0..MERGE_STEPS_MAX {
                more = merging.map.merge_some(&mut cursor)?;
                if !more {
                    break;
                }
            }
            Ok((more, cursor))
        })
        .await?;
        self.cursor = cursor;
        let delay = i64::try_from(shared.settings.garbage_delay.as_millis()).unwrap_or(i64::MAX);
        let before = jiff::Timestamp::now().as_millisecond().saturating_sub(delay);
        let garbage = shared.map.garbage(shared.settings.volume, before, DELETES_MAX)?;
        // The log must say that nothing names them before they go, and what was merged must be in it anyway.
        ship_until_done(shared, ship.as_mut()).await;
        if !garbage.is_empty() {
            delete(shared, &garbage).await?;
            let failpoints = &shared.settings.failpoints;
            failpoints.reach(Point::GarbageDeleted).await;
            let (forgetting, forgotten) = (shared.clone(), garbage.clone());
            blocking(move || forgetting.map.forget(&forgotten)).await?;
            failpoints.reach(Point::GarbageForgotten).await;
            ship_until_done(shared, ship.as_mut()).await;
        }
        if more || garbage.len() == DELETES_MAX {
            return Ok(Some(Instant::now()));
        }
        let oldest = shared.map.garbage_since(shared.settings.volume)?;
        Ok(oldest.map(|since| {
            let due =
                since.saturating_add(delay).saturating_sub(jiff::Timestamp::now().as_millisecond());
            Instant::now() + Duration::from_millis(u64::try_from(due).unwrap_or(0) + 1)
        }))
    }
}

async fn delete(shared: &Shared, garbage: &[Garbage]) -> Result<(), Error> {
    for segment in garbage {
        match shared.store.delete(&segment.name.key()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error).attempt("delete a segment that nothing names"),
        }
    }
    Ok(())
}
