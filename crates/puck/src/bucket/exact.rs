//! Create-only writes that are sent once.
//!
//! A client that repeats a create-only PUT after a lost answer meets its own object and reports that somebody else was
//! first. For the log that would mean giving a sprite up to nobody, so such a write goes through a client without
//! retries, and its caller, who knows what it wrote, decides. Everything else may be repeated.

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use std::{fmt, sync::Arc};

/// Two clients of one bucket: one repeats what fails, the other never does.
#[derive(Debug)]
pub(super) struct ExactCreate {
    repeating: Arc<dyn ObjectStore>,
    once: Arc<dyn ObjectStore>,
}

impl ExactCreate {
    pub(super) fn new(repeating: Arc<dyn ObjectStore>, once: Arc<dyn ObjectStore>) -> Self {
        Self { repeating, once }
    }
}

impl fmt::Display for ExactCreate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repeating.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for ExactCreate {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        match options.mode {
            PutMode::Create => self.once.put_opts(location, payload, options).await,
            PutMode::Overwrite | PutMode::Update(_) => {
                self.repeating.put_opts(location, payload, options).await
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.repeating.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.repeating.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.repeating.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.repeating.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.repeating.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.repeating.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.repeating.copy_opts(from, to, options).await
    }
}
