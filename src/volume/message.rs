//! What the appender and a copy say to each other. Plain values: in one process they travel through a channel, in the
//! simulator through a network that delays, loses, doubles and reorders them.

use crate::base::{Epoch, Generation, Instant, LineageId, LogEnd, Lsn, PageNo, Seq, TimelineId};
use crate::log::{Frame, History, SeedBase};
use crate::volume::membership::Incarnation;
use bytes::Bytes;

/// From the appender to one copy. Everything that writes carries the region's generation; a copy that promised a newer
/// one answers [`CopyReply::Refused`]; a newer one than was promised is promised (and persisted) first.
#[derive(Clone, Debug)]
pub enum CopyRequest {
    /// Fence: from now on only `generation` or newer may write here. Persisted before the answer.
    Raise { generation: Generation },
    /// Its directory was put back from an old backup, or lost writes: it has forgotten what it acknowledged. From now on it is `incarnation`, which has no vote
    /// before it has everything. Persisted before the answer, which is `Raised`.
    Reborn { generation: Generation, incarnation: Incarnation },
    /// Frames in order, and how far things are. Without frames it is a question ("where are you?") and still moves `vdl`.
    ///
    /// Frames that the copy has already are skipped. Where they differ from what it has, they replace its tail in one
    /// atomic step, which needs among them a frame of a newer (epoch, generation) than the tail that goes, and never touches
    /// what became pages. Everything from the first difference through that frame must be in the same request.
    Append {
        generation: Generation,
        frames: Vec<Frame>,
        /// Durable on 4 of 6 (a consistency point): the copy may turn frames up to here into page versions.
        vdl: LogEnd,
        /// Nobody will read a page below this LSN any more: older versions may be folded together.
        horizon: Lsn,
        /// Nobody needs frames before this seq any more: log files that lie whole before it, and whose frames are in layers, may go.
        trim: Seq,
        /// On the copy's own clock: from then on it takes no frames of this request, because the lease that it was sent under is over by that clock,
        /// whatever the sender's says. `None`: no lease is needed for it (a recovery, a secondary).
        gate: Option<Instant>,
    },
    /// Keep this as the region's control state ([`crate::control`]): replaces what was kept, persisted before the answer. An
    /// older `version` than the one kept is answered like the same one.
    PutControl { generation: Generation, version: u64, control: Bytes },
    /// Frames from `from` on, about `bytes_max` of them.
    ReadLog { id: u64, from: Seq, bytes_max: usize },
    /// All pages that exist at `at`, in order, from `from` on, about `bytes_max` of them.
    ReadPages { id: u64, at: Lsn, from: PageNo, bytes_max: usize },
    /// Read again what lies here and check it: about `bytes_max` from `from` on (`None`: from the beginning).
    Check { id: u64, from: Option<CheckPlace>, bytes_max: usize },
    /// One number over all pages `from..from + pages_max` as they are at `at`, to be compared with that of the other copies.
    Digest { id: u64, at: Lsn, from: PageNo, pages_max: u32 },
    /// Most of the other copies have other pages than this one: nothing here is to be read until it was rebuilt. Persisted before the answer,
    /// which is `Damaged`.
    Distrust { generation: Generation, reason: String },
    /// Begin to replace everything here by pages at `base`. What the copy has stays valid until `SeedEnd`.
    ///
    /// Steps are counted from `step` on, and no two seeds of one generation share a step: what is late of an older seed is never taken
    /// for a part of this one.
    SeedBegin { generation: Generation, step: u64, base: SeedBase },
    /// Whole pages at the base's LSN, in order of page number; `step` counts on from the one it began with and is taken only in that order. Any
    /// other is answered with the step that is stored, and the sender goes on behind that one.
    SeedPages { generation: Generation, step: u64, pages: Vec<(PageNo, Bytes)> },
    /// Publish the seed in one atomic step: pages at the base, and an empty log that goes on behind it. `steps`: the last of them.
    SeedEnd { generation: Generation, steps: u64 },
    /// Begin a timeline behind the consistency point `at`, which is durable in the region: the child shares the layers up to there.
    /// Persisted before the answer; the same again is answered again. Ids are never used twice.
    Branch { generation: Generation, child: TimelineId, at: LogEnd },
    /// Forget a timeline of this copy's directory, whether it is there or not. Its id means nothing any more.
    DropBranch { generation: Generation, child: TimelineId },
    /// Go back to the consistency point `at`: everything above goes in one atomic step and is kept as `archive`, whose pages are those of the
    /// timeline of that id. `reign` is the epoch for whose sake: from now on what lies here outranks every log of an older one.
    ///
    /// `number` grows with every order of a generation: one that was carried out is answered again and never carried out twice, whatever
    /// was appended since. A copy whose log ends before `at` answers so, and is fed later. Without an `archive` nothing goes: a copy that has
    /// `at` only takes up the reign.
    Rewind { generation: Generation, number: u64, archive: Option<TimelineId>, at: LogEnd, reign: Epoch },
    /// Frames of an archived tail from `from` on, about `bytes_max` of them: `Log`, without frames when there are no more.
    ReadArchive { id: u64, archive: TimelineId, from: Seq, bytes_max: usize },
    /// Forget an archived tail for good, whether it is here or not.
    DropArchive { generation: Generation, archive: TimelineId },
}

