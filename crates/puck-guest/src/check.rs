//! Looking at a filesystem that somebody else wrote before the kernel mounts it.
//!
//! The kernel trusts an ext4 that it mounts, and a crafted one attacks the host. `e2fsck` of the base image looks at it first, as
//! `nobody`, with bounds and no way to gain a right, on a device that is a copy. It does what a mount would do: replay the
//! journal, and put right what a power failure leaves (`-p`). Then it has to find nothing that it would change. Should what it
//! reads take it over, it can neither change what is mounted nor outlive the check.

use guest::protocol::BASE;
use rustix::{
    fs::{Gid, Uid, chown},
    process::{Resource, Rlimit, setrlimit},
    thread::set_no_new_privs,
};
use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
};
use tracing::info;

/// The program and what it runs with, in the base image. Nothing of the machine's own root is executable but the agent, so the
/// image's loader is what is started.
const PROGRAM: &str = "usr/sbin/e2fsck";
const SHELL: &str = "usr/bin/dash";
#[cfg(target_arch = "x86_64")]
const LOADER: (&str, &str) = ("usr/lib/x86_64-linux-gnu", "ld-linux-x86-64.so.2");
#[cfg(target_arch = "aarch64")]
const LOADER: (&str, &str) = ("usr/lib/aarch64-linux-gnu", "ld-linux-aarch64.so.1");

/// `nobody`: owns nothing in the machine.
const NOBODY: u32 = 65_534;

/// What the program may use: memory, and seconds of a processor.
const LIMITS: [(Resource, u64); 2] = [(Resource::As, 2 << 30), (Resource::Cpu, 600)];

/// How much of what it says is kept: the end.
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
    give(device, NOBODY).map_err(CheckError::Run)?;
    // Status 1 means that something was changed.
    let checked =
        e2fsck(device, &["-p", "-f"], &[0, 1]).and_then(|()| e2fsck(device, &["-f", "-n"], &[0]));
    give(device, 0).map_err(CheckError::Run)?;
    checked.inspect(|()| info!(device = %device.display(), "the filesystem is sound"))
}

fn give(device: &Path, user: u32) -> io::Result<()> {
    Ok(chown(device, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?)
}

fn e2fsck(device: &Path, options: &[&str], good: &[i32]) -> Result<(), CheckError> {
    let base = Path::new(BASE);
    if !base.join(PROGRAM).exists() {
        return Err(CheckError::NoProgram);
    }
    let (status, said) = run(base, device, options).map_err(CheckError::Run)?;
    match status.code() {
        Some(code) if good.contains(&code) => Ok(()),
        _ if said.is_empty() => Err(CheckError::Unsound(status.to_string())),
        _ => Err(CheckError::Unsound(said)),
    }
}

/// Runs the program; gives how it ended, and the end of what it said.
fn run(base: &Path, device: &Path, options: &[&str]) -> io::Result<(ExitStatus, String)> {
    let (said, say) = io::pipe()?;
    let mut program = as_nobody(base, PROGRAM);
    program.args(options).arg(device).stdout(say.try_clone()?).stderr(say);
    let mut child = program.spawn()?;
    // The writing ends that it holds would keep the reading from ending.
    drop(program);
    let reading = thread::spawn(move || tail(said));
    let status = child.wait()?;
    // Whatever it left behind holds the pipe. Nothing else here belongs to nobody yet; that nobody is there to be killed is
    // the usual case, and a failure.
    as_nobody(base, SHELL).args(["-c", "kill -KILL -1"]).stderr(Stdio::null()).status()?;
    let said = reading.join().map_err(|_panic| io::Error::other("reading it panicked"))?;
    Ok((status, printable(&said?)))
}

/// A program of the base image, without rights.
fn as_nobody(base: &Path, program: &str) -> Command {
    let (directory, loader) = LOADER;
    let libraries = base.join(directory);
    let mut command = Command::new(libraries.join(loader));
    command
        .arg("--library-path")
        .arg(&libraries)
        .arg(base.join(program))
        .env_clear()
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::null());
    // SAFETY: what runs between fork and exec only makes system calls.
    unsafe { command.pre_exec(confine) };
    command
}

fn confine() -> io::Result<()> {
    for (resource, most) in LIMITS {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(set_no_new_privs(true)?)
}

/// Reads to the end and keeps the last bytes, however much there is.
fn tail(mut said: impl Read) -> io::Result<Vec<u8>> {
    let (mut kept, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let count = said.read(&mut part)?;
        if count == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(&part[..count]);
        kept.drain(..kept.len().saturating_sub(SAID_BYTES_MAX));
    }
}

/// In one line, without what steers a terminal.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join("; ");
    line.chars().filter(|char| !char.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::{SAID_BYTES_MAX, printable, tail};

    #[test]
    fn the_end_of_what_is_said_is_kept_and_printable() {
        let text = [vec![b'x'; 100_000], b"\n  the \x1b[31mend \n\n".to_vec()].concat();
        let kept = tail(&text[..]).unwrap();
        assert_eq!(kept.len(), SAID_BYTES_MAX);
        assert!(printable(&kept).ends_with("x; the [31mend"), "{}", printable(&kept));
    }
}
