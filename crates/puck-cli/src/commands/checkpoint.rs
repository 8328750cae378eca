//! `puck checkpoint`: the states of a disk that can be gone back to.

use super::id;
use crate::{
    client::{ClientError, Lines},
    context::Context,
    exit::Exit,
    output::{self, Format},
    spinner,
};
use anyhow::Context as _;
use api::{
    checkpoint::{CURRENT, Checkpoint as Item, Progress, ProgressKind},
    name::SpriteName,
    volume::{ChangeKind, DiffLine},
};
use jiff::Timestamp;

/// Create, list, restore or delete checkpoints of a sprite's disk
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "checkpoints",
    after_help = "Examples:\n  puck checkpoint create --comment 'before the upgrade'\n  puck checkpoint list\n  \
                  puck checkpoint restore v3"
)]
pub struct Checkpoint {
    #[command(subcommand)]
    command: CheckpointCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CheckpointCommand {
    /// Keep the disk as it is now; the sprite goes on running
    Create {
        /// What to remember about it
        #[arg(long, value_name = "TEXT")]
        comment: Option<String>,
    },
    /// List the checkpoints, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Only those that grew from this one
        #[arg(long, value_name = "CHECKPOINT", value_parser = id)]
        history: Option<String>,
        /// Also those that the system made by itself
        #[arg(long)]
        include_auto: bool,
        /// Print what the API says, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one checkpoint
    Info {
        /// Its id, such as v3
        #[arg(value_parser = id)]
        checkpoint: String,
        /// Print what the API says, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a checkpoint; the disk as it is now is not touched
    #[command(visible_alias = "rm")]
    Delete {
        /// Its id, such as v3
        #[arg(value_parser = id)]
        checkpoint: String,
    },
    /// List the paths that are different between two checkpoints
    Diff {
        /// The older one, such as v1
        #[arg(value_parser = id)]
        from: String,
        /// The newer one, such as v2
        #[arg(value_parser = id)]
        to: String,
        /// Print what the API says, as JSON, one change a line
        #[arg(long)]
        json: bool,
    },
    Restore(super::restore::Restore),
}

impl Checkpoint {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        match &self.command {
            CheckpointCommand::Create { comment } => create(context, comment.as_deref()).await,
            CheckpointCommand::List { history, include_auto, json } => {
                list(context, history.as_deref(), *include_auto, *json).await
            }
            CheckpointCommand::Info { checkpoint, json } => info(context, checkpoint, *json).await,
            CheckpointCommand::Delete { checkpoint } => delete(context, checkpoint).await,
            CheckpointCommand::Diff { from, to, json } => diff(context, from, to, *json).await,
            CheckpointCommand::Restore(command) => command.run(context).await,
        }
    }
}

async fn create(context: &Context, comment: Option<&str>) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let sprite = context.sprite()?;
    let asking = client.create_checkpoint(&sprite, comment);
    let said = follow(&sprite, asking)
        .await
        .with_context(|| format!("create a checkpoint of {sprite}"))?;
    let id = said
        .iter()
        .rev()
        .find_map(|line| created_id(line))
        .context("the server did not name the checkpoint")?;
    output::line(&format!("Checkpoint created: {id}"))?;
    Ok(Exit::SUCCESS)
}

/// Prints the progress of something that the server does, and gives back what it said, once it is done.
pub(super) async fn follow(
    sprite: &SpriteName,
    asking: impl Future<Output = Result<Lines<Progress>, ClientError>>,
) -> anyhow::Result<Vec<String>> {
    let mut lines = spinner::during(format!("Waking {sprite}"), asking).await?;
    let mut said = Vec::new();
    while let Some(progress) =
        spinner::during(format!("Waiting for {sprite}"), lines.next()).await?
    {
        let text = progress.data.unwrap_or_default();
        match progress.kind {
            ProgressKind::Error => {
                let reason = progress.error.filter(|reason| !reason.is_empty()).unwrap_or(text);
                anyhow::bail!(output::clean(&reason));
            }
            ProgressKind::Complete | ProgressKind::Info => {
                // The server's lines may begin with an empty one, to set them apart.
                for line in text.split('\n') {
                    output::line(&output::clean(line))?;
                }
                said.push(text);
            }
        }
        if progress.kind == ProgressKind::Complete {
            return Ok(said);
        }
    }
    anyhow::bail!("the server stopped in the middle; `puck checkpoint list` shows how far it came")
}

/// The id in a line such as `Checkpoint v3 created successfully` or `  ID: v3`.
fn created_id(line: &str) -> Option<&str> {
    let words = line.trim().strip_prefix("ID:").or_else(|| line.trim().strip_prefix("Checkpoint "));
    let id = words?.split_whitespace().next()?;
    id.strip_prefix('v').filter(|number| number.parse::<u64>().is_ok()).map(|_| id)
}

async fn list(
    context: &Context,
    history: Option<&str>,
    auto: bool,
    json: bool,
) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let sprite = context.sprite()?;
    let asking = client.checkpoints(&sprite, history, auto);
    let checkpoints = spinner::during(format!("Waking {sprite}"), asking).await;
    let checkpoints = checkpoints.with_context(|| format!("list the checkpoints of {sprite}"))?;
    let format = Format::choose(json);
    output::print(&render(format, checkpoints, Timestamp::now())?)?;
    Ok(Exit::SUCCESS)
}

