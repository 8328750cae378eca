//! Which volumes are unsettled: something of them is here that is not in the bucket yet, or must be removed from it.
//!
//! A volume is marked before its machine boots and before its sprite is destroyed. The mark goes when the machine has
//! slept, with everything in the bucket, or when nothing of the volume is left. What is marked at a start was cut off by a
//! crash: volumes of sprites are woken to finish, all others, pooled or destroyed, are removed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Mutex,
};
use tracing::warn;
use volume::VolumeId;

/// A set of volumes that survives a crash.
#[derive(Debug)]
pub(super) struct Marks {
    directory: PathBuf,
    /// Orders the changes, so that the directory and what callers were told agree.
    order: Mutex<()>,
}

impl Marks {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        crate::data::create_private(directory)?;
        Ok(Self { directory: directory.to_owned(), order: Mutex::new(()) })
    }

    /// Marks a volume, durably. Says whether it was not marked before.
    pub(super) fn add(&self, volume: VolumeId) -> io::Result<bool> {
        let _order = self.order.lock().expect("no panic while held");
        match OpenOptions::new().write(true).create_new(true).open(self.path(volume)) {
            Ok(_) => {
                File::open(&self.directory)?.sync_all()?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the mark. One that stays by mistake only costs work at the next start.
    pub(super) fn remove(&self, volume: VolumeId) {
        let _order = self.order.lock().expect("no panic while held");
        match fs::remove_file(self.path(volume)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%volume, error = &error as &dyn std::error::Error, "unmark a volume");
            }
            _ => {}
        }
    }

    /// Whether a volume is marked.
    pub(super) fn has(&self, volume: VolumeId) -> bool {
        self.path(volume).exists()
    }

    /// Every marked volume.
    pub(super) fn all(&self) -> io::Result<Vec<VolumeId>> {
        let mut volumes = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            if let Some(volume) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                volumes.push(volume);
            }
        }
        Ok(volumes)
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(volume.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::Marks;
    use volume::VolumeId;

    #[test]
    fn marks_survive_and_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, two) = (VolumeId::now(), VolumeId::now());
        let marks = Marks::open(directory.path()).expect("usable");
        assert!(marks.add(one).expect("marked"));
        assert!(!marks.add(one).expect("still marked"));
        marks.add(two).expect("marked");
        marks.remove(two);
        marks.remove(two);
        let again = Marks::open(directory.path()).expect("usable");
        assert_eq!(again.all().expect("readable"), [one]);
    }
}
