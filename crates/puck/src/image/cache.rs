//! The host's image cache: `images/DIGEST.erofs`, `images/DIGEST.json`, and `recipes/KEY` that names the newest image of a
//! recipe.
//!
//! Holding a [`Cache`] is holding its lock, so at most one process of the host builds or looks; the others wait. What a killed
//! build left behind is removed by the next that takes the lock. Deleting the whole cache costs a build and nothing else.

use super::{BuiltImage, Digest, Error, Recipe, rootfs::Root};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Where the cache is unless the user says otherwise.
pub(crate) const CACHE_DIR: &str = "/var/cache/puck";

const BUILD_PREFIX: &str = "build-";

/// The cache, locked.
#[derive(Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    /// Unlocked when it is closed.
    _lock: File,
}

impl Cache {
    /// Takes the lock, waiting for whoever has it, and removes what killed builds left.
    pub(super) fn lock(directory: &Path) -> Result<Self, Error> {
        for sub in ["images", "recipes"] {
            let path = directory.join(sub);
            fs::create_dir_all(&path).map_err(error(&path))?;
        }
        let path = directory.join("lock");
        let lock = File::create(&path).map_err(error(&path))?;
        lock.lock().map_err(error(&path))?;
        let cache = Self { directory: directory.to_owned(), _lock: lock };
        cache.remove_old_builds()?;
        Ok(cache)
    }

    /// The newest image of a recipe. An image whose file has gone is no image.
    pub(super) fn find(&self, recipe: &Recipe) -> Result<Option<BuiltImage>, Error> {
        let path = self.pointer(recipe);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(&path)(source)),
        };
        let Ok(digest) = text.trim().parse::<Digest>() else { return Ok(None) };
        let image = self.image(digest);
        Ok((image.file.is_file() && image.manifest.is_file()).then_some(image))
    }

    /// A new directory to build in, removed when it is dropped.
    pub(super) fn build_directory(&self) -> Result<tempfile::TempDir, Error> {
        // apt's own user reads from it.
        let mode = fs::Permissions::from_mode(0o755);
        let made = tempfile::Builder::new()
            .prefix(BUILD_PREFIX)
            .permissions(mode)
            .tempdir_in(&self.directory);
        made.map_err(error(&self.directory))
    }

    /// Takes a packed image in, under the name that its bytes give it.
    pub(super) fn insert(
        &self,
        recipe: &Recipe,
        root: &Root,
        file: &Path,
    ) -> Result<BuiltImage, Error> {
        let image = self.image(Digest::of_file(file).map_err(error(file))?);
        let size = fs::metadata(file).map_err(error(file))?.len();
        let manifest = serde_json::json!({
            "digest": image.digest.as_str(),
            "size_bytes": size,
            "created": jiff::Timestamp::now().to_string(),
            "mirror_time": root.epoch,
            "suite": super::recipe::SUITE,
            "packages": root.packages,
        });
        write(&image.manifest, &format!("{manifest:#}\n"))?;
        fs::rename(file, &image.file).map_err(error(&image.file))?;
        File::open(&image.file).and_then(|file| file.sync_all()).map_err(error(&image.file))?;
        write(&self.pointer(recipe), &format!("{}\n", image.digest))?;
        self.remove_unnamed_images()?;
        Ok(image)
    }

    /// Removes images that no recipe names any more. Buckets and servers have copies of their own.
    fn remove_unnamed_images(&self) -> Result<(), Error> {
        let mut named = BTreeSet::new();
        for path in entries(&self.directory.join("recipes"))? {
            let text = fs::read_to_string(&path).map_err(error(&path))?;
            named.insert(text.trim().to_owned());
        }
        for path in entries(&self.directory.join("images"))? {
            let digest = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            if digest.is_none_or(|digest| !named.contains(&digest)) {
                fs::remove_file(&path).map_err(error(&path))?;
            }
        }
        Ok(())
    }

    fn image(&self, digest: Digest) -> BuiltImage {
        let path = |extension| self.directory.join("images").join(format!("{digest}.{extension}"));
        BuiltImage { file: path("erofs"), manifest: path("json"), digest }
    }

    fn pointer(&self, recipe: &Recipe) -> PathBuf {
        self.directory.join("recipes").join(recipe.key())
    }

    fn remove_old_builds(&self) -> Result<(), Error> {
        for path in entries(&self.directory)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.is_some_and(|name| name.starts_with(BUILD_PREFIX)) {
                fs::remove_dir_all(&path).map_err(error(&path))?;
            }
        }
        Ok(())
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    entries.map_err(error(directory))
}

/// Writes a small file whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let new = path.with_extension("new");
    fs::write(&new, text).map_err(error(&new))?;
    fs::rename(&new, path).map_err(error(path))
}

fn error(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Cache { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe::new(String::new(), Vec::new(), Vec::new(), String::new())
    }

    #[test]
    fn what_was_inserted_is_found_until_its_file_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::lock(directory.path()).expect("locked");
        assert_eq!(cache.find(&recipe()).expect("looked"), None);
        let build = cache.build_directory().expect("a directory");
        let file = build.path().join("image.erofs");
        fs::write(&file, "bytes").expect("written");
        let root = Root { directory: build.path().to_owned(), epoch: 0, packages: Vec::new() };
        let image = cache.insert(&recipe(), &root, &file).expect("inserted");
        assert_eq!(cache.find(&recipe()).expect("looked"), Some(image.clone()));
        fs::write(&file, "newer").expect("written");
        let newer = cache.insert(&recipe(), &root, &file).expect("inserted");
        assert_eq!(cache.find(&recipe()).expect("looked"), Some(newer.clone()));
        assert!(!image.file.exists() && !image.manifest.exists(), "nothing names the old image");
        let image = newer;
        fs::remove_file(&image.file).expect("removed");
        assert_eq!(cache.find(&recipe()).expect("looked"), None);
    }

    #[test]
    fn a_killed_build_is_removed_by_the_next() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join("build-old/root")).expect("made");
        let _cache = Cache::lock(directory.path()).expect("locked");
        assert!(!directory.path().join("build-old").exists());
    }
}
