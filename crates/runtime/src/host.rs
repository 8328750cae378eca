//! What all machines of one server share on this host.
//!
//! [`Host::prepare`] makes it, [`Host::shutdown`] removes it. A server that was killed in between leaves it behind; the next
//! [`Host::prepare`] of the same instance removes that first, so it can rely on nothing of the instance being there.

use crate::{
    Error, Machine, MachineSpec, command, firewall,
    leftovers::{self, Places},
    machine::{self, Ground},
    prerequisites::{self, private_directory},
    range::Range,
    slots::Slots,
};
use guest::{
    cgroup::{self, Cgroup},
    protocol::{AGENT_SOCKET, GATEWAY_SOCKET},
};
use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};
use tokio::sync::Mutex;

/// How a [`Host`] is set up.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// 1 to [`INSTANCE_BYTES_MAX`] lower-case hex digits that tell the servers of one host apart; part of the names of control
    /// groups, interfaces and the nftables table. The same data directory must give the same instance, so that a restart
    /// finds what was left.
    pub instance: String,
    /// A directory for sockets, mounts and state that does not survive the server. Made if missing; of this server alone.
    pub run_dir: PathBuf,
    /// The guest agent: a statically linked executable.
    pub agent: PathBuf,
}

/// The longest [`HostSettings::instance`]: an interface's name has 15 bytes, with the prefix `pk`, a hyphen and a slot.
pub const INSTANCE_BYTES_MAX: usize = 8;

/// The longest path of a Unix socket, without the byte that ends it.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest name of a machine.
const NAME_BYTES_MAX: usize = 32;

/// What all machines of one server share on this host.
#[derive(Debug)]
pub struct Host {
    settings: HostSettings,
    cgroup: Cgroup,
    /// The name of `cgroup`, relative to the root of the trees.
    cgroup_name: String,
    range: Range,
    slots: Slots,
    /// The images that are mounted, by digest.
    images: Mutex<HashMap<String, PathBuf>>,
}

impl Host {
    /// Checks that this host can run machines, removes what a killed predecessor of the same instance left, and sets up
    /// what machines share.
    ///
    /// # Errors
    /// Says what is missing and how to fix it.
    pub async fn prepare(settings: HostSettings) -> Result<Self, Error> {
        check_instance(&settings.instance)?;
        let trees = prerequisites::check(&settings.agent).await?;
        let run_dir = private_directory(&settings.run_dir)?;
        let run_dir = run_dir.canonicalize().map_err(|source| Error::Host {
            action: format!("find {}", run_dir.display()),
            source,
        })?;
        let settings = HostSettings { run_dir, ..settings };
        let cgroup_name = format!("puck-{}", settings.instance);
        let cgroup = trees.group(&cgroup_name);
        let range_file = settings.run_dir.join("range");
        let places = Places {
            instance: &settings.instance,
            cgroup: &cgroup,
            run_dir: &settings.run_dir,
            range_file: &range_file,
        };
        leftovers::remove(&places).await?;
        trees.group("").delegate().map_err(cgroup_failed)?;
        make_group(&cgroup)?;
        cgroup.delegate().map_err(cgroup_failed)?;
        make_group(&cgroup.child(machine::KEEPER_CGROUP))?;
        let range = Range::reserve(&settings.instance, &range_file).await?;
        firewall::raise(&settings.instance, range).await?;
        Ok(Self {
            settings,
            cgroup,
            cgroup_name,
            range,
            slots: Slots::default(),
            images: Mutex::default(),
        })
    }

