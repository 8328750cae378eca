//! Checkpoints as directories in the container's `/.sprite/checkpoints`.
//!
//! Nothing is mounted until somebody looks into one. A view in which nobody is any more is unmounted again after a while,
//! or when there are too many. All of them go before the container does.

use crate::{disk::DiskError, view::MountedView};
use guest::container::{Automount, Container, Wanted};
use rustix::mount::UnmountFlags;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    task::JoinHandle,
    time::MissedTickBehavior,
};
use tracing::{debug, warn};
use volume::Volume;

/// The most checkpoints that are mounted at a time. Each has a loop device.
const MOUNTED_MAX: usize = 8;

/// How often views in which nobody is are unmounted.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// Why a checkpoint cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrowseError {
    /// The view could not be mounted.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The container is going, or the kernel has no autofs.
    #[error("checkpoints cannot be browsed now")]
    Ended,
    /// Too many are in use.
    #[error("{MOUNTED_MAX} checkpoints are in use")]
    TooMany,
}

/// The directories. One task answers those who look into them.
pub(crate) struct Browsing {
    views: Arc<Views>,
    task: JoinHandle<()>,
}

/// What is mounted.
pub(crate) struct Views {
    container: Arc<Container>,
    volume: Volume,
    mounted: Mutex<Mounted>,
    /// Held by whoever mounts or unmounts, so that all others wait without a thread.
    turn: AsyncMutex<()>,
    /// A checkpoint may have been deleted.
    deleted: Notify,
}

#[derive(Default)]
struct Mounted {
    views: BTreeMap<String, MountedView>,
    /// Views that somebody in the container keeps although they were unmounted, with a mount namespace of their own.
    held: usize,
    /// Nothing is mounted any more.
    ended: bool,
}

impl Browsing {
    /// Offers the checkpoints of a volume in a container; nothing where the kernel has no autofs.
    pub(crate) fn start(container: Arc<Container>, volume: Volume) -> Option<Self> {
        container.checkpoints()?;
        let views = Arc::new(Views {
            container,
            volume,
            mounted: Mutex::default(),
            turn: AsyncMutex::default(),
            deleted: Notify::new(),
        });
        views.offer();
        let task = tokio::spawn(serve(views.clone()));
        Some(Self { views, task })
    }

    /// Makes the directories those of the checkpoints that there are now. One that is gone stays while somebody is in it.
    pub(crate) fn refresh(&self) {
        self.views.offer();
        self.views.deleted.notify_one();
    }

    /// The views, for whoever wants to look into one while others do something else here.
    pub(crate) fn views(&self) -> Arc<Views> {
        self.views.clone()
    }

    /// Ends it. Blocks the thread while one is being mounted. What is returned keeps the views; it goes when the
    /// container's processes and mounts are gone.
    pub(crate) fn end(self) -> impl Send {
        self.task.abort();
        let mut mounted = self.views.mounted();
        mounted.ended = true;
        std::mem::take(&mut mounted.views)
    }
}

/// Answers one after the other, until it is aborted. Whoever asks for a thousand waits in the kernel, and keeps no threads here.
async fn serve(views: Arc<Views>) {
    let Some(directory) = views.container.checkpoints() else { return };
    let mut idle = tokio::time::interval(IDLE_INTERVAL);
    idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            wanted = directory.wanted() => match wanted {
                Ok(wanted) => drop(views.in_turn(move |views| views.answer(&wanted)).await),
                Err(error) => {
                    return warn!(error = &error as &dyn std::error::Error, "serve the checkpoints");
                }
            },
            () = views.deleted.notified() => drop(views.in_turn(Views::unmount_unused).await),
            _ = idle.tick() => drop(views.in_turn(Views::unmount_unused).await),
        }
    }
}

impl Views {
    fn mounted(&self) -> MutexGuard<'_, Mounted> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks into a checkpoint in the name of this process, which the kernel lets see an empty directory.
    pub(crate) async fn enter(self: Arc<Self>, checkpoint: String) -> Result<(), BrowseError> {
        self.in_turn(move |views| views.mount(&checkpoint)).await.ok_or(BrowseError::Ended)?
    }

    /// Does what blocks a thread on one of its own, when what came before is done. `None` if the runtime ends.
    async fn in_turn<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let _turn = self.turn.lock().await;
        let views = self.clone();
        tokio::task::spawn_blocking(move || work(&views)).await.ok()
    }

    /// Makes the directories those of the checkpoints, as far as nothing is mounted in them.
    fn offer(&self) {
        let checkpoints = match self.volume.checkpoints() {
            Ok(checkpoints) => checkpoints,
            Err(error) => {
                return warn!(error = &error as &dyn std::error::Error, "list checkpoints");
            }
        };
        let names: Vec<_> = checkpoints.into_iter().map(|checkpoint| checkpoint.id).collect();
        if let Some(Err(error)) = self.container.checkpoints().map(|at| at.offer(&names)) {
            warn!(error = &error as &dyn std::error::Error, "offer checkpoints");
        }
    }

    /// Unmounts the views in which nobody is, also those of checkpoints that were deleted, whose directories go then.
    fn unmount_unused(&self) {
        if let Some(directory) = self.container.checkpoints() {
            self.mounted().unmount_unused(directory);
            self.offer();
        }
    }

    /// Mounts what somebody waits for and lets them go on.
    fn answer(&self, wanted: &Wanted) {
        let mounted = self.mount(&wanted.name);
        if let Err(error) = &mounted {
            debug!(error = error as &dyn std::error::Error, "show a checkpoint");
        }
        let answered = self.container.checkpoints().map(|at| at.answer(wanted, mounted.is_ok()));
        if let Some(Err(error)) = answered {
            // Whoever waited was killed meanwhile.
            debug!(error = &error as &dyn std::error::Error, "answer who looks into a checkpoint");
        }
    }

    /// Makes sure that a checkpoint is mounted in its place. Blocks the thread.
    fn mount(&self, checkpoint: &str) -> Result<(), BrowseError> {
        let mut mounted = self.mounted();
        if mounted.views.contains_key(checkpoint) {
            return Ok(());
        }
        let Some(directory) = self.container.checkpoints().filter(|_| !mounted.ended) else {
            return Err(BrowseError::Ended);
        };
        if mounted.count() >= MOUNTED_MAX {
            mounted.unmount_unused(directory);
        }
        if mounted.count() >= MOUNTED_MAX {
            return Err(BrowseError::TooMany);
        }
        let view = MountedView::mount(&self.volume, checkpoint, &self.container)?;
        view.show_at(&directory.place(checkpoint))?;
        mounted.views.insert(checkpoint.to_owned(), view);
        Ok(())
    }
}

impl Mounted {
    fn count(&self) -> usize {
        self.views.len() + self.held
    }

    /// Unmounts the views in which nobody is. Blocks the thread.
    fn unmount_unused(&mut self, directory: &Automount) {
        for (checkpoint, view) in std::mem::take(&mut self.views) {
            if rustix::mount::unmount(directory.place(&checkpoint), UnmountFlags::empty()).is_err()
            {
                self.views.insert(checkpoint, view);
            } else if let Err(error) = view.unmount() {
                self.held += 1;
                warn!(error = &error as &dyn std::error::Error, checkpoint, "unmount a checkpoint");
            }
        }
    }
}
