//! Control frames: what Parhelion itself writes into the log, between the head's frames and ordered with them.

use super::{DecodeError, Flags, Frame};
use crate::base::{Epoch, Generation, LineageId, LogEnd, RegionName, UnixMicros};

/// The payload of a frame with [`Flags::CONTROL`]. The first byte is the kind; kinds are only ever added, and an unknown
/// one halts the reader (it may change what everything behind it means).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlFrame {
    /// The first frame of a lineage, written once when the global cluster is founded.
    EpochStart { lineage: LineageId },
    /// A new incarnation of the primary's region process took over its copies. Nothing of the older generation's tail counts as
    /// durable before this frame is (design.md section 4.5).
    GenerationStart,
    /// The first frame of every later epoch: another reign begins behind the frame before this one (protocol.md rule 12).
    Reign(Reign),
    /// The last thing that the primary of `epoch` wrote before it sealed its reign: whoever has this frame has all of it (rule 17).
    Handover { epoch: Epoch, to: RegionName, op: u128 },
}

/// What the first frame of a later epoch says. Its own epoch, and its base's seq, LSN and checksum, stand in the frame's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reign {
    pub lineage: LineageId,
    /// The epoch on whose path the base lies: the highest that the voters who elected this one had in their chains.
    pub prev: Epoch,
    /// The log goes on behind this consistency point; what any other log has behind it is no part of the history.
    pub base: LogEnd,
    /// Who reigns.
    pub region: RegionName,
    /// The operation that brought it about.
    pub op: u128,
    /// Version of the configuration (the voters) under which it was elected.
    pub config: u64,
}

const EPOCH_START: u8 = 1;
const GENERATION_START: u8 = 2;
const REIGN: u8 = 3;
const HANDOVER: u8 = 4;
/// A reign's payload without its region's name: kind, lineage, previous epoch, epoch and generation of the base, operation, configuration.
const REIGN_BYTES: usize = 1 + 16 + 8 + 8 + 8 + 16 + 8;
/// A handover's without the name: kind, epoch, operation.
const HANDOVER_BYTES: usize = 1 + 8 + 16;

impl ControlFrame {
    /// # Panics
    /// When it is a reign over another base than `prev`.
    #[must_use]
    pub fn encode(&self, prev: &LogEnd, epoch: Epoch, generation: Generation, now: UnixMicros) -> Frame {
        let payload = match self {
            ControlFrame::EpochStart { lineage } => {
                let mut bytes = vec![EPOCH_START];
                bytes.extend_from_slice(&lineage.0.to_le_bytes());
                bytes
            }
            ControlFrame::GenerationStart => vec![GENERATION_START],
            ControlFrame::Reign(reign) => {
                assert!(reign.base == *prev && reign.prev < epoch, "BUG: a reign over {} behind {prev}", reign.base);
                let mut bytes = Vec::with_capacity(REIGN_BYTES + 32);
                bytes.push(REIGN);
                bytes.extend_from_slice(&reign.lineage.0.to_le_bytes());
                bytes.extend_from_slice(&reign.prev.0.to_le_bytes());
                bytes.extend_from_slice(&reign.base.epoch.0.to_le_bytes());
                bytes.extend_from_slice(&reign.base.generation.0.to_le_bytes());
                bytes.extend_from_slice(&reign.op.to_le_bytes());
                bytes.extend_from_slice(&reign.config.to_le_bytes());
                bytes.extend_from_slice(reign.region.as_str().as_bytes());
                bytes
            }
            ControlFrame::Handover { epoch: of, to, op } => {
                let mut bytes = Vec::with_capacity(HANDOVER_BYTES + 32);
                bytes.push(HANDOVER);
                bytes.extend_from_slice(&of.0.to_le_bytes());
                bytes.extend_from_slice(&op.to_le_bytes());
                bytes.extend_from_slice(to.as_str().as_bytes());
                bytes
            }
        };
        Frame::encode(prev, epoch, generation, Flags::CONTROL.with(Flags::CONSISTENCY_POINT), now, &payload)
    }

    /// # Errors
    /// When the frame is no control frame, or of a kind that this version does not know.
    pub fn decode(frame: &Frame) -> Result<ControlFrame, DecodeError> {
        if !frame.is_control() {
            return Err(DecodeError::Corrupt { reason: "it is not a control frame" });
        }
        let payload = frame.payload();
        match payload.split_first() {
            Some((&EPOCH_START, rest)) => match <[u8; 16]>::try_from(rest) {
                Ok(bytes) => Ok(ControlFrame::EpochStart { lineage: LineageId(u128::from_le_bytes(bytes)) }),
                Err(_) => Err(DecodeError::Corrupt { reason: "an epoch start has a wrong length" }),
            },
            Some((&GENERATION_START, [])) => Ok(ControlFrame::GenerationStart),
            Some((&REIGN, rest)) => Ok(ControlFrame::Reign(decode_reign(frame, rest)?)),
            Some((&HANDOVER, rest)) => {
                let (epoch, rest) = take::<8>(rest)?;
                let (op, rest) = take::<16>(rest)?;
                Ok(ControlFrame::Handover { epoch: Epoch(u64::from_le_bytes(epoch)), to: name(rest)?, op: u128::from_le_bytes(op) })
            }
            _ => Err(DecodeError::Corrupt { reason: "its control kind is unknown; a newer parhelion wrote it" }),
        }
    }

