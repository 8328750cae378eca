//! Answers the machine's queries: what is not allowed is refused, the rest is asked of the worker.
//!
//! Whatever comes from the container is bounded: so many queries at once, so long a message. A query that is too much is dropped,
//! and its sender asks again.

use super::{Network, answer::text};
use bytes::Bytes;
use guest::protocol::RESOLVER;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

const PORT: u16 = 53;

/// The most queries that are answered at once. The worker's socket has more places than that, which the disk needs.
const QUERIES_MAX: usize = 16;

/// The most connections, and how long one may be silent.
const CONNECTIONS_MAX: usize = 32;
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The longest query over UDP.
const QUERY_BYTES_MAX: usize = 4096;

/// The pause after a failure to receive or accept.
const PAUSE: Duration = Duration::from_millis(50);

/// Begins to listen.
pub(super) async fn start(network: &Arc<Network>) -> io::Result<()> {
    let queries = Arc::new(Semaphore::new(QUERIES_MAX));
    let socket = UdpSocket::bind((RESOLVER, PORT)).await?;
    let listener = TcpListener::bind((RESOLVER, PORT)).await?;
    tokio::spawn(serve_udp(Arc::new(socket), Arc::clone(network), Arc::clone(&queries)));
    tokio::spawn(serve_tcp(listener, Arc::clone(network), queries));
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>, network: Arc<Network>, queries: Arc<Semaphore>) {
    let mut buffer = vec![0; QUERY_BYTES_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receive a query");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&queries).try_acquire_owned() else { continue };
        let query = Bytes::copy_from_slice(&buffer[..length]);
        let (socket, network) = (Arc::clone(&socket), Arc::clone(&network));
        tokio::spawn(async move {
            if let Some(answer) = answer(&network, query, false).await {
                send(&socket, &answer, from).await;
            }
            drop(place);
        });
    }
}

/// Whoever asked may be gone.
async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(answer, to).await {
        tracing::debug!(%error, "send an answer");
    }
}

async fn serve_tcp(listener: TcpListener, network: Arc<Network>, queries: Arc<Semaphore>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (network, queries) = (Arc::clone(&network), Arc::clone(&queries));
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &network, &queries).await {
                tracing::debug!(%error, "a connection of queries ended");
            }
            drop(place);
        });
    }
}

/// Queries one after another, each with its length before it.
async fn converse(mut stream: TcpStream, network: &Network, queries: &Semaphore) -> io::Result<()> {
    loop {
        let mut query = Vec::new();
        let read = async {
            query.resize(usize::from(stream.read_u16().await?), 0);
            stream.read_exact(&mut query).await
        };
        timeout(SILENCE_MAX, read).await.map_err(|_elapsed| io::ErrorKind::TimedOut)??;
        let place = queries.acquire().await.map_err(io::Error::other)?;
        let Some(answer) = answer(network, query.into(), true).await else { return Ok(()) };
        drop(place);
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let message = [&length.to_be_bytes()[..], &answer].concat();
        let write = stream.write_all(&message);
        timeout(SILENCE_MAX, write).await.map_err(|_elapsed| io::ErrorKind::TimedOut)??;
    }
}

/// The answer to a query; `None` to what is none.
async fn answer(network: &Network, query: Bytes, over_tcp: bool) -> Option<Bytes> {
    let asked = Message::from_vec(&query).ok()?;
    if asked.metadata.message_type != MessageType::Query {
        return None;
    }
    let [question] = &asked.queries[..] else { return refuse(&asked, ResponseCode::FormErr) };
    if asked.metadata.op_code != OpCode::Query {
        return refuse(&asked, ResponseCode::NotImp);
    }
    let name = text(&question.name);
    if !network.allows(&name).await {
        return refuse(&asked, ResponseCode::Refused);
    }
    match network.gateway.resolve(query, over_tcp).await {
        Ok(answer) => match network.learn(&name, answer).await {
            Some(answer) => Some(answer),
            None => refuse(&asked, ResponseCode::Refused),
        },
        Err(error) => {
            tracing::debug!(%error, "no name server answers");
            refuse(&asked, ResponseCode::ServFail)
        }
    }
}

fn refuse(asked: &Message, why: ResponseCode) -> Option<Bytes> {
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.response_code = why;
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&asked.queries);
    answer.to_vec().ok().map(Bytes::from)
}
