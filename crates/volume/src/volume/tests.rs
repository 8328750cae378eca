//! A volume against a model of it, under faults and crashes, on hundreds of seeds; and the edges one by one.
//!
//! The model remembers every state since the last flush and since the last seal. After the process is lost, the volume is
//! the newest state. After the power is lost, which takes any of the sectors written since the last flush, it is one of the
//! states since that flush. After the whole local directory is lost, it is one of the states since the last acknowledged
//! seal. A failing seed is printed; `PUCK_SEED=N` runs it alone.

use crate::{
    BLOCK_BYTES, ErrorKind, NewCheckpoint, Settings, VOLUME_BYTES, Volume, VolumeId, byte_offset,
    testing::{CopyShip, FaultyStore},
};
use object_store::ObjectStore;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Blocks that the tests use: some in a row, some at the borders of regions and of the volume.
fn universe() -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..24).collect();
    blocks.extend(250..262);
    blocks.extend(70_000..70_020);
    blocks.extend(crate::VOLUME_BLOCKS - 4..crate::VOLUME_BLOCKS);
    blocks
}

/// The tag of each block's content; a block that is not here is zero.
type State = BTreeMap<u32, u64>;

/// A block's bytes. Every second tag compresses.
fn content(tag: u64) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(tag);
    let mut bytes = vec![0; BLOCK_BYTES];
    let random = if tag.is_multiple_of(2) { BLOCK_BYTES } else { 64 };
    rng.fill(&mut bytes[..random]);
    bytes[..8].copy_from_slice(&tag.to_le_bytes());
    bytes
}

fn read_state(volume: &Volume) -> Result<State, crate::Error> {
    let mut state = State::new();
    for run in universe().chunk_by(|a, b| a + 1 == *b) {
        let mut buffer = vec![1; run.len() * BLOCK_BYTES];
        volume.read(byte_offset(run[0]), &mut buffer)?;
        for (block, data) in run.iter().zip(buffer.chunks(BLOCK_BYTES)) {
            let tag = u64::from_le_bytes(*data.first_chunk().unwrap());
            assert!(
                if tag == 0 { data.iter().all(|byte| *byte == 0) } else { data == content(tag) },
                "block {block}"
            );
            if tag != 0 {
                state.insert(*block, tag);
            }
        }
    }
    Ok(state)
}

/// The files of a journal at one moment.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn files(dir: &Path) -> Files {
    let Ok(entries) = std::fs::read_dir(dir) else { return Files::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    // The sealer may remove one meanwhile.
    paths.filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?))).collect()
}

/// A directory in memory where there is one: these tests sync thousands of times, and what a disk keeps is simulated.
fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

struct Harness {
    runtime: Runtime,
    rng: SmallRng,
    dir: TempDir,
    store: Arc<FaultyStore>,
    ship: CopyShip,
    id: VolumeId,
    epoch: u64,
    volume: Option<Volume>,
    tag: u64,
    /// The states since the last flush, the newest last.
    since_flush: Vec<State>,
    /// The states since the last acknowledged seal, the newest last.
    since_seal: Vec<State>,
    /// The journal's files at the last flush.
    flushed: Files,
    checkpoints: BTreeMap<String, State>,
    base: Option<String>,
    deleted: Vec<String>,
}

impl Harness {
    fn new(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let dir = memory_dir();
        let faults = if seed.is_multiple_of(3) { 0 } else { 150 };
        let db = dir.path().join("local/map.db");
        let mut harness = Self {
            runtime,
            rng: SmallRng::seed_from_u64(seed),
            store: FaultyStore::new(seed, faults),
            ship: CopyShip::new(db, seed, faults),
            dir,
            id: VolumeId::now(),
            epoch: 1,
            volume: None,
            tag: 0,
            since_flush: vec![State::new()],
            since_seal: vec![State::new()],
            flushed: Files::new(),
            checkpoints: BTreeMap::new(),
            base: None,
            deleted: Vec::new(),
        };
        harness.open();
        harness
    }

