//! Taking the live state of another copy of this map into the map: an older one, as the new live state; or one that another
//! epoch overtook, as a checkpoint beside it.

use super::{
    CheckpointRow, Entry, LayerId, Map, NewRow, NewSegment, REGION_BLOCKS, Region, Rows,
    checkpoints::{checkpoint, insert},
    frozen::all_regions,
    head, insert_orphan, insert_segment, push_layer, resolve, schema, signed, stack_of, unsigned,
};
use crate::{
    VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    journal::Position,
    segment::{BlockEntry, SegmentName},
    sync::lock,
};
use base::__uuid::Uuid;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    path::Path,
};

/// The live state of a copy of a map.
pub(crate) struct OldMap {
    connection: Connection,
    stack: Vec<LayerId>,
    base: Option<String>,
    /// The segments that the state needs, by their number in the copy.
    segments: HashMap<u32, OldSegment>,
}

/// A segment as the copy has it.
#[derive(Debug)]
pub(crate) struct OldSegment {
    pub segment: NewSegment,
    blocks: usize,
}

impl OldMap {
    /// Reads a copy, in a file that nobody else uses.
    pub(crate) fn open(path: &Path, volume: VolumeId) -> Result<Self, Error> {
        let connection = schema::existing(path)?;
        let found = schema::identity(&connection)?;
        if found != volume {
            let message = format!("the older map is of {found}, not of {volume}");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let stack = stack_of(&connection, head(&connection)?)?;
        let base = super::checkpoints::base(&connection)?;
        let mut needed = BTreeSet::new();
        for region in all_regions(&connection)? {
            needed.extend(resolve(&connection, &stack, region)?.segments());
        }
        let mut segments = HashMap::new();
        for id in needed {
            segments.insert(id, read_segment(&connection, id)?);
        }
        Ok(Self { connection, stack, base, segments })
    }

    /// Where the copy stands.
    pub(crate) fn position(&self) -> Result<Position, Error> {
        schema::position(&self.connection)
    }

    /// A region of the state, with the segments' numbers in the map that it is taken back into.
    fn region(&self, region: u32, numbers: &HashMap<u32, u32>) -> Result<Region, Error> {
        let old = resolve(&self.connection, &self.stack, region)?;
        let mut translated = Region::default();
        for (block, entry) in old.entries() {
            let entry = match entry {
                Entry::Block { segment, index, crc } => {
                    Entry::Block { segment: numbers[&segment], index, crc }
                }
                Entry::Absent | Entry::Zero => Entry::Zero,
            };
            translated.set(block, entry);
        }
        Ok(translated)
    }
}

impl Map {
    /// `Invalid` if a copy is not older than this map.
    pub(crate) fn check_older(&self, old: &OldMap) -> Result<(), Error> {
        let (then, now) = (old.position()?, self.position()?);
        if (then.epoch, then.sequence) > (now.epoch, now.sequence) {
            return Err(Error::new(ErrorKind::Invalid, "the older map is newer than the volume"));
        }
        Ok(())
    }

    /// The segments that the state of a copy needs and that nothing here names: they are in the bucket only if they were not
    /// deleted yet.
    pub(crate) fn unproven(&self, old: &OldMap) -> Result<Vec<(SegmentName, u64)>, Error> {
        let connection = &lock(&self.read).connection;
        let mut known = Known::new(connection);
        let mut unproven = Vec::new();
        for (id, OldSegment { segment, .. }) in &old.segments {
            if !known.find(*id, &segment.name)?.is_some_and(|found| found.named) {
                unproven.push((segment.name, segment.bytes));
            }
        }
        Ok(unproven)
    }

    /// Keeps the frozen layer as an automatic checkpoint, and puts a layer on it that makes the older state of it: the new
    /// head. Calls `stale` with the blocks of each region that are different from now on, before anyone can read them.
    ///
    /// Every segment of the older state must be in the bucket.
    pub(crate) fn graft(
        &self,
        old: &OldMap,
        kept: &NewRow<'_>,
        mut stale: impl FnMut(u32, &[bool]),
    ) -> Result<CheckpointRow, Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let numbers = numbers(&transaction, old)?;
        let id = insert(&transaction, kept)?;
        let new_head = push_layer(&transaction, kept.layer)?;
        let mut regions: BTreeSet<u32> = all_regions(&transaction)?.into_iter().collect();
        regions.extend(all_regions(&old.connection)?);
        let state = |region| old.region(region, &numbers);
        fill_layer(&transaction, (new_head, kept.layer), regions, state, &mut stale)?;
        move_head(&transaction, new_head, old.base.as_deref())?;
        let new_stack = stack_of(&transaction, new_head)?;
        let reader = &mut *lock(&self.read);
        transaction.commit().attempt("commit a rewind")?;
        reader.stack = new_stack;
        reader.regions.clear();
        checkpoint(&connection, &id)
    }

