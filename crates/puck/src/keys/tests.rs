use super::{AccountKeys, KeysError, Looked, MasterKeys, Wraps, generate};
use crate::testing::{Fault, FaultyStore, keys};
use object_store::{ObjectStore, ObjectStoreExt, path::Path as Key};
use std::{os::unix::fs::PermissionsExt, sync::Arc};
use volume::VolumeId;

fn bucket() -> Arc<dyn ObjectStore> {
    Arc::new(FaultyStore::new(Fault::None))
}

/// The keys of a file with these lines.
fn masters(lines: &[&str]) -> MasterKeys {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(file.path(), private).expect("changed");
    std::fs::write(file.path(), lines.join("\n")).expect("written");
    MasterKeys::read(file.path()).expect("keys")
}

fn wraps(bucket: &Arc<dyn ObjectStore>, lines: &[&str]) -> Wraps {
    let masters = (!lines.is_empty()).then(|| masters(lines));
    Wraps::new(bucket.clone(), "local".parse().expect("a name"), masters)
}

async fn open(bucket: &Arc<dyn ObjectStore>, lines: &[&str]) -> Result<AccountKeys, KeysError> {
    wraps(bucket, lines).settle().await
}

/// What tells the keys of two accounts apart.
fn id(keys: &AccountKeys) -> [u8; 8] {
    keys.0.as_ref().expect("an encrypted account").id()
}

async fn write_log(bucket: &Arc<dyn ObjectStore>) {
    let key = Key::from("accounts/local/log/0000/0000000000000001-0000000000000001.ltx");
    bucket.put(&key, "a file".into()).await.expect("put");
}

#[tokio::test]
async fn a_new_account_gets_a_key_that_any_of_the_file_unwraps_later() {
    let (bucket, one, two) = (bucket(), generate(), generate());
    assert!(matches!(wraps(&bucket, &[&one]).look().await, Ok(Looked::New)));
    assert!(keys(&bucket).await.is_empty(), "looking changes nothing");
    let made = open(&bucket, &[&one]).await.expect("a new account");
    let wrap = keys(&bucket).await;
    assert!(wrap.len() == 1 && wrap[0].starts_with("accounts/local/keys/"), "{wrap:?}");
    let again = open(&bucket, &[&one]).await.expect("the same");
    assert_eq!(id(&again), id(&made));
    assert_eq!(keys(&bucket).await, wrap);

    // Another master key first: one more wrap, the same account key. The old one alone still works until it is retired.
    let rotated = open(&bucket, &[&two, &one]).await.expect("rotated");
    assert_eq!(id(&rotated), id(&made));
    assert_eq!(keys(&bucket).await.len(), 2);
    for lines in [[&one], [&two]] {
        assert_eq!(id(&open(&bucket, &[lines[0]]).await.expect("either")), id(&made));
    }
    let retired = wraps(&bucket, &[&two]).retire().await.expect("retired");
    assert_eq!(retired.len(), 1);
    assert!(wrap[0].ends_with(&retired.first().expect("one").to_string()));
    assert_eq!(id(&open(&bucket, &[&two]).await.expect("the new one")), id(&made));
    assert!(matches!(open(&bucket, &[&one]).await, Err(KeysError::Unknown { .. })));
    assert!(wraps(&bucket, &[&two]).retire().await.expect("nothing left").is_empty());
}