    fn local(&self) -> PathBuf {
        self.dir.path().join("local")
    }

    fn settings(&mut self) -> Settings {
        let mut settings = Settings::new(self.id, self.epoch, self.local());
        settings.seal_interval = Duration::from_millis(if self.rng.random() { 1 } else { 1000 });
        settings.seal_bytes = 64 << 10;
        settings.tail_bytes_max = 512 << 10;
        settings.journal_file_bytes = 128 << 10;
        settings.garbage_delay = Duration::ZERO;
        settings.retry_wait = Duration::from_micros(200);
        settings.cache_bytes_max = [0, 64 << 10, 1 << 30][self.rng.random_range(0..3)];
        settings
    }

    fn open(&mut self) {
        let settings = self.settings();
        let store: Arc<dyn ObjectStore> = self.store.clone();
        let volume = self
            .runtime
            .block_on(Volume::open(settings, store, Box::new(self.ship.clone())))
            .unwrap();
        self.volume = Some(volume);
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    fn live(&self) -> State {
        self.since_flush.last().unwrap().clone()
    }

    fn becomes(&mut self, state: State) {
        self.since_flush.push(state.clone());
        self.since_seal.push(state);
    }

    fn write(&mut self) {
        let blocks = universe();
        let start = self.rng.random_range(0..blocks.len());
        let most = self.rng.random_range(1..30);
        let run = blocks[start..].chunk_by(|a, b| a + 1 == *b).next().unwrap();
        let run = &run[..run.len().min(most)];
        let mut state = self.live();
        let mut data = Vec::new();
        for block in run {
            // Some blocks are written as zeros, which must read like never written ones.
            if self.rng.random_range(0..8) == 0 {
                data.extend_from_slice(&[0; BLOCK_BYTES]);
                state.remove(block);
                continue;
            }
            self.tag += 1;
            data.extend_from_slice(&content(self.tag));
            state.insert(*block, self.tag);
        }
        // A long write is several records, and a crash may keep only the first of them.
        let record = self.volume().shared.settings.record_bytes_max();
        for (index, part) in data.chunks(record).enumerate() {
            let first = run[0] + u32::try_from(index * record / BLOCK_BYTES).unwrap();
            let end = first + u32::try_from(part.len() / BLOCK_BYTES).unwrap();
            let mut partly = self.live();
            for block in first..end {
                match state.get(&block) {
                    Some(tag) => partly.insert(block, *tag),
                    None => partly.remove(&block),
                };
            }
            self.becomes(partly);
        }
        self.volume().write(byte_offset(run[0]), &data).unwrap();
    }

    fn discard(&mut self) {
        let blocks = universe();
        let (start, end) = match self.rng.random_range(0..10) {
            0 => (0, crate::VOLUME_BLOCKS),
            1 => (100, 75_000),
            _ => {
                let start = blocks[self.rng.random_range(0..blocks.len())];
                (start, (start + self.rng.random_range(1..20)).min(crate::VOLUME_BLOCKS))
            }
        };
        self.volume().discard(byte_offset(start), byte_offset(end - start)).unwrap();
        let mut state = self.live();
        state.retain(|block, _| !(start..end).contains(block));
        self.becomes(state);
    }

    fn flush(&mut self) {
        self.volume().flush().unwrap();
        self.since_flush = vec![self.live()];
        self.flushed = files(&self.local().join("journal"));
    }

    fn seal(&mut self) {
        let sealing = self.volume().clone();
        self.runtime.block_on(sealing.seal()).unwrap();
        self.sealed();
    }

    fn sealed(&mut self) {
        self.since_seal = vec![self.live()];
        // The log has it, and so has the map, which the next open uses whatever the journal says.
        self.since_flush = vec![self.live()];
        self.flushed = files(&self.local().join("journal"));
    }

    fn checkpoint(&mut self) {
        let volume = self.volume().clone();
        let cut = volume.cut().unwrap();
        let frozen = self.live();
        // What comes after the cut is not part of the checkpoint.
        let writes_on = self.rng.random();
        if writes_on {
            self.write();
        }
        let auto = self.rng.random_range(0..3) == 0;
        let new = NewCheckpoint { comment: "a comment".into(), auto };
        let made = self.runtime.block_on(volume.checkpoint(cut, new)).unwrap();
        assert_eq!(made.source, self.base);
        assert_eq!(made.auto, auto);
        assert!(
            !self.checkpoints.contains_key(&made.id) && !self.deleted.contains(&made.id),
            "{} is new",
            made.id
        );
        self.checkpoints.insert(made.id.clone(), frozen.clone());
        self.base = Some(made.id);
        if !writes_on {
            self.sealed();
        } else {
            // Acknowledged is what was written before the cut.
            let at = self.since_seal.iter().rposition(|state| *state == frozen).unwrap();
            self.since_seal.drain(..at);
        }
    }

    fn restore(&mut self) {
        let Some(id) = self.any_checkpoint() else { return };
        let before = self.live();
        let volume = self.volume().clone();
        let kept = self.runtime.block_on(volume.restore(&id)).unwrap();
        assert!(kept.auto);
        self.checkpoints.insert(kept.id, before);
        let state = self.checkpoints[&id].clone();
        self.base = Some(id);
        self.becomes(state);
        self.sealed();
    }

    fn delete(&mut self) {
        let Some(id) = self.any_checkpoint() else { return };
        let volume = self.volume().clone();
        let result = self.runtime.block_on(volume.delete_checkpoint(&id));
        if self.base.as_ref() == Some(&id) {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Conflict);
        } else {
            result.unwrap();
            self.checkpoints.remove(&id);
            self.deleted.push(id);
        }
    }

