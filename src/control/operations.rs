//! How an operation stands: its phases, its end, and who is told.
//!
//! Decides what is kept of an operation and what an end means for it. Carries nothing out: [`super::orders`] and
//! [`super::campaign`] say what happened.

use super::api::Output;
use super::audit::Action;
use super::campaign::Why;
use super::chain::EpochEntry;
use super::elect::Outcome;
use super::machine::{Control, millis};
use super::message::ControlMessage;
use super::orders::check;
use super::types::{Consent, OpId, OpState, OpView, Order, OrderKind, Phase};
use crate::base::{Epoch, RegionName};
use std::time::Duration;

impl Control {
    // ---- how an operation stands ----------------------------------------------------------------------------------------

    pub(super) fn view_of(&self, order: &Order, state: OpState) -> OpView {
        OpView {
            order: order.clone(),
            from: self.reign.as_ref().map(|(_, r)| r.clone()).or_else(|| Some(self.state.as_ref()?.chain.top()?.region.clone())),
            by: self.who.name.clone(),
            state,
            phases: Vec::new(),
            began_at: self.wall,
            epoch: None,
            checks: Vec::new(),
            loss: None,
            predicted_gap_ms: None,
        }
    }

    pub(super) fn start(&mut self, order: Order) {
        if !order.dry_run {
            let (actor, op, what) = (order.actor.clone(), Some(order.id), order.kind.to_string());
            self.audit(Action { actor, op, kind: "order", what });
        }
        self.orders.running = Some(self.view_of(&order, OpState::Running(Phase::Check)));
        self.orders.phase_since = self.now;
        self.publish_running();
    }

    pub(super) fn refuse_new(&mut self, order: &Order, reason: String) {
        let view = self.view_of(order, OpState::Refused { reason });
        self.publish(view);
    }

    pub(super) fn publish_running(&mut self) {
        if let Some(view) = self.orders.running.clone() {
            self.publish(view);
        }
    }

    /// Keeps it, shows it, and tells whoever asked.
    pub(super) fn publish(&mut self, view: OpView) {
        let lasts = !view.order.dry_run && !matches!(view.state, OpState::Unknown { .. });
        if lasts && self.st_mut().ledger.put_op(view.clone()) {
            self.keep();
            if view.state.is_final() && view.by == self.who.name {
                let (actor, op) = (view.order.actor.clone(), Some(view.order.id));
                self.audit(Action { actor, op, kind: "ended", what: format!("{}: {}", view.order.kind, view.state) });
            }
            if view.state.is_final() {
                self.ledger_is_news();
            }
        }
        for to in self.orders.watchers.get(&view.order.id).cloned().unwrap_or_default() {
            self.send(to, ControlMessage::Op(Box::new(view.clone())));
        }
        if view.state.is_final() {
            self.orders.watchers.remove(&view.order.id);
        }
        self.orders.forwarded.remove(&view.order.id);
        // What it ended as is not said before it is kept: after a restart it would be told otherwise.
        self.output_when_kept(Output::OpMoved(Box::new(view)));
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        let now = self.now;
        let Some(view) = &mut self.orders.running else { return };
        if view.state == OpState::Running(phase) {
            return;
        }
        if let OpState::Running(before) = view.state {
            view.phases.push((before, millis(now.since(self.orders.phase_since))));
        }
        view.state = OpState::Running(phase);
        self.orders.phase_since = now;
        self.publish_running();
    }

    pub(super) fn finish(&mut self, state: OpState) {
        let now = self.now;
        let Some(mut view) = self.orders.running.take() else { return };
        if let OpState::Running(before) = view.state {
            view.phases.push((before, millis(now.since(self.orders.phase_since))));
        }
        view.state = state;
        self.publish(view);
    }

    pub(super) fn is_running(&self, op: OpId) -> bool {
        self.orders.running.as_ref().is_some_and(|v| v.order.id == op)
    }

    /// The operation of the present campaign, if it is one's.
    pub(super) fn op_phase(&mut self, phase: Phase) {
        let op = self.campaign.as_ref().and_then(|c| match &c.why {
            Why::Failover { op, .. } | Why::Auto { op } => Some(*op),
            Why::Handover(h) => Some(h.op.order.id),
            Why::Regain => None,
        });
        self.op_phase_of(op, phase);
    }

