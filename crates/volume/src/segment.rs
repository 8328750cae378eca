//! The format of a segment: an immutable object with many blocks, compressed in runs.
//!
//! ```text
//! header   "PUCKSEG1" | version u32 | blocks u32 | runs u32 | zeros u32 | volume [16] | epoch u64 | sequence u64 |
//!          CRC32C of header and tables u32                                                                  (60 bytes)
//! blocks   per block: block number u32 | CRC32C u32                                              in the order of the data
//! zeros    per range: first block u32 | count u32                        discarded or all zero since the segment before
//! runs     per run: stored bytes u32 | codec u32 (0 as it is, 1 zstd) | CRC32C of the stored bytes u32
//! data     the stored runs, one after the other
//! ```
//!
//! With a key, everything behind the header is encrypted, in parts: [`encode`](self::encode) draws that.
//!
//! All little-endian. A run holds [`RUN_BLOCKS`] blocks; the last may hold fewer. So the block at index `i` of the block
//! list is in run `i / RUN_BLOCKS`. The header names volume, epoch, sequence and blocks, so that a map can be rebuilt from
//! the segments alone.

mod encode;
mod head;
mod whole;

pub(crate) use encode::{Encoded, decrypt_head, encode};
pub(crate) use head::Head;
pub(crate) use whole::Whole;

use crate::{
    BLOCK_BYTES, VolumeId,
    decode::{DecodeError, Fields},
    keys::{Keys, TAG_BYTES},
};
use bytes::Bytes;
use encode::ENCRYPTED;
use object_store::path::Path;
use std::{borrow::Cow, ops::Range};

/// The blocks of a run: 64 KiB of data.
pub(crate) const RUN_BLOCKS: u32 = 16;

const MAGIC: &[u8; 8] = b"PUCKSEG1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 60;
const ZSTD_LEVEL: i32 = 1;

/// Which segment: its volume, the epoch of its writer and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SegmentName {
    pub volume: VolumeId,
    pub epoch: u64,
    pub sequence: u64,
}

impl SegmentName {
    /// The key in the bucket. Two hexadecimal digits of a checksum spread keys over the store's partitions.
    pub(crate) fn key(&self) -> Path {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sequence.to_le_bytes());
        let spread = crc32c::crc32c(&bytes) & 0xff;
        let Self { volume, epoch, sequence } = self;
        Path::from(format!("volumes/{volume}/segments/{spread:02x}/{epoch:016x}-{sequence:016x}"))
    }
}

/// Where a run lies in the object and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub offset: u64,
    pub stored_bytes: u32,
    pub codec: Codec,
    pub crc: u32,
    /// Encrypted with the key of the segment.
    pub encrypted: bool,
}

impl Run {
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.stored_bytes)
    }

    /// The blocks of this run, which has the number in its segment, from its stored bytes.
    pub(crate) fn decode(
        &self,
        (name, number): (&SegmentName, u32),
        stored: &[u8],
        keys: &Keys,
    ) -> Result<Vec<u8>, DecodeError> {
        self.decompress(&self.decrypt((name, number), stored, keys)?)
    }

    /// What was stored, before it was encrypted.
    fn decrypt<'a>(
        &self,
        (name, number): (&SegmentName, u32),
        stored: &'a [u8],
        keys: &Keys,
    ) -> Result<Cow<'a, [u8]>, DecodeError> {
        if stored.len() != self.stored_bytes as usize || crc32c::crc32c(stored) != self.crc {
            return Err(DecodeError::Checksum("run"));
        }
        if !self.encrypted {
            return Ok(Cow::Borrowed(stored));
        }
        let cipher = keys.of_segment(name).ok_or(DecodeError::NoKey)?;
        let plain = cipher.decrypt(number, &[], stored).map_err(|_wrong| DecodeError::WrongKey)?;
        Ok(Cow::Owned(plain))
    }

    fn decompress(&self, stored: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let data = match self.codec {
            Codec::Plain => stored.to_vec(),
            Codec::Zstd => {
                let most = RUN_BLOCKS as usize * BLOCK_BYTES;
                zstd::bulk::decompress(stored, most)
                    .map_err(|_error| DecodeError::Value("compressed run"))?
            }
        };
        if data.is_empty()
            || !data.len().is_multiple_of(BLOCK_BYTES)
            || data.len() > RUN_BLOCKS as usize * BLOCK_BYTES
        {
            return Err(DecodeError::Value("run length"));
        }
        Ok(data)
    }
}

/// How a run's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Plain,
    Zstd,
}

impl Codec {
    fn number(self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Zstd => 1,
        }
    }

    fn parse(number: u32) -> Result<Self, DecodeError> {
        match number {
            0 => Ok(Self::Plain),
            1 => Ok(Self::Zstd),
            _ => Err(DecodeError::Value("codec")),
        }
    }
}

/// The blocks that go into one segment, in ascending order of their numbers.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub blocks: Vec<BlockEntry>,
    pub zeros: Vec<Range<u32>>,
}

