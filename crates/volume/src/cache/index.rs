//! `cache.index`: which blocks the cache holds, from a clean close to the next open.
//!
//! ```text
//! "PUCKCIDX" | version u32 | volume [16] | epoch u64 | sequence u64 | head layer u32 | extents u32 |
//! per extent: number u32 | present blocks u16 | ... | CRC32C of all of the above u32
//! ```

use crate::{
    VOLUME_BLOCKS, VolumeId,
    decode::{DecodeError, Fields},
    journal::Position,
    map::LayerId,
};
use std::{fs, io, path::Path};

const MAGIC: &[u8; 8] = b"PUCKCIDX";
const VERSION: u32 = 1;

/// What the cache's content is true for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pub volume: VolumeId,
    pub position: Position,
    pub head: LayerId,
}

impl Tag {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(self.volume.0.as_bytes());
        bytes.extend_from_slice(&self.position.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.position.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.head.0.to_le_bytes());
        bytes
    }
}

pub(super) fn save(
    path: &Path,
    tag: &Tag,
    extents: impl ExactSizeIterator<Item = (u32, u16)>,
) -> io::Result<()> {
    let mut bytes = tag.encode();
    let count = u32::try_from(extents.len()).expect("a volume has fewer extents than 2^32");
    bytes.extend_from_slice(&count.to_le_bytes());
    for (extent, present) in extents {
        bytes.extend_from_slice(&extent.to_le_bytes());
        bytes.extend_from_slice(&present.to_le_bytes());
    }
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    fs::write(path, bytes)
}

/// The saved extents, if they were saved for exactly this tag. Anything wrong means an empty cache.
pub(super) fn load(path: &Path, tag: &Tag) -> Option<Vec<(u32, u16)>> {
    parse(&fs::read(path).ok()?, tag).ok()
}

fn parse(bytes: &[u8], tag: &Tag) -> Result<Vec<(u32, u16)>, DecodeError> {
    let (content, crc) = bytes.split_last_chunk::<4>().ok_or(DecodeError::Truncated)?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
        return Err(DecodeError::Checksum("cache index"));
    }
    let mut fields = Fields::new(content);
    let expected = tag.encode();
    if fields.bytes(expected.len())? != expected {
        return Err(DecodeError::Value("tag"));
    }
    let count = fields.u32()?;
    let mut extents = Vec::new();
    for _ in 0..count {
        let (extent, present) = (fields.u32()?, fields.u16()?);
        if extent >= VOLUME_BLOCKS / super::EXTENT_BLOCKS || present == 0 {
            return Err(DecodeError::Value("extent"));
        }
        extents.push((extent, present));
    }
    Ok(extents)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Tag, parse, save};
    use crate::{VolumeId, journal::Position, map::LayerId};

    #[test]
    fn counts_only_whole_and_for_its_tag() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.index");
        let tag = Tag {
            volume: VolumeId::now(),
            position: Position { epoch: 4, sequence: 9 },
            head: LayerId(3),
        };
        let extents = vec![(0, 1), (77, u16::MAX)];
        save(&path, &tag, extents.clone().into_iter()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(parse(&bytes, &tag), Ok(extents));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 2;
            assert!(parse(&damaged, &tag).is_err(), "byte {at}");
            assert!(parse(&bytes[..at], &tag).is_err(), "{at} bytes");
        }
        assert!(parse(&bytes, &Tag { head: LayerId(4), ..tag }).is_err());
        assert!(
            parse(&bytes, &Tag { position: Position { epoch: 5, sequence: 9 }, ..tag }).is_err()
        );
    }
}
