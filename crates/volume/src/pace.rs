//! How fast writers may go: as they like while the unsealed tail is short, then ever more at the bucket's speed.
//!
//! Above half of the bound, a write is acknowledged so late that the rest of the room would last [`ROOM_LASTS`] at the speed
//! of the writers, on top of what the bucket takes. So writers slow down smoothly to the speed of the bucket, come to rest
//! before the bound, and never meet a wall unless the bucket takes nothing at all. Then the room shrinks ever more slowly
//! until it is gone, and writers wait.
//!
//! Pure: the time is an argument.

use std::time::{Duration, Instant};

/// So long would the room that is left last, if the bucket took nothing.
const ROOM_LASTS: Duration = Duration::from_secs(4);

/// The time over which the bucket's speed is averaged.
const AVERAGE: Duration = Duration::from_secs(5);

/// The longest that one write is slowed down.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// The speed of the bucket and the next moment at which a write may be acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Bytes per second that the bucket took, as of `measured`.
    speed: f64,
    measured: Option<Instant>,
    next: Option<Instant>,
}

impl Pace {
    /// The bucket took so many bytes.
    pub(crate) fn took(&mut self, bytes: u64, now: Instant) {
        self.speed = self.speed_at(now) + bytes as f64 / AVERAGE.as_secs_f64();
        self.measured = Some(now);
    }

    /// When a write of so many bytes may be acknowledged, with `unsealed` of at most `bound` bytes in the tail.
    pub(crate) fn due(
        &mut self,
        bytes: u64,
        unsealed: u64,
        bound: u64,
        now: Instant,
    ) -> Option<Instant> {
        if unsealed <= bound / 2 {
            self.next = None;
            return None;
        }
        let room = bound.saturating_sub(unsealed) as f64;
        let speed = self.speed_at(now) + room / ROOM_LASTS.as_secs_f64();
        let takes = Duration::try_from_secs_f64(bytes as f64 / speed).unwrap_or(DELAY_MAX);
        let begin = self.next.map_or(now, |next| next.max(now));
        let due = (begin + takes).min(now + DELAY_MAX);
        self.next = Some(due);
        Some(due)
    }

    fn speed_at(&self, now: Instant) -> f64 {
        let age = self.measured.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.speed * (-age.as_secs_f64() / AVERAGE.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use std::time::{Duration, Instant};

    const BOUND: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    /// Writes as fast as it may for so long, with a bucket of a constant speed. Returns the bytes unsealed and written.
    fn run(seconds: u64, bucket_mib_per_second: u64) -> (u64, u64) {
        let begin = Instant::now();
        let mut pace = Pace::default();
        let (mut unsealed, mut written, mut now, mut sealed) = (0, 0, begin, 0);
        while now < begin + Duration::from_secs(seconds) {
            let took =
                u64::try_from((now - begin).as_millis()).unwrap() * bucket_mib_per_second * MIB
                    / 1000;
            if took >= sealed + 8 * MIB {
                let part = (took - sealed).min(unsealed);
                pace.took(part, now);
                unsealed -= part;
                sealed = took;
            }
            if unsealed >= BOUND {
                now += Duration::from_millis(10);
                continue;
            }
            unsealed += MIB;
            written += MIB;
            // The local disk takes 500 MiB per second.
            now += Duration::from_millis(2);
            if let Some(due) = pace.due(MIB, unsealed, BOUND, now) {
                now = now.max(due);
            }
        }
        (unsealed, written)
    }

    #[test]
    fn a_short_tail_costs_nothing() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(MIB, BOUND / 2, BOUND, Instant::now()), None);
    }

    #[test]
    fn writers_come_to_the_speed_of_the_bucket_before_the_bound() {
        let (unsealed, _) = run(60, 50);
        let (longer, _) = run(120, 50);
        assert!(unsealed < BOUND - 8 * MIB && longer < BOUND - 8 * MIB, "{unsealed} {longer}");
        let (_, written) = run(60, 50);
        let (_, more) = run(120, 50);
        let speed = (more - written) / MIB / 60;
        assert!((45..=60).contains(&speed), "{speed} MiB/s");
    }

    #[test]
    fn a_bucket_that_takes_nothing_slows_writers_down_and_then_stops_them() {
        let (early, _) = run(10, 0);
        let (late, _) = run(20, 0);
        let (end, written) = run(600, 0);
        assert!(early > BOUND / 2 && early < late && late < end, "{early} {late} {end}");
        assert!(written <= BOUND + MIB, "{written}");
    }

    #[test]
    fn no_write_is_held_for_longer_than_a_second() {
        let now = Instant::now();
        let mut pace = Pace::default();
        for _ in 0..10 {
            let due = pace.due(64 * MIB, BOUND - 1, BOUND, now).unwrap();
            assert!(due <= now + Duration::from_secs(1));
        }
    }
}
