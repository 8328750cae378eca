use super::{Account, AccountError, SpriteRecord};
use crate::testing::{Fault, FaultyStore};
use api::{
    name::SpriteName,
    policy::Policies,
    sprite::{Durability, SpriteId, UrlSettings},
    token::Token,
};
use futures::future::join_all;
use jiff::Timestamp;
use object_store::{ObjectStore, memory::InMemory};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tokio_util::sync::CancellationToken;
use volume::VolumeId;

fn name(text: &str) -> SpriteName {
    text.parse().expect("a name")
}

fn policies() -> Policies {
    let text = r#"{"network":{"rules":[{"domain":"*.example.com","action":"allow"},{"include":"defaults"}]},
        "resources":{"memory":{"limit_mb":128,"autoscale":true}}}"#;
    serde_json::from_str(text).expect("policies")
}

fn record(text: &str) -> SpriteRecord {
    // SQLite keeps microseconds, so a record that comes back must not have had more.
    let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("in range");
    SpriteRecord {
        id: SpriteId::now(),
        name: name(text),
        volume: VolumeId::now(),
        ancestors: vec![VolumeId::now()],
        image: "sha256".into(),
        url_settings: UrlSettings::default(),
        labels: vec!["a b".into(), "ü\"'".into()],
        environment: BTreeMap::from([("KEY".into(), "va'lue".into())]),
        idle_timeout_seconds: 30,
        created_at: now,
        updated_at: now,
        last_running_at: Some(now),
        last_warming_at: None,
        durability: Durability::Strict,
        policies: policies(),
        destroyed_at: None,
    }
}

async fn open(store: &Arc<dyn ObjectStore>, data: &Path) -> Result<(Account, Token), AccountError> {
    let org = "local".parse().expect("a name");
    Account::open(
        store.clone(),
        org,
        &data.join("accounts"),
        &data.join("token"),
        CancellationToken::new(),
    )
    .await
}

#[tokio::test]
async fn what_was_answered_is_in_the_bucket_alone() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let first = tempfile::tempdir().expect("a directory");
    let (account, token) = open(&store, first.path()).await.expect("a new account");
    let (kept, gone) = (record("kept"), record("gone"));
    account.create(kept.clone()).await.expect("created");
    account.create(gone.clone()).await.expect("created");
    account.destroy(&gone.name, gone.id).await.expect("destroyed");
    let labelled =
        account.update(&kept.name, kept.id, |record| record.labels.clear()).await.expect("updated");
    let org_id = account.org_id().to_owned();
    account.close().await;

    let second = tempfile::tempdir().expect("a directory");
    let (account, another) = open(&store, second.path()).await.expect("the same account elsewhere");
    assert_eq!(account.contents().sprites.values().cloned().collect::<Vec<_>>(), [labelled]);
    assert_eq!(account.org_id(), org_id);
    assert!(account.accepts(&token), "a token outlives the data directory in which it was minted");
    assert!(account.accepts(&another) && another != token);
    account.close().await;
}

#[tokio::test]
async fn a_data_directory_keeps_its_token() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let data = tempfile::tempdir().expect("a directory");
    let (account, token) = open(&store, data.path()).await.expect("a new account");
    account.close().await;
    let (account, again) = open(&store, data.path()).await.expect("the same account");
    assert_eq!(again, token);
    account.close().await;
}

#[tokio::test]
async fn only_exact_tokens_are_accepted() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let data = tempfile::tempdir().expect("a directory");
    let (account, token) = open(&store, data.path()).await.expect("a new account");
    let part = |org: &str, org_id: &str, id: &str, secret: &str| {
        Token::new(org.parse().expect("a name"), org_id.into(), id.into(), secret.into())
    };
    assert!(account.accepts(&part("local", &token.org_id, &token.id, token.secret())));
    assert!(!account.accepts(&part("other", &token.org_id, &token.id, token.secret())));
    assert!(!account.accepts(&part("local", "zzzz", &token.id, token.secret())));
    assert!(!account.accepts(&part("local", &token.org_id, "other", token.secret())));
    assert!(!account.accepts(&part("local", &token.org_id, &token.id, "secret")));
    account.close().await;
}

