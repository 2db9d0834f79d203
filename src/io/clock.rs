//! The one place that reads the machine's clocks. Everything else is told the time.

use crate::base::{Instant, UnixMicros};
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering};

/// CLOCK_MONOTONIC_RAW: not slewed by NTP, does not count suspend (protocol.md section 2).
#[must_use]
pub fn now() -> Instant {
    let t = clock_gettime(ClockId::MonotonicRaw);
    Instant { ns: u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0) }
}

/// The wall clock, for lag, certificates and people. Never for safety.
#[must_use]
pub fn unix_now() -> UnixMicros {
    let t = clock_gettime(ClockId::Realtime);
    UnixMicros(u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0) / 1000)
}

/// Sees whether time passed that [`now`] did not count, or that it went back (protocol.md section 2): then no lease counted on it may be
/// trusted. Cheap enough to ask before everything that depends on one; may be shared by threads.
///
/// CLOCK_BOOTTIME is CLOCK_MONOTONIC and the time that the machine slept. That difference stays within microseconds, and jumps when the
/// machine was suspended.
#[derive(Debug)]
pub struct Watch {
    slept_ns: AtomicU64,
    newest_ns: AtomicU64,
}

/// More than the two clocks ever differ by without a suspend.
pub const SLEPT_NS_MAX: u64 = 1_000_000;

impl Default for Watch {
    fn default() -> Watch {
        Watch::new()
    }
}

impl Watch {
    #[must_use]
    pub fn new() -> Watch {
        Watch { slept_ns: AtomicU64::new(slept().0), newest_ns: AtomicU64::new(now().ns) }
    }

    /// A sentence when the clock broke since the last call, by any thread.
    #[must_use]
    pub fn broke(&self) -> Option<String> {
        self.judge(slept(), now().ns)
    }

    /// `slept` is known to lie between the two.
    fn judge(&self, slept: (u64, u64), now_ns: u64) -> Option<String> {
        let newest = self.newest_ns.fetch_max(now_ns, Ordering::AcqRel);
        let known = self.slept_ns.load(Ordering::Acquire);
        // Only what is certain counts: a thread may lose the processor between two readings.
        let jumped = slept.0 > known.saturating_add(SLEPT_NS_MAX) || slept.1.saturating_add(SLEPT_NS_MAX) < known;
        if jumped && self.slept_ns.compare_exchange(known, slept.0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let ms = slept.0.abs_diff(known) / 1_000_000;
            return Some(format!(
                "the machine was suspended, or its clocks were set: {ms} ms passed that CLOCK_MONOTONIC does not know of"
            ));
        }
        // Readings of several threads cross by less than this.
        if now_ns.saturating_add(SLEPT_NS_MAX) < newest {
            self.newest_ns.store(now_ns, Ordering::Release);
            return Some(format!("CLOCK_MONOTONIC_RAW went back by {} ms", (newest - now_ns) / 1_000_000));
        }
        None
    }
}

/// How long this machine slept since it was started, from below and from above, ns.
#[must_use]
pub fn slept() -> (u64, u64) {
    let ns = |clock| {
        let t = clock_gettime(clock);
        u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
    };
    let before = ns(ClockId::Monotonic);
    let boot = ns(ClockId::Boottime);
    let after = ns(ClockId::Monotonic);
    (boot.saturating_sub(after), boot.saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspend_and_a_step_back_are_seen_once_and_a_busy_machine_never() {
        let watch = Watch { slept_ns: AtomicU64::new(5_000_000_000), newest_ns: AtomicU64::new(1_000) };
        let s = 1_000_000_000;
        assert_eq!(watch.judge((5 * s - 9_000, 5 * s + 9_000), 2 * s), None);
        // Half a second without the processor between the readings says nothing.
        assert_eq!(watch.judge((5 * s - s / 2, 5 * s + 4), 3 * s), None);
        assert!(watch.judge((8 * s, 8 * s + 2_000), 4 * s).unwrap().contains("3000 ms passed"));
        assert_eq!(watch.judge((8 * s, 8 * s + 2_000), 5 * s), None, "told once");
        assert!(watch.judge((7 * s, 7 * s), 6 * s).unwrap().contains("suspended"), "it cannot shrink");
        assert!(watch.judge((7 * s, 7 * s), 5 * s).unwrap().contains("went back by 1000 ms"));
        assert_eq!(watch.judge((7 * s, 7 * s), 5 * s + 1), None);
    }

    #[test]
    fn this_machine_did_not_sleep_during_the_test() {
        let watch = Watch::new();
        for _ in 0..20_000 {
            assert_eq!(watch.broke(), None);
        }
    }
}
