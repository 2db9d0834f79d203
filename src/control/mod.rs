//! Control: who may write to the global cluster, and what a change of that costs.
//!
//! Decides: whether this region leads or follows, by leases and votes of a majority, kept on its copies and never in a configuration
//! file. Never decides when something is durable. Driven by the node, and by the witness, which votes only.
//!
//! [`Control`] is the core; [`api`] what goes in and comes out of it; [`chain`] the reigns and what of a log is history.

pub mod api;
pub mod audit;
mod campaign;
mod canonical;
pub mod chain;
mod elect;
mod first;
mod handover;
mod holder;
pub mod lineage;
mod lost;
mod machine;
pub mod members;
pub mod membership;
pub mod message;
mod news;
mod operations;
mod orders;
mod second;
pub mod state;
mod takeover;
mod touched;
pub mod types;
mod voter;

pub use api::{ControlView, Input, Output, Promotion, Role};
pub use audit::{Action, Audit, AuditEntry, AuditHead};
pub use chain::{Chain, EpochEntry, ReignKind};
pub use machine::Control;
pub use members::{MemberAt, MembersView, Membership, WitnessAt};
pub use message::{ControlMessage, MessageError, Renew, Round};
pub use state::{Ledger, VoterState};
pub use touched::{Touched, TouchedTable};
pub use types::{
    AutoFailover, AutoRule, Check, Consent, FailoverRecord, LogPosition, Loss, LostTail, OpId, OpState, OpView, Order, OrderKind, Phase,
    Settings, Sureness, SyncRule, VoterSet, Who,
};

use crate::base::{CommitRules, Epoch, Layout, LineageId, RegionName};

/// What a region keeps beside its log. Persisted on 4 of 6 copies before it is acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlState {
    /// How page space is cut, since the global cluster was founded and for good.
    pub layout: Layout,
    pub rules: CommitRules,
    /// What this member promised, and what it knows of reigns and operations.
    pub voter: VoterState,
}

impl ControlState {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = (self.layout, self.rules);
        let mut bytes = bincode::encode_to_vec(head, bincode::config::standard()).expect("BUG: a few numbers encode");
        bytes.extend_from_slice(&self.voter.encode());
        bytes
    }

    /// `None` when there is none, or when the bytes are not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<ControlState> {
        let config = bincode::config::standard().with_limit::<256>();
        let ((layout, rules), read): ((Layout, CommitRules), usize) = bincode::decode_from_slice(bytes, config).ok()?;
        let voter = VoterState::decode(bytes.get(read..)?)?;
        layout.is_valid().then_some(ControlState { layout, rules, voter })
    }

    /// The newest reign that this region heard of.
    #[must_use]
    pub fn top(&self) -> Option<(Epoch, &RegionName)> {
        self.voter.chain.top().map(|e| (e.epoch, &e.region))
    }
}

/// How a region goes on after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It reigned when it was last heard of: nobody reads here before a majority says how things are.
    Closed,
    /// Another region is the primary, as far as its copies know.
    Follow,
    /// A founding that stopped before its first frame: the same lineage goes on.
    FoundAgain { lineage: LineageId },
    /// Empty copies in the region that founds the global cluster.
    Found,
    /// Empty copies in any other region: wait for a primary and its seed.
    Join,
    /// The copies hold a log and no control state: they were damaged or put together by hand.
    Refuse { reason: String },
}

/// Decides by what recovery found. `founder` matters only on empty copies: afterwards who is primary is state.
#[must_use]
pub fn start(own: &RegionName, founder: &RegionName, control: Option<&ControlState>, log_found: bool) -> Start {
    match control {
        Some(state) => match state.top() {
            Some((_, primary)) if primary == own && log_found => Start::Closed,
            Some((Epoch(1), primary)) if primary == own => Start::FoundAgain { lineage: state.voter.lineage },
            _ if log_found => Start::Follow,
            _ => Start::Join,
        },
        None if log_found => Start::Refuse {
            reason: "the copies hold a log but no control state that this version of parhelion reads says who wrote it".into(),
        },
        None if own == founder => Start::Found,
        None => Start::Join,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_founder_founds_once_and_its_name_means_nothing_afterwards() {
        let (east, west) = (RegionName::new("us-east").unwrap(), RegionName::new("eu-west").unwrap());
        assert_eq!(start(&east, &east, None, false), Start::Found);
        assert_eq!(start(&west, &east, None, false), Start::Join);
        let voters = VoterSet::founding(&west, &[east.clone(), west.clone()], None);
        let voter = VoterState::founding(LineageId(9), &west, voters, crate::base::UnixMicros(0));
        let rules = CommitRules { sync: 1, ..CommitRules::default() };
        let state = ControlState { layout: Layout::default(), rules, voter };
        assert_eq!(ControlState::decode(&state.encode()), Some(state.clone()));
        assert_eq!(start(&west, &east, Some(&state), true), Start::Closed);
        assert_eq!(start(&west, &east, Some(&state), false), Start::FoundAgain { lineage: LineageId(9) });
        assert_eq!(start(&east, &east, Some(&state), true), Start::Follow);
        assert_eq!(start(&east, &east, Some(&state), false), Start::Join);
        assert!(matches!(start(&east, &east, None, true), Start::Refuse { .. }));
        let impossible = ControlState { layout: Layout { segment_pages: 0, groups: 1 }, ..state };
        assert_eq!(ControlState::decode(&impossible.encode()), None);
        assert_eq!(ControlState::decode(&[]), None);
        assert_eq!(ControlState::decode(&[0xff; 64]), None);
    }
}
