//! What is kept resolved of a stack, so that a lookup does not read SQLite.

use super::Region;
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

/// Resolved regions, bounded; evicted in the order of a clock with one chance.
#[derive(Debug)]
pub(super) struct Regions {
    most: usize,
    resolved: HashMap<u32, (Arc<Region>, bool)>,
    clock: VecDeque<u32>,
}

impl Regions {
    pub(super) fn new(most: usize) -> Self {
        Self { most, resolved: HashMap::new(), clock: VecDeque::new() }
    }

    pub(super) fn find(&mut self, region: u32) -> Option<Arc<Region>> {
        let (resolved, used) = self.resolved.get_mut(&region)?;
        *used = true;
        Some(resolved.clone())
    }

    pub(super) fn insert(&mut self, region: u32, resolved: Arc<Region>) {
        while self.resolved.len() >= self.most {
            let Some(oldest) = self.clock.pop_front() else { break };
            match self.resolved.get_mut(&oldest) {
                Some((_, used)) if *used => {
                    *used = false;
                    self.clock.push_back(oldest);
                }
                _ => drop(self.resolved.remove(&oldest)),
            }
        }
        if self.resolved.insert(region, (resolved, false)).is_none() {
            self.clock.push_back(region);
        }
    }

    pub(super) fn overlay(&mut self, region: u32, change: &Region) {
        if let Some((resolved, _)) = self.resolved.get_mut(&region) {
            Arc::make_mut(resolved).overlay(change);
        }
    }

    /// Forgets regions whose rows say something else now.
    pub(super) fn remove(&mut self, regions: &BTreeSet<u32>) {
        self.resolved.retain(|region, _| !regions.contains(region));
        self.clock.retain(|region| !regions.contains(region));
    }

    pub(super) fn clear(&mut self) {
        self.resolved.clear();
        self.clock.clear();
    }
}
