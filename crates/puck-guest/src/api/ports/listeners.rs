//! What listens for TCP connections.

use super::{Socket, Table};
use crate::sockets;
use guest::protocol::RESOLVER;
use netlink_packet_sock_diag::inet::StateFlags;
use std::io;

/// More listeners than anybody watches; what is beyond is not seen. A whole range of ports costs the agent no more.
const LISTENERS_MAX: usize = 1024;

/// What listens now, but for the agent's own resolver.
///
/// # Errors
/// When the kernel does not say.
pub(super) fn now() -> io::Result<Table> {
    let sockets = sockets::find(StateFlags::LISTEN, LISTENERS_MAX)?;
    let place = |id: &netlink_packet_sock_diag::inet::SocketId| (id.source_port, id.source_address);
    let listeners = sockets
        .into_iter()
        .map(|found| (place(&found.socket_id), Socket { inode: found.inode, pid: None }))
        .filter(|((_, address), _)| *address != RESOLVER);
    Ok(listeners.collect())
}
