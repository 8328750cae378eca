//! Who may write a log: the protocol alone, without a clock, a bucket or a file. Events go in, what to do comes out.
//!
//! ```text
//!           head unchanged for L + 1 s,          the claim is in the log
//!           or our own, or no lease
//! Claimant ---------------------------> Ownership ----------------------> Ownership
//!    ^  \ head changed: wait anew       (unconfirmed)                     (confirmed)
//!    |                                     |                                 |
//!    +-- an append of the old owner -------+-- another claim                 +-- anything else
//!        took the number                   v   took the number               v   took the number
//!                                        Fenced                            Fenced
//!
//! append: idle --create--> in flight --created------------------> idle
//!                            |    ^  \--taken--> look --ours----> idle
//!                            +----+                   \--other--> fenced, or outrun
//!                      no answer: create the same again
//! ```
//!
//! A file of level 0 is created only if its number is free, so each number belongs to the first who gets there. A writer takes
//! the log over with a file that changes nothing and carries the next epoch and a random nonce; whoever believes to be the
//! owner still finds out when it tries that number. No clock takes part in this order.
//!
//! A request without an answer may have been done, may be done later, or never. The same bytes are sent again until the bucket
//! says that the number is free or taken, and only what stands there then decides: our nonce and our bytes, or somebody else's.
//!
//! Where several servers share a bucket, a *lease* bounds what an owner may promise from its local disk: it may acknowledge
//! only within `L` of the start of its last append that succeeded, counted from the first time that this append was sent. A
//! claimer of a log that it did not itself last write waits until it has seen the head unchanged for `L` and a margin. An append that
//! the owner relies on was in the log when the claimer first looked, or it takes the number that the claimer wants.
//! Only the rates of clocks matter, not what they show.
//!
//! Old files are deleted, all but the claims, so a number can become free again. The number after an owner's last is never among
//! them: if it is taken, it is by a claim. But a claimer that was stopped between its look and its claim for longer than files
//! are kept might find the number of such a file; so a claim counts only if it is known to have succeeded within
//! [`CLAIM_TIME_MAX`] of the look, and no file is deleted that is not much older.
//!
//! Invariants, searched for violations over all interleavings by the tests:
//! - No two writers both have a number acknowledged; the chain is gapless; epochs never decrease along it.
//! - What was acknowledged stays in the chain for ever.
//! - With a lease, no owner acknowledges from its local disk once a claim that takes the log from it has been sent.

use std::time::Duration;

/// What a claimer waits beyond the lease, for clocks that run at slightly different rates.
pub(crate) const LEASE_MARGIN: Duration = Duration::from_secs(1);

/// How long after it saw the head a claimer may learn that its claim has succeeded. Much less than any file is kept.
pub(crate) const CLAIM_TIME_MAX: Duration = Duration::from_secs(10 * 60);

/// A period of writing, told apart from every other by its nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Writer {
    pub(crate) epoch: u64,
    pub(crate) nonce: u64,
}

/// A file of level 0, as far as ownership is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) txid: u64,
    pub(crate) writer: Writer,
    /// Stands for the bytes of the file.
    pub(crate) checksum: u64,
}

/// The times of the protocol, the same for all writers of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    /// `None` with a single server: an owner may always acknowledge, and nobody waits.
    pub(crate) lease: Option<Duration>,
    /// [`CLAIM_TIME_MAX`].
    pub(crate) claim_time_max: Duration,
}

/// Somebody who wants to become the writer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Claimant {
    rules: Rules,
    nonce: u64,
    /// What the claimer itself has written, or may have. Nobody else can rely on that.
    own: Vec<Writer>,
    /// The head that was seen last, and when it was seen first.
    seen: Option<(Entry, Duration)>,
}

/// What a claimer does after it has seen the head.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    /// Append: the first file is the claim.
    Claim(Ownership),
    /// Look again, not before this time.
    Wait {
        /// When.
        until: Duration,
    },
}

impl Claimant {
    /// A claimer with a nonce that nobody else has.
    pub(crate) fn new(nonce: u64, own: Vec<Writer>, rules: Rules) -> Self {
        Self { rules, nonce, own, seen: None }
    }

    /// The log ended at `head`, which was asked at `asked` and answered by `now`.
    pub(crate) fn saw(&mut self, head: Option<Entry>, asked: Duration, now: Duration) -> Next {
        let Some(entry) = head else { return Next::Claim(self.claim(1, None, asked)) };
        let epoch = entry.writer.epoch.saturating_add(1);
        let Some(lease) = self.rules.lease.filter(|_| !self.wrote(entry.writer)) else {
            return Next::Claim(self.claim(epoch, head, asked));
        };
        let since = match self.seen {
            Some((seen, since)) if seen == entry => since,
            _ => now,
        };
        self.seen = Some((entry, since));
        let until = since.saturating_add(lease).saturating_add(LEASE_MARGIN);
        if now < until { Next::Wait { until } } else { Next::Claim(self.claim(epoch, head, asked)) }
    }