    fn any_checkpoint(&mut self) -> Option<String> {
        let count = self.checkpoints.len();
        (count > 0)
            .then(|| self.checkpoints.keys().nth(self.rng.random_range(0..count)).unwrap().clone())
    }

    fn check(&mut self) {
        assert_eq!(read_state(self.volume()).unwrap(), self.live());
        let mut found: Vec<String> =
            self.volume().checkpoints().unwrap().into_iter().map(|found| found.id).collect();
        found.sort();
        assert!(found.iter().eq(self.checkpoints.keys()), "{found:?}");
        assert_eq!(self.volume().current_base().unwrap(), self.base);
    }

    /// The process ends without a word.
    fn crash(&mut self) {
        let volume = self.volume.take().unwrap();
        let shared = Arc::downgrade(&volume.shared);
        drop(volume);
        wait_until("the sealer is gone", || shared.strong_count() == 0);
    }

    fn lose_process(&mut self) {
        self.crash();
        self.maybe_use_the_log();
        self.epoch += u64::from(self.rng.random::<bool>());
        self.open();
        assert_eq!(self.volume().set_aside(), None);
        assert_eq!(
            read_state(self.volume()).unwrap(),
            self.live(),
            "nothing is lost with the process"
        );
        self.recovered(self.live());
    }

    /// Of each sector that was written since the last flush, the disk has the old or the new.
    fn lose_power(&mut self) {
        self.crash();
        let journal = self.local().join("journal");
        for (path, mut now) in files(&journal) {
            let empty = vec![0; now.len()];
            let then = self.flushed.get(&path).unwrap_or(&empty);
            for (now, then) in now.chunks_mut(512).zip(then.chunks(512)) {
                if now != then && self.rng.random_range(0..4) == 0 {
                    now.copy_from_slice(then);
                }
            }
            std::fs::write(&path, now).unwrap();
        }
        self.maybe_use_the_log();
        self.epoch += u64::from(self.rng.random::<bool>());
        self.open();
        let found = read_state(self.volume()).unwrap();
        assert!(
            self.since_flush.contains(&found),
            "what was flushed is there, and nothing of later without the earlier"
        );
        self.recovered(found);
    }

