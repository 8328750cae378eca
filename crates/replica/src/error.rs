//! What can fail in the log, by the action that was attempted.

use crate::{At, ltx::FormatError};
use object_store::path::Path as Key;
use std::{io, path::PathBuf};

/// Why the log could not be read, continued or restored.
///
/// Neither the local database nor the log is changed by a call that returns one, except that a file may have reached the
/// bucket: the next [`crate::Shipper::ship`] settles that.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bucket did not do what it was asked, after retries where they make sense.
    #[error("{action} {key} in the bucket")]
    Bucket {
        /// `create`, `delete`, `list` or `read`.
        action: &'static str,
        /// The object, or the prefix of a list.
        key: Key,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// SQLite refused.
    #[error("{action} {path}")]
    Database {
        /// `attach to`, `check` or `checkpoint`.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// What was restored is not what the log says the database was.
    #[error(
        "database restored up to transaction {txid} does not have the digest that the log states"
    )]
    Digest {
        /// The last transaction.
        txid: u64,
    },
    /// Another writer has created the next transaction: this one owns the database no longer and must stop.
    #[error("transaction {txid} was written by another owner")]
    Fenced {
        /// The transaction that both wanted.
        txid: u64,
    },
    /// A log file is malformed or damaged.
    #[error("read log file {key}")]
    File {
        /// Which.
        key: Key,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// Transactions are missing from the log.
    #[error("log has no transaction {txid}, but later ones")]
    Gap {
        /// The first that is missing.
        txid: u64,
    },
    /// The owner of the log goes on writing, so the log was not taken from it.
    #[error("the owner has written transaction {txid} meanwhile")]
    Held {
        /// What it wrote.
        txid: u64,
    },
    /// A local file could not be read or written.
    #[error("{action} {path}")]
    Local {
        /// What was attempted.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A log file holds other transactions than its name says, or pages of another size than the file before it.
    #[error("log file {key} does not hold what its name and its neighbours say")]
    Misplaced {
        /// Which.
        key: Key,
    },
    /// The log does not reach that state of the database, or not any more.
    #[error("the log does not reach {at:?}")]
    Unreachable {
        /// Which was asked for.
        at: At,
    },
    /// The local database is not one that can be shipped.
    #[error("ship {path}: {reason}")]
    Unshippable {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Names the local file in an I/O error.
pub(crate) fn local(
    action: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Local { action, path, source }
}
