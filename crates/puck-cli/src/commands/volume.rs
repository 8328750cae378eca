//! `puck volume`: how a sprite's disk is doing.

use crate::{context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;
use api::volume::{VolumeState, VolumeStatus};
use jiff::Timestamp;

/// Look at a sprite's disk
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  puck volume stats\n  puck volume stats --json | jq .lag_seconds"
)]
pub struct Volume {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, clap::Subcommand)]
enum VolumeCommand {
    /// Show how much the disk holds, and how far behind the bucket is; wakes the sprite
    Stats {
        /// Print what the API says, as JSON
        #[arg(long)]
        json: bool,
    },
}

impl Volume {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let VolumeCommand::Stats { json } = self.command;
        let client = context.client()?;
        let sprite = context.sprite()?;
        let status = spinner::during(format!("Waking {sprite}"), client.volume(&sprite)).await;
        let status = status.with_context(|| format!("look at the disk of {sprite}"))?;
        output::print(&if json {
            output::json(&status)?
        } else {
            describe(&status, Timestamp::now())
        })?;
        Ok(Exit::SUCCESS)
    }
}

fn describe(status: &VolumeStatus, now: Timestamp) -> String {
    let state = match status.state {
        VolumeState::Settled => "settled: the bucket has everything",
        VolumeState::Sealing => "sealing: the last writes are on their way to the bucket",
        VolumeState::Behind => "behind: the bucket is slow or away, work goes on from local disk",
        VolumeState::Blocked => "blocked: writes wait for the bucket",
    };
    let mut pairs = vec![
        ("State", state.to_owned()),
        ("Durability", status.durability.to_string()),
        ("Lag", format!("{}, {:.1} s", output::bytes(status.lag_bytes), status.lag_seconds)),
        ("Holds", output::bytes(status.logical_bytes)),
        ("Live", format!("{}, checkpoints included", output::bytes(status.live_bytes))),
        ("Stored", output::bytes(status.stored_bytes)),
        ("Reclaimable", output::bytes(status.reclaimable_bytes)),
        ("Cached", output::bytes(status.cached_bytes)),
    ];
    pairs.extend(status.trouble.clone().map(|trouble| ("Trouble", trouble)));
    pairs.extend(status.oldest_rewind.map(|at| ("Rewind since", output::time(at, now))));
    output::pairs(&pairs)
}
