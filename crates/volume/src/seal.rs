//! The sealer: makes segments of batches, commits them to the map, ships the log, and has the garbage taken out.
//!
//! One task per volume. Up to [`PUTS_MAX`] batches are built and put at the same time; they are committed in the order of
//! the writes. The order for each is: segment in the bucket, map rows in one transaction, log shipped, journal files
//! released. Whatever fails is tried again with growing waits, for as long as the volume is open: a bucket that is away
//! makes the lag grow until writers wait, and nothing is dropped. One warning tells of an outage, and one line of its end.
//!
//! A create that says that the key is taken may be our own, whose answer was lost, or one of an earlier process of the same
//! epoch that died before its commit. The content tells: ours is done; the other's number is skipped, and its object is
//! noted as garbage.

use crate::{
    BLOCK_BYTES, Settings,
    cache::{Cache, PageBuffer, Ticket},
    error::{Attempt as _, Error, ErrorKind},
    failpoint::Point,
    map::{Commit, NewSegment},
    memory,
    reclaim::{RECLAIM_DELAY, Reclaim},
    segment::{BlockEntry, Contents, Encoded, RunWriter, SegmentName, StoredRuns, encode},
    sync::{lock, read, write},
    tail::{Batch, Unsealed},
    volume::{Health, Shared, Ship},
};
use base::backoff::Backoff;
use bytes::Bytes;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions};
use std::{
    collections::VecDeque,
    future::Future,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// Batches that are built and put at the same time.
const PUTS_MAX: usize = 3;

/// Batches that are committed before the log is shipped. Without a bound, commits that are slower than the bucket would keep
/// the log from ever being shipped while somebody writes on.
const COMMITS_MAX: usize = 4;

/// Blocks that go into the cache at once: 1 MiB.
const FILL_BLOCKS_MAX: usize = 256;

/// Tries of the first shipping: with the default waits, they go on for about a minute.
const OPEN_RETRIES_MAX: u32 = 18;

/// After so many sealed bytes in a row, the memory that they took is given back to the system.
const TRIM_BYTES: u64 = 4 << 20;
const TRIM_BYTES_BUSY: u64 = 64 << 20;

/// Seals until the task is aborted.
pub(crate) async fn run(shared: Arc<Shared>) {
    let _ended = Ended(shared.clone());
    // An earlier process may have left some.
    let mut reclaim = Reclaim::new(Instant::now() + RECLAIM_DELAY);
    loop {
        wait_for_work(&shared, reclaim.at).await;
        let changed = drain(&shared).await | shared.changed.swap(false, Ordering::Relaxed);
        if changed {
            let at = Instant::now() + RECLAIM_DELAY.min(shared.settings.garbage_delay);
            reclaim.at = Some(reclaim.at.map_or(at, |earlier| earlier.min(at)));
        }
        if reclaim.at.is_some_and(|at| at <= Instant::now()) {
            reclaim.step(&shared).await;
        }
    }
}

/// Tells those who wait that nothing more will come.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.progress.send_modify(|progress| progress.ended = true);
    }
}

async fn wait_for_work(shared: &Shared, reclaim_at: Option<Instant>) {
    let (due, frozen) = {
        let tail = read(&shared.tail);
        (tail.due(shared.settings.seal_interval), tail.has_unstarted())
    };
    if !frozen {
        woken_or_at(shared, [due, reclaim_at].into_iter().flatten().min()).await;
    }
}

