//! Ports of this host that stand for those that open in a sprite.

use super::{Remote, listen};
use crate::endpoint::Endpoint;
use api::{name::SpriteName, ports::PortChange};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// More ports than a program of a user opens.
const FORWARDS_MAX: usize = 64;

/// Listens on `localhost` for every port that opens in a sprite, under the same number, as long as it is open there. A port that
/// is taken here, or that this user may not listen on, is passed over. Dropped, it ends every connection.
pub(crate) struct Forwards {
    /// Where to; `None` forwards nothing.
    to: Option<(Endpoint, SpriteName)>,
    /// By port, with the address in the sprite, which may have several listeners of one number.
    listeners: HashMap<u16, (IpAddr, JoinHandle<()>)>,
}

impl Forwards {
    /// Forwards what opens in the sprite.
    pub(crate) fn to(endpoint: &Endpoint, sprite: &SpriteName) -> Self {
        Self { to: Some((endpoint.clone(), sprite.clone())), listeners: HashMap::new() }
    }

    /// Forwards nothing.
    pub(crate) fn none() -> Self {
        Self { to: None, listeners: HashMap::new() }
    }

    /// Follows a change in the sprite.
    pub(crate) async fn follow(&mut self, change: PortChange) {
        let Some((endpoint, sprite)) = &self.to else { return };
        match change {
            PortChange::PortOpened(opened) => {
                if self.listeners.len() >= FORWARDS_MAX || self.listeners.contains_key(&opened.port)
                {
                    return;
                }
                match TcpListener::bind((Ipv4Addr::LOCALHOST, opened.port)).await {
                    Ok(listener) => {
                        let remote = Remote { host: opened.address.to_string(), port: opened.port };
                        let listening = listen(endpoint.clone(), sprite.clone(), remote, listener);
                        let listening = tokio::spawn(listening);
                        self.listeners.insert(opened.port, (opened.address, listening));
                    }
                    Err(error) => endpoint
                        .tell(format_args!("port {} is not forwarded: {error}\r", opened.port)),
                }
            }
            PortChange::PortClosed(closed) => {
                let is_ours = |(address, _): &(IpAddr, _)| *address == closed.address;
                if self.listeners.get(&closed.port).is_some_and(is_ours)
                    && let Some((_, listening)) = self.listeners.remove(&closed.port)
                {
                    listening.abort();
                }
            }
        }
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.listeners.values().for_each(|(_, listening)| listening.abort());
    }
}
