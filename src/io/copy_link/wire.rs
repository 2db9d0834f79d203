//! What a region and its copies on other machines say to each other, and its bytes.
//!
//! ```text
//!  message   head length u32 | head: bincode of an enum, append-only | tail
//!  tail      of Append and Log: frames, as they lie in the log, one behind the other
//!            of SeedPages and Pages: (page u32 | length u32 | bytes)*
//!            of a page that was asked for: its bytes; of everything else: nothing
//! ```
//! All numbers little-endian. The version is the protocol's name in the handshake (`io::tls::COPY_ALPN`). Frames are never
//! re-encoded; every length is checked against what is there before anything is allocated; nothing may be left over.

use crate::base::{CopyId, Epoch, GROUPS_MAX, Generation, GroupId, Instant, LineageId, LogEnd, Lsn, MemberId, PageNo, Seq, TimelineId};
use crate::io::copies::{Miss, Says};
use crate::log::{Frame, History, SeedBase, split_frames};
use crate::volume::membership::Incarnation;
use crate::volume::{CheckPlace, CopyReply, CopyRequest, CopyState, Damage, Digest};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::time::Duration;

/// No message is longer. A tail that replaces another must come in one message (see `CopyRequest::Append`): it is no longer than
/// what was not durable, which the windows bound.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Control state and histories are small; also bincode's bound for what a decoded head takes in memory.
const HEAD_BYTES_MAX: usize = 4 << 20;
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Why bytes are not a message. The connection that brought them is closed with this sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyWireError {
    #[error("a message of {bytes} bytes is beyond the limit of {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("a message cannot be read: {0}")]
    Malformed(String),
}

fn malformed(why: impl Into<String>) -> CopyWireError {
    CopyWireError::Malformed(why.into())
}

/// From a region to one of its copies, in order.
#[derive(Clone, Debug)]
pub enum ToCopy {
    Request(CopyRequest),
    /// Whether it is on duty or out of it for a drill, and how much later it answers.
    Drill {
        on_duty: bool,
        delay: Duration,
    },
    /// Whether the region's volume serves: a damaged copy may then be moved aside, because its peers can rebuild it.
    Serving(bool),
}

/// One page, as of an LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct PageQuestion {
    /// The volume's generation: see `PageStore::serves`.
    pub of: Generation,
    pub page: PageNo,
    pub at: Lsn,
}

/// A copy's bytes of the page, or why it has none.
pub type PageAnswer = Result<Bytes, Miss>;

/// What stands first on every stream: which copy it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub id: MemberId,
}

impl Address {
    pub const BYTES: usize = 2;

    #[must_use]
    pub fn encode(self) -> [u8; Address::BYTES] {
        [u8::try_from(self.id.group.0).expect("BUG: there are few groups"), self.id.copy.0]
    }

    /// # Errors
    /// There is no such copy.
    pub fn decode(bytes: [u8; Address::BYTES]) -> Result<Address, CopyWireError> {
        let id = MemberId { group: GroupId(bytes[0].into()), copy: CopyId(bytes[1]) };
        if id.group.0 < GROUPS_MAX && CopyId::all().contains(&id.copy) {
            Ok(Address { id })
        } else {
            Err(malformed(format!("there is no copy {} in group {}", bytes[1], bytes[0])))
        }
    }
}

