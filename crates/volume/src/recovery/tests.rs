//! A worker comes back after another took its volume over: nothing that it had is lost, and nothing of it is live.

use super::JOURNAL_ASIDE;
use crate::{
    BLOCK_BYTES, Checkpoint, Volume,
    failpoint::{Failpoints, Plan, Point},
    segment::SegmentName,
    testing::world::{Place, World, is_zero, noise, read, view, wait_until},
};
use object_store::ObjectStoreExt as _;
use std::{fs, path::PathBuf, sync::Arc, time::Duration};

const RECOVERED: &str = "recovered: what epoch 1 had when another took over, set aside at ";

/// A worker whose volume is overtaken.
struct Overtaken {
    world: World,
    here: Place,
}

impl Overtaken {
    /// What `before` does is in the bucket; what `after` does is not in the log when the worker is cut off.
    fn new(before: impl Fn(&World, &Volume), after: impl Fn(&World, &Volume)) -> Self {
        let world = World::new();
        let mut here = world.place("here");
        here.settings.garbage_delay = Duration::from_secs(3600);
        let volume = world.open(&here);
        before(&world, &volume);
        world.wait(volume.seal());
        let log = here.ship.branch(world.dir.path().join("then.db"));
        after(&world, &volume);
        volume.flush().unwrap();
        world.crash(volume);
        // What was shipped after the cut never got through.
        here.ship = log.branch(here.db());
        Self { world, here }
    }

    /// Another worker takes the volume over, and does something.
    fn elsewhere(&mut self, work: impl Fn(&World, &Volume)) {
        let mut there = self.here.clone();
        there.settings.dir = self.world.dir.path().join("there");
        there.settings.epoch = 2;
        there.ship = self.here.ship.branch(there.db());
        there.ship.restore();
        let volume = self.world.open(&there);
        work(&self.world, &volume);
        self.world.wait(volume.close());
        self.here.ship = there.ship.branch(self.here.db());
    }

    /// The worker comes back: its map is set aside, and the log's is restored.
    fn returns(&mut self) {
        let stale = PathBuf::from(format!("{}.stale", self.here.db().display()));
        for suffix in ["", "-wal"] {
            let from = format!("{}{suffix}", self.here.db().display());
            fs::rename(from, format!("{}{suffix}", stale.display())).unwrap();
        }
        self.here.ship.restore();
        self.here.settings.overtaken_map = Some(stale);
        (self.here.settings.epoch, self.here.settings.epoch_first) = (3, 3);
    }

    fn aside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.here.settings.dir).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.starts_with(JOURNAL_ASIDE) || name.contains(".stale")
            })
            .collect()
    }

    fn recovered(&self, volume: &Volume) -> Checkpoint {
        wait_until("what was set aside is recovered", || self.aside().is_empty());
        let found = recoveries(volume);
        let [recovered] = &found[..] else { panic!("one checkpoint: {found:?}") };
        recovered.clone()
    }
}

fn recoveries(volume: &Volume) -> Vec<Checkpoint> {
    let mut all = volume.checkpoints().unwrap();
    all.retain(|checkpoint| checkpoint.comment.starts_with(RECOVERED));
    all
}

fn discard(volume: &Volume, block: u64, blocks: u64) {
    volume.discard(block * BLOCK_BYTES as u64, blocks * BLOCK_BYTES as u64).unwrap();
}

fn write(volume: &Volume, block: u64, blocks: usize, seed: u64) {
    volume.write(block * BLOCK_BYTES as u64, &noise(seed, blocks)).unwrap();
}

/// Sealed and shipped before; sealed and not shipped; and not sealed.
fn overtaken() -> Overtaken {
    Overtaken::new(
        |world, volume| {
            world.write(volume, 0, 64, 1);
            world.write(volume, 5000, 64, 2);
        },
        |world, volume| {
            world.write(volume, 32, 64, 3);
            discard(volume, 5000, 8);
            world.wait(volume.seal());
            write(volume, 90, 20, 4);
            discard(volume, 5032, 16);
            write(volume, 70_000, 4, 5);
        },
    )
}

fn is_what_was_here(of: impl Fn(u64, usize) -> Vec<u8>) {
    assert!(of(0, 32) == noise(1, 64)[..32 * BLOCK_BYTES]);
    assert!(of(32, 58) == noise(3, 64)[..58 * BLOCK_BYTES]);
    assert!(of(90, 20) == noise(4, 20));
    assert!(is_zero(&of(5000, 8)) && is_zero(&of(5032, 16)));
    assert!(of(5008, 24) == noise(2, 64)[8 * BLOCK_BYTES..32 * BLOCK_BYTES]);
    assert!(of(5048, 16) == noise(2, 64)[48 * BLOCK_BYTES..]);
    assert!(of(70_000, 4) == noise(5, 4));
    assert!(is_zero(&of(9000, 8)), "what the other wrote is not in it");
}

fn other_work(world: &World, volume: &Volume) {
    world.write(volume, 0, 8, 7);
    world.write(volume, 9000, 8, 8);
}

