//! Who may call: holders of a token of the organization.

use super::{Orchestrator, refusal::Refusal};
use api::token::Token;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
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
