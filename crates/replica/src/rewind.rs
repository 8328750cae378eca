//! Going back: which instants a log still reaches, and the database as it was at one of them.
//!
//! Every transaction's file states when it was written, by the calendar of its writer but never earlier than the one before. A
//! file of a higher level states the time of its last transaction. Reading is all that this does, into another file than the
//! owner's, so an owner that goes on writing is not disturbed. Files that retention deletes meanwhile are a reason to begin
//! again.

use crate::{
    Position,
    error::Error,
    layout::Name,
    log::{Log, Tries},
    ltx::{HEADER_BYTES, Header},
    plan::{plan, reachable},
    restore::restore,
    store::Found,
};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// A state that the database was in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest at this time, in milliseconds since 1970.
    Time(u64),
    /// The one after this transaction.
    Txid(u64),
}

/// How far back a log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The oldest transaction whose state can be restored.
    pub oldest_txid: u64,
    /// When that was written, in milliseconds since 1970.
    pub oldest_ms: u64,
    /// The newest transaction.
    pub newest_txid: u64,
    /// When that was written, in milliseconds since 1970.
    pub newest_ms: u64,
    /// The longest time between two states that can be restored with others between them that cannot; zero when every
    /// transaction can.
    pub grain: Duration,
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Up to where.
    pub position: Position,
    /// When the last transaction in it was written, in milliseconds since 1970.
    pub time_ms: u64,
}

impl Log {
    /// How far back the log reaches; `None` when there is none.
    pub async fn reach(&self) -> Result<Option<Reach>, Error> {
        let mut tries = Tries::new();
        loop {
            match self.try_reach().await {
                Err(error) => tries.again_after(error)?,
                Ok(reach) => return Ok(reach),
            }
        }
    }

    /// Writes the database as it was to `db`, in the place of what is there. Nobody may have `db` open; it must not be the
    /// owner's.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`]: the log does not reach that state, or not any more. After any error `db` is what it was.
    pub async fn restore_at(&self, db: &Path, at: At) -> Result<Restored, Error> {
        let mut tries = Tries::new();
        loop {
            match self.try_restore_at(db, at).await {
                Err(error) => tries.again_after(error)?,
                Ok(restored) => return Ok(restored),
            }
        }
    }

    async fn try_reach(&self) -> Result<Option<Reach>, Error> {
        let files = self.store.list_all().await?;
        let reached = reachable(files.iter().map(|found| found.name).collect());
        let (Some((&oldest_txid, &oldest)), Some((&newest_txid, &newest))) =
            (reached.first_key_value(), reached.last_key_value())
        else {
            return Ok(None);
        };
        Ok(Some(Reach {
            oldest_txid,
            oldest_ms: self.time_of(oldest).await?,
            newest_txid,
            newest_ms: self.time_of(newest).await?,
            grain: grain(&files, &reached),
        }))
    }

    async fn try_restore_at(&self, db: &Path, at: At) -> Result<Restored, Error> {
        let files = self.store.list_all().await?;
        let names: Vec<Name> = files.iter().map(|found| found.name).collect();
        let reached = reachable(names.clone());
        let txid = match at {
            At::Txid(txid) => reached.contains_key(&txid).then_some(txid),
            At::Time(time_ms) => self.newest_at(&reached, time_ms).await?,
        };
        let txid = txid.ok_or(Error::Unreachable { at })?;
        let chain = plan(names, Some(txid)).map_err(|txid| Error::Gap { txid })?;
        let (head, _) = restore(&self.store, chain, db).await?;
        Ok(Restored { position: head.position, time_ms: head.header.time_ms })
    }

    /// The newest transaction that was written at a time or before, found by halving, since times grow with the numbers.
    async fn newest_at(
        &self,
        reached: &BTreeMap<u64, Name>,
        time_ms: u64,
    ) -> Result<Option<u64>, Error> {
        let states: Vec<(u64, Name)> = reached.iter().map(|(txid, name)| (*txid, *name)).collect();
        let (mut low, mut high) = (0, states.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.time_of(states[middle].1).await? <= time_ms {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low.checked_sub(1).map(|at| states[at].0))
    }

    /// When the last transaction in a file was written.
    async fn time_of(&self, name: Name) -> Result<u64, Error> {
        let bytes = self.store.read_start(name, HEADER_BYTES as u64).await?;
        let key = || self.store.key(name);
        let header = Header::decode(&bytes).map_err(|source| Error::File { key: key(), source })?;
        if (header.min, header.max) == (name.min, name.max) {
            Ok(header.time_ms)
        } else {
            Err(Error::Misplaced { key: key() })
        }
    }
}

/// Between neighbouring states with others between them, by the times at which the bucket got their files.
fn grain(files: &[Found], reached: &BTreeMap<u64, Name>) -> Duration {
    let times: BTreeMap<Name, i64> =
        files.iter().map(|found| (found.name, found.modified_ms)).collect();
    let time = |name: &Name| times.get(name).copied().unwrap_or(0);
    let steps = reached.iter().zip(reached.iter().skip(1));
    let coarse = steps.filter(|((txid, _), (next, _))| *txid + 1 < **next);
    let longest = coarse.map(|((_, from), (_, to))| time(to).saturating_sub(time(from))).max();
    Duration::from_millis(u64::try_from(longest.unwrap_or(0)).unwrap_or(0))
}
