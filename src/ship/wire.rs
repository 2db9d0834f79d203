//! What two regions say to each other, and its bytes.
//!
//! ```text
//!  control stream, datagrams   version u8 | bincode message           at most CONTROL_BYTES_MAX
//!  batch stream                kind u8 = 1 | frames, as they lie in the log, one behind the other
//!                              kind u8 = 2 | base seq u64 | step u64 | count u32 | (page u32 | length u32 | bytes)*
//! ```
//! Frames are never re-encoded. Every length is checked against what is there before anything is allocated. The enums are
//! append-only: a variant never changes its place.

use super::catchup::UnfinishedSeed;
use crate::base::CommitRules;
use crate::base::{ClusterName, Epoch, Layout, LineageId, LogEnd, Lsn, PageNo, RegionName, Seq, UnixMicros};
use crate::log::{Frame, History, SeedBase, split_frames};
use bytes::{BufMut, Bytes, BytesMut};

/// No control message is longer (a history of some thousand generations fits).
pub const CONTROL_BYTES_MAX: usize = 1 << 20;
/// No batch is longer: one short stream (dependencies' reassembly limits), and the head of one more frame.
pub const BATCH_BYTES_MAX: usize = (1 << 20) + (1 << 20) + 4096;
/// What surely fits one QUIC packet on any path (RFC 9000 section 14: 1200 bytes of UDP payload).
const TWIN_BYTES_MAX: usize = 1100;
const WIRE_VERSION: u8 = 1;
const BATCH_FRAMES: u8 = 1;
const BATCH_PAGES: u8 = 2;

/// Why bytes from a peer are not a message. The link that brought them is closed with this sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the peer speaks wire version {0} and this parhelion speaks {WIRE_VERSION}; run the same release in both regions")]
    Version(u8),
    #[error("a message of {bytes} bytes is beyond the limit of {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("a message cannot be read: {0}")]
    Malformed(String),
}

/// Everything that travels between two regions for shipping.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Control(Control),
    Frames(Vec<Frame>),
    Pages { base: Seq, step: u64, pages: Vec<(PageNo, Bytes)> },
    Heartbeat(Heartbeat),
    HeartbeatReply(HeartbeatReply),
}

/// Messages of the control stream.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub enum Control {
    /// First word of a region that wants to follow.
    Hello(Hello),
    /// The primary's answer: frames will follow from behind `from`, or a seed comes first.
    Welcome {
        lineage: LineageId,
        layout: Layout,
        epoch: Epoch,
        primary: RegionName,
        seed: bool,
        /// The seed goes on behind what the hello named as unfinished.
        resumes: bool,
        rules: CommitRules,
    },
    /// The answer of a region that is not the primary, with the one it knows of.
    NotPrimary {
        primary: Option<RegionName>,
        epoch: Epoch,
    },
    Refused(Refusal),
    /// A seed begins; steps 1.. are `Pages`, the last step is `SeedEnd`.
    SeedBegin(SeedBase),
    SeedEnd {
        base: Seq,
        step: u64,
    },
    /// The secondary stored the seed up to this step on 4 of 6.
    SeedStored {
        base: Seq,
        step: u64,
    },
    /// How far the secondary is: received without a gap, durable on 4 of 6, visible to its readers.
    Progress {
        received: LogEnd,
        durable: LogEnd,
        visible: Lsn,
    },
    /// The primary's answer to a log that goes on behind `common` otherwise than its own, which a later epoch wrote: what lies
    /// beyond is to be archived and cut, then to say hello again. `end`: the position at `common`, when it ends a term of the primary's.
    PartsAt {
        epoch: Epoch,
        primary: RegionName,
        common: Seq,
        end: Option<LogEnd>,
    },
    /// The commit rules from now on.
    Rules(CommitRules),
}

/// Who wants to follow, from where.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Hello {
    pub cluster: ClusterName,
    pub region: RegionName,
    pub epoch: Epoch,
    /// How its configuration cuts page space.
    pub layout: Layout,
    pub position: Option<Position>,
    /// A seed that was interrupted. Only without a position.
    pub unfinished: Option<UnfinishedSeed>,
    /// It is about to take over and fetches what this region has more of the old reign's log, although it is no primary.
    pub catches_up: bool,
}

/// What a secondary has: enough for the primary to find the common point without reading a frame.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Position {
    pub lineage: LineageId,
    pub end: LogEnd,
    pub history: History,
}

