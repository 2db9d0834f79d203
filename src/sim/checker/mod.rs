//! What must hold, judged apart from the code that is judged: the checkers see the ground truth (every frame that a pen
//! wrote, what each copy says is fsynced) and never ask a core whether it is right.
//!
//! [`truth`]: the primary's history, log matching (S3), what is committed, pages as of every LSN; [`prefix`]: a copy and a
//! region against it; [`status`]: what a region says of itself; [`convergence`]: the healthy end.
//! Not verified here: SQL, the real links and disks, more than one epoch, two processes on one region's copies at a time.

pub(super) mod convergence;
pub(super) mod prefix;
pub(super) mod status;
pub(super) mod truth;

/// A rule that does not hold, in a sentence.
pub(super) type Checked<T = ()> = Result<T, String>;
