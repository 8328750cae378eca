//! A volume: opening and closing, cuts, and what ties journal, tail, map, cache and sealer together.
//!
//! States: open, then closed. Closing first refuses new operations, then seals what is there, then deletes the journal.
//! Dropping the last handle without closing is like a crash: the journal keeps what is not sealed, for the next open.

mod read;
mod state;
mod write;

pub(crate) use state::Health;
pub use state::{Counters, Lag, State, Trouble};
pub(crate) use write::{Admission, Backlog, Unflushed};

use crate::{
    BLOCK_BYTES, Durability, Settings, VOLUME_BYTES,
    cache::{Cache, Tag},
    error::{Attempt as _, Error, ErrorKind},
    failpoint::Point,
    fetch::{Fetcher, Streams},
    flush::Flush,
    journal::{self, Journal, Position, RecordKind},
    map::{CutSlot, Map},
    meter::Metered,
    recovery,
    seal::{self, blocking},
    sync::lock,
    tail::Tail,
    wake::{self, Trace},
};
use async_trait::async_trait;
use object_store::ObjectStore;
use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinHandle,
};

/// Makes committed transactions of `map.db` durable in the bucket.
///
/// Called with no write transaction open, and none is begun until it returns. Short reads of the database may happen.
#[async_trait]
pub trait Ship: Send {
    /// Ships what was committed since the last call. When it returns `Ok`, the log in the bucket has it. An error is taken
    /// as transient: it is called again, with growing waits.
    async fn ship(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// A handle of an open volume. Clones are the same volume.
#[derive(Clone)]
pub struct Volume {
    pub(crate) shared: Arc<Shared>,
    sealer: Arc<Sealer>,
}

/// A point at which the live layer ended. See [`Volume::checkpoint`]. While it is held, the layer below is kept apart.
#[derive(Debug)]
pub struct Cut {
    pub(crate) batch: u64,
    pub(crate) layer: Arc<CutSlot>,
}

/// How much is where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of the live state that are not zero.
    pub logical_bytes: u64,
    /// Bytes that the live state and the checkpoints name, before compression.
    pub live_bytes: u64,
    /// Bytes of this volume's own segments in the bucket.
    pub stored_bytes: u64,
    /// Bytes of these that nothing names any more.
    pub reclaimable_bytes: u64,
    /// Segments that the map knows, those of fork ancestors included.
    pub segments: u64,
    /// Layers of the map.
    pub layers: u64,
    /// Bytes in the local cache.
    pub cached_bytes: u64,
}

/// What all handles, the sealer and the device share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<Metered>,
    pub(crate) runtime: Handle,
    pub(crate) health: Health,
    pub(crate) journal: Mutex<Journal>,
    pub(crate) tail: RwLock<Tail>,
    pub(crate) map: Arc<Map>,
    pub(crate) cache: Arc<Cache>,
    /// Held around each write transaction and the shipping of it.
    pub(crate) operations: Arc<tokio::sync::Mutex<Box<dyn Ship>>>,
    pub(crate) backlog: Mutex<Backlog>,
    pub(crate) room: Condvar,
    pub(crate) wake: Notify,
    /// An operation changed the map, which may have left garbage.
    pub(crate) changed: AtomicBool,
    pub(crate) segment_next: AtomicU64,
    pub(crate) progress: watch::Sender<Progress>,
    flush: Arc<Flush>,
    pub(crate) fetcher: Arc<Fetcher>,
    streams: Mutex<Streams>,
    pub(crate) trace: Trace,
    closed: AtomicBool,
    set_aside: Option<PathBuf>,
}

/// How far the sealer is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    /// The number of the newest batch whose log is in the bucket.
    pub shipped: u64,
    /// The sealer has ended; nothing more will be shipped.
    pub ended: bool,
}

/// The tasks of a volume; they end with the last handle.
struct Sealer {
    sealing: Mutex<Option<JoinHandle<()>>>,
    recovering: JoinHandle<()>,
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.recovering.abort();
        if let Some(task) = lock(&self.sealing).take() {
            task.abort();
        }
    }
}

impl Volume {
    /// Opens or creates a volume and starts its sealer on the current runtime.
    ///
    /// `map.db` must be what the log in the bucket says, or newer, never older. What is newer is shipped first, so that the
    /// journal needs to keep only what the map does not have; `Unavailable` if that fails for a minute. Then what the
    /// journal has beyond the map is applied. A journal that does not continue the map is set aside (see
    /// [`Volume::set_aside`]).
    pub async fn open(
        settings: Settings,
        store: Arc<dyn ObjectStore>,
        mut ship: Box<dyn Ship>,
    ) -> Result<Self, Error> {
        let runtime = Handle::current();
        let path = settings.dir.join("map.db");
        let (volume, epoch, dir) = (settings.volume, settings.epoch, settings.dir.clone());
        let map = blocking(move || {
            std::fs::create_dir_all(dir).attempt("create the volume's directory")?;
            Map::open(&path, volume, epoch)
        })
        .await?;
        seal::ship_at_open(&settings, ship.as_mut()).await?;
        settings.failpoints.reach(Point::OpenShipped).await;
        let shared = blocking(move || Shared::open(settings, store, ship, map, runtime)).await?;
        let shared = Arc::new(shared);
        let sealing = Mutex::new(Some(tokio::spawn(seal::run(shared.clone()))));
        let recovering = tokio::spawn(recovery::run(shared.clone()));
        let traced = Arc::downgrade(&shared);
        drop(tokio::task::spawn_blocking(move || wake::prefetch(&traced)));
        Ok(Self { shared, sealer: Arc::new(Sealer { sealing, recovering }) })
    }

