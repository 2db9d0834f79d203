//! Space that dropped tables and deleted rows leave goes out of the database by itself.
//!
//! Decides when free pages are given back, and how many at a time. A step is a transaction of its own on the writer's thread: begun only
//! while no client waits, ended as soon as one does, and a commit like any other behind the gate, the lease and the commit rules. So a crash
//! in its midst is as before it or as after it, and secondaries follow it as they follow every commit; by themselves they do nothing.
//! It needs the map that SQLite keeps for `auto_vacuum = INCREMENTAL`: databases have it from their first table on. One that was founded
//! without gets it with its next VACUUM, and is left alone before. The roots of tables never move: no statement is prepared anew for it.

use super::PAGE_BYTES;
use crate::base::{Instant, Lsn};
use std::time::Duration;

/// Where SQLite keeps in page 1 how many pages are free, the largest root of a table (0: no map of pages), and whether the map is for
/// giving back by steps.
const FREE_PAGES_AT: usize = 36;
const LARGEST_ROOT_AT: usize = 52;
const BY_STEPS_AT: usize = 64;

/// Pages of one step, at most: their old contents may have to come from a copy before the commit.
const STEP_PAGES_MAX: u32 = 64;
/// A step looks for more pages no longer than this.
pub const STEP_TIME_MAX: Duration = Duration::from_millis(5);
/// The writer's thread works on it for one part of time in so many.
const PAUSE_TIMES: u32 = 5;

/// How much of a database may lie fallow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GiveBack {
    /// At most so much in a second; 0: nothing is given back by itself.
    pub bytes_per_s: u64,
    /// Free pages up to this part of the database are kept for what comes next; half of them stay when more is given back.
    pub keep_percent: u32,
    /// And so many of them in any case.
    pub keep_pages: u32,
    /// So long after a commit it is looked whether there is something to give back; and again, when that was not the moment.
    pub look_after: Duration,
}

impl Default for GiveBack {
    fn default() -> GiveBack {
        GiveBack { bytes_per_s: 8 << 20, keep_percent: 10, keep_pages: 256, look_after: Duration::from_millis(100) }
    }
}

/// What the first page says about the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    pub pages: u32,
    /// They can be given back step by step.
    pub by_steps: bool,
}

impl Free {
    pub fn of(page_one: &[u8]) -> Free {
        let number = |at| {
            let mut bytes = [0; 4];
            super::copy_part(page_one, at, &mut bytes);
            u32::from_be_bytes(bytes)
        };
        Free { pages: number(FREE_PAGES_AT), by_steps: number(LARGEST_ROOT_AT) != 0 && number(BY_STEPS_AT) != 0 }
    }
}

/// When the writer looks after free pages, and for how many.
pub struct Pace {
    settings: GiveBack,
    due: Option<Instant>,
    /// End of the last commit that was looked at.
    looked_at: Lsn,
    giving: bool,
    /// The last step ends here: the next one waits until it is visible.
    pub stepped_to: Lsn,
    given_pages: u64,
}

impl Pace {
    /// A writer opens: what an earlier one left is looked at as well.
    pub fn new(settings: GiveBack, now: Instant) -> Pace {
        let due = (settings.bytes_per_s > 0).then(|| now + settings.look_after);
        Pace { settings, due, looked_at: Lsn::ZERO, giving: false, stepped_to: Lsn::ZERO, given_pages: 0 }
    }

    /// From then on it is time to look, if no client wants to write.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The log ends at `head` now. A busy writer does not put off the look that is due.
    pub fn wrote(&mut self, head: Lsn, now: Instant) {
        if self.settings.bytes_per_s > 0 && self.due.is_none() && head > self.looked_at {
            self.due = Some(now + self.settings.look_after);
        }
    }

    /// Now is not the moment.
    pub fn put_off(&mut self, now: Instant) {
        self.due = Some(now + self.settings.look_after);
    }

