//! All services of the sprite, under the container that runs now.

use super::{
    log::Log,
    service::{Service, Voice, Wanted},
    store::{Definitions, SERVICES_MAX, Store, Stored},
};
use crate::{
    api::{SANDBOX_WAIT, Withdrawal, answer::Refusal, sandbox::Sandbox},
    sockets,
};
use api::service::{Service as Shown, ServiceDefinition, ServiceEvent, ServiceName, ServiceStatus};
use axum::http::StatusCode;
use guest::protocol::Identity;
use netlink_packet_sock_diag::inet::StateFlags;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{broadcast, watch},
    task::AbortHandle,
};

/// More listeners than this are not looked at to see whether a service's port is open.
const LISTENERS_MAX: usize = 1024;

/// The services. One per agent.
#[derive(Debug)]
pub(in crate::api) struct Services {
    running: watch::Sender<Option<Arc<Set>>>,
    /// One change of definitions at a time, in the file and in what runs.
    changing: tokio::sync::Mutex<()>,
}

/// The services under one container.
pub(super) struct Set {
    sandbox: Arc<dyn Sandbox>,
    withdrawal: Withdrawal,
    identity: watch::Receiver<Option<Identity>>,
    store: Store,
    services: Mutex<BTreeMap<ServiceName, Entry>>,
}

/// What happens to a service.
pub(super) type Events = broadcast::Receiver<ServiceEvent>;

struct Entry {
    service: Arc<Service>,
    task: AbortHandle,
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Set").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Services {
    /// Services that follow the containers as they come and go. Nothing is started before the machine is a sprite's: its
    /// policies are not in force before.
    pub(in crate::api) fn start(
        identity: watch::Receiver<Option<Identity>>,
        sandbox: watch::Receiver<Option<Arc<dyn Sandbox>>>,
    ) -> Arc<Self> {
        let services = Arc::new(Self {
            running: watch::Sender::new(None),
            changing: tokio::sync::Mutex::default(),
        });
        tokio::spawn(Arc::clone(&services).follow(identity, sandbox));
        services
    }

    async fn follow(
        self: Arc<Self>,
        mut identity: watch::Receiver<Option<Identity>>,
        mut sandbox: watch::Receiver<Option<Arc<dyn Sandbox>>>,
    ) {
        loop {
            if identity.wait_for(Option::is_some).await.is_err() {
                return;
            }
            let Ok(found) = sandbox.wait_for(Option::is_some).await.map(|found| found.clone())
            else {
                return;
            };
            let Some(running) = found else { continue };
            let withdrawal = Withdrawal(sandbox.clone());
            let set = Set::load(running, withdrawal, identity.clone()).await;
            self.running.send_replace(Some(Arc::clone(&set)));
            let is_over = sandbox.changed().await.is_err();
            self.running.send_replace(None);
            set.end();
            if is_over {
                return;
            }
        }
    }

    /// The services that run now, or the next ones if there is no container at the moment.
    pub(super) async fn set(&self) -> Result<Arc<Set>, Refusal> {
        let mut running = self.running.subscribe();
        let found = async {
            let found = running.wait_for(Option::is_some).await;
            found.ok().and_then(|set| set.clone())
        };
        let found = tokio::time::timeout(SANDBOX_WAIT, found).await;
        found.ok().flatten().ok_or_else(Refusal::unavailable)
    }

    /// The port of the service that has an HTTP port, if there is one.
    pub(in crate::api) async fn http_port(&self) -> Option<u16> {
        let set = self.set().await.ok()?;
        set.shown().iter().find_map(|shown| shown.definition.http_port)
    }

    /// Whether a service is being started, or was less than `time` ago.
    pub(in crate::api) async fn started_within(&self, time: Duration) -> bool {
        let Ok(set) = self.set().await else { return false };
        set.services().values().any(|entry| entry.service.started_within(time))
    }

    /// Waits until the service with this port is ready, if there is one and it is meant to run.
    pub(in crate::api) async fn ready(&self, port: u16) {
        let Ok(set) = self.set().await else { return };
        if let Some(service) = set.with_port(port).filter(|service| service.is_wanted()) {
            service.ready(is_open).await;
        }
    }

    /// Defines a service and starts it. Also returns its events from before the start on, unless the same one runs already.
    pub(super) async fn define(
        &self,
        name: &ServiceName,
        definition: ServiceDefinition,
    ) -> Result<(Arc<Service>, Option<Events>), Refusal> {
        let _changing = self.changing.lock().await;
        let set = self.set().await?;
        let mut definitions = set.definitions();
        check(name, &definition, &definitions)?;
        definitions
            .insert(name.clone(), Stored { definition: definition.clone(), is_stopped: false });
        set.save(definitions).await?;
        let old = set.find(name);
        let voice = match &old {
            Some(old) if old.definition == definition => {
                let told = old.voice.events.subscribe();
                let runs = old.status() == ServiceStatus::Running;
                set.start(name);
                return Ok((Arc::clone(old), Some(told).filter(|_| !runs)));
            }
            Some(old) => {
                old.stop(super::STOP_TIMEOUT);
                old.stopped().await;
                old.voice.clone()
            }
            None => Voice::new(Log::new(set.sandbox.logs().to_owned(), name)),
        };
        let told = voice.events.subscribe();
        let service = Service::new(name.clone(), definition, voice, Wanted::Running(0));
        set.adopt(Arc::clone(&service));
        set.start(name);
        Ok((service, Some(told)))
    }

