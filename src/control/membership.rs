//! Who is part of the global cluster: regions and the witness come and go by order, and the voters follow by rule.
//!
//! Decides which orders of that kind make sense, in which steps the voters change (one at a time, through majorities of the old and of
//! the new set, protocol.md section 1), and when a member that was taken out is one no more. Membership is state: it has the version of the
//! voters, travels and is kept with them. Before its first change it is what the files say. Never decides how a member is reached; carried
//! out in the primary, on the timers of [`super::orders`].
//!
//! A member that leaves is heard until majorities agreed (its vote may be needed for that), but what a region holds counts for no commit from
//! the moment on that it is about to leave: with a `sync` rule, enough of those that stay must have everything first.

use super::api::Output;
use super::audit::Action;
use super::machine::Control;
use super::members::{MemberAt, MembersView, Membership, STRANGER, WitnessAt, next_voters, voters_by_rule};
use super::orders::list;
use super::types::{OpState, Order, OrderKind, Phase, VoterSet};
use crate::base::{Instant, LogEnd, RegionName};
use std::collections::BTreeSet;
use std::time::Duration;

/// A member that was taken out is told so with so many renewals; after that, whoever it dials tells it.
const GOODBYES: u8 = 3;
/// Of the name of a failure domain.
const ZONE_CHARS_MAX: usize = 64;

/// A region on its way out, in the primary.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    pub region: RegionName,
    /// Whatever was acknowledged while it counted lies before.
    pub mark: LogEnd,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    /// As the files of this member have them.
    pub files: Vec<RegionName>,
    pub witness_of_files: Option<RegionName>,
    pub told: MembersView,
    pub leaving: Option<Leaving>,
    /// An order that waits until the voters have followed an earlier change, and how long.
    pub waiting: Option<(Order, Instant)>,
    /// Those that are no members any more and are told so with the next renewals.
    pub goodbyes: Vec<(RegionName, u8)>,
    /// Members that refused this one: they say that it was taken out.
    pub refused_by: BTreeSet<RegionName>,
    /// While no primary is heard: not before.
    pub asks_at: Instant,
}

impl Control {
    // ---- what is known --------------------------------------------------------------------------------------------------

    /// The membership that counts here: agreed on, or as the files say.
    pub(super) fn membership(&self) -> Membership {
        let agreed = self.state.as_ref().and_then(|s| s.voters.members.clone());
        agreed.unwrap_or_else(|| {
            let at = |name: &RegionName| MemberAt { name: name.clone(), addr: self.who.addr(name), since: 0 };
            let witness = |name: &RegionName| WitnessAt { name: name.clone(), addr: self.who.addr(name), zone: None, since: 0 };
            Membership {
                regions: self.members.files.iter().map(at).collect(),
                witness: self.members.witness_of_files.as_ref().map(witness),
                ..Membership::default()
            }
        })
    }

    /// Why this member is none any more; a sentence.
    #[must_use]
    pub fn out(&self) -> Option<String> {
        let name = &self.who.name;
        let state = self.state.as_ref()?;
        let members = state.voters.members.as_ref();
        let (version, does, then) = if self.who.has_data {
            let back = format!("to bring it back: parhelion invite --region {name} at a member, and parhelion join here");
            (members.and_then(|m| m.removed_with(name)), "serves nothing", back)
        } else {
            let other =
                "stop it; another one, by a name that was never used: parhelion invite --witness NAME at a region, and parhelion join";
            (members.and_then(|m| m.witness_removed_with(name)), "votes no more", other.to_owned())
        };
        if let Some(version) = version {
            return Some(format!("{name} was taken out of the global cluster (version {version} of its members) and {does}; {then}"));
        }
        let refused = &self.members.refused_by;
        // Those who do not say so are no majority any more. Of two voters, itself and another, the other one is enough.
        let enough = !refused.is_empty() && state.voters.voters.iter().filter(|v| !refused.contains(*v)).count() < state.voters.majority();
        // Who votes alone has nobody else to ask.
        let alone = state.voters.voters == [name.clone()] && !refused.is_empty();
        (enough || alone).then(|| {
            let by: Vec<RegionName> = refused.iter().cloned().collect();
            // By a word of an operator that was not true; which history is to go on only an operator can say.
            if let Some(other) = by.iter().find(|r| state.voters.members.as_ref().is_some_and(|m| m.removed_with(r).is_some())) {
                return format!(
                    "{other} and {name} took each other out of the global cluster, and neither writes. At the one that is to go on: \
                     parhelion force-new-lineage --survivors REGION --i-confirm-old-primary-is-stopped=OTHER; then invite the other one"
                );
            }
            format!("{} say that {name} was taken out of the global cluster, and it {does}; {then}", list(&by))
        })
    }

