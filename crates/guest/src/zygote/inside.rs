//! The mounts that are made from inside the container's new namespaces, before its rights are given up.

use super::{Step, StepError, confine, message::Build, message::Reply, serve, tell_failure};
use crate::{
    mount::{self, Kind},
    sys,
};
use rustix::{
    fs::{FileType, Mode, makedev},
    mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// Becomes the zygote and serves until the agent hangs up.
pub(super) fn run(build: &Build, user_namespace: OwnedFd, docker: OwnedFd, socket: &OwnedFd) -> ! {
    let ready = enter_root(build, &docker).and_then(|()| {
        drop(docker);
        confine::confine(user_namespace)
    });
    let status = match ready {
        Ok(()) => match Reply::Built.send(socket.as_fd(), &[]) {
            Ok(()) => serve::serve(socket),
            Err(_) => 1,
        },
        Err(error) => {
            tell_failure(socket, &error);
            1
        }
    };
    sys::exit_now(status)
}

fn enter_root(build: &Build, docker: &OwnedFd) -> Result<(), StepError> {
    rustix::thread::set_name(c"zygote").step("take a name")?;
    rustix::system::sethostname(build.hostname.as_bytes()).step("set the host name")?;
    // Only the agent's automount is shared, and what is mounted there appears here. All else is private and stays so.
    let slaves = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slaves).step("make mounts slaves")?;
    let path = build.run.join("root");
    let root = mount::root(&path).step("open the root")?;
    let root = root.as_fd();
    rustix::process::umask(Mode::empty());
    mount_processes(root, build)?;
    mount_devices(root, build)?;
    mount_system(root, build)?;
    let run = [("source", "run"), ("mode", "755"), ("size", "25%"), ("nr_inodes", "65536")];
    let run = mount::filesystem("tmpfs", &run, NOSUID | NODEV).step("make /run")?;
    let run_place = mount::own_place(root, "run").step("find /run")?;
    mount::attach(run.as_fd(), run_place.as_fd()).step("mount /run")?;
    // A user may have put anything in the way. That costs the use of docker, and must not cost the sprite.
    drop(attach(docker.as_fd(), root, "var/lib/docker"));
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::process::chdir(&path).step("enter the root")?;
    rustix::process::pivot_root(".", ".").step("make it the root")?;
    // The old root lies on top of the new one now. Detaching is safe here: what it takes along is this namespace's copy of
    // the agent's mounts, and nothing in this namespace has a file of them open.
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("let go of the old root")?;
    rustix::process::chdir("/").step("enter the root")
}

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

fn attach(mount: BorrowedFd<'_>, root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let place = mount::place(root, path, Kind::Directory)?;
    mount::attach(mount, place.as_fd())
}

/// Parts of `/proc` that tell about the host or change it. Some exist only with some kernels.
const PROC_READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
const PROC_HIDDEN: [&str; 14] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "key-users",
    "kallsyms",
    "kpagecount",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
];

fn mount_processes(root: BorrowedFd<'_>, build: &Build) -> Result<(), StepError> {
    let empty = build.run.join(EMPTY);
    let proc = mount::filesystem("proc", &[("source", "proc")], NOSUID | NODEV | NOEXEC)
        .step("make /proc")?;
    let place = mount::own_place(root, "proc").step("find /proc")?;
    mount::attach(proc.as_fd(), place.as_fd()).step("mount /proc")?;
    let proc = mount::own_place(root, "proc").step("open /proc")?;
    for path in PROC_READ_ONLY {
        make_read_only(proc.as_fd(), path).step("protect a part of /proc")?;
    }
    for path in PROC_HIDDEN {
        hide(proc.as_fd(), path, &empty).step("hide a part of /proc")?;
    }
    Ok(())
}

/// Parts of `/sys` that tell about the host's hardware, disks and other machines.
const SYS_HIDDEN: [&str; 14] = [
    "block",
    "class/block",
    "dev/block",
    "devices/virtual/bdi",
    "devices/virtual/block",
    "devices/virtual/dmi",
    "devices/virtual/powercap",
    "firmware",
    "fs/ext4",
    "fs/fuse",
    "kernel/debug",
    "kernel/security",
    "kernel/tracing",
    "module",
];

