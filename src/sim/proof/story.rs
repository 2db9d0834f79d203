//! What one volume was told and what it said: every frame that was ever written, what each page was after each of them, what was
//! acknowledged.
//!
//! Decides whether a log, a page or a promise that is found after a fault is right. Knows nothing of how a copy stores them. It
//! is forked for each image of a crash: what happens in one does not count in the next.

use super::Checked;
use crate::base::{Generation, LogEnd, Lsn, PageNo, Prng};
use crate::log::redo::{self, Change, put_record};
use crate::log::{Frame, Pen};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pages that the workload writes; number 0 is the volume's own.
pub(super) const PAGES: u32 = 14;
const PAGE_BYTES: usize = 64;

pub(super) type Image = BTreeMap<PageNo, Vec<u8>>;

#[derive(Clone)]
struct Node {
    frame: Frame,
    before: Option<usize>,
    pages: Arc<Image>,
}

/// What one copy said it has.
#[derive(Clone, Copy, Default)]
pub(super) struct Said {
    pub promised: Generation,
    /// fsynced, it said.
    pub end: LogEnd,
    /// It was rebuilt with pages as of here: older ones it need not have.
    pub pages_from: Lsn,
    /// The record that it keeps says that a slot changes hands, or may.
    pub changing: bool,
}

#[derive(Clone)]
pub(super) struct Story {
    nodes: Vec<Node>,
    /// By seq and checksum, which by the chain is by the whole log up to there.
    by_end: BTreeMap<(u64, u32), usize>,
    /// The highest VDL that was told to anybody.
    pub acknowledged: LogEnd,
    /// The newest control state that was said to be durable.
    pub control: u64,
    /// A reader holds the pages as of here.
    pub pin: Option<LogEnd>,
    pub copies: [Said; 6],
    /// No copy is without a vote by the record that was put last.
    pub all_vote: bool,
}

impl Story {
    pub(super) fn new() -> Story {
        Story {
            nodes: Vec::new(),
            by_end: BTreeMap::new(),
            acknowledged: LogEnd::EMPTY,
            control: 0,
            pin: None,
            copies: [Said::default(); 6],
            all_vote: true,
        }
    }

    /// A zone may be away: the others have everything, their votes, and no record by which four of five of them were needed.
    pub(super) fn spares_a_zone(&self) -> bool {
        self.all_vote && self.copies.iter().all(|said| said.end != LogEnd::EMPTY && !said.changing)
    }

    /// A mini-transaction of one to three frames.
    pub(super) fn write(&mut self, prng: &mut Prng, pen: &mut Pen, at_us: u64) -> Checked<Vec<Frame>> {
        let payloads: Vec<Vec<u8>> = (0..prng.between(1, 3)).map(|_| payload(prng)).collect();
        let frames = pen.write(&payloads, true, crate::base::UnixMicros(at_us));
        for frame in &frames {
            self.note(frame)?;
        }
        Ok(frames)
    }

    /// A frame that was written: a pen's, or one by which the appender begins.
    pub(super) fn note(&mut self, frame: &Frame) -> Checked {
        let end = frame.log_end();
        if let Some(&known) = self.by_end.get(&(end.seq.0, end.checksum)) {
            return if self.nodes[known].frame == *frame { Ok(()) } else { Err(format!("two frames are {end}")) };
        }
        let h = frame.header();
        let before = match h.seq.0 {
            1 => None,
            seq => Some(*self.by_end.get(&(seq - 1, h.prev_checksum)).ok_or(format!("{frame:?} follows what nobody wrote"))?),
        };
        let mut pages = before.map(|b| Arc::clone(&self.nodes[b].pages)).unwrap_or_default();
        if !frame.is_control() {
            for record in redo::records(&frame.payload()).map_err(|e| format!("{frame:?} is no redo: {e}"))? {
                record.change.apply(Arc::make_mut(&mut pages).entry(record.page).or_default());
            }
        }
        self.by_end.insert((end.seq.0, end.checksum), self.nodes.len());
        self.nodes.push(Node { frame: frame.clone(), before, pages });
        Ok(())
    }

    /// Whether the frame is one that was written.
    pub(super) fn knows(&self, frame: &Frame) -> Checked {
        let end = frame.log_end();
        match self.by_end.get(&(end.seq.0, end.checksum)) {
            Some(&at) if self.nodes[at].frame == *frame => Ok(()),
            _ => Err(format!("phantom: {frame:?}, which nobody wrote")),
        }
    }

    fn at(&self, end: &LogEnd) -> Checked<Option<usize>> {
        if *end == LogEnd::EMPTY {
            return Ok(None);
        }
        let at = self.by_end.get(&(end.seq.0, end.checksum)).ok_or(format!("phantom: a log ends at {end}, which nobody wrote"))?;
        Ok(Some(*at))
    }

    /// The log up to `end` holds all of the log up to `part`.
    pub(super) fn holds(&self, end: &LogEnd, part: &LogEnd) -> Checked<bool> {
        let part = self.at(part)?;
        let mut at = self.at(end)?;
        while at != part {
            match at {
                None => return Ok(false),
                Some(i) => at = self.nodes[i].before,
            }
        }
        Ok(true)
    }

    /// The appender told that everything up to `vdl` is durable.
    pub(super) fn acknowledge(&mut self, vdl: &LogEnd) -> Checked {
        if !self.holds(vdl, &self.acknowledged)? {
            return Err(format!("durability: {} was acknowledged and is no part of {vdl}", self.acknowledged));
        }
        self.acknowledged = *vdl;
        Ok(())
    }

    /// The log's ends up to `end`, oldest first.
    pub(super) fn chain(&self, end: &LogEnd) -> Checked<Vec<LogEnd>> {
        let mut ends = Vec::new();
        let mut at = self.at(end)?;
        while let Some(i) = at {
            ends.push(self.nodes[i].frame.log_end());
            at = self.nodes[i].before;
        }
        ends.reverse();
        Ok(ends)
    }

    /// What the pages are at the end of the log up to `end`.
    pub(super) fn pages_at(&self, end: &LogEnd) -> Checked<Arc<Image>> {
        Ok(self.at(end)?.map(|i| Arc::clone(&self.nodes[i].pages)).unwrap_or_default())
    }
}

fn payload(prng: &mut Prng) -> Vec<u8> {
    let mut payload = Vec::new();
    for _ in 0..prng.between(1, 3) {
        let page = PageNo(u32::try_from(prng.between(1, u64::from(PAGES))).expect("BUG: a small number"));
        let fill = u8::try_from(prng.between(1, 255)).expect("BUG: a byte");
        let len = usize::try_from(prng.between(1, 20)).expect("BUG: a small number");
        let change = if prng.chance(200_000) {
            Change::Image(Bytes::from(vec![fill; PAGE_BYTES - len]))
        } else {
            let offset = u16::try_from(prng.below((PAGE_BYTES - len) as u64)).expect("BUG: a small number");
            let mut body = offset.to_le_bytes().to_vec();
            body.extend_from_slice(&u16::try_from(len).expect("BUG: a small number").to_le_bytes());
            body.extend(vec![fill; len]);
            Change::from_parts(2, Bytes::from(body)).expect("BUG: a delta of one range")
        };
        put_record(&mut payload, page, &change);
    }
    payload
}

/// Without the zeros at its end, which no store keeps apart from none.
pub(super) fn trimmed(page: &[u8]) -> &[u8] {
    &page[..page.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1)]
}
