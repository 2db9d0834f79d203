//! A core's state as bytes in which two that will behave alike are alike: for an exhaustive model of the protocol, which visits each
//! state once.
//!
//! Decides nothing. Times are counted from now, in ticks rounded up: right for a driver whose clock only shows whole ticks. What is compared
//! with a moment is written as what is left until that moment, so that it stays the same when that is over; a round as its place
//! among those whose answers still count. Every field of the core is named here or taken apart, so that a new one is thought about.
//!
//! Left out is what no decision is made by: sentences, durations of phases and of silence, randomness, when a grant was last heard, whom a ledger
//! was told when; which voters were ever heard, since that decides for a member without a state only; and what a campaign gathered in a stage
//! that is over. It is right only for a driver that has backoffs of one length, loses every ledger, changes no members or lineages, bounds no
//! loss, lets nothing happen by itself, and begins when every member has a state.

use super::campaign::{Campaign, FRAME_PATIENCE, GRACE, Stage as Asks, Why};
use super::elect::Heard;
use super::holder::{ALONE_PATIENCE, Holder, RESUME_GRACE, RoundOut, Stage as Holds};
use super::machine::Control;
use super::membership::Members;
use super::message::{ControlMessage, Handover, Round, Stands};
use super::orders::{CHECK_PATIENCE, DRAIN_GRACE, Orders, SwitchStage};
use super::state::VoterState;
use super::types::{AutoFailover, FailoverRecord, OpState, OpView, Sureness, VoterSet};
use crate::base::{Instant, RegionName};
use std::time::Duration;

/// Of another life of the member that asked: an answer to nothing.
const FOREIGN: u64 = 0;
/// Of this life, and over: an answer only says that a member was heard.
const OVER: u64 = 1;

struct Bytes<'a> {
    of: &'a Control,
    tick: Duration,
    out: Vec<u8>,
}

