//! A checkpoint's root, mounted read-only in the machine's root namespace, beside the live one.
//!
//! ```text
//! DIRECTORY/device   the FUSE file of the checkpoint's blocks, with a loop device on it
//! DIRECTORY/disk     its ext4, whose journal is clean because a checkpoint is taken of a frozen filesystem
//! DIRECTORY/upper    what the sprite had changed of the base image by then, with the container's ids
//! DIRECTORY/base     the base image, with the container's ids
//! DIRECTORY/root     the overlay of the two
//! ```

use crate::{
    diff::Tree,
    disk::{DiskError, create_private},
};
use guest::{container::Container, protocol::BASE};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};
use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
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
    /// Mounts the state of a checkpoint, with the ids of a container. Blocks the thread.
    pub(crate) fn mount(
        volume: &Volume,
        checkpoint: &str,
        container: &Container,
    ) -> Result<Self, DiskError> {
        static NEXT: AtomicU64 = AtomicU64::new(GENERATION_FIRST);
        let generation = NEXT.fetch_add(1, Ordering::Relaxed);
        let view = volume
            .view(checkpoint)
            .map_err(|source| DiskError::Volume { action: "view a checkpoint of", source })?;
        let directory = Path::new(VIEWS).join(generation.to_string());
        let place = |name: &str| {
            let path = directory.join(name);
            create_private(&path).map(|()| path)
        };
        let (file, disk, upper) = (place("device")?, place("disk")?, place("upper")?);
        let (base, root) = (place("base")?, place("root")?);
        let device = Device::attach_view(view, &file, generation)
            .map_err(|source| DiskError::Device { action: "attach", source })?;
        let source = device.path().to_owned();
        let mut mounted = Self { directory, device: Some(device), mounts: Vec::new() };
        mounted.add(&source, disk.clone(), "ext4", "noload")?;
        for (layer, place) in [(disk.join("root/upper"), &upper), (PathBuf::from(BASE), &base)] {
            let mapped = container.bind_mapped(&layer).map_err(|error| local(&layer, error))?;
            attach(mapped, place)?;
            mounted.mounts.push(place.clone());
        }
        // Nothing but these two layers; without an upper one an overlay is read-only by itself.
        let layers = format!(
            "lowerdir={}:{},redirect_dir=follow,metacopy=off,xino=auto",
            upper.display(),
            base.display()
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
        let upper = self.directory.join("upper");
        Ok(Tree { root: open(&self.directory.join("root"))?, upper: open(&upper)? })
    }

    /// Shows the root at a second place as well, which must be unmounted first.
    pub(crate) fn show_at(&self, place: &Path) -> Result<(), DiskError> {
        let root = self.directory.join("root");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, &root, flags)
            .map_err(|errno| local(&root, errno.into()))?;
        attach(tree, place)
    }

    /// Takes it away.
    ///
    /// # Errors
    /// When somebody still uses it. It goes with its last user.
    pub(crate) fn unmount(mut self) -> Result<(), DiskError> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<(), DiskError> {
        while let Some(mount) = self.mounts.last() {
            rustix::mount::unmount(mount, UnmountFlags::empty())
                .map_err(|errno| local(mount, errno.into()))?;
            self.mounts.pop();
        }
        if let Some(device) = self.device.take() {
            device.detach().map_err(|source| DiskError::Device { action: "detach", source })?;
            std::fs::remove_dir_all(&self.directory)
                .map_err(|error| local(&self.directory, error))?;
        }
        Ok(())
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
        if let Err(error) = self.take_down() {
            // What is left ends with the machine.
            warn!(error = &error as &dyn std::error::Error, "take a view away");
        }
    }
}

fn attach(mount: OwnedFd, place: &Path) -> Result<(), DiskError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, place, flags)
        .map_err(|errno| local(place, errno.into()))
}

fn local(path: &Path, source: io::Error) -> DiskError {
    DiskError::Local { path: path.to_owned(), source }
}
