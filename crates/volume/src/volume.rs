//! A volume: reads, writes, flushes, cuts, and what ties journal, tail, map, cache and sealer together.
//!
//! States: open, then closed. Closing first refuses new operations, then seals what is there, then deletes the journal.
//! Dropping the last handle without closing is like a crash: the journal keeps what is not sealed, for the next open.

use crate::{
    BLOCK_BYTES, Settings, VOLUME_BYTES, byte_offset,
    cache::{Cache, Tag},
    error::{Attempt as _, Error, ErrorKind},
    fetch::{Fetcher, Streams, Wanted},
    flush::Flush,
    journal::{self, Journal, Position, RecordKind},
    map::{CutSlot, Entry, Map, REGION_BLOCKS},
    seal::{self, blocking},
    segment::RUN_BLOCKS,
    sync::{lock, read, wait, write},
    tail::{Tail, Unsealed},
};
use async_trait::async_trait;
use object_store::ObjectStore;
use std::{
    collections::VecDeque,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
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

/// How far the bucket is behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lag {
    /// Journal bytes that are not in the bucket.
    pub bytes: u64,
    /// The age of the oldest write that is not in the bucket.
    pub seconds: f64,
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
    pub(crate) store: Arc<dyn ObjectStore>,
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
    closed: AtomicBool,
    set_aside: Option<PathBuf>,
}

/// What was written and is not shipped.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub bytes: u64,
    /// Batches that are committed and not yet shipped: bytes and first write.
    pub committed: VecDeque<(u64, Option<Instant>)>,
}

/// How far the sealer is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    /// The number of the newest batch whose log is in the bucket.
    pub shipped: u64,
    /// The sealer has ended; nothing more will be shipped.
    pub ended: bool,
}

/// The sealer's task; dropped with the last handle.
struct Sealer(Mutex<Option<JoinHandle<()>>>);

