//! Deleting what no reader needs: files that a snapshot covers, once they are old.
//!
//! A file that says that its node took the database over is kept for ever. It has exactly the number that the superseded
//! owner would create next; were it gone, that owner could go on and believe that it still owns the database.

use crate::{
    error::Error,
    layout::{LEVEL_SNAPSHOTS, LEVEL_TRANSACTIONS, Name},
    ltx::{HEADER_BYTES, Header},
    store::{Found, Store},
};
use futures::{TryStreamExt, stream};
use std::time::Duration;

/// How long files stay after they could be deleted, for restores that are under way and for going back in time.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Files that are deleted in one go; the rest waits for the next.
const DELETES_MAX: usize = 2000;

/// Requests at once.
const REQUESTS_AT_ONCE: usize = 16;

/// Deletes the old files before `snapshot`, the last transaction in the newest snapshot.
pub(crate) async fn delete_old(store: &Store, snapshot: u64, now_ms: u64) -> Result<(), Error> {
    let old = |found: &Found| {
        let age_ms = i128::from(now_ms) - i128::from(found.modified_ms);
        found.name.max < snapshot && age_ms > GRACE.as_millis().cast_signed()
    };
    let transactions = store.list(LEVEL_TRANSACTIONS, None).await?;
    let snapshots = store.list(LEVEL_SNAPSHOTS, None).await?;
    // The newest first, so that takeovers, which stay for ever, never fill up what one go looks at.
    let names = transactions
        .into_iter()
        .rev()
        .chain(snapshots)
        .filter(old)
        .map(|found| found.name)
        .take(DELETES_MAX);
    stream::iter(names.map(Ok))
        .try_for_each_concurrent(REQUESTS_AT_ONCE, async |name| {
            if is_takeover(store, name).await? { Ok(()) } else { store.delete(name).await }
        })
        .await
}

async fn is_takeover(store: &Store, name: Name) -> Result<bool, Error> {
    if name.level != LEVEL_TRANSACTIONS {
        return Ok(false);
    }
    let bytes = store.read_start(name, HEADER_BYTES as u64).await?;
    let header =
        Header::decode(&bytes).map_err(|source| Error::File { key: store.key(name), source })?;
    Ok(header.ours.is_some_and(|ours| ours.takeover))
}
