//! Counting what goes to a bucket and comes from it.

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What went through a [`Metered`] store, failed requests included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that write.
    pub puts: u64,
    /// Bytes of these.
    pub put_bytes: u64,
    /// Requests that read.
    pub gets: u64,
    /// Bytes that they were answered with.
    pub get_bytes: u64,
}

/// A store that counts. Cheap enough for every request.
#[derive(Debug)]
pub struct Metered {
    inner: Arc<dyn ObjectStore>,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    gets: AtomicU64,
    get_bytes: AtomicU64,
}

impl Metered {
    /// Counts from zero.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        let zero = AtomicU64::default;
        Self { inner, puts: zero(), put_bytes: zero(), gets: zero(), get_bytes: zero() }
    }

    /// What went through until now.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Traffic {
            puts: now(&self.puts),
            put_bytes: now(&self.put_bytes),
            gets: now(&self.gets),
            get_bytes: now(&self.get_bytes),
        }
    }
}

impl fmt::Display for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Metered {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.put_bytes.fetch_add(payload.content_length() as u64, Ordering::Relaxed);
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        let head = options.head;
        let result = self.inner.get_opts(location, options).await?;
        if !head {
            let bytes = result.range.end - result.range.start;
            self.get_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(result)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.inner.copy_opts(from, to, options).await
    }
}
