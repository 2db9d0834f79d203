//! What can happen next in a state of the model, and what becomes of it.
//!
//! A step is one thing: a message arrives or is lost, a link is held up or let go, time goes on by a tick, a member dies or comes back,
//! something is written, shipped, taken or ordered. The schedule is bounded by its delays: what is under way on links that are not held
//! arrives, in one fixed order, before anything else than a fault happens; each held link and each fault is counted. A member keeps what
//! its core hands out within the step (a crash between is a crash before the step), and what it appends is durable.

use super::member::append;
use super::state::{Member, Rules, State, now};
use crate::control::{ControlMessage, Input};
use crate::sim::roles::RoleMutant;
use crate::sim::roles::log::Kind;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Arrives {
        from: usize,
        to: usize,
    },
    Lost {
        from: usize,
        to: usize,
    },
    /// What goes over it waits, beyond two messages it is lost, and nothing is shipped.
    Held {
        from: usize,
        to: usize,
    },
    /// All links of this member.
    Alone {
        m: usize,
    },
    /// All links of this member, and no others any more; what waited on those is lost.
    Instead {
        m: usize,
    },
    /// Whatever this member says from now on; what waits on other links comes late.
    Mute {
        m: usize,
    },
    /// What waited comes late.
    LetGo,
    /// `slow`: this member's clock does not move; behind the members, that of a region's copies.
    Tick {
        slow: Option<usize>,
    },
    /// The machine stands still, and nobody there notices: none of its clocks goes on. Its copies are on others.
    Suspends {
        m: usize,
    },
    Resumes {
        m: usize,
    },
    /// `silent`: what it sent last never left.
    Dies {
        m: usize,
        silent: bool,
    },
    Starts {
        m: usize,
    },
    Writes {
        m: usize,
    },
    /// Copies with a clock of their own take what was written, and it is acknowledged: late answers of a machine that stood still between are not in it.
    CopiesTake {
        m: usize,
    },
    Acknowledges {
        m: usize,
    },
    Ships {
        from: usize,
        to: usize,
    },
    Taken {
        m: usize,
    },
    Fetched {
        m: usize,
    },
    Ordered {
        no: usize,
    },
}

impl State {
    /// What has to happen next, when nothing else can.
    pub fn only(&self, rules: &Rules) -> Option<Step> {
        let (b, used) = (&rules.bounds, &self.used);
        let strikes = used.crashes < b.crashes || used.held < b.held;
        let scripted = b.script.get(usize::from(used.script)).is_some_and(|(_, midst)| *midst);
        if strikes || scripted || used.losses < b.losses { None } else { self.due(rules) }
    }

    /// Everything that can happen now, within the bounds.
    pub fn steps(&self, rules: &Rules) -> Vec<Step> {
        let (n, b, used) = (rules.who.len(), &rules.bounds, &self.used);
        let lives = |m: usize| self.members[m].control.is_some();
        let runs = |m: usize| lives(m) && !self.is_suspended(m);
        let due = self.due(rules);
        let mut steps = Vec::new();
        if let Some((fault, _)) = b.script.get(usize::from(used.script)).filter(|(_, midst)| due.is_none() || *midst)
            && !matches!(fault, Step::Dies { m, .. } if !lives(*m))
        {
            steps.push(*fault);
        }
        if used.crashes < b.crashes {
            for m in (0..n).filter(|m| lives(*m)) {
                steps.extend([Step::Dies { m, silent: false }, Step::Dies { m, silent: true }]);
            }
        }
        if used.held < b.held {
            let links = (0..n).flat_map(|from| (0..n).map(move |to| (from, to))).filter(|(from, to)| from != to);
            let held = |(from, to): (usize, usize)| self.is_held(rules, from, to);
            steps.extend(links.filter(|link| !held(*link)).map(|(from, to)| Step::Held { from, to }));
        }
        if let Some(due) = due {
            if let (Step::Arrives { from, to }, true) = (due, used.losses < b.losses) {
                steps.push(Step::Lost { from, to });
            }
            steps.push(due);
            return steps;
        }
        if used.held < b.held {
            steps.extend((0..n).map(|m| Step::Alone { m }));
        }
        if self.held != 0 && b.script.is_empty() {
            steps.push(Step::LetGo);
        }
        let written = !b.writes_late || b.script.iter().skip(used.script.into()).all(|(fault, _)| *fault == Step::LetGo);
        steps.push(Step::Tick { slow: None });
        if used.drift < b.drift {
            let clocks = if b.gates { n + rules.regions } else { n };
            steps.extend((0..clocks).map(|m| Step::Tick { slow: Some(m) }));
        }
        for m in 0..n {
            if !lives(m) {
                steps.push(Step::Starts { m });
                continue;
            }
            if let Some(lead) = self.members[m].lead.filter(|l| l.open && runs(m)) {
                match lead.pending {
                    Some(_) if b.gates => steps.extend(self.copies_take(rules, m).then_some(Step::CopiesTake { m })),
                    Some(_) => steps.push(Step::Acknowledges { m }),
                    None if lead.draining.is_none() && written && used.commits < b.commits && self.gate(rules, m) => {
                        steps.push(Step::Writes { m })
                    }
                    None => {}
                }
            }
        }
        for no in (0..b.orders.len()).filter(|no| used.orders & (1 << no) == 0) {
            if runs(b.orders[no].0) {
                steps.push(Step::Ordered { no });
            }
        }
        steps
    }

