//! Every message survives the wire; nothing else is taken for one.

use super::*;
use crate::base::{Epoch, LineageId, UnixMicros};
use crate::log::Flags;
use crate::volume::ArchiveView;
use crate::volume::membership::Incarnation;
use proptest::prelude::*;

fn whole(parts: Vec<Bytes>) -> Bytes {
    Bytes::from(parts.concat())
}

fn two_frames() -> Vec<Frame> {
    let first = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(9), Flags::CONSISTENCY_POINT, UnixMicros(7), b"payload");
    let second = Frame::encode(&first.log_end(), Epoch(1), Generation(9), Flags::default(), UnixMicros(8), b"");
    let elsewhere = Frame::encode(&second.log_end(), Epoch(1), Generation(9), Flags::default(), UnixMicros(9), b"of group 0");
    vec![first, second, elsewhere.for_group(GroupId(1))]
}

fn two_pages() -> Vec<(PageNo, Bytes)> {
    vec![(PageNo(1), Bytes::from_static(b"abc")), (PageNo(9), Bytes::new())]
}

fn requests() -> Vec<ToCopy> {
    let frames = two_frames();
    let (generation, end) = (Generation(9), frames[1].log_end());
    let mut history = History::default();
    history.note(&frames[0]);
    let base = SeedBase { lineage: LineageId(5), end, history };
    let requests = vec![
        CopyRequest::Raise { generation },
        CopyRequest::Append { generation, frames, vdl: end, horizon: Lsn(3), trim: Seq(1), gate: Some(Instant { ns: 1 << 60 }) },
        CopyRequest::Append { generation, frames: Vec::new(), vdl: LogEnd::EMPTY, horizon: Lsn(0), trim: Seq(0), gate: None },
        CopyRequest::PutControl { generation, version: 4, control: Bytes::from_static(b"state") },
        CopyRequest::ReadLog { id: 1, from: Seq(2), bytes_max: 1 << 20 },
        CopyRequest::ReadPages { id: 2, at: Lsn(7), from: PageNo(3), bytes_max: 4096 },
        CopyRequest::SeedBegin { generation, step: 1 << 32, base },
        CopyRequest::SeedPages { generation, step: 2, pages: two_pages() },
        CopyRequest::SeedEnd { generation, steps: 2 },
        CopyRequest::Check { id: 3, from: Some(CheckPlace::Log { from: Seq(1), until: Seq(9) }), bytes_max: 4096 },
        CopyRequest::Digest { id: 4, at: Lsn(7), from: PageNo(3), pages_max: 64 },
        CopyRequest::Distrust { generation, reason: "it differs".to_owned() },
        CopyRequest::Branch { generation, child: TimelineId(3), at: end },
        CopyRequest::DropBranch { generation, child: TimelineId(3) },
        CopyRequest::Rewind { generation, number: 4, archive: Some(TimelineId(9)), at: end, reign: Epoch(2) },
        CopyRequest::ReadArchive { id: 5, archive: TimelineId(9), from: Seq(3), bytes_max: 4096 },
        CopyRequest::DropArchive { generation, archive: TimelineId(9) },
        CopyRequest::Reborn { generation, incarnation: Incarnation(78) },
    ];
    let drill = ToCopy::Drill { on_duty: false, delay: Duration::from_millis(50) };
    requests.into_iter().map(ToCopy::Request).chain([drill, ToCopy::Serving(true)]).collect()
}

fn sayings() -> Vec<Says> {
    let frames = two_frames();
    let (generation, end) = (Generation(9), frames[1].log_end());
    let mut history = History::default();
    history.note(&frames[0]);
    let state = CopyState {
        incarnation: Incarnation(77),
        lineage: Some(LineageId(5)),
        first: Seq(1),
        end,
        consistent: frames[0].log_end(),
        history: history.clone(),
        ingested: end,
        flushed: LogEnd::EMPTY,
        control_version: 3,
        control: b"state".to_vec(),
        reign: Epoch(3),
        archives: vec![ArchiveView { id: TimelineId(1 << 63), base: LogEnd::EMPTY, consistent: end, end }],
        durable: frames[0].log_end(),
    };
    let reason = || "a reason".to_owned();
    let replies = vec![
        CopyReply::Raised { generation, state: state.clone() },
        CopyReply::Rewound { generation, number: 4, state: state.clone() },
        CopyReply::TailKept { generation, number: 4, reason: reason(), state },
        CopyReply::RewindRefused { generation, number: 4, reason: reason() },
        CopyReply::ArchiveDropped { generation, archive: TimelineId(9) },
        CopyReply::Refused { promised: generation },
        CopyReply::Appended { generation, end, ingested: Lsn(7), low: true, at: Instant { ns: 1 << 61 } },
        CopyReply::Gated { generation, at: Instant { ns: 7 } },
        CopyReply::Misplaced { generation, end, history },
        CopyReply::ControlStored { generation, version: 3 },
        CopyReply::Log { id: 1, frames },
        CopyReply::LogTrimmed { id: 2, first: Seq(4) },
        CopyReply::Pages { id: 3, at: Lsn(7), pages: two_pages(), next: Some(PageNo(10)) },
        CopyReply::Unreadable { id: 4, reason: reason() },
        CopyReply::Seeded { generation, step: 5 },
        CopyReply::SeedLost { generation, reason: reason() },
        CopyReply::Branched { generation, child: TimelineId(3) },
        CopyReply::BranchRefused { generation, child: TimelineId(3), reason: reason() },
        CopyReply::BranchDropped { generation, child: TimelineId(3) },
        CopyReply::Failed { reason: reason() },
        CopyReply::Checked {
            id: 5,
            bytes: 100,
            next: Some(CheckPlace::Layers { timeline: TimelineId(7), number: 1, block: 2, until: 3, log_until: Seq(4) }),
        },
        CopyReply::Digested { id: 6, digest: Digest { hash: 1, pages: 2, bytes: 3, next: Some(PageNo(4)) } },
        CopyReply::Damaged { damage: Damage { file: "layer".to_owned(), reason: reason(), lost_write: true, healed: false } },
    ];
    let others =
        [Says::Opened { promised: generation }, Says::Proves { lineage: LineageId(5), durable: end }, Says::Lost { reason: reason() }];
    replies.into_iter().map(Says::Replied).chain(others).collect()
}

