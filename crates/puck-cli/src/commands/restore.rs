//! `puck restore`: put a disk back to a checkpoint, or to an instant.

use super::{checkpoint::follow, id};
use crate::{context::Context, exit::Exit};
use anyhow::Context as _;
use api::duration;
use jiff::{SignedDuration, Timestamp};

/// Put a sprite's disk back to a checkpoint, or with --at to an instant
///
/// Programs that run in the sprite are ended. The state that is replaced is kept as an automatic checkpoint, so a restore
/// can itself be undone.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  puck restore v3\n  puck restore --at 10m\n  puck restore --at 2026-01-31T10:00:00Z\n  \
                  puck checkpoint list --include-auto"
)]
#[group(required = true, multiple = false)]
pub struct Restore {
    /// The checkpoint, such as v3
    #[arg(value_parser = id)]
    checkpoint: Option<String>,

    /// An instant of the last day, to the second: how long ago, or an RFC 3339 time
    #[arg(long, value_name = "TIME", value_parser = instant)]
    at: Option<Timestamp>,
}

impl Restore {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        match (&self.checkpoint, self.at) {
            (_, Some(at)) => follow(&sprite, client.rewind(&sprite, at))
                .await
                .with_context(|| format!("put {sprite} back to {at}"))?,
            (checkpoint, None) => {
                let id = checkpoint.as_deref().unwrap_or_default();
                follow(&sprite, client.restore_checkpoint(&sprite, id))
                    .await
                    .with_context(|| format!("restore {id} in {sprite}"))?
            }
        };
        Ok(Exit::SUCCESS)
    }
}

fn instant(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago = duration::parse(text)
        .ok()
        .and_then(|ago| SignedDuration::try_from(ago).ok())
        .and_then(|ago| Timestamp::now().checked_sub(ago).ok());
    ago.ok_or_else(|| "expected a time such as 10m or 2026-01-31T10:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::instant;
    use jiff::Timestamp;

    #[test]
    fn an_instant_is_a_time_or_how_long_ago() {
        let exact: Timestamp = "2026-01-31T10:00:00Z".parse().expect("a time");
        assert_eq!(instant("2026-01-31T10:00:00Z"), Ok(exact));
        assert_eq!(instant("2026-01-31T12:00:00+02:00"), Ok(exact));
        let ago = instant("10m").expect("a time").as_second();
        assert!((Timestamp::now().as_second() - 600 - ago).abs() <= 1);
        assert!(instant("yesterday").is_err() && instant("").is_err());
    }
}
