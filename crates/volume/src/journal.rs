//! The journal: an append-only log of writes on the local disk, durable until the bucket has them.
//!
//! # Files
//!
//! `journal/NUMBER` are files of one size, allocated when they are made and used again after what they hold was
//! shipped, so that a write allocates nothing and `fdatasync` writes data only.
//!
//! ```text
//! file     header (4096 bytes) | record | record | ...                                   (`record` draws both)
//! header   who wrote it: volume, epoch, and the map's position that the journal follows; file number; first sequence
//! record   kind (write, discard, cut), sequence, epoch, offset, length, CRC32C of data and of header; then the data
//! ```
//!
//! # Replay
//!
//! A journal belongs to one volume and one epoch. It continues a map if the map was last written under the same epoch, or
//! stands exactly where the journal began. Then the records after the map's sequence are applied, up to the first that is
//! torn or missing; nothing behind that was ever flushed. Otherwise the whole journal is set aside, never replayed. Taken
//! over by a newer epoch, a journal is copied into one that begins at the map's position, and replaces it by a rename.
//!
//! # Failure
//!
//! A write that fails (a full disk) leaves no record: the next one takes its place. A failed `fdatasync` is final, since
//! the kernel may have dropped the dirty pages: see [`crate::flush`].

mod record;
mod replay;

pub(crate) use record::RecordKind;
pub(crate) use replay::{open, read_aside};

use crate::{
    VolumeId,
    error::Attempt as _,
    error::Error,
    extents::Shift,
    failpoint::{Failpoints, Point},
    flush::Flush,
};
use record::{FILE_HEADER_BYTES, FileHeader, RECORD_HEADER_BYTES, Record};
use rustix::fs::{FallocateFlags, fallocate};
use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The most data of one record. Longer writes become several.
pub(crate) const RECORD_DATA_BYTES_MAX: usize = 1 << 20;

/// Room for so many files is left on the disk: a full journal is emptied by committing to the map, which needs room too.
const RESERVE_FILES: u64 = 4;

/// With room for no more than so many files besides, writers are let go only as the bucket takes what was written: it must
/// hold what the kernel has under way then.
const TIGHT_FILES: u64 = 8;

/// Shipped files that are kept to be used again; more are deleted.
const FREE_FILES_MAX: usize = 4;

/// A point of a volume's history: the last epoch that wrote the map and the last journal record in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub epoch: u64,
    pub sequence: u64,
}

/// Whose journal it is and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub volume: VolumeId,
    pub epoch: u64,
    /// The map's position that the first record follows.
    pub base: Position,
}

/// An open journal file. Readers of unsealed blocks hold it, which keeps it from being used again.
#[derive(Debug)]
pub(crate) struct JournalFile {
    file: File,
    path: PathBuf,
}

/// Where the data of an unsealed block is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    file: Arc<JournalFile>,
    offset: u64,
}

impl Place {
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.file.file.read_exact_at(buffer, self.offset)
    }
}

impl Shift for Place {
    fn shift(&self, blocks: u32) -> Self {
        Self { file: self.file.clone(), offset: self.offset + crate::byte_offset(blocks) }
    }
}

/// A record that is in the journal.
#[derive(Debug)]
pub(crate) struct Appended {
    pub kind: RecordKind,
    pub offset: u64,
    pub length: u64,
    pub sequence: u64,
    /// Where the data is, for a write.
    pub place: Place,
    /// What it takes of the journal.
    pub bytes: u64,
}

/// The writing end. One lock guards it.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    file_bytes: u64,
    identity: Identity,
    flush: Arc<Flush>,
    sequence_last: u64,
    number_next: u64,
    current: Option<Current>,
    /// Full files, oldest first, with their last sequence.
    full: VecDeque<(Arc<JournalFile>, u64)>,
    free: Vec<JournalFile>,
    /// The newest file that was made left little room on the disk, and none was released since.
    tight: bool,
    failpoints: Failpoints,
}

#[derive(Debug)]
struct Current {
    file: Arc<JournalFile>,
    offset: u64,
}

impl Journal {
    /// An empty journal in an existing directory.
    fn new(
        (dir, file_bytes): (PathBuf, u64),
        identity: Identity,
        flush: Arc<Flush>,
        failpoints: Failpoints,
    ) -> Self {
        let sequence_last = identity.base.sequence;
        Self {
            dir,
            file_bytes,
            identity,
            flush,
            sequence_last,
            number_next: 1,
            current: None,
            full: VecDeque::new(),
            free: Vec::new(),
            tight: false,
            failpoints,
        }
    }

