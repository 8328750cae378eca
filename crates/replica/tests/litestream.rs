//! The stock `litestream` restores our log.

use object_store::{local::LocalFileSystem, path::Path as Key};
use replica::{Layout, Log};
use rusqlite::{Connection, params};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
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
    let (mut shipper, _) = log.open(&db, 7).await.expect("a log");
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
