//! Workers, a bucket and a network around the production machine, one step at a time, so that a search can take the steps in
//! every order. Whatever is wrong can be switched in, to show that a search finds it.

use super::{Answer, Claimant, Entry, Next, Ownership, Rules, Step, Writer};
use std::time::Duration;

/// The bounds of a search.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) workers: usize,
    /// Seconds; `None` when there is one server and no lease.
    pub(super) lease: Option<u64>,
    /// Seconds until the end.
    pub(super) time: u64,
    /// The longest log.
    pub(super) log: usize,
    /// How often workers start, and how often they crash.
    pub(super) starts: u8,
    pub(super) crashes: u8,
    /// Requests whose sender stops waiting for the answer.
    pub(super) silences: u8,
    /// Requests that arrive once more.
    pub(super) duplicates: u8,
    /// Files that retention deletes, of at least this age in seconds.
    pub(super) deletions: u8,
    pub(super) kept: u64,
    pub(super) broken: Broken,
}

/// What is wrong with the writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Claimers do not wait.
    NoWait,
    /// Whatever stands at the number is taken for the writer's own.
    NoNonceCheck,
    Nothing,
    /// Retention deletes claims.
    ClaimsDeleted,
    /// Claims count however late they are.
    LateClaims,
    /// The lease is counted from the answer.
    LeaseFromAnswer,
    /// Every writer has the same nonce.
    SharedNonce,
}

/// One thing that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Append(usize),
    Crash(usize),
    Delete(usize),
    /// A request arrives at the bucket.
    Deliver {
        packet: usize,
        answered: bool,
        again: bool,
    },
    /// A worker asks for the head.
    Look(usize),
    /// A worker learns what it had asked for.
    Learn(usize),
    ReadNumber(usize),
    Resend(usize),
    Silence(usize),
    Start(usize),
    Tick,
}