/// Why a region may not follow. The sentence is for its operator.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, thiserror::Error)]
pub enum Refusal {
    #[error("the global cluster already has {limit} secondaries ({present}); remove one before adding another")]
    TooManySecondaries { limit: u32, present: String },
    #[error("it belongs to global cluster '{theirs}', this is '{ours}'")]
    OtherCluster { ours: ClusterName, theirs: ClusterName },
    #[error(
        "its data is of lineage {theirs}, this global cluster is {ours}: two histories are never merged. To join with an empty volume, move its data directory away and start it again"
    )]
    OtherLineage { ours: LineageId, theirs: LineageId },
    #[error(
        "its log ends at {theirs}, which is not in the primary's history ({why}). To join again with an empty volume, move its data directory away and start it again"
    )]
    Diverged { theirs: LogEnd, why: String },
    #[error("its certificate names region '{certificate}' and it calls itself '{claimed}'")]
    OtherRegion { certificate: RegionName, claimed: RegionName },
    #[error("the global cluster was founded with {ours} and [volume] in its configuration says {theirs}; write what it was founded with")]
    OtherLayout { ours: Layout, theirs: Layout },
    #[error(
        "{region} is no member of the global cluster, or is about to leave it; to bring it back: parhelion invite --region {region} at a member, then parhelion join there"
    )]
    NoMember { region: RegionName },
}

/// Primary to secondary, every 100 ms, unreliable: (VDL, time) through the whole path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Heartbeat {
    pub no: u64,
    /// Primary's clock when it was sent.
    pub sent_at: UnixMicros,
    pub vdl: LogEnd,
    /// The last reply that arrived: (its `replied_at`, when it arrived on the primary's clock). Closes the round trip for the
    /// secondary's estimate of the clock offset.
    pub echo: Option<(UnixMicros, UnixMicros)>,
}

/// Secondary to primary, for each heartbeat, unreliable.
#[derive(Clone, Copy, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub struct HeartbeatReply {
    pub no: u64,
    /// Secondary's clock when this was sent.
    pub replied_at: UnixMicros,
    pub received: LogEnd,
    pub durable: LogEnd,
    pub visible: Lsn,
    pub lag: super::LagReport,
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Control,
    Batch,
    Datagram,
}

/// A step of a seed, as the receiver orders them.
#[derive(Clone, Debug, PartialEq)]
pub enum SeedStep {
    Begin(SeedBase),
    Pages(Vec<(PageNo, Bytes)>),
    End,
}

#[derive(bincode::Encode, bincode::Decode)]
enum Datagram {
    Heartbeat(Heartbeat),
    Reply(HeartbeatReply),
    /// A second time what also goes as a batch of its own: bytes of frames.
    Frames(Vec<u8>),
}

impl Message {
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Message::Control(_) => Lane::Control,
            Message::Frames(_) | Message::Pages { .. } => Lane::Batch,
            Message::Heartbeat(_) | Message::HeartbeatReply(_) => Lane::Datagram,
        }
    }

    /// The message's bytes, in parts: frames are shared, not copied.
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        match self {
            Message::Control(control) => vec![encode_small(control)],
            Message::Heartbeat(h) => vec![encode_small(&Datagram::Heartbeat(*h))],
            Message::HeartbeatReply(r) => vec![encode_small(&Datagram::Reply(*r))],
            Message::Frames(frames) => {
                let mut parts = Vec::with_capacity(frames.len() + 1);
                parts.push(Bytes::from_static(&[BATCH_FRAMES]));
                parts.extend(frames.iter().map(|f| f.bytes().clone()));
                parts
            }
            Message::Pages { base, step, pages } => {
                let mut head = BytesMut::with_capacity(21);
                head.put_u8(BATCH_PAGES);
                head.put_u64_le(base.0);
                head.put_u64_le(*step);
                head.put_u32_le(u32::try_from(pages.len()).expect("BUG: a batch has few pages"));
                let mut parts = vec![head.freeze()];
                for (page, bytes) in pages {
                    let mut head = BytesMut::with_capacity(8);
                    head.put_u32_le(page.0);
                    head.put_u32_le(u32::try_from(bytes.len()).expect("BUG: a page is at most 64 KiB"));
                    parts.push(head.freeze());
                    parts.push(bytes.clone());
                }
                parts
            }
        }
    }

    /// A thin batch once more, as a datagram: while the log is thin, a lost packet then costs no round trip, because the other one
    /// arrives (the receiver takes whichever comes first). `None` when it would not fit one packet.
    #[must_use]
    pub fn encode_twin(&self) -> Option<Bytes> {
        let Message::Frames(frames) = self else { return None };
        if frames.iter().map(|f| f.bytes().len()).sum::<usize>() > TWIN_BYTES_MAX {
            return None;
        }
        Some(encode_small(&Datagram::Frames(frames.iter().flat_map(|f| f.bytes().iter().copied()).collect())))
    }

    /// # Errors
    /// [`WireError`], for bytes that are not exactly one message of that lane.
    pub fn decode(lane: Lane, bytes: &Bytes) -> Result<Message, WireError> {
        match lane {
            Lane::Control => decode_small(bytes).map(Message::Control),
            Lane::Datagram => decode_small(bytes).and_then(|d| match d {
                Datagram::Heartbeat(h) => Ok(Message::Heartbeat(h)),
                Datagram::Reply(r) => Ok(Message::HeartbeatReply(r)),
                Datagram::Frames(bytes) => frames(Bytes::from(bytes)),
            }),
            Lane::Batch => decode_batch(bytes),
        }
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<{ 4 * CONTROL_BYTES_MAX }>()
}

