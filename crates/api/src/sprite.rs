//! Sprites: create, read, update, list, watch.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// The most sprites on one page of a list; a larger `max_results` is clamped to this.
pub const LIST_PAGE_MAX: usize = 100;

/// The most labels of a sprite, and the longest label in bytes.
pub const LABELS_MAX: usize = 64;
/// The longest label in bytes.
pub const LABEL_BYTES_MAX: usize = 128;

base::id!(
    /// The stable id of a sprite; a new one when a name is reused.
    SpriteId,
    "sprite"
);

/// Whether a sprite is using the worker's CPU and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing on any worker; the disk is in the bucket.
    Cold,
    /// Frozen, memory kept.
    Warm,
    /// Awake.
    Running,
}

/// Who may use a sprite's URL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UrlAuth {
    /// Holders of a token of the organization.
    #[default]
    Sprite,
    /// Everybody.
    Public,
}

/// Who of the organization may use a sprite's URL in mode `sprite`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrivateAccess {
    /// Only administrators.
    Admins,
    /// Every user of the organization.
    OrgUsers,
}

/// When a flush of a sprite's disk (`fsync`) is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// When the worker's disk has it; the bucket has it a second later.
    #[default]
    Default,
    /// When the bucket has it.
    Strict,
}

/// A text that names no durability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid durability, must be one of: default, strict")]
pub struct ParseDurabilityError;

impl FromStr for Durability {
    type Err = ParseDurabilityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" => Ok(Self::Default),
            "strict" => Ok(Self::Strict),
            _ => Err(ParseDurabilityError),
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Strict => "strict",
        })
    }
}

/// The settings of a sprite's URL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlSettings {
    /// Who may use the URL.
    pub auth: UrlAuth,
    /// Narrows mode `sprite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_access: Option<PrivateAccess>,
}

/// A sprite, as the API shows it. Absent dates are left out, never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sprite {
    /// `sprite-UUID`.
    pub id: String,
    /// The name.
    pub name: String,
    /// The organization's name.
    pub organization: String,
    /// The state now.
    pub status: Status,
    /// Where the sprite's web server answers.
    pub url: String,
    /// Who may use the URL.
    pub url_settings: UrlSettings,
    /// The version of the sprite's environment; null before its first boot.
    pub version: Option<String>,
    /// The same again under the name that some clients read.
    pub environment_version: Option<String>,
    /// Free labels.
    pub labels: Vec<String>,
    /// Default environment of commands.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Seconds without activity until the sprite sleeps (ours, beyond the original API).
    pub idle_timeout_seconds: u64,
    /// When a flush of the sprite's disk is done (ours).
    #[serde(default)]
    pub durability: Durability,
    /// Where its disk is: `BUCKET#NAME`, which `puck open` brings up anywhere (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_url: Option<String>,
    /// How the sprite is kept apart from its neighbours: `vm`, `vm-emulated` or `namespaces` (ours).
    pub isolation: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its record last changed.
    pub updated_at: Timestamp,
    /// When it last woke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_running_at: Option<Timestamp>,
    /// When it last went to sleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_warming_at: Option<Timestamp>,
    /// When it was destroyed; it can be had back for a while (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroyed_at: Option<Timestamp>,
}

/// The body of a create call. Unknown members are ignored, as clients send more than is documented.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CreateSprite {
    /// The name; a missing one is answered with 400.
    #[serde(default)]
    pub name: Option<String>,
    /// Accepted and ignored: every sprite has the same shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// Default environment of commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<BTreeMap<String, String>>,
    /// Who may use the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_settings: Option<UpdateUrlSettings>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Wait for a free slot rather than fail at the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for_capacity: Option<bool>,
    /// Seconds without activity until the sprite sleeps (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// `default` or `strict`: when a flush of the sprite's disk is done (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
}

/// The body of a fork.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkSprite {
    /// The new sprite's name; a missing one is answered with 400.
    #[serde(default)]
    pub name: Option<String>,
    /// The checkpoint to begin from; without it the disk as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

/// The body of an undelete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undelete {
    /// The name that the sprite gets; without it the one that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The body of an update: only present members change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateSprite {
    /// Who may use the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_settings: Option<UpdateUrlSettings>,
    /// Replaces the labels; an empty list clears them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Clears the labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear_labels: Option<bool>,
    /// Seconds without activity until the sprite sleeps (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// `default` or `strict`: when a flush of the sprite's disk is done (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
}

/// URL settings as a client sends them: text, so that a bad value gets the API's own error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateUrlSettings {
    /// `sprite` or `public`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<String>,
    /// `admins` or `org_users`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_access: Option<String>,
}

/// How many sprites an organization has in each state, and its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrgCounts {
    /// The organization's name.
    pub name: String,
    /// Awake.
    pub running: u64,
    /// Frozen.
    pub warm: u64,
    /// Asleep on disk.
    pub cold: u64,
    /// The most that may run at once.
    pub running_limit: u64,
    /// The most that may be warm at once.
    pub warm_limit: u64,
}

/// One page of a list. The counts stand twice because clients disagree on where to read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpriteList {
    /// The page, ordered by name.
    pub sprites: Vec<Sprite>,
    /// Whether another page follows.
    pub has_more: bool,
    /// What to send as `continuation_token` for the next page.
    pub next_continuation_token: Option<String>,
    /// The counts, nested.
    pub org: OrgCounts,
    /// The counts, flat.
    #[serde(flatten)]
    pub counts: OrgCounts,
}

/// One line of a watch (`Accept: application/x-ndjson` on the list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// `heartbeat` on a line without a sprite.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The sprite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// When it last woke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_running_at: Option<Timestamp>,
    /// When it last went to sleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_warming_at: Option<Timestamp>,
    /// When this line was written.
    pub timestamp: Timestamp,
    /// The counts.
    pub org: OrgCounts,
}
/// The answer of a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarted {
    /// The sprite's name.
    pub sprite_name: String,
    /// The sprite's id: it is its own machine.
    pub machine_id: String,
    /// What was done, for people.
    pub message: String,
}