    /// Keeps the state of a copy that another epoch overtook, with the batches written after it, as an automatic checkpoint
    /// that is never pruned. It becomes a layer beside the live ones, on the frozen layer of `new`; no live block changes.
    /// `None` if nothing of it is different from the frozen layer, and then nothing is changed.
    ///
    /// Every segment of the copy's state and of the batches must be in the bucket.
    pub(crate) fn keep_overtaken(
        &self,
        old: &OldMap,
        batches: &[SealedBatch],
        new: &NewRow<'_>,
    ) -> Result<Option<CheckpointRow>, Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let numbers = numbers(&transaction, old)?;
        let mut placed = Vec::with_capacity(batches.len());
        for batch in batches {
            placed.push((batch, batch.insert(&transaction)?));
        }
        let layer = push_layer(&transaction, new.layer)?;
        let mut regions: BTreeSet<u32> = all_regions(&transaction)?.into_iter().collect();
        regions.extend(all_regions(&old.connection)?);
        regions.extend(
            batches.iter().flat_map(|batch| &batch.blocks).map(|entry| entry.block / REGION_BLOCKS),
        );
        let state = |region| {
            let mut state = old.region(region, &numbers)?;
            placed.iter().for_each(|(batch, segment)| batch.overlay(*segment, region, &mut state));
            Ok(state)
        };
        if !fill_layer(&transaction, (layer, new.layer), regions, state, &mut |_, _| ())? {
            return Ok(None);
        }
        let id = insert(&transaction, &NewRow { layer, ..*new })?;
        transaction
            .execute("UPDATE checkpoint SET commented = 1 WHERE id = ?1", [&id])
            .attempt("keep a checkpoint from being pruned")?;
        let next = batches.iter().filter_map(SealedBatch::segment_next).max().unwrap_or(0);
        transaction
            .execute("UPDATE volume SET segment_next = max(segment_next, ?1)", [signed(next)])
            .attempt("move the next segment number")?;
        transaction.commit().attempt("commit a recovery")?;
        checkpoint(&connection, &id).map(Some)
    }
}

/// A batch whose segment is in the bucket and which no map has.
#[derive(Debug)]
pub(crate) struct SealedBatch {
    pub segment: Option<NewSegment>,
    /// Objects of this volume in the bucket that nothing will ever name.
    pub orphans: Vec<SegmentName>,
    /// The blocks in the segment, in the order of its data, which is that of their numbers.
    pub blocks: Vec<BlockEntry>,
    /// In order.
    pub zeros: Vec<Range<u32>>,
}

impl SealedBatch {
    /// Records the segment; returns its number.
    fn insert(&self, transaction: &Transaction<'_>) -> Result<u32, Error> {
        for orphan in &self.orphans {
            insert_orphan(transaction, *orphan)?;
        }
        let Some(segment) = &self.segment else { return Ok(0) };
        insert_segment(transaction, segment, self.blocks.len())
    }

    fn segment_next(&self) -> Option<u64> {
        let segment = self.segment.iter().map(|segment| segment.name);
        segment.chain(self.orphans.iter().copied()).map(|name| name.sequence + 1).max()
    }

    /// Puts what the batch says of a region over what the region says.
    fn overlay(&self, segment: u32, region: u32, state: &mut Region) {
        let (start, end) = (region * REGION_BLOCKS, (region + 1) * REGION_BLOCKS);
        let from = self.zeros.partition_point(|range| range.end <= start);
        for range in self.zeros[from..].iter().take_while(|range| range.start < end) {
            state.fill(range.start.max(start) - start..range.end.min(end) - start, Entry::Zero);
        }
        let from = self.blocks.partition_point(|entry| entry.block < start);
        for (index, entry) in
            (0..).zip(&self.blocks).skip(from).take_while(|(_, entry)| entry.block < end)
        {
            state.set(entry.block - start, Entry::Block { segment, index, crc: entry.crc });
        }
    }
}

