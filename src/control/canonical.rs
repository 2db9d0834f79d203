//! A core's state as bytes in which two that will behave alike are alike: for an exhaustive model of the protocol, which visits each
//! state once.
//!
//! Decides nothing. Times are counted from now, in ticks rounded up: right for a driver whose clock only shows whole ticks. Left out is what
//! no decision is made by: sentences, durations of phases, randomness, when a grant was last heard. Every field of the core is
//! named here or taken apart, so that a new one is thought about.

use super::campaign::{Campaign, Stage as Asks, Why};
use super::elect::Heard;
use super::holder::{Holder, Stage as Holds};
use super::machine::{Control, LEDGER_EVERY};
use super::message::{ControlMessage, Round, Stands};
use super::orders::{Orders, SwitchStage};
use super::state::{Ledger, VoterState};
use super::types::{OpState, OpView};
use crate::base::{Instant, RegionName};
use std::time::Duration;

/// A round that nobody waits for any more.
const STALE: u64 = u64::MAX;
/// What is longer ago is long ago.
const AGO_MAX: u64 = 12;

struct Bytes<'a> {
    of: &'a Control,
    tick: Duration,
    out: Vec<u8>,
}

impl Bytes<'_> {
    fn put(&mut self, value: impl bincode::Encode) {
        bincode::encode_into_std_write(value, &mut self.out, bincode::config::standard()).expect("BUG: memory takes names and numbers");
    }

    /// Ticks until then; what is over is over.
    fn until(&mut self, at: Instant) {
        let ticks = at.since(self.of.now).as_nanos().div_ceil(self.tick.as_nanos());
        self.put(u64::try_from(ticks).unwrap_or(u64::MAX));
    }

    fn since(&mut self, at: Instant) {
        let ticks = self.of.now.since(at).as_nanos() / self.tick.as_nanos();
        self.put(u64::try_from(ticks).unwrap_or(u64::MAX).min(AGO_MAX));
    }

    fn round(&mut self, round: Round) {
        self.put(self.of.round_age(round));
    }

    fn stands(&mut self, s: &Stands) {
        let mut seen = s.seen;
        seen.ago_ms = 0;
        self.put((s.promised, s.released, &s.chain, &s.grant_to, s.grant_left_ms, s.restart_left_ms, &s.reign, s.leads));
        self.put((&s.log, seen, s.sync, &s.voters));
    }

    fn heard(&mut self, h: &Heard) {
        let mut seen = h.seen;
        seen.ago_ms = 0;
        self.put((&h.chain, &h.pending, &h.log, seen, h.sync));
    }

    fn holder(&mut self, holder: &Holder) {
        // When somebody granted last is only shown.
        let Holder {
            entry,
            stage,
            valid_until,
            rounds,
            next,
            moved,
            touched,
            granted_at: _,
            overtaken_since,
            refused_by,
            secondaries,
            rule,
            rule_told,
            auto_told,
            order,
        } = holder;
        self.put((entry, moved, touched, refused_by, secondaries, rule, rule_told, auto_told));
        match stage {
            Holds::Asking { round, stands, began, resumes } => {
                self.put((0u8, stands, resumes));
                self.round(*round);
                self.since(*began);
            }
            Holds::Taking => self.put(1u8),
            Holds::Activating => self.put(2u8),
            Holds::Reopening { until, sent } => {
                self.put((3u8, sent));
                self.until(*until);
            }
            Holds::Open => self.put(4u8),
        }
        self.until(*valid_until);
        self.until(*next);
        self.put(overtaken_since.is_some());
        if let Some(since) = overtaken_since {
            self.since(*since);
        }
        self.put(order.is_some());
        let share = self.of.who.settings.holder_share();
        let changing = self.of.state.as_ref().is_some_and(|s| s.voters_next.is_some());
        for round in rounds {
            // A grant of a round that is over gives nothing, unless it agrees to something else.
            if round.sent + share > self.of.now || changing || !rule_told {
                self.round(round.no);
                self.until(round.sent + share);
                self.put((&round.grants, round.rule, round.voters, round.done));
            }
        }
    }

    fn why(&mut self, why: &Why) {
        match why {
            Why::Failover { op, consent, actor, forced } => self.put((0u8, op, consent, actor, forced)),
            Why::Handover(h) => {
                let mut h = (**h).clone();
                (h.op, h.ledger) = (without_times(&h.op), h.ledger.without_times());
                (h.vote.round, h.vote.seen.ago_ms) = (Round::default(), 0);
                self.put((1u8, h));
            }
            Why::Regain => self.put(2u8),
            Why::Auto { op } => self.put((3u8, op)),
        }
    }

    fn campaign(&mut self, campaign: &Campaign) {
        let Campaign { why, stage, round, asked, stands, votes, refused, epoch, next, deadline, deferred, begun, fetched, fetching } =
            campaign;
        self.why(why);
        match stage {
            Asks::Rests => self.put(0u8),
            Asks::Asking => self.put(1u8),
            Asks::Waiting => self.put(2u8),
            Asks::Voting { since } => {
                self.put(3u8);
                self.since(*since);
            }
            Asks::Taking { entry } => self.put((4u8, entry)),
        }
        self.round(*round);
        self.since(*asked);
        self.until(*next);
        self.put((refused, epoch, deferred, begun, fetched, deadline.is_some(), fetching.as_ref().map(|(r, _)| r)));
        for at in [*deadline, fetching.as_ref().map(|(_, at)| *at)].into_iter().flatten() {
            self.until(at);
        }
        for (region, s) in stands {
            self.put(region);
            self.stands(s);
        }
        for (region, h) in votes {
            self.put(region);
            self.heard(h);
        }
    }

    fn orders(&mut self, orders: &Orders) {
        let Orders { forwarded, watchers, running, phase_since: _, switching, handing } = orders;
        self.put((watchers, running.as_ref().map(without_times)));
        for (id, f) in forwarded {
            self.put(id);
            self.until(f.next_at());
        }
        if let Some(s) = switching {
            self.put((s.op, &s.to));
            self.until(s.until);
            match &s.stage {
                SwitchStage::Checking { asked, answers } => {
                    for (round, at) in asked {
                        self.round(*round);
                        self.since(*at);
                    }
                    let agrees: Vec<(&RegionName, bool)> = answers.iter().map(|(r, (_, agrees))| (r, *agrees)).collect();
                    self.put(agrees);
                }
                SwitchStage::Draining { deadline } => self.until(*deadline),
            }
        }
        if let Some(h) = handing {
            self.put((h.op, &h.to, h.epoch, h.at));
            self.until(h.next);
            self.until(h.until);
        }
    }
}

