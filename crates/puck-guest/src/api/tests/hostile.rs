//! Clients that send garbage, too much, or half of something.

use super::{Bench, script, within};
use http::{Method, StatusCode};
use serde_json::json;
use std::fs;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn only_this_sprite_is_here() {
    let bench = Bench::new().await;
    for path in [
        "//v1/sprites/other/exec",
        "//v1/sprites/s1x/exec",
        "//v1/sprites/%00/exec",
        "//v1/sprites/%ff/exec",
    ] {
        let answer = bench.get(path).await;
        assert_eq!(
            (answer.status, answer.json()),
            (StatusCode::NOT_FOUND, json!({ "error": "sprite not found" })),
            "{path}"
        );
        assert_eq!(answer.header("sprite-version"), api::SPRITE_VERSION);
    }
    for path in
        ["//", "//v1/sprites", "//internal/sleep", "nothing", "fs/nothing", "//v1/sprites/s1"]
    {
        let answer = bench.get(path).await;
        assert_eq!(
            (answer.status, answer.json()),
            (StatusCode::NOT_FOUND, json!({ "error": "not found" })),
            "{path}"
        );
    }
    let answer = bench.call(Method::PUT, "exec", &[], "").await;
    assert_eq!(
        (answer.status, answer.json()),
        (StatusCode::METHOD_NOT_ALLOWED, json!({ "error": "method not allowed" }))
    );
    assert_eq!(bench.get("//v1/sprites/%73%31/exec").await.status, StatusCode::OK);
}

#[tokio::test]
async fn refused_upgrades_say_why() {
    let bench = Bench::new().await;
    for (query, error) in [
        ("cmd=a%00b", "cmd contains a NUL byte"),
        ("cmd=%ff", "parse query: query is not valid UTF-8"),
        ("cmd=a&env=novalue", "env must have the form KEY=VALUE"),
        ("cmd=a&tty=true&rows=0", "rows must be a number from 1 to 65535"),
        ("cmd=a&tty=true&cols=x", "cols must be a number from 1 to 65535"),
    ] {
        let refused = bench.try_socket(&format!("exec?{query}"), &[]).await.err().unwrap();
        assert_eq!(
            (refused.status, refused.json()),
            (StatusCode::BAD_REQUEST, json!({ "error": error })),
            "{query}"
        );
        assert_eq!(refused.header("sprite-version"), api::SPRITE_VERSION);
    }
    for id in ["77", "x", "-1", "%00", "..", "18446744073709551616"] {
        for path in [format!("exec/{id}"), format!("exec?id={id}")] {
            // A NUL in the query is a malformed query before it is an unknown session.
            let status =
                if path == "exec?id=%00" { StatusCode::BAD_REQUEST } else { StatusCode::NOT_FOUND };
            let refused = bench.try_socket(&path, &[]).await.err().unwrap();
            assert_eq!(refused.status, status, "{path}");
            assert!(refused.json()["error"].is_string());
        }
    }
}

