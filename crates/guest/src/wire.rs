//! Messages with descriptors over a sequenced-packet Unix socket.
//!
//! One packet is one message. A packet holds either the JSON itself, or a mark and, as its first descriptor, a memory file
//! with the JSON: sockets refuse packets larger than their buffer, and an argument vector may be larger. Both ends treat
//! what they receive as foreign: a bad message is an error of that message.

use rustix::{
    fs::MemfdFlags,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Seek, Write},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

/// The largest JSON in a packet itself.
const INLINE_BYTES_MAX: usize = 16 * 1024;

/// The largest JSON of a message. The kernel refuses argument vectors far below this.
pub(crate) const MESSAGE_BYTES_MAX: u64 = 16 << 20;

/// The most descriptors of one message: a memory file and three streams.
const DESCRIPTORS_MAX: usize = 4;

/// The packet that says that the JSON is in the first descriptor.
const IN_MEMORY_FILE: &[u8] = b"@";

/// A received message.
#[derive(Debug)]
pub(crate) struct Received<T> {
    /// What it says, or why that is not known.
    pub(crate) message: io::Result<T>,
    /// The descriptors that came with it.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A message that is ready to be sent, perhaps more than once.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    memory: Option<OwnedFd>,
}

impl Packet {
    /// Encodes a message.
    pub(crate) fn new(message: &impl Serialize) -> io::Result<Self> {
        let json = serde_json::to_vec(message)?;
        if json.len() <= INLINE_BYTES_MAX {
            return Ok(Self { bytes: json, memory: None });
        }
        let mut memory = File::from(rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC)?);
        memory.write_all(&json)?;
        Ok(Self { bytes: IN_MEMORY_FILE.to_vec(), memory: Some(memory.into()) })
    }

    /// Sends the message. On a non-blocking socket, `WouldBlock` means that nothing was sent.
    pub(crate) fn send(
        &self,
        socket: BorrowedFd<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        use std::os::fd::AsFd;
        let all: Vec<BorrowedFd<'_>> =
            self.memory.iter().map(AsFd::as_fd).chain(descriptors.iter().copied()).collect();
        send_bytes(socket, &self.bytes, &all)
    }
}

/// Sends one packet.
pub(crate) fn send_bytes(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    loop {
        match rustix::net::sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return sent.map(drop).map_err(Into::into),
        }
    }
}

/// Receives one packet; a length of 0 is the end of the connection.
pub(crate) fn receive_bytes(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet too large"));
    }
    Ok((received.bytes, descriptors))
}

/// Receives a message; `None` at the end of the connection. An outer error is one of the socket.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<Received<T>>> {
    let mut bytes = vec![0; INLINE_BYTES_MAX];
    let (len, mut descriptors) = receive_bytes(socket, &mut bytes)?;
    let Some(bytes) = bytes.get(..len).filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
    let message = if bytes != IN_MEMORY_FILE {
        serde_json::from_slice(bytes).map_err(Into::into)
    } else if descriptors.is_empty() {
        Err(io::Error::new(io::ErrorKind::InvalidData, "a message without its memory file"))
    } else {
        read_memory(descriptors.remove(0))
    };
    Ok(Some(Received { message, descriptors }))
}

fn read_memory<T: DeserializeOwned>(memory: OwnedFd) -> io::Result<T> {
    let mut memory = File::from(memory);
    if memory.metadata()?.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
    }
    let mut json = Vec::new();
    memory.rewind()?;
    memory.take(MESSAGE_BYTES_MAX).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use super::{INLINE_BYTES_MAX, MESSAGE_BYTES_MAX, Packet, receive, send_bytes};
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use std::{
        io::ErrorKind,
        os::fd::{AsFd, OwnedFd},
    };

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn messages_of_every_size_arrive_with_their_descriptors() {
        let (left, right) = pair();
        for size in [0, 1, INLINE_BYTES_MAX - 2, INLINE_BYTES_MAX - 1, 300_000, 3_000_000] {
            let text = "x".repeat(size);
            Packet::new(&text).unwrap().send(left.as_fd(), &[left.as_fd(), right.as_fd()]).unwrap();
            let received = receive::<String>(right.as_fd()).unwrap().unwrap();
            assert_eq!(received.message.unwrap(), text);
            assert_eq!(received.descriptors.len(), 2);
        }
        drop(left);
        assert!(receive::<String>(right.as_fd()).unwrap().is_none(), "the end");
    }

    #[test]
    fn a_bad_message_is_an_error_of_that_message() {
        let (left, right) = pair();
        let huge = rustix::fs::memfd_create("huge", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&huge, MESSAGE_BYTES_MAX + 1).unwrap();
        let (pipe, _write) = rustix::pipe::pipe().unwrap();
        for (bytes, descriptors) in [
            (b"{".as_slice(), vec![]),
            (b"7", vec![]),
            (b"\xff\xfe", vec![]),
            (b"@", vec![]),
            (b"@", vec![huge.as_fd()]),
            (b"@", vec![pipe.as_fd()]),
        ] {
            send_bytes(left.as_fd(), bytes, &descriptors).unwrap();
            assert!(
                receive::<String>(right.as_fd()).unwrap().unwrap().message.is_err(),
                "{bytes:?}"
            );
        }
        send_bytes(left.as_fd(), &[b' '; 2 * INLINE_BYTES_MAX], &[]).unwrap();
        assert_eq!(receive::<String>(right.as_fd()).unwrap_err().kind(), ErrorKind::InvalidData);
        Packet::new(&"still works").unwrap().send(left.as_fd(), &[]).unwrap();
        assert_eq!(
            receive::<String>(right.as_fd()).unwrap().unwrap().message.unwrap(),
            "still works"
        );
    }
}
