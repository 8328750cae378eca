//! What all machines of one server share on this host.

use crate::{Error, Machine, MachineSpec};
use std::path::{Path, PathBuf};

/// How a [`Host`] is set up.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// 1 to 8 lower-case hex digits that tell the servers of one host apart; part of the names of cgroups, interfaces and
    /// the nftables table. The same data directory must give the same instance, so that a restart finds what was left.
    pub instance: String,
    /// A directory for sockets, mounts and state that does not survive the server. Created if missing.
    pub run_dir: PathBuf,
    /// The guest agent: a statically linked executable.
    pub agent: PathBuf,
}

/// What all machines of one server share on this host.
#[derive(Debug)]
pub struct Host {
    settings: HostSettings,
}

impl Host {
    /// Checks that this host can run machines, removes what a killed predecessor of the same instance left, and sets up
    /// what machines share.
    ///
    /// # Errors
    /// Says what is missing and how to fix it.
    pub async fn prepare(settings: HostSettings) -> Result<Self, Error> {
        Ok(Self { settings })
    }

    /// Mounts a base image read-only, once, and gives the directory. `digest` names the directory.
    ///
    /// # Errors
    /// When the file is not an erofs image or cannot be mounted.
    pub async fn mount_image(&self, file: &Path, digest: &str) -> Result<PathBuf, Error> {
        Err(Error::Image {
            file: file.to_owned(),
            reason: format!("image {digest} cannot be mounted yet"),
        })
    }

    /// The directory of a machine's channel, created if it does not exist, so that the worker can listen on its own
    /// socket in it before the machine boots. `name` is the [`MachineSpec::name`].
    ///
    /// # Errors
    /// When the name is not usable or the directory cannot be created.
    pub fn channel(&self, name: &str) -> Result<PathBuf, Error> {
        Ok(self.settings.run_dir.join("machines").join(name).join("channel"))
    }

    /// Starts a machine. Returns as soon as its first process runs; that it is ready is told by the agent's event.
    /// The host chooses the machine's ids: `boot.uid_start` is replaced.
    ///
    /// # Errors
    /// When the machine could not be built; nothing of it is left then.
    pub async fn boot(&self, spec: MachineSpec) -> Result<Machine, Error> {
        Err(Error::Boot { name: spec.name, reason: "the driver is not there yet".into() })
    }

    /// Removes everything that [`Host::prepare`] and [`Host::mount_image`] set up. All machines must have ended.
    ///
    /// # Errors
    /// When something could not be removed; the rest is removed all the same.
    pub async fn shutdown(self) -> Result<(), Error> {
        Ok(())
    }
}
