//! A sprite's disk: how it is doing, going back in time, and what changed between two checkpoints. All of it is ours, beyond
//! the original API.

use crate::sprite::Durability;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How well the bucket keeps up with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// The bucket has everything.
    Settled,
    /// What was written last is on its way.
    Sealing,
    /// The bucket is slow or away; work goes on from the worker's disk.
    Behind,
    /// So much waits for the bucket that writes wait too.
    Blocked,
}

/// The answer of `GET /v1/sprites/{name}/volume`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// When a flush is done.
    pub durability: Durability,
    /// How well the bucket keeps up.
    pub state: VolumeState,
    /// What the bucket said last, when it is behind and said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Bytes that the bucket does not have yet.
    pub lag_bytes: u64,
    /// The age of the oldest write that the bucket does not have yet.
    pub lag_seconds: f64,
    /// Bytes of the disk that are not zero.
    pub logical_bytes: u64,
    /// Bytes that the disk and its checkpoints name, before compression.
    pub live_bytes: u64,
    /// Bytes of this disk's own segments in the bucket.
    pub stored_bytes: u64,
    /// Bytes of these that nothing names any more.
    pub reclaimable_bytes: u64,
    /// Bytes in the worker's cache.
    pub cached_bytes: u64,
    /// The oldest instant that the disk can be put back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_rewind: Option<Timestamp>,
}

/// The body of `POST /v1/sprites/{name}/rewind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewind {
    /// The instant to go back to.
    pub at: Timestamp,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is another kind of thing, or its content, owner or permissions are others.
    Changed,
    /// It is gone.
    Removed,
}

/// One line of `GET /v1/sprites/{name}/checkpoints/{from}/diff/{to}`. An error is the last line, if there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DiffLine {
    /// A path that is different.
    Change(Change),
    /// What kept the server from going on.
    Failed {
        /// Why.
        error: String,
    },
}

/// A path that is different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The path, from the root of the sprite. Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What happened to it.
    pub kind: ChangeKind,
}
