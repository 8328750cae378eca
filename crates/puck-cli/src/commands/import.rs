//! `puck import`: a sprite of one file.

use crate::{client::ClientError, context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;
use api::name::SpriteName;
use reqwest::Body;
use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};
use tokio::sync::mpsc;

/// What is read is passed on in parts of this length, of which so many wait.
pub(crate) const PART_BYTES: usize = 256 << 10;
const PARTS_WAITING_MAX: usize = 8;

/// Make a sprite of a file that `puck export` wrote
///
/// The server knows the files that it wrote itself. The disk in any other file may be made up, and one that is made up well can attack the
/// host that mounts it; so the server takes it only with --trust, and checks the filesystem first.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  puck import web.tar web-again\n  puck import theirs.tar web --trust"
)]
pub struct Import {
    /// The file; - is standard input
    file: PathBuf,

    /// The new sprite's name
    name: String,

    /// Take it although another server wrote it, because you trust whoever did
    #[arg(long)]
    trust: bool,
}

impl Import {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let name = context.named(Some(&self.name))?;
        let input: Box<dyn Read + Send> = if self.file == Path::new("-") {
            Box::new(io::stdin())
        } else {
            let file = std::fs::File::open(&self.file);
            Box::new(file.with_context(|| format!("read {}", self.file.display()))?)
        };
        send(context, &name, self.trust, move |parts| read(input, parts)).await
    }
}

/// Where the parts of an archive go on their way to the server. It fails when the server takes no more.
pub(crate) type Sender = mpsc::Sender<io::Result<bytes::Bytes>>;

/// Makes a sprite of what `write` sends from a thread of its own.
pub(crate) async fn send(
    context: &Context,
    name: &SpriteName,
    trust: bool,
    write: impl FnOnce(&Sender) -> io::Result<()> + Send + 'static,
) -> anyhow::Result<Exit> {
    let client = context.client()?;
    let (parts, mut waiting) = mpsc::channel(PARTS_WAITING_MAX);
    let writing = tokio::task::spawn_blocking(move || {
        let written = write(&parts);
        if written.is_err() {
            // What came so far must not pass for the whole. The server may have gone.
            let _ = parts.blocking_send(Err(io::Error::other("the archive ends early")));
        }
        written
    });
    let body = Body::wrap_stream(futures::stream::poll_fn(move |task| waiting.poll_recv(task)));
    let importing = client.import_sprite(name, trust, body);
    let imported = spinner::during(format!("Importing {name}"), importing).await;
    match imported {
        // The server has seen the end of the archive, whatever may come behind it.
        Ok(sprite) => {
            output::line(&sprite.name)?;
            Ok(Exit::SUCCESS)
        }
        Err(error @ ClientError::Refused(_)) => {
            Err(error).with_context(|| format!("import {name}"))
        }
        Err(error) => {
            // If the archive is what failed, that says more than that the server did not get it.
            if let Ok(Err(reading)) = writing.await
                && reading.kind() != io::ErrorKind::BrokenPipe
            {
                return Err(reading).context("read the archive");
            }
            Err(error).with_context(|| format!("import {name}"))
        }
    }
}

fn read(mut input: impl Read, parts: &Sender) -> io::Result<()> {
    loop {
        let mut part = vec![0; PART_BYTES];
        let count = input.read(&mut part)?;
        if count == 0 {
            return Ok(());
        }
        part.truncate(count);
        parts.blocking_send(Ok(part.into())).map_err(|_| io::ErrorKind::BrokenPipe)?;
    }
}
