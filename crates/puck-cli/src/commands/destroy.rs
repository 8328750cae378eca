//! `puck destroy`: the end of a sprite.

use crate::{
    context::Context,
    exit::{Exit, UsageError},
    output, spinner,
};
use anyhow::Context as _;
use api::name::SpriteName;
use std::io::{self, BufRead, IsTerminal, Read};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1024;

/// Destroy a sprite with its disk and all its checkpoints
///
/// For a while `puck undelete` has it back; `puck list --destroyed` shows what can be had. Asks first. Where nobody can be asked, --force is needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck destroy web\n  puck destroy --force -s web")]
pub struct Destroy {
    /// The sprite, if not the chosen one
    name: Option<String>,

    /// Do not ask
    #[arg(long)]
    force: bool,
}

impl Destroy {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let name = context.named(self.name.as_deref())?;
        if !self.force && !confirm(&name)? {
            output::note("Nothing was destroyed.\n");
            return Ok(Exit::FAILURE);
        }
        spinner::during(format!("Destroying {name}"), client.destroy_sprite(&name))
            .await
            .with_context(|| format!("destroy {name}"))?;
        output::note(&format!("Destroyed {name}\n"));
        Ok(Exit::SUCCESS)
    }
}

fn confirm(name: &SpriteName) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        let reason =
            format!("destroying {name} cannot be confirmed without a terminal: pass --force");
        return Err(UsageError(reason).into());
    }
    output::note(&format!("Destroy {name} with its disk and all its checkpoints? [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
