//! Time as plain numbers. The cores never read a clock: the driver and the simulator pass these in.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the monotonic clock of one process, in nanoseconds. A replay begins at zero, a real process wherever
/// CLOCK_MONOTONIC_RAW stands. Never compared between processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    pub ns: u64,
}

impl Instant {
    pub const ZERO: Instant = Instant { ns: 0 };

    /// Time since `earlier`; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.ns.saturating_sub(earlier.ns))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant { ns: self.ns.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)) }
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}.{:03}s", self.ns / 1_000_000_000, self.ns / 1_000_000 % 1000)
    }
}

/// Wall-clock time in microseconds since 1970 (UTC). For lag, certificates and people; never for safety.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct UnixMicros(pub u64);

impl UnixMicros {
    /// Signed difference in microseconds, `self - other`.
    #[must_use]
    pub fn micros_since(self, other: UnixMicros) -> i64 {
        i64::try_from(i128::from(self.0) - i128::from(other.0)).unwrap_or(i64::MAX)
    }
}
