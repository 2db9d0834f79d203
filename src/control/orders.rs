//! Operations: orders of people and of rules, carried through and told of.
//!
//! Decides which order is carried out, refused or too late, and keeps each one's phases; an order that comes again is told how it stands
//! (S16, O1 to O3). Carries out the primary's half of a switchover: checks, drain, seal, handover (protocol.md rules 15 to 20). One
//! operation at a time in a member; that of another one is not touched.

use super::api::Output;
use super::audit::Action;
use super::campaign::{Stage, Why};
use super::machine::{Control, millis};
use super::members::Membership;
use super::message::{ControlMessage, Handover, Round, Stands};
use super::types::{Check, Consent, OpId, OpState, OpView, Order, OrderKind, Phase, VoterSet};
use crate::base::{Epoch, Instant, LogEnd, RegionName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// An order that was forwarded is sent again.
const FORWARD_EVERY: Duration = Duration::from_millis(500);
/// Answers to a switchover's checks are waited for so long: longer than a control link needs to come back, when a process has just started
/// or a way was lost for a moment.
pub(super) const CHECK_PATIENCE: Duration = Duration::from_secs(4);
/// Beyond its deadline a drain is given so long, because aborting takes a moment.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    pub forwarded: BTreeMap<OpId, Forwarded>,
    pub watchers: BTreeMap<OpId, BTreeSet<RegionName>>,
    /// What this member carries out, and since when it is in its phase.
    pub running: Option<OpView>,
    pub phase_since: Instant,
    pub switching: Option<Switching>,
    pub handing: Option<Handing>,
}

#[derive(Clone, Debug)]
pub(super) struct Forwarded {
    pub order: Order,
    pub to: RegionName,
    pub next: Instant,
    pub until: Instant,
}

/// A switchover before its seal, in the primary.
#[derive(Clone, Debug)]
pub(super) struct Switching {
    pub op: OpId,
    pub to: RegionName,
    pub stage: SwitchStage,
    pub until: Instant,
}

#[derive(Clone, Debug)]
pub(super) enum SwitchStage {
    /// `asked`: every round, and when; whoever did not answer is asked again. An answer: how long it took, and whether it agrees.
    Checking {
        asked: Vec<(Round, Instant)>,
        answers: BTreeMap<RegionName, (Duration, bool)>,
    },
    Draining {
        deadline: Instant,
    },
}

/// After the seal, until somebody reigns.
#[derive(Clone, Debug)]
pub(super) struct Handing {
    pub op: OpId,
    pub to: RegionName,
    pub epoch: Epoch,
    pub at: Option<LogEnd>,
    pub next: Instant,
    pub until: Instant,
}

impl Control {
    // ---- orders come ----------------------------------------------------------------------------------------------------

    /// From an operator of this region.
    pub(super) fn ordered(&mut self, mut order: Order) {
        let reign = self.reign.clone();
        if self.state.is_none() {
            let view = self.view_of(
                &order,
                OpState::Unknown { reason: "this member has not joined a global cluster yet; order it at another".into() },
            );
            return self.outputs.push_back(Output::OpMoved(Box::new(view)));
        }
        if let Some(view) = self.op(order.id).cloned() {
            self.outputs.push_back(Output::OpMoved(Box::new(view.clone())));
            if !view.state.is_final() && view.by != self.who.name {
                self.send(view.by, ControlMessage::Ask { id: order.id });
            }
            return;
        }
        if let Some(why) = self.out().filter(|_| !matches!(order.kind, OrderKind::NewLineage { .. })) {
            // That it was taken out it may hear before it hears that this is done.
            if order.kind == (OrderKind::RemoveRegion { region: self.who.name.clone() }) {
                let view = self.view_of(&order, OpState::Done);
                return self.publish(view);
            }
            return self.ordered_outside(&order, &why);
        }
        if order.at_epoch.is_none() {
            order.at_epoch = reign.as_ref().map(|(e, _)| *e);
        }
        let executor = match &order.kind {
            OrderKind::Failover { to, .. } => Some(to.clone()),
            OrderKind::Switchover { .. } => reign.map(|(_, r)| r),
            // Of the region that is asked, whoever reigns.
            OrderKind::NewLineage { .. } => Some(self.who.name.clone()),
            OrderKind::SetVoters { .. }
            | OrderKind::AddRegion { .. }
            | OrderKind::RemoveRegion { .. }
            | OrderKind::AddWitness { .. }
            | OrderKind::RemoveWitness { .. } => reign.map(|(_, r)| r),
        };
        match executor {
            Some(to) if to == self.who.name => self.carry_out(order),
            Some(to) if self.who.regions.contains(&to) => {
                self.pass_on(order, to);
            }
            Some(to) => {
                // It may have been one when this was ordered first, elsewhere.
                let none = || {
                    self.view_of(
                        &order,
                        OpState::Refused { reason: format!("there is no region '{to}'; the regions are {}", list(&self.who.regions)) },
                    )
                };
                let view = self.overtaken(&order).unwrap_or_else(none);
                self.publish(view);
            }
            None => {
                let reason = "no primary is known here. Wait until one is, or: parhelion failover --to REGION; if this was ordered before, ask there how it stands";
                let view = self.view_of(&order, OpState::Unknown { reason: reason.into() });
                self.outputs.push_back(Output::OpMoved(Box::new(view)));
            }
        }
    }