#[test]
fn messages_survive_the_round_trip() {
    for request in requests() {
        let back = ToCopy::decode(&whole(request.encode())).unwrap();
        assert_eq!(format!("{back:?}"), format!("{request:?}"));
    }
    for says in sayings() {
        let back = decode_says(&whole(encode_says(&says))).unwrap();
        assert_eq!(format!("{back:?}"), format!("{says:?}"));
    }
    let question = PageQuestion { of: Generation(5), page: PageNo(3), at: Lsn(1 << 40) };
    assert_eq!(PageQuestion::decode(&whole(question.encode())).unwrap(), question);
    for answer in [Ok(Bytes::from_static(b"page")), Ok(Bytes::new()), Err(Miss::now("behind")), Err(Miss::Folded { first: Lsn(9) })] {
        assert_eq!(decode_page(&whole(encode_page(&answer))).unwrap(), answer);
    }
    for id in MemberId::all(GROUPS_MAX) {
        assert_eq!(Address::decode(Address { id }.encode()).unwrap().id, id);
    }
    assert!(Address::decode([0, 6]).is_err() && Address::decode([16, 0]).is_err());
}

#[test]
fn what_is_left_over_is_refused_and_sizes_that_are_asked_for_are_bounded() {
    for request in requests() {
        let mut bytes = whole(request.encode()).to_vec();
        bytes.push(0);
        assert!(ToCopy::decode(&bytes.into()).is_err(), "{request:?}");
    }
    for says in sayings() {
        let mut bytes = whole(encode_says(&says)).to_vec();
        bytes.push(0);
        assert!(decode_says(&bytes.into()).is_err(), "{says:?}");
    }
    let greedy = ToCopy::Request(CopyRequest::ReadLog { id: 1, from: Seq(1), bytes_max: usize::MAX });
    let Ok(ToCopy::Request(CopyRequest::ReadLog { bytes_max, .. })) = ToCopy::decode(&whole(greedy.encode())) else { panic!("a read") };
    assert!(bytes_max < MESSAGE_BYTES_MAX);
}

proptest! {
    #[test]
    fn no_input_makes_the_decoders_panic(
        which in 0usize..32, cut in 0usize..300, flip in 0usize..300, bit in 0u8..8, garbage in proptest::collection::vec(any::<u8>(), 0..64)
    ) {
        let (requests, sayings) = (requests(), sayings());
        let samples = [
            Bytes::from(garbage),
            whole(requests[which % requests.len()].encode()),
            whole(encode_says(&sayings[which % sayings.len()])),
            whole(encode_page(&Ok(Bytes::from_static(b"page")))),
        ];
        for sample in samples {
            let mut bytes = sample.to_vec();
            if !bytes.is_empty() {
                let at = flip % bytes.len();
                bytes[at] ^= 1 << bit;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let bytes = Bytes::from(bytes);
            let _ = (ToCopy::decode(&bytes), decode_says(&bytes), PageQuestion::decode(&bytes), decode_page(&bytes));
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing(len in any::<u32>(), rest in proptest::collection::vec(any::<u8>(), 0..20)) {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend(&rest);
        if len as usize > rest.len() {
            prop_assert!(ToCopy::decode(&bytes.clone().into()).is_err() && decode_says(&bytes.into()).is_err());
        }
        let mut pages_of = whole(ToCopy::Request(CopyRequest::SeedPages { generation: Generation(1), step: 1, pages: Vec::new() }).encode()).to_vec();
        pages_of.extend(7u32.to_le_bytes());
        pages_of.extend(len.to_le_bytes());
        prop_assert_eq!(ToCopy::decode(&pages_of.into()).is_ok(), len == 0);
    }
}
