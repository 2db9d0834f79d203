//! One frame: a fixed header and an opaque payload. Encoded once, by the primary's [`super::Pen`]; the same bytes lie in
//! every copy of every region.
//!
//! ```text
//!  offset  bytes  field             a torn or flipped write here means
//!       0      4  magic "PHL1"      not a frame: end of the log or damage, the copy's marks tell which
//!       4      2  format version    only read when the magic stands; unknown: Unsupported, nothing is skipped
//!       6      2  flags             covered by the checksum, like everything below
//!       8      8  epoch             of the writer that assigned the seq
//!      16      8  generation        of the writer that assigned the seq
//!      24      8  seq
//!      32      4  group             protection group
//!      36      4  payload length    bounded before anything is allocated
//!      40      8  first LSN
//!      48      8  source time       microseconds since 1970 on the writer's clock
//!      56      4  previous checksum the chain: same position and same checksum, same prefix
//!      60      4  checksum          CRC32C of the 60 bytes before it and of the payload
//!      64      -  payload
//! ```
//! All little-endian. A control frame occupies no LSN space: its payload is not counted.
//!
//! In the logs of other protection groups than its own a frame is *elided*: the same 64 bytes under the magic "PHLe", then CRC32C of
//! those 64, and no payload. What follows from a header (position, chain, flags, term) holds there as it does for the whole frame, so
//! every log has every seq. Control frames are never elided. An elided frame never leaves its region.

use crate::base::{Epoch, Generation, GroupId, LogEnd, Lsn, Seq, UnixMicros};
use bytes::{Bytes, BytesMut};

pub const FRAME_HEADER_BYTES: usize = 64;
/// No payload is ever longer, whatever its length field says.
pub const FRAME_PAYLOAD_BYTES_LIMIT: usize = 1 << 20;
const MAGIC: u32 = u32::from_le_bytes(*b"PHL1");
const ELIDED_MAGIC: u32 = u32::from_le_bytes(*b"PHLe");
/// Length of an elided frame.
pub const ELIDED_FRAME_BYTES: usize = FRAME_HEADER_BYTES + 4;
const VERSION: u16 = 1;
const CHECKSUM_AT: usize = 60;

/// What a frame is, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// The last frame of a mini-transaction: the log may end here.
    pub const CONSISTENCY_POINT: Flags = Flags(1);
    /// Written by Parhelion, not by the head; occupies no LSN space. See [`super::ControlFrame`].
    pub const CONTROL: Flags = Flags(2);
    /// Ends a transaction that a user committed (what RPO lag counts).
    pub const USER_COMMIT: Flags = Flags(4);
    const KNOWN: u16 = 7;

    #[must_use]
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// The fixed header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub flags: Flags,
    pub epoch: Epoch,
    pub generation: Generation,
    pub seq: Seq,
    pub group: GroupId,
    pub payload_len: u32,
    pub first_lsn: Lsn,
    pub source_time: UnixMicros,
    pub prev_checksum: u32,
    pub checksum: u32,
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes may be the beginning of a frame; at least `needed_bytes` must be there to tell.
    #[error("a frame is incomplete: {needed_bytes} bytes are needed")]
    Incomplete { needed_bytes: usize },
    #[error("a frame is corrupt: {reason}")]
    Corrupt { reason: &'static str },
    #[error("a frame has format version {version}; this parhelion reads version {VERSION}. Upgrade this region first")]
    Unsupported { version: u16 },
}

/// A whole, checked frame: the header, and the bytes that were and will be stored and sent. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    header: Header,
    bytes: Bytes,
}

impl Frame {
    /// Encodes a frame of group 0 that follows `prev`. See [`Frame::encode_in`].
    #[must_use]
    pub fn encode(prev: &LogEnd, epoch: Epoch, generation: Generation, flags: Flags, source_time: UnixMicros, payload: &[u8]) -> Frame {
        Frame::encode_in(GroupId(0), prev, epoch, generation, flags, source_time, payload)
    }

