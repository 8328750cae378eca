//! Views: a frozen state of the volume, read-only, while the volume goes on.
//!
//! A view shares map, store and cache with its volume. Its layers are kept apart for as long as it lives, even if its
//! checkpoint is deleted. It is what browsing a checkpoint and comparing two of them read.
//!
//! The cache is of the live state. A view reads a block from it only where the live state has the same entry, and only if
//! nothing changed in the cache meanwhile; everything else comes from the bucket, through a small memory of runs.
//!
//! # Failure
//!
//! As with the volume: damage is `Corrupt`, a bucket that is away `Unavailable`, and after the volume's close `Closed`.

use crate::{
    BLOCK_BYTES, byte_offset,
    checkpoint::frozen_layer,
    error::{Error, ErrorKind},
    fetch::{Streams, Wanted},
    map::{Entry, Frozen, REGION_BLOCKS, Region},
    sync::lock,
    volume::{Cut, Shared, Volume, block_range},
};
use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
};

/// The most blocks that are read ahead for a view, so that they fit what it may keep in memory: 1 MiB.
const AHEAD_BLOCKS_MAX: u32 = 256;

/// A frozen state of a volume. Clones are the same view.
#[derive(Clone)]
pub struct View(Arc<Viewed>);

struct Viewed {
    shared: Arc<Shared>,
    frozen: Frozen,
    streams: Mutex<Streams>,
}

impl Drop for Viewed {
    fn drop(&mut self) {
        // Another view that is still there reads them again; most often there is none.
        self.shared.fetcher.forget_recent();
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("View").field(&self.0.frozen).finish()
    }
}

impl Volume {
    /// The state of a checkpoint. It stays readable when the checkpoint is deleted.
    pub fn view(&self, checkpoint_id: &str) -> Result<View, Error> {
        self.shared.check_open()?;
        Ok(View::new(self.shared.clone(), self.shared.map.freeze_checkpoint(checkpoint_id)?))
    }

    /// The state at a cut, without a checkpoint. Returns when the bucket has it.
    pub async fn view_cut(&self, cut: Cut) -> Result<View, Error> {
        self.shared.check_open()?;
        self.shared.wait_shipped(cut.batch).await?;
        let frozen = self.shared.map.freeze_cut(frozen_layer(&cut)?, cut.layer)?;
        Ok(View::new(self.shared.clone(), frozen))
    }
}

impl View {
    fn new(shared: Arc<Shared>, frozen: Frozen) -> Self {
        Self(Arc::new(Viewed { shared, frozen, streams: Mutex::default() }))
    }

    /// Reads whole blocks. Blocks the thread; must not be called from a task of the runtime.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let shared = &self.0.shared;
        shared.check_open()?;
        let blocks = block_range(offset, buffer.len() as u64)?;
        buffer.fill(0);
        let wanted = self.wanted(&blocks)?;
        let needed = self.read_cached(&blocks, wanted, buffer)?;
        if needed.is_empty() {
            return Ok(());
        }
        let mut ahead = lock(&self.0.streams).advance(&blocks);
        ahead.end = ahead.end.min(ahead.start + AHEAD_BLOCKS_MAX);
        let ahead = self.wanted(&ahead)?;
        shared.fetcher.fetch_frozen(&needed, &ahead, |block, data| {
            part(buffer, blocks.start, block).copy_from_slice(data);
        })
    }

    /// The parts, in bytes, where two views of one volume may differ, in ascending order. Costs what the layers hold that
    /// only one of them has, and reads no data: blocks that were written with the same content count as different.
    pub fn changed(&self, other: &Self) -> Result<Vec<Range<u64>>, Error> {
        let shared = &self.0.shared;
        shared.check_open()?;
        if !Arc::ptr_eq(shared, &other.0.shared) {
            return Err(Error::new(ErrorKind::Invalid, "the views are not of one open volume"));
        }
        let mut changed: Vec<Range<u64>> = Vec::new();
        for number in shared.map.differing_regions(&self.0.frozen, &other.0.frozen)? {
            let one = self.region(number)?;
            let two = other.region(number)?;
            for ((block, one), (_, two)) in one.entries().zip(two.entries()) {
                if one.or_zero() == two.or_zero() {
                    continue;
                }
                let start = byte_offset(number * REGION_BLOCKS + block);
                let end = start + BLOCK_BYTES as u64;
                match changed.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => changed.push(start..end),
                }
            }
        }
        Ok(changed)
    }

    fn region(&self, number: u32) -> Result<Arc<Region>, Error> {
        self.0.shared.map.frozen_region(&self.0.frozen, number)
    }

    /// The blocks of a range that are not zero.
    fn wanted(&self, blocks: &Range<u32>) -> Result<Vec<Wanted>, Error> {
        let mut wanted = Vec::new();
        let mut at = blocks.start;
        while at < blocks.end {
            let number = at / REGION_BLOCKS;
            let end = blocks.end.min((number + 1) * REGION_BLOCKS);
            let region = self.region(number)?;
            for block in at..end {
                if let Entry::Block { segment, index, crc } = region.entry(block % REGION_BLOCKS) {
                    wanted.push(Wanted { block, segment, index, crc });
                }
            }
            at = end;
        }
        Ok(wanted)
    }

    /// Takes from the cache what the live state shares with this one. Returns what is left.
    fn read_cached(
        &self,
        blocks: &Range<u32>,
        wanted: Vec<Wanted>,
        buffer: &mut [u8],
    ) -> Result<Vec<Wanted>, Error> {
        let Shared { cache, map, .. } = &*self.0.shared;
        let ticket = cache.ticket();
        let mut missing = Vec::new();
        let mut found = Vec::new();
        for wanted in wanted {
            let live = map.region(wanted.block / REGION_BLOCKS)?;
            let Wanted { block, segment, index, crc } = wanted;
            if live.entry(block % REGION_BLOCKS) != (Entry::Block { segment, index, crc }) {
                missing.push(wanted);
                continue;
            }
            let target = part(buffer, blocks.start, block);
            let is_there = !cache.read(block..block + 1, target).is_empty();
            if is_there && crc32c::crc32c(target) == crc {
                found.push(wanted);
            } else {
                missing.push(wanted);
            }
        }
        if cache.ticket() != ticket {
            // The live state moved on meanwhile, and what was read may be the new content of a block.
            missing.append(&mut found);
        }
        missing.sort_by_key(|wanted| wanted.block);
        Ok(missing)
    }
}

/// The part of a buffer that begins at block `first` for one block.
fn part(buffer: &mut [u8], first: u32, block: u32) -> &mut [u8] {
    let at = (block - first) as usize * BLOCK_BYTES;
    &mut buffer[at..at + BLOCK_BYTES]
}

#[cfg(test)]
mod tests;
