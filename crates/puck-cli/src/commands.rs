//! The commands, one file each, named as they are typed.
//!
//! Each is a set of flags and a `run` that asks the server and prints what it says.

mod attach;
mod checkpoint;
mod config;
mod console;
mod cp;
mod create;
mod destroy;
mod exec;
mod export;
mod fork;
pub(crate) mod import;
mod info;
mod list;
mod policy;
mod proxy;
mod restart;
mod restore;
mod sessions;
mod undelete;
mod url;
mod r#use;
mod volume;

use crate::{context::Context, exit::Exit};

/// What the client can do. The server's own commands stand beside these in the binary.
#[derive(Debug, clap::Subcommand)]
#[expect(
    missing_docs,
    reason = "a text here would replace the help text, which stands at the type"
)]
pub enum Commands {
    Create(create::Create),
    Use(r#use::Use),
    List(list::List),
    Info(info::Info),
    Url(url::Url),
    Config(config::Config),
    Destroy(destroy::Destroy),
    Exec(exec::Exec),
    Console(console::Console),
    Sessions(sessions::Sessions),
    Attach(attach::Attach),
    Proxy(proxy::Proxy),
    Cp(cp::Cp),
    Checkpoint(checkpoint::Checkpoint),
    Restart(restart::Restart),
    Restore(restore::Restore),
    Fork(fork::Fork),
    Export(export::Export),
    Import(import::Import),
    Undelete(undelete::Undelete),
    Policy(policy::Policy),
    Volume(volume::Volume),
}

impl Commands {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Create(command) => command.run(context).await,
            Self::Use(command) => command.run(context).await,
            Self::List(command) => command.run(context).await,
            Self::Info(command) => command.run(context).await,
            Self::Url(command) => command.run(context).await,
            Self::Config(command) => command.run(context).await,
            Self::Destroy(command) => command.run(context).await,
            Self::Exec(command) => command.run(context).await,
            Self::Console(command) => command.run(context).await,
            Self::Sessions(command) => command.run(context).await,
            Self::Attach(command) => command.run(context).await,
            Self::Proxy(command) => command.run(context).await,
            Self::Cp(command) => command.run(context).await,
            Self::Checkpoint(command) => command.run(context).await,
            Self::Restart(command) => command.run(context).await,
            Self::Restore(command) => command.run(context).await,
            Self::Fork(command) => command.run(context).await,
            Self::Export(command) => command.run(context).await,
            Self::Import(command) => command.run(context).await,
            Self::Undelete(command) => command.run(context).await,
            Self::Policy(command) => command.run(context).await,
            Self::Volume(command) => command.run(context).await,
        }
    }
}

/// Parses the id of a session or checkpoint: something that can stand in a URL as one step of a path.
fn id(text: &str) -> Result<String, String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    let is_id = text.bytes().all(is_plain) && text.bytes().any(|b| b.is_ascii_alphanumeric());
    if is_id {
        Ok(text.to_owned())
    } else {
        Err("an id has only letters, digits, `-`, `_`, `.` and `:`".into())
    }
}

#[cfg(test)]
mod tests;
