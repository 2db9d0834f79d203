//! Whether writes may begin: said by the node, believed by the head. And who writes, for whoever has to wait for that.

use super::RegionName;

/// Whether the writer may begin a write, as the node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteGate {
    Open,
    /// Writes are refused with this sentence (a quorum of copies is missing ...). Reads go on.
    Closed {
        reason: String,
    },
    /// This region may not be the writer any more (its lease is over, another one was promoted). At the writer port nothing
    /// begins, reads neither, and no answer goes out that has not gone yet. Reads at the reader port go on.
    Fenced {
        reason: String,
        /// Where to go, as far as it is known.
        primary: Option<RegionName>,
    },
}

/// Who writes now, as far as this region knows. Whoever waits for a writer is woken when this changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WhoWrites {
    /// This region: its engine's writer is open.
    pub here: bool,
    pub primary: Option<RegionName>,
    /// Moves whenever a link comes or goes: whoever could not reach the primary looks again.
    pub links: u64,
}
