//! What a region says of itself: one value, from which status, lag, metrics, HTTP and the SQL functions are all made.
//!
//! What is not known is `None` and never 0. Times are on the reporting region's wall clock unless a name says otherwise.

pub use super::control_report::{
    CheckReport, ControlReport, DurationsReport, FailoverReport, LossReport, OperationReport, PeerReport, PhaseReport, RivalReport,
    RulesReport,
};
pub use crate::ship::{CatchUpKind, CatchUpReport, LagReport};

use crate::base::{Epoch, Layout, LineageId, Lsn, RegionName, UnixMicros};

#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Primary,
    Secondary,
    /// Not known yet: starting, or a new region that no primary has welcomed.
    Unknown,
}

/// One word for how a region is; the order is that of the issue, not of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionState {
    /// The primary, with a write quorum.
    Writable,
    /// A secondary that has everything, and nothing was written for a while.
    Idle,
    Streaming,
    /// Behind by more than a window: it gets pages, or the log from the copies.
    CatchingUp,
    /// Connected and behind, and its durable position does not move.
    Stalled,
    Disconnected,
    /// May not write although it is the primary: a newer generation, or too few copies.
    Fenced,
    Starting,
}

/// What the volume takes in this region. Bytes of one copy of each group, not of all six. What is not known now is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct VolumeReport {
    /// Protection groups.
    pub groups: u32,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Segments that pages were ever in.
    pub segments: Option<u32>,
    /// Pages that the database has now.
    pub used_bytes: Option<u64>,
    /// Of these, pages that hold nothing: what tables left that were dropped, until it is used again or given back.
    pub free_bytes: Option<u64>,
    /// What log and page versions take on the disks: in each group the copy that takes most.
    pub allocated_bytes: Option<u64>,
    /// The most that `used_bytes` ever was.
    pub high_water_bytes: Option<u64>,
}

impl VolumeReport {
    /// Nothing is measured yet.
    #[must_use]
    pub fn of(layout: Layout) -> VolumeReport {
        VolumeReport { groups: layout.groups, segment_bytes: layout.segment_bytes(), ..VolumeReport::default() }
    }
}

/// One of the six copies of a protection group.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct CopyReport {
    /// `a1` ... `c2`; `a1.g1` in protection group 1.
    pub name: String,
    /// The protection group.
    pub group: u32,
    pub az: String,
    /// `starting`, `up`, `catching_up`, `seeding`, `down`.
    pub state: String,
    pub durable_lsn: Lsn,
    /// Why it is down, or what an operator does to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where it lives since it was replaced, or where the one is that takes its slot; `None`: where the configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What was found in it and is not repaired yet; a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// How far its rebuilding is, while it is `seeding` from its peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<RepairReport>,
    pub scrub: ScrubReport,
    /// Its disk is almost full.
    pub low_on_room: bool,
}

/// The rebuilding of one copy from its peers.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct RepairReport {
    pub since: UnixMicros,
    pub pages: u64,
    /// null until the volume's header was read.
    pub pages_in_all: Option<u64>,
    pub bytes: u64,
    /// Since it began; null in its first moment.
    pub bytes_per_s: Option<u64>,
}

/// What the scrub found in one copy. Counters are since the process began.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct ScrubReport {
    /// A pass is under way.
    pub running: bool,
    /// When the last pass ended; null when none has since the process began. The next three are of that pass.
    pub ended_at: Option<UnixMicros>,
    /// Read from its files.
    pub read_bytes: u64,
    /// Compared with the other copies.
    pub pages: u64,
    pub found: u64,
    /// Damage found, by the scrub or when it was met.
    pub found_total: u64,
    /// Of that, what was repaired.
    pub repaired_total: u64,
    /// Of what was found: acknowledged by the disk and not there.
    pub lost_writes_total: u64,
}