    /// How many of the free pages are to go next, and 0 when no more are; `pages` is the whole database, as of `head`.
    pub fn wanted(&mut self, free: Free, pages: u32, head: Lsn) -> u32 {
        let percent = u64::from(pages) * u64::from(self.settings.keep_percent) / 100;
        let keep = u32::try_from(percent).unwrap_or(u32::MAX).max(self.settings.keep_pages);
        // Begun above the bound and gone on below it: a database that breathes a little is left alone.
        let down_to = if self.giving || free.pages > keep { keep / 2 } else { u32::MAX };
        let wanted = if free.by_steps { free.pages.saturating_sub(down_to).min(STEP_PAGES_MAX) } else { 0 };
        self.giving = wanted > 0;
        if !self.giving {
            (self.due, self.looked_at) = (None, head);
        }
        wanted
    }

    /// A step was made from `began` to `now`.
    pub fn stepped(&mut self, pages: u32, head: Lsn, began: Instant, now: Instant) {
        self.stepped_to = head;
        self.given_pages += u64::from(pages);
        let bytes = u64::from(pages) * PAGE_BYTES as u64;
        let paced = Duration::from_millis(bytes.saturating_mul(1000) / self.settings.bytes_per_s.max(1));
        self.due = Some(now + paced.max(now.since(began) * PAUSE_TIMES));
    }

    /// What was given back since this was asked last, if it is at an end.
    pub fn at_an_end(&mut self) -> Option<u64> {
        (!self.giving && self.given_pages > 0).then(|| std::mem::take(&mut self.given_pages) * PAGE_BYTES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(pages: u32) -> Free {
        Free { pages, by_steps: true }
    }

    #[test]
    fn it_begins_above_the_bound_and_ends_at_half_of_it() {
        let at = |ms: u64| Instant { ns: ms * 1_000_000 };
        let mut pace = Pace::new(GiveBack { keep_percent: 10, keep_pages: 20, ..GiveBack::default() }, at(0));
        assert_eq!(pace.due(), Some(at(100)), "what an earlier writer left");
        assert_eq!(pace.wanted(free(100), 1000, Lsn(5)), 0, "as many as may lie fallow");
        assert_eq!(pace.due(), None);
        pace.wrote(Lsn(5), at(200));
        assert_eq!(pace.due(), None, "nothing was written since");
        pace.wrote(Lsn(6), at(200));
        pace.wrote(Lsn(7), at(250));
        assert_eq!(pace.due(), Some(at(300)), "a busy writer does not put it off");
        assert_eq!(pace.wanted(Free { pages: 900, by_steps: false }, 1000, Lsn(7)), 0, "it has no map");
        assert_eq!(pace.wanted(free(101), 1000, Lsn(7)), 51, "down to half");
        assert_eq!(pace.wanted(free(900), 1000, Lsn(7)), STEP_PAGES_MAX);
        pace.stepped(64, Lsn(8), at(300), at(301));
        assert_eq!(pace.due(), Some(at(301 + 31)), "8 MiB in a second");
        pace.stepped(1, Lsn(8), at(400), at(410));
        assert_eq!(pace.due(), Some(at(460)), "a slow one is followed by a longer pause");
        assert_eq!(pace.at_an_end(), None);
        assert_eq!(pace.wanted(free(60), 1000, Lsn(9)), 10, "it goes on below the bound");
        assert_eq!(pace.wanted(free(50), 1000, Lsn(9)), 0);
        assert_eq!((pace.at_an_end(), pace.at_an_end()), (Some(65 * 4096), None));
        assert_eq!(pace.wanted(free(60), 1000, Lsn(9)), 0, "and begins no more");
        assert_eq!(pace.wanted(free(21), 30, Lsn(9)), 11, "a small database keeps a number");
    }

    #[test]
    fn a_rate_of_nothing_means_never() {
        let mut pace = Pace::new(GiveBack { bytes_per_s: 0, ..GiveBack::default() }, Instant { ns: 0 });
        pace.wrote(Lsn(9), Instant { ns: 1 });
        assert_eq!(pace.due(), None);
    }
}
