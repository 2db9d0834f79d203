//! How far back page versions and log are kept, and for whom.
//!
//! Decides the horizon below which versions may be folded: the retention by time, held back by readers, by seeds of secondaries, by where a
//! later reign may begin (to there this region would have to go back; protocol.md rule 23) and by copies that are being rebuilt, and never further
//! than the budget in bytes. Only a copy of this region may hold more: without it
//! there is no quorum, and it lies at hand. Never drops anything itself: copies do, when they write layers.

use crate::base::Lsn;

/// What keeps old versions from being folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeldBy {
    /// The retention by time, or nothing was written.
    #[default]
    Time,
    Reader,
    Seed,
    /// A secondary that is behind may be promoted there.
    Fork,
    Repair,
    /// Somebody wants more than there may be.
    Budget,
}

/// Versions kept and log kept, in bytes of log, with their budgets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    pub versions_bytes: u64,
    pub versions_bytes_max: u64,
    pub held_by: HeldBy,
    pub log_bytes: u64,
    pub log_bytes_max: u64,
}

/// What is asked for, each as the oldest LSN that must stay readable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wants {
    pub vdl: Lsn,
    pub by_time: Lsn,
    pub readers: Lsn,
    pub seed: Option<Lsn>,
    /// The oldest LSN at which a later reign may begin.
    pub fork: Option<Lsn>,
    pub repair: Option<Lsn>,
    pub bytes_max: u64,
}

impl Wants {
    pub(super) fn horizon(&self) -> (Lsn, HeldBy) {
        let mut held = (self.by_time, HeldBy::Time);
        for (at, by) in [(Some(self.readers), HeldBy::Reader), (self.seed, HeldBy::Seed), (self.fork, HeldBy::Fork)] {
            if let Some(at) = at.filter(|at| *at < held.0) {
                held = (at, by);
            }
        }
        let floor = Lsn(self.vdl.0.saturating_sub(self.bytes_max));
        if held.0 < floor {
            // A secondary that stays away is nothing to look after: then the way back costs a copy.
            held = (floor, if held.1 == HeldBy::Fork { HeldBy::Fork } else { HeldBy::Budget });
        }
        match self.repair {
            Some(at) if at < held.0 => (at, HeldBy::Repair),
            _ => held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_a_copy_holds_more_than_the_budget() {
        const NONE: Lsn = Lsn(u64::MAX);
        let at = |n| Some(Lsn(n));
        // one line per case: by time, readers, seed, fork, repair; what comes of it with VDL 1000 and 300 bytes
        for (by_time, readers, seed, fork, repair, horizon, by) in [
            (900, NONE, None, None, None, 900, HeldBy::Time),
            (900, Lsn(800), None, at(950), None, 800, HeldBy::Reader),
            (900, Lsn(800), at(750), None, None, 750, HeldBy::Seed),
            (900, Lsn(800), at(750), at(720), None, 720, HeldBy::Fork),
            (900, NONE, None, at(100), None, 700, HeldBy::Fork),
            (900, Lsn(100), None, None, None, 700, HeldBy::Budget),
            (900, NONE, at(100), None, None, 700, HeldBy::Budget),
            (0, NONE, None, None, None, 700, HeldBy::Budget),
            (900, NONE, None, at(800), at(100), 100, HeldBy::Repair),
            (900, Lsn(100), None, None, at(850), 700, HeldBy::Budget),
        ] {
            let wants = Wants { vdl: Lsn(1000), by_time: Lsn(by_time), readers, seed, fork, repair, bytes_max: 300 };
            assert_eq!(wants.horizon(), (Lsn(horizon), by), "{wants:?}");
        }
        let young = Wants { vdl: Lsn(10), by_time: Lsn(0), readers: NONE, seed: None, fork: None, repair: None, bytes_max: 300 };
        assert_eq!(young.horizon(), (Lsn(0), HeldBy::Time));
    }
}
