use super::{Claim, OwnerError, Ownership, node_id};
use crate::testing::{Fault, FaultyStore};
use futures::future::join_all;
use object_store::{ObjectStore, memory::InMemory};
use std::sync::Arc;

fn store() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn asking(node: &str) -> Claim {
    Claim { node: node.into(), host: "host".into(), take_over: false, unsettled: false }
}

async fn claim(store: &Arc<dyn ObjectStore>, node: &str) -> Result<Ownership, OwnerError> {
    asking(node).take(store.clone()).await
}

#[tokio::test]
async fn epochs_grow_over_clean_ends() {
    let store = store();
    for (number, node) in ["a", "b", "a"].into_iter().enumerate() {
        let owned = claim(&store, node).await.expect("released before");
        assert_eq!(owned.epoch(), number as u64 + 1);
        owned.release().await.expect("a bucket that answers");
    }
}

#[tokio::test]
async fn after_a_crash_only_the_same_node_may_start() {
    let store = store();
    let crashed = claim(&store, "a").await.expect("a new bucket");
    assert!(
        matches!(claim(&store, "b").await, Err(OwnerError::Held { epoch: 1, owner }) if owner.node == "a")
    );
    assert_eq!(claim(&store, "a").await.expect("its own").epoch(), crashed.epoch() + 1);
}

#[tokio::test]
async fn the_refusal_says_who_and_what_to_do() {
    let store = store();
    claim(&store, "a").await.expect("a new bucket");
    let text = claim(&store, "b").await.expect_err("held").to_string();
    assert!(
        text.contains("host") && text.contains("node a") && text.contains("--take-over"),
        "{text}"
    );
}

#[tokio::test]
async fn a_take_over_is_possible_on_demand() {
    let store = store();
    claim(&store, "a").await.expect("a new bucket");
    let owned = Claim { take_over: true, ..asking("b") }.take(store).await.expect("asked for");
    assert_eq!(owned.epoch(), 2);
}

#[tokio::test]
async fn a_server_with_unsettled_writes_may_go_on_unless_another_came_between() {
    let store = store();
    let unsettled = Claim { unsettled: true, ..asking("a") };
    claim(&store, "a").await.expect("a new bucket");
    unsettled
        .clone()
        .take(store.clone())
        .await
        .expect("its own")
        .release()
        .await
        .expect("a bucket that answers");
    claim(&store, "b").await.expect("released").release().await.expect("a bucket that answers");
    let refused = unsettled.clone().take(store.clone()).await;
    assert!(
        matches!(refused, Err(OwnerError::Superseded { epoch: 3, owner }) if owner.node == "b")
    );
    Claim { take_over: true, ..unsettled }.take(store.clone()).await.expect("asked for");
}

#[tokio::test]
async fn of_many_servers_exactly_one_starts() {
    let store = store();
    claim(&store, "first")
        .await
        .expect("a new bucket")
        .release()
        .await
        .expect("a bucket that answers");
    let names: Vec<String> = (0..16).map(|number| format!("node-{number}")).collect();
    let outcomes = join_all(names.iter().map(|node| claim(&store, node))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for outcome in outcomes.into_iter().filter_map(Result::err) {
        assert!(
            matches!(outcome, OwnerError::Lost(2) | OwnerError::Held { epoch: 2, .. }),
            "{outcome}"
        );
    }
}

#[tokio::test]
async fn a_bucket_that_refuses_writes_is_an_error_and_no_owner() {
    let faulty = FaultyStore::new(Fault::FailWrites);
    let store: Arc<dyn ObjectStore> = Arc::new(faulty.clone());
    assert!(matches!(claim(&store, "a").await, Err(OwnerError::Bucket { action: "create", .. })));
    faulty.set(Fault::None);
    assert_eq!(claim(&store, "b").await.expect("nobody owns it").epoch(), 1);
}

#[test]
fn a_data_directory_keeps_its_id() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = node_id(directory.path()).expect("made");
    assert_eq!(node_id(directory.path()).expect("read"), first);
}
