//! A command over a plain request: standard input is the body, and each chunk of the answer is one frame.
//!
//! Signals cannot be passed on this way. The server ends the command soon after the connection is gone.

use super::{
    controls::Controls,
    pump::{Lost, Outcome, Streams, write},
};
use crate::{
    endpoint::Endpoint,
    transport::{Answer, TransportError, connect, send_head},
};
use api::{
    exec::{ExecQuery, Frame},
    name::SpriteName,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How much of standard input goes into one chunk.
const STDIN_CHUNK_BYTES: usize = 16 * 1024;

/// Runs the command to its end.
pub(crate) async fn run(
    endpoint: &Endpoint,
    sprite: &SpriteName,
    query: &ExecQuery,
    streams: &mut Streams,
    controls: &mut Controls,
) -> Result<Outcome, TransportError> {
    tokio::select! {
        biased;
        outcome = exchange(endpoint, sprite, query, streams) => outcome,
        signal = controls.signal() => Ok(Outcome::Interrupted(signal)),
    }
}

async fn exchange(
    endpoint: &Endpoint,
    sprite: &SpriteName,
    query: &ExecQuery,
    streams: &mut Streams,
) -> Result<Outcome, TransportError> {
    let target = format!("/v1/sprites/{sprite}/exec?{}", query.to_query());
    let (reader, mut writer) = tokio::io::split(connect(endpoint).await?);
    let body = if query.stdin { ("Transfer-Encoding", "chunked") } else { ("Content-Length", "0") };
    let headers = [body, ("Content-Type", "application/octet-stream"), ("Connection", "close")];
    send_head(&mut writer, endpoint, "POST", &target, &headers).await?;
    let Streams { stdin, stdout, stderr } = streams;
    let receive = async {
        let mut answer = Answer::new(reader);
        let head = answer.head().await?;
        endpoint.tell(format_args!("POST {target} -> {}", head.status));
        match head.status {
            200 => Ok(frames(&mut answer, stdout, stderr).await),
            status if status >= 400 => Err(answer.refusal(&head).await.into()),
            status => Err(TransportError::NotUpgraded(status)),
        }
    };
    let send = async {
        if query.stdin {
            send(&mut writer, stdin).await;
        }
        // The end of the input is not the end of the command.
        std::future::pending().await
    };
    tokio::select! {
        biased;
        outcome = receive => outcome,
        outcome = send => outcome,
    }
}

async fn frames(
    answer: &mut Answer<impl AsyncRead + Unpin>,
    stdout: &mut (impl AsyncWrite + Unpin),
    stderr: &mut (impl AsyncWrite + Unpin),
) -> Outcome {
    loop {
        let chunk = match answer.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Outcome::Lost(Lost::Closed(String::new())),
            Err(error) => return Outcome::Lost(Lost::Request(error)),
        };
        let written = match Frame::parse(&chunk) {
            Err(error) => return Outcome::Lost(Lost::Malformed(error)),
            Ok(Some(Frame::Exit(code))) => return Outcome::Exited(code),
            Ok(Some(Frame::Stderr(bytes))) => write(stderr, bytes).await,
            Ok(Some(Frame::Stdout(bytes))) => write(stdout, bytes).await,
            Ok(Some(Frame::Stdin(_) | Frame::StdinEof) | None) => Ok(()),
        };
        if let Err(error) = written {
            return Outcome::Unwritten(error);
        }
    }
}

/// Sends standard input as chunks. A failure to send ends it silently: the answer tells more.
async fn send(writer: &mut (impl AsyncWrite + Unpin), stdin: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; STDIN_CHUNK_BYTES];
    loop {
        let length = stdin.read(&mut buffer).await.unwrap_or(0);
        let mut chunk = format!("{length:x}\r\n").into_bytes();
        chunk.extend_from_slice(&buffer[..length]);
        chunk.extend_from_slice(b"\r\n");
        if writer.write_all(&chunk).await.and(writer.flush().await).is_err() || length == 0 {
            return;
        }
    }
}
