//! How far a secondary is that catches up, how fast, how long it still takes.
//!
//! Decides the figures that an operator is shown, from what was stored over there and when. Never decides what is sent. Driven by the sender in the primary and by the follower in the
//! secondary, each with what it knows.

use crate::base::{Instant, PageNo};
use crate::log::SeedBase;
use std::collections::VecDeque;
use std::time::Duration;

/// Samples are so far apart ...
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// ... and the rate is that of so long.
const RATE_OVER: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUpKind {
    /// Pages as of one LSN; the log follows.
    Seed,
    /// The log alone, from where the secondary was.
    Log,
}

/// How far a catching-up is. What is not known is `None`.
#[derive(Clone, Copy, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct CatchUpReport {
    pub kind: CatchUpKind,
    /// Of a seed: pages over there (in the primary's words: stored on 4 of 6 copies; in the secondary's own: taken over), and pages in
    /// all (0 until the first ones came).
    pub pages_done: u64,
    pub pages_total: u64,
    /// Bytes over there, and in all. A seed's total is an estimate from its pages so far.
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub bytes_per_s: Option<u64>,
    /// At the speed of the last seconds; `None` while nothing moves, or the end runs away faster than it is approached.
    pub time_left_ms: Option<u64>,
    /// So often this seed went on where an interruption had left it.
    pub resumed: u32,
}

/// A seed that was interrupted: what the secondary has of it. The primary goes on behind it when the pages can still be read there.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct UnfinishedSeed {
    pub base: SeedBase,
    /// Steps taken over so far; the next is one more.
    pub step: u64,
    /// First page that is missing.
    pub next_page: PageNo,
    /// For people: of how many pages, how many bytes came, how often it was interrupted before.
    pub pages_total: u32,
    pub bytes: u64,
    pub resumed: u32,
}

/// Speed and time left out of samples of (done, goal).
#[derive(Debug, Default)]
pub struct RateMeter {
    samples: VecDeque<(Instant, u64, u64)>,
}

impl RateMeter {
    /// `done` of `goal` bytes at `now`. Both may grow; when `done` shrinks, it is another matter and begins anew.
    pub fn observe(&mut self, now: Instant, done: u64, goal: u64) {
        if self.samples.back().is_some_and(|(_, d, _)| done < *d) {
            self.samples.clear();
        }
        if self.samples.back().is_some_and(|(t, ..)| now.since(*t) < SAMPLE_EVERY) {
            return;
        }
        self.samples.push_back((now, done, goal));
        while self.samples.len() > 2 && now.since(self.samples[1].0) >= RATE_OVER {
            self.samples.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.samples.clear();
    }

    /// Bytes per second, and milliseconds until `left` bytes are done.
    #[must_use]
    pub fn rate(&self, left: u64) -> (Option<u64>, Option<u64>) {
        let (Some((t0, d0, g0)), Some((t1, d1, g1))) = (self.samples.front(), self.samples.back()) else { return (None, None) };
        let ms = u64::try_from(t1.since(*t0).as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return (None, None);
        }
        let gained = d1 - d0;
        let closed = gained.saturating_sub(g1.saturating_sub(*g0));
        let time_left = (closed > 0).then(|| u64::try_from(u128::from(left) * u128::from(ms) / u128::from(closed)).unwrap_or(u64::MAX));
        (Some(gained.saturating_mul(1000) / ms), if left == 0 { Some(0) } else { time_left })
    }
}

/// The bytes of a whole seed, from those that `pages_done` of its pages took.
#[must_use]
pub fn estimate_bytes(bytes_done: u64, pages_done: u64, pages_total: u64) -> u64 {
    if pages_done == 0 {
        return 0;
    }
    let all = u128::from(bytes_done) * u128::from(pages_total.max(pages_done)) / u128::from(pages_done);
    u64::try_from(all).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant { ns: ms * 1_000_000 }
    }

    #[test]
    fn speed_and_time_left_follow_what_was_done_lately() {
        let mut meter = RateMeter::default();
        assert_eq!(meter.rate(100), (None, None), "nothing is known yet");
        for s in 0..=10 {
            meter.observe(at(s * 1000), s * 1000, 100_000);
        }
        assert_eq!(meter.rate(90_000), (Some(1000), Some(90_000)));
        // It slows down: after a few seconds only the new speed counts.
        for s in 11..=20 {
            meter.observe(at(s * 1000), 10_000 + (s - 10) * 100, 100_000);
        }
        assert_eq!(meter.rate(1000), (Some(100), Some(10_000)));
        assert_eq!(meter.rate(0).1, Some(0));
    }

    #[test]
    fn an_end_that_runs_away_has_no_time_left() {
        let mut meter = RateMeter::default();
        for s in 0..=5 {
            meter.observe(at(s * 1000), s * 1000, 50_000 + s * 2000);
        }
        assert_eq!(meter.rate(60_000), (Some(1000), None));
        meter.observe(at(9000), 10, 50);
        assert_eq!(meter.rate(40), (None, None), "less done than before: another matter");
    }

    #[test]
    fn the_whole_is_estimated_from_the_part() {
        assert_eq!(estimate_bytes(400, 4, 100), 10_000);
        assert_eq!(estimate_bytes(0, 0, 100), 0);
        assert_eq!(estimate_bytes(400, 4, 0), 400);
    }
}
