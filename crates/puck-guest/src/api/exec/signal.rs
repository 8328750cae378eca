//! Names of signals: `TERM`, `SIGTERM`, in any case, or the number.

use rustix::process::Signal;

/// The signals that clients may send, by name.
const SIGNALS: [(&str, Signal); 19] = [
    ("SIGABRT", Signal::ABORT),
    ("SIGALRM", Signal::ALARM),
    ("SIGCHLD", Signal::CHILD),
    ("SIGCONT", Signal::CONT),
    ("SIGFPE", Signal::FPE),
    ("SIGHUP", Signal::HUP),
    ("SIGINT", Signal::INT),
    ("SIGKILL", Signal::KILL),
    ("SIGPIPE", Signal::PIPE),
    ("SIGPROF", Signal::PROF),
    ("SIGQUIT", Signal::QUIT),
    ("SIGSTOP", Signal::STOP),
    ("SIGTERM", Signal::TERM),
    ("SIGTSTP", Signal::TSTP),
    ("SIGTTIN", Signal::TTIN),
    ("SIGTTOU", Signal::TTOU),
    ("SIGUSR1", Signal::USR1),
    ("SIGUSR2", Signal::USR2),
    ("SIGWINCH", Signal::WINCH),
];

/// A signal under its full name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) struct Named {
    /// Such as `SIGTERM`.
    pub(in crate::api) name: &'static str,
    /// The number.
    pub(in crate::api) number: i32,
}

/// The text is not a signal's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown signal {0:?}")]
pub(in crate::api) struct UnknownSignal(String);

/// Parses a name or a number.
pub(in crate::api) fn parse(text: &str) -> Result<Named, UnknownSignal> {
    let upper = text.trim().to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(name, signal)| &name[3..] == short || signal.as_raw().to_string() == short)
        .map(|(name, signal)| Named { name, number: signal.as_raw() })
        .ok_or_else(|| UnknownSignal(text.chars().take(40).collect()))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn every_spelling_is_the_same_signal() {
        for text in ["TERM", "SIGTERM", "term", "sigterm", " SigTerm ", "15"] {
            assert_eq!(
                parse(text).map(|signal| (signal.name, signal.number)),
                Ok(("SIGTERM", 15)),
                "{text}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "SIG", "NOPE", "0", "-9", "99", "ü", &"x".repeat(1_000_000)] {
            assert!(parse(text).is_err());
        }
    }
}