/// Everything that there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    now: u64,
    /// What was created first at each number.
    chain: Vec<Entry>,
    /// When the claim of each number was first sent.
    claims: Vec<Option<u64>>,
    /// What the bucket holds at each number, and since when.
    bucket: Vec<Option<(Entry, u64)>>,
    /// Who has a number acknowledged.
    settled: Vec<Option<usize>>,
    workers: Vec<Worker>,
    network: Vec<Packet>,
    nonces: u64,
    starts: u8,
    crashes: u8,
    silences: u8,
    duplicates: u8,
    deletions: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Worker {
    /// On its disk.
    own: Vec<Writer>,
    /// When it last acknowledged a flush from its disk.
    acknowledged: Option<u64>,
    doing: Doing,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Doing {
    Down,
    Looking { claimant: Claimant, not_before: u64 },
    Seen { claimant: Claimant, head: Option<Entry>, asked: u64 },
    Writing { claimant: Claimant, ownership: Ownership, flight: Flight, answered: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Flight {
    None,
    Again(Packet),
    Answered(Packet, bool),
    Look(Packet),
    Sent(Packet),
}

/// A create-only request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Packet {
    txid: u64,
    epoch: u64,
    nonce: u64,
    /// When it was first sent, if it is a claim.
    claim: Option<u64>,
}

impl Packet {
    fn entry(self) -> Entry {
        // All writers want to write the same bytes at a number, so that only their nonces differ.
        let writer = Writer { epoch: self.epoch, nonce: self.nonce };
        Entry { txid: self.txid, writer, checksum: self.txid }
    }
}

/// What must never be.
pub(super) type Violation = &'static str;

impl World {
    pub(super) fn new(bounds: &Bounds) -> Self {
        let worker = Worker { own: Vec::new(), acknowledged: None, doing: Doing::Down };
        Self {
            now: 0,
            chain: Vec::new(),
            claims: Vec::new(),
            bucket: Vec::new(),
            settled: Vec::new(),
            workers: vec![worker; bounds.workers],
            network: Vec::new(),
            nonces: 0,
            starts: bounds.starts,
            crashes: bounds.crashes,
            silences: bounds.silences,
            duplicates: bounds.duplicates,
            deletions: bounds.deletions,
        }
    }

    /// Everything that can happen next.
    pub(super) fn events(&self, bounds: &Bounds) -> Vec<Event> {
        let mut events = Vec::new();
        for (at, worker) in self.workers.iter().enumerate() {
            match &worker.doing {
                Doing::Down if self.starts > 0 => events.push(Event::Start(at)),
                Doing::Looking { not_before, .. } if self.now >= *not_before => {
                    events.push(Event::Look(at));
                }
                Doing::Down | Doing::Looking { .. } => {}
                Doing::Seen { .. } => events.push(Event::Learn(at)),
                Doing::Writing { ownership, flight, .. } => match flight {
                    Flight::None if ownership.txid() < bounds.log as u64 => {
                        events.push(Event::Append(at));
                    }
                    Flight::None => {}
                    Flight::Again(_) => events.push(Event::Resend(at)),
                    Flight::Answered(..) => events.push(Event::Learn(at)),
                    Flight::Look(_) => events.push(Event::ReadNumber(at)),
                    Flight::Sent(_) if self.silences > 0 => events.push(Event::Silence(at)),
                    Flight::Sent(_) => {}
                },
            }
            if self.crashes > 0 && worker.doing != Doing::Down {
                events.push(Event::Crash(at));
            }
        }
        for packet in 0..self.network.len() {
            for (answered, again) in [(true, false), (false, false), (true, true), (false, true)] {
                if !again || self.duplicates > 0 {
                    events.push(Event::Deliver { packet, answered, again });
                }
            }
        }
        if self.deletions > 0 {
            let deletable = |at: &usize| {
                let old = |(_, since)| self.now >= since + bounds.kept;
                self.bucket[*at].is_some_and(old)
                    && (self.claims[*at].is_none() || bounds.broken == Broken::ClaimsDeleted)
            };
            events.extend(
                (0..self.chain.len().saturating_sub(1)).filter(deletable).map(Event::Delete),
            );
        }
        if self.now < bounds.time {
            events.push(Event::Tick);
        }
        events
    }

    /// Makes it happen.
    pub(super) fn step(&mut self, event: Event, bounds: &Bounds) -> Result<(), Violation> {
        match event {
            Event::Append(at) | Event::Resend(at) => self.send(at),
            Event::Crash(at) => {
                self.crashes -= 1;
                self.workers[at].doing = Doing::Down;
            }
            Event::Delete(at) => {
                self.deletions -= 1;
                self.bucket[at] = None;
            }
            Event::Deliver { packet, answered, again } => self.deliver(packet, answered, again)?,
            Event::Learn(at) => self.learn(at, bounds)?,
            Event::Look(at) => {
                let head = self.chain.last().copied();
                // Without deletions nothing depends on it, and fewer states are told apart.
                let asked = if bounds.deletions > 0 { self.now } else { 0 };
                self.replace(at, |doing| match doing {
                    Doing::Looking { claimant, .. } => Doing::Seen { claimant, head, asked },
                    other => other,
                });
            }
            Event::ReadNumber(at) => self.read_number(at)?,
            Event::Silence(at) => {
                self.silences -= 1;
                let time = self.time();
                if let Doing::Writing { ownership, flight, .. } = &mut self.workers[at].doing
                    && let Flight::Sent(packet) = *flight
                {
                    assert_eq!(ownership.answered(Answer::Unknown, time), Step::Again);
                    *flight = Flight::Again(packet);
                }
            }
            Event::Start(at) => {
                self.starts -= 1;
                self.nonces += u64::from(bounds.broken != Broken::SharedNonce);
                let own = self.workers[at].own.clone();
                let rules = Rules {
                    lease: bounds.lease.map(Duration::from_secs),
                    claim_time_max: match bounds.broken {
                        Broken::LateClaims => Duration::MAX,
                        _ => Duration::from_secs(bounds.kept - 1),
                    },
                };
                let claimant = Claimant::new(self.nonces, own, rules);
                self.workers[at].doing = Doing::Looking { claimant, not_before: 0 };
            }
            Event::Tick => self.now += 1,
        }
        self.acknowledge(bounds)
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.now)
    }

    fn replace(&mut self, at: usize, change: impl FnOnce(Doing) -> Doing) {
        let doing = std::mem::replace(&mut self.workers[at].doing, Doing::Down);
        self.workers[at].doing = change(doing);
    }

    fn send(&mut self, at: usize) {
        let (now, time) = (self.now, self.time());
        let worker = &mut self.workers[at];
        let Doing::Writing { claimant, ownership, flight, .. } = &mut worker.doing else { return };
        let checksum = ownership.txid() + 1;
        let entry = ownership.append(checksum, time).expect("a fenced worker has stopped");
        let packet = match *flight {
            Flight::Again(packet) => packet,
            _ => Packet {
                txid: entry.txid,
                epoch: entry.writer.epoch,
                nonce: entry.writer.nonce,
                claim: ownership.is_claiming().then_some(now),
            },
        };
        assert_eq!(packet.entry(), entry, "the same is sent again");
        if !worker.own.contains(&entry.writer) {
            worker.own.push(entry.writer);
            claimant.noted(worker.own.clone());
        }
        *flight = Flight::Sent(packet);
        if let Err(place) = self.network.binary_search(&packet) {
            self.network.insert(place, packet);
        }
    }

    fn deliver(&mut self, packet: usize, answered: bool, again: bool) -> Result<(), Violation> {
        let packet = if again { self.network[packet] } else { self.network.remove(packet) };
        self.duplicates -= u8::from(again);
        let created = self.create(packet)?;
        for worker in &mut self.workers {
            if let Doing::Writing { flight, .. } = &mut worker.doing
                && *flight == Flight::Sent(packet)
                && answered
            {
                *flight = Flight::Answered(packet, created);
            }
        }
        Ok(())
    }

    /// The bucket's part: creates the file if the number is free.
    fn create(&mut self, packet: Packet) -> Result<bool, Violation> {
        let entry = packet.entry();
        let at = usize::try_from(entry.txid - 1).expect("a short log");
        if at > self.chain.len() {
            return Err("the chain has a gap");
        }
        if at < self.chain.len() {
            let free = self.bucket[at].is_none();
            self.bucket[at].get_or_insert((entry, self.now));
            return Ok(free);
        }
        if let Some(last) = self.chain.last()
            && (last.writer.epoch > entry.writer.epoch
                || (last.writer.epoch == entry.writer.epoch && last.writer != entry.writer))
        {
            return Err("the epochs along the chain do not grow");
        }
        if let Some(sent) = packet.claim {
            let owner = |worker: &Worker| {
                !worker.own.contains(&entry.writer)
                    && worker.acknowledged.is_some_and(|acknowledged| acknowledged >= sent)
            };
            if self.workers.iter().any(owner) {
                return Err("a flush was acknowledged after a claim was sent");
            }
        }
        self.chain.push(entry);
        self.claims.push(packet.claim);
        self.bucket.push(Some((entry, self.now)));
        self.settled.push(None);
        Ok(true)
    }

    fn learn(&mut self, at: usize, bounds: &Bounds) -> Result<(), Violation> {
        let (now, time) = (self.now, self.time());
        if let Doing::Writing { ownership, flight, answered, .. } = &mut self.workers[at].doing {
            let Flight::Answered(packet, created) = *flight else { return Ok(()) };
            if bounds.broken == Broken::LeaseFromAnswer {
                *answered = now;
            }
            let step = match (created, bounds.broken) {
                (true, _) => ownership.answered(Answer::Created, time),
                (false, Broken::NoNonceCheck) => ownership.found(packet.entry(), time),
                (false, _) => ownership.answered(Answer::Taken, time),
            };
            *flight = if step == Step::Look { Flight::Look(packet) } else { Flight::None };
            return self.after(at, step, packet);
        }
        self.replace(at, |doing| match doing {
            Doing::Seen { mut claimant, head, asked } => {
                if let (Broken::NoWait, Some(head)) = (bounds.broken, head) {
                    claimant.own.push(head.writer);
                }
                match claimant.saw(head, Duration::from_secs(asked), time) {
                    Next::Claim(ownership) => {
                        Doing::Writing { claimant, ownership, flight: Flight::None, answered: 0 }
                    }
                    Next::Wait { until } => {
                        Doing::Looking { claimant, not_before: until.as_secs() }
                    }
                }
            }
            other => other,
        });
        Ok(())
    }

    fn read_number(&mut self, at: usize) -> Result<(), Violation> {
        let time = self.time();
        let Doing::Writing { claimant, ownership, flight, .. } = &mut self.workers[at].doing else {
            return Ok(());
        };
        let Flight::Look(packet) = *flight else { return Ok(()) };
        let number = usize::try_from(packet.txid - 1).expect("a short log");
        let Some((there, _)) = self.bucket[number] else {
            if ownership.is_claiming() {
                let claimant = claimant.clone();
                self.workers[at].doing = Doing::Looking { claimant, not_before: 0 };
            } else {
                *flight = Flight::Again(packet);
            }
            return Ok(());
        };
        *flight = Flight::None;
        let step = ownership.found(there, time);
        self.after(at, step, packet)
    }

    fn after(&mut self, at: usize, step: Step, packet: Packet) -> Result<(), Violation> {
        match step {
            Step::Again | Step::Look => {}
            Step::Fenced => self.workers[at].doing = Doing::Down,
            Step::Outrun => self.replace(at, |doing| match doing {
                Doing::Writing { claimant, .. } => Doing::Looking { claimant, not_before: 0 },
                other => other,
            }),
            Step::Settled => return self.settle(at, packet),
        }
        Ok(())
    }

    fn settle(&mut self, at: usize, packet: Packet) -> Result<(), Violation> {
        let number = usize::try_from(packet.txid - 1).expect("a short log");
        if self.chain.get(number) != Some(&packet.entry()) {
            return Err("an acknowledged append is not in the chain");
        }
        if self.settled[number].is_some_and(|other| other != at) {
            return Err("two workers have one number acknowledged");
        }
        self.settled[number] = Some(at);
        Ok(())
    }

    /// Whoever may acknowledge a flush does so at once.
    fn acknowledge(&mut self, bounds: &Bounds) -> Result<(), Violation> {
        let Some(lease) = bounds.lease else { return Ok(()) };
        let (now, time) = (self.now, self.time());
        for worker in &mut self.workers {
            let Doing::Writing { ownership, answered, .. } = &worker.doing else { continue };
            let may = match bounds.broken {
                Broken::LeaseFromAnswer => !ownership.is_claiming() && now < answered + lease,
                _ => ownership.may_acknowledge(time),
            };
            if !may {
                continue;
            }
            worker.acknowledged = Some(now);
            let epoch = ownership.writer().epoch;
            if self.chain.iter().any(|entry| entry.writer.epoch > epoch) {
                return Err("a flush was acknowledged after a claim was in the log");
            }
        }
        Ok(())
    }

    /// Writers that have taken the log over from one another.
    pub(super) fn owners(&self) -> usize {
        self.claims.iter().flatten().count()
    }

    /// Numbers that somebody has acknowledged.
    pub(super) fn acknowledged(&self) -> usize {
        self.settled.iter().flatten().count()
    }
}