    /// To whoever carries it out, again and again as long as it has time.
    fn pass_on(&mut self, order: Order, to: RegionName) {
        let until = self.now + Duration::from_millis(order.timeout_ms);
        self.send(to.clone(), ControlMessage::Order(order.clone()));
        let next = self.now + FORWARD_EVERY;
        self.orders.forwarded.insert(order.id, Forwarded { order, to, next, until });
    }

    pub(super) fn order_from(&mut self, from: RegionName, order: Order) {
        if self.state.is_none() {
            return;
        }
        if from != self.who.name {
            self.orders.watchers.entry(order.id).or_default().insert(from.clone());
        }
        let running = self.orders.running.as_ref().filter(|v| v.order.id == order.id);
        if let Some(view) = running.or_else(|| self.op(order.id)).cloned() {
            self.send(from, ControlMessage::Op(Box::new(view)));
            return;
        }
        match self.out() {
            // Whoever sent it has not heard of that yet.
            Some(why) => self.ordered_outside(&order, &why),
            None => self.carry_out(order),
        }
    }

    fn carry_out(&mut self, order: Order) {
        if let Some(view) = self.overtaken(&order) {
            return self.publish(view);
        }
        let (epoch, primary) = self.reign.clone().unzip();
        let top = self.st().chain.top();
        let (epoch, last) = (epoch.or(top.map(|e| e.epoch)), primary.clone().or(top.map(|e| e.region.clone())));
        let anywhere = matches!(order.kind, OrderKind::Failover { .. } | OrderKind::NewLineage { .. });
        if let Some(primary) = last.filter(|p| *p != self.who.name && !anywhere) {
            // Whoever sent it here knows of an older reign. That it is refused is only the primary's to say (seed 259 of roles).
            return self.pass_on(order, primary);
        }
        if let Some(other) = self.orders.running.as_ref().map(|v| v.order.id).or(self.orders.handing.as_ref().map(|h| h.op)) {
            let region = primary.unwrap_or_else(|| self.who.name.clone());
            let state = OpState::Superseded { by: Some(other), epoch: epoch.unwrap_or_default(), region };
            let view = self.view_of(&order, state);
            return self.publish(view);
        }
        match order.kind.clone() {
            OrderKind::Switchover { to } => self.switchover(order, to),
            OrderKind::Failover { consent, primary_is_down, .. } => self.failover(order, consent, primary_is_down.as_ref()),
            OrderKind::SetVoters { voters } => self.set_voters(order, voters),
            OrderKind::AddRegion { .. }
            | OrderKind::RemoveRegion { .. }
            | OrderKind::AddWitness { .. }
            | OrderKind::RemoveWitness { .. } => self.change_members(order),
            OrderKind::NewLineage { .. } => self.new_lineage(order),
        }
    }

