//! What a caller may choose about a volume. Plain data; the store and the log are arguments of `open`.

use crate::{
    BLOCK_BYTES, VolumeId, failpoint::Failpoints, journal::RECORD_DATA_BYTES_MAX, keys::Keys,
};
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

/// When a flush is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// When the local disk has everything. The bucket is a moment behind, and what it lacks is lost with the worker.
    #[default]
    Default,
    /// When the bucket has everything, the log included. Nothing that was flushed is lost with the worker.
    Strict,
}

/// Whether a flush may be acknowledged from the local disk. See [`Settings::acknowledge`].
#[derive(Clone)]
pub struct Acknowledge(Arc<dyn Fn() -> bool + Send + Sync>);

impl Acknowledge {
    /// The question is asked after each local sync, and again and again while the answer is no, so it must be quick.
    pub fn new(may: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(may))
    }

    pub(crate) fn may(&self) -> bool {
        self.0()
    }
}

impl fmt::Debug for Acknowledge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acknowledge")
    }
}

/// How to open a volume.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which volume.
    pub volume: VolumeId,
    /// The period of ownership under which it is opened. Segments carry it in their names.
    pub epoch: u64,
    /// The first of the row of epochs, up to this one, in which nobody else wrote the volume. A journal of an earlier epoch is
    /// set aside, whatever the map says.
    pub epoch_first: u64,
    /// The local directory that holds `map.db`, `journal/` and `cache.img`.
    pub dir: PathBuf,
    /// The map that was in `dir` when the log turned out to be another epoch's, set aside beside the live one, if there is any.
    /// What it and a journal that was set aside hold becomes a checkpoint.
    pub overtaken_map: Option<PathBuf>,
    /// When a flush is acknowledged at first; [`Volume::set_durability`](crate::Volume::set_durability) changes it.
    pub durability: Durability,
    /// Whether the volume is still surely this process's: a flush in default mode waits until the answer is yes. A worker
    /// among others answers by the lease of its log; without an answer it is always yes.
    pub acknowledge: Option<Acknowledge>,
    /// The volume's key, with which its segments are encrypted, and those of its fork ancestors. Without a key of its own,
    /// the volume writes plain segments.
    pub keys: Keys,
    /// The most bytes of sealed blocks that `cache.img` holds.
    pub cache_bytes_max: u64,
    /// A write becomes part of a segment at most this long after it was made.
    pub seal_interval: Duration,
    /// So many unsealed bytes become a segment at once.
    pub seal_bytes: u64,
    /// With so many unsealed bytes, writers wait until the bucket has taken some. From half of it on they are slowed down. What
    /// was under way passes it: 128 MiB, if a loop device is full of requests of 1 MiB.
    pub tail_bytes_max: u64,
    /// How far back the volume can be rewound: a segment that nothing names is deleted so long after it became so. It must
    /// be longer than any read of a segment takes.
    pub garbage_delay: Duration,
    /// What is read so long after the open is read ahead at the next one.
    pub trace_time: Duration,
    /// The size of a journal file.
    pub journal_file_bytes: u64,
    /// The first wait before something that failed is tried again; later ones double, up to fifty times as long.
    pub retry_wait: Duration,
    /// Where tests let the process die.
    pub(crate) failpoints: Failpoints,
}

impl Settings {
    /// The defaults: flushes from the local disk, a cache of 10 GiB, a segment each second or at 8 MiB, a tail of at most
    /// 896 MiB, 24 hours until garbage is deleted, five seconds of reads that count as those of the wake, journal files of 16 MiB, retries from 100 ms to 5 s.
    #[must_use]
    pub fn new(volume: VolumeId, epoch: u64, dir: PathBuf) -> Self {
        Self {
            volume,
            epoch,
            epoch_first: 0,
            dir,
            overtaken_map: None,
            durability: Durability::Default,
            acknowledge: None,
            keys: Keys::none(),
            cache_bytes_max: 10 << 30,
            seal_interval: Duration::from_secs(1),
            seal_bytes: 8 << 20,
            tail_bytes_max: 896 << 20,
            garbage_delay: Duration::from_secs(24 * 3600),
            trace_time: Duration::from_secs(5),
            journal_file_bytes: 16 << 20,
            retry_wait: Duration::from_millis(100),
            failpoints: Failpoints::default(),
        }
    }

    /// The longest wait between two tries.
    pub(crate) fn retry_wait_most(&self) -> Duration {
        self.retry_wait * 50
    }

    /// The most data of one journal record, so that at least four fit a file.
    pub(crate) fn record_bytes_max(&self) -> usize {
        let quarter = usize::try_from(self.journal_file_bytes / 4).unwrap_or(usize::MAX);
        RECORD_DATA_BYTES_MAX.min(quarter / BLOCK_BYTES * BLOCK_BYTES).max(BLOCK_BYTES)
    }
}
