//! `GET /v1/sprites/{name}/export` and `POST /v1/sprites/{name}/import`: a sprite as one file.
//!
//! Neither needs the sprite's own agent. One that is awake keeps a checkpoint first, so that the filesystem in the archive is
//! whole; one that does not answer is told as the bucket has it.

use super::{
    Orchestrator, Refusal,
    create::{Draft, Reserved},
    disk, view,
};
use crate::{
    account::SpriteRecord,
    archive::{Manifest, Origin},
    worker::PortableError,
};
use api::{name::SpriteName, query::Query};
use axum::{
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Json, Response},
};
use futures::StreamExt;
use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncRead,
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
};
use tokio_util::{
    io::{StreamReader, SyncIoBridge},
    sync::CancellationToken,
};
use tracing::{info, warn};

/// What is written is passed on in parts of this length.
const PART_BYTES: usize = 256 << 10;

/// So many parts wait for a client that reads slowly.
const PARTS_WAITING_MAX: usize = 8;

/// The most archives that are written and read at once: each holds a thread and about 20 MB.
pub(super) const TRANSFERS_MAX: usize = 8;

/// How long a client may neither send nor take anything.
const STALL_MAX: Duration = Duration::from_secs(60);

/// How long the rest of a refused archive is read.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn export(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let record = orchestrator.find(&uri)?;
    let permit = orchestrator.transfer()?;
    let live = orchestrator.keep(&record).await;
    let departing = orchestrator.worker.export(&disk(&record), live).await?;
    let manifest = Manifest::new(&record, departing.contents().clone());
    let key = orchestrator.account.archive_key().clone();
    let (parts, mut waiting) = mpsc::channel(PARTS_WAITING_MAX);
    let runtime = Handle::current();
    let stop = orchestrator.stop.clone();
    let (whole, ended) = oneshot::channel();
    orchestrator.tasks.spawn_blocking(move || {
        let _permit = permit;
        let part = Vec::with_capacity(PART_BYTES);
        let out = Parts { parts, part, runtime: runtime.clone(), stop };
        match departing.write(&runtime, out, Some(key), &manifest) {
            // The client may have gone with the last part.
            Ok(()) => drop(whole.send(())),
            Err(error) => {
                let failure = &error as &dyn std::error::Error;
                warn!(sprite = manifest.name, error = failure, "an export ends early");
            }
        }
    });
    let parts = futures::stream::poll_fn(move |context| {
        waiting.poll_recv(context).map(|part| part.map(Ok))
    });
    // The client must not take what it has for the whole, whatever ended the writing.
    let end = futures::stream::once(ended).filter_map(|ended| {
        std::future::ready(ended.err().map(|_| Err(io::Error::other("the export failed"))))
    });
    let body = parts.chain(end);
    let file = format!("attachment; filename=\"{}.tar\"", record.name);
    let headers =
        [(header::CONTENT_TYPE, "application/x-tar"), (header::CONTENT_DISPOSITION, &file)];
    Ok((headers, Body::from_stream(body)).into_response())
}

pub(super) async fn import(
    State(orchestrator): State<Arc<Orchestrator>>,
    RawQuery(query): RawQuery,
    uri: Uri,
    body: Body,
) -> Result<Response, Refusal> {
    // Before anything can be refused: see there.
    let parts = orchestrator.parts(body);
    let query = Query::parse(query.as_deref().unwrap_or_default())
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    // The caller vouches for what another account wrote.
    let trust = query.flag("trust");
    let name = super::name(&uri).ok_or_else(Refusal::no_sprite)?;
    // A caller that goes away must not leave half a sprite.
    let work = orchestrator.clone();
    let imported =
        orchestrator.tasks.spawn(async move { work.import(name, trust, parts).await }).await;
    let record = imported.map_err(|error| Refusal::unavailable(&error))??;
    Ok((StatusCode::CREATED, Json(view::sprite(&orchestrator, &record))).into_response())
}

impl Orchestrator {
    /// Room for one more archive.
    fn transfer(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let permit = self.transfers.clone().try_acquire_owned();
        permit.map_err(|_full| Refusal::transfers_full(TRANSFERS_MAX))
    }

