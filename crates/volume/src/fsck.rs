//! Checking a whole volume: its map, and what of it is in the bucket. Nothing is changed.
//!
//! The map's tables are checked against each other and every row is decoded. Every segment that the map names has to be in
//! the bucket with the right size and head, and every entry has to be in that head with the same block and checksum. With
//! [`Depth::Data`], the data of every segment is read and compared with its checksums.
//!
//! # Failure
//!
//! What is wrong is in the report, each in a sentence. An error means that the check could not be made: no map, or a
//! bucket that does not answer.

use crate::{
    BLOCK_BYTES, VolumeId,
    error::{Attempt as _, Error},
    keys::Keys,
    map::{Audit, Named, SegmentRow},
    seal::blocking,
    segment::{Head, RUN_BLOCKS, SegmentName},
};
use base::backoff::Backoff;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{GetOptions, ObjectStore, path::Path as Key};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

/// Segments that are read at the same time.
const READS_MAX: usize = 8;

/// Tries of each read.
const RETRIES_MAX: u32 = 6;
const RETRY_WAIT: Duration = Duration::from_millis(100);
const RETRY_WAIT_MOST: Duration = Duration::from_secs(5);

/// The most entries of the map that are held in memory at once, 12 bytes each: 16 GiB of blocks.
const ENTRIES_MAX: u64 = 4 << 20;

/// The most sentences of a report; what is beyond is counted.
const ERRORS_MAX: usize = 1000;

/// How much of the bucket is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The head of each segment.
    Heads,
    /// All of each segment.
    Data,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whose map it is.
    pub volume: VolumeId,
    /// What is wrong, each in a sentence. Empty: the volume is whole.
    pub errors: Vec<String>,
    /// Objects under the volume's prefix that no map names and nobody is about to name. They only take space.
    pub orphans: Vec<Orphan>,
    /// Layers of the map.
    pub layers: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Forks that need a part of it.
    pub pins: u64,
    /// Segments that the map names.
    pub segments: u64,
    /// What these take in the bucket.
    pub segment_bytes: u64,
    /// Bytes that were read from the bucket.
    pub read_bytes: u64,
}

/// An object that nothing names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its key.
    pub key: String,
    /// What it takes.
    pub bytes: u64,
}

/// Checks the volume of a map, which is read from a file that may be in use, with the keys of what is encrypted.
pub async fn fsck(
    map_db: &Path,
    store: Arc<dyn ObjectStore>,
    keys: Keys,
    depth: Depth,
) -> Result<Report, Error> {
    let path = map_db.to_owned();
    let (mut audit, counted, rows, errors) = blocking(move || {
        let mut audit = Audit::open(&path)?;
        let mut errors = Errors::default();
        let counted = audit.tables(&mut |error| errors.push(error))?;
        let rows = audit.rows(&mut |error| errors.push(error))?;
        Ok((audit, counted, rows, errors))
    })
    .await?;
    let (volume, epoch) = (audit.volume, audit.epoch);
    let mut check = Check { bucket: Bucket { store, keys, depth }, errors, read_bytes: 0 };
    let orphans = check.orphans(volume, epoch, &rows).await?;
    let named: Vec<SegmentRow> = rows.into_iter().filter(|row| row.refs > 0).collect();
    let mut missing = Vec::new();
    for part in parts(&named) {
        let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
        let (first, last) = (first.id, last.id);
        let (back, entries) = blocking(move || {
            let entries = audit.named(first, last)?;
            Ok((audit, entries))
        })
        .await?;
        audit = back;
        missing.extend(check.segments(part, &entries).await?);
    }
    if !missing.is_empty() {
        // What no state can read may be gone, if it is another volume's: only that one knows its own pins.
        let visible = blocking(move || audit.visible()).await?;
        let lost =
            missing.iter().filter(|row| row.name.volume == volume || visible.contains(&row.id));
        lost.for_each(|row| check.errors.push(format!("{} is not in the bucket", row.name.key())));
    }
    Ok(Report {
        volume,
        orphans,
        layers: counted.layers,
        checkpoints: counted.checkpoints,
        pins: counted.pins,
        segments: named.len() as u64,
        segment_bytes: named.iter().map(|row| row.bytes).sum(),
        read_bytes: check.read_bytes,
        errors: check.errors.finish(),
    })
}