    /// A change of the members that was begun, and may have been agreed on, takes this region out. It does not take over: its first act would
    /// be to leave, before anybody heard of it (seed 564 of roles).
    pub(super) fn is_leaving(&self, region: &RegionName) -> bool {
        let next = self.state.as_ref().and_then(|s| s.voters_next.as_ref()).and_then(|n| n.members.as_ref());
        next.is_some_and(|m| m.removed_with(region).is_some())
    }

    /// The voters changed, or their change: whoever they speak with follows.
    pub(super) fn take_members(&mut self) {
        let Some(state) = &self.state else { return };
        let mut view = MembersView::default();
        if let Some(agreed) = &state.voters.members {
            let Membership { regions, removed, witness, witnesses_removed, by_rule: _, orders: _ } = agreed.clone();
            view = MembersView { version: state.voters.version, regions, removed, witness, witnesses_removed };
        }
        // Until it is agreed on, whoever leaves is heard; whoever comes is not a member yet.
        let members = self.membership();
        (self.who.regions, self.who.witness) = (members.names(), members.witness.map(|w| w.name));
        if view.version > 0 && view != self.members.told {
            self.members.told = view.clone();
            self.outputs.push_back(Output::Members(Box::new(view)));
        }
        if let Some(why) = self.out() {
            self.step_out(&why);
        }
    }

    /// Nothing is begun and nothing goes on in one that is no member.
    fn step_out(&mut self, why: &str) {
        if self.reason.as_deref() != Some(why) {
            self.note("taken_out", why.to_owned());
        }
        self.campaign_refused(why.to_owned());
        self.lose_reign(why, None);
        self.reason = Some(why.to_owned());
        self.follow();
    }

    /// A member refused this one, because it was taken out.
    pub(super) fn said_out(&mut self, by: RegionName) {
        let members = self.membership();
        if members.witness_removed_with(&by).is_some() || members.removed_with(&by) == Some(STRANGER) {
            // A witness that is out itself knows older members, and reigns nowhere (seed 704543 of roles). And those that a detached region left
            // say it as they let it go, a second late: it knows.
            return;
        }
        if self.state.is_some() && by != self.who.name && self.members.refused_by.insert(by) {
            self.keep_told_out();
            self.take_members();
        }
    }

    /// The primary takes this member for one.
    pub(super) fn said_in(&mut self) {
        if !self.members.refused_by.is_empty() {
            self.members.refused_by.clear();
            self.reason = None;
            self.keep_told_out();
        }
    }

    /// A restart does not make it a member again: whoever votes alone would ask nobody else (seed 1215 of roles).
    fn keep_told_out(&mut self) {
        let told: Vec<RegionName> = self.members.refused_by.iter().cloned().collect();
        if self.st().told_out != told {
            self.st_mut().told_out = told;
            self.keep();
        }
    }

    /// What such an order changes was changed, and where it is known, by this order.
    pub(super) fn is_made(&self, order: &Order) -> bool {
        let Some(state) = &self.state else { return false };
        match &order.kind {
            OrderKind::AddRegion { .. }
            | OrderKind::RemoveRegion { .. }
            | OrderKind::AddWitness { .. }
            | OrderKind::RemoveWitness { .. } => state.voters.members.as_ref().is_some_and(|m| m.orders.contains(&order.id)),
            OrderKind::SetVoters { voters } => {
                let mut voters = voters.clone();
                voters.sort();
                voters.dedup();
                voters == state.voters.voters
            }
            OrderKind::Switchover { .. } | OrderKind::Failover { .. } | OrderKind::NewLineage { .. } => false,
        }
    }

    // ---- orders ---------------------------------------------------------------------------------------------------------

    pub(super) fn change_members(&mut self, order: Order) {
        if let Some(reason) = self.members_refusal(&order.kind).filter(|_| !self.is_done_already(&order.kind)) {
            return self.refuse_new(&order, reason);
        }
        self.start(order.clone());
        if order.dry_run || self.is_done_already(&order.kind) {
            return self.finish(OpState::Done);
        }
        if self.st().voters_next.is_some() {
            // The voters are just following an earlier change.
            let until = self.now + Duration::from_millis(order.timeout_ms);
            self.members.waiting = Some((order, until));
            return;
        }
        self.begin_change(&order);
    }

