//! What goes into a control core and what comes out of it: the closed list of what its driver has to do.
//!
//! Decides nothing. `Control::handle` takes an [`Input`], `poll_output` gives [`Output`]s in the order in which they must be done,
//! and it is called again at `next_timeout`.

use super::audit::Action;
use super::chain::EpochEntry;
use super::members::MembersView;
use super::message::ControlMessage;
use super::state::VoterState;
use super::types::{AutoFailover, FailoverRecord, LogPosition, LostTail, OpId, OpView, Order, VoterSet};
use crate::base::{Epoch, Instant, LineageId, LogEnd, RegionName};

/// Everything that can wake a control core.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "they are handed on one at a time, and none is kept")]
pub enum Input {
    /// From a member whose certificate says that it is `from`.
    Message {
        from: RegionName,
        message: ControlMessage,
    },
    /// The state of this token, and of all before it, is on stable storage.
    Persisted {
        token: u64,
    },
    Timeout,
    /// The clock that leases are counted on cannot be trusted since an unknown moment (suspend, a step back, a restored snapshot).
    ClockBroke {
        reason: String,
    },
    /// This region's log. Told before anything that says the same to another region (progress to the primary).
    Log(LogPosition),
    /// `by`, a noun, shows that this region's own log was durable up to `known`; it ends at `end` now. Told before the log is.
    LogLost {
        known: LogEnd,
        end: LogEnd,
        by: String,
    },
    /// As the primary: a secondary's durable position, from its progress. For pre-checks and predictions only.
    Secondary {
        region: RegionName,
        durable: LogEnd,
    },
    /// As the primary: the commit path made a frame durable since the last one of these (rule 1: a stuck disk renews nothing).
    CommitPathMoved,
    /// An operator's order, at any region.
    Order(Order),
    /// `Drain` is done: no write transaction runs, and every commit that will be acknowledged in this epoch has been.
    Drained {
        op: OpId,
    },
    /// `Seal` is done: the handover frame is durable and ends there.
    Sealed {
        op: OpId,
        at: LogEnd,
    },
    /// `Drain` or `Seal` cannot be done.
    NotDrained {
        op: OpId,
        reason: String,
    },
    /// `Promote` is done: the epoch's first frame (or, resumed, the generation's) is durable on 4 of 6 under a new generation.
    Promoted {
        epoch: Epoch,
        start: LogEnd,
    },
    PromotionFailed {
        epoch: Epoch,
        reason: String,
    },
    /// `Verify` is done, or its time is up.
    Verified {
        op: OpId,
        outcome: Result<(), String>,
    },
    /// `CatchUp` ended; what it brought was told by `Log`.
    CaughtUp {
        from: RegionName,
    },
    /// Strengthening: from now on every commit acknowledged in this epoch, and all before, are durable in so many secondaries.
    /// Weakening: wanted; it may be acted on after [`Output::CommitRule`] says so.
    CommitRule {
        sync: u8,
    },
    /// What the cluster is to do by itself from now on; as the primary.
    AutoFailover {
        auto: AutoFailover,
        actor: String,
    },
    /// Something is about to be done that the core does not do itself: it is put into the audit. Do it once that is kept.
    Audit(Action),
    /// An old primary, this one or one that came back, read what its log held beyond the base of `new_epoch`.
    TailRead(LostTail),
    /// A member refused this one and says that it was taken out.
    SaidOut {
        by: RegionName,
    },
}

/// How a region becomes the primary of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// A new reign: take the volume under a new generation, cut the log behind `entry.base` (what is cut is archived first) and write
    /// the epoch's first frame there.
    Begin { entry: EpochEntry },
    /// The same reign goes on after a restart: take the volume, a generation start behind its last consistency point.
    Resume,
}

