//! The map: which segment and index holds each block, in SQLite.
//!
//! # Tables
//!
//! - `volume`: one row. Whose map it is, the position (epoch and last journal record in it), the head layer, the base
//!   checkpoint, the next numbers.
//! - `layer(id, parent)`: a tree. The head layer takes the writes; what a block is follows from the stack, the head and
//!   its ancestors, where the nearest layer that has the block wins.
//! - `map(key, entries)`: `key = region << 32 | layer`, so that all layers of a region lie side by side and a lookup is one
//!   short range scan. `entries` is drawn in [`region`].
//! - `segment`: the small integer that entries use, the segment's name, its run table, and how many entries name it.
//! - `checkpoint`: an id on a frozen layer.
//! - `pin`: a frozen layer that a fork begins with. What is visible through it never changes while the fork exists.
//! - `wake`: at most one row. The extents that were read first after the last wake, as little-endian `u32`.
//!
//! # Invariants
//!
//! - `segment.refs` is the number of blocks in all rows of `map` that name the segment. Every change of a row goes through
//!   [`Rows::put`], which counts; so a segment with none is garbage, whoever asks.
//! - A cut inserts a row of `layer` and touches no row of `map`.
//! - What readers see changes only while the lock of the reader is held, in the same moment for SQLite and memory.
//!
//! # Failure
//!
//! A transaction that fails changes nothing, in the file and in memory. The database is written with `synchronous=NORMAL`
//! in WAL mode and never checkpointed here: whoever ships the log owns the WAL.

mod audit;
mod checkpoints;
mod fork;
mod frozen;
mod graft;
mod pins;
mod portable;
mod reclaim;
mod region;
mod regions;
mod repoint;
mod schema;

pub(crate) use audit::{Audit, Named, SegmentRow};
pub(crate) use checkpoints::{CheckpointRow, NewRow};
pub use fork::{fork, fork_pinned, origins};
pub(crate) use frozen::Frozen;
pub(crate) use graft::{OldMap, SealedBatch};
pub use pins::Pin;
pub(crate) use pins::Pinned;
pub use portable::Contents;
pub(crate) use portable::{Heard, Row, Told};
pub(crate) use reclaim::{Garbage, MergeCursor, Window};
pub(crate) use region::{Entry, REGION_BLOCKS, Region};
use regions::Regions;
pub(crate) use repoint::{Move, Repoint, Sparse};

use crate::{
    VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    journal::Position,
    segment::{BlockEntry, Run, SegmentName, parse_runs},
    sync::lock,
};
use base::__uuid::Uuid;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, Weak},
};

/// The id of a layer. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LayerId(pub u32);

/// The most regions of the live state that are kept resolved: 4 KiB each, so 6 MiB.
const REGIONS_MAX: usize = 1536;

/// The most segments whose run tables are kept: up to 24 KiB each, 1.5 KiB for a full one of 8 MiB.
const SEGMENT_TABLES_MAX: usize = 512;

/// An open map: one connection that writes and one that reads.
#[derive(Debug)]
pub(crate) struct Map {
    path: PathBuf,
    write: Mutex<Connection>,
    read: Mutex<Reader>,
    /// Frozen layers that may yet become checkpoints: as long as someone holds the cut, they are not merged.
    cuts: Mutex<Vec<(LayerId, Weak<CutSlot>)>>,
}

/// Where the id of the layer goes that a cut froze.
pub(crate) type CutSlot = OnceLock<LayerId>;

/// What readers use. Its lock is held for one lookup, and while a transaction commits.
#[derive(Debug)]
struct Reader {
    connection: Connection,
    /// The head layer, its parent, and so on.
    stack: Vec<LayerId>,
    regions: Regions,
    /// Counts the transactions that changed where frozen blocks are, so that what others keep resolved is looked up again.
    repoints: u64,
    segments: HashMap<u32, Arc<SegmentTable>>,
}

/// Where a segment is and where its runs are in it.
#[derive(Debug)]
pub(crate) struct SegmentTable {
    pub name: SegmentName,
    pub runs: Vec<Run>,
}

