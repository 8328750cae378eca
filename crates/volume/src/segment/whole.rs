//! A whole segment without encryption, as it goes from one volume to another.

use super::{
    BlockEntry, Contents, Encoded, HEADER_BYTES, Head, MAGIC, RUN_BLOCKS, SegmentName, StoredRuns,
    VERSION, encode,
};
use crate::{
    BLOCK_BYTES, VolumeId,
    decode::{DecodeError, Fields},
    keys::Keys,
};
use base::__uuid::Uuid;

/// The blocks of a segment, with its runs as they are stored but decrypted. All of it was checked.
#[derive(Debug)]
pub(crate) struct Whole {
    contents: Contents,
    runs: StoredRuns,
}

impl Whole {
    /// Reads the object of a segment whose data begins at `data_offset`.
    pub(crate) fn read(
        name: &SegmentName,
        object: &[u8],
        data_offset: u32,
        keys: &Keys,
    ) -> Result<Self, DecodeError> {
        let head = object.get(..data_offset as usize).ok_or(DecodeError::Truncated)?;
        let head = Head::parse(name, head, keys)?;
        if head.name != *name {
            return Err(DecodeError::Value("name"));
        }
        let (mut table, mut data) = (Vec::new(), Vec::with_capacity(object.len()));
        let mut blocks = head.blocks.chunks(RUN_BLOCKS as usize);
        for (number, run) in (0..).zip(&head.runs) {
            let stored = part(object, run.offset, u64::from(run.stored_bytes))?;
            let plain = run.decrypt((name, number), stored, keys)?;
            check_blocks(&run.decompress(&plain)?, blocks.next().unwrap_or_default())?;
            let length =
                u32::try_from(plain.len()).map_err(|_| DecodeError::Value("run length"))?;
            for field in [length, run.codec.number(), crc32c::crc32c(&plain)] {
                table.extend_from_slice(&field.to_le_bytes());
            }
            data.extend_from_slice(&plain);
        }
        if blocks.next().is_some() {
            return Err(DecodeError::Value("count of runs"));
        }
        let end = head.runs.last().map_or(u64::from(data_offset), |run| run.range().end);
        if end != object.len() as u64 {
            return Err(DecodeError::Value("length"));
        }
        let count = u32::try_from(head.runs.len()).map_err(|_| DecodeError::Value("count"))?;
        Ok(Self {
            contents: Contents { blocks: head.blocks, zeros: head.zeros },
            runs: StoredRuns { table, data: data.into(), count },
        })
    }

    /// Reads what [`Self::encode`] made without a key, under whatever name.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        if &fields.array::<8>()? != MAGIC {
            return Err(DecodeError::Magic);
        }
        let version = fields.u32()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let [blocks, runs, zeros] = [fields.u32()?, fields.u32()?, fields.u32()?].map(u64::from);
        let volume = VolumeId(Uuid::from_bytes(fields.array()?));
        let name = SegmentName { volume, epoch: fields.u64()?, sequence: fields.u64()? };
        let data_offset = HEADER_BYTES as u64 + (blocks + zeros) * 8 + runs * 12;
        let data_offset = u32::try_from(data_offset).map_err(|_| DecodeError::Value("count"))?;
        Self::read(&name, bytes, data_offset, &Keys::none())
    }

    /// The segment under a name, encrypted if its volume has a key.
    pub(crate) fn encode(&self, name: &SegmentName, keys: &Keys) -> Encoded {
        encode(name, &self.contents, &self.runs, keys)
    }

    pub(crate) fn blocks(&self) -> &[BlockEntry] {
        &self.contents.blocks
    }
}

fn part(object: &[u8], offset: u64, length: u64) -> Result<&[u8], DecodeError> {
    let at = |offset: u64| usize::try_from(offset).map_err(|_| DecodeError::Truncated);
    let end = offset.checked_add(length).ok_or(DecodeError::Truncated)?;
    object.get(at(offset)?..at(end)?).ok_or(DecodeError::Truncated)
}

fn check_blocks(data: &[u8], blocks: &[BlockEntry]) -> Result<(), DecodeError> {
    let same = data.len() == blocks.len() * BLOCK_BYTES
        && data
            .chunks(BLOCK_BYTES)
            .zip(blocks)
            .all(|(data, entry)| crc32c::crc32c(data) == entry.crc);
    if same { Ok(()) } else { Err(DecodeError::Checksum("block")) }
}
