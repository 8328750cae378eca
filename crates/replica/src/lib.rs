//! The log: a SQLite database made durable as LTX files in the bucket.
//!
//! A database has one owner, who opens it in WAL mode with automatic checkpoints off. After each of its commits, or after
//! several, the owner calls [`Shipper::ship`], which puts all page images that are new in the WAL into one file of level 0.
//! Such a file carries exactly one transaction number and is created only if that number is free, so of two writers that
//! both believe to be the owner exactly one goes on; the other gets [`Error::Fenced`] and must stop. The files are those
//! of Litestream 0.5, so that the stock `litestream restore` rebuilds the database from the bucket alone.
//!
//! ```text
//! Log::new --open = claim--> (Shipper, New | Continued | Restored) --ship--> Position --ship--> ...
//! ```
//!
//! Opening takes the log over, with a file that changes nothing and carries the next epoch; `ownership` is the protocol,
//! [`docs/design/log.md`](../../../docs/design/log.md) the reasons.
//!
//! Every file states the *digest* of the whole database after it (see [`digest`]). It makes the log and a local database
//! comparable without any local record: `open` walks the states that database file and WAL hold, and where it meets the
//! digest of the log's head it knows what has been shipped and what has not. A crash between any two steps is harmless.
//!
//! Invariants:
//! - A log file is created once and never changed; the number of a file of level 0 is the lock on that number.
//! - One file of level 0 is in flight at a time. A request that may or may not have succeeded is settled, by the bytes it
//!   carried, before the next number is tried.
//! - Every file is verified against its checksum, its name and its neighbours, and the restored database against the
//!   digest, before anything replaces a local file.
//!
//! The database file is kept open for as long as a [`Shipper`] lives, since closing any descriptor of it would drop the
//! locks that SQLite holds in this process.

mod clock;
mod copy;
mod digest;
mod error;
mod layout;
mod local;
mod log;
mod ltx;
mod note;
mod ownership;
mod plan;
mod restore;
mod retention;
mod rewind;
mod settings;
mod shipper;
mod source;
mod store;
mod upkeep;
mod verify;
mod wal;
mod writer;

pub use error::Error;
pub use layout::Layout;
pub use local::set_aside_path;
pub use log::{Log, Opened, Position};
pub use ltx::FormatError;
pub use rewind::{At, Reach, Restored};
pub use settings::Settings;
pub use shipper::{Lease, Shipper};
pub use verify::{Problem, Report};
