//! The life of one process, in one task: read its output, feed its input, wait for its end.
//!
//! States: running; then, if nobody has watched for the agreed time, asked to end, and after a grace killed; then ended. After
//! the end the pipes are read until they are empty: everything that the process itself wrote was in them by then. A
//! child that keeps a pipe open delays the end by at most [`DRAIN`].

use super::{
    input::Feeder,
    output::{Output, Sources},
};
use crate::api::{activity::Activity, sandbox::Process};
use rustix::process::Signal;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// The longest wait for more output of children that outlive the process.
const DRAIN: Duration = Duration::from_millis(500);

/// Output that has been silent for this long after the process's end is over.
const DRAIN_QUIET: Duration = Duration::from_millis(20);

/// How long a process that nobody watches any more may take to end when asked.
const GRACE: Duration = Duration::from_secs(5);

/// Everything that belongs to one running process.
pub(super) struct Life {
    pub(super) process: Arc<dyn Process>,
    pub(super) sources: Sources,
    pub(super) feeder: Option<Feeder>,
    pub(super) output: Arc<Output>,
    /// How long the process lives on without a client; `None` means for ever.
    pub(super) run_after_disconnect: Option<Duration>,
    /// What a process that nobody watches any more is told first.
    pub(super) farewell: Signal,
    pub(super) activity: Arc<Activity>,
}

impl Life {
    /// Lives until the process has ended and its output has been read: the exit code.
    pub(super) async fn run(self) -> u8 {
        let Self { process, mut sources, feeder, output, run_after_disconnect, farewell, activity } =
            self;
        let feeding = feeder.map(|feeder| tokio::spawn(feeder.run()));
        let (tell_end, mut ended) = watch::channel(());
        let attend = async {
            tokio::select! {
                code = process.wait() => {
                    tell_end.send_replace(());
                    code
                }
                never = dismiss(process.as_ref(), &output, run_after_disconnect, farewell) => match never {},
            }
        };
        let read = async {
            pump(&mut sources, &output, &activity, &mut ended).await;
            drain(&mut sources, &output).await;
        };
        let (code, ()) = tokio::join!(attend, read);
        if let Some(feeding) = feeding {
            feeding.abort();
        }
        activity.touch();
        code
    }
}

/// Ends the process when nobody has watched it for the agreed time: with a polite signal, and after a grace, if still
/// nobody watches, with `SIGKILL`, again and again until it is gone.
async fn dismiss(
    process: &dyn Process,
    output: &Output,
    run_after_disconnect: Option<Duration>,
    farewell: Signal,
) -> std::convert::Infallible {
    let Some(mut limit) = run_after_disconnect else { return std::future::pending().await };
    let mut signal = farewell;
    loop {
        output.unwatched_for(limit).await;
        if let Err(error) = process.signal_group(signal.as_raw()).await {
            tracing::debug!(%error, "end an unwatched process");
        }
        (limit, signal) = (GRACE, Signal::KILL);
    }
}

/// Moves output into the ring until the process has ended.
async fn pump(
    sources: &mut Sources,
    output: &Output,
    activity: &Activity,
    ended: &mut watch::Receiver<()>,
) {
    loop {
        // The end is only looked for between frames, so that none is lost while it waits for room.
        let frame = tokio::select! {
            biased;
            _ = ended.changed() => return,
            frame = sources.next() => frame,
        };
        match frame {
            Some(frame) => {
                activity.touch();
                output.append(frame).await;
            }
            None => {
                if let Err(error) = ended.changed().await {
                    tracing::error!(%error, "a session's end was never told");
                }
                return;
            }
        }
    }
}

/// Reads what is left after the process's end.
async fn drain(sources: &mut Sources, output: &Output) {
    let mut owed = sources.pending();
    let deadline = Instant::now() + DRAIN;
    while owed > 0 || Instant::now() < deadline {
        match tokio::time::timeout(DRAIN_QUIET, sources.next()).await {
            Ok(Some(frame)) => {
                // Without the stream id.
                owed = owed.saturating_sub(frame.len().saturating_sub(1) as u64);
                output.append(frame).await;
            }
            Ok(None) | Err(_) => return,
        }
    }
}