    /// What waited for an earlier change, if that is over.
    fn begin_what_waited(&mut self) {
        let over = |until: Instant| self.now >= until;
        let Some((order, until)) = self.members.waiting.clone() else { return };
        if !self.is_running(order.id) {
            self.members.waiting = None;
        } else if self.st().voters_next.is_none() {
            self.members.waiting = None;
            match self.members_refusal(&order.kind) {
                _ if self.is_done_already(&order.kind) => self.finish(OpState::Done),
                Some(reason) => self.op_refused(order.id, reason),
                None => self.begin_change(&order),
            }
        } else if over(until) {
            self.members.waiting = None;
            self.op_refused(order.id, "another change of the members or voters does not come to its end; see parhelion status".into());
        }
    }

    /// An earlier order of the same kind did it: whoever repeats a command, not knowing how it ended, is told that it is done.
    fn is_done_already(&self, kind: &OrderKind) -> bool {
        let leads = self.holder.as_ref().is_some_and(super::holder::Holder::is_open);
        let members = self.membership();
        leads
            && match kind {
                OrderKind::AddRegion { region, addr } => {
                    members.regions.iter().any(|m| m.name == *region && m.since > 0 && m.addr == *addr)
                }
                OrderKind::RemoveRegion { region } => !members.contains(region) && members.removed_with(region).is_some(),
                OrderKind::AddWitness { witness, addr, zone } => {
                    members.witness.as_ref().is_some_and(|w| w.name == *witness && w.since > 0 && w.addr == *addr && w.zone == *zone)
                }
                OrderKind::RemoveWitness { witness } => members.witness_removed_with(witness).is_some(),
                _ => false,
            }
    }

    fn begin_change(&mut self, order: &Order) {
        let before = self.membership();
        let version = self.st().voters.version + 1;
        let voters = self.st().voters.voters.clone();
        let (members, voters) = match &order.kind {
            OrderKind::AddRegion { region, addr } => (before.with(region, addr, version), voters),
            OrderKind::RemoveRegion { region } => {
                let members = before.without(region, version);
                let voters = if voters.contains(region) { self.voters_without(&members, region) } else { voters };
                (members, voters)
            }
            OrderKind::AddWitness { witness, addr, zone } => {
                let (name, addr, zone) = (witness.clone(), addr.clone(), zone.clone());
                (before.with_witness(WitnessAt { name, addr, zone, since: version }), voters)
            }
            OrderKind::RemoveWitness { witness } => {
                let members = before.without_witness(version);
                let voters = if voters.contains(witness) { self.voters_without(&members, witness) } else { voters };
                (members, voters)
            }
            _ => unreachable!("BUG: another kind of order"),
        };
        self.set_phase(Phase::Agree);
        self.propose(voters, Some(members.by_order(order.id)));
    }

    /// Its first step out: another voter for it, or one less.
    fn voters_without(&self, members: &Membership, gone: &RegionName) -> Vec<RegionName> {
        let current = &self.st().voters.voters;
        let wanted = voters_by_rule(&self.who.name, current, &members.names(), members.witness_name());
        let mut next = next_voters(current, &wanted, &members.all(), &|v| self.hears(v)).unwrap_or_else(|| current.clone());
        next.retain(|v| v != gone);
        next
    }

    /// Without its vote no majority would answer: the change would end this reign.
    fn vote_is_missed(&self, members: &Membership, gone: &RegionName) -> Option<String> {
        if !self.st().voters.contains(gone) {
            return None;
        }
        let next = self.voters_without(members, gone);
        let silent: Vec<RegionName> = next.iter().filter(|v| !self.hears(v)).cloned().collect();
        (next.len() - silent.len() < next.len() / 2 + 1).then(|| {
            format!(
                "without the vote of {gone} the voters would be {}, and no majority of them answers (silent: {}); start those first, or take them out first",
                list(&next),
                list(&silent)
            )
        })
    }

