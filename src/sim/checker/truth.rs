//! The ground truth: all frames that were ever written, and which of them make up the primary's history.
//!
//! Frames are stored by (seq, checksum), so histories that a recovery cut stay known; the chain of checksums says which one a
//! new generation goes on with. `committed` is the highest VDL that a primary announced: nothing at or below it may ever go.

use super::Checked;
use crate::base::{Epoch, Generation, LogEnd, Lsn, PageNo, Seq};
use crate::control::FailoverRecord;
use crate::log::{ControlFrame, Frame};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// One change of a page as the workload made it, kept apart from the bytes of the redo record.
#[derive(Clone, Debug)]
pub(in crate::sim) enum Op {
    Image { page: u32, bytes: Vec<u8> },
    Delta { page: u32, at: usize, bytes: Vec<u8> },
}

#[derive(Clone, Default)]
pub(in crate::sim) struct Truth {
    frames: BTreeMap<(u64, u32), Frame>,
    /// S3: one checksum for each (epoch, generation, seq), wherever it is seen.
    written: BTreeMap<(Epoch, Generation, Seq), u32>,
    ops: BTreeMap<(u64, u32), Vec<Op>>,
    /// Position i: the end of the frame with seq i + 1 of the primary's history.
    chain: Vec<LogEnd>,
    pages: BTreeMap<u32, Vec<(Lsn, Vec<u8>)>>,
    committed: LogEnd,
    /// The last commit that a client was told of.
    told: LogEnd,
    /// Who began each epoch, by its first frame.
    reigns: BTreeMap<Epoch, usize>,
    /// The epoch whose writer has the pen.
    epoch: Epoch,
    /// What was committed on lines of history that later reigns left: their ends.
    left: Vec<LogEnd>,
    failovers: BTreeMap<Epoch, FailoverRecord>,
    /// Of a failover that an operator agreed to.
    pub(in crate::sim) frames_lost: u64,
    pub(in crate::sim) acknowledged: u64,
}

impl Truth {
    /// The region that has the pen, or had it last.
    pub(in crate::sim) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(in crate::sim) fn writer_of(&self, epoch: Epoch) -> Option<usize> {
        self.reigns.get(&epoch).copied()
    }

    /// S1: the first frame of an epoch goes to a copy of region `r`.
    pub(in crate::sim) fn note_reign(&mut self, frame: &Frame, r: usize) -> Checked {
        // In the copies of another group its payload is missing; but whoever begins an epoch is the first to store a frame of it.
        if let Entry::Vacant(first) = self.reigns.entry(frame.header().epoch) {
            first.insert(r);
            return Ok(());
        }
        if !frame.is_control() {
            return Ok(());
        }
        if let Some(writer) = self.writer_of(frame.header().epoch) {
            // Its last word in its epoch, which no pen wrote.
            let handover = matches!(ControlFrame::decode(frame), Ok(ControlFrame::Handover { .. }));
            return if handover && writer == r && frame.header().epoch == self.epoch { self.go_on_with(&frame.log_end()) } else { Ok(()) };
        }
        Ok(())
    }

    /// What the reign of `epoch` loses, by a failover that it is or that lies on its path.
    pub(in crate::sim) fn failover(&mut self, epoch: Epoch, record: &FailoverRecord) {
        self.failovers.insert(epoch, record.clone());
    }

    pub(in crate::sim) fn acknowledge(&mut self, end: &LogEnd) {
        if end.seq > self.told.seq {
            self.told = *end;
        }
    }

