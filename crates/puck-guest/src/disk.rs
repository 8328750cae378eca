//! The disk of this machine: log, volume, block device and ext4 mount, and the order in which they come and go.
//!
//! ```text
//! closed --open--> detached --mount--> mounted --unmount--> detached --close--> closed
//! ```
//!
//! Opening brings the local map and the log together, forking another volume when this one has no log yet. Every mount
//! uses a new block device, so that I/O of an earlier mount can never reach a restored stack. A mount that fails is
//! reported and never answered with a fresh disk.

use crate::{
    check::{self, CheckError},
    gateway::Gateway,
};
use async_trait::async_trait;
use guest::{
    freeze::{self, Freezer},
    protocol::{Boot, DATA, Source},
};
use jiff::Timestamp;
use object_store::ObjectStore;
use replica::{At, Log, Shipper};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use std::{
    fs::{DirBuilder, File},
    io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{error, info};
use volume::{
    Checkpoint, Device, ForkPoint, Keys, NewCheckpoint, Settings, Ship, Syncer, Volume, VolumeId,
};

/// The name of the file with an older map, beside the live one.
const OLD_MAP: &str = "map-before.db";

/// Where the volume's ext4 is mounted, inside the machine.
pub(crate) const MOUNT: &str = "/volume";

/// How long unmounting is tried while the agent itself has a file open, and the pause between two tries.
const UNMOUNT_WAIT: Duration = Duration::from_secs(5);
const UNMOUNT_PAUSE: Duration = Duration::from_millis(10);

/// The status with which the agent ends when another worker has taken the sprite over.
pub(crate) const FENCED_STATUS: i32 = 75;

/// What failed on the way to, or on, the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The block device did not come up or go away.
    #[error("{action} the block device")]
    Device {
        /// `attach` or `detach`.
        action: &'static str,
        /// Why.
        #[source]
        source: volume::Error,
    },
    /// The volume that this one begins as could not be forked.
    #[error("fork volume {0}")]
    Fork(VolumeId, #[source] volume::Error),
    /// The filesystem did not freeze or thaw in order.
    #[error("freeze the filesystem")]
    Freeze(#[source] freeze::Error),
    /// An id in the boot parameters does not parse.
    #[error("read the boot parameters")]
    Id(#[from] base::id::ParseIdError),
    /// A local file could not be written.
    #[error("write {path}")]
    Local {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The worker did not give the keys of the volume.
    #[error("get the keys of the volume")]
    Keys(#[source] object_store::Error),
    /// The log could not be read or continued.
    #[error("open the log")]
    Log(#[source] replica::Error),
    /// The volume to fork has no log.
    #[error("volume {0}, which is to be forked, is not in the bucket")]
    NoSource(VolumeId),
    /// The filesystem, which somebody else wrote, was not found to be sound, so it is not mounted.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The ext4 did not mount; nothing on it was changed.
    #[error("mount {device}")]
    Mount {
        /// The loop device.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the filesystem holds in memory could not be written back.
    #[error("sync the filesystem")]
    Sync(#[source] volume::Error),
    /// The ext4 is still in use.
    #[error("unmount the volume")]
    Unmount(#[source] io::Error),
    /// The volume itself.
    #[error("{action} the volume")]
    Volume {
        /// `open`, `cut`, ….
        action: &'static str,
        /// Why.
        #[source]
        source: volume::Error,
    },
}

/// The disk. One task owns it and calls its methods one after the other.
pub(crate) struct Disk {
    log: Log,
    volume: Volume,
    freezer: Freezer,
    generation: u64,
    mounted: Option<Mounted>,
    /// How many seals there had been at the last checkpoint.
    seals_kept: u64,
}

struct Mounted {
    device: Device,
    filesystem: File,
    /// No other thread of this process may wait for the disk that this process serves.
    syncer: Syncer,
}

impl Disk {
    /// Opens the volume that the boot parameters name; it is not mounted yet.
    pub(crate) async fn open(
        boot: &Boot,
        gateway: &Gateway,
        freezer: Freezer,
    ) -> Result<Self, DiskError> {
        let id: VolumeId = boot.volume.parse()?;
        let store: Arc<dyn ObjectStore> = Arc::new(gateway.clone());
        let keys = gateway.keys().await.map_err(DiskError::Keys)?;
        let db = Path::new(DATA).join("map.db");
        let log = volume_log(&store, &keys, id);
        if let Some(source) = &boot.fork_of
            && log.head().await.map_err(DiskError::Log)?.is_none()
        {
            fork(&store, &keys, source, id, &db).await?;
        }
        let (shipper, opened) = log.open(&db).await.map_err(DiskError::Log)?;
        let epoch = shipper.epoch();
        info!(volume = %id, epoch, server_epoch = boot.epoch, ?opened, "log is open");
        let mut settings = Settings::new(id, epoch, DATA.into());
        settings.epoch_first = shipper.epoch_first();
        settings.overtaken_map = Some(replica::set_aside_path(&db));
        settings.cache_bytes_max = boot.cache_bytes_max;
        settings.keys = keys;
        let volume = Volume::open(settings, store, Box::new(LogShip(shipper)))
            .await
            .map_err(|source| DiskError::Volume { action: "open", source })?;
        Ok(Self { log, volume, freezer, generation: 0, mounted: None, seals_kept: 0 })
    }

    /// The volume, for its lag, its figures and its checkpoints.
    pub(crate) fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Attaches a new block device and mounts its ext4 at [`MOUNT`].
    pub(crate) fn mount(&mut self) -> Result<(), DiskError> {
        let device = self.attach()?;
        match mount_ext4(device.path()) {
            Ok(filesystem) => {
                let syncer = Syncer::new(&filesystem).map_err(DiskError::Sync)?;
                self.mounted = Some(Mounted { device, filesystem, syncer });
                Ok(())
            }
            Err(source) => {
                let path = device.path().to_owned();
                detach_after_failure(device);
                Err(DiskError::Mount { device: path, source })
            }
        }
    }

    /// Lets a program look at the filesystem before the kernel does, which trusts what it mounts.
    pub(crate) fn check(&mut self) -> Result<(), DiskError> {
        let device = self.attach()?;
        match check::filesystem(device.path()) {
            Ok(()) => {
                device.detach().map_err(|source| DiskError::Device { action: "detach", source })
            }
            Err(error) => {
                detach_after_failure(device);
                Err(error.into())
            }
        }
    }

    fn attach(&mut self) -> Result<Device, DiskError> {
        assert!(self.mounted.is_none(), "the owner unmounts before it mounts again");
        self.generation += 1;
        let directory = PathBuf::from(format!("/run/puck/device-{}", self.generation));
        create_private(&directory)?;
        create_private(Path::new(MOUNT))?;
        Device::attach(self.volume.clone(), &directory, self.generation)
            .map_err(|source| DiskError::Device { action: "attach", source })
    }

    /// Unmounts the ext4, which writes back all of it, and ends the block device. Everything that used it must be gone.
    pub(crate) fn unmount(&mut self) -> Result<(), DiskError> {
        let Some(mounted) = self.mounted.take() else { return Ok(()) };
        drop((mounted.filesystem, mounted.syncer));
        unmount_when_free().map_err(|errno| DiskError::Unmount(errno.into()))?;
        self.volume.end_trace();
        mounted.device.detach().map_err(|source| DiskError::Device { action: "detach", source })
    }

    /// Writes back what the mounted filesystem holds in memory. Blocks the thread.
    pub(crate) fn sync(&self) -> Result<(), DiskError> {
        match &self.mounted {
            Some(mounted) => mounted.syncer.sync().map_err(DiskError::Sync),
            None => Ok(()),
        }
    }

    /// Takes a checkpoint of what is mounted. The filesystem is frozen only while a layer is pushed.
    pub(crate) async fn checkpoint(
        &mut self,
        comment: &str,
        auto: bool,
    ) -> Result<Checkpoint, DiskError> {
        let cut = self.cut()?;
        let checkpoint = self
            .volume
            .checkpoint(cut, NewCheckpoint { comment: comment.to_owned(), auto })
            .await
            .map_err(|source| DiskError::Volume { action: "checkpoint", source })?;
        self.seals_kept = self.volume.counters().seals;
        Ok(checkpoint)
    }

    /// Forgets a checkpoint.
    pub(crate) async fn delete_checkpoint(&self, id: &str) -> Result<(), DiskError> {
        let deleted = self.volume.delete_checkpoint(id).await;
        deleted.map_err(|source| DiskError::Volume { action: "delete a checkpoint of", source })
    }

    /// Keeps the disk as an automatic checkpoint, if anything was written since the last one, and lets old ones go.
    pub(crate) async fn keep(&mut self, comment: &str) -> Result<(), DiskError> {
        let seals = self.volume.counters().seals;
        if seals == self.seals_kept && self.volume.lag().bytes == 0 {
            return Ok(());
        }
        self.checkpoint(comment, true).await?;
        self.volume
            .prune_automatic(Timestamp::now())
            .await
            .map(drop)
            .map_err(|source| DiskError::Volume { action: "prune checkpoints of", source })
    }

    /// Ends the live layer at an instant at which the filesystem is whole.
    fn cut(&mut self) -> Result<volume::Cut, DiskError> {
        let Self { volume, freezer, mounted, .. } = self;
        match mounted {
            Some(mounted) => tokio::task::block_in_place(|| cut_frozen(freezer, mounted, volume)),
            None => volume.cut().map_err(|source| DiskError::Volume { action: "cut", source }),
        }
    }

    /// Puts a new empty layer on the checkpoint's stack. What it replaces stays as an automatic checkpoint.
    pub(crate) async fn restore(&mut self, id: &str) -> Result<Checkpoint, DiskError> {
        assert!(self.mounted.is_none(), "the owner unmounts before it restores");
        self.volume
            .restore(id)
            .await
            .map_err(|source| DiskError::Volume { action: "restore", source })
    }

    /// Writes this volume's map as it was at an instant into a file, which [`Self::rewind`] takes.
    pub(crate) async fn map_at(&self, at: Timestamp) -> Result<PathBuf, DiskError> {
        // The log must reach as far as the instant, which may be a moment ago.
        tokio::task::block_in_place(|| self.sync())?;
        self.volume.seal().await.map_err(|source| DiskError::Volume { action: "seal", source })?;
        let path = Path::new(DATA).join(OLD_MAP);
        let time = At::Time(u64::try_from(at.as_millisecond()).unwrap_or(0));
        self.log.restore_at(&path, time).await.map_err(DiskError::Log)?;
        Ok(path)
    }

    /// The oldest instant that the disk can go back to.
    pub(crate) async fn oldest(&self) -> Result<Option<Timestamp>, DiskError> {
        let reach = self.log.reach().await.map_err(DiskError::Log)?;
        let reached = reach.and_then(|reach| {
            Timestamp::from_millisecond(i64::try_from(reach.oldest_ms).ok()?).ok()
        });
        let whole = self
            .volume
            .whole_since()
            .map_err(|source| DiskError::Volume { action: "look at", source })?;
        Ok(reached.map(|reached| whole.map_or(reached, |whole| whole.max(reached))))
    }

    /// Puts what the disk was at an instant on the stack. What it replaces stays as an automatic checkpoint.
    pub(crate) async fn rewind(
        &mut self,
        old_map: &Path,
        at: Timestamp,
    ) -> Result<Checkpoint, DiskError> {
        assert!(self.mounted.is_none(), "the owner unmounts before it rewinds");
        self.volume
            .rewind(old_map, at)
            .await
            .map_err(|source| DiskError::Volume { action: "rewind", source })
    }

    /// Keeps what a fork begins with: a checkpoint, or what is mounted now.
    pub(crate) async fn pin(
        &mut self,
        child: VolumeId,
        checkpoint: Option<String>,
    ) -> Result<(), DiskError> {
        let at = match checkpoint {
            Some(id) => ForkPoint::Checkpoint(id),
            None => ForkPoint::Cut(self.cut()?),
        };
        let pinned = self.volume.pin(child, at).await;
        pinned.map(drop).map_err(|source| DiskError::Volume { action: "pin", source })
    }

    /// Puts everything into the bucket and ends the volume. The disk must be unmounted.
    pub(crate) async fn close(self) -> Result<(), DiskError> {
        assert!(self.mounted.is_none(), "the owner unmounts before it closes");
        self.volume.close().await.map_err(|source| DiskError::Volume { action: "close", source })
    }
}

/// Unmounts, and waits a little for whoever of the agent has a file open: the definitions of services are written in moments.
fn unmount_when_free() -> Result<(), Errno> {
    let deadline = Instant::now() + UNMOUNT_WAIT;
    loop {
        match rustix::mount::unmount(MOUNT, UnmountFlags::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(UNMOUNT_PAUSE),
            done => return done,
        }
    }
}

fn detach_after_failure(device: Device) {
    if let Err(error) = device.detach() {
        error!(error = &error as &dyn std::error::Error, "detach a device that was not mounted");
    }
}

fn cut_frozen(
    freezer: &mut Freezer,
    mounted: &Mounted,
    volume: &Volume,
) -> Result<volume::Cut, DiskError> {
    // The sync outside of the freeze keeps the freeze short: what is left to write back then is little.
    mounted.syncer.sync().map_err(DiskError::Sync)?;
    let frozen = freezer.freeze(&mounted.filesystem).map_err(DiskError::Freeze)?;
    let cut = volume.cut().map_err(|source| DiskError::Volume { action: "cut", source });
    frozen.thaw().map_err(DiskError::Freeze)?;
    cut
}

fn mount_ext4(device: &Path) -> io::Result<File> {
    // `discard` gives deleted blocks back to the bucket. Prefetching bitmaps would read them all from the bucket at a wake. `nosuid` and `nodev` only concern this mount in the machine's root
    // namespace, since the container sees the volume through an overlay of its own.
    let flags = MountFlags::NOATIME | MountFlags::NODEV;
    rustix::mount::mount(device, MOUNT, "ext4", flags, c"discard,no_prefetch_block_bitmaps")?;
    let directory: OwnedFd = rustix::fs::open(
        MOUNT,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(File::from(directory))
}

pub(crate) fn create_private(directory: &Path) -> Result<(), DiskError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| DiskError::Local { path: directory.to_owned(), source })
}

/// The log of a volume.
fn volume_log(store: &Arc<dyn ObjectStore>, keys: &Keys, id: VolumeId) -> Log {
    Log::new(keys.log_store(id, store.clone()), volume::log_prefix(id))
}

async fn fork(
    store: &Arc<dyn ObjectStore>,
    keys: &Keys,
    source: &Source,
    id: VolumeId,
    db: &Path,
) -> Result<(), DiskError> {
    let (Source::Blank(from) | Source::Pinned(from)) = source;
    let from: VolumeId = from.parse()?;
    let log = volume_log(store, keys, from);
    if log.restore(db).await.map_err(DiskError::Log)?.is_none() {
        return Err(DiskError::NoSource(from));
    }
    let forked = match source {
        Source::Blank(_) => volume::fork(db, id),
        Source::Pinned(_) => volume::fork_pinned(db, id),
    };
    forked.map_err(|error| DiskError::Fork(from, error))
}

/// The log, as the volume sees it.
struct LogShip(Shipper);

#[async_trait]
impl Ship for LogShip {
    async fn ship(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self.0.ship().await {
            Ok(_) => Ok(()),
            Err(replica::Error::Fenced { .. }) => {
                // Another worker owns the sprite now. Whatever this machine still does would be lost, so it ends at once,
                // and the worker ends the container with it.
                error!("another worker has taken this sprite over");
                std::process::exit(FENCED_STATUS);
            }
            Err(error) => Err(error.into()),
        }
    }
}