    /// The claimer has noted, durably, what it has written or is about to write.
    pub(crate) fn noted(&mut self, own: Vec<Writer>) {
        self.own = own;
    }

    /// Whether the claimer itself wrote this, so that what it has locally continues it.
    pub(crate) fn wrote(&self, writer: Writer) -> bool {
        self.own.contains(&writer)
    }

    fn claim(&self, epoch: u64, head: Option<Entry>, asked: Duration) -> Ownership {
        Ownership {
            writer: Writer { epoch, nonce: self.nonce },
            head,
            rules: self.rules,
            asked,
            confirmed: None,
            state: State::Idle,
        }
    }
}

/// A writer, from its claim on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ownership {
    writer: Writer,
    head: Option<Entry>,
    rules: Rules,
    /// When the head was asked for that the claim follows.
    asked: Duration,
    /// When the last append that succeeded was first sent; `None` until the claim has succeeded.
    confirmed: Option<Duration>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Idle,
    InFlight { entry: Entry, sent: Duration },
    Fenced { txid: u64 },
}

/// How the bucket answered a create-only request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The number was free.
    Created,
    /// There is a file of this number.
    Taken,
    /// None, or an error: the request may have been done, or be done later.
    Unknown,
}

/// What to do next about the append in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send the same request again.
    Again,
    /// Another writer has this number, and this one is none any more, for good.
    Fenced,
    /// Read the file of this number.
    Look,
    /// The old owner was faster than the claim, or may have been. This is no writer, but its [`Claimant`] may look at the head again.
    Outrun,
    /// The append is in the log.
    Settled,
}

/// Another writer owns the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fenced {
    /// The number that both wanted.
    pub(crate) txid: u64,
}

impl Ownership {
    /// Begins an append, or goes on with the one in flight, which must be the same. Returns what to create.
    pub(crate) fn append(&mut self, checksum: u64, now: Duration) -> Result<Entry, Fenced> {
        match self.state {
            State::Fenced { txid } => Err(Fenced { txid }),
            State::InFlight { entry, .. } => {
                assert_eq!(entry.checksum, checksum, "one append is in flight at a time");
                Ok(entry)
            }
            State::Idle => {
                let entry = Entry { txid: self.txid() + 1, writer: self.writer, checksum };
                self.state = State::InFlight { entry, sent: now };
                Ok(entry)
            }
        }
    }

    /// By `now` the bucket has answered the create, or has not.
    pub(crate) fn answered(&mut self, answer: Answer, now: Duration) -> Step {
        match (answer, self.state) {
            (Answer::Created, State::InFlight { entry, sent }) => self.settle(entry, sent, now),
            (Answer::Taken, State::InFlight { .. }) => Step::Look,
            (Answer::Unknown, State::InFlight { .. }) => Step::Again,
            (_, State::Idle | State::Fenced { .. }) => {
                unreachable!("only an append in flight is answered")
            }
        }
    }

    /// The number in flight is taken by this, known by `now`.
    pub(crate) fn found(&mut self, there: Entry, now: Duration) -> Step {
        match self.state {
            State::InFlight { entry, sent } if there == entry => self.settle(entry, sent, now),
            State::InFlight { entry, .. } => {
                self.state = State::Fenced { txid: entry.txid };
                let by_old_owner = there.writer.epoch < self.writer.epoch;
                if self.is_claiming() && by_old_owner { Step::Outrun } else { Step::Fenced }
            }
            State::Idle | State::Fenced { .. } => {
                unreachable!("only a number in flight is looked at")
            }
        }
    }

    fn settle(&mut self, entry: Entry, sent: Duration, now: Duration) -> Step {
        let late = now.saturating_sub(self.asked) > self.rules.claim_time_max;
        if self.is_claiming() && self.head.is_some() && late {
            self.state = State::Fenced { txid: entry.txid };
            return Step::Outrun;
        }
        self.head = Some(entry);
        self.confirmed = Some(sent);
        self.state = State::Idle;
        Step::Settled
    }

    /// Who writes.
    pub(crate) fn writer(&self) -> Writer {
        self.writer
    }

    /// The next append is the claim, and must say so.
    pub(crate) fn is_claiming(&self) -> bool {
        self.confirmed.is_none()
    }

    /// The last number that is certainly in the log.
    pub(crate) fn txid(&self) -> u64 {
        self.head.map_or(0, |head| head.txid)
    }

    /// Whether a flush may be acknowledged from the local disk.
    pub(crate) fn may_acknowledge(&self, now: Duration) -> bool {
        match (self.state, self.confirmed, self.rules.lease) {
            (State::Fenced { .. }, ..) | (_, None, _) => false,
            (_, Some(_), None) => true,
            (_, Some(sent), Some(lease)) => now.saturating_sub(sent) < lease,
        }
    }

    /// When to append something, if only to go on acknowledging; `None` without a lease, and while it would be in vain.
    pub(crate) fn renew_at(&self) -> Option<Duration> {
        match self.state {
            State::Idle => Some(self.confirmed?.saturating_add(self.rules.lease? / 2)),
            State::InFlight { .. } | State::Fenced { .. } => None,
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
