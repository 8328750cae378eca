//! The database file: creating, opening and forking it.

use super::{signed, unsigned};
use crate::{
    VolumeId,
    error::{Attempt as _, Error, ErrorKind},
    journal::Position,
};
use rusqlite::{Connection, OptionalExtension as _, config::DbConfig, params};
use std::{path::Path, time::Duration};

/// The version of the tables and of the packed entries.
const FORMAT: u32 = 1;

/// How long a statement waits for whoever ships the log to be done with the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

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
             PRAGMA synchronous = NORMAL; PRAGMA cache_size = -2048;",
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
            "INSERT INTO volume VALUES (1, ?1, ?2, 0, 0, 1, 1, NULL, 1, 0, 0)",
            params![FORMAT, volume.0.as_bytes()],
        )
        .attempt("name the map")?;
    transaction.commit().attempt("create the map")
}

fn identity(connection: &Connection) -> Result<VolumeId, Error> {
    let (format, id): (u32, [u8; 16]) = connection
        .query_row("SELECT format, id FROM volume", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .attempt("read whose map it is")?;
    if format != FORMAT {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("the map has format {format}; this build knows {FORMAT}"),
        ));
    }
    Ok(VolumeId(base::__uuid::Uuid::from_bytes(id)))
}

pub(super) fn position(connection: &Connection) -> Result<Position, Error> {
    let (epoch, sequence): (i64, i64) = connection
        .query_row("SELECT epoch, sequence FROM volume", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .attempt("read the map's position")?;
    Ok(Position { epoch: unsigned(epoch)?, sequence: unsigned(sequence)? })
}

/// Turns a local copy of another volume's map into the start of a new volume.
///
/// The new volume has the same blocks, in segments that keep the source's prefix and are never deleted by the new volume.
/// It has no checkpoints, and its numbers begin anew. The copy must not be open elsewhere. After an error it is as before.
pub fn fork(db: &Path, target: VolumeId) -> Result<(), Error> {
    if !db.exists() {
        return Err(Error::new(ErrorKind::NotFound, format!("no map at {}", db.display())));
    }
    let mut connection = connect(db)?;
    if !has_tables(&connection)? {
        return Err(Error::new(ErrorKind::Invalid, format!("{} is not a map", db.display())));
    }
    identity(&connection)?;
    let transaction = connection.transaction().attempt("fork the map")?;
    transaction.execute("DELETE FROM checkpoint", []).attempt("drop the source's checkpoints")?;
    transaction
        .execute(
            "UPDATE volume SET id = ?1, epoch = 0, sequence = ?2, segment_next = 1, base = NULL, checkpoint_next = 1",
            params![target.0.as_bytes(), signed(0)],
        )
        .attempt("name the fork")?;
    transaction.commit().attempt("fork the map")?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))
        .attempt("put the fork into one file")
}
