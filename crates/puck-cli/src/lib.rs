//! The command line client: everything that `puck` does by asking a server.
//!
//! The binary flattens [`Commands`] and [`Options`] into its own parser, beside the server's commands, and hands them to
//! [`run`]. Nothing here knows how a server works; all it knows is the API.
//!
//! Results go to standard output, remarks and errors to standard error, one line each. The exit code is the remote
//! command's own where there is one (`docs/cli.md` lists the others).

mod client;
mod commands;
mod context;
mod endpoint;
mod exec;
mod exit;
mod names;
mod options;
mod output;
mod project;
mod refusal;
mod spinner;
mod terminal;
mod transport;

use anyhow::Context as _;
use context::{Context, Environment};
use exit::Exit;
use output::OutputError;
use std::process::ExitCode;

pub use commands::Commands;
pub use options::Options;

/// Runs one command to its end on a runtime of its own and says how the process must exit.
///
/// Must be called outside of any async runtime: from a plain `fn main`. Errors are printed, not returned.
#[must_use]
pub fn run(options: &Options, command: &Commands) -> ExitCode {
    let exit = match attempt(options, command) {
        Ok(exit) => exit,
        // Whoever read the output has seen enough, as in `puck list | head -1`.
        Err(error) if matches!(error.downcast_ref(), Some(OutputError::Closed)) => {
            Exit::OUTPUT_CLOSED
        }
        Err(error) => {
            output::note(&(exit::line(&error) + "\n"));
            exit::code(&error)
        }
    };
    exit.end()
}

fn attempt(options: &Options, command: &Commands) -> anyhow::Result<Exit> {
    let context = Context::new(options.clone(), Environment::of_process());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    let result = runtime.block_on(command.run(&context));
    // A read of standard input may still be waiting in a thread, and nobody will answer it.
    runtime.shutdown_background();
    result
}