    /// Reads whole blocks. Blocks the thread; must not be called from a task of the runtime.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.shared.check_open()?;
        let blocks = block_range(offset, buffer.len() as u64)?;
        self.shared.read(blocks, buffer)
    }

    /// Writes whole blocks. Durable after the next [`Volume::flush`].
    ///
    /// Returns late when much is unsealed, and waits at the bound. Blocks the thread then.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        block_range(offset, data.len() as u64)?;
        for part in data.chunks(self.shared.settings.record_bytes_max()) {
            let at = offset + (part.as_ptr() as usize - data.as_ptr() as usize) as u64;
            let admission = self.shared.write(at, part)?;
            self.shared.wait_admitted(admission);
        }
        Ok(())
    }

    /// Writes whole blocks without waiting. The write must not be acknowledged before its admission.
    pub(crate) fn begin_write(&self, offset: u64, data: &[u8]) -> Result<Admission, Error> {
        block_range(offset, data.len() as u64)?;
        self.shared.write(offset, data)
    }

    /// Makes whole blocks zero and gives their space back. Durable after the next [`Volume::flush`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), Error> {
        let admission = self.begin_discard(offset, length)?;
        self.shared.wait_admitted(admission);
        Ok(())
    }

    /// Makes whole blocks zero without waiting. The same holds as for [`Volume::begin_write`].
    pub(crate) fn begin_discard(&self, offset: u64, length: u64) -> Result<Admission, Error> {
        if block_range(offset, length)?.is_empty() {
            return self.shared.check_open().map(|()| Admission::default());
        }
        let applied = self.shared.append(RecordKind::Discard, offset, length, (&[], 0))?;
        Ok(applied.admission)
    }

    /// Returns when everything that was written before the call is durable: on the local disk, or, in strict mode, in the
    /// bucket. Blocks the thread.
    pub fn flush(&self) -> Result<(), Error> {
        match self.shared.begin_flush()? {
            Some(unflushed) => self.shared.wait_flushed(unflushed),
            None => Ok(()),
        }
    }

    /// Makes everything durable as far as that takes no waiting for the bucket, and says what is left to wait for.
    pub(crate) fn begin_flush(&self) -> Result<Option<Unflushed>, Error> {
        self.shared.begin_flush()
    }

    /// Returns when a begun flush may be acknowledged.
    pub(crate) async fn flushed(&self, unflushed: Unflushed) -> Result<(), Error> {
        self.shared.flushed(unflushed).await
    }

    /// Returns when a begun write or discard may be acknowledged.
    pub(crate) async fn admitted(&self, admission: Admission) {
        self.shared.admitted(admission).await;
    }

    /// Runs a task on the runtime that the volume was opened on.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.shared.runtime.spawn(task));
    }

    /// Changes when flushes are acknowledged, from the next one on.
    pub fn set_durability(&self, durability: Durability) {
        self.shared.health.set_durability(durability);
    }

    /// When flushes are acknowledged.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.shared.health.durability()
    }

    /// Returns when everything that was written before the call is in the bucket, the log included.
    pub async fn seal(&self) -> Result<(), Error> {
        self.shared.check_open()?;
        self.shared.seal_all().await
    }

    /// Ends the live layer at this instant. Local and quick; meant to be called while the filesystem is frozen.
    pub fn cut(&self) -> Result<Cut, Error> {
        self.shared.cut()
    }

    /// Ends the time whose reads are remembered for the next wake: the filesystem is not used any more.
    pub fn end_trace(&self) {
        self.shared.trace.end();
    }

    /// How much is where. Walks the whole map, so it is for people and not for loops.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.shared.check_open()?;
        let usage = self.shared.map.usage()?;
        let logical_blocks = self.shared.map.live_blocks()?;
        Ok(Stats {
            logical_bytes: logical_blocks * BLOCK_BYTES as u64,
            live_bytes: usage.referenced_blocks * BLOCK_BYTES as u64,
            stored_bytes: usage.stored_bytes,
            reclaimable_bytes: usage.reclaimable_bytes,
            segments: usage.segments,
            layers: usage.layers,
            cached_bytes: self.shared.cache.bytes(),
        })
    }

    /// Where a journal went that did not continue the map when the volume was opened: writes that another epoch never saw.
    #[must_use]
    pub fn set_aside(&self) -> Option<&PathBuf> {
        self.shared.set_aside.as_ref()
    }

    /// Seals everything, stops the sealer, and ends. Every handle fails with `Closed` afterwards.
    ///
    /// With a bucket that is away this waits; dropped meanwhile, it leaves the journal for the next open.
    pub async fn close(self) -> Result<(), Error> {
        let shared = self.shared.clone();
        if shared.closed.swap(true, Ordering::SeqCst) {
            return Err(Error::closed());
        }
        shared.wake_waiters();
        shared.seal_all().await?;
        shared.settings.failpoints.reach(Point::CloseSealed).await;
        let task = lock(&self.sealer.sealing).take();
        if let Some(task) = task {
            task.abort();
            // An aborted task reports that it was aborted, which is what was asked for.
            drop(task.await);
        }
        let operations = shared.operations.clone();
        let _no_more = operations.lock().await;
        blocking(move || shared.finish()).await
    }
}

