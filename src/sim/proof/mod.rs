//! Proofs about one volume: what a power cut, damage and failing calls do to six copies and what their appender makes of it.
//!
//! [`powercut`] cuts the power at the writing calls of busy lives and recovers from what is left; [`flips`] damages each region of each
//! kind of file. All of it runs the same appender and the same copies as
//! production, from a seed, on a [`rig`]; a [`story`] knows what is right.

mod bench;
mod changing;
pub mod flips;
mod life;
mod look;
pub mod powercut;
mod rig;
mod story;
#[cfg(test)]
mod tests;

use super::checker::Checked;
