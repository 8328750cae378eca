//! The bucket's own id: an object that is created once, and remembered by every data directory that was used with it.

use super::BucketError;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path as Key,
};
use std::{fs, io, path::Path, sync::Arc};
use uuid::Uuid;

/// The key of the object.
const KEY: &str = "bucket-id";

/// The name of the file in a data directory.
const FILE: &str = "bucket-id";

/// The longest id that is read.
const ID_BYTES_MAX: u64 = 256;

pub(super) async fn bind(store: &Arc<dyn ObjectStore>, data: &Path) -> Result<(), BucketError> {
    let id = load_or_create(store).await?;
    let path = data.join(FILE);
    let local = |source| BucketError::Directory { path: path.clone(), source };
    match fs::read(&path) {
        Ok(known) if known == id => Ok(()),
        Ok(_) => Err(BucketError::Foreign { data: data.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            crate::data::write_private(&path, &id).map_err(local)
        }
        Err(error) => Err(local(error)),
    }
}

async fn load_or_create(store: &Arc<dyn ObjectStore>) -> Result<Vec<u8>, BucketError> {
    let key = Key::from(KEY);
    let read = |source| BucketError::Identity { action: "read", source };
    match store.get_range(&key, 0..ID_BYTES_MAX).await {
        Ok(id) => return Ok(id.to_vec()),
        Err(Error::NotFound { .. }) => {}
        Err(error) => return Err(read(error)),
    }
    let id = Uuid::new_v4().to_string();
    match store.put_opts(&key, PutPayload::from(id), PutOptions::from(PutMode::Create)).await {
        // Whoever was first, what the bucket holds now is its id.
        Ok(_) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
            store.get_range(&key, 0..ID_BYTES_MAX).await.map(|id| id.to_vec()).map_err(read)
        }
        Err(source) => Err(BucketError::Identity { action: "create", source }),
    }
}

#[cfg(test)]
mod tests {
    use super::bind;
    use crate::bucket::BucketError;
    use object_store::{ObjectStore, memory::InMemory};
    use std::sync::Arc;

    #[tokio::test]
    async fn a_data_directory_stays_with_its_bucket() {
        let (one, two): (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>) =
            (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
        let data = tempfile::tempdir().expect("a directory");
        bind(&one, data.path()).await.expect("the first");
        bind(&one, data.path()).await.expect("the same");
        assert!(matches!(bind(&two, data.path()).await, Err(BucketError::Foreign { .. })));
        let another = tempfile::tempdir().expect("a directory");
        bind(&one, another.path()).await.expect("a bucket serves one data directory after another");
    }
}
