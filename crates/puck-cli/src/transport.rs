//! HTTP/1.1 by hand, for the two answers that an HTTP library does not give as they are: an upgraded connection with the
//! whole error body where the upgrade is refused, and a body in which the *boundaries of its chunks* carry meaning (an exec
//! over HTTP).
//!
//! One request per connection. Everything that is read has a limit.

use crate::{
    client::USER_AGENT,
    endpoint::Endpoint,
    refusal::{BODY_BYTES_MAX, Refusal},
};
use rustls::{ClientConfig, crypto::aws_lc_rs, pki_types::ServerName};
use rustls_platform_verifier::BuilderVerifierExt;
use std::{error::Error, fmt::Write as _, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self,
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};

/// How long connecting may take, encryption included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the head of an answer may take. A sleeping sprite may be woken before it comes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The largest head of an answer, and the most headers in it.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;

/// The largest chunk of a chunked body.
const CHUNK_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The longest line that announces a chunk.
const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// The longest path and query. Servers take at least this much; more is better sent as a file or on standard input.
const TARGET_BYTES_MAX: usize = 60_000;

/// Why the connection did not do its part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// A chunked body is not chunked.
    #[error("the answer has a malformed chunk")]
    Chunk,
    /// No connection.
    #[error("cannot reach {server}")]
    Connect { server: String, source: io::Error },
    /// No connection in time.
    #[error("cannot reach {server}: no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout { server: String },
    /// The connection was closed too early.
    #[error("the server closed the connection before it had answered")]
    Ended,
    /// The answer does not begin like HTTP.
    #[error("the answer is not HTTP")]
    Head(#[source] httparse::Error),
    /// The head of the answer, or a chunk, is over its limit.
    #[error("the answer is too large")]
    Large,
    /// A command line that does not fit into a request.
    #[error(
        "the command line takes {0} bytes and at most {TARGET_BYTES_MAX} can be sent: \
         put what is long into a file (--file) or on standard input"
    )]
    LongTarget(usize),
    /// The server answered, but by something other than a web socket.
    #[error("the server did not open a web socket but answered {0}")]
    NotUpgraded(u16),
    /// Receiving failed.
    #[error("receive from the server")]
    Receive(#[source] io::Error),
    /// The server said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Sending failed.
    #[error("send to the server")]
    Send(#[source] io::Error),
    /// No answer in time.
    #[error("the server did not answer within {} s", HEAD_TIMEOUT.as_secs())]
    Timeout,
    /// Encryption cannot be set up.
    #[error("set up encryption")]
    Tls(#[source] rustls::Error),
    /// The server's certificate is not one that this host trusts, or is not for this name.
    #[error("{server} is not trusted")]
    Untrusted { server: String, source: io::Error },
    /// The web socket was opened and then broke its own rules.
    #[error("the web socket broke")]
    WebSocket(#[source] Box<tungstenite::Error>),
}

impl TransportError {
    /// Whether the server was reached but web sockets do not get through to it, so that a plain request may.
    pub(crate) fn is_worth_a_plain_request(&self) -> bool {
        match self {
            Self::Ended
            | Self::Head(_)
            | Self::NotUpgraded(_)
            | Self::Receive(_)
            | Self::Send(_) => true,
            Self::Refused(refusal) => refusal.status == 426 || refusal.status >= 500,
            _ => false,
        }
    }
}

type Result<T> = std::result::Result<T, TransportError>;

/// A connection, encrypted or not.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection that speaks web socket.
pub(crate) type WebSocket = WebSocketStream<Box<dyn Connection>>;

/// Opens a connection to the server.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Box<dyn Connection>> {
    let server = || endpoint.to_string();
    let opened = timeout(CONNECT_TIMEOUT, open(endpoint)).await;
    opened.map_err(|_elapsed| TransportError::ConnectTimeout { server: server() })?
}

async fn open(endpoint: &Endpoint) -> Result<Box<dyn Connection>> {
    let failed = |source| TransportError::Connect { server: endpoint.to_string(), source };
    let tcp = TcpStream::connect((endpoint.host(), endpoint.port())).await.map_err(failed)?;
    // Keystrokes are small and must not wait for one another.
    tcp.set_nodelay(true).map_err(failed)?;
    if !endpoint.is_tls() {
        return Ok(Box::new(tcp));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(TransportError::Tls)?
        .with_no_client_auth();
    let name = ServerName::try_from(endpoint.host().to_owned())
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    Ok(Box::new(tls.map_err(|source| {
        let server = endpoint.to_string();
        if is_about_trust(&source) {
            TransportError::Untrusted { server, source }
        } else {
            TransportError::Connect { server, source }
        }
    })?))
}

/// Whether an error, or what caused it, is that the other side's certificate was refused.
pub(crate) fn is_about_trust(error: &(dyn Error + 'static)) -> bool {
    if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
        return true;
    }
    // An `io::Error` does not count the error that it wraps as its source.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(wrapped) => is_about_trust(wrapped),
        None => error.source().is_some_and(is_about_trust),
    }
}

/// Opens a web socket at an already encoded path and query.
pub(crate) async fn upgrade(endpoint: &Endpoint, target: &str) -> Result<WebSocket> {
    let key = generate_key();
    let mut connection = connect(endpoint).await?;
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key.as_str()),
    ];
    send_head(&mut connection, endpoint, "GET", target, &headers).await?;
    let mut answer = Answer::new(connection);
    let head = answer.head().await?;
    endpoint.tell(format_args!("GET {target} -> {}", head.status));
    let accepted =
        head.header("sec-websocket-accept") == Some(derive_accept_key(key.as_bytes()).as_str());
    match head.status {
        101 if accepted => {}
        status if status >= 400 => return Err(answer.refusal(&head).await.into()),
        status => return Err(TransportError::NotUpgraded(status)),
    }
    Ok(WebSocketStream::from_partially_read(answer.io, answer.buffer, Role::Client, None).await)
}