    /// Encodes a frame of `group` that follows `prev`.
    ///
    /// # Panics
    /// When the payload is longer than [`FRAME_PAYLOAD_BYTES_LIMIT`]: the head splits before.
    #[must_use]
    pub fn encode_in(
        group: GroupId,
        prev: &LogEnd,
        epoch: Epoch,
        generation: Generation,
        flags: Flags,
        source_time: UnixMicros,
        payload: &[u8],
    ) -> Frame {
        assert!(payload.len() <= FRAME_PAYLOAD_BYTES_LIMIT, "BUG: a payload of {} bytes must be split before it is framed", payload.len());
        let mut header = Header {
            flags,
            epoch,
            generation,
            seq: prev.seq.next(),
            group,
            payload_len: u32::try_from(payload.len()).expect("BUG: the limit is below 4 GiB"),
            first_lsn: prev.end_lsn,
            source_time,
            prev_checksum: prev.checksum,
            checksum: 0,
        };
        let mut bytes = BytesMut::with_capacity(FRAME_HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&header.flags.0.to_le_bytes());
        bytes.extend_from_slice(&header.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&header.generation.0.to_le_bytes());
        bytes.extend_from_slice(&header.seq.0.to_le_bytes());
        bytes.extend_from_slice(&header.group.0.to_le_bytes());
        bytes.extend_from_slice(&header.payload_len.to_le_bytes());
        bytes.extend_from_slice(&header.first_lsn.0.to_le_bytes());
        bytes.extend_from_slice(&header.source_time.0.to_le_bytes());
        bytes.extend_from_slice(&header.prev_checksum.to_le_bytes());
        header.checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
        bytes.extend_from_slice(&header.checksum.to_le_bytes());
        bytes.extend_from_slice(payload);
        Frame { header, bytes: bytes.freeze() }
    }

    /// Decodes the frame at the beginning of `bytes`, sharing them. Reads nothing past the frame, allocates nothing.
    ///
    /// # Errors
    /// [`DecodeError`]: incomplete, corrupt and unsupported are told apart.
    pub fn decode(bytes: &Bytes) -> Result<Frame, DecodeError> {
        if bytes.starts_with(&ELIDED_MAGIC.to_le_bytes()) {
            return Frame::decode_elided(bytes);
        }
        let header = Header::decode(bytes)?;
        let len = header.frame_len();
        if bytes.len() < len {
            return Err(DecodeError::Incomplete { needed_bytes: len });
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..CHECKSUM_AT]), &bytes[FRAME_HEADER_BYTES..len]);
        if sum != header.checksum {
            return Err(DecodeError::Corrupt { reason: "the checksum does not match" });
        }
        Ok(Frame { header, bytes: bytes.slice(..len) })
    }

    fn decode_elided(bytes: &Bytes) -> Result<Frame, DecodeError> {
        let Some(head) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(DecodeError::Incomplete { needed_bytes: ELIDED_FRAME_BYTES });
        };
        let header = Header::decode_fields(head)?;
        let Some(sum) = bytes.get(FRAME_HEADER_BYTES..ELIDED_FRAME_BYTES) else {
            return Err(DecodeError::Incomplete { needed_bytes: ELIDED_FRAME_BYTES });
        };
        if sum != crc32c::crc32c(head).to_le_bytes() {
            return Err(DecodeError::Corrupt { reason: "the checksum does not match" });
        }
        if header.flags.has(Flags::CONTROL) {
            return Err(DecodeError::Corrupt { reason: "a control frame is never elided" });
        }
        Ok(Frame { header, bytes: bytes.slice(..ELIDED_FRAME_BYTES) })
    }

    /// The frame as it lies in the logs of `group`: whole where it belongs or is a control frame, elided elsewhere. What is elided
    /// already stays so.
    #[must_use]
    pub fn for_group(&self, group: GroupId) -> Frame {
        if self.header.group == group { self.clone() } else { self.elided() }
    }

    /// The frame as it lies in the logs of other groups.
    #[must_use]
    pub fn elided(&self) -> Frame {
        if self.is_control() || self.is_elided() {
            return self.clone();
        }
        let mut bytes = BytesMut::with_capacity(ELIDED_FRAME_BYTES);
        bytes.extend_from_slice(&ELIDED_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&self.bytes[4..FRAME_HEADER_BYTES]);
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        Frame { header: self.header, bytes: bytes.freeze() }
    }

    /// Without its payload: it belongs to another group than the log it was read from.
    #[must_use]
    pub fn is_elided(&self) -> bool {
        self.bytes.starts_with(&ELIDED_MAGIC.to_le_bytes())
    }

    /// As [`Frame::decode`], whatever the version field says: to tell a frame of today's format whose version was flipped from one
    /// that a newer parhelion wrote.
    ///
    /// # Errors
    /// [`DecodeError`]
    pub fn decode_as_today(bytes: &Bytes) -> Result<Frame, DecodeError> {
        let mut bytes = bytes.to_vec();
        if let Some(version) = bytes.get_mut(4..6) {
            version.copy_from_slice(&VERSION.to_le_bytes());
        }
        Frame::decode(&Bytes::from(bytes))
    }

    /// Whether it lies in the log of `group` in the form that belongs there.
    #[must_use]
    pub fn fits(&self, group: GroupId) -> bool {
        self.is_control() || (self.header.group == group) != self.is_elided()
    }

    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Header, checksum and payload: what lies in every copy of its group.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The payload, sharing the frame's bytes.
    ///
    /// # Panics
    /// When the frame is elided: its payload lies in the copies of another group.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        assert!(!self.is_elided(), "BUG: the payload of an elided frame was asked for");
        self.bytes.slice(FRAME_HEADER_BYTES..)
    }

    #[must_use]
    pub fn seq(&self) -> Seq {
        self.header.seq
    }

    /// End of this frame's payload in the LSN space, exclusive.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.header.end_lsn()
    }

    #[must_use]
    pub fn is_consistency_point(&self) -> bool {
        self.header.flags.has(Flags::CONSISTENCY_POINT)
    }

    #[must_use]
    pub fn is_control(&self) -> bool {
        self.header.flags.has(Flags::CONTROL)
    }

    /// The log's end after this frame.
    #[must_use]
    pub fn log_end(&self) -> LogEnd {
        let h = &self.header;
        LogEnd { epoch: h.epoch, generation: h.generation, seq: h.seq, end_lsn: self.end_lsn(), checksum: h.checksum }
    }

    /// Whether this frame may stand directly behind `prev`: next seq, matching chain, LSN without gap, never an older writer.
    #[must_use]
    pub fn follows(&self, prev: &LogEnd) -> bool {
        let h = &self.header;
        h.seq == prev.seq.next()
            && h.prev_checksum == prev.checksum
            && h.first_lsn == prev.end_lsn
            && (h.epoch, h.generation) >= (prev.epoch, prev.generation)
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let elided = if self.is_elided() { ", elided" } else { "" };
        write!(f, "Frame({} {:?} {} bytes{elided})", self.log_end(), self.header.flags, self.header.payload_len)
    }
}

