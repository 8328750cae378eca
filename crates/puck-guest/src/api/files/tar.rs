//! `GET fs/tar` and `PUT fs/tar`: a tree as one archive. Beyond the original API.
//!
//! The sprite's own `tar` works in the container, as the user: what a crafted archive does there is what that user could do
//! anyway, and nothing of it is looked at here. Modes, times and links are kept; owners too with `asRoot=true`. Both
//! directions stream. An archive that breaks off is not whole, and what came until then stays unpacked. What is mounted in a tree,
//! such as `/proc` and checkpoints, is no part of it.
//!
//! A client that leaves closes its pipe, and `tar` ends by that.

use super::{
    Call, FileError, act,
    actor::Actor,
    streamed,
    write::{self, Parents},
};
use crate::api::{Agent, Withdrawal, answer::Refusal, exec};
use api::files::Unpacked;
use axum::{
    Json,
    body::Body,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use guest::container::{Command, ProcessIo, Stdio, User};
use rustix::{
    fs::{FileType, OFlags},
    io::Errno,
};
use std::{io, os::fd::OwnedFd, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::{OwnedSemaphorePermit, mpsc},
};

/// The most archives that are made or unpacked at once; more wait.
pub(super) const ARCHIVES_MAX: usize = 8;

/// An archive is sent in pieces of at most this size.
const PIECE_BYTES: usize = 256 * 1024;

/// The most of what `tar` complains about that is kept.
const COMPLAINT_BYTES_MAX: usize = 4096;

/// Where `tar` and the compressors that it knows are found.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The exit code of `tar` when a file changed while it was read: the archive is whole all the same.
const CHANGED: u8 = 1;

/// `tar` at work.
struct Tar {
    process: Arc<dyn crate::api::sandbox::Process>,
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    withdrawal: Withdrawal,
    _place: OwnedSemaphorePermit,
}

pub(super) async fn pack(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Refusal> {
    let Call { path, actor, .. } = Call::read(&agent, raw.as_deref()).await?;
    let wanted = path.as_str().to_owned();
    act(&agent, actor, move |root| {
        let found = root.open_path(&wanted, OFlags::PATH | OFlags::NOFOLLOW);
        found.map(drop).map_err(|errno| FileError::new("open", wanted, errno))
    })
    .await?;
    let (dir, name) = path.split().unwrap_or(("/", "."));
    let arguments = ["--create", "--one-file-system", "--file=-", "--directory", dir, "--", name];
    let tar = Tar::start(&agent, actor, &arguments, false).await?;
    let (tx, rx) = mpsc::channel(1);
    tokio::spawn(tar.send(tx));
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], streamed(rx)).into_response())
}

pub(super) async fn unpack(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
    body: Body,
) -> Result<Json<Unpacked>, Refusal> {
    let Call { query, path, actor } = Call::read(&agent, raw.as_deref()).await?;
    let parents = if query.flag("mkdirParents") { Parents::All } else { Parents::None };
    let wanted = path.as_str().to_owned();
    act(&agent, actor, move |root| {
        write::make_directories(root, &wanted, None, parents)?;
        let failed = |errno| FileError::new("open", wanted.as_str(), errno);
        let stat = root.open_path(&wanted, OFlags::PATH).and_then(rustix::fs::fstat);
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) => Ok(()),
            Ok(_) => Err(failed(Errno::NOTDIR)),
            Err(errno) => Err(failed(errno)),
        }
    })
    .await?;
    let arguments =
        ["--extract", "--preserve-permissions", "--file=-", "--directory", path.as_str()];
    let mut tar = Tar::start(&agent, actor, &arguments, true).await?;
    let mut withdrawal = tar.withdrawal.clone();
    let (size, complaint) = tokio::select! {
        both = async { tokio::join!(feed(tar.stdin.take(), body), complaint(&mut tar.stderr)) } => both,
        () = withdrawal.wait() => return Err(Refusal::unavailable()),
    };
    let size = size?;
    match tar.process.wait().await {
        0 => Ok(Json(Unpacked { path: path.as_str().to_owned(), size })),
        code => Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("unpack into {}: tar ended with {code}: {complaint}", path.as_str()),
        )),
    }
}

