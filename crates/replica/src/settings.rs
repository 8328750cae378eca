//! What a caller may choose about a log. Plain data; the store and the prefix are arguments of `new`.

use std::time::Duration;

/// How a log is written and how long it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long an owner may acknowledge flushes from its local disk after an append began that the bucket took. All writers of
    /// a bucket must have the same. `None` when the bucket has a single server: then it may always.
    pub lease: Option<Duration>,
    /// So far back each instant at which something was shipped can be restored.
    pub rewind_window: Duration,
    /// When the files that only this needs are larger, and larger than the database, the oldest instants become coarser.
    pub rewind_bytes_max: u64,
    /// How much time one file of the levels 1, 2 and 3 covers.
    pub compaction_intervals: [Duration; 3],
    /// After how much time a whole copy of the database is worth writing.
    pub snapshot_interval: Duration,
}

impl Default for Settings {
    /// No lease, 24 hours of rewind or 10 GiB, levels of 30 s, 5 min and 1 h, a snapshot a day.
    fn default() -> Self {
        Self {
            lease: None,
            rewind_window: Duration::from_secs(24 * 60 * 60),
            rewind_bytes_max: 10 << 30,
            compaction_intervals: [30, 5 * 60, 60 * 60].map(Duration::from_secs),
            snapshot_interval: Duration::from_secs(24 * 60 * 60),
        }
    }
}
