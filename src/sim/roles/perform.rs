//! What the members' cores want, carried out: their lives, their disks, and the network between them.
//!
//! Decides nothing about the order of things; [`super::world`] does.

use super::checks;
use super::log::Kind;
use super::member::{Clock, Lead};
use super::mutants::RoleMutant;
use super::world::{Event, MS, Ship, World};
use crate::base::{Epoch, Instant, RegionName, UnixMicros};
use crate::control::{Control, ControlMessage, Input, LogPosition, OpState, Output, Promotion};
use crate::log::Frame;

impl World {
    // ---- members --------------------------------------------------------------------------------------------------------

    pub fn start(&mut self, m: usize) {
        let now = self.now;
        let mut prng = self.prng.fork("control");
        let local = self.prng.below(1 << 40);
        let mut kept = self.members[m].kept_state();
        if let (Some(state), true) = (&mut kept, self.members[m].life > 0) {
            self.tamper_kept(m, state);
        }
        let member = &mut self.members[m];
        member.known = crate::control::MembersView::default();
        member.clock = Clock::new(now, local, member.clock.rate_ppm);
        let resumes = kept.as_ref().and_then(|s| s.chain.top()).filter(|t| t.region == *member.name()).cloned();
        let control = Control::new(member.who.clone(), kept, Instant { ns: local }, prng.fork("core"));
        member.control = Some(control);
        let life = member.life;

        self.say(|| format!("{} starts", self.members[m].name()));
        if m < self.regions {
            self.tell_log(m);
            self.after_ms(20, 100, Event::Write { m, life });
            self.after_ms(20, 100, Event::Pull { m, life });
        } else {
            self.input(m, Input::Timeout);
            if m >= self.members.len() - self.spares {
                self.after_ms(20, 100, Event::Pull { m, life });
            }
        }
        if let (Some(RoleMutant::ResumesUnasked), Some(entry)) = (self.mutant, resumes.filter(|_| life > 0)) {
            let share = self.members[m].who.settings.holder_share();
            let member = &mut self.members[m];
            member.generation += 8;
            let mut lead = Lead::new(entry.epoch, member.generation * 8 + m as u64);
            lead.open = true;
            member.lead = Some(lead);
            member.gate_from_reply = member.clock.local(now) + share;
        }
    }

    pub fn crash(&mut self, m: usize) {
        self.say(|| format!("{} dies", self.members[m].name()));
        let kept = usize::try_from(self.prng.below(self.members[m].log.volatile_len() as u64 + 1)).expect("BUG: small");
        let reached = usize::try_from(self.prng.below(self.members[m].writing.len() as u64 + 1)).expect("BUG: small");
        let member = &mut self.members[m];
        member.control = None;
        member.life += 1;
        // What was on its way to the disks may have come there or not.
        if let Some((_, bytes)) = member.writing.iter().take(reached).next_back() {
            member.kept = Some(bytes.clone());
        }
        member.writing.clear();
        let settled = member.log.abandon(kept);
        (member.lead, member.following, member.promoting, member.fetching) = (None, None, None, None);
        (member.paused_until, member.suspended_since, member.timer, member.unsealed) = (None, None, None, None);
        member.gate_from_reply = Instant::ZERO;
        member.disk_stuck_until = 0;
        self.note_frames(&settled);
    }

    pub(super) fn tell_log(&mut self, m: usize) {
        let member = &self.members[m];
        let position = LogPosition { end: member.log.end(), history: member.log.history().clone(), covers: member.covers };
        self.input(m, Input::Log(position));
    }

    pub(super) fn note_frames(&mut self, frames: &[Frame]) {
        for frame in frames {
            let outcome = self.truth.frame(frame);
            self.fails(outcome);
        }
    }

    pub fn input(&mut self, m: usize, input: Input) {
        self.todo.push_back((m, input));
        if std::mem::replace(&mut self.busy, true) {
            return;
        }
        while let Some((m, input)) = self.todo.pop_front() {
            let (now, wall) = (self.now, UnixMicros(self.now / 1000));
            let member = &mut self.members[m];
            let Some(control) = &mut member.control else { continue };
            control.handle(member.clock.local(now), wall, input);
            while let Some(output) = self.members[m].control.as_mut().and_then(Control::poll_output) {
                self.perform(m, output);
            }
            let member = &self.members[m];
            let Some(control) = &member.control else { continue };
            let next = control.next_timeout().map(|at| member.clock.real(at, now + 1000));
            if let Some(at) = next.filter(|at| self.members[m].timer.is_none_or(|known| *at < known || known <= now)) {
                self.members[m].timer = Some(at);
                let life = self.members[m].life;
                self.at(at, Event::Timer { m, life, at });
            }
        }
        self.busy = false;
    }

    pub(super) fn disk_ms(&mut self, m: usize) -> u64 {
        let wait = self.prng.between(MS / 2, 5 * MS);
        self.members[m].disk_stuck_until.max(self.now) + wait
    }

