//! The worker: runs the machines of this host, keeps a pool of empty ones, and wakes and puts to sleep the sprites that it is
//! asked for.
//!
//! It knows nothing of accounts: who asks names the sprite, its disk and its identity with each call. A sprite that nobody
//! has asked for is cold and costs nothing here. What happens to a sprite is told as [`Transition`]s.
//!
//! Order at the end: no new leases, every running sprite to sleep, the pool destroyed. What then is not
//! wholly in the bucket stays marked as unsettled, and the next start on the same data directory finishes it.

mod agent;
mod blank;
mod channel;
mod machine;
mod marks;
mod pool;
mod portable;
mod removal;
mod site;
mod sprite;

use crate::keys::AccountKeys;
use api::sprite::{SpriteId, Status};
use guest::protocol::{Identity, Limits};
use jiff::Timestamp;
use machine::{Machine, Purpose};
use marks::Marks;
use object_store::ObjectStore;
use pool::Pool;
use runtime::Host;
use site::Site;
use sprite::{Notice, Sprite};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};
use volume::VolumeId;

pub(crate) use agent::{Agent, AgentError};
pub(crate) use blank::blank_volume;
pub(crate) use machine::{BootError, Disk};
pub(crate) use portable::{Departing, PortableError};
pub(crate) use sprite::{Lease, WakeError, Who};

/// How many transitions may wait to be recorded. More are dropped: they are dates for people.
const TRANSITIONS_WAITING_MAX: usize = 4096;

/// The longest that all sprites together may take to go to sleep at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(75);

/// Whether the bucket has all of every sprite that this data directory ever ran. Asked when no worker runs.
pub(crate) fn is_settled(unsettled: &Path) -> bool {
    Marks::open(unsettled).and_then(|marks| marks.all()).is_ok_and(|volumes| volumes.is_empty())
}

/// What a worker is made of.
pub(crate) struct WorkerSettings {
    /// Where machines run.
    pub(crate) host: Arc<Host>,
    /// The bucket.
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The keys of the account whose volumes are run.
    pub(crate) keys: AccountKeys,
    /// The directory of the local state of all volumes.
    pub(crate) volumes: PathBuf,
    /// The directory of the local state of the volumes of pooled machines.
    pub(crate) pooled: PathBuf,
    /// The directory of the marks of volumes that are not settled.
    pub(crate) unsettled: PathBuf,
    /// The directory of the base images.
    pub(crate) images: PathBuf,
    /// The volume that new ones are forked from.
    pub(crate) blank: VolumeId,
    /// The digest of the image that new sprites get.
    pub(crate) image: String,
    /// The ownership epoch.
    pub(crate) epoch: u64,
    /// The most bytes of local cache for each sprite.
    pub(crate) cache_bytes_max: u64,
    /// Name servers for the machines.
    pub(crate) dns: Vec<IpAddr>,
    /// The limits of each machine.
    pub(crate) limits: Limits,
    /// How many machines wait in the pool.
    pub(crate) pool: usize,
    /// Cancelled by the worker when another one has taken a sprite of this one over: the server must end.
    pub(crate) fenced: CancellationToken,
}

/// A sprite that went from one state to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transition {
    /// Which.
    pub(crate) sprite: SpriteId,
    /// The new state.
    pub(crate) status: Status,
    /// When.
    pub(crate) at: Timestamp,
}

/// A handle on the worker.
pub(crate) struct Worker {
    site: Arc<Site>,
    pool: Arc<Pool>,
    sprites: Mutex<HashMap<SpriteId, Sprite>>,
    transitions: mpsc::Sender<Transition>,
    changed: Arc<watch::Sender<()>>,
    stop: CancellationToken,
    fenced: CancellationToken,
}

/// A machine that is ready and nobody's yet.
#[derive(Debug)]
pub(crate) struct Empty(Machine);

impl Empty {
    /// Its disk, which is its sprite's for life.
    #[must_use]
    pub(crate) fn disk(&self) -> &Disk {
        self.0.disk()
    }

    /// Makes it a sprite's.
    pub(crate) async fn identify(&self, identity: &Identity) -> Result<(), AgentError> {
        self.0.agent().identify(identity).await
    }
}

/// The note of a destruction that is about to happen.
#[derive(Debug)]
pub(crate) struct Doom {
    volume: VolumeId,
    fresh: bool,
}