fn mount_system(root: BorrowedFd<'_>, build: &Build) -> Result<(), StepError> {
    let empty = build.run.join(EMPTY);
    let flags = NOSUID | NODEV | NOEXEC | RDONLY;
    let sys = mount::filesystem("sysfs", &[("source", "sysfs")], flags).step("make /sys")?;
    let place = mount::own_place(root, "sys").step("find /sys")?;
    mount::attach(sys.as_fd(), place.as_fd()).step("mount /sys")?;
    let sys = mount::own_place(root, "sys").step("open /sys")?;
    for path in SYS_HIDDEN {
        hide(sys.as_fd(), path, &empty).step("hide a part of /sys")?;
    }
    mount_cgroups(sys.as_fd(), &build.cgroup_legacy).step("mount /sys/fs/cgroup")
}

fn mount_cgroups(sys: BorrowedFd<'_>, legacy: &[String]) -> io::Result<()> {
    let flags = NOSUID | NODEV | NOEXEC | RDONLY;
    if legacy.is_empty() {
        let unified = mount::filesystem("cgroup2", &[("source", "cgroup")], flags)?;
        return attach(unified.as_fd(), sys, "fs/cgroup");
    }
    let trees = mount::filesystem(
        "tmpfs",
        &[("source", "cgroup"), ("mode", "755"), ("size", "4k")],
        NOSUID | NODEV,
    )?;
    attach(trees.as_fd(), sys, "fs/cgroup")?;
    for controller in legacy {
        let tree = mount::filesystem("cgroup", &[("source", "cgroup"), (controller, "")], flags)?;
        attach(tree.as_fd(), sys, &format!("fs/cgroup/{controller}"))?;
    }
    Ok(())
}

/// The devices of the container: name, major, minor. None of them reaches anything of the host.
const DEVICES: [(&str, u32, u32); 6] = [
    ("full", 1, 7),
    ("null", 1, 3),
    ("random", 1, 8),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("zero", 1, 5),
];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// The group that owns terminals in Debian: `tty`.
pub(super) const TTY_GID: u32 = 5;

fn mount_devices(root: BorrowedFd<'_>, build: &Build) -> Result<(), StepError> {
    let dev = [("source", "dev"), ("mode", "755"), ("size", "64k"), ("nr_inodes", "128")];
    let dev = mount::filesystem("tmpfs", &dev, NOSUID | NOEXEC).step("make /dev")?;
    let place = mount::own_place(root, "dev").step("find /dev")?;
    mount::attach(dev.as_fd(), place.as_fd()).step("mount /dev")?;
    let dev = mount::own_place(root, "dev").step("open /dev")?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor))
            .step("make a device")?;
    }
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, &dev, name).step("make a link in /dev")?;
    }
    let gid = build.uid_start.saturating_add(TTY_GID).to_string();
    let terminals = [("source", "devpts"), ("mode", "620"), ("ptmxmode", "666"), ("gid", &gid)];
    let terminals =
        mount::filesystem("devpts", &terminals, NOSUID | NOEXEC).step("make /dev/pts")?;
    attach(terminals.as_fd(), dev.as_fd(), "pts").step("mount /dev/pts")?;
    let size = (build.limits.memory_bytes / 2).to_string();
    let shared = [("source", "shm"), ("mode", "1777"), ("size", &size)];
    let shared =
        mount::filesystem("tmpfs", &shared, NOSUID | NODEV | NOEXEC).step("make /dev/shm")?;
    attach(shared.as_fd(), dev.as_fd(), "shm").step("mount /dev/shm")?;
    let queues = mount::filesystem("mqueue", &[("source", "mqueue")], NOSUID | NODEV | NOEXEC)
        .step("make /dev/mqueue")?;
    attach(queues.as_fd(), dev.as_fd(), "mqueue").step("mount /dev/mqueue")
}

/// The agent's directory that covers what is hidden, in [`Build::run`].
pub(super) const EMPTY: &str = "empty";

/// Covers a directory with the empty one and anything else with nothing. A path that does not exist is fine.
fn hide(root: BorrowedFd<'_>, path: &str, empty: &Path) -> io::Result<()> {
    let Some(place) = existing(root, path)? else { return Ok(()) };
    if FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory {
        let empty = mount::bind(empty, NOSUID | NODEV | NOEXEC | RDONLY, None)?;
        return mount::attach(empty.as_fd(), place.as_fd());
    }
    let null = mount::bind(Path::new("/dev/null"), NOSUID | NOEXEC, None)?;
    mount::attach(null.as_fd(), place.as_fd())
}

fn make_read_only(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let Some(place) = existing(root, path)? else { return Ok(()) };
    let itself = mount::bind_at(place.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC)?;
    mount::attach(itself.as_fd(), place.as_fd())
}

fn existing(root: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    match mount::find(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}
