//! Parhelion: one primary region, up to five images of it.
//!
//! ```text
//!  PRIMARY REGION                                                SECONDARY REGION (x5)
//!
//!  client -> head --frames--> volume: six copies                 volume: six copies --> head -> client
//!            writer           4 fsynced acks = durable           same rules             readers
//!                               |  commit released                 ^
//!                               v                                  | append
//!                             ship ======= QUIC, mTLS (WAN) ====> ship
//! ```
//!
//! Where to start reading: [`base`] (the nouns), [`log`] (what a frame is), [`volume`] (when it is durable), [`ship`]
//! (how it travels), [`node`] (the cores wired together: a closed event in, a closed effect out). These are state
//! machines without I/O; [`io`] drives them for real, [`sim`] under virtual time. ARCHITECTURE.md has the map and the why.

// Only where SQLite is called, each with what makes it sound: tests/layers.rs says where.
#![deny(unsafe_code)]

pub mod base;
pub mod control;
pub mod endpoint;
pub mod head;
pub mod io;
pub mod log;
pub mod node;
pub mod ops;
pub mod ship;
pub mod sim;
pub mod volume;
