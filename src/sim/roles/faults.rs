//! What goes wrong, and what operators order; and how mutants break a rule.
//!
//! Decides by the run's randomness alone.

use super::member::Member;
use super::mutants::{RoleMutant, forged_vote};
use super::world::{Event, MS, World};
use crate::base::Epoch;
use crate::control::{Chain, Consent, ControlMessage, Input, OpId, Order, OrderKind, VoterSet, VoterState};

impl World {
    pub(super) fn fault(&mut self) {
        if self.healthy {
            return;
        }
        if self.now < self.calm_until {
            return self.at(self.calm_until + 1, Event::Fault);
        }
        let n = self.members.len() as u64;
        let m = usize::try_from(self.prng.below(n)).expect("BUG: small");
        match self.prng.below(150) {
            100..=119 => self.siege(),
            120..=129 => self.crash_in_a_switchover(),
            130..=149 => self.plot(),
            0..=24 => self.crash_for(m, 100, 15_000),
            25..=34 => {
                // The primary, where it hurts.
                let primary = (0..self.regions).find(|r| self.members[*r].lead.is_some()).unwrap_or(m);
                self.crash_for(primary, 50, 20_000);
            }
            35..=44 => self.pause(m, false),
            45..=52 => self.pause(m, true),
            53..=60 => {
                let primary = (0..self.regions).find(|r| self.members[*r].lead.is_some()).unwrap_or(m);
                let suspends = self.prng.chance(500_000);
                self.pause(primary, suspends);
            }
            61..=80 => self.cut_links(m),
            81..=88 => {
                self.counts.stuck_disks += 1;
                self.members[m].disk_stuck_until = self.now + self.prng.between(500, 9000) * MS;
            }
            89..=94 => {
                self.network.loss_ppm = self.prng.below(300_000);
                self.network.double_ppm = self.prng.below(200_000);
                self.network.late_ppm = self.prng.below(60_000);
                self.network.delay_ms = (1, self.prng.between(5, 250));
            }
            95..=97 => self.network.cut.clear(),
            _ => {
                for m in 0..self.members.len() {
                    self.crash_for(m, 100, 3000);
                }
            }
        }
        self.after_ms(100, 6000, Event::Fault);
    }

    /// What roles are made for: the primary cannot be reached, or stands still, and somebody takes over as early as it is allowed.
    fn siege(&mut self) {
        let Some(primary) = (0..self.regions).find(|r| self.members[*r].lead.is_some()) else { return };
        let others = |n: usize| (0..n).filter(move |o| *o != primary);
        match self.prng.below(4) {
            0 | 1 => {
                self.counts.cuts += 1;
                for o in others(self.members.len()) {
                    self.network.cut.insert((primary, o));
                    self.network.cut.insert((o, primary));
                }
            }
            2 => self.pause(primary, true),
            _ => self.pause(primary, false),
        }
        if self.prng.chance(500_000) {
            // Voters that forget what is not kept.
            for o in others(self.members.len()) {
                self.crash_for(o, 20, 300);
            }
        }
        let n = others(self.regions).count() as u64;
        for _ in 0..self.prng.between(1, 2) {
            let to = others(self.regions).nth(self.prng.below(n) as usize).expect("BUG: below their number");
            let consent = Consent { allow_data_loss: true, ..Consent::default() };
            let kind = OrderKind::Failover { to: self.members[to].name().clone(), consent, primary_is_down: None };
            self.after_ms(50, 1500, Event::OrderOf { at: to, kind });
        }
    }

    fn crash_in_a_switchover(&mut self) {
        let Some(primary) = (0..self.regions).find(|r| self.members[*r].gate_open(self.now, None)) else { return };
        let to = (primary + 1 + self.prng.below(self.regions as u64 - 1) as usize) % self.regions;
        let kind = OrderKind::Switchover { to: self.members[to].name().clone() };
        if self.prng.chance(400_000) {
            // The handover is on its way for long, nothing else gets through between the two, and the primary is back soon.
            self.network.handovers_late_until = self.now + 1000 * MS;
            self.after_ms(0, 5, Event::OrderOf { at: primary, kind });
            self.after_ms(60, 300, Event::Parted { a: primary, b: to });
            self.after_ms(100, 400, Event::CrashShortly { m: primary });
            return;
        }
        let dies = if self.prng.chance(600_000) { primary } else { to };
        let target = self.prng.chance(300_000);
        self.after_ms(0, 5, Event::OrderOf { at: primary, kind });
        self.after_ms(10, 400, Event::Crash { m: dies });
        if target {
            self.after_ms(10, 400, Event::Crash { m: to });
        }
    }

