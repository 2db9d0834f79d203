//! The control core of one member: voter, lease holder, candidate and operations in one machine.
//!
//! Decides who may write. Never reads a clock, keeps a file or sends a byte: whoever drives it (the node, the witness, a simulated
//! world) hands in what happened and does what comes out. What a voter promised is handed out for keeping before any answer that
//! depends on it leaves; what it says to itself takes the same way.
//!
//! The parts: [`super::voter`] grants and votes, [`super::holder`] renews and steps down, [`super::campaign`] asks for votes and takes
//! over, [`super::orders`] carries operations through.

use super::api::{ControlView, Input, Output, Role};
use super::audit::Action;
use super::campaign::Campaign;
use super::holder::Holder;
use super::lineage::Lineages;
use super::lost::Lost;
use super::membership::Members;
use super::message::{ControlMessage, Round, Seen, Stands};
use super::orders::Orders;
use super::state::VoterState;
use super::types::{AutoFailover, AutoRule, FailoverRecord, LogPosition, OpId, OpView, SyncRule, VoterSet, Who};
use super::voter::Grant;
use crate::base::{Epoch, Instant, LineageId, LogEnd, Prng, RegionName, UnixMicros};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Between two ledgers sent to the same member.
const LEDGER_EVERY: Duration = Duration::from_secs(5);

/// What was last heard of a primary, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastSeen {
    pub durable: LogEnd,
    pub sent_at: UnixMicros,
    pub at: Instant,
}

#[derive(Clone, Debug)]
pub struct Control {
    pub(super) who: Who,
    pub(super) prng: Prng,
    /// Drawn anew at each start: answers to an earlier incarnation's rounds count for nothing.
    pub(super) incarnation: u64,
    pub(super) round_no: u64,
    pub(super) now: Instant,
    pub(super) wall: UnixMicros,
    pub(super) state: Option<VoterState>,
    pub(super) log: LogPosition,
    /// The volume was recovered: before that this region neither leads nor asks to.
    pub(super) log_told: bool,
    pub(super) seen: LastSeen,
    pub(super) grant: Option<Grant>,
    /// After a restart: a grant that was forgotten is over.
    pub(super) votes_from: Instant,
    /// The others remember its grants and it has none: its state was lost.
    pub(super) amnesiac: bool,
    /// Its copies lost log that was durable.
    pub(super) lost: Option<Lost>,
    /// The highest reign known to be active.
    pub(super) reign: Option<(Epoch, RegionName)>,
    pub(super) followed: Option<(Epoch, Option<RegionName>)>,
    pub(super) holder: Option<Holder>,
    pub(super) campaign: Option<Campaign>,
    pub(super) backoff: Duration,
    /// Nothing is begun by itself before.
    pub(super) not_before: Instant,
    pub(super) orders: Orders,
    pub(super) members: Members,
    pub(super) lineages: Lineages,
    pub(super) reason: Option<String>,
    /// Two writers were seen: which.
    pub(super) conflict: Option<String>,
    pub(super) ledger_sent: BTreeMap<RegionName, Instant>,
    pub(super) token: u64,
    pub(super) persisted: u64,
    pub(super) dirty: bool,
    /// What waits until the state before it is kept.
    pub(super) held: VecDeque<(u64, Output)>,
    pub(super) inbox: VecDeque<ControlMessage>,
    pub(super) outputs: VecDeque<Output>,
}

