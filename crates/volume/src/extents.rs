//! A map from ranges of blocks to values, where a later insert replaces what it overlaps.

use std::{collections::BTreeMap, ops::Range};

/// A value that stands for consecutive blocks and can be cut anywhere.
pub(crate) trait Shift: Clone {
    /// The value of the range that begins `blocks` later.
    fn shift(&self, blocks: u32) -> Self;
}

/// Disjoint ranges with a value each.
#[derive(Debug, Clone)]
pub(crate) struct Extents<V>(BTreeMap<u32, (u32, V)>);

impl<V> Default for Extents<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Shift> Extents<V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn insert(&mut self, range: Range<u32>, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        self.0.insert(range.start, (range.end, value));
    }

    fn remove(&mut self, range: Range<u32>) {
        if let Some((&start, &(end, ref value))) = self.0.range(..range.start).next_back()
            && end > range.start
        {
            let value = value.clone();
            if end > range.end {
                self.0.insert(range.end, (end, value.shift(range.end - start)));
            }
            self.0.insert(start, (range.start, value));
        }
        while let Some((&start, &(end, _))) = self.0.range(range.clone()).next() {
            let (_, value) = self.0.remove(&start).expect("it was just found");
            if end > range.end {
                self.0.insert(range.end, (end, value.shift(range.end - start)));
            }
        }
    }

    /// All ranges in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range<u32>, &V)> {
        self.0.iter().map(|(&start, (end, value))| (start..*end, value))
    }

    /// What overlaps the range, clipped to it, in order.
    pub(crate) fn overlapping(&self, range: Range<u32>) -> impl Iterator<Item = (Range<u32>, V)> {
        let first = self
            .0
            .range(..range.start)
            .next_back()
            .filter(|(_, (end, _))| *end > range.start)
            .map_or(range.start, |(&start, _)| start);
        let overlapping =
            self.0.range(first..range.end.max(first)).map(move |(&start, (end, value))| {
                let clipped = start.max(range.start)..(*end).min(range.end);
                let value = value.shift(clipped.start.saturating_sub(start));
                (clipped, value)
            });
        // An empty range inside an extent overlaps nothing.
        overlapping.filter(|(clipped, _)| !clipped.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::{Extents, Shift};

    #[derive(Debug, Clone, PartialEq)]
    struct At(u32);

    impl Shift for At {
        fn shift(&self, blocks: u32) -> Self {
            At(self.0 + blocks)
        }
    }

    #[test]
    fn agrees_with_an_array_under_random_inserts() {
        let mut seed = 7u64;
        let mut next = move |bound: u32| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(seed >> 33).unwrap() % bound
        };
        let mut model = vec![None; 64];
        let mut extents = Extents::default();
        for round in 0..2_000u32 {
            let start = next(64);
            let end = (start + 1 + next(16)).min(64);
            extents.insert(start..end, At(round * 1000));
            for (offset, slot) in model[start as usize..end as usize].iter_mut().enumerate() {
                *slot = Some(round * 1000 + u32::try_from(offset).unwrap());
            }
            let from = next(64);
            let to = from + next(64 - from + 1);
            let mut seen = vec![None; 64];
            for (range, value) in extents.overlapping(from..to) {
                assert!(range.start >= from && range.end <= to && !range.is_empty());
                for block in range.clone() {
                    seen[block as usize] = Some(value.0 + block - range.start);
                }
            }
            assert_eq!(seen[from as usize..to as usize], model[from as usize..to as usize]);
        }
    }
}
