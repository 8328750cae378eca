//! The protocol between a worker and the guest agent of one machine.
//!
//! The channel is a pair of HTTP/1.1 endpoints. The agent serves [`AGENT_SOCKET`]: everything under one sprite of the public
//! API, passed through as it came, and the worker's own routes under [`INTERNAL`]. The worker serves [`GATEWAY_SOCKET`]:
//! the object gateway, scoped to this machine's volume, and [`EVENTS`]. In the `ns` driver both are Unix sockets in a
//! directory that only the worker and the agent see.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::Ipv4Addr};
use zeroize::Zeroizing;

/// Where the agent finds its [`Boot`] as JSON, inside the machine.
pub const BOOT_FILE: &str = "/run/puck/boot.json";

/// The directory of the channel, inside the machine.
pub const CHANNEL: &str = "/run/puck/channel";

/// The agent's socket, in the channel's directory.
pub const AGENT_SOCKET: &str = "agent.sock";

/// The worker's socket, in the channel's directory.
pub const GATEWAY_SOCKET: &str = "gateway.sock";

/// The directory of journal, cache and map, inside the machine. All of it but the unsealed tail can be lost.
pub const DATA: &str = "/data";

/// The mounted base image, inside the machine, read-only.
pub const BASE: &str = "/base";

/// The prefix of the agent's routes that only the worker may call. A worker never passes a client's path here.
pub const INTERNAL: &str = "/internal";

/// `PUT`: gives a pooled machine its [`Identity`], or changes it. Answered with 204.
pub const IDENTITY: &str = "/internal/identity";

/// `POST`: stops the container, seals and ships everything, unmounts; answered with 204 when the bucket has all of it.
/// The agent then exits with status 0.
pub const SLEEP: &str = "/internal/sleep";

/// `PUT`: keeps what a fork begins with, see [`Pin`]; answered with 204 when the log in the bucket says so, with 404 when
/// there is no such checkpoint. `DELETE` with the same body takes it back.
pub const PIN: &str = "/internal/pin";

/// `POST`: keeps the disk as an automatic checkpoint; answered with a [`Kept`] when the bucket has it.
pub const KEEP: &str = "/internal/keep";

/// `GET`: the [`VolumeReport`] now.
pub const VOLUME: &str = "/internal/volume";

/// `GET`: the [`Activity`] now.
pub const ACTIVITY: &str = "/internal/activity";

/// `GET` with an upgrade to `tcp`: a connection to the sprite's web server. 502 when nothing listens there.
pub const WEB: &str = "/internal/web";

/// `POST` on the worker's socket: an [`Event`]. Answered with 204.
pub const EVENTS: &str = "/events";

/// `GET` on the worker's socket: the [`VolumeKeys`] of the machine. Keys pass nowhere else: [`Boot`] lies in a file.
pub const KEYS: &str = "/keys";

/// `POST` on the worker's socket: a query of the domain name system as it is on the wire; answered with the answer of one of the
/// host's name servers, or with 502 when none answers. They are asked over UDP.
pub const DNS_UDP: &str = "/dns/udp";

/// The same over TCP, for what is too long for UDP.
pub const DNS_TCP: &str = "/dns/tcp";

/// The prefix of the object gateway's routes on the worker's socket: `GET` (with `Range`), `HEAD`, `PUT` (with
/// `If-None-Match: *` to create only) and `DELETE` of `/objects/KEY`; `GET /objects?prefix=P`, with `&after=KEY` only what
/// comes after a key, lists as [`ObjectList`].
pub const OBJECTS: &str = "/objects";

/// A machine's address as its programs know it: the same in every machine.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Where the agent answers the machine's queries of the domain name system.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// How many ids a machine has: container id `n` is host id `uid_start + n`.
pub const UID_COUNT: u32 = 65_536;

/// The user that commands run as, inside the container: `sprite`.
pub const SPRITE_UID: u32 = 1001;

/// What the agent needs to bring its machine up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The volume's id, as text.
    pub volume: String,
    /// What to fork when this volume has no log yet; `None` when it must have one.
    pub fork_of: Option<Source>,
    /// The ownership epoch under which the agent writes.
    pub epoch: u64,
    /// The digest of the base image that is mounted at [`BASE`].
    pub image: String,
    /// The most bytes of local disk for cached blocks.
    pub cache_bytes_max: u64,
    /// The host id of the container's root.
    pub uid_start: u32,
    /// The limits of the container.
    pub limits: Limits,
    /// Whether the filesystem is checked before it is mounted: it was not written by sprites of this account.
    pub check: bool,
    /// Which sprite this is; `None` in the pool.
    pub identity: Option<Identity>,
}