    pub(super) fn order_of(&mut self, at: usize, kind: OrderKind) {
        if self.healthy || self.members[at].paused_until.is_some() {
            return;
        }
        let at_epoch = self.members[at].control.as_ref().and_then(|c| c.reign().cloned()).map(|(e, _)| e);
        let id = OpId(u128::from(self.prng.next_u64()));
        let order = Order { id, kind, dry_run: false, timeout_ms: 20_000, at_epoch, actor: "operator".into() };
        self.counts.orders += 1;
        self.orders_given.push((at, order.clone()));
        self.input(at, Input::Order(order));
    }

    pub(super) fn crash_for(&mut self, m: usize, from_ms: u64, to_ms: u64) {
        if self.members[m].control.is_none() {
            return;
        }
        self.counts.crashes += 1;
        self.crash(m);
        self.after_ms(from_ms, to_ms, Event::Restart { m });
    }

    /// SIGSTOP; with `suspends` the machine's clock stands still too.
    fn pause(&mut self, m: usize, suspends: bool) {
        let until = self.now + self.prng.between(200, 14_000) * MS;
        let member = &mut self.members[m];
        if member.control.is_none() || member.paused_until.is_some() {
            return;
        }
        if suspends {
            member.suspended_since = Some(self.now);
            self.counts.suspends += 1;
        } else {
            self.counts.pauses += 1;
        }
        self.members[m].paused_until = Some(until);
        self.say(|| format!("{} stands still until +{} ms", self.members[m].name(), until / MS));
        self.at(until, Event::Resume { m });
    }

    pub(super) fn resume(&mut self, m: usize) {
        let now = self.now;
        let member: &mut Member = &mut self.members[m];
        if member.paused_until.is_none_or(|until| until > now) {
            return;
        }
        member.paused_until = None;
        // Timers were set by a clock that may have stood still.
        member.timer = None;
        if let Some(since) = member.suspended_since.take() {
            member.clock.stood_still(since, now);
            if self.mutant != Some(RoleMutant::SuspendUnnoticed) {
                self.input(m, Input::ClockBroke { reason: "the machine was suspended".into() });
            }
        }
        self.input(m, Input::Timeout);
    }

    fn cut_links(&mut self, m: usize) {
        self.counts.cuts += 1;
        let n = self.members.len();
        let kind = self.prng.below(4);
        let other = usize::try_from(self.prng.below(n as u64)).expect("BUG: small");
        for o in 0..n {
            match kind {
                // Alone; heard by nobody; hearing nobody; two that do not see each other (a bridge).
                0 => {
                    self.network.cut.insert((m, o));
                    self.network.cut.insert((o, m));
                }
                1 => {
                    self.network.cut.insert((m, o));
                }
                2 => {
                    self.network.cut.insert((o, m));
                }
                _ => {
                    self.network.cut.insert((m, other));
                    self.network.cut.insert((other, m));
                }
            }
        }
    }

    /// Everything is well from here on.
    pub(super) fn heal(&mut self) {
        self.healthy = true;
        self.say(|| "everything is well from here on".into());
        self.network.cut.clear();
        self.network.loss_ppm = 0;
        self.network.double_ppm = 0;
        self.network.late_ppm = 0;
        self.network.delay_ms = (1, 40);
        self.after_ms(1000, 3000, Event::TakeBack);
        for m in 0..self.members.len() {
            self.members[m].disk_stuck_until = 0;
            if self.members[m].paused_until.is_some() {
                self.members[m].paused_until = Some(self.now);
                self.resume(m);
            }
            if self.members[m].control.is_none() {
                self.at(self.now, Event::Restart { m });
            }
        }
        self.plot = None;
        self.leave_one_away();
    }

