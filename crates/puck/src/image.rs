//! The base image: the one read-only root filesystem that every sprite starts from.
//!
//! An image is Debian 12, made by `mmdebstrap` from the Debian mirror that this host uses and packed by `mkfs.erofs` into one
//! file. It is named by the SHA-256 of that file. It lives in three places, and moves only downwards:
//!
//! 1. the *image cache* of the host ([`Cache`], `/var/cache/puck`), keyed by the [`Recipe`], so that a second data directory does
//!    not build again;
//! 2. the *bucket*, under `images/`, where `images/current` names the one that new sprites get;
//! 3. the worker's *data directory*, from where it is mounted.
//!
//! [`ensure`] is all that a server needs at its start: it asks the bucket, and when that has no image it publishes the cached
//! one, building it first if there is none.
//!
//! Invariants: a file whose name is a digest has that digest, since it was hashed before it got the name. A build works in a
//! directory of its own under the cache and leaves nothing there, whether it ends well or not; builds on one host run one after
//! the other. Whatever fails, `images/current` still names a complete image, because it is written last.

mod bucket;
mod cache;
mod certificates;
mod command;
mod digest;
mod erofs;
mod pip;
mod process;
mod progress;
mod recipe;
mod rootfs;
mod sources;

use object_store::ObjectStore;
use std::{
    io,
    path::{Path, PathBuf},
};

pub(crate) use bucket::{BucketError, current, fetch, has, publish};
pub(crate) use cache::{CACHE_DIR, Cache};
pub(crate) use command::{BuildArgs, run};
pub(crate) use digest::Digest;
pub(crate) use progress::Progress;
pub(crate) use recipe::Recipe;

/// What [`build`] and [`ensure`] need to know.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The host's image cache.
    pub(crate) cache: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cache: PathBuf::from(CACHE_DIR) }
    }
}

/// An image in the host's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuiltImage {
    /// Its name.
    pub(crate) digest: Digest,
    /// The erofs file. It is never changed.
    pub(crate) file: PathBuf,
    /// What is in it, as the JSON that stands beside it in the bucket.
    pub(crate) manifest: PathBuf,
}

/// Why there is no image. Bucket, cache and data directory hold only complete images all the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A program that builds images is not installed.
    #[error("{program} is not installed: apt-get install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// Only root may make device nodes, set owners and enter the new root.
    #[error("building an image needs root")]
    NotRoot,
    /// The host's settings that go into an image cannot be read.
    #[error("read {path}")]
    Host {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cache or the build directory cannot be used.
    #[error("use {path}")]
    Cache {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program of the build failed.
    #[error("{program} failed ({status}):\n{output}")]
    Program {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// A program of the build cannot be started or heard.
    #[error("run {program}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bucket does not take or give an image.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// Makes sure that the bucket has an image for new sprites and that `directory` has its file; gives both.
///
/// # Errors
/// When the bucket does not answer, or has no image and none can be built.
pub(crate) async fn ensure(
    store: &dyn ObjectStore,
    settings: &Settings,
    directory: &Path,
    progress: &Progress,
) -> Result<(Digest, PathBuf), Error> {
    bucket::remove_unfinished(directory)?;
    let digest = match current(store).await? {
        Some(digest) => digest,
        None => {
            let built = build_if_missing(settings, progress).await?;
            progress.step("publishing the base image in the bucket");
            publish(store, &built).await?;
            built.digest
        }
    };
    let file = fetch(store, &digest, directory).await?;
    progress.done();
    Ok((digest, file))
}

/// Builds a new image from the mirror's present state into the host's cache.
///
/// # Errors
/// When the host lacks a program, the mirror does not answer or a package does not install.
pub(crate) async fn build(settings: &Settings, progress: &Progress) -> Result<BuiltImage, Error> {
    let (cache, recipe) = prepare(settings, progress).await?;
    build_locked(&cache, &recipe, progress).await
}

/// The cached image of the present recipe, or a new one.
///
/// # Errors
/// As [`build`].
pub(crate) async fn build_if_missing(
    settings: &Settings,
    progress: &Progress,
) -> Result<BuiltImage, Error> {
    let (cache, recipe) = prepare(settings, progress).await?;
    match cache.find(&recipe)? {
        Some(found) => Ok(found),
        None => build_locked(&cache, &recipe, progress).await,
    }
}

/// Reads the recipe and takes the cache's lock, waiting for a build that another process runs.
async fn prepare(settings: &Settings, progress: &Progress) -> Result<(Cache, Recipe), Error> {
    progress.step("looking for a cached base image");
    let recipe = Recipe::of_this_host()?;
    let directory = settings.cache.clone();
    let cache = tokio::task::spawn_blocking(move || Cache::lock(&directory)).await.map_err(
        |source| Error::Cache { path: settings.cache.clone(), source: io::Error::other(source) },
    )??;
    Ok((cache, recipe))
}

async fn build_locked(
    cache: &Cache,
    recipe: &Recipe,
    progress: &Progress,
) -> Result<BuiltImage, Error> {
    process::require_root()?;
    process::require(&[
        ("mmdebstrap", "mmdebstrap"),
        ("mkfs.erofs", "erofs-utils"),
        ("find", "findutils"),
    ])?;
    let directory = cache.build_directory()?;
    let root = rootfs::make(recipe, directory.path(), progress).await?;
    progress.step("packing the base image");
    let file = erofs::pack(&root, &directory.path().join("image.erofs")).await?;
    cache.insert(recipe, &root, &file)
}
