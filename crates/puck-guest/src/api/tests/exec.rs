//! Exec over WebSockets, and the session routes.

use super::{Bench, Socket, Transcript, script, within};
use http::{Method, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

async fn run(query: &str, input: &[&[u8]]) -> Transcript {
    let bench = Bench::new().await;
    let mut socket = bench.socket(&format!("exec?{query}")).await;
    socket.session_info().await;
    for piece in input {
        socket.stdin(piece).await;
    }
    socket.eof().await;
    socket.eof().await;
    socket.framed().await
}

#[tokio::test]
async fn commands_print_and_exit() {
    for (query, out, err, exit) in [
        ("cmd=echo&cmd=hi&path=echo".to_owned(), "hi\n", "", 0),
        ("cmd=echo&cmd=a b&cmd=%3B".replace(' ', "+"), "a b ;\n", "", 0),
        (script("echo out; echo err >&2; exit 7"), "out\n", "err\n", 7),
        (script("kill -9 $$"), "", "", 137),
        (script("kill -TERM $$"), "", "", 143),
        (script("printf '%s' \"$A$FROM_SPRITE\"") + "&env=A=1", "1yes", "", 0),
        (script("printf '%s' \"$HOME $USER\""), "/home/sprite sprite", "", 0),
        (script("pwd") + "&dir=/tmp", "/tmp\n", "", 0),
        (script("echo $0 $1").replace("&path=sh", "") + "&path=/bin/sh", "sh\n", "", 0),
        (script("cat; echo end"), "end\n", "", 0),
    ] {
        let all = run(&query, &[]).await;
        assert_eq!(
            (all.out(), all.err(), all.exit),
            (out.to_owned(), err.to_owned(), Some(exit)),
            "{query}"
        );
        assert_eq!(all.close, Some(1000), "{query}");
        assert!(all.texts.is_empty(), "{query}: {:?}", all.texts);
    }
}

#[tokio::test]
async fn input_goes_in_and_its_end_too() {
    let all = run("cmd=cat&stdin=true", &[b"hello\n", b"", b"world\n"]).await;
    assert_eq!((all.out().as_str(), all.exit), ("hello\nworld\n", Some(0)));
    let all = run("stdin=true", &[b"echo from a shell; exit 4\n"]).await;
    assert_eq!((all.out().as_str(), all.exit), ("from a shell\n", Some(4)));
}

#[tokio::test]
async fn commands_that_cannot_start_say_why() {
    for (query, err, exit) in [
        ("cmd=nosuch", "exec: \"nosuch\": executable file not found in $PATH\n", 127),
        ("cmd=/no/such", "exec: \"/no/such\": no such file or directory\n", 127),
        ("cmd=/etc/passwd", "exec: \"/etc/passwd\": permission denied\n", 126),
        ("cmd=ls&dir=/no/such", "chdir /no/such: no such file or directory\n", 1),
    ] {
        let all = run(query, &[]).await;
        assert_eq!(
            (all.err().as_str(), all.exit, all.close),
            (err, Some(exit), Some(1000)),
            "{query}"
        );
    }
    let bench = Bench::new().await;
    let mut socket = bench.socket("exec?cmd=nosuch&tty=true").await;
    socket.session_info().await;
    let all = socket.raw().await;
    assert_eq!(all.out(), "exec: \"nosuch\": executable file not found in $PATH\r\n");
    assert_eq!((all.texts.len(), all.close), (1, Some(4127)));
}

#[tokio::test]
async fn the_first_message_describes_the_session() {
    let bench = Bench::new().await;
    let mut socket = bench.socket("exec?cmd=cat&cmd=-&stdin=true").await;
    assert_eq!(socket.headers["x-sprite-capabilities"], "signal");
    assert_eq!(socket.headers["sprite-version"], api::SPRITE_VERSION);
    let info = socket.session_info().await;
    assert_eq!(info["command"], "/usr/bin/cat -");
    assert_eq!((&info["is_owner"], &info["tty"]), (&json!(true), &json!(false)));
    assert_eq!((&info["rows"], &info["cols"]), (&json!(0), &json!(0)));
    assert!(info["session_id"].as_str().unwrap().parse::<u64>().is_ok());
    assert!(info["created"].as_i64().unwrap() > 1_700_000_000);
}

#[tokio::test]
async fn a_terminal_has_its_size_and_its_exit() {
    for (code, close) in [(0, 1000), (3, 4003), (255, 4255)] {
        let bench = Bench::new().await;
        let query = script(&format!(
            "stty size; tty >/dev/null && echo $TERM; read a; stty size; exit {code}"
        ));
        let mut socket = bench.socket(&format!("exec?{query}&tty=true&rows=24&cols=80")).await;
        let info = socket.session_info().await;
        assert_eq!(
            (&info["tty"], &info["rows"], &info["cols"]),
            (&json!(true), &json!(24), &json!(80))
        );
        socket.expect("24 80\r\nxterm-256color\r\n").await;
        socket.send(Message::text(r#"{"type":"resize","cols":100,"rows":30}"#)).await;
        socket.send(Message::binary(&b"x\r"[..])).await;
        socket.send(Message::binary(Vec::new())).await;
        let all = socket.raw().await;
        assert!(all.out().contains("30 100"), "{all:?}");
        let exit: serde_json::Value = serde_json::from_str(&all.texts[0]).unwrap();
        assert_eq!(exit, json!({ "type": "exit", "exit_code": code, "code": code }));
        assert_eq!(all.close, Some(close));
    }
}

#[tokio::test]
async fn a_background_child_does_not_delay_the_exit() {
    let bench = Bench::new().await;
    let start = Instant::now();
    let mut socket =
        bench.socket(&format!("exec?{}", script("echo first; sleep 30 & exit 5"))).await;
    socket.session_info().await;
    let all = socket.framed().await;
    assert_eq!((all.out().as_str(), all.exit), ("first\n", Some(5)));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_endless_background_child_does_not_delay_the_exit() {
    let bench = Bench::new().await;
    let query = script("timeout 5 yes & sleep 0.05; exit 6");
    let mut socket = bench.socket(&format!("exec?{query}")).await;
    socket.session_info().await;
    let start = Instant::now();
    let all = socket.framed().await;
    assert_eq!(all.exit, Some(6));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test]
async fn every_byte_arrives_before_the_exit() {
    let bench = Bench::new().await;
    for (bytes, round) in [(1, 20), (200_000, 10), (5_000_000, 2)] {
        for _ in 0..round {
            let query = script(&format!("head -c {bytes} /dev/zero; exit 2"));
            let mut socket = bench.socket(&format!("exec?{query}")).await;
            socket.session_info().await;
            let all = socket.framed().await;
            assert_eq!((all.out.len(), all.exit), (bytes, Some(2)));
        }
    }
}

#[tokio::test]
async fn large_input_comes_back() {
    let bench = Bench::new().await;
    let mut socket = bench.socket("exec?cmd=cat&stdin=true").await;
    socket.session_info().await;
    let piece = vec![b'x'; 1024 * 1024];
    let Socket { websocket, info, headers } = socket;
    let (mut tx, rx) = futures::StreamExt::split(websocket);
    let writer = tokio::spawn(async move {
        for _ in 0..8 {
            let message = Message::binary([&[0], piece.as_slice()].concat());
            futures::SinkExt::send(&mut tx, message).await.unwrap();
        }
        futures::SinkExt::send(&mut tx, Message::binary(vec![4])).await.unwrap();
        tx
    });
    let (mut rx, mut received) = (rx, 0);
    let exit = loop {
        match within(futures::StreamExt::next(&mut rx)).await.unwrap().unwrap() {
            Message::Binary(bytes) if bytes.first() == Some(&1) => received += bytes.len() - 1,
            Message::Binary(bytes) if bytes.first() == Some(&3) => break bytes[1],
            _ => {}
        }
    };
    assert_eq!((received, exit), (8 * 1024 * 1024, 0));
    let _ = (writer.await.unwrap(), info, headers);
}

#[tokio::test]
async fn signals_reach_the_group() {
    for (message, exit) in [
        (Message::text(r#"{"type":"signal","signal":"TERM"}"#), 143),
        (Message::text(r#"{"type":"signal","signal":"sigusr1"}"#), 138),
        (Message::binary(&br#"{"type":"signal","signal":"KILL"}"#[..]), 137),
    ] {
        let bench = Bench::new().await;
        let mut socket =
            bench.socket(&format!("exec?{}", script("echo ready; sleep 60; echo no"))).await;
        socket.session_info().await;
        socket.expect("ready").await;
        socket.send(message).await;
        let all = socket.framed().await;
        assert_eq!((all.exit, all.out().as_str()), (Some(exit), ""));
    }
}

#[tokio::test]
async fn a_session_survives_its_client_and_is_watched_again() {
    let bench = Bench::new().await;
    let mut first =
        bench.socket(&format!("exec?{}&tty=true", script("echo begun; read a; echo got $a"))).await;
    let info = first.session_info().await;
    let id = info["session_id"].as_str().unwrap().to_owned();
    first.expect("begun").await;
    drop(first);
    bench
        .until("the client's leaving", |agent| agent.activity().now().awake_because.is_empty())
        .await;

    let mut second = bench.socket(&format!("exec/{id}?stdin=true")).await;
    let info = second.session_info().await;
    assert_eq!((&info["session_id"], &info["is_owner"]), (&json!(id), &json!(false)));
    second.expect("begun").await;
    let mut third = bench.socket(&format!("exec?id={id}&tty=true")).await;
    third.session_info().await;
    third.expect("begun").await;
    second.send(Message::binary(&b"word\r"[..])).await;
    for socket in [second, third] {
        let all = socket.raw().await;
        assert!(all.out().contains("got word"), "{all:?}");
        assert_eq!(all.close, Some(1000));
    }
    let refused = bench.try_socket(&format!("exec/{id}"), &[]).await.err().unwrap();
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert_eq!(refused.json(), json!({ "error": format!("session not found: {id}") }));
}

#[tokio::test]
async fn a_watcher_does_not_end_the_owners_input() {
    let bench = Bench::new().await;
    let mut owner = bench.socket("exec?cmd=cat&stdin=true").await;
    let id = owner.session_info().await["session_id"].as_str().unwrap().to_owned();
    owner.stdin(b"one\n").await;
    owner.expect("one").await;
    let mut watcher = bench.socket(&format!("exec/{id}")).await;
    watcher.session_info().await;
    watcher.expect("\u{1}one").await;
    watcher.eof().await;
    watcher.send(Message::Ping("x".into())).await;
    while !matches!(watcher.next().await, Some(Message::Pong(_))) {}
    owner.stdin(b"two\n").await;
    watcher.expect("two").await;
    owner.eof().await;
    assert_eq!(watcher.framed().await.exit, Some(0));
}

#[tokio::test]
async fn a_process_without_a_client_ends_after_its_time() {
    let bench = Bench::new().await;
    let query = script("trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done");
    let mut socket = bench.socket(&format!("exec?{query}&max_run_after_disconnect=0.2s")).await;
    socket.session_info().await;
    socket.expect("ready").await;
    assert_eq!(bench.agent.sessions.count(), 1);
    drop(socket);
    bench.until("the end", |agent| agent.sessions.count() == 0).await;
}

#[tokio::test]
async fn a_vanished_client_does_not_stop_the_process() {
    let bench = Bench::new().await;
    let query = script("head -c 30000000 /dev/zero; echo done > $OUT") + "&env=OUT=";
    let out = bench.local.path("tmp/out");
    let mut socket = bench.socket(&format!("exec?{query}{}", out.display())).await;
    socket.session_info().await;
    drop(socket);
    bench.until("the end", |agent| agent.sessions.count() == 0).await;
    assert_eq!(std::fs::read_to_string(out).unwrap(), "done\n");
}

#[tokio::test]
async fn a_slow_client_slows_the_process_and_loses_nothing() {
    let bench = Bench::new().await;
    let bytes = 20_000_000;
    let mut socket =
        bench.socket(&format!("exec?{}", script(&format!("head -c {bytes} /dev/zero")))).await;
    socket.session_info().await;
    // The process cannot end before the client reads: the pipes, the ring and the sockets hold much less.
    let ended = bench.until("the end", |agent| agent.sessions.count() == 0);
    assert!(tokio::time::timeout(Duration::from_millis(300), ended).await.is_err());
    assert_eq!(socket.framed().await.out.len(), bytes);
}

#[tokio::test]
async fn sessions_are_listed_and_killed() {
    let bench = Bench::new().await;
    let mut socket =
        bench.socket(&format!("exec?{}&dir=/tmp", script("echo ready; sleep 60"))).await;
    let id = socket.session_info().await["session_id"].as_str().unwrap().to_owned();
    socket.expect("ready").await;
    let list = bench.get("exec").await;
    assert_eq!(list.header("sprite-version"), api::SPRITE_VERSION);
    let list = list.json();
    assert_eq!(list["count"], 1);
    let session = &list["sessions"][0];
    assert_eq!(session["id"], id);
    assert_eq!(session["workdir"], "/tmp");
    assert_eq!((&session["tty"], &session["is_active"]), (&json!(false), &json!(true)));
    assert!(session["created"].is_string() && session["last_activity"].is_string());
    assert!(session["bytes_per_second"].is_number());
    assert_eq!(bench.call(Method::HEAD, "exec", &[], "").await.status, StatusCode::OK);

    let killed =
        bench.call(Method::POST, &format!("exec/{id}/kill?signal=TERM&timeout=5s"), &[], "").await;
    assert_eq!(
        (killed.status, killed.header("content-type")),
        (StatusCode::OK, "application/x-ndjson")
    );
    let lines = killed.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!((&lines[0]["type"], &lines[0]["signal"]), (&json!("signal"), &json!("SIGTERM")));
    assert_eq!(lines[1]["type"], "exited");
    assert_eq!(lines[2], json!({ "type": "complete", "exit_code": 143 }));
    assert_eq!(socket.framed().await.exit, Some(143));

    let again = bench.call(Method::POST, &format!("exec/{id}/kill"), &[], "").await;
    assert_eq!(again.status, StatusCode::GONE);
    for unknown in ["999", "x", "-1", "01", "%00"] {
        let answer = bench.call(Method::POST, &format!("exec/{unknown}/kill"), &[], "").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{unknown}");
    }
}

#[tokio::test]
async fn a_stubborn_process_is_killed_in_the_end() {
    let bench = Bench::new().await;
    let query = script("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    let mut socket = bench.socket(&format!("exec?{query}")).await;
    let id = socket.session_info().await["session_id"].as_str().unwrap().to_owned();
    socket.expect("ready").await;
    let body = r#"{"signal":"SIGTERM","timeout":0.05}"#;
    let lines = bench.call(Method::POST, &format!("exec/{id}/kill"), &[], body).await.lines();
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["signal", "timeout", "killed", "complete"]);
    assert_eq!(lines[3]["exit_code"], 137);
    assert_eq!(socket.framed().await.exit, Some(137));
}

#[tokio::test]
async fn a_kill_with_no_timeout_does_not_wait() {
    let bench = Bench::new().await;
    let mut socket =
        bench.socket(&format!("exec?{}", script("trap '' TERM; echo ready; sleep 60"))).await;
    let id = socket.session_info().await["session_id"].as_str().unwrap().to_owned();
    socket.expect("ready").await;
    let lines = bench
        .call(Method::POST, &format!("exec/{id}/kill?signal=SIGTERM&timeout=0s"), &[], "")
        .await
        .lines();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1], json!({ "type": "complete", "exit_code": 143 }));
    let deleted = bench.call(Method::POST, &format!("exec/{id}/kill?signal=KILL"), &[], "").await;
    assert_eq!(deleted.status, StatusCode::OK);
}

#[tokio::test]
async fn commands_wait_for_the_next_container() {
    let bench = Bench::new().await;
    bench.sandbox.send_replace(None);
    let mut socket = bench.socket("exec?cmd=echo&cmd=hi").await;
    assert!(
        tokio::time::timeout(
            Duration::from_millis(50),
            futures::StreamExt::next(&mut socket.websocket)
        )
        .await
        .is_err()
    );
    bench.sandbox.send_replace(Some(bench.local.clone()));
    socket.session_info().await;
    assert_eq!(socket.framed().await.out(), "hi\n");
}

#[tokio::test]
async fn an_attached_client_keeps_the_sprite_awake_and_a_quiet_session_does_not() {
    let bench = Bench::new().await;
    let mut socket =
        bench.socket(&format!("exec?{}&tty=true", script("echo ready; sleep 60"))).await;
    let id = socket.session_info().await["session_id"].as_str().unwrap().to_owned();
    socket.expect("ready").await;
    assert_eq!(bench.agent.activity().now().awake_because, [format!("session {id}")]);
    assert_eq!(bench.agent.activity().now().idle_ms, 0);
    drop(socket);
    bench.until("idleness", |agent| agent.activity().now().awake_because.is_empty()).await;
    assert_eq!(bench.agent.sessions.count(), 1);
    bench.call(Method::DELETE, &format!("exec/{id}"), &[], "").await;
    bench.until("the end", |agent| agent.sessions.count() == 0).await;
}

#[tokio::test]
async fn a_silent_socket_gets_an_empty_message() {
    let bench = Bench::new().await;
    for path in ["exec?cmd=cat&stdin=true", "exec?cmd=cat&tty=true", "control"] {
        let mut socket = bench.socket(path).await;
        if path != "control" {
            socket.session_info().await;
        }
        // From here on the clock jumps to the next timer whenever nothing happens.
        tokio::time::pause();
        let mut start = tokio::time::Instant::now();
        let next = async |socket: &mut Socket| {
            futures::StreamExt::next(&mut socket.websocket).await.unwrap().unwrap()
        };
        let mut message = next(&mut socket).await;
        // Other tests open ports in the same network.
        while matches!(message, Message::Text(_)) {
            start = tokio::time::Instant::now();
            message = next(&mut socket).await;
        }
        assert_eq!(message, Message::binary(Vec::new()), "{path}");
        assert!((14..20).contains(&start.elapsed().as_secs()), "{path}: {:?}", start.elapsed());
        tokio::time::resume();
    }
}

#[tokio::test]
async fn an_end_of_input_sent_blindly_at_an_attach_is_not_typed_into_the_terminal() {
    let bench = Bench::new().await;
    let mut owner = bench.socket("exec?cmd=cat&tty=true").await;
    let id = owner.session_info().await["session_id"].as_str().unwrap().to_owned();
    // This client does not say that it expects a terminal: its first 0x04 is the frame.
    let mut blind = bench.socket(&format!("exec/{id}?stdin=true")).await;
    blind.send(Message::binary(&[4][..])).await;
    blind.session_info().await;
    blind.send(Message::binary(&b"still here\n"[..])).await;
    owner.expect("still here").await;
    // Whoever expects a terminal types ^D, and so does whoever has learned of it.
    blind.send(Message::binary(&[4][..])).await;
    let exit: serde_json::Value = serde_json::from_str(&owner.raw().await.texts[0]).unwrap();
    assert_eq!(exit["exit_code"], 0);
}
