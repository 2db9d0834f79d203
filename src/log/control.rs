//! Control frames: what Parhelion itself writes into the log, between the head's frames and ordered with them.

use super::{DecodeError, Flags, Frame};
use crate::base::{Epoch, Generation, LineageId, LogEnd, UnixMicros};

/// The payload of a frame with [`Flags::CONTROL`]. The first byte is the kind; kinds are only ever added, and an unknown
/// one halts the reader (it may change what everything behind it means).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlFrame {
    /// The first frame of a lineage, written once when the global cluster is founded, and first of each later epoch.
    EpochStart { lineage: LineageId },
    /// A new incarnation of the primary's region process took over its copies. Nothing of the older generation's tail counts as
    /// durable before this frame is (design.md section 4.5).
    GenerationStart,
}

const EPOCH_START: u8 = 1;
const GENERATION_START: u8 = 2;

impl ControlFrame {
    #[must_use]
    pub fn encode(&self, prev: &LogEnd, epoch: Epoch, generation: Generation, now: UnixMicros) -> Frame {
        let payload = match self {
            ControlFrame::EpochStart { lineage } => {
                let mut bytes = vec![EPOCH_START];
                bytes.extend_from_slice(&lineage.0.to_le_bytes());
                bytes
            }
            ControlFrame::GenerationStart => vec![GENERATION_START],
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
            _ => Err(DecodeError::Corrupt { reason: "its control kind is unknown; a newer parhelion wrote it" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_frames_survive_the_round_trip_and_unknown_kinds_are_refused() {
        for control in [ControlFrame::EpochStart { lineage: LineageId(7) }, ControlFrame::GenerationStart] {
            let frame = control.encode(&LogEnd::EMPTY, Epoch(1), Generation(1), UnixMicros(0));
            assert_eq!(ControlFrame::decode(&frame).unwrap(), control);
        }
        let odd = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(1), Flags::CONTROL, UnixMicros(0), &[9]);
        assert!(ControlFrame::decode(&odd).is_err());
    }
}
