//! `puck config`: a sprite's settings.

use super::info;
use crate::{context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;
use api::{
    duration,
    sprite::{UpdateSprite, UpdateUrlSettings},
};
use std::time::Duration;

/// Show or change a sprite's settings
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  puck config\n  puck config update --url-auth public --idle-timeout 10m"
)]
pub struct Config {
    #[command(subcommand)]
    command: Option<ConfigCommand>,

    /// Print what the API says, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Change settings
    Update(Update),
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Update {
    /// Who may use the URL: everybody (`public`) or holders of a token (`sprite`)
    #[arg(long, value_name = "WHO", value_parser = ["public", "sprite"])]
    url_auth: Option<String>,

    /// How long without activity until the sprite sleeps, such as 30s or 10m
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_timeout: Option<Duration>,

    /// When a flush of the disk is done: when the worker has it (`default`), or when the bucket has it (`strict`)
    #[arg(long, value_name = "MODE", value_parser = ["default", "strict"])]
    durability: Option<String>,
}

impl Config {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        match &self.command {
            None => info::show(context, None, self.json).await,
            Some(ConfigCommand::Update(settings)) => update(context, settings).await,
        }
    }
}

/// Says who may use the URL of the chosen sprite.
pub(super) async fn update_auth(context: &Context, auth: &str) -> anyhow::Result<Exit> {
    let settings = Update { url_auth: Some(auth.into()), idle_timeout: None, durability: None };
    update(context, &settings).await
}

async fn update(context: &Context, settings: &Update) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let name = context.sprite()?;
    let url_settings = settings
        .url_auth
        .clone()
        .map(|auth| UpdateUrlSettings { auth: Some(auth), private_access: None });
    let idle_timeout_seconds = settings.idle_timeout.map(|timeout| timeout.as_secs());
    let durability = settings.durability.clone();
    let body =
        UpdateSprite { url_settings, idle_timeout_seconds, durability, ..UpdateSprite::default() };
    let sprite =
        spinner::during(format!("Changing {name}"), client.update_sprite(&name, &body)).await;
    let sprite = sprite.with_context(|| format!("change the settings of {name}"))?;
    output::note(&format!(
        "{name}: URL for {}, sleeps after {} s, durability {}\n",
        info::auth(sprite.url_settings.auth),
        sprite.idle_timeout_seconds,
        sprite.durability
    ));
    Ok(Exit::SUCCESS)
}
