//! The receiver: one, in a secondary. Batches come on streams of their own and in any order; it puts them into the log's.
//!
//! Decides: what is the next frame, what is kept until its turn, which steps of a seed are taken over. Refuses whatever does
//! not follow what it has (that would be another history). Never decides when something is durable: the volume does.
//! Driven by the node: `handle_*`, `poll_effect`.

use super::catchup::UnfinishedSeed;
use super::wire::{Control, Message, SeedStep};
use crate::base::{Epoch, Limits, LogEnd, Lsn, PageNo, Seq};
use crate::log::redo::VolumeHeader;
use crate::log::{ControlFrame, Frame, SeedBase};
use bytes::Bytes;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
pub enum ReceiverEffect {
    Append(Vec<Frame>),
    SeedBegin(SeedBase),
    SeedPages(Vec<(PageNo, Bytes)>),
    SeedEnd,
    Send(Message),
    /// The peer sent what cannot be: close the link, say why.
    Violation {
        reason: String,
    },
}

/// Steps of a seed kept until their turn.
const SEED_STEPS_EARLY_MAX: usize = 256;

/// A seed under way. It outlives its link: what was taken over need not come again (see [`Receiver::interrupted`]).
#[derive(Debug)]
pub struct Seed {
    base: SeedBase,
    /// Next step to take over.
    next: u64,
    early: BTreeMap<u64, SeedStep>,
    stored: Option<u64>,
    last: Option<u64>,
    /// First page that has not come.
    next_page: PageNo,
    /// For people: of how many pages; the bytes that came; how often it was interrupted.
    pages_total: u32,
    bytes: u64,
    resumed: u32,
}

impl Seed {
    fn new(base: SeedBase) -> Seed {
        Seed { base, next: 0, early: BTreeMap::new(), stored: None, last: None, next_page: PageNo(0), pages_total: 0, bytes: 0, resumed: 0 }
    }

    /// What the hello says of it: the steps that were taken over. The last one is asked for again, so that its answer comes again.
    #[must_use]
    pub fn unfinished(&self) -> UnfinishedSeed {
        UnfinishedSeed {
            base: self.base.clone(),
            step: self.last.unwrap_or(self.next).saturating_sub(1),
            next_page: self.next_page,
            pages_total: self.pages_total,
            bytes: self.bytes,
            resumed: self.resumed,
        }
    }

    /// The volume stored `step` on 4 of 6. `true` when it was the last.
    pub fn stored(&mut self, step: u64) -> bool {
        self.stored = Some(step);
        self.last == Some(step)
    }

    /// The last step that was taken over.
    #[must_use]
    pub fn steps_taken(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// Bytes of pages that came.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[must_use]
    pub fn base(&self) -> &SeedBase {
        &self.base
    }

    fn take_over(&mut self, what: &SeedStep) {
        if let SeedStep::Pages(pages) = what {
            if let Some((PageNo::HEADER, header)) = pages.first() {
                self.pages_total = VolumeHeader::from_page(header).page_count;
            }
            self.bytes += pages.iter().map(|(_, b)| b.len() as u64).sum::<u64>();
            self.next_page = pages.last().map_or(self.next_page, |(page, _)| PageNo(page.0.saturating_add(1)));
        }
        if matches!(what, SeedStep::End) {
            self.last = Some(self.next);
        }
        self.next += 1;
    }
}

#[derive(Debug)]
pub struct Receiver {
    epoch: Epoch,
    /// Received without a gap.
    received: LogEnd,
    durable: LogEnd,
    visible: Lsn,
    /// Each frame once, however the batches overlap that it came with.
    early: BTreeMap<Seq, Frame>,
    early_bytes: usize,
    early_bytes_max: usize,
    seed: Option<Seed>,
    /// Steps that overtook their `SeedBegin`.
    before_seed: Vec<(Seq, u64, SeedStep)>,
    /// A seed was announced: frames wait until it is stored.
    awaits_seed: bool,
    effects: VecDeque<ReceiverEffect>,
}

impl Receiver {
    /// After the primary's welcome. `end` is what this region has.
    #[must_use]
    pub fn new(epoch: Epoch, end: LogEnd, durable: LogEnd, awaits_seed: bool, limits: &Limits) -> Receiver {
        Receiver {
            epoch,
            received: end,
            durable,
            visible: durable.end_lsn,
            early: BTreeMap::new(),
            early_bytes: 0,
            // The sender keeps no more in flight; twice that only if something is wrong.
            early_bytes_max: 2 * limits.ship_window_bytes_max,
            seed: None,
            before_seed: Vec::new(),
            awaits_seed,
            effects: VecDeque::new(),
        }
    }

