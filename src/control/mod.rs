//! Control: who may write to the global cluster, and what a change of that costs.
//!
//! Decides: whether this region leads or follows, by leases and votes of a majority, kept on its copies and never in a configuration
//! file. Never decides when something is durable. Driven by the node, and by the witness, which votes only.
//!
//! [`Control`] is the core; [`api`] what goes in and comes out of it; [`chain`] the reigns and what of a log is history.

pub mod api;
mod campaign;
pub mod chain;
mod elect;
mod holder;
mod machine;
pub mod message;
mod operations;
mod orders;
pub mod state;
mod takeover;
pub mod types;
mod voter;

pub use api::{ControlView, Input, Output, Promotion, Role};
pub use chain::{Chain, EpochEntry, ReignKind};
pub use machine::Control;
pub use message::{ControlMessage, MessageError};
pub use state::{Ledger, VoterState};
pub use types::{
    AutoFailover, Check, Consent, FailoverRecord, LogPosition, Loss, LostTail, OpId, OpState, OpView, Order, OrderKind, Phase, Settings,
    Sureness, SyncRule, VoterSet, Who,
};

use crate::base::{Epoch, Layout, LineageId, RegionName};

/// What a region knows of the global cluster's reign. Persisted on 4 of 6 copies before it is acted on.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ControlState {
    pub lineage: LineageId,
    pub epoch: Epoch,
    /// The primary of `epoch`.
    pub primary: RegionName,
    /// How page space is cut, since the global cluster was founded and for good.
    pub layout: Layout,
}

/// Largest encoded control state.
const CONTROL_BYTES_MAX: usize = 4096;

impl ControlState {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, bincode::config::standard()).expect("BUG: a control state of names and numbers encodes")
    }

    /// `None` when there is none, or when the bytes are not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<ControlState> {
        let config = bincode::config::standard().with_limit::<CONTROL_BYTES_MAX>();
        let (state, read): (ControlState, usize) = bincode::decode_from_slice(bytes, config).ok()?;
        (read == bytes.len() && state.layout.is_valid()).then_some(state)
    }
}

/// How a region goes on after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its own copies say it is the primary.
    Lead { epoch: Epoch },
    /// Another region is the primary, as its copies say.
    Follow { epoch: Epoch, primary: RegionName },
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
        Some(state) if state.primary == *own => Start::Lead { epoch: state.epoch },
        Some(state) => Start::Follow { epoch: state.epoch, primary: state.primary.clone() },
        None if log_found => Start::Refuse { reason: "the copies hold a log but no control state says who wrote it".into() },
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
        let state = ControlState { lineage: LineageId(9), epoch: Epoch(2), primary: west.clone(), layout: Layout::default() };
        assert_eq!(ControlState::decode(&state.encode()), Some(state.clone()));
        assert_eq!(start(&west, &east, Some(&state), true), Start::Lead { epoch: Epoch(2) });
        assert_eq!(start(&east, &east, Some(&state), true), Start::Follow { epoch: Epoch(2), primary: west });
        assert!(matches!(start(&east, &east, None, true), Start::Refuse { .. }));
        let impossible = ControlState { layout: Layout { segment_pages: 0, groups: 1 }, ..state };
        assert_eq!(ControlState::decode(&impossible.encode()), None);
        assert_eq!(ControlState::decode(&[]), None);
        assert_eq!(ControlState::decode(&[0xff; 64]), None);
    }
}
