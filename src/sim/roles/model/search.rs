//! All states that can be reached, each visited once.
//!
//! Decides in which order: breadth first. Keeps 64 bits of each state; a state whose fingerprint another one has by chance is not gone on from, which is one
//! in 2^64 / states for each.

use super::state::{Rules, State};
use super::steps::Step;
use super::{Bounds, ModelReport};
use crate::sim::roles::RoleMutant;

/// Fingerprints. Open addressing: nothing is ever taken out.
struct Seen {
    slots: Vec<u64>,
    len: usize,
}

impl Seen {
    fn new() -> Seen {
        Seen { slots: vec![0; 1 << 16], len: 0 }
    }

    /// Whether it is new.
    fn note(&mut self, fingerprint: u64) -> bool {
        if self.len * 2 > self.slots.len() {
            let twice = vec![0; self.slots.len() * 2];
            for f in std::mem::replace(&mut self.slots, twice).into_iter().filter(|f| *f != 0) {
                let at = self.slot(f);
                self.slots[at] = f;
            }
        }
        let fingerprint = fingerprint.max(1);
        let at = self.slot(fingerprint);
        let new = self.slots[at] == 0;
        self.slots[at] = fingerprint;
        self.len += usize::from(new);
        new
    }

    fn slot(&self, fingerprint: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = usize::try_from(fingerprint >> 20).expect("BUG: 64 bits") & mask;
        while self.slots[at] != 0 && self.slots[at] != fingerprint {
            at = (at + 1) & mask;
        }
        at
    }
}

/// Breadth first: what is found is found by a shortest schedule, and all schedules of so many steps are gone through before any longer one.
pub(super) fn search(bounds: Bounds, mutant: Option<RoleMutant>) -> ModelReport {
    let rules = Rules::new(bounds.clone(), mutant);
    let mut report = ModelReport { bounds, mutant, states: 0, transitions: 0, deepest: 0, reigns: 0, exhausted: false, violation: None };
    let root = match State::new(&rules) {
        Ok(root) => root,
        Err(what) => {
            report.violation = Some((what, Vec::new()));
            return report;
        }
    };
    let mut seen = Seen::new();
    seen.note(root.fingerprint(&rules));
    // From which state, and by which step, each state was reached first.
    let mut ways: Vec<(usize, Step)> = vec![(0, Step::Tick { slow: None })];
    let mut level = vec![(root, 0)];
    while !level.is_empty() && report.deepest < report.bounds.steps && seen.len < report.bounds.states_max {
        report.deepest += 1;
        let mut further = Vec::new();
        for (state, way) in std::mem::take(&mut level) {
            for step in state.steps(&rules) {
                let mut next = state.after(&rules, step);
                report.transitions += 1;
                // Where only one thing can happen it is no state to come back to.
                while let Ok(Some(only)) = next.as_ref().map(|n| n.only(&rules)) {
                    report.transitions += 1;
                    next = next.and_then(|n| n.after(&rules, only));
                }
                match next {
                    Ok(next) if next.is_beyond(&rules) || !seen.note(next.fingerprint(&rules)) => {}
                    Ok(next) => {
                        report.reigns = report.reigns.max(next.reigns());
                        ways.push((way, step));
                        further.push((next, ways.len() - 1));
                    }
                    Err(what) => {
                        report.states = seen.len;
                        let mut schedule = vec![format!("{step:?}")];
                        let mut at = way;
                        while at != 0 {
                            schedule.push(format!("{:?}", ways[at].1));
                            at = ways[at].0;
                        }
                        schedule.reverse();
                        report.violation = Some((what, schedule));
                        return report;
                    }
                }
            }
            if seen.len >= report.bounds.states_max {
                break;
            }
        }
        level = further;
    }
    report.states = seen.len;
    report.exhausted = level.is_empty();
    report
}
