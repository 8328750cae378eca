//! A map as rows that can be told to another volume, and a map made of such rows.
//!
//! What is told is a tree of layers with the rows of each, cut down to what the live state and the checkpoints can read.
//! Pins are not told: they are what this volume owes to others.
//!
//! What is heard is checked before it gets into a map: it may come from anywhere.

use super::{
    Entry, LayerId, NewSegment, REGION_BLOCKS, Region,
    audit::Audit,
    checkpoints::{base, layer_of},
    decode, head, insert_segment, key, load_segment, schema, signed, split_key, stack_of,
};
use crate::{
    VOLUME_BLOCKS, VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    segment::SegmentName,
};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

/// The most layers and the most checkpoints of a map that is heard.
const LAYERS_MAX: usize = 10_000;

/// No number of layers and checkpoints that is heard is larger: those that come later must still have some.
const NUMBER_MAX: u32 = 1 << 30;

/// The longest id and the longest comment of a checkpoint that is heard, in bytes.
const ID_BYTES_MAX: usize = 64;
const COMMENT_BYTES_MAX: usize = 16 << 10;

/// The longest row: every block of a region an extent of its own.
const ROW_BYTES_MAX: usize = REGION_BLOCKS as usize * 16;

/// What a portable volume consists of, besides its segments and rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    layers: Vec<Layer>,
    head: u32,
    /// The checkpoint that the live state grew from.
    base: Option<String>,
    /// The number of the next checkpoint that a person makes.
    checkpoint_next: u32,
    /// The second of the newest automatic checkpoint, since 1970, and how many it has: their ids are made of them.
    auto_second: i64,
    auto_count: u32,
    checkpoints: Vec<PortableCheckpoint>,
    /// The numbers of the segments that the rows name, ascending.
    pub(crate) segments: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    id: u32,
    parent: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableCheckpoint {
    id: String,
    layer: u32,
    /// Microseconds since 1970.
    created: i64,
    comment: String,
    auto: bool,
    commented: bool,
    source: Option<String>,
}

/// The blocks of a region in a layer, packed as [`Region`] draws it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub region: u32,
    pub layer: u32,
    pub entries: Vec<u8>,
}

/// A map that is told.
pub(crate) struct Told {
    connection: Connection,
    layers: BTreeSet<LayerId>,
    visible: BTreeSet<u32>,
}