impl Header {
    /// Decodes and bounds the header at the beginning of `bytes`. The checksum is not verified here.
    ///
    /// # Errors
    /// As [`Frame::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Header, DecodeError> {
        if bytes.len() >= 4 && bytes[..4] != MAGIC.to_le_bytes() {
            return Err(DecodeError::Corrupt { reason: "it does not begin with the magic" });
        }
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(DecodeError::Incomplete { needed_bytes: FRAME_HEADER_BYTES });
        }
        Header::decode_fields(bytes.first_chunk().expect("BUG: the length was just seen"))
    }

    /// All but the magic.
    fn decode_fields(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Header, DecodeError> {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("BUG: two bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("BUG: four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("BUG: eight bytes"));
        if u16_at(4) != VERSION {
            return Err(DecodeError::Unsupported { version: u16_at(4) });
        }
        let header = Header {
            flags: Flags(u16_at(6)),
            epoch: Epoch(u64_at(8)),
            generation: Generation(u64_at(16)),
            seq: Seq(u64_at(24)),
            group: GroupId(u32_at(32)),
            payload_len: u32_at(36),
            first_lsn: Lsn(u64_at(40)),
            source_time: UnixMicros(u64_at(48)),
            prev_checksum: u32_at(56),
            checksum: u32_at(CHECKSUM_AT),
        };
        if header.flags.0 & !Flags::KNOWN != 0 {
            return Err(DecodeError::Corrupt { reason: "it has unknown flags" });
        }
        if header.payload_len as usize > FRAME_PAYLOAD_BYTES_LIMIT {
            return Err(DecodeError::Corrupt { reason: "its length is beyond the limit" });
        }
        if header.first_lsn.0.checked_add(u64::from(header.payload_len)).is_none() || header.seq == Seq(u64::MAX) {
            return Err(DecodeError::Corrupt { reason: "its position wraps around" });
        }
        Ok(header)
    }

    /// Header and payload together, in bytes.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload_len as usize
    }

    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        if self.flags.has(Flags::CONTROL) { self.first_lsn } else { self.first_lsn.plus(u64::from(self.payload_len)) }
    }
}

