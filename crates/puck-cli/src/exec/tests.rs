//! The pump against a server in this process that plays one side of a recorded conversation.

use super::{
    controls::{Control, Controls, INTERRUPT},
    http,
    pump::{Lost, Mode, Outcome, Streams, pump},
    socket::Socket,
};
use crate::{endpoint::Endpoint, terminal::Modes, transport::TransportError, tunnel::Forwards};
use api::exec::{ExecQuery, TerminalSize};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{
        RawQuery,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    },
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use futures::{StreamExt, channel::mpsc, stream};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const PATH: &str = "/v1/sprites/web/exec";

/// More than any test prints.
const OUTPUT_BYTES: usize = 1024 * 1024;

async fn serve(router: Router) -> Endpoint {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Endpoint::new(&url, "acme/1a2b/t1/s3cret", false).expect("a URL")
}

/// A server that says which session it is and then plays `script`.
async fn scripted<F, R>(tty: bool, script: F) -> Endpoint
where
    F: Fn(WebSocket) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let upgrade = move |upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(move |mut socket| async move {
            let info = format!(
                r#"{{"type":"session_info","session_id":"7","command":"c","created":1,"cols":0,"rows":0,"is_owner":true,"tty":{tty}}}"#
            );
            send(&mut socket, Message::text(info)).await;
            script(socket).await;
        })
    };
    serve(Router::new().route(PATH, get(upgrade))).await
}

async fn send(socket: &mut WebSocket, message: Message) {
    socket.send(message).await.expect("the client listens");
}

async fn send_frames(socket: &mut WebSocket, frames: &[&[u8]]) {
    for frame in frames {
        send(socket, Message::binary(frame.to_vec())).await;
    }
}

/// The next message of the client that is not a ping; `None` when it has left.
async fn heard(socket: &mut WebSocket) -> Option<Message> {
    loop {
        match socket.recv().await {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(message)) => return Some(message),
        }
    }
}

/// Everything that the client types as frames, up to the end of its input.
async fn typed(socket: &mut WebSocket) -> Vec<u8> {
    let mut typed = Vec::new();
    loop {
        match heard(socket).await {
            Some(Message::Binary(frame)) if frame[0] == 0 => typed.extend_from_slice(&frame[1..]),
            Some(Message::Binary(frame)) => {
                assert_eq!(&frame[..], [4]);
                return typed;
            }
            other => panic!("{other:?} before the end of input"),
        }
    }
}

struct Local {
    streams: Streams,
    stdout: DuplexStream,
    stderr: DuplexStream,
}

impl Local {
    fn new(stdin: impl tokio::io::AsyncRead + Send + Unpin + 'static) -> Self {
        let (stdout, out) = duplex(OUTPUT_BYTES);
        let (stderr, err) = duplex(OUTPUT_BYTES);
        Self {
            streams: Streams {
                stdin: Box::new(stdin),
                stdout: Box::new(out),
                stderr: Box::new(err),
            },
            stdout,
            stderr,
        }
    }

    async fn printed(mut self) -> (String, String) {
        drop(self.streams);
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).await.expect("UTF-8");
        self.stderr.read_to_string(&mut err).await.expect("UTF-8");
        (out, err)
    }
}

fn no_controls() -> Controls {
    Controls::new(stream::empty().boxed())
}

async fn run_frames(endpoint: &Endpoint, local: &mut Local, controls: &mut Controls) -> Outcome {
    let mut socket = Socket::open(endpoint, PATH).await.expect("the server upgrades");
    pump(&mut socket, Mode::Frames, &mut local.streams, controls, &mut Forwards::none()).await
}

async fn run_terminal(endpoint: &Endpoint, local: &mut Local, controls: &mut Controls) -> Outcome {
    let mut socket = Socket::open(endpoint, PATH).await.expect("the server upgrades");
    assert_eq!(
        socket.session().map(|session| (session.id.as_str(), session.tty)),
        Some(("7", true))
    );
    let mode = Mode::Terminal { is_interactive: true, modes: &mut Modes::default() };
    pump(&mut socket, mode, &mut local.streams, controls, &mut Forwards::none()).await
}

#[tokio::test]
async fn input_ends_and_output_and_code_arrive() {
    let endpoint = scripted(false, |mut socket| async move {
        let typed = typed(&mut socket).await;
        send_frames(
            &mut socket,
            &[&[&[1], &typed[..]].concat(), b"", b"\x02oops\n", b"\x01bye\n", b"\x03\xff"],
        )
        .await;
        send(&mut socket, Message::Close(None)).await;
    })
    .await;
    let mut local = Local::new(&b"hello\n"[..]);
    assert!(matches!(
        run_frames(&endpoint, &mut local, &mut no_controls()).await,
        Outcome::Exited(255)
    ));
    assert_eq!(local.printed().await, ("hello\nbye\n".into(), "oops\n".into()));
}

