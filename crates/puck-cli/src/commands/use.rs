//! `puck use`: choose the sprite of a directory.

use crate::{
    context::Context,
    exit::Exit,
    output,
    project::{self, Project},
    spinner,
};
use anyhow::Context as _;

/// Choose the sprite that this directory works with
///
/// The choice is kept in a file named `.sprite`, which counts for this directory and all below it. Without a name the
/// current choice is shown.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck use web\n  puck use --unset")]
pub struct Use {
    /// The sprite
    name: Option<String>,

    /// Forget the choice
    #[arg(long, conflicts_with = "name")]
    unset: bool,
}

impl Use {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        if self.unset {
            let was_set = project::remove(context.directory())?;
            output::note(if was_set {
                "Forgotten.\n"
            } else {
                "No sprite was chosen in this directory.\n"
            });
            return Ok(Exit::SUCCESS);
        }
        if self.name.is_none() {
            output::line(context.sprite()?.as_str())?;
            return Ok(Exit::SUCCESS);
        }
        let name = context.named(self.name.as_deref())?;
        let client = context.client()?;
        let sprite = spinner::during(format!("Looking for {name}"), client.sprite(&name)).await;
        sprite.with_context(|| format!("use {name}"))?;
        let project =
            Project { organization: context.organization(), sprite: Some(name.to_string()) };
        let path = project::write(context.directory(), &project)?;
        output::note(&format!("Using {name} here and below (kept in {})\n", path.display()));
        Ok(Exit::SUCCESS)
    }
}
