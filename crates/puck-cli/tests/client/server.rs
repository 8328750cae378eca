//! A server that answers as the API says, from what a few fixed words mean: enough for a client to be tested as a process.

use api::{
    exec::{ExecQuery, Frame},
    query::Query,
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Path, RawQuery, Request, State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use futures::stream;
use serde_json::{Value, json};
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
};

/// The one token that is let in.
pub(crate) const TOKEN: &str = "acme/1a2b/t1/s3cret";

/// What was uploaded, as one line each.
type Uploads = Arc<Mutex<Vec<String>>>;

/// Where the server listens. It is started by the first who asks and lives as long as the process.
pub(crate) fn address() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
                axum::serve(listener, router()).await
            })
        });
        address
    })
}

fn router() -> Router {
    let kept = Uploads::default();
    Router::new()
        .route("/v1/sprites", get(list).post(create))
        .route(
            "/v1/sprites/{name}",
            get(|Path(name): Path<String>| async move {
                known(&name, || Json(sprite(&name)).into_response())
            })
            .delete(|| async { StatusCode::NO_CONTENT }),
        )
        .route("/v1/sprites/{name}/exec", get(exec).post(exec_plain))
        .route("/v1/sprites/{name}/exec/{id}", get(attach))
        .route("/v1/sprites/{name}/exec/{id}/kill", post(kill))
        .route("/v1/sprites/{name}/checkpoints", get(|| async { Json(checkpoints()) }))
        .route(
            "/v1/sprites/{name}/checkpoints/{id}",
            axum::routing::delete(|| async { StatusCode::NO_CONTENT }),
        )
        .route("/v1/sprites/{name}/checkpoints/{id}/restore", post(restore))
        .route("/v1/sprites/{name}/checkpoint", post(checkpoint))
        .route("/v1/sprites/{name}/fs/write", put(write))
        .layer(from_fn(authenticate))
        .with_state(kept)
}

async fn authenticate(request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if sent == Some(&format!("Bearer {TOKEN}")) {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, Json(json!({"error": "authentication failed"}))).into_response()
    }
}

pub(crate) fn sprite(name: &str) -> Value {
    json!({
        "id": format!("sprite-{name}"), "name": name, "organization": "acme", "status": "cold",
        "url": format!("http://{name}-1a2b.localhost"), "url_settings": {"auth": "sprite"}, "version": null,
        "environment_version": null, "labels": [], "idle_timeout_seconds": 30, "durability": "default", "isolation": "namespaces",
        "created_at": "2026-01-31T10:28:13Z", "updated_at": "2026-01-31T10:28:13Z",
    })
}

pub(crate) fn sessions() -> Value {
    json!({"count": 1, "sessions": [{
        "id": "7", "command": "bash -l", "workdir": "/home/sprite", "created": "2026-01-31T10:28:13Z",
        "bytes_per_second": 0.5, "is_active": true, "last_activity": "2026-01-31T10:28:13Z", "tty": true,
    }]})
}

pub(crate) fn checkpoints() -> Value {
    let one = |id: &str| json!({"id": id, "create_time": "2026-01-31T10:28:13Z", "comment": "", "is_auto": false, "history": [], "health": ""});
    json!([one("Current"), one("v2"), one("v1")])
}

/// Answers for the sprites that exist.
fn known(name: &str, answer: impl FnOnce() -> Response) -> Response {
    if ["db", "plain", "web"].contains(&name) {
        answer()
    } else {
        (StatusCode::NOT_FOUND, Json(json!({"error": "sprite not found"}))).into_response()
    }
}

fn parse(query: Option<String>) -> Query {
    Query::parse(&query.unwrap_or_default()).expect("UTF-8")
}