    /// Appends a record. `data` is what is written, with its CRC32C, or empty. After an error there is no record.
    pub(crate) fn append(
        &mut self,
        kind: RecordKind,
        offset: u64,
        length: u64,
        (data, data_crc): (&[u8], u32),
    ) -> Result<Appended, Error> {
        assert!(data.len() <= RECORD_DATA_BYTES_MAX, "the caller splits writes");
        let sequence = self.sequence_last + 1;
        let record =
            Record { kind, sequence, epoch: self.identity.epoch, offset, length, data_crc };
        let header = record.encode();
        let bytes = (header.len() + data.len()) as u64;
        let (file, at) = self.room(bytes)?;
        write_all(&file.file, [&header, data], at).attempt("append to the journal")?;
        self.sequence_last = sequence;
        if let Some(current) = &mut self.current {
            current.offset = at + bytes;
        }
        self.flush.appended(&file, sequence);
        let place = Place { file, offset: at + RECORD_HEADER_BYTES as u64 };
        Ok(Appended { kind, offset, length, sequence, place, bytes })
    }

    /// Whether the disk has room for little more than what is under way.
    pub(crate) fn is_tight(&self) -> bool {
        self.tight
    }

    /// Files whose records are all at most `sequence` may be used again.
    pub(crate) fn release(&mut self, sequence: u64) {
        while self.full.front().is_some_and(|(_, last)| *last <= sequence) {
            let Some((file, _)) = self.full.pop_front() else { break };
            self.tight = false;
            self.flush.forget(&file);
            // A reader that still holds the file goes on reading what was there; the name may go.
            match Arc::try_unwrap(file) {
                Ok(file) if self.free.len() < FREE_FILES_MAX => self.free.push(file),
                Ok(file) => self.remove(&file),
                Err(file) => self.remove(&file),
            }
        }
    }

    /// Deletes all files. Everything must be in the bucket.
    pub(crate) fn remove_all(&mut self) {
        self.release(u64::MAX);
        if let Some(current) = self.current.take() {
            self.flush.forget(&current.file);
            self.remove(&current.file);
        }
        for file in std::mem::take(&mut self.free) {
            self.remove(&file);
        }
    }

    /// Deletes a file, which may have been made before this directory got its name.
    fn remove(&self, file: &JournalFile) {
        if let Some(name) = file.path.file_name() {
            remove(&self.dir.join(name));
        }
    }

    /// Looks how much room the disk has.
    pub(crate) fn look_at_disk(&mut self) -> Result<u64, Error> {
        let files = files_left(&self.dir, self.file_bytes).attempt("look at the disk")?;
        self.tight = files < RESERVE_FILES + TIGHT_FILES;
        Ok(files)
    }

    /// The file and the position for a record of so many bytes.
    fn room(&mut self, bytes: u64) -> Result<(Arc<JournalFile>, u64), Error> {
        if let Some(current) = &self.current
            && current.offset + bytes <= self.file_bytes
        {
            return Ok((current.file.clone(), current.offset));
        }
        let file = Arc::new(self.next_file()?);
        if let Some(full) =
            self.current.replace(Current { file: file.clone(), offset: FILE_HEADER_BYTES as u64 })
        {
            self.full.push_back((full.file, self.sequence_last));
        }
        Ok((file, FILE_HEADER_BYTES as u64))
    }

    fn next_file(&mut self) -> Result<JournalFile, Error> {
        let file = match self.free.pop() {
            Some(file) => file,
            None => {
                if self.look_at_disk()? <= RESERVE_FILES {
                    let full = Err(io::Error::from(io::ErrorKind::StorageFull));
                    return full.attempt("create a journal file");
                }
                create(&self.dir, self.number_next, self.file_bytes)
                    .attempt("create a journal file")?
            }
        };
        self.failpoints.pass(Point::JournalFileMade).attempt("begin a journal file")?;
        let header = FileHeader {
            identity: self.identity,
            number: self.number_next,
            first: self.sequence_last + 1,
        };
        file.file.write_all_at(&header.encode(), 0).attempt("begin a journal file")?;
        self.failpoints.pass(Point::JournalFileBegun).attempt("begin a journal file")?;
        self.number_next += 1;
        Ok(file)
    }
}

/// For how many more files the disk has room.
fn files_left(dir: &Path, file_bytes: u64) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize) / file_bytes.max(1))
}

/// Makes an allocated file whose name is durable.
fn create(dir: &Path, number: u64, file_bytes: u64) -> io::Result<JournalFile> {
    let path = dir.join(format!("{number:016x}"));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    let made = fallocate(&file, FallocateFlags::empty(), 0, file_bytes)
        .map_err(io::Error::from)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(dir)?.sync_all());
    match made {
        Ok(()) => Ok(JournalFile { file, path }),
        Err(error) => {
            remove(&path);
            Err(error)
        }
    }
}

impl JournalFile {
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a used journal file stays");
    }
}

/// Writes both parts at the offset with one call where the kernel takes it whole.
fn write_all(file: &File, [head, body]: [&[u8]; 2], offset: u64) -> io::Result<()> {
    let written = rustix::io::pwritev(file, &[IoSlice::new(head), IoSlice::new(body)], offset)?;
    if let Some(head_rest) = head.get(written..) {
        file.write_all_at(head_rest, offset + written as u64)?;
        return file.write_all_at(body, offset + head.len() as u64);
    }
    file.write_all_at(&body[written - head.len()..], offset + written as u64)
}
