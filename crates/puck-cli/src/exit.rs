//! How the process ends: its exit code, and the one line that says why.
//!
//! A command's own code is passed through, so the client keeps to few codes of its own: 1 when something failed, 2 when the
//! command line was wrong, `128 + n` when signal `n` ended the client.

use crate::{client::ClientError, transport::TransportError};
use std::{error::Error, process::ExitCode};

/// The exit code of a process whose standard output was closed: `128 + SIGPIPE`.
const OUTPUT_CLOSED: u8 = 128 + 13;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With this code.
    Code(u8),
    /// By the signal that it was sent; a shell shows this as `128 + n`.
    Signal(u8),
}

impl Exit {
    pub(crate) const SUCCESS: Self = Self::Code(0);
    pub(crate) const FAILURE: Self = Self::Code(1);
    pub(crate) const USAGE: Self = Self::Code(2);
    pub(crate) const OUTPUT_CLOSED: Self = Self::Code(OUTPUT_CLOSED);

    /// Ends the process by the signal, if that is how it ends; else gives the code for `main` to return.
    pub(crate) fn end(self) -> ExitCode {
        match self {
            Self::Code(code) => ExitCode::from(code),
            Self::Signal(number) => {
                // This does not return for a signal that ends processes, and none but those come here.
                drop(signal_hook::low_level::emulate_default_handler(number.into()));
                ExitCode::from(128 + number)
            }
        }
    }
}

/// What the command line asked for cannot be meant, found only after parsing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// The code for a failed command.
pub(crate) fn code(error: &anyhow::Error) -> Exit {
    if error.is::<UsageError>() { Exit::USAGE } else { Exit::FAILURE }
}

/// The line for a failed command: what was tried, what went wrong and, where it is known, what to do.
pub(crate) fn line(error: &anyhow::Error) -> String {
    match error.chain().find_map(hint) {
        Some(hint) => format!("error: {error:#} ({hint})"),
        None => format!("error: {error:#}"),
    }
}

/// What the user can do about one cause of a failure.
fn hint(cause: &(dyn Error + 'static)) -> Option<String> {
    const UNREACHABLE: &str = "is the server running? SPRITES_API_URL says where it is looked for";
    const UNTRUSTED: &str = "SSL_CERT_FILE can name a file of the certificates to trust";
    match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(ClientError::Refused(refusal)), _) | (_, Some(TransportError::Refused(refusal))) => {
            refusal.hint()
        }
        (Some(ClientError::Unreachable { .. }), _)
        | (_, Some(TransportError::Connect { .. } | TransportError::ConnectTimeout { .. })) => {
            Some(UNREACHABLE.into())
        }
        (Some(ClientError::Untrusted { .. }), _) | (_, Some(TransportError::Untrusted { .. })) => {
            Some(UNTRUSTED.into())
        }
        _ => None,
    }
}
