//! Every way in which a local database and its log can come apart, and come together again.

use crate::world::{World, beside, count, crash_copy, own, put, whole};
use replica::Opened;
use rusqlite::Connection;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Ships one commit of a new database, then lets the caller go on with owner and shipper.
async fn shipped(world: &World) -> (PathBuf, Connection, replica::Shipper) {
    let db = world.db("a.db");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    for key in 0..10 {
        put(&owner, key, 3000);
    }
    shipper.ship().await.expect("a ship");
    (db, owner, shipper)
}

/// Opens what a crash has left, as another process would; then ships and asserts that nothing is lost.
async fn assert_comes_back(world: &World, db: &Path, expected: Opened, rows: i64) {
    let before = world.log().head().await.expect("a head");
    let (mut shipper, opened) = world.open(db).await;
    assert_eq!(opened, expected);
    let owner = own(db);
    let read: i64 =
        owner.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("a count");
    assert_eq!(read, rows);
    shipper.ship().await.expect("a ship");
    let between = shipper.position().txid.cast_signed();
    put(&owner, 1000 + between, 10);
    let after = shipper.ship().await.expect("a ship");
    assert_eq!(after.txid.cast_signed(), between + 1);
    assert!(after.txid > before.expect("a log").txid);
    world.assert_restores_to(db).await;
}

#[tokio::test]
async fn killed_with_all_shipped() {
    let world = World::new();
    let (db, _owner, _shipper) = shipped(&world).await;
    let left = world.db("left.db");
    crash_copy(&db, &left);
    assert_comes_back(&world, &left, Opened::Continued, 10).await;
}

#[tokio::test]
async fn killed_with_commits_that_were_not_shipped() {
    let world = World::new();
    let (db, owner, _shipper) = shipped(&world).await;
    put(&owner, 10, 3000);
    put(&owner, 11, 3000);
    let left = world.db("left.db");
    crash_copy(&db, &left);
    assert_comes_back(&world, &left, Opened::Continued, 12).await;
}

#[tokio::test]
async fn killed_between_the_request_and_the_note() {
    let world = World::new();
    let (db, owner, mut shipper) = shipped(&world).await;
    let note = fs::read(beside(&db, "-position")).expect("a note");
    put(&owner, 10, 3000);
    shipper.ship().await.expect("a ship");
    put(&owner, 11, 3000);
    let left = world.db("left.db");
    crash_copy(&db, &left);
    fs::write(beside(&left, "-position"), note).expect("an old note");
    assert_comes_back(&world, &left, Opened::Continued, 12).await;
}

#[tokio::test]
async fn killed_after_a_checkpoint() {
    let world = World::new();
    let (db, owner, mut shipper) = shipped(&world).await;
    for key in 10..25 {
        put(&owner, key, 400_000);
        shipper.ship().await.expect("a ship");
        if fs::metadata(beside(&db, "-wal")).expect("a WAL").len() == 0 {
            break;
        }
    }
    assert_eq!(fs::metadata(beside(&db, "-wal")).expect("a WAL").len(), 0, "a checkpoint");
    let rows = count(&db);
    let left = world.db("left.db");
    crash_copy(&db, &left);
    put(&owner, 100, 3000);
    let later = world.db("later.db");
    crash_copy(&db, &later);
    assert_comes_back(&world, &later, Opened::Continued, rows + 1).await;
    // What was left first is behind now.
    assert_comes_back(&world, &left, Opened::Restored, rows + 2).await;
}

#[tokio::test]
async fn closed_cleanly_leaves_no_wal() {
    let world = World::new();
    let (db, owner, shipper) = shipped(&world).await;
    drop(shipper);
    drop(owner);
    assert!(!beside(&db, "-wal").exists());
    assert_comes_back(&world, &db, Opened::Continued, 10).await;
}

#[tokio::test]
async fn closed_by_the_owner_first_keeps_the_commits_in_the_wal() {
    let world = World::new();
    let (db, owner, shipper) = shipped(&world).await;
    put(&owner, 10, 3000);
    drop(owner);
    drop(shipper);
    assert!(fs::metadata(beside(&db, "-wal")).expect("a WAL").len() > 0);
    assert_comes_back(&world, &db, Opened::Continued, 11).await;
}

#[tokio::test]
async fn commits_that_a_foreign_checkpoint_has_moved_are_kept() {
    let world = World::new();
    let (db, owner, shipper) = shipped(&world).await;
    put(&owner, 10, 3000);
    drop(shipper);
    drop(owner);
    assert!(!beside(&db, "-wal").exists());
    assert_comes_back(&world, &db, Opened::Continued, 11).await;
}

