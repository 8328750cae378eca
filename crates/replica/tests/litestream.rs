//! The stock `litestream` restores our log.

use object_store::{local::LocalFileSystem, path::Path as Key};
use replica::{At, Layout, Log, Settings};
use rusqlite::{Connection, params};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

/// `make setup` installs it.
fn litestream() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the workspace is two above");
    let path = root.join(".venv/bin/litestream");
    assert!(path.exists(), "{} is missing: run make setup", path.display());
    path
}

#[tokio::test]
async fn litestream_restores_the_latest_and_each_earlier_transaction() {
    let directory = tempfile::tempdir().expect("a directory");
    let bucket = directory.path().join("bucket");
    fs::create_dir(&bucket).expect("a bucket");
    let store = Arc::new(LocalFileSystem::new_with_prefix(&bucket).expect("a local bucket"));
    let log = Log::with_layout(store, Key::from("log"), Layout::Directory);
    let db = directory.path().join("a.db");
    let (mut shipper, _) = log.open(&db).await.expect("a log");
    let owner = Connection::open(&db).expect("a database");
    owner
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
        .expect("a table");
    let mut states = Vec::new();
    for step in 0..12 {
        match step {
            5 => owner.execute_batch("DELETE FROM t WHERE k > 100").expect("a delete"),
            6 => owner.execute_batch("VACUUM").expect("a vacuum"),
            _ => insert(&owner, step),
        }
        let position = shipper.ship().await.expect("a ship");
        let ours = directory.path().join(format!("ours-{}.db", position.txid));
        log.restore(&ours).await.expect("a restore").expect("a log");
        states.push((position.txid, fs::read(&ours).expect("our restore")));
    }
    let url = format!("file://{}", bucket.join("log").display());
    assert_restores(&url, &[], &states.last().expect("a state").1, directory.path());
    for (txid, expected) in &states {
        assert_restores(&url, &["-txid", &format!("{txid:016x}")], expected, directory.path());
    }
}

/// Minutes of writing with claims in between, so that there are files of several levels and files without pages.
#[tokio::test(start_paused = true)]
async fn litestream_restores_over_merged_levels_and_claims() {
    let directory = tempfile::tempdir().expect("a directory");
    let bucket = directory.path().join("bucket");
    fs::create_dir(&bucket).expect("a bucket");
    let store = Arc::new(LocalFileSystem::new_with_prefix(&bucket).expect("a local bucket"));
    let intervals = [10, 40, 3600].map(Duration::from_secs);
    let settings = Settings { compaction_intervals: intervals, ..Settings::default() };
    let log = Log::with_layout(store, Key::from("log"), Layout::Directory).with_settings(settings);
    let db = directory.path().join("a.db");
    let mut times = Vec::new();
    for session in 0..3 {
        let (mut shipper, _) = log.open(&db).await.expect("a log");
        let owner = Connection::open(&db).expect("a database");
        owner
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v)")
            .expect("a table");
        for second in 0..60 {
            insert(&owner, session * 3 + second % 5);
            if (session, second) == (1, 35) {
                owner.execute_batch("DELETE FROM t WHERE k > 60; VACUUM").expect("a vacuum");
            }
            shipper.ship().await.expect("a ship");
            tokio::time::advance(Duration::from_secs(1)).await;
            if second == 45 {
                times.push(pause().await);
            }
        }
        drop(owner);
    }
    for level in ["0", "1", "2"] {
        let files = fs::read_dir(bucket.join("log/ltx").join(level)).expect("a level");
        assert!(files.count() > 0, "level {level}");
    }
    let ours = directory.path().join("ours.db");
    let url = format!("file://{}", bucket.join("log").display());
    for txid in [1, 11, 30, 60, 61, 62, 63, 96, 97, 98, 121, 122, 123, 150, 182] {
        log.restore_at(&ours, At::Txid(txid)).await.expect("a restore");
        let expected = fs::read(&ours).expect("our restore");
        assert_restores(&url, &["-txid", &format!("{txid:016x}")], &expected, directory.path());
    }
    for time_ms in times {
        log.restore_at(&ours, At::Time(time_ms)).await.expect("a restore");
        let expected = fs::read(&ours).expect("our restore");
        let time = jiff::Timestamp::from_millisecond(time_ms.cast_signed()).expect("a time");
        assert_restores(&url, &["-timestamp", &format!("{time:.3}")], &expected, directory.path());
    }
    log.restore(&ours).await.expect("a restore").expect("a log");
    assert_restores(&url, &[], &fs::read(&ours).expect("our restore"), directory.path());
}

