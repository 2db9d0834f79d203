//! What a member says of roles: who may write, who votes, what is under way and what a failover cost.
//!
//! Plain data, made from a control core's view, for status, metrics, HTTP and commands. Decides nothing; what is not known is `None`.

use super::report::LineageIdText;
use crate::base::{CommitRules, Epoch, LogEnd, Lsn, RegionName, UnixMicros};
use crate::control::{ControlView, FailoverRecord, Ledger, OpState, OpView, OrderKind, Phase, Sureness, TouchedTable};
use crate::volume::archive_id;

/// One member's word on roles.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct ControlReport {
    pub member: RegionName,
    /// `primary`, `secondary`, `candidate`, `fenced`, `sealed`, `witness`, `removed`.
    pub role: String,
    /// The newest reign that it knows to be active.
    pub epoch: Option<Epoch>,
    pub primary: Option<RegionName>,
    /// It grants nothing to an older epoch.
    pub promised: Epoch,
    pub voters: Vec<RegionName>,
    pub voters_version: u64,
    /// It is one of them.
    pub votes: bool,
    /// One voter alone: a failover by hand cannot be proven.
    pub unproven: bool,
    /// As the primary: what is left of its lease.
    pub lease_left_ms: u64,
    /// As the primary: the voters that granted it within a lease.
    pub voters_heard: Vec<RegionName>,
    /// As a voter: another primary than the one it granted gets nothing before this is over.
    pub grant_left_ms: u64,
    /// Regions that claimed to write at the same time; more than 1 is an emergency.
    pub writers_seen: u32,
    /// Members of another lineage that this one met, and which; while there are any, nothing is written.
    pub rivals: Vec<RivalReport>,
    /// 0: nobody has changed the members, they are what the files say.
    pub members_version: u64,
    /// The member without data that votes, as far as this one knows: of the membership, or of its file.
    pub witness: Option<RegionName>,
    /// Where this member's file is older than that; sentences.
    pub stale: Vec<String>,
    /// When a commit may be acknowledged; of the primary. null in a witness.
    pub rules: Option<RulesReport>,
    /// What the cluster does by itself when its primary is gone, as far as this member has heard: `off`, `lossless`, `max_loss=5s`.
    pub auto_failover: String,
    /// What its file says, if anything; it does not count once the cluster has a rule.
    pub auto_failover_of_file: Option<String>,
    /// As the primary: a majority of the voters keeps that rule.
    pub auto_failover_told: bool,
    pub reason: Option<String>,
    /// Under way, or the last that ended.
    pub operation: Option<OperationReport>,
    /// What the last switchover and the last failover that were done took.
    pub durations: Vec<DurationsReport>,
    /// Newest first.
    pub failovers: Vec<FailoverReport>,
    /// Its control links.
    pub peers: Vec<PeerReport>,
    /// Until its own certificate ends, in whole days, and is refused by the others.
    pub certificate_days_left: Option<i64>,
}

/// A member of another lineage.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct RivalReport {
    pub member: RegionName,
    pub lineage: LineageIdText,
}

/// What an operation took, by phase.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct DurationsReport {
    /// `switchover`, `failover`.
    pub kind: String,
    pub phases: Vec<PhaseReport>,
    pub write_gap_ms: Option<u64>,
}

/// What a commit waits for, beyond 4 of 6 copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct RulesReport {
    /// So many secondaries have it.
    pub sync: u8,
    /// Some secondary is behind by no more.
    pub max_rpo_ms: Option<u64>,
    /// With `max_rpo_ms`: also while no secondary is connected.
    pub pause_alone: bool,
}

/// A control link, from one end.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct PeerReport {
    pub name: RegionName,
    pub up: bool,
    pub since: UnixMicros,
    pub round_trip_ms: Option<f64>,
    pub trouble: Option<String>,
}

/// An operation as people and scripts see it.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct OperationReport {
    pub id: String,
    /// `switchover`, `failover`, `set_voters`, `add_region`, `remove_region`, `add_witness`, `remove_witness`, `new_lineage`.
    pub kind: String,
    pub from: Option<RegionName>,
    pub to: Option<RegionName>,
    /// That comes or goes.
    pub region: Option<RegionName>,
    /// The same, of a witness.
    pub witness: Option<RegionName>,
    /// Of the reign that it made.
    pub epoch: Option<Epoch>,
    /// `running`, `done`, `refused`, `failed`, `superseded`; `unknown`: whoever carries it out does not answer.
    pub state: String,
    /// While it runs.
    pub phase: Option<String>,
    /// A sentence, where it did not come about.
    pub reason: Option<String>,
    pub by: RegionName,
    pub actor: String,
    pub dry_run: bool,
    pub began_at: UnixMicros,
    /// From the last write in the old epoch that could be acknowledged to the first in the new one, as the members measured it; null
    /// while that is not over.
    pub write_gap_ms: Option<u64>,
    pub predicted_gap_ms: Option<u64>,
    /// Those that are over.
    pub phases: Vec<PhaseReport>,
    pub checks: Vec<CheckReport>,
    pub loss: Option<LossReport>,
}

