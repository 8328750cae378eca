//! Which keys one machine may use.

use http::StatusCode;
use object_store::path::Path as Key;
use percent_encoding::percent_decode_str;
use volume::VolumeId;

/// The longest key.
const KEY_BYTES_MAX: usize = 512;

/// One volume to read and write, and the volumes that it was forked from, to read.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    volume: VolumeId,
    ancestors: Vec<VolumeId>,
}

/// Why a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScopeError {
    /// Not a key that any part of this product writes.
    #[error("malformed key")]
    Malformed,
    /// Another volume's, or no volume's at all.
    #[error("outside of this machine's volume")]
    Outside,
    /// An ancestor's, which is read-only.
    #[error("read-only")]
    ReadOnly,
}

impl ScopeError {
    /// The status that tells it to a guest.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Outside | Self::ReadOnly => StatusCode::FORBIDDEN,
        }
    }
}

impl Scope {
    /// The scope of a machine on `volume`.
    #[must_use]
    pub(crate) fn new(volume: VolumeId, ancestors: Vec<VolumeId>) -> Self {
        Self { volume, ancestors }
    }

    pub(super) fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The key that stands percent-encoded in a path, if the machine may read it, or with `write` also change it.
    pub(super) fn key(&self, encoded: &str, write: bool) -> Result<Key, ScopeError> {
        let text = percent_decode_str(encoded).decode_utf8().map_err(|_| ScopeError::Malformed)?;
        let (volume, rest) = self.locate(&text)?;
        match rest {
            Some(rest) if !rest.is_empty() => {}
            _ => return Err(ScopeError::Malformed),
        }
        if write && volume != self.volume {
            return Err(ScopeError::ReadOnly);
        }
        Key::parse(&*text).map_err(|_| ScopeError::Malformed)
    }

    /// The prefix to list, if all below it may be read.
    pub(super) fn prefix(&self, text: &str) -> Result<Key, ScopeError> {
        let text = text.strip_suffix('/').unwrap_or(text);
        self.locate(text)?;
        Key::parse(text).map_err(|_| ScopeError::Malformed)
    }

    /// The volume that a text is about, and what follows its id.
    fn locate<'a>(&self, text: &'a str) -> Result<(VolumeId, Option<&'a str>), ScopeError> {
        // A short alphabet and no odd segments, so that no store and no file system can read another key into it.
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        let odd = |segment: &str| matches!(segment, "" | "." | "..");
        if text.len() > KEY_BYTES_MAX || !text.bytes().all(plain) || text.split('/').any(odd) {
            return Err(ScopeError::Malformed);
        }
        let mut parts = text.splitn(3, '/');
        if parts.next() != Some("volumes") {
            return Err(ScopeError::Outside);
        }
        let volume: VolumeId =
            parts.next().and_then(|id| id.parse().ok()).ok_or(ScopeError::Outside)?;
        if volume == self.volume || self.ancestors.contains(&volume) {
            Ok((volume, parts.next()))
        } else {
            Err(ScopeError::Outside)
        }
    }
}
