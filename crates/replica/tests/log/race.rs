//! Two writers, lost answers, dropped calls.

use crate::{
    faulty::{Fault, Faulty},
    world::{World, own, put},
};
use object_store::{ObjectStore, local::LocalFileSystem};
use replica::{Error, Opened};
use std::{sync::Arc, time::Duration};

#[tokio::test]
async fn of_two_writers_exactly_one_wins() {
    let directory = tempfile::tempdir().expect("a directory");
    let bucket: Arc<dyn ObjectStore> =
        Arc::new(LocalFileSystem::new_with_prefix(directory.path()).expect("a local bucket"));
    for round in 0..10 {
        let world = World::on(Arc::new(object_store::prefix::PrefixStore::new(
            bucket.clone(),
            format!("round-{round}"),
        )));
        let first = world.db("a.db");
        let (mut shipper, _) = world.open(&first, 1).await;
        let owner = own(&first);
        put(&owner, 1, 1000);
        shipper.ship().await.expect("a ship");
        let second = world.db("b.db");
        let (mut rival, opened) = world.open(&second, 2).await;
        assert_eq!(opened, Opened::Restored);
        let rival_owner = own(&second);
        put(&owner, 2, 1000);
        put(&rival_owner, 3, 1000);
        let (one, other) = tokio::join!(shipper.ship(), rival.ship());
        let winner = match (one, other) {
            (Ok(_), Err(Error::Fenced { txid: 2 })) => &first,
            (Err(Error::Fenced { txid: 2 }), Ok(_)) => &second,
            ended => panic!("{ended:?}"),
        };
        world.assert_restores_to(winner).await;
        let loser = if winner == &first { &mut rival } else { &mut shipper };
        assert!(
            matches!(loser.ship().await, Err(Error::Fenced { txid: 2 })),
            "fenced once, fenced for good"
        );
    }
}

#[tokio::test]
async fn the_same_commit_on_two_nodes_is_still_two_writers() {
    let world = World::new();
    let (first, second) = (world.db("a.db"), world.db("b.db"));
    let (mut shipper, _) = world.open(&first, 1).await;
    let owner = own(&first);
    shipper.ship().await.expect("a ship");
    let (mut rival, _) = world.open(&second, 1).await;
    let rival_owner = own(&second);
    put(&owner, 1, 1000);
    put(&rival_owner, 1, 1000);
    shipper.ship().await.expect("a ship");
    assert!(matches!(rival.ship().await, Err(Error::Fenced { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_not_a_fence() {
    let store = Arc::new(Faulty::new());
    let world = World::on(store.clone());
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db, 1).await;
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
    let (mut shipper, _) = world.open(&db, 1).await;
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
    let (mut shipper, _) = world.open(&db, 1).await;
    let owner = own(&db);
    put(&owner, 1, 1000);
    store.script([Fault::Hang]);
    let hung = tokio::time::timeout(Duration::from_secs(60), shipper.ship()).await;
    assert!(hung.is_err(), "the answer never comes");
    put(&owner, 2, 1000);
    assert_eq!(shipper.ship().await.expect("a ship").txid, 2);
    world.assert_restores_to(&db).await;
}
