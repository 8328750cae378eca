//! When a log is worth shortening, as a policy without a clock, a bucket or a file.
//!
//! Level 0 has one file per ship. A file of level 1, 2 or 3 holds what the files below it hold together, so that a restore
//! reads a few dozen files however long the history is; one of level 9 is a whole copy and begins the chain anew. They are made
//! from the local database right after a ship, hence always of what is in the log for certain, and cost one request each.
//!
//! A file of one level also ends the time of the levels below, whose next files begin after it.

use crate::{layout::Name, settings::Settings, source::MERGED_LEVELS};
use std::time::Duration;
use tokio::time::Instant;

/// A snapshot is written when a restore would read more files than this.
const FILES_MAX: usize = 500;

/// A snapshot is written when the files since the last one are this many times as large as the database.
const BYTES_RATIO: u64 = 4;

/// Below this a snapshot is not worth its request, however small the database is.
const BYTES_MIN: u64 = 16 << 20;

/// Fewer files are not worth merging.
const MERGED_FILES_MIN: usize = 2;

/// How often the bucket is searched for old files, at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// What is worth doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Write a file of this level, from this number on.
    Merge {
        /// 1, 2 or 3.
        level: u8,
        /// The first number.
        min: u64,
    },
    /// Write a whole copy.
    Snapshot,
}

/// What a restore would read, and since when.
#[derive(Debug)]
pub(crate) struct Upkeep {
    intervals: [Duration; MERGED_LEVELS as usize],
    snapshot_interval: Duration,
    chain: Vec<(Name, u64)>,
    /// Per level, where and when the time of its next file began.
    begun: [Option<(u64, Instant)>; MERGED_LEVELS as usize],
    snapshot_ms: u64,
    swept: Option<Instant>,
    sweep_wanted: bool,
}

impl Upkeep {
    /// A log whose restore reads these files, and whose newest whole copy is of this time.
    pub(crate) fn new(settings: &Settings, chain: Vec<(Name, u64)>, snapshot_ms: u64) -> Self {
        Self {
            intervals: settings.compaction_intervals,
            snapshot_interval: settings.snapshot_interval,
            chain,
            begun: [None; MERGED_LEVELS as usize],
            snapshot_ms,
            swept: None,
            sweep_wanted: false,
        }
    }

    /// A file was appended to level 0.
    pub(crate) fn appended(&mut self, name: Name, bytes: u64, now: Instant) {
        // The first file of a log is a whole copy, and so would be every file that begins with it.
        if name.max > 1 {
            for begun in &mut self.begun {
                begun.get_or_insert((name.min, now));
            }
        }
        self.chain.push((name, bytes));
    }

    /// What is due now.
    pub(crate) fn due(&self, database_bytes: u64, now: Instant, now_ms: u64) -> Option<Work> {
        if self.wants_snapshot(database_bytes, now_ms) {
            return Some(Work::Snapshot);
        }
        (1..=MERGED_LEVELS).rev().find_map(|level| {
            let at = usize::from(level) - 1;
            let (min, since) = self.begun[at]?;
            let files = self.chain.iter().filter(|(name, _)| name.min >= min).count();
            let due = now.duration_since(since) >= self.intervals[at] && files >= MERGED_FILES_MIN;
            due.then_some(Work::Merge { level, min })
        })
    }

    fn wants_snapshot(&self, database_bytes: u64, now_ms: u64) -> bool {
        let bytes: u64 = self.chain.iter().skip(1).map(|(_, bytes)| bytes).sum();
        let bytes_max = BYTES_MIN.max(database_bytes.saturating_mul(BYTES_RATIO));
        let age = Duration::from_millis(now_ms.saturating_sub(self.snapshot_ms));
        self.chain.len() > FILES_MAX
            || bytes > bytes_max
            || (age >= self.snapshot_interval && self.chain.len() > 1)
    }

    /// The bucket has this file of a higher level, which ends at the head.
    pub(crate) fn done(&mut self, name: Name, bytes: u64, now_ms: u64) {
        self.chain.retain(|(covered, _)| covered.min < name.min);
        self.chain.push((name, bytes));
        self.begun.iter_mut().take(usize::from(name.level)).for_each(|begun| *begun = None);
        if name.level > MERGED_LEVELS {
            self.snapshot_ms = now_ms;
        }
        self.sweep_wanted |= name.level > 1;
    }

    /// It could not be done; another time.
    pub(crate) fn failed(&mut self, work: Work, now: Instant, now_ms: u64) {
        match work {
            Work::Merge { level, .. } => {
                if let Some((_, since)) = &mut self.begun[usize::from(level) - 1] {
                    *since = now;
                }
            }
            // A twelfth of the interval later it is tried again, whatever else asks for it.
            Work::Snapshot => {
                let most = u64::try_from(self.snapshot_interval.as_millis()).unwrap_or(u64::MAX);
                self.snapshot_ms = now_ms.saturating_sub(most / 12 * 11);
            }
        }
    }

