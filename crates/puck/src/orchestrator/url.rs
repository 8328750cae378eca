//! The sprites' URLs: `http://NAME-ORG.localhost:PORT/…` is the web server inside a sprite, which wakes for it.
//!
//! Who asks a sprite's host never reaches the API, and who asks any other host never reaches a sprite. A host that looks like a
//! sprite's and is none is answered as one that may not be seen.
//!
//! With `auth: sprite` the caller shows a token, which the sprite never sees: as a bearer token, or as the password of a login, which a browser
//! asks for. With `auth: public` everything is the web server's, credentials too.

use super::{
    Orchestrator, Refusal, auth,
    proxy::{Terms, end_hop, pass, reach},
};
use crate::worker::AgentError;
use api::{name::SpriteName, sprite::UrlAuth};
use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use guest::protocol::WEB;
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use std::{net::SocketAddr, sync::Arc};
use tracing::debug;

/// What a browser that lacks the right to see a sprite asks its user for.
const LOGIN: HeaderValue =
    HeaderValue::from_static("Basic realm=\"Puck: any name, and a token as the password\"");

/// The longest reason of an agent that has no connection to give.
const REASON_BYTES_MAX: usize = 16 << 10;

/// Under what names the web server reads who asked for what, for those in front of which there is somebody else.
const CLIENT: HeaderName = HeaderName::from_static("sprite-client-ip");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Around every route: the hosts of sprites are none of the API's.
pub(super) async fn divert(
    State(orchestrator): State<Arc<Orchestrator>>,
    request: Request,
    next: Next,
) -> Response {
    match authority(&request) {
        Ok(authority) => match orchestrator.sprite_host(without_port(&authority)) {
            Host::Api => next.run(request).await,
            Host::Sprite(name) => {
                let answer = serve(&orchestrator, name.as_ref(), &authority, request).await;
                answer.unwrap_or_else(IntoResponse::into_response)
            }
        },
        Err(refusal) => refusal.into_response(),
    }
}

/// Whose host a request is for.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    /// This server's own.
    Api,
    /// A sprite's, if the text is a name.
    Sprite(Option<SpriteName>),
}

impl Orchestrator {
    fn sprite_host(&self, host: &str) -> Host {
        let domain = self.authority.rsplit_once(':').map_or(&*self.authority, |(domain, _)| domain);
        parse_host(host, domain)
    }
}

/// `domain` is what follows `NAME-`, such as `ab2c.localhost`.
fn parse_host(host: &str, domain: &str) -> Host {
    let end = domain.split_once('.').map_or(domain, |(_, end)| end);
    let Some(label) = host.strip_suffix(end).and_then(|label| label.strip_suffix('.')) else {
        return Host::Api;
    };
    let name = host.strip_suffix(domain).and_then(|name| name.strip_suffix('-'));
    Host::Sprite(name.filter(|_| !label.contains('.')).and_then(|name| name.parse().ok()))
}

/// The host and port that are asked for, in lower case; empty if none is named, as in the oldest HTTP.
fn authority(request: &Request) -> Result<String, Refusal> {
    let invalid = || Refusal::new(StatusCode::BAD_REQUEST, "invalid host");
    let mut named = request.headers().get_all(header::HOST).iter();
    let text = match (request.uri().authority(), named.next(), named.next()) {
        // Of two that disagree, somebody in front may have looked at the other.
        (_, _, Some(_)) => return Err(invalid()),
        (Some(authority), _, None) => authority.as_str(),
        (None, Some(host), None) => host.to_str().map_err(|_| invalid())?,
        (None, None, None) => "",
    };
    Ok(text.to_ascii_lowercase())
}

fn without_port(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host)
}

async fn serve(
    orchestrator: &Orchestrator,
    name: Option<&SpriteName>,
    authority: &str,
    mut request: Request,
) -> Result<Response, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"));
    }
    let record = name.and_then(|name| orchestrator.account.sprite(name));
    let is_public =
        record.as_ref().is_some_and(|record| record.url_settings.auth == UrlAuth::Public);
    if !is_public {
        if !auth::shown(request.headers()).is_some_and(|token| orchestrator.account.accepts(&token))
        {
            return Ok(ask_for_login());
        }
        request.headers_mut().remove(header::AUTHORIZATION);
    }
    let record = record.ok_or_else(Refusal::no_sprite)?;
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|client| client.0);
    // First, or a client could name what is added here among what is for this hop alone.
    end_hop(request.headers_mut());
    tell_origin(request.headers_mut(), authority, client);
    let (lease, agent) = reach(orchestrator, &record).await?;
    let server = connect(agent).await?;
    let terms = Terms {
        withheld: &[header::PROXY_AUTHORIZATION],
        broken: server_broke,
        tasks: &orchestrator.tasks,
        stop: &orchestrator.stop,
    };
    pass(server, request, lease, terms).await
}