impl Bytes<'_> {
    fn put(&mut self, value: impl bincode::Encode) {
        put(&mut self.out, value);
    }

    /// Ticks until then; what is over is over.
    fn until(&mut self, at: Instant) {
        let ticks = at.since(self.of.now).as_nanos().div_ceil(self.tick.as_nanos());
        self.put(u64::try_from(ticks).unwrap_or(u64::MAX));
    }

    fn round(&mut self, round: Round) {
        self.put(self.of.round_place(round));
    }

    fn stands(&mut self, s: &Stands) {
        self.put((s.promised, s.released, &s.chain, &s.grant_to, s.grant_left_ms, s.restart_left_ms, &s.reign, s.leads));
        self.put((&s.log, s.seen.durable, s.sync, unheard(&s.voters)));
    }

    fn heard(&mut self, h: &Heard) {
        self.put((&h.chain, &h.log, h.seen.durable, h.sync));
        put_failovers(&mut self.out, &h.pending);
    }

    fn holder(&mut self, holder: &Holder) {
        // When somebody granted last, and whether the cluster's own rule was told, is only shown.
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
            auto_told: _,
            order,
        } = holder;
        self.put((entry, moved, touched, refused_by, secondaries, rule, rule_told));
        match stage {
            Holds::Asking { round, stands, began, resumes } => {
                self.put((0u8, stands, resumes));
                self.round(*round);
                // How long it has been asking counts only for what it may have lost in a restart.
                if *resumes {
                    self.until(*began + RESUME_GRACE);
                    self.until(*began + ALONE_PATIENCE);
                }
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
            self.until(*since + self.of.who.settings.renew_every * 2);
        }
        self.put(order.is_some());
        if let Some(why) = order {
            self.why(why);
        }
        let share = self.of.who.settings.holder_share();
        for round in rounds.iter().filter(|r| self.of.still_counts(holder, r)) {
            self.round(round.no);
            self.until(round.sent + share);
            self.put((&round.grants, round.rule, round.voters, round.done));
        }
    }

    fn why(&mut self, why: &Why) {
        match why {
            Why::Failover { op, consent, actor, forced } => {
                assert!(consent.max_loss_ms.is_none(), "BUG: how long the primary was silent decides, and is left out here");
                self.put((0u8, op, consent, actor, forced));
            }
            Why::Handover(h) => self.put((1u8, without_durations(h))),
            Why::Regain => self.put(2u8),
            Why::Auto { op } => self.put((3u8, op)),
        }
    }

    fn campaign(&mut self, campaign: &Campaign) {
        let Campaign { why, stage, round, asked, stands, votes, refused, epoch, next, deadline, deferred, begun, fetched, fetching } =
            campaign;
        self.why(why);
        self.until(*next);
        self.put((deferred, begun, deadline.is_some(), fetching.as_ref().map(|(r, _)| r)));
        for at in [*deadline, fetching.as_ref().map(|(_, at)| *at)].into_iter().flatten() {
            self.until(at);
        }
        let settings = &self.of.who.settings;
        let (looks, votes_now) = match stage {
            Asks::Rests => {
                self.put(0u8);
                (false, false)
            }
            Asks::Asking => {
                self.put(1u8);
                self.round(*round);
                self.until(*asked + GRACE);
                (true, false)
            }
            Asks::Waiting => {
                self.put(2u8);
                (false, false)
            }
            Asks::Voting { since } => {
                self.put((3u8, epoch, refused, fetched));
                self.round(*round);
                self.until(*since + FRAME_PATIENCE);
                self.until(*since + settings.vote_patience);
                self.until(*since + self.of.vote_patience());
                (false, true)
            }
            Asks::Taking { entry } => {
                self.put((4u8, epoch, entry));
                (false, false)
            }
        };
        // Whoever votes alone remembers whom it heard (`is_beside_a_word`); otherwise the next look and the next vote begin with nothing.
        let remembers = self.of.is_unproven();
        for (region, s) in stands.iter().filter(|_| looks || remembers) {
            self.put(region);
            self.stands(s);
        }
        for (region, h) in votes.iter().filter(|_| votes_now || remembers) {
            self.put(region);
            self.heard(h);
        }
    }

    fn orders(&mut self, orders: &Orders) {
        let Orders { forwarded, watchers, running, phase_since: _, switching, handing } = orders;
        self.put((watchers, running.as_ref().map(without_times)));
        for f in forwarded.values() {
            self.put((&f.order, &f.to));
            self.until(f.next);
            self.until(f.until);
        }
        if let Some(s) = switching {
            self.put((s.op, &s.to));
            self.until(s.until);
            match &s.stage {
                SwitchStage::Checking { asked, answers } => {
                    for (round, _) in asked {
                        self.round(*round);
                    }
                    // How long an answer took is only shown.
                    self.until(asked[0].1 + CHECK_PATIENCE);
                    self.until(asked[asked.len() - 1].1 + self.of.who.settings.retry_every);
                    let agrees: Vec<(&RegionName, bool)> = answers.iter().map(|(r, (_, agrees))| (r, *agrees)).collect();
                    self.put(agrees);
                }
                SwitchStage::Draining { deadline } => self.until(*deadline + DRAIN_GRACE),
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
    /// Who grants this round may still change something: one that is over gives no lease, but may agree to something else.
    fn still_counts(&self, holder: &Holder, round: &RoundOut) -> bool {
        let state = self.state.as_ref().expect("BUG: a primary without a state");
        let gives = round.sent + self.who.settings.holder_share() > self.now;
        let agrees = state.voters_next.is_some() && round.voters == (state.voters.version, true);
        gives || agrees || !holder.rule_told
    }

    /// The place of a round among those whose answers count in more than that somebody answered.
    #[must_use]
    pub fn round_place(&self, round: Round) -> u64 {
        if round.incarnation != self.incarnation {
            return FOREIGN;
        }
        let mut counts: Vec<Round> = Vec::new();
        if let Some(holder) = &self.holder {
            counts.extend(holder.rounds.iter().filter(|r| self.still_counts(holder, r)).map(|r| r.no));
            if let Holds::Asking { round, .. } = &holder.stage {
                counts.push(*round);
            }
        }
        if let Some(campaign) = self.campaign.as_ref().filter(|c| matches!(c.stage, Asks::Asking | Asks::Voting { .. })) {
            counts.push(campaign.round);
        }
        if let Some(SwitchStage::Checking { asked, .. }) = self.orders.switching.as_ref().map(|s| &s.stage) {
            counts.extend(asked.iter().map(|(round, _)| *round));
        }
        counts.sort_unstable();
        counts.dedup();
        counts.binary_search(&round).map_or(OVER, |at| OVER + 1 + u64::try_from(at).expect("BUG: few rounds"))
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
            // Ledgers are lost.
            ledger_sent: _,
            held,
            inbox,
            outputs,
        } = self;
        assert!(held.is_empty() && inbox.is_empty() && outputs.is_empty(), "BUG: a driver that keeps at once leaves nothing waiting");
        assert!(self.auto_failover() == AutoFailover::Off, "BUG: how long the primary was silent decides, and is left out here");
        let state = state.as_ref().expect("BUG: which voters were heard decides for a member without a state, and is left out here");
        put_state(&mut b.out, state);
        b.put((log.end, &log.history, log_told, seen.durable, amnesiac, reign, followed, conflict.is_some()));
        // Nobody is asked for members where no order changed them.
        let Members { files: _, witness_of_files: _, told, leaving, waiting, goodbyes, refused_by, asks_at: _ } = members;
        assert!(leaving.is_none() && waiting.is_none(), "BUG: changes of members have times, which are left out here");
        b.put((told.version, goodbyes, refused_by));
        // Of lineages there is one in the model: as they are.
        b.put(format!("{lost:?}{lineages:?}"));
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
        b.out
    }
}

impl ControlMessage {
    /// The same message on its way from whoever asks: a round is its place among those that count for the member that asked.
    #[must_use]
    pub fn canonical(&self, from: Option<&Control>, to: Option<&Control>) -> Vec<u8> {
        let place = |who: Option<&Control>, round: Round| Round { incarnation: 0, no: who.map_or(FOREIGN, |c| c.round_place(round)) };
        let mut message = self.clone();
        match &mut message {
            ControlMessage::Renew(m) => {
                (m.round, m.ledger_digest) = (place(from, m.round), 0);
                (m.voters, m.voters_next) = (unheard(&m.voters), m.voters_next.as_ref().map(unheard));
            }
            ControlMessage::Probe { round } => *round = place(from, *round),
            ControlMessage::Vote(m) => m.round = place(from, m.round),
            ControlMessage::Granted { round, ledger_digest, .. } => (*round, *ledger_digest) = (place(to, *round), 0),
            ControlMessage::Refused { round, reason, .. } | ControlMessage::NotVoted { round, reason, .. } => {
                *round = place(to, *round);
                reason.clear();
            }
            ControlMessage::Stands(m) => {
                (m.round, m.seen.ago_ms) = (place(to, m.round), 0);
                m.voters = unheard(&m.voters);
            }
            ControlMessage::Voted(m) => {
                (m.round, m.seen.ago_ms) = (place(to, m.round), 0);
                m.pending = m.pending.iter().map(without_silence).collect();
                (m.voters, m.voters_next) = (unheard(&m.voters), m.voters_next.as_ref().map(unheard));
            }
            ControlMessage::Handover(h) => **h = without_durations(h),
            ControlMessage::Op(view) => **view = without_times(view),
            // Are lost.
            ControlMessage::Ledger(_) => return Vec::new(),
            ControlMessage::Order(_) | ControlMessage::Ask { .. } | ControlMessage::NewLineage(_) => {}
        }
        message.encode()
    }
}

impl VoterState {
    /// What a member that is down will begin with: alike for two that will behave alike.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_state(&mut out, self);
        out
    }
}

