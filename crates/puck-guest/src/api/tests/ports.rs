//! What listens, and connections to it. The listeners are the test's own, in the test's network; others come and go
//! beside them.

use super::{Bench, Socket, script, within};
use http::StatusCode;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::Message;

async fn listen(host: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn text(socket: &mut Socket) -> Value {
    loop {
        match socket.any().await.expect("open") {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Binary(bytes) => assert!(bytes.is_empty(), "{bytes:?}"),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The next change of one port.
async fn change(socket: &mut Socket, port: u16) -> Value {
    loop {
        let message = text(socket).await;
        if message["port"] == port {
            return message;
        }
    }
}

#[tokio::test]
async fn a_watch_lists_what_listens_and_tells_every_change() {
    let bench = Bench::new().await;
    let (_before, before) = listen("127.0.0.1").await;
    let mut socket = bench.socket("ports/watch").await;
    let list = text(&mut socket).await;
    assert_eq!(list["type"], "port_list");
    let ports = list["ports"].as_array().unwrap();
    let found = ports.iter().find(|listener| listener["port"] == before).expect("in the list");
    assert_eq!(found["address"], "127.0.0.1");
    assert_eq!(found["pid"], std::process::id());
    assert!(bench.agent.activity().now().awake_because.contains(&"watch of ports".to_owned()));
    for host in ["0.0.0.0", "::1"] {
        let (listener, port) = listen(host).await;
        let pid = std::process::id();
        let place = json!({ "port": port, "address": host, "pid": pid });
        let mut opened = place.clone();
        opened["type"] = "port_opened".into();
        assert_eq!(change(&mut socket, port).await, opened);
        drop(listener);
        let mut closed = place;
        closed["type"] = "port_closed".into();
        assert_eq!(change(&mut socket, port).await, closed);
    }
    drop(socket);
    bench
        .until("the end of the watch", |agent| agent.activity().now().awake_because.is_empty())
        .await;
}

#[tokio::test]
async fn an_exec_hears_of_ports_that_open_while_it_runs_and_of_no_others() {
    let bench = Bench::new().await;
    let (_before, before) = listen("127.0.0.1").await;
    let mut socket = bench.socket(&format!("exec?{}&stdin=true", script("cat"))).await;
    socket.session_info().await;
    let (listener, port) = listen("127.0.0.1").await;
    let mut opened = Vec::new();
    while opened.last() != Some(&Value::from(port)) {
        let message = text(&mut socket).await;
        if message["type"] == "port_opened" {
            opened.push(message["port"].clone());
        }
    }
    assert!(!opened.contains(&before.into()));
    drop(listener);
    assert_eq!(change(&mut socket, port).await["type"], "port_closed");
    socket.eof().await;
    assert_eq!(socket.framed().await.exit, Some(0));
}

/// Opens a connection and takes the answer.
async fn connect(bench: &Bench, target: Value) -> (Socket, Value) {
    let mut socket = bench.socket("proxy").await;
    socket.send(Message::text(target.to_string())).await;
    let answer = text(&mut socket).await;
    (socket, answer)
}

async fn bytes(socket: &mut Socket, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        match socket.next().await.expect("open") {
            Message::Binary(bytes) => all.extend_from_slice(&bytes),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    all
}

#[tokio::test]
async fn bytes_go_both_ways_whatever_address_the_port_is_bound_to() {
    let bench = Bench::new().await;
    for (bound, host) in [
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "localhost"),
        ("::1", "localhost"),
        ("::", "s1"),
        ("127.0.0.1", ""),
        ("::1", "[::1]"),
        ("127.0.0.2", "127.0.0.2"),
        ("0.0.0.0", "0.0.0.0"),
    ] {
        let (listener, port) = listen(bound).await;
        let (mut socket, answer) = connect(&bench, json!({ "host": host, "port": port })).await;
        assert_eq!(answer["status"], "connected", "{bound} by {host:?}: {answer}");
        let target: SocketAddr = answer["target"].as_str().unwrap().parse().unwrap();
        assert_eq!(target.port(), port);
        let (mut stream, _) = within(listener.accept()).await.unwrap();
        socket.send(Message::binary(b"question".to_vec())).await;
        let mut question = [0; 8];
        within(stream.read_exact(&mut question)).await.unwrap();
        assert_eq!(&question, b"question");
        let answer: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        let (written, read) =
            tokio::join!(stream.write_all(&answer), bytes(&mut socket, answer.len()));
        written.unwrap();
        assert!(read == answer, "{bound} by {host:?}");
        drop(stream);
        assert!(
            matches!(socket.next().await, Some(Message::Close(Some(frame))) if u16::from(frame.code) == 1000)
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_connection_and_lets_the_sprite_sleep() {
    let bench = Bench::new().await;
    let (listener, port) = listen("127.0.0.1").await;
    let (socket, _) = connect(&bench, json!({ "host": "localhost", "port": port })).await;
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    let reason = format!("connection to port {port}");
    assert_eq!(bench.agent.activity().now().awake_because, [reason]);
    drop(socket);
    assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap(), 0);
    bench.until("the end", |agent| agent.activity().now().awake_because.is_empty()).await;
}

#[tokio::test]
async fn a_client_that_has_sent_everything_still_reads_the_answer() {
    let bench = Bench::new().await;
    let (listener, port) = listen("127.0.0.1").await;
    let (mut socket, _) = connect(&bench, json!({ "host": "localhost", "port": port })).await;
    socket.send(Message::binary(b"all".to_vec())).await;
    socket.send(Message::text(json!({ "type": "other" }).to_string())).await;
    socket.send(Message::text(json!({ "type": "eof" }).to_string())).await;
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    let mut question = String::new();
    within(stream.read_to_string(&mut question)).await.unwrap();
    assert_eq!(question, "all");
    stream.write_all(b"answer").await.unwrap();
    assert_eq!(bytes(&mut socket, 6).await, b"answer");
    drop(stream);
    assert!(matches!(socket.next().await, Some(Message::Close(_))));
}

#[tokio::test]
async fn what_cannot_be_connected_to_is_said_and_closed() {
    let bench = Bench::new().await;
    let (listener, free) = listen("127.0.0.1").await;
    drop(listener);
    let long = "x".repeat(5000);
    for (target, code, wanted) in [
        (json!({ "host": "localhost", "port": free }).to_string(), 1011, "refused"),
        (
            json!({ "host": "example.com", "port": 80 }).to_string(),
            1011,
            "must be `localhost` or an address",
        ),
        (json!({ "host": long, "port": 80 }).to_string(), 1011, "must be"),
        (json!({ "host": "localhost", "port": 0 }).to_string(), 1003, "port 0"),
        (json!({ "host": "localhost", "port": 70_000 }).to_string(), 1003, "not a target"),
        (json!({ "host": "localhost" }).to_string(), 1003, "port"),
        ("{".to_owned(), 1003, "not a target"),
    ] {
        let mut socket = bench.socket("proxy").await;
        socket.send(Message::text(target.clone())).await;
        let answer = text(&mut socket).await;
        assert_eq!(answer["status"], "error", "{target}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(wanted) && error.len() < 300, "{target}: {error}");
        let Some(Message::Close(Some(frame))) = socket.next().await else {
            panic!("{target}: open")
        };
        assert_eq!(u16::from(frame.code), code, "{target}");
    }
    let mut socket = bench.socket("proxy").await;
    socket.send(Message::binary(b"GET / HTTP/1.1".to_vec())).await;
    assert_eq!(text(&mut socket).await["status"], "error");
    for path in ["proxy", "ports/watch"] {
        let answer = bench.get(path).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.json()["error"].is_string());
    }
}

#[tokio::test]
async fn a_sprite_has_a_bound_of_connections() {
    let bench = Bench::new().await;
    let places = bench.agent.connections.available_permits();
    let taken = bench.agent.connections.try_acquire_many(u32::try_from(places).unwrap()).unwrap();
    let Err(refused) = bench.try_socket("proxy", &[]).await else { panic!("one too many") };
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    drop(taken);
    let (listener, port) = listen("127.0.0.1").await;
    let (socket, answer) = connect(&bench, json!({ "host": "localhost", "port": port })).await;
    assert_eq!(answer["status"], "connected");
    assert_eq!(bench.agent.connections.available_permits(), places - 1);
    drop((socket, listener));
    bench.until("the end", |agent| agent.connections.available_permits() == places).await;
    drop(TcpStream::connect(bench.address).await.unwrap());
}
