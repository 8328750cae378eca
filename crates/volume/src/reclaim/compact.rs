//! Compaction: the named blocks of sparse segments are copied into a new one, so that the old ones become garbage.
//!
//! A step reads the heads of some sparse segments, which say where the map may name them, reads the blocks that it does
//! name, puts them as one new segment of ordinary size, and repoints in one transaction every entry that still is what was
//! copied. Whatever changed meanwhile is left as it is. Nothing waits for a step but for that transaction, and there is at
//! most one step per [`INTERVAL`] or per [`SEALS_PER_STEP`] sealed segments, whichever is sooner: a small share of the traffic.
//!
//! The old segments are garbage like any other then, so that a state of before can still be gone back to. What a fork may
//! name is never moved, because the fork's map says where it was.
//!
//! # Failure
//!
//! A step that fails has moved nothing and is tried again later. One that dies between put and commit leaves an object
//! that nothing names.

use crate::{
    BLOCK_BYTES,
    error::{Attempt as _, Error, ErrorKind},
    fetch::Wanted,
    map::{Move, Repoint, Sparse},
    seal::{blocking, put_segment},
    segment::{BlockEntry, Contents, Head, RunWriter, StoredRuns},
    volume::Shared,
};
use jiff::Timestamp;
use object_store::ObjectStoreExt as _;
use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// Between two steps, unless much is sealed.
const INTERVAL: Duration = Duration::from_secs(15);

/// So many segments are sealed for each step, if that is sooner.
const SEALS_PER_STEP: u64 = 16;

/// A segment younger than this is left alone: what was just written is often written again.
const AGE: Duration = Duration::from_secs(60);

/// The most segments that one step looks at.
const SEGMENTS_MAX: usize = 32;

/// The most bytes that one step moves, before compression; a last segment may go beyond.
const MOVED_BYTES_MAX: usize = 8 << 20;

/// The steps of one volume, one at a time, each in a task of its own.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    task: Option<JoinHandle<Result<Outcome, Error>>>,
    /// When the last step began, and the number of the next segment then.
    last: Option<(Instant, u64)>,
    /// Segments that could not be moved, with the number of pins then.
    stuck: BTreeSet<u32>,
    stuck_with: usize,
}

impl Drop for Compaction {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What a step found.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Blocks that are elsewhere now.
    pub(crate) moved: usize,
    /// Segments that a fork may name.
    pub(crate) stuck: Vec<u32>,
}

impl Compaction {
    /// Looks after the running step, or begins one if it is time. Returns when to look next.
    pub(super) fn step(&mut self, shared: &Arc<Shared>) -> Result<Option<Instant>, Error> {
        let now = Instant::now();
        if let Some(task) = &mut self.task {
            if !task.is_finished() {
                return Ok(Some(now + super::RECLAIM_DELAY));
            }
            self.finish();
        }
        let pins = shared.map.pin_count()?;
        if pins != self.stuck_with {
            self.stuck.clear();
            self.stuck_with = pins;
        }
        let found = shared.map.sparse(shared.settings.volume, SEGMENTS_MAX + self.stuck.len())?;
        let Some(oldest) = found.iter().find(|sparse| !self.stuck.contains(&sparse.id)) else {
            return Ok(None);
        };
        let age = Duration::from_millis(
            u64::try_from(Timestamp::now().as_millisecond() - oldest.created).unwrap_or(0),
        );
        let mut wait = AGE.saturating_sub(age);
        let sealed = shared.segment_next.load(Ordering::Relaxed);
        if let Some((at, then)) = self.last
            && sealed.saturating_sub(then) < SEALS_PER_STEP
        {
            wait = wait.max(INTERVAL.saturating_sub(at.elapsed()));
        }
        if !wait.is_zero() {
            return Ok(Some(now + wait));
        }
        self.last = Some((now, sealed));
        let compacting = compact(shared.clone(), AGE, self.stuck.clone());
        self.task = Some(tokio::spawn(compacting));
        Ok(Some(now + super::RECLAIM_DELAY))
    }

    fn finish(&mut self) {
        let Some(task) = self.task.take() else { return };
        match futures::FutureExt::now_or_never(task) {
            Some(Ok(Ok(outcome))) => self.stuck.extend(outcome.stuck),
            Some(Ok(Err(error))) => {
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(error, "cannot compact segments; trying later");
            }
            Some(Err(error)) => tracing::error!(%error, "the compaction of segments ended early"),
            None => {}
        }
    }
}

