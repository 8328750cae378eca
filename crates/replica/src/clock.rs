//! The two clocks of a log: one that runs while the host sleeps, for leases, and the calendar, for labels.

use jiff::Timestamp;
use std::time::Duration;

/// The time since the host was booted, in which a time that the host spent suspended counts. Only differences mean anything.
pub(crate) fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec` to a pointer to one. The standard library has no clock that goes on while the
    // host is suspended, and with one that does not, an owner could acknowledge long after its lease has ended.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(result, 0, "Linux has this clock");
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A label for what is written after something with the label `last_ms`: the time in milliseconds since 1970, but always later.
pub(crate) fn label_after(last_ms: u64) -> u64 {
    now_ms().max(last_ms.saturating_add(1))
}

/// The time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{label_after, now_ms, since_boot};

    #[test]
    fn time_goes_on() {
        let before = since_boot();
        assert!(before.as_nanos() > 0 && since_boot() >= before);
        let far = now_ms() + 1_000_000;
        assert_eq!(label_after(far), far + 1);
        assert!(label_after(0) >= now_ms() - 1000);
    }
}
