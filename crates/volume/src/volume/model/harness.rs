//! Playing a history on a volume and on the model at the same time.
//!
//! A step that a death interrupts may or may not have happened. The model keeps both ways open until the next process shows
//! which it was.

use super::history::{Next, Step};
use crate::{
    BLOCK_BYTES, Checkpoint, Durability, Error, ErrorKind, Keys, NewCheckpoint, SecretKey,
    Settings, Volume, VolumeId, byte_offset,
    failpoint::{Failpoints, Plan, Point},
    fork,
    testing::{CopyShip, FaultyStore, ProcessStore},
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The tag of each block's content; a block that is not here is zero.
type State = BTreeMap<u32, u64>;

/// The files of a journal at one moment.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// How long a dead process may take to let go of its threads.
const END_MAX: Duration = Duration::from_secs(30);

/// A volume that is open, in a process that may die.
struct Process {
    volume: Volume,
    runtime: Runtime,
    plan: Arc<Plan>,
}

/// What a death interrupted.
#[derive(Debug, Clone)]
enum Interrupted {
    Checkpoint(State),
    Restore { id: String, before: State },
    Delete(String),
}

/// A process that died before its answer.
struct Dead;

pub(super) struct Harness {
    rng: SmallRng,
    dir: TempDir,
    bucket: Arc<FaultyStore>,
    log: CopyShip,
    id: VolumeId,
    /// Of every second seed, the bucket is encrypted.
    keys: Keys,
    epoch: u64,
    /// Since this epoch, nobody else has had the volume.
    epoch_first: u64,
    process: Option<Process>,
    died_at: BTreeSet<Point>,
    tag: u64,
    /// What may be there after a loss of power: the states since the last flush, the newest last.
    since_flush: Vec<State>,
    /// What the bucket alone may be: the states since the last acknowledged seal, the newest last.
    since_seal: Vec<State>,
    /// What may be there after a death: more than the newest only if it interrupted a write.
    newest: Vec<State>,
    interrupted: Option<Interrupted>,
    /// The journal's files at the last flush.
    flushed: Files,
    checkpoints: BTreeMap<String, State>,
    base: Option<String>,
}

impl Harness {
    pub(super) fn new(seed: u64, lies: bool) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let faults = if seed.is_multiple_of(3) { 0 } else { 120 };
        let bucket = FaultyStore::new(seed, faults);
        bucket.lies.store(lies, Ordering::SeqCst);
        let id = VolumeId::now();
        let keys =
            if seed.is_multiple_of(2) { Keys::none() } else { Keys::none().with(id, key(id)) };
        let mut harness = Self {
            rng: SmallRng::seed_from_u64(seed ^ 0x5eed),
            log: CopyShip::new(dir.path().join("local/map.db"), seed, faults),
            dir,
            bucket,
            id,
            keys,
            epoch: 1,
            epoch_first: 1,
            process: None,
            died_at: BTreeSet::new(),
            tag: 0,
            since_flush: vec![State::new()],
            since_seal: vec![State::new()],
            newest: vec![State::new()],
            interrupted: None,
            flushed: Files::new(),
            checkpoints: BTreeMap::new(),
            base: None,
        };
        harness.wake(&Next::first(seed), &[State::new()]);
        harness
    }

    pub(super) fn step(&mut self, step: &Step) {
        let done = match *step {
            Step::Write { at, blocks, zeros } => self.write(at, blocks, zeros),
            Step::Discard { at, blocks } => {
                let start = universe()[at % universe().len()];
                self.discard(start, (start + blocks).min(crate::VOLUME_BLOCKS))
            }
            Step::DiscardAll => self.discard(0, crate::VOLUME_BLOCKS),
            Step::Flush => self.flush(),
            Step::Seal => self.seal(),
            Step::Strict(strict) => {
                let durability = if strict { Durability::Strict } else { Durability::Default };
                self.volume().set_durability(durability);
                Ok(())
            }
            Step::Checkpoint { auto, write_between } => self.checkpoint(auto, write_between),
            Step::Restore(which) => self.restore(which),
            Step::Delete(which) => self.delete(which),
            Step::Look => self.look(),
            Step::Fork => self.fork(),
            Step::Close(ref next) => {
                let closed = self.close();
                let allowed = self.newest.clone();
                closed.map(|()| self.wake(next, &allowed))
            }
            Step::Die(ref next) => {
                self.end();
                self.wake(next, &self.newest.clone());
                Ok(())
            }
            Step::LosePower(chance, ref next) => {
                self.end();
                self.lose_sectors(chance);
                let allowed = [self.since_flush.clone(), self.newest.clone()].concat();
                self.wake(next, &allowed);
                Ok(())
            }
            Step::LoseEverything(ref next) => {
                self.lose_everything(next);
                Ok(())
            }
            Step::Elsewhere(ref next) => {
                self.elsewhere(next);
                Ok(())
            }
        };
        if done.is_err() {
            self.end();
            let next = Next { dies: None, ..Next::first(self.tag) };
            self.wake(&next, &self.newest.clone());
        }
    }

    /// The last look: what the bucket alone has, every checkpoint included. Returns where processes died.
    pub(super) fn finish(mut self) -> BTreeSet<Point> {
        let next = Next { dies: None, ..Next::first(0) };
        self.lose_everything(&next);
        let ids: Vec<String> = self.checkpoints.keys().cloned().collect();
        for id in ids {
            let volume = self.volume().clone();
            let restored = self.run(async move { volume.restore(&id).await.map(|_| id) });
            let Ok(Ok(id)) = restored else { panic!("a checkpoint cannot be restored") };
            assert_eq!(
                read_state(self.volume()).unwrap(),
                self.checkpoints[&id],
                "checkpoint {id}"
            );
        }
        self.end();
        self.died_at
    }

    fn local(&self) -> PathBuf {
        self.dir.path().join("local")
    }

    fn volume(&self) -> &Volume {
        &self.process.as_ref().expect("a process runs").volume
    }

    fn live(&self) -> State {
        self.newest.last().expect("there is always a state").clone()
    }

    fn settings(&self, next: &Next, dir: PathBuf, plan: &Arc<Plan>) -> Settings {
        let mut settings = Settings::new(self.id, self.epoch, dir);
        settings.seal_interval =
            if next.eager { Duration::from_millis(1) } else { Duration::from_secs(1000) };
        settings.seal_bytes = 64 << 10;
        settings.tail_bytes_max = 1 << 30;
        settings.journal_file_bytes = 128 << 10;
        settings.trace_time = Duration::from_millis(1);
        settings.garbage_delay = Duration::ZERO;
        settings.retry_wait = Duration::from_micros(100);
        settings.cache_bytes_max = next.cache_bytes_max;
        settings.epoch_first = self.epoch_first;
        settings.keys = self.keys.clone();
        settings.failpoints = Failpoints { plan: Some(plan.clone()) };
        settings
    }

    fn open(
        &self,
        next: &Next,
        dir: PathBuf,
        log: &CopyShip,
        read_only: bool,
    ) -> Result<Process, Dead> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let plan = Arc::new(Plan::new(next.dies));
        let mut settings = self.settings(next, dir, &plan);
        if read_only {
            settings.garbage_delay = Duration::from_secs(3600);
        }
        let store = ProcessStore { bucket: self.bucket.clone(), plan: plan.clone(), read_only };
        let opening = Volume::open(settings, Arc::new(store), Box::new(log.process(plan.clone())));
        match run(&runtime, &plan, opening) {
            Ok(opened) => {
                let volume = opened.unwrap_or_else(|error| panic!("open: {}", told(&error)));
                Ok(Process { volume, runtime, plan })
            }
            Err(dead) => {
                runtime.shutdown_timeout(END_MAX);
                Err(dead)
            }
        }
    }

    /// Starts the next process, and the one after if that dies on the way. It must find one of the states.
    fn wake(&mut self, next: &Next, allowed: &[State]) {
        let mut next = *next;
        self.look_at_the_bucket();
        loop {
            self.epoch += u64::from(next.new_epoch);
            if next.map_of_the_log {
                self.log.restore();
            }
            match self.open(&next, self.local(), &self.log, false) {
                Ok(process) => {
                    self.process = Some(process);
                    if self.recover(allowed).is_ok() {
                        return;
                    }
                    self.end();
                }
                Err(Dead) => {
                    self.died_at.extend(next.dies.map(|(point, _)| point));
                }
            }
            next.dies = None;
        }
    }

    /// Finds out which of the allowed states it is.
    fn recover(&mut self, allowed: &[State]) -> Result<(), Dead> {
        let volume = self.volume().clone();
        let found = self.alive(read_state(&volume))?;
        let checkpoints = self.alive(volume.checkpoints())?;
        let base = self.alive(volume.current_base())?;
        assert!(allowed.contains(&found), "lost or torn:\n{found:?}\nis none of {allowed:?}");
        self.settle_interrupted(&checkpoints);
        let ids: BTreeSet<&String> = checkpoints.iter().map(|checkpoint| &checkpoint.id).collect();
        assert!(ids.iter().copied().eq(self.checkpoints.keys()), "{ids:?}");
        assert_eq!(base, self.base);
        if let Some(at) = self.since_seal.iter().rposition(|state| *state == found) {
            self.since_seal.truncate(at + 1);
        } else {
            self.since_seal.push(found.clone());
        }
        self.newest = vec![found.clone()];
        self.since_flush = vec![found];
        self.flush()
    }

    /// Whether what was interrupted took place.
    fn settle_interrupted(&mut self, found: &[Checkpoint]) {
        let new = found.iter().find(|found| !self.checkpoints.contains_key(&found.id));
        match (self.interrupted.take(), new) {
            (Some(Interrupted::Checkpoint(state)), Some(new)) => {
                self.checkpoints.insert(new.id.clone(), state);
                self.base = Some(new.id.clone());
            }
            (Some(Interrupted::Restore { id, before }), Some(new)) => {
                self.checkpoints.insert(new.id.clone(), before);
                self.base = Some(id);
            }
            (Some(Interrupted::Delete(id)), None) if found.iter().all(|found| found.id != id) => {
                self.checkpoints.remove(&id);
            }
            _ => {}
        }
    }

    /// A second volume from the log alone must be the disk at some instant since the last acknowledged seal.
    fn look_at_the_bucket(&self) {
        let dir = self.dir.path().join("alone");
        let log = self.log.branch(dir.join("map.db"));
        log.restore();
        let next = Next {
            new_epoch: false,
            map_of_the_log: true,
            eager: false,
            cache_bytes_max: 1 << 20,
            dies: None,
        };
        let Ok(process) = self.open(&next, dir.clone(), &log, true) else { unreachable!() };
        let found = read_state(&process.volume)
            .unwrap_or_else(|error| panic!("the bucket alone: {}", told(&error)));
        end(process);
        std::fs::remove_dir_all(dir).unwrap();
        assert!(
            self.since_seal.contains(&found),
            "the bucket alone is no instant since the last seal:\n{found:?}\nis none of {:?}",
            self.since_seal
        );
    }

    /// Ends the process wherever it is.
    fn end(&mut self) {
        let Some(process) = self.process.take() else { return };
        process.plan.die();
        self.died_at.extend(process.plan.died_at());
        end(process);
        self.bucket.lose_owed();
    }

    /// Runs something of the process until it is done or the process is dead.
    fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Dead> {
        let process = self.process.as_ref().expect("a process runs");
        run(&process.runtime, &process.plan, work)
    }

    /// The result of something that a living process does without fail.
    fn alive<T>(&self, result: Result<T, Error>) -> Result<T, Dead> {
        let dead = self.process.as_ref().is_none_or(|process| process.plan.dead());
        match result {
            _ if dead => Err(Dead),
            Ok(done) => Ok(done),
            Err(error) => panic!("{}", told(&error)),
        }
    }

    /// The live state may be this from now on.
    fn becomes(&mut self, state: State) {
        self.newest.push(state.clone());
        self.since_flush.push(state.clone());
        self.since_seal.push(state);
    }

    fn write(&mut self, at: usize, blocks: usize, zeros: u32) -> Result<(), Dead> {
        let universe = universe();
        let run = universe[at % universe.len()..].chunk_by(|a, b| a + 1 == *b).next().unwrap();
        let run = &run[..run.len().min(blocks)];
        let record_blocks = self.volume().shared.settings.record_bytes_max() / BLOCK_BYTES;
        let mut data = Vec::new();
        let mut states = Vec::new();
        let mut state = self.live();
        for (index, block) in run.iter().enumerate() {
            if zeros & (1 << (index % 32)) == 0 {
                self.tag += 1;
                data.extend_from_slice(&content(self.tag));
                state.insert(*block, self.tag);
            } else {
                data.extend_from_slice(&[0; BLOCK_BYTES]);
                state.remove(block);
            }
            // A long write is several records, and each is as good as a write of its own.
            if (index + 1).is_multiple_of(record_blocks) || index + 1 == run.len() {
                states.push(state.clone());
            }
        }
        states.into_iter().for_each(|state| self.becomes(state));
        let written = self.volume().write(byte_offset(run[0]), &data);
        self.alive(written)?;
        self.newest = vec![self.live()];
        Ok(())
    }

    fn discard(&mut self, start: u32, end: u32) -> Result<(), Dead> {
        let mut state = self.live();
        state.retain(|block, _| !(start..end).contains(block));
        self.becomes(state);
        let discarded = self.volume().discard(byte_offset(start), byte_offset(end - start));
        self.alive(discarded)?;
        self.newest = vec![self.live()];
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Dead> {
        let volume = self.volume().clone();
        if let Some(unflushed) = self.alive(volume.begin_flush())? {
            let flushed = self.run(async move { volume.flushed(unflushed).await })?;
            self.alive(flushed)?;
            return self.sealed();
        }
        if self.volume().durability() == Durability::Strict {
            return self.sealed();
        }
        self.since_flush = vec![self.live()];
        self.flushed = files(&self.local().join("journal"));
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Dead> {
        let volume = self.volume().clone();
        let sealed = self.run(async move { volume.seal().await })?;
        self.alive(sealed)?;
        self.sealed()
    }

    /// The bucket has everything, and so has the map, which the next open uses whatever the journal says.
    fn sealed(&mut self) -> Result<(), Dead> {
        self.since_seal = vec![self.live()];
        self.since_flush = vec![self.live()];
        self.flushed = files(&self.local().join("journal"));
        Ok(())
    }

    fn checkpoint(&mut self, auto: bool, write_between: bool) -> Result<(), Dead> {
        let volume = self.volume().clone();
        let cut = self.alive(volume.cut())?;
        let frozen = self.live();
        if write_between {
            // What comes after the cut is not part of the checkpoint.
            self.write(self.epoch as usize, 3, 0)?;
        }
        self.interrupted = Some(Interrupted::Checkpoint(frozen.clone()));
        let new = NewCheckpoint { comment: "a comment".into(), auto };
        let made = self.run(async move { volume.checkpoint(cut, new).await })?;
        let made = self.alive(made)?;
        self.interrupted = None;
        assert_eq!(made.source, self.base);
        assert!(!self.checkpoints.contains_key(&made.id), "{} is new", made.id);
        self.checkpoints.insert(made.id.clone(), frozen.clone());
        self.base = Some(made.id);
        // Acknowledged is what was written before the cut.
        let at = self.since_seal.iter().rposition(|state| *state == frozen).unwrap();
        self.since_seal.drain(..at);
        Ok(())
    }

    fn restore(&mut self, which: usize) -> Result<(), Dead> {
        let Some(id) = self.any_checkpoint(which) else { return Ok(()) };
        let before = self.live();
        self.interrupted = Some(Interrupted::Restore { id: id.clone(), before: before.clone() });
        self.becomes(self.checkpoints[&id].clone());
        let volume = self.volume().clone();
        let restoring = id.clone();
        let kept = self.run(async move { volume.restore(&restoring).await })?;
        let kept = self.alive(kept)?;
        self.interrupted = None;
        assert!(kept.auto);
        self.checkpoints.insert(kept.id, before);
        self.base = Some(id);
        self.newest = vec![self.live()];
        self.sealed()
    }

    fn delete(&mut self, which: usize) -> Result<(), Dead> {
        let Some(id) = self.any_checkpoint(which) else { return Ok(()) };
        let volume = self.volume().clone();
        self.interrupted = Some(Interrupted::Delete(id.clone()));
        let deleting = id.clone();
        let result = self.run(async move { volume.delete_checkpoint(&deleting).await })?;
        if self.base.as_ref() == Some(&id) {
            self.interrupted = None;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Conflict);
            return Ok(());
        }
        self.alive(result)?;
        self.interrupted = None;
        self.checkpoints.remove(&id);
        Ok(())
    }

    fn any_checkpoint(&self, which: usize) -> Option<String> {
        let count = self.checkpoints.len();
        (count > 0).then(|| self.checkpoints.keys().nth(which % count).unwrap().clone())
    }

    fn look(&mut self) -> Result<(), Dead> {
        let found = self.alive(read_state(self.volume()))?;
        assert_eq!(found, self.live());
        Ok(())
    }

    fn fork(&mut self) -> Result<(), Dead> {
        self.seal()?;
        let dir = self.dir.path().join("fork");
        let log = self.log.branch(dir.join("map.db"));
        log.restore();
        let id = VolumeId::now();
        self.keys = std::mem::take(&mut self.keys).with(id, key(id));
        fork(&dir.join("map.db"), id).unwrap();
        let source = std::mem::replace(&mut self.id, id);
        let next = Next { dies: None, ..Next::first(self.tag) };
        let forked = self.open(&next, dir.clone(), &log, false);
        self.id = source;
        let Ok(forked) = forked else { unreachable!() };
        let read = read_state(&forked.volume).unwrap_or_else(|error| panic!("{}", told(&error)));
        assert_eq!(read, self.live(), "a fork begins as its source was");
        forked.volume.discard(0, crate::VOLUME_BYTES).unwrap();
        let volume = forked.volume.clone();
        let Ok(sealed) = run(&forked.runtime, &forked.plan, async move { volume.seal().await })
        else {
            unreachable!()
        };
        sealed.unwrap();
        assert_eq!(read_state(&forked.volume).unwrap(), State::new());
        end(forked);
        std::fs::remove_dir_all(dir).unwrap();
        self.look()
    }

    fn close(&mut self) -> Result<(), Dead> {
        let volume = self.volume().clone();
        let closed = self.run(async move { volume.close().await })?;
        self.alive(closed)?;
        assert_eq!(self.volume().flush().unwrap_err().kind(), ErrorKind::Closed);
        self.sealed()?;
        self.end();
        Ok(())
    }

    /// Of each sector that was written since the last flush, the disk has the old or the new.
    fn lose_sectors(&mut self, chance: u64) {
        let mut rng = SmallRng::seed_from_u64(chance);
        let odds = rng.random_range(1..8);
        for (path, mut now) in files(&self.local().join("journal")) {
            let empty = vec![0; now.len()];
            let then = self.flushed.get(&path).unwrap_or(&empty);
            for (now, then) in now.chunks_mut(512).zip(then.chunks(512)) {
                if now != then && rng.random_range(0..odds) == 0 {
                    now.copy_from_slice(then);
                }
            }
            std::fs::write(&path, now).unwrap();
        }
    }

    fn lose_everything(&mut self, next: &Next) {
        self.end();
        std::fs::remove_dir_all(self.local()).unwrap();
        let next = Next { map_of_the_log: true, new_epoch: true, ..*next };
        self.wake(&next, &self.since_seal.clone());
    }

    /// What is here is of the past when the volume comes back.
    fn elsewhere(&mut self, next: &Next) {
        self.end();
        let here = self.log.clone();
        let away = self.dir.path().join("kept");
        std::fs::rename(self.local(), &away).unwrap();
        let there = Next { map_of_the_log: true, new_epoch: true, dies: None, ..*next };
        self.epoch_first = self.epoch + 1;
        self.wake(&there, &self.since_seal.clone());
        let at = self.rng.next_u32() as usize;
        if !at.is_multiple_of(3) {
            // Who only reads leaves no trace in the map: then the row of epochs alone says that what is here is of the past.
            assert!(self.write(at, 5, 0).is_ok(), "this process was not to die");
        }
        for done in [self.seal(), self.close()] {
            assert!(done.is_ok(), "this process was not to die");
        }
        self.epoch_first = self.epoch + 1;
        std::fs::remove_dir_all(self.local()).unwrap();
        std::fs::rename(&away, self.local()).unwrap();
        self.log = here;
        self.flushed = files(&self.local().join("journal"));
        let back = Next { map_of_the_log: true, new_epoch: true, ..*next };
        self.wake(&back, &self.newest.clone());
    }
}

