//! Pins: what a volume keeps for its forks, and the end of a volume that has some.
//!
//! A fork is made in this order: the source's owner pins a state for the fork's id, which ships the pin; the source's map is
//! restored from its log into a file; [`crate::fork_pinned`] makes the fork's map of that. The fork's blocks stay where
//! they are, under the source's prefix, so what it costs does not depend on how much the source holds.
//!
//! A volume that ends while forks need some of it is retired instead: what is pinned stays, the rest becomes garbage, and
//! [`Volume::reclaim`] deletes it. When the last fork is gone and its pin with it, so is the reason to keep the volume.

use crate::{
    VolumeId,
    checkpoint::frozen_layer,
    error::Error,
    map::{Pin, Pinned},
    volume::{Cut, Volume},
};
use jiff::Timestamp;

/// The state that a fork begins with.
#[derive(Debug)]
pub enum ForkPoint {
    /// That of a checkpoint.
    Checkpoint(String),
    /// That at a cut of the live state.
    Cut(Cut),
}

impl Volume {
    /// Keeps a state for a fork, until [`Volume::unpin`]. Returns when the bucket has the pin, with the state.
    ///
    /// Pinning the same state for the same fork again changes nothing; `Conflict` if the fork has another one.
    pub async fn pin(&self, child: VolumeId, at: ForkPoint) -> Result<Pin, Error> {
        self.shared.check_open()?;
        if let ForkPoint::Cut(cut) = &at {
            self.shared.wait_shipped(cut.batch).await?;
        }
        let created = Timestamp::now();
        self.shared
            .change(move |shared| {
                let pinned = match &at {
                    ForkPoint::Checkpoint(id) => Pinned::Checkpoint(id.clone()),
                    ForkPoint::Cut(cut) => Pinned::Layer(frozen_layer(cut)?),
                };
                shared.map.pin(child, &pinned, created)
            })
            .await
    }

    /// Lets go what was kept for a fork, whose own segments and map are gone. Without a pin it changes nothing.
    pub async fn unpin(&self, child: VolumeId) -> Result<(), Error> {
        self.shared.check_open()?;
        self.shared.change(move |shared| shared.map.unpin(child)).await
    }

    /// What is kept for forks, oldest first.
    pub fn pins(&self) -> Result<Vec<Pin>, Error> {
        self.shared.check_open()?;
        self.shared.map.pins()
    }

    /// Drops the live state and all checkpoints, and keeps what is pinned. Returns when the bucket knows.
    ///
    /// Nothing may use the volume meanwhile: the device is detached. It reads as zeros from then on. There is no way back
    /// but the log.
    pub async fn retire(&self) -> Result<(), Error> {
        self.shared.check_open()?;
        // What is unsealed would otherwise come after the end.
        self.shared.seal_all().await?;
        self.shared
            .change(move |shared| {
                shared.cache.clear();
                shared.map.retire()?;
                // Fills that looked at the map before are refused from here on.
                shared.cache.remove(std::iter::once(0..crate::VOLUME_BLOCKS));
                Ok(())
            })
            .await
    }
}

#[cfg(test)]
mod tests;