    fn members_refusal(&self, kind: &OrderKind) -> Option<String> {
        let name = &self.who.name;
        let Some(holder) = self.holder.as_ref().filter(|h| h.is_open()) else {
            return Some("only a primary with its lease changes the members".to_owned());
        };
        let members = self.membership();
        let (names, witness) = (members.names(), members.witness_name());
        match kind {
            OrderKind::AddRegion { region, .. } => {
                let limit = self.who.settings.secondaries_max;
                if members.contains(region) {
                    Some(format!("{region} is a member already; the regions are {}", list(&names)))
                } else if witness == Some(region) {
                    Some(format!("the witness is called {region}: give the region another name"))
                } else if members.witness_removed_with(region).is_some() {
                    Some(format!("a witness was called {region}, and its name is not used again: give the region another name"))
                } else if names.len() > limit {
                    Some(format!(
                        "the global cluster has {limit} secondaries already ({}), and no more are allowed; first: parhelion region remove REGION",
                        list(&names)
                    ))
                } else {
                    None
                }
            }
            OrderKind::RemoveRegion { region } => {
                if witness == Some(region) {
                    return Some(format!("{region} is the witness and no region"));
                }
                if !members.contains(region) {
                    return Some(format!("there is no region '{region}'; the regions are {}", list(&names)));
                }
                if region == name {
                    let other = names.iter().find(|r| *r != name);
                    return Some(match other {
                        Some(other) => format!("{region} is the primary; switch over first: parhelion switchover --to {other}"),
                        None => format!("{region} is the only region; there would be nothing left"),
                    });
                }
                let k = usize::from(holder.rule_secondaries());
                if k > names.len() - 2 {
                    return Some(format!(
                        "sync={k} wants {k} secondaries, and {} would be left; first: parhelion set sync={}",
                        names.len() - 2,
                        names.len() - 2
                    ));
                }
                self.vote_is_missed(&members.without(region, 0), region)
            }
            OrderKind::AddWitness { witness: new, zone, .. } => {
                if let Some(witness) = witness {
                    Some(format!(
                        "{witness} is the witness, and there is one at most; take it out first: parhelion witness remove {witness}"
                    ))
                } else if names.len() < 2 {
                    Some("one region needs no witness; first: parhelion region add REGION".to_owned())
                } else if members.contains(new) {
                    Some(format!("the region {new} has that name: give the witness another one"))
                } else if members.witness_removed_with(new).or(members.removed_with(new)).is_some() {
                    Some(format!(
                        "{new} was taken out, and what it promised may be forgotten: a witness has a name that was never used. Give it another one"
                    ))
                } else if zone.as_ref().is_some_and(|z| z.is_empty() || z.chars().count() > ZONE_CHARS_MAX || z.contains(char::is_control))
                {
                    Some(format!("a zone is 1 to {ZONE_CHARS_MAX} characters"))
                } else {
                    None
                }
            }
            OrderKind::RemoveWitness { witness: gone } => match witness {
                Some(witness) if witness == gone => self.vote_is_missed(&members.without_witness(0), gone),
                Some(witness) => Some(format!("there is no witness '{gone}'; the witness is {witness}")),
                None => Some(format!("there is no witness '{gone}', nor any other")),
            },
            _ => None,
        }
    }

    /// It granted this primary within a lease.
    fn hears(&self, name: &RegionName) -> bool {
        *name == self.who.name || self.holder.as_ref().is_some_and(|h| h.heard_since(self.now, self.who.settings.lease).contains(name))
    }

    // ---- steps ----------------------------------------------------------------------------------------------------------

    /// The voters that are to be, and the members with them.
    pub(super) fn propose(&mut self, mut voters: Vec<RegionName>, members: Option<Membership>) {
        voters.sort();
        let ordered = self.orders.running.as_ref().filter(|v| v.order.kind.changes_members()).map(|v| (v.order.actor.clone(), v.order.id));
        let (actor, op) = ordered.map_or(("the number of regions".to_owned(), None), |(actor, op)| (actor, Some(op)));
        let regions = members.as_ref().map_or_else(String::new, |m| {
            let witness = m.witness_name().map_or_else(String::new, |w| format!(", the witness {w}"));
            format!("the regions are to be {}{witness}; ", list(&m.names()))
        });
        let what = format!("{regions}the voters are to be {}, they are {}", list(&voters), list(&self.st().voters.voters));
        self.audit(Action { actor, op, kind: "voters", what });
        let state = self.state.as_mut().expect("BUG: a primary without a state");
        let heard = state.voters.heard.iter().filter(|h| voters.contains(h)).cloned().collect();
        let members = members.or_else(|| state.voters.members.clone());
        state.voters_next = Some(VoterSet { version: state.voters.version + 1, voters, heard, members });
        self.keep();
        self.mark_leaving();
        self.renew_voters();
    }

