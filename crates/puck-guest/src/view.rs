//! A checkpoint's root, mounted read-only in the machine's root namespace, beside the live one.
//!
//! ```text
//! DIRECTORY/device   the FUSE file of the checkpoint's blocks, with a loop device on it
//! DIRECTORY/disk     its ext4, whose journal is clean because a checkpoint is taken of a frozen filesystem
//! DIRECTORY/root     the overlay of the base image and what the sprite had changed of it by then
//! ```

use crate::{
    diff::Tree,
    disk::{DiskError, create_private},
};
use guest::protocol::BASE;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use std::{
    ffi::CString,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use tracing::warn;
use volume::{Device, Volume};

/// Where views are mounted.
const VIEWS: &str = "/run/puck/views";

/// The first generation of a view's device, far above those of the live disk, so that neither is taken for the other.
const GENERATION_FIRST: u64 = 1 << 32;

/// A mounted view. Dropping it unmounts it, so nothing on it may be open then.
#[derive(Debug)]
pub(crate) struct MountedView {
    directory: PathBuf,
    device: Option<Device>,
    /// What is mounted, in the order of mounting.
    mounts: Vec<PathBuf>,
}

impl MountedView {
    /// Mounts the state of a checkpoint. Blocks the thread.
    pub(crate) fn mount(volume: &Volume, checkpoint: &str) -> Result<Self, DiskError> {
        static NEXT: AtomicU64 = AtomicU64::new(GENERATION_FIRST);
        let generation = NEXT.fetch_add(1, Ordering::Relaxed);
        let view = volume
            .view(checkpoint)
            .map_err(|source| DiskError::Volume { action: "view a checkpoint of", source })?;
        let directory = Path::new(VIEWS).join(generation.to_string());
        let (file, disk, root) =
            (directory.join("device"), directory.join("disk"), directory.join("root"));
        for path in [&file, &disk, &root] {
            create_private(path)?;
        }
        let device = Device::attach_view(view, &file, generation)
            .map_err(|source| DiskError::Device { action: "attach", source })?;
        let source = device.path().to_owned();
        let mut mounted = Self { directory, device: Some(device), mounts: Vec::new() };
        mounted.add(&source, disk.clone(), "ext4", "noload")?;
        // Nothing but these two layers; without an upper one an overlay is read-only by itself.
        let layers = format!(
            "lowerdir={}:{BASE},redirect_dir=follow,metacopy=off,xino=auto",
            disk.join("root/upper").display()
        );
        mounted.add(Path::new("view"), root, "overlay", &layers)?;
        Ok(mounted)
    }

    /// The root, for comparing.
    pub(crate) fn tree(&self) -> Result<Tree, DiskError> {
        let open = |path: &Path| -> Result<OwnedFd, DiskError> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| local(path, errno.into()))
        };
        let upper = self.directory.join("disk/root/upper");
        Ok(Tree { root: open(&self.directory.join("root"))?, upper: open(&upper)? })
    }

    fn add(
        &mut self,
        source: &Path,
        target: PathBuf,
        kind: &str,
        options: &str,
    ) -> Result<(), DiskError> {
        let flags =
            MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        let options = CString::new(options)
            .map_err(|error| local(&target, io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        rustix::mount::mount(source, &target, kind, flags, options.as_c_str()).map_err(
            |errno: Errno| DiskError::Mount { device: source.to_owned(), source: errno.into() },
        )?;
        self.mounts.push(target);
        Ok(())
    }
}

impl Drop for MountedView {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            if let Err(errno) = rustix::mount::unmount(mount, UnmountFlags::empty()) {
                // The device below stays then as well, until the machine ends.
                warn!(mount = %mount.display(), error = &errno as &dyn std::error::Error, "unmount a view");
                return;
            }
        }
        if let Some(Err(error)) = self.device.take().map(Device::detach) {
            warn!(error = &error as &dyn std::error::Error, "detach the device of a view");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            warn!(error = &error as &dyn std::error::Error, "remove the directory of a view");
        }
    }
}

fn local(path: &Path, source: io::Error) -> DiskError {
    DiskError::Local { path: path.to_owned(), source }
}
