//! `GET fs/read`: the bytes of a file, or one range of them.

use super::{Call, FileError, act, streamed};
use crate::api::{Agent, Withdrawal, answer::Refusal};
use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use std::{
    fs::File,
    io::{self, SeekFrom},
    ops::Range,
    sync::Arc,
};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::mpsc,
};

/// A file is sent in pieces of this size.
const PIECE_BYTES: usize = 256 * 1024;

/// The most pieces that wait for a slow client.
const PIECES_MAX: usize = 1;

pub(super) async fn read(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Call { path, actor, .. } = Call::read(&agent, raw.as_deref()).await?;
    let wanted = path.as_str().to_owned();
    let ((file, size), withdrawal) = act(&agent, actor, move |root| {
        let (file, stat) = root
            .open_file(&wanted)
            .map_err(|errno| FileError::new("open", wanted.as_str(), errno))?;
        Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
    })
    .await?;
    let wanted = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let (status, range) = match wanted.map_or(Wanted::All, |text| parse_range(text, size)) {
        Wanted::All => (StatusCode::OK, 0..size),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Unsatisfiable => {
            let total = format!("bytes */{size}");
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, total)])
                .into_response());
        }
    };
    let mut file = tokio::fs::File::from_std(file);
    file.set_max_buf_size(PIECE_BYTES);
    if range.start > 0 {
        file.seek(SeekFrom::Start(range.start))
            .await
            .map_err(|error| FileError::from_io("seek", path.as_str(), &error).into_refusal())?;
    }
    let length = range.end - range.start;
    let mut response = Response::new(pieces(file, length, withdrawal));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        headers.extend(HeaderValue::from_str(&text).map(|value| (header::CONTENT_RANGE, value)));
    }
    Ok(response)
}

/// A body of the next bytes of a file. It breaks off, which the client can tell by its length, when the file is shorter by now
/// or its container ends. The file belongs to a task of its own: a client that does not read must not keep it open.
fn pieces(file: tokio::fs::File, length: u64, mut withdrawal: Withdrawal) -> Body {
    let (tx, rx) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        tokio::select! {
            () = withdrawal.wait() => tracing::debug!("a read ends with its container"),
            () = send(file.take(length), tx) => {}
        }
    });
    streamed(rx)
}

async fn send(mut file: tokio::io::Take<tokio::fs::File>, tx: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let piece = match file.read_buf(&mut piece).await {
            Ok(0) => return,
            Ok(_) => Ok(piece.freeze()),
            Err(error) => Err(error),
        };
        let is_last = piece.is_err();
        if tx.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// What a `Range` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// The whole: the header is not one range of bytes, and such a header is to be ignored.
    All,
    /// One range, not empty.
    Part(Range<u64>),
    /// A range outside of the file.
    Unsatisfiable,
}

fn parse_range(text: &str, size: u64) -> Wanted {
    let Some((first, last)) =
        text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Wanted::All;
    };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number too large for the type is larger than any file.
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let range = match (first, last) {
        ("", suffix) => match number(suffix) {
            Some(length) => size.saturating_sub(length)..size,
            None => return Wanted::All,
        },
        (first, "") => match number(first) {
            Some(first) => first..size,
            None => return Wanted::All,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..size.min(last.saturating_add(1)),
            _ => return Wanted::All,
        },
    };
    if range.is_empty() { Wanted::Unsatisfiable } else { Wanted::Part(range) }
}

#[cfg(test)]
mod tests {
    use super::{Wanted, parse_range};

    #[test]
    fn ranges_parse_as_http_says() {
        for (text, wanted) in [
            ("bytes=0-3", Wanted::Part(0..4)),
            ("bytes=5-", Wanted::Part(5..10)),
            ("bytes=5-99999999999999999999999", Wanted::Part(5..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-30", Wanted::Part(0..10)),
            ("bytes=9-9", Wanted::Part(9..10)),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=3-1", Wanted::All),
            ("bytes=0-1,3-4", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("bytes=", Wanted::All),
            ("bytes=-", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("", Wanted::All),
        ] {
            assert_eq!(parse_range(text, 10), wanted, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Wanted::Unsatisfiable);
    }
}
