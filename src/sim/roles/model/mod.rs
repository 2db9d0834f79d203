//! The protocol of roles, every schedule of it: the production cores of a few members under everything that can happen, step by step.
//!
//! Decides what a search says, and that each rule is missed once. Unlike the seeded runs it leaves nothing to chance; it is small instead: a few epochs,
//! crashes, held links, commits and orders, a clock of whole ticks, links that keep their order. Time is not bounded: it is counted from
//! now, so that waiting longer leads to states that were seen.
//!
//! The parts: [`scopes`] says how far each search goes, [`search`] visits states, [`state`] says which are the same, [`steps`] what can
//! happen in one, [`member`] what its members do and what must hold.

mod copies;
mod member;
mod scopes;
mod search;
mod state;
mod steps;
#[cfg(test)]
mod tests;

pub use scopes::bounds;

use super::RoleMutant;
use crate::control::OrderKind;
use crate::sim::runs::spread_over;
use scopes::{aimed_at, mutants};
use search::search;
use std::fmt;
use steps::Step;

/// How far `parhelion sim model` goes.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// No schedule has more steps in which something else could have happened
    #[arg(long, default_value_t = 400)]
    pub steps: u16,
    /// Searches that need not come to their end stop at so many states each; the others at a million, or at so many if that is more, and have failed
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
    /// Nothing is written before the script is through: what it leads to is looked at by what is written then.
    pub writes_late: bool,
    /// Each region's copies have a clock of their own, and take frames by it (protocol.md rule 6).
    pub gates: bool,
    /// Each is given once, at this member, at any time.
    pub orders: Vec<(usize, OrderKind)>,
    /// No schedule is longer.
    pub steps: u16,
    /// It stops there, and says so.
    pub states_max: usize,
    /// Every schedule is to be gone through, whatever epochs it comes to: a search that stops before has failed.
    pub whole: bool,
    /// What is taken for one in so many of the states that were seen is gone on from all the same, and must lead to the same. 0: none.
    pub twins: u64,
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
    /// Ways that promised an epoch beyond the bound, and were gone no further.
    pub beyond: u64,
    /// States that were gone on from although they were taken for ones that were seen: they led to the same.
    pub twins: usize,
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
            "{}: {} states, {} transitions, {} steps deep, {} reigns at most; ",
            b.name, self.states, self.transitions, self.deepest, self.reigns
        )?;
        match (self.exhausted, b.whole) {
            (true, _) if self.beyond == 0 => write!(f, "all of them")?,
            (true, _) => write!(f, "all of them but {} ways into later epochs", self.beyond)?,
            (false, true) if self.violation.is_none() => write!(f, "NOT ALL OF THEM: something grows for ever, or --states is too few")?,
            (false, _) => write!(f, "stopped there")?,
        }
        if self.twins > 0 {
            write!(f, ", {} taken for others that lead to the same,", self.twins)?;
        }
        write!(f, " within {} epochs, {} commits, {} orders", b.epochs, b.commits, b.orders.len())?;
        let faults = [
            (b.script.len(), "scripted faults"),
            (b.crashes.into(), "crashes"),
            (b.held.into(), "holds"),
            (b.losses.into(), "losses"),
            (b.drift.into(), "ticks of drift"),
        ];
        for (n, what) in faults.iter().filter(|(n, _)| *n > 0) {
            write!(f, ", {n} {what}")?;
        }
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

impl ModelReport {
    /// It shows that something does not hold, or does not show what it is to.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.violation.is_some() || (self.bounds.whole && (!self.exhausted || self.beyond > 0))
    }
}

/// Goes through all of them, `threads` at a time.
pub fn run_model(all: &[Bounds], mutant: Option<RoleMutant>, threads: usize, say: &(dyn Fn(&str) + Sync)) -> Vec<ModelReport> {
    spread_over(all, threads, &|bounds| {
        let report = search(bounds.clone(), mutant);
        say(&report.to_string());
        report
    })
}

/// Breaks each rule, until some bounds show it.
pub fn catch_by_model(all: &[Bounds], threads: usize, say: &(dyn Fn(&str) + Sync)) -> Vec<ModelReport> {
    let (steps, states_max) = all.iter().find(|b| !b.whole).map(|b| (b.steps, b.states_max)).expect("BUG: some stop where they are told");
    spread_over(&mutants(), threads, &|mutant| {
        let mut last = None;
        let drifts = matches!(mutant, RoleMutant::NoDriftGuard);
        // Only what the mutant needs: every other fault only widens the search.
        let general = || all.iter().filter(|b| b.held > 0).map(|b| Bounds { crashes: 0, drift: drifts.into(), ..b.clone() }).collect();
        let tries: Vec<Bounds> = aimed_at(*mutant).map_or_else(general, |b| vec![b]);
        let tries = tries.into_iter().map(|b| Bounds { steps, states_max, whole: false, twins: 0, ..b });
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
