//! `puck console`: a shell in a sprite.

use crate::{
    client::Client,
    context::Context,
    exec,
    exit::{Exit, UsageError},
    terminal,
};
use anyhow::Context as _;
use api::{exec::ExecQuery, name::SpriteName};
use std::io::{self, IsTerminal};

/// Open a shell in a sprite
///
/// Ctrl+\ leaves it running; `puck attach` comes back to it.
#[derive(Debug, clap::Args)]
#[command(visible_alias = "c", after_help = "Examples:\n  puck console\n  puck c -s web")]
pub struct Console {}

impl Console {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        if !io::stdin().is_terminal() {
            let reason = "a console needs a terminal: use `puck exec` to run a command without one";
            return Err(UsageError(reason.into()).into());
        }
        open(&client, &sprite).await
    }
}

/// Opens a shell, whichever the sprite thinks right, and stays in it.
pub(super) async fn open(client: &Client, sprite: &SpriteName) -> anyhow::Result<Exit> {
    let query = ExecQuery {
        env: terminal::environment(),
        tty: Some(terminal::size()),
        stdin: true,
        ..ExecQuery::default()
    };
    exec::run_terminal(client, sprite, &query)
        .await
        .with_context(|| format!("open a console in {sprite}"))
}
