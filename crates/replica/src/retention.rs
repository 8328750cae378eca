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

#[cfg(test)]
mod tests {
    use super::{GRACE, delete_old};
    use crate::{
        layout::{Layout, Name},
        ltx::{Encoder, Header, Ours},
        store::Store,
    };
    use jiff::Timestamp;
    use object_store::{memory::InMemory, path::Path as Key};
    use std::sync::Arc;

    async fn put(store: &Store, name: Name, takeover: bool) {
        let header = Header {
            page_size: 4096,
            page_count: 0,
            min: name.min,
            max: name.max,
            time_ms: 0,
            wal_offset: 0,
            wal_size: 0,
            wal_salt: [0, 0],
            node: 1,
            ours: Some(Ours { digest: 1, nonce: 2, takeover }),
        };
        let bytes = Encoder::new(&header).finish().0.into();
        store.create(name, &bytes, 0).await.expect("a put");
    }

    async fn names(store: &Store) -> Vec<String> {
        let mut names = Vec::new();
        for level in [0, 9] {
            let found = store.list(level, None).await.expect("a list");
            names.extend(
                found.iter().map(|found| format!("{level}:{}-{}", found.name.min, found.name.max)),
            );
        }
        names
    }

    #[tokio::test]
    async fn old_covered_files_go_and_takeovers_stay() {
        let store = Store::new(Arc::new(InMemory::new()), Key::from("log"), Layout::Bucket);
        for txid in 1..=6 {
            put(&store, Name::transaction(txid), txid == 3).await;
        }
        put(&store, Name::snapshot(2), false).await;
        put(&store, Name::snapshot(5), false).await;
        let before = names(&store).await;
        let now_ms = u64::try_from(Timestamp::now().as_millisecond()).expect("after 1970");
        delete_old(&store, 5, now_ms).await.expect("nothing to delete");
        assert_eq!(names(&store).await, before);
        let later_ms = now_ms + u64::try_from(GRACE.as_millis()).expect("a day") + 60_000;
        delete_old(&store, 5, later_ms).await.expect("deletes");
        assert_eq!(names(&store).await, ["0:3-3", "0:5-5", "0:6-6", "9:1-5"]);
    }
}