    /// From here on nobody counts on what the region that leaves holds.
    fn mark_leaving(&mut self) {
        if self.members.leaving.is_some() || self.holder.as_ref().is_none_or(|h| !h.is_open()) {
            return;
        }
        let Some(next) = self.st().voters_next.as_ref().and_then(|n| n.members.as_ref()) else { return };
        let Some(region) = self.membership().names().into_iter().find(|r| !next.contains(r)) else { return };
        self.holder.as_mut().expect("BUG: just seen").secondaries.remove(&region);
        self.members.leaving = Some(Leaving { region: region.clone(), mark: self.log.end });
        self.outputs.push_back(Output::Leaving { region });
    }

    /// With a rule of synchronous commits: enough of those that stay have all that was acknowledged.
    pub(super) fn may_agree(&self) -> bool {
        let Some(next) = self.st().voters_next.as_ref().and_then(|n| n.members.as_ref()) else { return true };
        let stays = self.membership().names().iter().all(|r| next.contains(r));
        let holder = self.holder.as_ref().expect("BUG: agreed without a reign");
        let k = usize::from(holder.rule_secondaries().max(self.st().sync.secondaries));
        match &self.members.leaving {
            _ if stays || k == 0 => true,
            Some(leaving) => holder.secondaries.iter().filter(|(r, at)| next.contains(r) && at.seq >= leaving.mark.seq).count() >= k,
            None => false,
        }
    }

    /// What majorities agreed on is in force.
    pub(super) fn members_agreed(&mut self, before: &Membership) {
        self.members.leaving = None;
        let now = self.membership();
        for gone in before.names().into_iter().filter(|r| !now.contains(r)) {
            self.note("region_removed", format!("{gone} is no member any more; the regions are {}", list(&now.names())));
            self.members.goodbyes.retain(|(r, _)| *r != gone);
            self.members.goodbyes.push((gone.clone(), GOODBYES));
            let holder = self.holder.as_mut().expect("BUG: agreed without a reign");
            holder.forget(&gone);
        }
        for new in now.names().into_iter().filter(|r| !before.contains(r)) {
            self.note("region_added", format!("{new} is a member; the regions are {}", list(&now.names())));
            self.members.goodbyes.retain(|(r, _)| *r != new);
        }
        if now.witness_name() != before.witness_name() {
            self.witness_agreed(before.witness_name(), now.witness_name());
        }
        self.take_members();
        // An order that waits for this is not what was agreed on.
        let running = self.orders.running.as_ref().filter(|_| self.members.waiting.is_none());
        let kind = running.map(|v| v.order.kind.clone());
        match kind {
            Some(kind) if kind.removes() => {
                self.set_phase(Phase::Voters);
                if !self.adjust_voters() {
                    self.finish(OpState::Done);
                }
            }
            Some(kind) if kind.member().is_some() => self.finish(OpState::Done),
            _ => {}
        }
    }

    fn witness_agreed(&mut self, before: Option<&RegionName>, now: Option<&RegionName>) {
        if let Some(gone) = before {
            self.note("witness_removed", format!("{gone} is the witness no more; its vote is gone, and its name is not used again"));
            self.members.goodbyes.push((gone.clone(), GOODBYES));
            self.holder.as_mut().expect("BUG: agreed without a reign").forget(gone);
        }
        if let Some(new) = now {
            self.note("witness_added", format!("{new} is the witness; it votes when the number of regions asks for one and it is heard"));
        }
    }

    /// One step towards the voters that the rule wants; whether one was begun.
    fn adjust_voters(&mut self) -> bool {
        let members = self.membership();
        if !members.by_rule || self.st().voters_next.is_some() || self.holder.as_ref().is_none_or(|h| !h.is_open()) {
            return false;
        }
        let (current, names) = (self.st().voters.voters.clone(), members.names());
        let wanted = voters_by_rule(&self.who.name, &current, &names, members.witness_name());
        let Some(next) = next_voters(&current, &wanted, &members.all(), &|v| self.hears(v)) else { return false };
        // Majorities of both are there, or the lease would end for want of them.
        let enough = |set: &[RegionName]| set.iter().filter(|v| self.hears(v)).count() > set.len() / 2;
        if !enough(&next) || !enough(&current) {
            return false;
        }
        self.propose(next, None);
        true
    }

    /// In the primary, whenever it looks after its orders.
    pub(super) fn members_timers(&mut self) {
        let open = self.holder.as_ref().is_some_and(super::holder::Holder::is_open);
        if !open {
            (self.members.leaving, self.members.waiting) = (None, None);
            return;
        }
        self.mark_leaving();
        self.begin_what_waited();
        let ordered = self.orders.running.as_ref().is_some_and(|v| !v.order.kind.removes());
        if !ordered && self.orders.handing.is_none() {
            self.adjust_voters();
        }
    }
}
