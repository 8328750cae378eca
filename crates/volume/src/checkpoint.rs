//! Checkpoints: frozen stacks of layers with an id, and going back to one.
//!
//! Making and restoring change metadata only: a row, a layer, the head. What they cost does not depend on how much the
//! volume holds.

use crate::{
    error::{Error, ErrorKind},
    map::{CheckpointRow, NewRow, REGION_BLOCKS},
    volume::{Cut, Volume},
};
use jiff::Timestamp;
use std::ops::Range;

/// A state that the volume can go back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// `v1`, `v2`, … or `auto-…`; never used twice.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// The maker's words.
    pub comment: String,
    /// Made by the system.
    pub auto: bool,
    /// The checkpoint that the live state had grown from when this one was made.
    pub source: Option<String>,
    /// The checkpoints below it that still exist, nearest first.
    pub history: Vec<String>,
}

/// What the maker of a checkpoint says about it.
#[derive(Debug, Clone)]
pub struct NewCheckpoint {
    /// Free words.
    pub comment: String,
    /// Made by the system: it gets an `auto-` id and takes no number.
    pub auto: bool,
}

impl From<CheckpointRow> for Checkpoint {
    fn from(row: CheckpointRow) -> Self {
        let CheckpointRow { id, layer: _, created, comment, auto, commented: _, source, history } =
            row;
        Self { id, created, comment, auto, source, history }
    }
}

impl Volume {
    /// Makes a checkpoint of the state at the cut. Returns when the bucket has it.
    ///
    /// With a bucket that is away this waits. Dropped meanwhile, it may still make the checkpoint.
    pub async fn checkpoint(&self, cut: Cut, new: NewCheckpoint) -> Result<Checkpoint, Error> {
        self.shared.check_open()?;
        self.shared.wait_shipped(cut.batch).await?;
        let created = Timestamp::now();
        let row = self
            .shared
            .change(move |shared| {
                let layer = frozen_layer(&cut)?;
                let NewCheckpoint { comment, auto } = &new;
                shared.map.add_checkpoint(&NewRow { layer, created, comment, auto: *auto })
            })
            .await?;
        Ok(row.into())
    }

    /// All checkpoints, newest first.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, Error> {
        self.shared.check_open()?;
        Ok(self.shared.map.checkpoints()?.into_iter().map(Checkpoint::from).collect())
    }

    /// The id of the checkpoint that the live state grew from.
    pub fn current_base(&self) -> Result<Option<String>, Error> {
        self.shared.check_open()?;
        self.shared.map.base()
    }

    /// Deletes a checkpoint. `NotFound` if there is none; `Conflict` if the live state grew from it. Its space comes back
    /// in the background.
    pub async fn delete_checkpoint(&self, id: &str) -> Result<(), Error> {
        self.shared.check_open()?;
        let id = id.to_owned();
        self.shared.change(move |shared| shared.map.delete_checkpoint(&id)).await
    }

    /// Goes back to a checkpoint, and keeps the replaced state as an automatic checkpoint, which is returned.
    ///
    /// Nothing may use the volume meanwhile: the device is detached. An error before the change leaves everything as it was.
    pub async fn restore(&self, id: &str) -> Result<Checkpoint, Error> {
        self.shared.check_open()?;
        self.shared.map.find_checkpoint(id)?;
        let cut = self.cut()?;
        self.shared.wait_shipped(cut.batch).await?;
        let created = Timestamp::now();
        let id = id.to_owned();
        let row = self
            .shared
            .change(move |shared| {
                let layer = frozen_layer(&cut)?;
                let comment = format!("before the restore of {id}");
                let kept = NewRow { layer, created, comment: &comment, auto: true };
                let mut stale = Vec::new();
                let row = shared.map.restore(&id, &kept, |region, differs| {
                    let ranges = ranges(region, differs);
                    shared.cache.remove(ranges.iter().cloned());
                    stale.extend(ranges);
                })?;
                // Fills that looked at the map before the restore are refused from here on.
                shared.cache.remove(stale);
                Ok(row)
            })
            .await?;
        Ok(row.into())
    }
}

pub(crate) fn frozen_layer(cut: &Cut) -> Result<crate::map::LayerId, Error> {
    cut.layer
        .get()
        .copied()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a shipped cut has no layer"))
}

/// The marked blocks of a region as ranges.
pub(crate) fn ranges(region: u32, marked: &[bool]) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for (block, _) in (region * REGION_BLOCKS..).zip(marked).filter(|(_, marked)| **marked) {
        match ranges.last_mut() {
            Some(last) if last.end == block => last.end += 1,
            _ => ranges.push(block..block + 1),
        }
    }
    ranges
}
