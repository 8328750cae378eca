//! The watch: an endless stream of lines, one for each sprite that changes, and heartbeats so that nothing on the way cuts it.

use super::{Orchestrator, view};
use crate::account::SpriteRecord;
use api::sprite::{Status, WatchEvent};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch::Receiver;

/// What a client must accept to get a watch.
pub(super) const CONTENT_TYPE: &str = "application/x-ndjson";

/// The longest silence.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The stream of all sprites whose names start with `prefix`: each once, then again whenever it changes.
pub(super) fn watch(orchestrator: Arc<Orchestrator>, prefix: String) -> Response {
    let watch = Watch {
        accounts: orchestrator.account.watch(),
        worker: orchestrator.worker.changes(),
        orchestrator,
        prefix,
        seen: BTreeMap::new(),
        lines: VecDeque::new(),
        first: true,
    };
    let lines = futures::stream::unfold(watch, |mut watch| async move {
        watch.next().await.map(|line| (Ok::<_, Infallible>(line), watch))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

struct Watch {
    orchestrator: Arc<Orchestrator>,
    accounts: Receiver<Arc<crate::account::Contents>>,
    worker: Receiver<()>,
    prefix: String,
    /// What was last said of each sprite.
    seen: BTreeMap<String, (Status, Arc<SpriteRecord>)>,
    lines: VecDeque<WatchEvent>,
    first: bool,
}

impl Watch {
    /// The next line, or the end when the server stops.
    async fn next(&mut self) -> Option<Bytes> {
        while self.lines.is_empty() {
            if std::mem::take(&mut self.first) {
                self.look();
                continue;
            }
            let stop = self.orchestrator.stop.clone();
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = self.accounts.changed() => changed.ok()?,
                changed = self.worker.changed() => changed.ok()?,
                () = tokio::time::sleep(HEARTBEAT) => {
                    let heartbeat = self.event(None, Status::Cold);
                    self.lines.push_back(heartbeat);
                    continue;
                }
            }
            self.look();
        }
        let mut line =
            serde_json::to_vec(&self.lines.pop_front()?).expect("an event is always JSON");
        line.push(b'\n');
        Some(line.into())
    }

    /// Queues a line for each sprite of which there is something new.
    fn look(&mut self) {
        let contents = self.accounts.borrow_and_update().clone();
        self.worker.borrow_and_update();
        let mut seen = BTreeMap::new();
        for record in contents
            .sprites
            .values()
            .filter(|record| record.name.as_str().starts_with(&self.prefix))
        {
            let status = self.orchestrator.worker.status(record.id);
            let name = record.name.to_string();
            if self
                .seen
                .get(&name)
                .is_none_or(|(before, known)| *before != status || known != record)
            {
                let event = self.event(Some(record), status);
                self.lines.push_back(event);
            }
            seen.insert(name, (status, record.clone()));
        }
        self.seen = seen;
    }

    fn event(&self, record: Option<&SpriteRecord>, status: Status) -> WatchEvent {
        WatchEvent {
            kind: record.is_none().then(|| "heartbeat".to_owned()),
            name: record.map(|record| record.name.to_string()),
            status: record.map(|_| status),
            last_running_at: record.and_then(|record| record.last_running_at),
            last_warming_at: record.and_then(|record| record.last_warming_at),
            timestamp: Timestamp::now(),
            org: view::counts(&self.orchestrator),
        }
    }
}
