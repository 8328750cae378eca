//! The FUSE filesystem: a directory with one file of the volume's size.

use crate::{BLOCK_BYTES, Error, ErrorKind, VOLUME_BYTES, View, Volume, volume::Admission};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, ReplyXattr, Request, WriteFlags,
};
use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The name of the file.
pub(super) const FILE_NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);

/// The largest request of the kernel.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Requests that the kernel keeps under way at the same time: more than a loop device ever has (128, each of which may be two
/// here), so that writes that wait for room never keep a read from being sent.
const BACKGROUND_MAX: u16 = 320;

/// A buffer of a thread that grew beyond this is given back.
const BUFFER_BYTES_KEPT: usize = 256 << 10;

/// Attributes never change, so the kernel need not ask again.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

thread_local! {
    /// What a serving thread reads into, kept so that a small read allocates nothing.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is behind the file.
pub(super) enum Blocks {
    Live(Volume),
    Frozen(View),
}

impl Blocks {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::Live(volume) => volume.read(offset, buffer),
            Self::Frozen(view) => view.read(offset, buffer),
        }
    }

    /// What can be written to.
    fn live(&self) -> Result<&Volume, Errno> {
        match self {
            Self::Live(volume) => Ok(volume),
            Self::Frozen(_) => Err(Errno::EROFS),
        }
    }

    pub(super) fn is_frozen(&self) -> bool {
        matches!(self, Self::Frozen(_))
    }
}

/// The file's operations, as calls of the volume.
#[derive(Clone)]
pub(super) struct Disk {
    blocks: Arc<Blocks>,
}

impl Disk {
    pub(super) fn new(blocks: Blocks) -> Self {
        Self { blocks: Arc::new(blocks) }
    }
}

/// Answers a request that is in the journal: at once, or in a task when there is room for more. So no serving thread waits
/// for the bucket, and reads go on whoever is blocked. There are never more such requests than the kernel keeps under way,
/// and none holds data.
fn when_admitted(
    operation: &'static str,
    volume: &Volume,
    begun: Result<Admission, Error>,
    answer: impl FnOnce(Result<(), Errno>) + Send + 'static,
) {
    match begun {
        Ok(admission) if !admission.is_immediate() => {
            let waiting = volume.clone();
            volume.spawn(async move {
                waiting.admitted(admission).await;
                answer(Ok(()));
            });
        }
        result => answer(result.map(drop).map_err(|error| errno(operation, &error))),
    }
}

impl Filesystem for Disk {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each may be refused by an older kernel, which then works with its own smaller value.
        if let Err(most) = config.set_max_write(REQUEST_BYTES_MAX) {
            tracing::debug!(most, "smaller writes than asked for");
        }
        if let Err(most) = config.set_max_background(BACKGROUND_MAX) {
            tracing::debug!(most, "fewer requests at once than asked for");
        }
        if let Err(missing) = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO) {
            tracing::debug!(?missing, "requests are served one after the other");
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == FILE_NAME {
            reply.entry(&FOREVER, &attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match ino {
            INodeNo::ROOT | FILE => reply.attr(&FOREVER, &attributes(ino)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    /// The kernel asks for file capabilities at the first write, and never again when it hears that there are none at all.
    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino == FILE {
            let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            reply.opened(FileHandle(0), flags);
        } else {
            reply.error(Errno::EISDIR);
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = u64::from(size).min(VOLUME_BYTES.saturating_sub(offset));
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(usize::try_from(length).expect("a request is at most a few MiB"), 0);
            match self.blocks.read(offset, buffer) {
                Ok(()) => reply.data(buffer),
                Err(error) => reply.error(errno("read", &error)),
            }
            if buffer.capacity() > BUFFER_BYTES_KEPT {
                *buffer = Vec::new();
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let volume = match self.blocks.live() {
            Ok(volume) => volume,
            Err(errno) => return reply.error(errno),
        };
        let length = u32::try_from(data.len()).expect("a request is at most a few MiB");
        when_admitted(
            "write",
            volume,
            volume.begin_write(offset, data),
            move |result| match result {
                Ok(()) => reply.written(length),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Never ENOSYS: the kernel would not ask again and call everything durable.
        // Nothing is ever written to a frozen state, so all of it is durable.
        let Ok(volume) = self.blocks.live() else { return reply.ok() };
        match volume.begin_flush() {
            Ok(None) => reply.ok(),
            Ok(Some(unflushed)) => {
                let flushing = volume.clone();
                volume.spawn(async move {
                    match flushing.flushed(unflushed).await {
                        Ok(()) => reply.ok(),
                        Err(error) => reply.error(errno("flush", &error)),
                    }
                });
            }
            Err(error) => reply.error(errno("flush", &error)),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let zeroing = libc_flags::PUNCH_HOLE | libc_flags::ZERO_RANGE;
        if mode & zeroing == 0 || mode & !(zeroing | libc_flags::KEEP_SIZE) != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let volume = match self.blocks.live() {
            Ok(volume) => volume,
            Err(errno) => return reply.error(errno),
        };
        let begun = volume.begin_discard(offset, length);
        when_admitted("discard", volume, begun, move |result| match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }
}

/// The modes of `fallocate(2)`, which the kernel passes on as they are.
mod libc_flags {
    use rustix::fs::FallocateFlags;

    pub(super) const KEEP_SIZE: i32 = FallocateFlags::KEEP_SIZE.bits().cast_signed();
    pub(super) const PUNCH_HOLE: i32 = FallocateFlags::PUNCH_HOLE.bits().cast_signed();
    pub(super) const ZERO_RANGE: i32 = FallocateFlags::ZERO_RANGE.bits().cast_signed();
}

fn attributes(ino: INodeNo) -> FileAttr {
    let file = ino == FILE;
    FileAttr {
        ino,
        size: if file { VOLUME_BYTES } else { 0 },
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: if file { FileType::RegularFile } else { FileType::Directory },
        perm: if file { 0o600 } else { 0o700 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    }
}

/// What the kernel is told. It passes on little more than that there was an error, so the log has the rest.
fn errno(operation: &'static str, error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Invalid => Errno::EINVAL,
        ErrorKind::Exhausted => {
            tracing::warn!(
                operation,
                error = error as &dyn std::error::Error,
                "the local disk is full"
            );
            Errno::ENOSPC
        }
        ErrorKind::Closed => Errno::EIO,
        _ => {
            tracing::error!(
                operation,
                error = error as &dyn std::error::Error,
                "the block device failed"
            );
            Errno::EIO
        }
    }
}
