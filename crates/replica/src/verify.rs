//! Reading a whole log and checking everything that its files say about themselves and about one another.
//!
//! Each file is read once: its checksum, its name against its header, its page size. Then the database is rebuilt in digests
//! alone, transaction by transaction along the finest chain that there is, and each file that continues a state of it is
//! applied to that state and must lead to the digest that it states, and to the one that every other file with the same end
//! states. Epochs and times must not decrease along level 0, and an epoch begins with a claim.
//!
//! What is wrong is collected and the reading goes on; only a bucket that does not answer ends it.

use crate::{
    clock::now_ms,
    digest::Digest,
    error::Error,
    layout::{LEVEL_SNAPSHOTS, LEVEL_TRANSACTIONS, Name},
    log::{Log, Tries},
    ltx::{DIGEST_UNKNOWN, Decoder, FormatError, Header, PAGE_FRAME_BYTES_MIN},
    plan::{plan, reachable},
    restore::{READS_AT_ONCE, blocking, states},
    store::Store,
};
use futures::TryStreamExt;
use object_store::path::Path as Key;
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
};

/// Problems that are described; further ones are counted.
const PROBLEMS_MAX: usize = 100;

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A file does not lead to the database that it states.
    #[error("{key} does not lead to the digest that it states")]
    Digest {
        /// Which.
        key: Key,
    },
    /// A file is not one of a log, or not a whole one.
    #[error("{key}: {source}")]
    File {
        /// Which.
        key: Key,
        /// Why.
        source: FormatError,
    },
    /// Transactions are missing.
    #[error("transaction {txid} is missing, but later ones are there")]
    Gap {
        /// The first that is missing.
        txid: u64,
    },
    /// A file holds other transactions than its name says.
    #[error("{key} does not hold what its name says")]
    Misplaced {
        /// Which.
        key: Key,
    },
    /// Two files with the same end do not agree about the database.
    #[error("{key} and another file with the same end state different digests")]
    Disagreement {
        /// One of them.
        key: Key,
    },
    /// A transaction has an older epoch or time than the one before, or begins an epoch and is no claim.
    #[error("{key} does not follow the transaction before it")]
    Order {
        /// Which.
        key: Key,
    },
    /// A file has pages of another size than the one before.
    #[error("{key} has pages of another size")]
    PageSize {
        /// Which.
        key: Key,
    },
}

/// What a log was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Files of all levels.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files of each level: transactions, the three between, snapshots.
    pub files_of_level: BTreeMap<u8, u64>,
    /// Claims among the transactions.
    pub claims: u64,
    /// States of the database that can be restored.
    pub states: u64,
    /// The last transaction.
    pub head_txid: u64,
    /// The newest epoch.
    pub epoch: u64,
    /// Pages of the database at the head.
    pub pages: u32,
    /// What is wrong, in the order in which it was found, at most a hundred.
    pub problems: Vec<Problem>,
    /// How much is wrong.
    pub problem_count: u64,
    /// When this was found, in milliseconds since 1970.
    pub time_ms: u64,
}

impl Report {
    fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    /// Whether everything is as it must be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0
    }
}

impl Log {
    /// Reads and checks the whole log. A writer may go on meanwhile: what it adds later is not looked at.
    ///
    /// # Errors
    ///
    /// Only when the bucket cannot be read. What is wrong with the log is in the report.
    pub async fn verify(&self) -> Result<Report, Error> {
        let mut tries = Tries::new();
        loop {
            match self.try_verify().await {
                Err(error) => tries.again_after(error)?,
                Ok(report) => return Ok(report),
            }
        }
    }

    async fn try_verify(&self) -> Result<Report, Error> {
        let files = self.store.list_all().await?;
        let mut report = Report { time_ms: now_ms(), ..Report::default() };
        for found in &files {
            report.files += 1;
            report.bytes += found.bytes;
            *report.files_of_level.entry(found.name.level).or_default() += 1;
        }
        let names: Vec<Name> = files.iter().map(|found| found.name).collect();
        let reached = reachable(names.clone());
        report.states = reached.len() as u64;
        report.head_txid = names.iter().map(|name| name.max).max().unwrap_or(0);
        if let Err(txid) = plan(names.clone(), None) {
            report.add(Problem::Gap { txid });
        }
        let mut check = Check {
            store: self.store.clone(),
            report,
            spine: spine(&names),
            replayed: None,
            stated: BTreeMap::new(),
            last: None,
        };
        let mut contents = pin!(self.store.read_all(in_order(names, &check.spine), READS_AT_ONCE));
        while let Some((name, bytes)) = contents.try_next().await? {
            check = blocking(move || {
                check.file(name, &bytes);
                check
            })
            .await;
        }
        Ok(check.report)
    }
}

