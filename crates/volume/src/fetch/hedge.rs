//! A second request for what takes unusually long.
//!
//! A request without an answer after about the time in which nineteen of twenty had theirs is sent once more, and the first
//! answer counts. At most one in twenty is sent twice, so a bucket that is slow for everything gets hardly more to do.

use crate::sync::lock;
use futures::future::{Either, select};
use std::{pin::pin, sync::Mutex, time::Duration};
use tokio::time::{Instant, timeout};

/// The bounds of the time after which a request is sent again.
const AFTER_LEAST: Duration = Duration::from_millis(20);
const AFTER_MOST: Duration = Duration::from_secs(2);

/// By how much one answer moves that time: up if it came later, down if not. Where the two are in balance, one in twenty
/// comes later.
const LATER: f64 = 1.19;
const SOONER: f64 = 0.99;

/// What a request adds to the right to send one twice, and the most of such rights.
const RIGHT_PER_REQUEST: f64 = 0.05;
const RIGHTS_MOST: f64 = 3.0;

/// How long requests take, and how many may be sent twice.
#[derive(Debug)]
pub(super) struct Hedge(Mutex<State>);

#[derive(Debug)]
struct State {
    after: Duration,
    rights: f64,
}

impl Default for Hedge {
    fn default() -> Self {
        Self(Mutex::new(State { after: Duration::from_secs(1), rights: 1.0 }))
    }
}

impl Hedge {
    /// The first good answer; the last failure if there is none.
    pub(super) async fn first<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, E> {
        let began = Instant::now();
        let mut first = pin!(ask());
        let answer = match timeout(self.begin(), first.as_mut()).await {
            Ok(answer) => answer,
            Err(_) if self.may_send_again() => match select(first, pin!(ask())).await {
                Either::Left((Err(_), other)) => other.await,
                Either::Right((Err(_), other)) => other.await,
                Either::Left((good, _)) | Either::Right((good, _)) => good,
            },
            Err(_) => first.await,
        };
        if answer.is_ok() {
            self.answered(began.elapsed());
        }
        answer
    }

    /// How long a request that is sent now may take before it is sent again.
    fn begin(&self) -> Duration {
        let mut state = lock(&self.0);
        state.rights = (state.rights + RIGHT_PER_REQUEST).min(RIGHTS_MOST);
        state.after
    }

    fn may_send_again(&self) -> bool {
        let mut state = lock(&self.0);
        let may = state.rights >= 1.0;
        if may {
            state.rights -= 1.0;
        }
        may
    }

    fn answered(&self, took: Duration) {
        let mut state = lock(&self.0);
        let factor = if took > state.after { LATER } else { SOONER };
        state.after = state.after.mul_f64(factor).clamp(AFTER_LEAST, AFTER_MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::{AFTER_LEAST, Hedge};
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };
    use tokio::time::{Instant, sleep};

    /// A bucket that answers in 10 ms, but for those requests, counted from 1, that it never answers.
    async fn ask(sent: &AtomicU32, lost: impl Fn(u32) -> bool) -> Result<u32, &'static str> {
        let number = sent.fetch_add(1, Ordering::Relaxed) + 1;
        sleep(Duration::from_millis(10)).await;
        if lost(number) {
            std::future::pending::<()>().await;
        }
        Ok(number)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_hangs_is_sent_again_after_what_others_take() {
        let (hedge, sent) = (Hedge::default(), AtomicU32::new(0));
        for _ in 0..600 {
            hedge.first(|| ask(&sent, |_| false)).await.expect("an answer");
        }
        assert_eq!(sent.load(Ordering::Relaxed), 600, "nothing is sent twice when all is well");
        let began = Instant::now();
        assert_eq!(hedge.first(|| ask(&sent, |number| number == 601)).await, Ok(602));
        assert!(
            began.elapsed() <= AFTER_LEAST + Duration::from_millis(11),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_bucket_gets_hardly_more_to_do() {
        let (hedge, sent) = (Hedge::default(), AtomicU32::new(0));
        for number in 0..1000_u32 {
            let slow = async || {
                sent.fetch_add(1, Ordering::Relaxed);
                // Ever slower, so that nearly each one is later than expected.
                sleep(Duration::from_millis(u64::from(number) * 100)).await;
                Ok::<_, ()>(())
            };
            hedge.first(slow).await.expect("an answer");
        }
        let sent = sent.load(Ordering::Relaxed);
        assert!((1001..=1053).contains(&sent), "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_leaves_it_to_the_other_request() {
        let (hedge, sent) = (Hedge::default(), AtomicU32::new(0));
        let ask = async || match sent.fetch_add(1, Ordering::Relaxed) {
            0 => {
                sleep(Duration::from_secs(2)).await;
                Err("late and bad")
            }
            _ => {
                sleep(Duration::from_secs(3)).await;
                Ok(())
            }
        };
        assert_eq!(hedge.first(ask).await, Ok(()));
        let bad = async || Err::<(), _>("bad");
        assert_eq!(hedge.first(bad).await, Err("bad"));
    }
}
