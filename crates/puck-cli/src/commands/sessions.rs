//! `puck sessions`: what runs in a sprite.

use super::{attach::Attach, id};
use crate::{
    client::ClientError,
    context::Context,
    exit::Exit,
    output::{self, Format},
    spinner,
};
use anyhow::Context as _;
use api::{
    duration,
    exec::{KillEvent, Session},
};
use jiff::Timestamp;
use std::time::Duration;

/// List, rejoin or end what runs in a sprite
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "s",
    after_help = "Examples:\n  puck sessions list\n  puck sessions kill 1847 --signal KILL"
)]
pub struct Sessions {
    #[command(subcommand)]
    command: SessionsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum SessionsCommand {
    /// List the running sessions
    #[command(visible_alias = "ls")]
    List {
        /// Print what the API says, as JSON
        #[arg(long)]
        json: bool,
    },
    Attach(Attach),
    Kill(Kill),
}

/// End a session
///
/// The signal goes to the whole process group. What is left of it after the timeout is killed.
#[derive(Debug, clap::Args)]
struct Kill {
    /// The session, as `puck sessions list` shows it
    #[arg(value_parser = id)]
    id: String,

    /// The signal, such as TERM, INT or KILL
    #[arg(long, default_value = "TERM", value_parser = signal)]
    signal: String,

    /// How long to wait before killing
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration::parse)]
    timeout: Duration,
}

impl Sessions {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        match &self.command {
            SessionsCommand::Attach(command) => command.run(context).await,
            SessionsCommand::Kill(command) => command.run(context).await,
            SessionsCommand::List { json } => list(context, *json).await,
        }
    }
}

async fn list(context: &Context, json: bool) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let sprite = context.sprite()?;
    let list = spinner::during(format!("Waking {sprite}"), client.sessions(&sprite)).await;
    let sessions = list.with_context(|| format!("list the sessions of {sprite}"))?.sessions;
    let format = Format::choose(json);
    if sessions.is_empty() && format == Format::Table {
        output::note("No sessions. `puck console` opens one.\n");
        return Ok(Exit::SUCCESS);
    }
    output::print(&render(format, &sessions, Timestamp::now())?)?;
    Ok(Exit::SUCCESS)
}

fn render(
    format: Format,
    sessions: &[Session],
    now: Timestamp,
) -> Result<String, output::OutputError> {
    output::list(
        format,
        sessions,
        &["ID", "TERMINAL", "STARTED", "LAST ACTIVE", "COMMAND"],
        |session| {
            let tty = if session.tty { "yes" } else { "no" };
            let (started, active) =
                (output::ago(session.created, now), output::ago(session.last_activity, now));
            vec![session.id.clone(), tty.into(), started, active, session.command.clone()]
        },
    )
}

impl Kill {
    async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        let doing = || format!("end session {} of {sprite}", self.id);
        let asking = client.kill_session(&sprite, &self.id, &self.signal, self.timeout);
        let mut events = match spinner::during(format!("Signaling {}", self.id), asking).await {
            Err(ClientError::Refused(refusal)) if refusal.status == 410 => {
                output::note(&format!("Session {} has already ended.\n", self.id));
                return Ok(Exit::SUCCESS);
            }
            events => events.with_context(doing)?,
        };
        let patience = self.timeout.as_secs_f64();
        let waiting = format!("Waiting for {} to end, killing it after {patience} s", self.id);
        while let Some(event) =
            spinner::during(waiting.clone(), events.next()).await.with_context(doing)?
        {
            match event {
                KillEvent::Error { message } => {
                    return Err(anyhow::Error::msg(output::clean(&message))).with_context(doing);
                }
                KillEvent::Exited { message }
                | KillEvent::Killed { message }
                | KillEvent::Signal { message, .. }
                | KillEvent::Timeout { message } => output::line(&output::clean(&message))?,
                KillEvent::Complete { exit_code } => {
                    output::line(&format!("Session {} ended with exit code {exit_code}", self.id))?;
                }
            }
        }
        Ok(Exit::SUCCESS)
    }
}

fn signal(text: &str) -> Result<String, &'static str> {
    let name = text.to_ascii_uppercase();
    let is_name =
        !name.is_empty() && name.len() <= 12 && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_name { Ok(name) } else { Err("expected the name of a signal, such as TERM") }
}
