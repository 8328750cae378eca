//! The local files of a database: the file itself and what lies beside it.

use crate::{
    error::{Error, local},
    note,
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// What SQLite keeps beside a database. A database must never be replaced while these belong to the old one.
const SQLITE_SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What is appended to the name of a database that is set aside; one is kept.
const STALE: &str = ".stale";

/// Where [`Log::open`](crate::Log::open) puts a database that the log does not continue.
#[must_use]
pub fn set_aside_path(db: &Path) -> PathBuf {
    sidecar(db, STALE)
}

/// A file beside the database.
pub(crate) fn sidecar(db: &Path, suffix: &str) -> PathBuf {
    let mut path = db.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Removes a file that may be absent.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts a finished and synchronized file in the place of the database.
///
/// The sidecars go first: a crash in between leaves an old database without its last commits, which is recognized as such.
/// The other order could apply an old WAL to the new database.
pub(crate) fn replace(db: &Path, new: &Path) -> Result<(), Error> {
    note::remove(db).map_err(local("remove the note of", db))?;
    for suffix in SQLITE_SIDECARS {
        let path = sidecar(db, suffix);
        remove(&path).map_err(local("remove", &path))?;
    }
    fs::rename(new, db).map_err(local("replace", db))?;
    sync_directory(db).map_err(local("synchronize the directory of", db))
}

/// Renames a database that the log does not continue, with its WAL, so that both can still be looked at. Returns where it
/// is now; `None` when there is none.
pub(crate) fn set_aside(db: &Path) -> Result<Option<PathBuf>, Error> {
    if !db.try_exists().map_err(local("look for", db))? {
        return Ok(None);
    }
    note::remove(db).map_err(local("remove the note of", db))?;
    let stale = set_aside_path(db);
    for suffix in SQLITE_SIDECARS {
        let path = sidecar(&stale, suffix);
        remove(&path).map_err(local("remove", &path))?;
    }
    for suffix in ["", "-wal"] {
        let from = sidecar(db, suffix);
        match fs::rename(&from, sidecar(&stale, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(local("set aside", &from))?,
        }
    }
    Ok(Some(stale))
}

/// Makes renames beside the database durable.
pub(crate) fn sync_directory(db: &Path) -> io::Result<()> {
    let parent =
        db.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
