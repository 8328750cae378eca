//! The data directory: what is where, and that only one server uses it.
//!
//! ```text
//! lock                  held by the server while it runs
//! node                  the id of this directory as an owner of the bucket
//! token                 the token of the default organization, for its user
//! accounts/ORG/         the account's database
//! volumes/VOLUME/       journal, cache and map of a volume; all but the unsealed tail can be lost
//! pool/VOLUME/          the same for the volumes of machines in the pool
//! unsettled/VOLUME      a mark: something of the volume is here that is not in the bucket, or must be removed from it
//! images/               base images
//! run/                  what exists only while the server runs
//! bucket/               the bucket, when no other is named
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// A data directory in exclusive use. The lock ends with the process, however it ends.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    _lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    /// Another server runs on it.
    #[error("data directory {0} is in use by another server")]
    InUse(PathBuf),
    /// It cannot be made or used.
    #[error("use {path} as data directory")]
    Use {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DataDir {
    /// Makes the directory where needed and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let usable = || -> io::Result<(PathBuf, File)> {
            create_private(path)?;
            // Machines bind parts of it, so its path must mean the same whatever the working directory is.
            let root = fs::canonicalize(path)?;
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(root.join("lock"))?;
            Ok((root, lock))
        };
        let (root, lock) =
            usable().map_err(|source| DataError::Use { path: path.to_owned(), source })?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DataError::InUse(root)),
            Err(errno) => Err(DataError::Use { path: root, source: errno.into() }),
        }
    }

    /// The directory itself.
    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the file with the user's token is.
    #[must_use]
    pub(crate) fn token(&self) -> PathBuf {
        self.root.join("token")
    }

    /// The directory of the database of one account.
    #[must_use]
    pub(crate) fn account(&self, organization: &str) -> PathBuf {
        self.root.join("accounts").join(organization)
    }

    /// The directory of the local state of all volumes.
    #[must_use]
    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The directory of the local state of the volumes of pooled machines.
    #[must_use]
    pub(crate) fn pooled(&self) -> PathBuf {
        self.root.join("pool")
    }

    /// The directory of the marks of volumes that are not settled.
    #[must_use]
    pub(crate) fn unsettled(&self) -> PathBuf {
        self.root.join("unsettled")
    }

    /// The directory of the base images.
    #[must_use]
    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The directory of what exists only while the server runs.
    #[must_use]
    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }
}

/// Makes a directory, and those above it, that only this user may enter.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file that only this user may read: whole and on disk, or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.as_file().set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{DataDir, DataError, write_private};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_server_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = DataDir::open(directory.path()).expect("free");
        assert!(matches!(DataDir::open(directory.path()), Err(DataError::InUse(_))));
        drop(first);
        DataDir::open(directory.path()).expect("free again");
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(matches!(DataDir::open(file.path()), Err(DataError::Use { .. })));
    }

    #[test]
    fn secrets_are_for_the_owner_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        write_private(&path, b"secret").expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
