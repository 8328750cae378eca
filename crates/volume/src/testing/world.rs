//! A bucket, a runtime and volumes in directories of their own.

use super::{CopyShip, FaultyStore};
use crate::{BLOCK_BYTES, Checkpoint, Error, NewCheckpoint, Settings, View, Volume, VolumeId};
use object_store::{ObjectStore, path::Path};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<FaultyStore>,
}

/// A volume's place: its settings and its log.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) settings: Settings,
    pub(crate) ship: CopyShip,
}

impl Place {
    /// The file of its map.
    pub(crate) fn db(&self) -> PathBuf {
        self.settings.dir.join("map.db")
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        // What these tests write is synced often, and no disk is tested.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { runtime, dir, store: FaultyStore::new(0, 0) }
    }

    /// A new volume, whose garbage is deleted at once.
    pub(crate) fn place(&self, name: &str) -> Place {
        let dir = self.dir.path().join(name);
        let mut settings = Settings::new(VolumeId::now(), 1, dir.clone());
        settings.retry_wait = Duration::from_millis(1);
        settings.seal_bytes = 1 << 20;
        settings.journal_file_bytes = 1 << 20;
        settings.garbage_delay = Duration::ZERO;
        Place { settings, ship: CopyShip::new(dir.join("map.db"), 0, 0) }
    }

    pub(crate) fn try_open(&self, place: &Place) -> Result<Volume, Error> {
        let store: Arc<dyn ObjectStore> = self.store.clone();
        let (settings, ship) = (place.settings.clone(), Box::new(place.ship.clone()));
        self.runtime.block_on(Volume::open(settings, store, ship))
    }

    pub(crate) fn open(&self, place: &Place) -> Volume {
        self.try_open(place).unwrap()
    }

    pub(crate) fn seal(&self, volume: &Volume) {
        self.wait(volume.seal());
    }

    /// A place whose map is what another's log says now.
    pub(crate) fn copy_of(&self, source: &Place, name: &str) -> Place {
        let mut copy = self.place(name);
        copy.ship = source.ship.branch(copy.db());
        copy.ship.restore();
        copy
    }

    pub(crate) fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> T {
        self.runtime.block_on(work).unwrap()
    }

    /// Writes blocks of noise and puts them into the bucket.
    pub(crate) fn write(&self, volume: &Volume, block: u64, blocks: usize, seed: u64) {
        volume.write(block * BLOCK_BYTES as u64, &noise(seed, blocks)).unwrap();
        self.seal(volume);
    }

    pub(crate) fn checkpoint(&self, volume: &Volume, auto: bool) -> Checkpoint {
        let cut = volume.cut().unwrap();
        let new = NewCheckpoint { comment: String::new(), auto };
        self.wait(volume.checkpoint(cut, new))
    }

    /// The process ends without a word.
    pub(crate) fn crash(&self, volume: Volume) {
        let shared = Arc::downgrade(&volume.shared);
        drop(volume);
        wait_until("the sealer is gone", || shared.strong_count() == 0);
    }

    pub(crate) fn segments(&self, id: VolumeId) -> Vec<Path> {
        use futures::TryStreamExt as _;
        let prefix = Path::from(format!("volumes/{id}/segments"));
        let listed = self.store.list(Some(&prefix)).map_ok(|object| object.location).try_collect();
        let mut listed: Vec<Path> = self.runtime.block_on(listed).unwrap();
        listed.sort();
        listed
    }
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// Bytes that do not compress.
pub(crate) fn noise(seed: u64, blocks: usize) -> Vec<u8> {
    use rand::{Rng as _, SeedableRng as _};
    let mut data = vec![0; blocks * BLOCK_BYTES];
    rand::rngs::SmallRng::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

pub(crate) fn read(volume: &Volume, block: u64, blocks: usize) -> Vec<u8> {
    let mut data = vec![7; blocks * BLOCK_BYTES];
    volume.read(block * BLOCK_BYTES as u64, &mut data).unwrap();
    data
}

pub(crate) fn view(view: &View, block: u64, blocks: usize) -> Vec<u8> {
    let mut data = vec![7; blocks * BLOCK_BYTES];
    view.read(block * BLOCK_BYTES as u64, &mut data).unwrap();
    data
}

pub(crate) fn is_zero(data: &[u8]) -> bool {
    data.iter().all(|byte| *byte == 0)
}