impl Control {
    /// How many rounds ago it was this one; a number that no round has when another life of this member asked.
    #[must_use]
    pub fn round_age(&self, round: Round) -> u64 {
        if round.incarnation == self.incarnation && round.no <= self.round_no { self.round_no - round.no } else { STALE }
    }

    /// Alike for two states of this member that will behave alike, for a driver whose clock shows whole ticks.
    #[must_use]
    pub fn canonical(&self, tick: Duration) -> Vec<u8> {
        let mut b = Bytes { of: self, tick, out: Vec::with_capacity(1024) };
        let Control {
            // The same for all of its states, or what no decision is made by.
            who: _,
            prng: _,
            incarnation: _,
            round_no: _,
            now: _,
            wall: _,
            reason: _,
            backoff: _,
            token: _,
            persisted: _,
            dirty: _,
            state,
            log,
            log_told,
            seen,
            grant,
            votes_from,
            amnesiac,
            lost,
            members,
            lineages,
            reign,
            followed,
            holder,
            campaign,
            not_before,
            orders,
            conflict,
            ledger_sent,
            held,
            inbox,
            outputs,
        } = self;
        assert!(held.is_empty() && inbox.is_empty() && outputs.is_empty(), "BUG: a driver that keeps at once leaves nothing waiting");
        b.put(state.as_ref().map(VoterState::without_times));
        b.put((log.end, &log.history, log_told, seen.durable, amnesiac, reign, followed, conflict.is_some()));
        // Of changes of members and of lineages there are none in the model: as they are.
        b.put(format!("{lost:?}{members:?}{lineages:?}"));
        b.since(seen.at);
        b.put((holder.is_some(), campaign.is_some()));
        if let Some(grant) = grant {
            b.put((grant.epoch, &grant.region));
            b.until(grant.until);
        }
        b.until(*votes_from);
        b.until(*not_before);
        if let Some(holder) = holder {
            b.holder(holder);
        }
        if let Some(campaign) = campaign {
            b.campaign(campaign);
        }
        b.orders(orders);
        for (region, at) in ledger_sent {
            b.put(region);
            b.until(*at + LEDGER_EVERY);
        }
        b.out
    }
}

impl ControlMessage {
    /// The same message on its way from whoever asks: rounds are counted back from the last of the member that asked.
    #[must_use]
    pub fn canonical(&self, from: Option<&Control>, to: Option<&Control>) -> Vec<u8> {
        let age = |who: Option<&Control>, round: Round| Round { incarnation: 0, no: who.map_or(STALE, |c| c.round_age(round)) };
        let mut message = self.clone();
        match &mut message {
            ControlMessage::Renew(m) => m.round = age(from, m.round),
            ControlMessage::Probe { round } => *round = age(from, *round),
            ControlMessage::Vote(m) => m.round = age(from, m.round),
            ControlMessage::Granted { round, .. } => *round = age(to, *round),
            ControlMessage::Refused { round, reason, .. } | ControlMessage::NotVoted { round, reason, .. } => {
                *round = age(to, *round);
                reason.clear();
            }
            ControlMessage::Stands(m) => (m.round, m.seen.ago_ms) = (age(to, m.round), 0),
            ControlMessage::Voted(m) => (m.round, m.seen.ago_ms) = (age(to, m.round), 0),
            ControlMessage::Handover(h) => {
                (h.op, h.ledger) = (without_times(&h.op), h.ledger.without_times());
                (h.vote.round, h.vote.seen.ago_ms) = (Round::default(), 0);
            }
            ControlMessage::Op(view) => **view = without_times(view),
            ControlMessage::Ledger(ledger) => **ledger = ledger.without_times(),
            ControlMessage::Order(_) | ControlMessage::Ask { .. } | ControlMessage::NewLineage(_) => {}
        }
        message.encode()
    }
}

impl VoterState {
    fn without_times(&self) -> VoterState {
        // What was done is on record, and nothing is decided by the record.
        VoterState { ledger: self.ledger.without_times(), audit: Default::default(), ..self.clone() }
    }
}

impl Ledger {
    fn without_times(&self) -> Ledger {
        self.map_ops(without_times)
    }
}

fn without_times(view: &OpView) -> OpView {
    let none = String::new;
    let state = match &view.state {
        OpState::Refused { .. } => OpState::Refused { reason: none() },
        OpState::Failed { .. } => OpState::Failed { reason: none() },
        OpState::Unknown { .. } => OpState::Unknown { reason: none() },
        other => other.clone(),
    };
    OpView { state, phases: Vec::new(), checks: Vec::new(), predicted_gap_ms: None, loss: None, ..view.clone() }
}