/// Writes the head of a request.
pub(crate) async fn send_head(
    connection: &mut (impl AsyncWrite + Unpin),
    endpoint: &Endpoint,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<()> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(TransportError::LongTarget(target.len()));
    }
    let (host, authorization) = (endpoint.authority(), endpoint.authorization());
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    let common = [
        ("Host", host.as_str()),
        ("Authorization", authorization.as_str()),
        ("User-Agent", USER_AGENT),
    ];
    for (name, value) in common.iter().chain(headers) {
        write!(head, "{name}: {value}\r\n").expect("a string takes all text");
    }
    head.push_str("\r\n");
    connection.write_all(head.as_bytes()).await.map_err(TransportError::Send)?;
    connection.flush().await.map_err(TransportError::Send)
}

/// The status line and headers of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of that name, which is given in lower case.
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    }
}

/// An answer that is being read.
pub(crate) struct Answer<R> {
    io: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Answer<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, buffer: Vec::new() }
    }

    /// Reads the head.
    pub(crate) async fn head(&mut self) -> Result<Head> {
        timeout(HEAD_TIMEOUT, self.head_whenever())
            .await
            .map_err(|_elapsed| TransportError::Timeout)?
    }

    async fn head_whenever(&mut self) -> Result<Head> {
        loop {
            self.fill(HEAD_BYTES_MAX).await?;
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(length) =
                response.parse(&self.buffer).map_err(TransportError::Head)?
            else {
                continue;
            };
            let header = |header: &httparse::Header<'_>| {
                (header.name.to_owned(), String::from_utf8_lossy(header.value).trim().to_owned())
            };
            let status = response.code.unwrap_or_default();
            let head = Head { status, headers: response.headers.iter().map(header).collect() };
            self.buffer.drain(..length);
            return Ok(head);
        }
    }

    /// The next chunk of a chunked body, whole; `None` after the last.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let (line_length, size) = loop {
            match httparse::parse_chunk_size(&self.buffer) {
                Ok(httparse::Status::Complete(announced)) => break announced,
                Ok(httparse::Status::Partial) => self.fill(CHUNK_LINE_BYTES_MAX).await?,
                Err(httparse::InvalidChunkSize) => return Err(TransportError::Chunk),
            }
        };
        if size > CHUNK_BYTES_MAX {
            return Err(TransportError::Large);
        }
        if size == 0 {
            return Ok(None);
        }
        let end =
            line_length + usize::try_from(size).map_err(|_too_large| TransportError::Large)?;
        while self.buffer.len() < end + 2 {
            self.fill(end + 2).await?;
        }
        if &self.buffer[end..end + 2] != b"\r\n" {
            return Err(TransportError::Chunk);
        }
        let chunk = self.buffer[line_length..end].to_vec();
        self.buffer.drain(..end + 2);
        Ok(Some(chunk))
    }

    /// Reads the body of an answer that says no. What cannot be read is left out: the status alone is an answer.
    pub(crate) async fn refusal(&mut self, head: &Head) -> Refusal {
        let mut body = Vec::new();
        if head.is_chunked() {
            while let Ok(Some(chunk)) = self.chunk().await
                && body.len() < BODY_BYTES_MAX
            {
                body.extend(chunk);
            }
        } else {
            let announced =
                head.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let length = BODY_BYTES_MAX.min(announced);
            while self.buffer.len() < length && self.fill(length).await.is_ok() {}
            body.extend(self.buffer.iter().take(length));
        }
        Refusal::new(head.status, &body)
    }

    /// Reads more into the buffer, which may hold `most` bytes before.
    async fn fill(&mut self, most: usize) -> Result<()> {
        if self.buffer.len() >= most {
            return Err(TransportError::Large);
        }
        self.buffer.reserve(READ_BYTES);
        match self.io.read_buf(&mut self.buffer).await.map_err(TransportError::Receive)? {
            0 => Err(TransportError::Ended),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, TransportError, is_about_trust};
    use std::io;

    async fn chunks(body: &str) -> Result<Vec<Vec<u8>>, TransportError> {
        let mut answer = Answer::new(body.as_bytes());
        let mut chunks = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    #[tokio::test]
    async fn chunks_keep_their_boundaries() {
        let body = "3\r\n\u{1}a\n\r\n3;x=y\r\n\u{2}b\n\r\n2\r\n\u{3}\0\r\n0\r\n\r\n";
        let expected: [&[u8]; 3] = [b"\x01a\n", b"\x02b\n", b"\x03\0"];
        assert_eq!(chunks(body).await.expect("well formed"), expected);
    }

    #[tokio::test]
    async fn broken_bodies_are_errors() {
        for body in ["", "3\r\nab", "zz\r\n", "2\r\nabc\r\n", "ffffffff\r\n", "3\r\nabc\r\n"] {
            assert!(chunks(body).await.is_err(), "{body:?}");
        }
        assert!(chunks(&"0".repeat(5000)).await.is_err());
    }

    #[tokio::test]
    async fn a_refusal_carries_the_body() {
        for raw in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 28\r\n\r\n{\"error\":\"sprite not found\"}",
            "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nsprite not found\r\n0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 999\r\n\r\nsprite not found",
        ] {
            let mut answer = Answer::new(raw.as_bytes());
            let head = answer.head().await.expect("well formed");
            assert_eq!(answer.refusal(&head).await.to_string(), "sprite not found");
        }
    }

    #[test]
    fn a_refused_certificate_is_known_however_deep_it_lies() {
        let refused = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let other = rustls::Error::HandshakeNotComplete;
        for (cause, is_refusal) in [(refused, true), (other, false)] {
            assert_eq!(is_about_trust(&cause), is_refusal);
            let outer = io::Error::other(cause);
            assert_eq!(is_about_trust(&outer), is_refusal);
            let source = TransportError::Receive(io::Error::other(outer));
            assert_eq!(is_about_trust(&source), is_refusal);
        }
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let raw = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(200_000));
        assert!(matches!(Answer::new(raw.as_bytes()).head().await, Err(TransportError::Large)));
        assert!(matches!(
            Answer::new(&b"SSH-2.0-x\r\n"[..]).head().await,
            Err(TransportError::Head(_))
        ));
        assert!(matches!(Answer::new(&b"HTTP/1.1 2"[..]).head().await, Err(TransportError::Ended)));
    }
}
