//! Files: read, write, list, delete, rename, copy, and whose they are.

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

/// The answer of a tree that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// The directory's absolute path.
    pub path: String,
    /// Bytes of the archive.
    pub size: u64,
}

/// The answer of a delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// What is gone.
    pub deleted: Vec<String>,
    /// How many.
    pub count: usize,
}

/// Gives a file or directory another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rename {
    /// The path now.
    pub source: String,
    /// The path afterwards. What is there is replaced.
    pub dest: String,
    /// What relative paths start from; the home directory if absent.
    pub working_dir: Option<String>,
    /// Whether the container's root does it, and not the user `sprite`.
    #[serde(default)]
    pub as_root: bool,
}

/// The answer of a rename: both paths, absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// The path before.
    pub source: String,
    /// The path now.
    pub dest: String,
}

/// Copies a file or a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copy {
    /// The file or directory.
    pub source: String,
    /// The copy's own path. A file there is replaced, a directory filled.
    pub dest: String,
    /// What relative paths start from; the home directory if absent.
    pub working_dir: Option<String>,
    /// Whether a directory may be copied.
    #[serde(default)]
    pub recursive: bool,
    /// Whether the copies have the times, and as far as the user may give them the owners, of what they are copies of.
    #[serde(default)]
    pub preserve_attrs: bool,
    /// Whether the container's root does it, and not the user `sprite`.
    #[serde(default)]
    pub as_root: bool,
}

/// The answer of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copied {
    /// Each file, directory and link, with its copy.
    pub copied: Vec<Renamed>,
    /// How many.
    pub count: usize,
    /// The bytes in the files.
    pub total_bytes: u64,
}

/// Changes modes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chmod {
    /// The file or directory. A symbolic link is followed.
    pub path: String,
    /// What a relative path starts from; the home directory if absent.
    pub working_dir: Option<String>,
    /// Octal: `0755`.
    pub mode: String,
    /// Whether everything below gets the mode too, but for symbolic links.
    #[serde(default)]
    pub recursive: bool,
    /// Whether the container's root does it, and not the user `sprite`.
    #[serde(default)]
    pub as_root: bool,
}

/// Changes owners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chown {
    /// The file or directory. A symbolic link is followed.
    pub path: String,
    /// What a relative path starts from; the home directory if absent.
    pub working_dir: Option<String>,
    /// The user; unchanged if absent.
    pub uid: Option<Owner>,
    /// The group; unchanged if absent.
    pub gid: Option<Owner>,
    /// Whether everything below gets them too, symbolic links themselves included.
    #[serde(default)]
    pub recursive: bool,
    /// Whether the container's root does it, and not the user `sprite`.
    #[serde(default)]
    pub as_root: bool,
}

/// A user or a group of the sprite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Owner {
    /// By its number.
    Id(u32),
    /// By its name, or its number as text.
    Name(String),
}

/// The answer of a change of modes or owners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affected<T> {
    /// What was changed.
    pub affected: Vec<T>,
    /// How many.
    pub count: usize,
}

/// A file with its new mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithMode {
    /// The absolute path.
    pub path: String,
    /// The mode.
    pub mode: String,
}

/// A file with its new owners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithOwners {
    /// The absolute path.
    pub path: String,
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// What a client of `fs/watch` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum WatchRequest {
    /// It wants to hear of these files and of what is in these directories.
    Subscribe {
        /// The files and directories.
        paths: Vec<String>,
        /// Whether what is deeper below counts as well.
        #[serde(default)]
        recursive: bool,
        /// What relative paths start from; the home directory if absent.
        #[serde(default)]
        working_dir: Option<String>,
    },
    /// It does not any more.
    Unsubscribe {
        /// The files and directories, with what is below.
        paths: Vec<String>,
        /// What relative paths start from; the home directory if absent.
        #[serde(default)]
        working_dir: Option<String>,
    },
}

/// What it hears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum WatchMessage {
    /// These are watched from now on.
    Subscribed {
        /// The absolute paths.
        paths: Vec<String>,
    },
    /// Something happened to a file.
    Event {
        /// The absolute path.
        path: String,
        /// What.
        event: FileEvent,
        /// When, as RFC 3339.
        timestamp: String,
        /// The file's size in bytes; 0 for a directory and for what is gone.
        size: u64,
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// Something could not be watched, or was not seen.
    Error {
        /// What.
        message: String,
    },
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileEvent {
    /// Its mode, owner or times changed.
    Chmod,
    /// It is new here.
    Create,
    /// It is gone.
    Remove,
    /// It was moved away; where it is now, it is created, if that is watched.
    Rename,
    /// Its content changed.
    Write,
}