impl Control {
    /// `kept` is what was persisted last; `None`: this member never was part of a global cluster (the founder's driver passes
    /// [`VoterState::founding`], and keeps it before anything else).
    #[must_use]
    pub fn new(who: Who, kept: Option<VoterState>, now: Instant, mut prng: Prng) -> Control {
        let incarnation = prng.next_u64();
        let refused_by = kept.as_ref().map(|s| s.told_out.iter().cloned().collect()).unwrap_or_default();
        let mut control = Control {
            backoff: who.settings.backoff_min,
            lineages: Lineages::default(),
            members: Members { files: who.regions.clone(), witness_of_files: who.witness.clone(), refused_by, ..Members::default() },
            who,
            prng,
            incarnation,
            round_no: 0,
            now,
            wall: UnixMicros(0),
            votes_from: kept.as_ref().map_or(now, |s| now + s.grant_max()),
            log: LogPosition::default(),
            log_told: false,
            seen: LastSeen { durable: LogEnd::EMPTY, sent_at: UnixMicros(0), at: now },
            grant: None,
            amnesiac: kept.as_ref().is_some_and(|s| s.lost_promises),
            state: kept,
            lost: None,
            reign: None,
            followed: None,
            holder: None,
            campaign: None,
            not_before: now,
            orders: Orders::default(),
            reason: None,
            conflict: None,
            ledger_sent: BTreeMap::new(),
            token: 0,
            persisted: 0,
            dirty: false,
            held: VecDeque::new(),
            inbox: VecDeque::new(),
            outputs: VecDeque::new(),
        };
        control.conflict = control.rivalry();
        control.take_members();
        control.orders_after_restart();
        control
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call with `Timeout`, if nothing else happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let of_roles = [self.holder_timeout(), self.campaign_timeout(), self.orders_timeout(), self.consider_timeout()];
        of_roles.into_iter().chain([self.lineage_timeout(), self.news_timeout()]).flatten().min()
    }

    /// The commit gate: a commit of this region's reign may be acknowledged at `now` only while `now < lease_until()`. Zero when it
    /// does not reign, is sealed, or is not open.
    #[must_use]
    pub fn lease_until(&self) -> Instant {
        self.holder.as_ref().map_or(Instant::ZERO, Holder::open_until)
    }

    /// Whether frames may be received from the primary of `epoch`, and acknowledged to it (rule 5).
    #[must_use]
    pub fn may_receive(&self, epoch: Epoch) -> bool {
        let sealed = self.awaits_frame() && self.state.as_ref().is_some_and(|s| epoch == s.released);
        sealed || self.state.as_ref().is_none_or(|s| epoch >= s.promised)
    }

    #[must_use]
    pub fn op(&self, id: OpId) -> Option<&OpView> {
        self.state.as_ref()?.ledger.op(id)
    }

    /// Newest first.
    #[must_use]
    pub fn failovers(&self) -> &[FailoverRecord] {
        self.state.as_ref().map_or(&[], |s| s.ledger.failovers())
    }

    /// Failovers that took over from this region and whose reports want the tail that was cut here: told by `TailRead` when this region
    /// stands on the line of `new_epoch` or a later reign, also when nothing was cut.
    pub fn tails_wanted(&self) -> impl Iterator<Item = &FailoverRecord> {
        self.failovers().iter().filter(|f| !f.complete && f.from == self.who.name)
    }

    /// The highest reign known to be active, and its primary.
    #[must_use]
    pub fn reign(&self) -> Option<&(Epoch, RegionName)> {
        self.reign.as_ref()
    }

    #[must_use]
    pub fn state(&self) -> Option<&VoterState> {
        self.state.as_ref()
    }