#[tokio::test]
async fn every_refusal_is_json() {
    let bench = Bench::new().await;
    let odd = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-version", "7")];
    for (method, path, headers, body) in [
        (Method::GET, "exec?cmd=true", &odd[..], String::new()),
        (Method::GET, "control", &[], String::new()),
        (Method::GET, "exec/%ff", &[], String::new()),
        (Method::GET, "checkpoints/%ff", &[], String::new()),
        (Method::POST, "exec/1/kill", &[], "x".repeat(3_000_000)),
        (Method::POST, "checkpoint", &[], "x".repeat(100_000)),
    ] {
        let answer = bench.call(method, path, headers, body).await;
        assert!(answer.status.is_client_error(), "{path}: {answer:?}");
        assert!(answer.json()["error"].is_string(), "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn garbage_on_a_socket_is_told_once_and_harms_nothing() {
    let bench = Bench::new().await;
    let mut socket = bench.socket("exec?cmd=cat&stdin=true").await;
    socket.session_info().await;
    for message in [
        Message::binary(vec![9, 1, 2]),
        Message::binary(vec![3]),
        Message::binary(vec![3, 1, 2]),
        Message::binary(vec![1, b'x']),
        Message::binary(&b"{not json"[..]),
        Message::binary(Vec::new()),
        Message::text("garbage"),
        Message::text(""),
        Message::text("[]"),
        Message::text(r#"{"type":"resize"}"#),
        Message::text(r#"{"type":"resize","cols":-1,"rows":99999}"#),
        Message::text(r#"{"type":"resize","cols":0,"rows":0}"#),
        Message::text(r#"{"type":"signal","signal":"NOPE"}"#),
        Message::text(r#"{"type":"signal"}"#),
        Message::text(r#"{"type":"dance"}"#),
        Message::text(r#"control:{"type":"op.start"}"#),
        Message::text("{".repeat(100_000)),
    ] {
        socket.send(message).await;
    }
    socket.stdin(b"still here").await;
    socket.eof().await;
    let all = socket.framed().await;
    assert_eq!((all.out().as_str(), all.exit, all.close), ("still here", Some(0), Some(1000)));
    assert_eq!(all.texts, [r#"{"type":"error","message":"unknown stream id 9"}"#]);
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_the_connection_and_not_the_agent() {
    let bench = Bench::new().await;
    let mut socket = bench.socket("exec?cmd=cat&stdin=true&max_run_after_disconnect=0.01s").await;
    socket.session_info().await;
    let large = Message::binary(vec![0; 17 * 1024 * 1024]);
    // The server stops reading in the middle, so the client's send may fail too.
    let sent = within(futures::SinkExt::send(&mut socket.websocket, large)).await;
    tracing::debug!(?sent, "a large message");
    while socket.next().await.is_some_and(|message| !message.is_close()) {}
    bench.until("the end", |agent| agent.sessions.count() == 0).await;
    assert_eq!(bench.get("exec").await.status, StatusCode::OK);
}

#[tokio::test]
async fn names_of_a_megabyte_are_refused() {
    let bench = Bench::new().await;
    for length in [5_000, 60_000] {
        let name = "n".repeat(length);
        for answer in [
            bench.get(&format!("fs/read?path={name}")).await,
            bench.get(&format!("fs/list?path={name}")).await,
            bench.call(Method::PUT, &format!("fs/write?path={name}"), &[], "x").await,
            bench
                .call(
                    Method::PUT,
                    &format!("fs/write?path={}&mkdir=true", "d/".repeat(length / 2)),
                    &[],
                    "x",
                )
                .await,
            bench.call(Method::DELETE, &format!("fs/delete?path={name}"), &[], "").await,
        ] {
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (StatusCode::BAD_REQUEST, &json!("ENAMETOOLONG"))
            );
        }
    }
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let request = format!(
        "GET /v1/sprites/s1/fs/read?path={} HTTP/1.1\r\nhost: x\r\n\r\n",
        "n".repeat(1_000_000)
    );
    // The server answers before it has read everything and may close while the client still writes.
    let _written = stream.write_all(request.as_bytes()).await;
    let mut answer = [0; 12];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    assert_eq!(bench.get("exec").await.status, StatusCode::OK);
}

#[tokio::test]
async fn half_a_body_writes_nothing() {
    let bench = Bench::new().await;
    bench.local.file("home/sprite/f", "old", 0o644, 1001);
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let request = "PUT /v1/sprites/s1/fs/write?path=f HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nhalf";
    stream.write_all(request.as_bytes()).await.unwrap();
    let home = bench.local.path("home/sprite");
    bench.until("the draft", |_| fs::read_dir(&home).unwrap().count() == 2).await;
    drop(stream);
    bench.until("its removal", |_| fs::read_dir(&home).unwrap().count() == 1).await;
    assert_eq!(fs::read_to_string(home.join("f")).unwrap(), "old");
}

#[tokio::test]
async fn clients_that_vanish_leave_nothing_behind() {
    let bench = Bench::new().await;
    let query = script("yes | head -c 5000000; sleep 60");
    for round in 0..10 {
        let mut socket =
            bench.socket(&format!("exec?{query}&max_run_after_disconnect=0.01s")).await;
        if round % 2 == 0 {
            socket.session_info().await;
        }
        if round % 3 == 0 {
            socket.expect("y").await;
        }
    }
    bench
        .until("the end", |agent| {
            agent.sessions.count() == 0 && agent.activity().now().awake_because.is_empty()
        })
        .await;
}

#[tokio::test]
async fn check_runs_a_command() {
    let bench = Bench::new().await;
    let check = bench.get("check").await.json();
    assert_eq!(
        (&check["sprite_name"], &check["status"], &check["reason"]),
        (&json!("s1"), &json!("healthy"), &json!(null))
    );
    assert!(check["elapsed"].is_number() && check["checked_at"].is_string());
}
