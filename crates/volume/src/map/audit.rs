//! Checking a map against what has to be true of every map.

use super::{
    LayerId, Region,
    frozen::all_regions,
    head,
    pins::all_pins,
    region::{Entry, REGION_BLOCKS},
    resolve, schema, split_key, stack_of, unsigned,
};
use crate::{
    VOLUME_BLOCKS, VolumeId,
    error::{Attempt as _, Error},
    segment::{Run, SegmentName, parse_runs},
};
use base::__uuid::Uuid;
use rusqlite::Connection;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

/// The most complaints of SQLite itself.
const COMPLAINTS_MAX: u32 = 100;

/// A map that is being checked.
pub(crate) struct Audit {
    connection: Connection,
    pub(crate) volume: VolumeId,
    pub(crate) epoch: u64,
    layers: BTreeMap<LayerId, Option<LayerId>>,
}

/// A segment as its row has it.
#[derive(Debug, Clone)]
pub(crate) struct SegmentRow {
    pub id: u32,
    pub name: SegmentName,
    pub bytes: u64,
    pub data_offset: u32,
    pub runs: Vec<Run>,
    pub blocks: u64,
    pub refs: u64,
    dead: bool,
}

/// A block as an entry of a map has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named {
    pub block: u32,
    pub index: u32,
    pub crc: u32,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counted {
    pub layers: u64,
    pub checkpoints: u64,
    pub pins: u64,
}

