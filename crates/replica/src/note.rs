//! What this machine remembers beside a database: the position of the log that the local file was last known to hold.
//!
//! Nothing depends on a note while the local file holds, at some commit, exactly what the head of the log holds. It
//! decides one case only: a checkpoint that this crate did not start moved commits that were not shipped yet from the WAL
//! into the database file, so that no state equals the head any more. Then a note that names the head says that the file
//! descends from it. A note is believed only under the boot that wrote it: after a loss of power it could be newer than
//! the file.

use crate::{Position, local::sidecar};
use std::{fs, io, path::Path};
use tracing::warn;

const SUFFIX: &str = "-position";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Remembers the position. Not synchronized to the disk, as it means nothing after a loss of power. When it cannot be
/// written, an older one stays, which decides nothing.
/// While a claim is on its way there are two: the log may turn out to end before it or with it.
pub(crate) fn write(db: &Path, positions: &[Position]) {
    let new = sidecar(db, "-position.new");
    let text: io::Result<String> = positions.iter().map(|position| line(*position)).collect();
    let written = text.and_then(|text| {
        fs::write(&new, text)?;
        fs::rename(new, sidecar(db, SUFFIX))
    });
    if let Err(error) = written {
        warn!(db = %db.display(), error = &error as &dyn std::error::Error, "position of the database is not noted");
    }
}

/// Forgets, before the database is replaced.
pub(crate) fn remove(db: &Path) -> io::Result<()> {
    crate::local::remove(&sidecar(db, SUFFIX))
}

/// Whether the database was at this position, under this boot.
pub(crate) fn names(db: &Path, position: Position) -> io::Result<bool> {
    match fs::read_to_string(sidecar(db, SUFFIX)) {
        Ok(note) => {
            let line = line(position)?;
            Ok(note.split_inclusive('\n').any(|noted| noted == line))
        }
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn line(position: Position) -> io::Result<String> {
    let boot = fs::read_to_string(BOOT_ID)?;
    Ok(format!("{:016x} {:016x} {}\n", position.txid, position.checksum, boot.trim_end()))
}