    #[must_use]
    pub fn view(&self, now: Instant) -> ControlView {
        let state = self.state.as_ref();
        let ms = |until: Instant| millis(until.since(now));
        ControlView {
            role: self.role(now),
            reign: self.reign.clone(),
            promised: state.map_or(Epoch(0), |s| s.promised),
            voters: state.map_or_else(VoterSet::unknown, |s| s.voters.clone()),
            votes: state.is_some_and(|s| s.voters.contains(&self.who.name)) && !self.amnesiac && self.out().is_none(),
            unproven: self.is_unproven(),
            lease_left_ms: ms(self.lease_until()),
            voters_heard: self.holder.as_ref().map_or_else(Vec::new, |h| h.heard_since(now, self.who.settings.lease)),
            grant_left_ms: self.grant.as_ref().filter(|g| g.region != self.who.name).map_or(0, |g| ms(g.until)),
            writers_seen: u32::from(self.reign.is_some()) + u32::from(self.conflict.is_some()),
            rivals: self.rivals().to_vec(),
            reason: (self.out().or_else(|| self.conflict.clone()))
                .or_else(|| self.lost().map(str::to_owned))
                .or_else(|| self.amnesiac.then(|| self.lost_its_promises()))
                .or_else(|| self.reason.clone()),
            op: state.and_then(|s| s.ledger.ops().iter().find(|o| !o.state.is_final())).cloned(),
            chain: state.map_or_else(Vec::new, |s| s.chain.entries().to_vec()),
            sync: state.map_or(0, |s| s.sync.secondaries),
            auto: self.auto_failover(),
            auto_of_file: self.who.settings.auto_failover,
            auto_told: self.holder.as_ref().is_none_or(|h| h.auto_told),
            out: self.out(),
            witness: self.who.witness.clone(),
        }
    }

    fn role(&self, now: Instant) -> Role {
        let sealed = self.state.as_ref().is_some_and(|s| s.handed_to.is_some() && self.reign.as_ref().is_none_or(|r| r.0 <= s.sealed));
        if self.out().is_some() {
            Role::Removed
        } else if !self.who.has_data {
            Role::Witness
        } else if let Some(holder) = &self.holder {
            match holder.open_until() > now {
                true => Role::Primary,
                false if holder.is_fenced() => Role::Fenced,
                false => Role::Candidate,
            }
        } else if self.campaign.is_some() {
            Role::Candidate
        } else if sealed {
            Role::Sealed
        } else {
            Role::Secondary
        }
    }

    /// Takes one input. `wall` is this machine's wall clock, for people and for estimates.
    pub fn handle(&mut self, now: Instant, wall: UnixMicros, input: Input) {
        // A clock that steps back is broken by whoever reads it (`ClockBroke`); here it only never goes back.
        self.now = self.now.max(now);
        self.wall = wall;
        match input {
            Input::Message { from, message } => {
                if self.who.others().any(|m| *m == from) {
                    self.message(from, message);
                }
            }
            Input::Persisted { token } => self.persisted = self.persisted.max(token.min(self.token)),
            Input::Timeout => {}
            Input::ClockBroke { reason } => self.clock_broke(&reason),
            Input::Log(log) => self.log_moved(log),
            Input::LogLost { known, end, by } => self.log_lost(known, end, &by),
            Input::Secondary { region, durable } => self.secondary_at(region, durable),
            Input::CommitPathMoved => self.commit_path_moved(),
            Input::Order(order) => self.ordered(order),
            Input::Drained { op } => self.drained(op),
            Input::NotDrained { op, reason } => self.not_drained(op, &reason),
            Input::Sealed { op, at } => self.sealed(op, at),
            Input::Promoted { epoch, start: _ } => self.promoted(epoch),
            Input::PromotionFailed { epoch, reason } => self.promotion_failed(epoch, &reason),
            Input::Verified { op, outcome } => self.verified(op, outcome),
            Input::CaughtUp { from } => self.caught_up(&from),
            Input::CommitRule { sync } => self.commit_rule(sync),
            Input::AutoFailover { auto, actor } => self.set_auto(auto, actor),
            Input::Audit(action) => self.audit(action),
            Input::TailRead(tail) => self.tail_read(tail),
            Input::SaidOut { by } => self.said_out(by),
        }
        self.settle();
        self.holder_timers();
        self.campaign_timers();
        self.orders_timers();
        self.lineage_timers();
        self.consider();
        self.news_timers();
        self.settle();
    }

