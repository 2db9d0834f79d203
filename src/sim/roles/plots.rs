//! Schedules that chance hardly ever draws: an adversary that sees messages, and cuts, crashes and orders at the right moment.
//!
//! Decides nothing that could not happen by itself. Each is aimed at one rule of the protocol, and harmless while that rule is kept.

use super::world::{Event, MS, World};
use crate::base::RegionName;
use crate::control::{Consent, ControlMessage, OrderKind};

/// What is under way.
#[derive(Clone, Debug)]
pub(super) enum Plot {
    /// The old primary is cut off and `voter` elects `target`; it dies with its answer hardly out, comes back, and hears the old
    /// primary only. If it answered before it had kept its promise, it has none.
    Forgets { primary: usize, target: usize, voter: usize, answered: bool },
    /// The grants of everybody ran out, `candidate` asks, and only `receiver` hears it. Then the old primary is heard by the others, and
    /// opens again; then it reaches `receiver` only, while the others' grants run out under the candidate's eyes. If `receiver` still
    /// takes frames of the reign that it promised away, the old primary acknowledges by its word what its vote did not tell.
    Splits { primary: usize, candidate: usize, receiver: usize, stage: u8 },
}

impl World {
    fn set_cut(&mut self, a: usize, b: usize, cut: bool) {
        if a == b {
            return;
        }
        for pair in [(a, b), (b, a)] {
            if cut {
                self.network.cut.insert(pair);
            } else {
                self.network.cut.remove(&pair);
            }
        }
    }

    /// Nothing but the plot happens for so long.
    fn calm(&mut self, ms: u64) {
        self.calm_until = self.now + ms * MS;
        let network = &mut self.network;
        network.cut.clear();
        (network.loss_ppm, network.double_ppm, network.late_ppm, network.delay_ms) = (0, 0, 0, (1, 40));
    }

    fn drawn_of(&mut self, among: &[usize]) -> Option<usize> {
        let n = among.len() as u64;
        (n > 0).then(|| among[self.prng.below(n) as usize])
    }

    pub(super) fn plot(&mut self) {
        let Some(primary) = (0..self.regions).find(|r| self.members[*r].gate_open(self.now, None)) else { return };
        let lives = |w: &World, m: usize| w.members[m].control.is_some() && w.members[m].paused_until.is_none();
        let others: Vec<usize> = (0..self.members.len()).filter(|m| *m != primary && lives(self, *m)).collect();
        let voters = self.members[primary].kept_state().map(|s| s.voters.voters).unwrap_or_default();
        self.counts.plots += 1;
        match self.prng.below(3) {
            _ if self.regions == 2 && self.is_alone(&voters) => self.plot_of_a_sworn_word(primary),
            0 => self.plot_of_a_forgetful_voter(primary, &others),
            1 => {
                let outside: Vec<usize> = others.iter().copied().filter(|m| !voters.contains(self.members[*m].name())).collect();
                self.plot_of_a_change_of_voters(primary, &others, &outside);
            }
            _ if self.regions >= 5 && others.len() >= 4 => self.plot_of_a_split_vote(primary, &others),
            _ => self.plot_of_a_forgetful_voter(primary, &others),
        }
    }

    /// Two regions have one vote between them: for good, or until a witness comes.
    fn is_alone(&self, voters: &[RegionName]) -> bool {
        if self.spares > 0 { voters.len() == 1 } else { self.members.len() == 2 }
    }

    fn failover_to(&self, to: usize, allow_data_loss: bool) -> OrderKind {
        let consent = Consent { allow_data_loss, ..Consent::default() };
        OrderKind::Failover { to: self.members[to].name().clone(), consent, primary_is_down: None }
    }

    fn plot_of_a_forgetful_voter(&mut self, primary: usize, others: &[usize]) {
        let data: Vec<usize> = others.iter().copied().filter(|m| *m < self.regions).collect();
        let Some(target) = self.drawn_of(&data) else { return };
        let rest: Vec<usize> = others.iter().copied().filter(|m| *m != target).collect();
        let Some(voter) = self.drawn_of(&rest) else { return };
        self.calm(20_000);
        for o in others {
            self.set_cut(primary, *o, true);
            // A majority needs this voter's answer.
            if *o != target && *o != voter && self.members.len() <= 4 {
                self.set_cut(target, *o, true);
            }
        }
        self.members[voter].disk_stuck_until = self.now + 12_000 * MS;
        self.plot = Some(Plot::Forgets { primary, target, voter, answered: false });
        let kind = self.failover_to(target, true);
        self.after_ms(50, 1500, Event::OrderOf { at: target, kind });
    }

    /// The primary, cut off with one that has no vote, takes it in; those that it leaves behind elect another.
    fn plot_of_a_change_of_voters(&mut self, primary: usize, others: &[usize], outside: &[usize]) {
        let Some(new) = self.drawn_of(outside) else { return };
        let Some(state) = self.members[primary].kept_state() else { return };
        let own = self.members[primary].name().clone();
        let mut voters = state.voters.voters;
        let Some(gone) = voters.iter().position(|v| *v != own) else { return };
        voters[gone] = self.members[new].name().clone();
        let left: Vec<usize> = others.iter().copied().filter(|m| *m != new).collect();
        let candidates: Vec<usize> =
            left.iter().copied().filter(|m| *m < self.regions && voters.contains(self.members[*m].name())).collect();
        let Some(to) = self.drawn_of(&candidates) else { return };
        self.calm(20_000);
        for o in left {
            self.set_cut(primary, o, true);
            self.set_cut(new, o, true);
        }
        self.order_of(primary, OrderKind::SetVoters { voters });
        let kind = self.failover_to(to, true);
        self.after_ms(50, 1500, Event::OrderOf { at: to, kind });
    }

