//! Histories of different origin: how one is begun on purpose, and what happens when two of them meet (protocol.md rule 24, O5, S22).
//!
//! Decides when a new lineage may be begun (by a region that was taken out, for itself; or by an operator's word where a majority of the
//! voters is lost for good, which is the only way around a majority and is called unsafe), and that nobody writes while a member of another
//! lineage is known. Two histories are never merged: one of them is retired by an operator, and only then the other goes on. Never
//! decides which. Driven by [`super::machine`].

use super::api::Output;
use super::audit::Action;
use super::campaign::Why;
use super::machine::Control;
use super::members::{MemberAt, Membership, STRANGER, voters_by_rule};
use super::message::{ControlMessage, Round, Stands};
use super::orders::list;
use super::types::{Consent, OpId, OpState, OpView, Order, OrderKind, VoterSet};
use crate::base::{Epoch, Instant, LineageId, RegionName};
use std::collections::BTreeSet;
use std::time::Duration;

/// Who answers before a lineage is forced is waited for so long.
const LOOK_PATIENCE: Duration = Duration::from_millis(1500);
/// Members of another lineage are asked so often whether they still are.
const ASK_RIVALS_EVERY: Duration = Duration::from_secs(1);

/// A lineage that was forced: what those that survived are told until they take part.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct NewLineage {
    /// What it goes on from.
    pub was: LineageId,
    pub lineage: LineageId,
    pub voters: VoterSet,
    pub survivors: Vec<RegionName>,
    pub op: OpId,
    pub actor: String,
}

/// A look around before it is forced.
#[derive(Clone, Debug)]
struct Forcing {
    order: Order,
    round: Round,
    until: Instant,
    answered: BTreeSet<RegionName>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Lineages {
    forcing: Option<Forcing>,
    /// Was begun before a restart.
    resumed: Option<OpView>,
    ask_rivals_at: Instant,
}

impl Control {
    // ---- two that meet --------------------------------------------------------------------------------------------------

    /// Members of another lineage, as this one last heard of them.
    pub(super) fn rivals(&self) -> &[(RegionName, LineageId)] {
        self.state.as_ref().map_or(&[], |s| &s.rivals)
    }

    /// `from` is of this lineage. Whether it is of one that may go on with this one: its own, or none.
    pub(super) fn same_lineage(&mut self, from: &RegionName, lineage: LineageId) -> bool {
        let Some(state) = &mut self.state else { return true };
        let known = state.rivals.iter().position(|(r, _)| r == from);
        if lineage == state.lineage || lineage.0 == 0 {
            if let Some(at) = known {
                state.rivals.remove(at);
                self.keep();
                self.rivals_changed();
            }
            return true;
        }
        // Those that survived and have not been told yet.
        if state.begun.as_ref().is_some_and(|b| b.was == lineage && b.survivors.contains(from)) {
            return false;
        }
        match known {
            Some(at) if state.rivals[at].1 == lineage => {}
            Some(at) => state.rivals[at].1 = lineage,
            None => {
                state.rivals.push((from.clone(), lineage));
                let stands = Box::new(self.stands(Round::default()));
                self.send(from.clone(), ControlMessage::Stands(stands));
            }
        }
        if known.is_none() {
            self.keep();
            self.rivals_changed();
        }
        false
    }

    /// A sentence, while there is a member of another lineage.
    pub(super) fn rivalry(&self) -> Option<String> {
        let (rival, lineage) = self.rivals().first()?;
        Some(format!(
            "two lineages have met: {rival} is of lineage {lineage}, this is {}. They are never merged, and nobody writes before one of them is retired: \
             stop every region of the one that is not to go on, and there: parhelion retire --lineage LINEAGE",
            self.st().lineage
        ))
    }

    fn rivals_changed(&mut self) {
        match self.rivalry() {
            Some(what) => {
                self.two_writers(what.clone());
                self.campaign_refused(what);
            }
            None => {
                self.conflict = None;
                self.reason = None;
                self.note("lineage_conflict_over", "no member of another lineage is left; this one goes on".into());
            }
        }
    }