async fn list(RawQuery(query): RawQuery) -> Json<Value> {
    let query = parse(query);
    // One sprite a page, so that the client has to turn pages.
    let prefix = query.first("prefix").unwrap_or_default();
    let names: Vec<&str> =
        ["db", "web"].into_iter().filter(|name| name.starts_with(prefix)).collect();
    let page: usize =
        query.first("continuation_token").map_or(0, |token| token.parse().expect("our own token"));
    let has_more = page + 1 < names.len();
    let counts = json!({"name": "acme", "running": 0, "warm": 0, "cold": 2, "running_limit": 1, "warm_limit": 1});
    let mut answer = counts.clone();
    answer["sprites"] = names.get(page).map(|name| sprite(name)).into_iter().collect();
    answer["has_more"] = has_more.into();
    answer["next_continuation_token"] =
        if has_more { (page + 1).to_string().into() } else { Value::Null };
    answer["org"] = counts;
    Json(answer)
}

async fn create(Json(body): Json<Value>) -> Response {
    match body["name"].as_str() {
        Some("taken") => {
            let error = "A sprite named 'taken' already exists. Please choose a different name.";
            (StatusCode::CONFLICT, Json(json!({"error": error}))).into_response()
        }
        Some(name) => (StatusCode::CREATED, Json(sprite(name))).into_response(),
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

fn lines(lines: &[Value]) -> Response {
    lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_response()
}

async fn checkpoint(Json(body): Json<Value>) -> Response {
    assert_eq!(body, json!({"comment": "words"}));
    let time = "2026-09-15T10:00:00Z";
    lines(&[
        json!({"type": "info", "data": "Creating checkpoint...", "time": time}),
        json!({"type": "info", "data": "  ID: v3", "time": time}),
        json!({"type": "complete", "data": "Checkpoint v3 created successfully", "time": time}),
    ])
}

async fn restore(Path((_, id)): Path<(String, String)>) -> Response {
    let time = "2026-09-15T10:00:00Z";
    let last = match id.as_str() {
        "v1" => json!({"type": "complete", "data": "Restore from v1 complete", "time": time}),
        id => json!({"type": "error", "error": format!("checkpoint {id} not found"), "time": time}),
    };
    lines(&[
        json!({"type": "info", "data": format!("Restoring from checkpoint {id}..."), "time": time}),
        last,
    ])
}

async fn kill(RawQuery(query): RawQuery) -> Response {
    let query = parse(query);
    assert_eq!(query.first("timeout"), Some("10s"));
    let signal = query.first("signal").expect("a signal");
    lines(&[
        json!({"type": "signal", "message": format!("Signaling {signal}"), "signal": "SIGTERM", "pid": 7}),
        json!({"type": "complete", "exit_code": 143}),
    ])
}

async fn write(
    State(kept): State<Uploads>,
    RawQuery(query): RawQuery,
    body: String,
) -> Json<Value> {
    let query = parse(query);
    let [directory, path, mode] =
        ["workingDir", "path", "mode"].map(|key| query.first(key).expect(key));
    kept.lock().expect("not poisoned").push(format!("{directory} {path} {mode} {body}"));
    Json(json!({"path": path, "size": body.len(), "mode": mode}))
}

/// What a command prints and how it exits. `cat` gives back what it is given.
fn obey(query: &ExecQuery, input: &[u8], kept: &Uploads) -> (Vec<u8>, Vec<u8>, u8) {
    let words: Vec<&str> = query.cmd.iter().map(String::as_str).collect();
    match words[..] {
        ["exit", code] => (vec![], vec![], code.parse().expect("a code")),
        ["say", out, err] => (out.into(), err.into(), 0),
        ["cat"] => (input.to_vec(), vec![], 0),
        ["uploads"] => (kept.lock().expect("not poisoned").join("\n").into_bytes(), vec![], 0),
        _ => (words.join(" ").into_bytes(), vec![], 0),
    }
}

fn frames((out, err, code): &(Vec<u8>, Vec<u8>, u8)) -> Vec<Vec<u8>> {
    let out = out.chunks(16_000).map(|chunk| Frame::Stdout(chunk).encode());
    let err = err.chunks(16_000).map(|chunk| Frame::Stderr(chunk).encode());
    out.chain(err).chain([Frame::Exit(*code).encode()]).collect()
}

async fn exec(
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    State(kept): State<Uploads>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else { return Json(sessions()).into_response() };
    known(&name, || {
        if name == "plain" {
            return (StatusCode::UPGRADE_REQUIRED, "no web sockets here").into_response();
        }
        let query = ExecQuery::parse(&query.unwrap_or_default()).expect("an exec");
        upgrade.on_upgrade(move |socket| async move {
            // A client that has left is what some of the tests are about.
            drop(if query.tty.is_some() {
                converse(socket, "new").await
            } else {
                perform(socket, &query, &kept).await
            });
        })
    })
}

async fn exec_plain(
    RawQuery(query): RawQuery,
    State(kept): State<Uploads>,
    body: Bytes,
) -> Response {
    let query = ExecQuery::parse(&query.unwrap_or_default()).expect("an exec");
    let chunks = frames(&obey(&query, &body, &kept)).into_iter().map(Ok::<_, io::Error>);
    Body::from_stream(stream::iter(chunks)).into_response()
}

async fn attach(Path((_, id)): Path<(String, String)>, upgrade: WebSocketUpgrade) -> Response {
    if id != "7" {
        return (StatusCode::NOT_FOUND, format!("session not found: {id}")).into_response();
    }
    upgrade.on_upgrade(|socket| async move { drop(converse(socket, "attached").await) })
}

fn session_info(tty: bool) -> Message {
    let info = json!({"type": "session_info", "session_id": "7", "command": "c", "created": 1, "cols": 0, "rows": 0,
        "is_owner": true, "tty": tty});
    Message::text(info.to_string())
}

async fn perform(
    mut socket: WebSocket,
    query: &ExecQuery,
    kept: &Uploads,
) -> Result<(), axum::Error> {
    socket.send(session_info(false)).await?;
    if query.cmd == ["wait"] {
        return wait(socket).await;
    }
    let mut input = Vec::new();
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Binary(frame) if frame[..] == [4] => break,
            Message::Binary(frame) => input.extend_from_slice(&frame[1..]),
            _ => {}
        }
    }
    if query.cmd == ["yes"] {
        loop {
            socket.send(Message::binary(Frame::Stdout(b"y\n").encode())).await?;
        }
    }
    for frame in frames(&obey(query, &input, kept)) {
        socket.send(Message::binary(frame)).await?;
    }
    socket.send(Message::Close(None)).await
}