#[tokio::test]
async fn commits_that_a_foreign_checkpoint_has_moved_are_lost_when_another_node_went_on() {
    let world = World::new();
    let (db, owner, shipper) = shipped(&world).await;
    put(&owner, 10, 3000);
    drop(shipper);
    drop(owner);
    let other = world.db("other.db");
    assert_comes_back(&world, &other, Opened::Restored, 10).await;
    assert_comes_back(&world, &db, Opened::Restored, 11).await;
    assert_eq!(count(&beside(&db, ".stale")), 11);
}

#[tokio::test]
async fn a_local_database_that_is_behind_is_set_aside() {
    let world = World::new();
    let (db, owner, mut shipper) = shipped(&world).await;
    let left = world.db("left.db");
    crash_copy(&db, &left);
    put(&owner, 10, 3000);
    shipper.ship().await.expect("a ship");
    assert_comes_back(&world, &left, Opened::Restored, 11).await;
    assert_eq!(count(&beside(&left, ".stale")), 10);
}

#[tokio::test]
async fn a_local_database_that_diverged_is_set_aside_with_its_commits() {
    let world = World::new();
    let (db, owner, mut shipper) = shipped(&world).await;
    let left = world.db("left.db");
    crash_copy(&db, &left);
    let diverged = own(&left);
    put(&diverged, 20, 1000);
    put(&diverged, 21, 1000);
    put(&owner, 10, 3000);
    shipper.ship().await.expect("a ship");
    let crashed = world.db("crashed.db");
    crash_copy(&left, &crashed);
    assert_comes_back(&world, &crashed, Opened::Restored, 11).await;
    assert_eq!(count(&beside(&crashed, ".stale")), 12);
}

#[tokio::test]
async fn only_one_database_is_set_aside() {
    let world = World::new();
    let (db, owner, shipper) = shipped(&world).await;
    drop((shipper, owner));
    let left = world.db("left.db");
    for key in 10..13 {
        let (mut shipper, _) = world.open(&db).await;
        let owner = own(&db);
        crash_copy(&db, &left);
        put(&owner, key, 3000);
        shipper.ship().await.expect("a ship");
        assert_eq!(world.open(&left).await.1, Opened::Restored);
        assert_eq!(count(&beside(&left, ".stale")), key);
    }
}

#[tokio::test]
async fn a_missing_database_is_restored_whatever_else_is_left() {
    let world = World::new();
    let (db, _owner, _shipper) = shipped(&world).await;
    let left = world.db("left.db");
    crash_copy(&db, &left);
    fs::remove_file(&left).expect("the database");
    assert_comes_back(&world, &left, Opened::Restored, 10).await;
}

#[tokio::test]
async fn a_damaged_database_is_restored() {
    let world = World::new();
    let (db, owner, shipper) = shipped(&world).await;
    drop(shipper);
    drop(owner);
    let good = fs::read(&db).expect("the database");
    for damaged in [good[..5000].to_vec(), good[..8192].to_vec(), Vec::new(), vec![7; 40_000], {
        let mut flipped = good.clone();
        flipped[10_000] ^= 1;
        flipped[4096] ^= 0xff;
        flipped
    }] {
        let left = world.db("left.db");
        fs::write(&left, damaged).expect("a damaged copy");
        assert_eq!(world.open(&left).await.1, Opened::Restored);
        assert_eq!(whole(&left), good);
    }
}

#[tokio::test]
async fn a_torn_wal_is_restored_when_it_lacks_what_was_shipped() {
    let world = World::new();
    let (db, owner, mut shipper) = shipped(&world).await;
    put(&owner, 10, 3000);
    shipper.ship().await.expect("a ship");
    put(&owner, 11, 3000);
    let left = world.db("left.db");
    crash_copy(&db, &left);
    let wal = fs::read(beside(&left, "-wal")).expect("a WAL");
    // Without its last frame, only what was not shipped is missing.
    fs::write(beside(&left, "-wal"), &wal[..wal.len() - 1]).expect("a torn WAL");
    assert_eq!(world.open(&left).await.1, Opened::Continued);
    assert_eq!(count(&left), 11);
    crash_copy(&db, &left);
    fs::remove_file(beside(&left, "-position")).expect("a note does not survive a loss of power");
    fs::write(beside(&left, "-wal"), &wal[..wal.len() / 2]).expect("a torn WAL");
    assert_eq!(world.open(&left).await.1, Opened::Restored);
    assert_eq!(count(&left), 11);
}

#[tokio::test]
async fn a_note_that_cannot_be_written_fails_nothing() {
    let world = World::new();
    let db = world.db("a.db");
    fs::create_dir(beside(&db, "-position")).expect("something in the way");
    let (mut shipper, _) = world.open(&db).await;
    let owner = own(&db);
    for key in 0..3 {
        put(&owner, key, 3000);
        assert_eq!(shipper.ship().await.expect("a ship").txid, key.cast_unsigned() + 1);
    }
    world.assert_restores_to(&db).await;
}
