//! What the client asks a server over plain requests, in the types of the API.
//!
//! One method per call. Every answer of 400 or more becomes a [`Refusal`]. Streams of JSON lines are read one by one
//! ([`Lines`]). Exec has its own connection and is not here.

use crate::{
    endpoint::Endpoint,
    refusal::{BODY_BYTES_MAX, Refusal},
    transport::is_about_trust,
};
use api::{
    checkpoint::{Checkpoint, CreateCheckpoint, Progress},
    exec::{KillEvent, SessionList},
    files::Written,
    name::SpriteName,
    sprite::{
        CreateSprite, ForkSprite, LIST_PAGE_MAX, Restarted, Sprite, SpriteList, Undelete,
        UpdateSprite, WatchEvent,
    },
    volume::{DiffLine, Rewind, VolumeStatus},
};
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Body, Method, RequestBuilder, Response, header};
use serde::{Serialize, de::DeserializeOwned};
use std::{error::Error, marker::PhantomData, time::Duration};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer to a plain request may take. A sprite is woken within it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a new sprite may take.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// The longest line of a stream.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// The most pages of a list that are read; a server that says more each time must not keep us for ever.
const PAGES_MAX: usize = 10_000;

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The HTTP client itself cannot be made, for instance for lack of root certificates.
    #[error("set up HTTP")]
    Build(#[source] reqwest::Error),
    /// The answer is not what the API says.
    #[error("the answer of {server} is not understood")]
    Decode { server: String, source: serde_json::Error },
    /// A line of a stream does not end.
    #[error("a line of the answer is longer than {LINE_BYTES_MAX} bytes")]
    LongLine,
    /// The connection broke after the request was sent.
    #[error("the answer of {server} broke off: {reason}")]
    Receive { server: String, reason: String },
    /// The server said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer in time.
    #[error("{server} did not answer in time")]
    Timeout { server: String },
    /// The server's certificate is not one that this host trusts, or is not for this name.
    #[error("{server} is not trusted: {reason}")]
    Untrusted { server: String, reason: String },
    /// No connection.
    #[error("cannot reach {server}: {reason}")]
    Unreachable { server: String, reason: String },
}

type Result<T> = std::result::Result<T, ClientError>;

/// A client of one server.
pub(crate) struct Client {
    endpoint: Endpoint,
    http: std::cell::OnceCell<reqwest::Client>,
}

