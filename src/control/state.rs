//! What a voter must never forget, and what every member knows of operations.
//!
//! Decides its bytes, and what is kept when there is too much. Persisted before any answer that depends on it leaves: by a region
//! on 4 of its 6 copies, by a witness in two checksummed slots (whoever stores it adds the checksum).
//!
//! ```text
//!  version u8 = 3 | bincode of VoterState          at most STATE_BYTES_MAX
//! ```
//! Versions 1 ([`super::first`]) and 2 ([`super::second`]) are read, and written no more.

use super::audit::Audit;
use super::chain::Chain;
use super::first;
use super::lineage::NewLineage;
use super::second;
use super::types::{AutoRule, FailoverRecord, OpId, OpView, SyncRule, VoterSet};
use crate::base::{Epoch, LineageId, RegionName, UnixMicros};
use std::time::Duration;

/// No encoded state is longer.
pub const STATE_BYTES_MAX: usize = 1 << 20;
const STATE_VERSION: u8 = 3;
/// Operations and failovers kept, newest first.
const OPS_MAX: usize = 32;
const FAILOVERS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct VoterState {
    pub lineage: LineageId,
    pub voters: VoterSet,
    /// The change of voters under way: the set that is to be. Until it is settled both must agree.
    pub voters_next: Option<VoterSet>,
    /// Nothing of an older epoch is granted, voted for or received any more.
    pub promised: Epoch,
    pub voted_for: Option<RegionName>,
    /// The primary of this epoch gave its lease back for good: no grant of it needs to run out.
    pub released: Epoch,
    /// As the primary of this epoch, this region never commits in it again.
    pub sealed: Epoch,
    /// To whom the sealed epoch was handed, and for which operation.
    pub handed_to: Option<(RegionName, OpId)>,
    pub chain: Chain,
    /// The longest lease ever granted: after a restart nobody else is voted for before it is over.
    pub grant_ms_max: u64,
    pub sync: SyncRule,
    pub auto: AutoRule,
    /// Failovers by which this region would reign or that lie on the path of its promotion: they are ones when a reign above is active.
    pub pending: Vec<FailoverRecord>,
    /// What this region cut off its own log for a reign that may never have been active (see `Standing`).
    pub cut: Option<(Epoch, Epoch)>,
    pub ledger: Ledger,
    /// The newest of what this member did, and where the chain of its audit ends.
    pub audit: Audit,
    /// Members of another lineage that this one met: while there are any, nothing is written.
    pub rivals: Vec<(RegionName, LineageId)>,
    /// A lineage that was forced here, and those that survived and do not take part yet.
    pub begun: Option<NewLineage>,
    /// Members that said that this one was taken out, and none of those that stayed took it back since: also after a restart.
    pub told_out: Vec<RegionName>,
    /// The others remembered its grants when it had no state: what it promised is lost, and it votes no more, also after a restart.
    pub lost_promises: bool,
}

impl VoterState {
    /// Of the region that founds the global cluster.
    #[must_use]
    pub fn founding(lineage: LineageId, founder: &RegionName, voters: VoterSet, began_at: UnixMicros) -> VoterState {
        VoterState { promised: Epoch(1), chain: Chain::founding(founder.clone(), began_at), ..VoterState::joining(lineage, voters) }
    }

    /// Of a member that has heard of nobody's reign yet.
    #[must_use]
    pub fn joining(lineage: LineageId, voters: VoterSet) -> VoterState {
        VoterState {
            lineage,
            voters,
            voters_next: None,
            promised: Epoch(0),
            voted_for: None,
            released: Epoch(0),
            sealed: Epoch(0),
            handed_to: None,
            chain: Chain::default(),
            grant_ms_max: 0,
            sync: SyncRule::default(),
            auto: AutoRule::default(),
            pending: Vec::new(),
            cut: None,
            ledger: Ledger::default(),
            audit: Audit::default(),
            rivals: Vec::new(),
            begun: None,
            told_out: Vec::new(),
            lost_promises: false,
        }
    }

    #[must_use]
    pub fn grant_max(&self) -> Duration {
        Duration::from_millis(self.grant_ms_max)
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![STATE_VERSION];
        let body = bincode::encode_to_vec(self, bincode::config::standard()).expect("BUG: a voter's state of names and numbers encodes");
        bytes.extend_from_slice(&body);
        bytes
    }

