//! Shipping: how the log travels from the primary to a secondary, and how far behind that one is.
//!
//! Decides: what a secondary is sent next and what of it is asked again; what the receiver takes over and in which order;
//! what the lag is. Never decides when something is durable (the volume does) or who is primary (control does).
//! [`Sender`]: one per secondary, in the primary. [`Receiver`]: one, in a secondary. [`LagMeter`]: the secondary's clock for
//! all of it. All three are machines without I/O, driven by the node.

pub mod catchup;
mod lag;
mod receiver;
#[cfg(test)]
mod resume_tests;
mod sender;
pub mod wire;

pub use catchup::{CatchUpKind, CatchUpReport, UnfinishedSeed};
pub use lag::{LagMeter, LagReport};
pub use receiver::{Receiver, ReceiverEffect, Seed};
pub use sender::{BEHIND_BYTES, Progress, Sender, SenderEffect, Start};
pub use wire::{Heartbeat, HeartbeatReply, Hello, Message, Position, Refusal, SeedStep, WireError};
