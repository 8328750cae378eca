//! Text messages of WebSockets.

use axum::extract::ws::Message;
use serde::Serialize;

/// A value as a text message.
pub(super) fn json(message: &impl Serialize) -> Message {
    // Strings and numbers always serialize; were it ever otherwise, an empty object is a message that clients ignore.
    Message::text(serde_json::to_string(message).unwrap_or_else(|_| "{}".to_owned()))
}
