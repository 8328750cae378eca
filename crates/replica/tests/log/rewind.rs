//! Going back in time over all levels, and checking whole logs.

use crate::world::{World, beside, check, own, put};
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path as Key};
use replica::{At, Error, Log, Opened, Problem, Report, Settings};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// The database after each of some transactions, and the time that it states.
type States = BTreeMap<u64, (u64, Vec<u8>)>;

/// Writes for some minutes, opening the log anew now and then, and notes some of the states on the way.
async fn history(world: &World, log: &Log, seconds: u32) -> States {
    let db = world.db("a.db");
    let at = world.db("at.db");
    let (mut shipper, mut owner) = (None, None);
    let mut states = States::new();
    for second in 0..seconds {
        if second % 97 == 0 {
            drop((shipper.take(), owner.take()));
            let (opened, how) = log.open(&db).await.expect("a log");
            assert_eq!(how, if second == 0 { Opened::New } else { Opened::Continued });
            (shipper, owner) = (Some(opened), Some(own(&db)));
        }
        let (Some(shipper), Some(owner)) = (&mut shipper, &owner) else { unreachable!("opened") };
        match second {
            150 => owner.execute_batch("DELETE FROM t WHERE k < 60").expect("a delete"),
            151 => owner.execute_batch("VACUUM").expect("a vacuum"),
            _ => put(owner, i64::from(second % 90), (second as usize * 37) % 9000),
        }
        let position = shipper.ship().await.expect("a ship");
        if second % 19 == 0 || (148..154).contains(&second) {
            // The owner goes on; it is not disturbed by somebody who reads.
            let restored = log.restore_at(&at, At::Txid(position.txid)).await.expect("a restore");
            assert_eq!(restored.position.txid, position.txid);
            states.insert(position.txid, (restored.time_ms, fs::read(&at).expect("a database")));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    states
}

/// A log whose sessions of a minute and a half are long enough for two levels.
fn quick(world: &World) -> Log {
    let intervals = [10, 40, 3600].map(Duration::from_secs);
    world.log().with_settings(Settings { compaction_intervals: intervals, ..Settings::default() })
}

async fn keys(world: &World) -> Vec<Key> {
    let keys = world.store.list(None).map_ok(|meta| meta.location);
    keys.try_collect().await.expect("a list")
}

/// Whether a file of a higher level holds this transaction.
fn covered(keys: &[Key], txid: u64) -> bool {
    keys.iter().any(|key| {
        let name = key.filename().expect("a name").trim_end_matches(".ltx");
        let (min, max) = name.split_once('-').expect("two numbers");
        let number = |digits: &str| u64::from_str_radix(digits, 16).expect("a number");
        !key.as_ref().contains("/0000/") && (number(min)..=number(max)).contains(&txid)
    })
}

/// How many files each level has.
async fn levels(world: &World) -> BTreeMap<String, usize> {
    let mut levels = BTreeMap::new();
    for key in keys(world).await {
        let level = key.as_ref().rsplit('/').nth(1).expect("a level").to_owned();
        *levels.entry(level).or_default() += 1;
    }
    levels
}

#[tokio::test(start_paused = true)]
async fn every_instant_is_reached_over_all_levels() {
    let world = World::new();
    let log = quick(&world);
    let states = history(&world, &log, 700).await;
    let levels = levels(&world).await;
    assert!(levels["0001"] >= 30 && levels["0002"] >= 14, "{levels:?}");
    assert_eq!(levels["0000"], 700 + 7);
    let at = world.db("at.db");
    for (txid, (time_ms, expected)) in &states {
        for back in [At::Txid(*txid), At::Time(*time_ms)] {
            let restored = log.restore_at(&at, back).await.expect("a restore");
            assert_eq!((restored.position.txid, restored.time_ms), (*txid, *time_ms), "{back:?}");
            assert!(fs::read(&at).expect("a database") == *expected, "{back:?}");
        }
        let before = log.restore_at(&at, At::Time(time_ms - 1)).await;
        match before {
            Ok(restored) => assert_eq!(restored.position.txid, txid - 1),
            Err(error) => assert!(*txid == 1 && matches!(error, Error::Unreachable { .. })),
        }
    }
    assert_eq!(check(&at), "ok");
    let reach = log.reach().await.expect("a list").expect("a log");
    assert_eq!((reach.oldest_txid, reach.newest_txid), (1, 707));
    assert_eq!((reach.oldest_ms, reach.grain), (states[&1].0, Duration::ZERO));
    let newest = log.restore_at(&at, At::Time(u64::MAX)).await.expect("a restore");
    assert_eq!((newest.position.txid, newest.time_ms), (707, reach.newest_ms));
    for missing in [0, 708] {
        let error = log.restore_at(&at, At::Txid(missing)).await.expect_err("not there");
        assert!(matches!(error, Error::Unreachable { at: At::Txid(_) }), "{error:?}");
    }
    world.assert_restores_to(&world.db("a.db")).await;
}

#[tokio::test(start_paused = true)]
async fn merged_levels_stand_in_for_transactions_that_were_deleted() {
    let world = World::new();
    let log = quick(&world);
    let states = history(&world, &log, 400).await;
    let transaction =
        |txid: u64| Key::from(format!("volumes/one/log/0000/{txid:016x}-{txid:016x}.ltx"));
    let keys = keys(&world).await;
    for txid in (100..250).filter(|txid| covered(&keys, *txid)) {
        world.store.delete(&transaction(txid)).await.expect("a delete");
    }
    let reach = log.reach().await.expect("a list").expect("a log");
    assert_eq!(reach.oldest_txid, 1);
    assert!(reach.grain < Duration::from_secs(3600));
    let at = world.db("at.db");
    let mut reached = 0;
    for (txid, (_, expected)) in &states {
        match log.restore_at(&at, At::Txid(*txid)).await {
            Ok(_) => {
                assert!(fs::read(&at).expect("a database") == *expected);
                reached += 1;
            }
            Err(error) => {
                // What follows within the same merged file has no beginning either.
                assert!((100..290).contains(txid), "{txid}: {error:?}");
                assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
            }
        }
        let (time_ms, _) = states[txid];
        let restored = log.restore_at(&at, At::Time(time_ms)).await.expect("an earlier instant");
        assert!(restored.position.txid <= *txid && restored.position.txid + 50 > *txid);
    }
    assert!(reached > states.len() / 2);
    world.assert_restores_to(&world.db("a.db")).await;
    let (_, opened) = log.open(&world.db("b.db")).await.expect("a log");
    assert_eq!(opened, Opened::Restored);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_begins_the_chain_anew() {
    let world = World::new();
    let settings = Settings { snapshot_interval: Duration::ZERO, ..Settings::default() };
    let log = world.log().with_settings(settings);
    let states = history(&world, &log, 30).await;
    let levels = levels(&world).await;
    assert_eq!((levels.len(), levels["0009"]), (2, 29), "{levels:?}");
    let at = world.db("at.db");
    for (txid, (_, expected)) in &states {
        log.restore_at(&at, At::Txid(*txid)).await.expect("a restore");
        assert!(fs::read(&at).expect("a database") == *expected);
    }
    assert!(log.verify().await.expect("a bucket").is_sound());
    fs::remove_file(world.db("a.db")).expect("the database");
    assert_eq!(log.open(&world.db("a.db")).await.expect("a log").1, Opened::Restored);
}

#[tokio::test(start_paused = true)]
async fn a_whole_log_is_verified_and_every_kind_of_damage_found() {
    let world = World::new();
    let log = world.log();
    history(&world, &log, 340).await;
    let report = log.verify().await.expect("a bucket");
    assert!(report.is_sound(), "{report:?}");
    let levels = levels(&world).await;
    assert_eq!(report.files as usize, levels.values().sum::<usize>());
    assert_eq!((report.claims, report.epoch, report.states, report.head_txid), (4, 4, 343, 343));
    assert!(report.pages > 0 && report.bytes > 100_000, "{report:?}");

    let key = |level: u8, min: u64, max: u64| {
        Key::from(format!("volumes/one/log/{level:04x}/{min:016x}-{max:016x}.ltx"))
    };
    let mut damaged = key(0, 50, 50);
    let good = world.store.get(&damaged).await.expect("a file").bytes().await.expect("bytes");
    let found = async |bytes: Option<Vec<u8>>, key: &Key| -> Report {
        let before = world.store.get(key).await.ok();
        let before = match before {
            Some(got) => Some(got.bytes().await.expect("bytes")),
            None => None,
        };
        match bytes {
            Some(bytes) => drop(world.store.put(key, bytes.into()).await.expect("a put")),
            None => world.store.delete(key).await.expect("a delete"),
        }
        let report = log.verify().await.expect("a bucket");
        match before {
            Some(before) => drop(world.store.put(key, before.into()).await.expect("a put")),
            None => world.store.delete(key).await.expect("a delete"),
        }
        assert!(!report.is_sound());
        report
    };
    let report = found(Some(good[..good.len() - 1].to_vec()), &damaged).await;
    assert!(matches!(report.problems[0], Problem::File { .. }), "{report:?}");
    let other = world.store.get(&key(0, 49, 49)).await.expect("a file").bytes().await.expect("it");
    let report = found(Some(other.to_vec()), &damaged).await;
    assert!(matches!(report.problems[0], Problem::Misplaced { .. }), "{report:?}");
    damaged = key(0, 343, 343);
    let report = found(Some(good.to_vec()), &damaged).await;
    assert!(matches!(report.problems[0], Problem::Misplaced { .. }), "{report:?}");
    let beyond = key(0, 345, 345);
    let report = found(Some(good.to_vec()), &beyond).await;
    assert!(report.problems.contains(&Problem::Gap { txid: 344 }), "{report:?}");
    assert!(log.verify().await.expect("a bucket").is_sound());
}

#[tokio::test]
async fn restoring_elsewhere_leaves_only_the_database() {
    let world = World::new();
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    put(&own(&db), 1, 100);
    shipper.ship().await.expect("a ship");
    let at = world.db("at.db");
    world.log().restore_at(&at, At::Txid(1)).await.expect("a restore");
    let left = |suffix: &str| Path::new(&beside(&at, suffix)).exists();
    assert_eq!(
        ["", "-wal", "-position", "-writer", ".restoring"].map(left),
        [true, false, false, false, false]
    );
    let none = Log::new(world.store.clone(), Key::from("nothing"));
    assert_eq!(none.reach().await.expect("a list"), None);
    assert!(matches!(none.restore_at(&at, At::Time(0)).await, Err(Error::Unreachable { .. })));
    assert!(none.verify().await.expect("a list").is_sound());
}