/// From one copy to the appender.
#[derive(Clone, Debug)]
pub enum CopyReply {
    /// `generation` is promised (and persisted); this is what lies here.
    Raised {
        generation: Generation,
        state: CopyState,
    },
    /// A newer generation was promised. Whoever asked is fenced.
    Refused {
        promised: Generation,
    },
    /// Everything up to `end` is fsynced here.
    Appended {
        generation: Generation,
        end: LogEnd,
        /** Page versions up to here can be read. */
        ingested: Lsn,
        /// Little room is left on its disk: no new writes should come.
        low: bool,
        /// Its own clock.
        at: Instant,
    },
    /// The frames were not taken: the gate that came with them is shut, by the clock here.
    Gated {
        generation: Generation,
        at: Instant,
    },
    /// The frames did not fit: a gap, or another history without a newer generation. `end` is what is fsynced here.
    Misplaced {
        generation: Generation,
        end: LogEnd,
        history: History,
    },
    /// The control state is persisted here.
    ControlStored {
        generation: Generation,
        version: u64,
    },
    Log {
        id: u64,
        frames: Vec<Frame>,
    },
    /// The log here begins later than asked for, at `first`.
    LogTrimmed {
        id: u64,
        first: Seq,
    },
    /// `next` is where to go on; `None` when these were the last.
    Pages {
        id: u64,
        at: Lsn,
        pages: Vec<(PageNo, Bytes)>,
        next: Option<PageNo>,
    },
    /// What was asked for cannot be read here (damaged, or not at that LSN); ask another copy.
    Unreadable {
        id: u64,
        reason: String,
    },
    /// `bytes` were read and are intact, but for what a `Damaged` beside this says. `next` is where to go on; `None` when that was all.
    Checked {
        id: u64,
        bytes: u64,
        next: Option<CheckPlace>,
    },
    Digested {
        id: u64,
        digest: Digest,
    },
    /// Something here is not what was written. Comes unasked as well: when it was met in a read, or while layers were merged.
    Damaged {
        damage: Damage,
    },
    /// The seed under way is stored up to `step` (the one it began with: begun). After `SeedEnd`: `Appended` with the base as its end.
    Seeded {
        generation: Generation,
        step: u64,
    },
    /// There is no seed under way here (the copy was opened anew, or the pages came out of order): begin again.
    SeedLost {
        generation: Generation,
        reason: String,
    },
    /// The timeline `child` is whole here.
    Branched {
        generation: Generation,
        child: TimelineId,
    },
    /// It cannot be: a sentence that says why, and from where on it could.
    BranchRefused {
        generation: Generation,
        child: TimelineId,
        reason: String,
    },
    /// There is no timeline `child` here, and there will be none.
    BranchDropped {
        generation: Generation,
        child: TimelineId,
    },
    /// Nothing of what should go is here (any more); this is what lies here now.
    Rewound {
        generation: Generation,
        number: u64,
        state: CopyState,
    },
    /// It cannot go back so far: a sentence that says why. It is copied afresh, and what it has behind the point is kept nowhere but here.
    RewindRefused {
        generation: Generation,
        number: u64,
        reason: String,
    },
    /// There is no such archive here, and there will be none.
    ArchiveDropped {
        generation: Generation,
        archive: TimelineId,
    },
    /// It cannot go back so far, and is copied afresh. What it has behind the point is archived as ordered, as far as its log reaches back, and
    /// that outlives the copying; nothing else changed.
    TailKept {
        generation: Generation,
        number: u64,
        reason: String,
        state: CopyState,
    },
    /// This copy has left its duty: a failed fsync, a full disk, damage. It must be opened anew.
    Failed {
        reason: String,
    },
}

