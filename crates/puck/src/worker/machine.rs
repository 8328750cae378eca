//! One machine under the worker's care, from its boot to the moment nothing of it is left.
//!
//! A task watches it: when its agent ends, by itself or because it is killed, everything else of the machine is removed and
//! [`Machine::ended`] returns. Dropping a [`Machine`] kills it.

use super::{agent::Agent, channel::Channel, site::Site};
use crate::gateway::{Gateway, Scope};
use guest::protocol::{Boot, Event, Identity, Source};
use runtime::{Exit, MachineSpec};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info};
use volume::VolumeId;

/// How long a machine may take from its boot until it is ready, apart from waiting for its turn.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may take when it checks its filesystem first.
const CHECK_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The disk and the sprite of a machine.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// The volumes that it was forked from, nearest first; the first is forked when the volume is new.
    pub(crate) ancestors: Vec<VolumeId>,
    /// The digest of the base image.
    pub(crate) image: String,
}

/// What a machine is booted for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A new sprite, on a disk that is forked for it.
    New,
    /// A new sprite, on a disk that is in the bucket, and is checked first if nobody vouches for it.
    Imported { check: bool },
    /// A sprite that wakes.
    Wake(Identity),
}

/// A machine that is ready.
#[derive(Debug)]
pub(super) struct Machine {
    disk: Disk,
    agent: Agent,
    events: mpsc::Receiver<Event>,
    ended: watch::Receiver<Option<Ended>>,
    kill: CancellationToken,
    _kill_on_drop: DropGuard,
}

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its agent did, by itself.
    Agent(Exit),
    /// It was killed.
    Killed,
}

/// What a machine does by itself.
#[derive(Debug)]
pub(super) enum Happening {
    /// It has ended; nothing of it is left.
    Ended(Ended),
    /// Its agent says something.
    Event(Event),
}