    /// Mounts a base image read-only, once, and gives the directory. `digest` names the directory.
    ///
    /// # Errors
    /// When the file is not an erofs image or cannot be mounted.
    pub async fn mount_image(&self, file: &Path, digest: &str) -> Result<PathBuf, Error> {
        if digest.is_empty() || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::Settings {
                what: "the image's digest",
                reason: format!("`{digest}` is not hexadecimal"),
            });
        }
        // Held during the mount, so that a second caller waits and finds it.
        let mut images = self.images.lock().await;
        if let Some(directory) = images.get(digest) {
            return Ok(directory.clone());
        }
        let directory = private_directory(&self.settings.run_dir.join("images").join(digest))?;
        let paths = file.to_str().zip(directory.to_str());
        let (from, to) = paths.ok_or_else(|| Error::Image {
            file: file.into(),
            reason: "its path is not text".into(),
        })?;
        match command::run("mount", &["-t", "erofs", "-o", "ro,nodev,loop", "--", from, to], "")
            .await
        {
            Err(Error::Command { output, .. }) => {
                Err(Error::Image { file: file.into(), reason: output })
            }
            Err(error) => Err(error),
            Ok(_) => {
                images.insert(digest.to_owned(), directory.clone());
                Ok(directory)
            }
        }
    }

    /// The directory of a machine's channel, made if it does not exist, so that the worker can listen on its own socket in
    /// it before the machine boots. `name` is the [`MachineSpec::name`].
    ///
    /// # Errors
    /// When the name is not usable or the directory cannot be made.
    pub fn channel(&self, name: &str) -> Result<PathBuf, Error> {
        let channel = self.directory(name)?.join("channel");
        let length = channel.as_os_str().len() + 1 + GATEWAY_SOCKET.len().max(AGENT_SOCKET.len());
        if length > SOCKET_PATH_BYTES_MAX {
            let reason = format!(
                "the path of a socket in {} would have {length} bytes; Linux takes {SOCKET_PATH_BYTES_MAX}",
                channel.display()
            );
            return Err(Error::Settings { what: "the data directory", reason });
        }
        private_directory(&channel)
    }

    fn directory(&self, name: &str) -> Result<PathBuf, Error> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(good) {
            return Err(Error::Settings {
                what: "the machine's name",
                reason: format!("`{name}`"),
            });
        }
        Ok(self.settings.run_dir.join("machines").join(name))
    }

    /// Starts a machine. Returns as soon as its first process runs; that it is ready is told by the agent's event.
    /// The host chooses the machine's ids: `boot.uid_start` is replaced.
    ///
    /// # Errors
    /// When the machine could not be built; nothing of it is left then.
    pub async fn boot(&self, spec: MachineSpec) -> Result<Machine, Error> {
        let directory = self.directory(&spec.name)?;
        self.channel(&spec.name)?;
        private_directory(&directory.join("root"))?;
        let slot = self.slots.take()?;
        let ground = Ground {
            agent: self.settings.agent.clone(),
            cgroup: self.cgroup.child(&spec.name),
            parent: self.cgroup_name.clone(),
            interface: format!(
                "{}{:x}",
                firewall::interface_prefix(&self.settings.instance),
                slot.number
            ),
            address: self.range.address(slot.number),
            uid_start: self.range.uid_start(slot.number),
            directory,
            slot,
        };
        Machine::boot(ground, spec).await
    }

    /// Removes everything that [`Host::prepare`], [`Host::mount_image`] and [`Host::boot`] made, machines that still run
    /// included. Nothing of this host may be used afterwards.
    ///
    /// # Errors
    /// When something could not be removed; the rest is removed all the same.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.images.lock().await.clear();
        let run_dir = &self.settings.run_dir;
        let range_file = run_dir.join("range");
        let instance = &self.settings.instance;
        leftovers::remove(&Places {
            instance,
            cgroup: &self.cgroup,
            run_dir,
            range_file: &range_file,
        })
        .await?;
        leftovers::remove_directory(&run_dir.join("images"))
    }
}

fn make_group(group: &Cgroup) -> Result<(), Error> {
    group.create().map_err(cgroup_failed)
}

fn cgroup_failed(error: cgroup::Error) -> Error {
    Error::Host { action: "set up the control groups".into(), source: io::Error::other(error) }
}

fn check_instance(instance: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if instance.is_empty() || instance.len() > INSTANCE_BYTES_MAX || !instance.bytes().all(good) {
        let reason = format!("`{instance}` is not 1 to {INSTANCE_BYTES_MAX} lower-case hex digits");
        return Err(Error::Settings { what: "the instance", reason });
    }
    Ok(())
}