/// Prints two bytes, and then what it is sent in text; that ends it as if by Ctrl-C.
async fn wait(mut socket: WebSocket) -> Result<(), axum::Error> {
    socket.send(Message::binary(Frame::Stdout(b"> ").encode())).await?;
    while let Some(Ok(message)) = socket.recv().await {
        if let Message::Text(text) = message {
            socket.send(Message::binary(Frame::Stdout(text.as_bytes()).encode())).await?;
            socket.send(Message::binary(Frame::Exit(130).encode())).await?;
            break;
        }
    }
    Ok(())
}

/// A terminal that says what it is told: `x` ends it with 7, `d` drops the connection, a size is repeated.
async fn converse(mut socket: WebSocket, greeting: &str) -> Result<(), axum::Error> {
    socket.send(session_info(true)).await?;
    socket.send(Message::binary(format!("{greeting}\r\n").into_bytes())).await?;
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Binary(keys) if keys[..] == *b"x" => {
                socket.send(Message::text(r#"{"type":"exit","exit_code":7,"code":7}"#)).await?;
                break;
            }
            Message::Binary(keys) if keys[..] == *b"d" => break,
            Message::Binary(keys) => {
                socket.send(Message::binary([b"typed ", &keys[..], b"\r\n"].concat())).await?;
            }
            Message::Text(text) => {
                let resize: Value = serde_json::from_str(&text).expect("JSON");
                let size = format!("size {}x{}\r\n", resize["rows"], resize["cols"]);
                socket.send(Message::binary(size.into_bytes())).await?;
            }
            _ => {}
        }
    }
    Ok(())
}