    /// Keeps the disk of a sprite that is awake as a checkpoint. `None`: what the bucket has is all that can be told.
    async fn keep(&self, record: &SpriteRecord) -> Option<String> {
        let agent = self.worker.agent(record.id)?;
        let kept = agent.keep().await;
        if kept.is_none() {
            warn!(sprite = %record.name, "the guest does not keep a checkpoint; the export is what the bucket has");
        }
        kept.map(|kept| kept.checkpoint)
    }

    async fn import(
        self: Arc<Self>,
        name: SpriteName,
        trust: bool,
        parts: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<Arc<SpriteRecord>, Refusal> {
        let _permit = self.transfer()?;
        let _reserved = Reserved::new(&self, &name)?;
        info!(sprite = %name, trust, "an import begins");
        let input = SyncIoBridge::new(parts);
        let approver = self.clone();
        let approve = move |manifest: &Manifest, origin| {
            if origin == Origin::Elsewhere && !trust {
                return Err(Refusal::new(
                    StatusCode::FORBIDDEN,
                    "this account did not write the archive, and a made-up disk can attack the host that mounts it: \
                     import it with --trust if you trust whoever wrote it",
                ));
            }
            Draft::of_archive(&approver, name, manifest)
        };
        let key = self.account.archive_key().clone();
        let (draft, empty) = self.worker.import(input, key, approve).await?;
        let record = self.settle(draft, empty).await?;
        info!(sprite = %record.name, trust, "sprite imported");
        Ok(record)
    }
}

impl Orchestrator {
    /// The parts of a body as they come. When nobody wants them any more, the rest is read for a while and dropped: a client that is
    /// cut off while it sends may not see the answer that says why.
    fn parts(&self, body: Body) -> impl AsyncRead + Send + Unpin + 'static + use<> {
        let (parts, mut waiting) = mpsc::channel(PARTS_WAITING_MAX);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let mut coming = body.into_data_stream();
            loop {
                let part = tokio::select! {
                    () = stop.cancelled() => Err(broken("the server stops")),
                    part = tokio::time::timeout(STALL_MAX, coming.next()) => match part {
                        Ok(None) => return,
                        Ok(Some(part)) => part.map_err(broken),
                        Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    },
                };
                let last = part.is_err();
                if parts.send(part).await.is_err() {
                    let rest = coming.take_until(stop.cancelled());
                    let rest = rest.take_while(|part| std::future::ready(part.is_ok()));
                    let dropped = rest.for_each(|_| std::future::ready(()));
                    // Out of patience: the connection is closed.
                    let _ = tokio::time::timeout(DROP_TIMEOUT, dropped).await;
                    return;
                }
                if last {
                    return;
                }
            }
        });
        StreamReader::new(futures::stream::poll_fn(move |task| waiting.poll_recv(task)))
    }
}

/// An archive that does not come to its end, which says nothing of the archive itself.
fn broken(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}

/// Passes what is written on to a body, until its client takes nothing for too long or the server stops.
struct Parts {
    parts: mpsc::Sender<Bytes>,
    part: Vec<u8>,
    runtime: Handle,
    stop: CancellationToken,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        let sending = tokio::time::timeout(STALL_MAX, self.parts.send(part.into()));
        self.runtime.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => Err(broken("the server stops")),
                sent = sending => sent?.map_err(|_gone| io::ErrorKind::BrokenPipe.into()),
            }
        })
    }
}

impl From<PortableError> for Refusal {
    fn from(error: PortableError) -> Self {
        use crate::{archive::ArchiveError, worker::BootError};
        use volume::ErrorKind;
        let status = match &error {
            PortableError::Archive(ArchiveError::Io(_, error))
                if error.kind() == io::ErrorKind::TimedOut =>
            {
                StatusCode::REQUEST_TIMEOUT
            }
            PortableError::Archive(ArchiveError::Io(..)) => StatusCode::SERVICE_UNAVAILABLE,
            PortableError::Archive(_) => StatusCode::BAD_REQUEST,
            PortableError::Volume { action: "make", source }
                if matches!(source.kind(), ErrorKind::Invalid | ErrorKind::Corrupt) =>
            {
                StatusCode::BAD_REQUEST
            }
            PortableError::NoImage(_) | PortableError::Nothing => StatusCode::CONFLICT,
            PortableError::Boot(BootError::Failed(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            PortableError::Boot(boot) => return Self::from(boot),
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::explained(status, &error)
    }
}
