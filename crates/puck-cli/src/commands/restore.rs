//! `puck restore`: put a disk back to a checkpoint.

use super::{checkpoint::follow, id};
use crate::{context::Context, exit::Exit};
use anyhow::Context as _;

/// Put a sprite's disk back to a checkpoint
///
/// Programs that run in the sprite are ended. The state that is replaced is kept as an automatic checkpoint, so a restore
/// can itself be undone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck restore v3\n  puck checkpoint list --include-auto")]
pub struct Restore {
    /// The checkpoint, such as v3
    #[arg(value_parser = id)]
    checkpoint: String,
}

impl Restore {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        let asking = client.restore_checkpoint(&sprite, &self.checkpoint);
        follow(&sprite, asking)
            .await
            .with_context(|| format!("restore {} in {sprite}", self.checkpoint))?;
        Ok(Exit::SUCCESS)
    }
}
