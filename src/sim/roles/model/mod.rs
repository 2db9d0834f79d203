//! The protocol of roles, every schedule of it: the production cores of a few members under everything that can happen, step by step.
//!
//! Decides what a search says, and that each rule is missed once. Unlike the seeded runs it leaves nothing to chance; it is small instead: a few epochs,
//! crashes, held links, commits and orders, a clock of whole ticks, links that keep their order. Time is not bounded: it is counted from
//! now, so that waiting longer leads to states that were seen.
//!
//! The parts: [`scopes`] says how far each search goes, [`search`] visits states, [`state`] says which are the same, [`steps`] what can
//! happen in one, [`member`] what its members do and what must hold.

mod member;
mod scopes;
mod search;
mod state;
mod steps;

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
