//! Says what a build is doing: a spinner on a terminal, plain lines elsewhere. All of it goes to standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Where progress is shown.
pub(crate) enum Progress {
    /// A spinner with the present step and the time so far.
    Spinner(ProgressBar),
    /// One line for each step.
    Lines,
}

impl Progress {
    /// A spinner if standard error is a terminal, else lines.
    pub(crate) fn to_stderr() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}");
        let bar = ProgressBar::new_spinner()
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(TICK);
        Self::Spinner(bar)
    }

    /// A step begins.
    pub(crate) fn step(&self, what: &str) {
        match self {
            Self::Spinner(bar) => bar.set_message(what.to_owned()),
            Self::Lines => {
                // Nobody can be told that telling failed.
                drop(writeln!(io::stderr(), "image: {what}"));
            }
        }
    }

    /// All steps are over: the spinner goes away.
    pub(crate) fn done(&self) {
        if let Self::Spinner(bar) = self {
            bar.finish_and_clear();
        }
    }
}
