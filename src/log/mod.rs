//! The log: what a frame is, byte for byte, and how a head's changes lie in it.
//!
//! Decides: the one byte format from the writer to the last reader; where a mini-transaction ends; what a valid
//! successor of a frame is. Never decides: when a frame is durable ([`crate::volume`]) or where it goes
//! ([`crate::ship`]). Driven by everyone; it has no state but the [`Pen`]'s position.

pub mod control;
mod frame;
mod history;
mod pen;
mod read;
pub mod redo;

pub use control::{ControlFrame, Reign};
pub use frame::{DecodeError, ELIDED_FRAME_BYTES, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_LIMIT, Flags, Frame, Header, split_frames};
pub use history::{History, Term};
pub use pen::Pen;
pub use read::{LogOutcome, PagesOutcome, SeedBase};