/// A segment that is in the bucket and not yet in the map.
#[derive(Debug)]
pub(crate) struct NewSegment {
    pub name: SegmentName,
    pub bytes: u64,
    pub data_offset: u32,
    pub runs: Vec<u8>,
}

/// What a batch changes.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    pub position: Position,
    pub segment: Option<&'a NewSegment>,
    /// Objects of this volume in the bucket that nothing will ever name.
    pub orphans: &'a [SegmentName],
    /// The blocks in the segment, in the order of its data.
    pub blocks: &'a [BlockEntry],
    pub zeros: &'a [Range<u32>],
    /// The live layer ends behind this batch; the id of the frozen layer goes here.
    pub cut: Option<&'a Arc<CutSlot>>,
    /// What to read ahead at the next wake, if that is known now.
    pub trace: Option<&'a [u32]>,
}

impl Map {
    /// Opens or creates the map of a volume.
    pub(crate) fn open(path: &Path, volume: VolumeId, epoch: u64) -> Result<Self, Error> {
        let write = schema::open(path, volume, epoch)?;
        let connection = schema::connect(path)?;
        let stack = stack_of(&connection, head(&connection)?)?;
        let regions = Regions::new(REGIONS_MAX);
        let reader = Reader { connection, stack, regions, repoints: 0, segments: HashMap::new() };
        Ok(Self {
            path: path.to_owned(),
            write: Mutex::new(write),
            read: Mutex::new(reader),
            cuts: Mutex::default(),
        })
    }

    /// Where the map stands.
    pub(crate) fn position(&self) -> Result<Position, Error> {
        schema::position(&lock(&self.read).connection)
    }

    /// The head layer.
    pub(crate) fn head(&self) -> Result<LayerId, Error> {
        head(&lock(&self.read).connection)
    }

    /// The number of the next segment.
    pub(crate) fn segment_next(&self) -> Result<u64, Error> {
        let next: i64 = lock(&self.read)
            .connection
            .query_row("SELECT segment_next FROM volume", [], |row| row.get(0))
            .attempt("read the next segment number")?;
        unsigned(next)
    }

    /// The blocks of a region as the live state has them.
    pub(crate) fn region(&self, region: u32) -> Result<Arc<Region>, Error> {
        let reader = &mut *lock(&self.read);
        if let Some(resolved) = reader.regions.find(region) {
            return Ok(resolved);
        }
        let resolved = Arc::new(resolve(&reader.connection, &reader.stack, region)?);
        reader.regions.insert(region, resolved.clone());
        Ok(resolved)
    }

    /// Where a segment and its runs are.
    pub(crate) fn segment(&self, id: u32) -> Result<Arc<SegmentTable>, Error> {
        let reader = &mut *lock(&self.read);
        if let Some(table) = reader.segments.get(&id) {
            return Ok(table.clone());
        }
        let table = Arc::new(load_segment(&reader.connection, id)?);
        if reader.segments.len() >= SEGMENT_TABLES_MAX {
            reader.segments.clear();
        }
        reader.segments.insert(id, table.clone());
        Ok(table)
    }

    /// The extents that were read first after the last wake, in the order in which they were.
    pub(crate) fn trace(&self) -> Result<Vec<u32>, Error> {
        let extents: Option<Vec<u8>> = lock(&self.read)
            .connection
            .query_row("SELECT extents FROM wake", [], |row| row.get(0))
            .optional()
            .attempt("read what the last wake read")?;
        let (extents, _) = extents.as_deref().unwrap_or_default().as_chunks::<4>();
        Ok(extents.iter().map(|extent| u32::from_le_bytes(*extent)).collect())
    }