fn is_what_the_other_wrote(volume: &Volume) {
    assert!(read(volume, 0, 8) == noise(7, 8));
    assert!(read(volume, 8, 56) == noise(1, 64)[8 * BLOCK_BYTES..]);
    assert!(read(volume, 5000, 64) == noise(2, 64));
    assert!(read(volume, 9000, 8) == noise(8, 8));
    assert!(is_zero(&read(volume, 64, 46)) && is_zero(&read(volume, 70_000, 4)));
}

#[test]
fn what_another_worker_overtook_is_a_checkpoint_and_not_live() {
    let mut case = overtaken();
    case.elsewhere(other_work);
    case.returns();
    let volume = case.world.open(&case.here);
    let recovered = case.recovered(&volume);
    assert!(recovered.auto, "{recovered:?}");
    is_what_the_other_wrote(&volume);
    let seen = volume.view(&recovered.id).unwrap();
    is_what_was_here(|block, blocks| view(&seen, block, blocks));
    drop(seen);
    let pruned = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 365);
    assert_eq!(case.world.wait(volume.prune_automatic(pruned)), [], "it stays until it is deleted");
    // It survives the collection of garbage, and a worker that has only the bucket.
    case.world.wait(volume.reclaim());
    case.world.wait(volume.close());
    let mut third = case.here.clone();
    (third.settings.dir, third.settings.epoch) = (case.world.dir.path().join("third"), 4);
    third.settings.overtaken_map = None;
    third.ship = case.here.ship.branch(third.db());
    third.ship.restore();
    let volume = case.world.open(&third);
    is_what_the_other_wrote(&volume);
    case.world.wait(volume.restore(&recovered.id));
    is_what_was_here(|block, blocks| read(&volume, block, blocks));
    case.world.wait(volume.seal());
    let report = case.world.wait(crate::fsck(
        &third.db(),
        case.world.store.clone(),
        crate::Keys::none(),
        crate::Depth::Data,
    ));
    assert_eq!(report.errors, Vec::<String>::new());
}

#[test]
fn what_the_bucket_has_anyway_makes_no_checkpoint() {
    let mut case = Overtaken::new(
        |world, volume| world.write(volume, 0, 64, 1),
        |_, volume| write(volume, 0, 0, 0),
    );
    case.elsewhere(|_, _| ());
    case.returns();
    let volume = case.world.open(&case.here);
    wait_until("the files are gone", || case.aside().iter().all(|path| !path.is_dir()));
    assert_eq!(recoveries(&volume), []);
    assert!(read(&volume, 0, 64) == noise(1, 64));
}

#[test]
fn a_death_at_any_point_of_a_recovery_ends_with_one_checkpoint() {
    for point in [
        Point::SegmentBuilt,
        Point::SegmentPut,
        Point::MapCommitted,
        Point::LogShipped,
        Point::MapChanged,
    ] {
        let mut case = overtaken();
        case.elsewhere(other_work);
        case.returns();
        let plan = Arc::new(Plan::new(Some((point, 0))));
        case.here.settings.failpoints = Failpoints { plan: Some(plan.clone()) };
        let volume = case.world.open(&case.here);
        wait_until("the process is dead", || plan.dead());
        case.world.crash(volume);
        assert!(!case.aside().is_empty(), "{point:?}");
        case.here.settings.failpoints = Failpoints::default();
        case.here.settings.epoch = 4;
        let volume = case.world.open(&case.here);
        let recovered = case.recovered(&volume);
        is_what_the_other_wrote(&volume);
        let seen = volume.view(&recovered.id).unwrap();
        is_what_was_here(|block, blocks| view(&seen, block, blocks));
    }
}

#[test]
fn what_cannot_be_recovered_stays_set_aside_and_is_tried_again() {
    let mut case = overtaken();
    case.elsewhere(other_work);
    case.returns();
    // The segment that epoch 1 put and could not tell the log of.
    let (epoch, sequence) = (1, 3);
    let name = SegmentName { volume: case.here.settings.volume, epoch, sequence };
    let (key, store) = (name.key(), case.world.store.clone());
    let bytes = case.world.runtime.block_on(async {
        let bytes = store.get(&key).await.unwrap().bytes().await.unwrap();
        store.delete(&key).await.unwrap();
        bytes
    });
    let volume = case.world.open(&case.here);
    wait_until("the recovery has ended", || volume.recovery_ended());
    assert_eq!(recoveries(&volume), []);
    is_what_the_other_wrote(&volume);
    case.world.crash(volume);
    assert!(case.aside().iter().any(|path| path.is_dir()), "the journal stays");
    let segments = case.world.segments(case.here.settings.volume).len();
    assert_eq!(segments, 2 + 2, "nothing more was put for a recovery that cannot succeed");
    case.world.runtime.block_on(store.put(&key, bytes.into())).unwrap();
    case.here.settings.epoch = 4;
    let volume = case.world.open(&case.here);
    let recovered = case.recovered(&volume);
    let seen = volume.view(&recovered.id).unwrap();
    is_what_was_here(|block, blocks| view(&seen, block, blocks));
}
