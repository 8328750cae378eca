//! A segment ready to be put under its name, encrypted if its volume has a key.
//!
//! ```text
//! head     the header as it is, with version 2 | tables, encrypted | tag [16]
//! data     per run: the stored bytes, encrypted | tag [16]
//! ```
//!
//! In the run table of an encrypted segment, every stored length counts the tag, every CRC is of what is stored, and the
//! codec has [`ENCRYPTED`] set. Run `i` is part `i` of the object and the tables are [`TABLES_PART`]; the header is
//! authenticated with the tables. So a run decrypts by itself, from a range of the object, and only at its place.

use super::{Contents, DecodeError, HEADER_BYTES, SegmentName, StoredRuns, encode_head, head_crc};
use crate::keys::{Cipher, Keys, TAG_BYTES};
use bytes::Bytes;

/// Set in the codec of a run that is encrypted.
pub(super) const ENCRYPTED: u32 = 0x100;

/// The version of a segment that is encrypted.
pub(super) const VERSION_ENCRYPTED: u32 = 2;

/// The part of the object that its tables are; runs are numbered from 0 and never so many.
const TABLES_PART: u32 = u32::MAX;

/// Where the version is in the header.
const VERSION_AT: std::ops::Range<usize> = 8..12;

/// The bytes of a segment.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub head: Bytes,
    pub data: Bytes,
    /// The run table as the map stores it.
    pub table: Vec<u8>,
}

/// Encodes a segment under its name.
pub(crate) fn encode(
    name: &SegmentName,
    contents: &Contents,
    runs: &StoredRuns,
    keys: &Keys,
) -> Encoded {
    let Some(cipher) = keys.of_segment(name) else {
        let head = encode_head(name, contents, runs).into();
        return Encoded { head, data: runs.data(), table: runs.table().to_vec() };
    };
    let runs = encrypt_runs(runs, &cipher);
    let mut head = encode_head(name, contents, &runs);
    head[VERSION_AT].copy_from_slice(&VERSION_ENCRYPTED.to_le_bytes());
    let crc = head_crc(&head);
    head[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    let mut tables = head.split_off(HEADER_BYTES);
    cipher.encrypt(TABLES_PART, &head, &mut tables);
    head.append(&mut tables);
    Encoded { head: head.into(), data: runs.data(), table: runs.table().to_vec() }
}

/// Header and tables of a segment as they were before they were encrypted, but for the version; a plain one's as they are, if
/// its volume has no key: otherwise whoever can write to the bucket could replace a segment. What is given must end where
/// the data begins.
pub(crate) fn decrypt_head(
    name: &SegmentName,
    head: &[u8],
    keys: &Keys,
) -> Result<Vec<u8>, DecodeError> {
    let (header, tables) = head.split_at_checked(HEADER_BYTES).ok_or(DecodeError::Truncated)?;
    let encrypted = header[VERSION_AT] == VERSION_ENCRYPTED.to_le_bytes();
    let cipher = match keys.of_segment(name) {
        None if encrypted => return Err(DecodeError::NoKey),
        None => return Ok(head.to_vec()),
        Some(_) if !encrypted => return Err(DecodeError::Plain),
        Some(cipher) => cipher,
    };
    let tables =
        cipher.decrypt(TABLES_PART, header, tables).map_err(|_wrong| DecodeError::WrongKey)?;
    let plain = [header, &tables].concat();
    let crc = plain.get(HEADER_BYTES - 4..HEADER_BYTES).ok_or(DecodeError::Truncated)?;
    if crc != head_crc(&plain).to_le_bytes() {
        return Err(DecodeError::Checksum("header"));
    }
    Ok(plain)
}

fn encrypt_runs(runs: &StoredRuns, cipher: &Cipher) -> StoredRuns {
    let mut table = Vec::with_capacity(runs.table.len());
    let mut data = Vec::with_capacity(runs.data.len() + runs.count as usize * TAG_BYTES);
    let mut at = 0;
    for (part, row) in (0..).zip(runs.table.chunks_exact(12)) {
        let field = |at: usize| {
            let bytes = row[at..at + 4].first_chunk().expect("a row has three fields");
            u32::from_le_bytes(*bytes)
        };
        let end = at + field(0) as usize;
        let mut stored = runs.data[at..end].to_vec();
        cipher.encrypt(part, &[], &mut stored);
        let length = u32::try_from(stored.len()).expect("a run is at most 64 KiB");
        for field in [length, field(4) | ENCRYPTED, crc32c::crc32c(&stored)] {
            table.extend_from_slice(&field.to_le_bytes());
        }
        data.extend_from_slice(&stored);
        at = end;
    }
    StoredRuns { table, data: data.into(), count: runs.count }
}
