//! The public contract: what a client and a server of the Sprites API say to each other, and nothing about how it is
//! done.
//!
//! Both ends use these types: the orchestrator and the guest agent to answer, the command line to ask. Text from a client is
//! parsed here into types that cannot be wrong ([`name::SpriteName`], [`duration::parse`], [`exec::ExecQuery`]), so no code
//! behind this crate sees a raw name or duration.

pub mod checkpoint;
pub mod duration;
pub mod error;
pub mod exec;
pub mod files;
pub mod name;
pub mod policy;
pub mod ports;
pub mod query;
pub mod service;
pub mod sprite;
pub mod token;
pub mod volume;

/// The environment version that every response under one sprite carries as `Sprite-Version`.
///
/// Official clients use path-style attach (`/exec/{id}`) from rc30 on, or with any plain release.
pub const SPRITE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Response header that names [`SPRITE_VERSION`].
pub const VERSION_HEADER: &str = "sprite-version";

/// Response header of an exec upgrade that lists optional abilities.
pub const CAPABILITIES_HEADER: &str = "x-sprite-capabilities";

/// The abilities: signals may be sent as text messages on the exec socket.
pub const CAPABILITIES: &str = "signal";