fn put(out: &mut Vec<u8>, value: impl bincode::Encode) {
    bincode::encode_into_std_write(value, out, bincode::config::standard()).expect("BUG: memory takes names and numbers");
}

fn put_state(out: &mut Vec<u8>, state: &VoterState) {
    let VoterState {
        lineage,
        voters,
        voters_next,
        promised,
        voted_for,
        released,
        sealed,
        handed_to,
        chain,
        grant_ms_max,
        sync,
        auto,
        pending,
        cut,
        ledger,
        // What was done is on record, and nothing is decided by the record.
        audit: _,
        rivals,
        begun,
        told_out,
        lost_promises,
    } = state;
    put(out, (lineage, unheard(voters), voters_next.as_ref().map(unheard), promised, voted_for, released, sealed, handed_to));
    put(out, (chain, grant_ms_max, sync, auto, cut, rivals, begun, told_out, lost_promises));
    put_failovers(out, pending);
    put(out, ledger.ops().len());
    for op in ledger.ops() {
        put(out, without_times(op));
    }
    put_failovers(out, ledger.failovers());
}

/// What they cost is told and not decided by; how long the old primary was silent grows for ever.
fn put_failovers(out: &mut Vec<u8>, all: &[FailoverRecord]) {
    put(out, all.len());
    for record in all {
        put(out, without_silence(record));
    }
}

/// A round in it is nobody's; its ledger tells what ended, in the words of whoever ended it.
fn without_durations(handover: &Handover) -> Handover {
    let mut h = handover.clone();
    (h.vote.round, h.vote.seen.ago_ms) = (Round::default(), 0);
    h.vote.pending = h.vote.pending.iter().map(without_silence).collect();
    (h.vote.voters, h.vote.voters_next) = (unheard(&h.vote.voters), h.vote.voters_next.as_ref().map(unheard));
    h.voters = unheard(&h.voters);
    h.op = without_times(&h.op);
    h.ledger = h.ledger.map_each(without_times, without_silence);
    h
}

fn unheard(voters: &VoterSet) -> VoterSet {
    VoterSet { heard: Vec::new(), ..voters.clone() }
}

fn without_silence(record: &FailoverRecord) -> FailoverRecord {
    let mut record = record.clone();
    (record.loss.ms, record.loss.alone_ms) = (None, 0);
    if let Sureness::AtLeast { unheard_ms } = &mut record.loss.sure {
        *unheard_ms = 0;
    }
    record
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
