//! How fast work in the background goes while commits are made: pages read for a copy that is rebuilt, or for a region.
//!
//! Decides when the next piece may begin. Never what it is. Driven by whoever asks for the pieces.

use super::Instant;
use std::time::Duration;

/// Longer than this no piece waits for the sake of the one before: a slow disk is no reason to stand still.
const REST_MAX: Duration = Duration::from_millis(500);

/// Commits go first: while they are made, a piece is followed by `rest` times as long as it took without one, and there are no
/// more than so many bytes a second; without commits nothing is held back.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s_max: u64,
    rest: u32,
    asked: Instant,
    not_before: Instant,
}

impl Pace {
    #[must_use]
    pub fn new(bytes_per_s_max: u64, rest: u32) -> Pace {
        Pace { bytes_per_s_max, rest, asked: Instant::ZERO, not_before: Instant::ZERO }
    }

    /// The earliest time of the next piece.
    #[must_use]
    pub fn not_before(&self) -> Instant {
        self.not_before
    }

    pub fn asked(&mut self, now: Instant) {
        self.asked = now;
    }

    /// It did not come: asked again at that time.
    pub fn failed(&mut self, again: Instant) {
        self.not_before = again;
    }

    /// It is done. `busy`: commits are being made.
    pub fn answered(&mut self, now: Instant, bytes: u64, busy: bool) {
        if !busy {
            self.not_before = now;
            return;
        }
        let by_bytes = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.bytes_per_s_max.max(1));
        self.not_before = (now + (now.since(self.asked) * self.rest).min(REST_MAX)).max(self.asked + by_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant { ns: ms * 1_000_000 }
    }

    #[test]
    fn work_in_the_background_rests_only_while_commits_are_made() {
        let mut pace = Pace::new(1_000_000, 1);
        pace.asked(at(1000));
        pace.answered(at(1010), 500_000, false);
        assert_eq!(pace.not_before(), at(1010));
        pace.asked(at(1010));
        pace.answered(at(1020), 500_000, true);
        assert_eq!(pace.not_before(), at(1510), "half a second for half of what a second may have");
        pace.asked(at(2000));
        pace.answered(at(2300), 1000, true);
        assert_eq!(pace.not_before(), at(2600), "as long as the read took");
        pace.asked(at(3000));
        pace.answered(at(9000), 1000, true);
        assert_eq!(pace.not_before(), at(9500), "a slow disk is waited for, but not for its own time again");
    }
}
