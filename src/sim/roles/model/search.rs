//! All states that can be reached, each visited once.
//!
//! Decides in which order: breadth first. Keeps 64 bits of each state; a state whose fingerprint another one has by chance is not gone on from, which is one
//! in 2^64 / states for each.

use super::state::{Rules, State};
use super::steps::Step;
use super::{Bounds, ModelReport};
use crate::sim::roles::RoleMutant;
use std::collections::BTreeMap;

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

/// Some states, by their fingerprints: whatever is taken for one of them is gone on from all the same, and must lead to the same. What is left out of a
/// fingerprint and yet decides something is found by them.
struct Twins {
    /// One in so many; 0: none.
    every: u64,
    /// With the fingerprint that it shares.
    waiting: Vec<(u64, State)>,
    /// What each of those states led to, step by step.
    led_to: BTreeMap<u64, Vec<u64>>,
}

impl Twins {
    fn wants(&self, fingerprint: u64) -> bool {
        self.every > 0 && fingerprint.is_multiple_of(self.every)
    }

    /// Those of which the other was gone on from by now; after the next level that is so for the rest. Returns how many there were.
    fn compare(&mut self, rules: &Rules) -> Result<usize, String> {
        let (ready, wait) = std::mem::take(&mut self.waiting).into_iter().partition(|(f, _)| self.led_to.contains_key(f));
        self.waiting = wait;
        let ready: Vec<(u64, State)> = ready;
        for (fingerprint, twin) in &ready {
            let led_to = &self.led_to[fingerprint];
            let steps = twin.steps(rules);
            let leads: Vec<u64> = steps.iter().map(|step| where_to(&follow(twin, rules, *step, &mut 0), rules)).collect();
            if leads != *led_to {
                let parts = steps.iter().zip(&leads).zip(led_to).find(|((_, a), b)| a != b).map(|((step, _), _)| step);
                return Err(format!(
                    "BUG: two states are taken for one and part ways at {parts:?} ({} and {} steps)",
                    leads.len(),
                    led_to.len()
                ));
            }
        }
        Ok(ready.len())
    }
}

/// After a step, and after all in which nothing else could happen.
fn follow(state: &State, rules: &Rules, step: Step, transitions: &mut u64) -> Result<State, String> {
    let mut next = state.after(rules, step)?;
    *transitions += 1;
    // Where only one thing can happen it is no state to come back to.
    while let Some(only) = next.only(rules) {
        *transitions += 1;
        next.happens(rules, only)?;
    }
    Ok(next)
}

fn where_to(next: &Result<State, String>, rules: &Rules) -> u64 {
    next.as_ref().map_or(0, |next| next.fingerprint(rules))
}

/// Breadth first: what is found is found by a shortest schedule, and all schedules of so many steps are gone through before any longer one.
pub(super) fn search(bounds: Bounds, mutant: Option<RoleMutant>) -> ModelReport {
    let rules = Rules::new(bounds, mutant);
    let mut report = ModelReport {
        bounds: rules.bounds.clone(),
        mutant,
        states: 0,
        transitions: 0,
        deepest: 0,
        reigns: 0,
        beyond: 0,
        twins: 0,
        exhausted: false,
        violation: None,
    };
    if let Err((what, schedule)) = visit(&rules, &mut report) {
        report.violation = Some((what, schedule));
    }
    report
}

fn visit(rules: &Rules, report: &mut ModelReport) -> Result<(), (String, Vec<String>)> {
    let bounds = &rules.bounds;
    let root = State::new(rules).map_err(|what| (what, Vec::new()))?;
    let mut seen = Seen::new();
    let mut twins = Twins { every: bounds.twins, waiting: Vec::new(), led_to: BTreeMap::new() };
    seen.note(root.fingerprint(rules));
    // From which state, and by which step, each state was reached first.
    let mut ways: Vec<(usize, Step)> = vec![(0, Step::Tick { slow: None })];
    let mut level = vec![(root, 0)];
    while !level.is_empty() && report.deepest < bounds.steps {
        report.deepest += 1;
        let mut further = Vec::new();
        for (state, way) in std::mem::take(&mut level) {
            let mut led_to = Vec::new();
            for step in state.steps(rules) {
                let next = follow(&state, rules, step, &mut report.transitions);
                let fingerprint = where_to(&next, rules);
                led_to.push(fingerprint);
                match next {
                    Ok(next) if next.is_beyond(rules) => report.beyond += 1,
                    Ok(next) if !seen.note(fingerprint) => {
                        if twins.wants(fingerprint) {
                            twins.waiting.push((fingerprint, next));
                        }
                    }
                    Ok(next) => {
                        report.states = seen.len;
                        report.reigns = report.reigns.max(next.reigns());
                        ways.push((way, step));
                        further.push((next, ways.len() - 1));
                    }
                    Err(what) => return Err((what, schedule(&ways, way, step))),
                }
            }
            let fingerprint = state.fingerprint(rules);
            if twins.wants(fingerprint) {
                twins.led_to.insert(fingerprint, led_to);
            }
            if seen.len >= bounds.states_max {
                return Ok(());
            }
        }
        report.twins += twins.compare(rules).map_err(|what| (what, Vec::new()))?;
        level = further;
    }
    report.exhausted = level.is_empty();
    Ok(())
}

fn schedule(ways: &[(usize, Step)], from: usize, last: Step) -> Vec<String> {
    let mut schedule = vec![format!("{last:?}")];
    let mut at = from;
    while at != 0 {
        schedule.push(format!("{:?}", ways[at].1));
        at = ways[at].0;
    }
    schedule.reverse();
    schedule
}