impl Told {
    /// Reads a map, which must not change meanwhile. With `live`, the live state that is told is that checkpoint.
    pub(crate) fn open(path: &Path, live: Option<&str>) -> Result<(Self, Contents), Error> {
        let mut connection = schema::existing(path)?;
        schema::upgrade(&mut connection)?;
        let visible = Audit::open(path)?.visible()?;
        let checkpoints = read_checkpoints(&connection)?;
        let (mut top, mut base) = (head(&connection)?, base(&connection)?);
        let mut added = None;
        if let Some(id) = live {
            let parent = layer_of(&connection, id)?;
            let highest: u32 = connection
                .query_row("SELECT max(id) FROM layer", [], |row| row.get(0))
                .attempt("find the newest layer")?;
            added = Some(Layer { id: highest + 1, parent: Some(parent.0) });
            (top, base) = (parent, Some(id.to_owned()));
        }
        let mut layers = BTreeMap::new();
        for root in checkpoints.iter().map(|row| LayerId(row.layer)).chain([top]) {
            let stack = stack_of(&connection, root)?;
            for (at, layer) in stack.iter().enumerate() {
                layers.insert(*layer, stack.get(at + 1).map(|parent| parent.0));
            }
        }
        let told = layers.keys().copied().collect();
        let mut layers: Vec<Layer> =
            layers.into_iter().map(|(id, parent)| Layer { id: id.0, parent }).collect();
        layers.extend(added);
        let (checkpoint_next, auto_second, auto_count) = connection
            .query_row("SELECT checkpoint_next, auto_second, auto_count FROM volume", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .attempt("read the next checkpoint number")?;
        let contents = Contents {
            layers,
            head: added.map_or(top.0, |added| added.id),
            base,
            checkpoint_next,
            auto_second,
            auto_count,
            checkpoints,
            segments: visible.iter().copied().collect(),
        };
        Ok((Self { connection, layers: told, visible }, contents))
    }

    /// Where a segment is.
    pub(crate) fn segment(&self, id: u32) -> Result<(SegmentName, u32), Error> {
        let (name, data_offset): (_, u32) = {
            let table = load_segment(&self.connection, id)?;
            let offset = self
                .connection
                .query_row("SELECT data_offset FROM segment WHERE id = ?1", [id], |row| row.get(0))
                .attempt("find the data of a segment")?;
            (table.name, offset)
        };
        Ok((name, data_offset))
    }

    /// Calls `each` with every row, in the order of regions, until it fails.
    pub(crate) fn rows(&self, each: &mut dyn FnMut(Row) -> Result<(), Error>) -> Result<(), Error> {
        let mut select = self
            .connection
            .prepare("SELECT key, entries FROM map ORDER BY key")
            .attempt("read the map")?;
        let mut rows = select.query([]).attempt("read the map")?;
        while let Some(row) = rows.next().attempt("read the map")? {
            let (region, layer) = split_key(row.get(0).attempt("read the map")?);
            if !self.layers.contains(&layer) {
                continue;
            }
            let entries: Vec<u8> = row.get(1).attempt("read the map")?;
            let told = self.readable(decode(region, &entries)?);
            if !told.is_empty() {
                each(Row { region, layer: layer.0, entries: told.encode() })?;
            }
        }
        Ok(())
    }

    /// Without what is hidden in every state: another volume may have deleted that.
    fn readable(&self, region: Region) -> Region {
        let mut readable = Region::default();
        for (block, entry) in region.entries() {
            match entry {
                Entry::Block { segment, .. } if !self.visible.contains(&segment) => {}
                entry => readable.set(block, entry),
            }
        }
        readable
    }
}

fn read_checkpoints(connection: &Connection) -> Result<Vec<PortableCheckpoint>, Error> {
    let mut select = connection
        .prepare(
            "SELECT id, layer, created, comment, auto, commented, source FROM checkpoint ORDER BY number",
        )
        .attempt("list the checkpoints")?;
    select
        .query_map([], |row| {
            Ok(PortableCheckpoint {
                id: row.get(0)?,
                layer: row.get(1)?,
                created: row.get(2)?,
                comment: row.get(3)?,
                auto: row.get(4)?,
                commented: row.get(5)?,
                source: row.get(6)?,
            })
        })
        .and_then(Iterator::collect)
        .attempt("list the checkpoints")
}

/// A map that is being made of what is heard, in one transaction.
pub(crate) struct Heard {
    connection: Connection,
    layers: BTreeSet<u32>,
    /// The segments that may be named: how many blocks each has, and its number in the new map. Filled as they come.
    segments: HashMap<u32, HeardSegment>,
}

#[derive(Debug, Clone, Copy)]
struct HeardSegment {
    number: u32,
    blocks: u32,
    refs: i64,
}

impl Heard {
    /// Begins the map of a volume in a new file.
    pub(crate) fn begin(path: &Path, volume: VolumeId, contents: &Contents) -> Result<Self, Error> {
        contents.check()?;
        let connection = schema::open(path, volume, 0)?;
        connection.execute_batch("BEGIN; DELETE FROM layer;").attempt("begin the map")?;
        for layer in &contents.layers {
            connection
                .prepare_cached("INSERT INTO layer (id, parent) VALUES (?1, ?2)")
                .and_then(|mut insert| insert.execute(params![layer.id, layer.parent]))
                .attempt("record a layer")?;
        }
        for row in &contents.checkpoints {
            connection
                .prepare_cached(
                    "INSERT INTO checkpoint (id, layer, created, comment, auto, commented, source)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )
                .and_then(|mut insert| {
                    insert.execute(params![
                        row.id,
                        row.layer,
                        row.created,
                        row.comment,
                        row.auto,
                        row.commented,
                        row.source
                    ])
                })
                .attempt("record a checkpoint")?;
        }
        connection
            .execute(
                "UPDATE volume SET head = ?1, base = ?2, checkpoint_next = ?3, auto_second = ?4, auto_count = ?5",
                params![
                    contents.head,
                    contents.base,
                    contents.checkpoint_next,
                    contents.auto_second,
                    contents.auto_count
                ],
            )
            .attempt("record the head")?;
        let layers = contents.layers.iter().map(|layer| layer.id).collect();
        Ok(Self { connection, layers, segments: HashMap::new() })
    }

    /// Records a segment that is in the bucket and was called `id`.
    pub(crate) fn segment(
        &mut self,
        id: u32,
        segment: &NewSegment,
        blocks: usize,
    ) -> Result<(), Error> {
        let number = insert_segment(&self.connection, segment, blocks)?;
        let blocks = u32::try_from(blocks).map_err(|_| invalid("a segment has too many blocks"))?;
        if self.segments.insert(id, HeardSegment { number, blocks, refs: 0 }).is_some() {
            return Err(invalid(format!("segment {id} comes twice")));
        }
        Ok(())
    }

    /// Records a row. All segments that it names must have come.
    pub(crate) fn row(&mut self, row: &Row) -> Result<(), Error> {
        let Row { region, layer, entries } = row;
        if *region >= VOLUME_BLOCKS.div_ceil(REGION_BLOCKS) || !self.layers.contains(layer) {
            return Err(invalid(format!("there is no region {region} of layer {layer}")));
        }
        if entries.len() > ROW_BYTES_MAX {
            return Err(invalid("a row is too long"));
        }
        let told = decode(*region, entries)?;
        let mut heard = Region::default();
        for (block, entry) in told.entries() {
            let entry = match entry {
                Entry::Block { segment, index, crc } => {
                    let known = self
                        .segments
                        .get_mut(&segment)
                        .filter(|known| index < known.blocks)
                        .ok_or_else(|| {
                            invalid(format!("there is no block {index} of segment {segment}"))
                        })?;
                    known.refs += 1;
                    Entry::Block { segment: known.number, index, crc }
                }
                other => other,
            };
            heard.set(block, entry);
        }
        if heard.is_empty() {
            return Err(invalid("a row is empty"));
        }
        let inserted = self
            .connection
            .prepare_cached("INSERT OR IGNORE INTO map (key, entries) VALUES (?1, ?2)")
            .and_then(|mut insert| {
                insert.execute(params![key(*region, LayerId(*layer)), heard.encode()])
            })
            .attempt("record a row")?;
        if inserted == 0 {
            return Err(invalid(format!("region {region} of layer {layer} comes twice")));
        }
        Ok(())
    }

    /// Ends the map. `segment_next` is the number of the next segment of the volume.
    pub(crate) fn finish(&self, segment_next: u64) -> Result<(), Error> {
        for segment in self.segments.values().filter(|segment| segment.refs > 0) {
            self.connection
                .prepare_cached("UPDATE segment SET refs = ?2, dead = NULL WHERE id = ?1")
                .and_then(|mut update| update.execute(params![segment.number, segment.refs]))
                .attempt("count what the map names")?;
        }
        self.connection
            .execute("UPDATE volume SET segment_next = ?1", [signed(segment_next)])
            .and_then(|_| self.connection.execute_batch("COMMIT"))
            .attempt("commit the map")
    }
}

impl Contents {
    /// The number of segments.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Without checkpoints: what nobody vouches for is looked at before it is mounted, and only the live state is.
    #[must_use]
    pub fn live_only(mut self) -> Self {
        (self.checkpoints, self.base) = (Vec::new(), None);
        self
    }

