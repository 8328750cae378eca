//! The root of a machine: a small memory filesystem with what the agent needs and nothing of the host.

use super::{AGENT_PATH, LaunchSpec, Step, StepError, VOLUME};
use crate::{
    cgroup::{self, Trees},
    mount::{self, Kind},
    protocol::{BASE, BOOT_FILE, CHANNEL, DATA},
};
use rustix::{
    fs::{FileType, Mode, makedev},
    mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags},
};
use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// The most that the agent's own files may take.
const ROOT_BYTES_MAX: &str = "64m";

/// The devices of a machine: name, major, minor. Nodes of loop devices are made by the agent as it gets them.
const DEVICES: [(&str, u32, u32); 8] = [
    ("full", 1, 7),
    ("fuse", 10, 229),
    ("loop-control", 10, 237),
    ("null", 1, 3),
    ("random", 1, 8),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("zero", 1, 5),
];

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// Builds the root at [`LaunchSpec::root`]. The host's files are still in place afterwards.
pub(super) fn build(spec: &LaunchSpec, trees: &Trees) -> Result<(), StepError> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step("make mounts private")?;
    rustix::process::umask(Mode::empty());
    let options = [("source", "machine"), ("mode", "755"), ("size", ROOT_BYTES_MAX)];
    let root = mount::filesystem("tmpfs", &options, NOSUID).step("make the root")?;
    mount::attach_path(root.as_fd(), &spec.root).step("mount the root")?;
    let root = mount::root(&spec.root).step("open the root")?;
    bind(&root, &spec.base, BASE, RDONLY | NODEV, Kind::Directory).step("bind the base image")?;
    bind(&root, &spec.data, DATA, NOSUID | NODEV | NOEXEC, Kind::Directory)
        .step("bind the data directory")?;
    bind(&root, &spec.channel, CHANNEL, NOSUID | NODEV | NOEXEC, Kind::Directory)
        .step("bind the channel")?;
    bind(&root, &spec.agent, AGENT_PATH, NOSUID | NODEV | RDONLY, Kind::File)
        .step("bind the agent")?;
    let boot = serde_json::to_vec(&spec.boot).step("encode the boot file")?;
    fs::write(spec.root.join(BOOT_FILE.trim_start_matches('/')), boot)
        .step("write the boot file")?;
    for directory in ["tmp", VOLUME.trim_start_matches('/')] {
        mount::place(root.as_fd(), directory, Kind::Directory).step("make a directory")?;
    }
    make_devices(root.as_fd()).step("make /dev")?;
    let proc = mount::filesystem("proc", &[("source", "proc")], NOSUID | NODEV | NOEXEC)
        .step("make /proc")?;
    attach(&proc, root.as_fd(), "proc").step("mount /proc")?;
    let flags = NOSUID | NODEV | NOEXEC | RDONLY;
    let sys = mount::filesystem("sysfs", &[("source", "sysfs")], flags).step("make /sys")?;
    attach(&sys, root.as_fd(), "sys").step("mount /sys")?;
    mount_cgroups(root.as_fd(), trees).step("mount the control groups")?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    Ok(())
}

/// Makes the built root this process's root and lets go of the host's.
pub(super) fn enter(root: &Path) -> Result<(), StepError> {
    rustix::process::chdir(root).step("enter the root")?;
    rustix::process::pivot_root(".", ".").step("make it the root")?;
    // The host's root lies on top of the new one now. Only this namespace's copy of its mounts goes.
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("let go of the host's root")?;
    rustix::process::chdir("/").step("enter the root")
}

fn attach(mount: &OwnedFd, root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let place = mount::place(root, path, Kind::Directory)?;
    mount::attach(mount.as_fd(), place.as_fd())
}

fn bind(
    root: &OwnedFd,
    source: &Path,
    path: &str,
    attributes: MountAttrFlags,
    kind: Kind,
) -> io::Result<()> {
    let tree = mount::bind(source, attributes, None)?;
    let place = mount::place(root.as_fd(), path.trim_start_matches('/'), kind)?;
    mount::attach(tree.as_fd(), place.as_fd())
}

fn make_devices(root: BorrowedFd<'_>) -> io::Result<()> {
    let dev = mount::place(root, "dev", Kind::Directory)?;
    for (name, major, minor) in DEVICES {
        rustix::fs::mknodat(
            &dev,
            name,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(major, minor),
        )?;
    }
    Ok(())
}

/// The machine's own groups, in the shape in which the host has them, so that [`Trees::detect`] finds the same.
fn mount_cgroups(root: BorrowedFd<'_>, trees: &Trees) -> io::Result<()> {
    let directory = cgroup::MOUNT.trim_start_matches('/');
    let flags = NOSUID | NODEV | NOEXEC;
    let unified = mount::filesystem("cgroup2", &[("source", "cgroup")], flags)?;
    if trees.legacy().next().is_none() {
        return attach(&unified, root, directory);
    }
    let all = mount::filesystem(
        "tmpfs",
        &[("source", "cgroup"), ("mode", "755"), ("size", "64k")],
        flags,
    )?;
    attach(&all, root, directory)?;
    attach(&unified, root, &format!("{directory}/unified"))?;
    for controller in trees.legacy() {
        let tree = mount::filesystem("cgroup", &[("source", "cgroup"), (controller, "")], flags)?;
        attach(&tree, root, &format!("{directory}/{controller}"))?;
    }
    Ok(())
}
