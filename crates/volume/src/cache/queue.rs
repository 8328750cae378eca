//! Which extent leaves the cache: S3-FIFO.
//!
//! New extents enter a small queue and leave the cache from there unless they were used again; a scan that reads
//! everything once therefore does not push out the working set in the main queue. Extents that came back soon after they
//! left (the ghosts) go to the main queue at once.

use std::collections::{HashMap, HashSet, VecDeque};

/// The small queue has at most one extent in so many.
const SMALL_SHARE: usize = 10;

/// Use is counted up to this.
const USES_MAX: u8 = 3;

/// The most ghosts, so that they take a bounded part of memory.
const GHOSTS_MAX: usize = 16_384;

/// The order of eviction. Removed extents stay in the queues until they come up.
#[derive(Debug, Default)]
pub(super) struct Queue {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghosts: VecDeque<u32>,
    is_ghost: HashSet<u32>,
    uses: HashMap<u32, u8>,
}

impl Queue {
    pub(super) fn insert(&mut self, extent: u32) {
        if self.uses.insert(extent, 0).is_some() {
            return;
        }
        if self.is_ghost.remove(&extent) {
            self.main.push_back(extent);
        } else {
            self.small.push_back(extent);
        }
    }

    pub(super) fn used(&mut self, extent: u32) {
        if let Some(uses) = self.uses.get_mut(&extent) {
            *uses = (*uses + 1).min(USES_MAX);
        }
    }

    pub(super) fn remove(&mut self, extent: u32) {
        self.uses.remove(&extent);
        // Stale places are skipped when they come up; too many of them would be a leak.
        if self.small.len() + self.main.len() > 2 * self.uses.len() + 64 {
            let mut kept = HashSet::new();
            let mut keep = |extent: &u32| self.uses.contains_key(extent) && kept.insert(*extent);
            self.small.retain(&mut keep);
            self.main.retain(&mut keep);
        }
    }

    /// Takes out the extent that is worth least.
    pub(super) fn evict(&mut self) -> Option<u32> {
        loop {
            let from_small =
                self.small.len() > self.main.len() / SMALL_SHARE || self.main.is_empty();
            let extent =
                if from_small { self.small.pop_front()? } else { self.main.pop_front()? };
            let Some(uses) = self.uses.get_mut(&extent) else { continue };
            if *uses > 0 {
                *uses = if from_small { 0 } else { *uses - 1 };
                self.main.push_back(extent);
                continue;
            }
            self.uses.remove(&extent);
            if from_small {
                self.remember(extent);
            }
            return Some(extent);
        }
    }

    fn remember(&mut self, extent: u32) {
        if self.is_ghost.insert(extent) {
            self.ghosts.push_back(extent);
        }
        while self.ghosts.len() > GHOSTS_MAX {
            if let Some(oldest) = self.ghosts.pop_front() {
                self.is_ghost.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Queue;

    #[test]
    fn a_scan_does_not_push_out_what_is_used() {
        let mut queue = Queue::default();
        let mut cached = std::collections::BTreeSet::new();
        let mut touch = |extent: u32| {
            if cached.contains(&extent) {
                queue.used(extent);
                return true;
            }
            queue.insert(extent);
            cached.insert(extent);
            while cached.len() > 100 {
                cached.remove(&queue.evict().unwrap());
            }
            false
        };
        for _ in 0..5 {
            assert!((0..50).filter(|hot| touch(*hot)).count() <= 50);
        }
        assert_eq!((1000..3000).filter(|cold| touch(*cold)).count(), 0);
        assert_eq!((0..50).filter(|hot| touch(*hot)).count(), 50);
    }

    #[test]
    fn removed_extents_are_never_evicted() {
        let mut queue = Queue::default();
        (0..1000).for_each(|extent| queue.insert(extent));
        (0..999).for_each(|extent| queue.remove(extent));
        assert_eq!(queue.evict(), Some(999));
        assert_eq!(queue.evict(), None);
    }
}
