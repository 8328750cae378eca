//! What is read in the first seconds after an open is remembered in the map, and asked for at once at the next open.
//!
//! A wake on a worker that has nothing reads in a chain: superblock, group descriptors, directories, programs, each known
//! only when the one before is there. With the trace of the last wake, all of it is on its way before it is asked for.
//!
//! The trace goes into the map with the first batch that is committed when its time is over, so it costs no request. What
//! it says is a hint: the blocks are looked up in the map as it is now.

use crate::{
    BLOCK_BYTES,
    cache::EXTENT_BLOCKS,
    error::Error,
    fetch::Wanted,
    sync::lock,
    volume::{Shared, block_range},
};
use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The most extents that are remembered: 32 MiB.
const EXTENTS_MAX: usize = 512;

/// So many extents are asked for together: 4 MiB.
const BATCH_EXTENTS: usize = 64;

/// The reads since the volume was opened.
#[derive(Debug)]
pub(crate) struct Trace {
    /// Whether reads are still noted, so that all later ones need no lock.
    noting: AtomicBool,
    read: Mutex<Reads>,
}

#[derive(Debug)]
struct Reads {
    until: Instant,
    /// In the order in which they were read first.
    order: Vec<u32>,
    known: HashSet<u32>,
}

impl Trace {
    /// Begins now.
    pub(crate) fn new(time: Duration) -> Self {
        let until = Instant::now() + time;
        let read = Reads { until, order: Vec::new(), known: HashSet::new() };
        Self { noting: AtomicBool::new(true), read: Mutex::new(read) }
    }

    /// Notes a read of sealed blocks.
    pub(crate) fn note(&self, blocks: &Range<u32>) {
        if !self.noting.load(Ordering::Relaxed) {
            return;
        }
        let Reads { until, order, known } = &mut *lock(&self.read);
        if Instant::now() >= *until {
            return;
        }
        for extent in blocks.start / EXTENT_BLOCKS..blocks.end.div_ceil(EXTENT_BLOCKS) {
            if order.len() < EXTENTS_MAX && known.insert(extent) {
                order.push(extent);
            }
        }
    }

    /// Reads from now on do not count.
    pub(crate) fn end(&self) {
        if self.noting.load(Ordering::Relaxed) {
            let until = &mut lock(&self.read).until;
            *until = Instant::now().min(*until);
        }
    }

    /// What was read, when the time is over and it is not saved yet.
    pub(crate) fn due(&self) -> Option<Vec<u32>> {
        if !self.noting.load(Ordering::Relaxed) {
            return None;
        }
        let read = lock(&self.read);
        (Instant::now() >= read.until && !read.order.is_empty()).then(|| read.order.clone())
    }

    /// The map has it.
    pub(crate) fn saved(&self) {
        self.noting.store(false, Ordering::Relaxed);
        let read = &mut *lock(&self.read);
        (read.order, read.known) = (Vec::new(), HashSet::new());
    }
}

/// Reads what the last wake read and the cache lacks. Blocks the thread; ends early when the volume is closed.
pub(crate) fn prefetch(volume: &Weak<Shared>) {
    let Some(extents) = volume.upgrade().map(|shared| shared.map.trace()) else { return };
    let fetched = extents.and_then(|extents| {
        extents.chunks(BATCH_EXTENTS).try_for_each(|batch| {
            let Some(shared) = volume.upgrade() else { return Ok(()) };
            let (fetcher, missing) = (shared.fetcher.clone(), shared.missing(batch)?);
            // The bucket may be slow, and a volume that nobody holds is to end.
            drop(shared);
            fetcher.fetch(&missing, &[], |_, _| ())
        })
    });
    if let Err(error) = fetched {
        tracing::debug!(%error, "what the last wake read is not read ahead");
    }
}

impl Shared {
    /// The blocks of extents that are in the bucket and not in the cache.
    fn missing(&self, extents: &[u32]) -> Result<Vec<Wanted>, Error> {
        self.check_open()?;
        let mut missing = Vec::new();
        for extent in extents {
            let bytes = u64::from(EXTENT_BLOCKS) * BLOCK_BYTES as u64;
            // The number comes from the bucket, so it may be any.
            if let Ok(blocks) = block_range(u64::from(*extent) * bytes, bytes) {
                self.wanted(&blocks, &mut missing)?;
            }
        }
        missing.retain(|wanted| !self.cache.has(wanted.block));
        Ok(missing)
    }
}

#[cfg(test)]
mod tests;
