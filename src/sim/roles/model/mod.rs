//! The protocol of roles, every schedule of it: the production cores of a few members under everything that can happen, step by step.
//!
//! Decides in which order states are visited, and which are the same. What can happen and what must hold is in [`state`]. Unlike the
//! seeded runs it leaves nothing to chance; it is small instead: a few epochs, crashes, held links, commits and orders, a clock of
//! whole ticks, links that keep their order (see [`state`]). Time is not bounded: it is counted from now, so that waiting longer leads to states that
//! were seen.

mod member;
mod state;

use super::RoleMutant;
use crate::control::OrderKind;
use crate::sim::runs::spread_over;
use state::{Rules, State, Step, failover, switchover, voters};
use std::fmt;

/// A search that is to come to its end is given up beyond.
const WHOLE_STATES_MAX: usize = 60_000;

/// How far `parhelion sim model` goes.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// No schedule has more steps in which something else could have happened
    #[arg(long, default_value_t = 400)]
    pub steps: u16,
    /// Each search stops at so many states
    #[arg(long, default_value_t = 100_000)]
    pub states: usize,
    /// Switch off each rule that the model can show once, and show the shortest schedule that breaks it
    #[arg(long)]
    pub mutants: bool,
    /// Threads; each goes through one search at a time
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
}

/// How far a search goes.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub name: &'static str,
    pub regions: usize,
    pub witness: bool,
    /// No epoch above is promised.
    pub epochs: u64,
    pub losses: u8,
    /// Links held up, one or all of a member's at a time.
    pub held: u8,
    pub crashes: u8,
    /// Nothing goes wrong but this, in this order, whenever it may; the second says of each whether that is also in the midst of what is under way.
    script: Vec<(Step, bool)>,
    /// Ticks by which a clock may be behind another.
    pub drift: u8,
    pub commits: u8,
    /// Each is given once, at this member, at any time.
    pub orders: Vec<(usize, OrderKind)>,
    /// No schedule is longer.
    pub steps: u16,
    /// It stops there, and says so.
    pub states_max: usize,
    /// Every schedule is to be gone through, whatever is asked for.
    pub whole: bool,
}

/// What a search came to.
#[derive(Clone, Debug)]
pub struct ModelReport {
    pub bounds: Bounds,
    pub mutant: Option<RoleMutant>,
    pub states: usize,
    pub transitions: u64,
    pub deepest: u16,
    /// Reigns in the state that has most.
    pub reigns: usize,
    /// Every schedule within the bounds was gone through.
    pub exhausted: bool,
    /// What did not hold, and the schedule that led there.
    pub violation: Option<(String, Vec<String>)>,
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.bounds;
        if let Some(mutant) = self.mutant {
            write!(f, "{:<20} ", format!("{mutant:?}"))?;
        }
        write!(
            f,
            "{}: {} states, {} transitions, {} steps deep, {} reigns at most; {} within {} steps, {} epochs, {} crashes, {} holds, {} losses, {} ticks of drift, \
             {} commits, {} orders",
            b.name,
            self.states,
            self.transitions,
            self.deepest,
            self.reigns,
            if self.exhausted { "all of them" } else { "stopped there" },
            b.steps,
            b.epochs,
            b.crashes,
            b.held,
            b.losses,
            b.drift,
            b.commits,
            b.orders.len()
        )?;
        if let Some((what, schedule)) = &self.violation {
            if self.mutant.is_some() {
                write!(f, "\n    {} steps: {what}", schedule.len())?;
            } else {
                write!(f, "\n  {}\n  {what}", schedule.join("\n  "))?;
            }
        }
        Ok(())
    }
}

/// Two regions and a witness, and nothing goes wrong.
fn quiet(name: &'static str) -> Bounds {
    Bounds {
        name,
        regions: 2,
        witness: true,
        epochs: 3,
        losses: 0,
        held: 0,
        crashes: 0,
        script: Vec::new(),
        drift: 0,
        commits: 1,
        orders: Vec::new(),
        steps: u16::MAX,
        states_max: usize::MAX,
        whole: false,
    }
}

/// Every schedule of an order at any time and these faults at any time: few enough that the search comes to its end.
fn around(name: &'static str, order: (usize, OrderKind), script: Vec<(Step, bool)>) -> Bounds {
    Bounds { whole: true, epochs: 2, orders: vec![order], script, states_max: WHOLE_STATES_MAX, ..quiet(name) }
}