/// Cuts `bytes` into whole frames, all of them or none.
///
/// # Errors
/// When the bytes are anything but a row of whole, valid frames.
pub fn split_frames(mut bytes: Bytes) -> Result<Vec<Frame>, DecodeError> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let frame = Frame::decode(&bytes)?;
        bytes = bytes.slice(frame.bytes().len()..);
        frames.push(frame);
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(payload: &[u8]) -> Frame {
        let prev = LogEnd { epoch: Epoch(2), generation: Generation(3), seq: Seq(41), end_lsn: Lsn(1000), checksum: 77 };
        Frame::encode(&prev, Epoch(2), Generation(3), Flags::CONSISTENCY_POINT, UnixMicros(5), payload)
    }

    #[test]
    fn a_frame_survives_the_round_trip_and_follows_its_predecessor() {
        let frame = sample(b"hello");
        let back = Frame::decode(frame.bytes()).unwrap();
        assert_eq!(back, frame);
        assert_eq!(back.end_lsn(), Lsn(1005));
        assert!(sample(b"x").header().seq == Seq(42));
        let next = Frame::encode(&frame.log_end(), Epoch(2), Generation(3), Flags::default(), UnixMicros(6), b"y");
        assert!(next.follows(&frame.log_end()));
        assert!(!next.follows(&sample(b"other").log_end()), "same position, other checksum: another history");
    }

    #[test]
    fn a_control_frame_takes_no_lsn_space() {
        let f = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(1), Flags::CONTROL, UnixMicros(0), &[1, 2, 3]);
        assert_eq!(f.end_lsn(), Lsn(0));
    }

    #[test]
    fn an_elided_frame_keeps_its_place_and_its_chain() {
        let prev = sample(b"before").log_end();
        let whole = Frame::encode_in(GroupId(2), &prev, Epoch(2), Generation(3), Flags::CONSISTENCY_POINT, UnixMicros(5), b"hello");
        let elided = whole.for_group(GroupId(1));
        assert!(elided.is_elided() && !whole.is_elided());
        assert_eq!((elided.header(), elided.log_end()), (whole.header(), whole.log_end()));
        assert!(elided.follows(&prev) && elided.is_consistency_point());
        assert_eq!(elided.bytes().len(), ELIDED_FRAME_BYTES);
        assert_eq!(Frame::decode(elided.bytes()).unwrap(), elided);
        assert_eq!(elided.for_group(GroupId(2)), elided, "the payload does not come back");
        assert_eq!(whole.for_group(GroupId(2)), whole);
        for (frame, group, fits) in [(&whole, 2, true), (&whole, 1, false), (&elided, 1, true), (&elided, 2, false)] {
            assert_eq!(frame.fits(GroupId(group)), fits, "{frame:?} in group {group}");
        }
        let control = Frame::encode(&prev, Epoch(2), Generation(3), Flags::CONTROL, UnixMicros(5), &[2]);
        assert!(!control.for_group(GroupId(1)).is_elided() && control.fits(GroupId(1)));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_an_elided_frame_is_found(at in 0usize..ELIDED_FRAME_BYTES, bit in 0u8..8) {
            let elided = sample(b"hello").for_group(GroupId(1));
            let mut bytes = elided.bytes().to_vec();
            bytes[at] ^= 1 << bit;
            prop_assert!(Frame::decode(&Bytes::from(bytes)).is_err());
            let is_incomplete = matches!(Frame::decode(&elided.bytes().slice(..at)), Err(DecodeError::Incomplete { .. }));
            prop_assert!(is_incomplete);
        }

        #[test]
        fn any_flipped_bit_is_found(at in 0usize..69, bit in 0u8..8) {
            let frame = sample(b"hello");
            let mut bytes = frame.bytes().to_vec();
            bytes[at] ^= 1 << bit;
            let got = Frame::decode(&Bytes::from(bytes));
            prop_assert!(got.is_err(), "{got:?}");
        }

        #[test]
        fn no_input_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic in 0usize..3) {
            let mut bytes = bytes;
            if magic < 2 && bytes.len() >= 6 {
                bytes[..4].copy_from_slice(&[MAGIC, ELIDED_MAGIC][magic].to_le_bytes());
                bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
            }
            let _ = Frame::decode(&Bytes::from(bytes.clone()));
            let _ = split_frames(Bytes::from(bytes));
        }

        #[test]
        fn a_cut_frame_is_incomplete_not_corrupt(cut in 0usize..69) {
            let frame = sample(b"hello");
            let got = Frame::decode(&frame.bytes().slice(..cut));
            let is_incomplete = matches!(got, Err(DecodeError::Incomplete { .. }));
            prop_assert!(is_incomplete);
        }
    }
}
