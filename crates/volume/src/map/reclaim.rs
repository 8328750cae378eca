//! Giving space back: merging layers that nothing needs apart, and finding segments that nothing names.
//!
//! A layer without a checkpoint that is not the head and has at most one child cannot be told apart from outside: its
//! rows go into its child, below what the child has, or away if it has none. Each step moves a bounded number of rows in
//! one transaction; in between, every stack still has every block.

use super::{LayerId, Map, Rows, decode, head, resolve, schema, split_key, stack_of, unsigned};
use crate::{
    VolumeId,
    error::{Attempt as _, Error},
    segment::SegmentName,
    sync::lock,
};
use rusqlite::{Connection, Transaction, params};

/// The most rows of a layer that are moved in one transaction.
const MERGE_ROWS_MAX: usize = 256;

/// Where the next step of a merge looks for rows. It saves time only: moved rows are gone from their layer.
#[derive(Debug, Default)]
pub(crate) struct MergeCursor(Option<(LayerId, i64)>);

/// A segment in the bucket that nothing names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Garbage {
    pub id: u32,
    pub name: SegmentName,
}

/// How many bytes are where.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub referenced_blocks: u64,
    pub stored_bytes: u64,
    pub reclaimable_bytes: u64,
    pub segments: u64,
    pub layers: u64,
}

impl Map {
    /// Merges a part of one layer. Returns whether there may be more to do. `cursor` is where the last step ended.
    pub(crate) fn merge_some(&self, cursor: &mut MergeCursor) -> Result<bool, Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        let Some((layer, child)) = mergeable(&transaction, &self.held())? else { return Ok(false) };
        let from = cursor.0.filter(|(of, _)| *of == layer).map_or(0, |(_, key)| key);
        let rows = rows_of(&transaction, layer, from)?;
        let done = rows.len() < MERGE_ROWS_MAX;
        let mut counted = Rows::new(&transaction);
        for (key, entries) in &rows {
            let (region, _) = split_key(*key);
            let below = decode(region, entries)?;
            if let Some(child) = child {
                let above = counted.load(region, child)?;
                let mut merged = below.clone();
                above.iter().for_each(|above| merged.overlay(above));
                counted.put(region, child, above.as_ref(), Some(&merged))?;
            }
            counted.put(region, layer, Some(&below), None)?;
        }
        counted.count()?;
        if done {
            remove_layer(&transaction, layer)?;
        }
        let reader = &mut *lock(&self.read);
        transaction.commit().attempt("commit a merge")?;
        cursor.0 = rows.last().filter(|_| !done).map(|(key, _)| (layer, *key));
        if done {
            reader.stack.retain(|in_stack| *in_stack != layer);
        }
        Ok(true)
    }

    /// Frozen layers whose cut someone holds.
    fn held(&self) -> Vec<LayerId> {
        let mut cuts = lock(&self.cuts);
        cuts.retain(|(_, slot)| slot.strong_count() > 0);
        cuts.iter().map(|(layer, _)| *layer).collect()
    }

    /// Segments of this volume that have been garbage since before the time, in milliseconds, at most so many. Those of
    /// other volumes are only forgotten.
    pub(crate) fn garbage(
        &self,
        volume: VolumeId,
        before: i64,
        most: usize,
    ) -> Result<Vec<Garbage>, Error> {
        let connection = lock(&self.read);
        let mut select = connection
            .connection
            .prepare_cached(
                "SELECT id, epoch, sequence FROM segment WHERE dead IS NOT NULL AND dead <= ?1 AND origin = ?2 LIMIT ?3",
            )
            .attempt("look for garbage")?;
        let most = i64::try_from(most).expect("a small number");
        let found = select
            .query_map(params![before, volume.0.as_bytes(), most], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .and_then(Iterator::collect::<rusqlite::Result<Vec<(u32, i64, i64)>>>)
            .attempt("look for garbage")?;
        found
            .into_iter()
            .map(|(id, epoch, sequence)| {
                let name =
                    SegmentName { volume, epoch: unsigned(epoch)?, sequence: unsigned(sequence)? };
                Ok(Garbage { id, name })
            })
            .collect()
    }

    /// Since when the oldest garbage of this volume is garbage, in milliseconds.
    pub(crate) fn garbage_since(&self, volume: VolumeId) -> Result<Option<i64>, Error> {
        lock(&self.read)
            .connection
            .query_row(
                "SELECT min(dead) FROM segment WHERE dead IS NOT NULL AND origin = ?1",
                [volume.0.as_bytes().as_slice()],
                |row| row.get(0),
            )
            .attempt("look for garbage")
    }

    /// The blocks of the live state that are not zero. Reads the whole map on a connection of its own, so that nobody waits.
    pub(crate) fn live_blocks(&self) -> Result<u64, Error> {
        let mut connection = schema::connect(&self.path)?;
        let snapshot = connection.transaction().attempt("count the live blocks")?;
        let stack = stack_of(&snapshot, head(&snapshot)?)?;
        let mut select = snapshot
            .prepare("SELECT DISTINCT key >> 32 FROM map")
            .attempt("count the live blocks")?;
        let regions =
            select.query_map([], |row| row.get::<_, u32>(0)).attempt("count the live blocks")?;
        let mut blocks = 0;
        for region in regions {
            let region = region.attempt("count the live blocks")?;
            blocks += resolve(&snapshot, &stack, region)?.segments().count() as u64;
        }
        Ok(blocks)
    }

    /// Forgets segments that are not in the bucket any more.
    pub(crate) fn forget(&self, garbage: &[Garbage]) -> Result<(), Error> {
        let mut connection = lock(&self.write);
        let transaction = connection.transaction().attempt("begin a transaction")?;
        for segment in garbage {
            transaction
                .execute("DELETE FROM segment WHERE id = ?1 AND refs = 0", [segment.id])
                .attempt("forget a segment")?;
        }
        transaction.commit().attempt("commit what was forgotten")
    }

    /// Counts over all layers.
    pub(crate) fn usage(&self) -> Result<Usage, Error> {
        let connection = &lock(&self.read).connection;
        let own: [u8; 16] = connection
            .query_row("SELECT id FROM volume", [], |row| row.get(0))
            .attempt("read whose map it is")?;
        let (refs, bytes, segments, reclaimable): (i64, i64, i64, i64) = connection
            .query_row(
                "SELECT ifnull(sum(refs), 0), ifnull(sum(iif(origin = ?1, bytes, 0)), 0), count(*),
                        ifnull(sum(iif(origin = ?1 AND blocks > 0, bytes * (blocks - min(refs, blocks)) / blocks, 0)), 0)
                 FROM segment",
                [own.as_slice()],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )
            .attempt("count the segments")?;
        let layers: i64 = connection
            .query_row("SELECT count(*) FROM layer", [], |row| row.get(0))
            .attempt("count the layers")?;
        Ok(Usage {
            referenced_blocks: unsigned(refs)?,
            stored_bytes: unsigned(bytes)?,
            reclaimable_bytes: unsigned(reclaimable)?,
            segments: unsigned(segments)?,
            layers: unsigned(layers)?,
        })
    }
}