/// Returns when there may be something new to do, or at the time.
async fn woken_or_at(shared: &Shared, time: Option<Instant>) {
    let timer = async {
        match time {
            Some(time) => tokio::time::sleep_until(time.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shared.wake.notified() => {}
        () = timer => {}
    }
}

/// A batch whose segment is in the bucket.
pub(crate) struct Prepared {
    batch: Arc<Batch>,
    pub(crate) contents: Contents,
    pub(crate) segment: Option<NewSegment>,
    pub(crate) orphans: Vec<SegmentName>,
}

/// Seals all batches that are frozen or due, and those that become due meanwhile. Returns whether there were any.
async fn drain(shared: &Arc<Shared>) -> bool {
    let mut puts = Puts::default();
    let mut any = false;
    let mut sealed_bytes = 0;
    loop {
        let Some(prepared) = puts.next(shared).await else {
            if sealed_bytes >= TRIM_BYTES {
                memory::trim();
            }
            return any;
        };
        any = true;
        let operations = shared.operations.clone();
        let mut ship = puts.top_up_during(shared, operations.lock()).await;
        let mut last = puts.top_up_during(shared, commit(shared, prepared)).await;
        for _ in 1..COMMITS_MAX {
            let Some(prepared) = puts.next_if_ready(shared).await else { break };
            last = puts.top_up_during(shared, commit(shared, prepared)).await;
        }
        puts.top_up_during(shared, ship_until_done(shared, ship.as_mut())).await;
        let failpoints = &shared.settings.failpoints;
        failpoints.reach(Point::LogShipped).await;
        shared.shipped(last.number, last.sequence_last);
        failpoints.reach(Point::JournalReleased).await;
        sealed_bytes += last.journal_bytes;
        // A disk that is written to without a pause would never come to the end.
        if sealed_bytes >= TRIM_BYTES_BUSY {
            memory::trim();
            sealed_bytes = 0;
        }
    }
}

/// Segments on their way to the bucket, in the order of their batches. Dropped, it ends their tasks.
///
/// Whatever else the sealer waits for, it starts the next batches meanwhile: a strict flush must not wait for the answer to
/// an earlier one before its own segment is on the way.
#[derive(Default)]
struct Puts(VecDeque<JoinHandle<Prepared>>);

impl Puts {
    fn top_up(&mut self, shared: &Arc<Shared>) {
        while self.0.len() < PUTS_MAX {
            let Some(batch) = write(&shared.tail).start(shared.settings.seal_interval) else {
                break;
            };
            self.0.push_back(tokio::spawn(prepare(shared.clone(), batch)));
        }
    }

    /// When a batch becomes due that could be started.
    fn due(&self, shared: &Shared) -> Option<Instant> {
        if self.0.len() == PUTS_MAX {
            return None;
        }
        read(&shared.tail).due(shared.settings.seal_interval)
    }

    async fn top_up_during<T>(&mut self, shared: &Arc<Shared>, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            self.top_up(shared);
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = woken_or_at(shared, self.due(shared)) => {}
            }
        }
    }

    async fn next(&mut self, shared: &Arc<Shared>) -> Option<Prepared> {
        loop {
            self.top_up(shared);
            let due = self.due(shared);
            // The handle stays in the queue while it is awaited, so that dropping this future still ends the task.
            let front = self.0.front_mut()?;
            tokio::select! {
                biased;
                prepared = front => {
                    self.0.pop_front();
                    return Some(prepared.expect("preparing a batch does not panic"));
                }
                () = woken_or_at(shared, due) => {}
            }
        }
    }

    async fn next_if_ready(&mut self, shared: &Arc<Shared>) -> Option<Prepared> {
        if self.0.front().is_some_and(JoinHandle::is_finished) {
            self.next(shared).await
        } else {
            None
        }
    }
}

impl Drop for Puts {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Puts the segment of a batch into the bucket, however long that takes.
pub(crate) async fn prepare(shared: Arc<Shared>, batch: Arc<Batch>) -> Prepared {
    let (contents, runs) = until_done(&shared, "build a segment", || {
        let batch = batch.clone();
        blocking(move || gather(&batch))
    })
    .await;
    let mut prepared = Prepared { batch, contents, segment: None, orphans: Vec::new() };
    if prepared.contents.blocks.is_empty() {
        return prepared;
    }
    shared.settings.failpoints.reach(Point::SegmentBuilt).await;
    let (segment, orphans) = put_segment(&shared, &prepared.contents, &runs).await;
    (prepared.segment, prepared.orphans) = (Some(segment), orphans);
    shared.settings.failpoints.reach(Point::SegmentPut).await;
    prepared
}

/// Puts a segment under the next free number, however long that takes. Also returns the numbers that were taken.
pub(crate) async fn put_segment(
    shared: &Shared,
    contents: &Contents,
    runs: &StoredRuns,
) -> (NewSegment, Vec<SegmentName>) {
    let mut orphans = Vec::new();
    loop {
        let sequence = shared.segment_next.fetch_add(1, Ordering::Relaxed);
        let name =
            SegmentName { volume: shared.settings.volume, epoch: shared.settings.epoch, sequence };
        let Encoded { head, data, table } = encode(&name, contents, runs, &shared.settings.keys);
        let data_offset = u32::try_from(head.len()).expect("a batch is bounded");
        let parts = [head, data];
        let put = || create(shared, &name, parts.clone());
        if until_done(shared, "put a segment", put).await {
            let bytes = parts.iter().map(|part| part.len() as u64).sum();
            return (NewSegment { name, bytes, data_offset, runs: table }, orphans);
        }
        orphans.push(name);
    }
}

/// The newest version of each block of a batch, in the order of their numbers.
fn gather(batch: &Batch) -> Result<(Contents, StoredRuns), Error> {
    let mut contents = Contents::default();
    let zero = |zeros: &mut Vec<Range<u32>>, range: Range<u32>| match zeros.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => zeros.push(range),
    };
    let bytes_max = usize::try_from(batch.journal_bytes).expect("a batch fits memory");
    let mut runs = RunWriter::new(bytes_max).attempt("compress a segment")?;
    let mut buffer = Vec::new();
    for (range, value) in batch.extents.iter() {
        let Unsealed::Data(place) = value else {
            zero(&mut contents.zeros, range);
            continue;
        };
        buffer.resize(range.len() * BLOCK_BYTES, 0);
        place.read(&mut buffer).attempt("read from the journal")?;
        for (block, data) in range.zip(buffer.chunks(BLOCK_BYTES)) {
            if is_zero(data) {
                zero(&mut contents.zeros, block..block + 1);
            } else {
                contents.blocks.push(BlockEntry { block, crc: crc32c::crc32c(data) });
                runs.push(data).attempt("compress a segment")?;
            }
        }
    }
    Ok((contents, runs.finish().attempt("compress a segment")?))
}

