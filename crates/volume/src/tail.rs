//! The unsealed tail: what was written since the newest segment, as an index over the journal.
//!
//! The tail is a row of batches. The active one takes writes; the frozen ones wait, oldest first, to become a segment
//! each. A batch freezes when it is large enough, old enough, or when the live layer is cut. A read looks into the newest
//! batch first. A batch leaves only after its rows are committed to the map, so a block is always found in one of both.

use crate::{
    extents::{Extents, Shift},
    journal::{Appended, Place, RecordKind},
    map::CutSlot,
};
use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

/// What the newest unsealed write made of a range of blocks.
#[derive(Debug, Clone)]
pub(crate) enum Unsealed {
    /// The data lies in the journal.
    Data(Place),
    /// The blocks are zero.
    Zero,
}

/// A part of a range that is unsealed.
pub(crate) type Part = (Range<u32>, Unsealed);

impl Shift for Unsealed {
    fn shift(&self, blocks: u32) -> Self {
        match self {
            Self::Data(place) => Self::Data(place.shift(blocks)),
            Self::Zero => Self::Zero,
        }
    }
}

/// Consecutive writes that become one segment.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub number: u64,
    pub extents: Extents<Unsealed>,
    /// What the batch takes of the journal.
    pub journal_bytes: u64,
    pub first_write: Option<Instant>,
    pub sequence_last: u64,
    /// The live layer ends after this batch; the id of the frozen layer goes here.
    pub cut: Option<Arc<CutSlot>>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.extents.is_empty() && self.cut.is_none()
    }
}

/// All batches that are not in the map yet.
#[derive(Debug)]
pub(crate) struct Tail {
    active: Batch,
    frozen: VecDeque<Arc<Batch>>,
    /// The number of the newest batch that was handed to the sealer.
    started: u64,
    /// The newest batch that someone waits for. It freezes as soon as the sealer can take it, so that all who ask
    /// meanwhile share it.
    asked: u64,
}

impl Tail {
    pub(crate) fn new(sequence: u64) -> Self {
        let active = Batch { number: 1, sequence_last: sequence, ..Batch::default() };
        Self { active, frozen: VecDeque::new(), started: 0, asked: 0 }
    }

    /// The records of a journal behind `sequence`, in batches of about so many bytes.
    pub(crate) fn replayed(sequence: u64, records: Vec<Appended>, batch_bytes: u64) -> Self {
        let mut tail = Self::new(sequence);
        let now = Instant::now();
        for record in records {
            tail.apply(record, now);
            if tail.active_bytes() >= batch_bytes {
                tail.freeze();
            }
        }
        tail
    }

    /// Takes a record. Returns the cut's slot if it is one.
    pub(crate) fn apply(&mut self, record: Appended, now: Instant) -> Option<Arc<CutSlot>> {
        self.active.sequence_last = record.sequence;
        self.active.journal_bytes += record.bytes;
        self.active.first_write.get_or_insert(now);
        let range = block(record.offset)..block(record.offset + record.length);
        match record.kind {
            RecordKind::Write => self.active.extents.insert(range, Unsealed::Data(record.place)),
            RecordKind::Discard => self.active.extents.insert(range, Unsealed::Zero),
            RecordKind::Cut => {
                let slot = Arc::new(CutSlot::new());
                self.active.cut = Some(slot.clone());
                self.freeze();
                return Some(slot);
            }
        }
        None
    }

    /// Ends the active batch, if it has anything. Returns the number of the newest frozen batch, 0 if there never was one.
    pub(crate) fn freeze(&mut self) -> u64 {
        if self.active.is_empty() {
            return self.active.number - 1;
        }
        let (number, sequence_last) = (self.active.number, self.active.sequence_last);
        let next = Batch { number: number + 1, sequence_last, ..Batch::default() };
        self.frozen.push_back(Arc::new(std::mem::replace(&mut self.active, next)));
        number
    }

    /// Asks for what is there to be sealed without waiting for its time. Returns the number of the batch that it ends with.
    pub(crate) fn ask(&mut self) -> u64 {
        if self.active.is_empty() {
            return self.active.number - 1;
        }
        self.asked = self.active.number;
        self.asked
    }

    /// When the active batch freezes, with so long a time between seals.
    pub(crate) fn due(&self, interval: Duration) -> Option<Instant> {
        let asked = self.asked >= self.active.number;
        let first = self.active.first_write.filter(|_| !self.active.is_empty())?;
        Some(if asked { first } else { first + interval })
    }

    /// What the active batch takes of the journal.
    pub(crate) fn active_bytes(&self) -> u64 {
        self.active.journal_bytes
    }

    /// The number of the active batch.
    pub(crate) fn active_number(&self) -> u64 {
        self.active.number
    }

    /// The time of the oldest write in any batch.
    pub(crate) fn oldest_write(&self) -> Option<Instant> {
        self.frozen.iter().find_map(|batch| batch.first_write).or(self.active.first_write)
    }

    /// Whether the sealer has something to start with.
    pub(crate) fn has_unstarted(&self) -> bool {
        self.frozen.back().is_some_and(|batch| batch.number > self.started)
    }

    /// The oldest batch that the sealer has not been given yet. The active one freezes for it if it is due.
    pub(crate) fn start(&mut self, interval: Duration) -> Option<Arc<Batch>> {
        if !self.has_unstarted() && self.due(interval).is_some_and(|due| due <= Instant::now()) {
            self.freeze();
        }
        let batch = self.frozen.iter().find(|batch| batch.number > self.started)?.clone();
        self.started = batch.number;
        Some(batch)
    }

    /// The oldest batch is in the map now.
    pub(crate) fn committed(&mut self, number: u64) {
        let batch = self.frozen.pop_front().expect("a committed batch was frozen");
        assert_eq!(batch.number, number, "batches are committed in order");
    }

    /// What of the range is unsealed, and what is not.
    pub(crate) fn find(&self, range: Range<u32>) -> (Vec<Part>, Vec<Range<u32>>) {
        let mut found = Vec::new();
        let mut missing = vec![range];
        let batches =
            std::iter::once(&self.active).chain(self.frozen.iter().rev().map(Arc::as_ref));
        for batch in batches.filter(|batch| !batch.extents.is_empty()) {
            let mut still_missing = Vec::new();
            for gap in missing {
                let mut at = gap.start;
                for (part, value) in batch.extents.overlapping(gap.clone()) {
                    if at < part.start {
                        still_missing.push(at..part.start);
                    }
                    at = part.end;
                    found.push((part, value));
                }
                if at < gap.end {
                    still_missing.push(at..gap.end);
                }
            }
            missing = still_missing;
            if missing.is_empty() {
                break;
            }
        }
        (found, missing)
    }
}

/// The block that begins at an aligned offset inside the volume.
fn block(offset: u64) -> u32 {
    u32::try_from(offset / crate::BLOCK_BYTES as u64)
        .expect("ranges are checked before they are applied")
}