/// A secondary, as the primary sees it.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct SecondaryReport {
    pub region: RegionName,
    pub state: RegionState,
    /// Since when there is no connection; `None` while there is one.
    pub disconnected_since: Option<UnixMicros>,
    pub shipped_lsn: Lsn,
    pub received_lsn: Lsn,
    pub durable_lsn: Lsn,
    pub visible_lsn: Lsn,
    pub bytes_in_flight: u64,
    /// How far it is, while it gets pages or is far behind in the log.
    pub catching_up: Option<CatchUpReport>,
    /// Pages sent to it for seeds by this process, those that were sent again among them.
    pub seed_pages_sent: u64,
    pub lag: LagReport,
}

/// How far back a region keeps old page versions and log, in bytes of log, with the budgets.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct RetentionReport {
    pub versions_bytes: u64,
    pub versions_bytes_max: u64,
    pub versions_s: u64,
    /// What keeps versions longest: `time`, `reader`, `seed`, `repair`, or `budget`: somebody looks further back than is kept.
    pub held_by: String,
    pub log_bytes: u64,
    pub log_bytes_max: u64,
    pub log_s: u64,
}

/// Lost tails that a region's copies keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct ArchivesReport {
    pub count: u32,
    /// A copy that keeps so many makes no other one.
    pub count_max: u32,
    /// Of log, in all of them together. What they take on the disks is more, by pages and by the rest of the log files that they lie in.
    pub log_bytes: u64,
}

impl ArchivesReport {
    /// Somebody should look before none is made any more.
    #[must_use]
    pub fn almost_full(&self) -> bool {
        self.count_max > 0 && self.count >= self.count_max / 4 * 3
    }
}

/// A region's own report.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct RegionReport {
    pub cluster: String,
    pub region: RegionName,
    pub version: String,
    pub role: Role,
    pub state: RegionState,
    /// A sentence where the state needs one (why writes are stopped, what recovery waits for ...).
    pub reason: Option<String>,
    pub epoch: Epoch,
    pub lineage: Option<LineageIdText>,
    /// The primary of `epoch`, as far as this region knows.
    pub primary: Option<RegionName>,
    pub reported_at: UnixMicros,
    /// Assigned by the writer (primary) or received (secondary).
    pub written_lsn: Lsn,
    /// The VDL: durable on 4 of 6.
    pub durable_lsn: Lsn,
    pub visible_lsn: Lsn,
    pub oldest_read_view_lsn: Lsn,
    /// In a secondary: since when there is no connection to the primary.
    pub disconnected_since: Option<UnixMicros>,
    /// A secondary's own measurement; all `None` in the primary.
    pub lag: LagReport,
    /// A secondary's own view of how far it is, while it gets pages or is far behind in the log.
    pub catching_up: Option<CatchUpReport>,
    pub retention: RetentionReport,
    pub archives: ArchivesReport,
    pub copies: Vec<CopyReport>,
    pub volume: VolumeReport,
    /// Instances that answer reads in this region.
    pub readers: u32,
    /// The primary's view of its secondaries; empty elsewhere.
    pub secondaries: Vec<SecondaryReport>,
    /// Leases, votes, operations; null while it recovers.
    pub control: Option<Box<ControlReport>>,
}

/// A lineage as 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct LineageIdText(pub String);

impl From<LineageId> for LineageIdText {
    fn from(id: LineageId) -> LineageIdText {
        LineageIdText(id.to_string())
    }
}

/// Something an operator may want to know later: role changes, connections, copies, refusals.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct OperatorEvent {
    /// Counts from 1 in each process.
    pub no: u64,
    pub at: UnixMicros,
    pub region: RegionName,
    /// A stable word: `started`, `founded`, `recovered`, `writable`, `copy_down`, `copy_up`, `quorum_lost`, `quorum_regained`, `secondary_connected`,
    /// `secondary_disconnected`, `primary_connected`, `primary_disconnected`, `seeding_began`, `seeding_resumed`, `seeding_done`, `refused`, `fenced` ...
    pub kind: String,
    pub epoch: Epoch,
    pub durable_lsn: Lsn,
    /// A sentence.
    pub what: String,
    /// Of an operation (`operation_began`, `operation_phase`, `operation_ended`): which, who ordered it, how long the phase or all of it took.
    pub op: Option<String>,
    pub actor: Option<String>,
    pub duration_ms: Option<u64>,
}