    /// Whoever opens the volume may take the map from the log, which can be older than the local one.
    fn maybe_use_the_log(&mut self) {
        if self.rng.random() {
            self.ship.restore();
        }
    }

    fn lose_everything(&mut self) {
        self.crash();
        std::fs::remove_dir_all(self.local()).unwrap();
        std::fs::create_dir_all(self.local()).unwrap();
        self.ship.restore();
        self.epoch += 1;
        self.open();
        let found = read_state(self.volume()).unwrap();
        assert!(
            self.since_seal.contains(&found),
            "what was sealed is there, and nothing of later without the earlier"
        );
        self.recovered(found);
    }

    /// After an open, the newest state is what was found. It is as durable as what it came from.
    fn recovered(&mut self, found: State) {
        self.since_flush.push(found.clone());
        self.since_seal.push(found);
        self.flush();
    }

    fn reopen(&mut self) {
        let volume = self.volume.take().unwrap();
        let other = volume.clone();
        self.runtime.block_on(volume.close()).unwrap();
        assert_eq!(other.flush().unwrap_err().kind(), ErrorKind::Closed);
        drop(other);
        self.epoch += u64::from(self.rng.random::<bool>());
        self.open();
        self.sealed();
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..40 => self.write(),
            40..48 => self.discard(),
            48..58 => self.flush(),
            58..66 => self.seal(),
            66..72 => self.checkpoint(),
            72..76 => self.restore(),
            76..80 => self.delete(),
            80..90 => self.check(),
            90..93 => self.lose_process(),
            93..96 => self.lose_power(),
            96..98 => self.lose_everything(),
            _ => self.reopen(),
        }
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

fn run_seed(seed: u64) {
    let mut harness = Harness::new(seed);
    for _ in 0..60 {
        harness.step();
    }
    harness.check();
    harness.lose_everything();
    // Every checkpoint that is left is still whole, and the bucket holds nothing else for long.
    let ids: Vec<String> = harness.checkpoints.keys().cloned().collect();
    for id in ids {
        let volume = harness.volume().clone();
        harness.runtime.block_on(volume.restore(&id)).unwrap();
        assert_eq!(read_state(&volume).unwrap(), harness.checkpoints[&id], "checkpoint {id}");
    }
}

const SEEDS: u64 = 200;

#[test]
fn agrees_with_a_model_under_faults_and_crashes() {
    if let Ok(seed) = std::env::var("PUCK_SEED") {
        return run_seed(seed.parse().unwrap());
    }
    let next = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    let result = std::panic::catch_unwind(|| run_seed(seed));
                    assert!(
                        result.is_ok(),
                        "seed {seed} failed: run it alone with PUCK_SEED={seed}"
                    );
                }
            });
        }
    });
}

#[test]
fn unaligned_and_outside_ranges_are_invalid() {
    let harness = Harness::new(3);
    let volume = harness.volume();
    for (offset, length) in [
        (1, 4096),
        (0, 100),
        (VOLUME_BYTES, 4096),
        (VOLUME_BYTES - 4096, 8192),
        (u64::MAX - 4095, 4096),
    ] {
        let mut buffer = vec![0; usize::try_from(length).unwrap()];
        assert_eq!(
            volume.read(offset, &mut buffer).unwrap_err().kind(),
            ErrorKind::Invalid,
            "read {offset} {length}"
        );
        assert_eq!(
            volume.write(offset, &buffer).unwrap_err().kind(),
            ErrorKind::Invalid,
            "write {offset} {length}"
        );
        assert_eq!(
            volume.discard(offset, length).unwrap_err().kind(),
            ErrorKind::Invalid,
            "discard {offset} {length}"
        );
    }
}
