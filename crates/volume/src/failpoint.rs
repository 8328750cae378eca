//! Named points between two durable steps, at which the tests of this crate let the process die.
//!
//! A build without tests has no plan and nothing to look up: every call is empty. In a test, a [`Plan`] says at which point
//! the process dies, and from then on it does nothing more: an asynchronous step never returns from its point, a blocking
//! one fails, and the bucket and the log of that process take nothing.

use std::io;

/// A point of the life of a volume after which something is durable that was not before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    /// A batch is compressed; its object is not in the bucket.
    SegmentBuilt,
    /// The object is in the bucket; the map does not name it.
    SegmentPut,
    /// The cache has forgotten what the map is about to change.
    CacheForgot,
    /// The map names the segment; the log does not.
    MapCommitted,
    /// The log names the segment; the journal still has the records.
    LogShipped,
    /// Some journal files may be used again.
    JournalReleased,
    /// Garbage is gone from the bucket; the map still knows it.
    GarbageDeleted,
    /// The map has forgotten garbage; the log has not.
    GarbageForgotten,
    /// An operation has changed the map; the log does not say so.
    MapChanged,
    /// A journal file has its name and no header.
    JournalFileMade,
    /// A journal file has its header and no record.
    JournalFileBegun,
    /// The journal is about to be synced.
    JournalSync,
    /// The journal is synced; nobody was told.
    JournalSynced,
    /// At an open: the log has what the map has.
    OpenShipped,
    /// The journal of an older epoch is copied; it is still in place.
    TakeOverCopied,
    /// The journal of an older epoch is retired; the copy is not in place.
    TakeOverRetired,
    /// At a close: everything is in the bucket; the journal is still there.
    CloseSealed,
    /// At a close: the journal is gone; the cache's index is not written.
    CloseJournalGone,
}

/// Where the process dies, for tests; nothing otherwise.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failpoints {
    #[cfg(test)]
    pub(crate) plan: Option<std::sync::Arc<Plan>>,
}

#[cfg(not(test))]
impl Failpoints {
    /// Goes on.
    #[inline]
    pub(crate) fn pass(&self, _point: Point) -> io::Result<()> {
        Ok(())
    }

    /// Goes on.
    #[inline]
    pub(crate) async fn reach(&self, _point: Point) {}
}

#[cfg(test)]
pub(crate) use planned::Plan;

#[cfg(test)]
mod planned {
    use super::{Failpoints, Point, io};
    use crate::sync::lock;
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    };
    use tokio::sync::Notify;

    impl Point {
        /// All of them.
        pub(crate) const ALL: [Self; 18] = [
            Self::SegmentBuilt,
            Self::SegmentPut,
            Self::CacheForgot,
            Self::MapCommitted,
            Self::LogShipped,
            Self::JournalReleased,
            Self::GarbageDeleted,
            Self::GarbageForgotten,
            Self::MapChanged,
            Self::JournalFileMade,
            Self::JournalFileBegun,
            Self::JournalSync,
            Self::JournalSynced,
            Self::OpenShipped,
            Self::TakeOverCopied,
            Self::TakeOverRetired,
            Self::CloseSealed,
            Self::CloseJournalGone,
        ];
    }

    impl Failpoints {
        /// Goes on, or fails if the process is dead from here on.
        pub(crate) fn pass(&self, point: Point) -> io::Result<()> {
            match &self.plan {
                Some(plan) if plan.dies_at(point) => Err(io::Error::other("the process is dead")),
                _ => Ok(()),
            }
        }

        /// Goes on, or never returns if the process is dead from here on.
        pub(crate) async fn reach(&self, point: Point) {
            if self.plan.as_ref().is_some_and(|plan| plan.dies_at(point)) {
                std::future::pending::<()>().await;
            }
        }
    }

    /// When a process dies: at the so-many-th time that it comes to a point.
    #[derive(Debug, Default)]
    pub(crate) struct Plan {
        due: Mutex<Option<(Point, u32)>>,
        dead: AtomicBool,
        died: Notify,
    }

    impl Plan {
        pub(crate) fn new(due: Option<(Point, u32)>) -> Self {
            Self { due: Mutex::new(due), ..Self::default() }
        }

        pub(crate) fn dead(&self) -> bool {
            self.dead.load(Ordering::SeqCst)
        }

        /// Nothing of this process has an effect any more.
        pub(crate) fn die(&self) {
            self.dead.store(true, Ordering::SeqCst);
            self.died.notify_waiters();
        }

        /// Returns when the process is dead.
        pub(crate) async fn died(&self) {
            let mut died = std::pin::pin!(self.died.notified());
            died.as_mut().enable();
            if !self.dead() {
                died.await;
            }
        }

        /// Where the process was to die, if it died there.
        pub(crate) fn died_at(&self) -> Option<Point> {
            let due = lock(&self.due);
            due.filter(|_| self.dead()).map(|(point, _)| point)
        }

        fn dies_at(&self, point: Point) -> bool {
            if let Some((at, passes)) = &mut *lock(&self.due)
                && *at == point
            {
                match passes.checked_sub(1) {
                    Some(left) => *passes = left,
                    None => self.die(),
                }
            }
            self.dead()
        }
    }
}
