//! Encryption at rest: what an account's objects are encrypted with, and where that comes from.
//!
//! ```text
//! master key, in the operator's file --unwraps--> account key --derives--> key of its log and its blank volume's pointer
//!                                    accounts/ORG/keys/MASTER          \--> key of each of its volumes
//! ```
//!
//! The account key is made at random when the account is. It lies in the bucket once for each master key, encrypted with that one.
//! These *wraps* also are the marker: an account that has one is encrypted, all of it, and an account that has a log and no
//! wrap is plain for good. So another master key takes a new wrap and rewrites nothing else.
//!
//! [`Wraps::look`] says which it is and changes nothing, so that a server whose key does not fit can refuse before it has
//! changed anything. [`Wraps::settle`] looks again, once the server owns the bucket, and makes what is missing.

mod file;

pub(crate) use file::{KeyFileArgs, KeyFileError, MasterKeys, generate};

use crate::account;
use api::name::OrgName;
use file::{KEY_BYTES, MasterKey};
use futures::TryStreamExt;
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path as Key,
};
use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc};
use tracing::info;
use volume::{Encrypted, Keys, SecretKey, VolumeId};

/// Tells this use of an account's key from every other.
const ACCOUNT: &[u8] = b"puck account objects key 1";

/// What tells a master key from others, without giving it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyId([u8; 8]);

/// The keys of an account; none if it is plain.
#[derive(Debug, Clone)]
pub(crate) struct AccountKeys(Option<SecretKey>);

/// An account's key as it lies in the bucket, and the master keys that are to unwrap it.
#[derive(Debug)]
pub(crate) struct Wraps {
    bucket: Arc<dyn ObjectStore>,
    org: OrgName,
    masters: Option<MasterKeys>,
}

/// What an account is found to be.
#[derive(Debug)]
pub(crate) enum Looked {
    /// Not encrypted.
    Plain,
    /// Encrypted, with a key that one of the master keys unwraps.
    Encrypted {
        /// The key.
        key: SecretKey,
        /// Whether the first of the master keys unwraps it.
        wrapped: bool,
    },
    /// Nothing yet. It will be encrypted.
    New,
}

/// Why an account's objects are out of reach. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// The bucket did not answer.
    #[error("{action} the wraps of the key of account {org}")]
    Bucket {
        /// `list`, `create` or `remove`.
        action: &'static str,
        /// Whose.
        org: OrgName,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// It is encrypted, and there is no master key.
    #[error(
        "account {org} is encrypted with master key {}: name the file that holds it with --encryption-key-file",
        list(wrapped)
    )]
    Locked {
        /// Which.
        org: OrgName,
        /// The master keys that unwrap its key.
        wrapped: BTreeSet<KeyId>,
    },
    /// It is not encrypted, and there is a master key, or one is to be retired.
    #[error(
        "account {0} is not encrypted, and stays so in this bucket: leave --encryption-key-file out, or move its sprites to a \
         new bucket as docs/encryption.md says"
    )]
    Plain(OrgName),
    /// It is encrypted with another master key.
    #[error(
        "account {org} is encrypted with master key {}, and {file} holds {}: name the file that holds the right one with \
         --encryption-key-file",
        list(wrapped),
        list(held)
    )]
    Unknown {
        /// Which.
        org: OrgName,
        /// The master keys that unwrap its key.
        wrapped: BTreeSet<KeyId>,
        /// The file.
        file: PathBuf,
        /// What it holds.
        held: BTreeSet<KeyId>,
    },
    /// A wrap was changed, moved or cut, or cannot be read.
    #[error("unwrap the key of account {org} in {key}")]
    Unwrap {
        /// Whose.
        org: OrgName,
        /// The object.
        key: Key,
        /// Why.
        #[source]
        source: StoreError,
    },
}

fn list(ids: &BTreeSet<KeyId>) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

impl AccountKeys {
    /// Whether the account is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.is_some()
    }

    /// The bucket as the account's own objects are put and got.
    pub(crate) fn store(&self, bucket: &Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        match &self.0 {
            Some(key) => Arc::new(Encrypted::new(bucket.clone(), key.derive(ACCOUNT, &[]))),
            None => bucket.clone(),
        }
    }

    /// The keys that a volume needs: its own and those of its ancestors.
    pub(crate) fn of_volume(&self, volume: VolumeId, ancestors: &[VolumeId]) -> Keys {
        let Some(key) = &self.0 else { return Keys::none() };
        let volumes = std::iter::once(&volume).chain(ancestors);
        volumes.fold(Keys::none(), |keys, volume| keys.with(*volume, key.of_volume(*volume)))
    }
}

impl Looked {
    /// The keys for reading what is there; a new account has nothing.
    pub(crate) fn into_keys(self) -> AccountKeys {
        match self {
            Self::Encrypted { key, .. } => AccountKeys(Some(key)),
            Self::Plain | Self::New => AccountKeys(None),
        }
    }
}

impl Wraps {
    /// Nothing is requested yet.
    pub(crate) fn new(
        bucket: Arc<dyn ObjectStore>,
        org: OrgName,
        masters: Option<MasterKeys>,
    ) -> Self {
        Self { bucket, org, masters }
    }

