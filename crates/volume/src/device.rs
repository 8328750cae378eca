//! The block device in front of a volume: one FUSE file, and a loop device on it.
//!
//! ext4 on the loop device behaves as on any disk; the FUSE file turns its requests into calls of [`Volume`]. Both are made
//! anew for every mount, so that what still hangs on an old one never reaches the new state of the volume.
//!
//! The threads that serve the file are marked with `PR_SET_IO_FLUSHER`: memory that they need is never waited for by
//! writing back pages of this very disk. The runtime that reads from the bucket for them should be marked the same way, see
//! [`mark_io_flusher`].
//!
//! # Failure
//!
//! Attaching undoes what it did before it fails. Detaching a device that is still mounted fails with `Conflict` after
//! [`DEADLINE`] and takes down what it can; nothing is ever detached lazily.

mod fuse;
mod loops;
mod syncer;

pub use syncer::Syncer;

use crate::{
    Error, View, Volume,
    error::{Attempt as _, ErrorKind},
};
use fuse::{Blocks, Disk};
use loops::{Access, Loop};
use rustix::mount::{MountFlags, UnmountFlags};
use std::{
    ffi::CString,
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long attaching and detaching wait for the kernel.
const DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at what the kernel does.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Threads that serve the file. One that waits for the bucket does not stop the others.
const THREADS: usize = 8;

/// An attached block device.
#[derive(Debug)]
pub struct Device {
    device: Option<Loop>,
    fuse: Option<Fuse>,
}

impl Device {
    /// Serves the volume as a FUSE file in an empty directory, and puts a loop device on it.
    ///
    /// `generation` tells one attachment from another in `/proc/mounts` and `losetup`.
    pub fn attach(volume: Volume, dir: &Path, generation: u64) -> Result<Self, Error> {
        Self::attach_blocks(Blocks::Live(volume), dir, generation)
    }

    /// Serves a frozen state in the same way, read-only. A filesystem on it must not be asked to replay its journal: ext4
    /// is mounted with `ro,noload`.
    pub fn attach_view(view: View, dir: &Path, generation: u64) -> Result<Self, Error> {
        Self::attach_blocks(Blocks::Frozen(view), dir, generation)
    }

    fn attach_blocks(blocks: Blocks, dir: &Path, generation: u64) -> Result<Self, Error> {
        let access = if blocks.is_frozen() { Access::ReadOnly } else { Access::ReadWrite };
        let fuse = Fuse::mount(blocks, dir, generation)?;
        let file = OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
            .open(dir.join(fuse::FILE_NAME))
            .attempt("open the FUSE file")?;
        let device = Loop::configure(&file, generation, access)
            .attempt("put a loop device on the FUSE file")?;
        Ok(Self { device: Some(device), fuse: Some(fuse) })
    }

    /// The path of the block device.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.device.as_ref().map_or(Path::new(""), Loop::path)
    }

    /// The number of the FUSE connection: writing to `/sys/fs/fuse/connections/NUMBER/abort` ends it from outside.
    ///
    /// That is needed when this process is killed while one of its threads waits for the disk: the kernel waits for the
    /// thread, the thread for the disk, and the disk for this process, whose descriptor of the connection stays open as long
    /// as the thread lives.
    #[must_use]
    pub fn connection(&self) -> u32 {
        self.fuse.as_ref().map_or(0, |fuse| fuse.connection)
    }

    /// Takes both down. Returns when the loop device is free and the threads are gone. Nothing may have it open.
    pub fn detach(mut self) -> Result<(), Error> {
        let deadline = Instant::now() + DEADLINE;
        if let Some(device) = self.device.take() {
            device.free(deadline).map_err(|error| match error.kind() {
                io::ErrorKind::ResourceBusy | io::ErrorKind::TimedOut => {
                    Error::with(ErrorKind::Conflict, "the block device is still in use", error)
                }
                _ => Error::with(ErrorKind::Internal, "free the loop device", error),
            })?;
        }
        match self.fuse.take() {
            Some(fuse) => fuse.unmount(deadline),
            None => Ok(()),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The loop device goes with its last user, and the FUSE mount with its own drop.
        drop(self.device.take());
    }
}

/// Marks the calling thread, and the threads that it starts from now on, as serving a disk: see the module's docs. Needs
/// `CAP_SYS_RESOURCE`.
pub fn mark_io_flusher() -> io::Result<()> {
    rustix::process::configure_io_flusher_behavior(true).map_err(io::Error::from)
}

/// A mounted FUSE filesystem with one file, and the thread that runs its session.
#[derive(Debug)]
struct Fuse {
    dir: PathBuf,
    connection: u32,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Fuse {
    fn mount(blocks: Blocks, dir: &Path, generation: u64) -> Result<Self, Error> {
        let fuse = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .attempt("open /dev/fuse")?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", fuse.as_raw_fd());
        let options =
            CString::new(options).map_err(io::Error::from).attempt("name the FUSE options")?;
        let name = format!("puck-{generation}");
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(name, dir, "fuse", flags, options.as_c_str())
            .attempt("mount the FUSE file")?;
        let mut mounted = Self { dir: dir.to_owned(), connection: 0, thread: None };
        mounted.thread = Some(serve(blocks, fuse.into()).attempt("serve the FUSE file")?);
        let device = rustix::fs::stat(dir).attempt("look at the FUSE mount")?.st_dev;
        mounted.connection = rustix::fs::minor(device);
        Ok(mounted)
    }

    fn unmount(mut self, deadline: Instant) -> Result<(), Error> {
        let unmounted = poll_until(deadline, || {
            match rustix::mount::unmount(&self.dir, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) => Ok(None),
                result => result.map(Some),
            }
            .map_err(io::Error::from)
        });
        unmounted.attempt("unmount the FUSE file")?;
        match self.thread.take().map(JoinHandle::join) {
            // How the kernel tells a thread that was just taking a last request, such as the release of the loop device's
            // file, that the connection has ended; others hear ENODEV.
            Some(Ok(Err(error))) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            Some(Ok(result)) => result.attempt("serve the FUSE file to its end"),
            Some(Err(_panic)) => Err(Error::new(
                ErrorKind::Internal,
                "the thread that served the FUSE file panicked",
            )),
            None => Ok(()),
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if self.thread.is_none() && !is_mount(&self.dir) {
            return;
        }
        // Reached only on a way out of an error. The threads end with the mount, which may be later.
        if let Err(error) = rustix::mount::unmount(&self.dir, UnmountFlags::empty()) {
            tracing::warn!(dir = %self.dir.display(), %error, "a FUSE mount stays");
        }
    }
}

fn is_mount(dir: &Path) -> bool {
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
    match (device(dir), dir.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

/// Runs the session on threads that are marked. Returns when the kernel has agreed on the protocol.
fn serve(blocks: Blocks, fuse: OwnedFd) -> io::Result<JoinHandle<io::Result<()>>> {
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let (send, ready) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("volume-fuse".into()).spawn(move || {
        if let Err(error) = mark_io_flusher() {
            // Whoever starts machines on this host says so once.
            tracing::debug!(%error, "cannot mark the threads of the block device");
        }
        let disk = Disk::new(blocks);
        let session = fuser::Session::from_fd(disk, fuse, fuser::SessionACL::All, config);
        match session {
            Ok(session) => {
                // The receiver waits for exactly this.
                drop(send.send(Ok(())));
                session.run()
            }
            Err(error) => {
                drop(send.send(Err(error)));
                Ok(())
            }
        }
    })?;
    ready.recv().map_err(io::Error::other)??;
    Ok(thread)
}

/// Asks again until there is an answer.
fn poll_until<T>(
    deadline: Instant,
    mut ask: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<T> {
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
