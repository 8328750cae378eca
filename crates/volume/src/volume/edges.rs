//! The edges of a volume, one by one: a bucket that is away, damage, a full disk, garbage, forks, epochs.

use crate::{
    Acknowledge, BLOCK_BYTES, Durability, Error, ErrorKind, Keys, SecretKey, State, Volume,
    VolumeId, fork,
    testing::world::{Place, World, noise, wait_until},
};
use object_store::ObjectStoreExt as _;
use std::{
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

fn read(volume: &Volume, offset: u64, blocks: usize) -> Result<Vec<u8>, Error> {
    let mut data = vec![7; blocks * BLOCK_BYTES];
    volume.read(offset, &mut data).map(|()| data)
}

#[test]
fn a_bucket_that_is_away_blocks_writers_at_the_bound_and_loses_nothing() {
    let world = World::new();
    let mut place = world.place("volume");
    place.settings.tail_bytes_max = 4 << 20;
    let volume = world.open(&place);
    world.store.away.store(true, Ordering::SeqCst);
    let writer = {
        let volume = volume.clone();
        std::thread::spawn(move || {
            (0..32u64).for_each(|number| volume.write(number << 20, &noise(number, 256)).unwrap());
        })
    };
    wait_until("the writer waits", || volume.lag().bytes >= 4 << 20);
    assert!(volume.lag().bytes < 6 << 20, "{:?}", volume.lag());
    wait_until("it says so", || matches!(volume.state(), State::Blocked(_)));
    let State::Blocked(trouble) = volume.state() else { panic!("{:?}", volume.state()) };
    assert!(trouble.error.unwrap().contains("put a segment"));
    assert!(!writer.is_finished());
    assert!(read(&volume, 0, 256).unwrap() == noise(0, 256), "reads of the tail go on");
    volume.flush().unwrap();
    world.store.away.store(false, Ordering::SeqCst);
    writer.join().unwrap();
    world.seal(&volume);
    assert_eq!(volume.lag().bytes, 0);
    assert!(volume.lag().seconds == 0.0);
    assert_eq!(volume.state(), State::Settled);
    let counters = volume.counters();
    assert!(counters.seals >= 32 && counters.traffic.put_bytes > 32 << 20, "{counters:?}");
    assert!(counters.blocked_ms > 0, "{counters:?}");
    for number in 0..32 {
        assert!(read(&volume, number << 20, 256).unwrap() == noise(number, 256), "{number}");
    }
}

#[test]
fn a_full_disk_makes_writers_wait_and_loses_nothing() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts a tmpfs: run it as root");
    let world = World::new();
    let place = world.place("small");
    std::fs::create_dir_all(&place.settings.dir).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("puck-test", &place.settings.dir, "tmpfs", flags, c"size=16m").unwrap();
    let mounted = Mounted(place.settings.dir.clone());
    let volume = world.open(&place);
    volume.write(0, &noise(0, 1)).unwrap();
    world.seal(&volume);
    world.store.away.store(true, Ordering::SeqCst);
    // As many writers as there are writes: each is in the journal before it waits, until the disk is really full.
    let writers: Vec<_> = (0..48u64)
        .map(|number| {
            let volume = volume.clone();
            std::thread::spawn(move || volume.write(number << 20, &noise(number, 128)).unwrap())
        })
        .collect();
    wait_until("the disk is full", || volume.lag().bytes >= 6 << 20);
    assert!(matches!(volume.state(), State::Blocked(_)), "{:?}", volume.state());
    assert!(writers.iter().any(|writer| !writer.is_finished()));
    volume.flush().unwrap();
    world.store.away.store(false, Ordering::SeqCst);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    world.seal(&volume);
    assert_eq!(volume.state(), State::Settled);
    assert!(volume.counters().blocked_ms > 0);
    for number in 0..48 {
        assert!(read(&volume, number << 20, 128).unwrap() == noise(number, 128), "{number}");
    }
    world.crash(volume);
    drop(mounted);
}

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Threads of a volume that has crashed close its files a moment later.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty())
        {
            if Instant::now() > deadline {
                // A test that has failed already says so itself.
                assert!(std::thread::panicking(), "unmount {}: {error}", self.0.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_damaged_cache_is_a_miss_and_damage_in_the_bucket_an_error() {
    let world = World::new();
    let place = world.place("volume");
    let volume = world.open(&place);
    volume.write(0, &noise(1, 64)).unwrap();
    world.seal(&volume);
    let gets = world.store.gets.load(Ordering::SeqCst);
    assert!(read(&volume, 0, 64).unwrap() == noise(1, 64));
    assert_eq!(world.store.gets.load(Ordering::SeqCst), gets, "the cache has what was sealed");

    let cache =
        std::fs::OpenOptions::new().write(true).open(place.settings.dir.join("cache.img")).unwrap();
    cache.write_all_at(&[1, 2, 3], 5 * BLOCK_BYTES as u64 + 17).unwrap();
    assert!(read(&volume, 0, 64).unwrap() == noise(1, 64));
    assert!(world.store.gets.load(Ordering::SeqCst) > gets);
    let gets = world.store.gets.load(Ordering::SeqCst);
    assert!(read(&volume, 0, 64).unwrap() == noise(1, 64));
    assert_eq!(world.store.gets.load(Ordering::SeqCst), gets, "and is whole again");

    let [key] = &world.segments(place.settings.volume)[..] else { panic!("one segment") };
    let mut bytes = world
        .runtime
        .block_on(async { world.store.inner.get(key).await?.bytes().await })
        .unwrap()
        .to_vec();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    world.runtime.block_on(world.store.inner.put(key, bytes.into())).unwrap();
    cache.set_len(0).unwrap();
    cache.set_len(crate::VOLUME_BYTES).unwrap();
    assert!(
        read(&volume, 0, 16).unwrap() == noise(1, 64)[..16 * BLOCK_BYTES],
        "other runs are whole"
    );
    assert_eq!(read(&volume, 48 * BLOCK_BYTES as u64, 16).unwrap_err().kind(), ErrorKind::Corrupt);
    world.runtime.block_on(world.store.inner.delete(key)).unwrap();
    assert_eq!(read(&volume, 20 * BLOCK_BYTES as u64, 16).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_nothing_names_leaves_the_bucket_and_what_a_checkpoint_names_stays() {
    let world = World::new();
    let mut place = world.place("volume");
    place.settings.cache_bytes_max = 0;
    let volume = world.open(&place);
    let id = place.settings.volume;
    volume.write(0, &noise(1, 256)).unwrap();
    let first = world.checkpoint(&volume, false);
    assert_eq!(first.id, "v1");
    let kept = world.segments(id);
    volume.write(0, &noise(2, 256)).unwrap();
    world.seal(&volume);
    volume.write(0, &noise(3, 256)).unwrap();
    world.seal(&volume);
    wait_until("the second write's segment is gone", || world.segments(id).len() == 2);
    assert!(kept.iter().all(|key| world.segments(id).contains(key)));

    let second = world.checkpoint(&volume, false);
    assert_eq!((second.id.as_str(), second.source.as_deref()), ("v2", Some("v1")));
    assert_eq!(second.history, ["v1"]);
    let conflict = world.runtime.block_on(volume.delete_checkpoint("v2")).unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    world.runtime.block_on(volume.delete_checkpoint("v1")).unwrap();
    assert_eq!(
        world.runtime.block_on(volume.delete_checkpoint("v1")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        world.runtime.block_on(volume.restore("v1")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    wait_until("the first checkpoint's segment is gone", || world.segments(id).len() == 1);
    assert!(read(&volume, 0, 256).unwrap() == noise(3, 256));

    volume.discard(0, crate::VOLUME_BYTES).unwrap();
    assert_eq!(world.checkpoint(&volume, false).id, "v3");
    world.runtime.block_on(volume.delete_checkpoint("v2")).unwrap();
    wait_until("a trimmed volume has nothing in the bucket", || world.segments(id).is_empty());
    assert!(read(&volume, 0, 256).unwrap().iter().all(|byte| *byte == 0));
    wait_until("the map knows", || volume.stats().unwrap().stored_bytes == 0);
    let stats = volume.stats().unwrap();
    assert_eq!((stats.logical_bytes, stats.live_bytes), (0, 0), "{stats:?}");
}

#[test]
fn a_fork_shares_segments_and_never_deletes_them() {
    let world = World::new();
    let source = world.place("source");
    let volume = world.open(&source);
    volume.write(0, &noise(1, 64)).unwrap();
    world.checkpoint(&volume, false);
    volume.write(1 << 20, &noise(2, 64)).unwrap();
    world.seal(&volume);
    let segments = world.segments(source.settings.volume);

    let mut target = world.place("target");
    target.ship = source.ship.branch(target.settings.dir.join("map.db"));
    target.ship.restore();
    let db = target.settings.dir.join("map.db");
    fork(&db, target.settings.volume).unwrap();
    let forked = world.open(&target);
    assert!(read(&forked, 0, 64).unwrap() == noise(1, 64));
    assert!(read(&forked, 1 << 20, 64).unwrap() == noise(2, 64));
    assert_eq!(forked.checkpoints().unwrap(), []);
    assert_eq!(forked.current_base().unwrap(), None);
    forked.discard(0, crate::VOLUME_BYTES).unwrap();
    forked.write(0, &noise(3, 16)).unwrap();
    assert_eq!(world.checkpoint(&forked, false).id, "v1");
    wait_until("the fork has merged", || forked.stats().unwrap().layers == 2);
    forked.write(0, &noise(4, 16)).unwrap();
    world.seal(&forked);
    assert_eq!(world.segments(source.settings.volume), segments);
    assert!(read(&volume, 0, 64).unwrap() == noise(1, 64));

    assert_eq!(
        fork(&db.with_file_name("nothing.db"), VolumeId::now()).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    std::fs::write(db.with_file_name("junk.db"), vec![9; 8192]).unwrap();
    assert!(fork(&db.with_file_name("junk.db"), VolumeId::now()).is_err());
}

#[test]
fn a_journal_that_another_epoch_overtook_is_set_aside_and_not_replayed() {
    let world = World::new();
    let here = world.place("here");
    let volume = world.open(&here);
    volume.write(0, &noise(1, 1)).unwrap();
    world.seal(&volume);
    world.store.away.store(true, Ordering::SeqCst);
    volume.write(0, &noise(2, 1)).unwrap();
    volume.flush().unwrap();
    world.crash(volume);
    world.store.away.store(false, Ordering::SeqCst);

    // Another worker takes over from the bucket, and writes.
    let mut there =
        Place { ship: here.ship.branch(world.dir.path().join("there/map.db")), ..here.clone() };
    there.settings.dir = world.dir.path().join("there");
    there.settings.epoch = 2;
    there.ship.restore();
    let volume = world.open(&there);
    assert!(read(&volume, 0, 1).unwrap() == noise(1, 1));
    volume.write(4096, &noise(3, 1)).unwrap();
    world.runtime.block_on(volume.close()).unwrap();

    // The first worker gets it back.
    let mut back = Place { ship: there.ship.branch(here.settings.dir.join("map.db")), ..here };
    back.ship.restore();
    back.settings.epoch = 1;
    assert_eq!(world.try_open(&back).err().unwrap().kind(), ErrorKind::Conflict, "an old epoch");
    back.settings.epoch = 3;
    let volume = world.open(&back);
    assert!(volume.set_aside().unwrap().exists());
    assert!(read(&volume, 0, 1).unwrap() == noise(1, 1));
    assert!(read(&volume, 4096, 1).unwrap() == noise(3, 1));
    world.runtime.block_on(volume.close()).unwrap();

    back.settings.volume = VolumeId::now();
    assert_eq!(
        world.try_open(&back).err().unwrap().kind(),
        ErrorKind::Invalid,
        "another volume's map"
    );
}

#[test]
fn a_journal_from_before_another_claim_is_set_aside_though_the_map_has_not_moved() {
    let world = World::new();
    let mut place = world.place("volume");
    let volume = world.open(&place);
    volume.write(0, &noise(1, 1)).unwrap();
    world.seal(&volume);
    world.store.away.store(true, Ordering::SeqCst);
    volume.write(0, &noise(2, 1)).unwrap();
    volume.flush().unwrap();
    world.crash(volume);
    world.store.away.store(false, Ordering::SeqCst);

    // Another worker has had the volume as epoch 2 and has written nothing.
    place.settings.epoch = 3;
    place.settings.epoch_first = 3;
    let volume = world.open(&place);
    assert!(volume.set_aside().unwrap().exists());
    assert!(read(&volume, 0, 1).unwrap() == noise(1, 1));
}

#[test]
fn a_key_that_a_dead_process_took_is_skipped_and_its_object_removed() {
    let world = World::new();
    let place = world.place("volume");
    let name = crate::segment::SegmentName { volume: place.settings.volume, epoch: 1, sequence: 1 };
    world.runtime.block_on(world.store.put(&name.key(), "from before".into())).unwrap();
    let volume = world.open(&place);
    volume.write(0, &noise(1, 4)).unwrap();
    world.seal(&volume);
    wait_until("the orphan is gone", || {
        !world.segments(place.settings.volume).contains(&name.key())
    });
    assert_eq!(world.segments(place.settings.volume).len(), 1);
    assert!(read(&volume, 0, 4).unwrap() == noise(1, 4));
}

#[test]
fn a_cold_sequential_read_takes_few_requests() {
    let world = World::new();
    let mut place = world.place("volume");
    place.settings.seal_bytes = 8 << 20;
    let volume = world.open(&place);
    let data = noise(5, 8192);
    volume.write(0, &data).unwrap();
    world.seal(&volume);
    world.crash(volume);
    std::fs::remove_dir_all(&place.settings.dir).unwrap();
    place.ship.restore();
    place.settings.epoch = 2;
    let volume = world.open(&place);
    let before = world.store.gets.load(Ordering::SeqCst);
    for (number, part) in (0..).zip(data.chunks(32 * BLOCK_BYTES)) {
        assert!(read(&volume, number * 32 * BLOCK_BYTES as u64, 32).unwrap() == part);
    }
    let gets = world.store.gets.load(Ordering::SeqCst) - before;
    assert!(gets <= 40, "{gets} requests for 32 MiB");
}

#[test]
fn what_was_read_ahead_is_of_use_although_something_else_was_sealed_meanwhile() {
    let world = World::new();
    let mut place = world.place("volume");
    let volume = world.open(&place);
    volume.write(0, &noise(5, 160)).unwrap();
    world.seal(&volume);
    world.crash(volume);
    std::fs::remove_dir_all(&place.settings.dir).unwrap();
    place.ship.restore();
    place.settings.epoch = 2;
    let volume = world.open(&place);
    let has = |block| move |volume: &Volume| volume.shared.cache.has(block);
    read(&volume, 0, 16).unwrap();
    wait_until("the first blocks ahead are there", || has(31)(&volume));
    let closed = world.store.gets_pass.blocking_write();
    // All of it is there, but what comes next is asked for.
    read(&volume, 16 * BLOCK_BYTES as u64, 16).unwrap();
    volume.write(1 << 30, &noise(6, 1)).unwrap();
    world.seal(&volume);
    drop(closed);
    wait_until("what was asked for before the seal is there", || has(159)(&volume));
    let before = world.store.gets.load(Ordering::SeqCst);
    assert!(read(&volume, 0, 160).unwrap() == noise(5, 160));
    assert_eq!(world.store.gets.load(Ordering::SeqCst), before);
}

#[test]
fn the_cache_survives_a_clean_close_and_a_restore_where_nothing_differs() {
    let world = World::new();
    let mut place = world.place("volume");
    let volume = world.open(&place);
    volume.write(0, &noise(1, 64)).unwrap();
    world.checkpoint(&volume, false);
    volume.write(1 << 20, &noise(2, 16)).unwrap();
    world.seal(&volume);
    world.runtime.block_on(volume.close()).unwrap();
    place.settings.epoch = 2;
    let volume = world.open(&place);
    let gets = world.store.gets.load(Ordering::SeqCst);
    assert!(read(&volume, 0, 64).unwrap() == noise(1, 64));
    world.runtime.block_on(volume.restore("v1")).unwrap();
    assert!(read(&volume, 0, 64).unwrap() == noise(1, 64));
    assert!(read(&volume, 1 << 20, 16).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(world.store.gets.load(Ordering::SeqCst), gets);
    assert!(!place.settings.dir.join("cache.index").exists());
}

#[test]
fn many_threads_write_read_and_flush_at_once() {
    let world = World::new();
    let mut place = world.place("volume");
    place.settings.seal_interval = Duration::from_millis(5);
    place.settings.cache_bytes_max = 1 << 20;
    let volume = world.open(&place);
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let volume = &volume;
            scope.spawn(move || {
                for round in 0..60u64 {
                    let offset = (thread << 24) + (round % 7) * 65536;
                    volume.write(offset, &noise(thread * 1000 + round, 16)).unwrap();
                    if round % 5 == 0 {
                        volume.flush().unwrap();
                    }
                    assert!(read(volume, offset, 16).unwrap() == noise(thread * 1000 + round, 16));
                    let earlier = round.saturating_sub(6);
                    let offset = (thread << 24) + (earlier % 7) * 65536;
                    assert!(
                        read(volume, offset, 16).unwrap() == noise(thread * 1000 + earlier, 16)
                    );
                }
            });
        }
    });
    world.seal(&volume);
}

#[test]
fn a_strict_flush_is_in_the_bucket_and_waits_for_it() {
    let world = World::new();
    let mut place = world.place("volume");
    place.settings.durability = Durability::Strict;
    place.settings.seal_interval = Duration::from_secs(3600);
    let volume = world.open(&place);
    volume.flush().unwrap();
    assert_eq!(volume.counters().seals, 0, "there is nothing to flush");
    for number in 0..5 {
        volume.write(number << 20, &noise(number, 1)).unwrap();
        volume.flush().unwrap();
        assert_eq!(volume.lag().bytes, 0);
    }
    world.store.away.store(true, Ordering::SeqCst);
    volume.write(0, &noise(7, 1)).unwrap();
    let flush = {
        let volume = volume.clone();
        std::thread::spawn(move || volume.flush())
    };
    wait_until("the bucket is away", || matches!(volume.state(), State::Behind(_)));
    assert!(read(&volume, 0, 1).unwrap() == noise(7, 1), "reads go on");
    assert!(!flush.is_finished());
    volume.set_durability(Durability::Default);
    volume.flush().unwrap();
    assert!(!flush.is_finished(), "what was asked strictly stays strict");
    world.store.away.store(false, Ordering::SeqCst);
    flush.join().unwrap().unwrap();
    // The bucket alone has it.
    world.crash(volume);
    std::fs::remove_dir_all(&place.settings.dir).unwrap();
    place.ship.restore();
    place.settings.epoch = 2;
    let volume = world.open(&place);
    assert!(read(&volume, 0, 1).unwrap() == noise(7, 1));
}

#[test]
fn strict_flushes_that_wait_together_share_segments() {
    let world = World::new();
    let mut place = world.place("volume");
    place.settings.durability = Durability::Strict;
    let volume = world.open(&place);
    std::thread::scope(|scope| {
        for thread in 0..16u64 {
            let volume = &volume;
            scope.spawn(move || {
                for round in 0..20u64 {
                    volume.write((thread << 24) + (round << 12), &noise(round, 1)).unwrap();
                    volume.flush().unwrap();
                }
            });
        }
    });
    let counters = volume.counters();
    assert!(counters.seals < 320 / 2, "{counters:?}");
    assert!(counters.ships < counters.seals + 2, "{counters:?}");
}

#[test]
fn a_flush_waits_for_the_right_to_acknowledge_it() {
    let world = World::new();
    let mut place = world.place("volume");
    let held = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = held.clone();
    place.settings.acknowledge = Some(Acknowledge::new(move || asked.load(Ordering::SeqCst)));
    let volume = world.open(&place);
    volume.write(0, &noise(1, 1)).unwrap();
    volume.flush().unwrap();
    held.store(false, Ordering::SeqCst);
    let flush = {
        let volume = volume.clone();
        std::thread::spawn(move || volume.flush())
    };
    wait_until("the flush waits", || matches!(volume.state(), State::Blocked(_)));
    volume.write(0, &noise(2, 1)).unwrap();
    assert!(!flush.is_finished());
    held.store(true, Ordering::SeqCst);
    flush.join().unwrap().unwrap();
    assert!(!matches!(volume.state(), State::Blocked(_)));
}

#[test]
fn unaligned_and_outside_ranges_are_invalid() {
    let world = World::new();
    let volume = world.open(&world.place("volume"));
    for (offset, length) in [
        (1, 4096),
        (0, 100),
        (crate::VOLUME_BYTES, 4096),
        (crate::VOLUME_BYTES - 4096, 8192),
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

#[test]
fn a_wrong_key_and_a_missing_one_are_errors_that_say_so() {
    let world = World::new();
    let mut place = world.place("volume");
    let id = place.settings.volume;
    let keys = |byte| Keys::none().with(id, SecretKey::from_bytes([byte; 32].into()));
    place.settings.keys = keys(1);
    place.settings.cache_bytes_max = 0;
    let volume = world.open(&place);
    volume.write(0, &noise(1, 20)).unwrap();
    world.seal(&volume);
    assert!(read(&volume, 0, 20).unwrap() == noise(1, 20));
    world.runtime.block_on(volume.close()).unwrap();
    for (keys, said) in [(Keys::none(), "key is not here"), (keys(2), "does not decrypt")] {
        place.settings.keys = keys;
        let volume = world.open(&place);
        let error = read(&volume, 0, 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let mut causes = Vec::new();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        assert!(causes.join(": ").contains(said), "{causes:?}");
        world.runtime.block_on(volume.close()).unwrap();
    }
    place.settings.keys = keys(1);
    let volume = world.open(&place);
    assert!(read(&volume, 0, 20).unwrap() == noise(1, 20));
}
