//! Refusals: a status and a JSON body, the same for plain calls and for refused upgrades.

use api::error::ErrorBody;
use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

/// The longest plain text of the HTTP library.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Why a call is not answered as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: StatusCode,
    body: Box<ErrorBody>,
}

impl Refusal {
    /// A refusal with only a sentence.
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: Box::new(ErrorBody::new(error)) }
    }

    /// A refusal with a whole body.
    pub(crate) fn with_body(status: StatusCode, body: ErrorBody) -> Self {
        Self { status, body: Box::new(body) }
    }

    /// Status 400 for input that does not parse: the error and what caused it, joined.
    pub(crate) fn invalid(error: &dyn std::error::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, chain(error))
    }

    /// Status 503: there is no running container and none came in time.
    pub(crate) fn unavailable() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the sprite's container is not running")
    }

    /// The sentence, for a client that already has its upgrade.
    pub(crate) fn message(&self) -> &str {
        &self.body.error
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// The refusals of the HTTP library are plain text; clients get all of them in one shape.
pub(crate) async fn in_json(response: Response) -> Response {
    let is_text = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|content_type| content_type.as_bytes().starts_with(b"text/plain"));
    if !is_text {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let body = Json(ErrorBody::new(String::from_utf8_lossy(&text)));
    let mut response = (parts.status, body).into_response();
    if let Some(version) = parts.headers.get(header::SEC_WEBSOCKET_VERSION) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version.clone());
    }
    response
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
