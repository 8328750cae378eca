//! The entries of one region in one layer, and their packed form.
//!
//! ```text
//! extent   first block u16 | blocks u16 | segment u32 (0: zero) | index in the segment u32 | CRC32C u32 per block
//!          a zero extent ends after its segment field
//! ```
//!
//! Extents in ascending order, little-endian. A block in no extent is as the layer below has it.

use super::super::{BLOCK_BYTES, decode::DecodeError, decode::Fields};
use std::{num::NonZeroU32, ops::Range};

/// The blocks of a region: 1 MiB. `docs/design/volume.md` has the measurement.
pub(crate) const REGION_BLOCKS: u32 = 256;

const _: () =
    assert!((1 << 30) % (REGION_BLOCKS as usize * BLOCK_BYTES) == 0, "regions tile a GiB");

/// What a layer says about a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Entry {
    /// Nothing: ask the layer below. At the bottom the block is zero.
    #[default]
    Absent,
    /// All bytes are zero.
    Zero,
    /// The block with this index in the segment.
    Block { segment: u32, index: u32, crc: u32 },
}

impl Entry {
    /// What a whole stack says about a block: what no layer has is zero.
    pub(crate) fn or_zero(self) -> Self {
        if self == Self::Absent { Self::Zero } else { self }
    }
}

/// The entries of all blocks of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region(Box<[Entry; REGION_BLOCKS as usize]>);

impl Default for Region {
    fn default() -> Self {
        Self(Box::new([Entry::Absent; REGION_BLOCKS as usize]))
    }
}

impl Region {
    /// The entry of the block that is `block` behind the region's first.
    pub(crate) fn entry(&self, block: u32) -> Entry {
        self.0[block as usize]
    }

    pub(crate) fn set(&mut self, block: u32, entry: Entry) {
        self.0[block as usize] = entry;
    }

    pub(crate) fn fill(&mut self, blocks: Range<u32>, entry: Entry) {
        self.0[blocks.start as usize..blocks.end as usize].fill(entry);
    }

    /// Puts what `above` says over what this says.
    pub(crate) fn overlay(&mut self, above: &Region) {
        for (below, above) in self.0.iter_mut().zip(above.0.iter()) {
            if *above != Entry::Absent {
                *below = *above;
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|entry| *entry == Entry::Absent)
    }

    /// The segment of each block that has one.
    pub(crate) fn segments(&self) -> impl Iterator<Item = u32> {
        self.0.iter().filter_map(|entry| match entry {
            Entry::Block { segment, .. } => Some(*segment),
            Entry::Absent | Entry::Zero => None,
        })
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (u32, Entry)> {
        (0..).zip(self.0.iter().copied())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < REGION_BLOCKS {
            let first = self.entry(at);
            let end =
                (at + 1..REGION_BLOCKS).find(|next| !follows(first, self.entry(*next), next - at));
            let end = end.unwrap_or(REGION_BLOCKS);
            if first != Entry::Absent {
                self.encode_extent(at..end, first, &mut bytes);
            }
            at = end;
        }
        bytes
    }

    fn encode_extent(&self, blocks: Range<u32>, first: Entry, bytes: &mut Vec<u8>) {
        for field in [blocks.start, blocks.end - blocks.start] {
            let field = u16::try_from(field).expect("a region has at most 65535 blocks");
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        let Entry::Block { segment, index, .. } = first else {
            bytes.extend_from_slice(&0u32.to_le_bytes());
            return;
        };
        bytes.extend_from_slice(&segment.to_le_bytes());
        bytes.extend_from_slice(&index.to_le_bytes());
        for block in blocks {
            if let Entry::Block { crc, .. } = self.entry(block) {
                bytes.extend_from_slice(&crc.to_le_bytes());
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut region = Self::default();
        let mut fields = Fields::new(bytes);
        let mut next = 0;
        while !fields.is_empty() {
            let (start, count) = (u32::from(fields.u16()?), u32::from(fields.u16()?));
            let end = start + count;
            if start < next || count == 0 || end > REGION_BLOCKS {
                return Err(DecodeError::Value("extent"));
            }
            next = end;
            let Some(segment) = NonZeroU32::new(fields.u32()?) else {
                region.fill(start..end, Entry::Zero);
                continue;
            };
            let index = fields.u32()?;
            index.checked_add(count).ok_or(DecodeError::Value("index"))?;
            for offset in 0..count {
                let entry = Entry::Block {
                    segment: segment.get(),
                    index: index + offset,
                    crc: fields.u32()?,
                };
                region.set(start + offset, entry);
            }
        }
        Ok(region)
    }
}

/// Whether the entry continues an extent that began `distance` blocks before with `first`.
fn follows(first: Entry, entry: Entry, distance: u32) -> bool {
    match (first, entry) {
        (Entry::Absent, Entry::Absent) | (Entry::Zero, Entry::Zero) => true,
        (Entry::Block { segment, index, .. }, Entry::Block { segment: other, index: at, .. }) => {
            segment == other && at.checked_sub(index) == Some(distance)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, REGION_BLOCKS, Region};

    fn sample() -> Region {
        let mut region = Region::default();
        for block in 3..60 {
            region.set(block, Entry::Block { segment: 7, index: 100 + block, crc: block * 31 });
        }
        region.fill(60..90, Entry::Zero);
        region.set(90, Entry::Block { segment: 8, index: 0, crc: 1 });
        region.set(91, Entry::Block { segment: 8, index: 5, crc: 2 });
        region.set(REGION_BLOCKS - 1, Entry::Block { segment: u32::MAX, index: 9, crc: u32::MAX });
        region
    }

    #[test]
    fn round_trips() {
        let region = sample();
        assert_eq!(Region::decode(&region.encode()), Ok(region));
        assert_eq!(Region::decode(&[]), Ok(Region::default()));
    }

    #[test]
    fn truncated_rows_are_refused_or_shorter() {
        let bytes = sample().encode();
        for length in 0..bytes.len() {
            // A row cut between two extents is a valid shorter row; SQLite's own page checks are the guard there.
            if let Ok(region) = Region::decode(&bytes[..length]) {
                assert_eq!(region.encode(), bytes[..length]);
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [
            &[0, 0, 0, 0, 0, 0, 0, 0][..],
            &[255, 255, 1, 0, 0, 0, 0, 0],
            &[0, 0, 255, 255, 0, 0, 0, 0],
            &[5, 0, 1, 0, 0, 0, 0, 0, 5, 0, 1, 0, 0, 0, 0, 0],
            &[0, 0, 2, 0, 1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(Region::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}
