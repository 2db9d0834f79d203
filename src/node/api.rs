//! What wakes a node, what a node wants, and who it is: [`Event`], [`Effect`], [`Identity`].
//!
//! Both are closed: whoever drives a node (`io` for real, `sim` under virtual time) carries out every effect and hands in every event, and
//! nothing else passes between them. Decides nothing.

use super::report::OperatorEvent;
use crate::base::{
    ClusterName, ConnId, CopyId, Generation, Instant, Layout, LineageId, LogEnd, Lsn, MemberId, RegionName, TimelineId, UnixMicros,
    WriteGate,
};
use crate::control::{self, AuditEntry, ControlMessage, FailoverRecord, MembersView, OpId, OpView, Order, Touched};
use crate::log::{Frame, Pen};
use crate::ship::Message;
use crate::volume::membership::Incarnation;
use crate::volume::{CopyReply, CopyRequest};
use std::collections::BTreeMap;

/// Everything that can wake a node.
#[derive(Debug)]
pub enum Event {
    CopyOpened {
        copy: MemberId,
        promised: Generation,
    },
    CopyLost {
        copy: MemberId,
        reason: String,
    },
    /// A copy that cannot be opened: its files show that the log was durable up to there.
    CopyProves {
        copy: MemberId,
        lineage: LineageId,
        durable: LogEnd,
    },
    CopyReplied {
        copy: MemberId,
        reply: CopyReply,
    },
    /// A link to `peer`, whose certificate was checked, is up. `dialled`: this side asked for it.
    Linked {
        conn: ConnId,
        peer: RegionName,
        dialled: bool,
    },
    Unlinked {
        conn: ConnId,
        reason: String,
    },
    DialFailed {
        region: RegionName,
        reason: String,
    },
    Received {
        conn: ConnId,
        message: Message,
    },
    /// Another member's control core says something; its certificate says that it is `from`.
    Member {
        from: RegionName,
        message: Box<ControlMessage>,
    },
    /// A member refused this region's connection: it was taken out.
    SaidOut {
        by: RegionName,
    },
    /// An operator's order, here or passed on.
    Order(Order),
    /// The clock that leases are counted on cannot be trusted since an unknown moment.
    ClockBroke {
        reason: String,
    },
    /// The head's answer to [`Effect::HeadDrain`]: it writes nothing before `HeadUndrain`, and every commit that it will acknowledge has been.
    HeadDrained {
        op: OpId,
    },
    /// The head's frames, in the order of its pen.
    Submitted {
        frames: Vec<Frame>,
    },
    /// The head's readers see everything up to `end`; the oldest LSN that one of them still pins.
    HeadSees {
        end: LogEnd,
        written_at: Option<UnixMicros>,
    },
    HeadPins {
        oldest: Lsn,
    },
    /// The answer to [`Effect::ReadTouched`].
    Touched {
        archive: TimelineId,
        touched: Result<Touched, String>,
    },
    Timeout,
}

/// Everything a node can want.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "they are handed on one at a time, and none is kept")]
pub enum Effect {
    ToCopy {
        copy: MemberId,
        request: CopyRequest,
    },
    Dial {
        region: RegionName,
    },
    Send {
        conn: ConnId,
        message: Message,
    },
    Unlink {
        conn: ConnId,
        reason: String,
    },
    /// To another member's control core: may be lost, late, doubled.
    ToMember {
        to: RegionName,
        message: ControlMessage,
    },
    /// Commits may be acknowledged, and reads of the writer answered, before `until` and not at it.
    Lease {
        until: Instant,
    },
    /// Begin no write transaction; those that run may finish until the deadline. `HeadDrained` when nothing runs and all is answered.
    HeadDrain {
        op: OpId,
        deadline: Instant,
    },
    /// Go on writing.
    HeadUndrain,
    /// Commits wait for a secondary (by the commit rules) or for the disks that write pages, or do so no more: whoever waits for an answer goes on waiting.
    CommitsPause(bool),
    OpMoved(Box<OpView>),
    Failover(Box<FailoverRecord>),
    /// New in this member's audit, and kept on its copies: to be written to its file, too.
    Audited(Vec<AuditEntry>),
    /// Opens a lost tail as a database and says which rows it changed.
    ReadTouched {
        archive: TimelineId,
    },
    /// This region was taken out: whoever reads here is refused with that, until a reset.
    HeadHides {
        reason: String,
    },
    /// The volume stands at `at`: whatever the head cached is void.
    HeadReset {
        at: LogEnd,
    },
    /// This region writes: the head takes the pen.
    HeadWrites {
        pen: Pen,
    },
    /// Newly durable frames up to the VDL: visible to readers, and replies may go.
    HeadAdvances {
        vdl: LogEnd,
        frames: Vec<Frame>,
    },
    /// This region no longer writes, for good (in this incarnation).
    HeadStops {
        reason: String,
    },
    Gate(WriteGate),
    PrimaryIs(Option<RegionName>),
    /// Who is a member from here on.
    Members(Box<MembersView>),
    /// Where copies live; `None`: where the configuration says. One that is open elsewhere is closed and opened there.
    Places {
        places: BTreeMap<CopyId, Option<String>>,
    },
    /// The directories of `slot` in `place` have left the volume for good; those of `by` (one for each group) have the slot.
    Retired {
        slot: CopyId,
        place: Option<String>,
        by: Vec<Incarnation>,
    },
    Note(OperatorEvent),
}

/// Who this node is. The members are names only; who is primary is state.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cluster: ClusterName,
    pub region: RegionName,
    pub founder: RegionName,
    pub members: Vec<RegionName>,
    /// How this region reaches them, by its file.
    pub addrs: BTreeMap<RegionName, String>,
    /// The member without data that only votes.
    pub witness: Option<RegionName>,
    /// Leases and patience.
    pub control: control::Settings,
    pub version: String,
    /// How page space is cut, as configured; what counts is what the lineage was founded with.
    pub layout: Layout,
}
