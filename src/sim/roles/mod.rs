//! Changing roles, simulated: the control cores of two to six regions and a witness, with everything that can happen to them.
//!
//! Drives the same [`crate::control::Control`] as production, one for each member, over clocks that drift, messages that are lost,
//! doubled, late or out of order, crashes that keep only what was persisted, suspended machines and stuck disks. Each region has a
//! log of real frames that is shipped, cut and rewound by a small model of the rest of a region. What must hold (protocol.md S1, S2,
//! S3, S5 to S9, S16, L1, L2, L3, L5) is judged by [`checks`] from ground truth. Decides nothing about the protocol.

mod checks;
mod faults;
#[cfg(test)]
mod lineage_tests;
mod log;
mod member;
mod model;
mod mutants;
mod node;
mod perform;
mod plots;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod witness_tests;
mod world;

pub use model::{Bounds, ModelArgs, ModelReport, bounds as model_bounds, catch_by_model, run_model};
pub use mutants::{RoleMutant, RoleMutantReport, catch_all as catch_role_mutants};

use crate::sim::runs::{said, spread};
use parking_lot::Mutex;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use world::World;

/// How runs differ from what their seeds alone say.
#[derive(Clone, Debug, Default)]
pub struct RolesOptions {
    /// Data regions, 2 to 6; drawn from the seed when `None`.
    pub regions: Option<usize>,
    pub mutant: Option<RoleMutant>,
    /// So many of the last steps are shown with a failure.
    pub trace_lines: usize,
}

/// What happened in a run, or in many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolesCounts {
    pub runs: u64,
    pub virtual_s: u64,
    pub events: u64,
    pub messages: u64,
    pub messages_lost: u64,
    pub messages_doubled: u64,
    pub messages_late: u64,
    pub acknowledged: u64,
    pub lost_and_named: u64,
    pub reigns: u64,
    pub switchovers: u64,
    pub failovers: u64,
    pub regained: u64,
    pub unproven: u64,
    pub orders: u64,
    pub orders_refused: u64,
    pub orders_superseded: u64,
    pub voter_changes: u64,
    pub member_changes: u64,
    pub witness_changes: u64,
    pub crashes: u64,
    pub pauses: u64,
    pub suspends: u64,
    pub cuts: u64,
    pub stuck_disks: u64,
    pub rewinds: u64,
    /// Runs by their number of regions, from two on.
    pub shapes: [u64; 5],
    /// Of those with two: without a witness.
    pub alone: u64,
    /// Schedules that wait for a message, begun.
    pub plots: u64,
}

impl RolesCounts {
    fn add(&mut self, o: &RolesCounts) {
        for (mine, theirs) in [
            (&mut self.runs, o.runs),
            (&mut self.virtual_s, o.virtual_s),
            (&mut self.events, o.events),
            (&mut self.messages, o.messages),
            (&mut self.messages_lost, o.messages_lost),
            (&mut self.messages_doubled, o.messages_doubled),
            (&mut self.messages_late, o.messages_late),
            (&mut self.acknowledged, o.acknowledged),
            (&mut self.lost_and_named, o.lost_and_named),
            (&mut self.reigns, o.reigns),
            (&mut self.switchovers, o.switchovers),
            (&mut self.failovers, o.failovers),
            (&mut self.regained, o.regained),
            (&mut self.unproven, o.unproven),
            (&mut self.orders, o.orders),
            (&mut self.orders_refused, o.orders_refused),
            (&mut self.orders_superseded, o.orders_superseded),
            (&mut self.voter_changes, o.voter_changes),
            (&mut self.member_changes, o.member_changes),
            (&mut self.witness_changes, o.witness_changes),
            (&mut self.crashes, o.crashes),
            (&mut self.pauses, o.pauses),
            (&mut self.suspends, o.suspends),
            (&mut self.cuts, o.cuts),
            (&mut self.stuck_disks, o.stuck_disks),
            (&mut self.rewinds, o.rewinds),
            (&mut self.alone, o.alone),
            (&mut self.plots, o.plots),
        ] {
            *mine += theirs;
        }
        for (mine, theirs) in self.shapes.iter_mut().zip(o.shapes) {
            *mine += theirs;
        }
    }
}

