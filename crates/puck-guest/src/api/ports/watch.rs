//! `GET ports/watch` with an upgrade: what listens, then every change, until the client goes. Keeps the sprite awake.

use super::Changes;
use crate::api::{Agent, answer::Refusal, message};
use api::{exec::KEEPALIVE, ports::PortMessage};
use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use std::sync::Arc;

pub(super) async fn watch(
    State(agent): State<Arc<Agent>>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let changes = agent.ports.changes().await.map_err(|error| {
        tracing::error!(%error, "cannot see which ports are open");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "cannot see which ports are open")
    })?;
    let hold = agent.activity.hold("watch of ports");
    Ok(upgrade.on_upgrade(async move |socket| {
        serve(socket, changes).await;
        drop(hold);
    }))
}

/// Tells the client, and ignores what it says.
async fn serve(mut socket: WebSocket, mut changes: Changes) {
    let list = PortMessage::PortList { ports: changes.list().await };
    let mut messages = vec![message::json(&list)];
    loop {
        for one in messages.drain(..) {
            if socket.send(one).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = changes.next() => {
                let told = |change| message::json(&PortMessage::Change(change));
                messages.extend(changed.into_iter().map(told));
            }
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
            () = tokio::time::sleep(KEEPALIVE) => messages.push(Message::Binary(Bytes::new())),
        }
    }
}