/// The files that lead through all states in the smallest steps.
fn spine(names: &[Name]) -> BTreeSet<Name> {
    let mut spine = BTreeSet::new();
    let mut reached: Option<u64> = None;
    let mut by_end: Vec<Name> = names.to_vec();
    by_end.sort_unstable_by_key(|name| (name.max, name.level));
    for name in by_end {
        let begins = name.level == LEVEL_SNAPSHOTS || name.min == 1;
        let continues = reached.is_some_and(|at| name.min <= at + 1 && name.max > at);
        if continues || (begins && reached.is_none_or(|at| name.max > at)) {
            spine.insert(name);
            reached = Some(name.max);
        }
    }
    spine
}

/// By end, those that are applied to an earlier state before those that make the next one.
fn in_order(mut names: Vec<Name>, spine: &BTreeSet<Name>) -> Vec<Name> {
    // A file is applied to the state before its first transaction, so it comes right after the file that makes that state.
    names.sort_unstable_by_key(|name| {
        let on_spine = spine.contains(name);
        (if on_spine { name.max } else { name.min }, on_spine, *name)
    });
    names
}

/// Where the reading has come to.
struct Check {
    store: Store,
    report: Report,
    spine: BTreeSet<Name>,
    /// The database after the last file of the spine.
    replayed: Option<(u64, Digest)>,
    /// What files with the same end state.
    stated: BTreeMap<u64, u64>,
    /// The last transaction.
    last: Option<Header>,
}

impl Check {
    fn file(&mut self, name: Name, bytes: &[u8]) {
        let key = self.store.key(name);
        let header = match crate::ltx::verify(bytes) {
            Ok((header, _)) => header,
            Err(source) => return self.report.add(Problem::File { key, source }),
        };
        if (header.min, header.max) != (name.min, name.max) {
            return self.report.add(Problem::Misplaced { key });
        }
        self.report.epoch = self.report.epoch.max(header.node);
        if name.level == LEVEL_TRANSACTIONS {
            self.order(&header, &key);
        }
        let stated = header.ours.map_or(DIGEST_UNKNOWN, |ours| ours.digest);
        if stated != DIGEST_UNKNOWN && *self.stated.entry(name.max).or_insert(stated) != stated {
            self.report.add(Problem::Disagreement { key: key.clone() });
        }
        self.apply(name, &header, bytes, key);
    }

    fn order(&mut self, header: &Header, key: &Key) {
        let claims = header.ours.is_some_and(|ours| ours.takeover);
        self.report.claims += u64::from(claims);
        let follows = self.last.is_none_or(|last| {
            let begins = header.node != last.node;
            last.node <= header.node
                && last.time_ms <= header.time_ms
                && (!begins || claims || last.max + 1 != header.max)
        });
        if !follows {
            self.report.add(Problem::Order { key: key.clone() });
        }
        self.last = Some(*header);
    }

    /// Applies a file to the state that it continues, if that is the one at hand.
    fn apply(&mut self, name: Name, header: &Header, bytes: &[u8], key: Key) {
        let on_spine = self.spine.contains(&name);
        let whole = name.level == LEVEL_SNAPSHOTS || name.min == 1;
        let continues = |at: u64| name.min <= at + 1 && name.max > at;
        let mut digest = match &self.replayed {
            _ if whole => Digest::new(header.page_size),
            // What is at hand is not needed again once the next file of the spine has been applied to it.
            Some((at, _)) if on_spine && continues(*at) => {
                self.replayed.take().expect("just looked at").1
            }
            Some((at, digest)) if continues(*at) => digest.clone(),
            // Nothing leads here any more: a claim that is kept for ever, or what comes after a problem.
            _ => return,
        };
        if digest.page_size() != header.page_size {
            return self.report.add(Problem::PageSize { key });
        }
        match replay(&mut digest, header, bytes) {
            Err(source) => return self.report.add(Problem::File { key, source }),
            Ok(()) if !states(header, &digest) => self.report.add(Problem::Digest { key }),
            Ok(()) => {}
        }
        if on_spine {
            self.report.pages = header.page_count;
            self.replayed = Some((name.max, digest));
        }
    }
}

fn replay(digest: &mut Digest, header: &Header, bytes: &[u8]) -> Result<(), FormatError> {
    let new_pages = header.page_count.saturating_sub(digest.page_count()) as usize;
    if new_pages > bytes.len() / PAGE_FRAME_BYTES_MIN + 1 {
        return Err(FormatError::Header);
    }
    digest.resize(header.page_count);
    let mut decoder = Decoder::new(bytes)?;
    let mut page = vec![0; header.page_size as usize];
    while let Some(number) = decoder.page(&mut page)? {
        digest.set(number, &page);
    }
    Ok(())
}