    /// How an order stands that is about another reign than this one, as far as it can be told here; `None`: it is about this one.
    fn overtaken(&self, order: &Order) -> Option<OpView> {
        let epoch = self.reign.as_ref().map(|(e, _)| *e).or(self.st().chain.top().map(|e| e.epoch));
        let was = order.at_epoch.filter(|e| Some(*e) != epoch)?;
        let now = epoch.map_or_else(|| "none".into(), |e| e.to_string());
        let changed = format!("roles have changed since: it was about epoch {was}, and now it is {now}. Look at parhelion status");
        // That the same voters vote may be chance: an order that named them may have been refused all the same (seed 1203 of roles).
        if order.kind.member().is_some() && self.is_made(order) {
            return Some(self.view_of(order, OpState::Done));
        }
        // No reign names an order that changed the members or the voters, so none tells that it was not done.
        let told = if order.kind.changes_members() { None } else { self.took_effect(order.id, was) };
        let state = match told {
            Some(Some(made)) => {
                let reason = format!("it took effect in epoch {made}; whether it was seen through, the region that did it says");
                return Some(OpView { epoch: Some(made), ..self.view_of(order, OpState::Unknown { reason }) });
            }
            Some(None) => self.superseded_by(epoch).unwrap_or(OpState::Refused { reason: format!("{changed}, and order anew") }),
            None => OpState::Unknown { reason: format!("{changed} for whether it was done") },
        };
        Some(self.view_of(order, state))
    }

    /// This region was taken out: nothing is carried out here, and how an order stands that was given elsewhere before it may never hear.
    fn ordered_outside(&mut self, order: &Order, why: &str) {
        let here = order.dry_run || matches!(&order.kind, OrderKind::Failover { to, .. } if *to == self.who.name);
        let view = match self.overtaken(order) {
            Some(view) => view,
            // Only this region could have done it, and it remembers what it did.
            None if here => self.view_of(order, OpState::Refused { reason: why.to_owned() }),
            None => {
                let members = self.membership().names();
                let others: Vec<RegionName> = members.into_iter().filter(|m| *m != self.who.name).collect();
                let reason = format!(
                    "{why}. Nothing is ordered from here; if this was ordered before, one of {} knows how it stands: parhelion op {}",
                    list(&others),
                    order.id
                );
                self.view_of(order, OpState::Unknown { reason })
            }
        };
        self.publish(view);
    }

    /// The operation that made a reign, if one did.
    fn superseded_by(&self, epoch: Option<Epoch>) -> Option<OpState> {
        let entry = self.st().chain.get(epoch?)?;
        Some(OpState::Superseded { by: Some(entry.op?), epoch: entry.epoch, region: entry.region.clone() })
    }

    /// Whether an operation about the reign of `epoch` made one (which), did not, or cannot be told from what is known here.
    pub(super) fn took_effect(&self, id: OpId, epoch: Epoch) -> Option<Option<Epoch>> {
        let chain = &self.st().chain;
        // Whoever has not heard of that reign yet cannot know what became of it.
        let (reign, _) = self.reign.as_ref().filter(|(known, _)| *known >= epoch)?;
        let path = chain.path(*reign);
        if let Some(made) = path.iter().find(|e| e.op == Some(id)) {
            return Some(Some(made.epoch));
        }
        path.iter().any(|e| e.epoch <= epoch).then_some(None)
    }

