//! Ends a machine's FUSE connections from outside.
//!
//! An agent serves its own volume. If it is killed while one of its threads waits for the volume, in a `syncfs` or a read, the
//! kernel waits for the thread, the thread for the volume, and the volume for the agent, whose descriptor of the connection
//! stays open as long as the thread lives. All three would wait for ever, and every `sync` of the host behind them.
//! Aborting the connection answers the thread with an error, and everything ends.

use crate::mount;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::MountAttrFlags,
    process::Pid,
};
use std::{collections::BTreeSet, fs, io, os::fd::AsFd};

/// Aborts the connections of everything of type FUSE that is mounted in the mount namespace of the agent `pid`. Does nothing
/// when the agent has ended: then nothing of it waits.
pub(super) fn abort(pid: Pid) -> io::Result<()> {
    let connections = connections(pid);
    if connections.is_empty() {
        return Ok(());
    }
    // A mount of our own, since not every host has one, and none of the machine's.
    let control = mount::filesystem("fusectl", &[], MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    for connection in connections {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = format!("{connection}/abort");
        match rustix::fs::openat(control.as_fd(), file, flags, Mode::empty()) {
            Ok(file) => drop(rustix::io::write(file, b"1")?),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The numbers of the connections. The first thread may have ended before the others, so all are asked.
fn connections(pid: Pid) -> BTreeSet<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else {
        return BTreeSet::new();
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("mountinfo")).ok())
        .flat_map(|mounts| mounts.lines().filter_map(connection).collect::<Vec<_>>())
        .collect()
}

/// The number of the connection behind a line of `mountinfo`: the minor number of its device. Only of what an agent serves: one
/// that dies before it has left the host's mounts sees those too.
fn connection(line: &str) -> Option<u32> {
    let (mount, filesystem) = line.split_once(" - ")?;
    filesystem.strip_prefix("fuse puck-")?;
    mount.split(' ').nth(2)?.strip_prefix("0:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::connection;

    #[test]
    fn a_fuse_mount_is_known_by_its_device() {
        let line = "61 48 0:57 / /run/puck/device-1 rw,nosuid shared:2 - fuse puck-3 rw,user_id=0";
        assert_eq!(connection(line), Some(57));
        assert_eq!(connection("61 48 0:57 / /home/x rw - fuse sshfs rw,user_id=1000"), None);
        assert_eq!(connection("61 48 0:57 / /proc rw - proc proc rw"), None);
        assert_eq!(connection("61 48 7:3 / /volume rw - ext4 /dev/loop3 rw"), None);
        assert_eq!(connection("61 48 0:21 / /x - y rw - fusectl none rw"), None);
        assert_eq!(connection(""), None);
    }
}
