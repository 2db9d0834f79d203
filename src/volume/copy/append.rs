//! Which frames a copy accepts.
//!
//! Frames extend the log, or are held already, or replace its tail; anything else is misplaced. A log is only ever cut by
//! the frame that replaces what was cut: a cut needs a frame of a newer (epoch, generation) than the tail that goes, and
//! everything from the divergence through that frame is published in one rename. So a crash leaves the old tail or the new
//! one that outranks it, and no recovery brings a cut tail back.

use super::Copy;
use super::wal::WalReadError;
use crate::base::{Generation, LogEnd, Lsn, Seq};
use crate::log::{ControlFrame, Frame};
use crate::volume::{CopyReply, DiskError};

/// What becomes of the frames of one `Append`.
enum Place {
    /// All but so many are new and follow the tail.
    Extend {
        held: usize,
    },
    /// They differ from the log here from this index on.
    Diverge {
        at: usize,
    },
    Misplaced,
}

fn term(end: &LogEnd) -> (crate::base::Epoch, Generation) {
    (end.epoch, end.generation)
}

impl Copy {
    pub(super) fn append(
        &mut self,
        generation: Generation,
        frames: Vec<Frame>,
        vdl: LogEnd,
        horizon: Lsn,
        trim: Seq,
        replies: &mut Vec<CopyReply>,
    ) -> Result<(), DiskError> {
        if !self.admit(generation, replies)? {
            return Ok(());
        }
        if self.agreed_with != generation {
            // A new appender may have cut what the old one wrote behind the VDL. Its first frames will tell.
            self.agreed_with = generation;
            self.agreed = self.ingested.seq;
        }
        self.horizon = self.horizon.max(horizon);
        self.trim = self.trim.max(trim);
        if vdl.seq > self.vdl.seq {
            self.vdl = vdl;
        }
        if let Some(odd) = frames.iter().find(|f| !f.fits(self.manifest.group)) {
            self.fail(
                format!("it was sent {odd:?} of group {} in the wrong form; this is a copy of {}", odd.header().group, self.manifest.group),
                replies,
            );
            return Ok(());
        }
        if let Some(last) = frames.last().map(Frame::seq) {
            if !self.accept(frames, replies)? {
                let reply = CopyReply::Misplaced { generation, end: *self.wal.end(), history: self.wal.history().clone() };
                replies.push(reply);
                return Ok(());
            }
            self.agreed = self.agreed.max(last);
            if !self.proven && last >= self.ingested.seq {
                // They follow, or are, what lies here: by the chain everything before them is theirs.
                self.proven_upto(self.ingested.end_lsn, true);
            }
        }
        if (vdl.seq > self.agreed || !self.proven) && vdl.seq > Seq::ZERO && self.position_at(vdl.seq)? == Some(vdl) {
            // The appender knows of a frame that we have: the logs are the same up to there.
            self.agreed = self.agreed.max(vdl.seq);
            if !self.proven {
                self.proven_upto(vdl.end_lsn, vdl.seq >= self.ingested.seq);
            }
        }
        if self.pending.is_empty() {
            replies.push(self.appended(generation));
        } else {
            self.pending_for = Some(generation);
        }
        Ok(())
    }

    /// `false`: misplaced.
    fn accept(&mut self, frames: Vec<Frame>, replies: &mut Vec<CopyReply>) -> Result<bool, DiskError> {
        if !frames.windows(2).all(|w| w[1].follows(&w[0].log_end())) {
            return Ok(false);
        }
        match self.place(&frames)? {
            Place::Misplaced => Ok(false),
            Place::Extend { held } => {
                if self.tail() == LogEnd::EMPTY
                    && let Some(first) = frames.get(held)
                {
                    let Some(lineage) = ControlFrame::founding(first) else { return Ok(false) };
                    self.wal.set_lineage(lineage);
                }
                self.pending.extend(frames.into_iter().skip(held));
                Ok(true)
            }
            Place::Diverge { at } => self.replace(frames, at, replies),
        }
    }

    /// The log's end here, with what is pending.
    fn tail(&self) -> LogEnd {
        self.pending.last().map_or(*self.wal.end(), Frame::log_end)
    }

