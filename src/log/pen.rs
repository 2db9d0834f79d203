//! The pen: whoever holds it writes the log. It assigns seq and LSN and encodes each frame, once.
//!
//! There is one pen per reign and generation. The node makes it when recovery is over and hands it to the head, so that the
//! writer thread knows a commit's LSN without asking anybody; the node checks that what comes back follows without a gap.

use super::{Flags, Frame};
use crate::base::{Epoch, Generation, GroupId, LogEnd, UnixMicros};

#[derive(Debug)]
pub struct Pen {
    epoch: Epoch,
    generation: Generation,
    end: LogEnd,
    payload_bytes_max: usize,
}

impl Pen {
    #[must_use]
    pub fn new(epoch: Epoch, generation: Generation, end: LogEnd, payload_bytes_max: usize) -> Pen {
        Pen { epoch, generation, end, payload_bytes_max }
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where the next frame will begin.
    #[must_use]
    pub fn end(&self) -> &LogEnd {
        &self.end
    }

    /// Largest payload that one frame of this pen takes.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        self.payload_bytes_max
    }

    /// One mini-transaction of group 0. See [`Pen::write_groups`].
    ///
    /// # Panics
    /// As that.
    pub fn write(&mut self, payloads: &[Vec<u8>], user_commit: bool, now: UnixMicros) -> Vec<Frame> {
        self.write_all(payloads.iter().map(|p| (GroupId(0), p)), user_commit, now)
    }

    /// One mini-transaction: every payload a frame of its group, the last one a consistency point. It is atomic over all groups, because
    /// nothing of it is durable before all of it is.
    ///
    /// # Panics
    /// When `payloads` is empty or one of them is longer than [`Pen::payload_bytes_max`].
    pub fn write_groups(&mut self, payloads: &[(GroupId, Vec<u8>)], user_commit: bool, now: UnixMicros) -> Vec<Frame> {
        self.write_all(payloads.iter().map(|(group, payload)| (*group, payload)), user_commit, now)
    }

    fn write_all<'a>(
        &mut self,
        payloads: impl ExactSizeIterator<Item = (GroupId, &'a Vec<u8>)>,
        user_commit: bool,
        now: UnixMicros,
    ) -> Vec<Frame> {
        let count = payloads.len();
        assert!(count > 0, "BUG: a mini-transaction without a frame");
        let mut frames = Vec::with_capacity(count);
        for (i, (group, payload)) in payloads.enumerate() {
            assert!(payload.len() <= self.payload_bytes_max, "BUG: the head splits payloads at {} bytes", self.payload_bytes_max);
            let mut flags = Flags::default();
            if i + 1 == count {
                flags = Flags::CONSISTENCY_POINT;
                if user_commit {
                    flags = flags.with(Flags::USER_COMMIT);
                }
            }
            let frame = Frame::encode_in(group, &self.end, self.epoch, self.generation, flags, now, payload);
            self.end = frame.log_end();
            frames.push(frame);
        }
        frames
    }
}
