//! The shape of an error body.

use serde::{Deserialize, Serialize};

/// A JSON error body. Clients read `error` and `message`; the numbers come with limits (status 429).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A code or a sentence; always there.
    pub error: String,
    /// A sentence for people, where `error` is a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// All that is wrong with the input; `error` then joins them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<Vec<String>>,
    /// The errno name of a file error, such as `ENOENT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The path of a file error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The limit that was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How many there are now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_count: Option<u64>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

impl ErrorBody {
    /// A body with only `error`.
    #[must_use]
    pub fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), ..Self::default() }
    }

    /// A body for rejected input: `errors`, and `error` joined from them.
    #[must_use]
    pub fn invalid(errors: Vec<String>) -> Self {
        Self { error: errors.join("; "), errors: Some(errors), ..Self::default() }
    }
}