/// A log whose objects are named as in a bucket, copied out of it.
#[tokio::test]
async fn litestream_restores_a_copy_by_number_and_by_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let bucket = directory.path().join("bucket");
    fs::create_dir(&bucket).expect("a bucket");
    let store = Arc::new(LocalFileSystem::new_with_prefix(&bucket).expect("a local bucket"));
    let log = Log::new(store, Key::from("volumes/v/log"));
    let db = directory.path().join("a.db");
    let (mut shipper, _) = log.open(&db).await.expect("a log");
    let owner = Connection::open(&db).expect("a database");
    owner
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
        .expect("a table");
    let mut between = 0;
    for step in 0..4 {
        insert(&owner, step);
        shipper.ship().await.expect("a ship");
        if step == 1 {
            between = pause().await;
        }
    }
    let copy = directory.path().join("copy");
    assert_eq!(log.copy_to(&copy).await.expect("a copy"), 4);
    let (url, ours) = (format!("file://{}", copy.display()), directory.path().join("ours.db"));
    log.restore(&ours).await.expect("a restore").expect("a log");
    assert_restores(&url, &[], &fs::read(&ours).expect("our restore"), directory.path());
    log.restore_at(&ours, At::Txid(2)).await.expect("a restore");
    let expected = fs::read(&ours).expect("our restore");
    let time = jiff::Timestamp::from_millisecond(between.cast_signed()).expect("a time");
    assert_restores(&url, &["-txid", &format!("{:016x}", 2)], &expected, directory.path());
    assert_restores(&url, &["-timestamp", &format!("{time:.3}")], &expected, directory.path());

    // A file that is not whole is no part of a copy.
    let head = bucket.join("volumes/v/log/0000/0000000000000004-0000000000000004.ltx");
    let mut bytes = fs::read(&head).expect("the head");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&head, bytes).expect("damage");
    log.copy_to(&directory.path().join("again")).await.expect_err("a damaged log");
}

/// A time that no file has, neither in its header nor as its time of change, which is what counts in a directory.
async fn pause() -> u64 {
    let now = || jiff::Timestamp::now().as_millisecond().cast_unsigned();
    let start = now();
    while now() < start + 20 {
        tokio::task::yield_now().await;
    }
    start + 10
}

fn insert(owner: &Connection, step: i64) {
    for key in 0..50 {
        let value: Vec<u8> =
            (0..2000).map(|i: i64| ((i * (step + 3) * (key + 1)) >> 2) as u8).collect();
        owner
            .execute("INSERT OR REPLACE INTO t VALUES (?1, ?2)", params![step * 40 + key, value])
            .expect("an insert");
    }
}

fn assert_restores(url: &str, options: &[&str], expected: &[u8], directory: &Path) {
    let output = directory.join("theirs.db");
    let run = Command::new(litestream())
        .arg("restore")
        .args(["-integrity-check", "full", "-o"])
        .arg(&output)
        .args(options)
        .arg(url)
        // With this set, litestream 0.5.17 fails before it does anything.
        .env_remove("AWS_CA_BUNDLE")
        .output()
        .expect("litestream runs");
    assert!(run.status.success(), "{options:?}: {}", String::from_utf8_lossy(&run.stderr));
    let restored = fs::read(&output).expect("their restore");
    assert!(
        restored == expected,
        "{options:?}: {} bytes, expected {}",
        restored.len(),
        expected.len()
    );
    for suffix in ["", "-wal", "-shm"] {
        let mut path = output.as_os_str().to_owned();
        path.push(suffix);
        drop(fs::remove_file(path));
    }
}