    pub(super) fn is_held(&self, rules: &Rules, from: usize, to: usize) -> bool {
        self.held & (1 << rules.link(from, to)) != 0 || self.is_suspended(to)
    }

    fn is_suspended(&self, m: usize) -> bool {
        self.suspended & (1 << m) != 0
    }

    pub(super) fn copies_take(&self, rules: &Rules, m: usize) -> bool {
        !rules.bounds.gates || rules.mutant == Some(RoleMutant::NoStorageGate) || self.members[m].copies.takes()
    }

    /// What is under way and comes next.
    pub(super) fn due(&self, rules: &Rules) -> Option<Step> {
        let n = rules.who.len();
        for m in (0..n).filter(|m| self.members[*m].control.is_some() && !self.is_suspended(*m)) {
            let member = &self.members[m];
            if member.promoting.is_some() {
                return Some(Step::Taken { m });
            }
            if let Some((from, up_to)) = &member.fetching {
                let source = rules.index(from);
                if self.members[source].log.holds(up_to) && !self.is_held(rules, source, m) && !self.is_suspended(source) {
                    return Some(Step::Fetched { m });
                }
            }
        }
        let links = (0..n).flat_map(|from| (0..n).map(move |to| (from, to))).filter(|(from, to)| from != to);
        let free: Vec<(usize, usize)> = links.filter(|(from, to)| !self.is_held(rules, *from, *to)).collect();
        let arrives = free.iter().find(|(from, to)| !self.links[rules.link(*from, *to)].is_empty() && self.members[*to].control.is_some());
        if let Some((from, to)) = arrives {
            return Some(Step::Arrives { from: *from, to: *to });
        }
        let ships = |(from, to): &&(usize, usize)| *from < rules.regions && *to < rules.regions && self.may_ship(rules, *from, *to);
        free.iter().find(ships).map(|(from, to)| Step::Ships { from: *from, to: *to })
    }

    fn may_ship(&self, rules: &Rules, from: usize, to: usize) -> bool {
        let (p, s) = (&self.members[from], &self.members[to]);
        let Some((epoch, primary)) = &s.following else { return false };
        let receives = rules.mutant == Some(RoleMutant::ReceivesOldEpoch);
        let may = s.control.as_ref().is_some_and(|c| receives || c.may_receive(*epoch));
        // A sealed primary ships on.
        let ships = p.lead.is_some_and(|l| l.open && l.epoch == *epoch) && !self.is_suspended(from);
        rules.index(primary) == from && may && ships && s.promoting.is_none() && s.lead.is_none() && s.log.end() != p.log.end()
    }

    pub(super) fn gate(&self, rules: &Rules, m: usize) -> bool {
        let member = &self.members[m];
        let (Some(lead), Some(control)) = (&member.lead, &member.control) else { return false };
        if !lead.open {
            return false;
        }
        match rules.mutant {
            Some(RoleMutant::AckWithoutLease) => true,
            Some(RoleMutant::LeaseFromReply) if member.gate_from_reply > member.clock => true,
            _ => now(member) < control.lease_until(),
        }
    }