    /// Not everybody is back: those that are have to do without one region that nobody needs.
    fn leave_one_away(&mut self) {
        let m = self.prng.below(self.regions as u64) as usize;
        let states: Vec<_> = self.members.iter().filter_map(|m| m.kept_state()).collect();
        let name = self.members[m].name().clone();
        let top = states.iter().filter_map(|s| s.chain.top()).max_by_key(|t| t.epoch).cloned();
        // Its word may still be the last one where it reigned, was asked to, or has the only vote.
        let needed = self.regions == 2
            || top.is_none_or(|t| t.region == name)
            || states.iter().any(|s| {
                let among = |set: &VoterSet| set.contains(&name) && set.voters.len() < 3;
                let handed = s.handed_to.as_ref().is_some_and(|(to, _)| *to == name);
                among(&s.voters) || s.voters_next.is_some() || handed || s.voted_for.as_ref() == Some(&name) || !s.pending.is_empty()
            });
        if needed || self.members[m].lead.is_some() || !self.prng.chance(250_000) {
            return;
        }
        if self.members[m].control.is_some() {
            self.crash(m);
        }
        self.away = Some(m);
    }

    pub(super) fn order(&mut self) {
        if self.healthy {
            return;
        }
        let at = usize::try_from(self.prng.below(self.regions as u64)).expect("BUG: small");
        let to = usize::try_from(self.prng.below(self.regions as u64)).expect("BUG: small");
        let to = self.members[to].name().clone();
        if self.members[at].paused_until.is_some() {
            return self.after_ms(500, 5000, Event::Order);
        }
        let again = self.prng.chance(150_000);
        if let Some((_, order)) = self.orders_given.last().cloned().filter(|_| again) {
            self.input(at, Input::Order(order));
        } else {
            let kind = match self.prng.below(20) {
                0..=9 => OrderKind::Switchover { to },
                10..=17 => {
                    let allow = self.prng.chance(800_000);
                    let max_loss_ms = self.prng.chance(200_000).then(|| self.prng.between(100, 10_000));
                    let consent = Consent { allow_data_loss: allow, max_loss_ms, max_loss_bytes: None };
                    OrderKind::Failover { to, consent, primary_is_down: None }
                }
                18 => OrderKind::SetVoters { voters: self.other_voters(at) },
                _ if self.prng.chance(500_000) => OrderKind::RemoveRegion { region: to },
                _ => OrderKind::AddRegion { region: self.one_taken_out().unwrap_or(to), addr: String::new() },
            };
            let id = OpId(u128::from(self.prng.next_u64()));
            let dry_run = self.prng.chance(50_000);
            let timeout_ms = self.prng.between(1000, 30_000);
            // As the command line does: the epoch that its operator saw.
            let at_epoch = self.members[at].control.as_ref().and_then(|c| c.reign().cloned()).map(|(e, _)| e);
            let order = Order { id, kind, dry_run, timeout_ms, at_epoch, actor: "operator".into() };
            self.counts.orders += 1;
            // A command that reaches no process was never given, and is not repeated elsewhere.
            if self.members[at].control.is_some() {
                self.orders_given.push((at, order.clone()));
            }
            self.input(at, Input::Order(order));
        }
        self.after_ms(500, 9000, Event::Order);
    }

    /// Orders that make sense, as far as the region that is asked knows, and some that do not.
    pub(super) fn order_witness(&mut self) {
        if self.healthy {
            return;
        }
        self.after_ms(3000, 18_000, Event::OrderWitness);
        let at = usize::try_from(self.prng.below(self.regions as u64)).expect("BUG: small");
        let member = &self.members[at];
        let Some(control) = &member.control else { return };
        let present = control.view(member.clock.local(self.now)).witness;
        let drawn = self.members.len() - 1 - usize::try_from(self.prng.below(self.spares as u64)).expect("BUG: small");
        let drawn = self.members[drawn].name().clone();
        let makes_sense = self.prng.chance(800_000);
        let kind = match present {
            Some(witness) if makes_sense => OrderKind::RemoveWitness { witness },
            None if !makes_sense => OrderKind::RemoveWitness { witness: drawn },
            _ => OrderKind::AddWitness { witness: drawn, addr: "there:7700".into(), zone: None },
        };
        self.order_of(at, kind);
    }

    /// As a member that can write has it.
    fn one_taken_out(&mut self) -> Option<crate::base::RegionName> {
        let now = self.now;
        let primary = self.members[..self.regions].iter().find(|m| m.gate_open(now, None))?;
        let members = primary.control.as_ref()?.state()?.voters.members.clone()?;
        members.removed.last().map(|(r, _)| r.clone())
    }

