//! The certificates that this host trusts beyond those that Debian ships, such as a company's own authority.
//!
//! A sprite reaches the same mirrors and indexes as its host, so it has to trust whom the host trusts.

use super::Error;
use std::{
    collections::BTreeSet,
    env, fs, io,
    path::{Path, PathBuf},
};

const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where Debian's package keeps its own set.
const SHIPPED: &str = "/usr/share/ca-certificates";

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The extra certificates of this host as PEM, sorted.
pub(super) fn of_this_host() -> Result<Vec<String>, Error> {
    let bundle = env::var_os("SSL_CERT_FILE").map_or_else(|| PathBuf::from(BUNDLE), PathBuf::from);
    let trusted = read_or_empty(&bundle)?;
    let mut shipped = String::new();
    read_tree(Path::new(SHIPPED), &mut shipped)?;
    Ok(extra(&trusted, &shipped))
}

/// The certificates of one PEM text that another does not have, each once.
fn extra(trusted: &str, shipped: &str) -> Vec<String> {
    let shipped: BTreeSet<String> = certificates(shipped).collect();
    let extra: BTreeSet<String> =
        certificates(trusted).filter(|certificate| !shipped.contains(certificate)).collect();
    extra.into_iter().collect()
}

/// The certificates of a PEM text, each with the same line ends and nothing around it, so that equal ones are equal text.
fn certificates(text: &str) -> impl Iterator<Item = String> {
    text.split(BEGIN).skip(1).filter_map(|rest| rest.split_once(END)).map(|(body, _)| {
        let lines: Vec<&str> = body.split_whitespace().collect();
        format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"))
    })
}

fn read_tree(directory: &Path, text: &mut String) -> Result<(), Error> {
    let failed = |source| Error::Host { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(source)),
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            read_tree(&path, text)?;
        } else {
            text.push_str(&read_or_empty(&path)?);
        }
    }
    Ok(())
}

fn read_or_empty(path: &Path) -> Result<String, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Host { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_debian_does_not_ship_is_extra() {
        let pem = |body: &str| format!("# a name\r\n{BEGIN}\r\n{body}\r\n{END}\r\n");
        let trusted = [pem("AAAA\r\nBBBB"), pem("CCCC"), pem("CCCC"), pem("DDDD")].concat();
        let shipped = format!("{BEGIN}\nAAAA\nBBBB\n{END}{BEGIN}\nDDDD\n{END}");
        assert_eq!(extra(&trusted, &shipped), [format!("{BEGIN}\nCCCC\n{END}\n")]);
    }

    #[test]
    fn a_cut_bundle_gives_what_is_whole() {
        assert_eq!(
            extra(&format!("{BEGIN}\nAAAA\n{END}\n{BEGIN}\nBB"), ""),
            [format!("{BEGIN}\nAAAA\n{END}\n")]
        );
    }
}
