//! Programs of the host: `ip`, `nft`, `mount` and `modprobe`, each fed through its arguments and standard input.

use crate::Error;
use std::process::Stdio;
use tokio::{io::AsyncWriteExt, process::Command};

/// Where programs are looked for. Those of an administrator are not on every user's path.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The packages that have the programs, for the advice in an error.
const PACKAGES: [(&str, &str); 4] =
    [("ip", "iproute2"), ("modprobe", "kmod"), ("mount", "mount"), ("nft", "nftables")];

/// Runs a program to its end and gives its output.
///
/// # Errors
/// When it cannot be started, or fails: the error holds what it wrote to standard error.
pub(crate) async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| not_started(program, source))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why on standard error.
        drop(stdin.write_all(input.as_bytes()).await);
    }
    let output = child
        .wait_with_output()
        .await
        .map_err(|source| Error::Host { action: format!("wait for `{program}`"), source })?;
    if !output.status.success() {
        return Err(Error::Command {
            command: format!("{program} {}", arguments.join(" ")),
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn not_started(program: &str, source: std::io::Error) -> Error {
    if source.kind() != std::io::ErrorKind::NotFound {
        return Error::Host { action: format!("start `{program}`"), source };
    }
    let package =
        PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
    Error::Prerequisite {
        missing: format!("the program `{program}` is missing"),
        fix: format!("apt-get install {package}"),
    }
}
