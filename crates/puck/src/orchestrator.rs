//! The orchestrator: the public API. It keeps accounts, says who may call, and passes everything under one sprite through to
//! that sprite's own agent.
//!
//! Creating and destroying run to their end even when their caller has gone, so that neither machine nor record is left
//! without the other. A call to a sprite is held while the sprite wakes and never dropped because it sleeps.

mod auth;
mod create;
mod destroy;
mod fork;
mod list;
mod metrics;
mod organization;
mod policy;
mod portable;
mod proxy;
mod refusal;
mod serve;
mod undelete;
mod update;
mod url;
mod view;
mod watch;

use crate::{
    account::{Account, SpriteRecord},
    worker::{Disk, Lease, Who, Worker},
};
use api::{
    name::SpriteName,
    policy::{NetworkPolicy, PrivilegesPolicy, ResourcesPolicy},
    sprite::Durability,
};
use axum::{
    Router,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, Uri},
    middleware,
    response::{IntoResponse, Json, Response},
    routing::{MethodRouter, any, get, post},
};
use guest::protocol::Identity;
use percent_encoding::percent_decode_str;
use refusal::Refusal;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use serve::serve;

/// The longest body of a call that the orchestrator answers itself.
const BODY_BYTES_MAX: usize = 1 << 20;

/// How long a call is held while its sprite wakes.
const WAKE_WAIT_MAX: Duration = Duration::from_secs(75);

/// The state behind every route.
pub(crate) struct Orchestrator {
    account: Arc<Account>,
    worker: Worker,
    /// The bucket's URL.
    bucket: String,
    /// How sprites' URLs end: `ORG.DOMAIN:PORT` follows the name and a hyphen.
    authority: Arc<str>,
    idle_timeout_default: Duration,
    /// How long a destroyed sprite can be had back.
    undelete_window: Duration,
    /// Names that are being created.
    creating: Mutex<BTreeSet<SpriteName>>,
    /// Room for archives that are written or read.
    transfers: Arc<Semaphore>,
    /// Work that goes on without its caller.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Orchestrator {
    /// An orchestrator over an open account and a worker that runs, for clients that reach it at `address`.
    pub(crate) fn new(
        account: Arc<Account>,
        worker: Worker,
        bucket: String,
        address: SocketAddr,
        idle_timeout_default: Duration,
        undelete_window: Duration,
        stop: CancellationToken,
    ) -> Self {
        let authority = format!("{}.localhost:{}", account.org_id(), address.port()).into();
        Self {
            account,
            worker,
            bucket,
            authority,
            idle_timeout_default,
            undelete_window,
            creating: Mutex::default(),
            transfers: Arc::new(Semaphore::new(portable::TRANSFERS_MAX)),
            tasks: TaskTracker::new(),
            stop,
        }
    }

    /// The account.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// The worker.
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Runs a piece of work that [`Self::finish`] waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Waits for what goes on without its caller.
    pub(crate) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What machines are told about the sprite of a record, which may have changed by then.
    pub(crate) fn who(&self, record: &Arc<SpriteRecord>) -> Who {
        let (account, authority) = (self.account.clone(), self.authority.clone());
        let record = record.clone();
        Arc::new(move || {
            let now = account.sprite(&record.name).filter(|now| now.id == record.id);
            let record = now.as_deref().unwrap_or(&record);
            Self::identity(&account, &authority, record)
        })
    }

    fn identity(account: &Account, authority: &str, record: &SpriteRecord) -> Identity {
        Identity {
            id: record.id.to_string(),
            name: record.name.to_string(),
            organization: account.org().to_string(),
            url: url_of(&record.name, authority),
            environment: record.environment.clone(),
            idle_timeout_seconds: record.idle_timeout_seconds,
            strict: record.durability == Durability::Strict,
            network: policy::domain_rules(&record.policies.network),
            memory_bytes: policy::memory_bytes(&record.policies.resources),
            privileges: policy::limits(&record.policies.privileges),
            policies: policy::files(&record.policies),
        }
    }

    fn url(&self, name: &SpriteName) -> String {
        url_of(name, &self.authority)
    }

