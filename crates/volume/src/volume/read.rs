//! Reading: the unsealed tail, then the local cache, then the bucket.

use super::Shared;
use crate::{
    byte_offset,
    error::{Attempt as _, Error},
    fetch::Wanted,
    map::{Entry, REGION_BLOCKS},
    segment::RUN_BLOCKS,
    sync::{lock, read},
    tail::Unsealed,
};
use std::ops::Range;

/// How often the map is looked at for one read.
const LOOKS_MAX: u32 = 8;

impl Shared {
    pub(super) fn read(&self, blocks: Range<u32>, buffer: &mut [u8]) -> Result<(), Error> {
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

    /// Reads blocks that are not in the tail. What the map said may be gone when it is asked for, if this thread was not let run
    /// for longer than garbage is kept; then it is looked up again.
    fn read_sealed(&self, blocks: Range<u32>, buffer: &mut [u8]) -> Result<(), Error> {
        let mut looks = 0;
        loop {
            looks += 1;
            let mut asked = Vec::new();
            match self.read_as_mapped(blocks.clone(), buffer, &mut asked) {
                Err(error) if looks < LOOKS_MAX && !self.is_mapped(&asked)? => {
                    tracing::debug!(%error, "the map has changed under a read");
                }
                done => return done,
            }
        }
    }

    /// Whether the map still says what was asked for.
    fn is_mapped(&self, asked: &[Wanted]) -> Result<bool, Error> {
        for &Wanted { block, segment, index, crc } in asked {
            let region = self.map.region(block / REGION_BLOCKS)?;
            if region.entry(block % REGION_BLOCKS) != (Entry::Block { segment, index, crc }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads blocks from the cache, else from the bucket, zero where the map has nothing. `asked` gets what was asked of the bucket.
    fn read_as_mapped(
        &self,
        blocks: Range<u32>,
        buffer: &mut [u8],
        asked: &mut Vec<Wanted>,
    ) -> Result<(), Error> {
        let first = blocks.start;
        let mut wanted = Vec::new();
        self.wanted(&blocks, &mut wanted)?;
        if !wanted.is_empty() {
            self.trace.note(&blocks);
        }
        let mut needed = Vec::new();
        let mut end = first;
        for group in wanted.chunk_by(|a, b| a.block + 1 == b.block) {
            let [Some(start), Some(last)] = [group.first(), group.last()] else { continue };
            slice(buffer, first, &(end..start.block)).fill(0);
            end = last.block + 1;
            let range = start.block..end;
            let found = self.cache.read(range.clone(), slice(buffer, first, &range));
            let mut found = found.into_iter().flatten().peekable();
            needed.extend(group.iter().copied().filter(|wanted| {
                let is_there = found.next_if_eq(&wanted.block).is_some();
                !is_there || crc32c::crc32c(buffer_block(buffer, first, wanted.block)) != wanted.crc
            }));
        }
        slice(buffer, first, &(end..blocks.end)).fill(0);
        if wanted.is_empty() {
            return Ok(());
        }
        asked.extend_from_slice(&needed);
        let ahead = self.ahead(&blocks, &needed)?;
        asked.extend_from_slice(&ahead);
        self.fetcher.fetch(&needed, &ahead, |block, data| {
            buffer_block(buffer, first, block).copy_from_slice(data);
        })
    }

    /// The sealed blocks of a range that are not zero.
    pub(crate) fn wanted(
        &self,
        blocks: &Range<u32>,
        wanted: &mut Vec<Wanted>,
    ) -> Result<(), Error> {
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
}

/// The part of a buffer that begins at block `first` for some blocks.
fn slice<'a>(buffer: &'a mut [u8], first: u32, blocks: &Range<u32>) -> &'a mut [u8] {
    let at =
        |block: u32| usize::try_from(byte_offset(block - first)).expect("a buffer fits memory");
    &mut buffer[at(blocks.start)..at(blocks.end)]
}

fn buffer_block(buffer: &mut [u8], first: u32, block: u32) -> &mut [u8] {
    slice(buffer, first, &(block..block + 1))
}