impl Tar {
    async fn start(
        agent: &Agent,
        actor: Actor,
        arguments: &[&str],
        stdin: bool,
    ) -> Result<Self, Refusal> {
        let place = Arc::clone(&agent.files.archives).acquire_owned().await;
        let place = place.map_err(|_| Refusal::unavailable())?;
        let (sandbox, withdrawal) = agent.sandbox().await?;
        let command = Command {
            argv: std::iter::once("tar")
                .chain(arguments.iter().copied())
                .map(str::to_owned)
                .collect(),
            path: None,
            env: vec![
                ("PATH".to_owned(), PATH.to_owned()),
                ("LC_ALL".to_owned(), "C.UTF-8".to_owned()),
            ],
            dir: Some("/".to_owned()),
            user: match actor {
                Actor::Root => User::Root,
                Actor::Sprite => User::Sprite,
            },
            stdio: Stdio::Pipes { stdin },
        };
        let failed = |reason| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason);
        let (process, io) =
            sandbox.spawn(command).await.map_err(|error| failed(exec::explain(&error, "tar").0))?;
        let ProcessIo::Pipes { stdin, stdout, stderr } = io else {
            return Err(failed("tar has no pipes".to_owned()));
        };
        let watch = |error: io::Error| failed(format!("watch tar: {error}"));
        let read = |fd: OwnedFd| pipe::Receiver::from_owned_fd(fd).map_err(watch);
        Ok(Self {
            process,
            stdin: stdin.map(pipe::Sender::from_owned_fd).transpose().map_err(watch)?,
            stdout: read(stdout)?,
            stderr: read(stderr)?,
            withdrawal,
            _place: place,
        })
    }

    /// Passes on what `tar` writes. The body ends only if all of it was written, and breaks off otherwise.
    async fn send(self, tx: mpsc::Sender<io::Result<Bytes>>) {
        let Self { process, mut stdout, mut stderr, mut withdrawal, _place, .. } = self;
        let sent = async {
            // Whoever is not read any more must not be waited for.
            let complaint = async { Ok(complaint(&mut stderr).await) };
            tokio::try_join!(send_all(&mut stdout, &tx), complaint)
        };
        let error = tokio::select! {
            sent = sent => match sent {
                Ok(((), complaint)) => match process.wait().await {
                    0 | CHANGED => return,
                    code => io::Error::other(format!("tar ended with {code}: {complaint}")),
                },
                Err(error) => error,
            },
            () = withdrawal.wait() => io::Error::other("the container ended"),
        };
        tracing::debug!(%error, "an archive breaks off");
        if tx.send(Err(error)).await.is_err() {
            tracing::debug!("nobody waits for the archive any more");
        }
    }
}

async fn send_all(
    stdout: &mut pipe::Receiver,
    tx: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        if stdout.read_buf(&mut piece).await? == 0 {
            return Ok(());
        }
        if tx.send(Ok(piece.freeze())).await.is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

/// Gives the body to `tar`: how many bytes it was. What `tar` does not take, because it has failed or needs no more, is read and dropped,
/// so that the client hears the answer.
async fn feed(stdin: Option<pipe::Sender>, body: Body) -> Result<u64, Refusal> {
    let mut stdin = stdin;
    let mut body = body.into_data_stream();
    let mut size = 0;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| Refusal::invalid(&error))?;
        size += piece.len() as u64;
        if let Some(pipe) = &mut stdin
            && pipe.write_all(&piece).await.is_err()
        {
            stdin = None;
        }
    }
    Ok(size)
}

/// The beginning of what `tar` complains about, in one line.
async fn complaint(stderr: &mut pipe::Receiver) -> String {
    let mut kept = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(len @ 1..) = stderr.read(&mut piece).await {
        let room = COMPLAINT_BYTES_MAX.saturating_sub(kept.len()).min(len);
        kept.extend_from_slice(piece.get(..room).unwrap_or_default());
    }
    String::from_utf8_lossy(&kept).trim().replace('\n', "; ")
}