    /// Starts or restarts a service, and starts what it needs. Also returns its events from before that on, unless it runs already
    /// and goes on.
    pub(super) async fn run(
        &self,
        name: &ServiceName,
        anew: bool,
    ) -> Result<(Arc<Service>, Option<Events>), Refusal> {
        let _changing = self.changing.lock().await;
        let set = self.set().await?;
        let service = set.find(name).ok_or_else(|| unknown(name))?;
        set.mark(name, false).await?;
        let told = service.voice.events.subscribe();
        let goes_on = service.status() == ServiceStatus::Running && !anew;
        if anew {
            service.restart();
        }
        set.start(name);
        Ok((service, Some(told).filter(|_| !goes_on)))
    }

    /// Stops a service for good; it has `grace` to end by itself. Also returns its events from before that on.
    pub(super) async fn stop(
        &self,
        name: &ServiceName,
        grace: Duration,
    ) -> Result<(Arc<Service>, Events), Refusal> {
        let _changing = self.changing.lock().await;
        let set = self.set().await?;
        let service = set.find(name).ok_or_else(|| unknown(name))?;
        if service.status() == ServiceStatus::Stopped {
            return Err(not_running(name));
        }
        set.mark(name, true).await?;
        let told = service.voice.events.subscribe();
        service.stop(grace);
        Ok((service, told))
    }

    /// Forgets a service. Its log stays.
    pub(super) async fn delete(&self, name: &ServiceName) -> Result<(), Refusal> {
        let _changing = self.changing.lock().await;
        let set = self.set().await?;
        let service = set.find(name).ok_or_else(|| unknown(name))?;
        let mut definitions = set.definitions();
        let needs_it =
            |(_, stored): &(&ServiceName, &Stored)| stored.definition.needs.contains(name);
        if let Some((other, _)) = definitions.iter().find(needs_it) {
            return Err(conflict(format!("service {name} is needed by {other}")));
        }
        if service.status() != ServiceStatus::Stopped {
            return Err(conflict(format!("service {name} is {}; stop it first", service.status())));
        }
        definitions.remove(name);
        set.save(definitions).await?;
        if let Some(entry) = set.services().remove(name) {
            entry.task.abort();
        }
        Ok(())
    }
}

impl Set {
    /// Starts what the disk says.
    async fn load(
        sandbox: Arc<dyn Sandbox>,
        withdrawal: Withdrawal,
        identity: watch::Receiver<Option<Identity>>,
    ) -> Arc<Self> {
        let store = Store(sandbox.services().to_owned());
        let services = Mutex::default();
        let set = Arc::new(Self { sandbox, withdrawal, identity, store, services });
        let store = set.store.clone();
        let loaded = tokio::task::spawn_blocking(move || store.load()).await;
        let definitions = loaded.unwrap_or_else(|error| Err(io::Error::other(error)));
        let definitions = definitions.unwrap_or_else(|error| {
            tracing::warn!(%error, "the definitions of the sprite's services cannot be read; none are started");
            Definitions::new()
        });
        for (name, stored) in &definitions {
            let voice = Voice::new(Log::new(set.sandbox.logs().to_owned(), name));
            let wanted = Wanted::Stopped(super::STOP_TIMEOUT);
            set.adopt(Service::new(name.clone(), stored.definition.clone(), voice, wanted));
        }
        for (name, _) in definitions.iter().filter(|(_, stored)| !stored.is_stopped) {
            set.start(name);
        }
        set
    }

    /// Every service, as the API shows it.
    pub(super) fn shown(&self) -> Vec<Shown> {
        self.services().values().map(|entry| entry.service.shown()).collect()
    }

    pub(super) fn find(&self, name: &ServiceName) -> Option<Arc<Service>> {
        self.services().get(name).map(|entry| Arc::clone(&entry.service))
    }

    fn with_port(&self, port: u16) -> Option<Arc<Service>> {
        let services = self.services();
        let mut all = services.values().map(|entry| &entry.service);
        all.find(|service| service.definition.http_port == Some(port)).cloned()
    }

    /// Takes a service in, in place of an older one of the name, and gives it its task.
    fn adopt(self: &Arc<Self>, service: Arc<Service>) {
        let (set, running) = (Arc::downgrade(self), Arc::clone(&service));
        let (sandbox, identity) = (Arc::clone(&self.sandbox), self.identity.clone());
        let task = tokio::spawn(async move {
            let needs = &running.definition.needs;
            let ready = async || {
                for name in needs {
                    // One that is defined anew meanwhile is another.
                    while let Some(needed) = set.upgrade().and_then(|set| set.find(name))
                        && !needed.ready(is_open).await
                    {
                        let now = set.upgrade().and_then(|set| set.find(name));
                        if now.is_some_and(|now| Arc::ptr_eq(&now, &needed)) {
                            // The container has ended, and this task ends next.
                            std::future::pending::<()>().await;
                        }
                    }
                }
            };
            running.run(&*sandbox, &identity, ready).await;
        });
        let entry = Entry { service: Arc::clone(&service), task: task.abort_handle() };
        if let Some(old) = self.services().insert(service.name.clone(), entry) {
            old.task.abort();
            old.service.over();
        }
    }

