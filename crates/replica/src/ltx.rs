//! The file format of the log: LTX version 3 as Litestream 0.5 writes it, read and written.
//!
//! ```text
//! header    100 bytes, big endian:
//!             0 "LTX1"         4 flags u32 (2: no checksums of the database in the LTX fields)
//!             8 page size u32 12 pages after u32      16 first txid u64   24 last txid u64
//!            32 time in ms u64 40 zero u64             48 WAL offset u64   56 WAL size u64
//!            64 WAL salts 2*u32 72 node u64            80 ours, see below
//! pages     number u32 | 1 u16 | size u32 | LZ4 block, by ascending number, without the lock page
//! end       6 zero bytes
//! index     per page its number, offset and frame size as LEB128; 0; the length of all that as u64
//! trailer   zero u64 | checksum u64
//! ```
//!
//! The checksum is CRC-64/GO-ISO with the highest bit set, over everything before it but with the pages uncompressed.
//!
//! LTX has fields for checksums of the database, but Litestream refuses to restore a log that uses them. What this crate
//! states stands in the 20 bytes at 80 that the format reserves: `"PK"`, a version byte, flags (1: this file is its writer's
//! claim), the digest u64 and the nonce u64 of the writer, whose epoch is the node. Files of others have zeros there.

use crate::digest::{CHECKSUM_FLAG, CRC64, lock_page};
use crc::Table;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 100;

/// The digest in a file whose writer did not know it. No digest is zero.
pub(crate) const DIGEST_UNKNOWN: u64 = 0;

/// No page takes less.
pub(crate) const PAGE_FRAME_BYTES_MIN: usize = 10;

const MAGIC: &[u8; 4] = b"LTX1";
const FLAG_NO_CHECKSUM: u32 = 2;
const PAGE_HEADER_BYTES: usize = 6;
const PAGE_FLAG_SIZE: u16 = 1;
const TRAILER_BYTES: usize = 16;
const OURS_TAG: &[u8; 3] = b"PK\x01";
const OURS_TAKEOVER: u8 = 1;

/// Why a file is not a log file, or not a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The checksum at the end does not match.
    #[error("checksum does not match")]
    Checksum,
    /// The header is not one of LTX version 3.
    #[error("malformed header")]
    Header,
    /// The index does not match the pages.
    #[error("index does not match the pages")]
    Index,
    /// A page is out of order, out of range, missing or does not decompress.
    #[error("malformed page after page {after}")]
    Page {
        /// The last good page, 0 at the start.
        after: u32,
    },
    /// The file ends too early.
    #[error("file is truncated")]
    Truncated,
}

/// What a file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) page_size: u32,
    /// Pages of the database after this file.
    pub(crate) page_count: u32,
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) time_ms: u64,
    pub(crate) wal_offset: u64,
    pub(crate) wal_size: u64,
    pub(crate) wal_salt: [u32; 2],
    pub(crate) node: u64,
    pub(crate) ours: Option<Ours>,
}

