//! `GET /metrics`: what a monitoring system scrapes, in the text format of Prometheus, behind the same token as the rest.
//!
//! Nothing is counted here. Each scrape asks the sprites that are awake, all at once and not for long; one that sleeps is
//! not woken, and one that does not answer is left out.

use super::Orchestrator;
use crate::worker::Agent;
use api::sprite::{SpriteId, Status};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures::future::join_all;
use guest::protocol::VolumeReport;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::{Arc, atomic::AtomicU64};

/// The media type of the format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSprite {
    sprite: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

type Whole = Gauge<i64>;
type Seconds = Gauge<f64, AtomicU64>;

/// Takes one value out of a report.
type Value = fn(&VolumeReport) -> u64;

pub(super) async fn show(State(orchestrator): State<Arc<Orchestrator>>) -> Response {
    let mut registry = Registry::with_prefix("puck");
    sprites(&orchestrator, &mut registry);
    volumes(&orchestrator, &mut registry).await;
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a text does not fail");
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

fn sprites(orchestrator: &Orchestrator, registry: &mut Registry) {
    let family = Family::<InState, Whole>::default();
    registry.register("sprites", "Sprites by state", family.clone());
    let contents = orchestrator.account.contents();
    for state in ["cold", "running", "destroyed"] {
        family.get_or_create(&InState { state }).set(0);
    }
    for record in contents.all() {
        let state = match orchestrator.worker.status(record.id) {
            _ if record.destroyed_at.is_some() => "destroyed",
            Status::Running | Status::Warm => "running",
            Status::Cold => "cold",
        };
        family.get_or_create(&InState { state }).inc();
    }
    let pool = Whole::default();
    pool.set(i64::try_from(orchestrator.worker.pool_size()).unwrap_or(i64::MAX));
    registry.register("pool_machines", "Empty machines that wait for the next create", pool);
}

async fn volumes(orchestrator: &Orchestrator, registry: &mut Registry) {
    let asked = orchestrator.worker.agents().into_iter().map(report);
    let reports: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
    let contents = orchestrator.account.contents();
    let lag_seconds = Family::<OfSprite, Seconds>::default();
    registry.register(
        "volume_lag_seconds",
        "The age of the oldest write that the bucket does not have",
        lag_seconds.clone(),
    );
    let whole: [(&str, &str, Value); 6] = [
        ("volume_lag_bytes", "Bytes that the bucket does not have", |report| report.lag_bytes),
        (
            "volume_blocked_milliseconds",
            "Time in which writes waited for the bucket, since the wake",
            |report| report.blocked_ms,
        ),
        ("volume_puts", "Segments put into the bucket since the wake", |report| report.puts),
        ("volume_put_bytes", "Bytes of these", |report| report.put_bytes),
        ("volume_gets", "Reads of segments since the wake", |report| report.gets),
        ("volume_get_bytes", "Bytes of these", |report| report.get_bytes),
    ];
    let families = whole.map(|(name, help, value)| {
        let family = Family::<OfSprite, Whole>::default();
        registry.register(name, help, family.clone());
        (family, value)
    });
    for (id, report) in reports {
        let Some(record) = contents.sprites.values().find(|record| record.id == id) else {
            continue;
        };
        let label = OfSprite { sprite: record.name.to_string() };
        lag_seconds.get_or_create(&label).set(report.lag_seconds);
        for (family, value) in &families {
            family.get_or_create(&label).set(i64::try_from(value(&report)).unwrap_or(i64::MAX));
        }
    }
}

async fn report((id, agent): (SpriteId, Agent)) -> Option<(SpriteId, VolumeReport)> {
    agent.volume_report().await.map(|report| (id, report))
}