impl Client {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, http: std::cell::OnceCell::new() }
    }

    /// The server, for connections that are not plain requests.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) async fn create_sprite(&self, body: &CreateSprite) -> Result<Sprite> {
        let request = self.request(Method::POST, "/v1/sprites")?.json(body).timeout(CREATE_TIMEOUT);
        self.json(request).await
    }

    pub(crate) async fn sprite(&self, name: &SpriteName) -> Result<Sprite> {
        self.json(self.request(Method::GET, &format!("/v1/sprites/{name}"))?).await
    }

    /// Every sprite whose name starts with `prefix`, page by page.
    pub(crate) async fn sprites(&self, prefix: &str) -> Result<Vec<Sprite>> {
        let mut sprites = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut path =
                format!("/v1/sprites?max_results={LIST_PAGE_MAX}&prefix={}", encode(prefix));
            if let Some(token) = &token {
                path += &format!("&continuation_token={}", encode(token));
            }
            let page: SpriteList = self.json(self.request(Method::GET, &path)?).await?;
            sprites.extend(page.sprites);
            token = page.next_continuation_token.filter(|_| page.has_more);
            if token.is_none() {
                break;
            }
        }
        Ok(sprites)
    }

    /// Changes of the sprites whose name starts with `prefix`, without end.
    pub(crate) async fn watch(&self, prefix: &str) -> Result<Lines<WatchEvent>> {
        let path = format!("/v1/sprites?prefix={}", encode(prefix));
        self.lines(self.request(Method::GET, &path)?.header(header::ACCEPT, "application/x-ndjson"))
            .await
    }

    pub(crate) async fn update_sprite(
        &self,
        name: &SpriteName,
        body: &UpdateSprite,
    ) -> Result<Sprite> {
        self.json(self.request(Method::PUT, &format!("/v1/sprites/{name}"))?.json(body)).await
    }

    pub(crate) async fn destroy_sprite(&self, name: &SpriteName) -> Result<()> {
        self.done(self.request(Method::DELETE, &format!("/v1/sprites/{name}"))?).await
    }

    /// Those that were destroyed and can be had back, the last one destroyed first.
    pub(crate) async fn destroyed_sprites(&self, prefix: &str) -> Result<Vec<Sprite>> {
        let path = format!("/v1/sprites?destroyed=true&prefix={}", encode(prefix));
        let page: SpriteList = self.json(self.request(Method::GET, &path)?).await?;
        Ok(page.sprites)
    }

    pub(crate) async fn fork_sprite(&self, name: &SpriteName, body: &ForkSprite) -> Result<Sprite> {
        let request = self.request(Method::POST, &format!("/v1/sprites/{name}/fork"))?;
        self.json(request.json(body).timeout(CREATE_TIMEOUT)).await
    }

    /// A sprite as one file, part by part.
    pub(crate) async fn export_sprite(&self, name: &SpriteName) -> Result<Parts> {
        let request = self.request(Method::GET, &format!("/v1/sprites/{name}/export"))?;
        let response = self.send(request).await?;
        Ok(Parts { server: self.endpoint.to_string(), response })
    }

    /// Makes a sprite of such a file.
    pub(crate) async fn import_sprite(
        &self,
        name: &SpriteName,
        trust: bool,
        archive: Body,
    ) -> Result<Sprite> {
        let path = format!("/v1/sprites/{name}/import?trust={trust}");
        let request = self.request(Method::POST, &path)?;
        let request = request.header(header::CONTENT_TYPE, "application/x-tar").body(archive);
        self.decode(self.send(request).await?).await
    }

    pub(crate) async fn undelete_sprite(
        &self,
        name: &SpriteName,
        body: &Undelete,
    ) -> Result<Sprite> {
        let request = self.request(Method::POST, &format!("/v1/sprites/{name}/undelete"))?;
        self.json(request.json(body)).await
    }

    pub(crate) async fn restart_sprite(&self, name: &SpriteName) -> Result<Restarted> {
        self.json(self.request(Method::POST, &format!("/v1/sprites/{name}/restart"))?).await
    }

    /// A policy of the sprite: `network`, `resources` or `privileges`.
    pub(crate) async fn policy<T: DeserializeOwned>(
        &self,
        name: &SpriteName,
        kind: &str,
    ) -> Result<T> {
        self.json(self.request(Method::GET, &format!("/v1/sprites/{name}/policy/{kind}"))?).await
    }

    /// Replaces it.
    pub(crate) async fn set_policy(
        &self,
        name: &SpriteName,
        kind: &str,
        policy: &(impl Serialize + Sync),
    ) -> Result<()> {
        let request = self.request(Method::POST, &format!("/v1/sprites/{name}/policy/{kind}"))?;
        self.done(request.json(policy)).await
    }

    pub(crate) async fn volume(&self, name: &SpriteName) -> Result<VolumeStatus> {
        self.json(self.request(Method::GET, &format!("/v1/sprites/{name}/volume"))?).await
    }

    pub(crate) async fn sessions(&self, name: &SpriteName) -> Result<SessionList> {
        self.json(self.request(Method::GET, &format!("/v1/sprites/{name}/exec"))?).await
    }

    /// Signals a session's process group; with a `timeout` the server kills what is left after it.
    pub(crate) async fn kill_session(
        &self,
        name: &SpriteName,
        id: &str,
        signal: &str,
        timeout: Duration,
    ) -> Result<Lines<KillEvent>> {
        let (id, signal, timeout) = (encode(id), encode(signal), timeout.as_secs_f64());
        let path = format!("/v1/sprites/{name}/exec/{id}/kill?signal={signal}&timeout={timeout}s");
        self.lines(self.request(Method::POST, &path)?).await
    }

    /// The checkpoints, newest first; with `history` those that grew from it.
    pub(crate) async fn checkpoints(
        &self,
        name: &SpriteName,
        history: Option<&str>,
        with_automatic: bool,
    ) -> Result<Vec<Checkpoint>> {
        let mut path = format!("/v1/sprites/{name}/checkpoints?includeAuto={with_automatic}");
        if let Some(history) = history {
            path += &format!("&history={}", encode(history));
        }
        self.json(self.request(Method::GET, &path)?).await
    }

    pub(crate) async fn checkpoint(&self, name: &SpriteName, id: &str) -> Result<Checkpoint> {
        self.json(
            self.request(Method::GET, &format!("/v1/sprites/{name}/checkpoints/{}", encode(id)))?,
        )
        .await
    }

    pub(crate) async fn create_checkpoint(
        &self,
        name: &SpriteName,
        comment: Option<&str>,
    ) -> Result<Lines<Progress>> {
        let body = CreateCheckpoint { comment: comment.map(Into::into) };
        self.lines(
            self.request(Method::POST, &format!("/v1/sprites/{name}/checkpoint"))?.json(&body),
        )
        .await
    }

    pub(crate) async fn restore_checkpoint(
        &self,
        name: &SpriteName,
        id: &str,
    ) -> Result<Lines<Progress>> {
        let path = format!("/v1/sprites/{name}/checkpoints/{}/restore", encode(id));
        self.lines(self.request(Method::POST, &path)?).await
    }

    /// Puts the disk back to an instant.
    pub(crate) async fn rewind(&self, name: &SpriteName, at: Timestamp) -> Result<Lines<Progress>> {
        let request = self.request(Method::POST, &format!("/v1/sprites/{name}/rewind"))?;
        self.lines(request.json(&Rewind { at })).await
    }

    /// What is different at `to` from what was at `from`, path by path.
    pub(crate) async fn diff(
        &self,
        name: &SpriteName,
        from: &str,
        to: &str,
    ) -> Result<Lines<DiffLine>> {
        let (from, to) = (encode(from), encode(to));
        let path = format!("/v1/sprites/{name}/checkpoints/{from}/diff/{to}");
        self.lines(self.request(Method::GET, &path)?).await
    }

    pub(crate) async fn delete_checkpoint(&self, name: &SpriteName, id: &str) -> Result<()> {
        self.done(
            self.request(
                Method::DELETE,
                &format!("/v1/sprites/{name}/checkpoints/{}", encode(id)),
            )?,
        )
        .await
    }

    /// Writes a file in the sprite, making the directories above it. A relative `path` starts at `directory`.
    pub(crate) async fn write_file(
        &self,
        name: &SpriteName,
        (directory, path): (&str, &str),
        mode: u32,
        content: Body,
    ) -> Result<Written> {
        let (directory, path) = (encode(directory), encode(path));
        let query = format!("path={path}&workingDir={directory}&mode=0{mode:o}&mkdirParents=true");
        let request = self.request(Method::PUT, &format!("/v1/sprites/{name}/fs/write?{query}"))?;
        // A large file over a slow line may take its time; the answer is not waited for before it is sent.
        let request =
            request.header(header::CONTENT_TYPE, "application/octet-stream").body(content);
        self.decode(self.send(request).await?).await
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let http = match self.http.get() {
            Some(http) => http,
            None => {
                // The first request makes it: reading the root certificates takes longer than a whole exec.
                let builder = reqwest::Client::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .user_agent(USER_AGENT);
                let http = builder.build().map_err(ClientError::Build)?;
                self.http.get_or_init(|| http)
            }
        };
        let request = http.request(method, self.endpoint.at(path));
        Ok(request.header(header::AUTHORIZATION, self.endpoint.authorization()))
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        self.decode(self.send_in_time(request).await?).await
    }

    async fn done(&self, request: RequestBuilder) -> Result<()> {
        self.send_in_time(request).await.map(drop)
    }

    async fn lines<T>(&self, request: RequestBuilder) -> Result<Lines<T>> {
        let response = self.send(request).await?;
        Ok(Lines {
            server: self.endpoint.to_string(),
            response,
            buffer: Vec::new(),
            item: PhantomData,
        })
    }

    /// Sends a request that is answered at once and not by a stream. A timeout of its own stays.
    async fn send_in_time(&self, request: RequestBuilder) -> Result<Response> {
        let (client, request) = request.build_split();
        let mut request = request.map_err(|error| self.failed(&error))?;
        request.timeout_mut().get_or_insert(ANSWER_TIMEOUT);
        self.send(RequestBuilder::from_parts(client, request)).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let (client, request) = request.build_split();
        let request = request.map_err(|error| self.failed(&error))?;
        let (method, url) = (request.method().clone(), request.url().clone());
        let mut response = client.execute(request).await.map_err(|error| self.failed(&error))?;
        let status = response.status();
        self.endpoint.tell(format_args!("{method} {url} -> {status}"));
        if status.as_u16() < 400 {
            return Ok(response);
        }
        let mut body = Vec::new();
        // Half an error message is better than none, so a body that breaks off is used as far as it came.
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > BODY_BYTES_MAX {
                break;
            }
        }
        Err(Refusal::new(status.as_u16(), &body).into())
    }

    async fn decode<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        let body = response.bytes().await.map_err(|error| self.failed(&error))?;
        let server = || self.endpoint.to_string();
        serde_json::from_slice(&body)
            .map_err(|source| ClientError::Decode { server: server(), source })
    }

    fn failed(&self, error: &reqwest::Error) -> ClientError {
        let server = self.endpoint.to_string();
        match error {
            error if is_about_trust(error) => {
                ClientError::Untrusted { server, reason: root_cause(error) }
            }
            error if error.is_connect() => {
                ClientError::Unreachable { server, reason: root_cause(error) }
            }
            error if error.is_timeout() => ClientError::Timeout { server },
            error => ClientError::Receive { server, reason: root_cause(error) },
        }
    }
}