    /// Commits a batch.
    pub(crate) fn commit(&self, commit: &Commit<'_>) -> Result<(), Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let head = head(&transaction)?;
        let mut rows = Rows::new(&transaction);
        let mut segment_next = 0;
        for orphan in commit.orphans {
            insert_orphan(&transaction, *orphan)?;
            segment_next = orphan.sequence + 1;
        }
        let segment = match commit.segment {
            Some(segment) => {
                segment_next = segment_next.max(segment.name.sequence + 1);
                insert_segment(&transaction, segment, commit.blocks.len())?
            }
            None => 0,
        };
        let changes = changes(&transaction, segment, commit)?;
        for (region, change) in &changes {
            let old = rows.load(*region, head)?;
            let mut new = old.clone().unwrap_or_default();
            new.overlay(change);
            rows.put(*region, head, old.as_ref(), Some(&new))?;
        }
        rows.count()?;
        let new_head =
            if commit.cut.is_some() { Some(push_layer(&transaction, head)?) } else { None };
        transaction
            .prepare_cached(
                "UPDATE volume SET epoch = ?1, sequence = ?2, head = ?3, segment_next = max(segment_next, ?4)",
            )
            .and_then(|mut update| {
                let Position { epoch, sequence } = commit.position;
                update.execute(params![signed(epoch), signed(sequence), new_head.unwrap_or(head).0, signed(segment_next)])
            })
            .attempt("move the map's position")?;
        if let Some(extents) = commit.trace {
            save_trace(&transaction, extents)?;
        }
        let reader = &mut *lock(&self.read);
        transaction.commit().attempt("commit a batch")?;
        for (region, change) in &changes {
            reader.regions.overlay(*region, change);
        }
        if let (Some(new_head), Some(slot)) = (new_head, commit.cut) {
            reader.stack.insert(0, new_head);
            lock(&self.cuts).push((head, Arc::downgrade(slot)));
            slot.set(head).expect("a batch is committed once");
        }
        Ok(())
    }
}

fn save_trace(transaction: &Transaction<'_>, extents: &[u32]) -> Result<(), Error> {
    let extents: Vec<u8> = extents.iter().flat_map(|extent| extent.to_le_bytes()).collect();
    transaction
        .execute("INSERT OR REPLACE INTO wake VALUES (1, ?1)", [extents])
        .attempt("save what this wake read")?;
    Ok(())
}

/// What a commit changes, region by region. Zeros touch only regions that some layer has.
fn changes(
    transaction: &Transaction<'_>,
    segment: u32,
    commit: &Commit<'_>,
) -> Result<BTreeMap<u32, Region>, Error> {
    let mut changes: BTreeMap<u32, Region> = BTreeMap::new();
    for range in commit.zeros.iter().filter(|range| !range.is_empty()) {
        let first = range.start / REGION_BLOCKS;
        let last = (range.end - 1) / REGION_BLOCKS;
        for region in known_regions(transaction, first..last + 1)? {
            let start = region * REGION_BLOCKS;
            let blocks =
                range.start.max(start) - start..range.end.min(start + REGION_BLOCKS) - start;
            changes.entry(region).or_default().fill(blocks, Entry::Zero);
        }
    }
    for (index, entry) in (0..).zip(commit.blocks) {
        let placed = Entry::Block { segment, index, crc: entry.crc };
        changes
            .entry(entry.block / REGION_BLOCKS)
            .or_default()
            .set(entry.block % REGION_BLOCKS, placed);
    }
    Ok(changes)
}

fn known_regions(
    transaction: &Transaction<'_>,
    regions: Range<u32>,
) -> Result<BTreeSet<u32>, Error> {
    let mut select = transaction
        .prepare_cached("SELECT DISTINCT key >> 32 FROM map WHERE key >= ?1 AND key < ?2")
        .attempt("list the regions of a range")?;
    select
        .query_map([i64::from(regions.start) << 32, i64::from(regions.end) << 32], |row| {
            row.get::<_, u32>(0)
        })
        .and_then(Iterator::collect)
        .attempt("list the regions of a range")
}

/// The rows of `map` inside a transaction, with the count of what they name.
struct Rows<'a> {
    transaction: &'a Transaction<'a>,
    counts: HashMap<u32, i64>,
}

impl<'a> Rows<'a> {
    fn new(transaction: &'a Transaction<'a>) -> Self {
        Self { transaction, counts: HashMap::new() }
    }