    fn failover(&mut self, order: Order, consent: Consent, primary_is_down: Option<&RegionName>) {
        if !self.who.has_data || order.kind.to() != Some(&self.who.name) {
            return self.refuse_new(&order, format!("{} cannot be promoted; the regions are {}", self.who.name, list(&self.who.regions)));
        }
        if !self.log_told {
            return self.refuse_new(&order, "this region's volume is still being recovered; wait for it, then order again".into());
        }
        if let Some(holder) = self.holder.as_ref().filter(|h| h.is_open()) {
            return self.refuse_new(&order, format!("{} is the primary already, of epoch {}", self.who.name, holder.epoch()));
        }
        let alone = self.is_unproven() && !self.st().voters.contains(&self.who.name);
        if !alone && self.is_leaving(&self.who.name) {
            return self.refuse_new(&order, self.leaving_sentence(&self.who.name));
        }
        let voter = self.st().voters.voters.first().cloned();
        if alone && (primary_is_down != voter.as_ref() || !consent.allow_data_loss) {
            let voter = voter.map_or_else(|| "the primary".to_owned(), |v| v.to_string());
            let reason = format!(
                "{voter} alone votes (two regions, no witness): whether it is down cannot be proven, and if it still writes, what it acknowledges is lost. \
                 Make sure that it is stopped, then: parhelion failover --to {} --allow-data-loss --primary-is-down {voter}",
                self.who.name
            );
            return self.refuse_new(&order, reason);
        }
        // One whose operation failed goes on only because nobody else can; an operator may prefer this.
        let failed = |id: OpId| self.op(id).is_some_and(|o| o.state.is_final());
        if let Some(superseding) = self.campaign.as_ref().and_then(|c| match (&c.why, &c.stage) {
            (Why::Handover(h), Stage::Taking { .. }) => Some(h.op.order.id),
            (Why::Handover(h), _) if !failed(h.op.order.id) => Some(h.op.order.id),
            _ => None,
        }) {
            let (epoch, region) = self.reign.clone().unwrap_or((Epoch(0), self.who.name.clone()));
            let view = self.view_of(&order, OpState::Superseded { by: Some(superseding), epoch, region });
            return self.publish(view);
        }
        let deadline = self.now + Duration::from_millis(order.timeout_ms);
        let (op, actor) = (order.id, order.actor.clone());
        self.start(order);
        self.campaign_for(Why::Failover { op, consent, actor, forced: alone }, Some(deadline), self.now);
    }

    pub(super) fn leaving_sentence(&self, region: &RegionName) -> String {
        format!("{region} is being taken out of the global cluster and does not take over; order it for another region")
    }

    // ---- the primary's half of a switchover -----------------------------------------------------------------------------

    fn switchover(&mut self, order: Order, to: RegionName) {
        let Some(holder) = self.holder.as_ref().filter(|h| h.is_open()) else {
            let who = self.reign.as_ref().map_or_else(|| "unknown".into(), |(_, r)| r.to_string());
            return self.refuse_new(
                &order,
                format!(
                    "{} does not hold the lease of a primary; the primary is {who}. If that is down: parhelion failover --to {to}",
                    self.who.name
                ),
            );
        };
        if to == self.who.name {
            let epoch = holder.epoch();
            return self.refuse_new(&order, format!("{to} is the primary already, of epoch {epoch}"));
        }
        if !self.who.regions.contains(&to) {
            let witness = if self.who.witness.as_ref() == Some(&to) { " (a witness has no data)" } else { "" };
            return self.refuse_new(&order, format!("'{to}' cannot be a primary{witness}; the regions are {}", list(&self.who.regions)));
        }
        if self.is_leaving(&to) {
            return self.refuse_new(&order, self.leaving_sentence(&to));
        }
        let round = self.next_round();
        let until = self.now + Duration::from_millis(order.timeout_ms);
        let stage = SwitchStage::Checking { asked: vec![(round, self.now)], answers: BTreeMap::new() };
        self.orders.switching = Some(Switching { op: order.id, to, stage, until });
        self.start(order);
        self.send_others(&ControlMessage::Probe { round });
        self.judge_checks();
    }

    pub(super) fn order_stands(&mut self, from: &RegionName, stands: &Stands) {
        let now = self.now;
        let known = self.state.as_ref().map_or(Epoch(0), |s| s.promised);
        if let Some(Switching { stage: SwitchStage::Checking { asked, answers }, .. }) = &mut self.orders.switching
            && let Some((_, at)) = asked.iter().find(|(round, _)| *round == stands.round)
        {
            let took = now.since(*at);
            answers.entry(from.clone()).or_insert((took, false)).1 = stands.promised <= known;
            self.judge_checks();
        }
    }

