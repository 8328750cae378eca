//! Bounded retries: how long to wait before the next try, and when to stop trying.

use std::time::Duration;

/// Waits that double from `first` up to `most`, for at most `tries` waits.
///
/// An iterator, so that the caller keeps the clock and the decision what is worth a retry.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    most: Duration,
    tries_left: u32,
}

impl Backoff {
    /// Waits `first`, then twice as long each time but never over `most`, and ends after `tries` waits.
    #[must_use]
    pub fn new(first: Duration, most: Duration, tries: u32) -> Self {
        Self { next: first, most, tries_left: tries }
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.tries_left = self.tries_left.checked_sub(1)?;
        let wait = self.next.min(self.most);
        self.next = wait.saturating_mul(2);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;
    use std::time::Duration;

    #[test]
    fn doubles_up_to_the_most_and_ends() {
        let waits: Vec<u64> = Backoff::new(Duration::from_millis(10), Duration::from_millis(50), 5)
            .map(|wait| u64::try_from(wait.as_millis()).expect("small"))
            .collect();
        assert_eq!(waits, [10, 20, 40, 50, 50]);
    }
}
