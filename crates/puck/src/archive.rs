//! A sprite as one file: a tar archive, written and read front to back.
//!
//! ```text
//! sprite.json      the manifest: settings, image, layers and checkpoints
//! sprite.seal
//! segments/NUMBER  the blocks, in the order in which the manifest names them
//! rows/NUMBER      the rows of the map, about 1 MiB each, from 0 on
//! end.seal
//! ```
//!
//! A seal is JSON: the SHA-256 of names and contents of all members before it, but for seals, and its HMAC with the account's
//! archive key if an account wrote it. The first one says early whether this account did, and the last one that
//! nothing is missing. Everything is plain: whoever has the file has the sprite's data.
//!
//! What is read may come from anywhere: members must come in this order under these names, lengths are bounded, and
//! extensions of the format are not followed.

use api::{policy::Policies, sprite::Durability};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
};
use tar::EntryType;
use volume::{Contents, PIECE_BYTES_MAX, Piece};

/// The version of the archive that is written and read.
const FORMAT: u32 = 1;

const MANIFEST: &str = "sprite.json";
const FRONT_SEAL: &str = "sprite.seal";
const END_SEAL: &str = "end.seal";

/// The longest manifest: of a volume with a million segments, and thousands of checkpoints with long comments.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
const SEAL_BYTES_MAX: u64 = 4096;

/// The key with which an account marks the archives that it wrote.
#[derive(Clone)]
pub(crate) struct ArchiveKey(pub(crate) [u8; 32]);

impl fmt::Debug for ArchiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArchiveKey(..)")
    }
}

/// What an archive says of its sprite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: u32,
    /// What the sprite was called.
    pub(crate) name: String,
    /// When the archive was begun.
    pub(crate) written_at: Timestamp,
    /// The digest of its base image.
    pub(crate) image: String,
    /// Labels, as the API has them.
    pub(crate) labels: Vec<String>,
    /// Default environment of commands.
    pub(crate) environment: BTreeMap<String, String>,
    /// Seconds without activity until it sleeps.
    pub(crate) idle_timeout_seconds: u64,
    /// When a flush of its disk is done.
    pub(crate) durability: Durability,
    /// What it may reach and use.
    #[serde(default)]
    pub(crate) policies: Policies,
    /// What its disk consists of.
    pub(crate) disk: Contents,
}

impl Manifest {
    /// The manifest of a sprite.
    pub(crate) fn new(record: &crate::account::SpriteRecord, disk: Contents) -> Self {
        Self {
            format: FORMAT,
            name: record.name.to_string(),
            written_at: Timestamp::now(),
            image: record.image.clone(),
            labels: record.labels.clone(),
            environment: record.environment.clone(),
            idle_timeout_seconds: record.idle_timeout_seconds,
            durability: record.durability,
            policies: record.policies.clone(),
            disk,
        }
    }
}

/// Who wrote an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This account: nobody else can have made it.
    Here,
    /// Anybody.
    Elsewhere,
}

