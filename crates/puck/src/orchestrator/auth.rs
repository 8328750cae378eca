//! Who may call: holders of a token of the organization.

use super::{Orchestrator, refusal::Refusal};
use api::token::Token;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use std::sync::Arc;

/// Around every route: no answer about anything without a token, not even that it does not exist.
pub(super) async fn authenticate(
    State(orchestrator): State<Arc<Orchestrator>>,
    request: Request,
    next: Next,
) -> Response {
    match token(request.headers()) {
        Some(token) if orchestrator.account.accepts(&token) => next.run(request).await,
        _ => Refusal::unauthenticated().into_response(),
    }
}

fn token(headers: &HeaderMap) -> Option<Token> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") { token.trim().parse().ok() } else { None }
}

/// The token that somebody shows who wants to see a sprite's web server: a bearer token, or the password of a login.
pub(super) fn shown(headers: &HeaderMap) -> Option<Token> {
    let (scheme, login) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return token(headers);
    }
    let login = String::from_utf8(BASE64_STANDARD.decode(login.trim()).ok()?).ok()?;
    login.split_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::token;
    use axum::http::{HeaderMap, HeaderValue, header};

    fn with(value: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(
            header::AUTHORIZATION,
            HeaderValue::from_bytes(value).expect("a header"),
        )])
    }

    #[test]
    fn a_bearer_token_is_found() {
        assert!(token(&with(b"Bearer local/ab2c/id/secret")).is_some());
        assert!(token(&with(b"bearer local/ab2c/id/secret")).is_some());
    }

    #[test]
    fn anything_else_is_no_token() {
        for bad in [
            &b""[..],
            b"Bearer",
            b"Bearer ",
            b"Basic local/ab2c/id/secret",
            b"Bearer a/b",
            b"Bearer \xff/a/b/c",
        ] {
            assert!(token(&with(bad)).is_none(), "{bad:?}");
        }
        assert!(token(&HeaderMap::new()).is_none());
    }
}
