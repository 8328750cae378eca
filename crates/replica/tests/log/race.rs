//! Two writers, lost answers, dropped calls.

use crate::{
    faulty::{Fault, Faulty},
    world::{World, beside, count, crash_copy, own, put},
};
use object_store::{ObjectStore, local::LocalFileSystem};
use replica::{Error, Opened, Settings};
use std::{fs, sync::Arc, time::Duration};
use tokio::time::Instant;

#[tokio::test]
async fn of_two_claims_exactly_one_lasts() {
    let directory = tempfile::tempdir().expect("a directory");
    let bucket: Arc<dyn ObjectStore> =
        Arc::new(LocalFileSystem::new_with_prefix(directory.path()).expect("a local bucket"));
    for round in 0..10 {
        let world = World::on(Arc::new(object_store::prefix::PrefixStore::new(
            bucket.clone(),
            format!("round-{round}"),
        )));
        let db = world.db("a.db");
        let (mut shipper, _) = world.open(&db).await;
        let owner = own(&db);
        put(&owner, 1, 1000);
        shipper.ship().await.expect("a ship");
        let log = world.log();
        let (left, right) = (world.db("b.db"), world.db("c.db"));
        let (one, other) = tokio::join!(log.open(&left), log.open(&right));
        let mut lasting = Vec::new();
        for (db, opened) in [(left, one), (right, other)] {
            match opened {
                Ok((mut shipper, Opened::Restored)) => {
                    put(&own(&db), 2, 1000);
                    match shipper.ship().await {
                        Ok(_) => lasting.push(db),
                        Err(error) => assert!(matches!(error, Error::Fenced { .. }), "{error:?}"),
                    }
                }
                Err(Error::Fenced { txid: 2 }) => {}
                ended => panic!("{ended:?}"),
            }
        }
        let [winner] = lasting.as_slice() else { panic!("{lasting:?}") };
        world.assert_restores_to(winner).await;
        put(&owner, 2, 1000);
        for _ in 0..2 {
            let fenced = shipper.ship().await.expect_err("fenced once, fenced for good");
            assert!(matches!(fenced, Error::Fenced { txid: 2 }), "{fenced:?}");
        }
        assert!(!shipper.lease().may_acknowledge());
    }
}

#[tokio::test]
async fn the_same_commit_in_two_copies_is_still_two_writers() {
    let world = World::new();
    let (first, second) = (world.db("a.db"), world.db("b.db"));
    let (mut shipper, _) = world.open(&first).await;
    let owner = own(&first);
    shipper.ship().await.expect("a ship");
    crash_copy(&first, &second);
    let (mut rival, opened) = world.open(&second).await;
    assert_eq!((opened, shipper.epoch(), rival.epoch()), (Opened::Continued, 1, 2));
    let rival_owner = own(&second);
    put(&owner, 1, 1000);
    put(&rival_owner, 1, 1000);
    assert!(matches!(shipper.ship().await, Err(Error::Fenced { txid: 2 })));
    rival.ship().await.expect("a ship");
    world.assert_restores_to(&second).await;
}

#[tokio::test]
async fn two_that_begin_a_log_are_two_writers() {
    let world = World::new();
    let (first, second) = (world.db("a.db"), world.db("b.db"));
    let (mut shipper, _) = world.open(&first).await;
    let (mut rival, opened) = world.open(&second).await;
    assert_eq!((opened, shipper.epoch(), rival.epoch()), (Opened::New, 1, 1));
    let (_owner, _rival_owner) = (own(&first), own(&second));
    rival.ship().await.expect("a ship");
    assert!(matches!(shipper.ship().await, Err(Error::Fenced { txid: 1 })));
}

#[tokio::test]
async fn epochs_grow_and_what_this_machine_wrote_alone_is_known() {
    let world = World::new();
    let (here, there) = (world.db("a.db"), world.db("b.db"));
    let epochs = async |db, expected, epoch, epoch_first| {
        let (mut shipper, opened) = world.open(db).await;
        assert_eq!(opened, expected);
        assert_eq!((shipper.epoch(), shipper.epoch_first()), (epoch, epoch_first));
        let owner = own(db);
        put(&owner, epoch.cast_signed(), 1000);
        shipper.ship().await.expect("a ship");
    };
    epochs(&here, Opened::New, 1, 1).await;
    epochs(&here, Opened::Continued, 2, 1).await;
    epochs(&there, Opened::Restored, 3, 3).await;
    // What another machine claimed without writing anything is still another machine's.
    drop(world.open(&here).await);
    epochs(&there, Opened::Restored, 5, 5).await;
    epochs(&there, Opened::Continued, 6, 5).await;
    fs::remove_file(&there).expect("the database");
    epochs(&there, Opened::Restored, 7, 5).await;
}

