//! `puck create`: a new sprite, and a console in it.

use super::console;
use crate::{
    client::{Client, ClientError},
    context::Context,
    exit::Exit,
    names, output, spinner,
    tunnel::Forwards,
};
use anyhow::Context as _;
use api::{
    name::SpriteName,
    sprite::{CreateSprite, Sprite},
};
use std::{
    io::{self, IsTerminal},
    time::Instant,
};

/// How often a name that happens to be taken is replaced by another.
const PICKS_MAX: usize = 5;

/// Create a sprite and open a console in it
///
/// Without a name a pleasant one is picked. The console is opened only on a terminal; into a pipe the new sprite's name is
/// printed and nothing else.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  puck create web\n  puck create --skip-console --label ci --label nightly"
)]
pub struct Create {
    /// The name: lower-case letters, digits and inner hyphens
    name: Option<String>,

    /// Do not open a console
    #[arg(long)]
    skip_console: bool,

    /// A label; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
}

impl Create {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let start = Instant::now();
        let sprite = match &self.name {
            Some(_) => {
                let name = context.named(self.name.as_deref())?;
                spinner::during(format!("Creating {name}"), self.create(&client, name.as_str()))
                    .await
                    .with_context(|| format!("create {name}"))?
            }
            None => {
                let picking = self.create_picked(&client);
                spinner::during("Creating a sprite".into(), picking)
                    .await
                    .context("create a sprite")?
            }
        };
        if !io::stdout().is_terminal() {
            output::line(&sprite.name)?;
            return Ok(Exit::SUCCESS);
        }
        output::line(&format!("Created {} in {} ms", sprite.name, start.elapsed().as_millis()))?;
        output::line(&output::clean(&sprite.url))?;
        if self.skip_console || !io::stdin().is_terminal() {
            return Ok(Exit::SUCCESS);
        }
        let name: SpriteName = sprite.name.parse().context("read the new sprite's name")?;
        console::open(&client, &name, Forwards::to(client.endpoint(), &name)).await
    }

    async fn create(&self, client: &Client, name: &str) -> Result<Sprite, ClientError> {
        let labels = Some(self.labels.clone()).filter(|labels| !labels.is_empty());
        client
            .create_sprite(&CreateSprite {
                name: Some(name.into()),
                labels,
                ..CreateSprite::default()
            })
            .await
    }

    async fn create_picked(&self, client: &Client) -> Result<Sprite, ClientError> {
        let mut picks = 1;
        loop {
            let name = names::pick(&mut rand::rng());
            match self.create(client, &name).await {
                Err(ClientError::Refused(refusal))
                    if refusal.status == 409 && picks < PICKS_MAX =>
                {
                    picks += 1;
                }
                result => return result,
            }
        }
    }
}