    /// A question or its answer was lost, or there was no link: asked again as long as there is time.
    fn check_again(&mut self) {
        let round = self.next_round();
        let now = self.now;
        let Some(Switching { stage: SwitchStage::Checking { asked, answers }, .. }) = &mut self.orders.switching else { return };
        asked.push((round, now));
        let silent: Vec<RegionName> = self.who.others().filter(|m| !answers.contains_key(*m)).cloned().collect();
        for to in silent {
            self.send(to, ControlMessage::Probe { round });
        }
    }

    pub(super) fn judge_checks(&mut self) {
        let Some(Switching { op, to, stage: SwitchStage::Checking { asked, answers }, until }) = &self.orders.switching else { return };
        let (op, to, over) = (*op, to.clone(), (asked[0].1 + CHECK_PATIENCE).min(*until));
        let target = answers.get(&to).copied();
        let voters = self.is_majority(|v| *v == self.who.name || answers.get(v).is_some_and(|(_, agrees)| *agrees));
        let holder = self.holder.as_ref().expect("BUG: a switchover without a reign");
        let at = holder.secondaries.get(&to);
        // What may come within a moment is waited for; that it is far behind does not go so soon.
        if !(target.is_some() && voters && at.is_some()) && self.now < over {
            return;
        }
        let behind = at.map(|at| self.log.end.end_lsn.bytes_since(at.end_lsn));
        let lag_max = self.who.settings.switchover_lag_bytes_max;
        let answering = self.st().voters.voters.iter().filter(|v| **v == self.who.name || answers.contains_key(*v)).count();
        let checks = vec![
            check("lease", holder.is_open(), format!("{} holds its lease for {} ms more", self.who.name, self.lease_left_ms())),
            check(
                "target",
                target.is_some(),
                if target.is_some() { format!("{to} answers") } else { format!("{to} does not answer; look at it first") },
            ),
            match behind {
                Some(bytes) => {
                    let then = if bytes <= lag_max { "" } else { ". Wait until it has caught up" };
                    check("lag", bytes <= lag_max, format!("{to} is {bytes} bytes behind; at most {lag_max} are allowed{then}"))
                }
                None => check("lag", false, format!("{to} does not follow; see parhelion status for why")),
            },
            check(
                "voters",
                voters,
                format!("{answering} of {} voters answer and agree; a majority is needed", self.st().voters.voters.len()),
            ),
        ];
        let round_trip = target.map(|(took, _)| took);
        // Half a way for the handover, a whole one for the grant, and the new primary's disks.
        let gap = round_trip.map(|rtt| millis(rtt * 3 / 2) + 50);
        let wrong = checks.iter().find(|c| !c.ok).map(|c| c.says.clone());
        let Some(view) = &mut self.orders.running else { return };
        (view.checks, view.predicted_gap_ms) = (checks, gap);
        let dry = view.order.dry_run;
        if let Some(reason) = wrong {
            self.orders.switching = None;
            return self.op_refused(op, reason);
        }
        if dry {
            self.orders.switching = None;
            return self.finish(OpState::Done);
        }
        self.set_phase(Phase::Drain);
        let switching = self.orders.switching.as_mut().expect("BUG: just seen");
        let deadline = switching.until.min(self.now + self.who.settings.drain);
        switching.stage = SwitchStage::Draining { deadline };
        self.output_when_kept(Output::Drain { op, deadline });
    }

