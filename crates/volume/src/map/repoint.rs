//! Moving blocks from one segment to another: finding segments of which little is named, and repointing what names them.

use super::{
    Entry, LayerId, Map, NewSegment, REGION_BLOCKS, Region, Rows,
    frozen::rows_in,
    insert_segment,
    pins::{all_pins, pinned_layers},
    signed, unsigned,
};
use crate::{
    VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    segment::{BlockEntry, SegmentName},
    sync::lock,
};
use rusqlite::{Transaction, params};
use std::collections::{BTreeMap, BTreeSet};

/// A segment of which less than half is named.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sparse {
    pub id: u32,
    pub name: SegmentName,
    pub data_offset: u32,
    /// When it was made, in milliseconds.
    pub created: i64,
}

/// A block that is about to be elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub block: u32,
    pub segment: u32,
    pub index: u32,
    pub crc: u32,
}

/// A segment with copies of blocks of others.
#[derive(Debug)]
pub(crate) struct Repoint<'a> {
    pub segment: &'a NewSegment,
    pub orphans: &'a [SegmentName],
    /// Where the blocks of the new segment were, in the order of its data, which is that of their numbers.
    pub moves: &'a [Move],
}

impl Map {
    /// Segments of this volume of which less than half is named, the oldest first.
    pub(crate) fn sparse(&self, volume: VolumeId, most: usize) -> Result<Vec<Sparse>, Error> {
        let reader = lock(&self.read);
        let mut select = reader
            .connection
            .prepare_cached(
                "SELECT id, epoch, sequence, data_offset, created FROM segment INDEXED BY segment_sparse
                 WHERE refs > 0 AND blocks > refs * 2 AND origin = ?1 ORDER BY created LIMIT ?2",
            )
            .attempt("look for sparse segments")?;
        let most = i64::try_from(most).expect("a small number");
        let rows = select
            .query_map(params![volume.0.as_bytes(), most], |row| {
                let numbers: [i64; 3] = [row.get(1)?, row.get(2)?, row.get(4)?];
                Ok((row.get(0)?, row.get(3)?, numbers))
            })
            .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
            .attempt("look for sparse segments")?;
        rows.into_iter()
            .map(|(id, data_offset, [epoch, sequence, created])| {
                let name =
                    SegmentName { volume, epoch: unsigned(epoch)?, sequence: unsigned(sequence)? };
                Ok(Sparse { id, name, data_offset, created })
            })
            .collect()
    }

    /// The number of pins.
    pub(crate) fn pin_count(&self) -> Result<usize, Error> {
        Ok(all_pins(&lock(&self.read).connection)?.len())
    }

    /// The blocks of a segment that some layer names, in the order of their numbers, with `blocks` as the segment's own
    /// table. None if a fork may name it as well: then it has to stay whatever is done here.
    pub(crate) fn named_blocks(
        &self,
        segment: u32,
        blocks: &[BlockEntry],
    ) -> Result<Option<Vec<Move>>, Error> {
        let pinned = pinned_layers(&lock(&self.read).connection)?;
        let regions: BTreeSet<u32> =
            blocks.iter().map(|entry| entry.block / REGION_BLOCKS).collect();
        let mut named = BTreeMap::new();
        for region in regions {
            // The lock is taken anew for each region, so that readers of the volume hardly wait.
            let rows = rows_in(&lock(&self.read).connection, region)?;
            for (layer, row) in rows {
                let moves = moves_of(segment, region, &row);
                if pinned.contains(&layer) && !moves.is_empty() {
                    return Ok(None);
                }
                for found in moves {
                    let expected = BlockEntry { block: found.block, crc: found.crc };
                    if blocks.get(found.index as usize) != Some(&expected) {
                        let message = format!("segment {segment} is not what the map says");
                        return Err(Error::new(ErrorKind::Corrupt, message));
                    }
                    named.insert(found.block, found);
                }
            }
        }
        Ok(Some(named.into_values().collect()))
    }

    /// Records a segment of copies and repoints every entry that still is what was copied, in all layers but the pinned.
    pub(crate) fn repoint(&self, repoint: &Repoint<'_>) -> Result<(), Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let mut segment_next = repoint.segment.name.sequence + 1;
        for orphan in repoint.orphans {
            let empty = NewSegment { name: *orphan, bytes: 0, data_offset: 0, runs: Vec::new() };
            insert_segment(&transaction, &empty, 0)?;
            segment_next = segment_next.max(orphan.sequence + 1);
        }
        let segment = insert_segment(&transaction, repoint.segment, repoint.moves.len())?;
        let pinned = pinned_layers(&transaction)?;
        let mut rows = Rows::new(&transaction);
        let mut changed = BTreeSet::new();
        let indexed: Vec<(u32, &Move)> = (0..).zip(repoint.moves).collect();
        for group in
            indexed.chunk_by(|(_, a), (_, b)| a.block / REGION_BLOCKS == b.block / REGION_BLOCKS)
        {
            let Some((_, first)) = group.first() else { continue };
            let region = first.block / REGION_BLOCKS;
            if repoint_region(&transaction, &mut rows, &pinned, region, segment, group)? {
                changed.insert(region);
            }
        }
        rows.count()?;
        transaction
            .execute(
                "UPDATE volume SET segment_next = max(segment_next, ?1)",
                [signed(segment_next)],
            )
            .attempt("take a segment number")?;
        let reader = &mut *lock(&self.read);
        transaction.commit().attempt("commit moved blocks")?;
        reader.regions.remove(&changed);
        reader.repoints += 1;
        Ok(())
    }
}

/// Repoints the rows of one region. Returns whether any changed.
fn repoint_region(
    transaction: &Transaction<'_>,
    rows: &mut Rows<'_>,
    pinned: &BTreeSet<LayerId>,
    region: u32,
    segment: u32,
    moves: &[(u32, &Move)],
) -> Result<bool, Error> {
    let mut changed = false;
    for (layer, old) in rows_in(transaction, region)? {
        if pinned.contains(&layer) {
            continue;
        }
        let mut new = old.clone();
        for (index, Move { block, segment: from, index: at, crc }) in moves {
            let block = block % REGION_BLOCKS;
            if old.entry(block) == (Entry::Block { segment: *from, index: *at, crc: *crc }) {
                new.set(block, Entry::Block { segment, index: *index, crc: *crc });
            }
        }
        if new != old {
            rows.put(region, layer, Some(&old), Some(&new))?;
            changed = true;
        }
    }
    Ok(changed)
}

/// What a row names of a segment.
fn moves_of(segment: u32, region: u32, row: &Region) -> Vec<Move> {
    row.entries()
        .filter_map(|(block, entry)| match entry {
            Entry::Block { segment: of, index, crc } if of == segment => {
                Some(Move { block: region * REGION_BLOCKS + block, segment, index, crc })
            }
            _ => None,
        })
        .collect()
}