    /// The lineage, of a frame that a log may begin with.
    #[must_use]
    pub fn founding(frame: &Frame) -> Option<LineageId> {
        match ControlFrame::decode(frame) {
            Ok(ControlFrame::EpochStart { lineage }) => Some(lineage),
            _ => None,
        }
    }
}

fn decode_reign(frame: &Frame, rest: &[u8]) -> Result<Reign, DecodeError> {
    let (lineage, rest) = take::<16>(rest)?;
    let (prev, rest) = take::<8>(rest)?;
    let (epoch, rest) = take::<8>(rest)?;
    let (generation, rest) = take::<8>(rest)?;
    let (op, rest) = take::<16>(rest)?;
    let (config, rest) = take::<8>(rest)?;
    let h = frame.header();
    let seq = h.seq.0.checked_sub(1).ok_or(DecodeError::Corrupt { reason: "a reign begins before the first frame" })?;
    let prev = Epoch(u64::from_le_bytes(prev));
    if prev >= h.epoch {
        return Err(DecodeError::Corrupt { reason: "a reign follows a later one" });
    }
    Ok(Reign {
        lineage: LineageId(u128::from_le_bytes(lineage)),
        prev,
        base: LogEnd {
            epoch: Epoch(u64::from_le_bytes(epoch)),
            generation: Generation(u64::from_le_bytes(generation)),
            seq: crate::base::Seq(seq),
            end_lsn: h.first_lsn,
            checksum: h.prev_checksum,
        },
        region: name(rest)?,
        op: u128::from_le_bytes(op),
        config: u64::from_le_bytes(config),
    })
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), DecodeError> {
    match bytes.split_first_chunk::<N>() {
        Some((head, rest)) => Ok((*head, rest)),
        None => Err(DecodeError::Corrupt { reason: "a control frame is cut off" }),
    }
}

fn name(bytes: &[u8]) -> Result<RegionName, DecodeError> {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| RegionName::new(text).ok());
    text.ok_or(DecodeError::Corrupt { reason: "a control frame names a region that cannot be" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Lsn, Seq};
    use proptest::prelude::*;

    fn behind() -> LogEnd {
        LogEnd { epoch: Epoch(1), generation: Generation(9), seq: Seq(40), end_lsn: Lsn(1000), checksum: 77 }
    }

    fn reign(base: LogEnd) -> ControlFrame {
        let region = RegionName::new("eu-west").unwrap();
        ControlFrame::Reign(Reign { lineage: LineageId(7), prev: Epoch(1), base, region, op: 5 << 70, config: 3 })
    }

    #[test]
    fn control_frames_survive_the_round_trip_and_unknown_kinds_are_refused() {
        let handover = ControlFrame::Handover { epoch: Epoch(2), to: RegionName::new("eu-west").unwrap(), op: u128::MAX };
        for control in [ControlFrame::EpochStart { lineage: LineageId(7) }, ControlFrame::GenerationStart, reign(behind()), handover] {
            let frame = control.encode(&behind(), Epoch(2), Generation(1), UnixMicros(0));
            assert_eq!(ControlFrame::decode(&frame).unwrap(), control);
            assert!(frame.is_consistency_point() && frame.end_lsn() == behind().end_lsn);
        }
        let odd = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(1), Flags::CONTROL, UnixMicros(0), &[9]);
        assert!(ControlFrame::decode(&odd).is_err());
    }

    #[test]
    fn a_reign_that_follows_itself_is_refused() {
        let good = reign(behind()).encode(&behind(), Epoch(2), Generation(1), UnixMicros(0));
        let same_epoch = Frame::encode(&behind(), Epoch(1), Generation(9), Flags::CONTROL, UnixMicros(0), &good.payload());
        assert!(ControlFrame::decode(&same_epoch).is_err());
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(kind in 0u8..6, rest in proptest::collection::vec(any::<u8>(), 0..110)) {
            let payload = [vec![kind], rest].concat();
            let frame = Frame::encode(&LogEnd::EMPTY, Epoch(2), Generation(1), Flags::CONTROL, UnixMicros(0), &payload);
            if let Ok(control) = ControlFrame::decode(&frame) {
                let base = match &control { ControlFrame::Reign(r) => r.base, _ => LogEnd::EMPTY };
                prop_assert_eq!(&control.encode(&base, Epoch(2), Generation(1), UnixMicros(0)).payload()[..], &payload[..]);
            }
        }
    }
}
