//! A voter's state as version 2 of it was written: a witness stood in the files only, and among the voters where it had a vote.
//!
//! Decides what the present state says where that one said nothing: whoever votes and is no region is the witness. One that had no vote at that
//! moment, in a cluster whose members an order had changed, is none any more and is added again by order. Read once, when a newer parhelion is
//! started on older copies.

use super::audit::Audit;
use super::chain::Chain;
use super::members::{MemberAt, Membership, WitnessAt};
use super::state::{self, Ledger};
use super::types::{self, AutoRule, FailoverRecord, OpId, SyncRule};
use crate::base::{Epoch, LineageId, RegionName};

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct Members {
    pub regions: Vec<MemberAt>,
    pub removed: Vec<(RegionName, u64)>,
    pub by_rule: bool,
}

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct VoterSet {
    pub version: u64,
    pub voters: Vec<RegionName>,
    pub heard: Vec<RegionName>,
    pub members: Option<Members>,
}

#[cfg_attr(test, derive(bincode::Encode))]
#[derive(bincode::Decode)]
pub struct NewLineage {
    pub was: LineageId,
    pub lineage: LineageId,
    pub voters: VoterSet,
    pub survivors: Vec<RegionName>,
    pub op: OpId,
    pub actor: String,
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
    pub auto: AutoRule,
    pub pending: Vec<FailoverRecord>,
    pub cut: Option<(Epoch, Epoch)>,
    pub ledger: Ledger,
    pub audit: Audit,
    pub rivals: Vec<(RegionName, LineageId)>,
    pub begun: Option<NewLineage>,
    pub told_out: Vec<RegionName>,
}

impl From<VoterSet> for types::VoterSet {
    fn from(v: VoterSet) -> types::VoterSet {
        let VoterSet { version, voters, heard, members } = v;
        let members = members.map(|Members { regions, removed, by_rule }| {
            let none_of_them = voters.iter().find(|v| !regions.iter().any(|m| m.name == **v) && !removed.iter().any(|(r, _)| r == *v));
            let witness = none_of_them.map(|name| WitnessAt { name: name.clone(), addr: String::new(), zone: None, since: 0 });
            Membership { regions, removed, by_rule, witness, witnesses_removed: Vec::new(), orders: Vec::new() }
        });
        types::VoterSet { version, voters, heard, members }
    }
}

impl From<NewLineage> for super::lineage::NewLineage {
    fn from(n: NewLineage) -> super::lineage::NewLineage {
        let NewLineage { was, lineage, voters, survivors, op, actor } = n;
        super::lineage::NewLineage { was, lineage, voters: voters.into(), survivors, op, actor }
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
            auto: s.auto,
            pending: s.pending,
            cut: s.cut,
            ledger: s.ledger,
            audit: s.audit,
            rivals: s.rivals,
            begun: s.begun.map(Into::into),
            told_out: s.told_out,
            lost_promises: false,
        }
    }
}
