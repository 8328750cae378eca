//! Reading from the bucket: ranged GETs of whole runs, merged, in parallel, each run once at a time.
//!
//! A caller says which blocks it needs and which it expects to need. Both become GETs in tasks of the runtime; the caller
//! waits for the runs that it needs and the rest goes on into the cache. A run that is already on its way is never asked
//! for again: whoever needs it waits for the same [`Flight`].
//!
//! Every block is checked against the map's CRC32C before it is given to a caller or put into the cache.
//!
//! The cache is of the live state. Runs that are read for another state stay in memory for a while instead ([`Recent`]).
//!
//! A request that takes unusually long is sent a second time ([`Hedge`]), and the first answer counts.
//!
//! # Failure
//!
//! A request is repeated with growing waits for about a minute, then the read fails as `Unavailable`. Damage (a missing
//! object, a checksum that does not match) fails at once as `Corrupt`, with an error in the log: nothing can repair it here.

mod get;
mod hedge;
mod streams;

pub(crate) use streams::Streams;

use crate::{
    BLOCK_BYTES, Settings,
    cache::Cache,
    error::{Error, ErrorKind},
    keys::Keys,
    map::Map,
    segment::RUN_BLOCKS,
    sync::{lock, wait},
};
use base::backoff::Backoff;
use get::Get;
use hedge::Hedge;
use object_store::ObjectStore;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::runtime::Handle;

/// Runs so near to each other are fetched by one GET, with what lies between.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// The most bytes, before compression, that are on their way without anyone waiting for them: what sixteen large GETs hold,
/// since fewer do not fill a line to a bucket that is far away.
const AHEAD_BYTES_MAX: u64 = 64 << 20;

/// Tries of a GET: with the default waits, they go on for more than a minute.
const RETRIES_MAX: u32 = 18;

/// A sealed block that someone wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub block: u32,
    pub segment: u32,
    pub index: u32,
    pub crc: u32,
}

impl Wanted {
    fn run(&self) -> RunKey {
        RunKey { segment: self.segment, run: self.index / RUN_BLOCKS }
    }

    /// The block's bytes in its run, if they are what was written.
    fn find<'a>(&self, run: &'a [u8]) -> Option<&'a [u8]> {
        let at = (self.index % RUN_BLOCKS) as usize * BLOCK_BYTES;
        run.get(at..at + BLOCK_BYTES).filter(|data| crc32c::crc32c(data) == self.crc)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct RunKey {
    segment: u32,
    run: u32,
}

/// A run on its way from the bucket.
#[derive(Debug, Default)]
struct Flight {
    landed: Mutex<Option<Landed>>,
    changed: Condvar,
}

type Landed = Result<Arc<Vec<u8>>, Arc<Error>>;

impl Flight {
    fn wait(&self) -> Landed {
        let mut landed = lock(&self.landed);
        loop {
            if let Some(landed) = &*landed {
                return landed.clone();
            }
            landed = wait(&self.changed, landed);
        }
    }

    fn land(&self, result: Landed) {
        lock(&self.landed).get_or_insert(result);
        self.changed.notify_all();
    }
}

/// A run that this task must land, whatever happens to the task.
struct Claim {
    fetcher: Arc<Fetcher>,
    key: RunKey,
    flight: Arc<Flight>,
    wanted: Vec<Wanted>,
    ahead: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let ended = Error::new(ErrorKind::Unavailable, "the read ended before its answer");
        self.flight.land(Err(Arc::new(ended)));
        lock(&self.fetcher.flights).remove(&self.key);
        if self.ahead {
            self.fetcher.ahead_bytes.fetch_sub(RUN_BYTES, Ordering::Relaxed);
        }
    }
}

const RUN_BYTES: u64 = RUN_BLOCKS as u64 * BLOCK_BYTES as u64;

/// Where runs go besides to those who wait for them.
#[derive(Debug, Clone, Copy)]
enum Landing {
    /// Into the cache, as far as the live state has them.
    Cache,
    /// Into memory, for whoever reads the same frozen state next.
    Recent,
    /// Nowhere: they are read once.
    Nowhere,
}

/// The most runs of frozen states that are kept: 8 MiB.
const RECENT_RUNS_MAX: usize = 128;

/// Runs that were read for frozen states, the newest last.
#[derive(Debug, Default)]
struct Recent(VecDeque<(RunKey, Arc<Vec<u8>>)>);

impl Recent {
    fn find(&mut self, key: RunKey) -> Option<Arc<Vec<u8>>> {
        let at = self.0.iter().position(|(kept, _)| *kept == key)?;
        let found = self.0.remove(at)?;
        let run = found.1.clone();
        self.0.push_back(found);
        Some(run)
    }

    fn insert(&mut self, key: RunKey, run: Arc<Vec<u8>>) {
        self.0.retain(|(kept, _)| *kept != key);
        if self.0.len() >= RECENT_RUNS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((key, run));
    }
}

/// Reads sealed blocks of one volume.
#[derive(Debug)]
pub(crate) struct Fetcher {
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
    map: Arc<Map>,
    cache: Arc<Cache>,
    flights: Mutex<HashMap<RunKey, Arc<Flight>>>,
    recent: Mutex<Recent>,
    ahead_bytes: AtomicU64,
    waits: Backoff,
    hedge: Hedge,
    keys: Keys,
}

impl Fetcher {
    pub(crate) fn new(
        settings: &Settings,
        store: Arc<dyn ObjectStore>,
        runtime: Handle,
        map: Arc<Map>,
        cache: Arc<Cache>,
    ) -> Self {
        let waits = Backoff::new(settings.retry_wait, settings.retry_wait_most(), RETRIES_MAX);
        Self {
            store,
            runtime,
            map,
            cache,
            flights: Mutex::default(),
            recent: Mutex::default(),
            ahead_bytes: AtomicU64::new(0),
            waits,
            hedge: Hedge::default(),
            keys: settings.keys.clone(),
        }
    }

