//! What an overtaken epoch had and the log never saw becomes a checkpoint.
//!
//! A worker that was cut off, and comes back after another has taken the volume over, has two things that the log lacks: its
//! map, with commits that it could not ship, and its journal, with writes that it had not sealed. Both were set aside, as
//! replaying them would tear the volume. Together they are the disk as that worker had it. This builds that state as a
//! layer beside the live ones and puts a checkpoint on it: nothing live changes, and whoever misses something finds it.
//!
//! It runs in the background after an open. Only when the log has the checkpoint are the two files removed, and the
//! checkpoint's comment tells a later process that it is there; so a death at any point makes it begin anew or end.
//!
//! Segments of the overtaken epoch are in the bucket unless somebody removed them; if one is not there, the files stay, and
//! the log of this process says why.

use crate::{
    Checkpoint,
    checkpoint::frozen_layer,
    error::{Attempt as _, Error, ErrorKind},
    failpoint::Point,
    journal,
    map::{NewRow, OldMap, SealedBatch},
    rewind::check,
    seal::{blocking, prepare, ship_until_done},
    tail::Tail,
    volume::Shared,
};
use jiff::Timestamp;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// What a journal that was set aside is called, with the time in milliseconds behind it.
pub(crate) const JOURNAL_ASIDE: &str = "journal-aside-";

/// Makes checkpoints of what was set aside, as far as it can be read.
pub(crate) async fn run(shared: Arc<Shared>) {
    let Some(map) = shared.settings.overtaken_map.clone() else { return };
    let journals = match journals(&shared.settings.dir) {
        Ok(journals) => journals,
        Err(error) => {
            tracing::warn!(%error, "cannot look for journals that were set aside");
            return;
        }
    };
    for journal in journals {
        let path = journal.display();
        match recover(&shared, &journal, &map).await {
            Ok(Recovered::Kept(checkpoint)) => {
                let Checkpoint { id, comment, .. } = checkpoint;
                tracing::warn!(%path, id, comment, "what another worker overtook is a checkpoint now");
            }
            Ok(Recovered::Nothing) => {
                tracing::info!(%path, "the bucket has all that was set aside");
            }
            Ok(Recovered::Unknown) => {
                tracing::warn!(%path, "the map that this journal continues is not here; it stays set aside");
            }
            Err(error) if error.kind() == ErrorKind::Closed => return,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(%path, error, "what was set aside cannot be recovered now; it stays");
            }
        }
    }
}

/// How a recovery ended.
enum Recovered {
    /// The checkpoint has it.
    Kept(Checkpoint),
    /// It is what the live state is.
    Nothing,
    /// The journal does not continue the map that was set aside.
    Unknown,
}

async fn recover(shared: &Arc<Shared>, journal: &Path, map: &Path) -> Result<Recovered, Error> {
    let reading = (shared.clone(), journal.to_owned(), map.to_owned());
    let found = blocking(move || {
        let (shared, journal, map) = reading;
        let settings = &shared.settings;
        let old = OldMap::open(&map, settings.volume)?;
        let position = old.position()?;
        let records = journal::read_aside(&journal, settings.volume, position)?;
        Ok(records.map(|records| {
            let mut tail = Tail::replayed(position.sequence, records, settings.seal_bytes);
            tail.freeze();
            (old, position, tail)
        }))
    });
    let Some((old, position, mut tail)) = found.await? else { return Ok(Recovered::Unknown) };
    let comment = format!(
        "recovered: what epoch {} had when another took over, set aside at {:.0}",
        position.epoch,
        aside_time(journal)?
    );
    let there = shared.map.checkpoints()?.into_iter().find(|row| row.comment == comment);
    let kept = match there {
        Some(row) => Some(row.into()),
        None => {
            check(shared, shared.map.unproven(&old)?).await?;
            let mut batches = Vec::new();
            while let Some(batch) = tail.start(Duration::ZERO) {
                let prepared = prepare(shared.clone(), batch).await;
                batches.push(SealedBatch {
                    segment: prepared.segment,
                    orphans: prepared.orphans,
                    blocks: prepared.contents.blocks,
                    zeros: prepared.contents.zeros,
                });
            }
            keep(shared, old, batches, comment).await?
        }
    };
    let (journal, map) = (journal.to_owned(), map.to_owned());
    blocking(move || remove(&journal, &map).attempt("remove what was recovered")).await?;
    Ok(kept.map_or(Recovered::Nothing, Recovered::Kept))
}

/// Puts the state into the map and the log.
async fn keep(
    shared: &Arc<Shared>,
    old: OldMap,
    batches: Vec<SealedBatch>,
    comment: String,
) -> Result<Option<Checkpoint>, Error> {
    let cut = shared.cut()?;
    shared.wait_shipped(cut.batch).await?;
    let operations = shared.operations.clone();
    // Garbage is deleted under the same lock, so what is there now stays.
    let mut ship = operations.lock().await;
    let looking = shared.clone();
    let (old, unproven) = blocking(move || {
        looking.check_open()?;
        let unproven = looking.map.unproven(&old)?;
        Ok((old, unproven))
    })
    .await?;
    check(shared, unproven).await?;
    let changing = shared.clone();
    let row = blocking(move || {
        let (layer, created) = (frozen_layer(&cut)?, Timestamp::now());
        let new = NewRow { layer, created, comment: &comment, auto: true };
        changing.map.keep_overtaken(&old, &batches, &new)
    })
    .await?;
    shared.settings.failpoints.reach(Point::MapChanged).await;
    ship_until_done(shared, ship.as_mut()).await;
    shared.changed.store(true, Ordering::Relaxed);
    shared.wake.notify_one();
    Ok(row.map(Checkpoint::from))
}

/// The journals that were set aside in a volume's directory, oldest first.
fn journals(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(JOURNAL_ASIDE) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn aside_time(journal: &Path) -> Result<Timestamp, Error> {
    let name = journal.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(JOURNAL_ASIDE)
        .and_then(|time| Timestamp::from_millisecond(time.parse().ok()?).ok())
        .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{name} names no time")))
}

/// The journal goes first: a map without one is not recovered again.
fn remove(journal: &Path, map: &Path) -> io::Result<()> {
    fs::remove_dir_all(journal)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut path = map.as_os_str().to_owned();
        path.push(suffix);
        match fs::remove_file(PathBuf::from(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
