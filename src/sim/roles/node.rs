//! What a region's node does with its log in these worlds: appends, acknowledges, is taken over, ships and rewinds.
//!
//! A small model; the real node is driven by the other simulator.

use super::checks::Acked;
use super::log::{Kind, RegionLog, kind_of};
use super::member::Lead;
use super::mutants::RoleMutant;
use super::world::{Event, Ship, World};
use crate::base::{Epoch, LogEnd, Seq, UnixMicros};
use crate::control::{FailoverRecord, Input, LostTail, Promotion, Touched};
use crate::log::Frame;

impl World {
    // ---- the log --------------------------------------------------------------------------------------------------------

    pub(super) fn append(&mut self, m: usize, epoch: Epoch, generation: u64, kind: Kind) -> LogEnd {
        let at = self.disk_ms(m);
        let member = &mut self.members[m];
        let end = member.log.append(epoch, generation, kind);
        let (life, void_no) = (member.life, member.log.void_no);
        self.at(at, Event::Settled { m, life, void_no, seq: end.seq });
        end
    }

    pub(super) fn settled(&mut self, m: usize, seq: Seq) {
        let settled = self.members[m].log.settle(seq);
        if settled.is_empty() {
            return;
        }
        self.note_frames(&settled);
        self.tell_log(m);
        let Some(lead) = &mut self.members[m].lead else { return };
        for pending in lead.pending.iter_mut().filter(|p| p.end.seq <= seq) {
            pending.durable = true;
        }
        let sealed = lead.sealing.take_if(|(_, end)| end.seq <= seq);
        self.input(m, Input::CommitPathMoved);
        if let Some((op, at)) = sealed {
            self.input(m, Input::Sealed { op, at });
        }
        self.acknowledge(m);
    }

    /// Acknowledges what is durable here and in as many secondaries as the rule wants, at its commit point.
    pub(super) fn acknowledge(&mut self, m: usize) {
        loop {
            let gate = self.members[m].gate_open(self.now, self.mutant);
            let Some(lead) = &mut self.members[m].lead else { return };
            let (epoch, enforced) = (lead.epoch, usize::from(lead.enforced.max(lead.strengthens.unwrap_or(0))));
            let Some(first) = lead.pending.front().copied() else { break };
            if !first.durable || lead.copies_of(&first.end) < enforced {
                break;
            }
            lead.pending.pop_front();
            if !gate {
                continue;
            }
            lead.acked_end = first.end;
            let commit = Acked { id: first.id, epoch, end: first.end };
            if self.mutant == Some(RoleMutant::CheckThenAck) {
                let life = self.members[m].life;
                self.after_ms(0, 4000, Event::AckLater { m, life, commit });
                continue;
            }
            self.acknowledged(commit);
        }
        self.check_drained(m);
        let Some(lead) = &mut self.members[m].lead else { return };
        if let Some(sync) = lead.strengthens
            && lead.copies_of(&lead.acked_end.clone()) >= usize::from(sync)
        {
            lead.strengthens = None;
            lead.enforced = sync;
            self.input(m, Input::CommitRule { sync });
        }
    }

    pub(super) fn acknowledged(&mut self, commit: Acked) {
        self.counts.acknowledged += 1;
        self.commit_flows();
        let outcome = self.truth.acknowledged(commit);
        self.fails(outcome);
    }

    pub(super) fn check_drained(&mut self, m: usize) {
        let Some(lead) = &self.members[m].lead else { return };
        if let Some(op) = lead.draining.filter(|_| lead.pending.is_empty() && lead.sealing.is_none()) {
            self.input(m, Input::Drained { op });
        }
    }

    /// A tail was cut here, and is kept.
    pub(super) fn tail_cut(&mut self, m: usize, tail: Vec<Frame>) {
        self.members[m].archive.extend(tail);
    }

    /// This region stands on the line of a later reign: what failovers took from it lies in its archive, and is told.
    pub(super) fn tell_tails(&mut self, m: usize, epoch: Epoch) {
        let Some(control) = &self.members[m].control else { return };
        let archive = &self.members[m].archive;
        let log = &self.members[m].log;
        let due: Vec<LostTail> = control.tails_wanted().filter(|f| f.new_epoch <= epoch).map(|f| lost_tail(archive, log, f)).collect();
        for tail in due {
            self.input(m, Input::TailRead(tail));
        }
    }