    /// Says whether the account is encrypted, and unwraps its key. Changes nothing.
    pub(crate) async fn look(&self) -> Result<Looked, KeysError> {
        let (wrapped, org) = (self.list().await?, self.org.clone());
        let Some(masters) = &self.masters else {
            let plain = wrapped.is_empty();
            return if plain { Ok(Looked::Plain) } else { Err(KeysError::Locked { org, wrapped }) };
        };
        if wrapped.is_empty() {
            return if self.has_log().await? {
                Err(KeysError::Plain(org))
            } else {
                Ok(Looked::New)
            };
        }
        match masters.iter().find(|master| wrapped.contains(&master.id())) {
            Some(master) => Ok(Looked::Encrypted {
                key: self.unwrap(master).await?,
                wrapped: wrapped.contains(&masters.first().id()),
            }),
            None => {
                let held = masters.iter().map(MasterKey::id).collect();
                Err(KeysError::Unknown { org, wrapped, file: masters.path().to_owned(), held })
            }
        }
    }

    /// Makes a new account's key, and wraps an old one for the first of the master keys. Only for the owner of the bucket.
    pub(crate) async fn settle(&self) -> Result<AccountKeys, KeysError> {
        let looked = self.look().await?;
        let Some(masters) = &self.masters else { return Ok(looked.into_keys()) };
        let first = masters.first();
        let key = match looked {
            Looked::Plain => return Ok(AccountKeys(None)),
            Looked::Encrypted { key, wrapped: true } => key,
            Looked::Encrypted { key, wrapped: false } => {
                self.wrap(first, &key).await?;
                info!(master = %first.id(), "the account's key is wrapped for a new master key");
                key
            }
            Looked::New => {
                self.wrap(first, &file::random()).await?;
                info!(master = %first.id(), "the account is encrypted from now on");
                // If there was one by now, that one counts.
                self.unwrap(first).await?
            }
        };
        Ok(AccountKeys(Some(key)))
    }

    /// Removes the wraps for master keys that the file does not hold, once the first of those that it holds has one. Returns
    /// which.
    pub(crate) async fn retire(&self) -> Result<BTreeSet<KeyId>, KeysError> {
        let (Some(masters), Looked::Encrypted { .. }) = (&self.masters, self.look().await?) else {
            return Err(KeysError::Plain(self.org.clone()));
        };
        self.settle().await?;
        self.unwrap(masters.first()).await?;
        let held: BTreeSet<KeyId> = masters.iter().map(MasterKey::id).collect();
        let retired: BTreeSet<KeyId> = self.list().await?.difference(&held).copied().collect();
        for id in &retired {
            self.bucket
                .delete(&self.key(*id))
                .await
                .map_err(|source| self.failed("remove", source))?;
        }
        Ok(retired)
    }

    /// The master keys that unwrap the account's key.
    async fn list(&self) -> Result<BTreeSet<KeyId>, KeysError> {
        let found: Vec<_> = self
            .bucket
            .list(Some(&self.prefix()))
            .try_collect()
            .await
            .map_err(|source| self.failed("list", source))?;
        Ok(found.iter().filter_map(|meta| KeyId::parse(meta.location.filename()?)).collect())
    }

    async fn has_log(&self) -> Result<bool, KeysError> {
        let prefix = account::log_prefix(&self.org);
        let first = self.bucket.list(Some(&prefix)).try_next().await;
        first.map(|first| first.is_some()).map_err(|source| self.failed("list", source))
    }

    async fn wrap(&self, master: &MasterKey, key: &SecretKey) -> Result<(), KeysError> {
        let store = master.store(&self.bucket);
        let (bytes, create) = (key.to_bytes().to_vec(), PutOptions::from(PutMode::Create));
        match store.put_opts(&self.key(master.id()), bytes.into(), create).await {
            Ok(_) | Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                Ok(())
            }
            Err(source) => Err(self.failed("create", source)),
        }
    }

    async fn unwrap(&self, master: &MasterKey) -> Result<SecretKey, KeysError> {
        let key = self.key(master.id());
        // A wrap that is shorter is refused as a range outside of it.
        let read = master.store(&self.bucket).get_range(&key, 0..KEY_BYTES as u64).await;
        read.and_then(|bytes| {
            <[u8; KEY_BYTES]>::try_from(&*bytes)
                .map(|bytes| SecretKey::from_bytes(bytes.into()))
                .map_err(|source| StoreError::Generic { store: "Encrypted", source: source.into() })
        })
        .map_err(|source| KeysError::Unwrap { org: self.org.clone(), key, source })
    }

    fn prefix(&self) -> Key {
        Key::from(format!("accounts/{}/keys", self.org))
    }

    fn key(&self, id: KeyId) -> Key {
        self.prefix().join(id.to_string())
    }

    fn failed(&self, action: &'static str, source: StoreError) -> KeysError {
        KeysError::Bucket { action, org: self.org.clone(), source }
    }
}

impl KeyId {
    /// Reads back what `Display` writes, and nothing else.
    fn parse(text: &str) -> Option<Self> {
        let id = Self(u64::from_str_radix(text, 16).ok()?.to_be_bytes());
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests;
