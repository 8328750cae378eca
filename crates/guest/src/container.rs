//! The container: the inner environment in which user code runs.
//!
//! It has one owner, the agent, and two states: it runs from [`Container::start`] until its first process (the zygote) ends,
//! by [`Container::stop`] or by itself. Then nothing runs in it any more; [`Container::died`] tells. Either way
//! [`Container::stop`] must be called before another one starts on the same volume, since it unmounts the root.
//!
//! The root is mounted in the machine's mount namespace and copied into the container's, so the agent sees the same files.
//! Whoever keeps a file below [`Container::root`] open keeps the volume busy.

mod automount;
mod command;
mod link;
mod shared;

pub use automount::{Automount, Wanted};
pub use command::{Command, Process, ProcessIo, SignalError, SpawnError, Stdio, User};

use crate::{
    cgroup::{self, Cgroup, Trees},
    mount,
    protocol::{Limits, Privileges, SPRITE_UID},
    sys,
    wire::{Packet, Received},
    zygote::message::{Build, Program, Reply},
};
use link::Link;
use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    io::Errno,
    mount::{MountAttrFlags, UnmountFlags},
    net::{AddressFamily, SocketFlags, SocketType},
    pipe::PipeFlags,
    process::{WaitId, WaitIdOptions},
};
pub(crate) use shared::CHECKPOINTS;
use shared::Shared;
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::io::{Interest, unix::AsyncFd};

/// What a container is made of.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// The mounted base image.
    pub base: PathBuf,
    /// The mounted volume. Ids on it are those of the container, from 0.
    pub volume: PathBuf,
    /// A directory for the container's mount points and shared files, usually [`RUN`]. Made if missing.
    pub run: PathBuf,
    /// The control group that the container's group is made in, usually [`Trees::group`] of `""`, the machine's own.
    pub cgroup: Cgroup,
    /// The id outside of the container's root.
    pub uid_start: u32,
    /// The host name.
    pub hostname: String,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// What programs see as `/.sprite/logs/services`, usually [`LOGS`].
    pub logs: Option<PathBuf>,
    /// Memory and processes.
    pub limits: Limits,
}

/// The usual [`ContainerSpec::run`] in a machine.
pub const RUN: &str = "/run/puck/container";

/// Where the agent keeps what programs of the container may read at `/.sprite/logs/services`, see [`mount_logs`].
pub const LOGS: &str = "/run/puck/logs";

/// Mounts a memory filesystem at [`LOGS`]: logs outlive the container, and end with the machine.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_logs() -> Result<(), Error> {
    shared::mount_logs(Path::new(LOGS)).map_err(failed("mount the logs"))
}

/// The longest host name that Linux takes.
const HOSTNAME_BYTES_MAX: usize = 64;

/// How long everything in a killed container may take to be gone.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long unmounting is tried again while something still holds the root.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(5);

/// The pause between two tries.
const UNMOUNT_PAUSE: Duration = Duration::from_millis(2);