    fn message(&mut self, from: RegionName, message: ControlMessage) {
        match message {
            ControlMessage::Renew(renew) => self.on_renew(from, renew),
            ControlMessage::Granted { epoch, round, ledger_digest } => {
                self.on_granted(&from, epoch, round);
                if from != self.who.name && self.state.as_ref().is_some_and(|s| s.ledger.digest() != ledger_digest) {
                    self.tell_ledger(&from);
                }
            }
            ControlMessage::Refused { epoch, round, promised, reign, reason } => {
                self.on_refused(&from, epoch, round, promised, reign, reason)
            }
            ControlMessage::Probe { round } => {
                let stands = Box::new(self.stands(round));
                self.send(from, ControlMessage::Stands(stands));
            }
            ControlMessage::NewLineage(begun) => self.on_new_lineage(&from, *begun),
            ControlMessage::Stands(stands) => {
                self.forcing_stands(&from, &stands);
                if !self.same_lineage(&from, stands.lineage) {
                    return;
                }
                if stands.round.incarnation == self.incarnation {
                    self.judge_known(&from, &stands);
                }
                self.news_in(&stands);
                self.holder_stands(&from, &stands);
                self.order_stands(&from, &stands);
                self.campaign_stands(&from, *stands);
            }
            ControlMessage::Vote(vote) => self.on_vote(from, vote),
            ControlMessage::Voted(voted) => self.on_voted(from, *voted),
            ControlMessage::NotVoted { epoch, round, promised, wait_ms, reason } => {
                self.on_not_voted(from, epoch, round, promised, wait_ms, reason);
            }
            ControlMessage::Handover(handover) => self.on_handover(from, *handover),
            ControlMessage::Order(order) => self.order_from(from, order),
            ControlMessage::Op(view) => self.op_from(&from, *view),
            ControlMessage::Ask { id } => {
                if let Some(view) = self.op(id).cloned() {
                    self.send(from, ControlMessage::Op(Box::new(view)));
                }
            }
            ControlMessage::Ledger(ledger) => self.on_ledger(&ledger),
        }
    }

    // ---- what is kept, and what waits for it ----------------------------------------------------------------------------

    /// What follows depends on the state as it is now: it waits until that is kept.
    pub(super) fn keep(&mut self) {
        if !self.dirty {
            self.dirty = true;
            self.token += 1;
        }
    }

    fn settle(&mut self) {
        loop {
            if self.dirty {
                self.dirty = false;
                let state = Box::new(self.state.clone().expect("BUG: only what there is changes"));
                self.outputs.push_back(Output::Persist { token: self.token, state });
            }
            while self.held.front().is_some_and(|(token, _)| *token <= self.persisted) {
                match self.held.pop_front().expect("BUG: just seen").1 {
                    Output::Send { to, message } if to == self.who.name => self.inbox.push_back(message),
                    // It waited, and in between it was given up: what undoes it has been said already.
                    Output::Promote { epoch, .. } if !self.is_taking(epoch) => {}
                    Output::Drain { op, .. } if !self.is_draining(op) => {}
                    output => self.outputs.push_back(output),
                }
            }
            let Some(message) = self.inbox.pop_front() else { return };
            self.message(self.who.name.clone(), message);
        }
    }

    /// Once everything decided so far is kept.
    pub(super) fn output_when_kept(&mut self, output: Output) {
        self.held.push_back((self.token, output));
    }

    /// Sends once everything decided so far is kept. To itself too: it counts like anybody else.
    pub(super) fn send(&mut self, to: RegionName, message: ControlMessage) {
        self.output_when_kept(Output::Send { to, message });
    }

    pub(super) fn send_others(&mut self, message: &ControlMessage) {
        let others: Vec<RegionName> = self.who.others().cloned().collect();
        for to in others {
            self.send(to, message.clone());
        }
    }

    /// What is done from here on in this step is kept together with its entry, and what follows from it waits for that.
    pub(super) fn audit(&mut self, action: Action) {
        let (wall, lsn) = (self.wall, self.log.end.end_lsn);
        let reign = self.reign.as_ref().map_or(Epoch(0), |(epoch, _)| *epoch);
        let name = self.who.name.clone();
        let Some(state) = &mut self.state else { return };
        let epoch = state.promised.max(reign);
        state.audit.append(wall, &name, (epoch, lsn), action);
        self.keep();
    }

