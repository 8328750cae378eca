//! The bytes of journal files: the header of a file and the header of a record. All little-endian.

use super::{Identity, Position, RECORD_DATA_BYTES_MAX};
use crate::{
    BLOCK_BYTES, VOLUME_BYTES, VolumeId,
    decode::{DecodeError, Fields},
};
use base::__uuid::Uuid;

/// A file begins with so many bytes; the header is at their front and the rest is free.
pub(super) const FILE_HEADER_BYTES: usize = 4096;

/// `magic u32 | kind u32 | sequence u64 | epoch u64 | offset u64 | length u64 | data CRC u32 | CRC of the above u32`
pub(super) const RECORD_HEADER_BYTES: usize = 48;

const FILE_MAGIC: &[u8; 8] = b"PUCKJRNL";
const FILE_VERSION: u32 = 1;
const FILE_FIELDS_BYTES: usize = 72;
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"PJR1");

/// `"PUCKJRNL" | version u32 | volume [16] | epoch u64 | base epoch u64 | base sequence u64 | number u64 | first sequence
/// u64 | CRC of the above u32`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub identity: Identity,
    /// Files are read in the order of their numbers.
    pub number: u64,
    /// The sequence of the first record in the file.
    pub first: u64,
}

impl FileHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Identity { volume, epoch, base } = self.identity;
        let mut bytes = Vec::with_capacity(FILE_HEADER_BYTES);
        bytes.extend_from_slice(FILE_MAGIC);
        bytes.extend_from_slice(&FILE_VERSION.to_le_bytes());
        bytes.extend_from_slice(volume.0.as_bytes());
        for field in [epoch, base.epoch, base.sequence, self.number, self.first] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        assert_eq!(bytes.len(), FILE_FIELDS_BYTES, "the layout is as drawn");
        bytes.resize(FILE_HEADER_BYTES, 0);
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        if &fields.array::<8>()? != FILE_MAGIC {
            return Err(DecodeError::Magic);
        }
        let version = fields.u32()?;
        if version != FILE_VERSION {
            return Err(DecodeError::Version(version));
        }
        let volume = VolumeId(Uuid::from_bytes(fields.array()?));
        let epoch = fields.u64()?;
        let base = Position { epoch: fields.u64()?, sequence: fields.u64()? };
        let (number, first) = (fields.u64()?, fields.u64()?);
        if fields.u32()? != crc32c::crc32c(&bytes[..FILE_FIELDS_BYTES - 4]) {
            return Err(DecodeError::Checksum("journal file header"));
        }
        Ok(Self { identity: Identity { volume, epoch, base }, number, first })
    }
}

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// The blocks have the data that follows.
    Write,
    /// The blocks are zero from now on.
    Discard,
    /// The live layer ends here.
    Cut,
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub kind: RecordKind,
    pub sequence: u64,
    pub epoch: u64,
    pub offset: u64,
    pub length: u64,
    pub data_crc: u32,
}

impl Record {
    pub(super) fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let kind: u32 = match self.kind {
            RecordKind::Write => 1,
            RecordKind::Discard => 2,
            RecordKind::Cut => 3,
        };
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        for (at, field) in
            [self.sequence, self.epoch, self.offset, self.length].into_iter().enumerate()
        {
            bytes[8 + at * 8..16 + at * 8].copy_from_slice(&field.to_le_bytes());
        }
        bytes[40..44].copy_from_slice(&self.data_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != RECORD_MAGIC {
            return Err(DecodeError::Magic);
        }
        let kind = match fields.u32()? {
            1 => RecordKind::Write,
            2 => RecordKind::Discard,
            3 => RecordKind::Cut,
            _ => return Err(DecodeError::Value("record kind")),
        };
        let [sequence, epoch, offset, length] =
            [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
        let data_crc = fields.u32()?;
        if fields.u32()? != crc32c::crc32c(&bytes[..44]) {
            return Err(DecodeError::Checksum("record header"));
        }
        let record = Self { kind, sequence, epoch, offset, length, data_crc };
        record.check()?;
        Ok(record)
    }

    /// The bytes of data that follow the header.
    pub(super) fn data_bytes(&self) -> usize {
        match self.kind {
            RecordKind::Write => usize::try_from(self.length).expect("checked when parsed"),
            RecordKind::Discard | RecordKind::Cut => 0,
        }
    }

    fn check(&self) -> Result<(), DecodeError> {
        let block = BLOCK_BYTES as u64;
        let aligned = self.offset.is_multiple_of(block) && self.length.is_multiple_of(block);
        let inside = self.offset.checked_add(self.length).is_some_and(|end| end <= VOLUME_BYTES);
        let short = self.kind != RecordKind::Write || self.length <= RECORD_DATA_BYTES_MAX as u64;
        if aligned && inside && short { Ok(()) } else { Err(DecodeError::Value("record range")) }
    }
}

#[cfg(test)]
mod tests {
    use super::{FileHeader, Identity, Position, Record, RecordKind};
    use crate::VolumeId;

    #[test]
    fn headers_round_trip_and_any_flip_is_refused() {
        let identity = Identity {
            volume: VolumeId::now(),
            epoch: 9,
            base: Position { epoch: 8, sequence: 77 },
        };
        let header = FileHeader { identity, number: 4, first: 90 };
        let bytes = header.encode();
        assert_eq!(FileHeader::parse(&bytes), Ok(header));
        for at in 0..super::FILE_FIELDS_BYTES {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(FileHeader::parse(&damaged).is_err(), "byte {at}");
            assert!(FileHeader::parse(&bytes[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn records_round_trip_and_any_flip_is_refused() {
        for kind in [RecordKind::Write, RecordKind::Discard, RecordKind::Cut] {
            let record =
                Record { kind, sequence: 5, epoch: 2, offset: 8192, length: 4096, data_crc: 17 };
            let bytes = record.encode();
            assert_eq!(Record::parse(&bytes), Ok(record));
            for at in 0..bytes.len() {
                let mut damaged = bytes;
                damaged[at] ^= 0x10;
                assert!(Record::parse(&damaged).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn ranges_outside_of_the_volume_are_refused() {
        for (offset, length) in [
            (1, 4096),
            (4096, 5),
            (crate::VOLUME_BYTES, 4096),
            (u64::MAX - 4095, 4096),
            (0, 2 << 20),
        ] {
            let record = Record {
                kind: RecordKind::Write,
                sequence: 1,
                epoch: 1,
                offset,
                length,
                data_crc: 0,
            };
            assert!(Record::parse(&record.encode()).is_err(), "{offset} {length}");
        }
    }
}