    /// As [`Receiver::new`], in the middle of a seed that the primary goes on with.
    #[must_use]
    pub fn resuming(epoch: Epoch, end: LogEnd, durable: LogEnd, mut seed: Seed, limits: &Limits) -> Receiver {
        seed.early.clear();
        seed.resumed += 1;
        let mut receiver = Receiver::new(epoch, end, durable, true, limits);
        receiver.seed = Some(seed);
        receiver.say_stored();
        receiver
    }

    /// The link is gone: the seed that was under way, so that it can go on over another one.
    pub fn interrupted(&mut self) -> Option<Seed> {
        self.seed.take()
    }

    /// The seed under way.
    #[must_use]
    pub fn seed(&self) -> Option<&Seed> {
        self.seed.as_ref()
    }

    #[must_use]
    pub fn received(&self) -> &LogEnd {
        &self.received
    }

    #[must_use]
    pub fn is_being_seeded(&self) -> bool {
        self.awaits_seed
    }

    pub fn poll_effect(&mut self) -> Option<ReceiverEffect> {
        self.effects.pop_front()
    }

    pub fn handle_frames(&mut self, frames: Vec<Frame>) {
        if frames.windows(2).any(|w| !w[1].follows(&w[0].log_end())) {
            return self.violation("a batch of frames has a gap".into());
        }
        if let Some(odd) = frames.iter().find(|f| f.header().epoch > self.epoch) {
            return self.violation(format!("frame {} is of a later epoch than the primary's {}", odd.log_end(), self.epoch));
        }
        for frame in frames {
            if frame.seq() > self.received.seq
                && let Entry::Vacant(entry) = self.early.entry(frame.seq())
            {
                self.early_bytes += frame.bytes().len();
                entry.insert(frame);
            }
        }
        self.take_over();
        if self.early_bytes > self.early_bytes_max {
            self.violation(format!("it sent {} bytes ahead of a gap", self.early_bytes));
        }
    }

    fn take_over(&mut self) {
        if self.awaits_seed {
            return;
        }
        let mut taken: Vec<Frame> = Vec::new();
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.received.seq.next() {
                break;
            }
            let frame = entry.remove();
            self.early_bytes -= frame.bytes().len();
            if frame.seq() <= self.received.seq {
                continue; // a seed is beyond it
            }
            if !frame.follows(&self.received) {
                return self.violation(format!("{frame:?} does not follow {}: the histories differ", self.received));
            }
            if frame.is_control()
                && let Err(e) = ControlFrame::decode(&frame)
            {
                return self.violation(format!("{frame:?} cannot be followed: {e}"));
            }
            self.received = frame.log_end();
            taken.push(frame);
        }
        if !taken.is_empty() {
            self.effects.push_back(ReceiverEffect::Append(taken));
        }
    }

    pub fn handle_seed_begin(&mut self, base: SeedBase) {
        if let Some(seed) = &self.seed
            && seed.base == base
        {
            self.say_stored(); // it came twice
            return;
        }
        if !self.awaits_seed && self.seed.is_none() && self.received.seq >= base.end.seq {
            self.effects.push_back(ReceiverEffect::Send(Message::Control(Control::SeedStored { base: base.end.seq, step: 0 })));
            return; // that seed is stored and behind us
        }
        self.awaits_seed = true;
        self.early.clear();
        self.early_bytes = 0;
        self.seed = Some(Seed::new(base.clone()));
        let seq = base.end.seq;
        self.handle_seed_step(seq, 0, SeedStep::Begin(base));
        for (of, step, what) in std::mem::take(&mut self.before_seed) {
            self.handle_seed_step(of, step, what);
        }
    }

    pub fn handle_seed_step(&mut self, base: Seq, step: u64, what: SeedStep) {
        if self.seed.is_none() && !self.awaits_seed && self.received.seq >= base {
            // The seed is stored, the answer was lost.
            self.effects.push_back(ReceiverEffect::Send(Message::Control(Control::SeedStored { base, step })));
            return;
        }
        let Some(seed) = &mut self.seed else {
            // Pages come on streams of their own and may overtake the control message that begins the seed.
            if self.before_seed.len() < SEED_STEPS_EARLY_MAX {
                self.before_seed.push((base, step, what));
            }
            return;
        };
        if seed.base.end.seq != base || step < seed.next {
            self.say_stored();
            return;
        }
        if seed.early.len() > SEED_STEPS_EARLY_MAX {
            return self.violation("it sent too many steps of a seed ahead of a gap".into());
        }
        seed.early.insert(step, what);
        while let Some(what) = seed.early.remove(&seed.next) {
            seed.take_over(&what);
            self.effects.push_back(match what {
                SeedStep::Begin(base) => ReceiverEffect::SeedBegin(base),
                SeedStep::Pages(pages) => ReceiverEffect::SeedPages(pages),
                SeedStep::End => ReceiverEffect::SeedEnd,
            });
        }
    }