    /// A majority granted the reign of `epoch`, which goes on as the log that ends at `end`. S5, S6: what was acknowledged is in it, or an
    /// operator agreed to lose it and the record says what. Returns how many frames were lost.
    pub(in crate::sim) fn open(&mut self, epoch: Epoch, end: &LogEnd) -> Checked<u64> {
        self.epoch = epoch;
        if self.reaches(end, &self.committed) {
            return Ok(0);
        }
        let (told, committed) = (self.told, self.committed);
        let record = self.failovers.get(&epoch);
        let base = record.map(|f| f.loss.base);
        if !self.reaches(end, &told) {
            let Some(record) = record.filter(|f| f.consent.allow_data_loss) else {
                return Err(format!(
                    "S5, durability: epoch {epoch} goes on with {end}, commits up to {told} were acknowledged, and nobody agreed to lose them"
                ));
            };
            if record.loss.base.seq >= told.seq {
                return Err(format!("S7: the failover into epoch {epoch} says that it keeps up to {}, and loses {told}", record.loss.base));
            }
        }
        self.left.push(committed);
        let kept = base.unwrap_or(LogEnd::EMPTY);
        self.committed = kept;
        if told.seq > kept.seq {
            self.frames_lost += told.seq.0 - kept.seq.0;
            self.told = kept;
            return Ok(told.seq.0 - kept.seq.0);
        }
        Ok(0)
    }

    /// Whether a log that ends so was committed once, also on a line that was left.
    pub(in crate::sim) fn was_committed(&self, end: &LogEnd) -> bool {
        self.left.iter().any(|left| end.seq <= left.seq && self.reaches(left, end))
    }

    /// The last frame at or before `end` that takes LSN space: what pages are made of ends there.
    pub(in crate::sim) fn behind_control_frames(&self, end: &LogEnd) -> LogEnd {
        let mut at = *end;
        while let Some(frame) = self.frame(&at).filter(|f| f.is_control()) {
            let before = (Seq(at.seq.0 - 1), frame.header().prev_checksum);
            let Some(end) = self.end_of(before) else { break };
            at = end;
        }
        at
    }

    /// S3, log matching: a frame seen anywhere.
    pub(in crate::sim) fn observe(&mut self, frame: &Frame) -> Checked {
        let h = frame.header();
        let known = *self.written.entry((h.epoch, h.generation, h.seq)).or_insert(h.checksum);
        if known != h.checksum {
            return Err(format!(
                "S3, log matching: two frames are {}; their checksums are {known:08x} and {:08x}",
                frame.log_end(),
                h.checksum
            ));
        }
        self.frames.entry((h.seq.0, h.checksum)).or_insert_with(|| frame.clone());
        Ok(())
    }

    /// The primary's pen wrote this.
    pub(in crate::sim) fn write(&mut self, frame: &Frame, ops: Vec<Op>) -> Checked {
        self.observe(frame)?;
        let end = frame.log_end();
        self.ops.insert((end.seq.0, end.checksum), ops);
        self.go_on_with(&end)
    }

    /// The primary's history ends with `end` now. What it had beyond their common part was cut by a recovery.
    pub(in crate::sim) fn go_on_with(&mut self, end: &LogEnd) -> Checked {
        let mut new = Vec::new();
        let mut at = (end.seq.0, end.checksum);
        while at.0 > 0 && self.at(Seq(at.0)).is_none_or(|e| e.checksum != at.1) {
            let frame = self
                .frames
                .get(&at)
                .ok_or_else(|| format!("the primary goes on behind seq {} with checksum {:08x}, which nobody wrote", at.0, at.1))?;
            new.push(frame.log_end());
            at = (at.0 - 1, frame.header().prev_checksum);
        }
        if at.0 < self.committed.seq.0 {
            return Err(format!(
                "durability: commits up to {} were acknowledged, and the primary went on with {end}, which has only the first {} frames of them",
                self.committed, at.0
            ));
        }
        let keep = usize::try_from(at.0).expect("BUG: the chain is in memory");
        if keep < self.chain.len() {
            self.chain.truncate(keep);
            let upto = self.chain.last().map_or(Lsn(0), |e| e.end_lsn);
            for versions in self.pages.values_mut() {
                while versions.last().is_some_and(|(at, _)| *at > upto) {
                    versions.pop();
                }
            }
        }
        for end in new.into_iter().rev() {
            self.chain.push(end);
            for op in self.ops.get(&(end.seq.0, end.checksum)).into_iter().flatten() {
                let page = match op {
                    Op::Image { page, .. } | Op::Delta { page, .. } => *page,
                };
                let versions = self.pages.entry(page).or_default();
                let mut bytes = versions.last().map_or_else(Vec::new, |(_, b)| b.clone());
                let (at, new) = match op {
                    Op::Image { bytes: image, .. } => {
                        bytes.fill(0);
                        (0, image)
                    }
                    Op::Delta { at, bytes, .. } => (*at, bytes),
                };
                if bytes.len() < at + new.len() {
                    bytes.resize(at + new.len(), 0);
                }
                bytes[at..at + new.len()].copy_from_slice(new);
                if versions.last().is_some_and(|(at, _)| *at == end.end_lsn) {
                    versions.pop();
                }
                versions.push((end.end_lsn, bytes));
            }
        }
        Ok(())
    }