/// The bytes of an answer, as they come.
pub(crate) struct Parts {
    server: String,
    response: Response,
}

impl Parts {
    /// The next part; `None` at the end of a whole answer.
    pub(crate) async fn next(&mut self) -> Result<Option<bytes::Bytes>> {
        self.response.chunk().await.map_err(|error| ClientError::Receive {
            server: self.server.clone(),
            reason: root_cause(&error),
        })
    }
}

/// The items of an answer of JSON lines, as they come.
pub(crate) struct Lines<T> {
    server: String,
    response: Response,
    buffer: Vec<u8>,
    item: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// Whether the next item is here already.
    pub(crate) fn is_ready(&self) -> bool {
        self.buffer.contains(&b'\n')
    }

    /// The next item; `None` at the end of the answer.
    pub(crate) async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return self.decode(&line).map(Some);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(ClientError::LongLine);
            }
            let broken = |error: reqwest::Error| ClientError::Receive {
                server: self.server.clone(),
                reason: root_cause(&error),
            };
            match self.response.chunk().await.map_err(broken)? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => {
                    let line = std::mem::take(&mut self.buffer);
                    return self.decode(&line).map(Some);
                }
            }
        }
    }

    fn decode(&self, line: &[u8]) -> Result<T> {
        serde_json::from_slice(line)
            .map_err(|source| ClientError::Decode { server: self.server.clone(), source })
    }
}

/// How the client calls itself.
pub(crate) const USER_AGENT: &str = concat!("puck-cli/", env!("CARGO_PKG_VERSION"));

/// The text as one segment of a path or one value of a query.
pub(crate) fn encode(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The innermost reason; what is around it only says that a request failed, several times over.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