/// What only this crate's files say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ours {
    /// The digest of the database after this file.
    pub(crate) digest: u64,
    /// A random number of the shipper that wrote it.
    pub(crate) nonce: u64,
    /// This is a claim: the first file of its writer. It holds the number that the superseded owner tries next, so it must
    /// never be deleted.
    pub(crate) takeover: bool,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        put(0, MAGIC);
        put(4, &FLAG_NO_CHECKSUM.to_be_bytes());
        put(8, &self.page_size.to_be_bytes());
        put(12, &self.page_count.to_be_bytes());
        put(16, &self.min.to_be_bytes());
        put(24, &self.max.to_be_bytes());
        put(32, &self.time_ms.to_be_bytes());
        put(48, &self.wal_offset.to_be_bytes());
        put(56, &self.wal_size.to_be_bytes());
        put(64, &self.wal_salt[0].to_be_bytes());
        put(68, &self.wal_salt[1].to_be_bytes());
        put(72, &self.node.to_be_bytes());
        if let Some(ours) = &self.ours {
            put(80, OURS_TAG);
            put(83, &[if ours.takeover { OURS_TAKEOVER } else { 0 }]);
            put(84, &ours.digest.to_be_bytes());
            put(92, &ours.nonce.to_be_bytes());
        }
        bytes
    }

    /// Reads the first [`HEADER_BYTES`] of a file. Nothing but the checksum at the end of the file proves them right.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(FormatError::Truncated)?;
        if &bytes[..4] != MAGIC || u32_at(bytes, 4) & !FLAG_NO_CHECKSUM != 0 {
            return Err(FormatError::Header);
        }
        let ours = (&bytes[80..83] == OURS_TAG).then(|| Ours {
            digest: u64_at(bytes, 84),
            nonce: u64_at(bytes, 92),
            takeover: bytes[83] & OURS_TAKEOVER != 0,
        });
        let header = Self {
            page_size: u32_at(bytes, 8),
            page_count: u32_at(bytes, 12),
            min: u64_at(bytes, 16),
            max: u64_at(bytes, 24),
            time_ms: u64_at(bytes, 32),
            wal_offset: u64_at(bytes, 48),
            wal_size: u64_at(bytes, 56),
            wal_salt: [u32_at(bytes, 64), u32_at(bytes, 68)],
            node: u64_at(bytes, 72),
            ours,
        };
        let numbers = header.min > 0 && header.min <= header.max;
        if numbers && is_page_size(header.page_size) {
            Ok(header)
        } else {
            Err(FormatError::Header)
        }
    }

    fn is_snapshot(&self) -> bool {
        self.min == 1
    }

    /// The page that must or may come after `number`, in a file that holds all of them.
    fn follower(&self, number: u32) -> u32 {
        let next = number.saturating_add(1);
        if next == lock_page(self.page_size) { next.saturating_add(1) } else { next }
    }
}

/// Whether SQLite has pages of this size.
pub(crate) fn is_page_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (512..=65_536).contains(&bytes)
}

/// A file being written, in memory.
pub(crate) struct Encoder {
    bytes: Vec<u8>,
    crc: crc::Digest<'static, u64, Table<16>>,
    index: Vec<u8>,
    page_size: usize,
}

impl Encoder {
    /// Begins a file.
    pub(crate) fn new(header: &Header) -> Self {
        let bytes = header.encode();
        let mut crc = CRC64.digest();
        crc.update(&bytes);
        Self { bytes: bytes.to_vec(), crc, index: Vec::new(), page_size: header.page_size as usize }
    }

    /// Adds a page. The caller adds them by ascending number and leaves out the lock page.
    pub(crate) fn page(&mut self, number: u32, page: &[u8]) {
        assert_eq!(page.len(), self.page_size, "the caller reads whole pages");
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&number.to_be_bytes());
        self.bytes.extend_from_slice(&PAGE_FLAG_SIZE.to_be_bytes());
        let compressed = lz4_flex::block::compress(page);
        let size = u32::try_from(compressed.len()).expect("a page compresses to less than 4 GiB");
        self.bytes.extend_from_slice(&size.to_be_bytes());
        self.crc.update(&self.bytes[start..]);
        self.crc.update(page);
        self.bytes.extend_from_slice(&compressed);
        index_entry(&mut self.index, number, start, self.bytes.len() - start);
    }

    /// Ends the file; returns its bytes and its checksum.
    pub(crate) fn finish(mut self) -> (Vec<u8>, u64) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; PAGE_HEADER_BYTES]);
        index_end(&mut self.index);
        self.bytes.extend_from_slice(&self.index);
        self.bytes.extend_from_slice(&0u64.to_be_bytes());
        self.crc.update(&self.bytes[start..]);
        let checksum = self.crc.finalize() | CHECKSUM_FLAG;
        self.bytes.extend_from_slice(&checksum.to_be_bytes());
        (self.bytes, checksum)
    }
}

