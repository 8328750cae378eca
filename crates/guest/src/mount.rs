//! Mounts through descriptors: a mount is made detached, then attached at a place that was resolved safely.
//!
//! The root of a container is full of what its user wrote. No path in it is ever given to a mount call: a place in it is
//! opened with [`place`], which cannot leave the root whatever symbolic links say, and the mount is attached to that
//! descriptor.

use crate::sys::{self, MountAttributes};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// A detached mount of a new filesystem of this type with these options.
pub(crate) fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A detached bind of what is at `path`, which must be a path that no user controls.
pub(crate) fn bind(
    path: &Path,
    attributes: MountAttrFlags,
    id_map: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    sys::mount_setattr(tree.as_fd(), &MountAttributes { set: attributes.bits().into(), id_map })?;
    Ok(tree)
}

/// A detached bind of an opened place.
pub(crate) fn bind_at(place: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(place, "", flags)?;
    sys::mount_setattr(
        tree.as_fd(),
        &MountAttributes { set: attributes.bits().into(), id_map: None },
    )?;
    Ok(tree)
}

/// Attaches a detached mount at an opened place.
pub(crate) fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", place, "", flags)?)
}

/// Attaches a detached mount at a path that no user controls.
pub(crate) fn attach_path(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", CWD, path, flags)?)
}

/// Opens a directory by a path that no user controls, as a root for [`place`].
pub(crate) fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// What a place for a mount must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory, made if nothing is there.
    Directory,
    /// Something that is not a directory; an empty file is made if nothing is there.
    File,
}

/// Opens what is at `path` (relative) below `root`. Symbolic links are followed but cannot lead out of `root`.
pub(crate) fn find(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// Opens `path` (relative) below `root` as a place for a mount, like [`find`], made if it is missing.
pub(crate) fn place(root: BorrowedFd<'_>, path: &str, kind: Kind) -> io::Result<OwnedFd> {
    match find(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(root, path, kind)?;
            find(root, path)
        }
        found => found,
    }
}

/// Opens the directory `name` in `root` as a place for a mount. Anything else of that name is removed first: a container
/// needs its `/proc` whatever its user has made of it.
pub(crate) fn own_place(root: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(root, name, flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {}
        Err(Errno::LOOP | Errno::NOTDIR) => rustix::fs::unlinkat(root, name, AtFlags::empty())?,
        opened => return Ok(opened?),
    }
    rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))?;
    Ok(open()?)
}

fn make(root: BorrowedFd<'_>, path: &str, kind: Kind) -> io::Result<()> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let parent = if parent == "." {
        root.try_clone_to_owned()?
    } else {
        place(root, parent, Kind::Directory)?
    };
    match kind {
        Kind::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    Ok(())
}