/// Why a file is not read further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// It is something else.
    #[error("this is not the archive of a sprite")]
    Foreign,
    /// A newer version wrote it.
    #[error("the archive has format {0}; this version knows {FORMAT}")]
    Format(u32),
    /// A member is not what may come there.
    #[error("the archive has {found:?} where {expected} should be")]
    Member {
        /// Its name, made printable.
        found: String,
        /// What may come.
        expected: &'static str,
    },
    /// A member is longer than any of its kind.
    #[error("{0} is too long")]
    Long(String),
    /// It ends too early.
    #[error("the archive ends early")]
    Short,
    /// It is not what was written.
    #[error("the archive was changed since it was written")]
    Changed,
    /// The manifest or a seal does not parse.
    #[error("understand {0}")]
    Parse(&'static str, #[source] serde_json::Error),
    /// It could not be read or written.
    #[error("{0} the archive")]
    Io(&'static str, #[source] io::Error),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    sha256: String,
    mac: Option<String>,
}

/// The digest of what came so far.
#[derive(Clone, Default)]
struct Sum(Sha256);

impl Sum {
    fn add(&mut self, name: &str, content: &[u8]) {
        for part in [name.as_bytes(), content] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    fn digest(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }

    fn mac(&self, key: &ArchiveKey, seal: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&key.0).expect("a key of any length is one");
        mac.update(seal.as_bytes());
        mac.update(&self.digest());
        mac
    }

    fn seal(&self, key: Option<&ArchiveKey>, name: &str) -> Seal {
        let mac = key.map(|key| hex(&self.mac(key, name).finalize().into_bytes()));
        Seal { sha256: hex(&self.digest()), mac }
    }

    /// Whether a seal is of what came so far, and if so, who made it.
    fn check(&self, seal: &Seal, key: &ArchiveKey, name: &str) -> Result<Origin, ArchiveError> {
        if seal.sha256 != hex(&self.digest()) {
            return Err(ArchiveError::Changed);
        }
        let ours = seal.mac.as_deref().and_then(unhex).is_some_and(|mac| {
            // In a time that tells nothing.
            self.mac(key, name).verify_slice(&mac).is_ok()
        });
        Ok(if ours { Origin::Here } else { Origin::Elsewhere })
    }
}

/// Writes an archive.
pub(crate) struct Writer<W: Write> {
    tar: tar::Builder<W>,
    sum: Sum,
    key: Option<ArchiveKey>,
    rows: u32,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub(crate) fn begin(
        out: W,
        key: Option<ArchiveKey>,
        manifest: &Manifest,
    ) -> Result<Self, ArchiveError> {
        let mut writer = Self { tar: tar::Builder::new(out), sum: Sum::default(), key, rows: 0 };
        let text = serde_json::to_vec(manifest).expect("a manifest is always JSON");
        writer.member(MANIFEST, &text)?;
        writer.seal(FRONT_SEAL)?;
        Ok(writer)
    }

    /// Adds the next piece of the disk.
    pub(crate) fn piece(&mut self, piece: &Piece) -> Result<(), ArchiveError> {
        match piece {
            Piece::Segment(id, bytes) => self.member(&format!("segments/{id}"), bytes),
            Piece::Rows(bytes) => {
                let name = format!("rows/{}", self.rows);
                self.rows += 1;
                self.member(&name, bytes)
            }
        }
    }

    /// Ends it.
    pub(crate) fn finish(mut self) -> Result<W, ArchiveError> {
        self.seal(END_SEAL)?;
        self.tar.into_inner().map_err(|error| ArchiveError::Io("write", error))
    }

    fn member(&mut self, name: &str, content: &[u8]) -> Result<(), ArchiveError> {
        self.sum.add(name, content);
        self.append(name, content)
    }

    fn seal(&mut self, name: &str) -> Result<(), ArchiveError> {
        let seal = self.sum.seal(self.key.as_ref(), name);
        self.append(name, &serde_json::to_vec(&seal).expect("a seal is always JSON"))
    }

    fn append(&mut self, name: &str, content: &[u8]) -> Result<(), ArchiveError> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        let appended = self.tar.append_data(&mut header, name, content);
        appended.map_err(|error| ArchiveError::Io("write", error))
    }
}

/// Reads an archive.
pub(crate) struct Reader<'a, R: Read> {
    entries: tar::Entries<'a, R>,
    sum: Sum,
    key: &'a ArchiveKey,
    origin: Origin,
    rows: u32,
}

