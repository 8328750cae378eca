//! Going back works for as long as every segment is there, and is refused before anything changes when one is not.

use crate::{
    ErrorKind, Volume,
    testing::world::{Place, World, is_zero, noise, read, view},
};
use jiff::Timestamp;
use object_store::ObjectStoreExt as _;
use std::{path::PathBuf, time::Duration};

/// A volume that keeps its garbage.
fn place(world: &World) -> Place {
    let mut place = world.place("volume");
    place.settings.garbage_delay = Duration::from_secs(3600);
    place
}

/// The map as the log has it now, in a file.
fn map_now(world: &World, place: &Place, name: &str) -> PathBuf {
    world.copy_of(place, name).db()
}

fn rewind(world: &World, volume: &Volume, map: &std::path::Path) -> crate::Checkpoint {
    world.wait(volume.rewind(map, Timestamp::now()))
}

#[test]
fn a_rewind_after_much_garbage_is_the_state_of_then() {
    let world = World::new();
    let place = place(&world);
    let volume = world.open(&place);
    world.write(&volume, 0, 64, 1);
    world.checkpoint(&volume, false);
    world.write(&volume, 64, 64, 2);
    world.write(&volume, 5000, 8, 3);
    let then = map_now(&world, &place, "then");
    for round in 0..20 {
        world.write(&volume, 0, 128, 100 + round);
    }
    volume.discard(5000 * 4096, 8 * 4096).unwrap();
    world.write(&volume, 9000, 8, 4);
    world.checkpoint(&volume, false);
    world.wait(volume.delete_checkpoint("v1"));
    world.wait(volume.reclaim());

    let kept = rewind(&world, &volume, &then);
    assert!(kept.auto && kept.comment.starts_with("before the rewind to "), "{kept:?}");
    for _ in 0..2 {
        assert!(read(&volume, 0, 64) == noise(1, 64));
        assert!(read(&volume, 64, 64) == noise(2, 64));
        assert!(read(&volume, 5000, 8) == noise(3, 8));
        assert!(is_zero(&read(&volume, 9000, 8)));
        volume.shared.cache.clear();
    }
    assert_eq!(volume.current_base().unwrap(), None, "the checkpoint of then is gone");
    // It can be undone, and done again.
    assert!(view(&volume.view(&kept.id).unwrap(), 0, 128) == noise(119, 128));
    world.wait(volume.restore(&kept.id));
    assert!(read(&volume, 0, 128) == noise(119, 128));
    assert!(read(&volume, 9000, 8) == noise(4, 8));
    rewind(&world, &volume, &then);
    assert!(read(&volume, 0, 64) == noise(1, 64));
    // The volume goes on from there, elsewhere.
    world.write(&volume, 0, 8, 7);
    world.wait(volume.close());
    let mut there = world.copy_of(&place, "there");
    (there.settings.volume, there.settings.epoch) = (place.settings.volume, 2);
    let volume = world.open(&there);
    assert!(read(&volume, 0, 8) == noise(7, 8));
    assert!(read(&volume, 64, 64) == noise(2, 64));
}

#[test]
fn a_rewind_to_a_state_that_is_not_whole_any_more_changes_nothing() {
    let world = World::new();
    let mut place = place(&world);
    place.settings.garbage_delay = Duration::ZERO;
    let volume = world.open(&place);
    world.write(&volume, 0, 64, 1);
    let then = map_now(&world, &place, "then");
    assert_eq!(volume.whole_since().unwrap(), None);
    let before = Timestamp::now();
    world.write(&volume, 0, 64, 2);
    world.wait(volume.reclaim());
    let since = volume.whole_since().unwrap().unwrap();
    assert!(since.as_millisecond() >= before.as_millisecond());
    let refused = world.runtime.block_on(volume.rewind(&then, before)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().starts_with("1 of the segments of that state"), "{refused}");
    assert!(read(&volume, 0, 64) == noise(2, 64));
    assert_eq!(volume.checkpoints().unwrap(), []);
}

#[test]
fn a_segment_that_is_only_missing_is_noticed_too() {
    let world = World::new();
    let place = place(&world);
    let volume = world.open(&place);
    world.write(&volume, 0, 8, 1);
    world.write(&volume, 8, 8, 2);
    let lost = world.segments(place.settings.volume);
    let then = map_now(&world, &place, "then");
    world.write(&volume, 0, 16, 3);
    world.runtime.block_on(world.store.inner.delete(&lost[0])).unwrap();
    let refused = world.runtime.block_on(volume.rewind(&then, Timestamp::now())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(read(&volume, 0, 16) == noise(3, 16));
}

#[test]
fn maps_of_others_and_of_later_are_refused() {
    let world = World::new();
    let place = place(&world);
    let volume = world.open(&place);
    world.write(&volume, 0, 8, 1);
    let mut other = world.place("other");
    other.settings.epoch = 2;
    let foreign = world.open(&other);
    world.write(&foreign, 0, 8, 1);
    let refused = |map: &std::path::Path| {
        world.runtime.block_on(volume.rewind(map, Timestamp::now())).unwrap_err().kind()
    };
    assert_eq!(refused(&map_now(&world, &other, "foreign")), ErrorKind::Invalid);
    let mut later = world.copy_of(&place, "later");
    (later.settings.volume, later.settings.epoch) = (place.settings.volume, 2);
    let ahead = world.open(&later);
    world.write(&ahead, 0, 8, 2);
    assert_eq!(refused(&map_now(&world, &later, "ahead")), ErrorKind::Invalid);
    assert_eq!(refused(&world.dir.path().join("nothing.db")), ErrorKind::NotFound);
    assert!(read(&volume, 0, 8) == noise(1, 8));
}
