//! An ext4 on a loop device on a FUSE file that this process serves itself, as an agent's volume is.

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};
use rustix::{
    fs::{CWD, Mode, makedev},
    mount::MountFlags,
};
use std::{
    ffi::{CString, OsStr},
    fs,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    time::{Duration, SystemTime},
};

const FILE: INodeNo = INodeNo(2);
const FOREVER: Duration = Duration::from_secs(1000);

/// More loop devices than a busy host has.
const LOOPS: u32 = 200;

struct Disk(fs::File);

/// Serves `image` and mounts what is on it.
pub(crate) fn mount(image: &Path, target: &str) {
    let fuse = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    fs::create_dir_all("/tmp/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let options = CString::new(options).unwrap();
    rustix::mount::mount("disk", "/tmp/fuse", "fuse", MountFlags::empty(), options.as_c_str())
        .unwrap();
    let disk = Disk(fs::OpenOptions::new().read(true).write(true).open(image).unwrap());
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(4);
    config.clone_fd = true;
    std::thread::spawn(move || {
        let session = fuser::Session::from_fd(disk, fuse.into(), fuser::SessionACL::All, config);
        session.unwrap().run().unwrap();
    });
    for minor in 0..LOOPS {
        let path = format!("/dev/loop{minor}");
        let kind = rustix::fs::FileType::BlockDevice;
        rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), makedev(7, minor))
            .unwrap();
    }
    let mut busybox = std::process::Command::new("/base/bin/busybox");
    let mounted =
        busybox.args(["mount", "-t", "ext4", "-o", "loop", "/tmp/fuse/disk", target]).status();
    assert!(mounted.unwrap().success());
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&FOREVER, &self.attributes(FILE), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut data = vec![0; usize::try_from(size).unwrap()];
        let len = self.0.read_at(&mut data, offset).unwrap();
        reply.data(&data[..len]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.write_all_at(data, offset).unwrap();
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}

impl Disk {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        FileAttr {
            ino,
            size: self.0.metadata().unwrap().len(),
            blocks: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if ino == FILE { FileType::RegularFile } else { FileType::Directory },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}
