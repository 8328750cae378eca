//! The command line client: everything that `puck` does by asking a server.
//!
//! The binary flattens [`Commands`] and [`Options`] into its own parser, beside the server's commands, and hands them to
//! [`run`].

mod commands;
mod options;

use std::process::ExitCode;

pub use commands::Commands;
pub use options::Options;

/// Runs one command to its end on a runtime of its own and says how the process must exit.
///
/// Must be called outside of any async runtime: from a plain `fn main`.
pub fn run(_options: &Options, command: &Commands) -> ExitCode {
    match command {
        Commands::List => ExitCode::FAILURE,
    }
}