/// What a copy has, as it says when it is raised.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct CopyState {
    /// Which directory this is: whether it has a vote in recovery is said by the region's membership.
    pub incarnation: Incarnation,
    /// `None`: a new and empty copy. It has nothing to say in a recovery unless all six are empty.
    pub lineage: Option<LineageId>,
    /// Oldest frame that can still be read here.
    pub first: Seq,
    /// Last frame that is fsynced here.
    pub end: LogEnd,
    /// Last consistency point at or below `end`.
    pub consistent: LogEnd,
    pub history: History,
    /// Up to here the log became page versions; never above the VDL this copy was told.
    pub ingested: LogEnd,
    /// Pages as of here lie in layers. A consistency point that was durable in the region; nothing before it is needed for them.
    pub flushed: LogEnd,
    /// Version and bytes of the control state last kept here; 0 and empty when there is none.
    pub control_version: u64,
    pub control: Vec<u8>,
    /// The newest reign for whose sake it was rewound.
    pub reign: Epoch,
    /// Lost tails that are kept here.
    pub archives: Vec<ArchiveView>,
    /// Up to here the log was durable in the region, as what lies here shows: the region said so, or it became layers.
    pub durable: LogEnd,
}

impl CopyState {
    /// What recovery compares: the log's end, and never below what a copy was rewound for. A log of an older epoch is void then, however long.
    #[must_use]
    pub fn rank(&self) -> LogEnd {
        if self.reign > self.end.epoch { LogEnd { epoch: self.reign, generation: Generation(0), ..self.end } } else { self.end }
    }
}

/// A lost tail that is kept: what a region had that the history it follows has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ArchiveView {
    /// Also that of the timeline that has its pages.
    pub id: TimelineId,
    /// It begins behind this point, which both histories have.
    pub base: LogEnd,
    /// Its last consistency point: its pages can be read up to here.
    pub consistent: LogEnd,
    /// Its last frame.
    pub end: LogEnd,
}

/// The id under which a tail that ends in `tail` and begins behind `at` is archived, in every copy and whoever orders it: so whatever comes
/// back late goes to the same place. Ids of other timelines are below 2^63.
#[must_use]
pub fn archive_id(at: &LogEnd, tail: Epoch) -> TimelineId {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for word in [at.epoch.0, at.generation.0, at.seq.0, at.end_lsn.0, u64::from(at.checksum), tail.0] {
        h = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^= h >> 29;
    }
    TimelineId(h | 1 << 63)
}

/// How far a check of everything in a copy has come. Means something to the copy only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum CheckPlace {
    /// Layer files from (`timeline`, `number`) on, in it from `block` on; own files newer than `until` were written after the check began.
    Layers { timeline: TimelineId, number: u64, block: u32, until: u64, log_until: Seq },
    /// The log from this seq on, up to where it ended when the check began.
    Log { from: Seq, until: Seq },
}

/// The pages of a range as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct Digest {
    pub hash: u64,
    /// Pages in the range that are not empty.
    pub pages: u32,
    pub bytes: u64,
    /// The first page behind the range; `None` when there is none.
    pub next: Option<PageNo>,
}

/// Something in a copy that is not what was written there.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Damage {
    /// Which file, or `pages` where only the comparison with other copies shows it.
    pub file: String,
    /// What is wrong and, where that is known, at which offset.
    pub reason: String,
    /// The disk said that it was written, and something older or nothing is there.
    pub lost_write: bool,
    /// It was written again from memory. Otherwise the copy must be rebuilt from its peers.
    pub healed: bool,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}{}", self.file, self.reason, if self.lost_write { " (a write was lost)" } else { "" })
    }
}