    /// The state after a step.
    ///
    /// # Errors
    /// When a rule does not hold.
    pub fn after(&self, rules: &Rules, step: Step) -> Result<State, String> {
        let mut next = self.clone();
        next.happens(rules, step)?;
        Ok(next)
    }

    /// It is about to change.
    pub(super) fn member(&mut self, m: usize) -> &mut Member {
        let member = Arc::make_mut(&mut self.members[m]);
        member.hash.take();
        member
    }

    pub(super) fn happens(&mut self, rules: &Rules, step: Step) -> Result<(), String> {
        self.used.script += u8::from(rules.bounds.script.get(usize::from(self.used.script)).is_some_and(|(next, _)| *next == step));
        match step {
            Step::Arrives { from, to } => {
                let message = self.links[rules.link(from, to)].pop_front().expect("BUG: it is on its way");
                let mut message = Arc::unwrap_or_clone(message);
                if let (Some(RoleMutant::IgnoresGrants), ControlMessage::Renew(renew)) = (rules.mutant, &mut message) {
                    renew.lease_ms = 0;
                }
                if let (Some(RoleMutant::LeaseFromReply), ControlMessage::Granted { epoch, .. }) = (rules.mutant, &message) {
                    // With its own it is a majority of three.
                    let member = self.member(to);
                    if member.lead.is_some_and(|l| l.open && l.epoch == *epoch) {
                        member.gate_from_reply = member.clock + member.share;
                    }
                }
                let from = rules.who[from].name.clone();
                self.input(rules, to, Input::Message { from, message })
            }
            Step::Lost { from, to } => {
                self.used.losses += 1;
                self.links[rules.link(from, to)].pop_front();
                Ok(())
            }
            Step::Held { from, to } => {
                self.used.held += 1;
                self.held |= 1 << rules.link(from, to);
                Ok(())
            }
            Step::Alone { m } => {
                self.used.held += 1;
                for o in (0..rules.who.len()).filter(|o| *o != m) {
                    self.held |= 1 << rules.link(o, m) | 1 << rules.link(m, o);
                }
                Ok(())
            }
            Step::Instead { m } => {
                let (n, before) = (rules.who.len(), self.held);
                self.held = 0;
                self.happens(rules, Step::Alone { m })?;
                for link in (0..n * n).filter(|link| (before & !self.held) & (1 << link) != 0) {
                    self.links[link].clear();
                }
                Ok(())
            }
            Step::Mute { m } => {
                self.used.held += 1;
                self.held = (0..rules.who.len()).filter(|o| *o != m).fold(0, |held, o| held | 1 << rules.link(m, o));
                Ok(())
            }
            Step::LetGo => {
                self.held = 0;
                Ok(())
            }
            Step::Tick { slow } => {
                self.used.drift += u8::from(slow.is_some());
                let n = rules.who.len();
                if rules.bounds.gates {
                    for m in (0..rules.regions).filter(|m| Some(n + m) != slow) {
                        self.member(m).copies.clock += 1;
                    }
                }
                let moves = |m: &usize| Some(*m) != slow && self.suspended & (1 << m) == 0;
                let moving: Vec<usize> = (0..n).filter(moves).collect();
                for m in &moving {
                    let member = self.member(*m);
                    member.clock += 1;
                    if member.control.is_some() {
                        member.hears_copies(rules, false);
                    }
                }
                for m in moving {
                    self.input(rules, m, Input::Timeout)?;
                }
                Ok(())
            }
            Step::Suspends { m } => {
                self.suspended |= 1 << m;
                Ok(())
            }
            Step::Resumes { m } => {
                self.suspended &= !(1 << m);
                // Before anything else can: they are near.
                self.member(m).hears_copies(rules, true);
                Ok(())
            }
            Step::Dies { m, silent } => {
                self.used.crashes += 1;
                let n = rules.who.len();
                for o in 0..n {
                    // Its links are gone, with what was on the way to it.
                    self.links[rules.link(o, m)].clear();
                    if silent {
                        self.links[rules.link(m, o)].clear();
                    }
                }
                let member = self.member(m);
                if rules.mutant == Some(RoleMutant::AnswersBeforeKept) {
                    member.kept = member.kept_before.take().or(member.kept.take());
                }
                (member.control, member.lead, member.following, member.promoting, member.fetching) = (None, None, None, None, None);
                member.gate_from_reply = 0;
                member.copies.forgotten();
                self.suspended &= !(1 << m);
                Ok(())
            }
            Step::Starts { m } => self.starts(rules, m),
            Step::Writes { m } => {
                let id = self.used.commits;
                self.used.commits += 1;
                let member = self.member(m);
                let lead = member.lead.as_mut().expect("BUG: it leads");
                lead.pending = Some(id);
                if rules.bounds.gates { Ok(()) } else { self.durable(rules, m) }
            }
            Step::CopiesTake { m } => {
                let epoch = self.members[m].lead.expect("BUG: it leads").epoch;
                if let Some((later, _)) = self.truth.opened.iter().find(|(e, _)| *e > epoch.0) {
                    return Err(format!("S2: what member {m} wrote in epoch {epoch} becomes durable after epoch {later} became active"));
                }
                self.durable(rules, m)?;
                // What became durable may have ended the reign that wrote it.
                if self.members[m].lead.is_some_and(|l| l.pending.is_some()) {
                    self.happens(rules, Step::Acknowledges { m })?;
                }
                Ok(())
            }
            Step::Acknowledges { m } => {
                let gate = self.gate(rules, m) || rules.mutant == Some(RoleMutant::CheckThenAck);
                let lead = self.member(m).lead.as_mut().expect("BUG: it leads");
                let (id, epoch, drains) = (lead.pending.take().expect("BUG: it waits"), lead.epoch, lead.draining);
                if gate {
                    if let Some((later, _)) = self.truth.opened.iter().find(|(e, _)| *e > epoch.0) {
                        return Err(format!("S2, S9: commit {id} of epoch {epoch} is acknowledged after epoch {later} became active"));
                    }
                    self.truth.acked.push((id, epoch.0));
                }
                match drains {
                    Some(op) => self.input(rules, m, Input::Drained { op }),
                    None => Ok(()),
                }
            }
            Step::Ships { from, to } => {
                let source = Arc::clone(&self.members[from]);
                let member = self.member(to);
                let common = source.log.history().common_seq(source.log.end().seq, member.log.history(), member.log.end().seq);
                member.log.cut(common);
                let frames = source.log.frames_behind(common, source.log.end().seq, usize::MAX);
                member.log.receive(frames);
                let last = member.log.appended();
                member.log.settle(last.seq);
                self.log_moved(rules, to)?;
                let (region, durable) = (rules.who[to].name.clone(), self.members[to].log.end());
                self.input(rules, from, Input::Secondary { region, durable })
            }
            Step::Taken { m } => self.taken(rules, m),
            Step::Fetched { m } => {
                let (from, up_to) = self.member(m).fetching.take().expect("BUG: it fetches");
                let source = Arc::clone(&self.members[rules.index(&from)]);
                let member = self.member(m);
                let end = member.log.end();
                let common = source.log.history().common_seq(source.log.end().seq, member.log.history(), end.seq);
                if common == end.seq && member.lead.is_none() {
                    member.log.receive(source.log.frames_behind(common, up_to.seq, usize::MAX));
                    let last = member.log.appended();
                    member.log.settle(last.seq);
                    self.log_moved(rules, m)?;
                }
                self.input(rules, m, Input::CaughtUp { from })
            }
            Step::Ordered { no } => {
                self.used.orders |= 1 << no;
                let (at, order) = rules.order(no);
                self.input(rules, at, Input::Order(order))
            }
        }
    }

    /// What the primary wrote last is on its copies.
    fn durable(&mut self, rules: &Rules, m: usize) -> Result<(), String> {
        let member = self.member(m);
        let lead = member.lead.expect("BUG: it leads");
        let id = lead.pending.expect("BUG: it wrote");
        append(member, lead.epoch, lead.generation, Kind::Commit(id.into()));
        self.log_moved(rules, m)?;
        self.input(rules, m, Input::CommitPathMoved)
    }
}
