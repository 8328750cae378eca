//! Queries of the domain name system, passed on to the host's name servers. What a sprite may look up is its agent's to say; this
//! only sends a query and takes the answer to it, so that a machine needs no way to a name server.
//!
//! Every query goes out with a number and from a port of its own, both at random, so that an answer is hard to forge.

use bytes::Bytes;
use hickory_proto::op::{Message, MessageType};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one name server may take before the next is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How often all of them are asked.
const ROUNDS: u32 = 2;

/// The port of a name server.
const PORT: u16 = 53;

/// The longest message.
pub(super) const MESSAGE_BYTES_MAX: usize = u16::MAX as usize;

/// How name servers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// The answer of the first server that gives one, with the query's own number.
pub(super) async fn ask(
    servers: &[IpAddr],
    query: &[u8],
    transport: Transport,
) -> io::Result<Bytes> {
    let asked = Message::from_vec(query).map_err(invalid)?;
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "there is no name server");
    for server in servers.iter().cycle().take(servers.len() * ROUNDS as usize) {
        match timeout(ANSWER_TIMEOUT, ask_one(*server, query, &asked, transport)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failure = error,
            Err(_elapsed) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

async fn ask_one(
    server: IpAddr,
    query: &[u8],
    asked: &Message,
    transport: Transport,
) -> io::Result<Bytes> {
    let mut query = query.to_vec();
    let id: [u8; 2] = rand::random();
    query[..2].copy_from_slice(&id);
    let server = SocketAddr::new(server, PORT);
    let mut answer = match transport {
        Transport::Udp => over_udp(server, &query, asked).await?,
        Transport::Tcp => over_tcp(server, &query).await?,
    };
    if !is_answer(&answer, &query, asked) {
        return Err(invalid("the name server answered something else"));
    }
    answer[..2].copy_from_slice(&asked.metadata.id.to_be_bytes());
    Ok(answer.into())
}

/// What is not the answer is passed over: somebody may be guessing.
async fn over_udp(server: SocketAddr, query: &[u8], asked: &Message) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(&buffer[..length], query, asked) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(invalid)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn is_answer(answer: &[u8], query: &[u8], asked: &Message) -> bool {
    answer.get(..2) == query.get(..2)
        && Message::from_vec(answer).is_ok_and(|answer| {
            answer.metadata.message_type == MessageType::Response && answer.queries == asked.queries
        })
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