#[tokio::test]
async fn names_are_unique_and_records_are_addressed_by_id() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let data = tempfile::tempdir().expect("a directory");
    let (account, _) = open(&store, data.path()).await.expect("a new account");
    account.create(record("a")).await.expect("created");
    assert!(matches!(account.create(record("a")).await, Err(AccountError::Taken(_))));
    assert!(matches!(
        account.destroy(&name("a"), SpriteId::now()).await,
        Err(AccountError::Missing(_))
    ));
    assert!(matches!(
        account.update(&name("b"), SpriteId::now(), |_| ()).await,
        Err(AccountError::Missing(_))
    ));
    account.close().await;
}

#[tokio::test]
async fn many_at_once_all_arrive() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let data = tempfile::tempdir().expect("a directory");
    let (account, _) = open(&store, data.path()).await.expect("a new account");
    let created =
        join_all((0..100).map(|number| account.create(record(&format!("sprite-{number}"))))).await;
    assert!(created.iter().all(Result::is_ok));
    account.close().await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    let (account, _) = open(&store, elsewhere.path()).await.expect("the same account elsewhere");
    assert_eq!(account.contents().sprites.len(), 100);
    account.close().await;
}

#[tokio::test]
async fn a_change_that_the_bucket_refuses_did_not_happen() {
    let faulty = FaultyStore::new(Fault::None);
    let store: Arc<dyn ObjectStore> = Arc::new(faulty.clone());
    let data = tempfile::tempdir().expect("a directory");
    let (account, _) = open(&store, data.path()).await.expect("a new account");
    let kept = account.create(record("kept")).await.expect("created");

    faulty.set(Fault::FailWrites);
    assert!(matches!(account.create(record("refused")).await, Err(AccountError::Log { .. })));
    assert!(matches!(account.destroy(&kept.name, kept.id).await, Err(AccountError::Log { .. })));
    assert_eq!(
        account.contents().sprites.values().cloned().collect::<Vec<_>>(),
        std::slice::from_ref(&kept)
    );

    faulty.set(Fault::None);
    let later = account.create(record("later")).await.expect("the bucket is back");
    account.close().await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    let (account, _) = open(&store, elsewhere.path()).await.expect("the same account elsewhere");
    assert_eq!(account.contents().sprites.values().cloned().collect::<Vec<_>>(), [kept, later]);
    account.close().await;
}

#[tokio::test]
async fn a_server_that_was_taken_over_can_change_nothing() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (old_data, new_data) =
        (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let (old, _) = open(&store, old_data.path()).await.expect("a new account");
    let (new, _) = open(&store, new_data.path()).await.expect("taken over");
    new.create(record("mine")).await.expect("created");
    assert!(matches!(old.create(record("theirs")).await, Err(AccountError::Fenced)));
    old.close().await;
    assert_eq!(new.contents().sprites.len(), 1);
    new.close().await;
}

#[tokio::test]
async fn a_destroyed_sprite_can_be_had_back_until_it_is_forgotten() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let data = tempfile::tempdir().expect("a directory");
    let (account, _) = open(&store, data.path()).await.expect("a new account");
    let first = account.create(record("web")).await.expect("created");
    account.destroy(&first.name, first.id).await.expect("destroyed");
    let second = account.create(record("web")).await.expect("the name is free");
    assert!(matches!(account.undelete(first.id, &first.name).await, Err(AccountError::Taken(_))));
    account.close().await;

    let elsewhere = tempfile::tempdir().expect("a directory");
    let (account, _) = open(&store, elsewhere.path()).await.expect("the same account elsewhere");
    assert_eq!(account.contents().destroyed.keys().collect::<Vec<_>>(), [&first.id]);
    let back = account.undelete(first.id, &name("web-2")).await.expect("had back");
    assert_eq!(*back, SpriteRecord { name: name("web-2"), ..SpriteRecord::clone(&first) });
    account.destroy(&second.name, second.id).await.expect("destroyed");
    account.forget(second.id).await.expect("forgotten");
    assert!(matches!(account.undelete(second.id, &name("web")).await, Err(AccountError::Gone(_))));
    let contents = account.contents();
    assert_eq!(contents.all().map(|record| record.id).collect::<Vec<_>>(), [first.id]);
    account.close().await;
}
