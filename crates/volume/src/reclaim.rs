//! Giving space back: merging dead layers, rewriting segments of which little is left, and deleting those that nothing
//! names, a bounded step at a time.
//!
//! A segment that nothing names is kept for a while, since a state of that time can be gone back to ([`Volume::rewind`]):
//! for `garbage_delay`, or until there is more of it than [`REWIND_BYTES_MAX`] and more than what is named; then the oldest
//! goes first. The order of a deletion: the map notes which states are not whole any more, the log that says so and that
//! nothing names the segment is in the bucket, the object goes, its row goes.
//!
//! # Failure
//!
//! Whatever fails is tried again later; nothing depends on it. A segment that is gone while its row is not is deleted once
//! more, which is no error.

mod compact;

use crate::{
    error::{Attempt as _, Error, ErrorKind},
    failpoint::Point,
    map::{Garbage, MergeCursor, Window},
    seal::{blocking, ship_until_done},
    volume::{Shared, Volume},
};
use compact::Compaction;
use jiff::Timestamp;
use object_store::ObjectStoreExt as _;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Garbage is looked for so long after the last change, and then as long as there is any.
pub(crate) const RECLAIM_DELAY: Duration = Duration::from_secs(5);

/// The bytes that are kept for rewinding alone, if what is named is not more.
const REWIND_BYTES_MAX: u64 = 10 << 30;

/// A segment is not deleted sooner than this after it became garbage, however much there is, unless all garbage is to go
/// sooner: a read that found it in the map may still be on its way.
const READ_GRACE: Duration = Duration::from_secs(600);

/// The most steps of merging, and the most deleted objects, between two looks for writes to seal.
const MERGE_STEPS_MAX: usize = 4;
const DELETES_MAX: usize = 32;

/// What is known about space to give back.
pub(crate) struct Reclaim {
    /// When to look next.
    pub(crate) at: Option<Instant>,
    cursor: MergeCursor,
    compaction: Compaction,
}

impl Reclaim {
    pub(crate) fn new(at: Instant) -> Self {
        let compaction = Compaction::default();
        Self { at: Some(at), cursor: MergeCursor::default(), compaction }
    }

    /// Does a bounded part of what there is to do, and decides when to look next.
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
        if pass(shared, &mut self.cursor).await? {
            return Ok(Some(Instant::now()));
        }
        let oldest = shared.map.garbage_since()?;
        let garbage = oldest.map(|since| {
            let due = since.saturating_add(window(shared).delay);
            let wait = due.saturating_sub(Timestamp::now().as_millisecond());
            Instant::now() + Duration::from_millis(u64::try_from(wait).unwrap_or(0) + 1)
        });
        let compaction = self.compaction.step(shared)?;
        Ok([garbage, compaction].into_iter().flatten().min())
    }
}

impl Volume {
    /// Merges and deletes everything that is due now, without waiting for the background. For a volume that is about to be
    /// closed for long, like a retired one, which is opened with a short `garbage_delay`: nobody rewinds it any more.
    pub async fn reclaim(&self) -> Result<(), Error> {
        self.shared.check_open()?;
        let shared = self.shared.clone();
        // A task of its own is never dropped in the middle of shipping.
        let reclaiming = tokio::spawn(async move {
            let mut cursor = MergeCursor::default();
            while pass(&shared, &mut cursor).await? {}
            Ok(())
        });
        reclaiming
            .await
            .map_err(|error| Error::with(ErrorKind::Internal, "give space back", error))?
    }

    /// The time since when every state of the volume is whole in the bucket, so that [`Volume::rewind`] can go back to it;
    /// none if nothing was ever deleted. How far the log reaches back is another matter.
    pub fn whole_since(&self) -> Result<Option<Timestamp>, Error> {
        self.shared.check_open()?;
        let until = self.shared.map.deleted_until()?;
        Ok(until.map(|until| Timestamp::from_millisecond(until).unwrap_or(Timestamp::MAX)))
    }
}

/// Merges some layers and deletes some segments. Returns whether there is more.
async fn pass(shared: &Arc<Shared>, cursor: &mut MergeCursor) -> Result<bool, Error> {
    let operations = shared.operations.clone();
    let mut ship = operations.lock().await;
    let mut merged = std::mem::take(cursor);
    let merging = shared.clone();
    let (more, merged) = blocking(move || {
        let mut more = false;
        for _ in 0..MERGE_STEPS_MAX {
            more = merging.map.merge_some(&mut merged)?;
            if !more {
                break;
            }
        }
        Ok((more, merged))
    })
    .await?;
    *cursor = merged;
    let garbage = shared.map.garbage(shared.settings.volume, &window(shared), DELETES_MAX)?;
    let lost = garbage.iter().filter(|garbage| is_own(shared, garbage) && garbage.bytes > 0);
    if let Some(until) = lost.map(|garbage| garbage.dead).max() {
        let noting = shared.clone();
        blocking(move || noting.map.note_deletion(until)).await?;
    }
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
    Ok(more || garbage.len() == DELETES_MAX)
}

fn window(shared: &Shared) -> Window {
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2);
    let delay = shared.settings.garbage_delay;
    Window {
        now: Timestamp::now().as_millisecond(),
        delay: millis(delay),
        grace: millis(delay.min(READ_GRACE)),
        bytes_max: REWIND_BYTES_MAX,
    }
}

fn is_own(shared: &Shared, garbage: &Garbage) -> bool {
    garbage.name.volume == shared.settings.volume
}

/// Deletes the objects that are this volume's. Those of fork ancestors are only forgotten.
async fn delete(shared: &Shared, garbage: &[Garbage]) -> Result<(), Error> {
    for segment in garbage.iter().filter(|garbage| is_own(shared, garbage)) {
        match shared.store.delete(&segment.name.key()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error).attempt("delete a segment that nothing names"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
