//! What the model's members do: a core is handed an input, what it wants is carried out at once, and what must hold is looked at.
//!
//! Which steps there are, and which states are the same, is in [`super::steps`] and [`super::state`].

use super::state::{LINK_MAX, Lead, Member, Rules, State, TICK_NS, now};
use crate::base::{Epoch, LogEnd, Prng, UnixMicros};
use crate::control::{Control, ControlMessage, EpochEntry, Input, LogPosition, Output, Promotion, ReignKind, VoterSet, VoterState};
use crate::sim::roles::RoleMutant;
use crate::sim::roles::log::Kind;
use crate::sim::roles::mutants::forged_vote;
use std::collections::VecDeque;
use std::sync::Arc;

impl Member {
    pub(super) fn hears_copies(&mut self, rules: &Rules, after: bool) {
        if rules.bounds.gates {
            self.copies.heard(self.clock, after);
        }
    }
}

impl State {
    pub(super) fn starts(&mut self, rules: &Rules, m: usize) -> Result<(), String> {
        let member = self.member(m);
        member.lives += 1;
        let mut kept = member.kept.clone();
        let restarts = member.lives > 1;
        if let Some(state) = kept.as_mut().filter(|_| restarts) {
            match rules.mutant {
                Some(RoleMutant::VotesAfterRestart) => state.grant_ms_max = 0,
                Some(RoleMutant::VoterLosesState) => {
                    let voters = VoterSet { heard: Vec::new(), ..state.voters.clone() };
                    let first = state.chain.entries().first().cloned();
                    *state = VoterState::joining(state.lineage, voters);
                    if let Some(entry) = first {
                        state.chain.insert(entry).expect("BUG: an empty chain takes anything");
                    }
                }
                Some(RoleMutant::ResumesSealed) => {
                    let own = state.chain.top().filter(|t| t.region == rules.who[m].name && t.epoch == state.sealed).map(|t| t.epoch);
                    if let Some(epoch) = own {
                        (state.sealed, state.released, state.promised) = (Epoch(0), Epoch(0), epoch);
                        (state.voted_for, state.handed_to) = (None, None);
                    }
                }
                _ => {}
            }
        }
        let prng = Prng::new((m as u64) << 32 | member.lives);
        let control = Control::new(rules.who[m].clone(), kept, now(member), prng);
        member.control = Some(control);
        member.hears_copies(rules, false);
        if m < rules.regions { self.log_moved(rules, m) } else { self.input(rules, m, Input::Timeout) }
    }

    pub(super) fn log_moved(&mut self, rules: &Rules, m: usize) -> Result<(), String> {
        let log = &self.members[m].log;
        let position = LogPosition { end: log.end(), history: log.history().clone(), covers: None };
        self.input(rules, m, Input::Log(position))
    }

    pub(super) fn taken(&mut self, rules: &Rules, m: usize) -> Result<(), String> {
        let member = self.member(m);
        let Some((epoch, how)) = member.promoting.take() else { return Ok(()) };
        member.generation += 1;
        let generation = member.generation * 8 + m as u64;
        let kind = match &how {
            Promotion::Begin { entry } => {
                if !member.log.holds(&entry.base) {
                    return Err(format!("S3: r{m} is to begin behind {}, which its log does not hold", entry.base));
                }
                member.log.cut(entry.base.seq);
                Kind::EpochStart
            }
            Promotion::Resume => Kind::GenerationStart,
        };
        member.lead = Some(Lead { epoch, generation, open: false, pending: None, draining: None });
        // They answered as they were fenced.
        member.hears_copies(rules, false);
        append(member, epoch, generation, kind);
        let start = member.log.end();
        self.log_moved(rules, m)?;
        self.input(rules, m, Input::Promoted { epoch, start })
    }

    /// Hands one input in and does what comes out, until nothing does.
    pub(super) fn input(&mut self, rules: &Rules, m: usize, input: Input) -> Result<(), String> {
        let mut todo = VecDeque::from([input]);
        if self.members[m].control.is_none() {
            return Ok(());
        }
        let hasty = rules.mutant == Some(RoleMutant::AnswersBeforeKept);
        let before = if hasty { self.members[m].kept.clone() } else { None };
        while let Some(input) = todo.pop_front() {
            let member = self.member(m);
            let at = now(member);
            let Some(control) = &mut member.control else { break };
            control.handle(at, UnixMicros(0), input);
            while let Some(output) = self.member(m).control.as_mut().and_then(Control::poll_output) {
                self.perform(rules, m, output, &mut todo)?;
            }
        }
        if hasty && self.members[m].kept != before {
            self.member(m).kept_before = before;
        }
        Ok(())
    }

