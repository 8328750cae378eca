//! Ending a command: a signal to its process group, then, if it does not end in time, `SIGKILL`.

use super::{signal, signal::Named, unknown};
use crate::api::{
    Agent,
    answer::Refusal,
    lines::{Lines, ndjson},
    session::{Lookup, Session},
};
use api::{duration, exec::KillEvent, query::Query};
use axum::{
    body::Bytes,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::Response,
};
use guest::container::SignalError;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

/// How long a process may take to end before it is killed, if the client does not say.
const TIMEOUT: Duration = Duration::from_secs(10);

const SIGNAL: &str = "SIGTERM";

/// The parameters as a JSON body. A timeout is a number of seconds or a text such as `10s`.
#[derive(Debug, Default, Deserialize)]
struct Body {
    signal: Option<String>,
    timeout: Option<Seconds>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

pub(super) async fn kill(
    State(agent): State<Arc<Agent>>,
    Path((_, id)): Path<(String, String)>,
    RawQuery(raw): RawQuery,
    body: Bytes,
) -> Result<Response, Refusal> {
    let query = Query::parse(raw.as_deref().unwrap_or_default())
        .map_err(|error| Refusal::invalid(&error))?;
    let body: Body = match body.trim_ascii() {
        [] => Body::default(),
        json => serde_json::from_slice(json).map_err(|error| Refusal::invalid(&error))?,
    };
    let signal = query
        .first("signal")
        .map(str::to_owned)
        .or(body.signal)
        .filter(|signal| !signal.is_empty());
    let timeout =
        query.first("timeout").map(str::to_owned).or(body.timeout.map(|timeout| match timeout {
            Seconds::Number(seconds) => seconds.to_string(),
            Seconds::Text(text) => text,
        }));
    let signal = signal::parse(signal.as_deref().unwrap_or(SIGNAL))
        .map_err(|error| Refusal::invalid(&error))?;
    let timeout = match timeout {
        Some(timeout) => duration::parse(&timeout).map_err(|error| Refusal::invalid(&error))?,
        None => TIMEOUT,
    };
    end(&agent, &id, signal, timeout)
}

/// The same with the defaults.
pub(super) async fn delete(
    State(agent): State<Arc<Agent>>,
    Path((_, id)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let signal = signal::parse(SIGNAL).map_err(|error| Refusal::invalid(&error))?;
    end(&agent, &id, signal, TIMEOUT)
}

fn end(agent: &Agent, id: &str, signal: Named, timeout: Duration) -> Result<Response, Refusal> {
    let session = match agent.sessions.find(id) {
        Lookup::Running(session) => session,
        Lookup::Ended => {
            return Err(Refusal::new(StatusCode::GONE, format!("session has ended: {id}")));
        }
        Lookup::Unknown => return Err(unknown(id)),
    };
    let (lines, response) = ndjson();
    let hold = agent.activity.hold("kill");
    tokio::spawn(async move {
        let _hold = hold;
        let exit_code = tell(&lines, &session, signal, timeout).await;
        lines.write(&KillEvent::Complete { exit_code }).await;
    });
    Ok(response)
}

/// Signals, waits, kills, and tells each step: the exit code.
async fn tell(lines: &Lines, session: &Session, signal: Named, timeout: Duration) -> i32 {
    let Named { name, number } = signal;
    // One that ends at this very moment is no failure: its end is told below.
    if let Err(error @ SignalError::Invalid { .. }) = session.signal(number).await {
        lines.write(&KillEvent::Error { message: format!("send {name}: {error}") }).await;
        return -1;
    }
    let message = format!("Signaling {name} to process group");
    lines
        .write(&KillEvent::Signal { message, signal: name.to_owned(), pid: session.facts.pid })
        .await;
    if timeout.is_zero() {
        // Nobody waits, so the code is what this signal would give.
        return 128 + number;
    }
    if let Ok(code) = tokio::time::timeout(timeout, session.ended()).await {
        lines
            .write(&KillEvent::Exited { message: format!("Process exited with code {code}") })
            .await;
        return i32::from(code);
    }
    let message = format!("Process did not exit within {timeout:?}");
    lines.write(&KillEvent::Timeout { message }).await;
    let kill = rustix::process::Signal::KILL.as_raw();
    if let Err(error @ SignalError::Invalid { .. }) = session.signal(kill).await {
        lines.write(&KillEvent::Error { message: format!("send SIGKILL: {error}") }).await;
        return -1;
    }
    let code = session.ended().await;
    lines.write(&KillEvent::Killed { message: "Process killed".to_owned() }).await;
    i32::from(code)
}
