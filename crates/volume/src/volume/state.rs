//! How a volume is doing: settled, sealing, behind or blocked; how far the bucket is behind; what went where.
//!
//! All of it is cheap enough to be asked for by whoever scrapes metrics, and none of it waits for anything.

use super::{Durability, Shared, Volume};
use crate::{
    meter::Traffic,
    sync::{lock, read},
};
use jiff::Timestamp;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The bucket counts as slow when it is so far behind the time at which a write should have been sealed.
const SLOW: Duration = Duration::from_secs(2);

/// How a volume is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The bucket has everything.
    Settled,
    /// Writes are on their way to the bucket, and in time.
    Sealing,
    /// The bucket is slow or away. Work goes on from the local disk.
    Behind(Trouble),
    /// Writers wait for room, or flushes for the log's lease, until the bucket answers again.
    Blocked(Trouble),
}

/// What keeps a volume from being in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: Timestamp,
    /// What failed last, if anything did: a bucket can also just be slow.
    pub error: Option<String>,
}

/// How far the bucket is behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lag {
    /// Journal bytes that are not in the bucket.
    pub bytes: u64,
    /// The age of the oldest write that is not in the bucket, counted from the call that made it.
    pub seconds: f64,
}

/// What a volume has done since it was opened. Only ever grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests for segments. Those of the log are its shipper's.
    pub traffic: Traffic,
    /// Segments that were made of writes.
    pub seals: u64,
    /// Times that the log was shipped.
    pub ships: u64,
    /// Milliseconds during which some writer waited for room.
    pub blocked_ms: u64,
}

/// What fails at the moment, and counts of what was done.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failing: Mutex<Failing>,
    seals: AtomicU64,
    ships: AtomicU64,
    durability: AtomicU8,
    /// Flushes that wait until they may be acknowledged.
    unacknowledged: AtomicU64,
}

#[derive(Debug, Default)]
struct Failing {
    actions: usize,
    since: Option<Timestamp>,
    error: String,
}

impl Health {
    pub(crate) fn new(durability: Durability) -> Self {
        let health = Self::default();
        health.set_durability(durability);
        health
    }

    pub(crate) fn durability(&self) -> Durability {
        match self.durability.load(Ordering::SeqCst) {
            0 => Durability::Default,
            _ => Durability::Strict,
        }
    }

    pub(crate) fn set_durability(&self, durability: Durability) {
        let number = match durability {
            Durability::Default => 0,
            Durability::Strict => 1,
        };
        self.durability.store(number, Ordering::SeqCst);
    }

    pub(crate) fn sealed(&self) {
        self.seals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn shipped(&self) {
        self.ships.fetch_add(1, Ordering::Relaxed);
    }

    /// An action has begun to fail, or fails again.
    pub(crate) fn failed(&self, first: bool, error: String) {
        let mut failing = lock(&self.failing);
        failing.actions += usize::from(first);
        failing.since.get_or_insert_with(Timestamp::now);
        failing.error = error;
    }

    /// An action that failed does not fail any more.
    pub(crate) fn recovered(&self) {
        let mut failing = lock(&self.failing);
        failing.actions -= 1;
        if failing.actions == 0 {
            *failing = Failing::default();
        }
    }

    /// A flush waits for the lease until this is dropped.
    pub(crate) fn unacknowledged(&self) -> impl Drop + use<'_> {
        struct Waiting<'a>(&'a AtomicU64);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.unacknowledged.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.unacknowledged)
    }

    fn trouble(&self) -> Option<Trouble> {
        let failing = lock(&self.failing);
        let error = failing.error.clone();
        failing.since.map(|since| Trouble { since, error: Some(error) })
    }
}

impl Volume {
    /// How the volume is doing.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// How far the bucket is behind.
    #[must_use]
    pub fn lag(&self) -> Lag {
        self.shared.lag()
    }

    /// What was done since the volume was opened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let shared = &self.shared;
        let blocked = lock(&shared.backlog).blocked(Instant::now());
        Counters {
            traffic: shared.store.traffic(),
            seals: shared.health.seals.load(Ordering::Relaxed),
            ships: shared.health.ships.load(Ordering::Relaxed),
            blocked_ms: u64::try_from(blocked.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Shared {
    fn lag(&self) -> Lag {
        let active = read(&self.tail).oldest_write();
        let backlog = lock(&self.backlog);
        let oldest = backlog.committed.front().and_then(|(_, since)| *since).or(active);
        let seconds = oldest.map_or(0.0, |since| since.elapsed().as_secs_f64());
        Lag { bytes: backlog.bytes, seconds }
    }

    fn state(&self) -> State {
        let trouble = self.health.trouble();
        let waiting = lock(&self.backlog).waiting_since();
        let error = trouble.as_ref().and_then(|trouble| trouble.error.clone());
        if let Some(since) = waiting {
            return State::Blocked(Trouble { since: ago(since.elapsed()), error });
        }
        if self.health.unacknowledged.load(Ordering::Relaxed) > 0 {
            let since = trouble.as_ref().map_or_else(Timestamp::now, |trouble| trouble.since);
            let error = error.or_else(|| Some("the log's lease has run out".to_owned()));
            return State::Blocked(Trouble { since, error });
        }
        if let Some(trouble) = trouble {
            return State::Behind(trouble);
        }
        let lag = self.lag();
        let late = Duration::try_from_secs_f64(lag.seconds).unwrap_or_default();
        match late.checked_sub(self.settings.seal_interval + SLOW) {
            Some(_) => State::Behind(Trouble { since: ago(late), error: None }),
            None if lag.bytes > 0 => State::Sealing,
            None => State::Settled,
        }
    }
}

fn ago(time: Duration) -> Timestamp {
    let now = Timestamp::now();
    jiff::SignedDuration::try_from(time)
        .ok()
        .and_then(|time| now.checked_sub(time).ok())
        .unwrap_or(now)
}
