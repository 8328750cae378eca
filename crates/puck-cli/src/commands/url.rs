//! `puck url`: where a sprite's web server answers, and to whom.

use super::{config::update_auth, info::auth};
use crate::{context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;
use std::io::{self, IsTerminal};

/// Show a sprite's URL, or say who may use it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck url\n  puck url update --auth public")]
pub struct Url {
    #[command(subcommand)]
    command: Option<UrlCommand>,
}

#[derive(Debug, clap::Subcommand)]
enum UrlCommand {
    /// Say who may use the URL
    Update {
        /// `public`: everybody; `sprite`: holders of a token
        #[arg(short, long, value_name = "WHO", value_parser = ["public", "sprite"])]
        auth: String,
    },
}

impl Url {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        if let Some(UrlCommand::Update { auth }) = &self.command {
            return update_auth(context, auth).await;
        }
        let client = context.client()?;
        let name = context.sprite()?;
        let sprite = spinner::during(format!("Asking about {name}"), client.sprite(&name)).await;
        let sprite = sprite.with_context(|| format!("show the URL of {name}"))?;
        output::line(&output::clean(&sprite.url))?;
        if io::stdout().is_terminal() {
            output::note(&format!("Auth: {}\n", auth(sprite.url_settings.auth)));
        }
        Ok(Exit::SUCCESS)
    }
}