#[tokio::test]
async fn a_tail_from_before_another_claim_is_set_aside_though_nothing_was_written() {
    let world = World::new();
    let (here, there) = (world.db("a.db"), world.db("b.db"));
    let (mut shipper, _) = world.open(&here).await;
    let owner = own(&here);
    shipper.ship().await.expect("a ship");
    put(&owner, 1, 1000);
    drop((shipper, owner));
    assert_eq!(world.open(&there).await.1, Opened::Restored);
    assert_eq!(world.open(&here).await.1, Opened::Restored);
    assert_eq!((count(&here), count(&beside(&here, ".stale"))), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_is_lost_is_found_again() {
    let store = Arc::new(Faulty::new());
    let world = World::on(store.clone());
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    shipper.ship().await.expect("a ship");
    put(&owner, 1, 1000);
    drop((shipper, owner));
    // Answered late, then never: the process dies with its claim in the log, or perhaps not.
    for (faults, claimed) in [
        (vec![Fault::After], true),
        ([Fault::Before; 6].into_iter().chain([Fault::After]).collect(), false),
        ([Fault::Before; 7].to_vec(), false),
    ] {
        store.script(faults);
        assert_eq!(world.log().open(&db).await.is_ok(), claimed);
    }
    let (mut shipper, opened) = world.open(&db).await;
    assert_eq!((opened, shipper.epoch(), shipper.epoch_first()), (Opened::Continued, 4, 1));
    shipper.ship().await.expect("a ship");
    assert_eq!(count(&db), 1);
    world.assert_restores_to(&db).await;
}

#[tokio::test(start_paused = true)]
async fn a_claimer_waits_for_the_lease_of_another_but_not_for_its_own() {
    let world = World::new();
    let lease = Duration::from_millis(20);
    let settings = Settings { lease: Some(lease), ..Settings::default() };
    let log = world.log().with_settings(settings);
    let (here, there) = (world.db("a.db"), world.db("b.db"));
    let start = Instant::now();
    let (mut shipper, _) = log.open(&here).await.expect("a log");
    assert!(!shipper.lease().may_acknowledge(), "not claimed yet");
    let owner = own(&here);
    shipper.ship().await.expect("a ship");
    drop((shipper, owner));
    log.open(&here).await.expect("its own");
    assert!(start.elapsed() < lease);
    log.open(&there).await.expect("a log whose owner is gone");
    assert!(start.elapsed() >= lease + Duration::from_secs(1));
}

#[tokio::test]
async fn an_idle_owner_renews_its_lease_with_a_file_without_pages() {
    let world = World::new();
    let lease = Duration::from_millis(20);
    let settings = Settings { lease: Some(lease), ..Settings::default() };
    let db = world.db("a.db");
    let (mut shipper, _) = world.log().with_settings(settings).open(&db).await.expect("a log");
    let owner = own(&db);
    put(&owner, 1, 1000);
    let first = shipper.ship().await.expect("a ship");
    let deadline = Instant::now() + Duration::from_secs(10);
    while shipper.ship().await.expect("a ship") == first {
        assert!(Instant::now() < deadline, "never renewed");
    }
    assert_eq!(shipper.position().txid, 2);
    world.assert_restores_to(&db).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_not_a_fence() {
    let store = Arc::new(Faulty::new());
    let world = World::on(store.clone());
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    for (key, faults) in
        [vec![Fault::After], vec![Fault::Before], vec![Fault::Before, Fault::After, Fault::Before]]
            .into_iter()
            .enumerate()
    {
        put(&owner, key as i64, 1000);
        store.script(faults);
        assert_eq!(shipper.ship().await.expect("a ship").txid, key as u64 + 1);
    }
    world.assert_restores_to(&db).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_delays_and_nothing_is_lost_or_shipped_twice() {
    let store = Arc::new(Faulty::new());
    let world = World::on(store.clone());
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    shipper.ship().await.expect("a ship");
    for (key, last) in [(10, Fault::Before), (20, Fault::After)] {
        put(&owner, key, 1000);
        store.script([Fault::Before; 6].into_iter().chain([last]));
        assert!(matches!(shipper.ship().await, Err(Error::Bucket { action: "create", .. })));
        put(&owner, key + 1, 1000);
        shipper.ship().await.expect("a ship after the outage");
    }
    assert_eq!(shipper.position().txid, 5);
    world.assert_restores_to(&db).await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_settled_by_the_next() {
    let store = Arc::new(Faulty::new());
    let world = World::on(store.clone());
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    put(&owner, 1, 1000);
    store.script([Fault::Hang]);
    let hung = tokio::time::timeout(Duration::from_secs(60), shipper.ship()).await;
    assert!(hung.is_err(), "the answer never comes");
    put(&owner, 2, 1000);
    assert_eq!(shipper.ship().await.expect("a ship").txid, 2);
    world.assert_restores_to(&db).await;
}
