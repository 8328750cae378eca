//! Disks that leave in an archive, and disks that come in one.
//!
//! A disk is told from the bucket alone, so whether its sprite sleeps, runs or is stuck makes no difference. What
//! comes in becomes a volume that there never was; nothing that exists is touched. If it does not come to its end, all of it is
//! removed again, by the mark even after a crash.

use super::{
    Empty, Worker,
    machine::{BootError, Disk, Machine, Purpose},
    site::Site,
};
use crate::{
    archive::{self, ArchiveError, ArchiveKey, Manifest, Origin},
    image,
};
use object_store::ObjectStore;
use replica::Log;
use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;
use tokio::runtime::Handle;
use volume::{Contents, Export, Import, Keys, VolumeId};

/// Why a disk does not leave or come in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortableError {
    /// The archive is not one, or not whole.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The volume cannot be told, or nothing can be made of what is told.
    #[error("{action} the disk")]
    Volume {
        /// `tell` or `make`.
        action: &'static str,
        /// Why.
        #[source]
        source: volume::Error,
    },
    /// Its log could not be read or begun.
    #[error("{action} the log of the disk")]
    Log {
        /// `read` or `begin`.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<replica::Error>,
    },
    /// The bucket has nothing of it yet.
    #[error("the bucket has nothing of this disk yet")]
    Nothing,
    /// Its base image is not here.
    #[error("the sprite needs base image {0:?}, which this server's bucket does not have")]
    NoImage(String),
    /// Its base image cannot be looked for.
    #[error("look for base image {0}")]
    Image(String, #[source] Box<image::BucketError>),
    /// A local directory could not be used.
    #[error("use the directory of the disk")]
    Local(#[source] io::Error),
    /// No machine came up on it.
    #[error("boot a machine on the disk")]
    Boot(#[source] BootError),
}

/// A disk that is about to leave.
pub(crate) struct Departing {
    export: Export,
    _map: TempDir,
}

impl Departing {
    /// Reads the disk of a sprite from the bucket, with the live state of a checkpoint if one is named. The copy of its map
    /// is in `scratch` until the end.
    pub(crate) async fn open(
        store: &Arc<dyn ObjectStore>,
        keys: Keys,
        volume: VolumeId,
        live: Option<String>,
        scratch: &Path,
    ) -> Result<Self, PortableError> {
        crate::data::create_private(scratch).map_err(PortableError::Local)?;
        let directory = tempfile::Builder::new().prefix("export-").tempdir_in(scratch);
        let directory = directory.map_err(PortableError::Local)?;
        let map = directory.path().join("map.db");
        let log = Log::new(keys.log_store(volume, store.clone()), volume::log_prefix(volume));
        let failed = |source| PortableError::Log { action: "read", source: Box::new(source) };
        log.restore(&map).await.map_err(failed)?.ok_or(PortableError::Nothing)?;
        let store = store.clone();
        blocking(move || {
            let export = Export::open(&map, live.as_deref(), store, keys).map_err(tell)?;
            Ok(Self { export, _map: directory })
        })
        .await
    }

    /// What it consists of.
    pub(crate) fn contents(&self) -> &Contents {
        self.export.contents()
    }

    /// Writes the archive. Blocks the thread, which must not be one of the runtime's own.
    pub(crate) fn write(
        &self,
        runtime: &Handle,
        out: impl Write,
        key: Option<ArchiveKey>,
        manifest: &Manifest,
    ) -> Result<(), PortableError> {
        let mut writer = archive::Writer::begin(out, key, manifest)?;
        self.export.run(runtime, |piece| writer.piece(&piece).map_err(Stopped::Archive)).map_err(
            |stopped| match stopped {
                Stopped::Archive(error) => PortableError::Archive(error),
                Stopped::Volume(error) => tell(error),
            },
        )?;
        let mut out = writer.finish()?;
        out.flush().map_err(|error| ArchiveError::Io("write", error).into())
    }
}

/// What ends the telling of a disk.
enum Stopped {
    Archive(ArchiveError),
    Volume(volume::Error),
}

impl From<volume::Error> for Stopped {
    fn from(error: volume::Error) -> Self {
        Self::Volume(error)
    }
}

impl Worker {
    /// Reads the disk of a sprite from the bucket, with the live state of a checkpoint if one is named.
    pub(crate) async fn export(
        &self,
        disk: &Disk,
        live: Option<String>,
    ) -> Result<Departing, PortableError> {
        let Site { store, keys, pooled, .. } = &*self.site;
        let keys = keys.of_volume(disk.volume, &disk.ancestors);
        Departing::open(store, keys, disk.volume, live, pooled).await
    }

    /// Makes a disk of what an archive holds, and boots a machine on it. What `approve` says of the manifest decides whether that
    /// happens at all. After an error nothing of it is left.
    pub(crate) async fn import<T, E>(
        &self,
        input: impl Read + Send + 'static,
        key: ArchiveKey,
        approve: impl FnOnce(&Manifest, Origin) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Empty), E>
    where
        T: Send + 'static,
        E: From<PortableError> + Send + 'static,
    {
        let volume = VolumeId::now();
        self.site.unsettled.add(volume).map_err(PortableError::Local)?;
        let arrived: Result<_, E> = async {
            let site = self.site.clone();
            let directory = site.pooled_directory(volume);
            crate::data::create_private(&directory).map_err(PortableError::Local)?;
            let arrival = Arrival {
                runtime: Handle::current(),
                map: directory.join("map.db"),
                keys: site.keys.of_volume(volume, &[]),
                store: site.store.clone(),
                volume,
            };
            let map = arrival.map.clone();
            let (approved, image, origin) =
                blocking(move || arrival.read(input, &key, approve)).await?;
            site.begin_log(volume, &map).await?;
            let disk = Disk { volume, ancestors: Vec::new(), image };
            let purpose = Purpose::Imported { check: origin == Origin::Elsewhere };
            let machine = Machine::boot(&site, disk, purpose, &self.stop).await;
            Ok((approved, Empty(machine.map_err(PortableError::Boot)?)))
        }
        .await;
        if arrived.is_err() {
            self.site.remove_volume(volume).await;
        }
        arrived
    }
}

impl Site {
    /// Begins the log of a volume with a map that is complete.
    async fn begin_log(&self, volume: VolumeId, map: &Path) -> Result<(), PortableError> {
        let failed = |source| PortableError::Log { action: "begin", source: Box::new(source) };
        let store = self.keys.of_volume(volume, &[]).log_store(volume, self.store.clone());
        let log = Log::new(store, volume::log_prefix(volume));
        let (mut shipper, _) = log.open(map).await.map_err(failed)?;
        shipper.ship().await.map(drop).map_err(failed)
    }
}

/// Where a disk goes that comes in an archive.
struct Arrival {
    runtime: Handle,
    map: PathBuf,
    keys: Keys,
    store: Arc<dyn ObjectStore>,
    volume: VolumeId,
}

impl Arrival {
    /// Reads a whole archive. Blocks the thread.
    fn read<T, E: From<PortableError>>(
        &self,
        input: impl Read,
        key: &ArchiveKey,
        approve: impl FnOnce(&Manifest, Origin) -> Result<T, E>,
    ) -> Result<(T, String, Origin), E> {
        let mut tar = tar::Archive::new(input);
        let (mut reader, manifest) =
            archive::Reader::begin(&mut tar, key).map_err(PortableError::Archive)?;
        let origin = reader.origin();
        let approved = approve(&manifest, origin)?;
        self.find_image(&manifest.image)?;
        let Self { map, keys, store, volume, runtime } = self;
        let disk = match origin {
            Origin::Here => manifest.disk,
            Origin::Elsewhere => manifest.disk.live_only(),
        };
        let mut import =
            Import::begin(map, *volume, &disk, store.clone(), keys.clone()).map_err(make)?;
        if let Err(error) = fill(&mut import, &mut reader, runtime) {
            import.abandon(runtime);
            return Err(error.into());
        }
        Ok((approved, manifest.image, origin))
    }

    fn find_image(&self, digest: &str) -> Result<(), PortableError> {
        let none = || PortableError::NoImage(digest.chars().take(100).collect());
        let parsed: image::Digest = digest.parse().map_err(|_| none())?;
        let has = self.runtime.block_on(image::has(&*self.store, &parsed));
        let has = has.map_err(|error| PortableError::Image(digest.to_owned(), Box::new(error)))?;
        if has { Ok(()) } else { Err(none()) }
    }
}

/// Gives an import all that an archive has.
fn fill<R: Read>(
    import: &mut Import,
    reader: &mut archive::Reader<'_, R>,
    runtime: &Handle,
) -> Result<(), PortableError> {
    while let Some(piece) = reader.piece()? {
        import.piece(runtime, piece).map_err(make)?;
    }
    import.finish(runtime).map_err(make)
}

fn tell(source: volume::Error) -> PortableError {
    PortableError::Volume { action: "tell", source }
}

fn make(source: volume::Error) -> PortableError {
    PortableError::Volume { action: "make", source }
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work).await.expect("what reads and writes archives does not panic")
}
