//! The database file: creating, opening and upgrading it.

use super::unsigned;
use crate::{
    VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    journal::Position,
};
use base::__uuid::Uuid;
use rusqlite::{Connection, OptionalExtension as _, config::DbConfig};
use std::{path::Path, time::Duration};

/// The version of the tables and of the packed entries.
const FORMAT: u32 = 3;

/// The oldest version that an open upgrades.
const FORMAT_OLDEST: u32 = 1;

/// How long a statement waits for whoever ships the log to be done with the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The tables as format 1 had them. [`UPGRADES`] make the others of them.
const TABLES: &str = "
    CREATE TABLE volume (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        format INTEGER NOT NULL,
        id BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        segment_next INTEGER NOT NULL,
        head INTEGER NOT NULL,
        base TEXT,
        checkpoint_next INTEGER NOT NULL,
        auto_second INTEGER NOT NULL,
        auto_count INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE layer (id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER) STRICT;
    CREATE TABLE checkpoint (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        layer INTEGER NOT NULL UNIQUE,
        created INTEGER NOT NULL,
        comment TEXT NOT NULL,
        auto INTEGER NOT NULL,
        source TEXT
    ) STRICT;
    CREATE TABLE segment (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        origin BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        data_offset INTEGER NOT NULL,
        runs BLOB NOT NULL,
        blocks INTEGER NOT NULL,
        refs INTEGER NOT NULL CHECK (refs >= 0),
        dead INTEGER
    ) STRICT;
    CREATE INDEX segment_dead ON segment (dead) WHERE dead IS NOT NULL;
    CREATE TABLE map (key INTEGER PRIMARY KEY, entries BLOB NOT NULL) STRICT;
";

/// What each format adds to the one before, from format 2 on.
///
/// - 2: pins; the instant before which segments were deleted; who wrote a comment; when a segment was made; and indexes on
///   the rows of a layer, on garbage with what it takes, and on segments that are less than half in use.
/// - 3: what the last wake read.
const UPGRADES: [&str; 2] = [
    "
    CREATE TABLE pin (child BLOB PRIMARY KEY, layer INTEGER NOT NULL, created INTEGER NOT NULL) STRICT;
    ALTER TABLE volume ADD COLUMN deleted_until INTEGER;
    ALTER TABLE checkpoint ADD COLUMN commented INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE segment ADD COLUMN created INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX map_layer ON map (key & 4294967295);
    DROP INDEX segment_dead;
    CREATE INDEX segment_dead ON segment (dead, origin, bytes) WHERE dead IS NOT NULL;
    CREATE INDEX segment_sparse ON segment (created) WHERE refs > 0 AND blocks > refs * 2;
    UPDATE volume SET format = 2;
    ",
    "
    CREATE TABLE wake (one INTEGER PRIMARY KEY CHECK (one = 1), extents BLOB NOT NULL) STRICT;
    UPDATE volume SET format = 3;
    ",
];

/// A connection with this crate's settings.
pub(super) fn connect(path: &Path) -> Result<Connection, Error> {
    let connection = Connection::open(path).attempt("open the map")?;
    connection.busy_timeout(BUSY_TIMEOUT).attempt("set the map's busy timeout")?;
    // Whoever ships the log decides when the WAL goes into the file, at the end too.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .attempt("keep the WAL at close")?;
    connection
        .execute_batch(
            "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
             PRAGMA synchronous = NORMAL; PRAGMA cache_size = -2048; PRAGMA trusted_schema = OFF;",
        )
        .attempt("set up the map's connection")?;
    Ok(connection)
}

/// The writing connection of a volume's map, which is created if the file is new or empty.
pub(super) fn open(path: &Path, volume: VolumeId, epoch: u64) -> Result<Connection, Error> {
    let mut connection = connect(path)?;
    if !has_tables(&connection)? {
        create(&mut connection, volume)?;
    }
    let found = identity(&connection)?;
    upgrade(&mut connection)?;
    if found != volume {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("the map is of {found}, not of {volume}"),
        ));
    }
    let newest = position(&connection)?.epoch;
    if newest > epoch {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the map is of the newer epoch {newest}"),
        ));
    }
    Ok(connection)
}

fn has_tables(connection: &Connection) -> Result<bool, Error> {
    connection
        .query_row("SELECT 1 FROM sqlite_schema WHERE name = 'volume'", [], |_row| Ok(()))
        .optional()
        .attempt("look for the map's tables")
        .map(|found| found.is_some())
}