    pub(super) fn lineage_timeout(&self) -> Option<Instant> {
        let forcing = self.lineages.forcing.as_ref().map(|f| f.until);
        let resumed = (self.lineages.resumed.is_some() && self.log_told).then_some(self.now);
        let rivals = (!self.rivals().is_empty()).then_some(self.lineages.ask_rivals_at);
        [forcing, resumed, rivals].into_iter().flatten().min()
    }

    pub(super) fn lineage_timers(&mut self) {
        if !self.rivals().is_empty() && self.now >= self.lineages.ask_rivals_at {
            self.lineages.ask_rivals_at = self.now + ASK_RIVALS_EVERY;
            let members = self.membership();
            let witness = self.who.witness.clone();
            let (stay, gone): (Vec<_>, Vec<_>) =
                self.rivals().iter().map(|(r, _)| r.clone()).partition(|r| members.contains(r) || witness.as_ref() == Some(r));
            if !gone.is_empty() {
                // Taken out: it cannot come near any more.
                self.st_mut().rivals.retain(|(r, _)| !gone.contains(r));
                self.keep();
                self.rivals_changed();
            }
            let round = self.next_round();
            for rival in stay {
                self.send(rival, ControlMessage::Probe { round });
            }
        }
        if self.log_told
            && let Some(view) = self.lineages.resumed.take()
        {
            let (op, actor) = (view.order.id, view.order.actor.clone());
            self.orders.running = Some(view);
            self.orders.phase_since = self.now;
            self.reign_over_lineage(op, actor);
        }
        if self.lineages.forcing.as_ref().is_some_and(|f| self.now >= f.until) {
            self.judge_forcing();
        }
    }

    // ---- one that is begun ----------------------------------------------------------------------------------------------

    pub(super) fn new_lineage(&mut self, order: Order) {
        let OrderKind::NewLineage { survivors, stopped } = order.kind.clone() else { unreachable!("BUG: another kind of order") };
        let name = self.who.name.clone();
        if let Some(reason) = self.lineage_refusal(&survivors, stopped.as_ref()) {
            return self.refuse_new(&order, reason);
        }
        if stopped.is_none() {
            if order.dry_run {
                self.start(order);
                return self.finish(OpState::Done);
            }
            return self.begin_lineage(order, vec![name], true);
        }
        let round = self.next_round();
        let until = self.now + LOOK_PATIENCE;
        self.start(order.clone());
        self.lineages.forcing = Some(Forcing { order, round, until, answered: BTreeSet::new() });
        self.send_others(&ControlMessage::Probe { round });
    }

    fn lineage_refusal(&self, survivors: &[RegionName], stopped: Option<&RegionName>) -> Option<String> {
        let name = &self.who.name;
        if !self.who.has_data || !self.log_told {
            return Some(format!("the volume of {name} is not there; wait for it, then order again"));
        }
        if self.holder.as_ref().is_some_and(|h| h.is_open()) {
            return Some(format!("{name} is the primary and holds its lease: there is nothing to force"));
        }
        let Some(stopped) = stopped else {
            return self
                .out()
                .is_none()
                .then(|| format!("{name} is a member; it is taken out first: parhelion detach {name} --confirm {name}"));
        };
        let members = self.membership();
        let strange = survivors.iter().find(|s| !members.contains(s) && self.who.witness.as_ref() != Some(*s));
        let last = self.reign.as_ref().map(|(_, r)| r.clone()).or_else(|| self.st().chain.top().map(|e| e.region.clone()));
        if let Some(strange) = strange {
            Some(format!("'{strange}' is no member; the regions are {}", list(&members.names())))
        } else if !survivors.contains(name) {
            Some(format!("{name} is asked and is not among the survivors; ask one that is, or name it as well"))
        } else if survivors.contains(stopped) {
            Some(format!("{stopped} cannot both be stopped and survive"))
        } else if !members.contains(stopped) {
            Some(format!("there is no region '{stopped}'; the regions are {}", list(&members.names())))
        } else if last.as_ref().is_some_and(|last| last != stopped && last != name) {
            let last = last.expect("BUG: just seen");
            Some(format!(
                "the last primary that is known here is {last}: make sure that it is stopped, then say --i-confirm-old-primary-is-stopped={last}"
            ))
        } else {
            None
        }
    }

