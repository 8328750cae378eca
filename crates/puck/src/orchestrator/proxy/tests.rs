use super::{CREDENTIALS, Refusal, Terms, agent_broke, is_plain, pass};
use crate::worker::Agent;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{StatusCode, header},
    response::Response,
    routing::any,
};
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The longest that anything here may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// A client's view of a proxy in front of something that answers in the place of an agent.
struct Setup {
    address: std::net::SocketAddr,
    kept: Arc<()>,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

fn terms<'a>(tasks: &'a TaskTracker, stop: &'a CancellationToken) -> Terms<'a> {
    Terms { withheld: &CREDENTIALS, broken: agent_broke, tasks, stop }
}

impl Setup {
    async fn new(agent: Router) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixListener::bind(directory.path().join(guest::protocol::AGENT_SOCKET))
            .expect("a free socket");
        tokio::spawn(axum::serve(socket, agent).into_future());
        let (kept, stop, tasks) = (Arc::new(()), CancellationToken::new(), TaskTracker::new());
        let client = Agent::at(directory.path()).expect("a channel");
        let (keep, stopped) = (kept.clone(), stop.clone());
        let front = Router::new().fallback(move |request: Request| {
            let (client, keep, stop, tasks) =
                (client.clone(), keep.clone(), stopped.clone(), tasks.clone());
            async move {
                let _ = &keep;
                let agent = client.connect().await?;
                pass(agent, request, keep.clone(), terms(&tasks, &stop)).await
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(axum::serve(listener, front).into_future());
        Self { address, kept, stop, _directory: directory }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("a listener")
    }

    async fn send(&self, request: Request) -> Response<hyper::body::Incoming> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await))
                .await
                .expect("a handshake");
        tokio::spawn(connection);
        sender.send_request(request).await.expect("an answer")
    }
}

fn get(path: &str) -> http::request::Builder {
    Request::get(path).header(header::HOST, "127.0.0.1")
}

#[tokio::test]
async fn path_query_and_body_arrive_as_they_were_sent() {
    let agent = Router::new().fallback(any(async |request: Request| {
        let target = request.uri().to_string();
        let method = request.method().clone();
        let body = request.into_body().collect().await.expect("a whole body").to_bytes();
        format!("{method} {target} {}", String::from_utf8_lossy(&body))
    }));
    let setup = Setup::new(agent).await;
    let target = "/v1/sprites/a/exec/%2F%20x?cmd=a%20b&cmd=c+d&x";
    let request = Request::put(target)
        .header(header::HOST, "127.0.0.1")
        .body(Body::from("content"))
        .expect("a request");
    let body =
        setup.send(request).await.into_body().collect().await.expect("a whole body").to_bytes();
    assert_eq!(body, format!("PUT {target} content"));
}

#[tokio::test]
async fn credentials_and_connection_headers_stay_here() {
    let agent = Router::new().fallback(any(async |request: Request| {
        let names: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
        names.join(" ")
    }));
    let setup = Setup::new(agent).await;
    let request = get("/v1/sprites/a/fs/read")
        .header(header::AUTHORIZATION, "Bearer secret")
        .header(header::COOKIE, "a=b")
        .header(header::CONNECTION, "close, x-hop")
        .header("x-hop", "1")
        .header("x-kept", "1")
        .body(Body::empty())
        .expect("a request");
    let body =
        setup.send(request).await.into_body().collect().await.expect("a whole body").to_bytes();
    let names: Vec<&str> = std::str::from_utf8(&body).expect("text").split(' ').collect();
    assert!(names.contains(&"x-kept") && names.contains(&"host"), "{names:?}");
    for gone in ["authorization", "cookie", "connection", "x-hop"] {
        assert!(!names.contains(&gone), "{gone} in {names:?}");
    }
}

#[tokio::test]
async fn a_stream_arrives_as_it_is_written_and_holds_its_lease() {
    let (lines, line) = mpsc::channel::<Bytes>(1);
    let line = Arc::new(std::sync::Mutex::new(Some(line)));
    let agent = Router::new().fallback(any(move || {
        let line = line.lock().expect("no panic").take().expect("one call");
        async move {
            let stream = futures::stream::unfold(line, |mut line| async move {
                Some((line.recv().await?, line))
            });
            Body::from_stream(stream.map(Ok::<_, Infallible>))
        }
    }));
    let setup = Setup::new(agent).await;
    let idle = Arc::strong_count(&setup.kept);
    let request = get("/v1/sprites/a/checkpoint").body(Body::empty()).expect("a request");
    lines.send("first\n".into()).await.expect("somebody reads");
    let mut body = setup.send(request).await.into_body();
    let frame = body.frame().await.expect("not the end").expect("a frame");
    assert_eq!(frame.into_data().expect("data"), "first\n");
    assert!(Arc::strong_count(&setup.kept) > idle, "the stream holds its lease");
    lines.send("second\n".into()).await.expect("somebody reads");
    let frame = body.frame().await.expect("not the end").expect("a frame");
    assert_eq!(frame.into_data().expect("data"), "second\n");
    drop(lines);
    assert!(body.frame().await.is_none());
    wait_until(|| Arc::strong_count(&setup.kept) == idle).await;
}

