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
//! # Failure
//!
//! A request is repeated with growing waits for about a minute, then the read fails as `Unavailable`. Damage (a missing
//! object, a checksum that does not match) fails at once as `Corrupt`, with an error in the log: nothing can repair it here.

use crate::{
    BLOCK_BYTES, Settings,
    cache::{Cache, Ticket},
    error::{Attempt as _, Error, ErrorKind},
    keys::Keys,
    map::{Map, SegmentTable},
    segment::RUN_BLOCKS,
    sync::{lock, wait},
};
use base::backoff::Backoff;
use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt as _};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Range,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::runtime::Handle;

/// The most stored bytes of one GET.
const GET_BYTES_MAX: u64 = 4 << 20;

/// Runs so near to each other are fetched by one GET, with what lies between.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// The most bytes, before compression, that are on their way without anyone waiting for them.
const AHEAD_BYTES_MAX: u64 = 32 << 20;

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
    /// Into the cache: they are of the live state as it was at the ticket.
    Cache(Ticket),
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
            keys: settings.keys.clone(),
        }
    }

    /// Reads what is needed, and starts to read what will be. `each` gets every needed block once. Blocks the thread.
    pub(crate) fn fetch(
        self: &Arc<Self>,
        ticket: Ticket,
        needed: &[Wanted],
        ahead: &[Wanted],
        each: impl FnMut(u32, &[u8]),
    ) -> Result<(), Error> {
        self.fetch_to(Landing::Cache(ticket), needed, ahead, each)
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
            let Some(run) = table.runs.get(claim.key.run as usize) else {
                let message = format!("segment {} has no run {}", claim.key.segment, claim.key.run);
                return Err(Error::new(ErrorKind::Corrupt, message));
            };
            let range = run.range();
            match gets.last_mut() {
                Some(last)
                    if Arc::ptr_eq(&last.table, &table)
                        && range.start <= last.range.end + GAP_BYTES_MAX
                        && range.end - last.range.start <= GET_BYTES_MAX =>
                {
                    last.range.end = last.range.end.max(range.end);
                    last.claims.push(claim);
                }
                _ => gets.push(Get { table, range, claims: vec![claim] }),
            }
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

/// One request: a range of a segment and the runs in it.
struct Get {
    table: Arc<SegmentTable>,
    range: Range<u64>,
    claims: Vec<Claim>,
}

impl Get {
    async fn run(self, fetcher: Arc<Fetcher>, landing: Landing) {
        match self.request(&fetcher).await {
            Ok(bytes) => self.land(&fetcher, landing, &bytes),
            Err(error) => {
                if error.kind() == ErrorKind::Corrupt {
                    let key = self.table.name.key();
                    tracing::error!(%key, error = &error as &dyn std::error::Error, "a segment cannot be read");
                }
                let error = Arc::new(error);
                self.claims.iter().for_each(|claim| claim.flight.land(Err(error.clone())));
            }
        }
    }

    async fn request(&self, fetcher: &Fetcher) -> Result<Bytes, Error> {
        let key = self.table.name.key();
        let mut waits = fetcher.waits.clone();
        loop {
            let error = match fetcher.store.get_range(&key, self.range.clone()).await {
                Ok(bytes) if bytes.len() as u64 == self.range.end - self.range.start => {
                    return Ok(bytes);
                }
                Ok(_) => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("segment {key} is too short"),
                    ));
                }
                Err(error @ object_store::Error::NotFound { .. }) => {
                    return Err(error).attempt("find a segment");
                }
                Err(error) => error,
            };
            let Some(pause) = waits.next() else {
                return Err(error).attempt("get a part of a segment");
            };
            tracing::debug!(%key, %error, "reading a segment again");
            tokio::time::sleep(pause).await;
        }
    }

    fn land(&self, fetcher: &Fetcher, landing: Landing, bytes: &Bytes) {
        for claim in &self.claims {
            let run = &self.table.runs[claim.key.run as usize];
            let from =
                usize::try_from(run.offset - self.range.start).expect("a GET is at most a few MiB");
            let stored = &bytes[from..from + run.stored_bytes as usize];
            match run.decode((&self.table.name, claim.key.run), stored, &fetcher.keys) {
                Ok(data) => {
                    let data = Arc::new(data);
                    match landing {
                        Landing::Cache(ticket) => {
                            fill(&fetcher.cache, ticket, &claim.wanted, &data);
                        }
                        Landing::Recent => {
                            lock(&fetcher.recent).insert(claim.key, data.clone());
                        }
                        Landing::Nowhere => {}
                    }
                    claim.flight.land(Ok(data));
                }
                Err(error) => {
                    let key = self.table.name.key();
                    tracing::error!(%key, run = claim.key.run, %error, "a run in the bucket cannot be read");
                    let error = Error::with(error.kind(), "decode a run of a segment", error);
                    claim.flight.land(Err(Arc::new(error)));
                }
            }
        }
    }
}

