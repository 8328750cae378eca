//! Where services are defined: a file on the sprite's disk that its programs do not see, so that definitions go back with a
//! checkpoint and along with a fork.
//!
//! A disk may come from anywhere, so what is read is bounded, reached without following links, and believed only as far as it
//! parses. It is written whole, beside the old one, and takes its place by a rename.

use api::service::{DEFINITION_BYTES_MAX, ServiceDefinition, ServiceName};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::PathBuf,
};

/// The most services of a sprite.
pub(super) const SERVICES_MAX: usize = 32;

/// The longest file: every definition at its longest.
const FILE_BYTES_MAX: u64 = (SERVICES_MAX * (DEFINITION_BYTES_MAX + 1024)) as u64;

const FILE: &str = "services.json";
const FILE_NEW: &str = "services.json.new";

/// A service as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(flatten)]
    pub(super) definition: ServiceDefinition,
    /// Somebody has stopped it, and it stays so until somebody starts it.
    #[serde(default)]
    pub(super) is_stopped: bool,
}

/// Every service by its name.
pub(super) type Definitions = BTreeMap<ServiceName, Stored>;

/// The directory of the file. All calls block.
#[derive(Debug, Clone)]
pub(super) struct Store(pub(super) PathBuf);

impl Store {
    /// Reads what is defined: nothing, if there is no file.
    pub(super) fn load(&self) -> io::Result<Definitions> {
        let file = match self.directory().and_then(|dir| open(&dir, FILE, OFlags::RDONLY)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Definitions::new()),
            file => File::from(file?),
        };
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
        let definitions: Definitions = serde_json::from_slice(&text)?;
        if definitions.len() > SERVICES_MAX || text.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many services"));
        }
        Ok(definitions)
    }

    /// Writes what is defined, durably.
    pub(super) fn save(&self, definitions: &Definitions) -> io::Result<()> {
        match std::fs::create_dir(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let dir = self.directory()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let mut file = File::from(open(&dir, FILE_NEW, flags)?);
        file.write_all(&serde_json::to_vec(definitions)?)?;
        file.sync_all()?;
        rustix::fs::renameat(&dir, FILE_NEW, &dir, FILE)?;
        rustix::fs::fsync(&dir)?;
        Ok(())
    }

    fn directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(CWD, &self.0, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?)
    }
}

/// Opens a plain file of a directory.
fn open(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    // A pipe in its place must not be waited for.
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat2(dir, name, flags, mode, resolve)?)
}

#[cfg(test)]
mod tests {
    use super::{Definitions, FILE, SERVICES_MAX, Store, Stored};
    use api::service::ServiceDefinition;
    use std::{fs, os::unix::fs::symlink};

    fn definitions(count: usize) -> Definitions {
        let definition = ServiceDefinition { cmd: "web".to_owned(), ..Default::default() };
        let stored = Stored { definition, is_stopped: true };
        (0..count).map(|n| (format!("s{n}").parse().unwrap(), stored.clone())).collect()
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store(dir.path().canonicalize().unwrap().join("services"));
        assert!(store.load().unwrap().is_empty());
        for count in [3, 1] {
            store.save(&definitions(count)).unwrap();
            assert_eq!(store.load().unwrap(), definitions(count));
        }
    }

    #[test]
    fn what_somebody_else_wrote_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let store = Store(top.join("services"));
        store.save(&definitions(1)).unwrap();
        let file = store.0.join(FILE);
        for text in [
            "",
            "[]",
            "{\"a/b\":{\"cmd\":\"x\"}}",
            "{\"a\":{}}",
            "{\"a\":{\"cmd\":\"x\",\"needs\":[\"/\"]}}",
        ] {
            fs::write(&file, text).unwrap();
            assert!(store.load().is_err(), "{text}");
        }
        fs::write(&file, serde_json::to_vec(&definitions(SERVICES_MAX + 1)).unwrap()).unwrap();
        assert!(store.load().is_err());
        fs::remove_file(&file).unwrap();
        symlink("/etc/hostname", &file).unwrap();
        assert!(store.load().is_err());
        store.save(&definitions(2)).unwrap();
        assert_eq!(store.load().unwrap(), definitions(2));
        fs::remove_dir_all(&store.0).unwrap();
        symlink(&top, &store.0).unwrap();
        assert!(store.load().is_err() && store.save(&definitions(1)).is_err());
    }
}
