//! A voter's state as version 1 of it was written: no members beside the voters, no rule for failovers, no audit, no rows of lost tails.
//!
//! Decides what the present state says where that one said nothing. Read once, when a newer parhelion is started on older copies.

use super::audit::Audit;
use super::chain::Chain;
use super::types::{AutoRule, Check, Consent, OpId, OpState, Order, Phase, Sureness, SyncRule};
use super::{state, types};
use crate::base::{Epoch, LineageId, LogEnd, RegionName, UnixMicros};

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct VoterSet {
    pub version: u64,
    pub voters: Vec<RegionName>,
    pub heard: Vec<RegionName>,
}

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct Loss {
    pub base: LogEnd,
    pub known_end: LogEnd,
    pub bytes: u64,
    pub commits_at_most: u64,
    pub ms: Option<u64>,
    pub sure: Sureness,
}

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct LostTail {
    pub new_epoch: Epoch,
    pub from: LogEnd,
    pub to: LogEnd,
    pub commits: u64,
    pub from_time: Option<UnixMicros>,
    pub to_time: Option<UnixMicros>,
}

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct OpView {
    pub order: Order,
    pub from: Option<RegionName>,
    pub by: RegionName,
    pub state: OpState,
    pub phases: Vec<(Phase, u64)>,
    pub began_at: UnixMicros,
    pub epoch: Option<Epoch>,
    pub checks: Vec<Check>,
    pub loss: Option<Loss>,
    pub predicted_gap_ms: Option<u64>,
}

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct FailoverRecord {
    pub op: OpId,
    pub from: RegionName,
    pub to: RegionName,
    pub old_epoch: Epoch,
    pub new_epoch: Epoch,
    pub began_at: UnixMicros,
    pub actor: String,
    pub consent: Consent,
    pub unproven: bool,
    pub loss: Loss,
    pub complete: bool,
    pub tail: Option<LostTail>,
}

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(Default, bincode::Decode)]
pub struct Ledger {
    pub ops: Vec<OpView>,
    pub failovers: Vec<FailoverRecord>,
}

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct VoterState {
    pub lineage: LineageId,
    pub voters: VoterSet,
    pub voters_next: Option<VoterSet>,
    pub promised: Epoch,
    pub voted_for: Option<RegionName>,
    pub released: Epoch,
    pub sealed: Epoch,
    pub handed_to: Option<(RegionName, OpId)>,
    pub chain: Chain,
    pub grant_ms_max: u64,
    pub sync: SyncRule,
    pub pending: Vec<FailoverRecord>,
    pub cut: Option<(Epoch, Epoch)>,
    pub ledger: Ledger,
}

impl From<VoterSet> for types::VoterSet {
    fn from(v: VoterSet) -> types::VoterSet {
        types::VoterSet { version: v.version, voters: v.voters, heard: v.heard, members: None }
    }
}

impl From<Loss> for types::Loss {
    fn from(l: Loss) -> types::Loss {
        let alone_ms = if let Sureness::AtLeast { unheard_ms } = l.sure { unheard_ms } else { 0 };
        let Loss { base, known_end, bytes, commits_at_most, ms, sure } = l;
        types::Loss { base, known_end, bytes, commits_at_most, ms, alone_ms, sure }
    }
}

impl From<LostTail> for types::LostTail {
    fn from(t: LostTail) -> types::LostTail {
        let LostTail { new_epoch, from, to, commits, from_time, to_time } = t;
        let touched = Err("the tail was read by an earlier version of parhelion; parhelion salvage shows it".to_owned());
        types::LostTail { new_epoch, from, to, commits, from_time, to_time, touched }
    }
}

impl From<OpView> for types::OpView {
    fn from(o: OpView) -> types::OpView {
        let OpView { order, from, by, state, phases, began_at, epoch, checks, loss, predicted_gap_ms } = o;
        types::OpView { order, from, by, state, phases, began_at, epoch, checks, loss: loss.map(Into::into), predicted_gap_ms }
    }
}

impl From<FailoverRecord> for types::FailoverRecord {
    fn from(f: FailoverRecord) -> types::FailoverRecord {
        types::FailoverRecord {
            op: f.op,
            from: f.from,
            to: f.to,
            old_epoch: f.old_epoch,
            new_epoch: f.new_epoch,
            began_at: f.began_at,
            actor: f.actor,
            consent: f.consent,
            unproven: f.unproven,
            loss: f.loss.into(),
            complete: f.complete,
            tail: f.tail.map(Into::into),
        }
    }
}

impl From<Ledger> for state::Ledger {
    fn from(l: Ledger) -> state::Ledger {
        state::Ledger { ops: l.ops.into_iter().map(Into::into).collect(), failovers: l.failovers.into_iter().map(Into::into).collect() }
    }
}

impl From<VoterState> for state::VoterState {
    fn from(s: VoterState) -> state::VoterState {
        state::VoterState {
            lineage: s.lineage,
            voters: s.voters.into(),
            voters_next: s.voters_next.map(Into::into),
            promised: s.promised,
            voted_for: s.voted_for,
            released: s.released,
            sealed: s.sealed,
            handed_to: s.handed_to,
            chain: s.chain,
            grant_ms_max: s.grant_ms_max,
            sync: s.sync,
            auto: AutoRule::default(),
            pending: s.pending.into_iter().map(Into::into).collect(),
            cut: s.cut,
            ledger: s.ledger.into(),
            audit: Audit::default(),
            rivals: Vec::new(),
            begun: None,
            told_out: Vec::new(),
            lost_promises: false,
        }
    }
}
