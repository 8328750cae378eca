//! Frozen stacks that someone reads while the volume goes on, and what is different between two stacks.
//!
//! Only the top of such a stack has to be kept from being merged: a layer below it is merged into its only child, which is
//! in the stack as well. So the ids of a stack that was read once stay right; those that were merged away have no rows.

use super::{
    CutSlot, LayerId, Map, Region, Regions, checkpoints::layer_of, decode, resolve, split_key,
    stack_of,
};
use crate::{
    error::{Attempt as _, Error},
    sync::lock,
};
use rusqlite::Connection;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

/// The most regions of one frozen stack that are kept resolved: 4 KiB each, so 1 MiB.
const REGIONS_MAX: usize = 256;

/// A stack of frozen layers. As long as it exists, its top is not merged away.
#[derive(Debug)]
pub(crate) struct Frozen {
    stack: Vec<LayerId>,
    /// What keeps the top. See [`Map::held`].
    _hold: Arc<CutSlot>,
    resolved: Mutex<Resolved>,
}

/// Regions as they were resolved after so many repoints.
#[derive(Debug)]
struct Resolved {
    repoints: u64,
    regions: Regions,
}

impl Map {
    /// Holds the stack of a checkpoint, which may be deleted meanwhile.
    pub(crate) fn freeze_checkpoint(&self, id: &str) -> Result<Frozen, Error> {
        // Without the lock, the checkpoint could be deleted and its layer merged between the look and the hold.
        let connection = lock(&self.write);
        let layer = layer_of(&connection, id)?;
        let hold = Arc::new(CutSlot::from(layer));
        lock(&self.cuts).push((layer, Arc::downgrade(&hold)));
        Ok(Frozen::new(stack_of(&connection, layer)?, hold))
    }

    /// Holds the stack below a cut, by the cut's own hold.
    pub(crate) fn freeze_cut(&self, layer: LayerId, hold: Arc<CutSlot>) -> Result<Frozen, Error> {
        Ok(Frozen::new(stack_of(&lock(&self.read).connection, layer)?, hold))
    }

    /// The blocks of a region as a frozen stack has them.
    pub(crate) fn frozen_region(&self, frozen: &Frozen, region: u32) -> Result<Arc<Region>, Error> {
        let mut resolved = lock(&frozen.resolved);
        let reader = lock(&self.read);
        if resolved.repoints != reader.repoints {
            resolved.regions.clear();
            resolved.repoints = reader.repoints;
        }
        if let Some(found) = resolved.regions.find(region) {
            return Ok(found);
        }
        let found = Arc::new(resolve(&reader.connection, &frozen.stack, region)?);
        resolved.regions.insert(region, found.clone());
        Ok(found)
    }

    /// The regions in which two frozen stacks may differ.
    pub(crate) fn differing_regions(
        &self,
        one: &Frozen,
        other: &Frozen,
    ) -> Result<BTreeSet<u32>, Error> {
        changed_regions(&lock(&self.read).connection, &one.stack, &other.stack)
    }
}

impl Frozen {
    fn new(stack: Vec<LayerId>, hold: Arc<CutSlot>) -> Self {
        let resolved = Resolved { repoints: 0, regions: Regions::new(REGIONS_MAX) };
        Self { stack, _hold: hold, resolved: Mutex::new(resolved) }
    }
}

/// Regions with a row in a layer that only one of the stacks has.
pub(super) fn changed_regions(
    connection: &Connection,
    old: &[LayerId],
    new: &[LayerId],
) -> Result<BTreeSet<u32>, Error> {
    let old: BTreeSet<LayerId> = old.iter().copied().collect();
    let new: BTreeSet<LayerId> = new.iter().copied().collect();
    let mut regions = BTreeSet::new();
    for layer in old.symmetric_difference(&new) {
        regions.extend(regions_of(connection, *layer)?);
    }
    Ok(regions)
}

/// The regions in which a layer has a row.
pub(super) fn regions_of(connection: &Connection, layer: LayerId) -> Result<Vec<u32>, Error> {
    let mut select = connection
        .prepare_cached(
            "SELECT key FROM map INDEXED BY map_layer WHERE key & 4294967295 = ?1 ORDER BY key",
        )
        .attempt("list the regions of a layer")?;
    select
        .query_map([layer.0], |row| row.get(0).map(|key| split_key(key).0))
        .and_then(Iterator::collect)
        .attempt("list the regions of a layer")
}

/// All rows of a region, of whichever layer.
pub(super) fn rows_in(
    connection: &Connection,
    region: u32,
) -> Result<Vec<(LayerId, Region)>, Error> {
    let mut select = connection
        .prepare_cached("SELECT key & 4294967295, entries FROM map WHERE key >= ?1 AND key < ?2")
        .attempt("read a region")?;
    let from = i64::from(region) << 32;
    let rows = select
        .query_map([from, from + (1 << 32)], |row| {
            Ok((row.get(0).map(LayerId)?, row.get::<_, Vec<u8>>(1)?))
        })
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .attempt("read a region")?;
    rows.into_iter().map(|(layer, entries)| Ok((layer, decode(region, &entries)?))).collect()
}

/// All regions with a row, in order.
pub(super) fn all_regions(connection: &Connection) -> Result<Vec<u32>, Error> {
    let mut select = connection
        .prepare_cached("SELECT DISTINCT key >> 32 FROM map ORDER BY key")
        .attempt("list the regions")?;
    select.query_map([], |row| row.get(0)).and_then(Iterator::collect).attempt("list the regions")
}