    /// `None` when the bytes are not one, or of a version that this parhelion does not know.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<VoterState> {
        let config = bincode::config::standard().with_limit::<STATE_BYTES_MAX>();
        let (state, read, body): (VoterState, usize, &[u8]) = match bytes.split_first()? {
            (&STATE_VERSION, body) => {
                let (state, read) = bincode::decode_from_slice(body, config).ok()?;
                (state, read, body)
            }
            (2, body) => {
                let (state, read): (second::VoterState, usize) = bincode::decode_from_slice(body, config).ok()?;
                (state.into(), read, body)
            }
            (1, body) => {
                let (state, read): (first::VoterState, usize) = bincode::decode_from_slice(body, config).ok()?;
                (state.into(), read, body)
            }
            _ => return None,
        };
        (read == body.len()).then_some(state)
    }
}

/// Operations and failovers that this member knows of. Members tell one another; what is final stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Ledger {
    pub(super) ops: Vec<OpView>,
    pub(super) failovers: Vec<FailoverRecord>,
}

impl Ledger {
    /// Newest first.
    #[must_use]
    pub fn ops(&self) -> &[OpView] {
        &self.ops
    }

    #[must_use]
    pub fn op(&self, id: OpId) -> Option<&OpView> {
        self.ops.iter().find(|o| o.order.id == id)
    }

    /// The same operations and failovers, each told otherwise.
    pub(super) fn map_each(&self, op: impl Fn(&OpView) -> OpView, failover: impl Fn(&FailoverRecord) -> FailoverRecord) -> Ledger {
        Ledger { ops: self.ops.iter().map(op).collect(), failovers: self.failovers.iter().map(failover).collect() }
    }

    /// Newest first.
    #[must_use]
    pub fn failovers(&self) -> &[FailoverRecord] {
        &self.failovers
    }

    #[must_use]
    pub fn failover(&self, op: OpId) -> Option<&FailoverRecord> {
        self.failovers.iter().find(|f| f.op == op)
    }

    #[must_use]
    pub fn failover_into(&self, epoch: Epoch) -> Option<&FailoverRecord> {
        self.failovers.iter().find(|f| f.new_epoch == epoch)
    }

    /// Puts an operation's newer state in; whether anything changed. One that ended does not move any more.
    pub fn put_op(&mut self, op: OpView) -> bool {
        match self.ops.iter_mut().find(|o| o.order.id == op.order.id) {
            Some(known) if known.state.is_final() || *known == op => false,
            Some(known) => {
                *known = op;
                true
            }
            None => {
                self.ops.insert(0, op);
                self.ops.truncate(OPS_MAX);
                true
            }
        }
    }

    /// Puts a failover in, or what became exact of it.
    pub fn put_failover(&mut self, record: FailoverRecord) -> bool {
        match self.failovers.iter_mut().find(|f| f.new_epoch == record.new_epoch) {
            Some(known) if known.complete || *known == record => false,
            Some(known) => {
                *known = record;
                true
            }
            None => {
                let at = self.failovers.iter().position(|f| f.new_epoch < record.new_epoch).unwrap_or(self.failovers.len());
                self.failovers.insert(at, record);
                // Complete ones go first; what was never read stays as long as it can.
                while self.failovers.len() > FAILOVERS_MAX {
                    let gone = self.failovers.iter().rposition(|f| f.complete).unwrap_or(self.failovers.len() - 1);
                    self.failovers.remove(gone);
                }
                true
            }
        }
    }

    /// Takes over what another member knows: ends of operations, and failovers. How one is running only its executor says.
    pub fn merge(&mut self, other: &Ledger) -> bool {
        let mut changed = false;
        for op in other.ops.iter().rev().filter(|o| o.state.is_final()) {
            changed |= self.put_op(op.clone());
        }
        for failover in other.failovers.iter().rev() {
            if failover.complete || self.failover_into(failover.new_epoch).is_none() {
                changed |= self.put_failover(failover.clone());
            }
        }
        changed
    }