#[derive(bincode::Encode, bincode::Decode)]
enum RequestHead {
    Raise { generation: Generation },
    Append { generation: Generation, vdl: LogEnd, horizon: Lsn, trim: Seq, gate_ns: Option<u64> },
    PutControl { generation: Generation, version: u64, control: Vec<u8> },
    ReadLog { id: u64, from: Seq, bytes_max: u64 },
    ReadPages { id: u64, at: Lsn, from: PageNo, bytes_max: u64 },
    SeedBegin { generation: Generation, step: u64, base: SeedBase },
    SeedPages { generation: Generation, step: u64 },
    SeedEnd { generation: Generation, steps: u64 },
    Check { id: u64, from: Option<CheckPlace>, bytes_max: u64 },
    Digest { id: u64, at: Lsn, from: PageNo, pages_max: u32 },
    Distrust { generation: Generation, reason: String },
    Branch { generation: Generation, child: TimelineId, at: LogEnd },
    DropBranch { generation: Generation, child: TimelineId },
    Drill { on_duty: bool, delay_us: u64 },
    Serving(bool),
    Rewind { generation: Generation, number: u64, archive: Option<TimelineId>, at: LogEnd, reign: Epoch },
    ReadArchive { id: u64, archive: TimelineId, from: Seq, bytes_max: u64 },
    DropArchive { generation: Generation, archive: TimelineId },
    Reborn { generation: Generation, incarnation: Incarnation },
}

#[derive(bincode::Encode, bincode::Decode)]
enum ReplyHead {
    Opened { promised: Generation },
    Lost { reason: String },
    Raised { generation: Generation, state: CopyState },
    Refused { promised: Generation },
    Appended { generation: Generation, end: LogEnd, ingested: Lsn, low: bool, at_ns: u64 },
    Misplaced { generation: Generation, end: LogEnd, history: History },
    ControlStored { generation: Generation, version: u64 },
    Log { id: u64 },
    LogTrimmed { id: u64, first: Seq },
    Pages { id: u64, at: Lsn, next: Option<PageNo> },
    Unreadable { id: u64, reason: String },
    Seeded { generation: Generation, step: u64 },
    SeedLost { generation: Generation, reason: String },
    Checked { id: u64, bytes: u64, next: Option<CheckPlace> },
    Digested { id: u64, digest: Digest },
    Damaged { damage: Damage },
    Branched { generation: Generation, child: TimelineId },
    BranchRefused { generation: Generation, child: TimelineId, reason: String },
    BranchDropped { generation: Generation, child: TimelineId },
    Failed { reason: String },
    Rewound { generation: Generation, number: u64, state: CopyState },
    RewindRefused { generation: Generation, number: u64, reason: String },
    ArchiveDropped { generation: Generation, archive: TimelineId },
    Proves { lineage: LineageId, durable: LogEnd },
    Gated { generation: Generation, at_ns: u64 },
    TailKept { generation: Generation, number: u64, reason: String, state: CopyState },
}

#[derive(bincode::Encode, bincode::Decode)]
enum PageHead {
    Page,
    Folded { first: Lsn },
    None { reason: String },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<HEAD_BYTES_MAX>()
}

fn encode_head<T: bincode::Encode>(head: &T) -> Vec<Bytes> {
    let body = bincode::encode_to_vec(head, config()).expect("BUG: plain values encode into memory");
    let mut out = BytesMut::with_capacity(4 + body.len());
    out.put_u32_le(u32::try_from(body.len()).expect("BUG: a head is small"));
    out.put_slice(&body);
    vec![out.freeze()]
}

fn decode_head<T: bincode::Decode<()>>(bytes: &Bytes) -> Result<(T, Bytes), CopyWireError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(CopyWireError::TooLong { bytes: bytes.len(), limit: MESSAGE_BYTES_MAX });
    }
    let mut rest = bytes.clone();
    if rest.len() < 4 {
        return Err(malformed("it has no head"));
    }
    let len = rest.get_u32_le() as usize;
    if len > HEAD_BYTES_MAX || len > rest.len() {
        return Err(malformed(format!("its head of {len} bytes is longer than it may be, or than it is")));
    }
    let body = rest.split_to(len);
    match bincode::decode_from_slice(&body, config()) {
        Ok((head, read)) if read == len => Ok((head, rest)),
        Ok(_) => Err(malformed("bytes are left over in its head")),
        Err(e) => Err(malformed(e.to_string())),
    }
}

