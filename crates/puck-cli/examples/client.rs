//! The client alone, without the server's commands: what the tests of this crate start as a process.

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "puck")]
struct Client {
    #[command(flatten)]
    options: puck_cli::Options,
    #[command(subcommand)]
    command: puck_cli::Commands,
}

fn main() -> ExitCode {
    let Client { options, command } = Client::parse();
    puck_cli::run(&options, &command)
}