fn is_zero(block: &[u8]) -> bool {
    block.chunks_exact(16).all(|chunk| chunk == [0; 16])
}

/// Creates the object. Returns whether it is ours.
async fn create(shared: &Shared, name: &SegmentName, parts: [Bytes; 2]) -> Result<bool, Error> {
    let key = name.key();
    let options = PutOptions::from(PutMode::Create);
    match shared.store.put_opts(&key, parts.iter().cloned().collect(), options).await {
        Ok(_) => Ok(true),
        Err(
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
        ) => {
            let there = shared.store.get(&key).await;
            // If it is not there after all, the next try creates it.
            let there = there
                .map_err(|error| {
                    Error::with(ErrorKind::Unavailable, "read what is at a taken key", error)
                })?
                .bytes()
                .await
                .attempt("read what is at a taken key")?;
            let [head, data] = &parts;
            Ok(there.strip_prefix(head.as_ref()) == Some(data.as_ref()))
        }
        Err(error) => Err(error).attempt("create a segment"),
    }
}

async fn commit(shared: &Arc<Shared>, prepared: Prepared) -> Arc<Batch> {
    let prepared = Arc::new(prepared);
    until_done(shared, "commit a batch", || {
        let (shared, prepared) = (shared.clone(), prepared.clone());
        blocking(move || shared.with_room(|| commit_now(&shared, &prepared)))
    })
    .await;
    shared.health.sealed();
    shared.settings.failpoints.reach(Point::MapCommitted).await;
    prepared.batch.clone()
}

/// Moves a batch from the tail into the map and the cache. After an error nothing has changed but what the cache lost.
fn commit_now(shared: &Shared, prepared: &Prepared) -> Result<(), Error> {
    let Prepared { batch, contents, segment, orphans } = prepared;
    let changed = || batch.extents.iter().map(|(range, _)| range);
    shared.cache.remove(changed());
    shared.settings.failpoints.pass(Point::CacheForgot).attempt("commit a batch")?;
    let trace = shared.trace.due();
    shared.map.commit(&Commit {
        position: shared.position_after(batch.sequence_last),
        segment: segment.as_ref(),
        orphans,
        blocks: &contents.blocks,
        zeros: &contents.zeros,
        cut: batch.cut.as_ref(),
        trace: trace.as_deref(),
    })?;
    if trace.is_some() {
        shared.trace.saved();
    }
    // Fills that looked at the map between the first removal and the commit are refused by the second.
    let ticket = shared.cache.remove(changed());
    lock(&shared.backlog).committed.push_back((batch.journal_bytes, batch.first_write));
    write(&shared.tail).committed(batch.number);
    contents.zeros.iter().for_each(|range| shared.cache.punch(range.clone()));
    fill_cache(&shared.cache, ticket, batch, &contents.blocks);
    Ok(())
}

/// Copies a batch that was committed to the cache, from the journal, which keeps it until the log is shipped: in memory it
/// would wait for the bucket. Failure is no failure, since what the cache lacks is read from the bucket.
fn fill_cache(cache: &Cache, ticket: Ticket, batch: &Batch, blocks: &[BlockEntry]) {
    let mut buffer = PageBuffer::new(blocks.len().min(FILL_BLOCKS_MAX) * BLOCK_BYTES);
    let groups = blocks
        .chunk_by(|a, b| a.block + 1 == b.block)
        .flat_map(|group| group.chunks(FILL_BLOCKS_MAX));
    for group in groups {
        let first = group.first().map_or(0, |entry| entry.block);
        let data = &mut buffer.bytes_mut()[..group.len() * BLOCK_BYTES];
        match read_journal(batch, first, data) {
            Ok(()) => _ = cache.fill(ticket, first, data),
            Err(error) => tracing::debug!(%error, "cannot read what goes into the cache"),
        }
    }
}

