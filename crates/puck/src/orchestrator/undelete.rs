//! `POST /v1/sprites/{name}/undelete`: takes back the destruction of the sprite that last had the name.

use super::{Orchestrator, Refusal, create::read, refusal, view};
use api::{name::SpriteName, sprite::Undelete};
use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Json, Response},
};
use std::sync::Arc;
use tracing::info;

pub(super) async fn undelete(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
    body: Body,
) -> Result<Response, Refusal> {
    let asked: Undelete = refusal::parse(&read(body).await?)?;
    let name = super::name(&uri).ok_or_else(nothing)?;
    let contents = orchestrator.account.contents();
    let record = contents
        .destroyed
        .values()
        .filter(|record| record.name == name)
        .max_by_key(|record| record.destroyed_at)
        .ok_or_else(nothing)?;
    let name = match asked.name {
        Some(name) => name.parse::<SpriteName>()?,
        None => name,
    };
    let record = orchestrator.account.undelete(record.id, &name).await?;
    info!(sprite = %record.name, volume = %record.volume, "sprite undeleted");
    Ok(Json(view::sprite(&orchestrator, &record)).into_response())
}

fn nothing() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "no sprite of this name was destroyed, or it is gone for good",
    )
}