/// Blocks of several segments on their way into one.
#[derive(Debug, Default)]
struct Gathered {
    moves: Vec<Move>,
    data: Vec<Vec<u8>>,
    blocks: BTreeSet<u32>,
}

/// Moves the blocks of some sparse segments that are older than `age`.
pub(crate) async fn compact(
    shared: Arc<Shared>,
    age: Duration,
    skip: BTreeSet<u32>,
) -> Result<Outcome, Error> {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    let before = Timestamp::now().as_millisecond().saturating_sub(age);
    let found = shared.map.sparse(shared.settings.volume, SEGMENTS_MAX + skip.len())?;
    let mut outcome = Outcome::default();
    let mut gathered = Gathered::default();
    for sparse in found {
        if sparse.created > before || gathered.data.len() * BLOCK_BYTES >= MOVED_BYTES_MAX {
            break;
        }
        if skip.contains(&sparse.id) {
            continue;
        }
        let head = read_head(&shared, &sparse).await?;
        let looking = shared.clone();
        let named = blocking(move || looking.map.named_blocks(sparse.id, &head.blocks)).await?;
        match named {
            None => outcome.stuck.push(sparse.id),
            Some(moves) => gathered.add(&shared, moves).await?,
        }
    }
    outcome.moved = gathered.moves.len();
    if outcome.moved > 0 {
        put(&shared, gathered).await?;
    }
    Ok(outcome)
}

async fn read_head(shared: &Shared, sparse: &Sparse) -> Result<Head, Error> {
    let key = sparse.name.key();
    let range = 0..u64::from(sparse.data_offset);
    let bytes = shared.store.get_range(&key, range).await.attempt("read a segment's head")?;
    let head = Head::parse(&sparse.name, &bytes, &shared.settings.keys)
        .map_err(|error| Error::with(ErrorKind::Corrupt, format!("the head of {key}"), error))?;
    if head.name != sparse.name {
        return Err(Error::new(ErrorKind::Corrupt, format!("{key} is another segment")));
    }
    Ok(head)
}

impl Gathered {
    /// Reads the blocks, unless a version of one of them is here already: a segment has each block once.
    async fn add(&mut self, shared: &Arc<Shared>, moves: Vec<Move>) -> Result<(), Error> {
        if moves.iter().any(|found| self.blocks.contains(&found.block)) {
            return Ok(());
        }
        let fetching = shared.clone();
        let (moves, data) = blocking(move || {
            let wanted: Vec<Wanted> = moves
                .iter()
                .map(|&Move { block, segment, index, crc }| Wanted { block, segment, index, crc })
                .collect();
            let mut data = vec![Vec::new(); moves.len()];
            fetching.fetcher.fetch_once(&wanted, |block, bytes| {
                if let Ok(at) = moves.binary_search_by_key(&block, |found| found.block) {
                    data[at] = bytes.to_vec();
                }
            })?;
            Ok((moves, data))
        })
        .await?;
        self.blocks.extend(moves.iter().map(|found| found.block));
        self.moves.extend(moves);
        self.data.extend(data);
        Ok(())
    }

    /// What a segment is made of, and where it came from, in the order of the blocks' numbers.
    fn into_contents(self) -> io::Result<(Contents, StoredRuns, Vec<Move>)> {
        let mut sorted: Vec<(Move, Vec<u8>)> = self.moves.into_iter().zip(self.data).collect();
        sorted.sort_by_key(|(found, _)| found.block);
        let mut contents = Contents::default();
        let mut runs = RunWriter::new(sorted.len() * BLOCK_BYTES)?;
        let mut moves = Vec::with_capacity(sorted.len());
        for (found, data) in sorted {
            contents.blocks.push(BlockEntry { block: found.block, crc: found.crc });
            runs.push(&data)?;
            moves.push(found);
        }
        Ok((contents, runs.finish()?, moves))
    }
}

/// Segment, then map, then log, as for what is sealed.
async fn put(shared: &Arc<Shared>, gathered: Gathered) -> Result<(), Error> {
    let (contents, runs, moves) =
        blocking(move || gathered.into_contents().attempt("compress a segment")).await?;
    let (segment, orphans) = put_segment(shared, &contents, &runs).await;
    drop((contents, runs));
    shared
        .change(move |shared| {
            // The volume may have been closed since, and nothing ships what comes after.
            shared.check_open()?;
            let repoint = Repoint { segment: &segment, orphans: &orphans, moves: &moves };
            shared.with_room(|| shared.map.repoint(&repoint))
        })
        .await
}