/// Why something about the container failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control group could not be set up or ended.
    #[error("control group of the container")]
    Cgroup(#[from] cgroup::Error),
    /// A file or mount of the agent's side could not be made.
    #[error("{action} failed")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The container could not be built from inside.
    #[error("start of the container failed: {reason}")]
    Start {
        /// The step, and why.
        reason: String,
    },
    /// A host name is not usable.
    #[error("`{name}` is not a host name")]
    Hostname {
        /// The name.
        name: String,
    },
    /// Something still holds the root.
    #[error("{path} is still in use")]
    Busy {
        /// The mount.
        path: PathBuf,
    },
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// A running container.
#[derive(Debug)]
pub struct Container {
    spec: ContainerSpec,
    root: PathBuf,
    cgroup: Cgroup,
    shared: Shared,
    /// The zygote's process.
    zygote: AsyncFd<OwnedFd>,
    user_namespace: OwnedFd,
    link: Arc<Link>,
    privileges: Mutex<Privileges>,
}

impl Container {
    /// Builds the container and waits until it takes commands.
    ///
    /// # Errors
    /// Names the step that failed; nothing of the container is left then.
    pub async fn start(spec: ContainerSpec) -> Result<Self, Error> {
        check_hostname(&spec.hostname)?;
        let cgroup = spec.cgroup.child("container");
        match Self::try_start(&spec, &cgroup).await {
            Ok((link, [zygote, user_namespace], shared)) => {
                let watched = sys::watch(zygote, Interest::READABLE);
                let receiver = Arc::clone(&link);
                // Ends with the connection, thus with the container.
                tokio::spawn(async move { receiver.receive().await });
                Ok(Self {
                    root: spec.run.join("root"),
                    spec,
                    cgroup,
                    shared,
                    zygote: watched.map_err(failed("watch the zygote"))?,
                    user_namespace,
                    link,
                    privileges: Mutex::default(),
                })
            }
            Err(error) => {
                if let Err(left) = clean_up(&cgroup, &spec.run).await {
                    tracing::error!(error = %left, "a container that did not start could not be removed");
                }
                Err(error)
            }
        }
    }

    async fn try_start(
        spec: &ContainerSpec,
        cgroup: &Cgroup,
    ) -> Result<(Arc<Link>, [OwnedFd; 2], Shared), Error> {
        let trees = Trees::detect(Path::new(cgroup::MOUNT))?;
        cgroup.create()?;
        cgroup.limit(spec.limits)?;
        let shared = Shared::create(&spec.run, &spec.hostname, &spec.dns)
            .map_err(failed("write the shared files"))?;
        let build = Build {
            cgroup_doors: cgroup.doors(),
            cgroup_legacy: trees.legacy().map(str::to_owned).collect(),
            base: spec.base.clone(),
            volume: spec.volume.clone(),
            run: spec.run.clone(),
            logs: spec.logs.clone(),
            checkpoints: shared.checkpoints().is_some(),
            uid_start: spec.uid_start,
            hostname: spec.hostname.clone(),
            limits: spec.limits,
        };
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| failed("make the zygote's socket")(error.into()))?;
        // The builder is this same program; it ends when it has forked the zygote.
        let mut builder = tokio::process::Command::new("/proc/self/exe")
            .arg("zygote")
            .env_clear()
            .stdin(theirs)
            .spawn()
            .map_err(failed("start the zygote"))?;
        Packet::new(&build)
            .and_then(|packet| packet.send(ours.as_fd(), &[]))
            .map_err(failed("describe the container to the zygote"))?;
        rustix::io::ioctl_fionbio(&ours, true)
            .map_err(|error| failed("set up the zygote's socket")(error.into()))?;
        let both = Interest::READABLE | Interest::WRITABLE;
        let link = Link::new(sys::watch(ours, both).map_err(failed("set up the zygote's socket"))?);
        let built = built(&link).await;
        builder.wait().await.map_err(failed("wait for the builder"))?;
        Ok((link, built?, shared))
    }

    /// The container's root as the agent sees it, for the file API: without the container's `/proc`, `/dev`, `/sys` and
    /// `/run`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that programs in the container see as `/.sprite`, read-only; here it can be written.
    #[must_use]
    pub fn sprite_directory(&self) -> &Path {
        self.shared.sprite()
    }

    /// The directory that programs in the container see as `/.sprite/checkpoints`; `None` where the kernel has no autofs.
    #[must_use]
    pub fn checkpoints(&self) -> Option<&Automount> {
        self.shared.checkpoints()
    }

    /// A detached and read-only mount of a directory that no user controls, with the ids of a disk shown as the container's.
    ///
    /// # Errors
    /// When there is no such directory, or its filesystem cannot map ids.
    pub fn bind_mapped(&self, directory: &Path) -> io::Result<OwnedFd> {
        let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY;
        mount::bind(directory, flags, Some(self.user_namespace.as_fd()))
    }

    /// The id outside of the container's root.
    #[must_use]
    pub fn uid_start(&self) -> u32 {
        self.spec.uid_start
    }

    /// The control group of everything in the container.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Starts a command. Returns when the program runs, or says why it does not.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn spawn(&self, command: Command) -> Result<(Process, ProcessIo), SpawnError> {
        let Command { argv, path, env, dir, user, stdio } = command;
        if argv.is_empty() {
            return Err(SpawnError::Invalid { reason: "no program is named".into() });
        }
        let privileges = *self.privileges.lock().unwrap_or_else(PoisonError::into_inner);
        let program = Program { argv, path, env, dir, user, stdio, privileges };
        let Stdio::Pipes { stdin } = stdio else {
            let (process, master) = self.link.spawn(program, &[]).await?;
            let master =
                master.ok_or(SpawnError::Container { reason: "it made no terminal".into() })?;
            return Ok((process, ProcessIo::Terminal { master }));
        };
        let owner = match user {
            User::Root => self.spec.uid_start,
            User::Sprite => self.spec.uid_start.saturating_add(SPRITE_UID),
        };
        let (theirs, io) =
            pipes(stdin, owner).map_err(|error| SpawnError::from_errno("make pipes", &error))?;
        let (process, _) = self.link.spawn(program, &theirs).await?;
        Ok((process, io))
    }

    /// Changes the host name.
    ///
    /// # Errors
    /// When the name is longer than 64 bytes, holds anything but letters, digits, `-` and `.`, or the container is gone.
    pub async fn set_hostname(&self, name: &str) -> Result<(), Error> {
        check_hostname(name)?;
        let zygote = self.zygote.get_ref().try_clone().map_err(failed("open the zygote"))?;
        let bytes = name.as_bytes().to_owned();
        let set = move || {
            let namespace = rustix::thread::ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
            rustix::thread::move_into_thread_name_spaces(zygote.as_fd(), namespace)?;
            rustix::system::sethostname(&bytes)
        };
        // The thread that enters the namespace never leaves it, so it must not be one that is used again.
        let (answer, done) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("hostname".into())
            .spawn(move || answer.send(set()))
            .map_err(failed("start a thread"))?;
        let done = done
            .await
            .map_err(|_| failed("set the host name")(io::ErrorKind::Interrupted.into()))?;
        done.map_err(|error| failed("set the host name")(error.into()))?;
        self.shared.set_hostname(name).map_err(failed("write the host name's files"))
    }

    /// Tells programs in the container about the sprite's policies: the name of each file, and what it holds.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn set_policies(&self, policies: &BTreeMap<String, String>) -> Result<(), Error> {
        self.shared.set_policies(policies).map_err(failed("write the policies"))
    }

    /// What programs may be that are started from now on. Those that run keep what they have.
    pub fn set_privileges(&self, privileges: Privileges) {
        *self.privileges.lock().unwrap_or_else(PoisonError::into_inner) = privileges;
    }

    /// Completes when the container's first process has ended by itself: nothing runs in it any more.
    pub async fn died(&self) {
        // An error of the watch is as good as a death: the container cannot be observed any more.
        drop(self.zygote.readable().await);
    }

    /// Kills everything in the container, waits until it is gone, and unmounts its root. The volume can be unmounted
    /// afterwards, unless someone else keeps it busy. May be called again, after a failure or not.
    ///
    /// # Errors
    /// When something still holds the root after the time limit.
    pub async fn stop(&self) -> Result<(), Error> {
        self.cgroup.kill()?;
        match tokio::time::timeout(STOP_LIMIT, self.died()).await {
            Ok(()) => {}
            Err(_) => return Err(Error::Busy { path: self.root.clone() }),
        }
        // The zygote is this process's child since the builder ended.
        match rustix::process::waitid(WaitId::PidFd(self.zygote.as_fd()), WaitIdOptions::EXITED) {
            Ok(_) | Err(Errno::CHILD) => {}
            Err(error) => return Err(failed("reap the zygote")(error.into())),
        }
        clean_up(&self.cgroup, &self.spec.run).await
    }
}

