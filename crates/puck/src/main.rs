//! `puck`: the server and the command line client in one program.
//!
//! Parses the arguments and hands over: `dev` to [`dev`], `fsck` to [`fsck`], `image` to [`image`], `key` to [`keys`], `log` to
//! [`mod@log`], everything else to the client.

mod account;
mod archive;
mod bucket;
mod data;
mod dev;
mod fsck;
mod gateway;
mod image;
mod keys;
mod log;
mod open;
mod orchestrator;
mod owner;
mod settings;
#[cfg(test)]
mod testing;
mod worker;

use anyhow::Context;
use clap::{CommandFactory as _, Parser};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// What is logged unless RUST_LOG or --log say otherwise.
const LOG_DEFAULT: &str = "info";

/// Sprites: Linux computers that are created in an instant and keep a durable disk.
#[derive(Debug, Parser)]
#[command(name = "puck", version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    client: puck_cli::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Client(puck_cli::Commands),
    Dev {
        #[command(flatten)]
        args: Box<settings::DevArgs>,
        /// What to log on standard error, such as `info` or `puck=debug`
        #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = LOG_DEFAULT)]
        log: String,
    },
    /// Print what makes a shell complete the commands: source <(puck completion bash)
    Completion {
        shell: clap_complete::Shell,
    },
    Fsck(fsck::FsckArgs),
    Open(open::OpenArgs),
    /// Work with the base image
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Work with the master keys of encrypted accounts
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Work with the logs in a bucket
    Log {
        #[command(subcommand)]
        command: LogCommand,
    },
}

#[derive(Debug, clap::Subcommand)]
enum ImageCommand {
    Build(image::BuildArgs),
}

#[derive(Debug, clap::Subcommand)]
enum KeyCommand {
    /// Print a new master key, a line for the file of --encryption-key-file
    Generate,
    /// Let go the master keys of an account that the file does not hold any more
    ///
    /// The account's key is first wrapped for the first key of the file. A server need not be stopped, but must be given the
    /// file before its next start.
    Retire(account::PlaceArgs),
}

#[derive(Debug, clap::Subcommand)]
enum LogCommand {
    Decrypt(log::DecryptArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Client(command) => return puck_cli::run(&arguments.client, &command),
        Command::Dev { args, log } => {
            log_to_stderr(&log).and_then(|()| block_on(dev::run(args.settings()?)))
        }
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "puck", &mut std::io::stdout());
            Ok(())
        }
        Command::Fsck(args) => log_to_stderr("warn").and_then(|()| block_on(check(args))),
        Command::Open(args) => {
            match log_to_stderr("warn").and_then(|()| open::run(&arguments.client, &args)) {
                Ok(code) => return code,
                Err(error) => Err(error),
            }
        }
        Command::Image { command: ImageCommand::Build(args) } => {
            log_to_stderr(LOG_DEFAULT).and_then(|()| block_on(build_image(args)))
        }
        Command::Key { command: KeyCommand::Generate } => {
            println!("{}", *keys::generate());
            Ok(())
        }
        Command::Key { command: KeyCommand::Retire(args) } => {
            log_to_stderr("warn").and_then(|()| block_on(retire(args)))
        }
        Command::Log { command: LogCommand::Decrypt(args) } => {
            log_to_stderr("warn").and_then(|()| block_on(async move { log::decrypt(&args).await }))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("puck: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds an image and says its digest; publishes it when a bucket is named.
async fn build_image(args: image::BuildArgs) -> anyhow::Result<()> {
    let url = match (&args.bucket, &args.data) {
        (Some(url), _) => Some(url.parse()?),
        (None, Some(data)) => Some(settings::bucket(None, data)?),
        (None, None) => None,
    };
    let store = url.as_ref().map(bucket::connect).transpose()?;
    let digest = image::run(&args, store.as_deref()).await?;
    println!("{digest}");
    Ok(())
}

/// Lets go the master keys that the file does not hold, and says which.
async fn retire(args: account::PlaceArgs) -> anyhow::Result<()> {
    for id in args.connect()?.wraps.retire().await? {
        println!("{id}");
    }
    Ok(())
}

async fn check(args: fsck::FsckArgs) -> anyhow::Result<()> {
    let is_well = fsck::run(&args).await?;
    anyhow::ensure!(is_well, "the bucket is damaged");
    Ok(())
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(work)
}

fn log_to_stderr(filter: &str) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("parse the log filter {filter:?}"))?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Arguments;
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn client_and_server_share_one_command_line() {
        Arguments::command().debug_assert();
        for line in ["dev --data x --org a", "log decrypt x y web"] {
            let words = std::iter::once("puck").chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
