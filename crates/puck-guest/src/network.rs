//! What the sprite may reach: its network policy, enforced from the machine's root namespace.
//!
//! The container has no rights over the machine's network, so its routes are a fence. Without rules there is a default route. With
//! rules there is none, and only addresses that an answer to an allowed name held have a route of their own:
//!
//! ```text
//! program --query--> resolver (10.0.0.2) --allowed?--> worker --> the host's name servers
//!                        |  no: REFUSED                   |
//!                        +<-----------answer--------------+
//!                        | a route for each address in it, for as long as the answer is good
//! program --connect--> route? else "Network is unreachable", at once
//! ```
//!
//! The resolver asks through the worker, so that no name server needs a route. Private addresses never get one, whatever name
//! leads to them. A change of the rules resets the connections to what is no longer allowed.
//!
//! # Invariants
//!
//! - The rules of a sprite are in force before its container runs. A machine in which they cannot be enforced ends.
//! - Every route is of an address that at least one allowed name led to.
//! - An address stays reachable beyond its time only while a TCP connection to it is open.

mod answer;
mod resolver;
mod routes;
mod rules;

use crate::{gateway::Gateway, sockets};
use answer::Answer;
use bytes::Bytes;
use guest::protocol::{DomainRule, INSIDE, RESOLVER};
use netlink_packet_sock_diag::inet::{InetResponseHeader, StateFlags};
use routes::Routes;
use rules::Rules;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

/// The most addresses with a route at once; the one whose time ends first makes room.
const ADDRESSES_MAX: usize = 4096;

/// The most names that are remembered for one address; the first in the alphabet go.
const NAMES_MAX: usize = 64;

/// How long an answer is good: as long as it says, and programs that keep it a little longer are not cut off.
const GRACE: Duration = Duration::from_secs(60);
const ANSWER_TIME_MIN: Duration = Duration::from_secs(60);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// How often addresses whose time has ended are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

/// The most connections that are looked at. A sprite with more is one whose rules cannot be enforced.
const CONNECTIONS_MAX: usize = 200_000;

/// The network of this machine.
pub(crate) struct Network {
    gateway: Gateway,
    routes: Routes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Rules,
    learned: HashMap<Ipv4Addr, Learned>,
}

/// An address that has a route.
struct Learned {
    /// The names that led to it.
    names: BTreeSet<String>,
    until: Instant,
}

impl Network {
    /// Begins to answer queries, with no restriction.
    ///
    /// # Errors
    /// When the resolver cannot listen, or the machine's routes cannot be read.
    pub(crate) async fn start(gateway: Gateway) -> io::Result<Arc<Self>> {
        let routes = Routes::of_machine().await?;
        let network = Arc::new(Self { gateway, routes, state: Mutex::default() });
        resolver::start(&network).await?;
        tokio::spawn(Arc::clone(&network).expire());
        Ok(network)
    }

    /// Puts rules into force, in place of those that were.
    ///
    /// # Errors
    /// When the kernel does not do as it is told. The rules may be in force half then, and the machine must end.
    pub(crate) async fn apply(&self, rules: &[DomainRule]) -> io::Result<()> {
        let rules = Rules::new(rules);
        let mut state = self.state.lock().await;
        if rules == state.rules {
            return Ok(());
        }
        state.rules = rules;
        if !state.rules.restrict() {
            self.routes.open_all().await?;
            for address in std::mem::take(&mut state.learned).into_keys() {
                self.routes.close(address).await?;
            }
            return Ok(());
        }
        self.routes.close_all().await?;
        let State { rules, learned } = &mut *state;
        for learned in learned.values_mut() {
            learned.names.retain(|name| rules.allow(name));
        }
        for (address, _) in learned.extract_if(|_, learned| learned.names.is_empty()) {
            self.routes.close(address).await?;
        }
        let allowed: HashSet<Ipv4Addr> = learned.keys().copied().collect();
        tokio::task::block_in_place(|| {
            for socket in connections()? {
                if !is_own(sockets::remote(&socket), self.routes.own())
                    && !allowed.contains(&version_4(&socket))
                {
                    sockets::destroy(&socket)?;
                }
            }
            Ok(())
        })
    }