    /// At the end all regions are members again.
    pub(super) fn take_back(&mut self) {
        let primary = (0..self.regions).find(|m| self.members[*m].gate_open(self.now, None));
        if let (Some(at), Some(region)) = (primary, self.one_taken_out()) {
            let at_epoch = self.members[at].control.as_ref().and_then(|c| c.reign().cloned()).map(|(e, _)| e);
            let id = OpId(u128::from(self.prng.next_u64()));
            let kind = OrderKind::AddRegion { region, addr: String::new() };
            self.input(at, Input::Order(Order { id, kind, dry_run: false, timeout_ms: 20_000, at_epoch, actor: "operator".into() }));
        }
        self.after_ms(1000, 3000, Event::TakeBack);
    }

    /// The voters, one of them exchanged, or one more or less.
    fn other_voters(&mut self, at: usize) -> Vec<crate::base::RegionName> {
        let set = self.members[at].control.as_ref().and_then(|c| c.state()).map(|s| s.voters.clone());
        let mut voters = set.map_or_else(Vec::new, |s: VoterSet| s.voters);
        let who = &self.members[at].who;
        let outside: Vec<_> = who.regions.iter().chain(&who.witness).filter(|r| !voters.contains(r)).cloned().collect();
        if !voters.is_empty() && (voters.len() > 2 || !outside.is_empty()) && self.prng.chance(700_000) {
            let gone = usize::try_from(self.prng.below(voters.len() as u64)).expect("BUG: small");
            voters.remove(gone);
        }
        if !outside.is_empty() && self.prng.chance(800_000) {
            let new = usize::try_from(self.prng.below(outside.len() as u64)).expect("BUG: small");
            voters.push(outside[new].clone());
        }
        voters
    }

    // ---- mutants --------------------------------------------------------------------------------------------------------

    /// What a member's storage gives back after a restart.
    pub(super) fn tamper_kept(&mut self, m: usize, state: &mut VoterState) {
        match self.mutant {
            Some(RoleMutant::VotesAfterRestart) => state.grant_ms_max = 0,
            Some(RoleMutant::VoterLosesState) if self.prng.chance(500_000) => {
                let voters = VoterSet { heard: Vec::new(), ..state.voters.clone() };
                let chain = std::mem::take(&mut state.chain);
                *state = VoterState::joining(state.lineage, voters);
                if let Some(first) = chain.entries().first() {
                    state.chain.insert(first.clone()).expect("BUG: an empty chain takes anything");
                }
            }
            Some(RoleMutant::ResumesSealed) => {
                let own = state.chain.top().filter(|t| t.region == *self.members[m].name() && t.epoch == state.sealed).map(|t| t.epoch);
                if let Some(epoch) = own {
                    (state.sealed, state.released, state.promised) = (Epoch(0), Epoch(0), epoch);
                    (state.voted_for, state.handed_to) = (None, None);
                }
            }
            _ => {}
        }
    }

    /// What becomes of a message on its way.
    pub(super) fn tampered(&mut self, to: usize, from: usize, mut message: ControlMessage) -> ControlMessage {
        let sender = self.members[from].name();
        let forgets = |chain: &Chain| {
            let mut kept = Chain::default();
            for entry in chain.entries().iter().filter(|e| e.epoch == Epoch(1) || e.region == *sender) {
                kept.insert(entry.clone()).expect("BUG: part of a chain is one");
            }
            kept
        };
        match (self.mutant, &mut message) {
            (Some(RoleMutant::IgnoresGrants), ControlMessage::Renew(renew)) if to != from => renew.lease_ms = 0,
            (Some(RoleMutant::NoChainAtVoters), ControlMessage::Voted(voted)) => voted.chain = forgets(&voted.chain),
            (Some(RoleMutant::NoChainAtVoters), ControlMessage::Stands(stands)) => stands.chain = forgets(&stands.chain),
            _ => {}
        }
        message
    }

    /// Messages that nobody sent: (to, from, what).
    pub(super) fn forged(&self, from: usize, to: usize, message: &ControlMessage) -> Vec<(usize, usize, ControlMessage)> {
        let Some(control) = &self.members[from].control else { return Vec::new() };
        match (self.mutant, message) {
            (Some(RoleMutant::NoMajority), ControlMessage::Vote(vote)) => {
                let state = control.state().expect("BUG: it asks for votes");
                vec![(from, to, forged_vote(state, vote))]
            }
            (Some(RoleMutant::VotersWithoutOld), ControlMessage::Renew(renew)) if renew.voters_next.is_some() => {
                let granted = ControlMessage::Granted { epoch: renew.entry.epoch, round: renew.round, ledger_digest: 0 };
                vec![(from, to, granted)]
            }
            _ => Vec::new(),
        }
    }
}