/// A file being read. Nothing of it may be used for good before [`Decoder::finish`] has said that it is whole.
pub(crate) struct Decoder<'a> {
    header: Header,
    bytes: &'a [u8],
    offset: usize,
    crc: crc::Digest<'static, u64, Table<16>>,
    index: Vec<u8>,
    last: u32,
}

impl<'a> Decoder<'a> {
    /// Begins with the header.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let header = Header::decode(bytes)?;
        let mut crc = CRC64.digest();
        crc.update(&bytes[..HEADER_BYTES]);
        Ok(Self { header, bytes, offset: HEADER_BYTES, crc, index: Vec::new(), last: 0 })
    }

    /// The header.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next page into `page`, which holds one page, and returns its number; `None` after the last.
    pub(crate) fn page(&mut self, page: &mut [u8]) -> Result<Option<u32>, FormatError> {
        let start = self.offset;
        let head = self.take(PAGE_HEADER_BYTES)?;
        if head == [0; PAGE_HEADER_BYTES] {
            self.crc.update(head);
            return Ok(None);
        }
        let malformed = FormatError::Page { after: self.last };
        let number = u32_at(head, 0);
        if head[4..] != PAGE_FLAG_SIZE.to_be_bytes() || !self.may_follow(number) {
            return Err(malformed);
        }
        let size = u32_at(self.take(4)?, 0) as usize;
        self.crc.update(&self.bytes[start..self.offset]);
        let compressed = self.take(size)?;
        match lz4_flex::block::decompress_into(compressed, page) {
            Ok(length) if length == page.len() => {}
            _ => return Err(malformed),
        }
        self.crc.update(page);
        self.last = number;
        index_entry(&mut self.index, number, start, self.offset - start);
        Ok(Some(number))
    }

    /// Checks index and checksum after the last page; returns the checksum.
    pub(crate) fn finish(mut self) -> Result<u64, FormatError> {
        if self.header.is_snapshot() && self.header.follower(self.last) <= self.header.page_count {
            return Err(FormatError::Page { after: self.last });
        }
        index_end(&mut self.index);
        let index = self.take(self.index.len())?;
        if index != self.index {
            return Err(FormatError::Index);
        }
        self.crc.update(index);
        let trailer = self.take(TRAILER_BYTES)?;
        self.crc.update(&trailer[..8]);
        let checksum = self.crc.finalize() | CHECKSUM_FLAG;
        if u64_at(trailer, 8) != checksum || self.offset != self.bytes.len() {
            return Err(FormatError::Checksum);
        }
        Ok(checksum)
    }

    fn may_follow(&self, number: u32) -> bool {
        let ordered = if self.header.is_snapshot() {
            number == self.header.follower(self.last)
        } else {
            number > self.last && number != lock_page(self.header.page_size)
        };
        ordered && number <= self.header.page_count
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], FormatError> {
        let end = self.offset.checked_add(length).ok_or(FormatError::Truncated)?;
        let taken = self.bytes.get(self.offset..end).ok_or(FormatError::Truncated)?;
        self.offset = end;
        Ok(taken)
    }
}

/// Reads a whole file for its header and checksum only.
pub(crate) fn verify(bytes: &[u8]) -> Result<(Header, u64), FormatError> {
    let mut decoder = Decoder::new(bytes)?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size as usize];
    while decoder.page(&mut page)?.is_some() {}
    Ok((header, decoder.finish()?))
}

fn index_entry(index: &mut Vec<u8>, number: u32, offset: usize, size: usize) {
    for value in [u64::from(number), offset as u64, size as u64] {
        leb128(index, value);
    }
}

fn index_end(index: &mut Vec<u8>) {
    leb128(index, 0);
    let length = index.len() as u64;
    index.extend_from_slice(&length.to_be_bytes());
}

fn leb128(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;
