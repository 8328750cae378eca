//! `puck image build`.

use super::{CACHE_DIR, Digest, Error, Progress, Settings, build, build_if_missing, publish};
use object_store::ObjectStore;
use std::path::PathBuf;

/// Build the base image that sprites start from.
///
/// Debian 12 from this host's mirror, as one erofs file. With --data or --bucket it becomes the image of new sprites there;
/// sprites that exist keep theirs. Without, it is kept in the cache, where `puck dev` finds it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BuildArgs {
    /// Publish in the bucket that a server with this data directory uses by default.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Publish in this bucket.
    #[arg(long, value_name = "URL")]
    pub(crate) bucket: Option<String>,
    /// The host's image cache.
    #[arg(long, value_name = "DIR", default_value = CACHE_DIR)]
    pub(crate) cache: PathBuf,
    /// Take the cached image if there is one that was built with the same settings.
    #[arg(long)]
    pub(crate) if_missing: bool,
}

/// Builds, and publishes when there is a bucket. Gives the digest.
///
/// # Errors
/// As [`build`] and [`publish`].
pub(crate) async fn run(
    args: &BuildArgs,
    store: Option<&dyn ObjectStore>,
) -> Result<Digest, Error> {
    let settings = Settings { cache: args.cache.clone() };
    let progress = Progress::to_stderr();
    let image = match args.if_missing {
        true => build_if_missing(&settings, &progress).await?,
        false => build(&settings, &progress).await?,
    };
    if let Some(store) = store {
        progress.step("publishing the base image in the bucket");
        publish(store, &image).await?;
    }
    progress.done();
    Ok(image.digest)
}
