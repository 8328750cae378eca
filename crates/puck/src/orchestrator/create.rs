//! `POST /v1/sprites`.

use super::{BODY_BYTES_MAX, Orchestrator, Refusal, policy, refusal, update, view};
use crate::{
    account::{AccountError, SpriteRecord},
    archive::Manifest,
    worker::Empty,
};
use api::{
    name::SpriteName,
    policy::Policies,
    sprite::{CreateSprite, Durability, SpriteId, UrlSettings},
};
use axum::{
    body::Body,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Json, Response},
};
use jiff::Timestamp;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tracing::{error, info};

/// How long a caller that is ready to wait for capacity waits. Clients give up after 30 s.
const CAPACITY_WAIT_MAX: Duration = Duration::from_secs(20);

/// The most variables of a default environment, and the most bytes of all of them.
const ENVIRONMENT_VARIABLES_MAX: usize = 256;
const ENVIRONMENT_BYTES_MAX: usize = 64 << 10;

pub(super) async fn create(
    State(orchestrator): State<Arc<Orchestrator>>,
    body: Body,
) -> Result<Response, Refusal> {
    let draft = Draft::parse(&orchestrator, &read(body).await?)?;
    // A caller that goes away must not leave half a sprite.
    let work = orchestrator.clone();
    let created = orchestrator.tasks.spawn(async move { work.create(draft).await }).await;
    let record = created.map_err(|error| Refusal::unavailable(&error))??;
    Ok((StatusCode::CREATED, Json(view::sprite(&orchestrator, &record))).into_response())
}

/// The body of a call that the orchestrator answers itself.
pub(super) async fn read(body: Body) -> Result<axum::body::Bytes, Refusal> {
    axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "request body is too large or incomplete")
    })
}

/// What is asked for, once it is known to be right.
pub(super) struct Draft {
    name: SpriteName,
    url_settings: UrlSettings,
    labels: Vec<String>,
    environment: BTreeMap<String, String>,
    idle_timeout_seconds: u64,
    durability: Durability,
    policies: Policies,
    wait_for_capacity: bool,
}

impl Draft {
    /// A sprite with another's settings.
    pub(super) fn like(source: &SpriteRecord, name: SpriteName) -> Self {
        Self {
            name,
            url_settings: UrlSettings::default(),
            labels: source.labels.clone(),
            environment: source.environment.clone(),
            idle_timeout_seconds: source.idle_timeout_seconds,
            durability: source.durability,
            policies: source.policies.clone(),
            wait_for_capacity: false,
        }
    }

    /// A sprite with the settings that an archive has.
    pub(super) fn of_archive(
        orchestrator: &Orchestrator,
        name: SpriteName,
        manifest: &Manifest,
    ) -> Result<Self, Refusal> {
        let asked = CreateSprite {
            labels: Some(manifest.labels.clone()),
            environment: Some(manifest.environment.clone()),
            idle_timeout_seconds: Some(manifest.idle_timeout_seconds),
            durability: Some(manifest.durability.to_string()),
            ..CreateSprite::default()
        };
        policy::check(orchestrator, &manifest.policies)?;
        let draft = Self::check(orchestrator, name, asked)?;
        Ok(Self { policies: manifest.policies.clone(), ..draft })
    }

    fn parse(orchestrator: &Orchestrator, body: &axum::body::Bytes) -> Result<Self, Refusal> {
        let asked: CreateSprite = refusal::parse(body)?;
        let name = asked.name.as_deref().unwrap_or_default().parse()?;
        Self::check(orchestrator, name, asked)
    }

    fn check(
        orchestrator: &Orchestrator,
        name: SpriteName,
        asked: CreateSprite,
    ) -> Result<Self, Refusal> {
        let mut errors = Vec::new();
        let mut url_settings = UrlSettings::default();
        if let Some(settings) = &asked.url_settings {
            update::url_settings(settings, &mut errors)(&mut url_settings);
        }
        let labels = asked.labels.unwrap_or_default();
        update::check_labels(&labels, &mut errors);
        let environment = asked.environment.unwrap_or_default();
        check_environment(&environment, &mut errors);
        let idle_default = orchestrator.idle_timeout_default.as_secs();
        let idle_timeout_seconds = asked.idle_timeout_seconds.unwrap_or(idle_default);
        if asked.idle_timeout_seconds.is_some() {
            update::check_idle_timeout(idle_timeout_seconds, &mut errors);
        }
        let durability = update::durability(asked.durability.as_deref(), &mut errors);
        if !errors.is_empty() {
            return Err(Refusal::invalid(errors));
        }
        let wait_for_capacity = asked.wait_for_capacity.unwrap_or(false);
        Ok(Self {
            name,
            url_settings,
            labels,
            environment,
            idle_timeout_seconds,
            durability: durability.unwrap_or_default(),
            policies: Policies::default(),
            wait_for_capacity,
        })
    }
}

