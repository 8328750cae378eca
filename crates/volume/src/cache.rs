//! The local cache: sealed blocks in `cache.img`, a sparse file with the volume's geometry.
//!
//! A block lies at its own offset, so all that must be kept in memory is which blocks are there: one entry of a hash table
//! per extent of 64 KiB that has any. Above `bytes_max`, extents leave by the policy of [`queue`], with a hole punched.
//!
//! # Validity
//!
//! A present block is the map's current block. Whoever changes the map removes what changes first, which also ends every
//! fill that began before ([`Ticket`]). On top of that, readers check each block's CRC32C against the map, so a damaged or
//! wiped file costs a read from the bucket and nothing else.
//!
//! What is present survives a clean close in `cache.index`, which counts only for exactly the map's position and head.

mod index;
mod page;
mod queue;

use crate::{
    BLOCK_BYTES, byte_offset,
    error::{Attempt as _, Error},
    sync::lock,
};
pub(crate) use index::Tag;
pub(crate) use page::PageBuffer;
use page::is_page_aligned;
use queue::Queue;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

/// The blocks of an extent: 64 KiB, the size of a segment's run.
pub(crate) const EXTENT_BLOCKS: u32 = 16;

/// Fills of so many bytes go past the page cache, if they lie at a page. Who wrote them has them in the page cache of the
/// disk above; a second copy costs memory and the time to make it, and a large write is quick without.
const DIRECT_BYTES_MIN: usize = 256 << 10;

/// The cache of one volume.
#[derive(Debug)]
pub(crate) struct Cache {
    file: File,
    /// The same file past the page cache, where the filesystem can do that.
    direct: Option<File>,
    index_path: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The present blocks of each extent that has any, one bit each.
    present: HashMap<u32, u16>,
    queue: Queue,
    blocks: u64,
    /// Counts removals, so that a fill which began before one is refused.
    removals: u64,
}

/// Proof of when a reader looked at the map. A fill with a ticket from before a change of the map is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Cache {
    /// Opens or creates the cache in a directory. What it held counts only if it was saved with the same tag.
    pub(crate) fn open(dir: &Path, bytes_max: u64, tag: &Tag) -> Result<Self, Error> {
        let path = dir.join("cache.img");
        let index_path = dir.join("cache.index");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.attempt("open the cache")?;
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("flags of an open are few");
        let direct = OpenOptions::new().write(true).custom_flags(flags).open(&path).ok();
        let mut state = State::default();
        let saved = index::load(&index_path, tag);
        // The index must never outlive a change of the cache, so it goes before the first one.
        index::remove(&index_path).attempt("remove the cache's index")?;
        match saved {
            Some(extents) => {
                for (extent, blocks) in extents {
                    state.add(extent, blocks);
                }
            }
            None => file.set_len(0).attempt("empty the cache")?,
        }
        file.set_len(crate::VOLUME_BYTES).attempt("size the cache")?;
        Ok(Self { file, direct, index_path, bytes_max, state: Mutex::new(state) })
    }

    /// A ticket for blocks that are about to be looked up in the map.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(lock(&self.state).removals)
    }

    /// Reads the blocks that are present to their places in a buffer for the whole range, and tells which they are. The
    /// caller checks them; where one is missing, the buffer may hold anything.
    pub(crate) fn read(&self, blocks: Range<u32>, buffer: &mut [u8]) -> Vec<Range<u32>> {
        let mut runs = self.present_runs(blocks.clone());
        runs.retain(|run| {
            let at = (run.start - blocks.start) as usize * BLOCK_BYTES;
            let target = &mut buffer[at..at + run.len() * BLOCK_BYTES];
            // An error is a miss. The disk's own trouble shows up where it matters, in the journal.
            self.file.read_exact_at(target, byte_offset(run.start)).is_ok()
        });
        runs
    }

    /// What the present blocks take.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.state).blocks * BLOCK_BYTES as u64
    }

    /// Whether a block is present. It may be evicted at any time.
    pub(crate) fn has(&self, block: u32) -> bool {
        let state = lock(&self.state);
        state.present.get(&(block / EXTENT_BLOCKS)).is_some_and(|bits| bits & bit(block) != 0)
    }

    /// The present parts of a range. Marks their extents as used.
    fn present_runs(&self, blocks: Range<u32>) -> Vec<Range<u32>> {
        let mut state = lock(&self.state);
        let mut runs: Vec<Range<u32>> = Vec::new();
        for (extent, mask) in extents_of(&blocks) {
            let present = state.present.get(&extent).copied().unwrap_or(0) & mask;
            if present == 0 {
                continue;
            }
            state.queue.used(extent);
            for offset in (0..EXTENT_BLOCKS).filter(|offset| present & (1 << offset) != 0) {
                let block = extent * EXTENT_BLOCKS + offset;
                match runs.last_mut() {
                    Some(run) if run.end == block => run.end += 1,
                    _ => runs.push(block..block + 1),
                }
            }
        }
        runs
    }

    /// Puts consecutive blocks in; false if the map has changed since the ticket. Failure to write is no failure: the blocks
    /// are not present then.
    pub(crate) fn fill(&self, ticket: Ticket, first: u32, data: &[u8]) -> bool {
        let count = u32::try_from(data.len() / BLOCK_BYTES).expect("a fill is bounded");
        let mut state = lock(&self.state);
        if Ticket(state.removals) != ticket {
            return false;
        }
        if self.bytes_max == 0 {
            return true;
        }
        if let Err(error) = self.write(first, data) {
            tracing::debug!(%error, "cannot write to the cache");
            return true;
        }
        for (extent, mask) in extents_of(&(first..first + count)) {
            state.add(extent, mask);
        }
        self.evict(&mut state);
        true
    }

    fn write(&self, first: u32, data: &[u8]) -> io::Result<()> {
        let offset = byte_offset(first);
        if let Some(direct) = &self.direct
            && data.len() >= DIRECT_BYTES_MIN
            && is_page_aligned(data)
            && direct.write_all_at(data, offset).is_ok()
        {
            return Ok(());
        }
        // Also where a disk wants a larger alignment than a page.
        self.file.write_all_at(data, offset)
    }

    /// Takes blocks out, because the map is about to say something else about them.
    pub(crate) fn remove(&self, ranges: impl IntoIterator<Item = Range<u32>>) -> Ticket {
        let mut state = lock(&self.state);
        state.removals += 1;
        for range in ranges {
            state.remove(&range);
        }
        Ticket(state.removals)
    }

    /// Gives the space of blocks back that are zero now. They must have been removed.
    pub(crate) fn punch(&self, range: Range<u32>) {
        let state = lock(&self.state);
        if extents_of(&range)
            .all(|(extent, mask)| state.present.get(&extent).is_none_or(|bits| bits & mask == 0))
        {
            self.punch_hole(range);
        }
    }

    /// Gives all space back, because the disk is full and everything here is in the bucket.
    pub(crate) fn clear(&self) {
        let mut state = lock(&self.state);
        if state.blocks > 0 {
            let removals = state.removals + 1;
            *state = State { removals, ..State::default() };
            self.punch_hole(0..crate::VOLUME_BLOCKS);
        }
    }

    /// Remembers what is present. The cache must not change any more.
    pub(crate) fn save(&self, tag: &Tag) -> io::Result<()> {
        let state = lock(&self.state);
        index::save(
            &self.index_path,
            tag,
            state.present.iter().map(|(extent, bits)| (*extent, *bits)),
        )
    }

    fn evict(&self, state: &mut State) {
        while state.blocks * BLOCK_BYTES as u64 > self.bytes_max {
            let Some(extent) = state.queue.evict() else { break };
            let bits = state.present.remove(&extent).unwrap_or(0);
            state.blocks -= u64::from(bits.count_ones());
            self.punch_hole(extent * EXTENT_BLOCKS..(extent + 1) * EXTENT_BLOCKS);
        }
    }

    fn punch_hole(&self, range: Range<u32>) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, length) = (byte_offset(range.start), byte_offset(range.end - range.start));
        if let Err(error) = fallocate(&self.file, flags, offset, length) {
            tracing::debug!(%error, "cannot give space of the cache back");
        }
    }
}

