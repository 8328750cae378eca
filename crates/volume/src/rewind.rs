//! Going back to any instant: the live state of an older copy of the volume's own map, taken back into the map.
//!
//! The log holds the map as it was at each instant that it covers. Every segment of that map is still in the bucket if no
//! more time went by than garbage is kept ([`Volume::whole_since`]). What is different from now becomes a layer on the
//! live state, whose segments are named again by it; nothing is copied.
//!
//! # Failure
//!
//! Every segment that the older state needs and that nothing names now is looked for in the bucket first. If one is gone,
//! or the bucket does not answer, nothing is changed.

use crate::{
    checkpoint::{Checkpoint, frozen_layer, ranges},
    error::{Attempt as _, Error, ErrorKind},
    map::{CheckpointRow, NewRow, OldMap},
    seal::{blocking, ship_until_done},
    segment::SegmentName,
    volume::{Cut, Shared, Volume},
};
use base::backoff::Backoff;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::ObjectStoreExt as _;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

/// Segments that are looked for in the bucket at the same time.
const LOOKS_MAX: usize = 16;

/// Tries of each look.
const RETRIES_MAX: u32 = 6;

impl Volume {
    /// Goes back to the state of an older copy of this volume's map, which the log had at `to`, and keeps the replaced
    /// state as an automatic checkpoint, which is returned. That one counts as an ancestor of the new state from then on.
    ///
    /// `Conflict` if segments of that state are gone, `Invalid` if the copy is not an older one of this volume. Nothing may
    /// use the volume meanwhile: the device is detached. The copy's file is only read, but must not be in use elsewhere.
    pub async fn rewind(&self, old_map: &Path, to: Timestamp) -> Result<Checkpoint, Error> {
        self.shared.check_open()?;
        let cut = self.cut()?;
        self.shared.wait_shipped(cut.batch).await?;
        let rewinding = rewind(self.shared.clone(), old_map.to_owned(), to, cut);
        // In a task of its own it goes on to its end, even if the caller goes away.
        let row = tokio::spawn(rewinding)
            .await
            .map_err(|error| Error::with(ErrorKind::Internal, "run a rewind", error))??;
        Ok(row.into())
    }
}

async fn rewind(
    shared: Arc<Shared>,
    path: PathBuf,
    to: Timestamp,
    cut: Cut,
) -> Result<CheckpointRow, Error> {
    let operations = shared.operations.clone();
    // Garbage is deleted under the same lock, so what is there now stays.
    let mut ship = operations.lock().await;
    let reading = shared.clone();
    let (old, unproven) = blocking(move || {
        reading.check_open()?;
        let old = OldMap::open(&path, reading.settings.volume)?;
        reading.map.check_older(&old)?;
        let unproven = reading.map.unproven(&old)?;
        Ok((old, unproven))
    })
    .await?;
    check(&shared, unproven).await?;
    let changing = shared.clone();
    let row = blocking(move || {
        let comment = format!("before the rewind to {to:.0}");
        let layer = frozen_layer(&cut)?;
        let kept = NewRow { layer, created: Timestamp::now(), comment: &comment, auto: true };
        let mut stale = Vec::new();
        let row = changing.map.graft(&old, &kept, |region, differs| {
            let ranges = ranges(region, differs);
            changing.cache.remove(ranges.iter().cloned());
            stale.extend(ranges);
        })?;
        // Fills that looked at the map before the rewind are refused from here on.
        changing.cache.remove(stale);
        Ok(row)
    })
    .await?;
    ship_until_done(&shared, ship.as_mut()).await;
    shared.changed.store(true, Ordering::Relaxed);
    shared.wake.notify_one();
    Ok(row)
}

/// Looks for all segments in the bucket. `Conflict` says how many are gone.
pub(crate) async fn check(shared: &Shared, segments: Vec<(SegmentName, u64)>) -> Result<(), Error> {
    let found: Vec<bool> = futures::stream::iter(segments)
        .map(|(name, bytes)| is_there(shared, name, bytes))
        .buffer_unordered(LOOKS_MAX)
        .try_collect()
        .await?;
    let gone = found.iter().filter(|there| !**there).count();
    if gone == 0 {
        return Ok(());
    }
    let whole_since = shared.map.deleted_until()?.map(Timestamp::from_millisecond);
    let since = match whole_since {
        Some(Ok(since)) => format!("; every state since {since:.0} is whole"),
        _ => String::new(),
    };
    let message =
        format!("{gone} of the segments of that state are not in the bucket any more{since}");
    Err(Error::new(ErrorKind::Conflict, message))
}

async fn is_there(shared: &Shared, name: SegmentName, bytes: u64) -> Result<bool, Error> {
    let settings = &shared.settings;
    let mut waits = Backoff::new(settings.retry_wait, settings.retry_wait_most(), RETRIES_MAX);
    loop {
        match shared.store.head(&name.key()).await {
            Ok(object) => return Ok(object.size == bytes),
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => match waits.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error).attempt("look for a segment"),
            },
        }
    }
}

#[cfg(test)]
mod tests;
