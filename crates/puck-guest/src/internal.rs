//! The routes that only the worker may call.

use crate::{
    api::activity::Activity,
    disk::DiskError,
    machine::{Machine, MachineError},
};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post, put},
};
use guest::protocol::{
    ACTIVITY, IDENTITY, Identity, KEEP, Kept, PIN, Pin, SLEEP, VOLUME, VolumeReport,
};
use std::sync::Arc;
use tokio::sync::Notify;
use tracing::error;
use volume::ErrorKind;

/// What the routes work on.
#[derive(Clone)]
pub(crate) struct Internal {
    /// The machine.
    pub(crate) machine: Arc<Machine>,
    /// What keeps it awake.
    pub(crate) activity: Arc<Activity>,
    /// Told once the machine is asleep and the answer may go out.
    pub(crate) asleep: Arc<Notify>,
}

/// The routes.
pub(crate) fn router(internal: Internal) -> Router {
    Router::new()
        .route(IDENTITY, put(assign))
        .route(ACTIVITY, get(activity))
        .route(VOLUME, get(volume))
        .route(SLEEP, post(sleep))
        .route(KEEP, post(keep))
        .route(PIN, put(pin).delete(unpin))
        .with_state(internal)
}

async fn assign(
    State(internal): State<Internal>,
    Json(identity): Json<Identity>,
) -> Result<StatusCode, StatusCode> {
    // In a task of its own: a worker that gives up waiting must not leave policies that are half in force.
    let Internal { machine, activity, .. } = internal;
    match tokio::spawn(async move { machine.assign(identity).await }).await {
        Ok(Ok(())) => {
            activity.touch();
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(Err(error)) => Err(refuse("assign an identity", &error)),
        Err(error) => Err(refuse("assign an identity", &error)),
    }
}

async fn activity(State(internal): State<Internal>) -> Json<guest::protocol::Activity> {
    Json(internal.activity.now())
}

async fn volume(State(internal): State<Internal>) -> Result<Json<VolumeReport>, StatusCode> {
    let volume = internal.machine.volume().await.map_err(|error| refuse("report", &error))?;
    let (lag, counters) = (volume.lag(), volume.counters());
    Ok(Json(VolumeReport {
        lag_bytes: lag.bytes,
        lag_seconds: lag.seconds,
        blocked_ms: counters.blocked_ms,
        puts: counters.traffic.puts,
        put_bytes: counters.traffic.put_bytes,
        gets: counters.traffic.gets,
        get_bytes: counters.traffic.get_bytes,
    }))
}

async fn sleep(State(internal): State<Internal>) -> Result<StatusCode, StatusCode> {
    // The work goes on in a task of its own, so that a worker that gives up waiting does not leave half a sleep.
    let asleep = tokio::spawn(async move {
        let result = internal.machine.sleep().await;
        internal.asleep.notify_one();
        result
    });
    match asleep.await {
        Ok(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Ok(Err(error)) => Err(refuse("sleep", &error)),
        Err(error) => Err(refuse("sleep", &error)),
    }
}

async fn keep(State(internal): State<Internal>) -> Result<Json<Kept>, StatusCode> {
    match internal.machine.checkpoint("before an export", true).await {
        Ok(checkpoint) => Ok(Json(Kept { checkpoint: checkpoint.id })),
        Err(error) => Err(refuse("keep the disk", &error)),
    }
}

async fn pin(
    State(internal): State<Internal>,
    Json(pin): Json<Pin>,
) -> Result<StatusCode, StatusCode> {
    let child = pin.child.parse().map_err(|error| refuse("read a pin", &error))?;
    match internal.machine.pin(child, pin.checkpoint).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(MachineError::Disk(DiskError::Volume { source, .. }))
            if source.kind() == ErrorKind::NotFound =>
        {
            Err(StatusCode::NOT_FOUND)
        }
        Err(error) => Err(refuse("pin", &error)),
    }
}

async fn unpin(
    State(internal): State<Internal>,
    Json(pin): Json<Pin>,
) -> Result<StatusCode, StatusCode> {
    let child = pin.child.parse().map_err(|error| refuse("read a pin", &error))?;
    let volume = internal.machine.volume().await.map_err(|error| refuse("unpin", &error))?;
    volume.unpin(child).await.map_err(|error| refuse("unpin", &error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn refuse(action: &str, error: &(dyn std::error::Error + 'static)) -> StatusCode {
    error!(error, "{action}");
    StatusCode::INTERNAL_SERVER_ERROR
}
