//! `puck console`: a shell in a sprite.

use super::proxy::Forwarding;
use crate::{
    client::Client,
    context::Context,
    exec,
    exit::{Exit, UsageError},
    terminal,
    tunnel::Forwards,
};
use anyhow::Context as _;
use api::{exec::ExecQuery, name::SpriteName};
use std::io::{self, IsTerminal};

/// Open a shell in a sprite
///
/// Ctrl+\ leaves it running; `puck attach` comes back to it. A port that opens in the sprite is reached on this host as well, at
/// the same number of `localhost`.
#[derive(Debug, clap::Args)]
#[command(visible_alias = "c", after_help = "Examples:\n  puck console\n  puck c -s web")]
pub struct Console {
    #[command(flatten)]
    forwarding: Forwarding,
}

impl Console {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        if !io::stdin().is_terminal() {
            let reason = "a console needs a terminal: use `puck exec` to run a command without one";
            return Err(UsageError(reason.into()).into());
        }
        open(&client, &sprite, self.forwarding.forwards(&client, &sprite)).await
    }
}

/// Opens a shell, whichever the sprite thinks right, and stays in it.
pub(super) async fn open(
    client: &Client,
    sprite: &SpriteName,
    forwards: Forwards,
) -> anyhow::Result<Exit> {
    let query = ExecQuery {
        env: terminal::environment(),
        tty: Some(terminal::size()),
        stdin: true,
        ..ExecQuery::default()
    };
    exec::run_terminal(client, sprite, &query, forwards)
        .await
        .with_context(|| format!("open a console in {sprite}"))
}
