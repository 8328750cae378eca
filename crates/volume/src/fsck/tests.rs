//! A whole volume has no errors, and every kind of damage is told.

use super::{Depth, Report, fsck};
use crate::{
    ForkPoint, Keys, SecretKey, VolumeId, fork_pinned,
    segment::SegmentName,
    testing::world::{Place, World},
};
use object_store::{ObjectStore, ObjectStoreExt as _};
use rusqlite::Connection;
use std::{path::Path, sync::Arc};

fn check(world: &World, db: &Path, depth: Depth) -> Report {
    let store: Arc<dyn ObjectStore> = world.store.clone();
    world.wait(fsck(db, store, Keys::none(), depth))
}

/// A closed volume with layers, checkpoints, a pin and garbage.
fn volume(world: &World) -> Place {
    let mut place = world.place("volume");
    place.settings.garbage_delay = std::time::Duration::from_secs(3600);
    place.settings.epoch = 3;
    let volume = world.open(&place);
    world.write(&volume, 0, 64, 1);
    world.write(&volume, 5000, 20, 2);
    world.checkpoint(&volume, false);
    world.write(&volume, 32, 64, 3);
    world.checkpoint(&volume, false);
    world.write(&volume, 5000, 20, 4);
    world.wait(volume.pin(VolumeId::now(), ForkPoint::Checkpoint("v1".into())));
    world.write(&volume, 9000, 1, 5);
    world.write(&volume, 9000, 1, 6);
    world.wait(volume.close());
    place
}

#[test]
fn a_whole_volume_has_no_errors_at_any_depth() {
    let world = World::new();
    let place = volume(&world);
    let heads = check(&world, &place.db(), Depth::Heads);
    assert_eq!(heads.errors, Vec::<String>::new());
    assert_eq!((heads.volume, heads.checkpoints, heads.pins), (place.settings.volume, 2, 1));
    assert_eq!(heads.segments, 5, "garbage is not counted");
    assert_eq!(heads.orphans, []);
    let data = check(&world, &place.db(), Depth::Data);
    assert_eq!(data.errors, Vec::<String>::new());
    assert_eq!(data.read_bytes, data.segment_bytes);
    assert!(heads.read_bytes < data.read_bytes / 10);
}

