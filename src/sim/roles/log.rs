//! The log of one region, as far as roles see it: real frames, durable or not, cut and archived.
//!
//! Stands for the volume: what is durable stays, also when the process dies; what is not may be there afterwards or not. A cut is one
//! atomic step with the frame that replaces what was cut.

use crate::base::{Epoch, Generation, LogEnd, Seq, UnixMicros};
use crate::log::{Flags, Frame, History};

/// What a frame is, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    EpochStart,
    GenerationStart,
    Handover,
    Empty,
    Commit(u64),
}

#[derive(Clone, Debug, Default)]
pub(super) struct RegionLog {
    durable: Vec<Frame>,
    history: History,
    /// Appended, and not yet on four of six.
    volatile: Vec<Frame>,
    /// Grows when what is volatile becomes void.
    pub void_no: u64,
}

impl RegionLog {
    pub fn end(&self) -> LogEnd {
        self.durable.last().map_or(LogEnd::EMPTY, Frame::log_end)
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    pub fn appended(&self) -> LogEnd {
        self.volatile.last().map_or_else(|| self.end(), Frame::log_end)
    }

    pub fn is_settled(&self) -> bool {
        self.volatile.is_empty()
    }

    pub fn append(&mut self, epoch: Epoch, generation: u64, kind: Kind) -> LogEnd {
        let (flags, payload) = match kind {
            Kind::EpochStart => (Flags::CONTROL, vec![1]),
            Kind::GenerationStart => (Flags::CONTROL, vec![2]),
            Kind::Handover => (Flags::CONTROL, vec![3]),
            Kind::Empty => (Flags::CONTROL, vec![4]),
            Kind::Commit(id) => (Flags::USER_COMMIT, [vec![5], id.to_le_bytes().to_vec()].concat()),
        };
        let flags = flags.with(Flags::CONSISTENCY_POINT);
        let frame = Frame::encode(&self.appended(), epoch, Generation(generation), flags, UnixMicros(0), &payload);
        let end = frame.log_end();
        self.volatile.push(frame);
        end
    }

    pub fn receive(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            assert!(frame.follows(&self.appended()), "BUG: the model ships what does not follow");
            self.volatile.push(frame);
        }
    }

    /// Everything up to `seq` is on four of six; returns what became it.
    pub fn settle(&mut self, seq: Seq) -> Vec<Frame> {
        let n = self.volatile.iter().take_while(|f| f.seq() <= seq).count();
        let settled: Vec<Frame> = self.volatile.drain(..n).collect();
        for frame in &settled {
            self.history.note(frame);
            self.durable.push(frame.clone());
        }
        settled
    }

    /// The process ended, or the writer: so many of the volatile frames are there nevertheless.
    pub fn abandon(&mut self, kept: usize) -> Vec<Frame> {
        let end = self.volatile.get(kept.wrapping_sub(1)).map_or(Seq(0), Frame::seq);
        let settled = self.settle(end);
        self.volatile.clear();
        self.void_no += 1;
        settled
    }

    pub fn volatile_len(&self) -> usize {
        self.volatile.len()
    }

    /// Drops everything behind `seq`; returns it.
    pub fn cut(&mut self, seq: Seq) -> Vec<Frame> {
        self.volatile.clear();
        self.void_no += 1;
        let keep = usize::try_from(seq.0).expect("BUG: a model's log fits memory");
        let tail = self.durable.split_off(keep.min(self.durable.len()));
        self.history.cut_from(seq.next());
        tail
    }

    pub fn frames_behind(&self, seq: Seq, up_to: Seq, max: usize) -> Vec<Frame> {
        let from = usize::try_from(seq.0).expect("BUG: a model's log fits memory");
        self.durable.iter().skip(from).take_while(|f| f.seq() <= up_to).take(max).cloned().collect()
    }

    pub fn holds(&self, end: &LogEnd) -> bool {
        end.seq == Seq(0) || usize::try_from(end.seq.0 - 1).ok().and_then(|i| self.durable.get(i)).is_some_and(|f| f.log_end() == *end)
    }

    pub fn commits(&self) -> impl Iterator<Item = u64> {
        self.durable.iter().filter_map(|f| match kind_of(f) {
            Kind::Commit(id) => Some(id),
            _ => None,
        })
    }

    pub fn durable(&self) -> &[Frame] {
        &self.durable
    }
}

pub(super) fn kind_of(frame: &Frame) -> Kind {
    let payload = frame.payload();
    match payload[0] {
        1 => Kind::EpochStart,
        2 => Kind::GenerationStart,
        3 => Kind::Handover,
        4 => Kind::Empty,
        _ => Kind::Commit(u64::from_le_bytes(payload[1..9].try_into().expect("BUG: the model wrote it"))),
    }
}
