//! A bucket, a directory of databases, and their owner.

use object_store::{ObjectStore, memory::InMemory, path::Path as Key};
use replica::{Log, Opened, Shipper};
use rusqlite::{Connection, params};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// Everything that one test has.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) store: Arc<dyn ObjectStore>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::on(Arc::new(InMemory::new()))
    }

    pub(crate) fn on(store: Arc<dyn ObjectStore>) -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), store }
    }

    pub(crate) fn log(&self) -> Log {
        Log::new(self.store.clone(), Key::from("volumes/one/log"))
    }

    /// A place for a database, which may not exist.
    pub(crate) fn db(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) async fn open(&self, db: &Path) -> (Shipper, Opened) {
        self.log().open(db).await.expect("the log opens")
    }

    /// Restores the log and asserts that it is this database with all its commits, byte for byte.
    pub(crate) async fn assert_restores_to(&self, db: &Path) {
        let restored = self.db("restored.db");
        self.log()
            .restore(&restored)
            .await
            .expect("the log restores")
            .expect("the log is not empty");
        assert_eq!(check(&restored), "ok");
        let expected = whole(db);
        let restored = fs::read(restored).expect("the restored database");
        assert!(
            restored == expected,
            "restored {} bytes, expected {}",
            restored.len(),
            expected.len()
        );
    }
}

/// Opens a database as its owner does.
pub(crate) fn own(db: &Path) -> Connection {
    let connection = Connection::open(db).expect("a database");
    connection.pragma_update(None, "page_size", 4096).expect("a page size");
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .expect("WAL mode");
    assert_eq!(mode, "wal");
    connection.pragma_update(None, "wal_autocheckpoint", 0).expect("no checkpoints");
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)")
        .expect("a table");
    connection
}

pub(crate) fn put(connection: &Connection, key: i64, bytes: usize) {
    let value: Vec<u8> =
        (0..bytes).map(|i| (i as i64 * key * 31 + (i as i64 >> 3)) as u8).collect();
    connection
        .execute("INSERT OR REPLACE INTO t VALUES (?1, ?2)", params![key, value])
        .expect("an insert");
}

pub(crate) fn count(db: &Path) -> i64 {
    let connection = Connection::open(db).expect("a database");
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("a count")
}

/// Copies a database as a crash of its owner would leave it.
pub(crate) fn crash_copy(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-position", "-writer"] {
        let (from, to) = (beside(from, suffix), beside(to, suffix));
        if from.is_file() {
            fs::copy(from, to).expect("a copy");
        } else if to.exists() {
            fs::remove_file(to).expect("an old copy");
        }
    }
}

pub(crate) fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut path = db.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// The bytes of the database with all commits of its WAL.
pub(crate) fn whole(db: &Path) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("copy.db");
    crash_copy(db, &copy);
    let connection = Connection::open(&copy).expect("the copy");
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("a checkpoint");
    drop(connection);
    fs::read(copy).expect("the copy")
}

/// What SQLite says of a database.
pub(crate) fn check(db: &Path) -> String {
    let connection = Connection::open(db).expect("a database");
    connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check")
}
