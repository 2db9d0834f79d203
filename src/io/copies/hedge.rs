//! Which copy is asked for a page, and when another one is asked too.
//!
//! Decides from how long recent reads took, and from nothing else: the copy that answered fastest lately first, a near one before a
//! remote one, those that are about equal in turn; and another as well when the first has been silent for longer than nearly all of
//! its own recent answers. What is known of a copy grows old: one that was slow is tried again after a while, at the price of
//! one hedge. No clock and no I/O here; driven by [`super::pages`].

use crate::base::Instant;
use std::time::Duration;

/// So many copies there are; a source of pages has its copy's index.
pub const SOURCES: usize = 6;
/// Recent answers of one copy that are remembered.
const RECENT: usize = 64;
/// Fewer tell nothing of their 95th percentile.
const RECENT_MIN: usize = 8;
/// Hedging sooner would only double the load, later would be felt.
const PATIENCE_MIN: Duration = Duration::from_millis(1);
const PATIENCE_MAX: Duration = Duration::from_millis(50);
const PATIENCE_UNKNOWN: Duration = Duration::from_millis(5);
/// Until something is known.
const LOCAL_GUESS: Duration = Duration::from_micros(100);
const REMOTE_GUESS: Duration = Duration::from_millis(1);
/// About equal: below twice the best, and some.
const EQUAL_WITHIN: Duration = Duration::from_micros(100);
/// What was seen so long ago says nothing of now.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// What is known of one copy.
#[derive(Clone, Debug)]
struct Seen {
    guess: Duration,
    /// Moving average, an eighth of weight to the newest.
    average: Duration,
    /// When the average last changed; `None`: never.
    at: Option<Instant>,
    recent: Vec<Duration>,
    next: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Hedge {
    seen: [Seen; SOURCES],
    turn: usize,
}

impl Hedge {
    /// `remote`: the copies on other machines.
    #[must_use]
    pub fn new(remote: [bool; SOURCES]) -> Hedge {
        let seen = remote.map(|remote| {
            let guess = if remote { REMOTE_GUESS } else { LOCAL_GUESS };
            Seen { guess, average: guess, at: None, recent: Vec::new(), next: 0 }
        });
        Hedge { seen, turn: 0 }
    }

    fn expected(&self, source: usize, now: Instant) -> Duration {
        let seen = &self.seen[source];
        match seen.at {
            Some(at) if now.since(at) < FORGET_AFTER => seen.average,
            // Old: it may be as fast as any again. A copy that was fast is still believed to be.
            _ => seen.average.min(seen.guess),
        }
    }

    /// All of `able` in the order to ask them in.
    pub fn order(&mut self, able: [bool; SOURCES], now: Instant) -> Vec<usize> {
        let mut order: Vec<(Duration, usize)> =
            (0..SOURCES).filter(|source| able[*source]).map(|source| (self.expected(source, now), source)).collect();
        order.sort();
        let Some((best, _)) = order.first() else { return Vec::new() };
        let equal = *best * 2 + EQUAL_WITHIN;
        let equals = order.partition_point(|(expected, _)| *expected <= equal);
        order[..equals].sort_by_key(|(_, source)| *source);
        order[..equals].rotate_left(self.turn % equals);
        self.turn = self.turn.wrapping_add(1);
        order.into_iter().map(|(_, source)| source).collect()
    }

    /// How long to wait for `source` before another one is asked as well.
    #[must_use]
    pub fn patience(&self, source: usize) -> Duration {
        let seen = &self.seen[source];
        if seen.recent.len() < RECENT_MIN {
            return PATIENCE_UNKNOWN;
        }
        let mut sorted = seen.recent.clone();
        sorted.sort_unstable();
        let p95 = sorted[(sorted.len() * 95).div_ceil(100) - 1];
        p95.clamp(PATIENCE_MIN, PATIENCE_MAX)
    }

    /// It answered, with a page or with why not, after `took`.
    pub fn answered(&mut self, source: usize, took: Duration, now: Instant) {
        let seen = &mut self.seen[source];
        seen.average = match seen.at {
            Some(at) if now.since(at) < FORGET_AFTER => (seen.average * 7 + took) / 8,
            _ => took,
        };
        seen.at = Some(now);
        if seen.recent.len() < RECENT {
            seen.recent.push(took);
        } else {
            seen.recent[seen.next] = took;
            seen.next = (seen.next + 1) % RECENT;
        }
    }