#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct PhaseReport {
    pub name: String,
    pub ms: u64,
}

#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct CheckReport {
    pub name: String,
    pub ok: bool,
    pub says: String,
}

/// What would be, or was, lost, as far as it is known.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct LossReport {
    /// `proven`: nothing is lost. `at_least`: what is said, and perhaps what the old primary did after it was last heard. `exact`.
    pub sure: String,
    /// For `at_least`: how long it had not been heard.
    pub unheard_ms: Option<u64>,
    pub bytes: u64,
    pub commits_at_most: u64,
    pub ms: Option<u64>,
    /// And so long after its last sign the old primary may have gone on: the rest of its lease. `--max-loss` counts both.
    pub alone_ms: u64,
    pub base_lsn: Lsn,
    pub known_end_lsn: Lsn,
}

/// A failover and what it cost; exact once it is complete, and null where nobody knows yet.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct FailoverReport {
    pub id: String,
    pub from: RegionName,
    pub to: RegionName,
    pub old_epoch: Epoch,
    pub new_epoch: Epoch,
    pub complete: bool,
    pub lost_commits: Option<u64>,
    pub lost_from_lsn: Option<Lsn>,
    pub lost_to_lsn: Option<Lsn>,
    pub lost_from_time: Option<UnixMicros>,
    pub lost_to_time: Option<UnixMicros>,
    pub began_at: UnixMicros,
    pub actor: String,
    /// No majority said that the old primary was out, only an operator.
    pub unproven: bool,
    /// The word was not true, and two wrote at the same time: a sentence, once the tail was read.
    pub wrote_beside: Option<String>,
    /// What was known when it was done.
    pub loss: LossReport,
    /// Tables that the lost commits changed, with the first keys of each; null while that is not known.
    pub touched: Option<Vec<TouchedTable>>,
    /// So many more tables.
    pub touched_tables_more: u64,
    /// Why it is not known although the rest is; a sentence.
    pub touched_unknown: Option<String>,
    /// The name under which copies of `from` keep what was lost, or will once it is back: `parhelion salvage` opens it. null: there is nothing to keep.
    pub archive: Option<String>,
}

impl ControlReport {
    #[must_use]
    pub fn of(member: &RegionName, view: &ControlView, ledger: Option<&Ledger>, rules: Option<CommitRules>) -> ControlReport {
        let (epoch, primary) = view.reign.clone().unzip();
        let last = || ledger.and_then(|l| l.ops().first());
        ControlReport {
            member: member.clone(),
            role: view.role.as_str().to_owned(),
            epoch,
            primary,
            promised: view.promised,
            voters: view.voters.voters.clone(),
            voters_version: view.voters.version,
            votes: view.votes,
            unproven: view.unproven,
            lease_left_ms: view.lease_left_ms,
            voters_heard: view.voters_heard.clone(),
            grant_left_ms: view.grant_left_ms,
            writers_seen: view.writers_seen,
            rivals: view.rivals.iter().map(|(r, l)| RivalReport { member: r.clone(), lineage: LineageIdText::from(*l) }).collect(),
            members_version: view.voters.members.as_ref().map_or(0, |_| view.voters.version),
            witness: view.witness.clone(),
            stale: Vec::new(),
            rules: rules.map(|r| RulesReport { sync: r.sync, max_rpo_ms: r.max_rpo_ms, pause_alone: r.pause_alone }),
            auto_failover: view.auto.to_string(),
            auto_failover_of_file: view.auto_of_file.map(|auto| auto.to_string()),
            auto_failover_told: view.auto_told,
            reason: view.reason.clone(),
            operation: view.op.as_ref().or_else(last).map(OperationReport::of),
            durations: ledger.map_or_else(Vec::new, durations),
            failovers: ledger.map_or_else(Vec::new, |l| l.failovers().iter().map(FailoverReport::of).collect()),
            peers: Vec::new(),
            certificate_days_left: None,
        }
    }
}

/// Of each kind the newest that was done.
fn durations(ledger: &Ledger) -> Vec<DurationsReport> {
    let done = ledger.ops().iter().filter(|o| o.state == OpState::Done && !o.order.dry_run);
    let mut all: Vec<DurationsReport> = Vec::new();
    for op in done.map(OperationReport::of).filter(|o| o.kind != "set_voters") {
        if !all.iter().any(|d| d.kind == op.kind) {
            all.push(DurationsReport { kind: op.kind, phases: op.phases, write_gap_ms: op.write_gap_ms });
        }
    }
    all
}