    /// Reads what is needed, and starts to read what will be. `each` gets every needed block once. Blocks the thread.
    pub(crate) fn fetch(
        self: &Arc<Self>,
        needed: &[Wanted],
        ahead: &[Wanted],
        each: impl FnMut(u32, &[u8]),
    ) -> Result<(), Error> {
        self.fetch_to(Landing::Cache, needed, ahead, each)
    }

    /// Reads blocks of a frozen state, as [`Self::fetch`] does, past the cache.
    pub(crate) fn fetch_frozen(
        self: &Arc<Self>,
        needed: &[Wanted],
        ahead: &[Wanted],
        mut each: impl FnMut(u32, &[u8]),
    ) -> Result<(), Error> {
        let mut missing = Vec::new();
        for (key, wanted) in by_run(needed) {
            let Some(run) = lock(&self.recent).find(key) else {
                missing.extend(wanted);
                continue;
            };
            for wanted in &wanted {
                each(wanted.block, wanted.find(&run).ok_or_else(|| self.damaged(wanted))?);
            }
        }
        let mut ahead = ahead.to_vec();
        ahead.retain(|wanted| lock(&self.recent).find(wanted.run()).is_none());
        self.fetch_to(Landing::Recent, &missing, &ahead, each)
    }

    /// Reads blocks that nobody will read again from where they are.
    pub(crate) fn fetch_once(
        self: &Arc<Self>,
        needed: &[Wanted],
        each: impl FnMut(u32, &[u8]),
    ) -> Result<(), Error> {
        self.fetch_to(Landing::Nowhere, needed, &[], each)
    }

    /// Forgets the runs of frozen states.
    pub(crate) fn forget_recent(&self) {
        *lock(&self.recent) = Recent::default();
    }

    fn fetch_to(
        self: &Arc<Self>,
        landing: Landing,
        needed: &[Wanted],
        ahead: &[Wanted],
        mut each: impl FnMut(u32, &[u8]),
    ) -> Result<(), Error> {
        let mut runs = by_run(needed);
        let needed_keys: Vec<RunKey> = runs.keys().copied().collect();
        let mut ahead_runs = by_run(ahead);
        for (key, wanted) in &mut runs {
            wanted.extend(ahead_runs.remove(key).into_iter().flatten());
        }
        let waiting = self.depart(landing, runs, false)?;
        self.depart(landing, ahead_runs, true)?;
        let needed_by_run = by_run(needed);
        for (key, flight) in needed_keys.into_iter().zip(waiting) {
            let run = flight
                .wait()
                .map_err(|error| Error::with(error.kind(), "read from the bucket", error))?;
            for wanted in needed_by_run.get(&key).into_iter().flatten() {
                let data = wanted.find(&run).ok_or_else(|| self.damaged(wanted))?;
                each(wanted.block, data);
            }
        }
        Ok(())
    }

    /// Joins flights that are on their way and starts the others. Returns the flights in the order of the runs.
    fn depart(
        self: &Arc<Self>,
        landing: Landing,
        runs: BTreeMap<RunKey, Vec<Wanted>>,
        ahead: bool,
    ) -> Result<Vec<Arc<Flight>>, Error> {
        let mut flights = Vec::with_capacity(runs.len());
        let mut claims = Vec::new();
        for (key, wanted) in runs {
            if ahead && self.ahead_bytes.load(Ordering::Relaxed) >= AHEAD_BYTES_MAX {
                break;
            }
            let mut in_flight = lock(&self.flights);
            if let Some(flight) = in_flight.get(&key) {
                flights.push(flight.clone());
                continue;
            }
            let flight = Arc::new(Flight::default());
            in_flight.insert(key, flight.clone());
            flights.push(flight.clone());
            if ahead {
                self.ahead_bytes.fetch_add(RUN_BYTES, Ordering::Relaxed);
            }
            claims.push(Claim { fetcher: self.clone(), key, flight, wanted, ahead });
        }
        for get in self.gets(claims)? {
            self.runtime.spawn(get.run(self.clone(), landing));
        }
        Ok(flights)
    }

    /// Neighbouring runs of one segment become one GET.
    fn gets(&self, claims: Vec<Claim>) -> Result<Vec<Get>, Error> {
        let mut gets: Vec<Get> = Vec::new();
        for claim in claims {
            let table = self.map.segment(claim.key.segment)?;
            if table.runs.get(claim.key.run as usize).is_none() {
                let message = format!("segment {} has no run {}", claim.key.segment, claim.key.run);
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            let alone = match gets.last_mut() {
                Some(last) => last.join(&table, claim).err(),
                None => Some(claim),
            };
            gets.extend(alone.map(|claim| Get::new(table, claim)));
        }
        Ok(gets)
    }

    fn damaged(&self, wanted: &Wanted) -> Error {
        let Wanted { block, segment, index, .. } = wanted;
        tracing::error!(block, segment, index, "a block in the bucket is not what was written");
        Error::new(
            ErrorKind::Corrupt,
            format!("block {block} in the bucket is not what was written"),
        )
    }
}

fn by_run(wanted: &[Wanted]) -> BTreeMap<RunKey, Vec<Wanted>> {
    let mut runs: BTreeMap<RunKey, Vec<Wanted>> = BTreeMap::new();
    for wanted in wanted {
        runs.entry(wanted.run()).or_default().push(*wanted);
    }
    runs
}