fn encode_small<T: bincode::Encode>(message: &T) -> Bytes {
    let mut bytes = vec![WIRE_VERSION];
    bincode::encode_into_std_write(message, &mut bytes, config()).expect("BUG: a control message encodes");
    assert!(bytes.len() <= CONTROL_BYTES_MAX, "BUG: a control message of {} bytes", bytes.len());
    Bytes::from(bytes)
}

fn decode_small<T: bincode::Decode<()>>(bytes: &Bytes) -> Result<T, WireError> {
    if bytes.len() > CONTROL_BYTES_MAX {
        return Err(WireError::TooLong { bytes: bytes.len(), limit: CONTROL_BYTES_MAX });
    }
    let (version, body) = bytes.split_first().ok_or_else(|| WireError::Malformed("it is empty".into()))?;
    if *version != WIRE_VERSION {
        return Err(WireError::Version(*version));
    }
    let (message, read) = bincode::decode_from_slice(body, config()).map_err(|e| WireError::Malformed(e.to_string()))?;
    if read != body.len() {
        return Err(WireError::Malformed(format!("{} bytes are left over", body.len() - read)));
    }
    Ok(message)
}

fn frames(bytes: Bytes) -> Result<Message, WireError> {
    let frames = split_frames(bytes).map_err(|e| WireError::Malformed(e.to_string()))?;
    if frames.iter().any(Frame::is_elided) {
        return Err(WireError::Malformed("a frame came without its payload".into()));
    }
    Ok(Message::Frames(frames))
}

