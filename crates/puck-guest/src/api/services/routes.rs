//! The routes.

use super::{
    STOP_TIMEOUT,
    manager::{Events, not_running, unknown},
    service::Service,
};
use crate::api::{
    Agent,
    answer::Refusal,
    exec::signal,
    lines::{Lines, ndjson},
};
use api::{
    duration,
    query::Query,
    service::{
        DEFINITION_BYTES_MAX, Service as Shown, ServiceDefinition, ServiceEvent, ServiceHappening,
        ServiceName, SignalService,
    },
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, RawQuery, State},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use std::{sync::Arc, time::Duration};
use tokio::{sync::broadcast, time::Instant};

/// How long the events of a start are told, if the client does not say.
const WATCH: Duration = Duration::from_secs(5);

/// The lines of a log that are told, if the client does not say.
const LINES: usize = 100;

pub(in crate::api) fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/services", get(list))
        .route("/services/signal", post(signal).get(show).put(define).delete(delete))
        .route("/services/{service}", get(show).put(define).delete(delete))
        .route("/services/{service}/start", post(start))
        .route("/services/{service}/restart", post(restart))
        .route("/services/{service}/stop", post(stop))
        .route("/services/{service}/logs", get(logs))
        .layer(DefaultBodyLimit::max(DEFINITION_BYTES_MAX))
}

async fn list(State(agent): State<Arc<Agent>>) -> Result<Json<Vec<Shown>>, Refusal> {
    Ok(Json(agent.services.set().await?.shown()))
}

/// The name is the last step of the path or the one before, so a service may be called `signal`.
fn name(path: &[(String, String)]) -> Result<ServiceName, Refusal> {
    let name = path.iter().find(|(key, _)| key == "service").map_or("signal", |(_, name)| name);
    name.parse().map_err(|error| Refusal::invalid(&error))
}

type PathParameters = Path<Vec<(String, String)>>;

async fn show(
    State(agent): State<Arc<Agent>>,
    Path(path): PathParameters,
) -> Result<Json<Shown>, Refusal> {
    let name = name(&path)?;
    let service = agent.services.set().await?.find(&name).ok_or_else(|| unknown(&name))?;
    Ok(Json(service.shown()))
}

async fn define(
    State(agent): State<Arc<Agent>>,
    Path(path): PathParameters,
    RawQuery(raw): RawQuery,
    body: Bytes,
) -> Result<Response, Refusal> {
    let (name, watch) = (name(&path)?, parameter(raw.as_deref(), "duration", WATCH)?);
    let definition: ServiceDefinition = parse(&body)?;
    let (service, told) = agent.services.define(&name, definition).await?;
    Ok(follow(&agent, service, told, watch))
}

async fn start(
    state: State<Arc<Agent>>,
    path: PathParameters,
    query: RawQuery,
) -> Result<Response, Refusal> {
    run(state, path, query, false).await
}

async fn restart(
    state: State<Arc<Agent>>,
    path: PathParameters,
    query: RawQuery,
) -> Result<Response, Refusal> {
    run(state, path, query, true).await
}

async fn run(
    State(agent): State<Arc<Agent>>,
    Path(path): PathParameters,
    RawQuery(raw): RawQuery,
    anew: bool,
) -> Result<Response, Refusal> {
    let (name, watch) = (name(&path)?, parameter(raw.as_deref(), "duration", WATCH)?);
    let (service, told) = agent.services.run(&name, anew).await?;
    Ok(follow(&agent, service, told, watch))
}

async fn stop(
    State(agent): State<Arc<Agent>>,
    Path(path): PathParameters,
    RawQuery(raw): RawQuery,
) -> Result<Response, Refusal> {
    let (name, grace) = (name(&path)?, parameter(raw.as_deref(), "timeout", STOP_TIMEOUT)?);
    let (service, mut told) = agent.services.stop(&name, grace).await?;
    let hold = agent.activity.hold(format!("stop of service {name}"));
    let (lines, response) = ndjson();
    tokio::spawn(async move {
        let _hold = hold;
        let ended = service.stopped();
        let mut ended = std::pin::pin!(ended);
        loop {
            tokio::select! {
                biased;
                event = told.recv() => tell(&lines, event).await,
                () = &mut ended => break,
            }
        }
        // What was told at the very end.
        while let Ok(event) = told.try_recv() {
            tell(&lines, Ok(event)).await;
        }
        complete(&lines, &service).await;
    });
    Ok(response)
}

