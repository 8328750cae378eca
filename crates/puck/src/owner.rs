//! Who owns the bucket: one object per period of ownership, created and never changed.
//!
//! ```text
//! owner/0000000000000001            {"node": …, "started_at": …, "host": …}
//! owner/0000000000000001.released   the owner ended and everything it had is in the bucket
//! owner/0000000000000002            the next owner
//! ```
//!
//! A server may take the next epoch when the newest one is released or its own, as after a crash. Otherwise it refuses to
//! start, since the owner may be alive, unless its user says that it is not. It also refuses when another server has owned the
//! bucket since it was cut off itself, because what only its data directory has is out of date then. Creation is create-only, so of two servers
//! that take the same epoch one loses and refuses. Logs and segments carry the epoch, which fences an owner that was taken
//! over by mistake.

use jiff::Timestamp;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path as Key,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::info;
use uuid::Uuid;

/// The prefix of all owner objects.
const PREFIX: &str = "owner";

/// What the key of a released epoch ends with.
const RELEASED: &str = ".released";

/// The longest owner object that is read.
const OWNER_BYTES_MAX: u64 = 16 * 1024;

/// Who wants to own the bucket.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// The data directory's id.
    pub(crate) node: String,
    /// The host's name, for people.
    pub(crate) host: String,
    /// Whether the user says that an owner that did not release the bucket is dead.
    pub(crate) take_over: bool,
    /// Whether the data directory holds writes that the bucket lacks.
    pub(crate) unsettled: bool,
}

/// A period of ownership that this server holds.
#[derive(Debug)]
pub(crate) struct Ownership {
    store: Arc<dyn ObjectStore>,
    epoch: u64,
}

/// The content of an owner object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The data directory's id, which survives restarts.
    pub(crate) node: String,
    /// When this period began.
    pub(crate) started_at: Timestamp,
    /// The host's name, for people.
    pub(crate) host: String,
}

/// Why this server does not own the bucket. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    /// The newest epoch is another server's and not released.
    #[error(
        "the bucket is owned by {} (node {}, since {}, epoch {epoch}); stop that server, or pass --take-over if it is dead",
        owner.host, owner.node, owner.started_at
    )]
    Held {
        /// The newest epoch.
        epoch: u64,
        /// Its owner.
        owner: Owner,
    },
    /// The data directory has writes that the bucket lacks, and another server has owned the bucket since.
    #[error(
        "{} (node {}, epoch {epoch}) has owned the bucket since this data directory's last server was cut off; what that \
         one had not put into the bucket would be set aside: pass --take-over to go on",
        owner.host, owner.node
    )]
    Superseded {
        /// The newest epoch.
        epoch: u64,
        /// Its owner.
        owner: Owner,
    },
    /// Another server created the same epoch first.
    #[error("another server took the bucket just now (epoch {0})")]
    Lost(u64),
    /// An owner object is not what a server of this kind writes.
    #[error("owner object {key} is not understood")]
    Foreign {
        /// Which.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The bucket did not answer.
    #[error("{action} the owner of the bucket")]
    Bucket {
        /// `read`, `create` or `release`.
        action: &'static str,
        /// Why.
        #[source]
        source: Error,
    },
}

impl Claim {
    /// Takes the next epoch of the bucket, or says who has it.
    pub(crate) async fn take(self, store: Arc<dyn ObjectStore>) -> Result<Ownership, OwnerError> {
        let newest = newest(&store).await?;
        if let Some(newest) = &newest {
            let owner = read(&store, newest.epoch).await?;
            if owner.node != self.node && !self.take_over {
                if !newest.released {
                    return Err(OwnerError::Held { epoch: newest.epoch, owner });
                }
                if self.unsettled {
                    return Err(OwnerError::Superseded { epoch: newest.epoch, owner });
                }
            }
            if !newest.released {
                info!(
                    epoch = newest.epoch,
                    node = owner.node,
                    host = owner.host,
                    "the last owner did not release the bucket"
                );
            }
        }
        let epoch = newest.map_or(0, |newest| newest.epoch) + 1;
        let node = self.node.clone();
        let owner = Owner { node: self.node, started_at: Timestamp::now(), host: self.host };

        let body = serde_json::to_vec(&owner).expect("plain text is always JSON");
        match create(&store, &key(epoch), body).await {
            Ok(()) => {}
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                return Err(OwnerError::Lost(epoch));
            }
            Err(source) => return Err(OwnerError::Bucket { action: "create", source }),
        }
        info!(epoch, node, "own the bucket");
        Ok(Ownership { store, epoch })
    }
}

