//! What an account remembers of a sprite.

use api::{
    name::SpriteName,
    policy::Policies,
    sprite::{Durability, SpriteId, UrlSettings},
};
use jiff::Timestamp;
use std::collections::BTreeMap;
use volume::VolumeId;

/// A sprite, as its account knows it. Whether it is awake is the worker's to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpriteRecord {
    /// The id.
    pub(crate) id: SpriteId,
    /// The name.
    pub(crate) name: SpriteName,
    /// Its disk.
    pub(crate) volume: VolumeId,
    /// The volumes that the disk was forked from, nearest first.
    pub(crate) ancestors: Vec<VolumeId>,
    /// The digest of its base image, which it keeps.
    pub(crate) image: String,
    /// Who may use its URL.
    pub(crate) url_settings: UrlSettings,
    /// Free labels.
    pub(crate) labels: Vec<String>,
    /// Default environment of commands.
    pub(crate) environment: BTreeMap<String, String>,
    /// Seconds without activity until it sleeps.
    pub(crate) idle_timeout_seconds: u64,
    /// When a flush of its disk is done.
    pub(crate) durability: Durability,
    /// What it may reach and use.
    pub(crate) policies: Policies,
    /// When it was created.
    pub(crate) created_at: Timestamp,
    /// When a user last changed it.
    pub(crate) updated_at: Timestamp,
    /// When it last woke.
    pub(crate) last_running_at: Option<Timestamp>,
    /// When it last went to sleep.
    pub(crate) last_warming_at: Option<Timestamp>,
    /// When it was destroyed. It can be had back until its volume is removed.
    pub(crate) destroyed_at: Option<Timestamp>,
}
