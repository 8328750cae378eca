//! Control groups: one view of hosts that have only version 2 and hosts that have both versions.
//!
//! Killing, freezing and counting the living go through the version 2 tree, which every supported host has, with or without
//! controllers in it. Limits go through whichever tree has the controller. A [`Cgroup`] is the same relative path in all
//! of these trees at once.
//!
//! Version 2 allows processes only in leaves once a group hands controllers to its children. Hence the shape of a
//! machine's groups: `NAME/agent` for the agent and its loop workers, `NAME/container` for user code, nobody in `NAME`.

use crate::protocol::Limits;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where the trees are mounted, on a host and in a machine.
pub const MOUNT: &str = "/sys/fs/cgroup";

/// The controllers that a machine uses. All are required on version 2; on version 1 each has a tree of its own.
pub const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Why something about a control group failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no version 2 tree.
    #[error("no cgroup2 tree at {MOUNT} or {MOUNT}/unified")]
    NoUnified,
    /// No tree has this controller.
    #[error("no cgroup tree has the controller `{controller}`")]
    NoController {
        /// Its name.
        controller: &'static str,
    },
    /// The kernel cannot kill a group.
    #[error("no cgroup.kill: Linux 5.14 or newer is needed")]
    NoKill,
    /// A file of a group could not be read or written.
    #[error("{action} {path} failed")]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Processes are still in the group after the time limit.
    #[error("processes are still in {path}")]
    Populated {
        /// The group.
        path: PathBuf,
    },
}

/// The trees of this host or machine.
#[derive(Debug, Clone)]
pub struct Trees {
    unified: PathBuf,
    /// Version 1 trees, by controller. Empty where version 2 has the controllers.
    legacy: Vec<(&'static str, PathBuf)>,
}

impl Trees {
    /// Finds the trees below `mount`, usually [`MOUNT`].
    ///
    /// # Errors
    /// When there is no version 2 tree or a controller is in no tree.
    pub fn detect(mount: &Path) -> Result<Self, Error> {
        let unified = [mount.to_owned(), mount.join("unified")]
            .into_iter()
            .find(|tree| tree.join("cgroup.controllers").exists())
            .ok_or(Error::NoUnified)?;
        let available = read(&unified.join("cgroup.controllers"))?;
        let mut legacy = Vec::new();
        for controller in CONTROLLERS {
            if available.split_whitespace().any(|name| name == controller) {
                continue;
            }
            let tree = mount.join(controller);
            if !tree.join("cgroup.procs").exists() {
                return Err(Error::NoController { controller });
            }
            legacy.push((controller, tree));
        }
        Ok(Self { unified, legacy })
    }

    /// The version 1 controllers in use: empty on a host that has version 2 only.
    pub fn legacy(&self) -> impl Iterator<Item = &'static str> {
        self.legacy.iter().map(|(controller, _)| *controller)
    }

    /// The group at `path`, relative to the root of the trees, whether it exists or not.
    #[must_use]
    pub fn group(&self, path: &str) -> Cgroup {
        Cgroup {
            unified: self.unified.join(path),
            legacy: self
                .legacy
                .iter()
                .map(|(controller, tree)| (*controller, tree.join(path)))
                .collect(),
        }
    }
}