    /// Whether a map can be made of it.
    fn check(&self) -> Result<(), Error> {
        let Self { layers, checkpoints, .. } = self;
        if layers.len() > LAYERS_MAX || checkpoints.len() > LAYERS_MAX {
            return Err(invalid("it has too many layers or checkpoints"));
        }
        let newest =
            layers.iter().map(|layer| layer.id).chain([self.checkpoint_next, self.auto_count]);
        if newest.max().is_some_and(|newest| newest > NUMBER_MAX) {
            return Err(invalid("its numbers leave none for what comes later"));
        }
        let mut known = BTreeSet::new();
        for layer in layers {
            // A layer is younger than what it lies on, so no layer lies on itself.
            let sound =
                layer.parent.is_none_or(|parent| parent < layer.id && known.contains(&parent));
            if !sound || !known.insert(layer.id) {
                return Err(invalid(format!("layer {} lies on nothing or comes twice", layer.id)));
            }
        }
        let below: BTreeSet<u32> = layers.iter().filter_map(|layer| layer.parent).collect();
        if !known.contains(&self.head) || below.contains(&self.head) {
            return Err(invalid("the head is not a layer that takes writes"));
        }
        let (mut ids, mut tops) = (BTreeSet::new(), BTreeSet::new());
        for row in checkpoints {
            let sound = is_checkpoint_id(&row.id)
                && row.comment.len() <= COMMENT_BYTES_MAX
                && row.source.as_deref().is_none_or(is_checkpoint_id)
                && row.layer != self.head
                && known.contains(&row.layer)
                && tops.insert(row.layer)
                && ids.insert(row.id.as_str());
            if !sound {
                return Err(invalid("a checkpoint is malformed or comes twice"));
            }
            // Numbers are never used twice.
            let number = row.id.strip_prefix('v').map(str::parse::<u32>);
            let is_free = |number: u32| number < self.checkpoint_next;
            if number.is_some_and(|number| !number.is_ok_and(is_free)) {
                return Err(invalid("the next checkpoint's number is taken"));
            }
        }
        if self.base.as_deref().is_some_and(|base| !ids.contains(base)) {
            return Err(invalid("the live state grew from a checkpoint that is not there"));
        }
        if !self.segments.is_sorted_by(|a, b| a < b) {
            return Err(invalid("the segments are not in order"));
        }
        Ok(())
    }
}

/// `v1`, or `auto-20261125T084500Z` with or without a number behind it.
fn is_checkpoint_id(id: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    id.len() <= ID_BYTES_MAX
        && (id.strip_prefix('v').is_some_and(digits)
            || id.strip_prefix("auto-").is_some_and(|rest| {
                !rest.is_empty()
                    && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            }))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}
