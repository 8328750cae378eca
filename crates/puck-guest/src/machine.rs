//! The life of a machine's inside: disk up, container up, and down again for a restore, a bounce or a sleep.
//!
//! ```text
//!            boot                    restore: container down, unmount, new stack, mount, container up
//! (nothing) -----> running ------+   bounce:  container down, container up
//!                     |  ^       |
//!                     |  +-------+
//!                     | sleep: container down, unmount, seal, ship
//!                     v
//!                   asleep: the agent ends
//! ```
//!
//! One lock orders the transitions. While the container is down it is withdrawn from the API, whose calls wait for the next
//! one. A transition that fails leaves a machine that cannot be trusted, so the agent reports it and ends; the worker then
//! wakes the sprite cold, from what the disk and the bucket hold.

use crate::{
    api::{restart::Restart, sandbox::Sandbox},
    browse::{BrowseError, Browsing},
    disk::{Disk, DiskError, MOUNT},
    gateway::Gateway,
    network::Network,
};
use async_trait::async_trait;
use guest::{
    cgroup::{self, Trees},
    container::{self, Container, ContainerSpec},
    freeze::Freezer,
    protocol::{BASE, Boot, Identity, RESOLVER},
};
use jiff::Timestamp;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Mutex, MutexGuard, Notify, watch},
    time::{Instant, MissedTickBehavior},
};
use tracing::{error, warn};
use volume::{Checkpoint, Durability, VolumeId};

/// How often what the filesystem holds in memory is written back, so that the bucket is never far behind.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// How often the disk of a sprite that is awake is kept as an automatic checkpoint, if it changed.
const KEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// The host name of a machine that is nobody yet.
const POOL_HOSTNAME: &str = "sprite";