/// Waits for the builder and the zygote: the zygote's process and the container's user namespace, once it takes requests.
async fn built(link: &Link) -> Result<[OwnedFd; 2], Error> {
    let (mut forked, mut ready) = (None, false);
    loop {
        // The two replies come from two processes, so either may be first.
        match forked.take() {
            Some(descriptors) if ready => return Ok(descriptors),
            descriptors => forked = descriptors,
        }
        let received = link.receive_one().await.map_err(failed("hear from the zygote"))?;
        let Some(Received { message, descriptors }) = received else {
            return Err(Error::Start { reason: "the builder ended without a word".into() });
        };
        match message.map_err(failed("understand the zygote"))? {
            Reply::Forked => forked = descriptors.try_into().ok(),
            Reply::Built => ready = true,
            Reply::BuildFailed { reason } => return Err(Error::Start { reason }),
            _ => return Err(Error::Start { reason: "the builder answered something else".into() }),
        }
    }
}

async fn clean_up(cgroup: &Cgroup, run: &Path) -> Result<(), Error> {
    cgroup.kill()?;
    let group = cgroup.clone();
    let emptied = tokio::task::spawn_blocking(move || {
        group.wait_empty(STOP_LIMIT)?;
        group.remove()
    });
    emptied
        .await
        .map_err(|error| failed("wait for the container's end")(io::Error::other(error)))??;
    for mount in mounts_below(run).map_err(failed("list mounts"))? {
        unmount(&mount).await?;
    }
    Ok(())
}

