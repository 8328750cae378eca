//! The server's address and the token for it.

use crate::output;
use reqwest::Url;
use std::{fmt, sync::Arc};

/// Why the settings do not name a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    /// The token could not be sent. Never holds the token.
    #[error(
        "SPRITE_TOKEN holds characters that no token has: copy the line that `puck dev` prints"
    )]
    Token,
    /// Not a URL with a host that is spoken to over HTTP.
    #[error(
        "{0:?} is not the URL of a server: set SPRITES_API_URL to such as http://127.0.0.1:8080"
    )]
    Url(String),
}

/// A server and the right to use it. Cheap to clone; `Debug` never shows the token.
#[derive(Clone)]
pub(crate) struct Endpoint {
    url: Url,
    token: Arc<str>,
    debug: bool,
}

impl Endpoint {
    /// Only the scheme, host and port of `url` count. With `debug` each request is told on standard error.
    pub(crate) fn new(url: &str, token: &str, debug: bool) -> Result<Self, EndpointError> {
        let parsed = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let mut parsed =
            parsed.ok_or_else(|| EndpointError::Url(url.chars().take(200).collect()))?;
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(EndpointError::Token);
        }
        parsed.set_path("");
        parsed.set_query(None);
        parsed.set_fragment(None);
        Ok(Self { url: parsed, token: token.into(), debug })
    }

    /// The host as the system resolves it: without the brackets of an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or(80)
    }

    /// Whether the connection is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// The value of a `Host` header.
    pub(crate) fn authority(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// The whole URL of an already encoded path and query.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{self}{path}")
    }

    /// The value of an `Authorization` header.
    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Tells `event` where `--debug` was given.
    pub(crate) fn tell(&self, event: fmt::Arguments<'_>) {
        if self.debug {
            output::note(&format!("debug: {event}\n"));
        }
    }
}

/// The address without a trailing slash.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.url.scheme(), self.authority())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Endpoint, EndpointError};

    #[test]
    fn only_scheme_host_and_port_count() {
        for (url, shown, host, port) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1", 8080),
            ("https://puck.example/v1/?x#y", "https://puck.example", "puck.example", 443),
            ("http://[::1]:81/", "http://[::1]:81", "::1", 81),
        ] {
            let endpoint = Endpoint::new(url, "a/b/c/d", false).expect("a URL");
            assert_eq!(
                (endpoint.to_string().as_str(), endpoint.host(), endpoint.port()),
                (shown, host, port)
            );
        }
    }

    #[test]
    fn anything_else_is_refused_and_the_token_kept() {
        for bad in ["", "localhost:8080", "ftp://x", "http://", "127.0.0.1"] {
            assert!(
                matches!(Endpoint::new(bad, "a/b/c/d", false), Err(EndpointError::Url(_))),
                "{bad:?}"
            );
        }
        for bad in ["", "a\nb", "a b"] {
            assert_eq!(Endpoint::new("http://x", bad, false).err(), Some(EndpointError::Token));
        }
        let shown = format!("{:?}", Endpoint::new("http://x", "a/b/c/s3cret", false));
        assert!(!shown.contains("s3cret"));
    }
}