    pub(super) fn forcing_stands(&mut self, from: &RegionName, stands: &Stands) {
        if let Some(forcing) = self.lineages.forcing.as_mut().filter(|f| f.round == stands.round) {
            forcing.answered.insert(from.clone());
        }
    }

    fn judge_forcing(&mut self) {
        let Some(Forcing { order, answered, .. }) = self.lineages.forcing.take() else { return };
        let OrderKind::NewLineage { survivors, stopped } = order.kind.clone() else { return };
        let stopped = stopped.expect("BUG: looked around for a forced one only");
        let name = self.who.name.clone();
        let op = order.id;
        if answered.contains(&stopped) {
            return self.op_refused(op, format!("{stopped} answers: it is not stopped. While it lives: parhelion switchover --to {name}"));
        }
        if self.is_majority(|v| *v == name || answered.contains(v)) {
            let reason =
                format!("a majority of the voters answers, so nothing has to be forced: parhelion failover --to {name} --allow-data-loss");
            return self.op_refused(op, reason);
        }
        let silent: Vec<RegionName> = survivors.iter().filter(|s| **s != name && !answered.contains(*s)).cloned().collect();
        if !silent.is_empty() {
            return self.op_refused(op, format!("{} do not answer; name those that live: --survivors", list(&silent)));
        }
        let unheard = self.seen.at + self.who.settings.lease;
        if self.now < unheard && self.holder.is_none() && self.reign.as_ref().is_some_and(|(_, r)| *r == stopped) {
            let ms = super::machine::millis_up(unheard.since(self.now));
            return self
                .op_refused(op, format!("{stopped} was heard a moment ago; its lease is over in {ms} ms at the latest: order again then"));
        }
        if order.dry_run {
            return self.finish(OpState::Done);
        }
        self.begin_lineage(order, survivors, false);
    }

    /// From here on this is another history, whatever becomes of it.
    fn begin_lineage(&mut self, order: Order, survivors: Vec<RegionName>, alone: bool) {
        let name = self.who.name.clone();
        let lineage = LineageId((u128::from(self.prng.next_u64()) << 64) | u128::from(self.prng.next_u64()));
        let before = self.membership();
        let witness = self.who.witness.clone().filter(|w| survivors.contains(w));
        let state = self.st();
        let (was, version) = (state.lineage, state.voters.version + 1);
        let members = if alone {
            // The others are strangers, and are told so.
            let mut removed = before.removed.clone();
            removed.retain(|(r, _)| *r != name);
            removed.extend(before.names().into_iter().filter(|r| *r != name).map(|r| (r, STRANGER)));
            let own = MemberAt { name: name.clone(), addr: self.who.addr(&name), since: 0 };
            let mut witnesses_removed = before.witnesses_removed.clone();
            witnesses_removed.extend(before.witness.iter().map(|w| (w.name.clone(), STRANGER)));
            Membership { regions: vec![own], removed, by_rule: true, witness: None, witnesses_removed, orders: Vec::new() }
        } else {
            // Whoever is lost stays a member: when it comes back it is met, and not overlooked.
            Membership { by_rule: true, ..before }
        };
        let data: Vec<RegionName> = survivors.iter().filter(|s| members.contains(s)).cloned().collect();
        let voters = voters_by_rule(&name, &[], &data, witness.as_ref());
        let voters = VoterSet { version, voters, heard: Vec::new(), members: Some(members) };
        let (op, actor) = (order.id, order.actor.clone());
        let others: Vec<RegionName> = survivors.into_iter().filter(|s| *s != name).collect();
        let what = format!("lineage {lineage} is begun in place of {was}; its voters are {}", list(&voters.voters));
        self.audit(Action { actor: actor.clone(), op: Some(op), kind: "new_lineage", what });
        let state = self.st_mut();
        (state.lineage, state.voters, state.voters_next, state.handed_to) = (lineage, voters.clone(), None, None);
        state.rivals.clear();
        state.told_out.clear();
        state.begun = (!others.is_empty()).then(|| NewLineage { was, lineage, voters, survivors: others, op, actor: actor.clone() });
        self.keep();
        self.note("new_lineage", format!("{actor} began lineage {lineage} in {name}, in place of {was}; the two are never merged"));
        if let Some(holder) = &mut self.holder {
            holder.order = None; // what was asked for in the old one is not asked for in this
        }
        self.lose_reign("a new lineage was begun", None);
        self.grant = None;
        self.reign = None;
        self.conflict = None;
        self.members.refused_by.clear();
        self.reason = None;
        self.take_members();
        self.orders.handing = None;
        if !self.is_running(op) {
            self.start(order);
        }
        self.reign_over_lineage(op, actor);
    }