    pub(super) fn plot_of_a_split_vote(&mut self, primary: usize, others: &[usize]) {
        let data: Vec<usize> = others.iter().copied().filter(|m| *m < self.regions).collect();
        let Some(candidate) = self.drawn_of(&data) else { return };
        let rest: Vec<usize> = data.iter().copied().filter(|m| *m != candidate).collect();
        let Some(receiver) = self.drawn_of(&rest) else { return };
        // Enough for everybody to have the rule, and then for all grants to run out.
        self.calm(40_000);
        self.set_rule(primary, 1);
        self.plot = Some(Plot::Splits { primary, candidate, receiver, stage: 0 });
        self.after_ms(3500, 4000, Event::Plot);
    }

    /// Two regions, one vote: an operator stops the primary, says so, and lets it come back when it can hear of that. Or he is wrong: it only
    /// is not heard; or it comes back where it hears nobody.
    fn plot_of_a_sworn_word(&mut self, primary: usize) {
        let to = 1 - primary;
        // One that believes to have the only vote asks nobody for a word. It may not have heard of the last reign.
        let asks = self.members[to].kept_state().is_some_and(|s| !s.voters.contains(self.members[to].name()));
        if !asks || self.members[to].paused_until.is_some() {
            return;
        }
        self.calm(45_000);
        let stopped = self.prng.chance(750_000);
        if stopped {
            self.counts.crashes += 1;
            self.crash(primary);
            self.sworn = Some(primary);
            if self.prng.chance(200_000) {
                self.after_ms(5_000, 20_000, Event::RestartUnheard { m: primary });
            }
        } else {
            self.forswears(primary);
        }
        let primary_is_down = Some(self.members[primary].name().clone());
        let consent = Consent { allow_data_loss: true, ..Consent::default() };
        let kind = OrderKind::Failover { to: self.members[to].name().clone(), consent, primary_is_down };
        self.after_ms(100, 3000, Event::OrderOf { at: to, kind });
        self.after_ms(25_000, 35_000, Event::RestartHeard { m: primary });
    }

    /// It writes, or may write, where the other region does not hear it.
    fn forswears(&mut self, m: usize) {
        let name = self.members[m].name().clone();
        self.say(|| format!("the word that {name} is stopped is not true any more"));
        self.truth.forsworn(&name);
        self.set_cut(m, 1 - m, true);
    }

    pub(super) fn restart_unheard(&mut self, m: usize) {
        if self.sworn == Some(m) && self.members[m].control.is_none() && !self.healthy {
            self.forswears(m);
            self.start(m);
        }
    }

    /// Until it has heard, and kept, who has the vote by that word, its operator looks after it: it runs only where it hears the other.
    pub(super) fn restart_heard(&mut self, m: usize) {
        let other = 1 - m;
        self.network.cut.clear();
        let hears = self.members[other].control.is_some() && self.members[other].paused_until.is_none();
        if self.members[m].control.is_none() && hears {
            self.start(m);
        }
        if self.sworn == Some(m) {
            let version = |m: usize| self.members[m].kept_state().map_or(0, |s| s.voters.version);
            if self.members[m].control.is_some() && version(m) >= version(other) {
                self.sworn = None;
            } else {
                self.calm_until = self.calm_until.max(self.now + 8000 * MS);
                self.after_ms(3000, 6000, Event::RestartHeard { m });
            }
        }
    }

    /// A message is about to be sent: links that are cut now do not take it.
    pub(super) fn plot_sees(&mut self, from: usize, to: usize, message: &ControlMessage) {
        match (&mut self.plot, message) {
            (Some(Plot::Forgets { voter, target, answered, .. }), ControlMessage::Voted(_))
                if from == *voter && to == *target && !*answered =>
            {
                *answered = true;
                self.after_ms(1, 45, Event::Plot);
            }
            (Some(Plot::Splits { candidate, stage, .. }), ControlMessage::Vote(_)) if from == *candidate && *stage == 1 => {
                *stage = 2;
                self.plot_goes_on();
            }
            _ => {}
        }
    }

    pub(super) fn plot_goes_on(&mut self) {
        if self.healthy {
            return;
        }
        match self.plot.clone() {
            Some(Plot::Forgets { primary, target, voter, .. }) => {
                self.crash_for(voter, 20, 300);
                self.set_cut(voter, target, true);
                self.set_cut(voter, primary, false);
                self.plot = None;
            }
            Some(Plot::Splits { primary, candidate, receiver, stage }) => {
                let others = |w: &World| (0..w.members.len()).filter(|o| ![primary, candidate, receiver].contains(o)).collect::<Vec<_>>();
                match stage {
                    0 => {
                        for o in (0..self.members.len()).filter(|o| *o != primary) {
                            self.set_cut(primary, o, true);
                        }
                        let kind = self.failover_to(candidate, false);
                        self.after_ms(200, 2000, Event::OrderOf { at: candidate, kind });
                    }
                    2 => {
                        for o in others(self) {
                            self.set_cut(candidate, o, true);
                            self.set_cut(receiver, o, true);
                            self.set_cut(primary, o, false);
                        }
                        let wait = self.prng.between(900, 2200);
                        self.at(self.now + wait * MS, Event::Plot);
                    }
                    _ => {
                        for o in others(self) {
                            self.set_cut(candidate, o, false);
                            self.set_cut(primary, o, true);
                        }
                        self.set_cut(primary, receiver, false);
                    }
                }
                let next = match stage {
                    0 => Some(1),
                    2 => Some(3),
                    _ => None,
                };
                self.plot = next.map(|stage| Plot::Splits { primary, candidate, receiver, stage });
            }
            None => {}
        }
    }
}
