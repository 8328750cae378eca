//! Images in the bucket.
//!
//! `images/DIGEST.erofs` is the image, `images/DIGEST.json` says what is in it, `images/current` names the image of new sprites.
//! An image's key is its digest, so writing it twice writes the same bytes. It goes up in parts, because one request
//! must not have to carry all of it within the time that a request may take.

use super::{BuiltImage, Digest, digest::Hasher};
use futures::StreamExt as _;
use object_store::{
    ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, WriteMultipart, path::Path as Key,
};
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The bytes of one part; an S3 server takes none below 5 MiB but the last.
const PART_BYTES: usize = 8 << 20;

/// How many parts are under way at once.
const PARTS_MAX: usize = 4;

/// The most bytes that the pointer may have.
const POINTER_BYTES_MAX: u64 = 256;

/// Why the bucket did not take or give an image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BucketError {
    /// A request failed.
    #[error("{action} {key} in the bucket")]
    Request {
        /// What was tried.
        action: &'static str,
        /// On which object.
        key: Key,
        /// Why it failed.
        #[source]
        source: object_store::Error,
    },
    /// `images/current` holds something else than a digest.
    #[error("{POINTER} in the bucket does not name an image")]
    Pointer,
    /// The bucket's bytes are not the image that they are named after.
    #[error("image {wanted} in the bucket is damaged: its bytes are {found}")]
    Damaged {
        /// What the name says.
        wanted: Digest,
        /// What the bytes say.
        found: Digest,
    },
    /// The local side of the copy failed.
    #[error("use {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

const POINTER: &str = "images/current";

/// What the names of copies begin with that are not complete.
const UNFINISHED: &str = ".image-";

/// Puts an image into the bucket and makes it the one for new sprites. The pointer is written last.
///
/// # Errors
/// When the bucket refuses or the cached file cannot be read. The pointer then still names the image that it named before.
pub(crate) async fn publish(
    store: &dyn ObjectStore,
    image: &BuiltImage,
) -> Result<(), BucketError> {
    let key = image_key(&image.digest);
    if !exists(store, &key).await? {
        upload(store, &key, &image.file).await?;
    }
    let manifest = tokio::fs::read(&image.manifest).await.map_err(file_error(&image.manifest))?;
    put(store, Key::from(format!("images/{}.json", image.digest)), manifest).await?;
    put(store, Key::from(POINTER), format!("{}\n", image.digest).into_bytes()).await
}

/// The image of new sprites, if the bucket has any.
///
/// # Errors
/// When the bucket does not answer, or the pointer is not a digest.
pub(crate) async fn current(store: &dyn ObjectStore) -> Result<Option<Digest>, BucketError> {
    let key = Key::from(POINTER);
    let failed = |source| BucketError::Request { action: "read", key: Key::from(POINTER), source };
    let found = match store.get(&key).await {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    if found.meta.size > POINTER_BYTES_MAX {
        return Err(BucketError::Pointer);
    }
    let bytes = found.bytes().await.map_err(failed)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| BucketError::Pointer)?;
    text.trim().parse().map(Some).map_err(|_| BucketError::Pointer)
}

/// Whether the bucket has an image.
///
/// # Errors
/// When the bucket does not answer.
pub(crate) async fn has(store: &dyn ObjectStore, digest: &Digest) -> Result<bool, BucketError> {
    exists(store, &image_key(digest)).await
}

/// Gives the file of an image in `directory`, copying it from the bucket if it is not there. The copy is hashed before it gets
/// its name, so a file that is there needs no second look.
///
/// # Errors
/// When the bucket has no such image or a damaged one, or the directory cannot be written.
pub(crate) async fn fetch(
    store: &dyn ObjectStore,
    digest: &Digest,
    directory: &Path,
) -> Result<PathBuf, BucketError> {
    let path = directory.join(format!("{digest}.erofs"));
    if tokio::fs::try_exists(&path).await.map_err(file_error(&path))? {
        return Ok(path);
    }
    tokio::fs::create_dir_all(directory).await.map_err(file_error(directory))?;
    let temporary = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)
        .map_err(file_error(directory))?;
    let found = download(store, digest, temporary.path()).await?;
    if found != *digest {
        return Err(BucketError::Damaged { wanted: digest.clone(), found });
    }
    let kept = temporary.persist(&path).map_err(|error| file_error(&path)(error.error))?;
    kept.sync_all().map_err(file_error(&path))?;
    Ok(path)
}

/// Removes copies that a killed process left unfinished. Nothing may fetch into the directory meanwhile.
///
/// # Errors
/// When the directory cannot be read or written.
pub(crate) fn remove_unfinished(directory: &Path) -> Result<(), BucketError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file_error(directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(file_error(directory))?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            std::fs::remove_file(entry.path()).map_err(file_error(&entry.path()))?;
        }
    }
    Ok(())
}

