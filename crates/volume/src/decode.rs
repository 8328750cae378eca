//! Reading fixed little-endian fields from untrusted bytes without panicking.

use crate::error::ErrorKind;

/// The bytes ended early or hold a value that no writer produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The bytes ended inside a field.
    #[error("ends inside a field")]
    Truncated,
    /// The first bytes are not those of this format.
    #[error("not this format")]
    Magic,
    /// A version that this build does not know.
    #[error("unknown version {0}")]
    Version(u32),
    /// It is encrypted, and there is no key for it.
    #[error("it is encrypted, and its volume's key is not here")]
    NoKey,
    /// It is not encrypted, and its volume has a key.
    #[error("it is not encrypted, and all of its volume is")]
    Plain,
    /// It is encrypted with another key, or was changed or moved since.
    #[error("it does not decrypt: the key is another, or it was changed or moved")]
    WrongKey,
    /// The checksum does not match.
    #[error("checksum mismatch in {0}")]
    Checksum(&'static str),
    /// A field has a value out of its range.
    #[error("bad value of {0}")]
    Value(&'static str),
}

impl DecodeError {
    /// What the caller can do about it.
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::NoKey | Self::WrongKey => ErrorKind::Invalid,
            _ => ErrorKind::Corrupt,
        }
    }
}

/// Takes fields off the front of a slice.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }
}
