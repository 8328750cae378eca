//! `puck undelete`: a destroyed sprite is had back.

use crate::{context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;
use api::sprite::Undelete as Body;

/// Have back a sprite that was destroyed
///
/// A destroyed sprite is kept for a while, a day unless the server says otherwise, with its disk and its checkpoints. Of
/// several that had the name, it is the one that was destroyed last.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck list --destroyed\n  puck undelete web --as web-old")]
pub struct Undelete {
    /// The name that it had
    name: String,

    /// The name that it gets, if that one is taken
    #[arg(long = "as", value_name = "NAME")]
    new_name: Option<String>,
}

impl Undelete {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let name = context.named(Some(&self.name))?;
        let body = Body { name: self.new_name.clone() };
        let asking = client.undelete_sprite(&name, &body);
        let sprite = spinner::during(format!("Having back {name}"), asking).await;
        let sprite = sprite.with_context(|| format!("have back {name}"))?;
        output::note(&format!("{} is back\n", sprite.name));
        Ok(Exit::SUCCESS)
    }
}