impl State {
    fn add(&mut self, extent: u32, mask: u16) {
        let bits = self.present.entry(extent).or_insert(0);
        if *bits == 0 {
            self.queue.insert(extent);
        }
        self.blocks += u64::from((mask & !*bits).count_ones());
        *bits |= mask;
    }

    fn remove(&mut self, range: &Range<u32>) {
        // A discard of the whole volume has more extents than the cache: then look at what is here instead.
        let extents = range.end.div_ceil(EXTENT_BLOCKS).saturating_sub(range.start / EXTENT_BLOCKS);
        let touched: Vec<(u32, u16)> = if extents as usize > self.present.len() {
            let all = self.present.keys().copied().collect::<Vec<_>>();
            all.into_iter()
                .filter_map(|extent| mask_of(extent, range).map(|mask| (extent, mask)))
                .collect()
        } else {
            extents_of(range).collect()
        };
        for (extent, mask) in touched {
            let Some(bits) = self.present.get_mut(&extent) else { continue };
            self.blocks -= u64::from((*bits & mask).count_ones());
            *bits &= !mask;
            if *bits == 0 {
                self.present.remove(&extent);
                self.queue.remove(extent);
            }
        }
    }
}

fn bit(block: u32) -> u16 {
    1 << (block % EXTENT_BLOCKS)
}

/// The extents that a range touches, with the bits of its blocks.
fn extents_of(range: &Range<u32>) -> impl Iterator<Item = (u32, u16)> {
    let range = range.clone();
    (range.start / EXTENT_BLOCKS..range.end.div_ceil(EXTENT_BLOCKS))
        .filter_map(move |extent| mask_of(extent, &range).map(|mask| (extent, mask)))
}

fn mask_of(extent: u32, range: &Range<u32>) -> Option<u16> {
    let first = extent * EXTENT_BLOCKS;
    let (start, end) = (range.start.max(first), range.end.min(first + EXTENT_BLOCKS));
    if start >= end {
        return None;
    }
    Some((start..end).map(bit).fold(0, |mask, bit| mask | bit))
}

#[cfg(test)]
mod tests;