async fn logs(
    State(agent): State<Arc<Agent>>,
    Path(path): PathParameters,
    RawQuery(raw): RawQuery,
) -> Result<Response, Refusal> {
    let (name, watch) = (name(&path)?, parameter(raw.as_deref(), "duration", Duration::ZERO)?);
    let query = Query::parse(raw.as_deref().unwrap_or_default())
        .map_err(|error| Refusal::invalid(&error))?;
    let count = match query.first("lines").filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map_err(|_not_a_number| {
            Refusal::new(StatusCode::BAD_REQUEST, "lines must be a number")
        })?,
        None => LINES,
    };
    let service = agent.services.set().await?.find(&name).ok_or_else(|| unknown(&name))?;
    let told = service.voice.events.subscribe();
    let log = Arc::clone(&service.voice.log);
    let last = tokio::task::spawn_blocking(move || log.last(count)).await.unwrap_or_default();
    let hold = agent.activity.hold(format!("log of service {name}"));
    let (lines, response) = ndjson();
    tokio::spawn(async move {
        let _hold = hold;
        for event in last {
            if !lines.is_read() {
                return;
            }
            lines.write(&event).await;
        }
        watch_events(&lines, told, watch).await;
        complete(&lines, &service).await;
    });
    Ok(response)
}

async fn signal(State(agent): State<Arc<Agent>>, body: Bytes) -> Result<StatusCode, Refusal> {
    let SignalService { name, signal } = parse(&body)?;
    let name: ServiceName = name.parse().map_err(|error| Refusal::invalid(&error))?;
    let signal = signal::parse(&signal).map_err(|error| Refusal::invalid(&error))?;
    let service = agent.services.set().await?.find(&name).ok_or_else(|| unknown(&name))?;
    match service.signal(signal.number).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(not_running(&name)),
        Err(error) => Err(Refusal::invalid(&error)),
    }
}

async fn delete(
    State(agent): State<Arc<Agent>>,
    Path(path): PathParameters,
) -> Result<StatusCode, Refusal> {
    agent.services.delete(&name(&path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("invalid request body: {error}"))
    })
}

fn parameter(query: Option<&str>, name: &str, default: Duration) -> Result<Duration, Refusal> {
    let query =
        Query::parse(query.unwrap_or_default()).map_err(|error| Refusal::invalid(&error))?;
    match query.first(name).filter(|text| !text.is_empty()) {
        Some(text) => duration::parse(text).map_err(|error| Refusal::invalid(&error)),
        None => Ok(default),
    }
}

/// The events of a service that has just been asked to run; the end at once if it did already.
fn follow(agent: &Agent, service: Arc<Service>, told: Option<Events>, watch: Duration) -> Response {
    let hold = agent.activity.hold(format!("start of service {}", service.name));
    let (lines, response) = ndjson();
    tokio::spawn(async move {
        let _hold = hold;
        if let Some(told) = told {
            watch_events(&lines, told, watch).await;
        }
        complete(&lines, &service).await;
    });
    response
}

/// Tells events for a while, or until nobody reads.
async fn watch_events(lines: &Lines, mut told: Events, watch: Duration) {
    let end = Instant::now() + watch;
    while lines.is_read() {
        match tokio::time::timeout_at(end, told.recv()).await {
            Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => return,
            Ok(event) => tell(lines, event).await,
        }
    }
}

async fn tell(lines: &Lines, event: Result<ServiceEvent, broadcast::error::RecvError>) {
    match event {
        Ok(event) => lines.write(&event).await,
        Err(broadcast::error::RecvError::Lagged(count)) => {
            let data = format!(
                "{count} events were dropped, because they came faster than they were read"
            );
            lines.write(&event_now(ServiceHappening::Error { data })).await;
        }
        Err(broadcast::error::RecvError::Closed) => {}
    }
}

async fn complete(lines: &Lines, service: &Service) {
    let log_files = service.voice.log.files();
    lines.write(&event_now(ServiceHappening::Complete { log_files })).await;
}

fn event_now(what: ServiceHappening) -> ServiceEvent {
    ServiceEvent { what, timestamp: Timestamp::now().as_millisecond() }
}
