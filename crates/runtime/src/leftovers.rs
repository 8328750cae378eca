//! Removes what a server of the same instance left behind, whether it was killed or is shutting down.

use crate::{Error, command, firewall, machine::KEEPER_CGROUP, range::Range};
use guest::cgroup::Cgroup;
use rustix::{io::Errno, mount::UnmountFlags};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Where what is removed is.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    /// Which server's.
    pub(crate) instance: &'a str,
    /// Its control group.
    pub(crate) cgroup: &'a Cgroup,
    /// Its directory.
    pub(crate) run_dir: &'a Path,
    /// The file that remembers its range.
    pub(crate) range_file: &'a Path,
}

/// Removes everything. Each part is tried, whatever became of the others.
///
/// # Errors
/// The first failure.
pub(crate) async fn remove(places: &Places<'_>) -> Result<(), Error> {
    let results = [
        end_machines(places.cgroup).await,
        remove_processes(places.cgroup).await,
        remove_interfaces(places.instance).await,
        firewall::lower(places.instance).await,
        remove_range(places.range_file).await,
        remove_mounts(places.run_dir),
        remove_directory(&places.run_dir.join("machines")),
    ];
    results.into_iter().collect()
}

/// Kills the machines of a server, and lets their keepers end.
///
/// Not all at once: a machine whose keeper is gone first could be stuck in its own end (`guest::launch` says why).
async fn end_machines(cgroup: &Cgroup) -> Result<(), Error> {
    let (machines, keepers) = (cgroup.clone(), cgroup.child(KEEPER_CGROUP));
    let ended = tokio::task::spawn_blocking(move || {
        for machine in machines.children()? {
            if machine.name() != Some(KEEPER_CGROUP) {
                machine.kill()?;
            }
        }
        keepers.wait_empty(KILL_LIMIT)
    });
    ended
        .await
        .map_err(|error| cgroup_failed(io::Error::other(error)))?
        .map_err(|error| cgroup_failed(io::Error::other(error)))
}

fn cgroup_failed(source: io::Error) -> Error {
    Error::Host { action: "remove a control group".into(), source }
}

/// Kills everything in a control group, waits until it is gone, and removes the group.
///
/// # Errors
/// When something lives on or the group stays.
pub(crate) async fn remove_processes(cgroup: &Cgroup) -> Result<(), Error> {
    let cgroup = cgroup.clone();
    let removed = tokio::task::spawn_blocking(move || {
        cgroup.kill()?;
        cgroup.wait_empty(KILL_LIMIT)?;
        cgroup.remove()
    });
    removed
        .await
        .map_err(|error| cgroup_failed(io::Error::other(error)))?
        .map_err(|error| cgroup_failed(io::Error::other(error)))
}

async fn remove_interfaces(instance: &str) -> Result<(), Error> {
    let prefix = firewall::interface_prefix(instance);
    let links = command::run("ip", &["-o", "link", "show"], "").await?;
    // A line is `7: NAME@PEER: <FLAGS> ...`.
    let names = links
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .filter_map(|name| name.split('@').next());
    for name in names.filter(|name| name.starts_with(&prefix)) {
        remove_interface(name).await?;
    }
    Ok(())
}

/// Removes a cable; one that is gone is fine, since it goes with its network namespace.
///
/// # Errors
/// When the kernel refuses.
pub(crate) async fn remove_interface(name: &str) -> Result<(), Error> {
    match command::run("ip", &["link", "delete", "dev", name], "").await {
        // The second when its namespace ended between the look and the removal.
        Err(Error::Command { output, .. })
            if output.contains("Cannot find device") || output.contains("No such device") =>
        {
            Ok(())
        }
        done => done.map(drop),
    }
}

async fn remove_range(file: &Path) -> Result<(), Error> {
    match Range::remembered(file) {
        Some(range) => range.release().await,
        None => Ok(()),
    }
}

/// Unmounts everything below a directory, latest first.
fn remove_mounts(directory: &Path) -> Result<(), Error> {
    for mount in mounts_below(directory)?.into_iter().rev() {
        match rustix::mount::unmount(&mount, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => {
                return Err(Error::Host {
                    action: format!("unmount {}", mount.display()),
                    source: error.into(),
                });
            }
        }
    }
    Ok(())
}

/// The mounts below a directory, in the order in which they were made.
///
/// # Errors
/// When the kernel's table cannot be read.
pub(crate) fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Host { action: "list the mounts of the host".into(), source };
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    // The table names what is there without symbolic links.
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let mounts =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).map(PathBuf::from);
    Ok(mounts.filter(|mount| mount.starts_with(&directory)).collect())
}

/// The table writes blanks and backslashes as `\ooo`.
fn unescape(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (escape, byte)| text.replace(escape, byte))
}

/// Removes a directory tree of the server's own; one that is not there is fine. Nothing is mounted in it.
///
/// # Errors
/// When something cannot be removed.
pub(crate) fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Host { action: format!("remove {}", path.display()), source })
        }
        _ => Ok(()),
    }
}
