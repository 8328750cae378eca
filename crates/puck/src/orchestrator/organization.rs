//! `GET /v1/organization`: what a token is for.

use super::{Orchestrator, view};
use api::sprite::Status;
use axum::{extract::State, response::Json};
use serde::Serialize;
use std::sync::Arc;

/// The answer. The name stands twice because clients disagree on where to read it.
#[derive(Serialize)]
pub(super) struct Answer {
    organization: Organization,
    name: String,
    slug: String,
}

#[derive(Serialize)]
struct Organization {
    slug: String,
    sprites_enabled: bool,
    active_sprites: Vec<String>,
    active_sprite_limit: u64,
}

pub(super) async fn show(State(orchestrator): State<Arc<Orchestrator>>) -> Json<Answer> {
    let name = orchestrator.account.org().to_string();
    let active = |status| status == Status::Running;
    let active_sprites = orchestrator
        .account
        .contents()
        .sprites
        .values()
        .filter(|record| active(orchestrator.worker.status(record.id)))
        .map(|record| record.name.to_string())
        .collect();
    let organization = Organization {
        slug: name.clone(),
        sprites_enabled: true,
        active_sprites,
        active_sprite_limit: view::counts(&orchestrator).running_limit,
    };
    Json(Answer { organization, slug: name.clone(), name })
}
