//! Deleting what no reader needs: a policy over what lists have found, and the deletions.
//!
//! Within the rewind window every file of level 0 stays, so that each instant at which something was shipped can be restored.
//! Behind it goes what comes before the newest snapshot that is older than the window. Files of level 1 are only a short cut
//! past level 0, and go once level 3 covers them. When level 0 grows larger than it may, its oldest files go early where
//! a higher level covers them; then only the ends of those can be restored.
//!
//! A claim is kept for ever. It has exactly the number that the superseded owner would create next; were it gone, that owner
//! could go on and believe that it still owns the database.

use crate::{
    error::Error,
    layout::{LEVEL_SNAPSHOTS, LEVEL_TRANSACTIONS, Name},
    ltx::{HEADER_BYTES, Header},
    settings::Settings,
    source::MERGED_LEVELS,
    store::{Found, Store},
};
use futures::{TryStreamExt, stream};
use std::time::Duration;

/// How long files stay for restores that are under way.
const GRACE: Duration = Duration::from_secs(60 * 60);

/// A claim is not larger: a file without pages has 131 bytes, and a store may add some to each.
const CLAIM_BYTES_MAX: u64 = 256;

/// Files that are deleted in one go; the rest waits for the next.
const DELETES_MAX: usize = 10_000;

/// Requests at once.
const REQUESTS_AT_ONCE: usize = 16;

/// Finds and deletes what has become old.
pub(crate) async fn sweep(
    store: &Store,
    settings: &Settings,
    database_bytes: u64,
) -> Result<(), Error> {
    let files = store.list_all().await?;
    // The bucket's own clock tells how old a file is: the newest file was written just now. This machine's may be wrong.
    let now_ms = files.iter().map(|found| found.modified_ms).max().unwrap_or(0);
    delete(store, deletable(&files, settings, database_bytes, now_ms)).await
}

async fn delete(store: &Store, old: Vec<Found>) -> Result<(), Error> {
    stream::iter(old.into_iter().take(DELETES_MAX).map(Ok))
        .try_for_each_concurrent(REQUESTS_AT_ONCE, async |found| {
            if is_claim(store, found).await? { Ok(()) } else { store.delete(found.name).await }
        })
        .await
}

/// What may go, in the order in which it goes. Claims are not told apart yet.
fn deletable(files: &[Found], settings: &Settings, database_bytes: u64, now_ms: i64) -> Vec<Found> {
    let age_ms = |found: &Found| i128::from(now_ms) - i128::from(found.modified_ms);
    let window_ms = settings.rewind_window.max(GRACE).as_millis().cast_signed();
    let level = |level: u8| files.iter().filter(move |found| found.name.level == level);
    // Whatever is restored in the window comes after this snapshot.
    let base = level(LEVEL_SNAPSHOTS)
        .filter(|found| age_ms(found) > window_ms)
        .map(|found| found.name.max)
        .max()
        .unwrap_or(0);
    let top = Covered::by(level(MERGED_LEVELS));
    let (mut old, mut kept): (Vec<Found>, Vec<Found>) =
        files.iter().partition(|found| match found.name.level {
            LEVEL_TRANSACTIONS | LEVEL_SNAPSHOTS => found.name.max < base,
            1 if age_ms(found) > GRACE.as_millis().cast_signed() => {
                found.name.max <= base || top.covers(found.name)
            }
            _ => found.name.max <= base,
        });
    // What is left of a chain without its beginning is of no use, so the beginnings go first.
    old.sort_unstable_by_key(|found| (std::cmp::Reverse(found.name.level), found.name.max));
    kept.retain(|found| found.name.level == LEVEL_TRANSACTIONS);
    kept.sort_unstable_by_key(|found| found.name.max);
    let mut bytes: u64 = kept.iter().map(|found| found.bytes).sum();
    let bytes_max = settings.rewind_bytes_max.max(database_bytes);
    let any = Covered::by((1..=MERGED_LEVELS).flat_map(level));
    for found in kept {
        if bytes <= bytes_max || age_ms(&found) <= GRACE.as_millis().cast_signed() {
            break;
        }
        if any.covers(found.name) {
            bytes -= found.bytes;
            old.push(found);
        }
    }
    old
}

/// Numbers that some files hold: each file's first, in ascending order, with the last of all so far.
struct Covered(Vec<(u64, u64)>);

impl Covered {
    fn by<'a>(files: impl Iterator<Item = &'a Found>) -> Self {
        let mut spans: Vec<(u64, u64)> =
            files.map(|found| (found.name.min, found.name.max)).collect();
        spans.sort_unstable();
        let mut reached = 0;
        for (_, max) in &mut spans {
            reached = reached.max(*max);
            *max = reached;
        }
        Self(spans)
    }

    /// Whether one of the files holds all that this one does.
    fn covers(&self, name: Name) -> bool {
        let before = self.0.partition_point(|(min, _)| *min <= name.min);
        before.checked_sub(1).is_some_and(|at| self.0[at].1 >= name.max)
    }
}

