//! `puck attach`: come back to a session.

use super::{id, proxy::Forwarding};
use crate::{context::Context, exec, exit::Exit, spinner};
use anyhow::Context as _;
use api::exec::Session;

/// Come back to a session that was left running
///
/// Without an id this is the only session there is, or the only one with a terminal.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck attach\n  puck attach 1847 -s web")]
pub struct Attach {
    /// The session, as `puck sessions list` shows it
    #[arg(value_parser = id)]
    id: Option<String>,

    #[command(flatten)]
    forwarding: Forwarding,
}

impl Attach {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        let id = match &self.id {
            Some(id) => id.clone(),
            None => {
                let sessions =
                    spinner::during(format!("Waking {sprite}"), client.sessions(&sprite)).await;
                only(sessions.with_context(|| format!("list the sessions of {sprite}"))?.sessions)?
            }
        };
        exec::attach(&client, &sprite, &id, self.forwarding.forwards(&client, &sprite))
            .await
            .with_context(|| format!("attach to session {id} of {sprite}"))
    }
}

/// Why no session stands out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum OnlyError {
    #[error("no session is running: `puck console` opens one")]
    None,
    #[error("several sessions are running ({}): say which", .0.join(", "))]
    Several(Vec<String>),
}

fn only(sessions: Vec<Session>) -> Result<String, OnlyError> {
    let ids = |sessions: &[Session]| {
        sessions.iter().map(|session| session.id.clone()).collect::<Vec<_>>()
    };
    let with_terminal: Vec<Session> =
        sessions.iter().filter(|session| session.tty).cloned().collect();
    let candidates = if with_terminal.is_empty() { ids(&sessions) } else { ids(&with_terminal) };
    match &candidates[..] {
        [] => Err(OnlyError::None),
        [id] => Ok(id.clone()),
        _ => Err(OnlyError::Several(candidates)),
    }
}

#[cfg(test)]
mod tests {
    use super::{OnlyError, only};
    use api::exec::Session;
    use jiff::Timestamp;

    fn session(id: &str, tty: bool) -> Session {
        Session {
            id: id.into(),
            command: "bash".into(),
            workdir: "/".into(),
            created: Timestamp::UNIX_EPOCH,
            bytes_per_second: 0.0,
            is_active: true,
            last_activity: Timestamp::UNIX_EPOCH,
            tty,
        }
    }

    #[test]
    fn the_only_session_needs_no_id() {
        assert_eq!(only(vec![session("1", false)]), Ok("1".into()));
        assert_eq!(only(vec![session("1", false), session("2", true)]), Ok("2".into()));
        assert_eq!(only(vec![]), Err(OnlyError::None));
        let both = only(vec![session("1", true), session("2", true)]);
        assert_eq!(both, Err(OnlyError::Several(vec!["1".into(), "2".into()])));
    }
}
