//! Which automatic checkpoints stay: all of the last hour, one an hour of the last day, one a day of the last week.
//!
//! Of several in one hour or day of the calendar (UTC), the newest stays. The checkpoint that the live state grew from
//! always stays, and so does what a person made or wrote a comment on.

use crate::{checkpoint::Checkpoint, error::Error, map::CheckpointRow, volume::Volume};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

/// All automatic checkpoints stay for so long.
const ALL_FOR: SignedDuration = SignedDuration::from_hours(1);

/// One of each hour stays for so long.
const HOURLY_FOR: SignedDuration = SignedDuration::from_hours(24);

/// One of each day stays for so long.
const DAILY_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);

const HOUR_SECONDS: i64 = 3600;
const DAY_SECONDS: i64 = 24 * HOUR_SECONDS;

impl Volume {
    /// Deletes the automatic checkpoints that need not stay, and returns them. Their space comes back in the background.
    pub async fn prune_automatic(&self, now: Timestamp) -> Result<Vec<Checkpoint>, Error> {
        self.shared.check_open()?;
        if doomed(&self.shared.map.checkpoints()?, now).is_empty() {
            return Ok(Vec::new());
        }
        let pruned = self
            .shared
            .change(move |shared| {
                let mut pruned = doomed(&shared.map.checkpoints()?, now);
                let base = shared.map.base()?;
                pruned.retain(|row| Some(&row.id) != base.as_ref());
                for row in &pruned {
                    shared.map.delete_checkpoint(&row.id)?;
                }
                Ok(pruned)
            })
            .await?;
        Ok(pruned.into_iter().map(Checkpoint::from).collect())
    }

    /// Replaces the comment of a checkpoint with a person's words. An automatic one with such a comment is never pruned.
    pub async fn comment(&self, id: &str, comment: &str) -> Result<(), Error> {
        self.shared.check_open()?;
        let (id, comment) = (id.to_owned(), comment.to_owned());
        self.shared.change(move |shared| shared.map.comment(&id, &comment)).await
    }
}

/// The automatic checkpoints whose time is over, newest first.
fn doomed(all: &[CheckpointRow], now: Timestamp) -> Vec<CheckpointRow> {
    let mut automatic: Vec<&CheckpointRow> =
        all.iter().filter(|row| row.auto && !row.commented).collect();
    automatic.sort_by_key(|row| std::cmp::Reverse(row.created));
    let (mut hours, mut days) = (BTreeSet::new(), BTreeSet::new());
    let mut stays = |row: &CheckpointRow| {
        let age = now.duration_since(row.created);
        let second = row.created.as_second();
        if age <= ALL_FOR {
            true
        } else if age <= HOURLY_FOR {
            hours.insert(second.div_euclid(HOUR_SECONDS))
        } else {
            age <= DAILY_FOR && days.insert(second.div_euclid(DAY_SECONDS))
        }
    };
    automatic.into_iter().filter(|row| !stays(row)).cloned().collect()
}

#[cfg(test)]
mod tests;
