//! The one place that reads the machine's clocks. Everything else is told the time.

use crate::base::{Instant, UnixMicros};
use rustix::time::{ClockId, clock_gettime};

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
