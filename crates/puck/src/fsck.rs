//! `puck fsck`: checks sprites in a bucket, whoever runs them. Nothing is changed, in the bucket or elsewhere.
//!
//! The account's and each volume's log are checked file by file, then rebuilt in a temporary directory; then what the map
//! names is looked for. A server that goes on writing meanwhile does no harm: what was there at the start is checked.

use crate::{
    account::{self, Place, PlaceArgs, SpriteRecord},
    keys::AccountKeys,
};
use anyhow::Context;
use api::name::{NameError, SpriteName};
use object_store::ObjectStore;
use replica::Log;
use std::{path::Path, sync::Arc};
use volume::Depth;

/// Check that the disks of sprites are whole in a bucket
///
/// Needs no server, and none must be stopped. Ends with status 1 if anything is wrong.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  puck fsck ./sprites/bucket\n  puck fsck s3://name/prefix web --quick"
)]
pub(crate) struct FsckArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Only these sprites, instead of all
    #[arg(value_name = "SPRITE", value_parser = sprite_name)]
    sprites: Vec<SpriteName>,
    /// Look whether every segment is there, without reading all of it
    #[arg(long)]
    quick: bool,
}

/// Checks, prints what was found, and says whether all of it is well.
pub(crate) async fn run(args: &FsckArgs) -> anyhow::Result<bool> {
    let Place { bucket: store, org, wraps } = args.place.connect()?;
    let keys = wraps.look().await?.into_keys();
    let scratch = tempfile::tempdir().context("make a temporary directory")?;
    let of_account = keys.store(&store);
    let log = Log::new(of_account.clone(), account::log_prefix(&org));
    let mut is_well = check_log(&log, &format!("account {org}")).await?;
    let records =
        account::read(&of_account, &org, scratch.path()).await.context("read the account")?;
    for name in &args.sprites {
        anyhow::ensure!(
            records.iter().any(|record| record.name == *name),
            "no sprite is named {name}"
        );
    }
    let wanted =
        |record: &&SpriteRecord| args.sprites.is_empty() || args.sprites.contains(&record.name);
    let depth = if args.quick { Depth::Heads } else { Depth::Data };
    for record in records.iter().filter(wanted) {
        is_well &= check_sprite(&store, &keys, record, depth, scratch.path())
            .await
            .with_context(|| format!("check {}", record.name))?;
    }
    Ok(is_well)
}

async fn check_sprite(
    store: &Arc<dyn ObjectStore>,
    keys: &AccountKeys,
    record: &SpriteRecord,
    depth: Depth,
    scratch: &Path,
) -> anyhow::Result<bool> {
    let keys = keys.of_volume(record.volume, &record.ancestors);
    let store_of_log = keys.log_store(record.volume, store.clone());
    let log = Log::new(store_of_log, volume::log_prefix(record.volume));
    let log_is_well = check_log(&log, &format!("{}: log", record.name)).await?;
    if !log_is_well {
        return Ok(false);
    }
    let map = scratch.join(format!("{}.db", record.volume));
    if log.restore(&map).await.context("rebuild the map")?.is_none() {
        println!("{}: nothing is in the bucket yet", record.name);
        return Ok(true);
    }
    let report =
        volume::fsck(&map, store.clone(), keys, depth).await.context("check the volume")?;
    for error in &report.errors {
        println!("{}: {error}", record.name);
    }
    let orphans: u64 = report.orphans.iter().map(|orphan| orphan.bytes).sum();
    println!(
        "{}: {} in {} segments of {} bytes, {} checkpoints, {} forks, {} bytes read, {orphans} bytes that nothing names",
        record.name,
        if report.errors.is_empty() { "whole" } else { "DAMAGED" },
        report.segments,
        report.segment_bytes,
        report.checkpoints,
        report.pins,
        report.read_bytes,
    );
    std::fs::remove_file(&map).context("remove the rebuilt map")?;
    Ok(report.errors.is_empty())
}

async fn check_log(log: &Log, what: &str) -> anyhow::Result<bool> {
    let report = log.verify().await.with_context(|| format!("check the {what}"))?;
    for problem in &report.problems {
        println!("{what}: {problem}");
    }
    println!(
        "{what}: {} in {} files of {} bytes, {} instants, epoch {}",
        if report.is_sound() { "sound" } else { "DAMAGED" },
        report.files,
        report.bytes,
        report.states,
        report.epoch,
    );
    Ok(report.is_sound())
}

fn sprite_name(text: &str) -> Result<SpriteName, NameError> {
    text.parse()
}
