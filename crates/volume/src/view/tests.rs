//! A view stays what it was, whatever becomes of the volume and of its checkpoint.

use crate::{
    ErrorKind,
    testing::world::{World, is_zero, noise, read, view, wait_until},
};
use std::sync::atomic::Ordering;

#[test]
fn a_view_is_the_checkpoint_while_the_volume_goes_on() {
    let world = World::new();
    let volume = world.open(&world.place("volume"));
    world.write(&volume, 0, 64, 1);
    world.write(&volume, 1000, 8, 2);
    world.checkpoint(&volume, false);
    let frozen = volume.view("v1").unwrap();
    world.write(&volume, 16, 16, 3);
    volume.discard(1000 * 4096, 8 * 4096).unwrap();
    volume.write(2000 * 4096, &noise(4, 8)).unwrap();
    for _ in 0..2 {
        assert!(view(&frozen, 0, 64) == noise(1, 64));
        assert!(view(&frozen, 1000, 8) == noise(2, 8));
        assert!(is_zero(&view(&frozen, 2000, 8)));
        world.wait(volume.seal());
    }
    // Deleted, merged and collected around, it is still the same.
    world.checkpoint(&volume, false);
    world.wait(volume.delete_checkpoint("v1"));
    assert_eq!(volume.view("v1").unwrap_err().kind(), ErrorKind::NotFound);
    world.write(&volume, 0, 64, 5);
    world.wait(volume.reclaim());
    assert!(view(&frozen, 0, 64) == noise(1, 64));
    assert!(view(&frozen, 1000, 8) == noise(2, 8));
    let layers = volume.stats().unwrap().layers;
    drop(frozen);
    world.wait(volume.reclaim());
    assert!(volume.stats().unwrap().layers < layers, "its layer is merged when it is gone");
    assert!(read(&volume, 0, 64) == noise(5, 64));
}

#[test]
fn a_view_of_a_cut_needs_no_checkpoint() {
    let world = World::new();
    let volume = world.open(&world.place("volume"));
    volume.write(0, &noise(1, 8)).unwrap();
    let cut = volume.cut().unwrap();
    let frozen = world.wait(volume.view_cut(cut));
    world.write(&volume, 0, 8, 2);
    world.wait(volume.reclaim());
    assert!(view(&frozen, 0, 8) == noise(1, 8));
    assert_eq!(volume.checkpoints().unwrap(), []);
    world.wait(volume.clone().close());
    assert_eq!(frozen.read(0, &mut [0; 4096]).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn what_both_states_share_is_read_from_the_cache() {
    let world = World::new();
    let volume = world.open(&world.place("volume"));
    world.write(&volume, 0, 64, 1);
    world.checkpoint(&volume, false);
    let frozen = volume.view("v1").unwrap();
    let gets = world.store.gets.load(Ordering::SeqCst);
    assert!(view(&frozen, 0, 64) == noise(1, 64));
    assert_eq!(world.store.gets.load(Ordering::SeqCst), gets);
    world.write(&volume, 0, 16, 2);
    assert!(view(&frozen, 0, 64) == noise(1, 64));
    let after = world.store.gets.load(Ordering::SeqCst);
    assert!(after > gets);
    assert!(view(&frozen, 0, 64) == noise(1, 64));
    assert_eq!(world.store.gets.load(Ordering::SeqCst), after, "and the rest is kept for a while");
    // None of it got into the cache, which is of the live state.
    assert!(read(&volume, 0, 16) == noise(2, 16));
    assert_eq!(world.store.gets.load(Ordering::SeqCst), after);
}

#[test]
fn changed_names_exactly_the_parts_that_were_written_between() {
    let world = World::new();
    let volume = world.open(&world.place("volume"));
    world.write(&volume, 0, 64, 1);
    world.checkpoint(&volume, false);
    world.write(&volume, 8, 4, 2);
    world.write(&volume, 70_000, 2, 3);
    volume.discard(20 * 4096, 4096).unwrap();
    // Zeros over nothing are no change.
    volume.write(50_000 * 4096, &[0; 4096]).unwrap();
    world.checkpoint(&volume, false);
    let (one, two) = (volume.view("v1").unwrap(), volume.view("v2").unwrap());
    let block = |first: u64, count: u64| first * 4096..(first + count) * 4096;
    let expected = [block(8, 4), block(20, 1), block(70_000, 2)];
    assert_eq!(one.changed(&two).unwrap(), expected);
    assert_eq!(two.changed(&one).unwrap(), expected);
    assert_eq!(one.changed(&one.clone()).unwrap(), []);
    // The same over two branches.
    world.wait(volume.restore("v1"));
    world.write(&volume, 30, 1, 4);
    world.checkpoint(&volume, false);
    let three = volume.view("v3").unwrap();
    let expected = [block(8, 4), block(20, 1), block(30, 1), block(70_000, 2)];
    assert_eq!(three.changed(&two).unwrap(), expected);
    let other = world.open(&world.place("other"));
    world.checkpoint(&other, false);
    let foreign = other.view("v1").unwrap();
    assert_eq!(one.changed(&foreign).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_view_reads_while_others_write() {
    let world = World::new();
    let mut place = world.place("volume");
    // Without a delay, a segment may go while a slow reader has just found it.
    place.settings.garbage_delay = std::time::Duration::from_secs(600);
    let volume = world.open(&place);
    world.write(&volume, 0, 256, 1);
    world.checkpoint(&volume, false);
    let frozen = volume.view("v1").unwrap();
    let expected = noise(1, 256);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..40 {
                volume.write((round % 16) * 16 * 4096, &noise(round, 16)).unwrap();
                world.wait(volume.seal());
            }
        });
        while !writer.is_finished() {
            assert!(view(&frozen, 0, 256) == expected);
        }
    });
    wait_until("everything is in the bucket", || volume.lag().bytes == 0);
}