    /// Does what the core wants, as a node would.
    fn perform(&mut self, m: usize, output: Output) {
        let life = self.members[m].life;
        if !matches!(output, Output::Persist { .. }) {
            self.say(|| {
                let mut said = match &output {
                    Output::Send { to, message } => format!("-> {to}: {message:?}"),
                    Output::OpMoved(view) => format!("OpMoved {} {:?} by {}", view.order.id, view.state, view.by),
                    other => format!("{other:?}"),
                };
                said.truncate(230);
                format!("{} {said}", self.members[m].name())
            });
        }
        match output {
            Output::Send { to, message } => self.send(m, &to, &message),
            Output::Persist { token, state } => {
                self.members[m].writing.push_back((token, state.encode()));
                let at = self.disk_ms(m);
                self.at(at, Event::Kept { m, life });
                if self.mutant == Some(RoleMutant::AnswersBeforeKept) {
                    self.input(m, Input::Persisted { token });
                }
            }
            Output::Lease { .. } => {
                let now = self.now;
                let member = &mut self.members[m];
                member.gate_from_reply = member.clock.local(now) + member.who.settings.holder_share();
            }
            Output::Touch => {
                let lead = self.members[m].lead.as_ref().map(|l| (l.epoch, l.generation));
                if let Some((epoch, generation)) = lead {
                    self.append(m, epoch, generation, Kind::Empty);
                }
            }
            Output::Drain { op, deadline } => {
                let now = self.now;
                let member = &mut self.members[m];
                if let Some(lead) = &mut member.lead {
                    lead.draining = Some(op);
                }
                let at = member.clock.real(deadline, now);
                self.at(at, Event::DrainEnds { m, life, op });
                self.check_drained(m);
            }
            Output::Undrain { .. } => {
                if let Some(lead) = &mut self.members[m].lead {
                    lead.draining = None;
                }
            }
            Output::Seal { op, epoch, .. } => {
                let Some(generation) = self.members[m].lead.as_ref().filter(|l| l.epoch == epoch).map(|l| l.generation) else { return };
                let end = self.append(m, epoch, generation, Kind::Handover);
                let unseals = self.mutant == Some(RoleMutant::UnsealsItself);
                let member = &mut self.members[m];
                let lead = member.lead.as_mut().expect("BUG: just seen");
                lead.sealing = Some((op, end));
                if unseals {
                    (member.unsealed, lead.draining) = (Some(epoch), None);
                }
            }
            Output::CatchUp { from, up_to } => {
                let member = &mut self.members[m];
                member.fetching = Some((from.clone(), up_to));
                let (end, history) = (member.log.end(), member.log.history().clone());
                if let Some(to) = self.index(&from) {
                    self.ship(m, to, Ship::Fetch { end, history, up_to });
                }
                self.after_ms(3000, 3000, Event::FetchEnds { m, life, from });
            }
            Output::Promote { epoch, how } => {
                if let Promotion::Begin { entry } = &how {
                    let outcome = self.truth.elected(entry);
                    self.fails(outcome);
                    self.last_elected = Some(self.now);
                    let kept = self.members[m].kept_state();
                    self.fails(checks::audited(entry, kept.as_ref()));
                }
                let member = &mut self.members[m];
                member.lead = None;
                member.following = None;
                member.promotion_no += 1;
                member.promoting = Some((epoch, how));
                let no = member.promotion_no;
                self.after_ms(20, 200, Event::Taken { m, life, no });
            }
            Output::Open { epoch } => self.opened(m, epoch),
            Output::Follow { primary, epoch } => {
                let keeps = self.mutant == Some(RoleMutant::ReceivesOldEpoch) && primary.is_none();
                let kept = usize::try_from(self.prng.below(self.members[m].log.volatile_len() as u64 + 1)).expect("BUG: small");
                let member = &mut self.members[m];
                let settled = member.log.abandon(kept);
                (member.lead, member.promoting) = (None, None);
                if !keeps {
                    member.following = primary.map(|p| (epoch, p));
                }
                self.note_frames(&settled);
                if !settled.is_empty() {
                    self.tell_log(m);
                }
            }
            Output::Members(members) => {
                let member = &mut self.members[m];
                member.known = *members;
                if let Some(lead) = &mut member.lead {
                    lead.leaving = None;
                    lead.secondaries.retain(|r, _| !member.known.removed.iter().any(|(gone, _)| gone == r));
                }
                self.counts.member_changes += 1;
            }
            Output::Leaving { region } => {
                if let Some(lead) = &mut self.members[m].lead {
                    lead.secondaries.remove(&region);
                    lead.leaving = Some(region);
                }
            }
            Output::Verify { op, .. } => self.after_ms(5, 100, Event::Verified { m, life, op }),
            Output::CommitRule { sync } => {
                if let Some(lead) = &mut self.members[m].lead {
                    lead.enforced = sync;
                }
            }
            Output::OpMoved(view) => {
                if view.by == *self.members[m].name() && view.state.is_final() {
                    match view.state {
                        OpState::Refused { .. } => self.counts.orders_refused += 1,
                        OpState::Superseded { .. } => self.counts.orders_superseded += 1,
                        _ => {}
                    }
                }
                let outcome = self.truth.op_moved(&view);
                self.fails(outcome);
            }
            Output::Note { kind: "voters_changed", .. } => self.counts.voter_changes += 1,
            Output::Note { kind: "witness_added" | "witness_removed", .. } => self.counts.witness_changes += 1,
            Output::Failover(_) => {
                if let Some(epoch) = self.members[m].lead.as_ref().filter(|l| l.open).map(|l| l.epoch) {
                    self.tell_tails(m, epoch);
                }
            }
            Output::LeaseLost { .. } | Output::Note { .. } => {}
        }
    }

