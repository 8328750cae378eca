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
mod tunnel;

use anyhow::Context as _;
use api::name::SpriteName;
use context::{Context, Environment};
use exit::Exit;
use output::OutputError;
use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
};

pub use commands::Commands;
pub use options::Options;

/// Runs one command to its end on a runtime of its own and says how the process must exit.
///
/// Must be called outside of any async runtime: from a plain `fn main`. Errors are printed, not returned.
#[must_use]
pub fn run(options: &Options, command: &Commands) -> ExitCode {
    finish(on_runtime(options, async |context| command.run(context).await))
}

fn finish(done: anyhow::Result<Exit>) -> ExitCode {
    let exit = match done {
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

/// Makes a sprite on the server of what `write` writes, and says how the process must exit.
///
/// Must be called outside of any async runtime, as [`run`]; `write` is called on a thread of its own.
#[must_use]
pub fn import(
    options: &Options,
    name: &SpriteName,
    trust: bool,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()> + Send + 'static,
) -> ExitCode {
    let name = name.clone();
    let done = on_runtime(options, async |context| {
        commands::import::send(context, &name, trust, |parts| {
            let mut out = BufWriter::with_capacity(commands::import::PART_BYTES, Outlet(parts));
            write(&mut out).map_err(io::Error::other)?;
            out.flush()
        })
        .await
    });
    finish(done)
}

/// Passes what is written on to a request.
struct Outlet<'a>(&'a commands::import::Sender);

impl Write for Outlet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes::Bytes::copy_from_slice(bytes);
        self.0.blocking_send(Ok(part)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn on_runtime(
    options: &Options,
    work: impl AsyncFnOnce(&Context) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let context = Context::new(options.clone(), Environment::of_process());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    let result = runtime.block_on(work(&context));
    // A read of standard input may still be waiting in a thread, and nobody will answer it.
    runtime.shutdown_background();
    result
}