fn render(
    format: Format,
    mut checkpoints: Vec<Item>,
    now: Timestamp,
) -> Result<String, output::OutputError> {
    if format == Format::Names {
        // The state as it is now is no checkpoint: it cannot be restored or deleted by its name.
        checkpoints.retain(|checkpoint| checkpoint.id != CURRENT);
    }
    output::list(format, &checkpoints, &["ID", "CREATED", "FROM", "COMMENT"], |checkpoint| {
        let created = if checkpoint.id == CURRENT {
            "now".into()
        } else {
            output::ago(checkpoint.create_time, now)
        };
        let from = checkpoint.source_id.clone().unwrap_or_else(|| "-".into());
        let comment = match checkpoint.health.as_str() {
            "" => checkpoint.comment.clone(),
            health => format!("[{health}] {}", checkpoint.comment),
        };
        vec![checkpoint.id.clone(), created, from, comment]
    })
}

async fn info(context: &Context, id: &str, json: bool) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let sprite = context.sprite()?;
    let asking = client.checkpoint(&sprite, id);
    let checkpoint = spinner::during(format!("Waking {sprite}"), asking).await;
    let checkpoint = checkpoint.with_context(|| format!("show checkpoint {id} of {sprite}"))?;
    output::print(&if json {
        output::json(&checkpoint)?
    } else {
        describe(&checkpoint, Timestamp::now())
    })?;
    Ok(Exit::SUCCESS)
}

fn describe(checkpoint: &Item, now: Timestamp) -> String {
    let mut pairs =
        vec![("Id", checkpoint.id.clone()), ("Created", output::time(checkpoint.create_time, now))];
    pairs.push(("Made by", if checkpoint.is_auto { "the system" } else { "a user" }.into()));
    if !checkpoint.comment.is_empty() {
        pairs.push(("Comment", checkpoint.comment.clone()));
    }
    if !checkpoint.history.is_empty() {
        pairs.push(("Grew from", checkpoint.history.join(" < ")));
    }
    if !checkpoint.health.is_empty() {
        pairs.push(("Health", checkpoint.health.clone()));
    }
    output::pairs(&pairs)
}

/// Prints a line for each path: `A` for added, `M` for changed, `D` for removed, as `git diff --name-status` does.
async fn diff(context: &Context, from: &str, to: &str, json: bool) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let sprite = context.sprite()?;
    let asking = client.diff(&sprite, from, to);
    let lines = spinner::during(format!("Comparing {from} and {to}"), asking).await;
    let mut lines = lines.with_context(|| format!("compare checkpoints of {sprite}"))?;
    while let Some(line) =
        spinner::during(format!("Comparing {from} and {to}"), lines.next()).await?
    {
        let change = match line {
            DiffLine::Change(change) => change,
            DiffLine::Failed { error } => anyhow::bail!(output::clean(&error)),
        };
        let line = if json {
            serde_json::to_string(&change).context("write JSON")?
        } else {
            let letter = match change.kind {
                ChangeKind::Added => 'A',
                ChangeKind::Changed => 'M',
                ChangeKind::Removed => 'D',
            };
            format!("{letter}\t{}", output::clean(&change.path))
        };
        output::line(&line)?;
    }
    Ok(Exit::SUCCESS)
}

async fn delete(context: &Context, id: &str) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let sprite = context.sprite()?;
    spinner::during(format!("Deleting {id}"), client.delete_checkpoint(&sprite, id))
        .await
        .with_context(|| format!("delete checkpoint {id} of {sprite}"))?;
    output::note(&format!("Deleted checkpoint {id}\n"));
    Ok(Exit::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::{Item, created_id, render};
    use crate::output::Format;
    use jiff::Timestamp;

    #[test]
    fn the_new_id_is_found_in_what_the_server_says() {
        for (line, id) in [
            ("  ID: v12", Some("v12")),
            ("Checkpoint v3 created successfully", Some("v3")),
            ("Checkpoint created successfully", None),
            ("\nCheckpoint Details:", None),
            ("ID: vx", None),
            ("", None),
        ] {
            assert_eq!(created_id(line), id, "{line:?}");
        }
    }

    #[test]
    fn the_current_state_is_shown_but_not_named() {
        let checkpoints: Vec<Item> = serde_json::from_str(
            r#"[{"id":"Current","create_time":"2026-01-31T10:00:00Z","comment":"","is_auto":false,"source_id":"v1",
                 "history":["v1"],"health":""},
                {"id":"v1","create_time":"2026-01-31T10:00:00Z","comment":"first","is_auto":false,"history":[],
                 "health":"mount_failed"}]"#,
        )
        .expect("checkpoints");
        let now: Timestamp = "2026-01-31T10:05:00Z".parse().expect("a time");
        let table = "ID       CREATED  FROM  COMMENT\nCurrent  now      v1\nv1       5m ago   -     [mount_failed] first\n";
        assert_eq!(render(Format::Table, checkpoints.clone(), now).expect("plain text"), table);
        assert_eq!(render(Format::Names, checkpoints, now).expect("plain text"), "v1\n");
    }
}
