//! What the members' control cores say to one another, and its bytes.
//!
//! ```text
//!  version u8 = 3 | bincode of ControlMessage          at most MESSAGE_BYTES_MAX
//! ```
//! Any of them may be lost, doubled, late or out of order; none is believed beyond what it says. The enums are append-only: a
//! variant never changes its place.

use super::chain::{Chain, EpochEntry};
use super::lineage::NewLineage;
use super::state::Ledger;
use super::types::{AutoRule, FailoverRecord, OpId, OpView, Order, Standing, SyncRule, VoterSet};
use crate::base::{Epoch, LineageId, LogEnd, RegionName, UnixMicros};

/// No encoded message is longer.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
const MESSAGE_VERSION: u8 = 3;

/// One round of one incarnation of a member: an answer to another one is an answer to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct Round {
    pub incarnation: u64,
    pub no: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[expect(clippy::large_enum_variant, reason = "they are handed on one at a time, and none is kept")]
pub enum ControlMessage {
    Renew(Renew),
    Granted {
        epoch: Epoch,
        round: Round,
        ledger_digest: u32,
    },
    Refused {
        epoch: Epoch,
        round: Round,
        promised: Epoch,
        reign: Option<(Epoch, RegionName)>,
        reason: String,
    },
    /// How do you stand? Grants nothing, promises nothing.
    Probe {
        round: Round,
    },
    Stands(Box<Stands>),
    Vote(Vote),
    Voted(Box<Voted>),
    NotVoted {
        epoch: Epoch,
        round: Round,
        promised: Epoch,
        wait_ms: u64,
        reason: String,
    },
    Handover(Box<Handover>),
    Order(Order),
    /// How an operation stands: to whoever ordered it there, and to its target.
    Op(Box<OpView>),
    Ask {
        id: OpId,
    },
    Ledger(Box<Ledger>),
    /// An operator forced a new lineage, and this member survives in it.
    NewLineage(Box<NewLineage>),
}

/// The primary's renewal of its lease, and the first word of a new one.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Renew {
    pub lineage: LineageId,
    pub voters: VoterSet,
    pub voters_next: Option<VoterSet>,
    pub round: Round,
    pub lease_ms: u64,
    pub entry: EpochEntry,
    /// The last reigns before it on its path.
    pub path: Vec<EpochEntry>,
    /// A majority has granted this reign before: it is to be followed.
    pub active: bool,
    pub durable: LogEnd,
    /// The primary's clock.
    pub sent_at: UnixMicros,
    pub sync: SyncRule,
    pub auto: AutoRule,
    pub ledger_digest: u32,
}

/// How a member stands, without any promise.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Stands {
    pub round: Round,
    pub lineage: LineageId,
    pub voters: VoterSet,
    pub promised: Epoch,
    pub released: Epoch,
    pub chain: Chain,
    /// Who holds its grant, and for how long.
    pub grant_to: Option<RegionName>,
    pub grant_left_ms: u64,
    /// After a restart nobody is voted for before.
    pub restart_left_ms: u64,
    /// The highest reign that it knows to be active.
    pub reign: Option<(Epoch, RegionName)>,
    /// This member is the primary of that reign and holds its lease.
    pub leads: bool,
    pub log: Option<Standing>,
    pub seen: Seen,
    pub sync: SyncRule,
    pub auto: AutoRule,
}

/// The last that was heard of a primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Seen {
    pub durable: LogEnd,
    /// On the primary's clock.
    pub sent_at: UnixMicros,
    pub ago_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Vote {
    pub lineage: LineageId,
    pub voters_version: u64,
    pub epoch: Epoch,
    pub round: Round,
    /// The candidate holds the handover of this epoch's primary: it is sealed and released.
    pub released: Option<Epoch>,
    pub op: Option<OpId>,
}

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Voted {
    pub epoch: Epoch,
    pub round: Round,
    pub voters: VoterSet,
    pub voters_next: Option<VoterSet>,
    pub chain: Chain,
    /// Failovers of reigns that this member won and that may never have been active.
    pub pending: Vec<FailoverRecord>,
    pub log: Option<Standing>,
    pub seen: Seen,
    pub sync: SyncRule,
    pub auto: AutoRule,
}

/// The primary's last word in its epoch, to its successor: where it ended, and its own vote.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Handover {
    pub lineage: LineageId,
    pub epoch: Epoch,
    /// The handover frame's end in the log.
    pub at: LogEnd,
    pub op: OpView,
    /// Its vote for `epoch + 1`. Where it was the only voter, `voters` makes the successor the only one.
    pub vote: Voted,
    pub voters: VoterSet,
    pub ledger: Ledger,
}

/// Why bytes from a member are no message. The link that brought them is closed with this sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("the member speaks control version {0} and this parhelion speaks {MESSAGE_VERSION}; run the same release everywhere")]
    Version(u8),
    #[error("a control message of {bytes} bytes is beyond the limit of {MESSAGE_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("a control message cannot be read: {0}")]
    Malformed(String),
}