fn check_environment(environment: &BTreeMap<String, String>, errors: &mut Vec<String>) {
    let bytes: usize = environment.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    if environment.len() > ENVIRONMENT_VARIABLES_MAX || bytes > ENVIRONMENT_BYTES_MAX {
        errors.push(format!(
            "environment is too large, at most {ENVIRONMENT_VARIABLES_MAX} variables of {ENVIRONMENT_BYTES_MAX} bytes in all"
        ));
    }
    if environment
        .iter()
        .any(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0'))
    {
        errors.push(
            "invalid environment: names must not be empty or contain =, nothing may contain NUL"
                .to_owned(),
        );
    }
}

impl Orchestrator {
    async fn create(&self, draft: Draft) -> Result<Arc<SpriteRecord>, Refusal> {
        let _reserved = Reserved::new(self, &draft.name)?;
        let empty = self.empty(draft.wait_for_capacity).await?;
        self.settle(draft, empty).await
    }

    /// Makes an empty machine the sprite that is asked for.
    pub(super) async fn settle(
        &self,
        draft: Draft,
        empty: Empty,
    ) -> Result<Arc<SpriteRecord>, Refusal> {
        let name = draft.name.clone();
        if let Err(failure) = self.worker.claim(&empty) {
            self.worker.discard(empty).await;
            return Err(Refusal::unavailable(&failure));
        }
        let now = Timestamp::now();
        let disk = empty.disk();
        let record = SpriteRecord {
            id: SpriteId::now(),
            name: draft.name,
            volume: disk.volume,
            ancestors: disk.ancestors.clone(),
            image: disk.image.clone(),
            url_settings: draft.url_settings,
            labels: draft.labels,
            environment: draft.environment,
            idle_timeout_seconds: draft.idle_timeout_seconds,
            durability: draft.durability,
            policies: draft.policies,
            created_at: now,
            updated_at: now,
            last_running_at: Some(now),
            last_warming_at: None,
            destroyed_at: None,
        };
        let identity = Self::identity(&self.account, &self.authority, &record);
        let (created, identified) =
            tokio::join!(self.account.create(record), empty.identify(&identity));
        match (created, identified) {
            (Ok(record), Ok(())) => {
                info!(sprite = %record.name, volume = %record.volume, "sprite created");
                self.worker.adopt(record.id, empty);
                // A change may have come since, and found nobody to tell.
                if self.account.sprite(&record.name).is_none_or(|now| *now != *record) {
                    self.worker.identify(record.id, self.who(&record)).await;
                }
                Ok(record)
            }
            (Ok(record), Err(failure)) => {
                error!(sprite = %name, error = &failure as &dyn std::error::Error, "a new sprite's machine does not answer");
                self.account.destroy(&name, record.id).await?;
                self.account.forget(record.id).await?;
                self.worker.discard(empty).await;
                Err(failure.into())
            }
            (Err(failure), _) => {
                self.worker.discard(empty).await;
                Err(failure.into())
            }
        }
    }

    /// A machine for the new sprite, after some waiting if there is no room and the caller is ready to wait.
    async fn empty(&self, wait: bool) -> Result<Empty, Refusal> {
        let mut changes = self.worker.changes();
        let deadline = tokio::time::Instant::now() + CAPACITY_WAIT_MAX;
        loop {
            let refusal = match self.worker.empty().await {
                Ok(empty) => return Ok(empty),
                Err(error) => Refusal::from(&error),
            };
            if !wait || refusal.status() != StatusCode::TOO_MANY_REQUESTS {
                return Err(refusal);
            }
            if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return Err(refusal);
            }
        }
    }
}

/// A name that is being created: nobody else creates it meanwhile, and no second machine is spent on it.
pub(super) struct Reserved<'a> {
    orchestrator: &'a Orchestrator,
    name: SpriteName,
}

impl<'a> Reserved<'a> {
    pub(super) fn new(orchestrator: &'a Orchestrator, name: &SpriteName) -> Result<Self, Refusal> {
        let mut creating = orchestrator.creating.lock().expect("no panic while held");
        if orchestrator.account.sprite(name).is_some() || !creating.insert(name.clone()) {
            return Err(AccountError::Taken(name.clone()).into());
        }
        Ok(Self { orchestrator, name: name.clone() })
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.orchestrator.creating.lock().expect("no panic while held").remove(&self.name);
    }
}
