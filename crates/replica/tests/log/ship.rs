//! What is shipped is what is restored.

use crate::{
    faulty::Faulty,
    world::{World, own, put, whole},
};
use object_store::{ObjectStoreExt, path::Path as Key};
use proptest::prelude::*;
use replica::{Error, Log, Opened, Position};
use rusqlite::params;
use std::{fs, sync::Arc};

#[tokio::test]
async fn an_empty_log_has_no_head_and_restores_nothing() {
    let world = World::new();
    let db = world.db("a.db");
    assert_eq!(world.log().head().await.expect("a list"), None);
    assert_eq!(world.log().restore(&db).await.expect("a list"), None);
    assert!(!db.exists());
    let (mut shipper, opened) = world.open(&db).await;
    assert_eq!(opened, Opened::New);
    assert_eq!(shipper.ship().await.expect("nothing to ship"), Position { txid: 0, checksum: 0 });
}

#[tokio::test]
async fn each_ship_is_one_transaction_and_none_costs_no_request() {
    let store = Arc::new(Faulty::new());
    let world = World::on(store.clone());
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    for txid in 1..20 {
        for key in 0..txid {
            put(&owner, key, 300);
        }
        let position = shipper.ship().await.expect("a ship");
        assert_eq!(position.txid, txid.cast_unsigned());
        let before = store.requests();
        assert_eq!(shipper.ship().await.expect("nothing to ship"), position);
        assert_eq!(store.requests(), before);
        assert_eq!(world.log().head().await.expect("a head"), Some(position));
    }
    world.assert_restores_to(&db).await;
}

#[tokio::test]
async fn a_database_that_existed_before_its_log_is_shipped_whole() {
    let world = World::new();
    let db = world.db("a.db");
    let owner = own(&db);
    put(&owner, 1, 50_000);
    drop(owner);
    let owner = own(&db);
    put(&owner, 2, 50_000);
    let (mut shipper, opened) = world.open(&db).await;
    assert_eq!(opened, Opened::New);
    shipper.ship().await.expect("a ship");
    world.assert_restores_to(&db).await;
}

#[tokio::test]
async fn a_database_outside_of_wal_mode_is_refused() {
    let world = World::new();
    let db = world.db("a.db");
    rusqlite::Connection::open(&db)
        .expect("a database")
        .execute_batch("CREATE TABLE t (k)")
        .expect("a table");
    let (mut shipper, _) = world.open(&db).await;
    assert!(matches!(shipper.ship().await, Err(Error::Unshippable { .. })));
}

#[tokio::test]
async fn shrinking_is_shipped() {
    let world = World::new();
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    for key in 0..100 {
        put(&owner, key, 10_000);
    }
    shipper.ship().await.expect("a ship");
    let large = whole(&db).len();
    owner.execute("DELETE FROM t WHERE k > 3", params![]).expect("a delete");
    shipper.ship().await.expect("a ship");
    owner.execute_batch("VACUUM").expect("a vacuum");
    shipper.ship().await.expect("a ship");
    world.assert_restores_to(&db).await;
    assert!(whole(&db).len() < large / 5);
    put(&owner, 200, 100_000);
    shipper.ship().await.expect("a ship");
    world.assert_restores_to(&db).await;
}

#[tokio::test]
async fn a_long_wal_is_checkpointed_and_shipping_goes_on() {
    let world = World::new();
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    let wal = crate::world::beside(&db, "-wal");
    let mut emptied = 0;
    for key in 0..40 {
        put(&owner, key % 7, 400_000);
        shipper.ship().await.expect("a ship");
        if fs::metadata(&wal).expect("a WAL").len() == 0 {
            emptied += 1;
        }
    }
    assert!(emptied >= 2, "the WAL was emptied {emptied} times");
    world.assert_restores_to(&db).await;
}

#[tokio::test]
async fn a_reader_delays_the_checkpoint_only() {
    let world = World::new();
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    put(&owner, 1, 100);
    shipper.ship().await.expect("a ship");
    let reader = rusqlite::Connection::open(&db).expect("a reader");
    reader.execute_batch("BEGIN; SELECT count(*) FROM t").expect("a read transaction");
    for key in 0..20 {
        put(&owner, key, 500_000);
        shipper.ship().await.expect("a ship");
    }
    world.assert_restores_to(&db).await;
    reader.execute_batch("COMMIT").expect("its end");
    put(&owner, 1, 100);
    shipper.ship().await.expect("a ship");
    assert_eq!(fs::metadata(crate::world::beside(&db, "-wal")).expect("a WAL").len(), 0);
    world.assert_restores_to(&db).await;
}

#[tokio::test]
async fn a_checkpoint_by_somebody_else_loses_nothing() {
    let world = World::new();
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    for key in 0..10 {
        put(&owner, key, 5000);
        shipper.ship().await.expect("a ship");
        put(&owner, key + 100, 5000);
        owner.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("a checkpoint");
        if key % 2 == 0 {
            put(&owner, key + 200, 5000);
        }
    }
    shipper.ship().await.expect("a ship");
    world.assert_restores_to(&db).await;
}

