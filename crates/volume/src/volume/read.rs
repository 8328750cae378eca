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
