//! Where an account is, for commands that read it in the bucket and ask no server.

use crate::{
    bucket::{self, BucketUrl, ParseBucketError},
    keys::{KeyFileArgs, Wraps},
};
use api::name::{NameError, OrgName};
use object_store::ObjectStore;
use std::sync::Arc;

/// An account in a bucket.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PlaceArgs {
    /// s3://name/prefix or a directory; keys of an S3 bucket come from the usual AWS environment variables
    #[arg(value_name = "URL", value_parser = bucket_url)]
    bucket: BucketUrl,
    /// The organization
    #[arg(long, value_name = "NAME", default_value = "local", value_parser = organization)]
    organization: OrgName,
    #[command(flatten)]
    key_file: KeyFileArgs,
}

/// An account in a bucket that nothing has been asked yet.
#[derive(Debug)]
pub(crate) struct Place {
    /// The bucket.
    pub(crate) bucket: Arc<dyn ObjectStore>,
    /// Whose account.
    pub(crate) org: OrgName,
    /// How its key is wrapped.
    pub(crate) wraps: Wraps,
}

impl PlaceArgs {
    /// Connects, and reads the master keys.
    pub(crate) fn connect(&self) -> anyhow::Result<Place> {
        let bucket = bucket::connect(&self.bucket)?;
        let (org, masters) = (self.organization.clone(), self.key_file.read()?);
        let wraps = Wraps::new(bucket.clone(), org.clone(), masters);
        Ok(Place { bucket, org, wraps })
    }
}

fn bucket_url(text: &str) -> Result<BucketUrl, ParseBucketError> {
    text.parse()
}

fn organization(text: &str) -> Result<OrgName, NameError> {
    text.parse()
}
