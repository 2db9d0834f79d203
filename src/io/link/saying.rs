//! What is said of links that come and go.
//!
//! Decides what an operator's log gets: a region that seeks a primary has a link for a moment each second, and that is said once for each
//! reason for which it ends, not each second. The figures of all of them are metrics.

use crate::base::RegionName;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A link that ends sooner was of no use to anybody.
const SHORT: Duration = Duration::from_secs(5);

/// Reasons that are remembered for one peer; what comes beyond them is always told.
const REASONS_MAX: usize = 16;

/// All links of one process.
#[derive(Debug, Default)]
pub struct LinkLog {
    /// With whom links were short ones lately, for which reasons they ended (each side has one of its own), and how many were not told.
    short: Mutex<BTreeMap<RegionName, (BTreeSet<String>, u64)>>,
    up: AtomicU64,
    short_in_all: AtomicU64,
}

impl LinkLog {
    /// A link with `peer` is up. Whether that is news.
    pub fn up(&self, peer: &RegionName) -> bool {
        self.up.fetch_add(1, Ordering::Relaxed);
        !self.short.lock().contains_key(peer)
    }

    /// A link with `peer` ended. `None` when one before it ended in the same way; else how many did so, and were not told.
    pub fn ended(&self, peer: &RegionName, lived: Duration, reason: &str) -> Option<u64> {
        let mut short = self.short.lock();
        if lived >= SHORT {
            return Some(short.remove(peer).map_or(0, |(_, untold)| untold));
        }
        self.short_in_all.fetch_add(1, Ordering::Relaxed);
        let (reasons, untold) = short.entry(peer.clone()).or_default();
        if reasons.contains(reason) {
            *untold += 1;
            return None;
        }
        if reasons.len() < REASONS_MAX {
            reasons.insert(reason.to_owned());
        }
        Some(std::mem::take(untold))
    }

    /// Links that came up, and how many of them ended within seconds.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.short_in_all.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_end_at_once_are_told_once_for_each_reason() {
        let (log, peer) = (LinkLog::default(), RegionName::new("eu").unwrap());
        let moment = Duration::from_millis(80);
        let (mine, other) = ("it is not the primary", "eu closed the link: it is not the primary");
        assert!(log.up(&peer));
        assert_eq!(log.ended(&peer, moment, mine), Some(0));
        for round in 0..3 {
            assert!(!log.up(&peer));
            // Both dial: each has its own words for it.
            assert_eq!(log.ended(&peer, moment, other), if round == 0 { Some(0) } else { None });
            assert_eq!(log.ended(&peer, moment, mine), None);
        }
        assert_eq!(log.ended(&peer, moment, "refused"), Some(5), "and how often it was so");
        assert_eq!(log.ended(&peer, moment, mine), None);
        assert_eq!(log.ended(&peer, SHORT, mine), Some(1), "one that served is always news");
        assert!(log.up(&peer), "and so is the next");
        assert_eq!(log.ended(&RegionName::new("ap").unwrap(), moment, "refused"), Some(0), "each peer for itself");
        assert_eq!(log.counts(), (5, 10));
    }
}
