//! Giving space back: merging layers that nothing needs apart, and finding segments that nothing names.
//!
//! A layer without a checkpoint and without a pin that is not the head and has at most one child cannot be told apart from outside: its
//! rows go into its child, below what the child has, or away if it has none. Each step moves a bounded number of rows in
//! one transaction; in between, every stack still has every block.

use super::{LayerId, Map, Rows, decode, head, resolve, schema, split_key, stack_of, unsigned};
use crate::{
    VolumeId,
    error::{Attempt as _, Error},
    segment::SegmentName,
    sync::lock,
};
use base::__uuid::Uuid;
use rusqlite::{Connection, Transaction, params};

/// The most rows of a layer that are moved in one transaction.
const MERGE_ROWS_MAX: usize = 256;

/// Where the next step of a merge looks for rows. It saves time only: moved rows are gone from their layer.
#[derive(Debug, Default)]
pub(crate) struct MergeCursor(Option<(LayerId, i64)>);

/// A segment that nothing names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Garbage {
    pub id: u32,
    pub name: SegmentName,
    /// What it takes in the bucket; none for an object that never was a part of any state.
    pub bytes: u64,
    /// Since when nothing names it, in milliseconds.
    pub dead: i64,
}

/// When garbage is due. Times are in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub now: i64,
    /// So long it is kept, because a rewind may need it.
    pub delay: i64,
    /// So long it is kept even if there is too much of it, because someone may be reading it.
    pub grace: i64,
    /// With more garbage than this and than what is named, the oldest is due at once.
    pub bytes_max: u64,
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

    /// Garbage that is due, the oldest first, at most so much.
    pub(crate) fn garbage(
        &self,
        volume: VolumeId,
        window: &Window,
        most: usize,
    ) -> Result<Vec<Garbage>, Error> {
        let reader = lock(&self.read);
        let mut over = bytes_over(&reader.connection, volume, window.bytes_max)?;
        let mut due = Vec::new();
        for garbage in oldest_garbage(&reader.connection, most)? {
            let own = garbage.name.volume == volume;
            let is_due = garbage.dead <= window.now - window.delay
                || (own && over > 0 && garbage.dead <= window.now - window.grace);
            if !is_due {
                break;
            }
            if own {
                over = over.saturating_sub(garbage.bytes);
            }
            due.push(garbage);
        }
        Ok(due)
    }

    /// Since when the oldest garbage is garbage, in milliseconds.
    pub(crate) fn garbage_since(&self) -> Result<Option<i64>, Error> {
        lock(&self.read)
            .connection
            .query_row("SELECT min(dead) FROM segment WHERE dead IS NOT NULL", [], |row| row.get(0))
            .attempt("look for garbage")
    }

    /// Notes that what was garbage until then, in milliseconds, is about to be deleted: no earlier state is whole any more.
    pub(crate) fn note_deletion(&self, until: i64) -> Result<(), Error> {
        lock(&self.write)
            .execute(
                "UPDATE volume SET deleted_until = max(ifnull(deleted_until, ?1), ?1)",
                [until],
            )
            .attempt("note a deletion")
            .map(drop)
    }

    /// The time, in milliseconds, since when every state is whole; none if nothing was ever deleted.
    pub(crate) fn deleted_until(&self) -> Result<Option<i64>, Error> {
        lock(&self.read)
            .connection
            .query_row("SELECT deleted_until FROM volume", [], |row| row.get(0))
            .attempt("read what was deleted")
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

/// By how many bytes the garbage of a volume is more than what is kept for rewinding.
fn bytes_over(connection: &Connection, volume: VolumeId, bytes_max: u64) -> Result<u64, Error> {
    let own = volume.0.as_bytes().as_slice();
    let sum = |condition: &str| {
        let select =
            format!("SELECT ifnull(sum(bytes), 0) FROM segment WHERE {condition} AND origin = ?1");
        connection.query_row(&select, [own], |row| row.get(0)).attempt("add up the garbage")
    };
    let garbage = unsigned(sum("dead IS NOT NULL")?)?;
    if garbage <= bytes_max {
        return Ok(0);
    }
    // This one reads the whole table, which only a volume with a lot of garbage pays for.
    let named = unsigned(sum("refs > 0")?)?;
    Ok(garbage.saturating_sub(named.max(bytes_max)))
}

fn oldest_garbage(connection: &Connection, most: usize) -> Result<Vec<Garbage>, Error> {
    let mut select = connection
        .prepare_cached(
            "SELECT id, origin, epoch, sequence, bytes, dead FROM segment WHERE dead IS NOT NULL ORDER BY dead LIMIT ?1",
        )
        .attempt("look for garbage")?;
    let most = i64::try_from(most).expect("a small number");
    let rows = select
        .query_map([most], |row| {
            let numbers: [i64; 4] = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?];
            Ok((row.get::<_, u32>(0)?, row.get::<_, [u8; 16]>(1)?, numbers))
        })
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .attempt("look for garbage")?;
    rows.into_iter()
        .map(|(id, origin, [epoch, sequence, bytes, dead])| {
            let volume = VolumeId(Uuid::from_bytes(origin));
            let name =
                SegmentName { volume, epoch: unsigned(epoch)?, sequence: unsigned(sequence)? };
            Ok(Garbage { id, name, bytes: unsigned(bytes)?, dead })
        })
        .collect()
}

/// A layer that can be merged, and the child that takes its rows. Those without a child first: they only go away.
fn mergeable(
    transaction: &Transaction<'_>,
    held: &[LayerId],
) -> Result<Option<(LayerId, Option<LayerId>)>, Error> {
    let head = head(transaction)?;
    let mut select = transaction
        .prepare_cached(
            "SELECT layer.id, min(child.id) FROM layer LEFT JOIN layer AS child ON child.parent = layer.id
             WHERE layer.id != ?1 AND layer.id NOT IN (SELECT layer FROM checkpoint UNION ALL SELECT layer FROM pin)
             GROUP BY layer.id HAVING count(child.id) <= 1 ORDER BY count(child.id), layer.id",
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
            "SELECT key, entries FROM map INDEXED BY map_layer WHERE key > ?1 AND key & 4294967295 = ?2 ORDER BY key LIMIT ?3",
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