async fn download(
    store: &dyn ObjectStore,
    digest: &Digest,
    path: &Path,
) -> Result<Digest, BucketError> {
    let failed = |source| BucketError::Request { action: "read", key: image_key(digest), source };
    let mut stream = store.get(&image_key(digest)).await.map_err(failed)?.into_stream();
    let mut file =
        tokio::fs::OpenOptions::new().write(true).open(path).await.map_err(file_error(path))?;
    let mut hasher = Hasher::default();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(failed)?;
        hasher.update(&bytes);
        file.write_all(&bytes).await.map_err(file_error(path))?;
    }
    file.flush().await.map_err(file_error(path))?;
    Ok(hasher.finish())
}

async fn upload(store: &dyn ObjectStore, key: &Key, path: &Path) -> Result<(), BucketError> {
    let failed = |source| BucketError::Request { action: "write", key: key.clone(), source };
    let mut file = tokio::fs::File::open(path).await.map_err(file_error(path))?;
    let parts = store.put_multipart(key).await.map_err(failed)?;
    let mut parts = WriteMultipart::new_with_chunk_size(parts, PART_BYTES);
    let mut buffer = vec![0; PART_BYTES];
    loop {
        let read = file.read(&mut buffer).await.map_err(file_error(path))?;
        if read == 0 {
            break;
        }
        parts.wait_for_capacity(PARTS_MAX).await.map_err(failed)?;
        parts.write(buffer.get(..read).unwrap_or_default());
    }
    parts.finish().await.map_err(failed)?;
    Ok(())
}

async fn exists(store: &dyn ObjectStore, key: &Key) -> Result<bool, BucketError> {
    match store.head(key).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(source) => Err(BucketError::Request { action: "look for", key: key.clone(), source }),
    }
}

async fn put(store: &dyn ObjectStore, key: Key, bytes: Vec<u8>) -> Result<(), BucketError> {
    let options = PutOptions::from(PutMode::Overwrite);
    let written = store.put_opts(&key, bytes.into(), options).await;
    written.map(|_| ()).map_err(|source| BucketError::Request { action: "write", key, source })
}

fn image_key(digest: &Digest) -> Key {
    Key::from(format!("images/{digest}.erofs"))
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> BucketError + use<> {
    let path = path.to_owned();
    move |source| BucketError::File { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    fn image(directory: &Path, bytes: &[u8]) -> BuiltImage {
        let file = directory.join("file");
        std::fs::write(&file, bytes).expect("written");
        let manifest = directory.join("manifest");
        std::fs::write(&manifest, "{}").expect("written");
        BuiltImage { digest: Digest::of_file(&file).expect("hashed"), file, manifest }
    }

    #[tokio::test]
    async fn a_published_image_is_the_current_one_and_comes_back_whole() {
        let (store, here, there) =
            (InMemory::new(), tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
        assert_eq!(current(&store).await.expect("asked"), None);
        let bytes: Vec<u8> = (0..PART_BYTES * 2 + 17).map(|n| n.to_le_bytes()[0]).collect();
        let image = image(here.path(), &bytes);
        publish(&store, &image).await.expect("published");
        publish(&store, &image).await.expect("published twice");
        assert_eq!(current(&store).await.expect("asked"), Some(image.digest.clone()));
        let new = there.path().join("new");
        remove_unfinished(&new).expect("nothing to remove");
        std::fs::create_dir(&new).expect("made");
        std::fs::write(new.join(".image-killed"), "half").expect("written");
        remove_unfinished(&new).expect("removed");
        let fetched = fetch(&store, &image.digest, &new).await.expect("fetched");
        assert_eq!(std::fs::read(&fetched).expect("read"), bytes);
        assert_eq!(std::fs::read_dir(&new).expect("listed").count(), 1);
    }

    #[tokio::test]
    async fn a_damaged_image_gets_no_name() {
        let (store, here, there) =
            (InMemory::new(), tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
        let image = image(here.path(), b"good");
        store.put(&image_key(&image.digest), "evil".into()).await.expect("put");
        let error = fetch(&store, &image.digest, there.path()).await.expect_err("damaged");
        assert!(matches!(error, BucketError::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read_dir(there.path()).expect("listed").count(), 0);
    }

    #[tokio::test]
    async fn a_pointer_that_is_no_digest_is_an_error() {
        let store = InMemory::new();
        for text in ["../../x", "", &"0".repeat(300)] {
            store.put(&Key::from(POINTER), text.to_owned().into()).await.expect("put");
            assert!(matches!(current(&store).await, Err(BucketError::Pointer)), "{text}");
        }
    }
}