    pub(super) fn note(&mut self, kind: &'static str, what: String) {
        self.outputs.push_back(Output::Note { kind, what });
    }

    pub(super) fn next_round(&mut self) -> Round {
        self.round_no += 1;
        Round { incarnation: self.incarnation, no: self.round_no }
    }

    // ---- what several parts ask -----------------------------------------------------------------------------------------

    pub(super) fn st(&self) -> &VoterState {
        self.state.as_ref().expect("BUG: asked before this member was part of a cluster")
    }

    pub(super) fn st_mut(&mut self) -> &mut VoterState {
        self.state.as_mut().expect("BUG: asked before this member was part of a cluster")
    }

    /// Whether those are a majority of the voters, and of those that are to be.
    pub(super) fn is_majority(&self, has: impl Fn(&RegionName) -> bool) -> bool {
        let state = self.st();
        let enough = |set: &VoterSet| set.voters.iter().filter(|v| has(v)).count() >= set.majority();
        enough(&state.voters) && state.voters_next.as_ref().is_none_or(enough)
    }

    /// These voters hold from here on. A change of older ones that was under way is over: agreed on later, it would take these back (seeds 82,
    /// 700731 and 702108 of roles).
    pub(super) fn hold_voters(&mut self, voters: VoterSet) {
        let state = self.st_mut();
        state.voters_next.take_if(|next| next.version <= voters.version);
        state.voters = voters;
    }

    /// One region votes for all of several: nothing can be proven about it when it is silent.
    pub(super) fn is_unproven(&self) -> bool {
        self.state.as_ref().is_some_and(|s| s.voters.voters.len() == 1) && self.who.regions.len() > 1
    }

    /// What the cluster does by itself, as far as this member has heard.
    pub(super) fn auto_failover(&self) -> AutoFailover {
        let rule = self.state.as_ref().map(|s| s.auto).filter(AutoRule::is_set);
        rule.map(|r| r.auto).or(self.who.settings.auto_failover).unwrap_or_default()
    }

    /// Another member's rule: the later one holds, whoever tells it.
    pub(super) fn learn_auto(&mut self, auto: AutoRule) {
        if self.state.as_ref().is_some_and(|s| auto > s.auto) {
            self.st_mut().auto = auto;
            self.keep();
        }
    }

    pub(super) fn jitter(&mut self, of: Duration) -> Duration {
        let ns = u64::try_from(of.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.prng.between(ns / 2, ns))
    }

    /// Twice as long as the last time, and never at the same moment as somebody else.
    pub(super) fn back_off(&mut self) -> Instant {
        let wait = self.jitter(self.backoff);
        self.backoff = (self.backoff * 2).min(self.who.settings.backoff_max);
        self.now + wait
    }

    pub(super) fn seen(&self) -> Seen {
        Seen { durable: self.seen.durable, sent_at: self.seen.sent_at, ago_ms: millis(self.now.since(self.seen.at)) }
    }

    pub(super) fn stands(&self, round: Round) -> Stands {
        let left = |until: Instant| millis_up(until.since(self.now));
        let state = self.state.as_ref();
        let blocked = self.grant.as_ref().filter(|g| state.is_some_and(|s| s.released < g.epoch));
        Stands {
            round,
            lineage: state.map_or(LineageId(0), |s| s.lineage),
            voters: state.map_or_else(VoterSet::unknown, |s| s.voters.clone()),
            promised: state.map_or(Epoch(0), |s| s.promised),
            released: state.map_or(Epoch(0), |s| s.released),
            chain: state.map_or_else(Default::default, |s| s.chain.clone()),
            grant_to: blocked.map(|g| g.region.clone()),
            grant_left_ms: blocked.map_or(0, |g| left(g.until)),
            restart_left_ms: left(self.votes_from),
            reign: self.reign.clone(),
            leads: self.lease_until() > self.now,
            log: (self.log_told && self.who.has_data).then(|| self.log.standing(state.and_then(|s| s.cut))),
            seen: self.seen(),
            sync: state.map_or_else(SyncRule::default, |s| s.sync),
            auto: state.map_or_else(AutoRule::default, |s| s.auto),
        }
    }

