//! The pages that have changed since the last file of each level above 0, so that the next can be made from the local database
//! without reading the log.

use std::collections::BTreeSet;

/// The levels between transactions and snapshots.
pub(crate) const MERGED_LEVELS: u8 = 3;

/// A set of page numbers per level.
#[derive(Debug, Default)]
pub(super) struct Touched([BTreeSet<u32>; MERGED_LEVELS as usize]);

impl Touched {
    /// These pages have changed.
    pub(super) fn add(&mut self, numbers: impl Iterator<Item = u32> + Clone) {
        for pages in &mut self.0 {
            pages.extend(numbers.clone());
        }
    }

    /// The database was cut or has grown. Pages that were cut and come back may be zero now without having been written, and so
    /// may new ones.
    pub(super) fn resize(&mut self, before: u32, after: u32) {
        self.add(before.min(after) + 1..=before.max(after));
    }

    /// What has changed since the last file of a level, in ascending order.
    pub(super) fn pages(&self, level: u8) -> impl Iterator<Item = u32> {
        self.0[usize::from(level) - 1].iter().copied()
    }

    /// A file of this level, or of one above, covers what has changed so far.
    pub(super) fn clear_up_to(&mut self, level: u8) {
        self.0.iter_mut().take(usize::from(level)).for_each(BTreeSet::clear);
    }
}
