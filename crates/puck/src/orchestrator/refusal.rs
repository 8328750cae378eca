//! Errors, as the API's clients read them. The one place that turns a failure into a status.

use crate::{
    account::AccountError,
    worker::{AgentError, BootError, WakeError},
};
use api::{error::ErrorBody, name::NameError};
use axum::{
    Json,
    body::Bytes,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;

/// When a client may try again after the server could not, in seconds.
const RETRY_AFTER_SECONDS: u64 = 2;

/// Why a call is not done, and what its caller reads.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: Box<ErrorBody>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: Box::new(ErrorBody::new(error)) }
    }

    /// Input that is wrong, in every way that it is.
    pub(super) fn invalid(errors: Vec<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: Box::new(ErrorBody::invalid(errors)) }
    }

    pub(super) fn no_sprite() -> Self {
        Self::new(StatusCode::NOT_FOUND, "sprite not found")
    }

    pub(super) fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication failed")
    }

    /// The server cannot at the moment; the same call may succeed later.
    pub(super) fn unavailable(reason: &dyn std::error::Error) -> Self {
        let mut refusal = Self::explained(StatusCode::SERVICE_UNAVAILABLE, reason);
        refusal.body.retry_after_seconds = Some(RETRY_AFTER_SECONDS);
        refusal
    }

    /// An error with its causes.
    pub(super) fn explained(status: StatusCode, reason: &dyn std::error::Error) -> Self {
        Self::new(status, chain(reason))
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// As many archives are on their way as may be.
    pub(super) fn transfers_full(limit: usize) -> Self {
        let mut refusal =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "concurrent_transfer_limit_exceeded");
        refusal.body.message = Some(format!(
            "{limit} sprites are being exported or imported, the most that this server does at once"
        ));
        refusal.body.limit = Some(limit as u64);
        refusal.body.retry_after_seconds = Some(RETRY_AFTER_SECONDS);
        refusal
    }

    fn full(limit: u32) -> Self {
        let mut refusal =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "concurrent_sprite_limit_exceeded");
        refusal.body.message =
            Some(format!("{limit} sprites are running, the most that this server runs at once"));
        refusal.body.limit = Some(limit.into());
        refusal.body.current_count = Some(limit.into());
        refusal.body.retry_after_seconds = Some(RETRY_AFTER_SECONDS);
        refusal
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let retry_after = self.body.retry_after_seconds;
        let mut response = (self.status, Json(&*self.body)).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Missing => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
            NameError::Format => Self::invalid(vec![error.to_string()]),
        }
    }
}

impl From<AccountError> for Refusal {
    fn from(error: AccountError) -> Self {
        match error {
            AccountError::Missing(_) => Self::no_sprite(),
            AccountError::Gone(_) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            AccountError::Taken(name) => Self::new(
                StatusCode::CONFLICT,
                format!("A sprite named '{name}' already exists. Please choose a different name."),
            ),
            other => Self::unavailable(&other),
        }
    }
}

impl From<&BootError> for Refusal {
    fn from(error: &BootError) -> Self {
        match error {
            BootError::Host(runtime::Error::Full { most }) => Self::full(*most),
            other => Self::unavailable(other),
        }
    }
}

impl From<WakeError> for Refusal {
    fn from(error: WakeError) -> Self {
        match &error {
            WakeError::Boot(boot) => Self::from(&**boot),
            WakeError::Destroyed => Self::no_sprite(),
            WakeError::Stopping => Self::unavailable(&error),
        }
    }
}

impl From<AgentError> for Refusal {
    fn from(error: AgentError) -> Self {
        Self::unavailable(&error)
    }
}

/// Parses a body, of which an empty one means a value with nothing in it.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    let text: &[u8] = if body.trim_ascii().is_empty() { b"{}" } else { body };
    // A list would be taken for the members in their order.
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "invalid request body: expected an object",
        ));
    }
    serde_json::from_slice(text).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("invalid request body: {error}"))
    })
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
