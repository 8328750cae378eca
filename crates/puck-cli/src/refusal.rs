//! An answer of the server that says no, whichever way it was asked.

use crate::output;
use api::error::ErrorBody;

/// The longest message that is shown, in characters; a proxy's error page is longer and says nothing.
const MESSAGE_CHARS_MAX: usize = 300;

/// The most bytes of an error body that are read.
pub(crate) const BODY_BYTES_MAX: usize = 64 * 1024;

/// A status of 400 or more, and what the server said about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: String,
    retry_after_seconds: Option<u64>,
}

impl Refusal {
    /// Reads the body of an answer: the API's JSON, or plain text from anything in between.
    pub(crate) fn new(status: u16, body: &[u8]) -> Self {
        let parsed: Option<ErrorBody> = serde_json::from_slice(body).ok();
        let retry_after_seconds = parsed.as_ref().and_then(|body| body.retry_after_seconds);
        let said = parsed.map_or_else(
            || String::from_utf8_lossy(body).into_owned(),
            |body| body.message.filter(|message| !message.is_empty()).unwrap_or(body.error),
        );
        let said: String = output::clean(said.trim()).chars().take(MESSAGE_CHARS_MAX).collect();
        let is_page = said.starts_with('<');
        let message = match said {
            said if said.is_empty() || is_page => format!("the server answered {status}"),
            said => said,
        };
        Self { status, message, retry_after_seconds }
    }

    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self.status {
            401 => Some("SPRITE_TOKEN is not a token of this server".into()),
            404 if self.message.contains("sprite not found") => {
                Some("`puck list` shows which there are".into())
            }
            404 if self.message.contains("session not found") => {
                Some("`puck sessions list` shows which there are".into())
            }
            404 if self.message.contains("checkpoint") => {
                Some("`puck checkpoint list` shows which there are".into())
            }
            429 => Some(match self.retry_after_seconds {
                Some(seconds) => format!("try again in {seconds} s"),
                None => "try again later".into(),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Refusal;

    #[test]
    fn every_dialect_becomes_one_line() {
        for (status, body, message) in [
            (401, r#"{"error":"authentication failed"}"#, "authentication failed"),
            (429, r#"{"error":"sprite_creation_rate_limited","message":"Too fast."}"#, "Too fast."),
            (500, "disk\nfull\u{1b}[2J", "disk full [2J"),
            (502, "<html>", "the server answered 502"),
            (404, "", "the server answered 404"),
        ] {
            assert_eq!(Refusal::new(status, body.as_bytes()).to_string(), message);
        }
    }

    #[test]
    fn hints_say_what_to_do() {
        let hint = |status, body: &str| Refusal::new(status, body.as_bytes()).hint();
        assert_eq!(
            hint(429, r#"{"error":"x","retry_after_seconds":30}"#).as_deref(),
            Some("try again in 30 s")
        );
        assert!(
            hint(404, r#"{"error":"sprite not found"}"#)
                .is_some_and(|hint| hint.contains("puck list"))
        );
        assert_eq!(hint(409, "{}"), None);
    }
}
