//! `POST /v1/sprites/{name}/fork`: a new sprite whose disk begins as another's, now or at a checkpoint.
//!
//! The source first notes in its own log that it keeps what the fork begins with; then the fork is made as every new sprite
//! is, from another volume than the blank one. Nothing is copied but the map.

use super::{
    Orchestrator, Refusal,
    create::{Draft, Reserved, read},
    disk, refusal, view,
};
use crate::{
    account::SpriteRecord,
    worker::{AgentError, Disk},
};
use api::{name::SpriteName, sprite::ForkSprite};
use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Json, Response},
};
use std::sync::Arc;
use volume::VolumeId;

pub(super) async fn fork(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
    body: Body,
) -> Result<Response, Refusal> {
    let source = orchestrator.find(&uri)?;
    let asked: ForkSprite = refusal::parse(&read(body).await?)?;
    let name: SpriteName = asked.name.as_deref().unwrap_or_default().parse()?;
    // A caller that goes away must not leave half a sprite.
    let work = orchestrator.clone();
    let forked = orchestrator
        .tasks
        .spawn(async move { work.fork(&source, name, asked.checkpoint.as_deref()).await })
        .await;
    let record = forked.map_err(|error| Refusal::unavailable(&error))??;
    Ok((StatusCode::CREATED, Json(view::sprite(&orchestrator, &record))).into_response())
}

impl Orchestrator {
    async fn fork(
        &self,
        source: &Arc<SpriteRecord>,
        name: SpriteName,
        checkpoint: Option<&str>,
    ) -> Result<Arc<SpriteRecord>, Refusal> {
        let _reserved = Reserved::new(self, &name)?;
        let volume = VolumeId::now();
        let lease = self.lease(source).await?;
        lease.agent().pin(volume, checkpoint).await.map_err(|error| {
            match (&error, checkpoint) {
                (AgentError::Refused { status: StatusCode::NOT_FOUND, .. }, Some(id)) => {
                    Refusal::new(StatusCode::NOT_FOUND, format!("checkpoint not found: {id}"))
                }
                _ => error.into(),
            }
        })?;
        let ancestors = std::iter::once(source.volume).chain(source.ancestors.clone()).collect();
        let disk = Disk { volume, ancestors, ..disk(source) };
        match self.worker.boot_fork(disk).await {
            Ok(empty) => self.settle(Draft::like(source, name), empty).await,
            Err(failure) => {
                lease.agent().unpin(volume).await?;
                Err(Refusal::from(&failure))
            }
        }
    }
}
