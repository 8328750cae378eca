//! Machines that are ready before anybody asks for one, each on its own fresh fork of the blank volume.
//!
//! One task fills the pool; [`Pool::take`] never waits. A pooled machine that dies is replaced; when machines do not come
//! up, the task tries again with growing pauses and says why once.

use super::{
    machine::{Disk, Machine, Purpose},
    site::Site,
};
use base::backoff::Backoff;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use volume::VolumeId;

/// How many machines boot for the pool at once, so that wakes and creates have turns left.
const REFILL_AT_ONCE: usize = 2;

/// How often the pool looks for machines that have died.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// The pauses after boots that failed.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Pool {
    size: usize,
    ready: Mutex<VecDeque<Machine>>,
    taken: Notify,
}

impl Pool {
    pub(super) fn new(size: usize) -> Self {
        Self { size, ready: Mutex::default(), taken: Notify::new() }
    }

    /// How many machines are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.lock().expect("no panic while held").len()
    }

    /// A machine, if one is ready.
    pub(super) fn take(&self) -> Option<Machine> {
        let mut ready = self.ready.lock().expect("no panic while held");
        let machine = loop {
            match ready.pop_front() {
                // Its volume stays marked, and is removed at the next start.
                Some(machine) if machine.has_ended() => {}
                other => break other,
            }
        };
        self.taken.notify_one();
        machine
    }

    /// Keeps the pool full until `stop`, then destroys what is in it.
    pub(super) async fn run(self: Arc<Self>, site: Arc<Site>, stop: CancellationToken) {
        let mut pauses = retries();
        while !stop.is_cancelled() {
            let pause = match self.refill(&site, &stop).await {
                Ok(()) => {
                    pauses = retries();
                    LOOK_INTERVAL
                }
                Err(()) => pauses.next().unwrap_or(RETRY_MOST),
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.taken.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.drain(&site).await;
    }

    /// Boots what is missing. Boots no more when one fails, but waits for those that boot.
    async fn refill(&self, site: &Arc<Site>, stop: &CancellationToken) -> Result<(), ()> {
        let mut boots = JoinSet::new();
        let mut outcome = Ok(());
        loop {
            while outcome.is_ok()
                && !stop.is_cancelled()
                && boots.len() < REFILL_AT_ONCE
                && self.missing() > boots.len()
            {
                let (site, stop) = (site.clone(), stop.clone());
                boots.spawn(async move { boot_fresh(&site, &stop).await });
            }
            match boots.join_next().await {
                None => return outcome,
                Some(Ok(Some(machine))) => {
                    self.ready.lock().expect("no panic while held").push_back(machine);
                }
                Some(_) => outcome = Err(()),
            }
        }
    }

    fn missing(&self) -> usize {
        let mut ready = self.ready.lock().expect("no panic while held");
        ready.retain(|machine| !machine.has_ended());
        self.size.saturating_sub(ready.len())
    }

    async fn drain(&self, site: &Arc<Site>) {
        let machines = std::mem::take(&mut *self.ready.lock().expect("no panic while held"));
        let mut removals = JoinSet::new();
        for machine in machines {
            let site = site.clone();
            removals.spawn(async move {
                let volume = machine.disk().volume;
                machine.kill().await;
                site.remove_volume(volume).await;
            });
        }
        removals.join_all().await;
    }
}

async fn boot_fresh(site: &Arc<Site>, stop: &CancellationToken) -> Option<Machine> {
    let disk = fresh_disk(site);
    let volume = disk.volume;
    match Machine::boot(site, disk, Purpose::New, stop).await {
        Ok(machine) => Some(machine),
        Err(error) => {
            if !stop.is_cancelled() {
                warn!(%volume, error = &error as &dyn std::error::Error, "a machine for the pool did not come up");
            }
            // The fork may have begun its log before the boot failed.
            site.remove_volume(volume).await;
            None
        }
    }
}

/// The disk of a new sprite.
pub(super) fn fresh_disk(site: &Site) -> Disk {
    Disk { volume: VolumeId::now(), ancestors: vec![site.blank], image: site.image.clone() }
}

fn retries() -> Backoff {
    Backoff::new(RETRY_FIRST, RETRY_MOST, u32::MAX)
}
