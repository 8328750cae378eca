//! What listens for TCP connections in this network namespace, by the kernel's socket diagnostics (`sock_diag(7)`).

use super::{Socket, Table};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use std::{io, os::fd::OwnedFd};

/// More listeners than anybody watches; what is beyond is not seen. A whole range of ports costs the agent no more.
const LISTENERS_MAX: usize = 1024;

/// The kernel fills a part of a long answer up to 32 KiB.
const ANSWER_BYTES: usize = 32 << 10;

/// What listens now.
///
/// # Errors
/// When the kernel does not say.
pub(super) fn now() -> io::Result<Table> {
    let mut table = Table::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::SOCK_DIAG))?;
        ask(&socket, family, socket_id)?;
        answer(&socket, &mut table)?;
    }
    Ok(table)
}

fn ask(socket: &OwnedFd, family: u8, socket_id: SocketId) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id,
    });
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    send(socket, &bytes, SendFlags::empty())?;
    Ok(())
}

/// Reads the parts of the answer up to its end, or until there are enough.
fn answer(socket: &OwnedFd, table: &mut Table) -> io::Result<()> {
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let (length, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            // The next message begins at a multiple of four.
            let next = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            rest = &rest[next.max(1)..];
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                    let (id, inode) = (found.header.socket_id, found.header.inode);
                    table.insert((id.source_port, id.source_address), Socket { inode, pid: None });
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            if table.len() >= LISTENERS_MAX {
                return Ok(());
            }
        }
    }
}
