//! The builder: everything of a container that is made from outside of it.
//!
//! A single-threaded process in the machine's own namespaces, as the host's root. It ends when the zygote exists; the
//! zygote is then the agent's child.

use super::{Step, StepError, identity, inside, message::Build, message::Reply};
use crate::{
    container::CHECKPOINTS,
    mount::{self, Kind},
    protocol::UID_COUNT,
    sys::{self, Fork},
};
use rustix::{
    fs::{CWD, Mode, OFlags, StatVfsMountFlags},
    mount::{MountAttrFlags, UnmountFlags},
    pipe::PipeFlags,
    process::{Pid, WaitOptions},
    thread::UnshareFlags,
};
use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

/// Builds the container, forks the zygote, and tells the agent the descriptors of its process and of its user namespace. In the zygote this returns only
/// when it has ended.
pub(super) fn run(build: &Build, socket: &OwnedFd) -> Result<(), StepError> {
    for door in &build.cgroup_doors {
        fs::write(door, "0").step("join the control group")?;
    }
    let user_namespace = user_namespace(build.uid_start)?;
    make_directories(build)?;
    identity::act_as_container_root(build.uid_start).step("act as the container's root")?;
    let docker = mount::bind(
        &build.volume.join("docker"),
        MountAttrFlags::MOUNT_ATTR_NODEV,
        Some(user_namespace.as_fd()),
    )
    .step("bind the directory of docker")?;
    mount_root(build, &user_namespace)?;
    bind_shared(build, &user_namespace)?;
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP
        | UnshareFlags::NEWPID;
    // SAFETY: this process has one thread and shares no descriptors or memory with another that it relies on.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.step("enter new namespaces")?;
    // SAFETY: this process has one thread.
    match unsafe { sys::fork() }.step("fork the zygote")? {
        Fork::Child => inside::run(build, user_namespace, docker, socket),
        Fork::Parent(zygote) => {
            let process = rustix::process::pidfd_open(zygote, rustix::process::PidfdFlags::empty())
                .step("open the zygote's process")?;
            let descriptors = [process.as_fd(), user_namespace.as_fd()];
            Reply::Forked.send(socket.as_fd(), &descriptors).step("tell the agent")
        }
    }
}

/// Makes the user namespace of the container: container id `n` is `uid_start + n` outside.
fn user_namespace(uid_start: u32) -> Result<OwnedFd, StepError> {
    let (ready, ready_child) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("make a pipe")?;
    let (done_child, done) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("make a pipe")?;
    // SAFETY: this process has one thread.
    match unsafe { sys::fork() }.step("fork for the user namespace")? {
        Fork::Child => {
            drop((ready, done));
            // SAFETY: this process has one thread.
            let entered = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) };
            if entered.is_ok() && rustix::io::write(&ready_child, b"!").is_ok() {
                // The namespace lives while this process or a descriptor does: stay until the parent has one.
                let _ = rustix::io::read(&done_child, &mut [0]);
            }
            sys::exit_now(i32::from(entered.is_err()))
        }
        Fork::Parent(child) => {
            drop((ready_child, done_child));
            let namespace = map_ids(child, &ready, uid_start);
            drop(done);
            rustix::process::waitpid(Some(child), WaitOptions::empty())
                .step("wait for the user namespace's process")?;
            namespace
        }
    }
}