    /// Starts a service and what it needs, where it does not run.
    fn start(&self, name: &ServiceName) {
        let mut seen = BTreeSet::new();
        let mut next = vec![name.clone()];
        while let Some(name) = next.pop() {
            let Some(service) = self.find(&name).filter(|_| seen.insert(name)) else { continue };
            match service.status() {
                // One that ended by itself, or waits for its next try, is started at once.
                ServiceStatus::Stopped | ServiceStatus::Failed if service.is_wanted() => {
                    service.restart();
                }
                _ => service.start(),
            }
            next.extend(service.definition.needs.iter().cloned());
        }
    }

    /// What is defined, with who is to stay stopped.
    fn definitions(&self) -> Definitions {
        let services = self.services();
        let stored = |service: &Service| Stored {
            definition: service.definition.clone(),
            is_stopped: !service.is_wanted(),
        };
        services.iter().map(|(name, entry)| (name.clone(), stored(&entry.service))).collect()
    }

    /// Notes whether a service, and with `false` what it needs, is to stay stopped.
    async fn mark(&self, name: &ServiceName, is_stopped: bool) -> Result<(), Refusal> {
        let mut definitions = self.definitions();
        let mut next = vec![name.clone()];
        let mut seen = BTreeSet::new();
        while let Some(name) = next.pop() {
            let Some(stored) = definitions.get_mut(&name).filter(|_| seen.insert(name)) else {
                continue;
            };
            stored.is_stopped = is_stopped;
            if !is_stopped {
                next.extend(stored.definition.needs.iter().cloned());
            }
        }
        self.save(definitions).await
    }

    async fn save(&self, definitions: Definitions) -> Result<(), Refusal> {
        let store = self.store.clone();
        let saved = tokio::task::spawn_blocking(move || store.save(&definitions)).await;
        let saved = saved.unwrap_or_else(|error| Err(io::Error::other(error)));
        // Once the container is on its way out, the disk may not have been where it was written.
        if self.withdrawal.has_come() {
            return Err(Refusal::unavailable());
        }
        saved.map_err(|error| {
            tracing::warn!(%error, "write the definitions of services");
            let message = format!("cannot write the definitions of services: {error}");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
        })
    }

    /// Ends every task. The processes end with the container.
    fn end(&self) {
        for entry in self.services().values() {
            entry.task.abort();
            entry.service.over();
        }
    }

    fn services(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Entry>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a definition that cannot work beside the others.
fn check(
    name: &ServiceName,
    definition: &ServiceDefinition,
    others: &Definitions,
) -> Result<(), Refusal> {
    let invalid = |message: String| Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    let texts = definition.args.iter().chain([&definition.cmd]).chain(&definition.dir);
    let variables = definition.env.iter();
    if definition.cmd.is_empty() {
        return invalid("cmd is required".to_owned());
    }
    if texts.into_iter().any(|text| text.contains('\0'))
        || variables
            .clone()
            .any(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0'))
    {
        return invalid("nothing may contain NUL, and names of variables no =".to_owned());
    }
    if definition.http_port == Some(0) {
        return invalid("http_port must be 1 to 65535".to_owned());
    }
    if !others.contains_key(name) && others.len() >= SERVICES_MAX {
        return Err(conflict(format!("a sprite has at most {SERVICES_MAX} services")));
    }
    let other_port = |(other, stored): (&ServiceName, &Stored)| {
        other != name && stored.definition.http_port.is_some()
    };
    if definition.http_port.is_some() && others.iter().any(other_port) {
        return Err(conflict("another service already has an HTTP port configured".to_owned()));
    }
    let mut seen = BTreeSet::new();
    let mut next = definition.needs.clone();
    while let Some(needed) = next.pop() {
        if needed == *name {
            return invalid(format!("service {name} would need itself"));
        }
        let Some(stored) = others.get(&needed) else {
            return invalid(format!("needed service not found: {needed}"));
        };
        if seen.insert(needed) {
            next.extend(stored.definition.needs.iter().cloned());
        }
    }
    Ok(())
}

/// Whether something in the sprite takes connections at a port.
fn is_open(port: u16) -> bool {
    let listeners = sockets::find(StateFlags::LISTEN, LISTENERS_MAX);
    listeners.is_ok_and(|all| all.iter().any(|listener| listener.socket_id.source_port == port))
}

pub(super) fn unknown(name: &ServiceName) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("service not found: {name}"))
}

pub(super) fn not_running(name: &ServiceName) -> Refusal {
    conflict(format!("service is not running: {name}"))
}

fn conflict(message: String) -> Refusal {
    Refusal::new(StatusCode::CONFLICT, message)
}