impl Worker {
    /// Starts a worker and begins to fill its pool. Also returns where it tells what happens to sprites.
    pub(crate) fn start(
        settings: WorkerSettings,
    ) -> io::Result<(Self, mpsc::Receiver<Transition>)> {
        crate::data::create_private(&settings.volumes)?;
        // What is in there was pooled when an earlier server was cut off.
        match std::fs::remove_dir_all(&settings.pooled) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let site = Arc::new(Site {
            host: settings.host,
            store: settings.store,
            keys: settings.keys,
            volumes: settings.volumes,
            pooled: settings.pooled,
            images: settings.images,
            blank: settings.blank,
            image: settings.image,
            epoch: settings.epoch,
            cache_bytes_max: settings.cache_bytes_max,
            dns: settings.dns,
            limits: settings.limits,
            unsettled: Marks::open(&settings.unsettled)?,
            tasks: TaskTracker::new(),
            turns: Arc::new(Semaphore::new(site::BOOTS_MAX)),
            mounted: tokio::sync::Mutex::default(),
        });
        let pool = Arc::new(Pool::new(settings.pool));
        let stop = CancellationToken::new();
        site.tasks.spawn(pool.clone().run(site.clone(), stop.clone()));
        let (transitions, told) = mpsc::channel(TRANSITIONS_WAITING_MAX);
        let worker = Self {
            site,
            pool,
            sprites: Mutex::default(),
            transitions,
            changed: Arc::new(watch::Sender::new(())),
            stop,
            fenced: settings.fenced,
        };
        Ok((worker, told))
    }

    /// Finishes what a crash cut off. `sprites` are all there are: of each marked volume either its sprite wakes, to bring
    /// what only this host has into the bucket, or it has none and is removed.
    pub(crate) async fn recover(
        &self,
        sprites: BTreeMap<VolumeId, (SpriteId, Disk, Who)>,
    ) -> io::Result<()> {
        let mut work = JoinSet::new();
        for volume in self.site.unsettled.all()? {
            match sprites.get(&volume) {
                Some((id, disk, who)) => {
                    let (sprite, who) = (self.sprite(*id, disk), who.clone());
                    info!(%volume, sprite = %id, "wake a sprite that a crash cut off");
                    work.spawn(async move {
                        if let Err(error) = sprite.lease(who).await {
                            warn!(%volume, error = &error as &dyn std::error::Error, "a sprite that a crash cut off did not wake");
                        }
                    });
                }
                None => {
                    let site = self.site.clone();
                    work.spawn(async move { site.remove_volume(volume).await });
                }
            }
        }
        work.join_all().await;
        Ok(())
    }

    /// A machine for a new sprite: from the pool, or booted now when the pool is empty.
    pub(crate) async fn empty(&self) -> Result<Empty, BootError> {
        if let Some(machine) = self.pool.take() {
            return Ok(Empty(machine));
        }
        self.boot_fork(pool::fresh_disk(&self.site)).await
    }

    /// A machine on a fork, whose nearest ancestor has been told to keep what it begins with.
    pub(crate) async fn boot_fork(&self, disk: Disk) -> Result<Empty, BootError> {
        let volume = disk.volume;
        match Machine::boot(&self.site, disk, Purpose::New, &self.stop).await {
            Ok(machine) => Ok(Empty(machine)),
            Err(error) => {
                self.remove_volume(volume);
                Err(error)
            }
        }
    }

    /// Makes the machine's local state that of a sprite, which outlives the server.
    pub(crate) fn claim(&self, empty: &Empty) -> io::Result<()> {
        let volume = empty.disk().volume;
        std::fs::rename(self.site.pooled_directory(volume), self.site.volume_directory(volume))
    }

    /// Makes the machine run as this sprite from now on.
    pub(crate) fn adopt(&self, id: SpriteId, empty: Empty) {
        let disk = empty.disk().clone();
        let sprite = Sprite::start(self.site.clone(), disk, Some(empty.0), self.notices(id));
        self.sprites.lock().expect("no panic while held").insert(id, sprite);
        self.changed.send_replace(());
    }

    /// Destroys a machine that became no sprite's.
    pub(crate) async fn discard(&self, empty: Empty) {
        let volume = empty.disk().volume;
        empty.0.kill().await;
        self.remove_volume(volume);
    }

    /// Removes a volume without anybody waiting for it, as the bucket may be what failed.
    fn remove_volume(&self, volume: VolumeId) {
        let site = self.site.clone();
        self.site.tasks.spawn(async move { site.remove_volume(volume).await });
    }

