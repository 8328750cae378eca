//! Files of the agent that programs in the container see: `/.sprite`, and the name service's files in `/etc`.
//!
//! They are in a small memory filesystem of the agent, not on the sprite's disk: they describe the machine and not the
//! sprite, and must not come back from a checkpoint.

use super::automount::Automount;
use crate::mount;
use rustix::{io::Errno, mount::MountAttrFlags};
use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};

/// The most that these files may take: root of the container can write those in `/etc`.
const SHARED_BYTES_MAX: &str = "16m";

/// The most that the logs of services may take.
const LOGS_BYTES_MAX: &str = "32m";

/// The most of these files.
const SHARED_FILES_MAX: &str = "4096";

/// The address of the sprite inside of itself.
const SPRITE_ADDRESS: &str = "10.0.0.1";

/// Starts a login shell, for terminals that are opened without a command.
const SPRITE_CONSOLE: &str =
    "#!/bin/sh\ncd \"$HOME\" 2>/dev/null\nexec \"${SHELL:-/bin/bash}\" -l\n";

/// Programs for those inside, by their names in `/.sprite/bin`.
const PROGRAMS: [(&str, &str); 4] = [
    ("dockerd", include_str!("dockerd")),
    ("sprite-browser", include_str!("sprite-browser")),
    ("sprite-console", SPRITE_CONSOLE),
    ("sprite-env", include_str!("sprite-env")),
];

/// The directory of the checkpoints in `/.sprite`.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// What `/.sprite` holds at the start.
const DIRECTORIES: [&str; 6] =
    ["bin", CHECKPOINTS, "etc/profile.d", "languages", "logs/services", "policy"];

/// Mounts the directory of the logs.
pub(super) fn mount_logs(place: &Path) -> io::Result<()> {
    fs::create_dir_all(place)?;
    let options = [
        ("source", "logs"),
        ("mode", "755"),
        ("size", LOGS_BYTES_MAX),
        ("nr_inodes", SHARED_FILES_MAX),
    ];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let logs = mount::filesystem("tmpfs", &options, attributes)?;
    mount::attach_path(logs.as_fd(), place)
}

/// The mounted files.
#[derive(Debug)]
pub(super) struct Shared {
    directory: PathBuf,
    sprite: PathBuf,
    checkpoints: Option<Automount>,
}

impl Shared {
    /// Makes the files below `run`.
    pub(super) fn create(run: &Path, hostname: &str, dns: &[IpAddr]) -> io::Result<Self> {
        let directory = run.join("shared");
        fs::create_dir_all(&directory)?;
        let options = [
            ("source", "shared"),
            ("mode", "755"),
            ("size", SHARED_BYTES_MAX),
            ("nr_inodes", SHARED_FILES_MAX),
        ];
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let files = mount::filesystem("tmpfs", &options, attributes)?;
        mount::attach_path(files.as_fd(), &directory)?;
        let mut shared = Self { sprite: directory.join("sprite"), directory, checkpoints: None };
        shared.fill(dns)?;
        shared.set_hostname(hostname)?;
        shared.checkpoints = match Automount::create(&shared.sprite.join(CHECKPOINTS)) {
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {
                tracing::warn!("the kernel has no autofs, so checkpoints cannot be browsed");
                None
            }
            made => Some(made?),
        };
        Ok(shared)
    }

    /// The directory behind `/.sprite`.
    pub(super) fn sprite(&self) -> &Path {
        &self.sprite
    }

    /// See [`super::Container::checkpoints`].
    pub(super) fn checkpoints(&self) -> Option<&Automount> {
        self.checkpoints.as_ref()
    }

    fn fill(&self, dns: &[IpAddr]) -> io::Result<()> {
        let servers: String = dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        fs::write(self.directory.join("resolv.conf"), servers)?;
        let sprite = &self.sprite;
        for name in DIRECTORIES {
            fs::create_dir_all(sprite.join(name))?;
        }
        fs::write(sprite.join("version.txt"), concat!(env!("CARGO_PKG_VERSION"), "\n"))?;
        fs::write(sprite.join("llm.txt"), include_str!("llm.txt"))?;
        for (name, text) in PROGRAMS {
            let program = sprite.join("bin").join(name);
            fs::write(&program, text)?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// Writes what programs may read about the sprite's policies, in place of what was there.
    pub(super) fn set_policies(&self, policies: &BTreeMap<String, String>) -> io::Result<()> {
        for (name, text) in policies {
            fs::write(self.sprite.join("policy").join(name), text)?;
        }
        Ok(())
    }

    /// Writes the files that hold the host name. In place, since they are bound one by one.
    pub(super) fn set_hostname(&self, name: &str) -> io::Result<()> {
        fs::write(self.directory.join("hostname"), format!("{name}\n"))?;
        let hosts = format!(
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{SPRITE_ADDRESS} sprite {name}\n"
        );
        fs::write(self.directory.join("hosts"), hosts)
    }
}