impl Audit {
    /// Opens a map, which may be in use.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let connection = schema::existing(path)?;
        let volume = schema::identity(&connection)?;
        let epoch = schema::position(&connection)?.epoch;
        Ok(Self { connection, volume, epoch, layers: BTreeMap::new() })
    }

    /// Checks the tables against each other. Each complaint is a sentence for `complain`.
    pub(crate) fn tables(&mut self, complain: &mut dyn FnMut(String)) -> Result<Counted, Error> {
        self.file(complain)?;
        self.layer_tree(complain)?;
        let mut counted = self.roots(complain)?;
        counted.layers = self.layers.len() as u64;
        Ok(counted)
    }

    /// What SQLite says about its own file.
    fn file(&self, complain: &mut dyn FnMut(String)) -> Result<(), Error> {
        let mut select = self
            .connection
            .prepare(&format!("PRAGMA integrity_check({COMPLAINTS_MAX})"))
            .attempt("check the map's file")?;
        let lines = select
            .query_map([], |row| row.get::<_, String>(0))
            .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
            .attempt("check the map's file")?;
        lines
            .iter()
            .filter(|line| *line != "ok")
            .for_each(|line| complain(format!("the map's file is damaged: {line}")));
        Ok(())
    }

    fn layer_tree(&mut self, complain: &mut dyn FnMut(String)) -> Result<(), Error> {
        let mut select =
            self.connection.prepare("SELECT id, parent FROM layer").attempt("list the layers")?;
        self.layers = select
            .query_map([], |row| {
                Ok((LayerId(row.get(0)?), row.get::<_, Option<u32>>(1)?.map(LayerId)))
            })
            .and_then(Iterator::collect)
            .attempt("list the layers")?;
        for (layer, parent) in &self.layers {
            if parent.is_some_and(|parent| !self.layers.contains_key(&parent)) {
                complain(format!("layer {} lies on a layer that does not exist", layer.0));
            }
            let mut at = *parent;
            let mut steps = 0;
            while let Some(below) = at {
                steps += 1;
                if steps > self.layers.len() {
                    complain(format!("layer {} lies on itself", layer.0));
                    break;
                }
                at = self.layers.get(&below).copied().flatten();
            }
        }
        Ok(())
    }

    /// Head, checkpoints and pins.
    fn roots(&self, complain: &mut dyn FnMut(String)) -> Result<Counted, Error> {
        let head = head(&self.connection)?;
        if !self.layers.contains_key(&head) {
            complain(format!("the head is layer {}, which does not exist", head.0));
        }
        if self.layers.values().any(|parent| *parent == Some(head)) {
            complain(format!("layer {} lies on the head, which takes the writes", head.0));
        }
        let checkpoints = self.checkpoints()?;
        for (id, layer) in &checkpoints {
            if !self.layers.contains_key(layer) {
                complain(format!("checkpoint {id} is of a layer that does not exist"));
            }
            if *layer == head {
                complain(format!("checkpoint {id} is of the head, which takes the writes"));
            }
        }
        let base = super::checkpoints::base(&self.connection)?;
        if let Some(base) = base.filter(|base| !checkpoints.iter().any(|(id, _)| id == base)) {
            complain(format!("the live state grew from {base}, which does not exist"));
        }
        let pins = self.pinned()?;
        for layer in &pins {
            if !self.layers.contains_key(layer) {
                complain(format!("layer {} is pinned and does not exist", layer.0));
            }
        }
        let (checkpoints, pins) = (checkpoints.len() as u64, pins.len() as u64);
        Ok(Counted { layers: 0, checkpoints, pins })
    }

    fn checkpoints(&self) -> Result<Vec<(String, LayerId)>, Error> {
        let mut select = self
            .connection
            .prepare("SELECT id, layer FROM checkpoint")
            .attempt("list the checkpoints")?;
        select
            .query_map([], |row| Ok((row.get(0)?, LayerId(row.get(1)?))))
            .and_then(Iterator::collect)
            .attempt("list the checkpoints")
    }

    fn pinned(&self) -> Result<Vec<LayerId>, Error> {
        if schema::format(&self.connection)? == 1 {
            return Ok(Vec::new());
        }
        Ok(all_pins(&self.connection)?.into_iter().map(|pin| LayerId(pin.layer)).collect())
    }

    /// Checks every row of the map, and the counts of the segments against them. Returns the segments' rows.
    pub(crate) fn rows(&self, complain: &mut dyn FnMut(String)) -> Result<Vec<SegmentRow>, Error> {
        let mut counts: HashMap<u32, u64> = HashMap::new();
        let regions = VOLUME_BLOCKS.div_ceil(REGION_BLOCKS);
        self.each_row(|region, layer, row| {
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    complain(format!("{error}: {}", source.unwrap_or_default()));
                    return;
                }
            };
            if region >= regions {
                complain(format!("region {region} lies behind the end of the volume"));
            }
            if !self.layers.contains_key(&layer) {
                complain(format!(
                    "region {region} has a row of layer {}, which does not exist",
                    layer.0
                ));
            }
            if row.is_empty() {
                complain(format!("region {region} has an empty row of layer {}", layer.0));
            }
            row.segments().for_each(|segment| *counts.entry(segment).or_default() += 1);
        })?;
        let segments = self.segments(complain)?;
        let mut names = BTreeSet::new();
        for segment in &segments {
            let key = segment.name.key();
            let counted = counts.remove(&segment.id).unwrap_or(0);
            if counted != segment.refs {
                complain(format!(
                    "{key} is named {counted} times and counted {} times",
                    segment.refs
                ));
            }
            if segment.dead != (segment.refs == 0) {
                complain(format!("{key} is garbage in one column and not in the other"));
            }
            if !names.insert(key.clone()) {
                complain(format!("{key} is there twice"));
            }
        }
        let mut unknown: Vec<u32> = counts.into_keys().collect();
        unknown.sort_unstable();
        for segment in unknown {
            complain(format!("the map names segment {segment}, which it lacks"));
        }
        Ok(segments)
    }

    /// What the map names of the segments with numbers from `first` to `last`.
    pub(crate) fn named(&self, first: u32, last: u32) -> Result<HashMap<u32, Vec<Named>>, Error> {
        let mut named: HashMap<u32, Vec<Named>> = HashMap::new();
        self.each_row(|region, _, row| {
            // A row that does not decode was complained about before.
            for (block, entry) in row.iter().flat_map(Region::entries) {
                if let Entry::Block { segment, index, crc } = entry
                    && (first..=last).contains(&segment)
                {
                    let block = region.saturating_mul(REGION_BLOCKS).saturating_add(block);
                    named.entry(segment).or_default().push(Named { block, index, crc });
                }
            }
        })?;
        Ok(named)
    }

    /// The segments that the live state, a checkpoint or a fork can read. The others are named only below what hides them.
    pub(crate) fn visible(&self) -> Result<BTreeSet<u32>, Error> {
        let mut roots = vec![head(&self.connection)?];
        roots.extend(self.checkpoints()?.into_iter().map(|(_, layer)| layer));
        roots.extend(self.pinned()?);
        let mut visible = BTreeSet::new();
        let regions = all_regions(&self.connection)?;
        for root in roots {
            let stack = stack_of(&self.connection, root)?;
            for region in &regions {
                visible.extend(resolve(&self.connection, &stack, *region)?.segments());
            }
        }
        Ok(visible)
    }

    fn each_row(
        &self,
        mut each: impl FnMut(u32, LayerId, Result<Region, Error>),
    ) -> Result<(), Error> {
        let mut select = self
            .connection
            .prepare_cached("SELECT key, entries FROM map ORDER BY key")
            .attempt("read the map")?;
        let mut rows = select.query([]).attempt("read the map")?;
        while let Some(row) = rows.next().attempt("read the map")? {
            let key: i64 = row.get(0).attempt("read the map")?;
            let entries: Vec<u8> = row.get(1).attempt("read the map")?;
            let (region, layer) = split_key(key);
            each(region, layer, super::decode(region, &entries));
        }
        Ok(())
    }

    fn segments(&self, complain: &mut dyn FnMut(String)) -> Result<Vec<SegmentRow>, Error> {
        let mut select = self
            .connection
            .prepare(
                "SELECT id, origin, epoch, sequence, bytes, blocks, refs, data_offset, runs, dead IS NOT NULL
                 FROM segment ORDER BY id",
            )
            .attempt("list the segments")?;
        let mut rows = select.query([]).attempt("list the segments")?;
        let mut segments = Vec::new();
        while let Some(row) = rows.next().attempt("list the segments")? {
            let parsed = parse_segment(row).attempt("list the segments")?;
            let (row, [epoch, sequence, bytes, blocks, refs], runs) = parsed;
            let name =
                SegmentName { epoch: unsigned(epoch)?, sequence: unsigned(sequence)?, ..row.name };
            let runs = parse_runs(&runs, row.data_offset).unwrap_or_else(|error| {
                complain(format!("the run table of {} is damaged: {error}", name.key()));
                Vec::new()
            });
            let (bytes, blocks) = (unsigned(bytes)?, unsigned(blocks)?);
            segments.push(SegmentRow { name, bytes, blocks, refs: unsigned(refs)?, runs, ..row });
        }
        Ok(segments)
    }
}

/// A row, its numbers that may be out of range, and its run table.
type Parsed = (SegmentRow, [i64; 5], Vec<u8>);

fn parse_segment(row: &rusqlite::Row<'_>) -> rusqlite::Result<Parsed> {
    let volume = VolumeId(Uuid::from_bytes(row.get(1)?));
    let numbers = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?];
    let segment = SegmentRow {
        id: row.get(0)?,
        name: SegmentName { volume, epoch: 0, sequence: 0 },
        bytes: 0,
        data_offset: row.get(7)?,
        runs: Vec::new(),
        blocks: 0,
        refs: 0,
        dead: row.get(9)?,
    };
    Ok((segment, numbers, row.get(8)?))
}