/// What failed in a transition. The machine must end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// The container did not start or stop.
    #[error("{action} the container")]
    Container {
        /// `prepare`, `start`, `stop`, `name` or `limit`.
        action: &'static str,
        /// Why.
        #[source]
        source: container::Error,
    },
    /// The disk did not do as it was told.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The sprite's network policy is not in force.
    #[error("restrict the network")]
    Network(#[source] io::Error),
    /// A checkpoint cannot be looked into.
    #[error(transparent)]
    Browse(#[from] BrowseError),
    /// The machine is asleep or ending.
    #[error("the machine is going to sleep")]
    Asleep,
    /// A transition has failed, and whoever asked for it was told how.
    #[error("a transition of the machine has failed")]
    Broken,
}

/// The inside of this machine.
pub(crate) struct Machine {
    boot: Boot,
    network: Arc<Network>,
    inside: Mutex<Option<Inside>>,
    identity: watch::Sender<Option<Identity>>,
    sandbox: watch::Sender<Option<Arc<dyn Sandbox>>>,
    /// A container did not stop or start, so there may be none any more.
    failed: Notify,
}

struct Inside {
    disk: Disk,
    container: Option<Arc<Container>>,
    browsing: Option<Browsing>,
}

impl Inside {
    /// The checkpoints are others than before.
    fn refresh_browsing(&self) {
        if let Some(browsing) = &self.browsing {
            browsing.refresh();
        }
    }
}

impl Machine {
    /// Opens and mounts the disk and starts the container.
    pub(crate) async fn boot(
        boot: Boot,
        gateway: &Gateway,
        freezer: Freezer,
    ) -> Result<Arc<Self>, MachineError> {
        let mut disk = Disk::open(&boot, gateway, freezer).await?;
        if let Some(identity) = &boot.identity {
            disk.volume().set_durability(durability(identity));
        }
        if boot.check {
            tokio::task::block_in_place(|| disk.check())?;
        }
        tokio::task::block_in_place(|| disk.mount())?;
        container::mount_logs()
            .map_err(|source| MachineError::Container { action: "prepare", source })?;
        let network = Network::start(gateway.clone()).await.map_err(MachineError::Network)?;
        if let Some(identity) = &boot.identity {
            network.apply(&identity.network).await.map_err(MachineError::Network)?;
        }
        let identity = watch::Sender::new(boot.identity.clone());
        let inside = Mutex::new(Some(Inside { disk, container: None, browsing: None }));
        let machine = Arc::new(Self {
            boot,
            network,
            inside,
            identity,
            sandbox: watch::Sender::new(None),
            failed: Notify::new(),
        });
        machine.start_container(machine.inside().await?.as_mut().expect("just put there")).await?;
        Ok(machine)
    }

    /// Who the machine is, as it changes.
    pub(crate) fn identity(&self) -> watch::Receiver<Option<Identity>> {
        self.identity.subscribe()
    }

    /// The container that runs, as it changes.
    pub(crate) fn sandbox(&self) -> watch::Receiver<Option<Arc<dyn Sandbox>>> {
        self.sandbox.subscribe()
    }

    /// Gives the machine a new identity. A machine that cannot have all of it ends: its policies must not be in force half.
    pub(crate) async fn assign(&self, identity: Identity) -> Result<(), MachineError> {
        let inside = self.inside().await?;
        let taken = self.take(&inside, identity).await;
        taken.inspect_err(|_| self.failed.notify_one())
    }

    async fn take(&self, inside: &Option<Inside>, identity: Identity) -> Result<(), MachineError> {
        self.network.apply(&identity.network).await.map_err(MachineError::Network)?;
        if let Some(container) = inside.as_ref().and_then(|inside| inside.container.as_ref()) {
            container
                .set_hostname(&identity.name)
                .await
                .map_err(|source| MachineError::Container { action: "name", source })?;
            self.tell_policies(container, &identity)?;
        }
        if let Some(inside) = inside.as_ref() {
            inside.disk.volume().set_durability(durability(&identity));
        }
        self.identity.send_replace(Some(identity));
        Ok(())
    }

    /// Keeps the disk as it is now.
    pub(crate) async fn checkpoint(
        &self,
        comment: &str,
        auto: bool,
    ) -> Result<Checkpoint, MachineError> {
        let mut guard = self.inside().await?;
        let inside = guard.as_mut().expect("not asleep");
        let checkpoint = inside.disk.checkpoint(comment, auto).await?;
        inside.refresh_browsing();
        Ok(checkpoint)
    }

    /// Forgets a checkpoint.
    pub(crate) async fn delete_checkpoint(&self, id: &str) -> Result<(), MachineError> {
        let guard = self.inside().await?;
        let inside = guard.as_ref().expect("not asleep");
        inside.disk.delete_checkpoint(id).await?;
        inside.refresh_browsing();
        Ok(())
    }

    /// Makes a checkpoint visible to this process below the container's root.
    pub(crate) async fn browse(&self, checkpoint: &str) -> Result<(), MachineError> {
        let views = self
            .inside()
            .await?
            .as_ref()
            .expect("not asleep")
            .browsing
            .as_ref()
            .map(Browsing::views);
        Ok(views.ok_or(BrowseError::Ended)?.enter(checkpoint.to_owned()).await?)
    }

    /// The container that runs, for its ids.
    pub(crate) async fn container(&self) -> Result<Arc<Container>, MachineError> {
        self.inside()
            .await?
            .as_ref()
            .and_then(|inside| inside.container.clone())
            .ok_or(MachineError::Asleep)
    }

    /// The volume, for what needs no transition.
    pub(crate) async fn volume(&self) -> Result<volume::Volume, MachineError> {
        Ok(self.inside().await?.as_ref().expect("not asleep").disk.volume().clone())
    }

    /// Makes the disk what it was at a checkpoint. The state before stays as an automatic checkpoint.
    pub(crate) async fn restore(&self, id: &str) -> Result<(), MachineError> {
        let mut guard = self.inside().await?;
        let inside = guard.as_mut().expect("not asleep");
        self.stop_container(inside).await?;
        tokio::task::block_in_place(|| inside.disk.unmount())?;
        let restored = inside.disk.restore(id).await;
        // Whether or not the stack has changed, the sprite goes on with the one that it has now.
        tokio::task::block_in_place(|| inside.disk.mount())?;
        self.start_container(inside).await?;
        restored?;
        Ok(())
    }

    /// Makes the disk what it was at an instant. The state before stays as an automatic checkpoint.
    pub(crate) async fn rewind(&self, at: Timestamp) -> Result<(), MachineError> {
        let mut guard = self.inside().await?;
        let inside = guard.as_mut().expect("not asleep");
        // What does not need the container down comes first.
        let old_map = inside.disk.map_at(at).await?;
        self.stop_container(inside).await?;
        tokio::task::block_in_place(|| inside.disk.unmount())?;
        let rewound = inside.disk.rewind(&old_map, at).await;
        // Whether or not the stack has changed, the sprite goes on with the one that it has now.
        tokio::task::block_in_place(|| inside.disk.mount())?;
        self.start_container(inside).await?;
        rewound?;
        Ok(())
    }

    /// The oldest instant that [`Self::rewind`] can go back to.
    pub(crate) async fn oldest(&self) -> Result<Option<Timestamp>, MachineError> {
        Ok(self.inside().await?.as_ref().expect("not asleep").disk.oldest().await?)
    }

    /// Keeps what a fork begins with: a checkpoint, or the disk as it is now.
    pub(crate) async fn pin(
        &self,
        child: VolumeId,
        checkpoint: Option<String>,
    ) -> Result<(), MachineError> {
        Ok(self.inside().await?.as_mut().expect("not asleep").disk.pin(child, checkpoint).await?)
    }

    /// Kills the container and starts it anew; the disk stays mounted.
    pub(crate) async fn bounce(&self) -> Result<(), MachineError> {
        let mut guard = self.inside().await?;
        let inside = guard.as_mut().expect("not asleep");
        self.stop_container(inside).await?;
        self.start_container(inside).await
    }

    /// Ends the container, unmounts, and puts everything into the bucket. The agent ends next.
    pub(crate) async fn sleep(&self) -> Result<(), MachineError> {
        let mut guard = self.inside().await?;
        let mut inside = guard.take().expect("not asleep");
        self.stop_container(&mut inside).await?;
        tokio::task::block_in_place(|| inside.disk.unmount())?;
        inside.disk.keep("before sleep").await?;
        Ok(inside.disk.close().await?)
    }

    /// Writes back what the filesystem holds in memory, at every tick, for as long as the machine is awake, and keeps the
    /// disk as an automatic checkpoint from time to time.
    pub(crate) async fn sync_forever(&self) {
        let mut kept = Instant::now();
        let mut ticks = tokio::time::interval(SYNC_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A transition syncs by itself, so a tick that meets one has nothing to do.
            let Ok(mut inside) = self.inside.try_lock() else { continue };
            let Some(inside) = inside.as_mut() else { return };
            if let Err(error) = tokio::task::block_in_place(|| inside.disk.sync()) {
                warn!(error = &error as &dyn std::error::Error, "write back the filesystem");
            }
            if kept.elapsed() >= KEEP_INTERVAL {
                kept = Instant::now();
                if let Err(error) = inside.disk.keep("hourly").await {
                    warn!(error = &error as &dyn std::error::Error, "keep an hourly checkpoint");
                }
                inside.refresh_browsing();
            }
        }
    }

    /// Starts the container anew whenever it dies by itself. Returns when that fails, or another transition has failed.
    pub(crate) async fn keep_container(&self) -> MachineError {
        let mut sandbox = self.sandbox.subscribe();
        loop {
            let container = match self.inside().await {
                Ok(inside) => inside.as_ref().and_then(|inside| inside.container.clone()),
                Err(_) => std::future::pending().await,
            };
            sandbox.borrow_and_update();
            tokio::select! {
                // A transition withdraws the container before it ends it, so that death is no surprise.
                biased;
                () = self.failed.notified() => return MachineError::Broken,
                _ = sandbox.changed() => {}
                () = died(container) => {
                    error!("the container died; it is started anew");
                    match self.bounce().await {
                        Ok(()) => {}
                        // Whoever put the machine to sleep also ends it, with its last answer.
                        Err(MachineError::Asleep) => std::future::pending().await,
                        Err(error) => return error,
                    }
                }
            }
        }
    }

    /// Puts the policies of the container into force, and tells its programs of all.
    fn tell_policies(
        &self,
        container: &Container,
        identity: &Identity,
    ) -> Result<(), MachineError> {
        let failed = |source| MachineError::Container { action: "limit", source };
        let most = self.boot.limits.memory_bytes;
        let memory = identity.memory_bytes.map_or(most, |bytes| bytes.min(most));
        container.cgroup().limit_memory(memory).map_err(|error| failed(error.into()))?;
        container.set_privileges(identity.privileges);
        container.set_policies(&identity.policies).map_err(failed)
    }

    async fn inside(&self) -> Result<MutexGuard<'_, Option<Inside>>, MachineError> {
        let inside = self.inside.lock().await;
        if inside.is_some() { Ok(inside) } else { Err(MachineError::Asleep) }
    }

    async fn start_container(&self, inside: &mut Inside) -> Result<(), MachineError> {
        let started = self.try_start_container(inside).await;
        started.inspect_err(|_| self.failed.notify_one())
    }

    async fn try_start_container(&self, inside: &mut Inside) -> Result<(), MachineError> {
        let hostname = self
            .identity
            .borrow()
            .as_ref()
            .map_or(POOL_HOSTNAME.to_owned(), |identity| identity.name.clone());
        let trees = Trees::detect(Path::new(cgroup::MOUNT))
            .map_err(|source| MachineError::Container { action: "start", source: source.into() })?;
        let spec = ContainerSpec {
            base: PathBuf::from(BASE),
            volume: PathBuf::from(MOUNT),
            run: PathBuf::from(container::RUN),
            cgroup: trees.group(""),
            uid_start: self.boot.uid_start,
            hostname,
            dns: vec![RESOLVER.into()],
            logs: Some(PathBuf::from(container::LOGS)),
            limits: self.boot.limits,
        };
        let container = Container::start(spec)
            .await
            .map_err(|source| MachineError::Container { action: "start", source })?;
        let container = Arc::new(container);
        if let Some(identity) = &*self.identity.borrow() {
            self.tell_policies(&container, identity)?;
        }
        inside.container = Some(container.clone());
        inside.browsing = Browsing::start(container.clone(), inside.disk.volume().clone());
        self.sandbox.send_replace(Some(container));
        Ok(())
    }

    async fn stop_container(&self, inside: &mut Inside) -> Result<(), MachineError> {
        self.sandbox.send_replace(None);
        let Some(container) = inside.container.take() else { return Ok(()) };
        let views =
            inside.browsing.take().map(|browsing| tokio::task::block_in_place(|| browsing.end()));
        container
            .stop()
            .await
            .map_err(|source| MachineError::Container { action: "stop", source })
            .inspect_err(|_| self.failed.notify_one())?;
        tokio::task::block_in_place(|| drop(views));
        Ok(())
    }
}

#[async_trait]
impl Restart for Machine {
    async fn restart(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.bounce().await?)
    }
}

fn durability(identity: &Identity) -> Durability {
    if identity.strict { Durability::Strict } else { Durability::Default }
}

async fn died(container: Option<Arc<Container>>) {
    match container {
        Some(container) => container.died().await,
        None => std::future::pending().await,
    }
}