fn nothing(tail: &Bytes) -> Result<(), CopyWireError> {
    if tail.is_empty() { Ok(()) } else { Err(malformed(format!("{} bytes are left over", tail.len()))) }
}

fn frames(tail: Bytes) -> Result<Vec<Frame>, CopyWireError> {
    split_frames(tail).map_err(|e| malformed(e.to_string()))
}

fn put_frames(parts: &mut Vec<Bytes>, frames: &[Frame]) {
    parts.extend(frames.iter().map(|f| f.bytes().clone()));
}

fn put_pages(parts: &mut Vec<Bytes>, pages: &[(PageNo, Bytes)]) {
    for (page, bytes) in pages {
        let mut head = BytesMut::with_capacity(8);
        head.put_u32_le(page.0);
        head.put_u32_le(u32::try_from(bytes.len()).expect("BUG: a page is at most 64 KiB"));
        parts.push(head.freeze());
        parts.push(bytes.clone());
    }
}

fn pages(mut tail: Bytes) -> Result<Vec<(PageNo, Bytes)>, CopyWireError> {
    let mut pages = Vec::new();
    while !tail.is_empty() {
        if tail.len() < 8 {
            return Err(malformed("it ends within a page's head"));
        }
        let (page, len) = (PageNo(tail.get_u32_le()), tail.get_u32_le() as usize);
        if len > PAGE_BYTES_MAX || len > tail.len() {
            return Err(malformed(format!("page {} of {len} bytes is longer than it may be, or than it is", page.0)));
        }
        pages.push((page, tail.split_to(len)));
    }
    Ok(pages)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).min(MESSAGE_BYTES_MAX / 4)
}