    pub(super) fn taken(&mut self, m: usize, no: u64) {
        if self.members[m].promotion_no != no {
            return;
        }
        let Some((epoch, how)) = self.members[m].promoting.take() else { return };
        if self.flaky && self.prng.chance(30_000) {
            return self.input(m, Input::PromotionFailed { epoch, reason: "drawn".into() });
        }
        let kept = usize::try_from(self.prng.below(self.members[m].log.volatile_len() as u64 + 1)).expect("BUG: small");
        let member = &mut self.members[m];
        member.generation += 1;
        let generation = member.generation * 8 + m as u64;
        let kind = match &how {
            Promotion::Begin { entry } => {
                if !member.log.holds(&entry.base) {
                    let what = format!("S3: {} is to begin behind {}, which its log does not hold", member.name(), entry.base);
                    return self.fails(Err(what));
                }
                if member.log.appended().epoch >= entry.epoch {
                    // As a region's volume does: frames of one epoch and two beginnings cannot be told apart.
                    let reason = format!("epoch {epoch} was begun here before");
                    return self.input(m, Input::PromotionFailed { epoch, reason });
                }
                let tail = member.log.cut(entry.base.seq);
                self.tail_cut(m, tail);
                Kind::EpochStart
            }
            Promotion::Resume => {
                let settled = member.log.abandon(kept);
                self.note_frames(&settled);
                Kind::GenerationStart
            }
        };
        let member = &mut self.members[m];
        member.log.append(epoch, generation, kind);
        let end = member.log.appended();
        let settled = member.log.settle(end.seq);
        member.lead = Some(Lead::new(epoch, generation));
        self.note_frames(&settled);
        self.tell_log(m);
        self.input(m, Input::Promoted { epoch, start: end });
    }

    // ---- shipping -------------------------------------------------------------------------------------------------------

    pub(super) fn shipped(&mut self, to: usize, from: usize, ship: Ship) {
        let name = self.members[from].name().clone();
        match ship {
            Ship::Pull { epoch, end, history } => {
                let now = UnixMicros(self.now / 1000);
                let member = &mut self.members[to];
                if !member.lets_in(&name) {
                    return;
                }
                let Some(lead) = member.lead.as_mut().filter(|l| l.open && l.epoch == epoch && l.leaving.as_ref() != Some(&name)) else {
                    return;
                };
                let own_end = member.log.end();
                let common = member.log.history().common_seq(own_end.seq, &history, end.seq);
                let frames = member.log.frames_behind(common, own_end.seq, 64);
                let all = frames.last().is_none_or(|f| f.seq() == own_end.seq);
                let on_line = common == end.seq;
                if on_line {
                    lead.secondaries.insert(name.clone(), end);
                }
                self.ship(to, from, Ship::Frames { epoch, asked: end, common, frames, as_of: all.then_some(now) });
                if on_line {
                    self.input(to, Input::Secondary { region: name, durable: end });
                    self.acknowledge(to);
                }
            }
            Ship::Frames { epoch, asked, common, frames, as_of } => {
                let receives = self.mutant == Some(RoleMutant::ReceivesOldEpoch);
                let member = &mut self.members[to];
                let follows = member.following.as_ref().is_some_and(|(_, p)| *p == name);
                let may = member.control.as_ref().is_some_and(|c| receives || c.may_receive(epoch));
                if !(follows && may && member.log.is_settled() && member.promoting.is_none() && asked == member.log.end()) {
                    return;
                }
                let end = member.log.end();
                if common < end.seq {
                    self.counts.rewinds += 1;
                    let tail = self.members[to].log.cut(common);
                    let at = self.members[to].log.end();
                    self.say(|| format!("{} rewinds to {at}", self.members[to].name()));
                    self.members[to].covers = None;
                    self.tell_log(to);
                    self.tail_cut(to, tail);
                } else if common > end.seq {
                    return;
                }
                self.tell_tails(to, epoch);
                let member = &mut self.members[to];
                member.log.receive(frames);
                let last = member.log.appended();
                if let Some(as_of) = as_of {
                    member.covers = Some(as_of);
                }
                let (life, void_no) = (member.life, member.log.void_no);
                let at = self.disk_ms(to);
                self.at(at, Event::Settled { m: to, life, void_no, seq: last.seq });
            }
            Ship::Fetch { end, history, up_to } => {
                let member = &self.members[to];
                let common = member.log.history().common_seq(member.log.end().seq, &history, end.seq);
                if member.log.holds(&up_to) {
                    let frames = member.log.frames_behind(common, up_to.seq, usize::MAX);
                    self.ship(to, from, Ship::Fetched { common, frames });
                }
            }
            Ship::Fetched { common, frames } => {
                let member = &mut self.members[to];
                let wanted = member.fetching.as_ref().is_some_and(|(r, _)| *r == name);
                if !wanted
                    || member.lead.is_some()
                    || member.promoting.is_some()
                    || !member.log.is_settled()
                    || common != member.log.end().seq
                {
                    return;
                }
                member.fetching = None;
                let tail = member.log.cut(common);
                member.log.receive(frames);
                let last = member.log.appended();
                let settled = member.log.settle(last.seq);
                self.note_frames(&settled);
                self.tell_log(to);
                self.tail_cut(to, tail);
                self.input(to, Input::CaughtUp { from: name });
            }
        }
    }

