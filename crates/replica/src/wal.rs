//! SQLite's write-ahead log, read frame by frame up to the last commit.
//!
//! ```text
//! header  32 bytes, big endian: magic (the lowest bit: words of checksums are big endian) | version | page size |
//!         sequence | salts 2*u32 | checksum 2*u32
//! frame   page number | pages after this commit, or 0 | salts 2*u32 | checksum 2*u32, all big endian | page
//! ```
//!
//! The checksum of a frame covers the 8 bytes before its salts and its page and goes on from the frame before it. A frame
//! whose salts or checksum do not match is the end: it is left over from an earlier use of the file, or was torn.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Bytes before the first frame.
pub(crate) const HEADER_BYTES: u64 = 32;

const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// A place between two frames of a certain use of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalPosition {
    /// Of the next frame.
    pub(crate) offset: u64,
    /// Of this use of the file; SQLite changes them whenever it starts the file again.
    pub(crate) salt: [u32; 2],
    checksum: [u32; 2],
}

/// A committed transaction.
#[derive(Debug)]
pub(crate) struct Commit {
    /// Page numbers with the offsets of their images, in the order in which they were written.
    pub(crate) frames: Vec<(u32, u64)>,
    /// Pages of the database after it.
    pub(crate) page_count: u32,
    /// Where the next transaction begins.
    pub(crate) end: WalPosition,
}

/// A WAL whose header is whole.
pub(crate) struct Wal<'a> {
    file: &'a File,
    big_endian: bool,
    start: WalPosition,
    page_size: u32,
}

impl<'a> Wal<'a> {
    /// Reads the header; `None` when there is no whole one, which means that there are no transactions.
    pub(crate) fn read(file: &'a File) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_BYTES as usize];
        match file.read_exact_at(&mut header, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let big_endian = u32_at(&header, 0) & 1 == 1;
        let checksum = checksum(big_endian, [0, 0], &header[..24]);
        let whole = u32_at(&header, 0) & !1 == MAGIC
            && u32_at(&header, 4) == VERSION
            && [u32_at(&header, 24), u32_at(&header, 28)] == checksum
            && crate::ltx::is_page_size(u32_at(&header, 8));
        let salt = [u32_at(&header, 16), u32_at(&header, 20)];
        let start = WalPosition { offset: HEADER_BYTES, salt, checksum };
        Ok(whole.then_some(Self { file, big_endian, start, page_size: u32_at(&header, 8) }))
    }

    /// The place before the first frame.
    pub(crate) fn start(&self) -> WalPosition {
        self.start
    }

    /// Bytes of a page.
    pub(crate) fn page_size(&self) -> u32 {
        self.page_size
    }

    /// The transaction that begins at `from`; `None` when none has been committed there.
    ///
    /// `frame` is room for one frame, kept by the caller from one call to the next.
    pub(crate) fn commit_at(
        &self,
        from: WalPosition,
        frame: &mut Vec<u8>,
    ) -> io::Result<Option<Commit>> {
        let mut at = from;
        let mut frames = Vec::new();
        frame.resize(FRAME_HEADER_BYTES + self.page_size as usize, 0);
        loop {
            match self.file.read_exact_at(frame, at.offset) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
            let (head, page) = frame.split_at(FRAME_HEADER_BYTES);
            let number = u32_at(head, 0);
            let sum = checksum(self.big_endian, at.checksum, &head[..8]);
            let sum = checksum(self.big_endian, sum, page);
            let ours = [u32_at(head, 8), u32_at(head, 12)] == at.salt && number > 0;
            if !ours || [u32_at(head, 16), u32_at(head, 20)] != sum {
                return Ok(None);
            }
            frames.push((number, at.offset + FRAME_HEADER_BYTES as u64));
            at = WalPosition {
                offset: at.offset + frame.len() as u64,
                salt: at.salt,
                checksum: sum,
            };
            let page_count = u32_at(head, 4);
            if page_count > 0 {
                return Ok(Some(Commit { frames, page_count, end: at }));
            }
        }
    }
}

fn checksum(big_endian: bool, from: [u32; 2], bytes: &[u8]) -> [u32; 2] {
    let word = |bytes: &[u8]| {
        let bytes = bytes.try_into().expect("chunks of eight");
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    bytes.chunks_exact(8).fold(from, |[a, b], pair| {
        let a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        let b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
        [a, b]
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}
