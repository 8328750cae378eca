//! What a wake reads, the next one has before it asks.

use super::EXTENTS_MAX;
use crate::{
    BLOCK_BYTES, Volume,
    testing::world::{Place, World, noise, read, wait_until},
};
use std::{sync::atomic::Ordering, time::Duration};

/// A place whose first reads last until the test says so.
fn traced(world: &World) -> Place {
    let mut place = world.place("here");
    place.settings.trace_time = Duration::from_secs(3600);
    place
}

/// The same volume on another worker, whose disk is empty.
fn elsewhere(world: &World, place: &Place, name: &str) -> Place {
    let mut there = place.clone();
    there.settings.dir = world.dir.path().join(name);
    there.settings.epoch += 1;
    there.ship = place.ship.branch(there.db());
    there.ship.restore();
    there
}

/// Ends the time of the first reads, and has what they were committed with a write.
fn end_trace(world: &World, volume: &Volume) {
    volume.end_trace();
    world.write(volume, 9000, 1, 9);
}

#[test]
fn what_the_last_wake_read_is_there_before_it_is_asked_for() {
    let world = World::new();
    let here = traced(&world);
    let volume = world.open(&here);
    for at in [0, 1000, 5000, 70_000] {
        world.write(&volume, at, 40, at);
    }
    world.wait(volume.close());
    let there = elsewhere(&world, &here, "there");
    let volume = world.open(&there);
    assert!(read(&volume, 5000, 3) == noise(5000, 40)[..3 * BLOCK_BYTES]);
    assert!(read(&volume, 70_039, 1) == noise(70_000, 40)[39 * BLOCK_BYTES..]);
    end_trace(&world, &volume);
    assert_eq!(volume.shared.map.trace().unwrap(), [312, 4377]);
    world.wait(volume.close());
    let third = elsewhere(&world, &there, "third");
    let volume = world.open(&third);
    let cache = &volume.shared.cache;
    wait_until("the trace is in the cache", || cache.has(5000) && cache.has(70_039));
    assert!(!cache.has(1000), "nothing else is fetched");
    world.store.away.store(true, Ordering::SeqCst);
    assert!(read(&volume, 5000, 8) == noise(5000, 40)[..8 * BLOCK_BYTES]);
    assert!(read(&volume, 70_039, 1) == noise(70_000, 40)[39 * BLOCK_BYTES..]);
    world.store.away.store(false, Ordering::SeqCst);
}

#[test]
fn a_trace_is_a_hint_and_may_name_what_is_gone_or_was_never_there() {
    let world = World::new();
    let here = traced(&world);
    let volume = world.open(&here);
    world.write(&volume, 160, 32, 1);
    read(&volume, 160, 32);
    end_trace(&world, &volume);
    volume.discard(160 * BLOCK_BYTES as u64, 16 * BLOCK_BYTES as u64).unwrap();
    world.write(&volume, 176, 16, 2);
    let map = rusqlite::Connection::open(here.db()).unwrap();
    map.execute(
        "UPDATE wake SET extents = CAST(x'ffffffff' || extents || x'0000500001' AS BLOB)",
        [],
    )
    .unwrap();
    drop(map);
    world.write(&volume, 9001, 1, 9);
    world.wait(volume.close());
    let there = elsewhere(&world, &here, "there");
    let volume = world.open(&there);
    wait_until("what is live is in the cache", || volume.shared.cache.has(191));
    assert!(read(&volume, 176, 16) == noise(2, 16));
    assert!(crate::testing::world::is_zero(&read(&volume, 160, 16)));
}

#[test]
fn a_trace_is_bounded_and_ends_with_its_time() {
    let trace = super::Trace::new(Duration::from_secs(3600));
    trace.note(&(0..1 << 20));
    trace.note(&(3..4));
    assert_eq!(trace.due(), None, "the time is not over");
    trace.end();
    trace.note(&((1 << 24)..(1 << 24) + 1));
    let due = trace.due().unwrap();
    assert_eq!(due.len(), EXTENTS_MAX);
    assert!(due.iter().copied().eq(0..512), "each extent once, in order");
    trace.saved();
    assert_eq!(trace.due(), None);
}