/// Why a machine did not become ready. Nothing of it is left, but local state of its volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// Its local directories could not be made.
    #[error("prepare the machine's directories")]
    Local(#[source] io::Error),
    /// The host could not build it.
    #[error("build the machine")]
    Host(#[source] runtime::Error),
    /// Its base image is not to be had.
    #[error("get base image {0}")]
    Image(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// Its agent gave up.
    #[error("the machine could not come up: {0}")]
    Failed(String),
    /// Its agent ended without a word.
    #[error("the guest agent ended early ({0:?})")]
    Died(Ended),
    /// It took too long.
    #[error("the machine was not ready within {0:?}")]
    Silent(Duration),
    /// It is not wanted any more.
    #[error("the machine is not wanted any more")]
    Cancelled,
}

impl Machine {
    /// Boots a machine and waits until it is ready. Waits for its turn first when many boot at once.
    ///
    /// To give up on it, cancel rather than drop: what is there of the machine by then is waited for and removed.
    pub(super) async fn boot(
        site: &Arc<Site>,
        disk: Disk,
        purpose: Purpose,
        cancel: &CancellationToken,
    ) -> Result<Self, BootError> {
        let _turn = tokio::select! {
            () = cancel.cancelled() => return Err(BootError::Cancelled),
            turn = site.turn() => turn.map_err(|_| BootError::Cancelled)?,
        };
        let base = site.base_image(&disk.image).await?;
        let fresh = site.unsettled.add(disk.volume).map_err(BootError::Local)?;
        let volume = disk.volume;
        let booted = Self::start(site, disk, base, purpose, cancel).await;
        if booted.is_err() && fresh {
            // Nobody can have flushed anything to a disk whose machine never was ready.
            site.unsettled.remove(volume);
        }
        booted
    }

    async fn start(
        site: &Arc<Site>,
        disk: Disk,
        base: std::path::PathBuf,
        purpose: Purpose,
        cancel: &CancellationToken,
    ) -> Result<Self, BootError> {
        let name = next_name();
        let (is_new, check) =
            (matches!(purpose, Purpose::New), matches!(purpose, Purpose::Imported { check: true }));
        let (data, identity) = match purpose {
            Purpose::Wake(identity) => (site.volume_directory(disk.volume), Some(identity)),
            Purpose::New | Purpose::Imported { .. } => (site.pooled_directory(disk.volume), None),
        };
        crate::data::create_private(&data).map_err(BootError::Local)?;
        let channel = site.host.channel(&name).map_err(BootError::Host)?;
        let channel = Arc::new(Channel::open(&channel).map_err(BootError::Local)?);
        let scope = Scope::new(disk.volume, disk.ancestors.clone());
        let keys = site.keys.of_volume(disk.volume, &disk.ancestors);
        let (gateway, events) =
            Gateway::listen(&channel.gateway(), site.store.clone(), scope, &keys, site.dns.clone())
                .map_err(BootError::Local)?;
        let boot = Boot {
            volume: disk.volume.to_string(),
            // Only a new disk is forked: for a sprite's, a log that is missing is an error and never a fresh disk.
            fork_of: disk.ancestors.first().filter(|_| is_new).map(|source| {
                let id = source.to_string();
                if *source == site.blank { Source::Blank(id) } else { Source::Pinned(id) }
            }),
            epoch: site.epoch,
            image: disk.image.clone(),
            cache_bytes_max: site.cache_bytes_max,
            uid_start: 0,
            limits: site.limits,
            check,
            identity,
        };
        let spec = MachineSpec { name: name.clone(), data, base, boot };
        let running = site.host.boot(spec).await.map_err(BootError::Host)?;
        debug!(machine = name, volume = %disk.volume, "machine started");

        let kill = CancellationToken::new();
        let (publish, ended) = watch::channel(None);
        site.tasks.spawn(look_after(name, running, gateway, kill.clone(), publish));
        let agent = Agent::new(channel);
        let guard = kill.clone().drop_guard();
        let mut machine = Self { disk, agent, events, ended, kill, _kill_on_drop: guard };
        let ready = tokio::select! {
            () = cancel.cancelled() => Err(BootError::Cancelled),
            ready = machine.ready(if check { CHECK_TIMEOUT } else { READY_TIMEOUT }) => ready,
        };
        match ready {
            Ok(()) => Ok(machine),
            Err(error) => {
                machine.kill().await;
                Err(error)
            }
        }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(super) fn agent(&self) -> &Agent {
        &self.agent
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Returns once nothing of the machine is left.
    pub(super) async fn ended(&mut self) -> Ended {
        match self.ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or(Ended::Killed),
            // The task that looks after it has panicked or was never polled: there is no machine.
            Err(_) => Ended::Killed,
        }
    }

    /// Waits for whatever comes next.
    pub(super) async fn next(&mut self) -> Happening {
        tokio::select! {
            // Of a machine that has died no event matters any more.
            biased;
            ended = self.ended.wait_for(Option::is_some) => {
                Happening::Ended(ended.ok().and_then(|ended| *ended).unwrap_or(Ended::Killed))
            }
            Some(event) = self.events.recv() => Happening::Event(event),
        }
    }

    /// Kills the machine and waits until nothing of it is left.
    pub(super) async fn kill(mut self) {
        self.kill.cancel();
        self.ended().await;
    }

    async fn ready(&mut self, timeout: Duration) -> Result<(), BootError> {
        let waited = tokio::time::timeout(timeout, async {
            loop {
                tokio::select! {
                    // An agent that reports why it fails ends right after, so its words come first.
                    biased;
                    event = self.events.recv() => match event {
                        Some(Event::Ready) => return Ok(()),
                        Some(Event::Failed { reason }) => return Err(BootError::Failed(reason)),
                        Some(Event::Idle) => {}
                        None => return Err(BootError::Died(Ended::Killed)),
                    },
                    ended = self.ended.wait_for(Option::is_some) => {
                        return Err(BootError::Died(ended.ok().and_then(|ended| *ended).unwrap_or(Ended::Killed)));
                    }
                }
            }
        });
        waited.await.unwrap_or(Err(BootError::Silent(timeout)))
    }
}

/// Waits for the end of a machine and removes all of it.
async fn look_after(
    name: String,
    mut running: runtime::Machine,
    gateway: Gateway,
    kill: CancellationToken,
    publish: watch::Sender<Option<Ended>>,
) {
    let ended = tokio::select! {
        exit = running.wait() => Ended::Agent(exit),
        () = kill.cancelled() => Ended::Killed,
    };
    if let Err(error) = running.kill().await {
        error!(machine = name, error = &error as &dyn std::error::Error, "remove a machine");
    }
    gateway.close().await;
    info!(machine = name, ?ended, "machine ended");
    publish.send_replace(Some(ended));
}

/// A name that no other machine of this server has, now or later.
fn next_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("m-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