/// Everything that a control core can want. In this order, one after the other; none waits for a message.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "they are handed on one at a time, and none is kept")]
pub enum Output {
    Send {
        to: RegionName,
        message: ControlMessage,
    },
    /// Answer with `Persisted`. Nothing that depends on it leaves before.
    Persist {
        token: u64,
        state: Box<VoterState>,
    },
    /// Commits may be acknowledged before `until` and not at it. Only grows within a reign, until `LeaseLost`.
    Lease {
        until: Instant,
    },
    /// No commit is acknowledged and no writer's read answered from here on. `next`: where writers should go, when it is known.
    LeaseLost {
        reason: String,
        next: Option<RegionName>,
    },
    /// The next renewal waits for `CommitPathMoved`: write an empty record when nothing else is being written.
    Touch,
    /// Begin no new write transactions; let those that run finish until `deadline`, abort the rest, then say `Drained`.
    Drain {
        op: OpId,
        deadline: Instant,
    },
    /// The switchover was given up before the seal: write on.
    Undrain {
        op: OpId,
        reason: String,
    },
    /// Append the handover frame of `epoch`; say `Sealed` when it is durable. Nothing is ever committed in `epoch` again.
    Seal {
        op: OpId,
        epoch: Epoch,
        to: RegionName,
    },
    /// `from` has more of the log than this region: fetch it, at least up to there.
    CatchUp {
        from: RegionName,
        up_to: LogEnd,
    },
    Promote {
        epoch: Epoch,
        how: Promotion,
    },
    /// A majority granted the reign: writes may open (within `Lease`), secondaries may be welcomed.
    Open {
        epoch: Epoch,
    },
    /// Receive and acknowledge nothing of an older epoch any more. `primary`: follow it; `None`: nobody is known to reign.
    Follow {
        epoch: Epoch,
        primary: Option<RegionName>,
    },
    Verify {
        op: OpId,
        epoch: Epoch,
    },
    /// The primary may acknowledge by this rule.
    CommitRule {
        sync: u8,
    },
    /// An operation moved on, here or elsewhere.
    OpMoved(Box<OpView>),
    /// A failover is new here, or became complete.
    Failover(Box<FailoverRecord>),
    /// Who is a member from here on; whoever is none any more is told so when it comes. Not said while the files are right.
    Members(Box<MembersView>),
    /// As the primary: this region is about to be a member no more. It is shipped nothing and counts for no commit from here on, and is
    /// not welcomed again before `Members`, unless this region's reign ends.
    Leaving {
        region: RegionName,
    },
    /// For the operator's events. `kind` is a word, `what` a sentence.
    Note {
        kind: &'static str,
        what: String,
    },
}

/// What this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Witness,
    /// Follows, or looks for somebody to follow.
    Secondary,
    /// Asks for votes, or takes over.
    Candidate,
    /// Reigns and holds its lease.
    Primary,
    /// Reigns, and its lease ran out: acknowledges nothing.
    Fenced,
    /// Reigned until it handed over.
    Sealed,
    /// Was taken out of the global cluster.
    Removed,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Witness => "witness",
            Role::Secondary => "secondary",
            Role::Candidate => "candidate",
            Role::Primary => "primary",
            Role::Fenced => "fenced",
            Role::Sealed => "sealed",
            Role::Removed => "removed",
        }
    }
}

/// A control core, as status, metrics and events show it.
#[derive(Clone, Debug)]
pub struct ControlView {
    pub role: Role,
    /// The highest reign known to be active, and its primary.
    pub reign: Option<(Epoch, RegionName)>,
    pub promised: Epoch,
    pub voters: VoterSet,
    /// This member has a vote.
    pub votes: bool,
    /// One voter alone: a failover by hand cannot be proven.
    pub unproven: bool,
    /// What is left of the lease; zero when this member holds none.
    pub lease_left_ms: u64,
    /// Voters that granted within the last lease, this one included. As the primary.
    pub voters_heard: Vec<RegionName>,
    /// Its grant to another region is not over for so long.
    pub grant_left_ms: u64,
    /// Regions that claimed to write at the same time; more than one is an emergency.
    pub writers_seen: u32,
    /// Members of another lineage that this one met.
    pub rivals: Vec<(RegionName, LineageId)>,
    /// Why this member does not do what one might expect of it.
    pub reason: Option<String>,
    pub op: Option<OpView>,
    pub chain: Vec<EpochEntry>,
    pub sync: u8,
    /// What the cluster does by itself when its primary is gone.
    pub auto: AutoFailover,
    /// What this member's file says, which does not count once the cluster has a rule.
    pub auto_of_file: Option<AutoFailover>,
    /// As the primary: a majority of the voters keeps that rule.
    pub auto_told: bool,
    /// Why this member is none any more.
    pub out: Option<String>,
    /// The member without data that votes.
    pub witness: Option<RegionName>,
}
