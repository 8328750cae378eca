//! Does the bucket keep its promises? A small race for one key, which exactly one may win.
//!
//! Some servers ignore the condition of a create-only write, and some check and then write. Both lose data as soon as two
//! servers meet, so both are refused before anything else is done.

use futures::future::join_all;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path,
};
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// How many race for each key, and for how many keys.
const RACERS: usize = 6;
const ROUNDS: usize = 2;

/// The longest that the whole probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// How a bucket failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
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
    #[error("of {RACERS} create-only writes of one key {0} succeeded, where exactly one must")]
    Winners(usize),
    /// The object does not hold what the winner wrote.
    #[error("the probe object holds other bytes than its winner wrote")]
    WrongContent,
}

/// Races for a few fresh keys, then removes them.
pub(super) async fn probe(store: &Arc<dyn ObjectStore>) -> Result<(), ProbeError> {
    let rounds = async {
        for _ in 0..ROUNDS {
            let key = Path::from(format!("probe/{}", Uuid::now_v7()));
            let raced = race(store, &key).await;
            let deleted = store.delete(&key).await;
            raced?;
            deleted.map_err(|source| ProbeError::Request { action: "delete", source })?;
        }
        Ok(())
    };
    tokio::time::timeout(PROBE_TIMEOUT, rounds).await.unwrap_or(Err(ProbeError::Silent))
}

async fn race(store: &Arc<dyn ObjectStore>, key: &Path) -> Result<(), ProbeError> {
    let racers = (0..RACERS).map(|number| async move {
        let payload = PutPayload::from(vec![u8::try_from(number).unwrap_or(u8::MAX); 64]);
        store.put_opts(key, payload, PutOptions::from(PutMode::Create)).await
    });
    let mut winners = Vec::new();
    for (number, outcome) in join_all(racers).await.into_iter().enumerate() {
        match outcome {
            Ok(_) => winners.push(number),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(source) => return Err(ProbeError::Request { action: "create", source }),
        }
    }
    let &[winner] = winners.as_slice() else { return Err(ProbeError::Winners(winners.len())) };
    let request = |source| ProbeError::Request { action: "read", source };
    let content = store.get(key).await.map_err(request)?.bytes().await.map_err(request)?;
    if content.iter().all(|byte| usize::from(*byte) == winner) {
        Ok(())
    } else {
        Err(ProbeError::WrongContent)
    }
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
        assert!(matches!(probe(&store).await, Err(ProbeError::Winners(RACERS))));
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