    fn reign_over_lineage(&mut self, op: OpId, actor: String) {
        let state = self.st();
        let highest = state.promised.max(state.chain.top().map_or(Epoch(0), |e| e.epoch));
        let consent = Consent { allow_data_loss: true, ..Consent::default() };
        self.campaign_for(Why::Failover { op, consent, actor, forced: true }, None, self.now);
        self.vote_for_own(highest.next());
    }

    /// Once the volume is there.
    pub(super) fn resume_lineage(&mut self, view: OpView) {
        self.lineages.resumed = Some(view);
    }

    /// Until they take part.
    pub(super) fn tell_survivors(&mut self) {
        let Some(begun) = self.state.as_ref().and_then(|s| s.begun.clone()) else { return };
        for to in begun.survivors.clone() {
            self.send(to, ControlMessage::NewLineage(Box::new(begun.clone())));
        }
    }

    /// It granted or voted in this lineage.
    pub(super) fn survivor_heard(&mut self, from: &RegionName) {
        let Some(state) = &mut self.state else { return };
        let Some(begun) = &mut state.begun else { return };
        let before = begun.survivors.len();
        begun.survivors.retain(|s| s != from);
        if begun.survivors.len() == before {
            return;
        }
        if begun.survivors.is_empty() {
            state.begun = None;
        }
        self.keep();
    }

    /// An operator forced a new lineage at `from` and named this member as one that survives.
    pub(super) fn on_new_lineage(&mut self, from: &RegionName, begun: NewLineage) {
        let Some(state) = &self.state else { return };
        if state.lineage == begun.lineage {
            return;
        }
        if state.lineage != begun.was || !begun.survivors.contains(&self.who.name) || state.voters.version >= begun.voters.version {
            self.same_lineage(from, begun.lineage);
            return;
        }
        // Not beside a primary that may write: its grant runs out first, and this is said again.
        let granted = self.grant.as_ref().is_some_and(|g| g.region != *from && self.now < g.until);
        if granted || self.now < self.votes_from || self.holder.as_ref().is_some_and(|h| h.is_open()) {
            return;
        }
        self.lose_reign("a new lineage was begun", None);
        self.campaign_refused(format!("{} began lineage {}", begun.actor, begun.lineage));
        let what = format!("lineage {} in place of {}, begun at {from}", begun.lineage, begun.was);
        self.audit(Action { actor: begun.actor.clone(), op: Some(begun.op), kind: "new_lineage", what });
        let state = self.st_mut();
        (state.lineage, state.voters, state.voters_next, state.handed_to) = (begun.lineage, begun.voters.clone(), None, None);
        state.rivals.retain(|(_, l)| *l != begun.lineage);
        self.keep();
        (self.grant, self.reign, self.reason) = (None, None, None);
        if self.rivals().is_empty() {
            self.conflict = None;
        }
        let what =
            format!("{} began lineage {} at {from}, in place of {}; this member goes with it", begun.actor, begun.lineage, begun.was);
        self.note("new_lineage", what);
        self.take_members();
        self.outputs.push_back(Output::Follow { epoch: self.st().promised, primary: None });
    }
}
