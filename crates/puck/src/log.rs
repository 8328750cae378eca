//! `puck log decrypt`: a log out of the bucket, as other tools read it. Nothing is changed in the bucket.

use crate::account::{self, PlaceArgs, SpriteRecord};
use anyhow::Context;
use api::name::{NameError, SpriteName};
use replica::Log;
use std::path::{Path, PathBuf};

/// Write a plain copy of a log, from which `litestream restore` rebuilds the database
///
/// The log is that of a sprite's map, or without a sprite that of the account. The copy holds what the bucket was to keep secret.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  puck log decrypt ./sprites/bucket ./copy --encryption-key-file keys\n  litestream restore -o account.db file://$PWD/copy"
)]
pub(crate) struct DecryptArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The directory for the copy, which must be empty or not there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The sprite; one that was destroyed and can be had back is found too
    #[arg(value_name = "SPRITE", value_parser = sprite_name)]
    name: Option<SpriteName>,
}

/// Copies, and prints how many files there are.
pub(crate) async fn decrypt(args: &DecryptArgs) -> anyhow::Result<()> {
    let place = args.place.connect()?;
    let keys = place.wraps.look().await?.into_keys();
    let of_account = keys.store(&place.bucket);
    let log = match &args.name {
        None => Log::new(of_account, account::log_prefix(&place.org)),
        Some(name) => {
            let scratch = tempfile::tempdir().context("make a temporary directory")?;
            let records = account::read(&of_account, &place.org, scratch.path())
                .await
                .context("read the account")?;
            let record =
                named(&records, name).with_context(|| format!("no sprite is named {name}"))?;
            let keys = keys.of_volume(record.volume, &[]);
            let store = keys.log_store(record.volume, place.bucket.clone());
            Log::new(store, volume::log_prefix(record.volume))
        }
    };
    prepare(&args.directory).with_context(|| format!("use {}", args.directory.display()))?;
    let files = log.copy_to(&args.directory).await.context("copy the log")?;
    anyhow::ensure!(files > 0, "the log has no files yet");
    println!("{files} files");
    Ok(())
}

/// The sprite of this name, or the one that had it last.
fn named<'a>(records: &'a [SpriteRecord], name: &SpriteName) -> Option<&'a SpriteRecord> {
    let named = records.iter().filter(|record| record.name == *name);
    named.max_by_key(|record| (record.destroyed_at.is_none(), record.destroyed_at))
}

/// Makes sure that the directory is there, empty, and nobody else's.
fn prepare(directory: &Path) -> anyhow::Result<()> {
    crate::data::create_private(directory)?;
    anyhow::ensure!(std::fs::read_dir(directory)?.next().is_none(), "it is not empty");
    Ok(())
}

fn sprite_name(text: &str) -> Result<SpriteName, NameError> {
    text.parse()
}
