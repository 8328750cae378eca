//! Which ports of the sprite take connections, and word of every change.
//!
//! The kernel tells nobody when a socket begins to listen, so it is asked ([`listeners`]): four times a second while
//! somebody wants to know, and not at all otherwise. All who want to know share one poller. Container and agent share the
//! machine's network, and the agent itself listens nowhere in it, so every listener is the user's.
//!
//! A listener is known by its port and address; that another socket has taken its place within one interval is not noticed.

mod listeners;
mod owners;
mod watch;

use super::Agent;
use api::ports::{Listener, PortChange};
use axum::{Router, routing::get};
use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::{
    Mutex,
    watch::{Receiver, Sender},
};

/// How often the kernel is asked.
const INTERVAL: Duration = Duration::from_millis(250);

/// Port and address.
type Place = (u16, IpAddr);

/// What listens where: the socket and its process.
type Table = BTreeMap<Place, Socket>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    inode: u32,
    /// The process, 0 if it cannot be found; `None` until somebody has looked.
    pid: Option<u32>,
}

/// The routes.
pub(super) fn router() -> Router<Arc<Agent>> {
    Router::new().route("/ports/watch", get(watch::watch))
}

/// The listeners of the sprite. One per agent.
#[derive(Debug)]
pub(super) struct Ports {
    table: Sender<Arc<Table>>,
    is_polling: Mutex<bool>,
}

/// Word of changes since it was made.
#[derive(Debug)]
pub(super) struct Changes {
    table: Receiver<Arc<Table>>,
    seen: Arc<Table>,
}

impl Ports {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { table: Sender::new(Arc::default()), is_polling: Mutex::new(false) })
    }

    /// Begins to listen for changes, from what listens now.
    ///
    /// # Errors
    /// When the kernel does not say what listens.
    pub(super) async fn changes(self: &Arc<Self>) -> io::Result<Changes> {
        let mut is_polling = self.is_polling.lock().await;
        let mut table = self.table.subscribe();
        if *is_polling {
            self.look().await?;
        } else {
            // Nobody else hears of it, so the search for processes can wait until somebody asks.
            self.table.send_replace(Arc::new(listeners::now()?));
            *is_polling = true;
            tokio::spawn(Arc::clone(self).poll());
        }
        let seen = Arc::clone(&table.borrow_and_update());
        Ok(Changes { table, seen })
    }

    /// Asks the kernel until nobody wants to know any more.
    async fn poll(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let mut is_polling = self.is_polling.lock().await;
            if self.table.receiver_count() == 0 {
                *is_polling = false;
                return;
            }
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "cannot see which ports are open");
            }
        }
    }

    /// Publishes what listens now, if it is something else than before. One at a time: the caller has the lock.
    async fn look(&self) -> io::Result<()> {
        let before = Arc::clone(&self.table.borrow());
        let now = tokio::task::spawn_blocking(move || {
            let mut now = listeners::now()?;
            for (place, socket) in &mut now {
                socket.pid = before.get(place).and_then(|known| known.pid);
            }
            owners::name(&mut now);
            Ok::<_, io::Error>(now)
        });
        let now = now.await.map_err(io::Error::other)??;
        self.table.send_if_modified(|table| {
            let is_other = now.keys().ne(table.keys());
            if is_other {
                *table = Arc::new(now);
            }
            is_other
        });
        Ok(())
    }
}

impl Changes {
    /// What listened when this was made, or at the last change.
    pub(super) async fn list(&self) -> Vec<Listener> {
        let mut table = Table::clone(&self.seen);
        let named = tokio::task::spawn_blocking(move || {
            owners::name(&mut table);
            table
        });
        let table = named.await.unwrap_or_else(|_ended| Table::clone(&self.seen));
        table.iter().map(|(place, socket)| listener(*place, *socket)).collect()
    }

    /// Waits for changes. May be given up and called again without losing one.
    pub(super) async fn next(&mut self) -> Vec<PortChange> {
        loop {
            if self.table.changed().await.is_err() {
                // The agent is ending.
                std::future::pending::<()>().await;
            }
            let now = Arc::clone(&self.table.borrow_and_update());
            let changes = difference(&self.seen, &now);
            self.seen = now;
            if !changes.is_empty() {
                return changes;
            }
        }
    }
}

/// What has gone, then what has come.
fn difference(before: &Table, now: &Table) -> Vec<PortChange> {
    let without = |from: &Table, other: &Table| {
        let left = from.iter().filter(|(place, _)| !other.contains_key(place));
        left.map(|(place, socket)| listener(*place, *socket)).collect::<Vec<_>>()
    };
    let closed = without(before, now).into_iter().map(PortChange::PortClosed);
    closed.chain(without(now, before).into_iter().map(PortChange::PortOpened)).collect()
}

fn listener((port, address): Place, socket: Socket) -> Listener {
    Listener { port, address, pid: socket.pid.unwrap_or(0) }
}