fn decode_batch(bytes: &Bytes) -> Result<Message, WireError> {
    if bytes.len() > BATCH_BYTES_MAX {
        return Err(WireError::TooLong { bytes: bytes.len(), limit: BATCH_BYTES_MAX });
    }
    match bytes.first() {
        Some(&BATCH_FRAMES) => frames(bytes.slice(1..)),
        Some(&BATCH_PAGES) => {
            let cut = || WireError::Malformed("a batch of pages is cut off".into());
            let base = u64::from_le_bytes(bytes.get(1..9).ok_or_else(cut)?.try_into().expect("BUG: eight bytes"));
            let step = u64::from_le_bytes(bytes.get(9..17).ok_or_else(cut)?.try_into().expect("BUG: eight bytes"));
            let count = u32::from_le_bytes(bytes.get(17..21).ok_or_else(cut)?.try_into().expect("BUG: four bytes"));
            let mut pages = Vec::new();
            let mut at = 21;
            for _ in 0..count {
                let head = bytes.get(at..at + 8).ok_or_else(cut)?;
                let page = u32::from_le_bytes(head[..4].try_into().expect("BUG: four bytes"));
                let len = u32::from_le_bytes(head[4..].try_into().expect("BUG: four bytes")) as usize;
                at += 8;
                if len > bytes.len() - at {
                    return Err(cut());
                }
                pages.push((PageNo(page), bytes.slice(at..at + len)));
                at += len;
            }
            if at != bytes.len() {
                return Err(WireError::Malformed(format!("{} bytes are left over", bytes.len() - at)));
            }
            Ok(Message::Pages { base: Seq(base), step, pages })
        }
        Some(kind) => Err(WireError::Malformed(format!("batch kind {kind} is unknown"))),
        None => Err(WireError::Malformed("it is empty".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Generation;
    use crate::log::Flags;
    use proptest::prelude::*;

    fn whole(message: &Message) -> Bytes {
        Bytes::from(message.encode().concat())
    }

    fn samples() -> Vec<Message> {
        let frame = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(9), Flags::CONSISTENCY_POINT, UnixMicros(7), b"payload");
        let mut history = History::default();
        history.note(&frame);
        let base = SeedBase { lineage: LineageId(5), end: frame.log_end(), history: history.clone() };
        vec![
            Message::Control(Control::Hello(Hello {
                cluster: ClusterName::new("sun").unwrap(),
                region: RegionName::new("eu-west").unwrap(),
                epoch: Epoch(1),
                layout: Layout::default(),
                position: Some(Position { lineage: LineageId(5), end: frame.log_end(), history }),
                unfinished: Some(UnfinishedSeed {
                    base: base.clone(),
                    step: 7,
                    next_page: PageNo(99),
                    pages_total: 1000,
                    bytes: 1 << 20,
                    resumed: 1,
                }),
                catches_up: false,
            })),
            Message::Control(Control::SeedBegin(base)),
            Message::Control(Control::Refused(Refusal::TooManySecondaries { limit: 5, present: "a, b".into() })),
            Message::Frames(vec![
                frame.clone(),
                Frame::encode(&frame.log_end(), Epoch(1), Generation(9), Flags::default(), UnixMicros(8), b""),
            ]),
            Message::Pages { base: Seq(4), step: 3, pages: vec![(PageNo(1), Bytes::from_static(b"abc")), (PageNo(9), Bytes::new())] },
            Message::Heartbeat(Heartbeat { no: 1, sent_at: UnixMicros(2), vdl: LogEnd::EMPTY, echo: Some((UnixMicros(3), UnixMicros(4))) }),
        ]
    }

    #[test]
    fn messages_survive_the_round_trip() {
        for message in samples() {
            assert_eq!(Message::decode(message.lane(), &whole(&message)).unwrap(), message);
        }
    }

    #[test]
    fn a_thin_batch_has_a_twin_that_says_the_same_and_a_thick_one_has_none() {
        let thin = &samples()[3];
        let twin = thin.encode_twin().unwrap();
        assert_eq!(Message::decode(Lane::Datagram, &twin).unwrap(), *thin);
        let thick = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(9), Flags::default(), UnixMicros(7), &[1; 2000]);
        assert_eq!(Message::Frames(vec![thick]).encode_twin(), None);
        assert_eq!(samples()[0].encode_twin(), None);
    }

    #[test]
    fn another_version_and_bytes_left_over_are_refused() {
        let mut bytes = whole(&samples()[0]).to_vec();
        bytes.push(0);
        assert!(matches!(Message::decode(Lane::Control, &Bytes::from(bytes.clone())), Err(WireError::Malformed(_))));
        bytes[0] = 99;
        assert_eq!(Message::decode(Lane::Control, &Bytes::from(bytes)), Err(WireError::Version(99)));
    }

    proptest! {
        #[test]
        fn no_input_makes_the_decoder_panic(which in 0usize..6, cut in 0usize..200, flip in 0usize..200, garbage in proptest::collection::vec(any::<u8>(), 0..64)) {
            for lane in [Lane::Control, Lane::Batch, Lane::Datagram] {
                let _ = Message::decode(lane, &Bytes::from(garbage.clone()));
                let sample = &samples()[which];
                let mut bytes = whole(sample).to_vec();
                let at = flip % bytes.len();
                bytes[at] ^= 0x55;
                bytes.truncate(bytes.len().saturating_sub(cut));
                let _ = Message::decode(lane, &Bytes::from(bytes));
            }
        }

        #[test]
        fn a_claimed_length_allocates_nothing(count in any::<u32>(), len in any::<u32>()) {
            let mut bytes = vec![BATCH_PAGES];
            bytes.extend_from_slice(&1u64.to_le_bytes());
            bytes.extend_from_slice(&1u64.to_le_bytes());
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(&7u32.to_le_bytes());
            bytes.extend_from_slice(&len.to_le_bytes());
            let got = Message::decode(Lane::Batch, &Bytes::from(bytes));
            prop_assert!(got.is_err() || (count == 1 && len == 0) || count == 0);
        }
    }
}