    fn place(&mut self, frames: &[Frame]) -> Result<Place, DiskError> {
        let tail = self.tail();
        let (first, last) = (frames[0].seq(), frames[frames.len() - 1].seq());
        if first > tail.seq.next() || first == Seq::ZERO {
            return Ok(Place::Misplaced);
        }
        let overlap = usize::try_from((last.min(tail.seq).next().0).saturating_sub(first.0)).expect("BUG: no more than the frames");
        if overlap > 0 && !self.same(&frames[overlap - 1])? {
            // By the chain, all before a frame that is the same are the same: the first that differs is found by halving.
            let (mut same, mut differs) = (0, overlap - 1);
            while same < differs {
                let middle = usize::midpoint(same, differs);
                if self.same(&frames[middle])? { same = middle + 1 } else { differs = middle }
            }
            return Ok(Place::Diverge { at: differs });
        }
        match frames.get(overlap) {
            Some(new) if !new.follows(&tail) => Ok(Place::Misplaced),
            _ => Ok(Place::Extend { held: overlap }),
        }
    }

    /// Whether the frame is what lies here at its seq. Of what was trimmed only the writer is known.
    fn same(&mut self, frame: &Frame) -> Result<bool, DiskError> {
        if frame.seq() < self.wal.before_first().seq {
            return Ok(self.wal.history().contains(&frame.log_end()));
        }
        Ok(self.position_at(frame.seq())? == Some(frame.log_end()))
    }

    /// The log's end at `seq`, with what is pending; `None` when that is not here.
    fn position_at(&mut self, seq: Seq) -> Result<Option<LogEnd>, DiskError> {
        let end = *self.wal.end();
        if seq == end.seq {
            return Ok(Some(end));
        }
        if seq > end.seq {
            let at = usize::try_from(seq.0 - end.seq.0 - 1).unwrap_or(usize::MAX);
            return Ok(self.pending.get(at).map(Frame::log_end));
        }
        if seq == self.wal.before_first().seq {
            return Ok(Some(*self.wal.before_first()));
        }
        if seq < self.wal.first() {
            return Ok(None);
        }
        Ok(self.frame_at(seq)?.map(|f| f.log_end()))
    }

    /// The frame at `seq`, which is in the log here.
    pub(super) fn frame_at(&mut self, seq: Seq) -> Result<Option<Frame>, DiskError> {
        if let Some(frames) = self.recent(seq, seq, 0) {
            return Ok(frames.into_iter().next());
        }
        match self.wal.read(&mut None, seq, seq, 0) {
            Ok(frames) => Ok(frames.into_iter().next()),
            Err(WalReadError::Disk(e)) => Err(e),
            Err(e @ WalReadError::Damaged { .. }) => {
                let reason = e.to_string();
                self.met_in_log.get_or_insert_with(|| super::check::log_damage(e));
                Err(DiskError::Failed { name: "log".into(), reason })
            }
        }
    }

    fn replace(&mut self, mut frames: Vec<Frame>, at: usize, replies: &mut Vec<CopyReply>) -> Result<bool, DiskError> {
        self.flush_pending(replies)?;
        let seq = frames[at].seq();
        let before = match at.checked_sub(1) {
            Some(i) => Some(frames[i].log_end()),
            None => self.position_at(Seq(seq.0 - 1))?,
        };
        let old = *self.wal.end();
        let newer = frames[at..].iter().position(|f| term(&f.log_end()) > term(&old));
        let (Some(before), Some(newer)) = (before, newer) else { return Ok(false) };
        // The first frame of a writer is a control frame and a consistency point, so what remains has one at or below its end.
        // What became pages was durable in the region, and nothing durable is ever cut.
        let fits = frames[at].follows(&before) && frames[at + newer].is_consistency_point();
        if !fits || seq <= self.ingested.seq || seq < self.wal.first() {
            return Ok(false);
        }
        // The first frame of a lineage is only replaced when another founding outranks one that never became durable.
        if before == LogEnd::EMPTY {
            let Some(lineage) = ControlFrame::founding(&frames[at]) else { return Ok(false) };
            self.wal.set_lineage(lineage);
        }
        let rest = frames.split_off(at + newer + 1);
        let new = frames.split_off(at);
        self.wal.replace(before, &new)?;
        while let Some(gone) = self.recent.pop_back_if(|f| f.seq() >= seq) {
            self.recent_bytes -= gone.bytes().len();
        }
        (self.ingest_cursor, self.read_cursor) = (None, None);
        self.remember(new);
        self.pending = rest;
        Ok(true)
    }
}
