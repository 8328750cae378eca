//! Reading a segment's head back.

use super::{
    BlockEntry, HEADER_BYTES, MAGIC, Run, SegmentName, VERSION, decrypt_head, encode, head_crc,
    parse_runs,
};
use crate::{
    VolumeId,
    decode::{DecodeError, Fields},
    keys::Keys,
};
use base::__uuid::Uuid;
use std::ops::Range;

/// What a segment says about itself.
#[derive(Debug)]
pub(crate) struct Head {
    pub name: SegmentName,
    pub blocks: Vec<BlockEntry>,
    pub zeros: Vec<Range<u32>>,
    pub runs: Vec<Run>,
}

impl Head {
    /// Parses the first `data_offset` bytes of the segment that should have the name.
    pub(crate) fn parse(
        name: &SegmentName,
        stored: &[u8],
        keys: &Keys,
    ) -> Result<Self, DecodeError> {
        let head = &decrypt_head(name, stored, keys)?;
        let mut fields = Fields::new(head);
        if &fields.array::<8>()? != MAGIC {
            return Err(DecodeError::Magic);
        }
        let version = fields.u32()?;
        if version != VERSION && version != encode::VERSION_ENCRYPTED {
            return Err(DecodeError::Version(version));
        }
        let [blocks, runs, zeros] = [fields.u32()?, fields.u32()?, fields.u32()?];
        let volume = VolumeId(Uuid::from_bytes(fields.array()?));
        let name = SegmentName { volume, epoch: fields.u64()?, sequence: fields.u64()? };
        let crc = fields.u32()?;
        // Wide enough for three counts of 2^32, so a nonsense count is a wrong length and no overflow.
        let tables = u64::from(blocks) * 8 + u64::from(zeros) * 8 + u64::from(runs) * 12;
        if head.len() as u64 != HEADER_BYTES as u64 + tables {
            return Err(DecodeError::Truncated);
        }
        if head_crc(head) != crc {
            return Err(DecodeError::Checksum("header"));
        }
        let blocks = (0..blocks)
            .map(|_| Ok(BlockEntry { block: fields.u32()?, crc: fields.u32()? }))
            .collect::<Result<_, DecodeError>>()?;
        let zeros = (0..zeros)
            .map(|_| {
                let (first, count) = (fields.u32()?, fields.u32()?);
                let end = first.checked_add(count).ok_or(DecodeError::Value("zeros"))?;
                Ok(first..end)
            })
            .collect::<Result<_, DecodeError>>()?;
        let data_offset =
            u32::try_from(stored.len()).map_err(|_error| DecodeError::Value("count"))?;
        let runs = parse_runs(fields.bytes(runs as usize * 12)?, data_offset)?;
        Ok(Self { name, blocks, zeros, runs })
    }
}