impl Ownership {
    /// The number of this period; larger than that of any before.
    #[must_use]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Ends the period: everything is in the bucket, and any server may come next. After an error the same data
    /// directory can still start again.
    pub(crate) async fn release(self) -> Result<(), OwnerError> {
        match create(&self.store, &released_key(self.epoch), b"{}".to_vec()).await {
            Ok(()) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
            Err(source) => Err(OwnerError::Bucket { action: "release", source }),
        }
    }
}

/// The id of a data directory, made at its first use.
pub(crate) fn node_id(data: &Path) -> io::Result<String> {
    let path: PathBuf = data.join("node");
    match fs::read_to_string(&path) {
        Ok(text) if Uuid::try_parse(text.trim()).is_ok() => Ok(text.trim().to_owned()),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the file `node` of the data directory holds no id",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::new_v4().to_string();
            crate::data::write_private(&path, id.as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

struct Newest {
    epoch: u64,
    released: bool,
}

async fn newest(store: &Arc<dyn ObjectStore>) -> Result<Option<Newest>, OwnerError> {
    let list = store
        .list_with_delimiter(Some(&Key::from(PREFIX)))
        .await
        .map_err(|source| OwnerError::Bucket { action: "read", source })?;
    let names: Vec<&str> =
        list.objects.iter().filter_map(|meta| meta.location.filename()).collect();
    let parse = |name: &str| u64::from_str_radix(name, 16).ok().filter(|_| name.len() == 16);
    let Some(epoch) = names.iter().filter_map(|name| parse(name)).max() else { return Ok(None) };
    let released = names
        .iter()
        .filter_map(|name| name.strip_suffix(RELEASED))
        .filter_map(parse)
        .any(|e| e == epoch);
    Ok(Some(Newest { epoch, released }))
}

async fn read(store: &Arc<dyn ObjectStore>, epoch: u64) -> Result<Owner, OwnerError> {
    let key = key(epoch);
    let bucket = |source| OwnerError::Bucket { action: "read", source };
    let bytes = store.get_range(&key, 0..OWNER_BYTES_MAX).await.map_err(bucket)?;
    serde_json::from_slice(&bytes)
        .map_err(|source| OwnerError::Foreign { key: key.to_string(), source })
}

async fn create(
    store: &Arc<dyn ObjectStore>,
    key: &Key,
    body: Vec<u8>,
) -> object_store::Result<()> {
    let sent = store
        .put_opts(key, PutPayload::from(body.clone()), PutOptions::from(PutMode::Create))
        .await;
    match sent {
        Ok(_) => Ok(()),
        Err(error @ (Error::AlreadyExists { .. } | Error::Precondition { .. })) => Err(error),
        // The answer may have been lost after the object was written. The node id and the time make the content ours.
        Err(error) => match store.get_range(key, 0..OWNER_BYTES_MAX).await {
            Ok(found) if found == body => Ok(()),
            _ => Err(error),
        },
    }
}

fn key(epoch: u64) -> Key {
    Key::from(format!("{PREFIX}/{epoch:016x}"))
}

fn released_key(epoch: u64) -> Key {
    Key::from(format!("{PREFIX}/{epoch:016x}{RELEASED}"))
}

#[cfg(test)]
mod tests;
