//! Ports of a sprite: what listens, as it changes, and TCP connections into it through a WebSocket.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The most bytes of one message of a proxied connection.
pub const PROXY_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Something in the sprite that takes TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// The address that it is bound to, which can be dialled inside the sprite, also where it is the unspecified one.
    pub address: IpAddr,
    /// The process, as the sprite's own programs know it; 0 if it is gone already.
    pub pid: u32,
}

/// A change of what listens. Also sent on exec sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PortChange {
    /// A listener has appeared.
    PortOpened(Listener),
    /// A listener is gone.
    PortClosed(Listener),
}

/// A message of `ports/watch`: the list first, then every change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PortMessage {
    /// What listens now.
    PortList {
        /// By port.
        ports: Vec<Listener>,
    },
    /// A change.
    #[serde(untagged)]
    Change(PortChange),
}

/// The first message of a proxied connection, from the client: where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyTarget {
    /// `localhost`, which finds what listens on any of the sprite's own addresses, or an address.
    #[serde(default)]
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The answer to it. Binary messages follow, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ProxyAnswer {
    /// The connection is there.
    Connected {
        /// The address and port that answered.
        target: String,
    },
    /// There is no connection; the socket is closed.
    Error {
        /// Why.
        error: String,
    },
}

/// A later text message of the client. Official clients send none, and end a connection as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProxyMessage {
    /// The client will send nothing more, but still reads.
    Eof,
    /// Anything else.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::{Listener, PortChange, PortMessage, ProxyAnswer, ProxyMessage};
    use serde_json::json;

    #[test]
    fn messages_have_the_public_shape() {
        let listener = Listener { port: 80, address: [127, 0, 0, 1].into(), pid: 7 };
        let list = PortMessage::PortList { ports: vec![listener] };
        let expected = json!({ "type": "port_list", "ports": [{ "port": 80, "address": "127.0.0.1", "pid": 7 }] });
        assert_eq!(serde_json::to_value(&list).unwrap(), expected);
        let change = PortMessage::Change(PortChange::PortClosed(listener));
        let expected =
            json!({ "type": "port_closed", "port": 80, "address": "127.0.0.1", "pid": 7 });
        assert_eq!(serde_json::to_value(&change).unwrap(), expected);
        assert_eq!(serde_json::from_value::<PortMessage>(expected).unwrap(), change);
        let answer = ProxyAnswer::Connected { target: "[::1]:80".to_owned() };
        let expected = json!({ "status": "connected", "target": "[::1]:80" });
        assert_eq!(serde_json::to_value(&answer).unwrap(), expected);
        let other: ProxyMessage = serde_json::from_str(r#"{"type":"resize","rows":1}"#).unwrap();
        assert_eq!(other, ProxyMessage::Unknown);
    }
}
