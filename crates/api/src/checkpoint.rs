//! Checkpoints: create, list, restore.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The id that stands for the live state in a list.
pub const CURRENT: &str = "Current";

/// The longest comment in bytes.
pub const COMMENT_BYTES_MAX: usize = 4096;

/// A checkpoint, or with the id [`CURRENT`] the live state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// `v1`, `v2`, …, `auto-…` or [`CURRENT`].
    pub id: String,
    /// When it was made.
    pub create_time: Timestamp,
    /// The maker's words.
    pub comment: String,
    /// Made by the system and not by a user.
    pub is_auto: bool,
    /// The checkpoint that this one grew from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// The checkpoints that this one grew from, nearest first.
    pub history: Vec<String>,
    /// Empty when well.
    pub health: String,
}

/// The body of a create call; an empty body means no comment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateCheckpoint {
    /// Free words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// One line of a progress stream. The last line is `complete` or `error`, and only the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What kind of line.
    #[serde(rename = "type")]
    pub kind: ProgressKind,
    /// What happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What went wrong, on an `error` line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When.
    pub time: Timestamp,
}

/// The kinds of progress lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgressKind {
    /// Done; the last line.
    Complete,
    /// Failed; the last line.
    Error,
    /// A step.
    Info,
}
