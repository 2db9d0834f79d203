//! What the appender says to the outside: its effects, where it is in its life, and its copies as status shows them.
//!
//! Decides nothing.

use super::*;

/// What the appender wants done.
#[derive(Debug)]
pub enum AppenderEffect {
    ToCopy {
        copy: MemberId,
        request: CopyRequest,
    },
    /// Recovery is over as far as reading goes. The node answers with `lead`, `follow`, `found` or waits for a seed.
    Recovered {
        found: Found,
    },
    /// What `Recovered` said is void: it will be said again.
    RecoveryBeginsAnew,
    /// Recovery cannot decide yet; a sentence for status and the log.
    RecoveryWaits {
        reason: String,
        /// The control state kept on the copies of group 0 that answered.
        control: Vec<u8>,
    },
    /// Durable on 4 of 6 now, up to `vdl`, which is a consistency point. `frames` are those since the last time.
    Durable {
        vdl: LogEnd,
        frames: Vec<Frame>,
    },
    /// The volume was seeded (or recovered): everything before is void, it stands at `vdl`.
    Restarted {
        vdl: LogEnd,
    },
    /// Four copies of every group went back to `at` ([`Appender::rewind`]); the volume follows on from there. `Restarted` comes when that is durable.
    Rewound {
        at: LogEnd,
    },
    /// Too many copies cannot go back so far: the volume must be seeded. A sentence that says why. `kept`: the tail is archived on four copies of
    /// every group, as far as their logs reach back, and the volume takes a seed in its place.
    RewindImpossible {
        reason: String,
        kept: bool,
    },
    ControlDurable,
    /// Where those slots live by the membership; `None`: where the configuration says.
    Places {
        places: BTreeMap<CopyId, Option<String>>,
    },
    /// The directories of `slot` in `place` have left the volume for good; those of `by` (one for each group) have the slot.
    Retired {
        slot: CopyId,
        place: Option<String>,
        by: Vec<Incarnation>,
    },
    /// No new writes should come: fewer than four copies can take them, and nothing new becomes durable; or fewer than four have room for them,
    /// and what is under way still does. A sentence, and when that ends.
    QuorumLost {
        reason: String,
        until: &'static str,
    },
    QuorumRegained,
    CopyChanged {
        copy: MemberId,
        health: CopyHealth,
    },
    /// A newer generation was promised to somebody else: this incarnation is over.
    Fenced {
        promised: Generation,
    },
    Log {
        tag: u64,
        outcome: LogOutcome,
    },
    Pages {
        tag: u64,
        outcome: PagesOutcome,
    },
    /// Step `step` of the region's seed is stored on 4 of 6.
    SeedStored {
        step: u64,
    },
    /// Something in a copy is not what was written. It was healed on the spot, or the copy is rebuilt as soon as enough others take writes.
    CopyDamaged {
        copy: MemberId,
        damage: Damage,
    },
    /// Copies differ and nobody can tell which are right: a sentence.
    Undecided {
        reason: String,
    },
    /// A pass of the scrub over the copies of a group is over; [`Appender::copies`] has what it found.
    Scrubbed {
        group: GroupId,
    },
    /// Copies were opened anew in the middle of the region's seed, and too few are left that can finish it: it must begin anew.
    SeedStalled,
    /// The directory of a copy has forgotten what it had; it goes on as a new member. `what`: a sentence.
    CopyForgot {
        copy: MemberId,
        what: String,
    },
    /// A copy came that shows log which was durable, and this region's log went on without it. Where this region leads, the copy is left as it is.
    LogLost {
        copy: MemberId,
        lost: LostLog,
    },
}

/// What recovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// All copies are new (or a founding or a seeding stopped half-way); what control state they hold.
    Empty { control: Vec<u8> },
    /// A log, with the control state kept beside it. `lost`: some of it that was durable is missing.
    Log { lineage: LineageId, end: LogEnd, consistent: LogEnd, control: Vec<u8>, lost: Option<LostLog> },
}

/// State of one copy, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyHealth {
    Starting,
    Up,
    /// Gets what it missed from the ring or from another copy's log.
    CatchingUp,
    /// Gets pages from another copy, then the log.
    Seeding,
    Down {
        reason: String,
    },
}

/// One copy as status shows it.
#[derive(Clone, Debug)]
pub struct CopyView {
    pub copy: MemberId,
    pub health: CopyHealth,
    /// Everything up to here is fsynced on this copy.
    pub durable_end: LogEnd,
    pub ingested: Lsn,
    /// What was found in it and is not repaired yet.
    pub damage: Option<Damage>,
    pub repair: Option<RepairView>,
    pub scrub: ScrubView,
    pub kept: Kept,
    /// Little room is left on its disk.
    pub low: bool,
}

/// Counted for each copy since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Damage found, by the scrub or when it was met.
    pub found: u64,
    /// Of that, what was repaired.
    pub repaired: u64,
    /// Of what was found: written, acknowledged by the disk, and not there.
    pub lost_writes: u64,
}

/// Where the volume is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumePhase {
    /// Raising the generation and hearing the copies.
    Recovering,
    /// Recovered; the node has not said how it goes on.
    Chosen,
    /// New and empty, waiting for pages from the primary.
    AwaitingSeed,
    Serving,
    Fenced,
}
