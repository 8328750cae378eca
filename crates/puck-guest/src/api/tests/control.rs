//! The control socket.

use super::{Bench, Socket};
use http::StatusCode;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

async fn start(socket: &mut Socket, args: Value) {
    let message = json!({ "type": "op.start", "op": "exec", "args": args });
    socket.send(Message::text(format!("control:{message}"))).await;
}

/// Reads one operation: the frames, and the control message that ends it.
async fn operation(socket: &mut Socket) -> (Vec<Vec<u8>>, Value) {
    let mut frames = Vec::new();
    loop {
        match socket.next().await.expect("open") {
            Message::Binary(bytes) => frames.push(bytes.to_vec()),
            Message::Text(text) => {
                if let Some(control) = text.strip_prefix("control:") {
                    return (frames, serde_json::from_str(control).unwrap());
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn commands_run_one_after_another() {
    let bench = Bench::new().await;
    let mut socket = bench.socket("control").await;
    start(
        &mut socket,
        json!({ "cmd": ["sh", "-c", "echo $A $PWD"], "env": ["A=1"], "dir": "/tmp" }),
    )
    .await;
    socket.eof().await;
    socket.session_info().await;
    let (frames, end) = operation(&mut socket).await;
    assert_eq!(frames.concat(), b"\x011 /tmp\n\x03\x00".to_vec());
    assert_eq!(end, json!({ "type": "op.complete", "args": { "exitCode": 0 } }));
    // A stray end of input between two operations is of no consequence.
    socket.eof().await;
    start(&mut socket, json!({ "cmd": ["cat"], "stdin": "true" })).await;
    socket.stdin(b"in").await;
    socket.eof().await;
    socket.session_info().await;
    let (frames, end) = operation(&mut socket).await;
    assert_eq!(frames, [&b"\x01in"[..], b"\x03\x00"]);
    assert_eq!(end["type"], "op.complete");
}

#[tokio::test]
async fn terminals_and_signals_work_too() {
    let bench = Bench::new().await;
    let mut socket = bench.socket("control").await;
    let script = "echo ready; read a; stty size; exit 3";
    start(
        &mut socket,
        json!({ "cmd": ["sh", "-c", script], "tty": "true", "rows": "24", "cols": "80" }),
    )
    .await;
    assert_eq!(socket.session_info().await["tty"], true);
    socket.expect("ready").await;
    // One family of clients sends its text messages as binary ones.
    socket.send(Message::binary(&br#"{"type":"resize","cols":100,"rows":30}"#[..])).await;
    socket.send(Message::binary(&b"\r"[..])).await;
    let (frames, end) = operation(&mut socket).await;
    assert!(String::from_utf8_lossy(&frames.concat()).contains("30 100"));
    assert_eq!(end, json!({ "type": "op.complete", "args": { "exitCode": 3 } }));

    start(&mut socket, json!({ "cmd": ["sleep", "60"] })).await;
    socket.session_info().await;
    socket.send(Message::binary(&br#"{"type":"signal","signal":"SIGKILL"}"#[..])).await;
    let (_, end) = operation(&mut socket).await;
    assert_eq!(end["args"]["exitCode"], 137);
}

#[tokio::test]
async fn what_cannot_be_done_is_told_and_the_socket_lives_on() {
    let bench = Bench::new().await;
    let mut socket = bench.socket("control").await;
    for (message, code) in [
        (r#"control:{"type":"op.start","op":"fly","args":{}}"#, "op.not_found"),
        (r#"control:{"type":"dance"}"#, "op.not_active"),
        ("control:{", "op.invalid"),
        (r#"control:{"type":"op.start","op":"exec","args":{"id":"77"}}"#, "op.failed"),
        (r#"control:{"type":"op.start","op":"exec","args":{"cmd":["a\u0000"]}}"#, "op.failed"),
    ] {
        socket.send(Message::text(message)).await;
        let (_, end) = operation(&mut socket).await;
        assert_eq!(
            (&end["type"], &end["args"]["code"]),
            (&json!("op.error"), &json!(code)),
            "{message}"
        );
        assert!(end["args"]["error"].is_string() && end["args"]["message"].is_string());
    }
    socket.send(Message::text(r#"{"type":"release"}"#)).await;
    start(&mut socket, json!({ "cmd": ["cat"], "stdin": "true" })).await;
    start(&mut socket, json!({ "cmd": ["true"] })).await;
    socket.session_info().await;
    let (_, busy) = operation(&mut socket).await;
    assert_eq!(busy["args"]["code"], "op.busy");
    socket.eof().await;
    assert_eq!(operation(&mut socket).await.1["type"], "op.complete");
}

#[tokio::test]
async fn an_operation_in_the_address_starts_at_once() {
    let bench = Bench::new().await;
    let mut socket = bench.socket("control?op=exec&cmd=echo&cmd=hi").await;
    socket.session_info().await;
    assert_eq!(operation(&mut socket).await.0, [&b"\x01hi\n"[..], b"\x03\x00"]);
}

#[tokio::test]
async fn clients_that_cannot_use_it_are_sent_away() {
    let bench = Bench::new().await;
    let refused =
        bench.try_socket("control", &[("user-agent", "sprites-go-sdk/1.0")]).await.err().unwrap();
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
}
