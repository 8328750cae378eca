//! Histories with pins, views, moved blocks, rewinds and forks: every state stays what it was, and what a fork may name
//! stays where it was.

use super::{Fixture, check_counts, new_row};
use crate::{
    VolumeId,
    map::{
        Entry, Frozen, LayerId, Map, MergeCursor, NewSegment, OldMap, Pinned, REGION_BLOCKS,
        Region, Repoint, fork_pinned, resolve, stack_of,
    },
    segment::{BlockEntry, SegmentName},
    sync::lock,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

/// The commit that each block is from.
type State = BTreeMap<u32, u32>;

const REGIONS: u32 = 4;

fn state_of(regions: &[Region]) -> State {
    let mut state = State::new();
    for (number, region) in (0..).zip(regions) {
        for (block, entry) in region.entries() {
            if let Entry::Block { crc, .. } = entry {
                state.insert(number * REGION_BLOCKS + block, crc);
            }
        }
    }
    state
}

/// A stack's regions, read past all memory.
fn regions(map: &Map, layer: LayerId) -> Vec<Region> {
    let connection = &lock(&map.read).connection;
    let stack = stack_of(connection, layer).unwrap();
    (0..REGIONS).map(|region| resolve(connection, &stack, region).unwrap()).collect()
}

struct Pinning {
    child: VolumeId,
    layer: LayerId,
    then: Vec<Region>,
}

struct History {
    fixture: Fixture,
    rng: SmallRng,
    live: State,
    checkpoints: BTreeMap<String, State>,
    views: Vec<(Frozen, State)>,
    pins: Vec<Pinning>,
    /// Copies of the map with their live states.
    copies: Vec<(PathBuf, State)>,
    /// The blocks of each segment, in order.
    tables: HashMap<u64, Vec<BlockEntry>>,
    moved: u64,
}

impl History {
    fn new(seed: u64) -> Self {
        Self {
            fixture: Fixture::new(),
            rng: SmallRng::seed_from_u64(seed),
            live: State::new(),
            checkpoints: BTreeMap::new(),
            views: Vec::new(),
            pins: Vec::new(),
            copies: Vec::new(),
            tables: HashMap::new(),
            moved: 0,
        }
    }

    fn map(&self) -> &Map {
        &self.fixture.map
    }

    fn any_checkpoint(&mut self) -> Option<String> {
        let count = self.checkpoints.len();
        (count > 0)
            .then(|| self.checkpoints.keys().nth(self.rng.random_range(0..count)).unwrap().clone())
    }

    fn write(&mut self) {
        let start = self.rng.random_range(0..900);
        let blocks: Vec<u32> = (start..start + 40).filter(|_| self.rng.random()).collect();
        let zeros = if self.rng.random() { start + 50..start + 100 } else { 0..0 };
        let sequence = self.fixture.sequence + 1;
        let crc = u32::try_from(sequence).unwrap();
        let table = blocks.iter().map(|block| BlockEntry { block: *block, crc }).collect();
        self.tables.insert(sequence, table);
        self.live.extend(blocks.iter().map(|block| (*block, crc)));
        self.live.retain(|block, _| !zeros.contains(block));
        self.fixture.commit(&blocks, zeros, false);
    }

    fn checkpoint(&mut self) {
        let slot = self.fixture.commit(&[], 0..0, true).unwrap();
        let row = self.map().add_checkpoint(&new_row(*slot.get().unwrap())).unwrap();
        self.checkpoints.insert(row.id, self.live.clone());
    }

    fn restore(&mut self) {
        let Some(id) = self.any_checkpoint() else { return };
        let slot = self.fixture.commit(&[], 0..0, true).unwrap();
        let kept = self.map().restore(&id, &new_row(*slot.get().unwrap()), |_, _| ()).unwrap();
        let state = self.checkpoints[&id].clone();
        let before = std::mem::replace(&mut self.live, state);
        self.checkpoints.insert(kept.id, before);
    }

    fn rewind(&mut self) {
        if self.copies.is_empty() {
            return;
        }
        let (path, state) = &self.copies[self.rng.random_range(0..self.copies.len())];
        let (old, state) = (OldMap::open(path, self.fixture.volume).unwrap(), state.clone());
        let slot = self.fixture.commit(&[], 0..0, true).unwrap();
        let live = self.live.clone();
        let (mut stale, mut differing) = (Vec::new(), Vec::new());
        let kept = self
            .map()
            .graft(&old, &new_row(*slot.get().unwrap()), |region, differs| {
                let marked = (0..).zip(differs).filter(|(_, differs)| **differs);
                stale.extend(marked.map(|(block, _): (u32, _)| region * REGION_BLOCKS + block));
            })
            .unwrap();
        differing.extend((0..REGIONS * REGION_BLOCKS).filter(|at| live.get(at) != state.get(at)));
        assert!(differing.iter().all(|block| stale.contains(block)), "the cache hears of all");
        self.live = state;
        self.checkpoints.insert(kept.id, live);
    }

    fn copy(&mut self) {
        let path = self.fixture.dir.path().join(format!("copy-{}.db", self.copies.len()));
        copy_map(&self.fixture.dir.path().join("map.db"), &path);
        self.copies.push((path, self.live.clone()));
    }

    fn view(&mut self) {
        let Some(id) = self.any_checkpoint() else { return };
        let frozen = self.map().freeze_checkpoint(&id).unwrap();
        self.views.push((frozen, self.checkpoints[&id].clone()));
        if self.views.len() > 3 {
            self.views.remove(0);
        }
    }

    fn pin(&mut self) {
        let Some(id) = self.any_checkpoint() else { return };
        let child = VolumeId::now();
        let pin =
            self.map().pin(child, &Pinned::Checkpoint(id.clone()), jiff::Timestamp::now()).unwrap();
        let layer = LayerId(pin.layer);
        let then = regions(self.map(), layer);
        assert_eq!(state_of(&then), self.checkpoints[&id]);
        self.pins.push(Pinning { child, layer, then });
        if self.pins.len() > 2 {
            let gone = self.pins.remove(0);
            self.map().unpin(gone.child).unwrap();
        }
    }

    fn move_blocks(&mut self) {
        let found = self.map().sparse(self.fixture.volume, 3).unwrap();
        for sparse in found {
            let table = self.tables[&sparse.name.sequence].clone();
            let Some(mut moves) = self.map().named_blocks(sparse.id, &table).unwrap() else {
                continue;
            };
            // As if some of it had been overwritten between the look and the commit.
            if self.rng.random() {
                self.write();
            }
            moves.sort_by_key(|found| found.block);
            self.moved += 1;
            let sequence = 1_000_000 + self.moved;
            let blocks =
                moves.iter().map(|found| BlockEntry { block: found.block, crc: found.crc });
            self.tables.insert(sequence, blocks.collect());
            let name = SegmentName { volume: self.fixture.volume, epoch: 1, sequence };
            let segment = NewSegment { name, bytes: 1000, data_offset: 60, runs: Vec::new() };
            self.map()
                .repoint(&Repoint { segment: &segment, orphans: &[], moves: &moves })
                .unwrap();
        }
    }

    /// The pinned state as a volume of its own.
    fn fork(&mut self) {
        let Some(pin) = self.pins.first() else { return };
        let path = self.fixture.dir.path().join("fork.db");
        copy_map(&self.fixture.dir.path().join("map.db"), &path);
        fork_pinned(&path, pin.child).unwrap();
        let fork = Map::open(&path, pin.child, 1).unwrap();
        check_counts(&fork);
        assert_eq!(state_of(&regions(&fork, fork.head().unwrap())), state_of(&pin.then));
    }

    fn step(&mut self, cursor: &mut MergeCursor) {
        match self.rng.random_range(0..22) {
            0..8 => self.write(),
            8..10 => self.checkpoint(),
            10 => self.restore(),
            11 => self.rewind(),
            12 => self.copy(),
            13 => self.view(),
            14 => self.pin(),
            15 => self.fork(),
            16..18 => self.move_blocks(),
            18 => {
                if let Some(id) = self.any_checkpoint()
                    && self.map().delete_checkpoint(&id).is_ok()
                {
                    self.checkpoints.remove(&id);
                }
            }
            _ => while self.map().merge_some(cursor).unwrap() {},
        }
    }

    fn check(&self, seed: u64) {
        check_counts(self.map());
        assert_eq!(self.fixture.state(), self.live, "seed {seed}");
        let head = self.map().head().unwrap();
        assert_eq!(state_of(&regions(self.map(), head)), self.live, "seed {seed}");
        for (frozen, state) in &self.views {
            let regions: Vec<Region> = (0..REGIONS)
                .map(|region| self.map().frozen_region(frozen, region).unwrap().as_ref().clone())
                .collect();
            assert_eq!(state_of(&regions), *state, "a view, seed {seed}");
        }
        for Pinning { layer, then, .. } in &self.pins {
            assert_eq!(regions(self.map(), *layer), *then, "a pinned layer, seed {seed}");
        }
    }
}

fn copy_map(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", to.display())).ok();
    }
    for suffix in ["", "-wal"] {
        let from = format!("{}{suffix}", from.display());
        std::fs::copy(from, format!("{}{suffix}", to.display())).unwrap();
    }
}

#[test]
fn states_stay_what_they_were_through_moves_merges_rewinds_and_forks() {
    let mut moved = 0;
    for seed in 0..40 {
        let mut history = History::new(seed);
        let mut cursor = MergeCursor::default();
        for _ in 0..80 {
            history.step(&mut cursor);
            history.check(seed);
        }
        for (id, state) in history.checkpoints.clone() {
            let frozen = history.map().freeze_checkpoint(&id).unwrap();
            history.views.push((frozen, state));
        }
        history.check(seed);
        moved += history.moved;
    }
    assert!(moved > 0, "the seeds move something");
}
