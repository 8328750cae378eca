//! Tokens: minted once, shown once, kept as a hash.

use super::{AccountError, tables};
use api::{name::OrgName, token::Token};
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::{fmt::Write, fs, io, path::Path, sync::Arc};
use subtle::ConstantTimeEq;

/// SHA-256 of a secret of 256 random bits, which needs no salt and no slow hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hash(pub(super) Vec<u8>);

impl Hash {
    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).to_vec())
    }

    /// Whether this is the hash of `secret`, in a time that tells nothing.
    pub(super) fn matches(&self, secret: &str) -> bool {
        self.0.ct_eq(&Self::of(secret).0).into()
    }
}

/// The token in the file at `path` if it is valid, else a new one, written there for its user alone.
pub(super) fn load_or_mint(
    db: &mut Connection,
    org: &OrgName,
    org_id: &str,
    path: &Path,
) -> Result<Token, AccountError> {
    let local = |error| AccountError::Local(Arc::new(error));
    let known = tables::tokens(db)?;
    match fs::read_to_string(path) {
        Ok(text) => {
            if let Ok(token) = text.trim().parse::<Token>()
                && token.org == *org
                && token.org_id == org_id
                && known.get(&token.id).is_some_and(|hash| hash.matches(token.secret()))
            {
                return Ok(token);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(local(error)),
    }
    let token = Token::new(org.clone(), org_id.to_owned(), random_hex::<6>(), random_hex::<32>());
    tables::add_token(db, &token.id, &Hash::of(token.secret()))?;
    crate::data::write_private(path, format!("{}\n", token.reveal()).as_bytes()).map_err(local)?;
    Ok(token)
}

/// A short id of an organization: part of host names, so short, in lower case and without look-alikes.
pub(super) fn random_org_id() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let random: [u8; 4] = rand::random();
    random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

fn random_hex<const BYTES: usize>() -> String {
    let random: [u8; BYTES] = std::array::from_fn(|_| rand::random());
    random.iter().fold(String::with_capacity(BYTES * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}
