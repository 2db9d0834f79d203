//! Whether writes may begin: said by the node, believed by the head.

/// Whether the writer may begin a write, as the node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteGate {
    Open,
    /// Writes are refused with this sentence (a quorum of copies is missing, the region is fenced ...). Reads go on.
    Closed {
        reason: String,
    },
}