    /// Changes a sprite, and has a running one know; returns when both is done, and does both even if the caller goes away.
    async fn change(
        self: &Arc<Self>,
        record: &SpriteRecord,
        change: impl FnOnce(&mut SpriteRecord) + Send + 'static,
    ) -> Result<Arc<SpriteRecord>, Refusal> {
        let (orchestrator, name, id) = (self.clone(), record.name.clone(), record.id);
        let work = async move {
            let record = orchestrator.account.update(&name, id, change).await?;
            orchestrator.worker.identify(id, orchestrator.who(&record)).await;
            Ok::<_, Refusal>(record)
        };
        let unavailable = |error: tokio::task::JoinError| Refusal::unavailable(&error);
        self.tasks.spawn(work).await.map_err(unavailable)?
    }

    /// The sprite that the path names.
    fn find(&self, uri: &Uri) -> Result<Arc<SpriteRecord>, Refusal> {
        name(uri).and_then(|name| self.account.sprite(&name)).ok_or_else(Refusal::no_sprite)
    }

    /// Wakes a sprite if it sleeps, and keeps it awake for as long as the lease lives.
    async fn lease(&self, record: &Arc<SpriteRecord>) -> Result<Lease, Refusal> {
        let disk = disk(record);
        let lease = self.worker.lease(record.id, &disk, self.who(record));
        match tokio::time::timeout(WAKE_WAIT_MAX, lease).await {
            Ok(lease) => Ok(lease?),
            Err(_) => {
                let message = "the sprite did not wake in time";
                Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, message))
            }
        }
    }
}

fn url_of(name: &SpriteName, authority: &str) -> String {
    format!("http://{name}-{authority}")
}

/// The name in the path `/v1/sprites/NAME…`. Segments are decoded after splitting.
fn name(uri: &Uri) -> Option<SpriteName> {
    let segment = uri.path().split('/').nth(3).unwrap_or_default();
    percent_decode_str(segment).decode_utf8().ok()?.parse().ok()
}

/// The disk of a sprite, as its worker needs it.
pub(crate) fn disk(record: &SpriteRecord) -> Disk {
    Disk { volume: record.volume, ancestors: record.ancestors.clone(), image: record.image.clone() }
}

/// Every route.
pub(crate) fn router(orchestrator: Arc<Orchestrator>) -> Router {
    let sprite = Router::new()
        .route("/v1/sprites/{name}", get(show).put(update::update).delete(destroy::destroy))
        .route("/v1/sprites/{name}/", any(proxy::proxy))
        .route("/v1/sprites/{name}/export", get(portable::export))
        .route("/v1/sprites/{name}/fork", post(fork::fork))
        .route("/v1/sprites/{name}/import", post(portable::import))
        .route(
            "/v1/sprites/{name}/policy/network",
            get(policy::show::<NetworkPolicy>).post(policy::set::<NetworkPolicy>),
        )
        .route("/v1/sprites/{name}/policy/privileges", policy_routes::<PrivilegesPolicy>())
        .route("/v1/sprites/{name}/policy/resources", policy_routes::<ResourcesPolicy>())
        .route("/v1/sprites/{name}/undelete", post(undelete::undelete))
        .route("/v1/sprites/{name}/{*rest}", any(proxy::proxy))
        .layer(middleware::map_response(version));
    Router::new()
        .route("/metrics", get(metrics::show))
        .route("/v1/organization", get(organization::show))
        .route("/v1/sprites", get(list::list).post(create::create))
        .merge(sprite)
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "not found"))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(middleware::from_fn_with_state(orchestrator.clone(), auth::authenticate))
        .layer(middleware::from_fn_with_state(orchestrator.clone(), url::divert))
        .with_state(orchestrator)
}

fn policy_routes<K: policy::Kind>() -> MethodRouter<Arc<Orchestrator>> {
    get(policy::show::<K>).post(policy::set::<K>).delete(policy::reset::<K>)
}

async fn show(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let record = orchestrator.find(&uri)?;
    Ok(Json(view::sprite(&orchestrator, &record)).into_response())
}

/// Clients choose what they may ask for by the version that any answer about a sprite names.
async fn version(mut response: Response) -> Response {
    response
        .headers_mut()
        .entry(HeaderName::from_static(api::VERSION_HEADER))
        .or_insert(HeaderValue::from_static(api::SPRITE_VERSION));
    response
}