#[test]
fn faults_of_the_bucket_are_no_errors_of_the_volume() {
    let world = World::new();
    let place = volume(&world);
    world.store.faults.store(200, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(check(&world, &place.db(), Depth::Data).errors, Vec::<String>::new());
}

#[test]
fn every_damage_of_the_bucket_is_told() {
    let world = World::new();
    let place = volume(&world);
    let keys = world.segments(place.settings.volume);
    let report = check(&world, &place.db(), Depth::Heads);
    let damage = |key: &object_store::path::Path, damage: &dyn Fn(&mut Vec<u8>)| {
        let original = world
            .runtime
            .block_on(async { world.store.inner.get(key).await?.bytes().await })
            .unwrap();
        let mut bytes = original.to_vec();
        damage(&mut bytes);
        world.runtime.block_on(world.store.inner.put(key, bytes.into())).unwrap();
        original
    };
    let mut named = Vec::new();
    for key in &keys {
        let original = damage(key, &|bytes| *bytes.last_mut().unwrap() ^= 1);
        assert_eq!(check(&world, &place.db(), Depth::Heads).errors, Vec::<String>::new());
        let errors = check(&world, &place.db(), Depth::Data).errors;
        if !errors.is_empty() {
            named.push(key);
        }
        assert!(errors.iter().all(|error| error.contains(key.as_ref())), "{errors:?}");
        world.runtime.block_on(world.store.inner.put(key, original.into())).unwrap();
    }
    assert_eq!(named.len() as u64, report.segments, "garbage is not read");
    let [first, second, third, ..] = named[..] else { panic!("{named:?}") };
    damage(first, &|bytes| bytes[70] ^= 1);
    damage(second, &|bytes| bytes.truncate(5000));
    world.runtime.block_on(world.store.inner.delete(third)).unwrap();
    let errors = check(&world, &place.db(), Depth::Data).errors;
    for (key, what) in
        [(first, "damaged head"), (second, "has 5000 bytes"), (third, "is not in the bucket")]
    {
        assert!(
            errors.iter().any(|error| error.contains(key.as_ref()) && error.contains(what)),
            "{what}: {errors:?}"
        );
    }
}

#[test]
fn objects_that_nothing_names_are_reported_once_they_can_be_nothing_else() {
    let world = World::new();
    let place = volume(&world);
    let volume = place.settings.volume;
    let put = |epoch| {
        let name = SegmentName { volume, epoch, sequence: 999 };
        world.runtime.block_on(world.store.put(&name.key(), "leftover".into())).unwrap();
        name.key().to_string()
    };
    let old = put(2);
    put(3);
    let report = check(&world, &place.db(), Depth::Heads);
    assert_eq!(report.errors, Vec::<String>::new());
    let [orphan] = &report.orphans[..] else { panic!("{:?}", report.orphans) };
    assert_eq!((&orphan.key, orphan.bytes), (&old, 8));
    let odd = format!("volumes/{volume}/segments/00/what");
    world.runtime.block_on(world.store.put(&odd.clone().into(), "?".into())).unwrap();
    assert_eq!(
        check(&world, &place.db(), Depth::Heads).errors,
        [format!("{odd} is no segment's key")]
    );
}

#[test]
fn every_damage_of_the_tables_is_told() {
    let world = World::new();
    let place = volume(&world);
    for (damage, told) in [
        ("UPDATE segment SET refs = refs + 1 WHERE id = 1", "and counted"),
        ("UPDATE segment SET dead = 5 WHERE id = 1", "is garbage in one column"),
        ("UPDATE segment SET runs = x'0102' WHERE id = 1", "run table"),
        ("UPDATE segment SET sequence = 2 WHERE id = 1", "is there twice"),
        ("UPDATE layer SET parent = 77 WHERE parent IS NULL", "that does not exist"),
        ("UPDATE layer SET parent = id WHERE parent IS NULL", "lies on itself"),
        ("UPDATE volume SET head = 1", "lies on the head"),
        ("UPDATE volume SET base = 'v7'", "grew from v7"),
        ("UPDATE checkpoint SET layer = 99 WHERE id = 'v1'", "checkpoint v1 is of a layer"),
        ("UPDATE pin SET layer = 99", "is pinned and does not exist"),
        ("UPDATE map SET entries = x'00' WHERE key = (SELECT min(key) FROM map)", "the map row"),
        ("UPDATE map SET entries = x'' WHERE key = (SELECT min(key) FROM map)", "empty row"),
        (
            "UPDATE map SET key = key + 999 WHERE key = (SELECT min(key) FROM map)",
            "has a row of layer",
        ),
        (
            "UPDATE map SET key = key + (1000000 << 32) WHERE key = (SELECT min(key) FROM map)",
            "behind the end",
        ),
        ("DELETE FROM segment WHERE id = 1", "which it lacks"),
    ] {
        let copy = world.copy_of(&place, "damaged");
        Connection::open(copy.db()).unwrap().execute_batch(damage).unwrap();
        let errors = check(&world, &copy.db(), Depth::Heads).errors;
        assert!(errors.iter().any(|error| error.contains(told)), "{damage}: {errors:?}");
    }
}

#[test]
fn a_fork_is_whole_when_its_source_has_let_go_what_the_fork_cannot_see() {
    let world = World::new();
    let place = world.place("source");
    let volume = world.open(&place);
    world.write(&volume, 0, 16, 1);
    world.checkpoint(&volume, false);
    world.write(&volume, 0, 16, 2);
    world.checkpoint(&volume, false);
    let child = VolumeId::now();
    world.wait(volume.pin(child, ForkPoint::Checkpoint("v2".into())));
    let mut fork = world.copy_of(&place, "fork");
    fork.settings.volume = child;
    fork_pinned(&fork.db(), child).unwrap();
    world.wait(volume.delete_checkpoint("v1"));
    world.wait(volume.reclaim());
    assert_eq!(world.segments(place.settings.volume).len(), 1);
    let report = check(&world, &fork.db(), Depth::Data);
    assert_eq!(report.errors, Vec::<String>::new());
    // What it can see is missed.
    let key = &world.segments(place.settings.volume)[0];
    world.runtime.block_on(world.store.inner.delete(key)).unwrap();
    assert_eq!(
        check(&world, &fork.db(), Depth::Data).errors,
        [format!("{key} is not in the bucket")]
    );
}

#[test]
fn what_is_encrypted_is_whole_with_its_key_and_told_without_it() {
    let world = World::new();
    let mut place = world.place("volume");
    let key = SecretKey::from_bytes([7; 32].into());
    place.settings.keys = Keys::none().with(place.settings.volume, key);
    let volume = world.open(&place);
    world.write(&volume, 0, 40, 1);
    world.wait(volume.close());
    let store: Arc<dyn ObjectStore> = world.store.clone();
    let keys = place.settings.keys.clone();
    let report = world.wait(fsck(&place.db(), store, keys, Depth::Data));
    assert_eq!(report.errors, Vec::<String>::new());
    assert_eq!(check(&world, &place.db(), Depth::Heads).errors.len(), 1);
}
