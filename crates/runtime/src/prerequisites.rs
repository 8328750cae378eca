//! What a host must have to run machines, checked before anything is changed.

use crate::{Error, command};
use guest::cgroup::Trees;
use rustix::thread::CapabilitySet;
use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use tracing::warn;

/// Device files that machines need, and the kernel module behind each.
const DEVICES: [(&str, &str); 2] = [("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")];

/// Filesystems that machines need.
const FILESYSTEMS: [&str; 5] = ["cgroup2", "erofs", "ext4", "overlay", "tmpfs"];

/// Checks everything, and gives the control group trees.
///
/// # Errors
/// [`Error::Prerequisite`] with what to do about it.
pub(crate) async fn check(agent: &Path) -> Result<Trees, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(missing(
            "it needs root, to make namespaces and mounts",
            "start the server as root",
        ));
    }
    for (device, module) in DEVICES {
        if !Path::new(device).exists() {
            load(module).await;
        }
        if !Path::new(device).exists() {
            return Err(missing(
                &format!("{device} is missing"),
                &format!("load the kernel module `{module}`"),
            ));
        }
    }
    for filesystem in FILESYSTEMS {
        if !knows(filesystem)? {
            load(filesystem).await;
        }
        if !knows(filesystem)? {
            let fix = format!("load the kernel module `{filesystem}` (Linux 6.1 or newer)");
            return Err(missing(&format!("the kernel has no `{filesystem}`"), &fix));
        }
    }
    command::run("ip", &["-Version"], "").await?;
    command::run("nft", &["--version"], "").await?;
    command::run("mount", &["--version"], "").await?;
    check_agent(agent)?;
    let capabilities = rustix::thread::capabilities(None).map_err(|error| Error::Host {
        action: "read capabilities".into(),
        source: error.into(),
    })?;
    if !capabilities.effective.contains(CapabilitySet::SYS_RESOURCE) {
        warn!(
            "this server lacks CAP_SYS_RESOURCE, so agents cannot mark the threads of the block device, which may stall when memory is short"
        );
    }
    Trees::detect(Path::new(guest::cgroup::MOUNT)).map_err(|error| {
        missing(
            &error.to_string(),
            "mount cgroup2 at /sys/fs/cgroup with the controllers cpu, memory and pids",
        )
    })
}

fn missing(what: &str, fix: &str) -> Error {
    Error::Prerequisite { missing: what.into(), fix: fix.into() }
}

/// What this could not load is found missing by the check that follows.
async fn load(module: &str) {
    drop(command::run("modprobe", &["-q", module], "").await);
}

fn knows(filesystem: &str) -> Result<bool, Error> {
    let known = fs::read_to_string("/proc/filesystems")
        .map_err(|source| Error::Host { action: "read /proc/filesystems".into(), source })?;
    Ok(known.lines().any(|line| line.split_whitespace().next_back() == Some(filesystem)))
}

/// A machine holds nothing but the agent's file, so a loader or library would be missing there, and the kernel's error
/// for that names the wrong file.
fn check_agent(agent: &Path) -> Result<(), Error> {
    match is_static(agent) {
        Ok(true) => Ok(()),
        Ok(false) => Err(missing(
            &format!("the guest agent {} is not a statically linked program", agent.display()),
            "build it with `make build`",
        )),
        Err(source) => Err(missing(
            &format!("the guest agent {} cannot be read: {source}", agent.display()),
            "build it with `make build`, or say where it is",
        )),
    }
}

/// Whether this is a 64-bit ELF program that names no interpreter.
fn is_static(path: &Path) -> io::Result<bool> {
    /// The type of the program header that names the interpreter.
    const PT_INTERP: u32 = 3;
    let file = fs::File::open(path)?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(false);
    }
    let field = |range: std::ops::Range<usize>| {
        header
            .get(range)
            .unwrap_or_default()
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let (offset, size, count) = (field(32..40), field(54..56), field(56..58));
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, offset.saturating_add(index * size))?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Directories that only root may enter, made if missing.
///
/// # Errors
/// When a directory cannot be made.
pub(crate) fn private_directory(path: &Path) -> Result<PathBuf, Error> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| {
        Error::Host { action: format!("make the directory {}", path.display()), source }
    })?;
    Ok(path.to_owned())
}
