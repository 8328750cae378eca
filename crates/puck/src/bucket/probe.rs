//! Does the bucket keep its promises? Create-only writes of one key: one after the other, then many at once.
//!
//! Some servers ignore the condition of a create-only write, and some check and then write. Both lose data as soon as two
//! servers meet, so both are refused before anything else is done. The first kind shows itself at the second write; the
//! second kind only in a race, which exactly one may win. A race that such a server happens to survive proves nothing, so
//! there are several.

use futures::future::join_all;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path,
};
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// How many race for each key, and for how many keys.
const RACERS: usize = 8;
const ROUNDS: usize = 3;

/// Bytes of a probe object.
const OBJECT_BYTES: usize = 64;

/// The longest that the whole probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// How a bucket failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// A second create-only write of a key succeeded.
    #[error(
        "the server ignores the condition of a create-only write (If-None-Match: *): it took a second one of the same key; \
         use a server that honours it"
    )]
    Ignored,
    /// It answered with something that is no answer to the question.
    #[error("{action} a probe object")]
    Request {
        /// `create`, `read` or `delete`.
        action: &'static str,
        /// What it said.
        #[source]
        source: Error,
    },
    /// It did not answer.
    #[error("no answer within {PROBE_TIMEOUT:?}")]
    Silent,
    /// More or fewer than one create-only write of the same key succeeded.
    #[error(
        "of {RACERS} create-only writes of one key at once {0} succeeded, where exactly one must: the server checks the \
         condition and writes later; use a server that does both in one step"
    )]
    Winners(usize),
    /// The object does not hold what the winner wrote.
    #[error("the probe object holds other bytes than its winner wrote")]
    WrongContent,
}

/// Tries some fresh keys, then removes them.
pub(super) async fn probe(store: &Arc<dyn ObjectStore>) -> Result<(), ProbeError> {
    let rounds = async {
        for round in 0..=ROUNDS {
            let key = Path::from(format!("probe/{}", Uuid::now_v7()));
            let tested = match round {
                0 => one_by_one(store, &key).await,
                _ => race(store, &key).await,
            };
            let deleted = store.delete(&key).await;
            tested?;
            deleted.map_err(|source| ProbeError::Request { action: "delete", source })?;
        }
        Ok(())
    };
    tokio::time::timeout(PROBE_TIMEOUT, rounds).await.unwrap_or(Err(ProbeError::Silent))
}

/// The first write wins, also over a later one that has seen nothing.
async fn one_by_one(store: &Arc<dyn ObjectStore>, key: &Path) -> Result<(), ProbeError> {
    if !create(store, key, 0).await? {
        return Err(ProbeError::Winners(0));
    }
    if create(store, key, 1).await? {
        return Err(ProbeError::Ignored);
    }
    holds(store, key, 0).await
}

/// Of many writes at once exactly one wins, and the object is its.
async fn race(store: &Arc<dyn ObjectStore>, key: &Path) -> Result<(), ProbeError> {
    let outcomes = join_all((0..RACERS).map(|number| create(store, key, number))).await;
    let mut winners = Vec::new();
    for (number, won) in outcomes.into_iter().enumerate() {
        if won? {
            winners.push(number);
        }
    }
    let &[winner] = winners.as_slice() else { return Err(ProbeError::Winners(winners.len())) };
    holds(store, key, winner).await
}

/// Writes the object of one racer; tells whether the key was free.
async fn create(
    store: &Arc<dyn ObjectStore>,
    key: &Path,
    number: usize,
) -> Result<bool, ProbeError> {
    match store
        .put_opts(key, PutPayload::from(content(number)), PutOptions::from(PutMode::Create))
        .await
    {
        Ok(_) => Ok(true),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
        Err(source) => Err(ProbeError::Request { action: "create", source }),
    }
}

async fn holds(store: &Arc<dyn ObjectStore>, key: &Path, number: usize) -> Result<(), ProbeError> {
    let request = |source| ProbeError::Request { action: "read", source };
    let there = store.get(key).await.map_err(request)?.bytes().await.map_err(request)?;
    if there == content(number) { Ok(()) } else { Err(ProbeError::WrongContent) }
}

fn content(number: usize) -> Vec<u8> {
    vec![u8::try_from(number).unwrap_or(u8::MAX); OBJECT_BYTES]
}

#[cfg(test)]
mod tests {
    use super::{ProbeError, RACERS, probe};
    use crate::testing::{Fault, FaultyStore};
    use object_store::{ObjectStore, memory::InMemory};
    use std::sync::Arc;

    #[tokio::test]
    async fn an_honest_bucket_passes_and_is_left_empty() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        probe(&store).await.expect("in-memory creates are atomic");
        assert!(crate::testing::keys(&store).await.is_empty());
    }

    #[tokio::test]
    async fn a_bucket_that_ignores_conditions_is_refused() {
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Fault::IgnoreConditions));
        let error = probe(&store).await.expect_err("refused");
        assert!(matches!(error, ProbeError::Ignored), "{error}");
        assert!(error.to_string().contains("ignores the condition"));
        assert!(crate::testing::keys(&store).await.is_empty());
    }

    #[tokio::test]
    async fn a_bucket_that_checks_and_then_writes_is_refused() {
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Fault::CheckThenWrite));
        let error = probe(&store).await.expect_err("refused");
        assert!(matches!(error, ProbeError::Winners(RACERS)), "{error}");
        assert!(error.to_string().contains("checks the condition and writes later"));
        assert!(crate::testing::keys(&store).await.is_empty());
    }

    #[tokio::test]
    async fn a_local_directory_passes() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = directory.path().to_str().expect("UTF-8").parse().expect("a bucket");
        crate::bucket::open(&url).await.expect("files are linked into place");
    }

    #[tokio::test]
    async fn a_bucket_that_refuses_is_reported_with_its_words() {
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Fault::Refuse));
        assert!(matches!(probe(&store).await, Err(ProbeError::Request { action: "create", .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_that_never_answers_ends_the_probe() {
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Fault::Hang));
        assert!(matches!(probe(&store).await, Err(ProbeError::Silent)));
    }
}
