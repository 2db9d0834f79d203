//! A WAN on one machine: a UDP link emulator in user space, without root and without kernel modules.
//!
//! For every ordered pair of regions there is a relay socket. What A sends there travels the direction A->B and comes
//! out of a socket private to that sender, aimed at B's real address; what B answers travels B->A and returns to the
//! sender. So two QUIC endpoints meet over an impaired path and neither knows. [`link`] decides what happens to a packet
//! (pure, seeded, told the time), [`relay`] moves bytes, [`control`] changes settings while it runs, [`profile`] knows
//! real geography, [`throughput`] how much all this can carry. The demo's process hosts it; it never looks into a packet,
//! and it never delivers one early.

pub mod control;
pub mod link;
mod port;
pub mod profile;
pub mod relay;
pub mod settings;
pub mod throughput;

#[cfg(test)]
mod tests;

pub use control::{CONTROL_SOCKET, Request, Response, control};
pub use profile::Profile;
pub use relay::{DirectionStatus, Emulator, Options, Pair};
pub use settings::Settings;
pub use throughput::{Throughput, measure_relay_throughput};

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the emulator, one of its settings or a profile was refused.
#[derive(Debug, thiserror::Error)]
pub enum NetemError {
    #[error("'{given}' is not a link setting: {reason}")]
    Setting { given: String, reason: String },
    #[error("there is no region '{given}' here; the regions are {known} (or * for all)")]
    UnknownRegion { given: String, known: String },
    #[error("'{region}' to itself is not a link; name two different regions, or * for all")]
    SameRegion { region: String },
    #[error("there is no network profile '{given}'; the built-in ones are {known}, or give the path of a TOML file")]
    UnknownProfile { given: String, known: String },
    #[error("network profile '{profile}': {reason}")]
    Profile { profile: String, reason: String },
    #[error("network profile '{profile}' has {has} regions, {asked} were asked for; use --profile world (6 regions) or fewer regions")]
    TooManyRegions { profile: String, asked: usize, has: usize },
    #[error("the link emulator needs the address of region '{region}'; every region of the demo has one")]
    NoTarget { region: String },
    #[error("the link emulator cannot open a UDP socket on {address}: {source}; raise the limit of open files (ulimit -n) and start again")]
    Socket { address: SocketAddr, source: std::io::Error },
    #[error("the link emulator cannot start: {0}; close other programs or raise the limits of this user (ulimit -a) and start again")]
    Start(std::io::Error),
    #[error("no emulator is running at {}; start the demo, or give --dir of the one that runs", path.display())]
    NotRunning { path: PathBuf },
    #[error("another emulator is already running at {}; end that demo first, or give this one another --dir", path.display())]
    AlreadyRunning { path: PathBuf },
    #[error("the control socket {}: {reason}", path.display())]
    Control { path: PathBuf, reason: String },
    /// What a running emulator answered: one of the sentences above.
    #[error("{0}")]
    Refused(String),
}