    /// What of it others should know, in four bytes.
    #[must_use]
    pub fn digest(&self) -> u32 {
        let mut shared =
            Ledger { ops: self.ops.iter().filter(|o| o.state.is_final()).cloned().collect(), failovers: self.failovers.clone() };
        shared.ops.sort_by_key(|o| o.order.id);
        crc32c::crc32c(&bincode::encode_to_vec(&shared, bincode::config::standard()).expect("BUG: a ledger of names and numbers encodes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::MemberAt;

    fn failover() -> first::FailoverRecord {
        let (at, region) = (crate::base::LogEnd::EMPTY, RegionName::new("us-east").unwrap());
        let loss =
            first::Loss { base: at, known_end: at, bytes: 7, commits_at_most: 5, ms: None, sure: crate::control::types::Sureness::Exact };
        let tail = first::LostTail { new_epoch: Epoch(3), from: at, to: at, commits: 5, from_time: None, to_time: None };
        first::FailoverRecord {
            op: OpId(4),
            from: region.clone(),
            to: region,
            old_epoch: Epoch(2),
            new_epoch: Epoch(3),
            began_at: UnixMicros(1),
            actor: "me".into(),
            consent: crate::control::Consent::default(),
            unproven: false,
            loss,
            complete: true,
            tail: Some(tail),
        }
    }

    #[test]
    fn what_the_versions_before_kept_is_read() {
        let east = RegionName::new("us-east").unwrap();
        let voters = VoterSet::founding(&east, &[east.clone(), RegionName::new("eu-west").unwrap()], None);
        let state =
            VoterState { promised: Epoch(7), grant_ms_max: 6000, ..VoterState::founding(LineageId(9), &east, voters, UnixMicros(3)) };
        let before = first::VoterState {
            lineage: state.lineage,
            voters: first::VoterSet { version: 1, voters: state.voters.voters.clone(), heard: Vec::new() },
            voters_next: None,
            promised: Epoch(7),
            voted_for: None,
            released: Epoch(0),
            sealed: Epoch(0),
            handed_to: None,
            chain: state.chain.clone(),
            grant_ms_max: 6000,
            sync: SyncRule::default(),
            pending: Vec::new(),
            cut: None,
            ledger: first::Ledger { ops: Vec::new(), failovers: vec![failover()] },
        };
        let mut bytes = vec![1];
        bytes.extend(bincode::encode_to_vec(before, bincode::config::standard()).unwrap());
        let read = VoterState::decode(&bytes).expect("it is read");
        let record = read.ledger.failovers()[0].clone();
        assert!(record.complete && record.loss.alone_ms == 0 && record.tail.is_some_and(|t| t.commits == 5 && t.touched.is_err()));
        assert_eq!(VoterState { ledger: Ledger::default(), ..read }, state);
        assert_eq!(VoterState::decode(&state.encode()), Some(state));
        bytes[0] = 4;
        assert_eq!(VoterState::decode(&bytes), None);
    }

    #[test]
    fn a_witness_that_voted_is_one_when_the_second_version_is_read() {
        let name = |name: &str| RegionName::new(name).unwrap();
        let at = |n: &str| MemberAt { name: name(n), addr: String::new(), since: 0 };
        let set = |voters: &[&str]| second::VoterSet {
            version: 4,
            voters: voters.iter().map(|n| name(n)).collect(),
            heard: vec![name("us-east")],
            members: Some(second::Members {
                regions: vec![at("us-east"), at("eu-west")],
                removed: vec![(name("ap-south"), 3)],
                by_rule: true,
            }),
        };
        let state = VoterState::joining(LineageId(9), VoterSet::unknown());
        let before = second::VoterState {
            lineage: state.lineage,
            voters: set(&["ap-south", "eu-west", "us-east"]),
            voters_next: Some(set(&["eu-west", "us-east", "w"])),
            promised: Epoch(7),
            voted_for: None,
            released: Epoch(0),
            sealed: Epoch(0),
            handed_to: None,
            chain: state.chain.clone(),
            grant_ms_max: 6000,
            sync: SyncRule::default(),
            auto: AutoRule::default(),
            pending: Vec::new(),
            cut: None,
            ledger: Ledger::default(),
            audit: Audit::default(),
            rivals: Vec::new(),
            begun: None,
            told_out: vec![name("eu-west")],
        };
        let mut bytes = vec![2];
        bytes.extend(bincode::encode_to_vec(before, bincode::config::standard()).unwrap());
        let read = VoterState::decode(&bytes).expect("it is read");
        assert_eq!((read.promised, read.told_out, read.lost_promises), (Epoch(7), vec![name("eu-west")], false));
        let (voters, next) = (read.voters.members.unwrap(), read.voters_next.unwrap().members.unwrap());
        assert_eq!(
            (voters.names(), voters.witness),
            (["us-east", "eu-west"].map(name).to_vec(), None),
            "it votes still, and was taken out"
        );
        assert_eq!((next.witness_name(), &next.removed), (Some(&name("w")), &vec![(name("ap-south"), 3)]));
    }
}
