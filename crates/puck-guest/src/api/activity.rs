//! Whether the sprite is in use, and why.
//!
//! A *hold* keeps it awake for as long as it lives: a request in flight, an attached client. A *touch* is a moment of
//! activity: output of a detached session, typed input. A quiet detached session does neither. Time is monotonic.

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The most reasons that are told; there is one per open connection, and a person reads them.
const REASONS_MAX: usize = 20;

/// The record of what keeps the sprite awake.
#[derive(Debug)]
pub(crate) struct Activity {
    state: Mutex<State>,
    released: Notify,
}

#[derive(Debug)]
struct State {
    holds: BTreeMap<u64, Cow<'static, str>>,
    next: u64,
    last: Instant,
}

/// Keeps the sprite awake until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    activity: Arc<Activity>,
    id: u64,
}

impl Activity {
    /// A record in which the last activity was just now.
    pub(crate) fn new() -> Arc<Self> {
        let state = State { holds: BTreeMap::new(), next: 0, last: Instant::now() };
        Arc::new(Self { state: Mutex::new(state), released: Notify::new() })
    }

    /// Something keeps the sprite awake from now on; `reason` is for people.
    pub(crate) fn hold(self: &Arc<Self>, reason: impl Into<Cow<'static, str>>) -> Hold {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.holds.insert(id, reason.into());
        Hold { activity: Arc::clone(self), id }
    }

    /// Something has happened just now.
    pub(crate) fn touch(&self) {
        self.state().last = Instant::now();
    }

    /// The answer for the worker.
    pub(crate) fn now(&self) -> guest::protocol::Activity {
        let state = self.state();
        let idle = if state.holds.is_empty() { state.last.elapsed() } else { Duration::ZERO };
        guest::protocol::Activity {
            idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            awake_because: state
                .holds
                .values()
                .take(REASONS_MAX)
                .map(ToString::to_string)
                .collect(),
        }
    }

    /// Returns once there has been no activity for `timeout`, counted from the call at the earliest.
    pub(crate) async fn idle(&self, timeout: Duration) {
        let called = Instant::now();
        loop {
            let due = {
                let state = self.state();
                state.holds.is_empty().then(|| state.last.max(called) + timeout)
            };
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::time::sleep_until(due).await,
                None => self.released.notified().await,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.holds.remove(&self.id);
        state.last = Instant::now();
        if state.holds.is_empty() {
            self.activity.released.notify_one();
        }
    }
}

/// A body that keeps the sprite awake until it has been sent or given up.
pub(crate) fn held(body: Body, hold: Hold) -> Body {
    Body::new(Held { body, _hold: hold })
}

struct Held {
    body: Body,
    _hold: Hold,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::Activity;
    use std::time::Duration;
    use tokio::time::Instant;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_counted_from_the_last_touch() {
        let activity = Activity::new();
        let start = Instant::now();
        let idle = activity.idle(TIMEOUT);
        let touches = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            activity.touch();
        };
        tokio::join!(idle, touches);
        assert_eq!(start.elapsed().as_secs(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_keeps_it_awake_until_it_is_dropped() {
        let activity = Activity::new();
        let start = Instant::now();
        let hold = activity.hold("session 1");
        assert_eq!(activity.now().awake_because, ["session 1"]);
        let idle = activity.idle(TIMEOUT);
        let release = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(activity.now().idle_ms, 0);
            drop(hold);
        };
        tokio::join!(idle, release);
        assert_eq!(start.elapsed().as_secs(), 3630);
        assert_eq!(activity.now().idle_ms, 30_000);
        assert!(activity.now().awake_because.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_is_told_again_after_each_further_idle_time() {
        let activity = Activity::new();
        let start = Instant::now();
        activity.idle(TIMEOUT).await;
        activity.idle(TIMEOUT).await;
        assert_eq!(start.elapsed().as_secs(), 60);
    }
}
