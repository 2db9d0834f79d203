//! Positions in the log. One table rules them all:
//! assigned >= appended >= durable (VDL) >= shipped >= durable in the secondary >= visible there >= trimmed.
//! No field anywhere is called just `lsn`; its name says which row of that table it is.

use std::fmt;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            pub const ZERO: $name = $name(0);

            /// The one after this one.
            #[must_use]
            pub fn next(self) -> $name {
                $name(self.0.checked_add(1).expect("BUG: a 64-bit counter wrapped"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// Byte position in the log's payload stream. As an end it is exclusive: everything below it is meant.
    Lsn
}
counter! {
    /// 1, 2, 3 ... of frames within a protection group; makes gaps visible. 0 is "before the first frame".
    Seq
}
counter! {
    /// Number of a reign: who may write to the global cluster. Only grows; stored in every frame.
    Epoch
}
counter! {
    /// Number of an incarnation inside a region: which process may append to its copies. Only grows.
    Generation
}

counter! {
    /// A line of history inside a volume: its own log behind a point of its parent's. 0 is the root, which has no parent.
    TimelineId
}

impl TimelineId {
    /// The timeline that every volume begins with.
    pub const ROOT: TimelineId = TimelineId(0);
}

impl Lsn {
    #[must_use]
    pub fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0.checked_add(bytes).expect("BUG: the log's 64-bit byte position wrapped"))
    }

    /// Bytes from `earlier` up to here; 0 when `earlier` is not earlier.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Page number in the volume. Page 0 is the volume's own header page; the head's pages begin at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct PageNo(pub u32);

impl PageNo {
    /// The volume's header page: the head's page count and page size at an LSN (see `log::redo`).
    pub const HEADER: PageNo = PageNo(0);
}

/// The identity of a prefix of the log: its last frame. Two logs with the same (epoch, generation, seq) at a place are the
/// same up to there (protocol.md S3). Ordered by (epoch, generation, seq), which is the order recovery chooses by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct LogEnd {
    pub epoch: Epoch,
    pub generation: Generation,
    pub seq: Seq,
    /// End of the last frame's payload, exclusive.
    pub end_lsn: Lsn,
    /// Checksum of the last frame; the next frame carries it as its `prev_checksum`.
    pub checksum: u32,
}

impl LogEnd {
    /// The empty log.
    pub const EMPTY: LogEnd = LogEnd { epoch: Epoch(0), generation: Generation(0), seq: Seq(0), end_lsn: Lsn(0), checksum: 0 };
}

impl fmt::Display for LogEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seq {} (epoch {}, generation {}, LSN {})", self.seq, self.epoch, self.generation, self.end_lsn)
    }
}