impl<'a, R: Read> Reader<'a, R> {
    /// Reads up to the first piece.
    pub(crate) fn begin(
        tar: &'a mut tar::Archive<R>,
        key: &'a ArchiveKey,
    ) -> Result<(Self, Manifest), ArchiveError> {
        let entries = tar.entries().map_err(|error| ArchiveError::Io("read", error))?.raw(true);
        let mut reader =
            Self { entries, sum: Sum::default(), key, origin: Origin::Elsewhere, rows: 0 };
        // Anything else than an archive fails here, at the header of a first member or at its name.
        let (name, text) = reader
            .next(|name| (name == MANIFEST).then_some(MANIFEST_BYTES_MAX), MANIFEST)
            .map_err(|error| match error {
                ArchiveError::Member { .. } | ArchiveError::Short => ArchiveError::Foreign,
                other => other,
            })?;
        let manifest = manifest(&text)?;
        reader.sum.add(&name, &text);
        reader.origin = reader.read_seal(FRONT_SEAL)?;
        Ok((reader, manifest))
    }

    /// Who wrote it.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// The next piece; `None` at the end, when all that came is what was written.
    pub(crate) fn piece(&mut self) -> Result<Option<Piece>, ArchiveError> {
        let rows = format!("rows/{}", self.rows);
        let bound = |name: &str| match name {
            END_SEAL => Some(SEAL_BYTES_MAX),
            name if name == rows || segment(name).is_some() => Some(PIECE_BYTES_MAX),
            _ => None,
        };
        let (name, content) = self.next(bound, "a piece of the disk or the end")?;
        if name == END_SEAL {
            let seal = parse(END_SEAL, &content)?;
            // Whoever has a front of ours must have our end too.
            if self.sum.check(&seal, self.key, END_SEAL)? != self.origin {
                return Err(ArchiveError::Changed);
            }
            return match self.entries.next() {
                None => Ok(None),
                Some(Err(error)) => Err(broken(error)),
                Some(Ok(_)) => Err(ArchiveError::Changed),
            };
        }
        self.sum.add(&name, &content);
        if let Some(id) = segment(&name) {
            return Ok(Some(Piece::Segment(id, content.into())));
        }
        self.rows += 1;
        Ok(Some(Piece::Rows(content.into())))
    }

    fn read_seal(&mut self, seal: &'static str) -> Result<Origin, ArchiveError> {
        let (_, text) = self.next(|name| (name == seal).then_some(SEAL_BYTES_MAX), seal)?;
        self.sum.check(&parse(seal, &text)?, self.key, seal)
    }

    /// The next member, if it may come and is not longer than it may be.
    fn next(
        &mut self,
        bound: impl Fn(&str) -> Option<u64>,
        expected: &'static str,
    ) -> Result<(String, Vec<u8>), ArchiveError> {
        let entry = self.entries.next().ok_or(ArchiveError::Short)?;
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        let most = bound(&name).filter(|_| entry.header().entry_type() == EntryType::Regular);
        let Some(most) = most else {
            let found = name.chars().take(100).collect();
            return Err(ArchiveError::Member { found, expected });
        };
        if size > most {
            return Err(ArchiveError::Long(name));
        }
        // Not allocated before it is there: the size is only what the file says.
        let mut content = Vec::new();
        let read = entry.read_to_end(&mut content).map_err(broken)?;
        if read as u64 == size { Ok((name, content)) } else { Err(ArchiveError::Short) }
    }
}

fn broken(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Short,
        // What the tar reader itself complains of.
        io::ErrorKind::Other | io::ErrorKind::InvalidData => ArchiveError::Foreign,
        _ => ArchiveError::Io("read", error),
    }
}

fn manifest(text: &[u8]) -> Result<Manifest, ArchiveError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Version { format } = parse(MANIFEST, text)?;
    if format == FORMAT { parse(MANIFEST, text) } else { Err(ArchiveError::Format(format)) }
}

fn parse<T: DeserializeOwned>(what: &'static str, text: &[u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(text).map_err(|error| ArchiveError::Parse(what, error))
}

/// The number in `segments/NUMBER`, if it is written as we write it.
fn segment(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segments/")?;
    let id: u32 = digits.parse().ok()?;
    (id.to_string() == digits).then_some(id)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests;