    /// Wakes a sprite if it sleeps, and keeps it awake for as long as the lease lives.
    pub(crate) async fn lease(
        &self,
        id: SpriteId,
        disk: &Disk,
        who: Who,
    ) -> Result<Lease, WakeError> {
        if self.stop.is_cancelled() {
            return Err(WakeError::Stopping);
        }
        self.sprite(id, disk).lease(who).await
    }

    /// Tells a running sprite what has changed about it; returns when that is in force.
    pub(crate) async fn identify(&self, id: SpriteId, who: Who) {
        let sprite = self.sprites.lock().expect("no panic while held").get(&id).cloned();
        if let Some(sprite) = sprite {
            sprite.identify(who).await;
        }
    }

    /// The limits of each sprite.
    #[must_use]
    pub(crate) fn limits(&self) -> Limits {
        self.site.limits
    }

    /// Notes that the sprite of this volume is about to be destroyed, so that a crash from here on leaves nothing behind.
    pub(crate) fn doom(&self, volume: VolumeId) -> io::Result<Doom> {
        Ok(Doom { volume, fresh: self.site.unsettled.add(volume)? })
    }

    /// The sprite is not destroyed after all.
    pub(crate) fn spare(&self, doom: Doom) {
        if doom.fresh {
            self.site.unsettled.remove(doom.volume);
        }
    }

    /// Puts a sprite to sleep that was destroyed and may be had back, and removes what it has on this disk.
    pub(crate) async fn retire(&self, id: SpriteId, disk: &Disk) {
        self.sprite(id, disk).retire().await;
        self.changed.send_replace(());
    }

    /// Ends the machine of a destroyed sprite. All there is of its volume goes a little later.
    pub(crate) async fn destroy(&self, id: SpriteId, disk: &Disk) {
        self.sprite(id, disk).destroy().await;
        self.sprites.lock().expect("no panic while held").remove(&id);
        self.changed.send_replace(());
    }

    /// The state of a sprite.
    #[must_use]
    pub(crate) fn status(&self, id: SpriteId) -> Status {
        self.sprites
            .lock()
            .expect("no panic while held")
            .get(&id)
            .map_or(Status::Cold, Sprite::status)
    }

    /// The agents of the sprites that are awake.
    #[must_use]
    pub(crate) fn agents(&self) -> Vec<(SpriteId, Agent)> {
        let sprites = self.sprites.lock().expect("no panic while held");
        sprites.iter().filter_map(|(id, sprite)| Some((*id, sprite.agent()?))).collect()
    }

    /// The agent of a sprite, if it is awake.
    #[must_use]
    pub(crate) fn agent(&self, id: SpriteId) -> Option<Agent> {
        self.sprites.lock().expect("no panic while held").get(&id)?.agent()
    }

    /// How many machines wait in the pool.
    #[must_use]
    pub(crate) fn pool_size(&self) -> usize {
        self.pool.ready()
    }

    /// Changes whenever the state of any sprite does.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Puts every sprite to sleep and destroys the pool. [`is_settled`] then says whether the bucket has all of every sprite.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        let sprites = std::mem::take(&mut *self.sprites.lock().expect("no panic while held"));
        let mut sleeping = JoinSet::new();
        for sprite in sprites.into_values() {
            sleeping.spawn(async move { sprite.stop().await });
        }
        let asleep = tokio::time::timeout(CLOSE_TIMEOUT, async {
            sleeping.join_all().await;
            self.site.tasks.close();
            self.site.tasks.wait().await;
        });
        if asleep.await.is_err() {
            error!(
                "some sprites did not go to sleep in time; their last writes are only on this disk"
            );
        }
    }

    fn sprite(&self, id: SpriteId, disk: &Disk) -> Sprite {
        let mut sprites = self.sprites.lock().expect("no panic while held");
        sprites
            .entry(id)
            .or_insert_with(|| {
                Sprite::start(self.site.clone(), disk.clone(), None, self.notices(id))
            })
            .clone()
    }

    fn notices(&self, sprite: SpriteId) -> impl Fn(Notice) + Send + Sync + 'static {
        let (transitions, changed, fenced) =
            (self.transitions.clone(), self.changed.clone(), self.fenced.clone());
        move |notice| {
            let status = match notice {
                Notice::Woke => Status::Running,
                Notice::Slept => Status::Cold,
                Notice::Fenced => {
                    fenced.cancel();
                    Status::Cold
                }
            };
            changed.send_replace(());
            if transitions.try_send(Transition { sprite, status, at: Timestamp::now() }).is_err() {
                warn!(%sprite, "too many changes at once; the date of one is not kept");
            }
        }
    }
}
