//! What tests need around a volume: a bucket that misbehaves on a seed, a log that copies the database, and processes that
//! die.

pub(crate) mod world;

use crate::{Ship, failpoint::Plan};
use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    memory::InMemory, path::Path,
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

/// A bucket in memory that fails on a seed: before the work, after the work, late, or by doing the work again later.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    pub(crate) inner: InMemory,
    chance: Mutex<SmallRng>,
    /// How many of 1000 requests fail.
    pub(crate) faults: AtomicU64,
    /// Nothing works at all.
    pub(crate) away: AtomicBool,
    /// Segments are acknowledged before they are there, which breaks what everything rests on. See [`Self::lose_owed`].
    pub(crate) lies: AtomicBool,
    /// Reads wait while somebody holds it for writing.
    pub(crate) gets_pass: tokio::sync::RwLock<()>,
    pub(crate) gets: AtomicU64,
    pub(crate) puts: AtomicU64,
    /// Requests that the network delivers once more, some time later.
    ghosts: Mutex<Vec<Ghost>>,
    owed: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
}

#[derive(Debug)]
enum Ghost {
    Put(Path, PutPayload, PutOptions),
    Delete(Path),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Before,
    After,
}

/// Requests that a lying bucket has acknowledged and not done.
const OWED_MAX: usize = 2;

impl FaultyStore {
    pub(crate) fn new(seed: u64, faults: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            chance: Mutex::new(SmallRng::seed_from_u64(seed)),
            faults: AtomicU64::new(faults),
            away: AtomicBool::new(false),
            lies: AtomicBool::new(false),
            gets_pass: tokio::sync::RwLock::new(()),
            gets: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            ghosts: Mutex::default(),
            owed: Mutex::default(),
        })
    }

    /// The bucket forgets what it acknowledged and has not done, as if the log had been shipped before the segments.
    pub(crate) fn lose_owed(&self) {
        self.owed.lock().unwrap().clear();
    }

    fn happens(&self) -> bool {
        let faults = self.faults.load(Ordering::SeqCst);
        self.chance.lock().unwrap().random_range(0..1000) < faults
    }

    async fn fault(&self) -> Fault {
        if self.away.load(Ordering::SeqCst) {
            return Fault::Before;
        }
        if self.happens() {
            self.deliver_ghost().await;
        }
        if self.happens() {
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        match self.happens() {
            true if self.chance.lock().unwrap().random() => Fault::Before,
            true => Fault::After,
            false => Fault::None,
        }
    }

    async fn deliver_ghost(&self) {
        let ghost = {
            let mut ghosts = self.ghosts.lock().unwrap();
            let count = ghosts.len();
            (count > 0)
                .then(|| ghosts.swap_remove(self.chance.lock().unwrap().random_range(0..count)))
        };
        // Nobody waits for the answer to a request that was delivered twice.
        match ghost {
            Some(Ghost::Put(key, payload, options)) => {
                drop(self.inner.put_opts(&key, payload, options).await);
            }
            Some(Ghost::Delete(key)) => drop(self.inner.delete(&key).await),
            None => {}
        }
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
        if self.happens() {
            let ghost = Ghost::Put(location.clone(), payload.clone(), options.clone());
            self.ghosts.lock().unwrap().push(ghost);
        }
        if self.lies.load(Ordering::SeqCst) {
            let done = {
                let mut owed = self.owed.lock().unwrap();
                owed.push((location.clone(), payload, options));
                (owed.len() > OWED_MAX).then(|| owed.remove(0))
            };
            if let Some((key, payload, options)) = done {
                drop(self.inner.put_opts(&key, payload, options).await);
            }
            return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
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
        let _passes = self.gets_pass.read().await;
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
        if self.away.load(Ordering::SeqCst) || self.happens() {
            return locations.map(|_| Err(failed())).boxed();
        }
        let locations: Vec<Result<Path>> =
            futures::executor::block_on(locations.collect::<Vec<_>>());
        for location in locations.iter().flatten() {
            if self.happens() {
                self.ghosts.lock().unwrap().push(Ghost::Delete(location.clone()));
            }
        }
        self.inner.delete_stream(futures::stream::iter(locations).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.inner.list(prefix);
        if self.happens() {
            // A part of the truth, and then an error.
            return listed.take(2).chain(futures::stream::iter([Err(failed())])).boxed();
        }
        listed
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The bucket as one process sees it: when the process is dead, nothing that it asked for happens any more.
#[derive(Debug)]
pub(crate) struct ProcessStore {
    pub(crate) bucket: Arc<FaultyStore>,
    pub(crate) plan: Arc<Plan>,
    /// This process only looks.
    pub(crate) read_only: bool,
}

impl ProcessStore {
    async fn alive(&self) {
        if self.plan.dead() {
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Display for ProcessStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProcessStore")
    }
}

#[async_trait]
impl ObjectStore for ProcessStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        assert!(!self.read_only, "whoever only looks puts nothing");
        self.alive().await;
        let result = self.bucket.put_opts(location, payload, options).await;
        self.alive().await;
        result
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(failed())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.plan.dead() {
            // Somebody may block a thread for the answer, so there must be one, and it must not be tried again.
            let path = location.to_string();
            return Err(object_store::Error::NotFound {
                path,
                source: "the process is dead".into(),
            });
        }
        self.bucket.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        if self.plan.dead() || self.read_only {
            return locations.map(|_| Err(failed())).boxed();
        }
        self.bucket.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.bucket.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.bucket.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.bucket.copy_opts(from, to, options).await
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
    plan: Arc<Plan>,
}

impl CopyShip {
    pub(crate) fn new(db: PathBuf, seed: u64, faults: u64) -> Self {
        Self {
            db,
            shipped: Arc::default(),
            chance: Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))),
            faults,
            plan: Arc::default(),
        }
    }

    /// A log whose newest copy is this one's, for the database of a fork.
    pub(crate) fn branch(&self, db: PathBuf) -> Self {
        let shipped = Arc::new(Mutex::new(self.shipped.lock().unwrap().clone()));
        Self { db, shipped, plan: Arc::default(), ..self.clone() }
    }

    /// The same log as one process sees it.
    pub(crate) fn process(&self, plan: Arc<Plan>) -> Self {
        Self { plan, ..self.clone() }
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
        let copies = copies.collect();
        {
            let mut shipped = self.shipped.lock().unwrap();
            if !self.plan.dead() {
                *shipped = copies;
            }
        }
        if self.plan.dead() {
            std::future::pending::<()>().await;
        }
        if after { Err("a fault of the seed".into()) } else { Ok(()) }
    }
}