    fn load(&self, region: u32, layer: LayerId) -> Result<Option<Region>, Error> {
        let entries = self
            .transaction
            .prepare_cached("SELECT entries FROM map WHERE key = ?1")
            .and_then(|mut select| {
                select.query_row([key(region, layer)], |row| row.get::<_, Vec<u8>>(0)).optional()
            })
            .attempt("read a map row")?;
        entries.map(|entries| decode(region, &entries)).transpose()
    }

    /// Replaces a row, whose content until now is `old`.
    fn put(
        &mut self,
        region: u32,
        layer: LayerId,
        old: Option<&Region>,
        new: Option<&Region>,
    ) -> Result<(), Error> {
        old.into_iter()
            .flat_map(Region::segments)
            .for_each(|segment| *self.counts.entry(segment).or_default() -= 1);
        new.into_iter()
            .flat_map(Region::segments)
            .for_each(|segment| *self.counts.entry(segment).or_default() += 1);
        let key = key(region, layer);
        match new {
            Some(new) if !new.is_empty() => self
                .transaction
                // An update of the entries leaves the index on the layer alone, which replacing the row would not.
                .prepare_cached("INSERT INTO map (key, entries) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET entries = excluded.entries")
                .and_then(|mut insert| insert.execute(params![key, new.encode()])),
            _ => self
                .transaction
                .prepare_cached("DELETE FROM map WHERE key = ?1")
                .and_then(|mut delete| delete.execute([key])),
        }
        .attempt("write a map row")?;
        Ok(())
    }

    /// Writes the counts, and notes the time of those that reached zero.
    fn count(self) -> Result<(), Error> {
        let mut update = self
            .transaction
            .prepare_cached(
                "UPDATE segment SET refs = refs + ?2, dead = CASE WHEN refs + ?2 = 0 THEN ?3 END WHERE id = ?1",
            )
            .attempt("count what the map names")?;
        let now = jiff::Timestamp::now().as_millisecond();
        for (segment, change) in self.counts.into_iter().filter(|(_, change)| *change != 0) {
            let updated = update
                .execute(params![segment, change, now])
                .attempt("count what the map names")?;
            if updated != 1 {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("the map names segment {segment}, which it lacks"),
                ));
            }
        }
        Ok(())
    }
}

fn insert_segment(
    transaction: &Connection,
    segment: &NewSegment,
    blocks: usize,
) -> Result<u32, Error> {
    let SegmentName { volume, epoch, sequence } = segment.name;
    let now = jiff::Timestamp::now().as_millisecond();
    transaction
        .prepare_cached(
            "INSERT INTO segment (origin, epoch, sequence, bytes, data_offset, runs, blocks, refs, dead, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?8)",
        )
        .and_then(|mut insert| {
            let blocks = i64::try_from(blocks).expect("a batch is bounded");
            let (epoch, sequence, bytes) = (signed(epoch), signed(sequence), signed(segment.bytes));
            let origin = volume.0.as_bytes().as_slice();
            insert.insert(params![origin, epoch, sequence, bytes, segment.data_offset, segment.runs, blocks, now])
        })
        .attempt("record a segment")
        .and_then(|id| u32::try_from(id).map_err(|_error| Error::new(ErrorKind::Internal, "segment numbers ran out")))
}

/// Records an object that nothing will ever name, so that it is deleted as garbage.
fn insert_orphan(transaction: &Transaction<'_>, name: SegmentName) -> Result<(), Error> {
    let empty = NewSegment { name, bytes: 0, data_offset: 0, runs: Vec::new() };
    insert_segment(transaction, &empty, 0).map(drop)
}

fn load_segment(connection: &Connection, id: u32) -> Result<SegmentTable, Error> {
    let (origin, epoch, sequence, data_offset, runs) = connection
        .prepare_cached(
            "SELECT origin, epoch, sequence, data_offset, runs FROM segment WHERE id = ?1",
        )
        .and_then(|mut select| {
            select.query_row([id], |row| {
                let origin: [u8; 16] = row.get(0)?;
                let (epoch, sequence): (i64, i64) = (row.get(1)?, row.get(2)?);
                Ok((origin, epoch, sequence, row.get::<_, u32>(3)?, row.get::<_, Vec<u8>>(4)?))
            })
        })
        .attempt("read a segment's place")?;
    let runs = parse_runs(&runs, data_offset).map_err(|error| {
        Error::with(ErrorKind::Corrupt, format!("the run table of segment {id}"), error)
    })?;
    let volume = VolumeId(Uuid::from_bytes(origin));
    Ok(SegmentTable {
        name: SegmentName { volume, epoch: unsigned(epoch)?, sequence: unsigned(sequence)? },
        runs,
    })
}