#[cfg(test)]
impl Volume {
    /// Whether there is nothing more to recover, or it failed.
    pub(crate) fn recovery_ended(&self) -> bool {
        self.sealer.recovering.is_finished()
    }
}

impl Shared {
    fn open(
        settings: Settings,
        store: Arc<dyn ObjectStore>,
        ship: Box<dyn Ship>,
        map: Map,
        runtime: Handle,
    ) -> Result<Self, Error> {
        let volume = settings.volume;
        let map = Arc::new(map);
        let position = map.position()?;
        let flush = Arc::new(Flush::new(position.sequence, settings.failpoints.clone()));
        let opened = journal::open(&settings, position, flush.clone())?;
        if let Some(path) = &opened.set_aside {
            tracing::warn!(%volume, path = %path.display(), "a journal that does not continue the map was set aside");
        }
        let mut backlog = Backlog::default();
        backlog.bytes += opened.unsealed.iter().map(|record| record.bytes).sum::<u64>();
        let tail = Tail::replayed(position.sequence, opened.unsealed, settings.seal_bytes);
        let tag = Tag { volume, position, head: map.head()? };
        let cache = Arc::new(Cache::open(&settings.dir, settings.cache_bytes_max, &tag)?);
        let segment_next = AtomicU64::new(map.segment_next()?);
        let trace = Trace::new(settings.trace_time);
        let store = Arc::new(Metered::new(store));
        let fetcher =
            Fetcher::new(&settings, store.clone(), runtime.clone(), map.clone(), cache.clone());
        Ok(Self {
            health: Health::new(settings.durability),
            settings,
            store,
            runtime,
            journal: Mutex::new(opened.journal),
            tail: RwLock::new(tail),
            map,
            cache,
            operations: Arc::new(tokio::sync::Mutex::new(ship)),
            backlog: Mutex::new(backlog),
            room: Condvar::new(),
            wake: Notify::new(),
            changed: AtomicBool::new(false),
            segment_next,
            progress: watch::Sender::new(Progress::default()),
            flush,
            fetcher: Arc::new(fetcher),
            streams: Mutex::default(),
            trace,
            closed: AtomicBool::new(false),
            set_aside: opened.set_aside,
        })
    }

    pub(crate) fn cut(&self) -> Result<Cut, Error> {
        let applied = self.append(RecordKind::Cut, 0, 0, (&[], 0))?;
        let layer =
            applied.slot.ok_or_else(|| Error::new(ErrorKind::Internal, "a cut left no layer"))?;
        self.wake.notify_one();
        Ok(Cut { batch: applied.batch, layer })
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.is_closed() { Err(Error::closed()) } else { Ok(()) }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// The last act of a clean close.
    fn finish(&self) -> Result<(), Error> {
        lock(&self.journal).remove_all();
        self.settings.failpoints.pass(Point::CloseJournalGone).attempt("end the volume")?;
        let tag = Tag {
            volume: self.settings.volume,
            position: self.map.position()?,
            head: self.map.head()?,
        };
        self.cache.save(&tag).attempt("save the cache's index")
    }

    /// The map's position after a batch.
    pub(crate) fn position_after(&self, sequence: u64) -> Position {
        Position { epoch: self.settings.epoch, sequence }
    }
}

/// The blocks of an aligned range inside the volume.
pub(crate) fn block_range(offset: u64, length: u64) -> Result<Range<u32>, Error> {
    let block = BLOCK_BYTES as u64;
    let end = offset.checked_add(length).filter(|end| *end <= VOLUME_BYTES);
    match end {
        Some(end) if offset.is_multiple_of(block) && length.is_multiple_of(block) => {
            let number = |offset: u64| {
                u32::try_from(offset / block).expect("a volume has fewer than 2^32 blocks")
            };
            Ok(number(offset)..number(end))
        }
        _ => Err(Error::new(
            ErrorKind::Invalid,
            format!("offset {offset} and length {length} are not whole blocks inside the volume"),
        )),
    }
}

#[cfg(test)]
mod edges;
#[cfg(test)]
mod model;
