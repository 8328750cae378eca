//! The disk of a sprite: blocks in immutable segments in a bucket, a map of where they are, and a block device in front.
//!
//! ```text
//!  ext4 -> loop device -> FUSE file        Device
//!                 |
//!              Volume    write: journal (local, append-only) + index of the unsealed tail
//!                 |      read:  tail -> cache.img -> ranged GET of a segment's runs
//!              sealer    tail -> segment (PUT, create-only) -> map rows (one transaction) -> log (Ship)
//! ```
//!
//! The order at the end of that line never changes: segment, then map, then log. So the log may lag behind the data and
//! never names a segment that the bucket does not have.
//!
//! # Invariants
//!
//! - A segment is created once and never changed. ([`segment`], [`seal`])
//! - What was flushed is in the journal until the log that has it is in the bucket. ([`journal`])
//! - Every block from cache or bucket is checked against the map's CRC32C before it is used. ([`fetch`])
//! - Only the layer at the head changes what a block is; merging a dead layer changes no block of any stack. ([`map`])
//! - A segment is deleted only when no row of any layer names it, after the log that says so is in the bucket, and only
//!   if this volume wrote it.
//! - Everything local but the journal's unsealed tail can be deleted at any time without losing anything.
//!
//! # Locks
//!
//! Taken in this order and never the other way: operations (async, around a transaction and its shipping), journal,
//! tail, map for writing, map for reading, cache. None but the first is held while waiting for the bucket.

mod cache;
mod checkpoint;
mod decode;
mod device;
mod encrypted;
mod error;
mod extents;
mod failpoint;
mod fetch;
mod flush;
mod fsck;
mod journal;
mod keys;
mod map;
mod memory;
mod meter;
mod pace;
mod pin;
mod portable;
mod prune;
mod reclaim;
mod recovery;
mod rewind;
mod seal;
mod segment;
mod settings;
mod sync;
mod tail;
mod view;
mod volume;
mod wake;

pub mod blank;

#[cfg(test)]
mod testing;

pub use checkpoint::{Checkpoint, NewCheckpoint};
pub use device::{Device, Syncer, mark_io_flusher};
pub use encrypted::Encrypted;
pub use error::{Error, ErrorKind};
pub use fsck::{Depth, Orphan, Report, fsck};
pub use keys::{Keys, SecretKey};
pub use map::{Contents, Pin, fork, fork_pinned, origins};
pub use meter::{Metered, Traffic};
pub use pin::ForkPoint;
pub use portable::{Export, Import, PIECE_BYTES_MAX, Piece};
pub use settings::{Acknowledge, Durability, Settings};
pub use view::View;
pub use volume::{Counters, Cut, Lag, Ship, State, Stats, Trouble, Volume};

base::id!(
    /// The id of a volume.
    VolumeId,
    "volume"
);

/// Where the log of a volume's map is in the bucket.
#[must_use]
pub fn log_prefix(volume: VolumeId) -> object_store::path::Path {
    object_store::path::Path::from(format!("volumes/{volume}/log"))
}

/// The unit of addressing, checksums and the map, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// The size of every volume, in bytes. Nothing is allocated for what was never written.
pub const VOLUME_BYTES: u64 = 100 << 30;

/// The number of blocks of a volume.
const VOLUME_BLOCKS: u32 = (VOLUME_BYTES / BLOCK_BYTES as u64) as u32;

/// Where a block begins, in bytes.
fn byte_offset(block: u32) -> u64 {
    u64::from(block) * BLOCK_BYTES as u64
}