#[tokio::test]
async fn retiring_first_wraps_for_the_first_key_and_never_removes_the_last_way_in() {
    let (bucket, one, two, three) = (bucket(), generate(), generate(), generate());
    let made = open(&bucket, &[&one]).await.expect("a new account");
    let before = keys(&bucket).await;
    assert!(matches!(wraps(&bucket, &[&two]).retire().await, Err(KeysError::Unknown { .. })));
    assert!(matches!(wraps(&bucket, &[]).retire().await, Err(KeysError::Locked { .. })));
    assert_eq!(keys(&bucket).await, before);
    assert!(wraps(&bucket, &[&two, &one]).retire().await.expect("wrapped").is_empty());
    assert_eq!(wraps(&bucket, &[&three, &two]).retire().await.expect("retired").len(), 1);
    for lines in [[&two], [&three]] {
        assert_eq!(id(&open(&bucket, &[lines[0]]).await.expect("either")), id(&made));
    }
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_refused_with_the_fix_and_changes_nothing() {
    let (encrypted, plain) = (bucket(), bucket());
    let (one, two) = (generate(), generate());
    open(&encrypted, &[&one]).await.expect("a new account");
    write_log(&plain).await;
    assert!(open(&plain, &[]).await.expect("a plain account").0.is_none());
    assert!(open(&bucket(), &[]).await.expect("a new plain account").0.is_none());
    for (bucket, lines, fix) in [
        (&encrypted, vec![], "name the file that holds it with --encryption-key-file"),
        (&encrypted, vec![two.as_str()], "holds the right one with --encryption-key-file"),
        (&plain, vec![one.as_str()], "leave --encryption-key-file out"),
    ] {
        let before = keys(bucket).await;
        let error = open(bucket, &lines).await.expect_err(fix).to_string();
        assert!(error.contains(fix) && error.contains("account local"), "{error}");
        assert!(!error.contains(one.as_str()) && !error.contains(two.as_str()), "{error}");
        assert_eq!(keys(bucket).await, before);
    }
    assert!(matches!(wraps(&plain, &[]).retire().await, Err(KeysError::Plain(_))));
}

#[tokio::test]
async fn an_account_that_another_server_made_since_the_first_look_is_looked_at_again() {
    let (bucket, one, two) = (bucket(), generate(), generate());
    let (late, plain) = (wraps(&bucket, &[&one]), self::bucket());
    let later = wraps(&plain, &[&one]);
    assert!(matches!(late.look().await, Ok(Looked::New)));
    assert!(matches!(later.look().await, Ok(Looked::New)));
    open(&bucket, &[&two]).await.expect("a new account");
    write_log(&plain).await;
    let before = keys(&bucket).await;
    assert!(matches!(late.settle().await, Err(KeysError::Unknown { .. })));
    assert!(matches!(later.settle().await, Err(KeysError::Plain(_))));
    assert_eq!((keys(&bucket).await, keys(&plain).await.len()), (before, 1));
}

#[tokio::test]
async fn a_wrap_that_was_changed_is_refused_and_not_replaced() {
    let (bucket, one) = (bucket(), generate());
    open(&bucket, &[&one]).await.expect("a new account");
    let key = Key::from(keys(&bucket).await.remove(0));
    let whole = bucket.get(&key).await.expect("there").bytes().await.expect("read").to_vec();
    for at in [0, 9, 20, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        bucket.put(&key, changed.into()).await.expect("put");
        assert!(matches!(open(&bucket, &[&one]).await, Err(KeysError::Unwrap { .. })), "{at}");
    }
    bucket.put(&key, whole[..40].to_vec().into()).await.expect("put");
    assert!(matches!(open(&bucket, &[&one]).await, Err(KeysError::Unwrap { .. })));
    // Under the name of another account it is none of its.
    bucket.put(&key, whole.clone().into()).await.expect("put");
    let moved = Key::from(key.as_ref().replace("local", "other"));
    bucket.put(&moved, whole.into()).await.expect("put");
    let other =
        Wraps::new(bucket.clone(), "other".parse().expect("a name"), Some(masters(&[&one])));
    assert!(matches!(other.look().await, Err(KeysError::Unwrap { .. })));
}

#[tokio::test]
async fn a_bucket_that_fails_decides_nothing() {
    let faulty = FaultyStore::new(Fault::None);
    let bucket: Arc<dyn ObjectStore> = Arc::new(faulty.clone());
    let one = generate();
    faulty.set(Fault::Refuse);
    for lines in [vec![], vec![one.as_str()]] {
        let refused = open(&bucket, &lines).await;
        assert!(matches!(refused, Err(KeysError::Bucket { action: "list", .. })), "{refused:?}");
    }
    faulty.set(Fault::FailWrites);
    let refused = open(&bucket, &[&one]).await;
    assert!(matches!(refused, Err(KeysError::Bucket { action: "create", .. })), "{refused:?}");
    faulty.set(Fault::None);
    open(&bucket, &[&one]).await.expect("a new account, after all");
}

#[test]
fn each_use_of_an_account_has_a_key_of_its_own() {
    let (one, other) = (VolumeId::now(), VolumeId::now());
    let account = AccountKeys(Some(super::file::random()));
    let (keys, forks) = (account.of_volume(one, &[]), account.of_volume(other, &[one]));
    let id = |keys: &volume::Keys, wanted: VolumeId| {
        keys.iter().find(|(volume, _)| *volume == wanted).map(|(_, key)| key.id())
    };
    assert_eq!(id(&keys, one), id(&forks, one), "a fork reads what its ancestor wrote");
    assert_ne!(id(&forks, one), id(&forks, other));
    assert_eq!((keys.iter().count(), forks.iter().count()), (1, 2));
    assert_eq!(AccountKeys(None).of_volume(other, &[one]).iter().count(), 0);
}
