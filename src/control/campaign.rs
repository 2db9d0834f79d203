//! The candidate: how a region comes to reign.
//!
//! Decides whether to ask for votes at all (a look around that changes nothing comes first), for which epoch, and whether what a
//! majority answered allows it to take over (protocol.md rules 8 to 12). Backs off with jitter, so that two candidates do not chase each
//! other through the epochs (L5).

use super::api::Output;
use super::chain::{EpochEntry, ReignKind};
use super::elect::{Heard, NoOutcome, Outcome, covered_by, covered_by_rule, describe};
use super::machine::Control;
use super::message::{ControlMessage, Handover, Round, Stands, Vote, Voted};
use super::orders::list;
use super::types::{AutoFailover, Consent, OpId, Phase, VoterSet};
use crate::base::{Epoch, Instant, LogEnd, RegionName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// All that answer a question are waited for so long when a majority has.
pub(super) const GRACE: Duration = Duration::from_millis(300);
/// A region that has more is fetched from for so long.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(10);
/// A handover frame is on its way from the old primary for so long before it is fetched from whoever has it.
pub(super) const FRAME_PATIENCE: Duration = Duration::from_secs(1);
/// By an operator's word an epoch is taken, and a version of the voters, that the silent region, voting alone, will not have reached.
pub(super) const FORCED_AHEAD: u64 = 1000;
/// The region that is better placed is given so long to begin.
const DEFER: Duration = Duration::from_millis(700);

#[derive(Clone, Debug)]
pub(super) enum Why {
    /// An operator's order. `forced`: by the operator's word, without the only voter.
    Failover { op: OpId, consent: Consent, actor: String, forced: bool },
    /// The primary handed over.
    Handover(Box<Handover>),
    /// It was the last primary and has everything.
    Regain,
    /// The cluster does it by itself.
    Auto { op: OpId },
}

#[derive(Clone, Debug)]
pub(super) struct Campaign {
    pub why: Why,
    pub stage: Stage,
    pub(super) round: Round,
    pub(super) asked: Instant,
    pub(super) stands: BTreeMap<RegionName, Stands>,
    pub(super) votes: BTreeMap<RegionName, Heard>,
    pub(super) refused: BTreeSet<RegionName>,
    pub epoch: Epoch,
    pub next: Instant,
    /// Until the point of no return.
    pub(super) deadline: Option<Instant>,
    pub(super) deferred: bool,
    /// An epoch was taken for it, and did not open: it ends with whoever reigns, and is not called off any more.
    pub(super) begun: bool,
    /// Regions that were fetched from, whatever it brought.
    pub(super) fetched: BTreeSet<RegionName>,
    pub(super) fetching: Option<(RegionName, Instant)>,
}

#[derive(Clone, Debug)]
pub(super) enum Stage {
    Rests,
    /// Looks around.
    Asking,
    /// Until the voters' grants are over.
    Waiting,
    Voting {
        since: Instant,
    },
    Taking {
        entry: Box<EpochEntry>,
    },
}

impl Campaign {
    /// The old primary's handover ends elsewhere than it did: its vote says so, and what it has may be fetched once more.
    pub(super) fn handed_again(&mut self, from: RegionName, vote: &Voted) {
        self.fetched.remove(&from);
        self.votes.insert(from, Heard::from(vote));
    }
}

impl Control {
    // ---- beginning ------------------------------------------------------------------------------------------------------

    pub(super) fn campaign_for(&mut self, why: Why, deadline: Option<Instant>, at: Instant) {
        self.campaign = Some(Campaign {
            why,
            stage: Stage::Rests,
            round: Round::default(),
            asked: self.now,
            stands: BTreeMap::new(),
            votes: BTreeMap::new(),
            refused: BTreeSet::new(),
            epoch: Epoch(0),
            next: at,
            deadline,
            deferred: false,
            begun: false,
            fetched: BTreeSet::new(),
            fetching: None,
        });
    }

    /// The last primary asks for an epoch of its own: it has everything, so nobody's consent is needed.
    pub(super) fn regain_wanted(&mut self) {
        if self.campaign.is_none() && self.log_told && !self.is_handing_alone() && self.lost.is_none() {
            let at = self.back_off();
            self.campaign_for(Why::Regain, None, at);
        }
    }

    /// An epoch that was taken by an operator's order, and that no majority granted yet, has become one that it may never grant: it is asked
    /// for a later one, for the same order, until somebody reigns. Whether this is such an order.
    pub(super) fn ask_again(&mut self, order: Option<Why>) -> bool {
        let idle = self.campaign.as_ref().is_none_or(|c| matches!(c.why, Why::Regain) && !c.begun);
        let Some(why) = order.filter(|_| idle && self.out().is_none() && self.lost.is_none() && self.conflict.is_none()) else {
            return false;
        };
        let at = self.back_off();
        self.campaign_for(why, None, at);
        self.campaign.as_mut().expect("BUG: just begun").begun = true;
        true
    }

    /// What a member begins by itself, when nobody reigns.
    pub(super) fn consider(&mut self) {
        let Some(at) = self.consider_at() else { return };
        if self.now < at {
            return;
        }
        if self.was_last_primary() {
            self.regain_wanted();
        } else {
            let op = OpId((u128::from(self.prng.next_u64()) << 64) | u128::from(self.prng.next_u64()));
            let at = self.now + self.jitter(self.who.settings.backoff_min);
            self.campaign_for(Why::Auto { op }, None, at);
        }
    }

    pub(super) fn consider_timeout(&self) -> Option<Instant> {
        self.consider_at()
    }

    fn was_last_primary(&self) -> bool {
        let Some(state) = &self.state else { return false };
        let Some(top) = state.chain.top() else { return false };
        let heard_newer = |epoch: Epoch| self.reign.as_ref().is_some_and(|(e, _)| *e > epoch);
        // It began a reign that its own chain does not have yet: a majority of others may have granted it.
        let began = state.promised == self.log.end.epoch && state.voted_for.as_ref() == Some(&self.who.name) && state.promised > top.epoch;
        (began && !heard_newer(state.promised)) || (top.region == self.who.name && !heard_newer(top.epoch))
    }

    fn consider_at(&self) -> Option<Instant> {
        let busy = self.holder.is_some() || self.campaign.is_some() || self.is_handing();
        let shut_out = self.amnesiac || self.lost.is_some() || self.out().is_some();
        if busy || !self.log_told || !self.who.has_data || self.conflict.is_some() || shut_out {
            return None;
        }
        self.state.as_ref()?.chain.top()?;
        if self.was_last_primary() {
            return Some(self.not_before);
        }
        if self.auto_failover() == AutoFailover::Off || self.is_unproven() || self.is_leaving(&self.who.name) {
            return None;
        }
        // Looked around for before the voters' grants end, so that no time is lost when they do.
        Some(self.not_before.max(self.seen.at + self.who.settings.lease * 2 / 3))
    }

    // ---- looking around -------------------------------------------------------------------------------------------------

    fn look(&mut self) {
        let round = self.next_round();
        let (now, every) = (self.now, self.who.settings.probe_every);
        let Some(campaign) = &mut self.campaign else { return };
        (campaign.round, campaign.asked, campaign.next, campaign.stage) = (round, now, now + every, Stage::Asking);
        campaign.stands.clear();
        self.send_others(&ControlMessage::Probe { round });
        self.judge_look();
    }

    pub(super) fn campaign_stands(&mut self, from: &RegionName, stands: Stands) {
        let Some(state) = &self.state else { return };
        if stands.lineage != state.lineage {
            return;
        }
        // The reign that it would end, and has not heard of since it restarted, is no news.
        let known = state.chain.top().map_or(Epoch(0), |t| t.epoch);
        if let Some((epoch, region)) = stands.reign.as_ref().filter(|(epoch, _)| *epoch > known)
            && stands.round.incarnation == self.incarnation
        {
            self.learn_reign(*epoch, region);
        }
        self.learn_auto(stands.auto);
        let Some(campaign) = &mut self.campaign else { return };
        if campaign.round == stands.round && matches!(campaign.stage, Stage::Asking) {
            campaign.stands.insert(from.clone(), stands);
            self.judge_look();
        }
    }

    fn judge_look(&mut self) {
        let own = self.stands(Round::default());
        let Some(campaign) = &self.campaign else { return };
        let others = self.who.others().count();
        let all = campaign.stands.len() >= others;
        let mut stands = campaign.stands.clone();
        stands.insert(self.who.name.clone(), own);
        let forced = matches!(campaign.why, Why::Failover { forced: true, .. });
        let waited = self.now >= campaign.asked + GRACE;
        if !(forced || self.is_majority(|v| stands.contains_key(v))) {
            return;
        }
        // The old primary is what is mostly missing. When its grants are over and everybody else has answered, nothing that it says is waited
        // for; it is no matter of safety, which is the votes'.
        let wait = if forced { Duration::ZERO } else { self.grants_over_in(&stands) };
        let old = self.st().chain.top().map(|e| e.region.clone());
        let but_old = !forced && wait.is_zero() && self.who.others().all(|m| Some(m) == old.as_ref() || campaign.stands.contains_key(m));
        if !(all || waited || but_old) {
            return;
        }
        let leader = stands.iter().find(|(r, s)| s.leads && **r != self.who.name).map(|(r, _)| r.clone());
        if let Some(leader) = leader {
            return self.leader_alive(&leader);
        }
        if forced && campaign.stands.keys().any(|r| self.st().voters.contains(r)) {
            let alive = campaign.stands.keys().find(|r| self.st().voters.contains(r)).expect("BUG: just seen").clone();
            let reason = format!("{alive} answers: it is not down. Use: parhelion switchover --to {}", self.who.name);
            return self.campaign_refused(reason);
        }
        if let Some((member, newer)) =
            stands.iter().max_by_key(|(_, s)| s.voters.version).filter(|(_, s)| s.voters.version > self.st().voters.version)
        {
            return self.take_newer_voters(&member.clone(), newer.voters.clone());
        }
        let heard: BTreeMap<RegionName, Heard> = stands.iter().map(|(r, s)| (r.clone(), Heard::from(s))).collect();
        let highest = stands.values().flat_map(|s| [Some(s.promised), s.chain.top().map(|e| e.epoch)]).flatten().max();
        let outcome = self.weigh(&heard);
        self.look_done(wait, outcome, highest.unwrap_or(Epoch(0)));
    }

    /// A change of the voters was agreed on that this member has not heard of, and whoever agreed on it may never tell it (seed 564 of roles). What
    /// majorities agreed on counts, whoever tells it; what an operator's word alone made the voters is told by whoever reigns by it.
    fn take_newer_voters(&mut self, member: &RegionName, newer: VoterSet) {
        if newer.version - self.st().voters.version >= FORCED_AHEAD {
            return self.rest("another member knows newer voters; waiting to hear of them from the primary");
        }
        let what = format!("{member} knows that the voters are {} by now (version {})", list(&newer.voters), newer.version);
        self.hold_voters(newer);
        self.keep();
        self.rest(&what);
        self.take_members();
    }

    /// How long until a majority may vote, by what they say.
    fn grants_over_in(&self, stands: &BTreeMap<RegionName, Stands>) -> Duration {
        let free_in = |s: &Stands| {
            let granted = if s.grant_to.as_ref() == Some(&self.who.name) || s.grant_to.is_none() { 0 } else { s.grant_left_ms };
            let restarted = if self.was_last_primary() { 0 } else { s.restart_left_ms };
            granted.max(restarted)
        };
        let waits: BTreeMap<&RegionName, u64> = stands.iter().map(|(r, s)| (r, free_in(s))).collect();
        let mut steps: Vec<u64> = waits.values().copied().collect();
        steps.sort_unstable();
        let wait = steps.into_iter().find(|w| self.is_majority(|v| waits.get(v).is_some_and(|x| x <= w)));
        Duration::from_millis(wait.unwrap_or(0))
    }

    fn look_done(&mut self, wait: Duration, outcome: Result<Outcome, NoOutcome>, highest: Epoch) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(NoOutcome::TwoReigns(two)) => {
                self.two_writers(two.to_string());
                return self.campaign_refused(two.to_string());
            }
            Err(why) => return self.campaign_refused(why.to_string()),
        };
        let campaign = self.campaign.as_ref().expect("BUG: looked around for nothing");
        match campaign.why.clone() {
            Why::Regain if outcome.kind != ReignKind::Regained => {
                let what = format!("{} may have reigned in epoch {}, which this region does not have whole", outcome.from, outcome.prev);
                return self.rest(&what);
            }
            Why::Auto { .. } => {
                if !self.auto_may(&outcome) {
                    let auto = self.auto_failover();
                    return self.rest(&format!("no failover by itself, since auto_failover={auto}: {}", describe(&outcome.loss)));
                }
                let better = outcome.more.is_some() || self.is_behind_equals(&outcome);
                if better && !campaign.deferred {
                    let next = self.now + wait + DEFER;
                    let campaign = self.campaign.as_mut().expect("BUG: just seen");
                    (campaign.deferred, campaign.stage, campaign.next) = (true, Stage::Waiting, next);
                    return;
                }
            }
            Why::Failover { op, consent, forced, .. } => {
                let view_done = self.op_looked(op, &outcome, wait);
                if view_done {
                    self.campaign = None;
                    return;
                }
                if forced && !consent.allow_data_loss {
                    let reason = "without a third voter it cannot be proven that the old primary is down and what it acknowledged; to go on, add --allow-data-loss";
                    return self.campaign_refused(reason.into());
                }
                // What another region has more will be fetched before anything is decided.
                if (outcome.more.is_none() || !(outcome.provable || consent.allow_data_loss))
                    && let Err(reason) = covered_by(&consent, &outcome.loss)
                {
                    return self.campaign_refused(reason);
                }
            }
            Why::Regain | Why::Handover(_) => {}
        }
        if wait > Duration::ZERO {
            self.op_phase(Phase::Wait);
            let next = self.now + wait + Duration::from_millis(5);
            let campaign = self.campaign.as_mut().expect("BUG: just seen");
            (campaign.stage, campaign.next) = (Stage::Waiting, next);
            return;
        }
        // The silent region may have gone through epochs that nobody here has heard of; two must never claim the same.
        let beyond = if self.is_forced() { FORCED_AHEAD } else { 1 };
        self.vote_for_own(Epoch(highest.0 + beyond));
    }

    /// Of several regions with the same log one goes first.
    fn is_behind_equals(&self, outcome: &Outcome) -> bool {
        let campaign = self.campaign.as_ref().expect("BUG: asked without a campaign");
        campaign.stands.iter().any(|(region, s)| {
            *region < self.who.name && *region != outcome.from && s.log.as_ref().is_some_and(|l| l.end.seq >= self.log.end.seq)
        })
    }

    fn auto_may(&self, outcome: &Outcome) -> bool {
        // What is missing here and lies elsewhere is fetched first; then it is judged again.
        let auto = self.auto_failover();
        auto != AutoFailover::Off && (outcome.more.is_some() || covered_by_rule(auto, &outcome.loss))
    }

    fn leader_alive(&mut self, leader: &RegionName) {
        let campaign = self.campaign.as_ref().expect("BUG: asked without a campaign");
        match &campaign.why {
            Why::Failover { .. } => {
                let reason = format!(
                    "{leader} is the primary and holds its lease; nothing is lost by a planned change. Use: parhelion switchover --to {}",
                    self.who.name
                );
                self.campaign_refused(reason);
            }
            _ => {
                self.not_before = self.now + self.who.settings.lease / 2;
                self.campaign = None;
            }
        }
    }

    // ---- votes ----------------------------------------------------------------------------------------------------------

    pub(super) fn vote_for_own(&mut self, epoch: Epoch) {
        let (now, retry) = (self.now, self.who.settings.retry_every);
        let round = self.next_round();
        self.op_phase(Phase::Vote);
        if self.is_forced() {
            // Whatever it granted to the region that an operator says is down.
            self.grant = None;
            self.votes_from = now;
        }
        let campaign = self.campaign.as_mut().expect("BUG: votes for nobody");
        campaign.epoch = epoch;
        campaign.round = round;
        campaign.stage = Stage::Voting { since: now };
        campaign.next = now + retry;
        campaign.votes.clear();
        campaign.refused.clear();
        campaign.fetched.clear();
        campaign.fetching = None;
        if let Why::Handover(handover) = &campaign.why {
            // The primary's own vote came with its handover. It is one for the next epoch, and in no other one it says what is known by now.
            let from = handover.op.from.clone();
            let heir = handover.voters.voters == [self.who.name.clone()];
            let vote = Heard::from(&handover.vote);
            if let Some(from) = from.filter(|_| heir || epoch == handover.epoch.next()) {
                campaign.votes.insert(from, vote);
            }
        }
        self.ask_votes();
    }

    fn ask_votes(&mut self) {
        let state = self.st();
        let campaign = self.campaign.as_ref().expect("BUG: votes for nobody");
        let (released, op) = match &campaign.why {
            Why::Handover(h) => (Some(h.epoch), Some(h.op.order.id)),
            Why::Failover { op, .. } | Why::Auto { op } => (None, Some(*op)),
            Why::Regain => (None, None),
        };
        let vote = Vote {
            lineage: state.lineage,
            voters_version: state.voters.version,
            epoch: campaign.epoch,
            round: campaign.round,
            released,
            op,
        };
        let missing: Vec<RegionName> =
            self.who.others().chain([&self.who.name]).filter(|m| !campaign.votes.contains_key(*m)).cloned().collect();
        self.tell_survivors();
        for to in missing {
            self.send(to, ControlMessage::Vote(vote.clone()));
        }
    }

    pub(super) fn on_voted(&mut self, from: RegionName, voted: Voted) {
        let Some(campaign) = &mut self.campaign else { return };
        let counts = campaign.round == voted.round && campaign.epoch == voted.epoch && matches!(campaign.stage, Stage::Voting { .. });
        if !counts {
            return;
        }
        campaign.votes.insert(from.clone(), Heard::from(&voted));
        self.survivor_heard(&from);
        self.learn_auto(voted.auto);
        let state = self.state.as_mut().expect("BUG: a campaign without a state");
        if voted.voters_next.is_some() && state.voters_next.is_none() && voted.voters.version == state.voters.version {
            // A change of voters is under way: both majorities must agree from here on.
            state.voters_next = voted.voters_next;
            self.keep();
            self.take_members();
        }
        self.judge_votes();
    }

    pub(super) fn on_not_voted(&mut self, from: RegionName, epoch: Epoch, round: Round, promised: Epoch, wait_ms: u64, reason: String) {
        let Some(campaign) = &mut self.campaign else { return };
        if campaign.round != round || campaign.epoch != epoch || !matches!(campaign.stage, Stage::Voting { .. }) {
            return;
        }
        if wait_ms == 0 || promised >= epoch {
            campaign.refused.insert(from.clone());
        }
        let refused = campaign.refused.clone();
        if !self.is_majority(|v| !refused.contains(v)) {
            self.rest(&format!("{from} does not vote for epoch {epoch}: {reason}"));
        }
    }

    fn judge_votes(&mut self) {
        let Some(campaign) = &self.campaign else { return };
        let Stage::Voting { since } = campaign.stage else { return };
        // Its own vote is always among them: it stands for what is kept here.
        let enough = self.is_forced() || self.is_majority(|v| campaign.votes.contains_key(v));
        if !campaign.votes.contains_key(&self.who.name) || !enough || self.is_beside_a_word() {
            return;
        }
        if !self.is_forced() && matches!(campaign.why, Why::Failover { .. } | Why::Auto { .. }) && self.is_leaving(&self.who.name) {
            return self.campaign_refused(self.leaving_sentence(&self.who.name));
        }
        let outcome = match self.weigh(&campaign.votes) {
            Ok(outcome) => outcome,
            Err(NoOutcome::TwoReigns(two)) => {
                self.two_writers(two.to_string());
                return self.campaign_refused(two.to_string());
            }
            Err(why) => return self.campaign_refused(why.to_string()),
        };
        let campaign = self.campaign.as_ref().expect("BUG: just seen");
        if campaign.fetching.is_some() {
            return;
        }
        let handed = matches!(campaign.why, Why::Handover(_));
        if let Some((from, up_to)) = outcome.more.clone()
            && !campaign.fetched.contains(&from)
            && outcome.cuts.is_none()
        {
            if handed && self.now < since + FRAME_PATIENCE {
                return;
            }
            return self.fetch(from, up_to);
        }
        let waits_for_more = self.now < since + self.who.settings.vote_patience && campaign.votes.len() < self.who.others().count() + 1;
        let verdict = match &campaign.why {
            // It began the epoch that it was handed before it restarted, and goes on behind that.
            Why::Handover(_) if outcome.kind == ReignKind::Regained => Ok(Consent::default()),
            // The handover frame is on its way.
            Why::Handover(h) if outcome.kind != ReignKind::Planned => {
                if outcome.prev == h.epoch && self.log.end.seq < h.at.seq {
                    return;
                }
                Err(format!("the log does not end with the handover frame at {}", h.at))
            }
            Why::Handover(_) => Ok(Consent::default()),
            Why::Regain if outcome.kind == ReignKind::Regained => Ok(Consent::default()),
            Why::Regain => Err(format!("{} reigned in epoch {}", outcome.from, outcome.prev)),
            // Its own log would have to be cut to fetch what another has more, before anything is settled. The other has no such tail.
            Why::Failover { .. } | Why::Auto { .. } if outcome.more.is_some() && outcome.cuts.is_some() => {
                let better = outcome.more.as_ref().map_or_else(String::new, |(r, _)| r.to_string());
                Err(format!("{better} has more of the history. Use: parhelion failover --to {better}"))
            }
            Why::Failover { consent, .. } => covered_by(consent, &outcome.loss).map(|()| *consent),
            Why::Auto { .. } if covered_by_rule(self.auto_failover(), &outcome.loss) => Ok(self.rules_consent()),
            Why::Auto { .. } => Err(describe(&outcome.loss)),
        };
        match verdict {
            Ok(consent) => self.take_over(outcome, consent),
            // More answers may prove that nothing is lost.
            Err(_) if waits_for_more => {}
            Err(reason) => self.campaign_refused(reason),
        }
    }

    fn rules_consent(&self) -> Consent {
        let ms = match self.auto_failover() {
            AutoFailover::MaxLoss(max) => Some(super::machine::millis(max)),
            AutoFailover::Off | AutoFailover::Lossless => None,
        };
        Consent { allow_data_loss: ms.is_some(), max_loss_ms: ms, max_loss_bytes: None }
    }

    fn fetch(&mut self, from: RegionName, up_to: LogEnd) {
        self.op_phase(Phase::CatchUp);
        self.note("catch_up", format!("{from} has more of the log, up to {up_to}: fetching it before taking over"));
        let until = self.now + CATCH_UP_PATIENCE;
        let campaign = self.campaign.as_mut().expect("BUG: fetched for nobody");
        campaign.fetching = Some((from.clone(), until));
        campaign.next = until;
        self.outputs.push_back(Output::CatchUp { from, up_to });
    }

    pub(super) fn caught_up(&mut self, from: &RegionName) {
        let (now, retry) = (self.now, self.who.settings.retry_every);
        let Some(campaign) = &mut self.campaign else { return };
        if campaign.fetching.as_ref().is_some_and(|(r, _)| r == from) {
            campaign.fetching = None;
            campaign.fetched.insert(from.clone());
            campaign.next = now + retry;
            if matches!(campaign.stage, Stage::Voting { .. }) {
                campaign.stage = Stage::Voting { since: now };
            }
            self.judge_votes();
        }
    }

    pub(super) fn campaign_log_moved(&mut self) {
        let standing = self.log.standing(self.state.as_ref().and_then(|s| s.cut));
        let Some(campaign) = &mut self.campaign else { return };
        // Its own vote says where its log is now: what it fetched counts.
        if let Some(own) = campaign.votes.get_mut(&self.who.name) {
            own.log = Some(standing);
        }
        self.follow();
        self.judge_votes();
    }

    pub(super) fn campaign_timeout(&self) -> Option<Instant> {
        let campaign = self.campaign.as_ref()?;
        let grace = campaign.asked + GRACE;
        match campaign.stage {
            Stage::Asking if self.now < grace => Some(campaign.next.min(grace)),
            Stage::Taking { .. } => None,
            _ => Some(campaign.next),
        }
    }

    pub(super) fn campaign_timers(&mut self) {
        let now = self.now;
        let Some(campaign) = &self.campaign else { return };
        let returns = !campaign.begun && campaign.fetching.is_none();
        if returns && campaign.deadline.is_some_and(|d| now >= d) {
            let why = self.reason.clone().unwrap_or_else(|| "a majority of the voters did not answer".into());
            return self.campaign_refused(format!("its time is up: {why}"));
        }
        match campaign.stage {
            Stage::Rests | Stage::Waiting if now >= campaign.next => self.look(),
            Stage::Asking => {
                if now >= campaign.next {
                    if matches!(campaign.why, Why::Auto { .. }) {
                        return self.rest("a majority of the voters does not answer");
                    }
                    self.op_unanswered();
                    self.look();
                } else if now >= campaign.asked + GRACE {
                    self.judge_look();
                }
            }
            Stage::Voting { since } if now >= campaign.next => {
                if let Some((from, _)) = campaign.fetching.clone() {
                    return self.caught_up(&from);
                }
                if now >= since + self.vote_patience() {
                    let missing = "a majority did not vote for it in time";
                    return self.rest(missing);
                }
                let retry = self.who.settings.retry_every;
                self.campaign.as_mut().expect("BUG: just seen").next = now + retry;
                self.ask_votes();
                self.judge_votes();
            }
            _ => {}
        }
    }

    /// The operator's word stands for the majority.
    pub(super) fn is_forced(&self) -> bool {
        self.campaign.as_ref().is_some_and(|c| matches!(c.why, Why::Failover { forced: true, .. }))
    }

    /// This region has the only vote and heard one that promised more than it ever reigned in: that one is about to be promoted by an
    /// operator's word. It answers, so it is asked to let go of that; if it reigns by then it does not, and says who has the vote.
    fn is_beside_a_word(&self) -> bool {
        let (Some(campaign), state) = (&self.campaign, self.st()) else { return false };
        let alone = self.is_unproven() && state.voters.contains(&self.who.name) && !self.is_forced();
        let reigned = state.chain.top().map_or(Epoch(0), |top| top.epoch);
        alone && campaign.stands.iter().any(|(r, s)| s.log.is_some() && s.promised > reigned && !campaign.votes.contains_key(r))
    }

    pub(super) fn vote_patience(&self) -> Duration {
        // A target waits for the handover frame as long as its primary waits for it.
        let handed = self.campaign.as_ref().is_some_and(|c| matches!(c.why, Why::Handover(_)));
        if handed { self.who.settings.handover_patience * 2 } else { self.who.settings.vote_patience }
    }

    /// The primary was heard: what was begun because it was not is over.
    pub(super) fn campaign_needless(&mut self) {
        let early = |c: &Campaign| matches!(c.why, Why::Auto { .. }) && matches!(c.stage, Stage::Rests | Stage::Asking | Stage::Waiting);
        if self.campaign.as_ref().is_some_and(early) {
            self.campaign = None;
        }
    }
}

impl From<&Stands> for Heard {
    fn from(s: &Stands) -> Heard {
        Heard { chain: s.chain.clone(), pending: Vec::new(), log: s.log.clone(), seen: s.seen, sync: s.sync }
    }
}

impl From<&Voted> for Heard {
    fn from(v: &Voted) -> Heard {
        Heard { chain: v.chain.clone(), pending: v.pending.clone(), log: v.log.clone(), seen: v.seen, sync: v.sync }
    }
}
