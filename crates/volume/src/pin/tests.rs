//! Forks share what they began with, for as long as they need it and no longer.

use super::ForkPoint;
use crate::{
    ErrorKind, Volume, VolumeId, fork_pinned, origins,
    testing::world::{Place, World, is_zero, noise, read, view},
};
use std::collections::BTreeSet;

/// Pins a checkpoint for a new volume and makes its place.
fn fork_of(world: &World, source: &Place, volume: &Volume, at: ForkPoint, name: &str) -> Place {
    let child = VolumeId::now();
    let pin = world.wait(volume.pin(child, at));
    assert_eq!(pin.child, child);
    let mut place = world.copy_of(source, name);
    place.settings.volume = child;
    fork_pinned(&place.db(), child).unwrap();
    place
}

fn checkpoint(id: &str) -> ForkPoint {
    ForkPoint::Checkpoint(id.to_owned())
}

#[test]
fn a_fork_begins_with_the_checkpoint_and_with_nothing_else() {
    let world = World::new();
    let place = world.place("source");
    let volume = world.open(&place);
    world.write(&volume, 0, 64, 1);
    world.checkpoint(&volume, false);
    world.write(&volume, 0, 16, 2);
    world.checkpoint(&volume, false);
    world.write(&volume, 500, 16, 3);
    let segments = world.segments(place.settings.volume);
    let fork = fork_of(&world, &place, &volume, checkpoint("v1"), "fork");
    assert_eq!(world.segments(place.settings.volume), segments, "a fork costs no data");

    let forked = world.open(&fork);
    assert!(read(&forked, 0, 64) == noise(1, 64));
    assert!(is_zero(&read(&forked, 500, 16)));
    assert_eq!((forked.checkpoints().unwrap(), forked.current_base().unwrap()), (vec![], None));
    assert_eq!(forked.stats().unwrap().segments, 1, "what is above and beside is not there");
    assert_eq!(forked.pins().unwrap(), []);
    // Both go on without each other.
    world.write(&forked, 0, 8, 4);
    world.write(&volume, 8, 8, 5);
    assert_eq!(world.checkpoint(&forked, false).id, "v1");
    assert!(read(&forked, 0, 8) == noise(4, 8));
    assert!(read(&forked, 8, 56) == noise(1, 64)[8 * 4096..]);
    assert!(read(&volume, 0, 8) == noise(2, 16)[..8 * 4096]);
    world.wait(forked.close());
    let origins: BTreeSet<VolumeId> = origins(&fork.db()).unwrap().into_iter().collect();
    assert_eq!(origins, BTreeSet::from([place.settings.volume, fork.settings.volume]));
}

#[test]
fn a_pin_is_made_once_and_a_copy_without_it_is_refused() {
    let world = World::new();
    let place = world.place("source");
    let volume = world.open(&place);
    world.write(&volume, 0, 4, 1);
    world.checkpoint(&volume, false);
    world.checkpoint(&volume, false);
    let early = world.copy_of(&place, "early");
    let child = VolumeId::now();
    let pin = world.wait(volume.pin(child, checkpoint("v1")));
    assert_eq!(world.wait(volume.pin(child, checkpoint("v1"))), pin);
    let other = world.runtime.block_on(volume.pin(child, checkpoint("v2"))).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Conflict);
    let none = world.runtime.block_on(volume.pin(child, checkpoint("v9"))).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    assert_eq!(fork_pinned(&early.db(), child).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(volume.pins().unwrap(), [pin]);
    world.wait(volume.unpin(child));
    world.wait(volume.unpin(child));
    assert_eq!(volume.pins().unwrap(), []);
}

#[test]
fn what_is_pinned_outlives_its_checkpoint_and_goes_with_the_pin() {
    let world = World::new();
    let place = world.place("source");
    let volume = world.open(&place);
    world.write(&volume, 0, 64, 1);
    let pinned = world.segments(place.settings.volume);
    world.checkpoint(&volume, false);
    let fork = fork_of(&world, &place, &volume, checkpoint("v1"), "fork");
    world.checkpoint(&volume, false);
    world.wait(volume.delete_checkpoint("v1"));
    world.write(&volume, 0, 64, 2);
    world.checkpoint(&volume, false);
    world.wait(volume.delete_checkpoint("v2"));
    world.wait(volume.reclaim());
    assert!(pinned.iter().all(|key| world.segments(place.settings.volume).contains(key)));
    let forked = world.open(&fork);
    assert!(read(&forked, 0, 64) == noise(1, 64));
    world.crash(forked);
    world.wait(volume.unpin(fork.settings.volume));
    world.wait(volume.reclaim());
    assert!(!pinned.iter().any(|key| world.segments(place.settings.volume).contains(key)));
    assert!(read(&volume, 0, 64) == noise(2, 64));
}