impl OperationReport {
    #[must_use]
    pub fn of(op: &OpView) -> OperationReport {
        let kind = match &op.order.kind {
            OrderKind::Switchover { .. } => "switchover",
            OrderKind::Failover { .. } => "failover",
            OrderKind::SetVoters { .. } => "set_voters",
            OrderKind::AddRegion { .. } => "add_region",
            OrderKind::RemoveRegion { .. } => "remove_region",
            OrderKind::AddWitness { .. } => "add_witness",
            OrderKind::RemoveWitness { .. } => "remove_witness",
            OrderKind::NewLineage { .. } => "new_lineage",
        };
        let (state, phase, reason) = match &op.state {
            OpState::Running(phase) => ("running", Some(phase.to_string()), None),
            OpState::Done => ("done", None, None),
            OpState::Refused { reason } => ("refused", None, Some(reason.clone())),
            OpState::Failed { reason } => ("failed", None, Some(reason.clone())),
            OpState::Unknown { reason } => ("unknown", None, Some(reason.clone())),
            OpState::Superseded { by, epoch, region } => {
                let by = by.map_or_else(String::new, |id| format!("operation {id}, "));
                ("superseded", None, Some(format!("{by}which made {region} the primary of epoch {epoch}, was there first")))
            }
        };
        let writes_stand_still = |phase: &Phase| (Phase::Drain..=Phase::Activate).contains(phase);
        let activated = op.phases.iter().any(|(phase, _)| *phase == Phase::Activate);
        let gap = || op.phases.iter().filter(|(phase, _)| writes_stand_still(phase)).map(|(_, ms)| ms).sum();
        OperationReport {
            id: op.order.id.to_string(),
            kind: kind.to_owned(),
            from: op.from.clone(),
            to: op.order.kind.to().cloned(),
            region: op.order.kind.region().cloned(),
            witness: op.order.kind.witness().cloned(),
            epoch: op.epoch,
            state: state.to_owned(),
            phase,
            reason,
            by: op.by.clone(),
            actor: op.order.actor.clone(),
            dry_run: op.order.dry_run,
            began_at: op.began_at,
            write_gap_ms: activated.then(gap),
            predicted_gap_ms: op.predicted_gap_ms,
            phases: op.phases.iter().map(|(phase, ms)| PhaseReport { name: phase.to_string(), ms: *ms }).collect(),
            checks: op.checks.iter().map(|c| CheckReport { name: c.name.clone(), ok: c.ok, says: c.says.clone() }).collect(),
            loss: op.loss.as_ref().map(LossReport::of),
        }
    }

    /// It may still move.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == "running" || self.state == "unknown"
    }
}

impl LossReport {
    #[must_use]
    pub fn of(loss: &crate::control::Loss) -> LossReport {
        let (sure, unheard_ms) = match loss.sure {
            Sureness::Proven => ("proven", None),
            Sureness::AtLeast { unheard_ms } => ("at_least", Some(unheard_ms)),
            Sureness::Exact => ("exact", None),
        };
        LossReport {
            sure: sure.to_owned(),
            unheard_ms,
            bytes: loss.bytes,
            commits_at_most: loss.commits_at_most,
            ms: loss.ms,
            alone_ms: loss.alone_ms,
            base_lsn: loss.base.end_lsn,
            known_end_lsn: loss.known_end.end_lsn,
        }
    }
}

impl FailoverReport {
    #[must_use]
    pub fn of(record: &FailoverRecord) -> FailoverReport {
        let tail = record.tail.as_ref();
        let nothing = record.loss.is_none_for_sure();
        let touched = tail.and_then(|t| t.touched.as_ref().ok());
        // The tail that was read says where it is. Before that the old reign's log parts behind the base, as far as anybody knows.
        let (base, end) = tail.map_or((record.loss.base, None), |t| (t.from, Some(t.to)));
        let kept = end.map_or(!nothing, |end| end.seq > base.seq);
        let archive = kept.then(|| archive_id(&base, end.map_or(record.old_epoch, |end| end.epoch)));
        let lsn = |of: fn(&crate::control::LostTail) -> LogEnd, known: LogEnd| Some(tail.map_or(known, of).end_lsn);
        FailoverReport {
            id: record.op.to_string(),
            from: record.from.clone(),
            to: record.to.clone(),
            old_epoch: record.old_epoch,
            new_epoch: record.new_epoch,
            complete: record.complete,
            lost_commits: tail.map(|t| t.commits).or(nothing.then_some(0)),
            lost_from_lsn: lsn(|t| t.from, record.loss.base),
            // Before its tail was read, the old primary may have written beyond what anybody heard of.
            lost_to_lsn: if record.complete || nothing { lsn(|t| t.to, record.loss.known_end) } else { None },
            lost_from_time: tail.and_then(|t| t.from_time),
            lost_to_time: tail.and_then(|t| t.to_time),
            began_at: record.began_at,
            actor: record.actor.clone(),
            unproven: record.unproven,
            wrote_beside: record.wrote_beside(),
            loss: LossReport::of(&record.loss),
            touched: touched.map(|t| t.tables.clone()).or(nothing.then(Vec::new)),
            touched_tables_more: touched.map_or(0, |t| t.tables_more),
            touched_unknown: tail.and_then(|t| t.touched.as_ref().err()).cloned(),
            archive: archive.map(|id| format!("{:016x}", id.0)),
        }
    }
}