    /// It has said nothing for `elapsed`, and another one is asked: at least so slow it is.
    pub fn overdue(&mut self, source: usize, elapsed: Duration, now: Instant) {
        let seen = &mut self.seen[source];
        seen.average = seen.average.max(elapsed);
        seen.at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn firsts(hedge: &mut Hedge, able: [bool; SOURCES], now: Instant, times: usize) -> [usize; SOURCES] {
        let mut firsts = [0; SOURCES];
        for _ in 0..times {
            firsts[hedge.order(able, now)[0]] += 1;
        }
        firsts
    }

    #[test]
    fn near_copies_come_first_and_equals_share_the_work() {
        let remote = [false, false, true, true, true, true];
        let mut hedge = Hedge::new(remote);
        assert_eq!(firsts(&mut hedge, [true; 6], at(0), 60), [30, 30, 0, 0, 0, 0]);
        assert_eq!(hedge.order([false, false, true, false, true, false], at(0)).len(), 2);
        assert!(hedge.order([false; 6], at(0)).is_empty());
        let mut remote = Hedge::new([true; 6]);
        assert_eq!(firsts(&mut remote, [true; 6], at(0), 60), [10; 6]);
    }

    #[test]
    fn a_slow_copy_is_asked_last_and_tried_again_after_a_while() {
        let mut hedge = Hedge::new([false; 6]);
        for i in 0..6 {
            hedge.answered(i, MS / 5, at(0));
        }
        hedge.overdue(2, 5 * MS, at(5));
        assert_eq!(firsts(&mut hedge, [true; 6], at(6), 60)[2], 0);
        assert_eq!(hedge.order([true; 6], at(6))[5], 2, "last, and still there if all others fail");
        assert!(firsts(&mut hedge, [true; 6], at(5 + 1000), 60)[2] > 0, "a second later it gets a chance");
        // The late answer confirms it.
        hedge.answered(2, 80 * MS, at(1010));
        assert_eq!(firsts(&mut hedge, [true; 6], at(1011), 60)[2], 0);
        // It recovers.
        hedge.answered(2, MS / 5, at(2500));
        assert!(firsts(&mut hedge, [true; 6], at(2501), 60)[2] > 0);
    }

    #[test]
    fn patience_follows_what_a_copy_usually_takes_within_bounds() {
        let mut hedge = Hedge::new([false; 6]);
        assert_eq!(hedge.patience(0), PATIENCE_UNKNOWN);
        for i in 0..200u32 {
            hedge.answered(0, Duration::from_micros(50), at(0));
            hedge.answered(1, if i % 10 == 0 { 7 * MS } else { 3 * MS }, at(0));
            hedge.answered(3, 900 * MS, at(0));
        }
        assert_eq!(hedge.patience(0), PATIENCE_MIN);
        assert_eq!(hedge.patience(1), 7 * MS, "one in ten takes so long: that is not slow for it");
        assert_eq!(hedge.patience(3), PATIENCE_MAX);
    }

    /// Thousands of reads against copies with latencies of their own; two of them stall. With the hedge no read takes longer than
    /// two patiences and the fast copies' own time.
    #[test]
    fn stalled_copies_cost_a_read_no_more_than_the_hedge() {
        let mut prng = Prng::new(7);
        let mut hedge = Hedge::new([false, false, false, true, true, true]);
        let mut now = 0;
        let mut over_patience = 0;
        for read in 0..5000u64 {
            now += 1;
            let stalled = read > 1000;
            let take = |source: usize, prng: &mut Prng| match source {
                0 | 4 if stalled => Duration::from_secs(3600),
                0..=2 => Duration::from_micros(50 + prng.below(100)),
                _ => Duration::from_micros(600 + prng.below(300)),
            };
            let mut spent = Duration::ZERO;
            for source in hedge.order([true; 6], at(now)) {
                let (took, patience) = (take(source, &mut prng), hedge.patience(source));
                if took <= patience {
                    hedge.answered(source, took, at(now));
                    spent += took;
                    break;
                }
                hedge.overdue(source, patience, at(now));
                spent += patience;
            }
            assert!(spent <= 2 * PATIENCE_UNKNOWN + 2 * MS, "read {read} took {spent:?}");
            over_patience += u32::from(spent > PATIENCE_MIN);
        }
        // Once a second at most, over four seconds, for each of the two.
        assert!(over_patience <= 10, "{over_patience} of 4000 reads waited for a hedge");
    }
}
