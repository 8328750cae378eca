//! Names of sprites and organizations.

use std::{fmt, str::FromStr};

/// The longest sprite name in bytes. With `-` and an org id of five characters it still fits a host label of 63 bytes.
pub const SPRITE_NAME_BYTES_MAX: usize = 57;

/// The longest organization name in bytes.
pub const ORG_NAME_BYTES_MAX: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No text at all.
    #[error("name is required")]
    Missing,
    /// Not lower-case letters, digits and inner hyphens, or too long.
    #[error("invalid sprite name format")]
    Format,
}

/// The name of a sprite: lower-case letters, digits and inner hyphens, at most [`SPRITE_NAME_BYTES_MAX`] bytes.
///
/// Such a name is safe in a URL, a host label, a path and a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpriteName(String);

/// The name of an organization, under the same rules as a sprite name but up to [`ORG_NAME_BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrgName(String);

macro_rules! name {
    ($name:ident, $most:ident) => {
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                label(text, $most).map(|label| Self(label.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(SpriteName, SPRITE_NAME_BYTES_MAX);
name!(OrgName, ORG_NAME_BYTES_MAX);

fn label(text: &str, bytes_max: usize) -> Result<&str, NameError> {
    if text.is_empty() {
        return Err(NameError::Missing);
    }
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let bytes = text.as_bytes();
    let edges_ok = bytes[0] != b'-' && bytes[bytes.len() - 1] != b'-';
    if edges_ok && bytes.len() <= bytes_max && bytes.iter().copied().all(inner) {
        Ok(text)
    } else {
        Err(NameError::Format)
    }
}

#[cfg(test)]
mod tests {
    use super::{NameError, SPRITE_NAME_BYTES_MAX, SpriteName};

    #[test]
    fn labels_are_names() {
        for good in ["a", "my-sprite", "0", "a--b", &"x".repeat(SPRITE_NAME_BYTES_MAX)] {
            assert_eq!(
                good.parse::<SpriteName>().map(|name| name.to_string()),
                Ok(good.to_owned())
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!("".parse::<SpriteName>(), Err(NameError::Missing));
        let long = "x".repeat(SPRITE_NAME_BYTES_MAX + 1);
        for bad in
            ["-a", "a-", "A", "a_b", "..", "a/b", "a.b", "a\0", "ä", " a", "a\n", long.as_str()]
        {
            assert_eq!(bad.parse::<SpriteName>(), Err(NameError::Format), "{bad:?}");
        }
    }
}
