//! The file of master keys: text, one key a line, 32 random bytes in base64 or hexadecimal; `#` begins a remark.
//!
//! New wraps are made with the first key, and any of them unwraps. What is in the file is named by no message.

use super::KeyId;
use base64::{Engine, prelude::BASE64_STANDARD};
use object_store::ObjectStore;
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use volume::{Encrypted, SecretKey};
use zeroize::Zeroizing;

/// The length of every key.
pub(super) const KEY_BYTES: usize = 32;

/// The largest file that is read.
const FILE_BYTES_MAX: usize = 64 << 10;

/// What nobody but the file's owner may do with it.
const OTHERS: u32 = 0o077;

/// Where the master keys are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KeyFileArgs {
    /// The file with the master key of an encrypted account; `puck key generate` makes one
    ///
    /// Text, one key a line. The first one is used for a new account; any of them opens an account that has it. Whether an
    /// account is encrypted is decided when it is made.
    #[arg(long, value_name = "FILE", env = "PUCK_ENCRYPTION_KEY_FILE")]
    encryption_key_file: Option<PathBuf>,
}

/// A master key.
#[derive(Debug, Clone)]
pub(crate) struct MasterKey(SecretKey);

/// The master keys of one file, at least one.
#[derive(Debug, Clone)]
pub(crate) struct MasterKeys {
    path: PathBuf,
    first: MasterKey,
    others: Vec<MasterKey>,
}

/// Why a file gives no master keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    /// It has no key.
    #[error("{0} holds no key: put one there with `puck key generate`")]
    Empty(PathBuf),
    /// A line is no key.
    #[error(
        "{path}, line {line}: expected a key, 32 bytes in base64 or hexadecimal, as `puck key generate` makes it"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
    },
    /// Others may read or change it.
    #[error("others may use the keys in {path} (mode {mode:03o}): run `chmod 600 {path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It cannot be read.
    #[error("read the keys in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no file of keys.
    #[error("{0} is larger than any file of keys")]
    TooLarge(PathBuf),
}

impl KeyFileArgs {
    /// Reads the file, if one is named.
    pub(crate) fn read(&self) -> Result<Option<MasterKeys>, KeyFileError> {
        self.encryption_key_file.as_deref().map(MasterKeys::read).transpose()
    }
}

impl MasterKeys {
    pub(super) fn read(path: &Path) -> Result<Self, KeyFileError> {
        let failed = |source| KeyFileError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & OTHERS != 0 {
            return Err(KeyFileError::Open { path: path.to_owned(), mode });
        }
        // With its capacity from the start, so that no copy of it stays behind where it grew.
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
        file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > FILE_BYTES_MAX {
            return Err(KeyFileError::TooLarge(path.to_owned()));
        }
        Self::parse(path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, KeyFileError> {
        let mut keys = Vec::new();
        for (line, bytes) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            let text = bytes.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
            if !text.is_empty() {
                let key = MasterKey::parse(text);
                keys.push(key.ok_or(KeyFileError::Line { path: path.to_owned(), line })?);
            }
        }
        let mut keys = keys.into_iter();
        let first = keys.next().ok_or_else(|| KeyFileError::Empty(path.to_owned()))?;
        Ok(Self { path: path.to_owned(), first, others: keys.collect() })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The one that new wraps are made with.
    pub(super) fn first(&self) -> &MasterKey {
        &self.first
    }

    /// All, in the order of the file.
    pub(super) fn iter(&self) -> impl Iterator<Item = &MasterKey> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl MasterKey {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if text.len() == 2 * KEY_BYTES {
            for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
                let digit = |at: usize| char::from(digits[at]).to_digit(16);
                *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
            }
        } else {
            let decoded = Zeroizing::new(BASE64_STANDARD.decode(text).ok()?);
            *key = <[u8; KEY_BYTES]>::try_from(decoded.as_slice()).ok()?;
        }
        Some(Self(SecretKey::from_bytes(key)))
    }

    /// What tells it from others.
    pub(super) fn id(&self) -> KeyId {
        KeyId(self.0.id())
    }

    /// The bucket as wraps for it are put and got.
    pub(super) fn store(&self, bucket: &Arc<dyn ObjectStore>) -> Encrypted {
        Encrypted::new(bucket.clone(), self.0.clone())
    }
}

/// A new key.
pub(super) fn random() -> SecretKey {
    SecretKey::from_bytes(Zeroizing::new(rand::random()))
}

/// A new master key, as a line for the file.
pub(crate) fn generate() -> Zeroizing<String> {
    Zeroizing::new(BASE64_STANDARD.encode(random().to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::{FILE_BYTES_MAX, KEY_BYTES, KeyFileError, MasterKeys, generate};
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    const HEX: &str = "000102030405060708090a0B0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn parse(text: &str) -> Result<MasterKeys, KeyFileError> {
        MasterKeys::parse(Path::new("file"), text.as_bytes())
    }

    #[test]
    fn keys_are_read_in_their_order_among_remarks_in_either_spelling() {
        let made = generate();
        let text = format!("# the keys\r\n\n  {} # new\n{HEX}\n#{HEX}\n{BASE64}\r\n", *made);
        let keys = parse(&text).expect("keys");
        let bytes: Vec<_> = keys.iter().map(|key| *key.0.to_bytes()).collect();
        let expected: [u8; KEY_BYTES] = std::array::from_fn(|at| at as u8);
        assert_eq!(bytes[1..], [expected, expected]);
        assert_eq!(keys.first().id(), parse(&made).expect("a key").first().id());
        assert_ne!(keys.first().id(), parse(HEX).expect("a key").first().id());
    }

    #[test]
    fn what_is_no_key_is_refused_by_its_line_and_not_repeated() {
        for bad in [
            "x",
            &HEX[1..],
            &HEX.replace("00", "+0"),
            &HEX.replace("00", "é"),
            &BASE64[1..],
            &BASE64.replace('=', ""),
            &format!("{BASE64}{BASE64}"),
            &format!("{BASE64} {BASE64}"),
            "AAECAwQFBgcICQoLDA0ODw==",
        ] {
            let error = parse(&format!("{HEX}\n{bad}\n")).expect_err(bad);
            assert!(matches!(error, KeyFileError::Line { line: 2, .. }), "{bad}: {error}");
            assert!(bad.len() < 2 || !error.to_string().contains(bad), "{error}");
        }
        for empty in ["", "\n", "# only\n # remarks\n"] {
            assert!(matches!(parse(empty), Err(KeyFileError::Empty(_))), "{empty:?}");
        }
        let printed = format!("{:?}", parse(HEX).expect("a key"));
        assert!(!printed.contains("0, 1, 2") && !printed.contains("0001"), "{printed}");
    }

    #[test]
    fn a_file_that_others_may_use_is_refused_with_the_fix() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keys");
        assert!(matches!(MasterKeys::read(&path), Err(KeyFileError::Read { .. })));
        fs::write(&path, HEX).expect("written");
        for (mode, open) in
            [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o620, true)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            match MasterKeys::read(&path) {
                Ok(_) => assert!(!open, "{mode:o}"),
                Err(error) => {
                    let fix = format!("chmod 600 {}", path.display());
                    assert!(open && error.to_string().contains(&fix), "{mode:o}: {error}");
                }
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::write(&path, "#".repeat(FILE_BYTES_MAX + 1)).expect("written");
        assert!(matches!(MasterKeys::read(&path), Err(KeyFileError::TooLarge(_))));
    }
}
