//! Compaction changes where blocks are and nothing else.

use super::compact::compact;
use crate::{
    ForkPoint, Volume, VolumeId, fork_pinned,
    testing::world::{World, is_zero, noise, read, view},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

fn step(world: &World, volume: &Volume) -> super::compact::Outcome {
    world.wait(compact(volume.shared.clone(), Duration::ZERO, BTreeSet::new()))
}

#[test]
fn sparse_segments_become_one_and_the_bucket_shrinks() {
    let world = World::new();
    let place = world.place("volume");
    let volume = world.open(&place);
    for number in 0..8 {
        world.write(&volume, number * 64, 64, number);
    }
    for number in 0..8 {
        world.write(&volume, number * 64, 48, 100 + number);
    }
    world.wait(volume.reclaim());
    let before = volume.stats().unwrap();
    assert_eq!(world.segments(place.settings.volume).len(), 16);
    assert_eq!(step(&world, &volume).moved, 8 * 16);
    world.wait(volume.reclaim());
    let after = volume.stats().unwrap();
    assert_eq!(world.segments(place.settings.volume).len(), 9);
    assert_eq!((after.logical_bytes, after.live_bytes), (before.logical_bytes, before.live_bytes));
    assert_eq!(after.reclaimable_bytes, 0);
    assert_eq!(step(&world, &volume).moved, 0, "it is done");
    for cold in [false, true] {
        for number in 0..8 {
            assert!(read(&volume, number * 64, 48) == noise(100 + number, 48));
            assert!(read(&volume, number * 64 + 48, 16) == noise(number, 64)[48 * 4096..]);
        }
        if !cold {
            volume.shared.cache.clear();
        }
    }
    // What is in the log is enough for another worker.
    world.wait(volume.close());
    let mut there = world.copy_of(&place, "there");
    (there.settings.volume, there.settings.epoch) = (place.settings.volume, 2);
    let volume = world.open(&there);
    assert!(read(&volume, 48, 16) == noise(0, 64)[48 * 4096..]);
    world.write(&volume, 0, 8, 7);
}

#[test]
fn checkpoints_views_and_rewinds_are_what_they_were() {
    let world = World::new();
    let mut place = world.place("volume");
    place.settings.garbage_delay = Duration::from_secs(3600);
    let volume = world.open(&place);
    world.write(&volume, 0, 64, 1);
    let then = world.copy_of(&place, "then").db();
    world.write(&volume, 0, 40, 2);
    world.checkpoint(&volume, false);
    let frozen = volume.view("v1").unwrap();
    let expected = [&noise(2, 40)[..], &noise(1, 64)[40 * 4096..]].concat();
    assert!(view(&frozen, 0, 64) == expected);
    world.write(&volume, 0, 64, 3);
    assert_eq!(step(&world, &volume).moved, 24);
    volume.shared.fetcher.forget_recent();
    let gets = world.store.gets.load(Ordering::SeqCst);
    assert!(view(&frozen, 0, 64) == expected);
    assert!(world.store.gets.load(Ordering::SeqCst) > gets, "it is read from where it is now");
    world.wait(volume.rewind(&then, jiff::Timestamp::now()));
    assert!(read(&volume, 0, 64) == noise(1, 64));
    world.wait(volume.restore("v1"));
    assert!(read(&volume, 0, 64) == expected);
}

#[test]
fn what_a_fork_may_name_is_never_moved() {
    let world = World::new();
    let place = world.place("source");
    let volume = world.open(&place);
    world.write(&volume, 0, 64, 1);
    world.checkpoint(&volume, false);
    world.write(&volume, 0, 40, 2);
    world.checkpoint(&volume, false);
    let child = VolumeId::now();
    world.wait(volume.pin(child, ForkPoint::Checkpoint("v2".into())));
    world.wait(volume.delete_checkpoint("v1"));
    world.write(&volume, 0, 64, 3);
    world.wait(volume.reclaim());
    let kept = world.segments(place.settings.volume);
    let outcome = step(&world, &volume);
    assert_eq!((outcome.moved, outcome.stuck.len()), (0, 1));
    let mut fork = world.copy_of(&place, "fork");
    fork.settings.volume = child;
    fork_pinned(&fork.db(), child).unwrap();
    let forked = world.open(&fork);
    assert!(read(&forked, 0, 40) == noise(2, 40));
    assert!(read(&forked, 40, 24) == noise(1, 64)[40 * 4096..]);
    assert_eq!(world.segments(place.settings.volume), kept);
    world.wait(volume.unpin(child));
    world.checkpoint(&volume, false);
    world.wait(volume.delete_checkpoint("v2"));
    world.wait(volume.reclaim());
    assert_eq!(step(&world, &volume).moved, 0, "nothing of it is named any more");
    assert!(read(&volume, 0, 64) == noise(3, 64));
}

#[test]
fn writes_discards_and_restores_meanwhile_win() {
    let mut moved_in_all = 0;
    for seed in 0..6 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let world = World::new();
        let mut place = world.place("volume");
        place.settings.garbage_delay = Duration::from_secs(600);
        let volume = world.open(&place);
        let mut model = vec![0u64; 512];
        let mut kept = Vec::new();
        let mut tag = 0;
        let running = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            let compactor = scope.spawn(|| {
                let mut moved = 0;
                while running.load(Ordering::SeqCst) {
                    moved += step(&world, &volume).moved;
                }
                moved
            });
            for _ in 0..60 {
                let first = rng.random_range(0..500u64);
                let count = rng.random_range(1..12u64);
                match rng.random_range(0..10) {
                    0 => {
                        volume.discard(first * 4096, count * 4096).unwrap();
                        model[first as usize..(first + count) as usize].fill(0);
                    }
                    1 => {
                        let id = world.checkpoint(&volume, false).id;
                        kept.push((id, model.clone()));
                    }
                    2 if !kept.is_empty() => {
                        let (id, state) = kept[rng.random_range(0..kept.len())].clone();
                        world.wait(volume.restore(&id));
                        model = state;
                    }
                    _ => {
                        for block in first..first + count {
                            tag += 1;
                            volume.write(block * 4096, &noise(tag, 1)).unwrap();
                            model[block as usize] = tag;
                        }
                        world.wait(volume.seal());
                    }
                }
            }
            running.store(false, Ordering::SeqCst);
            moved_in_all += compactor.join().unwrap();
        });
        volume.shared.cache.clear();
        let same = |block: u64, tag: u64, data: &[u8]| match tag {
            0 => assert!(is_zero(data), "seed {seed} block {block}"),
            tag => assert!(data == noise(tag, 1), "seed {seed} block {block}"),
        };
        for (block, tag) in (0..).zip(&model) {
            same(block, *tag, &read(&volume, block, 1));
        }
        for (id, state) in kept {
            let frozen = volume.view(&id).unwrap();
            for (block, tag) in (0..).zip(&state) {
                same(block, *tag, &view(&frozen, block, 1));
            }
        }
    }
    assert!(moved_in_all > 0, "something was moved");
}