    pub(super) fn opened(&mut self, m: usize, epoch: Epoch) {
        let Some(control) = &self.members[m].control else { return };
        let state = control.state().expect("BUG: it reigns");
        let entry = state.chain.get(epoch).expect("BUG: it reigns").clone();
        // Everything that any member keeps: a failover that was won and never opened is known to the one that won it.
        let mut records = state.ledger.failovers().to_vec();
        for kept in self.members.iter().filter_map(|m| m.kept_state()) {
            for record in kept.ledger.failovers().iter().chain(&kept.pending) {
                if !records.iter().any(|r| r.new_epoch == record.new_epoch) {
                    records.push(record.clone());
                }
            }
        }
        let path: Vec<Epoch> = state.chain.path(epoch).iter().map(|e| e.epoch).collect();
        // A suspended machine's clock stands still; what it does when it goes on is judged then.
        let writable = (0..self.regions)
            .filter(|o| *o != m && self.members[*o].suspended_since.is_none() && self.members[*o].gate_open(self.now, self.mutant))
            .map(|o| (self.members[o].name().clone(), self.members[o].lead.as_ref().expect("BUG: it can write").epoch))
            .next();
        if let Some((name, epoch)) = &writable {
            let o = &self.members[self.index(name).expect("BUG: a member")];
            let control = o.control.as_ref().expect("BUG: it can write");
            self.say(|| {
                format!("{name} can write in {epoch}: {} < {}, rate {}", o.clock.local(self.now), control.lease_until(), o.clock.rate_ppm)
            });
        }
        let outcome = self.truth.opened(&entry, &self.members[m].log, &records, &path, writable);
        self.fails(outcome.map(|_| ()));
        let wanted = self.sync_wanted && self.prng.chance(800_000);
        if let Some(lead) = self.members[m].lead.as_mut().filter(|l| l.epoch == epoch) {
            lead.open = true;
        }
        self.tell_tails(m, epoch);
        let life = self.members[m].life;
        if wanted {
            self.after_ms(10, 3000, Event::Rule { m, life, sync: 1 });
            if self.prng.chance(200_000) {
                self.after_ms(5000, 20000, Event::Rule { m, life, sync: 0 });
            }
        }
    }

    // ---- the network ----------------------------------------------------------------------------------------------------

    pub fn index(&self, name: &RegionName) -> Option<usize> {
        self.members.iter().position(|m| m.name() == name)
    }

    pub(super) fn send(&mut self, from: usize, to: &RegionName, message: &ControlMessage) {
        let Some(to) = self.index(to) else { return };
        for (to, from, forged) in self.forged(from, to, message) {
            self.after_ms(1, 20, Event::Message { to, from, bytes: forged.encode() });
        }
        self.plot_sees(from, to, message);
        self.counts.messages += 1;
        let bytes = message.encode();
        if self.network.cut.contains(&(from, to)) || self.prng.chance(self.network.loss_ppm) {
            self.counts.messages_lost += 1;
            return;
        }
        if self.prng.chance(self.network.double_ppm) {
            self.counts.messages_doubled += 1;
            let at = self.arrival();
            self.at(at, Event::Message { to, from, bytes: bytes.clone() });
        }
        let mut at = self.arrival();
        if matches!(message, ControlMessage::Handover(_)) && self.now < self.network.handovers_late_until {
            at += self.prng.between(500, 4000) * MS;
        }
        self.at(at, Event::Message { to, from, bytes });
    }

    pub(super) fn ship(&mut self, from: usize, to: usize, ship: Ship) {
        if self.network.cut.contains(&(from, to)) || self.prng.chance(self.network.loss_ppm) {
            return;
        }
        let at = self.arrival();
        self.at(at, Event::Ship { to, from, ship });
    }

    fn arrival(&mut self) -> u64 {
        let (from, to) = self.network.delay_ms;
        let late = self.prng.chance(self.network.late_ppm);
        let ms = if late { self.prng.between(to, 12_000) } else { self.prng.between(from, to) };
        self.counts.messages_late += u64::from(late);
        self.now + ms * MS + self.prng.below(MS)
    }
}
