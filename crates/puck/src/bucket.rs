//! The bucket: from what a user types to an object store that is known to keep its promises.
//!
//! `s3://NAME/PREFIX` is any S3-compatible server, with endpoint, region and keys from the usual AWS environment variables.
//! `file:///DIR` or a plain path is a local directory with the same semantics. Everything above relies on create-only writes, so [`open`] lets some race for one key and refuses a bucket on which
//! not exactly one wins. Every request ends within seconds: a bucket that never answers is an error, not a hang.

mod exact;
mod identity;
mod probe;

use exact::ExactCreate;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder,
    local::LocalFileSystem, path::Path as Key, prefix::PrefixStore,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

pub(crate) use probe::ProbeError;

/// How long a connection to the bucket may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the bucket may be silent within a request.
const READ_TIMEOUT: Duration = Duration::from_secs(8);

/// How long one whole request may take; a segment of 8 MiB needs 2.2 Mbit/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a request that may be repeated is tried again, and for how long at most.
const RETRIES_MAX: usize = 2;
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the bucket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BucketUrl {
    /// A local directory.
    Directory(PathBuf),
    /// A prefix, possibly empty, in an S3 bucket.
    S3 {
        /// The bucket.
        name: String,
        /// What all keys begin with.
        prefix: String,
    },
}

/// The text names no bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a bucket: expected s3://name/prefix, file:///directory or a directory")]
pub(crate) struct ParseBucketError(String);

/// Why a bucket cannot be used. Nothing was changed in it but probe objects.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BucketError {
    /// The directory cannot be made or used.
    #[error("use {path} as a bucket")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The settings do not make a client.
    #[error("set up a client for bucket {url}")]
    Client {
        /// Which.
        url: BucketUrl,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// The data directory was used with another bucket.
    #[error(
        "data directory {data} belongs to another bucket; use that bucket, or another data directory"
    )]
    Foreign {
        /// Which.
        data: PathBuf,
    },
    /// The bucket's id could not be read or written.
    #[error("{action} the bucket's id")]
    Identity {
        /// `read` or `create`.
        action: &'static str,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// It does not keep the promises that everything relies on, or does not answer.
    #[error("bucket {url} failed the start-up probe")]
    Probe {
        /// Which.
        url: BucketUrl,
        /// How.
        #[source]
        source: Box<ProbeError>,
    },
}

impl BucketUrl {
    /// The same bucket, wherever it is looked at from.
    pub(crate) fn absolute(&self) -> Self {
        match self {
            Self::Directory(path) => {
                // One that cannot be found is used as it is, and says so then.
                Self::Directory(fs::canonicalize(path).unwrap_or_else(|_| path.clone()))
            }
            s3 @ Self::S3 { .. } => s3.clone(),
        }
    }
}

/// Connects to the bucket and makes sure that a create-only write lets exactly one win.
pub(crate) async fn open(url: &BucketUrl) -> Result<Arc<dyn ObjectStore>, BucketError> {
    let store = connect(url)?;
    probe::probe(&store)
        .await
        .map_err(|source| BucketError::Probe { url: url.clone(), source: Box::new(source) })?;
    Ok(store)
}

/// Ties a data directory to the bucket for good. What a data directory holds belongs to the sprites of one bucket, and with
/// another one it would be taken for rubbish.
pub(crate) async fn bind(store: &Arc<dyn ObjectStore>, data: &Path) -> Result<(), BucketError> {
    identity::bind(store, data).await
}

/// A client of the bucket, without asking it anything.
pub(crate) fn connect(url: &BucketUrl) -> Result<Arc<dyn ObjectStore>, BucketError> {
    match url {
        BucketUrl::Directory(path) => directory(path.clone()),
        BucketUrl::S3 { name, prefix } => {
            let client = |retries| s3(name, prefix, retries);
            let exact = client(0).and_then(|once| Ok(ExactCreate::new(client(RETRIES_MAX)?, once)));
            exact
                .map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
                .map_err(|source| BucketError::Client { url: url.clone(), source })
        }
    }
}

fn directory(path: PathBuf) -> Result<Arc<dyn ObjectStore>, BucketError> {
    let prepare = || -> io::Result<LocalFileSystem> {
        fs::create_dir_all(&path)?;
        // Objects are what is left when the worker burns, so a write counts only when it is on the disk.
        Ok(LocalFileSystem::new_with_prefix(fs::canonicalize(&path)?)?.with_fsync(true))
    };
    match prepare() {
        Ok(store) => Ok(Arc::new(store)),
        Err(source) => Err(BucketError::Directory { path, source }),
    }
}

fn s3(name: &str, prefix: &str, retries: usize) -> object_store::Result<Arc<dyn ObjectStore>> {
    let options = ClientOptions::new()
        .with_allow_http(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT);
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: retries,
        retry_timeout: RETRY_TIMEOUT,
    };
    let store = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_client_options(options)
        .with_retry(retry)
        .build()?;
    if prefix.is_empty() {
        Ok(Arc::new(store))
    } else {
        Ok(Arc::new(PrefixStore::new(store, Key::parse(prefix)?)))
    }
}

impl FromStr for BucketUrl {
    type Err = ParseBucketError;

    fn from_str(text: &str) -> Result<Self, ParseBucketError> {
        let error = || ParseBucketError(text.to_owned());
        if let Some(rest) = text.strip_prefix("s3://") {
            let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            if name.is_empty() || Key::parse(prefix).is_err() {
                return Err(error());
            }
            return Ok(Self::S3 { name: name.to_owned(), prefix: prefix.to_owned() });
        }
        let path = match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => path,
            None if !text.is_empty() && !text.contains("://") => text,
            _ => return Err(error()),
        };
        Ok(Self::Directory(PathBuf::from(path)))
    }
}

impl std::fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3 { name, prefix } if prefix.is_empty() => write!(f, "s3://{name}"),
            Self::S3 { name, prefix } => write!(f, "s3://{name}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BucketUrl;

    #[test]
    fn every_spelling_of_a_bucket_parses() {
        for (text, shown) in [
            ("s3://name", "s3://name"),
            ("s3://name/", "s3://name"),
            ("s3://name/a/b/", "s3://name/a/b"),
            ("file:///var/bucket", "/var/bucket"),
            ("var/bucket", "var/bucket"),
        ] {
            assert_eq!(text.parse::<BucketUrl>().expect(text).to_string(), shown);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in
            ["", "s3://", "s3:///x", "s3://name/../x", "gs://name", "file://host/x", "http://x"]
        {
            assert!(bad.parse::<BucketUrl>().is_err(), "{bad:?}");
        }
    }
}
