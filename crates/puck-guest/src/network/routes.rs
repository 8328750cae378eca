//! The machine's routes to the outside: one to everything, or one for each address.

use futures::TryStreamExt;
use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage},
};
use std::{io, net::Ipv4Addr};

/// The routes.
pub(super) struct Routes {
    handle: Handle,
    /// The default route as the machine was built with it; the others are like it.
    default: RouteMessage,
    own: Ipv4Addr,
}

impl Routes {
    /// Reads the default route.
    pub(super) async fn of_machine() -> io::Result<Self> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        let every = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<RouteMessage> =
            handle.route().get(every).execute().try_collect().await.map_err(failed)?;
        for mut route in routes {
            let own = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(*address),
                _ => None,
            });
            if route.header.destination_prefix_length == 0
                && let Some(own) = own
            {
                // What the kernel tells about a route and does not take back.
                route
                    .attributes
                    .retain(|attribute| !matches!(attribute, RouteAttribute::CacheInfo(_)));
                return Ok(Self { handle, default: route, own });
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "the machine has no default route"))
    }

    /// The machine's address on the host's network.
    pub(super) fn own(&self) -> Ipv4Addr {
        self.own
    }

    /// Makes everything reachable.
    pub(super) async fn open_all(&self) -> io::Result<()> {
        self.handle.route().add(self.default.clone()).replace().execute().await.map_err(failed)
    }

    /// Makes nothing reachable but what has a route of its own.
    pub(super) async fn close_all(&self) -> io::Result<()> {
        gone(self.handle.route().del(self.default.clone()).execute().await.map_err(failed))
    }

    /// Makes an address reachable.
    pub(super) async fn open(&self, address: Ipv4Addr) -> io::Result<()> {
        self.handle.route().add(self.to(address)).replace().execute().await.map_err(failed)
    }

    /// Makes it unreachable again.
    pub(super) async fn close(&self, address: Ipv4Addr) -> io::Result<()> {
        gone(self.handle.route().del(self.to(address)).execute().await.map_err(failed))
    }

    fn to(&self, address: Ipv4Addr) -> RouteMessage {
        let mut route = self.default.clone();
        route.header.destination_prefix_length = 32;
        route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        route
    }
}

/// A route that is not there is closed.
fn gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            Ok(())
        }
        done => done,
    }
}

fn failed(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        error => io::Error::other(error),
    }
}
