//! `puck fork`: a new sprite whose disk begins as another's.

use super::id;
use crate::{context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;
use api::{name::SpriteName, sprite::ForkSprite};
use std::{
    io::{self, IsTerminal},
    str::FromStr,
    time::Instant,
};

/// Make a new sprite whose disk begins as another's
///
/// Nothing is copied, so it takes no longer for a full disk. From then on the two have nothing to do with each other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck fork web web-try\n  puck fork web@v3 web-try")]
pub struct Fork {
    /// The sprite to begin from, as it is now or with @ at a checkpoint
    #[arg(value_name = "SPRITE[@CHECKPOINT]")]
    source: Source,

    /// The new sprite's name
    name: String,
}

/// A sprite, now or at a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    sprite: String,
    checkpoint: Option<String>,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (sprite, checkpoint) = match text.split_once('@') {
            Some((sprite, checkpoint)) => (sprite, Some(id(checkpoint)?)),
            None => (text, None),
        };
        sprite.parse::<SpriteName>().map_err(|error| error.to_string())?;
        Ok(Self { sprite: sprite.to_owned(), checkpoint })
    }
}

impl Fork {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let source = context.named(Some(&self.source.sprite))?;
        let name = context.named(Some(&self.name))?;
        let body =
            ForkSprite { name: Some(name.to_string()), checkpoint: self.source.checkpoint.clone() };
        let start = Instant::now();
        let forked =
            spinner::during(format!("Forking {source}"), client.fork_sprite(&source, &body)).await;
        let forked = forked.with_context(|| format!("fork {source}"))?;
        if io::stdout().is_terminal() {
            let milliseconds = start.elapsed().as_millis();
            output::line(&format!("Forked {source} as {} in {milliseconds} ms", forked.name))?;
        } else {
            output::line(&forked.name)?;
        }
        Ok(Exit::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn a_source_is_a_sprite_and_perhaps_a_checkpoint() {
        let source = |text: &str| text.parse::<Source>();
        let of = |sprite: &str, checkpoint: Option<&str>| Source {
            sprite: sprite.into(),
            checkpoint: checkpoint.map(Into::into),
        };
        assert_eq!(source("web"), Ok(of("web", None)));
        assert_eq!(source("web@v3"), Ok(of("web", Some("v3"))));
        for bad in ["", "@v3", "web@", "web@../v1", "We b"] {
            assert!(source(bad).is_err(), "{bad}");
        }
    }
}
