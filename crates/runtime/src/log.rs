//! The log of a machine: what its agent writes to standard error becomes the server's, with a limit.

use std::time::Duration;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::ChildStderr,
    time::Instant,
};

/// The longest line. A longer one is cut into lines.
const LINE_BYTES_MAX: u64 = 4096;

/// The most lines of one machine in each [`WINDOW`]; what is above is counted and dropped.
const LINES_MAX: u32 = 200;

/// See [`LINES_MAX`].
const WINDOW: Duration = Duration::from_secs(10);

/// Passes lines on until the machine has ended.
pub(crate) async fn relay(machine: String, stderr: ChildStderr) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    let mut window = Window::new(Instant::now());
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            // The end, or an error after which nothing more can come.
            Ok(0) | Err(_) => return,
        }
        let (show, dropped) = window.admit(Instant::now());
        if dropped > 0 {
            tracing::warn!(%machine, dropped, "lines of the machine's log were dropped");
        }
        if show {
            tracing::info!(%machine, "{}", String::from_utf8_lossy(&line).trim_end());
        }
    }
}

struct Window {
    start: Instant,
    shown: u32,
    dropped: u32,
}

impl Window {
    fn new(start: Instant) -> Self {
        Self { start, shown: 0, dropped: 0 }
    }

    /// Whether a line is shown, and how many were dropped in the window that ended before it.
    fn admit(&mut self, now: Instant) -> (bool, u32) {
        let mut dropped = 0;
        if now.duration_since(self.start) >= WINDOW {
            dropped = self.dropped;
            *self = Self::new(now);
        }
        if self.shown < LINES_MAX {
            self.shown += 1;
            return (true, dropped);
        }
        self.dropped = self.dropped.saturating_add(1);
        (false, dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::{Instant, LINES_MAX, WINDOW, Window};

    #[test]
    fn lines_above_the_limit_are_counted() {
        let start = Instant::now();
        let mut window = Window::new(start);
        for _ in 0..LINES_MAX {
            assert_eq!(window.admit(start), (true, 0));
        }
        assert_eq!(window.admit(start), (false, 0));
        assert_eq!(window.admit(start), (false, 0));
        assert_eq!(window.admit(start + WINDOW), (true, 2));
        assert_eq!(window.admit(start + WINDOW), (true, 0));
    }
}
