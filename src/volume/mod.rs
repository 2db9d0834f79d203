//! The volume: a region's durable home of the log and of the pages. Protection groups of six copies
//! over three zones; 4 of 6 of each to write, 3 of 6 of each to recover.
//!
//! Decides: when a frame is durable, which tail survives a crash, what a page was at an LSN. Never decides who may
//! write to the global cluster ([`crate::control`]) and never talks to another region ([`crate::ship`]).
//! Two machines, both without I/O of their own: [`Appender`] (one per region) speaks to the [`Copy`]s in messages
//! ([`CopyRequest`], [`CopyReply`]); a copy speaks to its disk through the small trait [`Disk`].

mod agreement;
mod appender;
mod copy;
mod disk;
mod evidence;
pub mod membership;
mod message;
mod overlay;
pub mod quorum;
mod recovery;
mod repair;
mod scrub;
#[cfg(test)]
mod tests;

pub use appender::{Appender, AppenderEffect, BranchState, CopyHealth, CopyView, Found, HeldBy, Kept, Replacing, Retention, VolumePhase};
pub use copy::identity;
pub use copy::{
    ARCHIVES_MAX, ArchivedTail, Copy, Directory, FileDamage, FilesVerdict, FlushDone, FlushJob, OpenError, Origin, PageStore, ReadError,
    Slice, TimelineView, proven_durable, verify_files,
};
pub use disk::{Cipher, Cold, Disk, DiskError, SEAL_BYTES, Sealed};
pub use evidence::LostLog;
pub use message::{ArchiveView, CheckPlace, CopyReply, CopyRequest, CopyState, Damage, Digest, archive_id};
pub use overlay::Overlay;
pub use repair::RepairView;
pub use scrub::{ScrubView, Verdict, judge};
