//! One sprite on this worker: a task that owns its machine and decides when it wakes, sleeps and ends.
//!
//! ```text
//!          a call                  ready
//!   cold ----------> (waking) -------------> running
//!    ^                   | failed               |  agent died: killed, at once
//!    +-------------------+----------------------+  idle and no lease: asleep, all of it in the bucket
//! ```
//!
//! Everything is asked for over one queue, so waking is single-flight and calls that come meanwhile wait in the queue. Only
//! this task gives out leases, and while one is out the sprite is not put to sleep. When a wake fails, all that waited get
//! the reason, and the next call tries again.

use super::{
    agent::Agent,
    machine::{BootError, Disk, Ended, Happening, Machine, Purpose},
    site::Site,
};
use api::sprite::Status;
use guest::protocol::{Event, Identity};
use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How many calls may wait for a sprite in its queue; further ones wait with their callers.
const CALLS_WAITING_MAX: usize = 256;

/// How long an agent may take to put its sprite to sleep, bucket included.
pub(super) const SLEEP_TIMEOUT: Duration = Duration::from_secs(60);

/// The status with which an agent says that another worker owns its sprite.
const FENCED_STATUS: i32 = 75;

/// Keeps a sprite awake, and reaches its agent.
#[derive(Debug)]
pub(crate) struct Lease {
    agent: Agent,
    _count: Arc<()>,
}

impl Lease {
    /// The sprite's agent.
    #[must_use]
    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }
}

/// Why a sprite is not awake.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WakeError {
    /// Its machine did not come up. The next call tries again.
    #[error("wake the sprite")]
    Boot(#[source] Arc<BootError>),
    /// It is being destroyed.
    #[error("the sprite is being destroyed")]
    Destroyed,
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

/// What a sprite tells about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// It woke.
    Woke,
    /// It is cold.
    Slept,
    /// Another worker owns it.
    Fenced,
}

/// Says who a sprite is at the moment it is asked. A machine is told what holds when its turn comes, and not what held when somebody
/// asked for it: two changes at once cannot reach it in the wrong order.
pub(crate) type Who = Arc<dyn Fn() -> Identity + Send + Sync>;

pub(super) enum Command {
    Lease(Who, oneshot::Sender<Result<Lease, WakeError>>),
    Identify(Who, oneshot::Sender<()>),
    /// Put to sleep, and remove what is local; answered when that is done or has failed.
    Retire(oneshot::Sender<()>),
    /// Put to sleep and stay so.
    Stop(oneshot::Sender<()>),
    /// End the machine and all there is of the volume; answered when the machine is gone.
    Destroy(oneshot::Sender<()>),
}

/// A handle on the task.
#[derive(Debug, Clone)]
pub(super) struct Sprite {
    commands: mpsc::Sender<Command>,
    /// The agent, while the sprite is awake.
    awake: watch::Receiver<Option<Agent>>,
    doomed: CancellationToken,
}

impl Sprite {
    /// Starts the task, with a machine that is the sprite's already or without.
    pub(super) fn start(
        site: Arc<Site>,
        disk: Disk,
        machine: Option<Machine>,
        notices: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Self {
        let (commands, waiting) = mpsc::channel(CALLS_WAITING_MAX);
        let (publish, awake) =
            watch::channel(machine.as_ref().map(|machine| machine.agent().clone()));
        let doomed = CancellationToken::new();
        let task = Task {
            site: site.clone(),
            disk,
            machine,
            told: None,
            next: VecDeque::new(),
            leases: Arc::new(()),
            awake: publish,
            notices: Box::new(notices),
            doomed: doomed.clone(),
        };
        site.tasks.spawn(task.run(waiting));
        Self { commands, awake, doomed }
    }

    pub(super) fn status(&self) -> Status {
        if self.awake.borrow().is_some() { Status::Running } else { Status::Cold }
    }

    /// The agent, if the sprite is awake; it may go to sleep at any moment.
    pub(super) fn agent(&self) -> Option<Agent> {
        self.awake.borrow().clone()
    }

    /// Wakes the sprite if it sleeps and keeps it awake for as long as the lease lives.
    pub(super) async fn lease(&self, who: Who) -> Result<Lease, WakeError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Lease(who, reply)).await.map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// Tells a running sprite what has changed about it; returns when that is in force. A machine that does not take it ends.
    pub(super) async fn identify(&self, who: Who) {
        let (reply, answer) = oneshot::channel();
        // A sprite that is gone or cold has nobody to tell: its next wake brings the identity.
        drop(self.commands.send(Command::Identify(who, reply)).await);
        drop(answer.await);
    }

