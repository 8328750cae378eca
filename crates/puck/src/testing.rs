//! An object store that misbehaves on command, for tests.

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, memory::InMemory, path::Path,
};
use std::{
    fmt,
    sync::{Arc, Mutex},
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A create-only write looks whether the key is free, and writes later.
    CheckThenWrite,
    /// Reads work, writes fail with a server error and change nothing.
    FailWrites,
    /// Never answers.
    Hang,
    /// A create-only write overwrites.
    IgnoreConditions,
    /// Nothing.
    None,
    /// Everything is forbidden.
    Refuse,
}

/// An in-memory store with a fault that can be changed at any time.
#[derive(Debug, Clone)]
pub(crate) struct FaultyStore {
    inner: Arc<InMemory>,
    fault: Arc<Mutex<Fault>>,
}

impl FaultyStore {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { inner: Arc::default(), fault: Arc::new(Mutex::new(fault)) }
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().expect("no panic while held") = fault;
    }

    async fn fail(&self, path: &Path, write: bool) -> Result<()> {
        let fault = *self.fault.lock().expect("no panic while held");
        match fault {
            Fault::FailWrites if write => {
                Err(Error::Generic { store: "faulty", source: "status 500".into() })
            }
            Fault::Hang => std::future::pending().await,
            Fault::Refuse => {
                Err(Error::PermissionDenied { path: path.to_string(), source: "status 403".into() })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        self.fail(location, true).await?;
        let fault = *self.fault.lock().expect("no panic while held");
        if fault == Fault::CheckThenWrite && options.mode == PutMode::Create {
            if self.inner.head(location).await.is_ok() {
                let source = "status 412".into();
                return Err(Error::AlreadyExists { path: location.to_string(), source });
            }
            tokio::task::yield_now().await;
        }
        if matches!(fault, Fault::CheckThenWrite | Fault::IgnoreConditions) {
            options.mode = PutMode::Overwrite;
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.fail(location, true).await?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.fail(location, false).await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let allowed = locations
            .and_then(move |location| {
                let store = store.clone();
                async move {
                    store.fail(&location, true).await?;
                    Ok(location)
                }
            })
            .boxed();
        self.inner.delete_stream(allowed)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        stream::once(async move {
            store.fail(&prefix.clone().unwrap_or_default(), false).await?;
            Ok::<_, Error>(store.inner.list(prefix.as_ref()))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.fail(&prefix.cloned().unwrap_or_default(), false).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.fail(to, true).await?;
        self.inner.copy_opts(from, to, options).await
    }
}

/// Every key in the store.
pub(crate) async fn keys(store: &Arc<dyn ObjectStore>) -> Vec<String> {
    store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.expect("a list")
}