    pub(super) fn pull(&mut self, m: usize) {
        let member = &self.members[m];
        let receives = self.mutant == Some(RoleMutant::ReceivesOldEpoch);
        if let Some((epoch, primary)) = member.following.clone()
            && m < self.regions
            && member.log.is_settled()
            && (receives || member.control.as_ref().is_some_and(|c| c.may_receive(epoch)))
            && let Some(to) = self.index(&primary)
        {
            let (end, history) = (member.log.end(), member.log.history().clone());
            self.ship(m, to, Ship::Pull { epoch, end, history });
        }
        let life = self.members[m].life;
        // Its control links dial whoever it takes for a member: one that knows better refuses it.
        let by = usize::try_from(self.prng.below(self.members.len() as u64)).expect("BUG: small");
        let reaches = by != m && !self.network.cut.contains(&(m, by)) && !self.network.cut.contains(&(by, m));
        if reaches && self.members[by].control.is_some() && !self.members[by].lets_in(self.members[m].name()) {
            self.after_ms(1, 40, Event::Refused { m, life, by });
        }
        self.after_ms(20, 120, Event::Pull { m, life });
    }
}

/// What a failover took from this region: the line of its old epoch behind the base, as far as it was cut here.
fn lost_tail(archive: &[Frame], log: &RegionLog, f: &FailoverRecord) -> LostTail {
    let base = f.loss.base;
    let behind = |t: &&Frame| t.header().epoch < f.new_epoch && (f.unproven || t.seq() > base.seq);
    // By an operator's word alone: whatever epochs of its own this region went through unheard, from where the two lines part.
    let own = archive.iter().filter(behind).map(|t| t.header().epoch).max().unwrap_or(f.old_epoch);
    let epoch = if f.unproven { own.max(f.old_epoch) } else { f.old_epoch };
    let last = archive.iter().filter(|t| behind(t) && t.header().epoch == epoch);
    let mut next = last.max_by_key(|t| (t.header().generation, t.seq()));
    let (mut from, to) = (base, next.map_or(base, Frame::log_end));
    let mut commits = 0;
    while let Some(frame) = next {
        commits += u64::from(matches!(kind_of(frame), Kind::Commit(_)));
        let before = (frame.seq().0 - 1, frame.header().prev_checksum);
        let at = |t: &&Frame| (t.seq().0, t.log_end().checksum) == before;
        if f.unproven
            && let Some(parts) = log.durable().iter().find(at)
        {
            from = parts.log_end();
            break;
        }
        next = archive.iter().filter(behind).find(at);
    }
    LostTail { new_epoch: f.new_epoch, from, to, commits, from_time: None, to_time: None, touched: Ok(Touched::default()) }
}