#[tokio::test]
async fn a_client_that_vanishes_lets_its_lease_go() {
    let (lines, line) = mpsc::channel::<Bytes>(1);
    let line = Arc::new(std::sync::Mutex::new(Some(line)));
    let agent = Router::new().fallback(any(move || {
        let line = line.lock().expect("no panic").take().expect("one call");
        async move {
            let stream = futures::stream::unfold(line, |mut line| async move {
                Some((line.recv().await?, line))
            });
            Body::from_stream(stream.map(Ok::<_, Infallible>))
        }
    }));
    let setup = Setup::new(agent).await;
    let idle = Arc::strong_count(&setup.kept);
    let mut client = setup.connect().await;
    client.write_all(b"GET /v1/sprites/a/exec HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    lines.send("first\n".into()).await.expect("somebody reads");
    let mut buffer = [0; 16];
    client.read_exact(&mut buffer).await.expect("an answer");
    drop(client);
    wait_until(|| Arc::strong_count(&setup.kept) == idle).await;
    assert!(lines.is_closed() || lines.send("second\n".into()).await.is_ok());
}

/// An agent that accepts an upgrade and says everything back in upper case.
fn echo() -> Router {
    Router::new().fallback(any(async |mut request: Request| {
        assert_eq!(request.headers()[header::UPGRADE], "websocket");
        assert!(request.headers().get(header::AUTHORIZATION).is_none());
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(&mut request).await.expect("an upgrade");
            let mut upgraded = TokioIo::new(upgraded);
            let mut buffer = [0; 64];
            while let Ok(read @ 1..) = upgraded.read(&mut buffer).await {
                buffer[..read].make_ascii_uppercase();
                upgraded.write_all(&buffer[..read]).await.expect("written");
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header("sec-websocket-accept", "x")
            .body(Body::empty())
            .expect("a response")
    }))
}

async fn upgrade(client: &mut TcpStream) -> String {
    let head = "GET /v1/sprites/a/exec?cmd=cat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer secret\r\n\
                connection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: y\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(client.read_u8().await.expect("a head"));
    }
    String::from_utf8(answer).expect("text").to_ascii_lowercase()
}

#[tokio::test]
async fn upgrades_carry_bytes_both_ways_and_hold_their_lease() {
    let setup = Setup::new(echo()).await;
    let idle = Arc::strong_count(&setup.kept);
    let mut client = setup.connect().await;
    let head = upgrade(&mut client).await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(
        head.contains("upgrade: websocket") && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    for word in ["one", "two"] {
        client.write_all(word.as_bytes()).await.expect("sent");
        let mut echoed = vec![0; word.len()];
        client.read_exact(&mut echoed).await.expect("echoed");
        assert_eq!(echoed, word.to_ascii_uppercase().as_bytes());
    }
    assert!(Arc::strong_count(&setup.kept) > idle);
    drop(client);
    wait_until(|| Arc::strong_count(&setup.kept) == idle).await;
}

#[tokio::test]
async fn a_stop_cuts_upgrades() {
    let setup = Setup::new(echo()).await;
    let mut client = setup.connect().await;
    upgrade(&mut client).await;
    setup.stop.cancel();
    let read = tokio::time::timeout(DEADLINE, client.read_u8()).await.expect("cut in time");
    assert!(read.is_err());
}

#[tokio::test]
async fn a_dead_agent_is_unavailable() {
    let directory = tempfile::tempdir().expect("a directory");
    let agent = Agent::at(directory.path()).expect("a channel");
    let error = agent.connect::<Body>().await.expect_err("nobody listens");
    assert_eq!(Refusal::from(error).status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_fault() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = UnixListener::bind(directory.path().join(guest::protocol::AGENT_SOCKET));
    let agent = Router::new().fallback(any(async |body: Bytes| body.len().to_string()));
    tokio::spawn(axum::serve(socket.expect("a free socket"), agent).into_future());
    let agent = Agent::at(directory.path()).expect("a channel");
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let parts =
        [Ok(Bytes::from("part")), Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))];
    let body = Body::from_stream(futures::stream::iter(parts));
    let request = Request::put("/v1/sprites/a/fs/write")
        .header(header::HOST, "a")
        .body(body)
        .expect("a request");
    let agent = agent.connect().await.expect("somebody listens");
    let refusal = pass(agent, request, (), terms(&tasks, &stop)).await.expect_err("broken off");
    assert_eq!(refusal.status(), StatusCode::BAD_REQUEST);
}

#[test]
fn only_plain_paths_pass() {
    for good in [
        "/v1/sprites/a/exec",
        "/v1/sprites/a/checkpoints/v1",
        "/v1/sprites/a/x%2Fy",
        "/v1/sprites/a/...",
    ] {
        assert!(is_plain(&good.parse().expect("a path")), "{good}");
    }
    for bad in [
        "/v1/sprites/a/../b",
        "/v1/sprites/a/%2e%2e/internal",
        "/v1/sprites/a/.",
        "/v1/sprites/a/x%00",
    ] {
        assert!(!is_plain(&bad.parse().expect("a path")), "{bad}");
    }
}

async fn wait_until(mut condition: impl FnMut() -> bool) {
    tokio::time::timeout(DEADLINE, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("in time");
}
