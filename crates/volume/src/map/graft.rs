//! Taking the live state of an older copy of this map back into the map.

use super::{
    CheckpointRow, Entry, LayerId, Map, NewRow, NewSegment, Region, Rows,
    checkpoints::{checkpoint, insert},
    frozen::all_regions,
    head, insert_segment, push_layer, resolve, schema, stack_of, unsigned,
};
use crate::{
    VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    segment::SegmentName,
    sync::lock,
};
use base::__uuid::Uuid;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

/// The live state of an older copy of a map.
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
    /// The segments that an older state needs and that nothing here names: they are in the bucket only if they were not
    /// deleted yet. `Invalid` if the copy is not older than this map.
    pub(crate) fn unproven(&self, old: &OldMap) -> Result<Vec<(SegmentName, u64)>, Error> {
        let connection = &lock(&self.read).connection;
        let (then, now) = (schema::position(&old.connection)?, schema::position(connection)?);
        if (then.epoch, then.sequence) > (now.epoch, now.sequence) {
            return Err(Error::new(ErrorKind::Invalid, "the older map is newer than the volume"));
        }
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
        let stack = stack_of(&transaction, kept.layer)?;
        let numbers = numbers(&transaction, old)?;
        let id = insert(&transaction, kept)?;
        let new_head = push_layer(&transaction, kept.layer)?;
        let mut rows = Rows::new(&transaction);
        let mut regions: BTreeSet<u32> = all_regions(&transaction)?.into_iter().collect();
        regions.extend(all_regions(&old.connection)?);
        for region in regions {
            let now = resolve(&transaction, &stack, region)?;
            let then = old.region(region, &numbers)?;
            let mut graft = Region::default();
            let mut differs = Vec::new();
            for ((block, then), (_, now)) in then.entries().zip(now.entries()) {
                differs.push(then != now.or_zero());
                if then != now.or_zero() {
                    graft.set(block, then);
                }
            }
            if !graft.is_empty() {
                rows.put(region, new_head, None, Some(&graft))?;
                stale(region, &differs);
            }
        }
        rows.count()?;
        move_head(&transaction, new_head, old.base.as_deref())?;
        let new_stack = stack_of(&transaction, new_head)?;
        let reader = &mut *lock(&self.read);
        transaction.commit().attempt("commit a rewind")?;
        reader.stack = new_stack;
        reader.regions.clear();
        checkpoint(&connection, &id)
    }
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
