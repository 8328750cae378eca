//! `puck exec`: one command in a sprite.

use super::proxy::Forwarding;
use crate::{
    client::Client,
    context::Context,
    exec,
    exit::{Exit, UsageError},
    spinner, terminal,
};
use anyhow::Context as _;
use api::{exec::ExecQuery, name::SpriteName};
use std::{os::unix::fs::PermissionsExt, path::PathBuf, str::FromStr};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

/// Where a relative destination of an upload starts, and where commands start.
const HOME: &str = "/home/sprite";

/// The permission bits that an upload keeps.
const MODE_BITS: u32 = 0o777;

/// What makes a single argument a line for the shell and not the name of a program.
const SHELL_MARKS: [char; 15] =
    [' ', '\t', '\n', ';', '&', '|', '<', '>', '(', ')', '$', '`', '"', '\'', '*'];

/// Run a command in a sprite
///
/// Everything after the command's name belongs to the command. Standard input, output and error are connected, and the exit
/// code is the command's own. A single argument with spaces in it is run by the shell.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "x",
    after_help = "Examples:\n  puck exec -- npm test\n  puck exec 'make && ls *.o'\n  \
                  puck exec --env DEBUG=1,PORT=3000 --dir app -- ./run\n  \
                  puck exec --file ./data.csv:in/data.csv -- wc -l in/data.csv\n  tar c src | puck exec -- tar x\n\n\
                  Exit codes: the command's own; 126 not executable; 127 not found; 128+n ended by signal n;\n\
                  1 the connection failed; 2 the command line is wrong."
)]
pub struct Exec {
    /// The directory to start in; a relative one starts at the home directory
    #[arg(long, value_name = "DIR")]
    dir: Option<String>,

    /// Give the command a terminal
    #[arg(long)]
    tty: bool,

    /// Variables, as K=V or K=V,K2=V2; may be repeated
    #[arg(long = "env", value_name = "K=V")]
    env: Vec<EnvList>,

    /// A file to copy into the sprite first, as SOURCE:DESTINATION; may be repeated
    #[arg(long = "file", value_name = "SRC:DEST")]
    files: Vec<Upload>,

    /// Use a plain request instead of a web socket; signals do not reach the command this way
    #[arg(long, conflicts_with = "tty")]
    http_post: bool,

    #[command(flatten)]
    forwarding: Forwarding,

    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        for file in &self.files {
            let directory = self.dir.as_deref().filter(|dir| dir.starts_with('/')).unwrap_or(HOME);
            let copying = file.send(&client, &sprite, directory);
            spinner::during(format!("Copying {}", file.source.display()), copying)
                .await
                .with_context(|| format!("copy {} to {sprite}", file.source.display()))?;
        }
        let query = self.query()?;
        let forwards = self.forwarding.forwards(&client, &sprite);
        let result = match query.tty {
            Some(_) => exec::run_terminal(&client, &sprite, &query, forwards).await,
            None => exec::run(&client, &sprite, &query, self.http_post, forwards).await,
        };
        result.with_context(|| {
            format!("run {} in {sprite}", self.command[0].chars().take(40).collect::<String>())
        })
    }

    fn query(&self) -> Result<ExecQuery, UsageError> {
        let cmd = match &self.command[..] {
            [line] if line.contains(SHELL_MARKS) => vec!["bash".into(), "-c".into(), line.clone()],
            command => command.to_vec(),
        };
        let mut env = if self.tty { terminal::environment() } else { Vec::new() };
        env.extend(self.env.iter().flat_map(|list| list.0.clone()));
        let texts =
            cmd.iter().chain(&self.dir).chain(env.iter().flat_map(|(key, value)| [key, value]));
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err(UsageError("a NUL byte cannot be passed on".into()));
        }
        Ok(ExecQuery {
            path: cmd.first().cloned(),
            cmd,
            env,
            dir: self.dir.clone(),
            tty: self.tty.then(terminal::size),
            stdin: true,
            ..ExecQuery::default()
        })
    }
}

/// `K=V,K2=V2`. A comma starts a new variable only if a name and `=` follow it, so values may hold commas.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EnvList(Vec<(String, String)>);

impl FromStr for EnvList {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut list: Vec<(String, String)> = Vec::new();
        for piece in text.split(',') {
            match (piece.split_once('=').filter(|(name, _)| is_variable(name)), list.last_mut()) {
                (Some((name, value)), _) => list.push((name.into(), value.into())),
                (None, Some((_, value))) => {
                    value.push(',');
                    value.push_str(piece);
                }
                (None, None) => return Err("expected NAME=VALUE, or several with commas between"),
            }
        }
        Ok(Self(list))
    }
}

fn is_variable(name: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    name.bytes().next().is_some_and(|b| is_inner(b) && !b.is_ascii_digit())
        && name.bytes().all(is_inner)
}

/// `SRC:DEST`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Upload {
    source: PathBuf,
    destination: String,
}

impl FromStr for Upload {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((source, destination)) if !source.is_empty() && !destination.is_empty() => {
                Ok(Self { source: source.into(), destination: destination.into() })
            }
            _ => Err("expected SOURCE:DESTINATION"),
        }
    }
}

impl Upload {
    async fn send(
        &self,
        client: &Client,
        sprite: &SpriteName,
        directory: &str,
    ) -> anyhow::Result<()> {
        let file = File::open(&self.source).await.context("open")?;
        let metadata = file.metadata().await.context("read its size")?;
        if metadata.is_dir() {
            anyhow::bail!("it is a directory: copy one with `tar c DIR | puck exec -- tar x`");
        }
        let mode = metadata.permissions().mode() & MODE_BITS;
        let content = reqwest::Body::wrap_stream(ReaderStream::new(file));
        client.write_file(sprite, (directory, &self.destination), mode, content).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{EnvList, Upload};

    #[test]
    fn variables_come_in_lists() {
        for (text, expected) in [
            ("A=1", &[("A", "1")][..]),
            ("A=1,B=2", &[("A", "1"), ("B", "2")]),
            ("PATHS=a,b,C=x=y", &[("PATHS", "a,b"), ("C", "x=y")]),
            ("A=,B=", &[("A", ""), ("B", "")]),
            ("A=1,2=3", &[("A", "1,2=3")]),
        ] {
            let list: EnvList = text.parse().expect("a list");
            let list: Vec<(&str, &str)> =
                list.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(list, expected, "{text}");
        }
        for bad in ["", "A", "=1", "1A=2", ",A=1"] {
            assert!(bad.parse::<EnvList>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_upload_has_two_ends() {
        let upload: Upload = "a b.txt:/tmp/x:y".parse().expect("two ends");
        assert_eq!(
            (upload.source.to_str(), upload.destination.as_str()),
            (Some("a b.txt"), "/tmp/x:y")
        );
        for bad in ["", "a", "a:", ":b"] {
            assert!(bad.parse::<Upload>().is_err(), "{bad:?}");
        }
    }
}
