//! Where this host gets Debian from: the entries of its apt sources that are Debian itself, and the proxies of its apt.
//!
//! Sprites install packages from the same mirror as their host, so an image carries the mirror's entries and no others:
//! a third party's repository has its own keys and packages, and its entry would break every `apt-get update` in a sprite.

use super::{Error, recipe::has_credentials};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const APT_DIR: &str = "/etc/apt";

/// Signs Debian's archive; on the host it is needed to build, and each image has it.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One entry: packages for some suites from some mirrors.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
}

/// The Debian entries of this host's apt sources as a deb822 file; empty if there are none.
pub(super) fn of_this_host(suite: &str) -> Result<String, Error> {
    let mut files = vec![Path::new(APT_DIR).join("sources.list")];
    let directory = Path::new(APT_DIR).join("sources.list.d");
    if directory.is_dir() {
        let failed = |source| Error::Host { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(failed)? {
            files.push(entry.map_err(failed)?.path());
        }
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::Host { path: file, source }),
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(one_line)),
            Some("sources") => sources.extend(text.split("\n\n").filter_map(stanza)),
            _ => {}
        }
    }
    Ok(debian_entries(suite, sources.into_iter().map(resolve_mirror_lists)))
}

/// The proxies of this host's apt, as lines for an apt configuration file.
pub(super) fn apt_options_of_this_host() -> Result<Vec<String>, Error> {
    let output = match Command::new("apt-config").arg("dump").output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Run { program: "apt-config", source }),
    };
    Ok(proxy_options(&String::from_utf8_lossy(&output.stdout)))
}

fn proxy_options(dump: &str) -> Vec<String> {
    let is_proxy = |line: &&str| {
        let Some((name, value)) = line.split_once(' ') else { return false };
        let wanted = name.starts_with("Acquire::http")
            && (name.ends_with("::Proxy") || name.contains("::Proxy::"));
        wanted && value != "\"\";" && !has_credentials(value.trim_matches(['"', ';']))
    };
    dump.lines().filter(is_proxy).map(str::to_owned).collect()
}

/// An entry of a `.list` file: `deb [option=value ...] URI SUITE COMPONENT...`.
fn one_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split('#').next()?.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
    })
}

/// A stanza of a deb822 file. A line that begins with a space goes on with the field before it.
fn stanza(text: &str) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        if line.starts_with([' ', '\t']) {
            fields.last_mut()?.1.push_str(line);
        } else {
            let (name, value) = line.split_once(':')?;
            fields.push((name.trim().to_ascii_lowercase(), value.to_owned()));
        }
    }
    let words = |name: &str| -> Vec<String> {
        let value = fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value);
        value.split_whitespace().map(str::to_owned).collect()
    };
    let enabled = !words("enabled").iter().any(|word| word == "no");
    let binary = words("types").iter().any(|word| word == "deb");
    (enabled && binary).then(|| Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
    })
}

/// Debian's cloud images name a file with a list of mirrors: `mirror+file:///etc/apt/mirrors/debian.list`.
fn resolve_mirror_lists(mut source: Source) -> Source {
    let list = |uri: &String| {
        uri.strip_prefix("mirror+file:")
            .map(|path| PathBuf::from("/").join(path.trim_start_matches('/')))
    };
    let resolved = source.uris.iter().flat_map(|uri| match list(uri) {
        None => vec![uri.clone()],
        Some(path) => fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|word| !word.starts_with('#'))
            .map(str::to_owned)
            .collect(),
    });
    source.uris = resolved.collect();
    source
}

/// What of the sources is Debian itself, as a deb822 file.
fn debian_entries(suite: &str, sources: impl Iterator<Item = Source>) -> String {
    let of_debian = |name: &String| {
        name.strip_prefix(suite).is_some_and(|rest| matches!(rest, "" | "-updates" | "-security"))
    };
    let over_http = |uri: &String| {
        (uri.starts_with("http://") || uri.starts_with("https://")) && !has_credentials(uri)
    };
    let mut stanzas = Vec::new();
    for mut source in
        sources.filter(|source| source.components.iter().any(|component| component == "main"))
    {
        source.suites.retain(of_debian);
        source.uris.retain(over_http);
        if source.suites.is_empty() || source.uris.is_empty() {
            continue;
        }
        let stanza = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nSigned-By: {KEYRING}\n",
            source.uris.join(" "),
            source.suites.join(" "),
            source.components.join(" "),
        );
        if !stanzas.contains(&stanza) {
            stanzas.push(stanza);
        }
    }
    stanzas.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sources: Vec<Source>, wanted: &str) {
        assert_eq!(debian_entries("bookworm", sources.into_iter()), wanted);
    }

    #[test]
    fn debian_is_kept_and_others_are_not() {
        let text = "Types: deb deb-src\n# a comment\nURIs: http://mirror/debian\nSuites: bookworm\n bookworm-updates bookworm-backports\n\
            Components: main contrib\nSigned-By: /somewhere\n\nTypes: deb\nURIs: https://other/bookworm\nSuites: nodistro\nComponents: main\n\n\
            Enabled: no\nTypes: deb\nURIs: http://off/debian\nSuites: bookworm\nComponents: main\n";
        check(
            text.split("\n\n").filter_map(stanza).collect(),
            &format!(
                "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: {KEYRING}\n"
            ),
        );
    }

    #[test]
    fn one_line_entries_are_read() {
        let text = "# deb http://off/debian bookworm main\n\
            deb [arch=amd64 signed-by=/x] http://mirror/debian-security bookworm-security main # why\n\
            deb http://docker/debian bookworm stable\n\
            deb-src http://mirror/debian bookworm main\n\
            deb cdrom:[x]/ bookworm main\n\
            deb https://user:secret@mirror/debian bookworm main\n";
        check(
            text.lines().filter_map(one_line).collect(),
            &format!(
                "Types: deb\nURIs: http://mirror/debian-security\nSuites: bookworm-security\nComponents: main\nSigned-By: {KEYRING}\n"
            ),
        );
    }

    #[test]
    fn only_proxies_without_passwords_are_taken_from_apt() {
        let dump = "Acquire::http::Proxy \"http://proxy:3142\";\nAcquire::https::Proxy \"http://me:pw@proxy\";\n\
            Acquire::http::Proxy::mirror \"DIRECT\";\nAcquire::http::Timeout \"30\";\nAcquire::https::Proxy \"\";\nAPT::Proxy \"x\";\n";
        assert_eq!(
            proxy_options(dump),
            [
                "Acquire::http::Proxy \"http://proxy:3142\";",
                "Acquire::http::Proxy::mirror \"DIRECT\";"
            ]
        );
    }
}