    pub(super) fn op_phase_of(&mut self, op: Option<OpId>, phase: Phase) {
        if op.is_some_and(|op| self.is_running(op)) {
            self.set_phase(phase);
        }
    }

    /// What a failover's look around found; whether that was all that was wanted.
    pub(super) fn op_looked(&mut self, op: OpId, outcome: &Outcome, wait: Duration) -> bool {
        if !self.is_running(op) {
            return true;
        }
        let more = match &outcome.more {
            Some((region, end)) => {
                let bytes = end.end_lsn.bytes_since(outcome.base.end_lsn);
                check("log", true, format!("{region} has {bytes} bytes more: they are fetched from it first"))
            }
            None => check("log", true, "no region that answers has more".into()),
        };
        let says = if wait.is_zero() { "over".into() } else { format!("over in {} ms", millis(wait)) };
        let loss = super::elect::describe(&outcome.loss);
        let view = self.orders.running.as_mut().expect("BUG: just seen");
        view.checks = vec![
            check("voters", true, "a majority answers".into()),
            check("grants", wait.is_zero(), format!("the old primary's lease is {says}")),
            more,
            check("loss", outcome.loss.is_none_for_sure(), loss),
        ];
        view.from = Some(outcome.from.clone());
        view.loss = Some(outcome.loss.clone());
        view.predicted_gap_ms = Some(millis(wait) + 300);
        if view.order.dry_run {
            self.finish(OpState::Done);
            return true;
        }
        self.publish_running();
        false
    }

    pub(super) fn op_unanswered(&mut self) {
        self.reason = Some("a majority of the voters does not answer; without it nobody can be promoted".into());
    }

    pub(super) fn op_began_by_itself(&mut self, op: OpId, outcome: &Outcome) {
        let kind = OrderKind::Failover { to: self.who.name.clone(), consent: Consent::default(), primary_is_down: None };
        let order = Order { id: op, kind, dry_run: false, timeout_ms: 0, at_epoch: Some(outcome.prev), actor: "auto_failover".into() };
        if self.orders.running.is_none() {
            self.start(order);
        }
    }

    pub(super) fn op_taking(&mut self, entry: &EpochEntry, outcome: &Outcome) {
        if let Some(view) = self.orders.running.as_mut().filter(|v| Some(v.order.id) == entry.op) {
            view.loss = Some(outcome.loss.clone());
            view.from = Some(outcome.from.clone());
            view.epoch = Some(entry.epoch);
        }
        self.op_phase_of(entry.op, Phase::Promote);
    }

    /// A reign of this region is active.
    pub(super) fn op_activated(&mut self, entry: &EpochEntry) {
        self.orders.handing = None;
        if self.orders.running.is_none()
            && let Some(view) = entry.op.and_then(|op| self.op(op)).filter(|v| !v.state.is_final()).cloned()
        {
            self.orders.running = Some(OpView { epoch: Some(entry.epoch), ..view });
            self.orders.phase_since = self.now;
        }
        if self.orders.running.is_none() && self.st().voters_next.is_some() {
            // A change that was under way when this region lost its reign.
            let open = |o: &&OpView| !o.state.is_final() && o.by == self.who.name && o.order.kind.changes_members();
            self.orders.running = self.st().ledger.ops().iter().find(open).cloned();
            self.orders.phase_since = self.now;
        }
        let running = self.orders.running.as_ref().map(|v| v.order.id);
        if let Some(op) = running {
            // Or in an epoch before, which was taken for it, never opened, and goes on in this one.
            let own = |e: &&EpochEntry| e.op == Some(op) && e.region == self.who.name;
            if Some(op) == entry.op || self.st().chain.path(entry.epoch).iter().any(own) {
                self.set_phase(Phase::Verify);
                self.outputs.push_back(Output::Verify { op, epoch: entry.epoch });
            } else if !self.is_changing_voters() && Some(op) != self.st().handed_to.as_ref().map(|(_, op)| *op) {
                self.op_failed(
                    op,
                    format!("it did not come about; {} writes again, in epoch {}, and nothing was lost", self.who.name, entry.epoch),
                );
            }
        }
        // What this region handed over and got back.
        let handed = self.st().handed_to.as_ref().map(|(_, op)| *op);
        let open = handed.and_then(|op| self.op(op)).filter(|o| !o.state.is_final() && Some(o.order.id) != entry.op);
        let came_about = |o: &OpView| o.order.at_epoch.is_some_and(|e| matches!(self.took_effect(o.order.id, e), Some(Some(_))));
        let stale = open.filter(|o| !came_about(o)).cloned();
        if let Some(view) = stale {
            self.orders.running.take_if(|r| r.order.id == view.order.id);
            let reason = format!(
                "{} did not take over; {} writes again, in epoch {}, and nothing was lost",
                view.order.kind.to().expect("BUG: just seen"),
                self.who.name,
                entry.epoch
            );
            self.publish(OpView { state: OpState::Failed { reason }, ..view });
        }
    }