    pub(in crate::sim) fn at(&self, seq: Seq) -> Option<&LogEnd> {
        self.chain.get(usize::try_from(seq.0).ok()?.checked_sub(1)?)
    }

    /// Whether a log that ends so is a prefix of the primary's history.
    pub(in crate::sim) fn has(&self, end: &LogEnd) -> bool {
        *end == LogEnd::EMPTY || self.at(end.seq) == Some(end)
    }

    /// Whether a log that ends with `claim` holds everything up to `end`, whoever's log it is.
    pub(in crate::sim) fn reaches(&self, claim: &LogEnd, end: &LogEnd) -> bool {
        let mut at = (claim.seq.0, claim.checksum);
        while at.0 > end.seq.0 {
            let Some(frame) = self.frames.get(&at) else { return false };
            at = (at.0 - 1, frame.header().prev_checksum);
        }
        at == (end.seq.0, end.checksum)
    }

    pub(in crate::sim) fn frame(&self, end: &LogEnd) -> Option<&Frame> {
        self.frames.get(&(end.seq.0, end.checksum))
    }

    /// The log's end with the frame of that seq and checksum.
    pub(in crate::sim) fn end_of(&self, frame: (Seq, u32)) -> Option<LogEnd> {
        self.frames.get(&(frame.0.0, frame.1)).map(Frame::log_end)
    }

    pub(in crate::sim) fn committed(&self) -> &LogEnd {
        &self.committed
    }

    /// Behind `vdl` nothing was committed but frames that change no page and that nobody was told of: they may go. Whether that was so.
    pub(in crate::sim) fn goes_back_over_control_frames(&mut self, vdl: &LogEnd) -> bool {
        let nothing = self.has(vdl) && self.behind_control_frames(&self.committed).seq <= vdl.seq && self.told.seq <= vdl.seq;
        if nothing {
            self.committed = *vdl;
        }
        nothing
    }

    /// A primary announced `vdl`.
    pub(in crate::sim) fn commit(&mut self, vdl: &LogEnd) -> Checked {
        self.go_on_with_if_unknown(vdl)?;
        if self.frame(vdl).is_none_or(|f| !f.is_consistency_point()) {
            return Err(format!("the primary's VDL {vdl} is no consistency point"));
        }
        if vdl.seq > self.committed.seq {
            self.committed = *vdl;
        }
        Ok(())
    }

    fn go_on_with_if_unknown(&mut self, end: &LogEnd) -> Checked {
        if self.has(end) { Ok(()) } else { self.go_on_with(end) }
    }

    /// The page as of `at`, without the zeros behind it.
    pub(in crate::sim) fn page(&self, page: PageNo, at: Lsn) -> &[u8] {
        let versions = self.pages.get(&page.0).map_or(&[][..], Vec::as_slice);
        match versions.partition_point(|(lsn, _)| *lsn <= at) {
            0 => &[],
            n => without_zeros(&versions[n - 1].1),
        }
    }

    pub(in crate::sim) fn page_numbers(&self) -> Vec<u32> {
        self.pages.keys().copied().collect()
    }
}

pub(in crate::sim) fn without_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1)]
}