/// A layer that can be merged, and the child that takes its rows.
fn mergeable(
    transaction: &Transaction<'_>,
    held: &[LayerId],
) -> Result<Option<(LayerId, Option<LayerId>)>, Error> {
    let head = head(transaction)?;
    let mut select = transaction
        .prepare_cached(
            "SELECT layer.id, min(child.id) FROM layer LEFT JOIN layer AS child ON child.parent = layer.id
             WHERE layer.id != ?1 AND layer.id NOT IN (SELECT layer FROM checkpoint)
             GROUP BY layer.id HAVING count(child.id) <= 1 ORDER BY layer.id",
        )
        .attempt("look for a layer to merge")?;
    let found = select
        .query_map([head.0], |row| {
            Ok((LayerId(row.get(0)?), row.get::<_, Option<u32>>(1)?.map(LayerId)))
        })
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .attempt("look for a layer to merge")?;
    Ok(found.into_iter().find(|(layer, _)| !held.contains(layer)))
}

fn rows_of(
    connection: &Connection,
    layer: LayerId,
    from: i64,
) -> Result<Vec<(i64, Vec<u8>)>, Error> {
    let mut select = connection
        .prepare_cached(
            "SELECT key, entries FROM map WHERE key > ?1 AND key & 4294967295 = ?2 ORDER BY key LIMIT ?3",
        )
        .attempt("read the rows of a layer")?;
    // Region 0 of a layer has its number as key, which is above 0.
    let most = i64::try_from(MERGE_ROWS_MAX).expect("a small number");
    select
        .query_map(params![from, layer.0, most], |row| Ok((row.get(0)?, row.get(1)?)))
        .and_then(Iterator::collect)
        .attempt("read the rows of a layer")
}

fn remove_layer(transaction: &Transaction<'_>, layer: LayerId) -> Result<(), Error> {
    transaction
        .execute(
            "UPDATE layer SET parent = (SELECT parent FROM layer AS gone WHERE gone.id = ?1) WHERE parent = ?1",
            [layer.0],
        )
        .and_then(|_| transaction.execute("DELETE FROM layer WHERE id = ?1", [layer.0]))
        .attempt("remove a merged layer")?;
    Ok(())
}