/// Only a file without pages, or the first of a log, can be a claim. Larger ones are not read to find out.
async fn is_claim(store: &Store, found: Found) -> Result<bool, Error> {
    let name = found.name;
    if name.level != LEVEL_TRANSACTIONS || (found.bytes > CLAIM_BYTES_MAX && name.max > 1) {
        return Ok(false);
    }
    let bytes = store.read_start(name, HEADER_BYTES as u64).await?;
    let header =
        Header::decode(&bytes).map_err(|source| Error::File { key: store.key(name), source })?;
    Ok(header.ours.is_some_and(|ours| ours.takeover))
}

#[cfg(test)]
mod tests {
    use super::{deletable, delete, sweep};
    use crate::{
        layout::{Layout, Name},
        ltx::{Encoder, Header, Ours},
        settings::Settings,
        store::{Found, Store},
    };
    use object_store::{memory::InMemory, path::Path as Key};
    use std::{sync::Arc, time::Duration};

    const HOUR: i64 = 60 * 60 * 1000;

    /// A file of 100 bytes that is so many hours old at hour 100.
    fn file(level: u8, min: u64, max: u64, hours: i64) -> Found {
        Found { name: Name { level, min, max }, bytes: 100, modified_ms: (100 - hours) * HOUR }
    }

    fn check(files: &[Found], bytes_max: u64, expected: &[(u8, u64)]) {
        let settings = Settings { rewind_bytes_max: bytes_max, ..Settings::default() };
        let old: Vec<(u8, u64)> = deletable(files, &settings, 0, 100 * HOUR)
            .iter()
            .map(|found| (found.name.level, found.name.max))
            .collect();
        assert_eq!(old, expected);
    }

    #[test]
    fn what_comes_before_the_last_snapshot_outside_of_the_window_goes() {
        let transactions = (1..=8).map(|txid| file(0, txid, txid, 60 - 5 * txid.cast_signed()));
        let mut files: Vec<Found> = transactions.collect();
        files.extend([file(9, 1, 3, 45), file(9, 1, 5, 35), file(9, 1, 7, 20)]);
        files.extend([file(3, 2, 5, 35), file(3, 6, 8, 20)]);
        check(&files, 1 << 40, &[(9, 3), (3, 5), (0, 1), (0, 2), (0, 3), (0, 4)]);
        files.retain(|found| found.name.level != 9);
        check(&files, 1 << 40, &[]);
    }

    #[test]
    fn level_1_goes_when_level_3_covers_it() {
        let files = [file(1, 2, 3, 3), file(1, 4, 5, 2), file(1, 6, 7, 2), file(3, 2, 5, 2)];
        check(&files, 1 << 40, &[(1, 3), (1, 5)]);
    }

    #[test]
    fn too_large_a_level_0_is_thinned_from_its_oldest_file_on() {
        let mut files: Vec<Found> =
            (1..=10).map(|txid| file(0, txid, txid, 12 - txid.cast_signed())).collect();
        files.extend([file(1, 2, 4, 8), file(2, 5, 8, 4)]);
        check(&files, 1000, &[]);
        check(&files, 800, &[(0, 2), (0, 3)]);
        // The first is in no higher level, and the last ones are in none or too new.
        check(&files, 0, &[(0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8)]);
    }

    async fn put(store: &Store, name: Name, claim: bool, pages: u32) {
        let header = Header {
            page_size: 512,
            page_count: 1,
            min: name.min,
            max: name.max,
            time_ms: 0,
            wal_offset: 0,
            wal_size: 0,
            wal_salt: [0, 0],
            node: 1,
            ours: Some(Ours { digest: 1, nonce: 2, takeover: claim }),
        };
        let mut encoder = Encoder::new(&header);
        (1..=pages).for_each(|number| encoder.page(number, &[7; 512]));
        store.create(name, &encoder.finish().0.into(), 0).await.expect("a put");
    }

    #[tokio::test]
    async fn claims_stay() {
        let store = Store::new(Arc::new(InMemory::new()), Key::from("log"), Layout::Bucket);
        put(&store, Name::transaction(1), true, 1).await;
        for txid in 2..=6 {
            put(&store, Name::transaction(txid), txid == 3, u32::from(txid % 2 == 0)).await;
        }
        put(&store, Name::snapshot(2), false, 1).await;
        put(&store, Name::snapshot(6), false, 1).await;
        let settings = Settings { rewind_window: Duration::ZERO, ..Settings::default() };
        let left = async || {
            let files = store.list_all().await.expect("a list");
            files.iter().map(|found| (found.name.level, found.name.max)).collect::<Vec<_>>()
        };
        sweep(&store, &settings, 0).await.expect("nothing to delete");
        assert_eq!(left().await.len(), 8);
        let files = store.list_all().await.expect("a list");
        let later = files.iter().map(|found| found.modified_ms).max().expect("files") + 2 * HOUR;
        delete(&store, deletable(&files, &settings, 0, later)).await.expect("deletes");
        assert_eq!(left().await, [(0, 1), (0, 3), (0, 6), (9, 6)]);
    }
}