/// What CI goes through; `steps` and `states_max` more or less by a flag, except where all schedules are gone through.
#[must_use]
pub fn bounds(steps: u16, states_max: usize) -> Vec<Bounds> {
    let base = Bounds { held: 1, steps, states_max, ..quiet("") };
    let three = Bounds { regions: 3, witness: false, ..base.clone() };
    vec![
        around("a failover, the old primary cut off", (1, failover(1)), vec![(Step::Alone { m: 0 }, false)]),
        around("a failover, the old primary dies", (1, failover(1)), vec![(Step::Dies { m: 0, silent: false }, false)]),
        around("a switchover, its target dies", (0, switchover(1)), vec![(Step::Dies { m: 1, silent: false }, false)]),
        Bounds { name: "two regions and a witness, a failover", orders: vec![(1, failover(1))], drift: 1, ..base.clone() },
        Bounds { name: "two regions and a witness, a switchover", orders: vec![(0, switchover(1))], crashes: 1, ..base.clone() },
        Bounds { name: "three regions, two failovers", orders: vec![(1, failover(1)), (2, failover(2))], ..three.clone() },
        Bounds {
            name: "three regions, a switchover and a failover",
            orders: vec![(0, switchover(1)), (2, failover(2))],
            crashes: 1,
            ..three
        },
        Bounds {
            name: "four regions, a change of voters and a failover",
            regions: 4,
            witness: false,
            orders: vec![(0, voters(&[0, 1, 3])), (1, failover(1))],
            ..base
        },
    ]
}

/// Faults aimed at one rule: as few as break it when it is off. `None`: what is gone through anyway is good enough.
fn aimed_at(mutant: RoleMutant) -> Option<Bounds> {
    use RoleMutant as M;
    let (old, new, witness) = (0, 1, 2);
    let dies = |m| (Step::Dies { m, silent: false }, false);
    let (name, order, script) = match mutant {
        M::VotesAfterRestart => (
            "the old primary is cut off, and those that granted restart",
            (new, failover(new)),
            vec![(Step::Alone { m: old }, false), dies(new), dies(witness)],
        ),
        M::LeaseFromReply => (
            "the old primary hears of its last grants late, then nothing, and its clock is slow",
            (new, failover(new)),
            vec![
                (Step::Alone { m: old }, true),
                (Step::Mute { m: old }, false),
                (Step::Alone { m: old }, false),
                (Step::Tick { slow: Some(old) }, false),
            ],
        ),
        M::VoterLosesState => (
            "the witness hears one region, restarts, and hears the other",
            (new, failover(new)),
            vec![(Step::Alone { m: old }, false), dies(witness), (Step::Instead { m: new }, false)],
        ),
        M::ResumesSealed => (
            "the target is not heard after it was handed the reign, and the old primary restarts",
            (old, switchover(new)),
            vec![(Step::Mute { m: new }, true), dies(old), (Step::LetGo, false)],
        ),
        M::AnswersBeforeKept => (
            "the witness dies as it answers one region, and hears the other",
            (new, failover(new)),
            vec![
                (Step::Alone { m: old }, false),
                (Step::Dies { m: witness, silent: false }, true),
                (Step::Instead { m: new }, false),
                (Step::LetGo, false),
            ],
        ),
        _ => return None,
    };
    Some(Bounds { orders: vec![order], script, ..quiet(name) })
}

/// Goes through all of them, `threads` at a time.
pub fn run_model(all: &[Bounds], mutant: Option<RoleMutant>, threads: usize, say: &(dyn Fn(&str) + Sync)) -> Vec<ModelReport> {
    spread_over(all, threads, &|bounds| {
        let report = search(bounds.clone(), mutant);
        say(&report.to_string());
        report
    })
}

/// Mutants that the model's steps can show, and the bounds in which they do.
#[must_use]
pub fn mutants() -> Vec<RoleMutant> {
    use RoleMutant as M;
    vec![
        M::VotesAfterRestart,
        M::LeaseFromReply,
        M::NoDriftGuard,
        M::CheckThenAck,
        M::VoterLosesState,
        M::IgnoresGrants,
        M::AckWithoutLease,
        M::NoMajority,
        M::ResumesSealed,
        M::AnswersBeforeKept,
    ]
}

/// Breaks each rule, until some bounds show it.
pub fn catch_by_model(all: &[Bounds], threads: usize, say: &(dyn Fn(&str) + Sync)) -> Vec<ModelReport> {
    let (steps, states_max) = all.iter().filter(|b| !b.whole).map(|b| (b.steps, b.states_max)).next_back().expect("BUG: there are bounds");
    spread_over(&mutants(), threads, &|mutant| {
        let mut last = None;
        let drifts = matches!(mutant, RoleMutant::NoDriftGuard);
        // Only what the mutant needs: every other fault only widens the search.
        let general = || all.iter().filter(|b| !b.whole).map(|b| Bounds { crashes: 0, drift: drifts.into(), ..b.clone() }).collect();
        let tries: Vec<Bounds> = aimed_at(*mutant).map_or_else(general, |b| vec![Bounds { steps, states_max, ..b }]);
        for bounds in tries {
            let report = search(bounds, Some(*mutant));
            let found = report.violation.is_some();
            last = Some(report);
            if found {
                break;
            }
        }
        let report = last.expect("BUG: there are bounds");
        say(&report.to_string());
        report
    })
}

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
fn search(bounds: Bounds, mutant: Option<RoleMutant>) -> ModelReport {
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