impl fmt::Display for RolesCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} runs (2 to 6 regions: {:?}, {} of two without a witness) of {} virtual s in all, {} events; {} reigns: {} switchovers, {} failovers, {} regained, {} unproven; {} orders, {} refused, \
             {} superseded, {} changes of voters, {} of members as members hear of them, {} of the witness; {} commits acknowledged, {} lost and named, {} rewinds; {} crashes, {} pauses, {} suspends, \
             {} cuts, {} stuck disks, {} plots; {} messages, {} lost, {} doubled, {} late",
            self.runs,
            self.shapes,
            self.alone,
            self.virtual_s,
            self.events,
            self.reigns,
            self.switchovers,
            self.failovers,
            self.regained,
            self.unproven,
            self.orders,
            self.orders_refused,
            self.orders_superseded,
            self.voter_changes,
            self.member_changes,
            self.witness_changes,
            self.acknowledged,
            self.lost_and_named,
            self.rewinds,
            self.crashes,
            self.pauses,
            self.suspends,
            self.cuts,
            self.stuck_disks,
            self.plots,
            self.messages,
            self.messages_lost,
            self.messages_doubled,
            self.messages_late
        )
    }
}

/// A run in which something did not hold.
#[derive(Clone, Debug)]
pub struct RolesFailure {
    pub seed: u64,
    pub what: String,
    pub at_ms: u64,
    pub trace: Vec<String>,
}

impl fmt::Display for RolesFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "seed {} failed at +{}.{:03}s: {}", self.seed, self.at_ms / 1000, self.at_ms % 1000, self.what)?;
        write!(f, "  again: parhelion sim roles --seed {}", self.seed)
    }
}

/// Runs one seed.
///
/// # Errors
/// When a rule did not hold, or the core panicked.
pub fn run_roles_seed(seed: u64, options: &RolesOptions) -> Result<RolesCounts, Box<RolesFailure>> {
    let trace = std::sync::Arc::new(Mutex::new(world::Trace::new(options.trace_lines)));
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(seed, options, std::sync::Arc::clone(&trace)).run()));
    let what = match outcome {
        Ok(Ok(counts)) => return Ok(counts),
        Ok(Err(what)) => what,
        Err(panic) => format!("it panicked: {}", said(&*panic)),
    };
    let trace = trace.lock();
    Err(Box::new(RolesFailure { seed, what, at_ms: trace.now_ns / 1_000_000, trace: trace.lines.iter().cloned().collect() }))
}

/// What many seeds came to.
#[derive(Clone, Debug, Default)]
pub struct RolesSummary {
    pub counts: RolesCounts,
    pub failures: Vec<RolesFailure>,
}

/// Runs `count` seeds from `first_seed` on.
pub fn run_roles(first_seed: u64, count: u64, threads: usize, options: &RolesOptions, say: &(dyn Fn(&str) + Sync)) -> RolesSummary {
    let next = AtomicU64::new(0);
    let summary = Mutex::new(RolesSummary::default());
    spread(threads, || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return;
            }
            let outcome = run_roles_seed(first_seed.wrapping_add(i), options);
            let mut summary = summary.lock();
            match outcome {
                Ok(counts) => summary.counts.add(&counts),
                Err(failure) => {
                    say(&failure.to_string());
                    summary.failures.push(*failure);
                }
            }
            if (i + 1).is_multiple_of(1000) && i + 1 < count {
                say(&format!("{} failed; {}", summary.failures.len(), summary.counts));
            }
        }
    });
    let summary = summary.into_inner();
    say(&format!("{} failed; {}", summary.failures.len(), summary.counts));
    summary
}
