//! A store whose objects are encrypted, for the files of a log: whole objects, each under its name.
//!
//! ```text
//! object   "PUCKENC1" | id of the key [8] | encrypted bytes | tag [16]
//! ```
//!
//! The tag covers the front too, and the key follows from the name, so an object that was changed, cut or moved is refused.
//! Encrypting the same bytes under the same name gives the same object, so whoever finds its own object after a lost answer
//! recognises it. What is not encrypted is refused: otherwise whoever can write to the bucket could replace an object.
//!
//! Sizes are those of the plain bytes. A range is served from the whole object, which suits files that are read whole.

use crate::keys::{SecretKey, TAG_BYTES};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    path::Path,
};
use std::{fmt, ops::Range, sync::Arc};

const MAGIC: &[u8; 8] = b"PUCKENC1";
const FRONT_BYTES: usize = 16;

/// How much larger an encrypted object is.
const ADDED_BYTES: u64 = (FRONT_BYTES + TAG_BYTES) as u64;

/// Why an object is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("{0} is not encrypted, and has to be")]
    Plain(Path),
    #[error("{0} is encrypted with another key")]
    Key(Path),
    #[error("{0} was changed, cut or moved since it was encrypted")]
    Changed(Path),
}

impl From<Refused> for object_store::Error {
    fn from(refused: Refused) -> Self {
        Self::Generic { store: "Encrypted", source: Box::new(refused) }
    }
}

/// A store that encrypts what is put and decrypts what is got, with one key.
#[derive(Debug)]
pub struct Encrypted {
    inner: Arc<dyn ObjectStore>,
    key: SecretKey,
}

impl Encrypted {
    /// Everything through this store is encrypted with the key.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, key: SecretKey) -> Self {
        Self { inner, key }
    }

    fn encrypt(&self, path: &Path, payload: &PutPayload) -> PutPayload {
        let front = self.front();
        let mut text = Vec::with_capacity(payload.content_length() + TAG_BYTES);
        payload.iter().for_each(|part| text.extend_from_slice(part));
        self.key.of_object(path).encrypt(0, &front, &mut text);
        [Bytes::copy_from_slice(&front), Bytes::from(text)].into_iter().collect()
    }

    fn decrypt(&self, path: &Path, object: &[u8]) -> std::result::Result<Vec<u8>, Refused> {
        let (front, encrypted) = object
            .split_at_checked(FRONT_BYTES)
            .filter(|(front, _)| front.starts_with(MAGIC))
            .ok_or_else(|| Refused::Plain(path.clone()))?;
        if front != self.front() {
            return Err(Refused::Key(path.clone()));
        }
        self.key
            .of_object(path)
            .decrypt(0, front, encrypted)
            .map_err(|_wrong| Refused::Changed(path.clone()))
    }

    fn front(&self) -> [u8; FRONT_BYTES] {
        let mut front = [0; FRONT_BYTES];
        front[..8].copy_from_slice(MAGIC);
        front[8..].copy_from_slice(&self.key.id());
        front
    }
}

/// What a caller sees of an object.
fn plain_meta(mut meta: ObjectMeta) -> ObjectMeta {
    meta.size = meta.size.saturating_sub(ADDED_BYTES);
    meta
}

fn requested(range: Option<&GetRange>, length: u64) -> Result<Range<u64>> {
    let Some(range) = range else { return Ok(0..length) };
    range.as_range(length).map_err(|source| object_store::Error::Generic {
        store: "Encrypted",
        source: source.into(),
    })
}

impl fmt::Display for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encrypted({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Encrypted {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.inner.put_opts(location, self.encrypt(location, &payload), options).await
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(object_store::Error::NotImplemented {
            operation: "put in parts".into(),
            implementer: "Encrypted".into(),
        })
    }

    async fn get_opts(&self, location: &Path, mut options: GetOptions) -> Result<GetResult> {
        let range = options.range.take();
        let head = options.head;
        let got = self.inner.get_opts(location, options).await?;
        let (attributes, extensions) = (got.attributes.clone(), got.extensions.clone());
        let meta = plain_meta(got.meta.clone());
        if head {
            let (payload, range) = (GetResultPayload::Stream(stream::empty().boxed()), 0..0);
            return Ok(GetResult { payload, meta, range, attributes, extensions });
        }
        let plain = Bytes::from(self.decrypt(location, &got.bytes().await?)?);
        let range = requested(range.as_ref(), plain.len() as u64)?;
        let at = |offset: u64| usize::try_from(offset).expect("a range inside of a buffer");
        let part = plain.slice(at(range.start)..at(range.end));
        let payload = GetResultPayload::Stream(stream::iter([Ok(part)]).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix).map_ok(plain_meta).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset).map_ok(plain_meta).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.objects = listed.objects.into_iter().map(plain_meta).collect();
        Ok(listed)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        // A copy would be under another name, where its bytes do not decrypt.
        Err(object_store::Error::NotImplemented {
            operation: "copy".into(),
            implementer: "Encrypted".into(),
        })
    }
}

#[cfg(test)]
mod tests;
