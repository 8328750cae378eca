//! Which process a socket belongs to.
//!
//! Only `/proc` knows: each descriptor of a process is a link that names its socket. Processes of a guest come and go while
//! this looks, and there may be very many descriptors, so the search has a bound and a socket may stay without a process.

use super::Table;
use std::{collections::HashMap, fs, path::Path};

/// The most descriptors that one search looks at.
const DESCRIPTORS_MAX: usize = 100_000;

/// Finds the processes of those sockets for which nobody has looked yet.
pub(super) fn name(table: &mut Table) {
    let wanted = table.values().filter(|socket| socket.pid.is_none());
    let mut found: HashMap<u32, u32> = wanted.map(|socket| (socket.inode, 0)).collect();
    if found.is_empty() {
        return;
    }
    search(&mut found);
    for socket in table.values_mut() {
        socket.pid = socket.pid.or_else(|| found.get(&socket.inode).copied());
    }
}

/// Puts the process beside each socket that it finds. The lowest number counts: a parent has a socket before its children.
fn search(found: &mut HashMap<u32, u32>) {
    let mut missing = found.len();
    let mut descriptors = 0;
    let mut processes: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    processes.sort_unstable();
    for process in processes {
        let directory = format!("/proc/{process}");
        for descriptor in fs::read_dir(format!("{directory}/fd")).into_iter().flatten().flatten() {
            descriptors += 1;
            if missing == 0 || descriptors > DESCRIPTORS_MAX {
                return;
            }
            let Some(inode) = socket_of(&descriptor.path()) else { continue };
            if let Some(owner) = found.get_mut(&inode).filter(|owner| **owner == 0) {
                *owner = innermost_id(&directory).unwrap_or(0);
                missing -= 1;
            }
        }
    }
}

/// The inode of the socket that a descriptor is.
fn socket_of(descriptor: &Path) -> Option<u32> {
    let target = fs::read_link(descriptor).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The process's id as the process itself knows it: the last of those that it has in nested namespaces.
fn innermost_id(directory: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("{directory}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_ascii_whitespace().last()?.parse().ok()
}
