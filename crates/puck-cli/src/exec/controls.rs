//! What reaches a running command beside its streams: signals to this process, and a new size of the terminal.

use crate::terminal;
use api::exec::TerminalSize;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use std::io;
use tokio::signal::unix::{SignalKind, signal};

/// A signal that asks this process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal {
    pub(crate) name: &'static str,
    pub(crate) number: u8,
}

/// Ctrl-C.
pub(crate) const INTERRUPT: Signal = Signal { name: "INT", number: 2 };

/// The signals that are passed on.
const SIGNALS: [(SignalKind, Signal); 3] = [
    (SignalKind::interrupt(), INTERRUPT),
    (SignalKind::terminate(), Signal { name: "TERM", number: 15 }),
    (SignalKind::hangup(), Signal { name: "HUP", number: 1 }),
];

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Resize(TerminalSize),
    Signal(Signal),
}

/// What happens, in order.
pub(crate) struct Controls {
    stream: BoxStream<'static, Control>,
    received: Option<Signal>,
}

impl Controls {
    /// What happens to this process. From now on the signals no longer end it by themselves.
    pub(crate) fn of_process() -> io::Result<Self> {
        let mut sources = Vec::new();
        for (kind, name) in SIGNALS {
            sources.push(source(kind, move || Control::Signal(name))?);
        }
        sources.push(source(SignalKind::window_change(), || Control::Resize(terminal::size()))?);
        Ok(Self::new(stream::select_all(sources).boxed()))
    }

    /// What the stream says. When it ends, nothing more happens.
    pub(crate) fn new(stream: BoxStream<'static, Control>) -> Self {
        Self { stream: stream.chain(stream::pending()).boxed(), received: None }
    }

    /// The last signal there was.
    pub(crate) fn received(&self) -> Option<Signal> {
        self.received
    }

    /// Waits for the next signal and passes over everything before it.
    pub(crate) async fn signal(&mut self) -> Signal {
        loop {
            if let Control::Signal(signal) = self.next().await {
                return signal;
            }
        }
    }

    /// Waits for the next thing. May be given up and called again without losing one.
    pub(crate) async fn next(&mut self) -> Control {
        match self.stream.next().await {
            Some(control) => {
                if let Control::Signal(signal) = control {
                    self.received = Some(signal);
                }
                control
            }
            None => std::future::pending().await,
        }
    }
}

fn source(
    kind: SignalKind,
    control: impl Fn() -> Control + Send + 'static,
) -> io::Result<BoxStream<'static, Control>> {
    let signals = stream::unfold(signal(kind)?, |mut signal| async {
        signal.recv().await.map(|()| ((), signal))
    });
    Ok(signals.map(move |()| control()).boxed())
}
