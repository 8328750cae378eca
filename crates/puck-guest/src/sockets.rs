//! The TCP sockets of the machine's network, by the kernel's socket diagnostics (`sock_diag(7)`): the agent is in it as much as the
//! container is.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use std::{fmt, io, net::IpAddr, os::fd::OwnedFd};

/// The kernel fills a part of a long answer up to 32 KiB.
const ANSWER_BYTES: usize = 32 << 10;

/// The sockets in some states, at most so many.
///
/// # Errors
/// When the kernel does not say.
pub(crate) fn find(states: StateFlags, max: usize) -> io::Result<Vec<InetResponseHeader>> {
    let mut found = Vec::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let socket = open()?;
        let request = request(family, states.clone(), socket_id);
        ask(&socket, SockDiagMessage::InetRequest(request), NLM_F_DUMP)?;
        answer(&socket, &mut found, max)?;
    }
    Ok(found)
}

/// Ends a connection, for whoever has it, as if the other side had reset it. One that has ended already is fine.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn destroy(socket: &InetResponseHeader) -> io::Result<()> {
    let states = StateFlags::all();
    let request =
        SockDiagMessage::InetRequest(request(socket.family, states, socket.socket_id.clone()));
    let netlink = open()?;
    ask(&netlink, SockDiagDestroy::new(request), NLM_F_ACK)?;
    match answer(&netlink, &mut Vec::new(), 1) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The address of the other side, as version 4 where it is one.
pub(crate) fn remote(socket: &InetResponseHeader) -> IpAddr {
    socket.socket_id.destination_address.to_canonical()
}

fn open() -> io::Result<OwnedFd> {
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    Ok(socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::SOCK_DIAG))?)
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> InetRequest {
    let extensions = ExtensionFlags::empty();
    InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id }
}

fn ask<T>(socket: &OwnedFd, request: T, flags: u16) -> io::Result<()>
where
    T: NetlinkSerializable + NetlinkDeserializable + fmt::Debug + PartialEq + Eq + Clone,
{
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    send(socket, &bytes, SendFlags::empty())?;
    Ok(())
}

/// Reads the parts of the answer up to its end, or until there are enough.
fn answer(socket: &OwnedFd, found: &mut Vec<InetResponseHeader>, max: usize) -> io::Result<()> {
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
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(one)) => {
                    found.push(one.header);
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            if found.len() >= max {
                return Ok(());
            }
        }
    }
}
