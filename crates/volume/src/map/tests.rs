//! The map's counts and stacks against what its rows say.

use super::{Commit, LayerId, Map, MergeCursor, NewSegment, Region};
use crate::{
    VolumeId,
    journal::Position,
    map::NewRow,
    segment::{BlockEntry, SegmentName},
    sync::lock,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{collections::BTreeMap, sync::Arc};

mod history;

/// Recounts what all rows name and compares it with the counters.
fn check_counts(map: &Map) {
    let reader = lock(&map.read);
    let mut counted: BTreeMap<u32, i64> = BTreeMap::new();
    let mut select = reader.connection.prepare("SELECT entries FROM map").unwrap();
    for entries in select.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap() {
        let region = Region::decode(&entries.unwrap()).unwrap();
        assert!(!region.is_empty(), "an empty row is no row");
        region.segments().for_each(|segment| *counted.entry(segment).or_default() += 1);
    }
    let mut select =
        reader.connection.prepare("SELECT id, refs, dead IS NULL FROM segment").unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    for (segment, refs, alive) in rows.map(Result::unwrap) {
        let _: (u32, i64, bool) = (segment, refs, alive);
        assert_eq!(counted.remove(&segment).unwrap_or(0), refs, "segment {segment}");
        assert_eq!(alive, refs > 0, "segment {segment}");
    }
    assert_eq!(counted, BTreeMap::new(), "rows name only known segments");
}

struct Fixture {
    dir: tempfile::TempDir,
    map: Map,
    volume: VolumeId,
    sequence: u64,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = VolumeId::now();
        let map = Map::open(&dir.path().join("map.db"), volume, 1).unwrap();
        Self { dir, map, volume, sequence: 0 }
    }

    /// Commits blocks and zeros; returns the layer that was frozen if there was a cut, with its slot.
    fn commit(
        &mut self,
        blocks: &[u32],
        zeros: std::ops::Range<u32>,
        cut: bool,
    ) -> Option<Arc<super::CutSlot>> {
        self.sequence += 1;
        let sequence = self.sequence;
        let blocks: Vec<BlockEntry> = blocks
            .iter()
            .map(|block| BlockEntry { block: *block, crc: u32::try_from(sequence).unwrap() })
            .collect();
        let name = SegmentName { volume: self.volume, epoch: 1, sequence };
        let segment = NewSegment { name, bytes: 1000, data_offset: 60, runs: Vec::new() };
        let slot = cut.then(Arc::default);
        let commit = Commit {
            position: Position { epoch: 1, sequence },
            segment: (!blocks.is_empty()).then_some(&segment),
            orphans: &[],
            blocks: &blocks,
            zeros: &[zeros],
            cut: slot.as_ref(),
            trace: None,
        };
        self.map.commit(&commit).unwrap();
        slot
    }

    /// The sequence of the commit that each block is from.
    fn state(&self) -> BTreeMap<u32, u32> {
        let mut state = BTreeMap::new();
        for number in 0..4 {
            for (block, entry) in self.map.region(number).unwrap().entries() {
                if let super::Entry::Block { crc, .. } = entry {
                    state.insert(number * super::REGION_BLOCKS + block, crc);
                }
            }
        }
        state
    }
}

fn new_row(layer: LayerId) -> NewRow<'static> {
    NewRow { layer, created: jiff::Timestamp::now(), comment: "", auto: false }
}

#[test]
fn random_histories_keep_counts_and_states() {
    for seed in 0..30 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut fixture = Fixture::new();
        let mut live: BTreeMap<u32, u32> = BTreeMap::new();
        let mut checkpoints: BTreeMap<String, BTreeMap<u32, u32>> = BTreeMap::new();
        let mut cursor = MergeCursor::default();
        for _ in 0..60 {
            match rng.random_range(0..10) {
                0..5 => {
                    let start = rng.random_range(0..900);
                    let mut blocks: Vec<u32> =
                        (start..start + 40).filter(|_| rng.random()).collect();
                    let zeros = if rng.random() { start + 50..start + 100 } else { 0..0 };
                    blocks.dedup();
                    let sequence = u32::try_from(fixture.sequence + 1).unwrap();
                    live.extend(blocks.iter().map(|block| (*block, sequence)));
                    live.retain(|block, _| !zeros.contains(block));
                    fixture.commit(&blocks, zeros, false);
                }
                5..7 => {
                    let slot = fixture.commit(&[], 0..0, true).unwrap();
                    assert!(
                        !fixture.map.merge_some(&mut cursor).unwrap()
                            || !checkpoints.is_empty()
                            || rng.random()
                    );
                    let row = fixture.map.add_checkpoint(&new_row(*slot.get().unwrap())).unwrap();
                    checkpoints.insert(row.id, live.clone());
                }
                7 if !checkpoints.is_empty() => {
                    let id = checkpoints
                        .keys()
                        .nth(rng.random_range(0..checkpoints.len()))
                        .unwrap()
                        .clone();
                    let slot = fixture.commit(&[], 0..0, true).unwrap();
                    let kept = fixture
                        .map
                        .restore(&id, &new_row(*slot.get().unwrap()), |_, _| ())
                        .unwrap();
                    checkpoints.insert(kept.id, live);
                    live = checkpoints[&id].clone();
                }
                8 if !checkpoints.is_empty() => {
                    let id = checkpoints
                        .keys()
                        .nth(rng.random_range(0..checkpoints.len()))
                        .unwrap()
                        .clone();
                    if fixture.map.delete_checkpoint(&id).is_ok() {
                        checkpoints.remove(&id);
                    }
                }
                _ => while fixture.map.merge_some(&mut cursor).unwrap() {},
            }
            check_counts(&fixture.map);
            assert_eq!(fixture.state(), live, "seed {seed}");
            // The same without what memory remembers.
            lock(&fixture.map.read).regions.clear();
            assert_eq!(fixture.state(), live, "seed {seed}");
        }
        while fixture.map.merge_some(&mut cursor).unwrap() {}
        let layers = fixture.map.usage().unwrap().layers;
        assert!(
            layers <= 2 * checkpoints.len() as u64 + 1,
            "{layers} layers for {} checkpoints",
            checkpoints.len()
        );
    }
}

#[test]
fn a_held_cut_keeps_its_layer() {
    let mut fixture = Fixture::new();
    fixture.commit(&[1, 2], 0..0, false);
    let slot = fixture.commit(&[], 0..0, true).unwrap();
    assert!(!fixture.map.merge_some(&mut MergeCursor::default()).unwrap());
    let layer = *slot.get().unwrap();
    drop(slot);
    assert!(fixture.map.merge_some(&mut MergeCursor::default()).unwrap());
    assert!(fixture.map.add_checkpoint(&new_row(layer)).is_err(), "too late for a checkpoint");
    check_counts(&fixture.map);
}

#[test]
fn a_discard_of_everything_writes_no_row_where_there_was_none() {
    let mut fixture = Fixture::new();
    fixture.commit(&[1, 300], 0..0, false);
    fixture.commit(&[], 0..crate::VOLUME_BLOCKS, false);
    let rows: u32 = lock(&fixture.map.read)
        .connection
        .query_row("SELECT count(*) FROM map", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 2);
    assert_eq!(fixture.state(), BTreeMap::new());
    check_counts(&fixture.map);
}
