//! The simulator: whole global clusters in one thread, under virtual time, from one seed.
//!
//! Drives the same [`crate::node::Node`] and [`crate::volume::Copy`] as production through a queue of (time, event), in two
//! phases: first anything may fail (processes, disks, copies, links, clocks, as drawn from the seed), then a healthy core must
//! converge in bounded time. What must hold is judged in [`checker`], apart from the code that is judged.
//! Decides nothing about the protocol. The same seed gives the same run, on every machine: no clock, no thread inside a run.

mod backups;
mod checker;
pub mod cipher;
mod copies;
pub mod disk;
mod faults;
mod mutants;
mod network;
mod operator;
mod plan;
pub mod proof;
mod recovery;
mod regions;
mod replacing;
pub mod roles;
mod runs;
#[cfg(test)]
mod tests;
mod workload;
mod world;

pub use mutants::{MutantReport, catch, catch_all};
pub use recovery::{RecoveryOptions, RecoverySummary, enumerate as enumerate_recoveries};
pub use runs::{SimFailure, SimReport, Summary, run_many, run_seed};

/// How a run differs from what its seed alone says.
#[derive(Clone, Debug, Default)]
pub struct SimOptions {
    /// Regions, primary included (2 to 4); drawn from the seed when `None`.
    pub regions: Option<usize>,
    /// Protection groups (1 to 16); drawn from the seed (1 to 3) when `None`.
    pub groups: Option<u32>,
    /// Length of the first phase in virtual milliseconds; drawn from the seed when `None`.
    pub faults_for_ms: Option<u64>,
    /// An operator moves the primary, again and again.
    pub moves: bool,
    /// A rule that the driver breaks, to show that the checkers see it.
    pub mutant: Option<Mutant>,
    /// So many of the last steps are kept and shown with a failure.
    pub trace_lines: usize,
}

/// A rule of the protocol, broken by the simulator's own drivers, disks and messages. The cores know nothing of it, so none of
/// these can happen outside a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Copies acknowledge what they have not fsynced.
    AckBeforeSync,
    /// A disk's sync returns and syncs nothing.
    LyingSync,
    /// A sync that failed is tried again on the same file, and believed.
    FailedSyncRetried,
    /// A file gets its name before its bytes are synced.
    PublishedBeforeSync,
    /// Secondaries are shipped frames above the primary's VDL.
    ShipAboveVdl,
    /// One copy's acknowledgement is counted for two others.
    AckFromTwo,
    /// One copy's acknowledgement is counted for another: three are enough.
    AckFromThree,
    /// A page that fails its checksum is given to whoever rebuilds from it.
    DamagedSource,
    /// A frame that tore when the power went is taken as valid.
    TornTailValid,
    /// What comes again cuts the log behind it: a cut without a frame of a newer writer in its place.
    CutWithoutSuccessor,
    /// Log files go before what they hold is in layers.
    TrimAboveFlushed,
    /// Versions are folded although a reader has pinned them.
    FoldedUnderReaders,
    /// Recovery goes on with two copies: a third is made up that says what one of them says.
    RecoverFromTwo,
    /// New and empty copies have a vote in a recovery.
    EmptyCopiesVote,
    /// A copy keeps its promise in memory only.
    PromiseForgotten,
    /// What an older generation left counts as durable on four copies, before this generation's first frame is (Raft's figure 8).
    OldTailCounts,
}