/// The mounts below a directory, innermost and latest first.
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    // Only the agent's own paths matter here, and none of them holds a byte that the table escapes.
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(directory))
        .collect();
    mounts.reverse();
    Ok(mounts)
}

/// Unmounts in order. Never detaches: a detached mount would keep the volume busy without a trace.
async fn unmount(mount: &Path) -> Result<(), Error> {
    let end = tokio::time::Instant::now() + UNMOUNT_LIMIT;
    loop {
        let path = mount.to_owned();
        // The last unmount of the root writes back what the volume's filesystem holds, so it waits for the volume's
        // server, which may need the threads of async tasks.
        let unmounted = tokio::task::spawn_blocking(move || {
            rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW)
        });
        match unmounted
            .await
            .map_err(|error| failed("unmount the root")(io::Error::other(error)))?
        {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            // The kernel lets go of a dead process's files and namespaces a little after its end.
            Err(Errno::BUSY) if tokio::time::Instant::now() < end => {
                tokio::time::sleep(UNMOUNT_PAUSE).await;
            }
            Err(Errno::BUSY) => return Err(Error::Busy { path: mount.to_owned() }),
            Err(error) => return Err(failed("unmount the root")(error.into())),
        }
    }
}

fn check_hostname(name: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if name.is_empty() || name.len() > HOSTNAME_BYTES_MAX || !name.bytes().all(good) {
        return Err(Error::Hostname { name: name.to_owned() });
    }
    Ok(())
}

/// The process's three streams, and our ends. The streams belong to the command's user, who may open them again by name.
fn pipes(stdin: bool, owner: u32) -> io::Result<(Vec<OwnedFd>, ProcessIo)> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (stdin_read, stdin_write) = if stdin {
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (read, Some(write))
    } else {
        (rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None)
    };
    let (stdout, stdout_write) = pipe()?;
    let (stderr, stderr_write) = pipe()?;
    for ours in [&stdout, &stderr] {
        rustix::io::ioctl_fionbio(ours, true)?;
    }
    let theirs = vec![stdin_read, stdout_write, stderr_write];
    let changed = if stdin { &theirs[..] } else { theirs.get(1..).unwrap_or_default() };
    for stream in changed {
        rustix::fs::fchown(stream, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    }
    Ok((theirs, ProcessIo::Pipes { stdin: stdin_write, stdout, stderr }))
}