/// A web server that does not answer is its owner's business.
fn server_broke(error: hyper::Error) -> Refusal {
    debug!(error = &error as &dyn std::error::Error, "a web server did not answer");
    Refusal::new(StatusCode::BAD_GATEWAY, "the sprite's web server did not answer")
}

fn ask_for_login() -> Response {
    let mut response = Refusal::unauthenticated().into_response();
    response.headers_mut().append(header::WWW_AUTHENTICATE, LOGIN);
    response
}

/// Says who asked for what. Only the list of all that passed the request on may have come with it.
fn tell_origin(headers: &mut HeaderMap, authority: &str, client: Option<SocketAddr>) {
    let client = client.map(|client| client.ip().to_string());
    let passed = headers.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let list = passed.chain(client.as_deref()).collect::<Vec<_>>().join(", ");
    for (name, text) in [
        (CLIENT, client.as_deref().unwrap_or_default()),
        (FORWARDED_FOR, &list),
        (FORWARDED_HOST, authority),
        (FORWARDED_PROTO, "http"),
    ] {
        match HeaderValue::from_str(text).ok().filter(|value| !value.is_empty()) {
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
    }
}

/// Speaks HTTP with the web server in the sprite, through its agent.
async fn connect(mut agent: SendRequest<Body>) -> Result<SendRequest<Body>, Refusal> {
    let ask = Request::builder()
        .uri(WEB)
        .header(header::HOST, "sprite")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "tcp")
        .body(Body::empty())
        .expect("a request of constants");
    let mut answer = agent.send_request(ask).await.map_err(AgentError::Call)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let body = Limited::new(answer.into_body(), REASON_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let reason = serde_json::from_slice::<api::error::ErrorBody>(&body);
        let reason =
            reason.map_or_else(|_| "no connection to the sprite".to_owned(), |body| body.error);
        return Err(Refusal::new(status, reason));
    }
    let connection = hyper::upgrade::on(&mut answer).await.map_err(AgentError::Call)?;
    let (server, connection) = http1::handshake(connection).await.map_err(AgentError::Call)?;
    // It ends by itself: with its one answer, or its upgrade, or its machine.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(error = &error as &dyn std::error::Error, "a connection to a web server ended");
        }
    });
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::{FORWARDED_FOR, Host, authority, parse_host, tell_origin, without_port};
    use axum::{
        body::Body,
        extract::Request,
        http::{HeaderMap, HeaderValue, header},
    };

    #[test]
    fn a_sprite_is_found_by_its_host_and_nothing_else_is() {
        let sprite = |name: &str| Host::Sprite(Some(name.parse().expect("a name")));
        for (text, expected) in [
            ("web-ab2c.localhost", sprite("web")),
            ("web-2-ab2c.localhost", sprite("web-2")),
            ("web-other.localhost", Host::Sprite(None)),
            ("ab2c.localhost", Host::Sprite(None)),
            ("-ab2c.localhost", Host::Sprite(None)),
            ("a.web-ab2c.localhost", Host::Sprite(None)),
            (".localhost", Host::Sprite(None)),
            ("w_b-ab2c.localhost", Host::Sprite(None)),
            ("localhost", Host::Api),
            ("127.0.0.1", Host::Api),
            ("web-ab2c.localhost.example.com", Host::Api),
            ("notlocalhost", Host::Api),
            ("", Host::Api),
        ] {
            assert_eq!(parse_host(text, "ab2c.localhost"), expected, "{text}");
        }
    }

    #[test]
    fn a_host_is_read_without_port_dot_and_case() {
        let of = |hosts: &[&str]| {
            let mut request = Request::new(Body::empty());
            for text in hosts {
                request.headers_mut().append(header::HOST, text.parse().expect("a value"));
            }
            authority(&request).ok().map(|authority| without_port(&authority).to_owned())
        };
        assert_eq!(of(&["Web-AB2C.localhost.:7000"]).as_deref(), Some("web-ab2c.localhost"));
        assert_eq!(of(&["[::1]:80"]).as_deref(), Some("[::1]"));
        assert_eq!(of(&[]).as_deref(), Some(""));
        assert_eq!(of(&["a", "b"]), None);
        assert_eq!(of(&["a", "a"]), None);
    }

    #[test]
    fn a_client_cannot_say_that_it_is_another() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2"),
            ("sprite-client-ip", "192.0.2.3"),
            ("x-forwarded-host", "example.com"),
            ("x-forwarded-proto", "https"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        tell_origin(&mut headers, "web-ab2c.localhost", Some("127.0.0.9:1".parse().expect("one")));
        assert_eq!(
            headers.get_all(FORWARDED_FOR).iter().collect::<Vec<_>>(),
            ["192.0.2.1, 192.0.2.2, 127.0.0.9"]
        );
        assert_eq!(headers["sprite-client-ip"], "127.0.0.9");
        assert_eq!(headers["x-forwarded-host"], "web-ab2c.localhost");
        assert_eq!(headers["x-forwarded-proto"], "http");
    }
}