/// A block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockEntry {
    pub block: u32,
    pub crc: u32,
}

/// Makes runs of the blocks of a segment, which come one by one in ascending order: beside what is stored, only one run is
/// in memory. Compressing does not depend on the segment's name, which a collision may change.
pub(crate) struct RunWriter {
    compressor: zstd::bulk::Compressor<'static>,
    /// The blocks of the run that is not full yet.
    raw: Vec<u8>,
    table: Vec<u8>,
    stored: Vec<u8>,
    count: u32,
}

impl RunWriter {
    /// For so many bytes of blocks at most.
    pub(crate) fn new(bytes_max: usize) -> std::io::Result<Self> {
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
            raw: Vec::with_capacity(RUN_BLOCKS as usize * BLOCK_BYTES),
            table: Vec::new(),
            stored: Vec::with_capacity(bytes_max),
            count: 0,
        })
    }

    /// Adds one block.
    pub(crate) fn push(&mut self, block: &[u8]) -> std::io::Result<()> {
        self.raw.extend_from_slice(block);
        if self.raw.len() == RUN_BLOCKS as usize * BLOCK_BYTES {
            self.end_run()?;
        }
        Ok(())
    }

    /// Compresses the run where that saves a tenth.
    fn end_run(&mut self) -> std::io::Result<()> {
        let compressed = self.compressor.compress(&self.raw)?;
        let (codec, stored) = if compressed.len() <= self.raw.len() - self.raw.len() / 10 {
            (Codec::Zstd, &compressed)
        } else {
            (Codec::Plain, &self.raw)
        };
        let length = u32::try_from(stored.len()).expect("a run is at most 64 KiB");
        for field in [length, codec.number(), crc32c::crc32c(stored)] {
            self.table.extend_from_slice(&field.to_le_bytes());
        }
        self.stored.extend_from_slice(stored);
        self.count += 1;
        self.raw.clear();
        Ok(())
    }

    /// The runs of all blocks.
    pub(crate) fn finish(mut self) -> std::io::Result<StoredRuns> {
        if !self.raw.is_empty() {
            self.end_run()?;
        }
        let Self { table, stored, count, .. } = self;
        Ok(StoredRuns { table, data: Bytes::from(stored), count })
    }
}

/// Runs ready to be stored.
#[derive(Debug)]
pub(crate) struct StoredRuns {
    table: Vec<u8>,
    data: Bytes,
    count: u32,
}

impl StoredRuns {
    /// The run table as the map stores it.
    pub(crate) fn table(&self) -> &[u8] {
        &self.table
    }

    /// What comes behind the head of a segment.
    pub(crate) fn data(&self) -> Bytes {
        self.data.clone()
    }
}

/// A segment up to its data, which begins where this ends.
pub(crate) fn encode_head(name: &SegmentName, contents: &Contents, runs: &StoredRuns) -> Vec<u8> {
    let tables = contents.blocks.len() * 8 + contents.zeros.len() * 8 + runs.table.len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + tables);
    let count = |length: usize| u32::try_from(length).expect("a batch is bounded").to_le_bytes();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&count(contents.blocks.len()));
    bytes.extend_from_slice(&runs.count.to_le_bytes());
    bytes.extend_from_slice(&count(contents.zeros.len()));
    bytes.extend_from_slice(name.volume.0.as_bytes());
    bytes.extend_from_slice(&name.epoch.to_le_bytes());
    bytes.extend_from_slice(&name.sequence.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    for entry in &contents.blocks {
        bytes.extend_from_slice(&entry.block.to_le_bytes());
        bytes.extend_from_slice(&entry.crc.to_le_bytes());
    }
    for range in &contents.zeros {
        bytes.extend_from_slice(&range.start.to_le_bytes());
        bytes.extend_from_slice(&(range.end - range.start).to_le_bytes());
    }
    bytes.extend_from_slice(&runs.table);
    let crc = head_crc(&bytes);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The checksum of header and tables, without its own field.
fn head_crc(head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[..HEADER_BYTES - 4]), &head[HEADER_BYTES..])
}

/// The run table of a segment whose data begins at `data_offset`.
pub(crate) fn parse_runs(table: &[u8], data_offset: u32) -> Result<Vec<Run>, DecodeError> {
    let mut fields = Fields::new(table);
    let mut runs = Vec::with_capacity(table.len() / 12);
    let mut offset = u64::from(data_offset);
    while !fields.is_empty() {
        let stored_bytes = fields.u32()?;
        let codec = fields.u32()?;
        let encrypted = codec & ENCRYPTED != 0;
        let codec = Codec::parse(codec & !ENCRYPTED)?;
        let added = if encrypted { TAG_BYTES } else { 0 };
        if stored_bytes as usize > RUN_BLOCKS as usize * BLOCK_BYTES + added {
            return Err(DecodeError::Value("run length"));
        }
        runs.push(Run { offset, stored_bytes, codec, crc: fields.u32()?, encrypted });
        offset += u64::from(stored_bytes);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests;
