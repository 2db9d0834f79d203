//! The simulator: whole global clusters in one thread, under virtual time, from one seed.
//!
//! Drives the same [`crate::node::Node`] and [`crate::volume::Copy`] as production through a queue of (time, event), in two
//! phases: first anything may fail (processes, disks, copies, links, clocks, as drawn from the seed), then a healthy core must
//! converge in bounded time. What must hold is judged in [`checker`], apart from the code that is judged.
//! Decides nothing about the protocol. The same seed gives the same run, on every machine: no clock, no thread inside a run.

mod checker;
mod copies;
pub mod disk;
mod faults;
mod network;
mod plan;
pub mod proof;
mod regions;
mod runs;
#[cfg(test)]
mod tests;
mod workload;
mod world;

pub use runs::{SimFailure, SimReport, Summary, run_many, run_seed};

/// How a run differs from what its seed alone says.
#[derive(Clone, Debug, Default)]
pub struct SimOptions {
    /// Regions, primary included (2 to 4); drawn from the seed when `None`.
    pub regions: Option<usize>,
    /// Length of the first phase in virtual milliseconds; drawn from the seed when `None`.
    pub faults_for_ms: Option<u64>,
    /// A rule that the driver breaks, to show that the checkers see it.
    pub mutant: Option<Mutant>,
    /// So many of the last steps are kept and shown with a failure.
    pub trace_lines: usize,
}

/// A rule of the protocol, broken by the simulator's own driver. The cores know nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Copies acknowledge what they have not fsynced.
    AckBeforeSync,
    /// A disk's sync returns and syncs nothing.
    LyingSync,
    /// Secondaries are shipped frames above the primary's VDL.
    ShipAboveVdl,
    /// One copy's acknowledgement is counted for two others.
    AckFromTwo,
}