/// Gives a new layer what makes `state` of the stack of the layer below it. Calls `stale` with the blocks of each region
/// that are different. Returns whether any are.
fn fill_layer(
    transaction: &Transaction<'_>,
    (layer, below): (LayerId, LayerId),
    regions: BTreeSet<u32>,
    state: impl Fn(u32) -> Result<Region, Error>,
    stale: &mut dyn FnMut(u32, &[bool]),
) -> Result<bool, Error> {
    let stack = stack_of(transaction, below)?;
    let mut rows = Rows::new(transaction);
    let mut any = false;
    for region in regions {
        let (then, now) = (state(region)?, resolve(transaction, &stack, region)?);
        let mut graft = Region::default();
        let mut differs = Vec::new();
        for ((block, then), (_, now)) in then.entries().zip(now.entries()) {
            differs.push(then != now.or_zero());
            if then != now.or_zero() {
                graft.set(block, then);
            }
        }
        if !graft.is_empty() {
            rows.put(region, layer, None, Some(&graft))?;
            stale(region, &differs);
            any = true;
        }
    }
    rows.count()?;
    Ok(any)
}

/// The live state grew from the same checkpoint as the older one did, if that still exists.
fn move_head(
    transaction: &Transaction<'_>,
    head: LayerId,
    base: Option<&str>,
) -> Result<(), Error> {
    transaction
        .execute(
            "UPDATE volume SET head = ?1, base = (SELECT id FROM checkpoint WHERE id = ?2)",
            params![head.0, base],
        )
        .attempt("move the head to the older state")
        .map(drop)
}

/// The number here of each segment that the older state needs. What is not known any more is recorded again.
fn numbers(transaction: &Transaction<'_>, old: &OldMap) -> Result<HashMap<u32, u32>, Error> {
    let mut known = Known::new(transaction);
    let mut numbers = HashMap::new();
    for (id, OldSegment { segment, blocks }) in &old.segments {
        let number = match known.find(*id, &segment.name)? {
            Some(found) => found.id,
            None => insert_segment(transaction, segment, *blocks)?,
        };
        numbers.insert(*id, number);
    }
    Ok(numbers)
}

/// A segment that the map has.
#[derive(Debug, Clone, Copy)]
struct Found {
    id: u32,
    named: bool,
}

/// Finds segments by their names. Almost always the number is still the same; only if not is the whole table read, once.
struct Known<'a> {
    connection: &'a Connection,
    by_name: Option<HashMap<SegmentName, Found>>,
}

impl<'a> Known<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self { connection, by_name: None }
    }

    fn find(&mut self, id: u32, name: &SegmentName) -> Result<Option<Found>, Error> {
        let same = self
            .connection
            .prepare_cached(&format!("{SELECT_NAMES} WHERE id = ?1"))
            .and_then(|mut select| select.query_row([id], parse_name).optional())
            .attempt("look for a segment")?;
        if let Some(same) = same {
            let (found, named) = same?;
            if found == *name {
                return Ok(Some(named));
            }
        }
        if self.by_name.is_none() {
            let rows = self
                .connection
                .prepare_cached(SELECT_NAMES)
                .and_then(|mut select| {
                    select.query_map([], parse_name)?.collect::<rusqlite::Result<Vec<_>>>()
                })
                .attempt("list the segments")?;
            self.by_name = Some(rows.into_iter().collect::<Result<_, Error>>()?);
        }
        Ok(self.by_name.as_ref().and_then(|by_name| by_name.get(name)).copied())
    }
}

const SELECT_NAMES: &str = "SELECT id, origin, epoch, sequence, refs > 0 FROM segment";

fn parse_name(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<(SegmentName, Found), Error>> {
    let volume = VolumeId(Uuid::from_bytes(row.get(1)?));
    let (epoch, sequence): (i64, i64) = (row.get(2)?, row.get(3)?);
    let found = Found { id: row.get(0)?, named: row.get(4)? };
    Ok(unsigned(epoch).and_then(|epoch| {
        Ok((SegmentName { volume, epoch, sequence: unsigned(sequence)? }, found))
    }))
}

fn read_segment(connection: &Connection, id: u32) -> Result<OldSegment, Error> {
    let (origin, [epoch, sequence, bytes, blocks], data_offset, runs) = connection
        .prepare_cached(
            "SELECT origin, epoch, sequence, bytes, blocks, data_offset, runs FROM segment WHERE id = ?1",
        )
        .and_then(|mut select| {
            select.query_row([id], |row| {
                let numbers: [i64; 4] = [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
                Ok((row.get::<_, [u8; 16]>(0)?, numbers, row.get(5)?, row.get(6)?))
            })
        })
        .attempt("read a segment of the older map")?;
    let volume = VolumeId(Uuid::from_bytes(origin));
    let name = SegmentName { volume, epoch: unsigned(epoch)?, sequence: unsigned(sequence)? };
    let blocks = usize::try_from(blocks)
        .map_err(|error| Error::with(ErrorKind::Corrupt, "a segment of the older map", error))?;
    Ok(OldSegment {
        segment: NewSegment { name, bytes: unsigned(bytes)?, data_offset, runs },
        blocks,
    })
}
