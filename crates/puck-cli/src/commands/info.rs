//! `puck info`: one sprite.

use super::list::status;
use crate::{context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;
use api::sprite::{Sprite, UrlAuth};
use jiff::Timestamp;

/// Show a sprite
///
/// Looking at a sprite does not wake it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck info\n  puck info web --json")]
pub struct Info {
    /// The sprite, if not the chosen one
    name: Option<String>,

    /// Print what the API says, as JSON
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        show(context, self.name.as_deref(), self.json).await
    }
}

/// Prints a sprite.
pub(super) async fn show(
    context: &Context,
    name: Option<&str>,
    json: bool,
) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let name = context.named(name)?;
    let sprite = spinner::during(format!("Asking about {name}"), client.sprite(&name)).await;
    let sprite = sprite.with_context(|| format!("show {name}"))?;
    output::print(&if json {
        output::json(&sprite)?
    } else {
        describe(&sprite, Timestamp::now())
    })?;
    Ok(Exit::SUCCESS)
}

/// The word for who may use the URL.
pub(super) fn auth(auth: UrlAuth) -> &'static str {
    match auth {
        UrlAuth::Public => "public",
        UrlAuth::Sprite => "sprite",
    }
}

fn describe(sprite: &Sprite, now: Timestamp) -> String {
    let mut pairs = vec![
        ("Name", sprite.name.clone()),
        ("Status", status(sprite.status).into()),
        ("URL", sprite.url.clone()),
        ("URL auth", auth(sprite.url_settings.auth).into()),
        ("Organization", sprite.organization.clone()),
        ("Id", sprite.id.clone()),
        ("Isolation", sprite.isolation.clone()),
        ("Disk", sprite.disk_url.clone().unwrap_or_else(|| "-".into())),
        ("Sleeps after", format!("{} s", sprite.idle_timeout_seconds)),
        ("Durability", sprite.durability.to_string()),
        ("Created", output::time(sprite.created_at, now)),
    ];
    pairs.extend(sprite.last_running_at.map(|last| ("Last awake", output::time(last, now))));
    if !sprite.labels.is_empty() {
        pairs.push(("Labels", sprite.labels.join(", ")));
    }
    output::pairs(&pairs)
}
