//! `puck restart`: the container anew.

use crate::{context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;

/// End everything that runs in a sprite and start it anew
///
/// The disk stays as it is, and so do the sprite's machine and its URL. Programs are killed, not asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck restart web")]
pub struct Restart {
    /// The sprite
    name: Option<String>,
}

impl Restart {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let name = context.named(self.name.as_deref())?;
        let restarting = client.restart_sprite(&name);
        let restarted = spinner::during(format!("Restarting {name}"), restarting).await;
        restarted.with_context(|| format!("restart {name}"))?;
        output::note(&format!("{name} runs anew\n"));
        Ok(Exit::SUCCESS)
    }
}
