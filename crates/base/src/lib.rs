//! What every crate may use and no crate owns: typed ids and bounded retries.
//!
//! Admission rule: used by three crates, free of the product's nouns, and not odd in a standard library. A type that
//! only one crate needs lives in that crate.

#[doc(hidden)]
pub use serde as __serde;
#[doc(hidden)]
pub use uuid as __uuid;

pub mod backoff;
pub mod id;