fn map_ids(child: Pid, ready: &OwnedFd, uid_start: u32) -> Result<OwnedFd, StepError> {
    if rustix::io::read(ready, &mut [0]).step("wait for the user namespace")? == 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied)).step("make a user namespace");
    }
    let process = Path::new("/proc").join(child.as_raw_nonzero().to_string());
    let map = format!("0 {uid_start} {UID_COUNT}\n");
    fs::write(process.join("uid_map"), &map).step("map the user ids")?;
    fs::write(process.join("gid_map"), &map).step("map the group ids")?;
    rustix::fs::open(process.join("ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .step("open the user namespace")
}

/// Directories of the volume, which belong to id 0 of the disk, and of the agent.
fn make_directories(build: &Build) -> Result<(), StepError> {
    let volume = &build.volume;
    for directory in ["root", "root/upper", "root/work"] {
        make_directory(&volume.join(directory), 0o755).step("make a directory on the volume")?;
    }
    make_directory(&volume.join("docker"), 0o710).step("make a directory on the volume")?;
    for directory in ["base", "disk", "root", inside::EMPTY] {
        make_directory(&build.run.join(directory), 0o755).step("make a mount point")?;
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Mounts the container's root: an overlay of the base image below and the volume above, both with the container's ids.
///
/// It must be mounted from the initial user namespace by a thread that acts as the container's root, which the overlay
/// remembers as the one that makes files on its upper layer. As the host's root the mount would succeed and be read-only.
fn mount_root(build: &Build, user_namespace: &OwnedFd) -> Result<(), StepError> {
    let (base, disk, root) =
        (build.run.join("base"), build.run.join("disk"), build.run.join("root"));
    let read_only = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let lower = mount::bind(&build.base, read_only, Some(user_namespace.as_fd()))
        .step("map the base image's ids")?;
    let upper = mount::bind(
        &build.volume.join("root"),
        MountAttrFlags::MOUNT_ATTR_NODEV,
        Some(user_namespace.as_fd()),
    )
    .step("map the volume's ids")?;
    mount::attach_path(lower.as_fd(), &base).step("attach the base image")?;
    mount::attach_path(upper.as_fd(), &disk).step("attach the volume")?;
    drop((lower, upper));
    let overlay = overlay(&base, &disk).step("mount the overlay")?;
    mount::attach_path(overlay.as_fd(), &root).step("attach the overlay")?;
    // The overlay keeps its own reference to both; with these gone it is the only thing to unmount.
    for layer in [&base, &disk] {
        rustix::mount::unmount(layer, UnmountFlags::empty()).step("detach a layer")?;
    }
    check_writable(&root).step("write to the new root")
}

fn overlay(base: &Path, disk: &Path) -> io::Result<OwnedFd> {
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or(io::Error::from(io::ErrorKind::InvalidFilename))
    };
    let options = [
        ("source", "root"),
        ("lowerdir", &text(base)?),
        ("upperdir", &text(&disk.join("upper"))?),
        ("workdir", &text(&disk.join("work"))?),
        // Without it, renaming a directory of the base image fails with EXDEV.
        ("redirect_dir", "on"),
        ("metacopy", "off"),
        ("xino", "auto"),
    ];
    mount::filesystem("overlay", &options, MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// A mount that could not use its work directory is read-only, and says so only here.
fn check_writable(root: &Path) -> io::Result<()> {
    if rustix::fs::statvfs(root)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, root, flags, Mode::RUSR | Mode::WUSR) {
        // Overlays have nameless files since Linux 6.1 or so; the flag above was then all there is to ask.
        Ok(_) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Binds what the agent owns into the root, where both the container and the agent's file API see it.
fn bind_shared(build: &Build, user_namespace: &OwnedFd) -> Result<(), StepError> {
    let root = mount::root(&build.run.join("root")).step("open the root")?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let sprite =
        mount::bind(&build.run.join("shared/sprite"), read_only, Some(user_namespace.as_fd()))
            .step("map the ids of /.sprite")?;
    let place = mount::own_place(root.as_fd(), ".sprite").step("find /.sprite")?;
    mount::attach(sprite.as_fd(), place.as_fd()).step("mount /.sprite")?;
    if build.checkpoints {
        let source = build.run.join("shared/sprite").join(CHECKPOINTS);
        let checkpoints = mount::bind(&source, read_only, None).step("bind the checkpoints")?;
        let place = mount::find(root.as_fd(), &format!(".sprite/{CHECKPOINTS}"))
            .step("find the place of the checkpoints")?;
        mount::attach(checkpoints.as_fd(), place.as_fd()).step("mount the checkpoints")?;
    }
    if let Some(logs) = &build.logs {
        let logs = mount::bind(logs, read_only, Some(user_namespace.as_fd()))
            .step("map the ids of the logs")?;
        let place = mount::find(root.as_fd(), ".sprite/logs/services")
            .step("find the place of the logs")?;
        mount::attach(logs.as_fd(), place.as_fd()).step("mount the logs")?;
    }
    for name in ["resolv.conf", "hosts", "hostname"] {
        let source = build.run.join("shared").join(name);
        let file =
            mount::bind(&source, MountAttrFlags::MOUNT_ATTR_NODEV, Some(user_namespace.as_fd()))
                .step("map the ids of a file of /etc")?;
        // A user may have put anything in its place, such as a link to nowhere. That costs the name service, and must
        // not cost the sprite.
        if let Ok(place) = mount::place(root.as_fd(), &format!("etc/{name}"), Kind::File) {
            drop(mount::attach(file.as_fd(), place.as_fd()));
        }
    }
    Ok(())
}
