//! `puck dev`: builds the server from its settings, runs it, and takes it apart.
//!
//! ```text
//! listen -> lock data directory -> host -> probe bucket -> look for its keys -> own bucket -> settle keys
//!        -> image -> blank volume -> account -> worker -> serve
//! ```
//!
//! It is taken apart in the opposite order. What fails on the way up takes down what is up. The bucket is released only when it
//! has all of every sprite; otherwise the next start must be with this data directory.

use crate::{
    account::Account,
    bucket,
    data::DataDir,
    image,
    keys::{AccountKeys, Wraps},
    orchestrator::{self, Orchestrator, disk},
    owner::{self, Claim},
    settings::Settings,
    worker::{self, Transition, Worker, WorkerSettings},
};
use anyhow::Context;
use api::{sprite::Status, token::Token};
use object_store::ObjectStore;
use runtime::{Host, HostSettings};
use std::{io::Write, net::SocketAddr, sync::Arc};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How many digits of the data directory's id name this server's things on the host.
const INSTANCE_DIGITS: usize = 8;

/// Runs a server until it is told to stop. An error means that it did not start, or must not go on.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let stop = stop_on_signals().context("listen for signals")?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("listen on {}", settings.listen))?;
    let data = DataDir::open(&settings.data)?;
    let node = owner::node_id(data.root()).context("read the id of the data directory")?;
    let instance = node.chars().filter(char::is_ascii_hexdigit).take(INSTANCE_DIGITS).collect();
    let host = HostSettings { instance, run_dir: data.run(), agent: settings.agent.clone() };
    // First, so that what a killed server left is cleaned even when this one may not start.
    let host = Arc::new(Host::prepare(host).await.context("prepare this host")?);
    let server = Server { settings, data, node, host, stop, fenced: CancellationToken::new() };
    let outcome = server.own(listener).await;
    let cleaned = server.host.shutdown().await.context("clean this host");
    outcome.and(cleaned)
}

struct Server {
    settings: Settings,
    data: DataDir,
    node: String,
    host: Arc<Host>,
    stop: CancellationToken,
    fenced: CancellationToken,
}

impl Server {
    /// From a host that is ready to a bucket that is released.
    async fn own(&self, listener: TcpListener) -> anyhow::Result<()> {
        let opened = bucket::open(&self.settings.bucket);
        let Some(store) = unless(&self.stop, opened).await else { return Ok(()) };
        let store = store?;
        let (org, masters) = (self.settings.org.clone(), self.settings.master_keys.clone());
        let wraps = Wraps::new(store.clone(), org, masters);
        // Before anything is changed: a server whose key does not fit leaves no trace.
        let Some(looked) = unless(&self.stop, wraps.look()).await else { return Ok(()) };
        looked?;
        bucket::bind(&store, self.data.root()).await?;
        let claim = Claim {
            node: self.node.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            take_over: self.settings.take_over,
            unsettled: !self.is_settled(),
        };
        let ownership = claim.take(store.clone()).await?;
        let outcome = match wraps.settle().await {
            Ok(keys) => self.start(&store, keys, ownership.epoch(), listener).await,
            Err(error) => Err(error.into()),
        };
        if self.fenced.is_cancelled() {
            anyhow::bail!("another server owns the bucket now");
        }
        let released = if self.is_settled() {
            ownership.release().await
        } else {
            warn!(
                "the bucket lacks the last writes of some sprites: start again with this data directory"
            );
            Ok(())
        };
        // Why the server ended comes before why its last request failed.
        outcome?;
        Ok(released?)
    }

    fn is_settled(&self) -> bool {
        worker::is_settled(&self.data.unsettled())
    }

    /// From an owned bucket to the last sprite asleep.
    async fn start(
        &self,
        store: &Arc<dyn ObjectStore>,
        keys: AccountKeys,
        epoch: u64,
        listener: TcpListener,
    ) -> anyhow::Result<()> {
        let progress = image::Progress::to_stderr();
        let (image_settings, images) = (image::Settings::default(), self.data.images());
        let image = image::ensure(&**store, &image_settings, &images, &progress);
        let Some(image) = unless(&self.stop, image).await else { return Ok(()) };
        let (image, _) = image.context("get a base image")?;
        let org = self.settings.org.clone();
        let blank = worker::blank_volume(store, &self.data.volumes(), &org, &keys).await?;
        let directory = self.data.account(org.as_str());
        let fenced = self.fenced.clone();
        let (account, token) =
            Account::open(keys.store(store), org, &directory, &self.data.token(), fenced)
                .await
                .context("open the account")?;
        let settings = WorkerSettings {
            host: self.host.clone(),
            store: store.clone(),
            keys,
            volumes: self.data.volumes(),
            pooled: self.data.pooled(),
            unsettled: self.data.unsettled(),
            images,
            blank,
            image: image.to_string(),
            epoch,
            cache_bytes_max: self.settings.cache_bytes_max,
            dns: self.settings.dns.clone(),
            limits: self.settings.limits,
            pool: self.settings.pool,
            fenced: self.fenced.clone(),
        };
        let (worker, transitions) = Worker::start(settings).context("start the worker")?;
        self.serve(listener, Arc::new(account), token, worker, transitions).await
    }