impl ControlMessage {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![MESSAGE_VERSION];
        let body = bincode::encode_to_vec(self, bincode::config::standard()).expect("BUG: a message of names and numbers encodes");
        bytes.extend_from_slice(&body);
        bytes
    }

    /// # Errors
    /// When the bytes are not exactly one message of this version.
    pub fn decode(bytes: &[u8]) -> Result<ControlMessage, MessageError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(MessageError::TooLong { bytes: bytes.len() });
        }
        let (version, body) = bytes.split_first().ok_or_else(|| MessageError::Malformed("it is empty".into()))?;
        if *version != MESSAGE_VERSION {
            return Err(MessageError::Version(*version));
        }
        let config = bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();
        let (message, read) = bincode::decode_from_slice(body, config).map_err(|e| MessageError::Malformed(e.to_string()))?;
        if read != body.len() {
            return Err(MessageError::Malformed(format!("{} bytes are left over", body.len() - read)));
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{MemberAt, Membership, OrderKind, VoterState, WitnessAt};
    use proptest::prelude::*;

    fn samples() -> Vec<ControlMessage> {
        let east = RegionName::new("us-east").unwrap();
        let voters = VoterSet::founding(&east, &[east.clone(), RegionName::new("eu-west").unwrap()], None);
        let state = VoterState::founding(LineageId(7), &east, voters.clone(), UnixMicros(5));
        let round = Round { incarnation: 8, no: 9 };
        let renew = Renew {
            lineage: LineageId(7),
            voters: voters.clone(),
            voters_next: None,
            round,
            lease_ms: 6000,
            entry: state.chain.entries()[0].clone(),
            path: Vec::new(),
            active: true,
            durable: LogEnd::EMPTY,
            sent_at: UnixMicros(4),
            sync: crate::control::types::SyncRule::default(),
            auto: AutoRule::default(),
            ledger_digest: 1,
        };
        // The witness before burned down, and another one comes.
        let witness = RegionName::new("w2").unwrap();
        let members = Membership {
            regions: vec![MemberAt { name: east.clone(), addr: "here:7400".into(), since: 0 }],
            removed: vec![(RegionName::new("ap-south").unwrap(), 2)],
            by_rule: true,
            witness: Some(WitnessAt { name: witness.clone(), addr: "there:7700".into(), zone: Some("c".into()), since: 4 }),
            witnesses_removed: vec![(RegionName::new("w").unwrap(), 3)],
            orders: vec![OpId(6), OpId(7)],
        };
        let next = VoterSet { version: 4, members: Some(members), ..voters };
        let changing = Renew { voters_next: Some(next), ..renew.clone() };
        let order = |kind| {
            ControlMessage::Order(Order { id: OpId(5), kind, dry_run: false, timeout_ms: 1, at_epoch: Some(Epoch(1)), actor: "me".into() })
        };
        vec![
            ControlMessage::Renew(renew),
            ControlMessage::Renew(changing),
            ControlMessage::Refused {
                epoch: Epoch(1),
                round,
                promised: Epoch(2),
                reign: Some((Epoch(2), east.clone())),
                reason: "no".into(),
            },
            ControlMessage::Probe { round },
            ControlMessage::Ask { id: OpId(4) },
            order(OrderKind::AddWitness { witness: witness.clone(), addr: "there:7700".into(), zone: Some("c".into()) }),
            order(OrderKind::RemoveWitness { witness }),
        ]
    }

    #[test]
    fn messages_survive_the_round_trip_and_others_are_refused() {
        for message in samples() {
            let mut bytes = message.encode();
            assert_eq!(ControlMessage::decode(&bytes), Ok(message));
            bytes.push(0);
            assert!(matches!(ControlMessage::decode(&bytes), Err(MessageError::Malformed(_))));
            bytes[0] = 9;
            assert_eq!(ControlMessage::decode(&bytes), Err(MessageError::Version(9)));
        }
        assert!(matches!(ControlMessage::decode(&vec![1; MESSAGE_BYTES_MAX + 1]), Err(MessageError::TooLong { .. })));
        assert!(ControlMessage::decode(&[]).is_err());
    }

    proptest! {
        #[test]
        fn no_input_makes_the_decoder_panic(which in 0usize..7, cut in 0usize..80, flip in 0usize..200, garbage in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ControlMessage::decode(&garbage);
            let _ = VoterState::decode(&garbage);
            let mut bytes = samples()[which].encode();
            let at = 1 + flip % (bytes.len() - 1);
            bytes[at] ^= 0x55;
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = ControlMessage::decode(&bytes);
            // What a disk keeps of such members.
            if let ControlMessage::Renew(Renew { voters_next: Some(voters), .. }) = &samples()[1] {
                let mut kept = VoterState::joining(LineageId(7), voters.clone()).encode();
                let at = 1 + flip % (kept.len() - 1);
                kept[at] ^= 0x55;
                kept.truncate(kept.len().saturating_sub(cut));
                let _ = VoterState::decode(&kept);
            }
        }
    }
}