/// What a new volume begins as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The blank volume of this id.
    Blank(String),
    /// What the volume of this id has pinned for the new one.
    Pinned(String),
}

/// The limits of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// Who a machine is, once it has been given to a sprite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `sprite-UUID`.
    pub id: String,
    /// The name; also the host name.
    pub name: String,
    /// The organization's name.
    pub organization: String,
    /// The public URL.
    pub url: String,
    /// Default environment of commands.
    pub environment: BTreeMap<String, String>,
    /// Seconds without activity until [`Event::Idle`].
    pub idle_timeout_seconds: u64,
    /// Whether a flush of the disk is done only when the bucket has it.
    pub strict: bool,
    /// Which names may be looked up and connected to, of whose patterns the most specific counts; without any there is no restriction.
    pub network: Vec<DomainRule>,
    /// Bytes of memory that the container may use; without, as much as [`Limits::memory_bytes`].
    pub memory_bytes: Option<u64>,
    /// What programs that start from now on may be.
    pub privileges: Privileges,
    /// What programs in the container may read about the sprite's policies: the name of a file, and what it holds.
    pub policies: BTreeMap<String, String>,
}

/// What programs of a container may be, beside what every container forbids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Whether none gains rights by running another: `sudo` and file capabilities have no effect.
    pub no_new_privileges: bool,
    /// Whether none has a capability, even as root.
    pub no_capabilities: bool,
}

/// What happens to the names of a pattern: a name, `*.` and a name, or `*`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRule {
    /// The pattern.
    pub domain: String,
    /// Whether they are allowed, or else refused.
    pub allow: bool,
}

/// What a fork begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The id of the fork's volume, as text.
    pub child: String,
    /// The checkpoint; the disk as it is now without it.
    pub checkpoint: Option<String>,
}

/// What was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The checkpoint's id.
    pub checkpoint: String,
}

/// What an agent tells its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The machine could not come up; the agent exits next.
    Failed {
        /// Why, for the log and for the caller that waits.
        reason: String,
    },
    /// Nothing has happened for the idle time. Sent again after each further idle time.
    Idle,
    /// The container runs and the API answers.
    Ready,
}

/// The keys of this machine's volume and of those that it was forked from, by the volume's id as text; none if the account is
/// not encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeKeys(pub BTreeMap<String, KeyBytes>);

/// A key. Its memory is wiped when it is dropped, and it is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBytes(pub Zeroizing<[u8; 32]>);

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBytes(..)")
    }
}

/// Why a sprite is awake.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Milliseconds since the last activity; 0 while there is any.
    pub idle_ms: u64,
    /// What keeps it awake now, for people: `session 12`, `connection`.
    pub awake_because: Vec<String>,
}

/// How the disk is doing, for metrics. Counts begin at the wake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Bytes that the bucket does not have.
    pub lag_bytes: u64,
    /// The age of the oldest write that the bucket does not have.
    pub lag_seconds: f64,
    /// Milliseconds in which writes waited for the bucket.
    pub blocked_ms: u64,
    /// Requests that put segments.
    pub puts: u64,
    /// Bytes of these.
    pub put_bytes: u64,
    /// Requests that read segments.
    pub gets: u64,
    /// Bytes of these.
    pub get_bytes: u64,
}

/// The answer of a list of objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectList {
    /// The objects, ordered by key.
    pub objects: Vec<ObjectEntry>,
}

/// One object of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectEntry {
    /// The whole key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// RFC 3339.
    pub last_modified: String,
}

#[cfg(test)]
mod tests {
    use super::{KeyBytes, VolumeKeys};

    #[test]
    fn keys_arrive_whole_and_are_never_printed() {
        let keys = VolumeKeys([("volume-1".to_owned(), KeyBytes([0xab; 32].into()))].into());
        let sent = serde_json::to_vec(&keys).unwrap();
        assert_eq!(serde_json::from_slice::<VolumeKeys>(&sent).unwrap(), keys);
        let printed = format!("{keys:?}");
        assert!(printed.contains("volume-1") && !printed.contains("171"), "{printed}");
        let short = serde_json::from_slice::<VolumeKeys>(br#"{"volume-1":[171,171]}"#).unwrap_err();
        assert!(!short.to_string().contains("171"), "{short}");
    }
}