impl ToCopy {
    /// The message's bytes, in parts: frames and pages are shared, not copied.
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        use CopyRequest as R;
        let request = match self {
            ToCopy::Request(request) => request,
            ToCopy::Drill { on_duty, delay } => {
                let delay_us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
                return encode_head(&RequestHead::Drill { on_duty: *on_duty, delay_us });
            }
            ToCopy::Serving(serving) => return encode_head(&RequestHead::Serving(*serving)),
        };
        let head = match request {
            R::Raise { generation } => RequestHead::Raise { generation: *generation },
            R::Append { generation, vdl, horizon, trim, gate, .. } => {
                let gate_ns = gate.map(|at| at.ns);
                RequestHead::Append { generation: *generation, vdl: *vdl, horizon: *horizon, trim: *trim, gate_ns }
            }
            R::PutControl { generation, version, control } => {
                RequestHead::PutControl { generation: *generation, version: *version, control: control.to_vec() }
            }
            R::ReadLog { id, from, bytes_max } => RequestHead::ReadLog { id: *id, from: *from, bytes_max: *bytes_max as u64 },
            R::ReadPages { id, at, from, bytes_max } => {
                RequestHead::ReadPages { id: *id, at: *at, from: *from, bytes_max: *bytes_max as u64 }
            }
            R::SeedBegin { generation, step, base } => RequestHead::SeedBegin { generation: *generation, step: *step, base: base.clone() },
            R::SeedPages { generation, step, .. } => RequestHead::SeedPages { generation: *generation, step: *step },
            R::Check { id, from, bytes_max } => RequestHead::Check { id: *id, from: *from, bytes_max: *bytes_max as u64 },
            R::Digest { id, at, from, pages_max } => RequestHead::Digest { id: *id, at: *at, from: *from, pages_max: *pages_max },
            R::Distrust { generation, reason } => RequestHead::Distrust { generation: *generation, reason: reason.clone() },
            R::Branch { generation, child, at } => RequestHead::Branch { generation: *generation, child: *child, at: *at },
            R::DropBranch { generation, child } => RequestHead::DropBranch { generation: *generation, child: *child },
            R::SeedEnd { generation, steps } => RequestHead::SeedEnd { generation: *generation, steps: *steps },
            R::Rewind { generation, number, archive, at, reign } => {
                RequestHead::Rewind { generation: *generation, number: *number, archive: *archive, at: *at, reign: *reign }
            }
            R::ReadArchive { id, archive, from, bytes_max } => {
                RequestHead::ReadArchive { id: *id, archive: *archive, from: *from, bytes_max: *bytes_max as u64 }
            }
            R::Reborn { generation, incarnation } => RequestHead::Reborn { generation: *generation, incarnation: *incarnation },
            R::DropArchive { generation, archive } => RequestHead::DropArchive { generation: *generation, archive: *archive },
        };
        let mut parts = encode_head(&head);
        match request {
            R::Append { frames, .. } => put_frames(&mut parts, frames),
            R::SeedPages { pages, .. } => put_pages(&mut parts, pages),
            _ => {}
        }
        parts
    }

    /// # Errors
    /// [`CopyWireError`], for bytes that are not exactly one message.
    pub fn decode(bytes: &Bytes) -> Result<ToCopy, CopyWireError> {
        let (head, tail) = decode_head::<RequestHead>(bytes)?;
        let request = match head {
            RequestHead::Append { generation, vdl, horizon, trim, gate_ns } => {
                let gate = gate_ns.map(|ns| Instant { ns });
                return Ok(ToCopy::Request(CopyRequest::Append { generation, frames: frames(tail)?, vdl, horizon, trim, gate }));
            }
            RequestHead::SeedPages { generation, step } => {
                return Ok(ToCopy::Request(CopyRequest::SeedPages { generation, step, pages: pages(tail)? }));
            }
            RequestHead::Raise { generation } => CopyRequest::Raise { generation },
            RequestHead::PutControl { generation, version, control } => {
                CopyRequest::PutControl { generation, version, control: control.into() }
            }
            RequestHead::ReadLog { id, from, bytes_max } => CopyRequest::ReadLog { id, from, bytes_max: size(bytes_max) },
            RequestHead::ReadPages { id, at, from, bytes_max } => CopyRequest::ReadPages { id, at, from, bytes_max: size(bytes_max) },
            RequestHead::SeedBegin { generation, step, base } => CopyRequest::SeedBegin { generation, step, base },
            RequestHead::Check { id, from, bytes_max } => CopyRequest::Check { id, from, bytes_max: size(bytes_max) },
            RequestHead::Digest { id, at, from, pages_max } => CopyRequest::Digest { id, at, from, pages_max },
            RequestHead::Distrust { generation, reason } => CopyRequest::Distrust { generation, reason },
            RequestHead::Branch { generation, child, at } => CopyRequest::Branch { generation, child, at },
            RequestHead::DropBranch { generation, child } => CopyRequest::DropBranch { generation, child },
            RequestHead::SeedEnd { generation, steps } => CopyRequest::SeedEnd { generation, steps },
            RequestHead::Rewind { generation, number, archive, at, reign } => {
                CopyRequest::Rewind { generation, number, archive, at, reign }
            }
            RequestHead::ReadArchive { id, archive, from, bytes_max } => {
                CopyRequest::ReadArchive { id, archive, from, bytes_max: size(bytes_max) }
            }
            RequestHead::Reborn { generation, incarnation } => CopyRequest::Reborn { generation, incarnation },
            RequestHead::DropArchive { generation, archive } => CopyRequest::DropArchive { generation, archive },
            RequestHead::Drill { on_duty, delay_us } => {
                nothing(&tail)?;
                return Ok(ToCopy::Drill { on_duty, delay: Duration::from_micros(delay_us) });
            }
            RequestHead::Serving(serving) => {
                nothing(&tail)?;
                return Ok(ToCopy::Serving(serving));
            }
        };
        nothing(&tail)?;
        Ok(ToCopy::Request(request))
    }
}