/// Sentences, bounded.
#[derive(Debug, Default)]
struct Errors {
    sentences: Vec<String>,
    more: u64,
}

impl Errors {
    fn push(&mut self, error: String) {
        if self.sentences.len() < ERRORS_MAX {
            self.sentences.push(error);
        } else {
            self.more += 1;
        }
    }

    fn finish(mut self) -> Vec<String> {
        if self.more > 0 {
            self.sentences.push(format!("and {} more", self.more));
        }
        self.sentences
    }
}

/// Consecutive segments of which the map has at most [`ENTRIES_MAX`] entries together, or one that has more.
fn parts(rows: &[SegmentRow]) -> Vec<&[SegmentRow]> {
    let mut parts = Vec::new();
    let (mut start, mut entries) = (0, 0);
    for (at, row) in rows.iter().enumerate() {
        if at > start && entries + row.refs > ENTRIES_MAX {
            parts.push(&rows[start..at]);
            (start, entries) = (at, 0);
        }
        entries += row.refs;
    }
    parts.push(&rows[start..]);
    parts
}

/// What is read and how.
struct Bucket {
    store: Arc<dyn ObjectStore>,
    keys: Keys,
    depth: Depth,
}

/// The part of a check that reads the bucket.
struct Check {
    bucket: Bucket,
    errors: Errors,
    read_bytes: u64,
}

/// What became of one segment.
struct Checked {
    missing: bool,
    errors: Vec<String>,
    read_bytes: u64,
}

impl Check {
    /// The objects under the volume's prefix that the map does not know. Those of the epoch in use, or of a newer one, may
    /// be on their way into a map.
    async fn orphans(
        &mut self,
        volume: VolumeId,
        epoch: u64,
        rows: &[SegmentRow],
    ) -> Result<Vec<Orphan>, Error> {
        let known: HashSet<Key> = rows.iter().map(|row| row.name.key()).collect();
        let prefix = Key::from(format!("volumes/{volume}/segments"));
        let mut objects = self.bucket.store.list(Some(&prefix));
        let mut orphans = Vec::new();
        while let Some(object) = objects.try_next().await.attempt("list the segments")? {
            if known.contains(&object.location) {
                continue;
            }
            match parse_key(volume, &object.location) {
                Some(name) if name.epoch < epoch => {
                    orphans.push(Orphan { key: object.location.to_string(), bytes: object.size });
                }
                Some(_) => {}
                None => self.errors.push(format!("{} is no segment's key", object.location)),
            }
        }
        Ok(orphans)
    }

    /// Checks segments against what the map says of them. Returns those that are not there.
    async fn segments(
        &mut self,
        rows: &[SegmentRow],
        entries: &HashMap<u32, Vec<Named>>,
    ) -> Result<Vec<SegmentRow>, Error> {
        let mut missing = Vec::new();
        let bucket = &self.bucket;
        let mut checks = futures::stream::iter(rows)
            .map(async |row| {
                let named = entries.get(&row.id).map_or(&[][..], Vec::as_slice);
                Ok::<_, Error>((row, check_segment(bucket, row, named).await?))
            })
            .buffered(READS_MAX);
        while let Some((row, checked)) = checks.try_next().await? {
            self.read_bytes += checked.read_bytes;
            checked.errors.into_iter().for_each(|error| self.errors.push(error));
            if checked.missing {
                missing.push(row.clone());
            }
        }
        Ok(missing)
    }
}