    fn perform(&mut self, rules: &Rules, m: usize, output: Output, todo: &mut VecDeque<Input>) -> Result<(), String> {
        match output {
            Output::Send { to, message } => {
                let to = rules.index(&to);
                if let (Some(RoleMutant::NoMajority), ControlMessage::Vote(vote)) = (rules.mutant, &message) {
                    let state = self.members[m].control.as_ref().and_then(Control::state).expect("BUG: it asks for votes");
                    let forged = forged_vote(state, vote);
                    todo.push_back(Input::Message { from: rules.who[to].name.clone(), message: forged });
                }
                // What is told again and again, and decides nothing here, is lost on its way.
                let waits = self.is_held(rules, m, to);
                let link = &mut self.links[rules.link(m, to)];
                if !matches!(message, ControlMessage::Ledger(_)) && (!waits || link.len() < LINK_MAX) && self.members[to].control.is_some()
                {
                    link.push_back(Arc::new(message));
                }
            }
            Output::Persist { token, state } => {
                let known = self.members[m].kept.as_ref().map_or(Epoch(0), |s| s.promised);
                if state.promised < known && rules.mutant.is_none() {
                    return Err(format!("S1: member {m} promised epoch {known} and then stood at {}", state.promised));
                }
                self.member(m).kept = Some(*state);
                todo.push_back(Input::Persisted { token });
            }
            Output::Lease { until } => {
                let member = self.member(m);
                let sent = until.ns / TICK_NS - member.share;
                match rules.mutant {
                    Some(RoleMutant::GateFromAnswer) => member.copies.leased_by_answer(member.clock, member.share),
                    _ => member.copies.leased(sent, member.share),
                }
            }
            Output::Touch => todo.push_back(Input::CommitPathMoved),
            Output::Drain { op, .. } => {
                let lead = self.member(m).lead.as_mut();
                match lead {
                    Some(lead) if lead.pending.is_some() => lead.draining = Some(op),
                    _ => todo.push_back(Input::Drained { op }),
                }
            }
            Output::Undrain { .. } => {
                if let Some(lead) = &mut self.member(m).lead {
                    lead.draining = None;
                }
            }
            Output::Seal { op, epoch, .. } => {
                let member = self.member(m);
                let Some(generation) = member.lead.filter(|l| l.epoch == epoch).map(|l| l.generation) else { return Ok(()) };
                let at = append(member, epoch, generation, Kind::Handover);
                let log = LogPosition { end: at, history: member.log.history().clone(), covers: None };
                todo.extend([Input::Log(log), Input::Sealed { op, at }]);
            }
            Output::CatchUp { from, up_to } => self.member(m).fetching = Some((from, up_to)),
            Output::Promote { epoch, how } => {
                if let Promotion::Begin { entry } = &how {
                    self.elected(m, entry)?;
                }
                let member = self.member(m);
                (member.lead, member.following, member.promoting) = (None, None, Some((epoch, how)));
                member.copies.without_lease();
            }
            Output::Open { epoch } => self.opened(rules, m, epoch)?,
            Output::Follow { epoch, primary } => {
                let keeps = rules.mutant == Some(RoleMutant::ReceivesOldEpoch) && primary.is_none();
                let member = self.member(m);
                (member.lead, member.promoting) = (None, None);
                member.copies.without_lease();
                if !keeps {
                    member.following = primary.map(|p| (epoch, p));
                }
            }
            Output::Verify { op, .. } => todo.push_back(Input::Verified { op, outcome: Ok(()) }),
            Output::LeaseLost { .. }
            | Output::Members(_)
            | Output::Leaving { .. }
            | Output::CommitRule { .. }
            | Output::OpMoved(_)
            | Output::Failover(_)
            | Output::Note { .. } => {}
        }
        Ok(())
    }

    // ---- what must hold -------------------------------------------------------------------------------------------------

    fn elected(&mut self, m: usize, entry: &EpochEntry) -> Result<(), String> {
        match self.truth.elected.iter().find(|(e, _)| *e == entry.epoch.0) {
            Some((e, other)) if *other != m => Err(format!("S1: epoch {e} was won by member {other} and by member {m}")),
            Some(_) => Ok(()),
            None => {
                self.truth.elected.push((entry.epoch.0, m));
                self.truth.elected.sort_unstable();
                Ok(())
            }
        }
    }

    fn opened(&mut self, rules: &Rules, m: usize, epoch: Epoch) -> Result<(), String> {
        if let Some(o) = (0..rules.regions).find(|o| *o != m && self.gate(rules, *o) && self.copies_take(rules, *o)) {
            return Err(format!("S2: member {m} opens in epoch {epoch} while member {o} can write"));
        }
        if let Some(lead) = self.member(m).lead.as_mut().filter(|l| l.epoch == epoch) {
            lead.open = true;
        }
        let member = Arc::clone(&self.members[m]);
        let state = member.control.as_ref().and_then(Control::state).expect("BUG: it reigns");
        let entry = state.chain.get(epoch).expect("BUG: it reigns");
        let has: Vec<u8> = member.log.commits().map(|id| u8::try_from(id).expect("BUG: few commits")).collect();
        if let Some(id) = self.truth.lost.iter().find(|id| has.contains(id)) {
            return Err(format!("S8: commit {id} was lost and is back in epoch {epoch}"));
        }
        let gone: Vec<u8> =
            self.truth.acked.iter().map(|(id, _)| *id).filter(|id| !has.contains(id) && !self.truth.lost.contains(id)).collect();
        if let Some(id) = gone.first() {
            let path = state.chain.path(epoch);
            let consented = path.iter().any(|e| matches!(e.kind, ReignKind::Unplanned | ReignKind::Unproven) && e.op.is_some());
            if entry.kind == ReignKind::Planned {
                return Err(format!("S6: epoch {epoch} is planned and lost commit {id}"));
            }
            if !consented {
                return Err(format!("S5: epoch {epoch} ({:?}) lost commit {id}, and nobody agreed", entry.kind));
            }
        }
        self.truth.lost.extend(gone);
        self.truth.lost.sort_unstable();
        if !self.truth.opened.contains(&(epoch.0, m)) {
            self.truth.opened.push((epoch.0, m));
            self.truth.opened.sort_unstable();
        }
        Ok(())
    }
}

pub(super) fn append(member: &mut Member, epoch: Epoch, generation: u64, kind: Kind) -> LogEnd {
    let end = member.log.append(epoch, generation, kind);
    member.log.settle(end.seq);
    end
}