/// Puts blocks into the cache, consecutive ones together.
fn fill(cache: &Cache, ticket: Ticket, wanted: &[Wanted], run: &[u8]) {
    let mut wanted: Vec<&Wanted> =
        wanted.iter().filter(|wanted| wanted.find(run).is_some()).collect();
    wanted.sort_by_key(|wanted| wanted.block);
    wanted.dedup_by_key(|wanted| wanted.block);
    for group in wanted.chunk_by(|a, b| a.block + 1 == b.block && a.index + 1 == b.index) {
        let [first, ..] = group else { continue };
        let at = (first.index % RUN_BLOCKS) as usize * BLOCK_BYTES;
        cache.fill(ticket, first.block, &run[at..at + group.len() * BLOCK_BYTES]);
    }
}

/// Finds sequential streams among reads and says how far to read ahead of them.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    next: u32,
    /// Blocks up to here were asked for.
    ahead: u32,
    window: u32,
}

/// The blocks that are read ahead at first: 128 KiB.
const WINDOW_FIRST: u32 = 32;

/// The most blocks that are read ahead: 8 MiB.
const WINDOW_MOST: u32 = 2048;

/// So many streams are told apart.
const STREAMS_MAX: usize = 16;

impl Streams {
    /// Notes a read; returns the blocks to read ahead, which may be none.
    pub(crate) fn advance(&mut self, read: &Range<u32>) -> Range<u32> {
        let Some(at) = self.streams.iter().position(|stream| stream.next == read.start) else {
            if self.streams.len() == STREAMS_MAX {
                self.streams.remove(0);
            }
            let ahead =
                (read.start + WINDOW_FIRST).clamp(read.end, crate::VOLUME_BLOCKS.max(read.end));
            self.streams.push(Stream { next: read.end, ahead, window: WINDOW_FIRST });
            return read.end..ahead;
        };
        let mut stream = self.streams.remove(at);
        stream.next = read.end;
        let from = stream.ahead.max(read.end);
        // Asking again only when half of the window is used makes few large requests of many small ones.
        let ahead = if from - read.end <= stream.window / 2 {
            stream.window = (stream.window * 2).min(WINDOW_MOST);
            stream.ahead = (read.end + stream.window).min(crate::VOLUME_BLOCKS);
            from..stream.ahead.max(from)
        } else {
            from..from
        };
        self.streams.push(stream);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::{Streams, WINDOW_FIRST, WINDOW_MOST};
    use crate::VOLUME_BLOCKS;

    #[test]
    fn random_reads_read_a_little_ahead_and_streams_ever_more() {
        let mut streams = Streams::default();
        assert_eq!(streams.advance(&(1000..1001)), 1001..1000 + WINDOW_FIRST);
        let mut asked = 1000 + WINDOW_FIRST;
        let mut largest = 0;
        for block in 1001..60_000 {
            let ahead = streams.advance(&(block..block + 1));
            assert!(ahead.is_empty() || ahead.start == asked, "each block once");
            largest = largest.max(ahead.len());
            asked = asked.max(ahead.end);
            assert!(asked > block && asked <= block + 1 + WINDOW_MOST);
        }
        assert!(largest >= WINDOW_MOST as usize / 2, "{largest}");
    }

    #[test]
    fn never_goes_past_the_end() {
        let mut streams = Streams::default();
        let end = VOLUME_BLOCKS;
        for block in end - 100..end {
            assert!(streams.advance(&(block..block + 1)).end <= end);
        }
    }
}