/// Runs something of a process until it is done or the process is dead.
fn run<T>(runtime: &Runtime, plan: &Plan, work: impl Future<Output = T>) -> Result<T, Dead> {
    runtime.block_on(async {
        tokio::select! {
            biased;
            () = plan.died() => Err(Dead),
            done = work => if plan.dead() { Err(Dead) } else { Ok(done) },
        }
    })
}

fn end(process: Process) {
    let Process { volume, runtime, plan } = process;
    plan.die();
    drop(volume);
    runtime.shutdown_timeout(END_MAX);
}

fn key(volume: VolumeId) -> SecretKey {
    SecretKey::from_bytes((*b"the key of an account, 32 bytes.").into()).of_volume(volume)
}

/// An error with everything that caused it.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Blocks that the histories use: some in a row, some at the borders of regions and of the volume.
fn universe() -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..24).collect();
    blocks.extend(250..262);
    blocks.extend(70_000..70_020);
    blocks.extend(crate::VOLUME_BLOCKS - 4..crate::VOLUME_BLOCKS);
    blocks
}

/// A block's bytes. Every second tag compresses.
fn content(tag: u64) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(tag);
    let mut bytes = vec![0; BLOCK_BYTES];
    let random = if tag.is_multiple_of(2) { BLOCK_BYTES } else { 64 };
    rng.fill(&mut bytes[..random]);
    bytes[..8].copy_from_slice(&tag.to_le_bytes());
    bytes
}

fn read_state(volume: &Volume) -> Result<State, Error> {
    let mut state = State::new();
    for run in universe().chunk_by(|a, b| a + 1 == *b) {
        let mut buffer = vec![1; run.len() * BLOCK_BYTES];
        volume.read(byte_offset(run[0]), &mut buffer)?;
        for (block, data) in run.iter().zip(buffer.chunks(BLOCK_BYTES)) {
            let tag = u64::from_le_bytes(*data.first_chunk().unwrap());
            let whole =
                if tag == 0 { data.iter().all(|byte| *byte == 0) } else { data == content(tag) };
            assert!(whole, "block {block} is of no write");
            if tag != 0 {
                state.insert(*block, tag);
            }
        }
    }
    Ok(state)
}

fn files(dir: &Path) -> Files {
    let Ok(entries) = std::fs::read_dir(dir) else { return Files::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    // The sealer may remove one meanwhile.
    paths.filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?))).collect()
}