#[tokio::test]
async fn many_small_files_end_in_a_snapshot() {
    let world = World::new();
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    for key in 0..502 {
        put(&owner, key, 20);
        shipper.ship().await.expect("a ship");
    }
    let snapshot = Key::from("volumes/one/log/0009/0000000000000001-00000000000001f5.ltx");
    world.store.head(&snapshot).await.expect("a snapshot at 501");
    world.assert_restores_to(&db).await;
    drop((owner, shipper));
    assert_eq!(world.open(&db).await.1, Opened::Continued);
}

#[tokio::test]
async fn a_damaged_or_missing_file_is_refused_and_leaves_what_was_there() {
    let world = World::new();
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    for key in 0..5 {
        put(&owner, key, 2000);
        shipper.ship().await.expect("a ship");
    }
    let restored = world.db("b.db");
    fs::write(&restored, "precious").expect("a file");
    let key = |txid: u64| Key::from(format!("volumes/one/log/0000/{txid:016x}-{txid:016x}.ltx"));
    let good = world.store.get(&key(3)).await.expect("a file").bytes().await.expect("its bytes");
    let refused = async || world.log().restore(&restored).await.expect_err("a restore of damage");
    for at in (0..good.len()).step_by(good.len() / 40) {
        let mut bad = good.to_vec();
        bad[at] ^= 0x10;
        world.store.put(&key(3), bad.into()).await.expect("a put");
        match world.log().restore(&restored).await {
            Err(Error::File { .. } | Error::Misplaced { .. } | Error::Digest { .. }) => {}
            // The bit had no meaning for LZ4.
            Ok(_) => fs::write(&restored, "precious").expect("a file"),
            Err(error) => panic!("byte {at}: {error:?}"),
        }
    }
    world.store.put(&key(3), good.slice(..good.len() - 1).into()).await.expect("a put");
    assert!(matches!(refused().await, Error::File { .. }));
    let second = world.store.get(&key(2)).await.expect("a file").bytes().await.expect("its bytes");
    world.store.put(&key(3), second.into()).await.expect("a put");
    assert!(matches!(refused().await, Error::Misplaced { .. }));
    world.store.delete(&key(3)).await.expect("a delete");
    assert!(matches!(refused().await, Error::Gap { txid: 3 }));
    assert_eq!(fs::read(&restored).expect("what was there"), b"precious");
}

#[tokio::test]
async fn logs_in_one_bucket_do_not_mix() {
    let world = World::new();
    let other = Log::new(world.store.clone(), Key::from("volumes/one"));
    let (mut shipper, _) = world.open(&world.db("a.db")).await;
    let owner = own(&world.db("a.db"));
    put(&owner, 1, 10);
    shipper.ship().await.expect("a ship");
    assert_eq!(other.head().await.expect("a list"), None);
}

/// One step of an owner.
#[derive(Debug, Clone)]
enum Step {
    Delete(i64),
    Put(i64, usize),
    Reopen,
    Rollback(i64, usize),
    Ship,
    Vacuum,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..40i64, 0..20_000usize).prop_map(|(key, bytes)| Step::Put(key, bytes)),
        2 => (0..40i64).prop_map(Step::Delete),
        1 => (0..40i64, 0..200_000usize).prop_map(|(key, bytes)| Step::Rollback(key, bytes)),
        4 => Just(Step::Ship),
        1 => Just(Step::Reopen),
        1 => Just(Step::Vacuum),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_restored_byte_for_byte(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(steps));
    }
}

async fn run(steps: Vec<Step>) {
    let world = World::new();
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let mut owner = own(&db);
    let mut shipped = false;
    for step in steps {
        match step {
            Step::Delete(key) => {
                owner.execute("DELETE FROM t WHERE k = ?1", params![key]).expect("a delete");
            }
            Step::Put(key, bytes) => put(&owner, key, bytes),
            Step::Reopen => {
                drop(owner);
                drop(shipper);
                let opened;
                (shipper, opened) = world.open(&db).await;
                assert_eq!(opened, if shipped { Opened::Continued } else { Opened::New });
                owner = own(&db);
            }
            Step::Rollback(key, bytes) => {
                owner.execute_batch("PRAGMA cache_size = 5; BEGIN").expect("a transaction");
                put(&owner, key, bytes);
                owner.execute_batch("ROLLBACK").expect("its end");
            }
            Step::Ship => {
                shipper.ship().await.expect("a ship");
                shipped = true;
            }
            Step::Vacuum => owner.execute_batch("VACUUM").expect("a vacuum"),
        }
    }
    shipper.ship().await.expect("a ship");
    world.assert_restores_to(&db).await;
}