/// One group, in all trees.
#[derive(Debug, Clone)]
pub struct Cgroup {
    unified: PathBuf,
    legacy: Vec<(&'static str, PathBuf)>,
}

impl Cgroup {
    /// The group `name` in this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self {
            unified: self.unified.join(name),
            legacy: self
                .legacy
                .iter()
                .map(|(controller, path)| (*controller, path.join(name)))
                .collect(),
        }
    }

    /// The group's own name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.unified.file_name()?.to_str()
    }

    /// The groups in this one. A group that does not exist has none.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn children(&self) -> Result<Vec<Self>, Error> {
        let listed = |source| file("list", &self.unified, source);
        let entries = match fs::read_dir(&self.unified) {
            Ok(entries) => entries,
            Err(source) if is_missing(&source) => return Ok(Vec::new()),
            Err(source) => return Err(listed(source)),
        };
        let mut children = Vec::new();
        for entry in entries {
            let entry = entry.map_err(listed)?;
            if entry.file_type().map_err(listed)?.is_dir() {
                // Only names of this product's own are below its groups.
                children.extend(entry.file_name().to_str().map(|name| self.child(name)));
            }
        }
        Ok(children)
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.unified.as_path())
            .chain(self.legacy.iter().map(|(_, path)| path.as_path()))
    }

    /// Makes the group in every tree; one that exists is fine.
    ///
    /// # Errors
    /// When a directory cannot be made, or the kernel is too old to kill groups.
    pub fn create(&self) -> Result<(), Error> {
        for path in self.paths() {
            match fs::create_dir(path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(file("create", path, source));
                }
                _ => {}
            }
        }
        if self.unified.join("cgroup.kill").exists() { Ok(()) } else { Err(Error::NoKill) }
    }

    /// Hands the controllers to the groups in this one, where version 2 has them. No process may be in this group.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delegate(&self) -> Result<(), Error> {
        let path = self.unified.join("cgroup.subtree_control");
        // Even writing what is set already can fail, on a host whose root group someone else manages.
        let set = read(&path)?;
        for controller in CONTROLLERS {
            let is_set = set.split_whitespace().any(|name| name == controller);
            if !is_set && self.legacy(controller).is_none() {
                write(&path, &format!("+{controller}"))?;
            }
        }
        Ok(())
    }

    /// Limits memory and processes of the group.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn limit(&self, limits: Limits) -> Result<(), Error> {
        self.limit_memory(limits.memory_bytes)?;
        let pids = self.legacy("pids").unwrap_or(&self.unified);
        write(&pids.join("pids.max"), &limits.pids.to_string())
    }

    /// Limits the memory. What is used beyond it is reclaimed, or costs the greediest program its life.
    ///
    /// # Errors
    /// When the kernel refuses. In version 1 it does while more is used that it cannot reclaim.
    pub fn limit_memory(&self, bytes: u64) -> Result<(), Error> {
        match self.legacy("memory") {
            Some(path) => write(&path.join("memory.limit_in_bytes"), &bytes.to_string()),
            None => write(&self.unified.join("memory.max"), &bytes.to_string()),
        }
    }

    fn legacy(&self, controller: &str) -> Option<&Path> {
        self.legacy.iter().find(|(legacy, _)| *legacy == controller).map(|(_, path)| path.as_path())
    }

    /// The files to which a process writes `0` to move itself into the group.
    #[must_use]
    pub fn doors(&self) -> Vec<PathBuf> {
        self.paths().map(|path| path.join("cgroup.procs")).collect()
    }

    /// Moves this process, and only it, into the group.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self) -> Result<(), Error> {
        self.doors().iter().try_for_each(|door| write(door, "0"))
    }

    /// Sends SIGKILL to everything in the group and below, frozen or not, new forks included. A group that does not exist
    /// is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<(), Error> {
        forgive_missing(write(&self.unified.join("cgroup.kill"), "1"))
    }

    /// Stops (`true`) or continues everything in the group and below.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        write(&self.unified.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Whether a process lives in the group or below. A group that does not exist has none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn is_populated(&self) -> Result<bool, Error> {
        let path = self.unified.join("cgroup.events");
        match fs::read_to_string(&path) {
            Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
            Err(source) if is_missing(&source) => Ok(false),
            Err(source) => Err(file("read", &path, source)),
        }
    }

    /// Blocks until no process lives in the group or below.
    ///
    /// # Errors
    /// When some still do after `limit`.
    pub fn wait_empty(&self, limit: Duration) -> Result<(), Error> {
        let path = self.unified.join("cgroup.events");
        let events = match fs::File::open(&path) {
            Ok(events) => events,
            Err(source) if is_missing(&source) => return Ok(()),
            Err(source) => return Err(file("open", &path, source)),
        };
        let end = Instant::now() + limit;
        // The kernel wakes a poll when the file changes after it was read through the same open file, so reading must come
        // between opening and polling.
        while self.changed_to_populated(&events)? {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Populated { path: self.unified.clone() });
            }
            let timeout = Timespec::try_from(left)
                .map_err(|source| file("wait for", &path, io::Error::other(source)))?;
            match rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(source) => return Err(file("wait for", &path, source.into())),
            }
        }
        Ok(())
    }

    fn changed_to_populated(&self, events: &fs::File) -> Result<bool, Error> {
        let mut text = [0; 256];
        match rustix::io::pread(events, &mut text, 0) {
            Ok(len) => {
                Ok(text.get(..len).unwrap_or(&text).windows(11).any(|line| line == b"populated 1"))
            }
            Err(rustix::io::Errno::NODEV) => Ok(false),
            Err(source) => Err(file("read", &self.unified.join("cgroup.events"), source.into())),
        }
    }

    /// Removes the group and those in it from every tree. All must be empty of processes; a group that does not exist is
    /// fine.
    ///
    /// # Errors
    /// When a group still has a process.
    pub fn remove(&self) -> Result<(), Error> {
        self.paths().try_for_each(remove_tree)
    }
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(source) if is_missing(&source) => return Ok(()),
        Err(source) => return Err(file("list", path, source)),
    };
    for entry in entries {
        let entry = entry.map_err(|source| file("list", path, source))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    // The kernel finishes some of a killed process's exit after it has left `populated`, and says EBUSY until then.
    let end = Instant::now() + REMOVE_LIMIT;
    loop {
        match rustix::fs::rmdir(path) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if Instant::now() < end => std::thread::yield_now(),
            Err(source) => return Err(file("remove", path, source.into())),
        }
    }
}

/// How long an empty group may refuse to be removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

fn forgive_missing(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::File { source, .. }) if is_missing(&source) => Ok(()),
        other => other,
    }
}

/// A removed group gives ENODEV through files that were open, ENOENT otherwise.
fn is_missing(source: &io::Error) -> bool {
    source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV)
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| file("read", path, source))
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    // Not `fs::write`: it would create a missing file, which a cgroup tree answers with a misleading EACCES.
    let result = fs::OpenOptions::new().write(true).open(path).and_then(|file| {
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    });
    result.map_err(|source| file("write", path, source))
}

fn file(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}
