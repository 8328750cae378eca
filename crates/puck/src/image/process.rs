//! Runs the programs of a build: hears them line by line, keeps the end of what they say for the error, and does not outlive
//! the build.

use super::Error;
use std::{collections::VecDeque, env, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
};

/// How many of a program's last lines stand in the error when it fails.
const LINES_KEPT: usize = 30;

/// Fails with the Debian package to install when a program is not on the path.
pub(super) fn require(programs: &[(&'static str, &'static str)]) -> Result<(), Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &str| env::split_paths(&path).any(|directory| directory.join(program).is_file());
    match programs.iter().find(|(program, _)| !is_there(program)) {
        Some((program, package)) => Err(Error::Missing { program, package }),
        None => Ok(()),
    }
}

/// Fails unless this process is root.
pub(super) fn require_root() -> Result<(), Error> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(Error::NotRoot) }
}

/// Runs a program to its end and passes on each line that it says, on either stream.
///
/// When the future is dropped, the program is asked to end with SIGTERM, so that it can take its mounts down.
pub(super) async fn run(
    program: &'static str,
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> Result<(), Error> {
    let failed = |source| Error::Run { program, source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = EndOnDrop(command.spawn().map_err(failed)?);
    let mut out = lines(child.0.stdout.take());
    let mut err = lines(child.0.stderr.take());
    let mut last = VecDeque::new();
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let line = tokio::select! {
            line = out.next_line(), if out_open => { let line = line.map_err(failed)?; out_open = line.is_some(); line }
            line = err.next_line(), if err_open => { let line = line.map_err(failed)?; err_open = line.is_some(); line }
        };
        let Some(line) = line else { continue };
        on_line(&line);
        if last.len() == LINES_KEPT {
            last.pop_front();
        }
        last.push_back(line);
    }
    let status = child.0.wait().await.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program { program, status, output: Vec::from(last).join("\n") })
}

type Lines = tokio::io::Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>;

fn lines(stream: Option<impl AsyncRead + Send + Unpin + 'static>) -> Lines {
    let stream: Box<dyn AsyncRead + Send + Unpin> = match stream {
        Some(stream) => Box::new(stream),
        None => Box::new(tokio::io::empty()),
    };
    BufReader::new(stream).lines()
}

/// A child that gets SIGTERM when nobody waits for it any more. SIGKILL would leave `mmdebstrap`'s mounts behind.
struct EndOnDrop(Child);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let pid = self
            .0
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        {
            tracing::debug!(%error, "an image build had ended already");
        }
    }
}