    /// A reign is active, by its primary's own word or another member's.
    pub(super) fn learn_reign(&mut self, epoch: Epoch, region: &RegionName) {
        if self.reign.as_ref().is_some_and(|(known, _)| *known >= epoch) {
            return;
        }
        self.reign = Some((epoch, region.clone()));
        self.lost_settled(epoch);
        if self.state.as_ref().is_some_and(|s| s.chain.get(epoch).is_some()) {
            self.pending_settled(epoch);
        }
        if *region != self.who.name {
            self.backoff = self.who.settings.backoff_min;
            if self.holder.as_ref().is_some_and(|h| h.epoch() < epoch) {
                self.lose_reign(&format!("{region} is the primary of epoch {epoch}"), Some(region.clone()));
            }
            self.campaign_superseded(epoch, region);
        }
        self.orders_reign(epoch, region);
        self.follow();
    }

    /// Says whom to follow, when it is not what was said last.
    pub(super) fn follow(&mut self) {
        let promised = self.state.as_ref().map_or(Epoch(0), |s| s.promised);
        let reign = self.reign.clone();
        let epoch = reign.as_ref().map_or(promised, |(e, _)| promised.max(*e));
        let primary = reign.filter(|(e, r)| *e >= promised && *r != self.who.name).map(|(_, r)| r);
        // A sealed primary ships until somebody reigns, and its target receives until it has the handover frame.
        let leads = self.holder.as_ref().is_some_and(|h| h.epoch() >= epoch) || self.is_handing() || self.awaits_frame();
        let said = Some((epoch, primary.clone()));
        if !leads && self.followed != said {
            self.followed = said;
            self.outputs.push_back(Output::Follow { epoch, primary });
        } else if leads {
            self.followed = None;
        }
    }

    fn log_moved(&mut self, log: LogPosition) {
        self.log = log;
        if !std::mem::replace(&mut self.log_told, true) {
            self.begin();
        }
        self.campaign_log_moved();
    }

    /// The volume is there: the last reign that was this region's own goes on, if a majority agrees; another's is looked for.
    fn begin(&mut self) {
        let Some(state) = &self.state else { return };
        let Some(top) = state.chain.top() else { return };
        if top.region == self.who.name && state.promised == top.epoch && state.sealed < top.epoch {
            let top = top.clone();
            // Somebody told it before the restart that it was taken out: whoever votes alone would ask nobody else (seed 300642 of roles).
            if self.lost.is_none() && self.out().is_none() {
                self.resume(top);
            }
        } else if top.region != self.who.name {
            let (epoch, primary) = (top.epoch.max(state.promised), top.region.clone());
            let primary = (top.epoch >= state.promised).then_some(primary);
            self.followed = Some((epoch, primary.clone()));
            self.outputs.push_back(Output::Follow { epoch, primary });
        } else if self.is_handing_alone() {
            // Its target alone can go on, and may lack the last frames: the volume is made whole and lends them.
            let epoch = state.promised;
            self.outputs.push_back(Output::Follow { epoch, primary: None });
        }
    }

    /// This region sealed its reign for a target that may lack the log's last frames: they are lent, though readers see nothing new here.
    #[must_use]
    pub fn lends_its_last(&self) -> bool {
        self.is_handing()
    }

    /// The clock that leases are counted on is void: so is every round that is under way.
    fn clock_broke(&mut self, reason: &str) {
        self.note("clock_broke", format!("the lease is void: {reason}"));
        self.holder_clock_broke(reason);
        // A voter's grant that was counted on it may have longer to go than it seems; a whole one surely is enough.
        let lease = self.state.as_ref().map_or(Duration::ZERO, super::VoterState::grant_max);
        let now = self.now;
        if let Some(grant) = &mut self.grant {
            grant.until = grant.until.max(now + lease);
        }
    }

