//! Looking at a filesystem that somebody else wrote before the kernel mounts it.
//!
//! The kernel trusts an ext4 that it mounts, and a crafted one attacks the host. `e2fsck` of the base image looks at it first,
//! as a process that may do nothing but read and write this one device, which is a copy. It replays the journal, as a mount
//! would, and then has to find nothing that it would change.

use guest::protocol::BASE;
use rustix::{
    fs::{Gid, Uid, chown},
    process::{Pid, Resource, Rlimit, prlimit},
};
use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tracing::info;

/// The program and what it runs with, in the base image. Nothing of the machine's own root is executable but the agent, so the
/// image's loader is what is started.
const PROGRAM: &str = "usr/sbin/e2fsck";
#[cfg(target_arch = "x86_64")]
const LOADER: (&str, &str) = ("usr/lib/x86_64-linux-gnu", "ld-linux-x86-64.so.2");
#[cfg(target_arch = "aarch64")]
const LOADER: (&str, &str) = ("usr/lib/aarch64-linux-gnu", "ld-linux-aarch64.so.1");

/// `nobody`: owns nothing in the machine.
const NOBODY: u32 = 65_534;

/// The most memory that the program may use.
const MEMORY_BYTES_MAX: u64 = 2 << 30;

/// How much of what it says is passed on.
const SAID_BYTES_MAX: usize = 2000;

/// Why a filesystem is not mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// The base image cannot check.
    #[error(
        "the base image has no {PROGRAM}, so the filesystem cannot be checked: take a newer image"
    )]
    NoProgram,
    /// The program did not run.
    #[error("run e2fsck")]
    Run(#[source] io::Error),
    /// It would have changed something.
    #[error("the filesystem is not sound: {0}")]
    Unsound(String),
}

/// Checks the filesystem on a block device. Blocks the thread.
pub(crate) fn filesystem(device: &Path) -> Result<(), CheckError> {
    let base = Path::new(BASE);
    if !base.join(PROGRAM).exists() {
        return Err(CheckError::NoProgram);
    }
    give(device, NOBODY).map_err(CheckError::Run)?;
    let checked = e2fsck(base, device, &["-p", "-E", "journal_only"], true)
        .and_then(|()| e2fsck(base, device, &["-f", "-n"], false));
    give(device, 0).map_err(CheckError::Run)?;
    checked.inspect(|()| info!(device = %device.display(), "the filesystem is sound"))
}

fn give(device: &Path, user: u32) -> io::Result<()> {
    Ok(chown(device, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?)
}

/// Runs the program. Its status 1 means that it has changed something, which only a replay may.
fn e2fsck(
    base: &Path,
    device: &Path,
    options: &[&str],
    may_change: bool,
) -> Result<(), CheckError> {
    let (directory, loader) = LOADER;
    let libraries: PathBuf = base.join(directory);
    let mut program = Command::new(libraries.join(loader));
    std::os::unix::process::CommandExt::uid(&mut program, NOBODY);
    std::os::unix::process::CommandExt::gid(&mut program, NOBODY);
    let child = program
        .arg("--library-path")
        .arg(&libraries)
        .arg(base.join(PROGRAM))
        .args(options)
        .arg(device)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(CheckError::Run)?;
    let limit = Rlimit { current: Some(MEMORY_BYTES_MAX), maximum: Some(MEMORY_BYTES_MAX) };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Err(errno) = prlimit(pid, Resource::As, limit) {
        info!(%errno, "e2fsck ended before it was limited");
    }
    let output = child.wait_with_output().map_err(CheckError::Run)?;
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1) if may_change => Ok(()),
        _ => Err(CheckError::Unsound(said(&output))),
    }
}

/// The last of what the program said, printable.
fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(SAID_BYTES_MAX)..]);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join("; ");
    let printable = text.chars().filter(|char| !char.is_control()).collect();
    if text.is_empty() { output.status.to_string() } else { printable }
}