/// Reads consecutive blocks of a batch that all have data.
fn read_journal(batch: &Batch, first: u32, buffer: &mut [u8]) -> std::io::Result<()> {
    let count = u32::try_from(buffer.len() / BLOCK_BYTES).expect("a fill is bounded");
    let mut rest = buffer;
    for (range, value) in batch.extents.overlapping(first..first + count) {
        let (part, behind) = rest.split_at_mut(range.len() * BLOCK_BYTES);
        if let Unsealed::Data(place) = value {
            place.read(part)?;
        }
        rest = behind;
    }
    Ok(())
}

/// Ships the log, however long that takes.
pub(crate) async fn ship_until_done(shared: &Shared, ship: &mut dyn Ship) {
    let mut outage = Outage::new(shared, "ship the log");
    while let Err(error) = ship.ship().await {
        outage.failed(error.as_ref()).await;
    }
    shared.health.shipped();
    outage.over();
}

/// Ships what an earlier process committed and could not ship any more.
pub(crate) async fn ship_at_open(settings: &Settings, ship: &mut dyn Ship) -> Result<(), Error> {
    let mut waits = Backoff::new(settings.retry_wait, settings.retry_wait_most(), OPEN_RETRIES_MAX);
    loop {
        let Err(error) = ship.ship().await else { return Ok(()) };
        let Some(pause) = waits.next() else {
            return Err(Error::with(
                ErrorKind::Unavailable,
                "ship what is left of the last time",
                error,
            ));
        };
        tracing::debug!(%error, "shipping again what is left of the last time");
        tokio::time::sleep(pause).await;
    }
}

/// Tries an action until it succeeds.
async fn until_done<T, F: Future<Output = Result<T, Error>>>(
    shared: &Shared,
    action: &'static str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let mut outage = Outage::new(shared, action);
    loop {
        match attempt().await {
            Ok(done) => {
                outage.over();
                return done;
            }
            Err(error) => outage.failed(&error).await,
        }
    }
}

/// Runs something that blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::with(ErrorKind::Internal, "run a blocking step", error)),
    }
}

/// A row of failures of one action: waits between tries, and one line each for beginning and end.
struct Outage<'a> {
    health: &'a Health,
    action: &'static str,
    since: Option<Instant>,
    most: Duration,
    waits: Backoff,
}

impl<'a> Outage<'a> {
    fn new(shared: &'a Shared, action: &'static str) -> Self {
        let settings = &shared.settings;
        let (first, most) = (settings.retry_wait, settings.retry_wait_most());
        let waits = Backoff::new(first, most, u32::MAX);
        Self { health: &shared.health, action, since: None, most, waits }
    }

    async fn failed(&mut self, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        let text = format!("{}: {}", self.action, with_causes(error));
        self.health.failed(self.since.is_none(), text);
        if self.since.is_none() {
            self.since = Some(Instant::now());
            let error: &(dyn std::error::Error + 'static) = error;
            tracing::warn!(action = self.action, error, "failed; trying until it succeeds");
        }
        tokio::time::sleep(self.waits.next().unwrap_or(self.most)).await;
    }

    fn over(&self) {
        if let Some(since) = self.since {
            tracing::info!(
                action = self.action,
                seconds = since.elapsed().as_secs_f64(),
                "succeeded again"
            );
        }
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        if self.since.is_some() {
            self.health.recovered();
        }
    }
}

/// An error and what caused it, in one line.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl Shared {
    /// Runs an operation that changes the map, alone and to its end, even if the caller goes away; then ships.
    pub(crate) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.clone();
        let task = tokio::spawn(async move {
            let operations = shared.operations.clone();
            let mut ship = operations.lock().await;
            let changing = shared.clone();
            let result = blocking(move || work(&changing)).await?;
            shared.settings.failpoints.reach(Point::MapChanged).await;
            ship_until_done(&shared, ship.as_mut()).await;
            shared.changed.store(true, Ordering::Relaxed);
            shared.wake.notify_one();
            Ok(result)
        });
        task.await.map_err(|error| Error::with(ErrorKind::Internal, "run an operation", error))?
    }
}
