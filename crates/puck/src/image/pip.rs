//! The image's `/etc/pip.conf`, so that `pip install NAME` just works in a sprite.
//!
//! It trusts the system's certificates (a virtual environment's own pip has a bundle of its own), asks the index that the host's
//! pip asks, and may install outside of a virtual environment: Debian guards the packages of a host's tools with that refusal,
//! but a sprite is a computer of its own and can be restored. What the host's settings have of passwords stays there.

use super::{Error, recipe::has_credentials};
use std::{env, fs, io, path::PathBuf};

/// The settings that say where packages come from, with the variables that override them.
const SETTINGS: &[(&str, &str)] = &[
    ("index-url", "PIP_INDEX_URL"),
    ("extra-index-url", "PIP_EXTRA_INDEX_URL"),
    ("trusted-host", "PIP_TRUSTED_HOST"),
];

const FIXED: &str =
    "[global]\nbreak-system-packages = true\ncert = /etc/ssl/certs/ca-certificates.crt\n";

/// Writes the settings for an image of this host.
pub(super) fn of_this_host() -> Result<String, Error> {
    let mut files = vec![PathBuf::from("/etc/pip.conf")];
    if let Some(home) = env::var_os("HOME").map(PathBuf::from) {
        files.extend([home.join(".pip/pip.conf"), home.join(".config/pip/pip.conf")]);
    }
    files.extend(env::var_os("PIP_CONFIG_FILE").map(PathBuf::from));
    let mut texts = Vec::new();
    for path in files {
        match fs::read_to_string(&path) {
            Ok(text) => texts.push(text),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(source) => return Err(Error::Host { path, source }),
        }
    }
    Ok(conf(&texts, |variable| env::var(variable).ok()))
}

/// The settings of an image from the host's files, the later before the earlier, and the variables before all.
fn conf(files: &[String], variable: impl Fn(&str) -> Option<String>) -> String {
    let mut conf = FIXED.to_owned();
    for (name, overriding) in SETTINGS {
        let value =
            variable(overriding).or_else(|| files.iter().rev().find_map(|text| global(text, name)));
        let words: Vec<&str> = value.iter().flat_map(|value| value.split_whitespace()).collect();
        if !words.is_empty() && !words.iter().any(|word| has_credentials(word)) {
            conf.push_str(&format!("{name} = {}\n", words.join("\n    ")));
        }
    }
    conf
}

/// The value of a setting in the section `[global]`. Indented lines go on with the one before.
fn global(text: &str, wanted: &str) -> Option<String> {
    let mut in_global = false;
    let mut value: Option<String> = None;
    let mut in_value = false;
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        if line.starts_with('[') {
            in_global = line.trim() == "[global]";
            in_value = false;
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = value.as_mut().filter(|_| in_value) {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, text)) = line.split_once(['=', ':']).filter(|_| in_global) {
            in_value = name.trim().replace('_', "-") == wanted;
            if in_value {
                value = Some(text.trim().to_owned());
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], index_url: Option<&str>, wanted: &str) {
        let files: Vec<String> = files.iter().map(|text| (*text).to_owned()).collect();
        let variable =
            |name: &str| index_url.filter(|_| name == "PIP_INDEX_URL").map(str::to_owned);
        assert_eq!(conf(&files, variable), format!("{FIXED}{wanted}"));
    }

    #[test]
    fn the_index_comes_from_the_last_file_or_the_variable() {
        check(&[], None, "");
        let first = "[global]\nindex-url = https://one/simple\ncert = /x\n";
        check(&[first], None, "index-url = https://one/simple\n");
        check(
            &[first, "[global]\nindex_url=https://two/simple"],
            None,
            "index-url = https://two/simple\n",
        );
        check(&[first], Some("https://three/simple"), "index-url = https://three/simple\n");
        check(&["[install]\nindex-url = https://one/simple\n"], None, "");
    }

    #[test]
    fn several_lines_stay_several_lines() {
        let text = "[global]\nextra-index-url =\n    https://a/\n    https://b/\ntimeout = 3\n";
        check(&[text], None, "extra-index-url = https://a/\n    https://b/\n");
    }

    #[test]
    fn a_password_stays_on_the_host() {
        check(&["[global]\nindex-url = https://me:secret@one/simple\n"], None, "");
    }
}