#[test]
fn a_retired_source_keeps_what_is_pinned_and_gives_back_the_rest() {
    let world = World::new();
    let place = world.place("source");
    let volume = world.open(&place);
    world.write(&volume, 0, 64, 1);
    let pinned = world.segments(place.settings.volume);
    let cut = volume.cut().unwrap();
    let fork = fork_of(&world, &place, &volume, ForkPoint::Cut(cut), "fork");
    world.write(&volume, 64, 64, 2);
    world.checkpoint(&volume, false);
    volume.write(0, &noise(3, 8)).unwrap();
    world.wait(volume.retire());
    assert!(is_zero(&read(&volume, 0, 128)));
    assert_eq!(volume.checkpoints().unwrap(), []);
    world.wait(volume.reclaim());
    assert_eq!(world.segments(place.settings.volume), pinned);
    let forked = world.open(&fork);
    assert!(read(&forked, 0, 64) == noise(1, 64));
    assert!(is_zero(&read(&forked, 64, 64)));
    world.wait(volume.unpin(fork.settings.volume));
    world.wait(volume.reclaim());
    assert_eq!(world.segments(place.settings.volume), []);
    assert_eq!(volume.pins().unwrap(), []);
    assert_eq!(volume.stats().unwrap().layers, 1);
}

#[test]
fn a_fork_of_a_fork_reads_from_both_ancestors() {
    let world = World::new();
    let first = world.place("first");
    let volume = world.open(&first);
    world.write(&volume, 0, 32, 1);
    world.checkpoint(&volume, false);
    let second = fork_of(&world, &first, &volume, checkpoint("v1"), "second");
    let middle = world.open(&second);
    world.write(&middle, 16, 32, 2);
    world.checkpoint(&middle, false);
    let third = fork_of(&world, &second, &middle, checkpoint("v1"), "third");
    // The one in the middle ends first, then the oldest: each keeps what those below need.
    world.wait(middle.retire());
    world.wait(middle.reclaim());
    world.wait(volume.retire());
    world.wait(volume.reclaim());
    assert_eq!(middle.pins().unwrap().len(), 1, "so the pin of the middle one in the first stays");
    let youngest = world.open(&third);
    assert!(read(&youngest, 0, 16) == noise(1, 32)[..16 * 4096]);
    assert!(read(&youngest, 16, 32) == noise(2, 32));
    assert_eq!(origins(&third.db()).unwrap().len(), 2);
}

#[test]
fn a_fork_that_was_elsewhere_comes_back_to_an_old_cache_while_its_parent_is_collected() {
    let world = World::new();
    let parent = world.place("parent");
    let volume = world.open(&parent);
    world.write(&volume, 0, 64, 1);
    world.checkpoint(&volume, false);
    let mut here = fork_of(&world, &parent, &volume, checkpoint("v1"), "here");
    let child = here.settings.volume;
    let forked = world.open(&here);
    world.write(&forked, 0, 8, 2);
    assert!(read(&forked, 8, 56) == noise(1, 64)[8 * 4096..]);
    world.crash(forked);

    let mut there = world.copy_of(&here, "there");
    (there.settings.volume, there.settings.epoch) = (child, 2);
    let forked = world.open(&there);
    world.write(&forked, 8, 8, 3);
    world.checkpoint(&forked, false);
    world.wait(forked.close());

    world.write(&volume, 0, 64, 9);
    world.wait(volume.retire());
    world.wait(volume.reclaim());
    world.wait(volume.close());

    here.ship = there.ship.branch(here.db());
    here.ship.restore();
    here.settings.epoch = 3;
    let forked = world.open(&here);
    let whole = [&noise(2, 8)[..], &noise(3, 8), &noise(1, 64)[16 * 4096..]].concat();
    assert!(read(&forked, 0, 64) == whole);
    assert!(view(&forked.view("v1").unwrap(), 0, 64) == whole);
}