fn create(connection: &mut Connection, volume: VolumeId) -> Result<(), Error> {
    let transaction = connection.transaction().attempt("create the map")?;
    transaction.execute_batch(TABLES).attempt("create the map's tables")?;
    transaction
        .execute("INSERT INTO layer (id, parent) VALUES (1, NULL)", [])
        .attempt("create the first layer")?;
    transaction
        .execute(
            "INSERT INTO volume VALUES (1, 1, ?1, 0, 0, 1, 1, NULL, 1, 0, 0)",
            [volume.0.as_bytes()],
        )
        .attempt("name the map")?;
    for upgrade in UPGRADES {
        transaction.execute_batch(upgrade).attempt("create the map's tables")?;
    }
    transaction.commit().attempt("create the map")
}

/// Brings a map of an older format to this one. Segments that format 1 deleted left no trace, so nothing from before the
/// upgrade counts as whole.
pub(super) fn upgrade(connection: &mut Connection) -> Result<(), Error> {
    let found = format(connection)?;
    if found == FORMAT {
        return Ok(());
    }
    let transaction = connection.transaction().attempt("upgrade the map")?;
    for upgrade in UPGRADES.iter().skip((found - FORMAT_OLDEST) as usize) {
        transaction.execute_batch(upgrade).attempt("upgrade the map")?;
    }
    if found == FORMAT_OLDEST {
        let now = jiff::Timestamp::now().as_millisecond();
        transaction
            .execute("UPDATE volume SET deleted_until = ?1", [now])
            .attempt("upgrade the map")?;
    }
    transaction.commit().attempt("upgrade the map")
}

pub(super) fn format(connection: &Connection) -> Result<u32, Error> {
    connection
        .query_row("SELECT format FROM volume", [], |row| row.get(0))
        .attempt("read the map's format")
}

/// Whose map it is, if this build knows its format.
pub(super) fn identity(connection: &Connection) -> Result<VolumeId, Error> {
    let format = format(connection)?;
    if !(FORMAT_OLDEST..=FORMAT).contains(&format) {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("the map has format {format}; this build knows up to {FORMAT}"),
        ));
    }
    let id: [u8; 16] = connection
        .query_row("SELECT id FROM volume", [], |row| row.get(0))
        .attempt("read whose map it is")?;
    Ok(VolumeId(Uuid::from_bytes(id)))
}

/// An existing map of any known format.
pub(super) fn existing(path: &Path) -> Result<Connection, Error> {
    if !path.exists() {
        return Err(Error::new(ErrorKind::NotFound, format!("no map at {}", path.display())));
    }
    let connection = connect(path)?;
    if !has_tables(&connection)? {
        return Err(Error::new(ErrorKind::Invalid, format!("{} is not a map", path.display())));
    }
    identity(&connection)?;
    Ok(connection)
}

pub(super) fn position(connection: &Connection) -> Result<Position, Error> {
    let (epoch, sequence): (i64, i64) = connection
        .query_row("SELECT epoch, sequence FROM volume", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .attempt("read the map's position")?;
    Ok(Position { epoch: unsigned(epoch)?, sequence: unsigned(sequence)? })
}

#[cfg(test)]
mod tests {
    use super::{FORMAT, TABLES, connect, format, open};
    use crate::{VolumeId, map::Map};
    use rusqlite::params;

    #[test]
    fn a_map_of_format_1_is_upgraded_with_all_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map.db");
        let volume = VolumeId::now();
        let connection = connect(&path).unwrap();
        connection.execute_batch(TABLES).unwrap();
        connection
            .execute_batch("INSERT INTO layer (id, parent) VALUES (1, NULL), (2, 1)")
            .unwrap();
        connection
            .execute(
                "INSERT INTO volume VALUES (1, 1, ?1, 4, 7, 9, 2, 'v1', 2, 0, 0)",
                params![volume.0.as_bytes()],
            )
            .unwrap();
        connection
            .execute_batch("INSERT INTO checkpoint VALUES (1, 'v1', 1, 5, 'words', 0, NULL)")
            .unwrap();
        drop(connection);
        assert_eq!(format(&open(&path, volume, 4).unwrap()).unwrap(), FORMAT);
        let map = Map::open(&path, volume, 4).unwrap();
        let [row] = &map.checkpoints().unwrap()[..] else { panic!("one checkpoint") };
        assert_eq!((row.id.as_str(), row.comment.as_str(), row.commented), ("v1", "words", false));
        assert_eq!((map.position().unwrap().sequence, map.segment_next().unwrap()), (7, 9));
        assert_eq!(map.pins().unwrap(), []);
        assert!(map.deleted_until().unwrap().is_some(), "what was deleted before is not known");
    }
}