impl Drop for Sealer {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.0).take() {
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
        let shared = blocking(move || Shared::open(settings, store, ship, map, runtime)).await?;
        let shared = Arc::new(shared);
        let task = tokio::spawn(seal::run(shared.clone()));
        Ok(Self { shared, sealer: Arc::new(Sealer(Mutex::new(Some(task)))) })
    }

    /// Reads whole blocks. Blocks the thread; must not be called from a task of the runtime.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.shared.check_open()?;
        let blocks = block_range(offset, buffer.len() as u64)?;
        self.shared.read(blocks, buffer)
    }

    /// Writes whole blocks. Waits when too much is unsealed. Durable after the next [`Volume::flush`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        block_range(offset, data.len() as u64)?;
        let mut at = offset;
        for chunk in data.chunks(self.shared.settings.record_bytes_max()) {
            let crc = crc32c::crc32c(chunk);
            self.shared.append(RecordKind::Write, at, chunk.len() as u64, (chunk, crc))?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Makes whole blocks zero and gives their space back. Durable after the next [`Volume::flush`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), Error> {
        if block_range(offset, length)?.is_empty() {
            return self.shared.check_open();
        }
        self.shared.append(RecordKind::Discard, offset, length, (&[], 0)).map(drop)
    }

    /// Returns when everything that was written before the call is durable on the local disk.
    pub fn flush(&self) -> Result<(), Error> {
        self.shared.check_open()?;
        self.shared.flush.flush()
    }

    /// Returns when everything that was written before the call is in the bucket, the log included.
    pub async fn seal(&self) -> Result<(), Error> {
        self.shared.check_open()?;
        self.shared.seal_all().await
    }

    /// Ends the live layer at this instant. Local and quick; meant to be called while the filesystem is frozen.
    pub fn cut(&self) -> Result<Cut, Error> {
        let (batch, layer) = self.shared.append(RecordKind::Cut, 0, 0, (&[], 0))?;
        let layer = layer.ok_or_else(|| Error::new(ErrorKind::Internal, "a cut left no layer"))?;
        self.shared.wake.notify_one();
        Ok(Cut { batch, layer })
    }

    /// How far the bucket is behind.
    #[must_use]
    pub fn lag(&self) -> Lag {
        let active = read(&self.shared.tail).oldest_write();
        let backlog = lock(&self.shared.backlog);
        let oldest = backlog.committed.front().and_then(|(_, since)| *since).or(active);
        let seconds = oldest.map_or(0.0, |since| since.elapsed().as_secs_f64());
        Lag { bytes: backlog.bytes, seconds }
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
        shared.room.notify_all();
        shared.seal_all().await?;
        let task = lock(&self.sealer.0).take();
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
        let flush = Arc::new(Flush::new(position.sequence));
        let opened = journal::open(&settings, position, flush.clone())?;
        if let Some(path) = &opened.set_aside {
            tracing::warn!(%volume, path = %path.display(), "a journal that does not continue the map was set aside");
        }
        let mut tail = Tail::new(position.sequence);
        let mut backlog = Backlog::default();
        let now = Instant::now();
        for record in opened.unsealed {
            backlog.bytes += record.bytes;
            tail.apply(record, now);
            if tail.active_bytes() >= settings.seal_bytes {
                tail.freeze();
            }
        }
        let tag = Tag { volume, position, head: map.head()? };
        let cache = Arc::new(Cache::open(&settings.dir, settings.cache_bytes_max, &tag)?);
        let segment_next = AtomicU64::new(map.segment_next()?);
        let fetcher =
            Arc::new(Fetcher::new(&settings, store.clone(), runtime, map.clone(), cache.clone()));
        Ok(Self {
            settings,
            store,
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
            fetcher,
            streams: Mutex::default(),
            closed: AtomicBool::new(false),
            set_aside: opened.set_aside,
        })
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::closed()) } else { Ok(()) }
    }

    /// Appends a record and applies it to the tail. Returns the number of its batch, and the slot of a cut.
    fn append(
        &self,
        kind: RecordKind,
        offset: u64,
        length: u64,
        data: (&[u8], u32),
    ) -> Result<(u64, Option<Arc<CutSlot>>), Error> {
        if kind != RecordKind::Cut {
            self.wait_for_room()?;
        }
        let mut journal = lock(&self.journal);
        self.check_open()?;
        if self.flush.failed() {
            return Err(Error::new(
                ErrorKind::Internal,
                "the journal could not be synced; nothing more is accepted",
            ));
        }
        let record = self.with_room(|| journal.append(kind, offset, length, data))?;
        lock(&self.backlog).bytes += record.bytes;
        let mut tail = write(&self.tail);
        let first = tail.active_since().is_none();
        let batch = tail.active_number();
        let slot = tail.apply(record, Instant::now());
        let full = tail.active_bytes() >= self.settings.seal_bytes;
        if full {
            tail.freeze();
        }
        drop(tail);
        drop(journal);
        if first || full {
            self.wake.notify_one();
        }
        Ok((batch, slot))
    }

    /// Runs something that writes to the local disk, and once more without the cache if the disk is full.
    pub(crate) fn with_room<T>(
        &self,
        mut work: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        match work() {
            Err(error) if error.kind() == ErrorKind::Exhausted && self.cache.bytes() > 0 => {
                tracing::warn!("the local disk is full; the cache is given up for the journal");
                self.cache.clear();
                work()
            }
            result => result,
        }
    }

    /// Waits until the unsealed tail is below its bound.
    fn wait_for_room(&self) -> Result<(), Error> {
        let mut backlog = lock(&self.backlog);
        while backlog.bytes >= self.settings.tail_bytes_max {
            self.check_open()?;
            backlog = wait(&self.room, backlog);
        }
        Ok(())
    }

    fn read(&self, blocks: Range<u32>, buffer: &mut [u8]) -> Result<(), Error> {
        let first = blocks.start;
        let (found, missing) = read(&self.tail).find(blocks);
        for (part, value) in found {
            let part = slice(buffer, first, &part);
            match value {
                Unsealed::Data(place) => place.read(part).attempt("read from the journal")?,
                Unsealed::Zero => part.fill(0),
            }
        }
        for part in missing {
            let target = slice(buffer, first, &part);
            self.read_sealed(part, target)?;
        }
        Ok(())
    }

    /// Reads blocks that are not in the tail: from the cache, else from the bucket, zero where the map has nothing.
    fn read_sealed(&self, blocks: Range<u32>, buffer: &mut [u8]) -> Result<(), Error> {
        let ticket = self.cache.ticket();
        let first = blocks.start;
        let mut wanted = Vec::new();
        for block in blocks.clone() {
            buffer_block(buffer, first, block).fill(0);
        }
        self.wanted(&blocks, &mut wanted)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let mut hit = vec![false; wanted.len()];
        for group in wanted.chunk_by(|a, b| a.block + 1 == b.block) {
            let [start, .., end] =
                [group.first(), group.last()].map(|wanted| wanted.map_or(0, |wanted| wanted.block));
            self.cache.read(start..end + 1, |block, data| {
                if let Ok(at) = wanted.binary_search_by_key(&block, |wanted| wanted.block)
                    && crc32c::crc32c(data) == wanted[at].crc
                {
                    buffer_block(buffer, first, block).copy_from_slice(data);
                    hit[at] = true;
                }
            });
        }
        let needed: Vec<Wanted> =
            wanted.iter().zip(&hit).filter(|(_, hit)| !**hit).map(|(wanted, _)| *wanted).collect();
        let ahead = self.ahead(&blocks, &needed)?;
        self.fetcher.fetch(ticket, &needed, &ahead, |block, data| {
            buffer_block(buffer, first, block).copy_from_slice(data);
        })
    }

    /// The sealed blocks of a range that are not zero.
    fn wanted(&self, blocks: &Range<u32>, wanted: &mut Vec<Wanted>) -> Result<(), Error> {
        let mut at = blocks.start;
        while at < blocks.end {
            let number = at / REGION_BLOCKS;
            let end = blocks.end.min((number + 1) * REGION_BLOCKS);
            let region = self.map.region(number)?;
            for block in at..end {
                if let Entry::Block { segment, index, crc } = region.entry(block % REGION_BLOCKS) {
                    wanted.push(Wanted { block, segment, index, crc });
                }
            }
            at = end;
        }
        Ok(())
    }

    /// What to read besides the needed blocks: the rest of their runs, and what a sequential reader will need next.
    fn ahead(&self, blocks: &Range<u32>, needed: &[Wanted]) -> Result<Vec<Wanted>, Error> {
        let mut wanted = Vec::new();
        for needed in needed
            .chunk_by(|a, b| a.segment == b.segment && a.index / RUN_BLOCKS == b.index / RUN_BLOCKS)
        {
            let Some(first) = needed.first() else { continue };
            let region = first.block / REGION_BLOCKS;
            for (offset, entry) in self.map.region(region)?.entries() {
                if let Entry::Block { segment, index, crc } = entry
                    && (segment, index / RUN_BLOCKS) == (first.segment, first.index / RUN_BLOCKS)
                {
                    wanted.push(Wanted {
                        block: region * REGION_BLOCKS + offset,
                        segment,
                        index,
                        crc,
                    });
                }
            }
        }
        let stream = lock(&self.streams).advance(blocks);
        let mut next = Vec::new();
        self.wanted(&stream, &mut next)?;
        next.retain(|wanted| !self.cache.has(wanted.block));
        wanted.append(&mut next);
        Ok(wanted)
    }

    /// Freezes what is there and waits until the bucket has it.
    pub(crate) async fn seal_all(&self) -> Result<(), Error> {
        let batch = write(&self.tail).freeze();
        self.wake.notify_one();
        self.wait_shipped(batch).await
    }

    /// Waits until a batch and all before it are in the bucket, the log included.
    pub(crate) async fn wait_shipped(&self, batch: u64) -> Result<(), Error> {
        let mut progress = self.progress.subscribe();
        let reached =
            progress.wait_for(|progress| progress.shipped >= batch || progress.ended).await;
        match reached {
            Ok(progress) if progress.shipped >= batch => Ok(()),
            _ => Err(Error::closed()),
        }
    }

    /// Everything up to the batch, whose last record is `sequence`, is in the bucket.
    pub(crate) fn shipped(&self, batch: u64, sequence: u64) {
        lock(&self.journal).release(sequence);
        let mut backlog = lock(&self.backlog);
        let bytes: u64 = backlog.committed.drain(..).map(|(bytes, _)| bytes).sum();
        backlog.bytes -= bytes;
        drop(backlog);
        self.room.notify_all();
        self.progress.send_modify(|progress| progress.shipped = batch);
    }

    /// The last act of a clean close.
    fn finish(&self) -> Result<(), Error> {
        lock(&self.journal).remove_all();
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

/// The part of a buffer that begins at block `first` for some blocks.
fn slice<'a>(buffer: &'a mut [u8], first: u32, blocks: &Range<u32>) -> &'a mut [u8] {
    let at =
        |block: u32| usize::try_from(byte_offset(block - first)).expect("a buffer fits memory");
    &mut buffer[at(blocks.start)..at(blocks.end)]
}

pub(crate) fn buffer_block(buffer: &mut [u8], first: u32, block: u32) -> &mut [u8] {
    slice(buffer, first, &(block..block + 1))
}

#[cfg(test)]
mod edges;
#[cfg(test)]
mod tests;