/// What a copy says, in parts.
#[must_use]
pub fn encode_says(says: &Says) -> Vec<Bytes> {
    use CopyReply as R;
    let reply = match says {
        Says::Opened { promised } => return encode_head(&ReplyHead::Opened { promised: *promised }),
        Says::Proves { lineage, durable } => return encode_head(&ReplyHead::Proves { lineage: *lineage, durable: *durable }),
        Says::Lost { reason } => return encode_head(&ReplyHead::Lost { reason: reason.clone() }),
        Says::Replied(reply) => reply,
    };
    let head = match reply {
        R::Raised { generation, state } => ReplyHead::Raised { generation: *generation, state: state.clone() },
        R::Refused { promised } => ReplyHead::Refused { promised: *promised },
        R::Gated { generation, at } => ReplyHead::Gated { generation: *generation, at_ns: at.ns },
        R::Appended { generation, end, ingested, low, at } => {
            ReplyHead::Appended { generation: *generation, end: *end, ingested: *ingested, low: *low, at_ns: at.ns }
        }
        R::Misplaced { generation, end, history } => ReplyHead::Misplaced { generation: *generation, end: *end, history: history.clone() },
        R::ControlStored { generation, version } => ReplyHead::ControlStored { generation: *generation, version: *version },
        R::Log { id, .. } => ReplyHead::Log { id: *id },
        R::LogTrimmed { id, first } => ReplyHead::LogTrimmed { id: *id, first: *first },
        R::Pages { id, at, next, .. } => ReplyHead::Pages { id: *id, at: *at, next: *next },
        R::Unreadable { id, reason } => ReplyHead::Unreadable { id: *id, reason: reason.clone() },
        R::Seeded { generation, step } => ReplyHead::Seeded { generation: *generation, step: *step },
        R::SeedLost { generation, reason } => ReplyHead::SeedLost { generation: *generation, reason: reason.clone() },
        R::Checked { id, bytes, next } => ReplyHead::Checked { id: *id, bytes: *bytes, next: *next },
        R::Digested { id, digest } => ReplyHead::Digested { id: *id, digest: *digest },
        R::Damaged { damage } => ReplyHead::Damaged { damage: damage.clone() },
        R::Branched { generation, child } => ReplyHead::Branched { generation: *generation, child: *child },
        R::BranchRefused { generation, child, reason } => {
            ReplyHead::BranchRefused { generation: *generation, child: *child, reason: reason.clone() }
        }
        R::BranchDropped { generation, child } => ReplyHead::BranchDropped { generation: *generation, child: *child },
        R::Failed { reason } => ReplyHead::Failed { reason: reason.clone() },
        R::Rewound { generation, number, state } => ReplyHead::Rewound { generation: *generation, number: *number, state: state.clone() },
        R::RewindRefused { generation, number, reason } => {
            ReplyHead::RewindRefused { generation: *generation, number: *number, reason: reason.clone() }
        }
        R::ArchiveDropped { generation, archive } => ReplyHead::ArchiveDropped { generation: *generation, archive: *archive },
        R::TailKept { generation, number, reason, state } => {
            ReplyHead::TailKept { generation: *generation, number: *number, reason: reason.clone(), state: state.clone() }
        }
    };
    let mut parts = encode_head(&head);
    match reply {
        R::Log { frames, .. } => put_frames(&mut parts, frames),
        R::Pages { pages, .. } => put_pages(&mut parts, pages),
        _ => {}
    }
    parts
}

