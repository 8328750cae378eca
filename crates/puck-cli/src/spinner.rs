//! A sign of life on standard error for whatever takes longer than a moment.

use indicatif::ProgressBar;
use std::{pin::pin, time::Duration};

/// What takes less than this gets no spinner: it would only flicker.
const PATIENCE: Duration = Duration::from_millis(200);

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Waits for `work`; after [`PATIENCE`] a spinner with `message` turns until it is done. The spinner is drawn only where
/// standard error is a terminal, and leaves nothing behind.
pub(crate) async fn during<T>(message: String, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(TICK);
    let done = work.await;
    spinner.finish_and_clear();
    done
}