    pub(super) fn drained(&mut self, op: OpId) {
        let draining = self.orders.switching.as_ref().is_some_and(|s| s.op == op && matches!(s.stage, SwitchStage::Draining { .. }));
        let Some(holder) = self.holder.as_ref().filter(|h| draining && h.is_open()) else { return };
        let epoch = holder.epoch();
        let switching = self.orders.switching.take().expect("BUG: just seen");
        let to = switching.to;
        self.set_phase(Phase::Seal);
        // Never a commit point in this epoch again, whatever happens from here on (rule 20); and its own vote for the successor.
        let unproven = self.is_unproven();
        let actor = self.orders.running.as_ref().map_or_else(String::new, |v| v.order.actor.clone());
        self.audit(Action { actor, op: Some(op), kind: "seal", what: format!("epoch {epoch} is sealed and handed over to {to}") });
        let state = self.state.as_mut().expect("BUG: a primary without a state");
        (state.sealed, state.released) = (epoch, epoch);
        (state.promised, state.voted_for) = (epoch.next(), Some(to.clone()));
        state.handed_to = Some((to.clone(), op));
        if unproven {
            // The only vote goes with it: from here on the target alone decides.
            let (version, members) = (state.voters.version + 1, state.voters.members.clone());
            self.hold_voters(VoterSet { version, voters: vec![to.clone()], heard: Vec::new(), members });
        }
        self.keep();
        self.holder = None;
        let patience = self.who.settings.handover_patience;
        self.orders.handing = Some(Handing { op, to: to.clone(), epoch, at: None, next: self.now, until: self.now + patience });
        self.lease_lost(&format!("epoch {epoch} is sealed: {to} takes over"), Some(to.clone()));
        self.outputs.push_back(Output::Seal { op, epoch, to });
    }

    pub(super) fn not_drained(&mut self, op: OpId, reason: &str) {
        if self.orders.switching.as_ref().is_some_and(|s| s.op == op) {
            self.give_up_switching(reason);
        } else if let Some(handing) = self.orders.handing.as_mut().filter(|h| h.op == op && h.at.is_none()) {
            // The handover frame cannot be written: this region's copies are at fault. It asks for an epoch of its own when they are well.
            handing.until = self.now;
        }
    }

    pub(super) fn sealed(&mut self, op: OpId, at: LogEnd) {
        let now = self.now;
        let Some(handing) = self.orders.handing.as_mut().filter(|h| h.op == op && h.at.is_none()) else { return };
        (handing.at, handing.next) = (Some(at), now);
        self.set_phase(Phase::HandOver);
        self.hand_over();
    }

    fn hand_over(&mut self) {
        let next = self.now + self.who.settings.retry_every;
        let Some(handing) = &mut self.orders.handing else { return };
        let Some(at) = handing.at else { return };
        handing.next = next;
        let (op, to, epoch) = (handing.op, handing.to.clone(), handing.epoch);
        let Some(view) = self.orders.running.clone().filter(|v| v.order.id == op).or_else(|| self.op(op).cloned()) else { return };
        let vote = self.voted(epoch.next(), Round::default());
        let state = self.st();
        let handover =
            Handover { lineage: state.lineage, epoch, at, op: view, vote, voters: state.voters.clone(), ledger: state.ledger.clone() };
        self.send(to, ControlMessage::Handover(Box::new(handover)));
    }

    pub(super) fn is_draining(&self, op: OpId) -> bool {
        self.orders.switching.as_ref().is_some_and(|s| s.op == op && matches!(s.stage, SwitchStage::Draining { .. }))
    }

    pub(super) fn is_handing(&self) -> bool {
        self.orders.handing.is_some()
    }

    /// It gave its only vote away: nobody but the target can go on.
    pub(super) fn is_handing_alone(&self) -> bool {
        self.state.as_ref().is_some_and(|s| {
            s.handed_to.as_ref().is_some_and(|(to, _)| s.voters.voters == [to.clone()])
                && s.chain.top().is_some_and(|top| top.epoch == s.sealed)
        })
    }

    pub(super) fn give_up_switching(&mut self, reason: &str) {
        let Some(switching) = self.orders.switching.take() else { return };
        if matches!(switching.stage, SwitchStage::Draining { .. }) {
            self.outputs.push_back(Output::Undrain { op: switching.op, reason: reason.to_owned() });
        }
        self.op_refused(switching.op, reason.to_owned());
    }

    // ---- voters ---------------------------------------------------------------------------------------------------------