#[tokio::test]
async fn a_command_that_prints_before_it_reads_does_not_block() {
    let endpoint = scripted(false, |mut socket| async move {
        let block = [&[1][..], &vec![b'x'; 32 * 1024]].concat();
        for _ in 0..20 {
            send(&mut socket, Message::binary(block.clone())).await;
        }
        let length = typed(&mut socket).await.len();
        send_frames(&mut socket, &[format!("\u{1}{length}").as_bytes(), b"\x03\0"]).await;
    })
    .await;
    let mut local = Local::new(tokio::io::repeat(b'y').take(8 * 1024 * 1024));
    assert!(matches!(
        run_frames(&endpoint, &mut local, &mut no_controls()).await,
        Outcome::Exited(0)
    ));
    let (out, _) = local.printed().await;
    assert!(out.len() > 20 * 32 * 1024 && out.ends_with("x8388608"));
}

#[tokio::test]
async fn a_terminal_is_raw_and_its_code_comes_as_text() {
    let (happen, happening) = mpsc::channel(4);
    let endpoint = scripted(true, move |mut socket| {
        let mut happen = happen.clone();
        async move {
            let first = heard(&mut socket).await.expect("a size");
            assert!(matches!(&first, Message::Text(text) if text.contains("resize")), "{first:?}");
            let typed = heard(&mut socket).await.expect("a key");
            happen.try_send(Control::Resize(TerminalSize { rows: 30, cols: 100 })).expect("room");
            let size = heard(&mut socket).await.expect("a new size");
            assert_eq!(size.to_text().expect("text"), r#"{"type":"resize","cols":100,"rows":30}"#);
            send_frames(&mut socket, &[b"\x1b[?1h", &typed.into_data(), b"", b"\x03"]).await;
            send(&mut socket, Message::text(r#"{"type":"exit","exit_code":3,"code":3}"#)).await;
            send(&mut socket, Message::Close(Some(CloseFrame { code: 4003, reason: "".into() })))
                .await;
        }
    })
    .await;
    let (mut keyboard, stdin) = duplex(64);
    keyboard.write_all(b"ls\r").await.expect("room");
    let mut local = Local::new(stdin);
    let outcome = run_terminal(&endpoint, &mut local, &mut Controls::new(happening.boxed())).await;
    assert!(matches!(outcome, Outcome::Exited(3)), "{outcome:?}");
    assert_eq!(local.printed().await.0, "\x1b[?1hls\r\x03");
}

#[tokio::test]
async fn the_detach_key_leaves_and_is_not_sent() {
    let (report, mut reports) = mpsc::channel(4);
    let endpoint = scripted(true, move |mut socket| {
        let mut report = report.clone();
        async move {
            let mut keys = Vec::new();
            while let Some(message) = heard(&mut socket).await {
                if let Message::Binary(bytes) = message {
                    keys.extend_from_slice(&bytes);
                }
            }
            report.try_send(keys).expect("room");
        }
    })
    .await;
    let mut local = Local::new(&b"ls\x1crest"[..]);
    assert!(matches!(
        run_terminal(&endpoint, &mut local, &mut no_controls()).await,
        Outcome::Detached
    ));
    assert_eq!(reports.next().await.as_deref(), Some(&b"ls"[..]));
}

#[tokio::test]
async fn a_signal_reaches_the_command_and_its_own_code_counts() {
    let endpoint = scripted(false, |mut socket| async move {
        let message = heard(&mut socket).await.expect("a signal");
        assert_eq!(message.to_text().expect("text"), r#"{"type":"signal","signal":"INT"}"#);
        send_frames(&mut socket, &[b"\x01cleaned up\n", b"\x03\x05"]).await;
    })
    .await;
    let (_keyboard, stdin) = duplex(64);
    let mut local = Local::new(stdin);
    let mut controls = Controls::new(stream::iter([Control::Signal(INTERRUPT)]).boxed());
    assert!(matches!(run_frames(&endpoint, &mut local, &mut controls).await, Outcome::Exited(5)));
    assert_eq!(local.printed().await.0, "cleaned up\n");
}

#[tokio::test]
async fn a_second_signal_leaves_a_server_that_does_not_even_read() {
    let endpoint = scripted(false, |socket| async move {
        std::future::pending::<()>().await;
        drop(socket);
    })
    .await;
    let mut local = Local::new(tokio::io::repeat(b'y'));
    let mut controls = Controls::new(stream::iter([Control::Signal(INTERRUPT); 2]).boxed());
    let outcome = run_frames(&endpoint, &mut local, &mut controls).await;
    assert!(matches!(outcome, Outcome::Interrupted(signal) if signal == INTERRUPT), "{outcome:?}");
}

#[tokio::test]
async fn an_end_without_a_code_is_a_loss() {
    type Check = fn(&Lost) -> bool;
    let cases: [(&[u8], Check); 3] = [
        (b"", |lost| matches!(lost, Lost::Closed(_) | Lost::Broken(_))),
        (b"\x03", |lost| matches!(lost, Lost::Malformed(_))),
        (b"{}", |lost| matches!(lost, Lost::Malformed(_))),
    ];
    for (frame, check) in cases {
        let endpoint = scripted(false, move |mut socket| async move {
            // In frames a text that tells a code does not count: output may still follow it.
            send(&mut socket, Message::text(r#"{"type":"exit","exit_code":0,"code":0}"#)).await;
            send_frames(&mut socket, &[b"\x01last", frame]).await;
        })
        .await;
        let (_keyboard, stdin) = duplex(64);
        let mut local = Local::new(stdin);
        let outcome = run_frames(&endpoint, &mut local, &mut no_controls()).await;
        assert!(matches!(&outcome, Outcome::Lost(lost) if check(lost)), "{outcome:?}");
        assert_eq!(local.printed().await.0, "last");
    }
}

#[tokio::test]
async fn a_command_learns_that_nobody_reads_it() {
    let (report, mut reports) = mpsc::channel(4);
    let endpoint = scripted(false, move |mut socket| {
        let mut report = report.clone();
        async move {
            send_frames(&mut socket, &[b"\x01unread"]).await;
            while let Some(message) = heard(&mut socket).await {
                if let Message::Text(text) = message {
                    report.try_send(text.to_string()).expect("room");
                }
            }
        }
    })
    .await;
    let (_keyboard, stdin) = duplex(64);
    let mut local = Local::new(stdin);
    let (reader, writer) = duplex(64);
    drop(reader);
    local.streams.stdout = Box::new(writer);
    let outcome = run_frames(&endpoint, &mut local, &mut no_controls()).await;
    assert!(
        matches!(&outcome, Outcome::Unwritten(error) if error.kind() == io::ErrorKind::BrokenPipe),
        "{outcome:?}"
    );
    assert_eq!(reports.next().await.as_deref(), Some(r#"{"type":"signal","signal":"PIPE"}"#));
}

#[tokio::test]
async fn a_refused_upgrade_says_why() {
    let refuse = |RawQuery(query): RawQuery| async move {
        let code = query.and_then(|query| query.parse().ok()).expect("a status");
        (StatusCode::from_u16(code).expect("a status"), r#"{"error":"it is said"}"#)
    };
    let endpoint = serve(Router::new().route(PATH, get(refuse))).await;
    for (status, is_worth_a_plain_request) in
        [(401, false), (404, false), (409, false), (426, true), (503, true)]
    {
        let error =
            Socket::open(&endpoint, &format!("{PATH}?{status}")).await.err().expect("refused");
        assert_eq!(error.to_string(), "it is said");
        assert!(matches!(&error, TransportError::Refused(refusal) if refusal.status == status));
        assert_eq!(error.is_worth_a_plain_request(), is_worth_a_plain_request, "{status}");
    }
    let error = Socket::open(&endpoint, &format!("{PATH}?200")).await.err().expect("no upgrade");
    assert!(error.is_worth_a_plain_request(), "{error}");
    let error = Socket::open(&endpoint, &"x".repeat(70_000)).await.err().expect("too long");
    assert!(matches!(error, TransportError::LongTarget(70_000)), "{error}");
}

#[tokio::test]
async fn a_plain_request_carries_input_output_and_code() {
    let answer = |RawQuery(query): RawQuery, body: Bytes| async move {
        assert_eq!(ExecQuery::parse(&query.expect("a query")).expect("an exec").cmd, ["cat", "-"]);
        let echo = [&[1][..], &body].concat();
        let frames = [echo, b"\x02oops\n".to_vec(), b"\x03\x02".to_vec()];
        let chunks = stream::iter(frames.map(Ok::<_, io::Error>)).then(|frame| async {
            tokio::task::yield_now().await;
            frame
        });
        Body::from_stream(chunks).into_response()
    };
    let endpoint = serve(Router::new().route(PATH, post(answer))).await;
    let sprite = "web".parse().expect("a name");
    let query =
        ExecQuery { cmd: vec!["cat".into(), "-".into()], stdin: true, ..ExecQuery::default() };
    let mut local = Local::new(tokio::io::repeat(b'z').take(40_000));
    let outcome =
        http::run(&endpoint, &sprite, &query, &mut local.streams, &mut no_controls()).await;
    assert!(matches!(outcome, Ok(Outcome::Exited(2))), "{outcome:?}");
    assert_eq!(local.printed().await, ("z".repeat(40_000), "oops\n".into()));
}

#[tokio::test]
async fn a_plain_request_without_a_code_is_a_loss() {
    let answer = || async {
        Body::from_stream(stream::iter([Ok::<_, io::Error>(b"\x01half".to_vec())])).into_response()
    };
    let endpoint = serve(Router::new().route(PATH, post(answer))).await;
    let sprite = "web".parse().expect("a name");
    let mut local = Local::new(tokio::io::empty());
    let outcome = http::run(
        &endpoint,
        &sprite,
        &ExecQuery::default(),
        &mut local.streams,
        &mut no_controls(),
    )
    .await;
    assert!(matches!(outcome, Ok(Outcome::Lost(_))), "{outcome:?}");
    assert_eq!(local.printed().await.0, "half");
}
