//! The control socket: commands one after another on one WebSocket.
//!
//! Text messages that begin with `control:` carry operations; while one runs, the socket speaks as [`super::socket`] does.
//! Only `exec` is an operation. An idle control socket does not keep the sprite awake.
//!
//! One family of clients sends its input without stream ids here, and none at all of its end; those are answered with 404,
//! on which they use the plain endpoints.

use super::{
    MESSAGE_BYTES_MAX, admit, running,
    socket::{CONTROL_PREFIX, Dialect, Ended, Socket},
    start,
};
use crate::api::{
    Agent,
    answer::{Refusal, chain},
    session::Attached,
};
use api::{
    exec::{ExecQuery, FRAME_PAYLOAD_MAX, KEEPALIVE},
    query::Query,
};
use axum::{
    extract::{RawQuery, State, WebSocketUpgrade, ws::Message},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// The start of the user agent of clients that must not get a control socket.
const REFUSED_AGENT: &str = "sprites-go-sdk/";

/// A message to start an operation.
#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    op: String,
    #[serde(default)]
    args: Value,
}

pub(super) async fn control(
    State(agent): State<Arc<Agent>>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let user_agent = headers.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
    if user_agent.starts_with(REFUSED_AGENT.as_bytes()) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "not found"));
    }
    let query = Query::parse(raw.as_deref().unwrap_or_default())
        .map_err(|error| Refusal::invalid(&error))?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    let mut response = upgrade
        .on_upgrade(async move |websocket| serve(Socket::new(websocket), &agent, query).await);
    response.headers_mut().insert(
        HeaderName::from_static(api::CAPABILITIES_HEADER),
        HeaderValue::from_static(api::CAPABILITIES),
    );
    Ok(response)
}

/// Serves operations until the client is gone.
async fn serve(mut socket: Socket, agent: &Agent, query: Query) {
    if let Some(op) = query.first("op").filter(|op| !op.is_empty())
        && !operate(&mut socket, agent, op, &query).await
    {
        return;
    }
    loop {
        let message = match tokio::time::timeout(KEEPALIVE, socket.rx.next()).await {
            Err(_) if socket.send(Message::Binary(Bytes::new())).await => continue,
            Err(_) => return,
            Ok(Some(Ok(Message::Text(text)))) => text,
            // Input may still arrive that was meant for the last command.
            Ok(Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_)))) => continue,
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return,
        };
        let Some(body) = message.strip_prefix(CONTROL_PREFIX) else { continue };
        let goes_on = match serde_json::from_str::<Envelope>(body) {
            Ok(Envelope { kind, op, args }) if kind == "op.start" => {
                operate(&mut socket, agent, &op, &pairs(args)).await
            }
            Ok(Envelope { kind, .. }) => {
                socket.send(error("op.not_active", &format!("no operation for {kind:?}"))).await
            }
            Err(cause) => {
                socket.send(error("op.invalid", &format!("not a control message: {cause}"))).await
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// Runs one operation; false if the client is gone.
async fn operate(socket: &mut Socket, agent: &Agent, op: &str, query: &Query) -> bool {
    if op != "exec" {
        let op: String = op.chars().take(40).collect();
        return socket.send(error("op.not_found", &format!("unknown operation {op:?}"))).await;
    }
    let connecting = agent.activity.hold("exec connection");
    let attached = match begin(agent, query).await {
        Ok(attached) => attached,
        Err(refusal) => return socket.send(error("op.failed", refusal.message())).await,
    };
    let _hold = agent.activity.hold(format!("session {}", attached.session.id));
    drop(connecting);
    match socket.run(attached, Dialect::Control, &agent.ports).await {
        Ended::Gone => false,
        Ended::Exited(code) => {
            socket
                .send(envelope(&json!({ "type": "op.complete", "args": { "exitCode": code } })))
                .await
        }
    }
}

async fn begin(agent: &Agent, query: &Query) -> Result<Attached, Refusal> {
    let query = ExecQuery::from_query(query)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, chain(&error)))?;
    match &query.id {
        Some(id) => Ok(running(agent, id)?.attach(query.offset).await),
        None => {
            admit(agent)?;
            start(agent, query, FRAME_PAYLOAD_MAX).await
        }
    }
}

/// The arguments of an operation are a query: scalars, and lists of scalars for what may stand many times.
fn pairs(args: Value) -> Query {
    let Value::Object(args) = args else { return Query::default() };
    let mut pairs = Vec::new();
    for (key, value) in args {
        match value {
            Value::Array(values) => pairs
                .extend(values.into_iter().filter_map(scalar).map(|value| (key.clone(), value))),
            value => pairs.extend(scalar(value).map(|value| (key, value))),
        }
    }
    pairs.into_iter().collect()
}

fn scalar(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The answer to an operation that is asked for while another runs.
pub(super) fn busy() -> Message {
    error("op.busy", "operation already active")
}

fn error(code: &str, message: &str) -> Message {
    envelope(
        &json!({ "type": "op.error", "args": { "code": code, "error": message, "message": message } }),
    )
}

fn envelope(value: &Value) -> Message {
    Message::text(format!("{CONTROL_PREFIX}{value}"))
}

#[cfg(test)]
mod tests {
    use super::pairs;
    use api::exec::ExecQuery;
    use serde_json::json;

    #[test]
    fn arguments_are_a_query() {
        let query = pairs(json!({
            "cmd": ["echo", "a b", 1], "env": ["A=1", "B=2"], "tty": true, "rows": "30", "cols": 90, "x": null,
        }));
        let exec = ExecQuery::from_query(&query).expect("well formed");
        assert_eq!(exec.cmd, ["echo", "a b", "1"]);
        assert_eq!(exec.env.len(), 2);
        assert_eq!(exec.tty.map(|size| (size.rows, size.cols)), Some((30, 90)));
        for odd in [json!(null), json!("x=1"), json!([1, 2])] {
            assert_eq!(ExecQuery::from_query(&pairs(odd)), Ok(ExecQuery::default()));
        }
    }
}