    /// Puts the sprite to sleep for good.
    pub(super) async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Stop(reply)).await.is_ok() {
            drop(answer.await);
        }
    }

    /// Puts the sprite to sleep and removes what it has on this disk, unless the bucket lacks some of it.
    pub(super) async fn retire(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Retire(reply)).await.is_ok() {
            drop(answer.await);
        }
    }

    /// Ends the sprite's machine at once, also while it wakes, and all there is of its volume a little later.
    pub(super) async fn destroy(&self) {
        self.doomed.cancel();
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Destroy(reply)).await.is_ok() {
            drop(answer.await);
        }
    }

    fn gone(&self) -> WakeError {
        if self.doomed.is_cancelled() { WakeError::Destroyed } else { WakeError::Stopping }
    }
}

struct Task {
    site: Arc<Site>,
    disk: Disk,
    machine: Option<Machine>,
    /// What the machine was told last, if that is known.
    told: Option<Identity>,
    /// Commands that come before those in the queue.
    next: VecDeque<Command>,
    leases: Arc<()>,
    awake: watch::Sender<Option<Agent>>,
    notices: Box<dyn Fn(Notice) + Send + Sync>,
    doomed: CancellationToken,
}

impl Task {
    async fn run(mut self, mut waiting: mpsc::Receiver<Command>) {
        loop {
            let command = if let Some(command) = self.next.pop_front() {
                Some(command)
            } else if let Some(machine) = &mut self.machine {
                tokio::select! {
                    // A machine that has died must not be given to the next call.
                    biased;
                    happening = machine.next() => {
                        match happening {
                            Happening::Ended(ended) => self.died(ended),
                            Happening::Event(event) => self.hear(event).await,
                        }
                        continue;
                    }
                    command = waiting.recv() => command,
                }
            } else {
                waiting.recv().await
            };
            let Some(command) = command else { return };
            if self.obey(command, &mut waiting).await.is_break() {
                return;
            }
        }
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Idle if Arc::strong_count(&self.leases) == 1 => self.sleep().await,
            Event::Idle | Event::Ready => {}
            Event::Failed { reason } => {
                error!(volume = %self.disk.volume, reason, "a machine failed");
            }
        }
    }

    async fn obey(
        &mut self,
        command: Command,
        waiting: &mut mpsc::Receiver<Command>,
    ) -> ControlFlow<()> {
        match command {
            Command::Lease(who, reply) => self.lease(&who, reply, waiting).await,
            Command::Identify(who, reply) => {
                self.identify(&who).await;
                // Whoever asked may have gone.
                let _ = reply.send(());
            }
            Command::Retire(reply) => {
                self.sleep().await;
                self.site.remove_local(self.disk.volume).await;
                // Whoever asked may have gone.
                let _ = reply.send(());
            }
            Command::Stop(reply) => {
                self.sleep().await;
                // Whoever asked may have gone.
                let _ = reply.send(());
                return ControlFlow::Break(());
            }
            Command::Destroy(reply) => {
                if let Some(machine) = self.machine.take() {
                    machine.kill().await;
                }
                self.awake.send_replace(None);
                let _ = reply.send(());
                self.site.remove_volume(self.disk.volume).await;
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Policies must not stay as they were in a machine that cannot take new ones.
    async fn identify(&mut self, who: &Who) {
        let Some(machine) = &self.machine else { return };
        let identity = who();
        if self.told.as_ref() == Some(&identity) {
            return;
        }
        let Err(error) = machine.agent().identify(&identity).await else {
            self.told = Some(identity);
            return;
        };
        warn!(volume = %self.disk.volume, error = &error as &dyn std::error::Error, "a machine does not take its settings and ends; the next call wakes its sprite with them");
        if let Some(machine) = self.machine.take() {
            machine.kill().await;
        }
        self.awake.send_replace(None);
        (self.notices)(Notice::Slept);
    }

    async fn lease(
        &mut self,
        who: &Who,
        reply: oneshot::Sender<Result<Lease, WakeError>>,
        waiting: &mut mpsc::Receiver<Command>,
    ) {
        // The caller has gone while it waited: no reason to wake.
        if reply.is_closed() {
            return;
        }
        if self.machine.is_none()
            && let Err(failure) = self.wake(who()).await
        {
            drop(reply.send(Err(failure.clone())));
            self.refuse_waiting(&failure, waiting).await;
            return;
        }
        let machine = self.machine.as_ref().expect("awake by now");
        let lease = Lease { agent: machine.agent().clone(), _count: self.leases.clone() };
        drop(reply.send(Ok(lease)));
    }

    async fn wake(&mut self, identity: Identity) -> Result<(), WakeError> {
        let begin = Instant::now();
        self.told = Some(identity.clone());
        let purpose = Purpose::Wake(identity);
        match Machine::boot(&self.site, self.disk.clone(), purpose, &self.doomed).await {
            Ok(machine) => {
                info!(volume = %self.disk.volume, milliseconds = begin.elapsed().as_millis(), "sprite woke");
                self.awake.send_replace(Some(machine.agent().clone()));
                self.machine = Some(machine);
                (self.notices)(Notice::Woke);
                Ok(())
            }
            Err(BootError::Cancelled) => Err(WakeError::Destroyed),
            Err(failure) => {
                error!(volume = %self.disk.volume, error = &failure as &dyn std::error::Error, "a sprite did not wake");
                if let BootError::Died(Ended::Agent(runtime::Exit::Status(FENCED_STATUS))) = failure
                {
                    (self.notices)(Notice::Fenced);
                }
                Err(WakeError::Boot(Arc::new(failure)))
            }
        }
    }

    /// Gives all who wait for a lease the reason; other commands are obeyed next.
    async fn refuse_waiting(&mut self, failure: &WakeError, waiting: &mut mpsc::Receiver<Command>) {
        while let Ok(command) = waiting.try_recv() {
            match command {
                Command::Lease(_, reply) => drop(reply.send(Err(failure.clone()))),
                // Nobody is there to be told.
                Command::Identify(_, reply) => drop(reply),
                other @ (Command::Retire(_) | Command::Stop(_) | Command::Destroy(_)) => {
                    self.next.push_back(other);
                }
            }
        }
    }

    /// Puts everything into the bucket and ends the machine.
    async fn sleep(&mut self) {
        let Some(machine) = self.machine.take() else { return };
        let begin = Instant::now();
        let slept = machine.agent().sleep(SLEEP_TIMEOUT).await;
        // Once the agent has answered, nothing is left in the machine that anybody needs.
        machine.kill().await;
        self.awake.send_replace(None);
        (self.notices)(Notice::Slept);
        match slept {
            Ok(()) => {
                self.site.unsettled.remove(self.disk.volume);
                info!(volume = %self.disk.volume, milliseconds = begin.elapsed().as_millis(), "sprite sleeps");
            }
            Err(failure) => {
                let error = &failure as &dyn std::error::Error;
                error!(volume = %self.disk.volume, error, "a sprite did not sleep well; its last writes are only on this disk");
            }
        }
    }

    /// The agent's death is the machine's: what still ran in it would have gone on writing to a dead disk.
    fn died(&mut self, ended: Ended) {
        self.machine = None;
        self.awake.send_replace(None);
        if ended == Ended::Agent(runtime::Exit::Status(FENCED_STATUS)) {
            error!(volume = %self.disk.volume, "another worker owns this sprite");
            (self.notices)(Notice::Fenced);
        } else {
            error!(volume = %self.disk.volume, ?ended, "a machine died; the next call wakes its sprite from its disk");
            (self.notices)(Notice::Slept);
        }
    }
}