    /// The volume stored a step of the seed on 4 of 6. `true` when it was the last: the region has the base now.
    pub fn seed_stored(&mut self, step: u64) -> bool {
        let Some(seed) = &mut self.seed else { return false };
        let whole = seed.stored(step);
        self.say_stored();
        let Some(seed) = &self.seed else { return false };
        if whole {
            self.received = seed.base.end;
            self.durable = seed.base.end;
            self.visible = seed.base.end.end_lsn;
            self.seed = None;
            self.awaits_seed = false;
            self.take_over();
            return true;
        }
        false
    }

    fn say_stored(&mut self) {
        if let Some(Seed { base, stored: Some(step), .. }) = &self.seed {
            let message = Message::Control(Control::SeedStored { base: base.end.seq, step: *step });
            self.effects.push_back(ReceiverEffect::Send(message));
        }
    }

    /// How far this region is, for the primary. Sent when it changed.
    pub fn progress(&mut self, durable: LogEnd, visible: Lsn) {
        if self.awaits_seed || (durable == self.durable && visible == self.visible) {
            return;
        }
        self.durable = durable;
        self.visible = visible;
        let message = Message::Control(Control::Progress { received: self.received, durable, visible });
        self.effects.push_back(ReceiverEffect::Send(message));
    }

    fn violation(&mut self, reason: String) {
        self.effects.push_back(ReceiverEffect::Violation { reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, UnixMicros};
    use crate::log::Pen;

    fn frames(n: usize) -> Vec<Frame> {
        let mut pen = Pen::new(Epoch(1), Generation(1), LogEnd::EMPTY, 100);
        (0..n).flat_map(|i| pen.write(&[vec![u8::try_from(i % 250).unwrap(); 10]], true, UnixMicros(1))).collect()
    }

    fn appended(receiver: &mut Receiver) -> Vec<u64> {
        let mut seqs = Vec::new();
        while let Some(effect) = receiver.poll_effect() {
            match effect {
                ReceiverEffect::Append(f) => seqs.extend(f.iter().map(|f| f.seq().0)),
                other => panic!("{other:?}"),
            }
        }
        seqs
    }

    #[test]
    fn batches_in_any_order_twice_and_overlapping_become_the_log() {
        let all = frames(9);
        let mut receiver = Receiver::new(Epoch(1), LogEnd::EMPTY, LogEnd::EMPTY, false, &Limits::default());
        receiver.handle_frames(all[3..6].to_vec());
        assert_eq!(appended(&mut receiver), Vec::<u64>::new());
        receiver.handle_frames(all[0..4].to_vec());
        receiver.handle_frames(all[0..2].to_vec());
        receiver.handle_frames(all[6..9].to_vec());
        receiver.handle_frames(all[6..9].to_vec());
        assert_eq!(appended(&mut receiver), (1..=9).collect::<Vec<u64>>());
        assert_eq!(receiver.received().seq, Seq(9));
    }

    #[test]
    fn another_history_and_a_later_epoch_are_violations() {
        let mut receiver = Receiver::new(Epoch(1), frames(3)[2].log_end(), LogEnd::EMPTY, false, &Limits::default());
        let mut other = Pen::new(Epoch(1), Generation(1), LogEnd { checksum: 1, ..frames(3)[2].log_end() }, 100);
        receiver.handle_frames(other.write(&[vec![1]], true, UnixMicros(1)));
        assert!(matches!(receiver.poll_effect(), Some(ReceiverEffect::Violation { .. })));
        let mut receiver = Receiver::new(Epoch(1), LogEnd::EMPTY, LogEnd::EMPTY, false, &Limits::default());
        receiver.handle_frames(Pen::new(Epoch(2), Generation(1), LogEnd::EMPTY, 100).write(&[vec![1]], true, UnixMicros(1)));
        assert!(matches!(receiver.poll_effect(), Some(ReceiverEffect::Violation { .. })));
    }

    #[test]
    fn too_much_ahead_of_a_gap_is_refused() {
        let all = frames(400);
        let limits = Limits { ship_window_bytes_max: 1000, ..Limits::default() };
        let mut receiver = Receiver::new(Epoch(1), LogEnd::EMPTY, LogEnd::EMPTY, false, &limits);
        for chunk in all[1..].chunks(10) {
            receiver.handle_frames(chunk.to_vec());
        }
        assert!(matches!(receiver.poll_effect(), Some(ReceiverEffect::Violation { .. })));
    }
}
