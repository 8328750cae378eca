//! Exec over plain HTTP.

use super::{Bench, script, within};
use http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The chunks of an answer, as they came over the wire.
async fn chunks(bench: &Bench, query: &str, body: &str) -> Vec<Vec<u8>> {
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let request = format!(
        "POST /v1/sprites/s1/exec?{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    assert!(text.starts_with("http/1.1 200"), "{text}");
    assert!(text.contains("content-type: application/octet-stream"), "{text}");
    let (mut rest, mut chunks) = (&answer[head + 4..], Vec::new());
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            return chunks;
        }
        chunks.push(rest[line + 2..line + 2 + size].to_vec());
        rest = &rest[line + 2 + size + 2..];
    }
}

#[tokio::test]
async fn every_chunk_is_one_frame_and_the_exit_is_the_last() {
    let bench = Bench::new().await;
    let query = script("echo a; sleep 0.05; echo b >&2; exit 3");
    assert_eq!(chunks(&bench, &query, "").await, [&b"\x01a\n"[..], b"\x02b\n", b"\x03\x03"]);
    assert_eq!(chunks(&bench, "cmd=nosuch", "").await.last().unwrap(), b"\x03\x7f");
    let all = chunks(&bench, &script("head -c 1000000 /dev/zero"), "").await;
    assert_eq!(all.last().unwrap(), b"\x03\x00");
    let bytes: usize = all[..all.len() - 1].iter().map(|chunk| chunk.len() - 1).sum();
    assert_eq!(bytes, 1_000_000);
    assert!(all.iter().all(|chunk| chunk.len() <= 16 * 1024 + 1));
}

#[tokio::test]
async fn the_body_is_the_input() {
    let bench = Bench::new().await;
    assert_eq!(
        chunks(&bench, "cmd=cat&stdin=true", "typed").await,
        [&b"\x01typed"[..], b"\x03\x00"]
    );
    assert_eq!(chunks(&bench, "cmd=cat", "ignored").await, [b"\x03\x00"]);
    assert_eq!(chunks(&bench, "cmd=cat&stdin=true", "").await, [b"\x03\x00"]);
}

#[tokio::test]
async fn what_needs_a_socket_is_refused() {
    let bench = Bench::new().await;
    for parameter in ["tty=true", "id=1", "detachable=true", "cc=true"] {
        let answer = bench.call(Method::POST, &format!("exec?cmd=true&{parameter}"), &[], "").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{parameter}");
        assert!(answer.json()["error"].is_string());
    }
}

#[tokio::test]
async fn a_client_that_leaves_leaves_the_session() {
    let bench = Bench::new().await;
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let query = script("echo ready; sleep 60");
    let request = format!(
        "POST /v1/sprites/s1/exec?{query}&max_run_after_disconnect=0.05s HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(5).any(|window| window == b"ready") {
        let mut piece = [0; 1024];
        let length = within(stream.read(&mut piece)).await.unwrap();
        seen.extend_from_slice(&piece[..length]);
    }
    assert_eq!(bench.agent.sessions.count(), 1);
    drop(stream);
    bench.until("the end", |agent| agent.sessions.count() == 0).await;
}