    /// Whether a name may be looked up.
    async fn allows(&self, name: &str) -> bool {
        let state = self.state.lock().await;
        !state.rules.restrict() || state.rules.allow(name)
    }

    /// Makes an answer's addresses reachable, and takes those out of it that are not to be. `None` if the name is not allowed any
    /// more, or nothing that is allowed is left.
    async fn learn(&self, name: &str, answer: Bytes) -> Option<Bytes> {
        let mut state = self.state.lock().await;
        if !state.rules.restrict() {
            return Some(answer);
        }
        let mut answer = Answer::parse(answer)?;
        if !state.rules.allow(name) || !answer.drop_private() {
            return None;
        }
        for (address, seconds) in answer.addresses(name) {
            let good = Duration::from_secs(seconds.into()).clamp(ANSWER_TIME_MIN, ANSWER_TIME_MAX);
            if let Err(error) = self.open(&mut state, address, name, good + GRACE).await {
                tracing::error!(%error, "cannot make an allowed address reachable");
                return None;
            }
        }
        Some(answer.into_bytes())
    }

    async fn open(
        &self,
        state: &mut State,
        address: Ipv4Addr,
        name: &str,
        time: Duration,
    ) -> io::Result<()> {
        let until = Instant::now() + time;
        if !state.learned.contains_key(&address) {
            let first = state.learned.iter().min_by_key(|(_, learned)| learned.until);
            if state.learned.len() >= ADDRESSES_MAX
                && let Some(first) = first.map(|(address, _)| *address)
            {
                self.routes.close(first).await?;
                state.learned.remove(&first);
            }
            self.routes.open(address).await?;
        }
        let learned = state
            .learned
            .entry(address)
            .or_insert_with(|| Learned { names: BTreeSet::new(), until });
        learned.until = learned.until.max(until);
        learned.names.insert(name.to_owned());
        if learned.names.len() > NAMES_MAX {
            learned.names.pop_first();
        }
        Ok(())
    }

    /// Closes addresses whose time has ended, unless somebody is connected to them.
    async fn expire(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EXPIRY_INTERVAL).await;
            let mut state = self.state.lock().await;
            let now = Instant::now();
            if !state.learned.values().any(|learned| learned.until <= now) {
                continue;
            }
            let connected: HashSet<Ipv4Addr> = match tokio::task::block_in_place(connections) {
                Ok(sockets) => sockets.iter().map(version_4).collect(),
                Err(error) => {
                    tracing::warn!(%error, "cannot see who is connected");
                    continue;
                }
            };
            let mut ended = Vec::new();
            for (address, learned) in &mut state.learned {
                match learned.until <= now {
                    true if connected.contains(address) => learned.until = now + GRACE,
                    true => ended.push(*address),
                    false => {}
                }
            }
            for address in ended {
                match self.routes.close(address).await {
                    Ok(()) => _ = state.learned.remove(&address),
                    Err(error) => tracing::warn!(%error, "cannot close an address; trying again"),
                }
            }
        }
    }
}

/// The connections of the machine.
fn connections() -> io::Result<Vec<InetResponseHeader>> {
    let states =
        StateFlags::all() & !(StateFlags::LISTEN | StateFlags::CLOSE | StateFlags::TIME_WAIT);
    let found = sockets::find(states, CONNECTIONS_MAX)?;
    if found.len() < CONNECTIONS_MAX {
        Ok(found)
    } else {
        Err(io::Error::other(format!("more than {CONNECTIONS_MAX} connections")))
    }
}

/// The other side's address; that of a connection over version 6, which leads nowhere outside, is unspecified.
fn version_4(socket: &InetResponseHeader) -> Ipv4Addr {
    match sockets::remote(socket) {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// Whether an address is the machine's own.
fn is_own(address: IpAddr, own: Ipv4Addr) -> bool {
    address.is_loopback() || [INSIDE, RESOLVER, own].map(IpAddr::from).contains(&address)
}

/// Whether an address is of a private network, or of nobody in the outside world: what a name outside must not lead to.
fn is_private(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a, b & 0xc0) == (100, 64)
        || (a, b & 0xfe) == (198, 18)
        || (a, b, c) == (192, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::is_private;

    #[test]
    fn private_addresses_are_known() {
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
        ] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
