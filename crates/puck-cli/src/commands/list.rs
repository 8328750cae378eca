//! `puck list`: all sprites, once or as they change.

use crate::{
    client::Client,
    context::Context,
    exit::Exit,
    output::{self, Format},
    spinner,
};
use anyhow::Context as _;
use api::sprite::{Sprite, Status, WatchEvent};
use crossterm::{cursor, terminal};
use jiff::Timestamp;

/// List sprites
///
/// On a terminal this is a table; into a pipe it is one name a line.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "ls",
    after_help = "Examples:\n  puck list --prefix ci-\n  puck list --json | jq '.[].url'"
)]
pub struct List {
    /// Go on and show every change until interrupted
    #[arg(short, long)]
    watch: bool,

    /// Those that were destroyed and can be had back with `puck undelete`
    #[arg(long, conflicts_with = "watch")]
    destroyed: bool,

    /// Only sprites whose name starts with this
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,

    /// Print what the API says, as JSON; with --watch one object a line
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let format = Format::choose(self.json);
        if self.watch {
            return self.watch(&client, format).await.context("watch sprites");
        }
        let listing = async {
            if self.destroyed {
                client.destroyed_sprites(&self.prefix).await
            } else {
                client.sprites(&self.prefix).await
            }
        };
        let sprites = spinner::during("Listing sprites".into(), listing).await;
        let sprites = sprites.context("list sprites")?;
        if sprites.is_empty() && format == Format::Table {
            output::note(if self.destroyed {
                "No destroyed sprite can be had back.\n"
            } else {
                "No sprites. `puck create` makes one.\n"
            });
            return Ok(Exit::SUCCESS);
        }
        output::print(&render(format, &sprites, Timestamp::now())?)?;
        Ok(Exit::SUCCESS)
    }

    async fn watch(&self, client: &Client, format: Format) -> anyhow::Result<Exit> {
        let mut events = client.watch(&self.prefix).await?;
        let mut lines_shown = 0;
        loop {
            // Of changes that came together only the last is worth a new look.
            if format == Format::Table && !events.is_ready() {
                let sprites = client.sprites(&self.prefix).await?;
                lines_shown = redraw(&render(format, &sprites, Timestamp::now())?, lines_shown)?;
            }
            let event = events.next().await?.context("the server ended the watch")?;
            match format {
                Format::Json => {
                    output::line(&serde_json::to_string(&event).context("write JSON")?)?;
                }
                Format::Names => output::print(&change(&event))?,
                Format::Table => {}
            }
        }
    }
}

/// The sprites in the wanted form.
fn render(
    format: Format,
    sprites: &[Sprite],
    now: Timestamp,
) -> Result<String, output::OutputError> {
    output::list(
        format,
        sprites,
        &["NAME", "STATUS", "LAST AWAKE", "CREATED", "LABELS"],
        |sprite| {
            let awake = match (sprite.status, sprite.last_running_at) {
                (Status::Running, _) => "now".into(),
                (_, Some(last)) => output::ago(last, now),
                (_, None) => "-".into(),
            };
            let created = output::ago(sprite.created_at, now);
            vec![
                sprite.name.clone(),
                status(sprite.status).into(),
                awake,
                created,
                sprite.labels.join(", "),
            ]
        },
    )
}

/// The word for a status.
pub(super) fn status(status: Status) -> &'static str {
    match status {
        Status::Cold => "cold",
        Status::Warm => "warm",
        Status::Running => "running",
    }
}

/// The line that a change is into a pipe; nothing for a heartbeat.
fn change(event: &WatchEvent) -> String {
    match (&event.name, event.status) {
        (Some(name), Some(now)) => format!("{}\t{}\n", output::clean(name), status(now)),
        (Some(name), None) => format!("{}\n", output::clean(name)),
        (None, _) => String::new(),
    }
}

/// Draws `text` over the `lines_shown` lines of the last drawing, cut to the screen. Says how many lines it drew.
fn redraw(text: &str, lines_shown: u16) -> Result<u16, output::OutputError> {
    let rows = terminal::window_size().map_or(24, |size| size.rows).max(2) - 1;
    let lines: Vec<&str> = text.lines().take(rows.into()).collect();
    let up = if lines_shown > 0 {
        cursor::MoveToPreviousLine(lines_shown).to_string()
    } else {
        String::new()
    };
    output::print(&format!(
        "{up}{}{}\n",
        terminal::Clear(terminal::ClearType::FromCursorDown),
        lines.join("\n")
    ))?;
    Ok(u16::try_from(lines.len()).unwrap_or(rows))
}

#[cfg(test)]
mod tests {
    use super::{change, render};
    use crate::output::Format;
    use api::sprite::{Sprite, WatchEvent};
    use jiff::Timestamp;

    const SPRITES: &str = r#"[
        {"id":"sprite-1","name":"db","organization":"acme","status":"cold","url":"http://db","url_settings":{"auth":"sprite"},
         "version":null,"environment_version":null,"labels":["ci","eu"],"idle_timeout_seconds":30,"isolation":"namespaces",
         "created_at":"2026-01-31T10:28:13Z","updated_at":"2026-01-31T10:28:13Z","last_running_at":"2026-01-31T10:30:00Z"},
        {"id":"sprite-2","name":"web","organization":"acme","status":"running","url":"http://web",
         "url_settings":{"auth":"public"},"version":"1","environment_version":"1","labels":[],"idle_timeout_seconds":30,
         "isolation":"namespaces","created_at":"2026-01-31T11:00:00Z","updated_at":"2026-01-31T11:00:00Z"}]"#;

    fn check(format: Format, expected: &str) {
        let sprites: Vec<Sprite> = serde_json::from_str(SPRITES).expect("sprites");
        let now: Timestamp = "2026-01-31T11:30:00Z".parse().expect("a time");
        assert_eq!(render(format, &sprites, now).expect("plain text"), expected);
    }

    #[test]
    fn sprites_are_a_table_for_people_and_names_for_programs() {
        check(
            Format::Table,
            "NAME  STATUS   LAST AWAKE  CREATED  LABELS\n\
             db    cold     1h ago      1h ago   ci, eu\n\
             web   running  now         30m ago\n",
        );
        check(Format::Names, "db\nweb\n");
    }

    #[test]
    fn json_is_what_the_api_says() {
        let sprites: Vec<Sprite> = serde_json::from_str(SPRITES).expect("sprites");
        let text = render(Format::Json, &sprites, Timestamp::UNIX_EPOCH).expect("JSON");
        assert_eq!(serde_json::from_str::<Vec<Sprite>>(&text).expect("the same sprites"), sprites);
        assert!(
            text.starts_with("[\n  {\n    \"id\": \"sprite-1\",\n    \"name\": \"db\","),
            "{text}"
        );
    }

    #[test]
    fn changes_are_lines_and_heartbeats_are_not() {
        let event =
            |json: &str| change(&serde_json::from_str::<WatchEvent>(json).expect("an event"));
        let org = r#""timestamp":"2026-01-31T11:00:00Z","org":{"name":"a","running":0,"warm":0,"cold":0,"running_limit":0,"warm_limit":0}"#;
        assert_eq!(event(&format!(r#"{{"name":"web","status":"warm",{org}}}"#)), "web\twarm\n");
        assert_eq!(event(&format!(r#"{{"type":"heartbeat",{org}}}"#)), "");
    }
}