    async fn serve(
        &self,
        listener: TcpListener,
        account: Arc<Account>,
        token: Token,
        worker: Worker,
        transitions: mpsc::Receiver<Transition>,
    ) -> anyhow::Result<()> {
        let address = listener.local_addr().context("read the address")?;
        let (asleep, stop) = (CancellationToken::new(), self.stop.clone());
        let recorder = tokio::spawn(record(account.clone(), transitions, asleep.clone()));
        let idle_timeout = self.settings.idle_timeout;
        let orchestrator = Arc::new(Orchestrator::new(
            account.clone(),
            worker,
            self.settings.bucket.absolute().to_string(),
            address,
            idle_timeout,
            self.settings.undelete,
            stop.clone(),
        ));
        orchestrator.spawn(orchestrator.clone().reap_forever());
        orchestrator.spawn(recover(orchestrator.clone(), stop.clone()));
        orchestrator.spawn(stop_when(self.fenced.clone(), stop.clone()));
        let router = orchestrator::router(orchestrator.clone());
        announce(address, &token);
        orchestrator::serve(listener, router, stop).await;
        info!("stopping: every sprite goes to sleep");
        orchestrator.finish().await;
        orchestrator.worker().close().await;
        asleep.cancel();
        recorder.await.context("record the last changes")?;
        account.close().await;
        Ok(())
    }
}

async fn stop_when(fenced: CancellationToken, stop: CancellationToken) {
    tokio::select! {
        () = fenced.cancelled() => stop.cancel(),
        () = stop.cancelled() => {}
    }
}

/// The three lines that say how to reach the server, for people and programs.
fn announce(address: SocketAddr, token: &Token) {
    let lines =
        format!("SPRITES_API_URL=http://{address}\nSPRITE_TOKEN={}\nready\n", token.reveal());
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush()) {
        warn!(error = &error as &dyn std::error::Error, "nobody reads how to reach the server");
    }
}

/// Keeps the dates of the sprites, up to the last one that is told until `asleep`.
async fn record(
    account: Arc<Account>,
    mut transitions: mpsc::Receiver<Transition>,
    asleep: CancellationToken,
) {
    loop {
        let transition = tokio::select! {
            () = asleep.cancelled(), if !transitions.is_closed() => {
                transitions.close();
                continue;
            }
            transition = transitions.recv() => transition,
        };
        let Some(Transition { sprite, status, at }) = transition else { return };
        let contents = account.contents();
        let Some(record) = contents.sprites.values().find(|record| record.id == sprite) else {
            continue;
        };
        let change = move |record: &mut crate::account::SpriteRecord| match status {
            Status::Running => record.last_running_at = Some(at),
            Status::Warm | Status::Cold => record.last_warming_at = Some(at),
        };
        if let Err(error) = account.update(&record.name, sprite, change).await {
            warn!(sprite = %record.name, error = &error as &dyn std::error::Error, "a date of a sprite is not kept");
        }
    }
}

/// Finishes what a crash cut off, for as long as the server runs.
async fn recover(orchestrator: Arc<Orchestrator>, stop: CancellationToken) {
    let contents = orchestrator.account().contents();
    let known = contents
        .all()
        .map(|record| (record.volume, (record.id, disk(record), orchestrator.who(record))))
        .collect();
    if let Some(Err(error)) = unless(&stop, orchestrator.worker().recover(known)).await {
        error!(error = &error as &dyn std::error::Error, "find what a crash cut off");
    }
}

/// What the future gives, or nothing when the server is told to stop first.
async fn unless<T>(stop: &CancellationToken, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        () = stop.cancelled() => None,
        output = future => Some(output),
    }
}

fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let (mut signal, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                stop.cancel();
            }
        });
    }
    Ok(stop)
}