    // ---- operations and failovers, spread -------------------------------------------------------------------------------

    pub(super) fn tell_ledger(&mut self, to: &RegionName) {
        if self.ledger_sent.get(to).is_some_and(|at| self.now < *at + LEDGER_EVERY) {
            return;
        }
        self.ledger_sent.insert(to.clone(), self.now);
        let ledger = Box::new(self.st().ledger.clone());
        self.send(to.clone(), ControlMessage::Ledger(ledger));
    }

    /// Everybody should know it soon.
    pub(super) fn ledger_is_news(&mut self) {
        self.ledger_sent.clear();
    }

    fn on_ledger(&mut self, ledger: &super::Ledger) {
        let Some(state) = &mut self.state else { return };
        let before = state.ledger.clone();
        if !state.ledger.merge(ledger) {
            return;
        }
        let ops: Vec<OpView> = state.ledger.ops().iter().filter(|o| before.op(o.order.id) != Some(o)).cloned().collect();
        let failovers: Vec<FailoverRecord> =
            state.ledger.failovers().iter().filter(|f| before.failover_into(f.new_epoch) != Some(f)).cloned().collect();
        self.keep();
        self.ledger_is_news();
        for op in ops {
            self.op_known(op);
        }
        for failover in failovers {
            self.outputs.push_back(Output::Failover(Box::new(failover)));
        }
        // One of its own may be among them that it forgot with its last life (seed 705755 of roles).
        if let Some((epoch, region)) = self.reign.clone() {
            self.settle_left(epoch, &region);
        }
    }

    /// A reign is active: failovers that were won on its path are ones from here on, the others never were.
    pub(super) fn pending_settled(&mut self, reign: Epoch) {
        let state = self.state.as_mut().expect("BUG: a reign without a state");
        let path: Vec<Epoch> = state.chain.path(reign).iter().map(|e| e.epoch).collect();
        let pending = std::mem::take(&mut state.pending);
        // Where the path is not known far enough back, it stays open.
        let judged = |p: &FailoverRecord| p.new_epoch <= reign && path.iter().any(|e| *e <= p.new_epoch);
        let (settled, open): (Vec<_>, Vec<_>) = pending.into_iter().partition(judged);
        if settled.is_empty() {
            state.pending = open;
            return;
        }
        state.pending = open;
        let real: Vec<FailoverRecord> = settled.into_iter().filter(|p| path.contains(&p.new_epoch)).collect();
        let news: Vec<FailoverRecord> = real.into_iter().filter(|p| state.ledger.put_failover(p.clone())).collect();
        self.keep();
        for record in news {
            self.ledger_is_news();
            self.outputs.push_back(Output::Failover(Box::new(record)));
        }
    }

    fn tail_read(&mut self, tail: super::LostTail) {
        let Some(state) = &mut self.state else { return };
        let Some(record) = state.ledger.failover_into(tail.new_epoch) else {
            self.note(
                "tail_without_failover",
                format!("the tail behind epoch {}'s base was read, and no failover is known to have made it", tail.new_epoch),
            );
            return;
        };
        let mut record = record.clone();
        record.loss.known_end = tail.to;
        record.loss.bytes = tail.to.end_lsn.bytes_since(record.loss.base.end_lsn);
        record.loss.commits_at_most = tail.commits;
        record.loss.sure = super::Sureness::Exact;
        record.complete = true;
        record.tail = Some(tail);
        if state.ledger.put_failover(record.clone()) {
            if let Some(wrote) = record.wrote_beside() {
                self.note("two_writers", wrote);
            }
            self.keep();
            self.ledger_is_news();
            self.outputs.push_back(Output::Failover(Box::new(record)));
            if let Some((_, primary)) = self.reign.clone().filter(|(_, r)| *r != self.who.name) {
                self.tell_ledger(&primary);
            }
        }
    }
}

pub(super) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Rounded up: what is left is never said to be over.
pub(super) fn millis_up(d: Duration) -> u64 {
    u64::try_from(d.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
