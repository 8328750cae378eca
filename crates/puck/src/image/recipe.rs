//! Everything that decides what an image holds, but for the mirror's state: read off the host once, before a build.

use super::{Error, certificates, digest::Hasher, pip, sources};

/// The Debian release.
pub(super) const SUITE: &str = "bookworm";

/// Raised whenever an image of the same recipe would differ for a reason that is not in the fields below.
const VERSION: u32 = 1;

/// What is installed beside Debian's essential packages and `apt`: a shell to work in, Python, git, and the tools that people
/// miss at once. What else is needed is one `sudo apt-get install` away.
pub(super) const PACKAGES: &[&str] = &[
    "bash",
    "ca-certificates",
    "coreutils",
    "curl",
    "e2fsprogs",
    "git",
    "iproute2",
    "iputils-ping",
    "less",
    "nano",
    "netbase",
    "openssh-client",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "rsync",
    "sudo",
    "tmux",
    "tree",
    "tzdata",
    "xz-utils",
];

/// What turns fresh Debian into the base image.
pub(super) const CUSTOMIZE: &str = include_str!("customize.sh");

/// The recipe of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// The Debian entries of the host's apt sources, as one deb822 file. Empty: whatever `mmdebstrap` takes by itself.
    pub(super) sources: String,
    /// The host's proxy settings of apt, as lines of an apt configuration.
    pub(super) apt_options: Vec<String>,
    /// Certificates that the host trusts beyond Debian's own set, as PEM.
    pub(super) certificates: Vec<String>,
    /// The image's `/etc/pip.conf`.
    pub(super) pip_conf: String,
}

impl Recipe {
    pub(super) fn new(
        sources: String,
        apt_options: Vec<String>,
        certificates: Vec<String>,
        pip_conf: String,
    ) -> Self {
        Self { sources, apt_options, certificates, pip_conf }
    }

    /// Reads the settings of this host. Nothing that carries a password is taken along, since an image is published.
    pub(super) fn of_this_host() -> Result<Self, Error> {
        Ok(Self::new(
            sources::of_this_host(SUITE)?,
            sources::apt_options_of_this_host()?,
            certificates::of_this_host()?,
            pip::of_this_host()?,
        ))
    }

    /// A name for the recipe: equal recipes have equal keys.
    pub(super) fn key(&self) -> String {
        let mut hasher = Hasher::default();
        let mut field = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        field(&VERSION.to_string());
        field(SUITE);
        field(&PACKAGES.join(","));
        field(CUSTOMIZE);
        field(&self.sources);
        field(&self.apt_options.join("\n"));
        field(&self.certificates.concat());
        field(&self.pip_conf);
        hasher.finish().to_string()
    }
}

/// Whether a URL names a user or a password.
pub(super) fn has_credentials(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    authority.split('/').next().is_some_and(|authority| authority.contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_changes_the_key() {
        let text = |text: &str| text.to_owned();
        let recipes = [
            Recipe::new(text(""), vec![], vec![], text("")),
            Recipe::new(text("a"), vec![], vec![], text("")),
            Recipe::new(text(""), vec![text("a")], vec![], text("")),
            Recipe::new(text(""), vec![], vec![text("a")], text("")),
            Recipe::new(text(""), vec![], vec![], text("a")),
        ];
        let keys: std::collections::BTreeSet<String> = recipes.iter().map(Recipe::key).collect();
        assert_eq!(keys.len(), recipes.len());
    }

    #[test]
    fn credentials_are_seen_in_the_authority_only() {
        assert!(has_credentials("https://user:secret@host/simple"));
        assert!(has_credentials("http://token@host"));
        assert!(!has_credentials("https://host/@scope/x"));
        assert!(!has_credentials("https://host"));
    }
}