async fn check_segment(
    bucket: &Bucket,
    row: &SegmentRow,
    named: &[Named],
) -> Result<Checked, Error> {
    let Bucket { store, keys, depth } = bucket;
    let key = row.name.key();
    let end = if *depth == Depth::Data { row.bytes } else { u64::from(row.data_offset) };
    let Some((bytes, size)) = read(store, &key, end).await? else {
        return Ok(Checked { missing: true, errors: Vec::new(), read_bytes: 0 });
    };
    let mut errors = Vec::new();
    if size != row.bytes {
        errors.push(format!("{key} has {size} bytes and should have {}", row.bytes));
    }
    let head = bytes.get(..row.data_offset as usize).map(|head| Head::parse(&row.name, head, keys));
    match head {
        Some(Ok(head)) => {
            check_head(row, &head, named, &mut |error| errors.push(format!("{key} {error}")));
            if *depth == Depth::Data && size == row.bytes {
                check_data(row, &head, (&bytes, keys), &mut |error| {
                    errors.push(format!("{key} {error}"));
                });
            }
        }
        Some(Err(error)) => errors.push(format!("{key} has a damaged head: {error}")),
        None => errors.push(format!("{key} ends inside its head")),
    }
    Ok(Checked { missing: false, errors, read_bytes: bytes.len() as u64 })
}

/// The first bytes of an object, and its whole size; none if it is not there.
pub(crate) async fn read(
    store: &Arc<dyn ObjectStore>,
    key: &Key,
    end: u64,
) -> Result<Option<(Bytes, u64)>, Error> {
    let mut waits = Backoff::new(RETRY_WAIT, RETRY_WAIT_MOST, RETRIES_MAX);
    loop {
        let options = GetOptions::new().with_range(Some(0..end));
        let result = match store.get_opts(key, options).await {
            Ok(object) => {
                let size = object.meta.size;
                object.bytes().await.map(|bytes| (bytes, size))
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(found) => return Ok(Some(found)),
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => match waits.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error).attempt("read a segment"),
            },
        }
    }
}

fn check_head(row: &SegmentRow, head: &Head, named: &[Named], complain: &mut dyn FnMut(String)) {
    if head.name != row.name {
        complain(format!("calls itself {}", head.name.key()));
    }
    if head.blocks.len() as u64 != row.blocks {
        complain(format!("has {} blocks and should have {}", head.blocks.len(), row.blocks));
    }
    if head.runs != row.runs {
        complain("has another run table than the map".into());
    }
    let wrong = |named: &&Named| {
        let entry = head.blocks.get(named.index as usize);
        entry.map(|entry| (entry.block, entry.crc)) != Some((named.block, named.crc))
    };
    let mut wrong = named.iter().filter(wrong);
    if let Some(first) = wrong.next() {
        let others = wrong.count();
        complain(format!(
            "does not have block {} as the map says, and {others} others",
            first.block
        ));
    }
}

fn check_data(
    row: &SegmentRow,
    head: &Head,
    (bytes, keys): (&[u8], &Keys),
    complain: &mut dyn FnMut(String),
) {
    for (number, run) in (0..).zip(&row.runs) {
        let range = run.range();
        let stored = usize::try_from(range.start)
            .ok()
            .zip(usize::try_from(range.end).ok())
            .and_then(|(start, end)| bytes.get(start..end));
        let Some(stored) = stored else {
            complain(format!("ends before run {number}"));
            continue;
        };
        let data = match run.decode((&row.name, number), stored, keys) {
            Ok(data) => data,
            Err(error) => {
                complain(format!("has a damaged run {number}: {error}"));
                continue;
            }
        };
        let first = (number * RUN_BLOCKS) as usize;
        for (at, entry) in head.blocks.iter().enumerate().skip(first).take(RUN_BLOCKS as usize) {
            let block = data.get((at - first) * BLOCK_BYTES..(at - first + 1) * BLOCK_BYTES);
            if block.map(crc32c::crc32c) != Some(entry.crc) {
                complain(format!("has another block {} than was written", entry.block));
            }
        }
    }
}

/// The name that a key spells, if it is a segment's of this volume.
fn parse_key(volume: VolumeId, key: &Key) -> Option<SegmentName> {
    let (epoch, sequence) = key.filename()?.split_once('-')?;
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let name = SegmentName { volume, epoch: number(epoch)?, sequence: number(sequence)? };
    (name.key() == *key).then_some(name)
}

#[cfg(test)]
mod tests;
