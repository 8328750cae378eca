//! What was put is what is got, and everything else is refused.

use super::Encrypted;
use crate::{SecretKey, VolumeId};
use futures::TryStreamExt as _;
use object_store::{
    GetOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, memory::InMemory, path::Path,
};
use std::sync::Arc;

struct Fixture {
    bucket: Arc<InMemory>,
    store: Encrypted,
    key: Path,
}

async fn fixture() -> Fixture {
    let bucket = Arc::new(InMemory::new());
    let volume_key = SecretKey::from_bytes([1; 32].into()).of_volume(VolumeId::now());
    let store = Encrypted::new(bucket.clone(), volume_key);
    let key = Path::from("volumes/v/log/0000/1-1.ltx");
    store.put(&key, "some secret words".into()).await.unwrap();
    Fixture { bucket, store, key }
}

async fn refused(store: &Encrypted, key: &Path) -> String {
    let error = store.get(key).await.unwrap_err();
    std::error::Error::source(&error).unwrap().to_string()
}

#[tokio::test]
async fn objects_round_trip_with_their_plain_sizes() {
    let Fixture { bucket, store, key } = fixture().await;
    assert_eq!(store.get(&key).await.unwrap().bytes().await.unwrap(), "some secret words");
    assert_eq!(store.get_range(&key, 5..11).await.unwrap(), "secret");
    assert_eq!(store.head(&key).await.unwrap().size, 17);
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(listed[0].size, 17);
    let raw = bucket.get(&key).await.unwrap().bytes().await.unwrap();
    assert_eq!(raw.len(), 17 + 32);
    assert!(!raw.windows(6).any(|window| window == b"secret"));
    let empty = Path::from("empty");
    store.put(&empty, "".into()).await.unwrap();
    assert_eq!(store.get(&empty).await.unwrap().bytes().await.unwrap(), "");
}

#[tokio::test]
async fn conditions_hold_and_the_same_bytes_give_the_same_object() {
    let Fixture { bucket, store, key } = fixture().await;
    let create = PutOptions::from(PutMode::Create);
    let again = store.put_opts(&key, "other words".into(), create).await.unwrap_err();
    assert!(matches!(again, object_store::Error::AlreadyExists { .. }), "{again}");
    let before = bucket.get(&key).await.unwrap().bytes().await.unwrap();
    store.put(&key, "some secret words".into()).await.unwrap();
    assert_eq!(bucket.get(&key).await.unwrap().bytes().await.unwrap(), before);
    let head = GetOptions { head: true, ..GetOptions::default() };
    assert_eq!(store.get_opts(&key, head).await.unwrap().meta.size, 17);
}

#[tokio::test]
async fn what_was_changed_cut_or_moved_is_refused_and_so_is_another_key() {
    let Fixture { bucket, store, key } = fixture().await;
    let raw = bucket.get(&key).await.unwrap().bytes().await.unwrap();
    for at in 0..raw.len() {
        let mut changed = raw.to_vec();
        changed[at] ^= 1;
        bucket.put(&key, changed.into()).await.unwrap();
        refused(&store, &key).await;
        bucket.put(&key, raw.slice(..at).into()).await.unwrap();
        refused(&store, &key).await;
    }
    let elsewhere = Path::from("volumes/v/log/0000/2-2.ltx");
    bucket.put(&elsewhere, raw.clone().into()).await.unwrap();
    assert!(refused(&store, &elsewhere).await.contains("moved"));
    bucket.put(&key, raw.into()).await.unwrap();
    let other = Encrypted::new(
        bucket.clone(),
        SecretKey::from_bytes([1; 32].into()).of_volume(VolumeId::now()),
    );
    assert!(refused(&other, &key).await.contains("another key"));
    bucket.put(&key, "plain words that are long enough to hold a tag".into()).await.unwrap();
    assert!(refused(&store, &key).await.contains("not encrypted"));
}