/// # Errors
/// [`CopyWireError`], for bytes that are not exactly one message.
pub fn decode_says(bytes: &Bytes) -> Result<Says, CopyWireError> {
    let (head, tail) = decode_head::<ReplyHead>(bytes)?;
    let reply = match head {
        ReplyHead::Log { id } => return Ok(Says::Replied(CopyReply::Log { id, frames: frames(tail)? })),
        ReplyHead::Pages { id, at, next } => return Ok(Says::Replied(CopyReply::Pages { id, at, pages: pages(tail)?, next })),
        ReplyHead::Opened { promised } => return nothing(&tail).map(|()| Says::Opened { promised }),
        ReplyHead::Proves { lineage, durable } => return nothing(&tail).map(|()| Says::Proves { lineage, durable }),
        ReplyHead::Lost { reason } => return nothing(&tail).map(|()| Says::Lost { reason }),
        ReplyHead::Raised { generation, state } => CopyReply::Raised { generation, state },
        ReplyHead::Refused { promised } => CopyReply::Refused { promised },
        ReplyHead::Gated { generation, at_ns } => CopyReply::Gated { generation, at: Instant { ns: at_ns } },
        ReplyHead::Appended { generation, end, ingested, low, at_ns } => {
            CopyReply::Appended { generation, end, ingested, low, at: Instant { ns: at_ns } }
        }
        ReplyHead::Misplaced { generation, end, history } => CopyReply::Misplaced { generation, end, history },
        ReplyHead::ControlStored { generation, version } => CopyReply::ControlStored { generation, version },
        ReplyHead::LogTrimmed { id, first } => CopyReply::LogTrimmed { id, first },
        ReplyHead::Unreadable { id, reason } => CopyReply::Unreadable { id, reason },
        ReplyHead::Seeded { generation, step } => CopyReply::Seeded { generation, step },
        ReplyHead::SeedLost { generation, reason } => CopyReply::SeedLost { generation, reason },
        ReplyHead::Checked { id, bytes, next } => CopyReply::Checked { id, bytes, next },
        ReplyHead::Digested { id, digest } => CopyReply::Digested { id, digest },
        ReplyHead::Damaged { damage } => CopyReply::Damaged { damage },
        ReplyHead::Branched { generation, child } => CopyReply::Branched { generation, child },
        ReplyHead::BranchRefused { generation, child, reason } => CopyReply::BranchRefused { generation, child, reason },
        ReplyHead::BranchDropped { generation, child } => CopyReply::BranchDropped { generation, child },
        ReplyHead::Failed { reason } => CopyReply::Failed { reason },
        ReplyHead::Rewound { generation, number, state } => CopyReply::Rewound { generation, number, state },
        ReplyHead::RewindRefused { generation, number, reason } => CopyReply::RewindRefused { generation, number, reason },
        ReplyHead::ArchiveDropped { generation, archive } => CopyReply::ArchiveDropped { generation, archive },
        ReplyHead::TailKept { generation, number, reason, state } => CopyReply::TailKept { generation, number, reason, state },
    };
    nothing(&tail)?;
    Ok(Says::Replied(reply))
}

impl PageQuestion {
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        encode_head(self)
    }

    /// # Errors
    /// [`CopyWireError`]
    pub fn decode(bytes: &Bytes) -> Result<PageQuestion, CopyWireError> {
        let (question, tail) = decode_head(bytes)?;
        nothing(&tail).map(|()| question)
    }
}

#[must_use]
pub fn encode_page(answer: &PageAnswer) -> Vec<Bytes> {
    match answer {
        Ok(page) => {
            let mut parts = encode_head(&PageHead::Page);
            parts.push(page.clone());
            parts
        }
        Err(Miss::Folded { first }) => encode_head(&PageHead::Folded { first: *first }),
        Err(Miss::Now { reason }) => encode_head(&PageHead::None { reason: reason.clone() }),
    }
}

/// # Errors
/// [`CopyWireError`]
pub fn decode_page(bytes: &Bytes) -> Result<PageAnswer, CopyWireError> {
    let (head, tail) = decode_head(bytes)?;
    match head {
        PageHead::Page if tail.len() <= PAGE_BYTES_MAX => Ok(Ok(tail)),
        PageHead::Page => Err(malformed(format!("a page of {} bytes", tail.len()))),
        PageHead::Folded { first } => nothing(&tail).map(|()| Err(Miss::Folded { first })),
        PageHead::None { reason } => nothing(&tail).map(|()| Err(Miss::now(reason))),
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