    pub(super) fn is_changing_voters(&self) -> bool {
        self.orders.running.as_ref().is_some_and(|v| v.order.kind.changes_members())
    }

    pub(super) fn verified(&mut self, op: OpId, outcome: Result<(), String>) {
        if !self.is_running(op) {
            return;
        }
        let name = self.who.name.clone();
        self.finish(match outcome {
            Ok(()) => OpState::Done,
            Err(why) => OpState::Failed {
                reason: format!(
                    "{name} is the primary, but a write through it was not seen in a secondary: {why}. Look at parhelion status"
                ),
            },
        });
    }

    pub(super) fn op_refused(&mut self, op: OpId, reason: String) {
        if self.is_running(op) {
            self.finish(OpState::Refused { reason });
        }
    }

    pub(super) fn op_failed(&mut self, op: OpId, reason: String) {
        if self.is_running(op) {
            self.finish(OpState::Failed { reason });
        }
    }

    pub(super) fn op_superseded(&mut self, op: OpId, epoch: Epoch, region: &RegionName) {
        if self.is_running(op) {
            let by = self.st().chain.get(epoch).and_then(|e| e.op);
            self.finish(OpState::Superseded { by, epoch, region: region.clone() });
        }
    }

    pub(super) fn op_reign_lost(&mut self, reason: &str) {
        self.give_up_switching(reason);
        // A region that asks for an epoch of its own gives up the one before by its own vote: that is no end of what it asks for.
        let asked_for = self.campaign.as_ref().and_then(|c| match &c.why {
            Why::Failover { op, .. } | Why::Auto { op } => Some(*op),
            Why::Handover(_) | Why::Regain => None,
        });
        let begun = self.st().voters_next.is_some() && self.members.waiting.is_none();
        if self.is_changing_voters() && begun {
            // Whoever reigns next may find the change under way and end it, or never hear of it: then it is told (seed 259 of roles).
            self.orders.running = None;
        } else if let Some(view) = self.orders.running.as_ref().filter(|v| Some(v.order.id) != asked_for) {
            let op = view.order.id;
            self.op_failed(op, format!("the reign was lost before it was done: {reason}. See parhelion status for who writes"));
        }
    }

    pub(super) fn op_lease_lost(&mut self, reason: &str) {
        self.give_up_switching(reason);
    }

    /// Somebody reigns: whatever was handed over has found its end.
    pub(super) fn orders_reign(&mut self, epoch: Epoch, region: &RegionName) {
        if *region != self.who.name && self.orders.handing.is_none() {
            // The handover was given up, this region asked for an epoch of its own, and another was first.
            let handed = self.st().handed_to.as_ref().map(|(_, op)| *op);
            // Nor does this region carry anything out any more that was to move the primary.
            let over = self.holder.is_none() && self.campaign.is_none();
            self.orders.running.take_if(|v| Some(v.order.id) == handed || (over && v.order.kind.to().is_some()));
        }
        self.settle_left(epoch, region);
        let Some(handing) = self.orders.handing.as_ref().filter(|h| h.epoch < epoch) else { return };
        let (op, to) = (handing.op, handing.to.clone());
        self.orders.handing = None;
        if *region == self.who.name {
            return;
        }
        if to == *region {
            // The target tells the rest.
            if let Some(view) = self.orders.running.take_if(|v| v.order.id == op) {
                self.publish(OpView { by: to, ..view });
            }
        } else {
            self.op_superseded(op, epoch, region);
        }
    }

