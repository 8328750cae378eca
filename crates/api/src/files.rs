//! Files: read, write, list, delete.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The last component.
    pub name: String,
    /// The absolute path.
    pub path: String,
    /// `file`, `directory` or `symlink`.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
    /// Octal with a leading zero and without type bits: `0644`.
    pub mode: String,
    /// When the content last changed.
    pub mod_time: Timestamp,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file, or anything that is neither of the others.
    File,
    /// A symbolic link, itself and not its target.
    Symlink,
}

/// The answer of a list: the children of a directory, or the one file itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// What was listed.
    pub path: String,
    /// How many entries.
    pub count: usize,
    /// The entries, ordered by path.
    pub entries: Vec<Entry>,
}

/// The answer of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The absolute path.
    pub path: String,
    /// Bytes written.
    pub size: u64,
    /// The file's mode.
    pub mode: String,
}

/// The answer of a delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// What is gone.
    pub deleted: Vec<String>,
    /// How many.
    pub count: usize,
}
