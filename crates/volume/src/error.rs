//! What went wrong, told by what the caller can do about it.

use std::{error::Error as StdError, fmt, io};

/// What the caller should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Fix the request: a bad offset or length, a file of another volume.
    Invalid,
    /// The named checkpoint does not exist.
    NotFound,
    /// The state forbids it: the base of the live state, a device in use, a newer epoch.
    Conflict,
    /// The local disk is full; free some and try again.
    Exhausted,
    /// The bucket did not answer; try again later.
    Unavailable,
    /// Bytes are not what they were when they were written; a human must look.
    Corrupt,
    /// The volume is closed; open it again.
    Closed,
    /// The local disk or database failed, or there is a bug.
    Internal,
}

type Source = Box<dyn StdError + Send + Sync>;

/// A failed operation of a volume. Unless its documentation says otherwise, the operation changed nothing.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Source>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn with(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Source>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the volume is closed")
    }

    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Turns the error of an attempted action into the crate's, with the kind that follows from it.
pub(crate) trait Attempt<T> {
    fn attempt(self, action: &str) -> Result<T, Error>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, action: &str) -> Result<T, Error> {
        self.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
                io::ErrorKind::InvalidData => ErrorKind::Corrupt,
                _ => ErrorKind::Internal,
            };
            Error::with(kind, action, error)
        })
    }
}

impl<T> Attempt<T> for rustix::io::Result<T> {
    fn attempt(self, action: &str) -> Result<T, Error> {
        self.map_err(io::Error::from).attempt(action)
    }
}

impl<T> Attempt<T> for rusqlite::Result<T> {
    fn attempt(self, action: &str) -> Result<T, Error> {
        self.map_err(|error| {
            let kind = match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => ErrorKind::Exhausted,
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                    ErrorKind::Corrupt
                }
                _ => ErrorKind::Internal,
            };
            Error::with(kind, action, error)
        })
    }
}

impl<T> Attempt<T> for object_store::Result<T> {
    fn attempt(self, action: &str) -> Result<T, Error> {
        self.map_err(|error| {
            let kind = match &error {
                // Segments are never deleted while something names them, so a missing one is damage.
                object_store::Error::NotFound { .. } => ErrorKind::Corrupt,
                _ => ErrorKind::Unavailable,
            };
            Error::with(kind, action, error)
        })
    }
}
