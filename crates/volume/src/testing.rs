//! What tests need around a volume: a bucket that misbehaves on a seed, and a log that copies the database.

use crate::Ship;
use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// A bucket in memory that fails on a seed: before the work, after the work, or late.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    pub(crate) inner: InMemory,
    chance: Mutex<SmallRng>,
    /// How many of 1000 requests fail.
    pub(crate) faults: AtomicU64,
    /// Nothing works at all.
    pub(crate) away: AtomicBool,
    pub(crate) gets: AtomicU64,
    pub(crate) puts: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Before,
    After,
}

impl FaultyStore {
    pub(crate) fn new(seed: u64, faults: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            chance: Mutex::new(SmallRng::seed_from_u64(seed)),
            faults: AtomicU64::new(faults),
            away: AtomicBool::new(false),
            gets: AtomicU64::new(0),
            puts: AtomicU64::new(0),
        })
    }

    async fn fault(&self) -> Fault {
        if self.away.load(Ordering::SeqCst) {
            return Fault::Before;
        }
        let faults = self.faults.load(Ordering::SeqCst);
        let (late, fault) = {
            let mut chance = self.chance.lock().unwrap();
            let fault = match chance.random_range(0..1000) < faults {
                true if chance.random() => Fault::Before,
                true => Fault::After,
                false => Fault::None,
            };
            (chance.random_range(0..1000) < faults, fault)
        };
        if late {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        fault
    }
}

fn failed() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "a fault of the seed".into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        let fault = self.fault().await;
        if fault == Fault::Before {
            return Err(failed());
        }
        let result = self.inner.put_opts(location, payload, options).await;
        if fault == Fault::After { Err(failed()) } else { result }
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(failed())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        if self.fault().await == Fault::None {
            self.inner.get_opts(location, options).await
        } else {
            Err(failed())
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        if self.away.load(Ordering::SeqCst) {
            return locations.map(|_| Err(failed())).boxed();
        }
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The suffix and the bytes of each file of a database.
type Copies = Vec<(String, Vec<u8>)>;

/// A log that keeps whole copies of the database.
#[derive(Debug, Clone)]
pub(crate) struct CopyShip {
    db: PathBuf,
    shipped: Arc<Mutex<Copies>>,
    chance: Arc<Mutex<SmallRng>>,
    faults: u64,
}

impl CopyShip {
    pub(crate) fn new(db: PathBuf, seed: u64, faults: u64) -> Self {
        Self {
            db,
            shipped: Arc::default(),
            chance: Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))),
            faults,
        }
    }

    /// A log whose newest copy is this one's, for the database of a fork.
    pub(crate) fn branch(&self, db: PathBuf) -> Self {
        let shipped = Arc::new(Mutex::new(self.shipped.lock().unwrap().clone()));
        Self { db, shipped, ..self.clone() }
    }

    /// Writes the newest copy to where the database was.
    pub(crate) fn restore(&self) {
        for suffix in ["", "-wal", "-shm"] {
            drop(std::fs::remove_file(format!("{}{suffix}", self.db.display())));
        }
        std::fs::create_dir_all(self.db.parent().unwrap()).unwrap();
        for (suffix, bytes) in self.shipped.lock().unwrap().iter() {
            std::fs::write(format!("{}{suffix}", self.db.display()), bytes).unwrap();
        }
    }
}

#[async_trait]
impl Ship for CopyShip {
    async fn ship(&mut self) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (before, after) = {
            let mut chance = self.chance.lock().unwrap();
            (chance.random_range(0..1000) < self.faults, chance.random_range(0..1000) < self.faults)
        };
        if before {
            return Err("a fault of the seed".into());
        }
        let copies = ["", "-wal"].into_iter().filter_map(|suffix| {
            let bytes = std::fs::read(format!("{}{suffix}", self.db.display())).ok()?;
            Some((suffix.to_owned(), bytes))
        });
        *self.shipped.lock().unwrap() = copies.collect();
        if after { Err("a fault of the seed".into()) } else { Ok(()) }
    }
}
