//! Services: programs that a sprite keeps running, as the API describes them.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// The longest name of a service.
pub const NAME_BYTES_MAX: usize = 63;

/// The longest definition, as JSON.
pub const DEFINITION_BYTES_MAX: usize = 64 * 1024;

/// The name of a service: letters, digits, `-`, `_` and `.`, and no `.` in front.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// A text that is no name of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid service name: up to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`, none of them in front a `.`"
)]
pub struct ParseServiceNameError;

impl ServiceName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = ParseServiceNameError;

    fn from_str(text: &str) -> Result<Self, ParseServiceNameError> {
        let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let is_name = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(is_part)
            && !text.starts_with('.');
        if is_name { Ok(Self(text.to_owned())) } else { Err(ParseServiceNameError) }
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ParseServiceNameError;

    fn try_from(text: String) -> Result<Self, ParseServiceNameError> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

/// What a service runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDefinition {
    /// The program; without a slash it is looked up in `PATH`. No shell reads it.
    pub cmd: String,
    /// Its arguments.
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// Variables over the sprite's own.
    #[serde(default, deserialize_with = "or_default")]
    pub env: BTreeMap<String, String>,
    /// Where it starts; without, the home directory.
    #[serde(default)]
    pub dir: Option<String>,
    /// The services that must be ready before it starts.
    #[serde(default, deserialize_with = "or_default")]
    pub needs: Vec<ServiceName>,
    /// The port to which requests to the sprite's URL go. One service has it at most; it is ready when the port is open.
    #[serde(default)]
    pub http_port: Option<u16>,
}

/// A member that may be missing or `null`.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A service and how it is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// What it runs.
    #[serde(flatten)]
    pub definition: ServiceDefinition,
    /// How it is doing.
    pub state: ServiceState,
}

/// How a service is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// The service's name.
    pub name: ServiceName,
    /// In a word.
    pub status: ServiceStatus,
    /// The process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Since when, as RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Why it is not running, though it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How often it was started again after a crash since the sprite woke.
    pub restart_count: u32,
    /// When it will be, as RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_restart_at: Option<String>,
}

/// How a service is doing, in a word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceStatus {
    /// It does not run, and is not meant to.
    #[default]
    Stopped,
    /// It waits for what it needs.
    Starting,
    /// It runs.
    Running,
    /// It was asked to end.
    Stopping,
    /// It crashed and waits to be started again.
    Failed,
}

impl fmt::Display for ServiceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        })
    }
}

/// One line of what happens to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEvent {
    /// What happened.
    #[serde(flatten)]
    pub what: ServiceHappening,
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

/// What happened to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each member is named by its variant's text")]
pub enum ServiceHappening {
    /// Its process runs.
    Started,
    /// It was asked to end.
    Stopping,
    /// It has ended because it was asked to, with this code.
    Stopped { exit_code: u8 },
    /// It printed this.
    Stdout { data: String },
    /// It printed this on standard error.
    Stderr { data: String },
    /// It has ended by itself, with this code.
    Exit { exit_code: u8 },
    /// Something went wrong that the service did not print.
    Error { data: String },
    /// The end of the stream, and where the rest is.
    Complete { log_files: LogFiles },
}

/// Where the output of a service is, in the sprite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFiles {
    /// Everything.
    pub combined: String,
    /// Standard output, among the rest.
    pub stdout: String,
    /// Standard error, among the rest.
    pub stderr: String,
}

/// The body of `POST services/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalService {
    /// The service.
    pub name: String,
    /// The signal, with or without `SIG`.
    pub signal: String,
}

#[cfg(test)]
mod tests {
    use super::{ServiceDefinition, ServiceEvent, ServiceHappening, ServiceName};
    use serde_json::json;

    #[test]
    fn names_are_plain() {
        for name in ["web", "a.b-c_D1", &"x".repeat(63)] {
            assert!(name.parse::<ServiceName>().is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".web", "a/b", "a b", "é", &"x".repeat(64), "a\n"] {
            assert!(name.parse::<ServiceName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_is_left_out_is_empty() {
        let short: ServiceDefinition = serde_json::from_value(json!({ "cmd": "web" })).unwrap();
        let nulls = json!({ "cmd": "web", "args": null, "env": null, "dir": null, "needs": null, "http_port": null });
        assert_eq!(serde_json::from_value::<ServiceDefinition>(nulls).unwrap(), short);
        let shown = serde_json::to_value(&short).unwrap();
        assert_eq!((&shown["args"], &shown["needs"]), (&json!([]), &json!([])));
    }

    #[test]
    fn events_have_the_public_shape() {
        let event = ServiceEvent { what: ServiceHappening::Exit { exit_code: 3 }, timestamp: 7 };
        assert_eq!(
            serde_json::to_value(&event).unwrap(),
            json!({ "type": "exit", "exit_code": 3, "timestamp": 7 })
        );
    }
}
