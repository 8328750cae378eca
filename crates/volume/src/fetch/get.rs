//! One request: a range of a segment, and the runs in it.

use super::{Claim, Fetcher, GAP_BYTES_MAX, Landing, Wanted};
use crate::{
    BLOCK_BYTES,
    error::{Error, ErrorKind},
    map::{Entry, REGION_BLOCKS, SegmentTable},
    segment::RUN_BLOCKS,
    sync::lock,
};
use bytes::{Buf as _, BytesMut};
use futures::TryStreamExt as _;
use object_store::{GetOptions, GetRange, ObjectStore as _};
use std::{collections::VecDeque, sync::Arc};

/// The most stored bytes of one request.
const GET_BYTES_MAX: u64 = 4 << 20;

/// The runs of one segment that are asked for together.
pub(super) struct Get {
    table: Arc<SegmentTable>,
    /// Where the last run ends.
    end: u64,
    /// Those that have not landed, in the order in which they lie in the segment.
    claims: VecDeque<Claim>,
}

/// Why a try did not bring everything.
enum Failure {
    /// The bucket did not answer, or answered with an error that may pass.
    Passing(object_store::Error),
    /// No other try would end otherwise.
    Final(Error),
}

impl Get {
    /// For one run.
    pub(super) fn new(table: Arc<SegmentTable>, claim: Claim) -> Self {
        let end = table.runs[claim.key.run as usize].range().end;
        Self { table, end, claims: VecDeque::from([claim]) }
    }

    /// Takes a run along that lies a little behind the last one; gives it back if it is of another segment or too far away.
    pub(super) fn join(&mut self, table: &Arc<SegmentTable>, claim: Claim) -> Result<(), Claim> {
        let range = table.runs[claim.key.run as usize].range();
        if Arc::ptr_eq(&self.table, table)
            && range.start <= self.end + GAP_BYTES_MAX
            && range.end - self.start() <= GET_BYTES_MAX
        {
            self.end = self.end.max(range.end);
            self.claims.push_back(claim);
            Ok(())
        } else {
            Err(claim)
        }
    }

    /// Where the first run that has not landed begins.
    fn start(&self) -> u64 {
        self.claims.front().map_or(self.end, |claim| self.table.runs[claim.key.run as usize].offset)
    }

    /// Lands each run as soon as its bytes are here. When a try fails, the next asks for what has not landed.
    pub(super) async fn run(mut self, fetcher: Arc<Fetcher>, landing: Landing) {
        let key = self.table.name.key();
        let mut waits = fetcher.waits.clone();
        loop {
            let error = match self.request(&fetcher, landing).await {
                Ok(()) => return,
                Err(Failure::Passing(error)) => match waits.next() {
                    Some(pause) => {
                        tracing::debug!(%key, %error, "reading a segment again");
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    None => Error::with(ErrorKind::Unavailable, "get a part of a segment", error),
                },
                Err(Failure::Final(error)) => {
                    tracing::error!(%key, error = &error as &dyn std::error::Error, "a segment cannot be read");
                    error
                }
            };
            let error = Arc::new(error);
            self.claims.iter().for_each(|claim| claim.flight.land(Err(error.clone())));
            return;
        }
    }

    async fn request(&mut self, fetcher: &Fetcher, landing: Landing) -> Result<(), Failure> {
        let key = self.table.name.key();
        let mut at = self.start();
        let range = Some(GetRange::Bounded(at..self.end));
        let options = GetOptions { range, ..GetOptions::default() };
        let asked = fetcher.hedge.first(|| fetcher.store.get_opts(&key, options.clone())).await;
        let mut parts = match asked {
            Ok(answer) => answer.into_stream(),
            Err(error @ object_store::Error::NotFound { .. }) => {
                return Err(Failure::Final(Error::with(
                    ErrorKind::Corrupt,
                    "find a segment",
                    error,
                )));
            }
            Err(error) => return Err(Failure::Passing(error)),
        };
        let mut bytes = BytesMut::new();
        while let Some(part) = parts.try_next().await.map_err(Failure::Passing)? {
            bytes.extend_from_slice(&part);
            self.land(fetcher, landing, &mut bytes, &mut at);
        }
        if self.claims.is_empty() {
            return Ok(());
        }
        let short = Error::new(ErrorKind::Corrupt, format!("segment {key} is too short"));
        Err(Failure::Final(short))
    }

    /// Lands the runs that are whole in the bytes, which begin at `at` in the segment, and drops these bytes.
    fn land(&mut self, fetcher: &Fetcher, landing: Landing, bytes: &mut BytesMut, at: &mut u64) {
        while let Some(claim) = self.claims.front() {
            let run = &self.table.runs[claim.key.run as usize];
            let from = usize::try_from(run.offset - *at).expect("a GET is at most a few MiB");
            let to = from + run.stored_bytes as usize;
            let Some(stored) = bytes.get(from..to) else { return };
            match run.decode((&self.table.name, claim.key.run), stored, &fetcher.keys) {
                Ok(data) => {
                    let data = Arc::new(data);
                    match landing {
                        Landing::Cache => fill(fetcher, &claim.wanted, &data),
                        Landing::Recent => {
                            lock(&fetcher.recent).insert(claim.key, data.clone());
                        }
                        Landing::Nowhere => {}
                    }
                    claim.flight.land(Ok(data));
                }
                Err(error) => {
                    let key = self.table.name.key();
                    tracing::error!(%key, run = claim.key.run, %error, "a run in the bucket cannot be read");
                    let error = Error::with(error.kind(), "decode a run of a segment", error);
                    claim.flight.land(Err(Arc::new(error)));
                }
            }
            bytes.advance(to);
            *at += to as u64;
            self.claims.pop_front();
        }
    }
}

/// Tries to put a run into the cache while the map is changing.
const FILL_TRIES: u32 = 3;

/// Puts those blocks into the cache that the live map still has there. It may have changed since they were asked for: a stream
/// is read far ahead.
fn fill(fetcher: &Fetcher, wanted: &[Wanted], run: &[u8]) {
    let mut sound: Vec<&Wanted> =
        wanted.iter().filter(|wanted| wanted.find(run).is_some()).collect();
    sound.sort_by_key(|wanted| wanted.block);
    sound.dedup_by_key(|wanted| wanted.block);
    for _ in 0..FILL_TRIES {
        // Before the look at the map, so that a change in between is noticed.
        let ticket = fetcher.cache.ticket();
        if let Err(error) = retain_live(fetcher, &mut sound) {
            tracing::debug!(%error, "what was read does not get into the cache");
            return;
        }
        let neighbours =
            |a: &&Wanted, b: &&Wanted| a.block + 1 == b.block && a.index + 1 == b.index;
        let filled = sound.chunk_by(neighbours).all(|group| {
            let [first, ..] = group else { return true };
            let at = (first.index % RUN_BLOCKS) as usize * BLOCK_BYTES;
            fetcher.cache.fill(ticket, first.block, &run[at..at + group.len() * BLOCK_BYTES])
        });
        if filled {
            return;
        }
    }
}

/// Keeps what is on the live disk now.
fn retain_live(fetcher: &Fetcher, wanted: &mut Vec<&Wanted>) -> Result<(), Error> {
    let mut live = Vec::with_capacity(wanted.len());
    for one in wanted.iter() {
        let region = fetcher.map.region(one.block / REGION_BLOCKS)?;
        let Wanted { block, segment, index, crc } = **one;
        live.push(region.entry(block % REGION_BLOCKS) == Entry::Block { segment, index, crc });
    }
    let mut live = live.into_iter();
    wanted.retain(|_| live.next().unwrap_or(false));
    Ok(())
}
