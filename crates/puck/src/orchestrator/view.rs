//! A sprite as the API shows it: the record, and the state that the worker knows.

use super::Orchestrator;
use crate::account::SpriteRecord;
use api::sprite::{OrgCounts, Sprite, Status};
use runtime::MACHINES_MAX;

/// How the sprites of this server are kept apart.
const ISOLATION: &str = "namespaces";

/// One sprite.
pub(super) fn sprite(orchestrator: &Orchestrator, record: &SpriteRecord) -> Sprite {
    Sprite {
        id: record.id.to_string(),
        name: record.name.to_string(),
        organization: orchestrator.account.org().to_string(),
        status: orchestrator.worker.status(record.id),
        url: orchestrator.url(&record.name),
        url_settings: record.url_settings,
        version: Some(api::SPRITE_VERSION.to_owned()),
        environment_version: Some(api::SPRITE_VERSION.to_owned()),
        labels: record.labels.clone(),
        environment: record.environment.clone(),
        idle_timeout_seconds: record.idle_timeout_seconds,
        durability: record.durability,
        disk_url: Some(format!("{}#{}", orchestrator.bucket, record.name)),
        isolation: ISOLATION.to_owned(),
        created_at: record.created_at,
        updated_at: record.updated_at,
        last_running_at: record.last_running_at,
        last_warming_at: record.last_warming_at,
        destroyed_at: record.destroyed_at,
    }
}

/// How many sprites are in each state.
pub(super) fn counts(orchestrator: &Orchestrator) -> OrgCounts {
    let mut counts = OrgCounts {
        name: orchestrator.account.org().to_string(),
        running_limit: MACHINES_MAX.into(),
        ..OrgCounts::default()
    };
    for record in orchestrator.account.contents().sprites.values() {
        match orchestrator.worker.status(record.id) {
            Status::Cold => counts.cold += 1,
            Status::Warm => counts.warm += 1,
            Status::Running => counts.running += 1,
        }
    }
    counts
}