    /// Whether it is time to look for old files.
    pub(crate) fn sweeps(&mut self, now: Instant) -> bool {
        let rested = self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP_INTERVAL);
        let sweeps = self.sweep_wanted && rested;
        if sweeps {
            self.swept = Some(now);
            self.sweep_wanted = false;
        }
        sweeps
    }

    #[cfg(test)]
    fn files(&self) -> Vec<(u8, u64, u64)> {
        self.chain.iter().map(|(name, _)| (name.level, name.min, name.max)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{FILES_MAX, Upkeep, Work};
    use crate::{layout::Name, settings::Settings};
    use std::time::Duration;
    use tokio::time::Instant;

    const SECOND: Duration = Duration::from_secs(1);

    fn name(level: u8, min: u64, max: u64) -> Name {
        Name { level, min, max }
    }

    /// Ships once a second and does what is due; returns how many files of each level were written.
    fn run(upkeep: &mut Upkeep, from: u64, seconds: u64, start: Instant) -> [usize; 4] {
        let mut written = [0; 4];
        for txid in from..from + seconds {
            let now = start + SECOND * u32::try_from(txid - from).expect("short");
            upkeep.appended(Name::transaction(txid), 1000, now);
            while let Some(work) = upkeep.due(1 << 20, now, txid * 1000) {
                let (at, name) = match work {
                    Work::Merge { level, min } => (usize::from(level) - 1, name(level, min, txid)),
                    Work::Snapshot => (3, Name::snapshot(txid)),
                };
                written[at] += 1;
                upkeep.done(name, 1000, txid * 1000);
            }
        }
        written
    }

    #[test]
    fn an_hour_of_writing_costs_two_requests_a_minute_and_leaves_few_files() {
        let start = Instant::now();
        let mut upkeep = Upkeep::new(&Settings::default(), Vec::new(), 0);
        let written = run(&mut upkeep, 1, 4 * 3600, start);
        assert_eq!(written[2..], [3, 0]);
        assert!(written.iter().sum::<usize>() <= 4 * 3600 / 28, "{written:?}");
        let files = upkeep.files();
        assert!(files.len() <= 3 + 12 + 10 + 31 + 1, "{files:?}");
        for pair in files.windows(2) {
            assert_eq!(pair[0].2 + 1, pair[1].1, "{files:?}");
        }
    }

    #[test]
    fn many_sessions_end_in_a_snapshot() {
        let start = Instant::now();
        let mut chain = Vec::new();
        for session in 0..60 {
            let mut upkeep = Upkeep::new(&Settings::default(), chain, 0);
            let written = run(&mut upkeep, session * 20 + 1, 20, start);
            assert_eq!(written[..3], [0, 0, 0], "too short to merge anything");
            chain = upkeep.chain;
            assert!(chain.len() <= FILES_MAX);
        }
        assert!(chain.iter().any(|(name, _)| name.level == 9));
    }

    #[test]
    fn snapshots_come_with_size_and_with_age() {
        let now = Instant::now();
        let due = |bytes, database, now_ms| {
            let chain = vec![(name(9, 1, 5), 1 << 30), (name(0, 6, 6), bytes)];
            Upkeep::new(&Settings::default(), chain, 1000).due(database, now, now_ms)
        };
        assert_eq!(due(16 << 20, 0, 1000), None);
        assert_eq!(due((16 << 20) + 1, 0, 1000), Some(Work::Snapshot));
        assert_eq!(due((16 << 20) + 1, 5 << 20, 1000), None);
        assert_eq!(due(1, 0, 1000 + 86_399_999), None);
        assert_eq!(due(1, 0, 1000 + 86_400_000), Some(Work::Snapshot));
    }

    #[test]
    fn nothing_is_due_without_anything_new_and_a_failure_waits() {
        let now = Instant::now();
        let mut upkeep = Upkeep::new(&Settings::default(), vec![(name(9, 1, 5), 1)], 0);
        assert_eq!(upkeep.due(0, now + SECOND * 9000, 86_400_001), None);
        upkeep.appended(name(0, 6, 6), 1, now);
        upkeep.appended(name(0, 7, 7), 1, now);
        let work = Work::Merge { level: 1, min: 6 };
        assert_eq!(upkeep.due(0, now + SECOND * 30, 1), Some(work));
        upkeep.failed(work, now + SECOND * 30, 1);
        assert_eq!(upkeep.due(0, now + SECOND * 59, 1), None);
        assert_eq!(upkeep.due(0, now + SECOND * 60, 1), Some(work));
        assert!(!upkeep.sweeps(now));
        upkeep.done(name(2, 6, 7), 1, 1);
        assert!(upkeep.sweeps(now));
        upkeep.done(name(2, 6, 7), 1, 1);
        assert!(!upkeep.sweeps(now + SECOND * 3599));
        assert!(upkeep.sweeps(now + SECOND * 3600));
    }
}