    fn set_voters(&mut self, order: Order, mut voters: Vec<RegionName>) {
        voters.sort();
        voters.dedup();
        let current = self.st().voters.clone();
        let members = || self.who.regions.iter().chain(&self.who.witness);
        let strange = voters.iter().find(|v| !members().any(|m| m == *v)).cloned();
        let in_common = voters.iter().filter(|v| current.contains(v)).count();
        let changes = (voters.len() - in_common).max(current.voters.len() - in_common);
        let refusal = if self.holder.as_ref().is_none_or(|h| !h.is_open()) {
            Some("only a primary with its lease changes the voters".to_owned())
        } else if let Some(strange) = strange {
            Some(format!("'{strange}' is no member"))
        } else if voters.len().is_multiple_of(2) && voters.len() > current.voters.len() + 1 {
            Some("add or take away one voter at a time".to_owned())
        } else if voters.is_empty() || changes != 1 {
            Some(format!("the voters are {}; change one at a time", list(&current.voters)))
        } else if self.st().voters_next.is_some() {
            Some("another change of the voters is under way".to_owned())
        } else {
            None
        };
        if let Some(reason) = refusal {
            return self.refuse_new(&order, reason);
        }
        if order.dry_run {
            self.start(order);
            return self.finish(OpState::Done);
        }
        self.start(order);
        // Who names voters does not want the rule's.
        let members = current.members.map(|m| Membership { by_rule: false, ..m });
        self.propose(voters, members);
    }

    /// A majority of the old voters and one of the new ones hold the change: it is made.
    pub(super) fn voters_agreed(&mut self) {
        if !self.may_agree() {
            return;
        }
        let before = self.membership();
        let Some(next) = self.st_mut().voters_next.take() else { return };
        if next.voters != self.st().voters.voters {
            self.note("voters_changed", format!("the voters are {} from here on", list(&next.voters)));
        }
        self.st_mut().voters = next;
        self.keep();
        self.members_agreed(&before);
        if self.orders.running.as_ref().is_some_and(|v| matches!(v.order.kind, OrderKind::SetVoters { .. })) {
            self.finish(OpState::Done);
        }
        if let Some((epoch, name)) = self.reign.clone().filter(|(_, r)| *r == self.who.name) {
            // What this region ordered itself in a reign before, and took up again with this one (seed 100668 of roles).
            self.settle_change(epoch, &name);
        }
        self.renew_voters();
    }

    // ---- restarts and time ----------------------------------------------------------------------------------------------

    /// What was carried out here when the process ended: by its own chain it came about or it did not.
    pub(super) fn orders_after_restart(&mut self) {
        let Some(state) = &self.state else { return };
        let unfinished: Vec<OpView> = state.ledger.ops().iter().filter(|o| !o.state.is_final() && o.by == self.who.name).cloned().collect();
        for view in unfinished {
            let id = view.order.id;
            let state = self.st();
            let reigns = state.chain.top().is_some_and(|top| top.op == Some(id) && top.region == self.who.name);
            let handed = state.handed_to.as_ref().is_some_and(|(_, op)| *op == id);
            // One that waited for an earlier change is not the one under way.
            let waited = !matches!(view.order.kind, OrderKind::SetVoters { .. }) && matches!(view.state, OpState::Running(Phase::Check));
            let changing = view.order.kind.changes_members() && state.voters_next.is_some() && !waited;
            let agreed = self.is_made(&view.order);
            if changing || reigns {
                self.orders.running = Some(view);
                self.orders.phase_since = self.now;
            } else if matches!(view.order.kind, OrderKind::NewLineage { .. }) && !matches!(view.state, OpState::Running(Phase::Check)) {
                // The lineage is another one already: it goes on as soon as the volume is there.
                self.resume_lineage(view);
            } else if agreed {
                self.publish(OpView { state: OpState::Done, ..view });
            } else if !handed && view.order.kind.to() == Some(&self.who.name) && matches!(view.order.kind, OrderKind::Switchover { .. }) {
                // Handed to this region, which may still be asked to take over: who reigns next decides.
            } else if !handed {
                let reason = format!("{} restarted before it came about; nothing was changed. Order it again", self.who.name);
                self.publish(OpView { state: OpState::Refused { reason }, ..view });
            }
        }
    }