fn push_layer(transaction: &Transaction<'_>, parent: LayerId) -> Result<LayerId, Error> {
    transaction
        .execute("INSERT INTO layer (parent) VALUES (?1)", [parent.0])
        .attempt("push a layer")?;
    let id = u32::try_from(transaction.last_insert_rowid());
    id.map(LayerId).map_err(|_error| Error::new(ErrorKind::Internal, "layer numbers ran out"))
}

/// A layer on nothing.
fn push_bottom(transaction: &Transaction<'_>) -> Result<LayerId, Error> {
    transaction.execute("INSERT INTO layer (parent) VALUES (NULL)", []).attempt("push a layer")?;
    let id = u32::try_from(transaction.last_insert_rowid());
    id.map(LayerId).map_err(|_error| Error::new(ErrorKind::Internal, "layer numbers ran out"))
}

fn head(connection: &Connection) -> Result<LayerId, Error> {
    connection
        .query_row("SELECT head FROM volume", [], |row| row.get(0))
        .map(LayerId)
        .attempt("read the head layer")
}

/// A layer and its ancestors, nearest first.
fn stack_of(connection: &Connection, layer: LayerId) -> Result<Vec<LayerId>, Error> {
    let mut select = connection
        .prepare_cached(
            "WITH RECURSIVE up(id, parent, depth) AS (
                 SELECT id, parent, 0 FROM layer WHERE id = ?1
                 UNION ALL
                 SELECT layer.id, layer.parent, depth + 1 FROM layer JOIN up ON layer.id = up.parent)
             SELECT id FROM up ORDER BY depth",
        )
        .attempt("read the stack of layers")?;
    select
        .query_map([layer.0], |row| row.get(0).map(LayerId))
        .and_then(Iterator::collect)
        .attempt("read the stack of layers")
}

/// The region as the stack has it.
fn resolve(connection: &Connection, stack: &[LayerId], region: u32) -> Result<Region, Error> {
    let mut select = connection
        .prepare_cached("SELECT key & 4294967295, entries FROM map WHERE key >= ?1 AND key < ?2")
        .attempt("read a region")?;
    let from = i64::from(region) << 32;
    let mut rows = select
        .query_map([from, from + (1 << 32)], |row| {
            Ok((row.get(0).map(LayerId)?, row.get::<_, Vec<u8>>(1)?))
        })
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .attempt("read a region")?
        .into_iter()
        .filter_map(|(layer, entries)| {
            stack.iter().position(|in_stack| *in_stack == layer).map(|depth| (depth, entries))
        })
        .collect::<Vec<_>>();
    rows.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
    let mut resolved = Region::default();
    for (_, entries) in &rows {
        resolved.overlay(&decode(region, entries)?);
    }
    Ok(resolved)
}

fn decode(region: u32, entries: &[u8]) -> Result<Region, Error> {
    Region::decode(entries).map_err(|error| {
        Error::with(ErrorKind::Corrupt, format!("the map row of region {region}"), error)
    })
}

fn key(region: u32, layer: LayerId) -> i64 {
    i64::from(region) << 32 | i64::from(layer.0)
}

fn split_key(key: i64) -> (u32, LayerId) {
    let [a, b, c, d, e, f, g, h] = key.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), LayerId(u32::from_be_bytes([e, f, g, h])))
}

/// SQLite has no unsigned integers. Numbers here count up from zero and never reach the sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("counters stay below 2^63")
}

fn unsigned(number: i64) -> Result<u64, Error> {
    u64::try_from(number)
        .map_err(|error| Error::with(ErrorKind::Corrupt, "a negative number in the map", error))
}

#[cfg(test)]
mod tests;