    /// Operations that a restart of this member left open: the chain says by now whether they came about.
    pub(super) fn settle_left(&mut self, reign: Epoch, region: &RegionName) {
        let busy = [self.orders.running.as_ref().map(|v| v.order.id), self.orders.handing.as_ref().map(|h| h.op)];
        let left: Vec<OpView> = (self.st().ledger.ops().iter())
            .filter(|o| !o.state.is_final() && o.order.kind.to().is_some() && !busy.contains(&Some(o.order.id)))
            .filter(|o| o.by == self.who.name || o.from.as_ref() == Some(&self.who.name))
            .cloned()
            .collect();
        self.settle_change(reign, region);
        for view in left {
            // Ordered where no reign was known, it is about the one that it would have ended.
            let ended = view.epoch.map(|made| Epoch(made.0.saturating_sub(1)));
            let Some(about) = view.order.at_epoch.or(ended).filter(|e| *e < reign) else { continue };
            let state = match self.took_effect(view.order.id, about) {
                Some(None) => OpState::Failed { reason: format!("it did not come about; {region} is the primary of epoch {reign}") },
                // Whoever took over says how it ended.
                Some(Some(made)) if made < reign && self.st().chain.get(made).is_some_and(|e| e.region == self.who.name) => {
                    OpState::Failed {
                        reason: format!(
                            "it took effect in epoch {made} and was not seen through; {region} is the primary of epoch {reign} by now"
                        ),
                    }
                }
                _ => continue,
            };
            self.publish(OpView { state, ..view });
        }
    }

    /// Its own change of members or voters that it did not end, when a later reign says what became of that.
    pub(super) fn settle_change(&mut self, reign: Epoch, region: &RegionName) {
        if *region != self.who.name && self.holder.is_none() && self.is_changing_voters() {
            self.orders.running = None; // after a restart it was taken up once more
        }
        let running = self.orders.running.as_ref().map(|v| v.order.id);
        let open =
            |o: &&OpView| !o.state.is_final() && o.by == self.who.name && o.order.kind.changes_members() && Some(o.order.id) != running;
        let left: Vec<OpView> = self.st().ledger.ops().iter().filter(open).cloned().collect();
        for view in left.into_iter().filter(|v| v.order.at_epoch.is_some_and(|e| e < reign)) {
            let state = if self.is_made(&view.order) {
                OpState::Done
            } else if self.st().voters_next.is_none() {
                OpState::Failed { reason: format!("it did not come about; {region} is the primary of epoch {reign}") }
            } else {
                continue;
            };
            self.publish(OpView { state, ..view });
        }
    }

    /// How an operation stands, from whoever carries it out.
    pub(super) fn op_from(&mut self, from: &RegionName, view: OpView) {
        let (id, failed) =
            (view.order.id, matches!(view.state, OpState::Failed { .. } | OpState::Refused { .. } | OpState::Superseded { .. }));
        if self.state.is_none() || view.by != *from {
            return;
        }
        let patience = self.now + self.who.settings.handover_patience;
        if let Some(handing) = self.orders.handing.as_mut().filter(|h| h.op == id && h.to == *from) {
            // It lives, and is at it; or it cannot.
            handing.until = if failed { self.now } else { patience };
            if failed {
                return;
            }
            self.orders.running.take_if(|v| v.order.id == id);
        } else if self.is_running(id) {
            return;
        }
        if view.order.dry_run || matches!(view.state, OpState::Unknown { .. }) {
            return self.op_known(view);
        }
        if self.st_mut().ledger.put_op(view.clone()) {
            self.keep();
            self.op_known(view);
        } else {
            self.orders.forwarded.remove(&id);
        }
    }

    /// News of an operation that another member carries out.
    pub(super) fn op_known(&mut self, view: OpView) {
        self.orders.forwarded.remove(&view.order.id);
        let mut watchers = self.orders.watchers.get(&view.order.id).cloned().unwrap_or_default();
        watchers.remove(&view.by);
        for to in watchers {
            self.send(to, ControlMessage::Op(Box::new(view.clone())));
        }
        self.outputs.push_back(Output::OpMoved(Box::new(view)));
    }
}