    pub(super) fn orders_timeout(&self) -> Option<Instant> {
        let switching = self.orders.switching.as_ref().map(|s| match &s.stage {
            SwitchStage::Checking { asked, .. } => {
                let last = asked.last().map_or(self.now, |(_, at)| *at + self.who.settings.retry_every);
                last.min(asked[0].1 + CHECK_PATIENCE).min(s.until)
            }
            SwitchStage::Draining { deadline } => *deadline + DRAIN_GRACE,
        });
        let alone = self.is_handing_alone();
        let handing = self.orders.handing.as_ref().map(|h| match h.at {
            // Its patience has no end: nobody else can go on.
            Some(_) if alone => h.next,
            Some(_) => h.next.min(h.until),
            None => h.until,
        });
        let alone = (self.orders.handing.is_none() && self.log_told && alone).then_some(self.now);
        let forwarded = self.orders.forwarded.values().map(|f| f.next.min(f.until)).min();
        [switching, handing, alone, forwarded].into_iter().flatten().min()
    }

    pub(super) fn orders_timers(&mut self) {
        let now = self.now;
        self.members_timers();
        let retry = self.who.settings.retry_every;
        match self.orders.switching.as_ref().map(|s| (&s.stage, s.until)) {
            Some((SwitchStage::Checking { asked, .. }, until)) if now >= (asked[0].1 + CHECK_PATIENCE).min(until) => self.judge_checks(),
            Some((SwitchStage::Checking { asked, .. }, _)) if asked.last().is_some_and(|(_, at)| now >= *at + retry) => self.check_again(),
            Some((SwitchStage::Draining { deadline }, _)) if now >= *deadline + DRAIN_GRACE => {
                self.give_up_switching(
                    "transactions did not end in time; nothing was changed and writes go on. Order it again with a longer --timeout",
                );
            }
            _ => {}
        }
        if self.orders.handing.is_none() && self.log_told && self.is_handing_alone() {
            // A restart after the only vote was given away: the target still has to hear of it. Nothing follows behind the seal.
            let (epoch, handed, end) = (self.st().sealed, self.st().handed_to.clone(), self.log.end);
            if let Some((to, op)) = handed {
                self.orders.handing = Some(Handing { op, to, epoch, at: Some(end), next: now, until: now });
            }
        }
        let (alone, end) = (self.is_handing_alone(), self.log.end);
        if let Some(handing) = self.orders.handing.as_mut().filter(|h| alone && h.at.is_none() && now >= h.until) {
            // The handover frame does not come about. Everything that was acknowledged is durable before it.
            (handing.at, handing.next) = (Some(end), now);
        }
        if let Some(handing) = &self.orders.handing {
            if now >= handing.until && !alone {
                // Never un-sealed: an epoch of its own, with everything that it handed over (rule 20).
                self.orders.handing = None;
                self.not_before = now;
                self.follow();
            } else if handing.at.is_some() && now >= handing.next {
                self.hand_over();
                if let Some(handing) = self.orders.handing.as_mut().filter(|_| alone) {
                    handing.until = now + self.who.settings.handover_patience;
                }
            }
        }
        let due: Vec<OpId> = self.orders.forwarded.iter().filter(|(_, f)| now >= f.next.min(f.until)).map(|(id, _)| *id).collect();
        for id in due {
            let forwarded = self.orders.forwarded.get_mut(&id).expect("BUG: just seen");
            forwarded.next = now + FORWARD_EVERY;
            let (order, to) = (forwarded.order.clone(), forwarded.to.clone());
            if now < forwarded.until {
                self.send(to, ControlMessage::Order(order));
                continue;
            }
            self.orders.forwarded.remove(&id);
            let reason = format!("{to} does not answer; whether it was done is not known here. Ask again with the same id");
            let view = OpView { by: to, ..self.view_of(&order, OpState::Unknown { reason }) };
            self.outputs.push_back(Output::OpMoved(Box::new(view)));
        }
    }
}

pub(super) fn check(name: &str, ok: bool, says: String) -> Check {
    Check { name: name.into(), ok, says }
}

pub(super) fn list(names: &[RegionName]) -> String {
    names.iter().map(RegionName::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
