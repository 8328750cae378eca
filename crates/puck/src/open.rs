//! `puck open`: a sprite out of any bucket, as a new one on a server.
//!
//! The bucket is read by this process, with the keys of whoever runs it, and nothing in it is changed: whoever owns the sprite goes
//! on with it. The server gets an archive, which it treats like any that it did not write.

use crate::{
    account,
    archive::Manifest,
    bucket::{self, BucketUrl},
    keys::{KeyFileArgs, Wraps},
    worker::Departing,
};
use anyhow::Context;
use api::name::{NameError, OrgName, SpriteName};
use std::{io::Write, str::FromStr};
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};

/// Bring up a copy of a sprite from its disk in a bucket
///
/// The URL is what `puck info` shows as the sprite's disk. It is read with the usual AWS environment variables and stays as it is. The new sprite
/// begins as what that bucket has at the moment, without checkpoints.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  puck open s3://name/prefix#web web --trust\n  puck open /backup/bucket#web web --trust --encryption-key-file keys"
)]
pub(crate) struct OpenArgs {
    /// s3://name/prefix#SPRITE, or a directory with #SPRITE behind it
    #[arg(value_name = "URL")]
    url: SpriteUrl,
    /// The new sprite's name
    #[arg(value_parser = sprite_name)]
    name: SpriteName,
    /// Take it although another server wrote it, because you trust whoever did
    #[arg(long)]
    trust: bool,
    /// The organization that the sprite is of
    #[arg(long, value_name = "NAME", default_value = "local", value_parser = organization)]
    organization: OrgName,
    #[command(flatten)]
    key_file: KeyFileArgs,
}

/// Where the disk of a sprite is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SpriteUrl {
    bucket: BucketUrl,
    sprite: SpriteName,
}

impl FromStr for SpriteUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (bucket, sprite) = text
            .rsplit_once('#')
            .ok_or("expected the bucket and # and the sprite, as in s3://name/prefix#web")?;
        let bucket = bucket.parse::<BucketUrl>().map_err(|error| error.to_string())?;
        let sprite = sprite.parse::<SpriteName>().map_err(|error| error.to_string())?;
        Ok(Self { bucket, sprite })
    }
}

/// What is sent to the server.
struct Source {
    departing: Departing,
    manifest: Manifest,
    _scratch: TempDir,
}

/// Reads the bucket and makes the sprite. Must be called outside of any async runtime.
pub(crate) fn run(
    options: &puck_cli::Options,
    args: &OpenArgs,
) -> anyhow::Result<std::process::ExitCode> {
    let runtime = Runtime::new().context("start the runtime")?;
    let source = runtime.block_on(find(args))?;
    let handle = runtime.handle().clone();
    Ok(puck_cli::import(options, &args.name, args.trust, move |out| source.write(&handle, out)))
}

async fn find(args: &OpenArgs) -> anyhow::Result<Source> {
    let SpriteUrl { bucket: url, sprite } = &args.url;
    let store = bucket::connect(url)?;
    let wraps = Wraps::new(store.clone(), args.organization.clone(), args.key_file.read()?);
    let keys = wraps.look().await?.into_keys();
    let scratch = tempfile::tempdir().context("make a temporary directory")?;
    let records = account::read(&keys.store(&store), &args.organization, scratch.path())
        .await
        .context("read the account")?;
    let record = records
        .iter()
        .find(|record| record.name == *sprite && record.destroyed_at.is_none())
        .with_context(|| format!("no sprite is named {sprite} in {url}"))?;
    let keys = keys.of_volume(record.volume, &record.ancestors);
    let departing = Departing::open(&store, keys, record.volume, None, scratch.path()).await?;
    let manifest = Manifest::new(record, departing.contents().clone());
    Ok(Source { departing, manifest, _scratch: scratch })
}

impl Source {
    fn write(&self, runtime: &Handle, out: &mut dyn Write) -> anyhow::Result<()> {
        Ok(self.departing.write(runtime, out, None, &self.manifest)?)
    }
}

fn sprite_name(text: &str) -> Result<SpriteName, NameError> {
    text.parse()
}

fn organization(text: &str) -> Result<OrgName, NameError> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::SpriteUrl;

    #[test]
    fn a_url_names_a_bucket_and_a_sprite() {
        let parsed: SpriteUrl = "s3://name/a/b#web".parse().unwrap();
        assert_eq!(
            (parsed.bucket.to_string(), parsed.sprite.as_str()),
            ("s3://name/a/b".into(), "web")
        );
        assert!("/x#y/bucket#web-1".parse::<SpriteUrl>().is_ok(), "a directory may have a #");
        for bad in ["s3://name/web", "s3://name#", "s3://name#We b", "#web", "http://x#web"] {
            assert!(bad.parse::<SpriteUrl>().is_err(), "{bad}");
        }
    }
}
