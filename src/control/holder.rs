//! The holder of a lease: how a reign is kept, and how it ends.
//!
//! Decides until when a commit may be acknowledged (protocol.md rules 1, 3, 4 and 7): counted from when a renewal was *sent*, by a
//! majority's grants of that very renewal. When the lease ran out it asks (`Probe`) without renewing, so that voters' grants can end;
//! only when a majority answered and nobody promised more does one renewal open the same epoch again. A restart goes the same way.

use super::api::{Output, Promotion};
use super::audit::Action;
use super::campaign::Why;
use super::chain::EpochEntry;
use super::machine::{Control, millis, millis_up};
use super::message::{ControlMessage, Renew, Round, Stands};
use super::types::{AutoFailover, AutoRule, SyncRule};
use crate::base::{Epoch, Instant, LogEnd, RegionName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Rounds that may still be answered.
const ROUNDS_KEPT: usize = 16;
/// Reigns that are told with a renewal, so that everybody knows how operations ended.
const PATH_SENT: usize = 4;
/// Others than the majority are waited for so long after a restart: one of them may have log of this reign that is lost here.
pub(super) const RESUME_GRACE: Duration = Duration::from_millis(300);
/// A primary that votes alone hears the other regions for so long before it goes on after a restart: one of them may have been
/// promoted by an operator's word.
pub(super) const ALONE_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) entry: EpochEntry,
    pub(super) stage: Stage,
    pub(super) valid_until: Instant,
    pub(super) rounds: VecDeque<RoundOut>,
    /// When the next renewal, or the next question, is due.
    pub(super) next: Instant,
    /// A frame became durable since the last renewal.
    pub(super) moved: bool,
    pub(super) touched: bool,
    pub(super) granted_at: BTreeMap<RegionName, Instant>,
    /// A voter promised more, while the lease is held by the others.
    pub(super) overtaken_since: Option<Instant>,
    /// Voters that promised more before this reign was active: they will never grant it.
    pub(super) refused_by: BTreeSet<RegionName>,
    pub secondaries: BTreeMap<RegionName, LogEnd>,
    /// The rule that is wanted, and the round that told the voters.
    pub(super) rule: SyncRule,
    pub(super) rule_told: bool,
    /// A majority keeps what the cluster does by itself.
    pub auto_told: bool,
    /// The operator's order that it was begun for, until it is active.
    pub(super) order: Option<Why>,
}

#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// Asks whether somebody promised more; `resumes`: after a restart, so that the volume has to be taken first.
    Asking {
        round: Round,
        stands: BTreeMap<RegionName, (Epoch, Epoch)>,
        began: Instant,
        resumes: bool,
    },
    /// The volume is being taken.
    Taking,
    /// A majority must grant it once.
    Activating,
    /// A majority said that nobody promised more: one renewal.
    Reopening {
        until: Instant,
        sent: bool,
    },
    Open,
}

#[derive(Clone, Debug)]
pub(super) struct RoundOut {
    pub(super) no: Round,
    pub(super) sent: Instant,
    pub(super) grants: BTreeSet<RegionName>,
    pub(super) rule: SyncRule,
    pub(super) auto: AutoRule,
    /// Of the voters that it names, those that are to be too.
    pub(super) voters: (u64, bool),
    pub(super) done: bool,
}

impl Holder {
    fn new(entry: EpochEntry, stage: Stage, now: Instant, rule: SyncRule) -> Holder {
        Holder {
            entry,
            stage,
            valid_until: Instant::ZERO,
            rounds: VecDeque::new(),
            next: now,
            moved: false,
            touched: false,
            granted_at: BTreeMap::new(),
            overtaken_since: None,
            refused_by: BTreeSet::new(),
            secondaries: BTreeMap::new(),
            rule,
            rule_told: true,
            auto_told: false,
            order: None,
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.entry.epoch
    }

    pub fn open_until(&self) -> Instant {
        if matches!(self.stage, Stage::Open) { self.valid_until } else { Instant::ZERO }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// Of the rule that is in force or wanted.
    pub fn rule_secondaries(&self) -> u8 {
        self.rule.secondaries
    }

    /// It is no member any more.
    pub fn forget(&mut self, region: &RegionName) {
        self.secondaries.remove(region);
        self.granted_at.remove(region);
    }

    pub fn is_taking(&self) -> bool {
        matches!(self.stage, Stage::Taking)
    }

    pub fn is_fenced(&self) -> bool {
        matches!(self.stage, Stage::Asking { .. } | Stage::Reopening { .. } | Stage::Open)
    }

    pub fn heard_since(&self, now: Instant, within: Duration) -> Vec<RegionName> {
        self.granted_at.iter().filter(|(_, at)| now < **at + within).map(|(r, _)| r.clone()).collect()
    }
}

impl Control {
    /// After a restart: the reign that was this region's own goes on if a majority says that nobody was promised more.
    pub(super) fn resume(&mut self, entry: EpochEntry) {
        let rule = self.own_rule(entry.epoch);
        self.holder = Some(Holder::new(entry, Stage::Taking, self.now, rule));
        self.ask(true);
    }

    /// The volume was taken for a new reign, which `why` asked for.
    pub(super) fn activate(&mut self, entry: EpochEntry, why: Option<Why>) {
        let rule = self.own_rule(entry.epoch);
        self.make_auto_own(entry.epoch);
        let order = why.filter(|why| matches!(why, Why::Failover { .. }));
        self.holder = Some(Holder { order, ..Holder::new(entry, Stage::Activating, self.now, rule) });
        self.renew();
    }

    /// What the cluster does by itself is this primary's to say from here on; where nobody has said it, its file does.
    fn make_auto_own(&mut self, epoch: Epoch) {
        let (auto, known) = (self.auto_failover(), self.st().auto);
        if known.epoch < epoch || !known.is_set() {
            self.st_mut().auto = AutoRule { epoch, version: known.version + 1, auto };
            self.keep();
        }
    }

    /// From now on, as soon as a majority keeps it.
    pub(super) fn set_auto(&mut self, auto: AutoFailover, actor: String) {
        let known = self.st().auto;
        let now = self.now;
        let Some(holder) = self.holder.as_mut().filter(|h| h.is_open()) else { return };
        if known.auto == auto && known.is_set() {
            return;
        }
        (holder.auto_told, holder.next) = (false, now);
        let epoch = holder.epoch();
        self.st_mut().auto = AutoRule { epoch, version: known.version + 1, auto };
        let before = known.auto;
        self.audit(Action { actor, op: None, kind: "set", what: format!("auto_failover={auto}; it was {before}") });
        self.note("auto_failover_set", format!("auto_failover={auto} for the whole global cluster"));
        self.renew_when_moved();
    }

    fn own_rule(&self, epoch: Epoch) -> SyncRule {
        let kept = self.st().sync;
        if kept.epoch == epoch { kept } else { SyncRule { epoch, version: 0, secondaries: 0 } }
    }

    fn ask(&mut self, resumes: bool) {
        let round = self.next_round();
        let (now, every) = (self.now, self.who.settings.probe_every);
        let Some(holder) = &mut self.holder else { return };
        let began = match &holder.stage {
            Stage::Asking { began, .. } => *began,
            _ => now,
        };
        holder.stage = Stage::Asking { round, stands: BTreeMap::new(), began, resumes };
        holder.next = now + every;
        self.send_others(&ControlMessage::Probe { round });
        self.judge_asking();
    }

    pub(super) fn holder_stands(&mut self, from: &RegionName, stands: &Stands) {
        if self.holder.is_none() || stands.round.incarnation != self.incarnation {
            return;
        }
        if let Some((epoch, region)) = &stands.reign
            && stands.lineage == self.st().lineage
            && self.holder.as_ref().is_some_and(|h| *epoch > h.epoch())
        {
            self.learn_reign(*epoch, region);
            return;
        }
        let newer_voters = stands.voters.version > self.st().voters.version;
        if let Some(Holder { stage: Stage::Asking { round, stands: heard, .. }, .. }) = &mut self.holder
            && stands.round == *round
            && !newer_voters
        {
            heard.insert(from.clone(), (stands.promised, stands.released));
            self.judge_asking();
        }
    }

    /// Rule 7: a majority answered one round, and none of those that answered promised more.
    fn judge_asking(&mut self) {
        if self.conflict.is_some() {
            return;
        }
        let Some(holder) = &self.holder else { return };
        let Stage::Asking { stands, began, resumes, .. } = &holder.stage else { return };
        let (epoch, resumes) = (holder.epoch(), *resumes);
        if stands.values().any(|(promised, released)| *promised > epoch || *released >= epoch) {
            // Only an epoch of its own helps. It asks for one while this one stays closed.
            self.regain_wanted();
            return;
        }
        if !self.is_majority(|v| *v == self.who.name || stands.contains_key(v)) {
            return;
        }
        let founds = self.st().chain.entries().len() == 1 && self.log.end == LogEnd::EMPTY;
        if resumes && !founds && stands.len() < self.who.others().count() && self.now < *began + RESUME_GRACE {
            return;
        }
        if resumes && self.is_unproven() && !founds && stands.is_empty() && self.now < *began + ALONE_PATIENCE {
            return;
        }
        let holder = self.holder.as_mut().expect("BUG: just seen");
        if resumes {
            holder.stage = Stage::Taking;
            self.output_when_kept(Output::Promote { epoch, how: Promotion::Resume });
        } else {
            holder.stage = Stage::Reopening { until: self.now + self.who.settings.probe_every * 2, sent: false };
            self.renew_when_moved();
        }
    }

    pub(super) fn resumed(&mut self, epoch: Epoch) -> bool {
        match &mut self.holder {
            Some(holder) if holder.epoch() == epoch && matches!(holder.stage, Stage::Taking) => {
                holder.stage = Stage::Activating;
                self.make_auto_own(epoch);
                self.renew();
                true
            }
            _ => false,
        }
    }

    /// The volume could not be taken: asked again, later.
    pub(super) fn not_resumed(&mut self, epoch: Epoch) -> bool {
        let again = self.now + self.who.settings.backoff_max;
        match &mut self.holder {
            Some(holder) if holder.epoch() == epoch && matches!(holder.stage, Stage::Taking) => {
                let began = self.now;
                holder.stage = Stage::Asking { round: Round::default(), stands: BTreeMap::new(), began, resumes: true };
                holder.next = again;
                true
            }
            _ => false,
        }
    }

    pub(super) fn commit_path_moved(&mut self) {
        let Some(holder) = &mut self.holder else { return };
        holder.moved = true;
        let due = holder.touched && (self.now >= holder.next || matches!(holder.stage, Stage::Reopening { sent: false, .. }));
        if due {
            self.renew_when_moved();
        }
    }

    /// Rule 1: a primary whose commit path stands still does not renew.
    fn renew_when_moved(&mut self) {
        // Rule 1 is for the others' sake: who votes alone keeps nobody from taking over, and its readers go on while too few copies take writes.
        let alone = self.st().voters.voters.len() == 1 && self.st().voters.contains(&self.who.name) && self.st().voters_next.is_none();
        let Some(holder) = &mut self.holder else { return };
        if holder.moved || alone {
            if let Stage::Reopening { sent, .. } = &mut holder.stage {
                *sent = true;
            }
            self.renew();
        } else if !holder.touched {
            holder.touched = true;
            self.outputs.push_back(Output::Touch);
        }
    }

    fn renew(&mut self) {
        let round = self.next_round();
        let settings = &self.who.settings;
        let (lease_ms, retry, every) = (millis(settings.lease), settings.retry_every, settings.renew_every);
        let state = self.state.as_ref().expect("BUG: a primary without a state");
        let Some(holder) = &mut self.holder else { return };
        let active = matches!(holder.stage, Stage::Open | Stage::Reopening { .. });
        holder.next = self.now + if matches!(holder.stage, Stage::Activating) { retry } else { every };
        (holder.moved, holder.touched) = (false, false);
        let voters = (state.voters.version, state.voters_next.is_some());
        holder.rounds.push_back(RoundOut {
            no: round,
            sent: self.now,
            grants: BTreeSet::new(),
            rule: holder.rule,
            auto: state.auto,
            voters,
            done: false,
        });
        if holder.rounds.len() > ROUNDS_KEPT {
            holder.rounds.pop_front();
        }
        let renew = Renew {
            lineage: state.lineage,
            voters: state.voters.clone(),
            voters_next: state.voters_next.clone(),
            round,
            lease_ms,
            entry: holder.entry.clone(),
            path: state.chain.path(holder.entry.epoch).into_iter().skip(1).take(PATH_SENT).cloned().collect(),
            active,
            durable: self.log.end,
            sent_at: self.wall,
            sync: holder.rule,
            auto: state.auto,
            ledger_digest: state.ledger.digest(),
        };
        let message = ControlMessage::Renew(renew);
        self.tell_survivors();
        self.send(self.who.name.clone(), message.clone());
        self.send_others(&message);
        for (gone, left) in std::mem::take(&mut self.members.goodbyes) {
            self.send(gone.clone(), message.clone());
            if left > 1 {
                self.members.goodbyes.push((gone, left - 1));
            }
        }
    }

    pub(super) fn on_granted(&mut self, from: &RegionName, epoch: Epoch, round: Round) {
        let (now, share) = (self.now, self.who.settings.holder_share());
        let Some(holder) = self.holder.as_mut().filter(|h| h.epoch() == epoch) else { return };
        holder.granted_at.insert(from.clone(), now);
        self.survivor_heard(from);
        let Some(holder) = self.holder.as_mut() else { return };
        let Some(at) = holder.rounds.iter().position(|r| r.no == round) else { return };
        holder.rounds[at].grants.insert(from.clone());
        let state = self.state.as_mut().expect("BUG: a primary without a state");
        if state.voters.contains(from) && !state.voters.heard.contains(from) {
            state.voters.heard.push(from.clone());
            state.voters.heard.sort();
            self.keep();
        }
        let grants = &self.holder.as_ref().expect("BUG: just seen").rounds[at].grants;
        if !self.is_majority(|v| grants.contains(v)) {
            return;
        }
        let auto = self.st().auto;
        let holder = self.holder.as_mut().expect("BUG: just seen");
        let done = &mut holder.rounds[at];
        if std::mem::replace(&mut done.done, true) {
            return;
        }
        // Counted from sending, never from the answer: the voters granted later than that.
        let until = done.sent + share;
        let voters = done.voters;
        holder.auto_told |= done.auto == auto;
        if done.rule == holder.rule && !holder.rule_told {
            holder.rule_told = true;
            let sync = holder.rule.secondaries;
            self.outputs.push_back(Output::CommitRule { sync });
        }
        let valid_until = self.holder.as_ref().expect("BUG: just seen").valid_until;
        if until > now && until > valid_until {
            self.lease_granted(epoch, until);
        }
        let state = self.st();
        if voters == (state.voters.version, true) && state.voters_next.is_some() && self.holder.as_ref().is_some_and(Holder::is_open) {
            self.voters_agreed();
        }
    }

    fn lease_granted(&mut self, epoch: Epoch, until: Instant) {
        if self.conflict.is_some() {
            return;
        }
        let holder = self.holder.as_mut().expect("BUG: granted without a reign");
        match holder.stage {
            Stage::Activating => {
                holder.valid_until = until;
                self.activated();
            }
            Stage::Reopening { .. } => {
                (holder.valid_until, holder.stage) = (until, Stage::Open);
                self.reason = None;
                self.note("lease_regained", format!("a majority granted epoch {epoch} again"));
                self.outputs.push_back(Output::Lease { until });
            }
            Stage::Open => {
                holder.valid_until = until;
                self.outputs.push_back(Output::Lease { until });
            }
            Stage::Asking { .. } | Stage::Taking => {}
        }
    }

    /// A majority granted the new reign: it is active, for good.
    fn activated(&mut self) {
        let holder = self.holder.as_mut().expect("BUG: activated without a reign");
        (holder.stage, holder.order) = (Stage::Open, None);
        let (entry, until, rule) = (holder.entry.clone(), holder.valid_until, holder.rule);
        let epoch = entry.epoch;
        // What was asked for once more has come about.
        self.campaign.take_if(|c| c.begun && matches!(&c.why, Why::Failover { op, .. } if Some(*op) == entry.op));
        self.reason = None;
        self.backoff = self.who.settings.backoff_min;
        let name = self.who.name.clone();
        self.reign = Some((epoch, name.clone()));
        self.lost_settled(epoch);
        self.follow();
        self.outputs.push_back(Output::CommitRule { sync: rule.secondaries });
        self.outputs.push_back(Output::Open { epoch });
        self.outputs.push_back(Output::Lease { until });
        self.note("primary", format!("{name} is the primary of epoch {epoch}"));
        self.pending_settled(epoch);
        self.op_activated(&entry);
        self.settle_left(epoch, &name);
        // The others hear at once that it is active.
        self.renew();
    }

    pub(super) fn on_refused(
        &mut self,
        from: &RegionName,
        epoch: Epoch,
        round: Round,
        promised: Epoch,
        reign: Option<(Epoch, RegionName)>,
        reason: String,
    ) {
        if round.incarnation != self.incarnation || self.holder.as_ref().is_none_or(|h| h.epoch() != epoch) {
            return;
        }
        if let Some((higher, region)) = reign.filter(|(e, _)| *e > epoch) {
            self.learn_reign(higher, &region);
            return;
        }
        let votes = self.st().voters.contains(from);
        // A region without a vote that promised more would never follow this epoch again.
        if promised > epoch && (votes || self.who.regions.contains(from)) {
            let now = self.now;
            let holder = self.holder.as_mut().expect("BUG: just seen");
            holder.overtaken_since.get_or_insert(now);
            self.reason = Some(format!("{from} refuses epoch {epoch}: {reason}"));
            if votes && matches!(holder.stage, Stage::Activating) {
                holder.refused_by.insert(from.clone());
                let refused_by = holder.refused_by.clone();
                if !self.is_majority(|v| !refused_by.contains(v)) {
                    // It can never become active. Asking on would only keep the others' grants from ending (seed 1054 of roles).
                    let reason = format!("epoch {epoch} can have no majority any more: {reason}");
                    self.lose_reign(&reason, None);
                    return self.follow();
                }
            }
            let activating =
                votes && matches!(self.holder.as_ref().expect("BUG: just seen").stage, Stage::Activating | Stage::Reopening { .. });
            let order = self.holder.as_ref().and_then(|h| h.order.clone());
            if activating && self.campaign.is_none() && !self.ask_again(order) {
                self.regain_wanted();
            }
        }
    }

    /// Its epoch is over here: nothing is acknowledged in it any more.
    pub(super) fn lose_reign(&mut self, reason: &str, next: Option<RegionName>) {
        let Some(holder) = self.holder.take() else { return };
        self.members.leaving = None;
        self.ask_again(holder.order);
        self.op_reign_lost(reason);
        self.lease_lost(reason, next);
    }

    pub(super) fn holder_clock_broke(&mut self, reason: &str) {
        let Some(holder) = &mut self.holder else { return };
        // Their sending times mean nothing any more.
        holder.rounds.clear();
        holder.granted_at.clear();
        match holder.stage {
            Stage::Open => {
                holder.valid_until = Instant::ZERO;
                self.op_lease_lost(reason);
                self.lease_lost(&format!("its clock cannot be trusted: {reason}"), None);
                self.ask(false);
            }
            Stage::Reopening { .. } => self.ask(false),
            Stage::Activating => self.renew(),
            Stage::Asking { .. } | Stage::Taking => {}
        }
    }

    /// Another lineage was met: nothing is acknowledged before it is retired, however many grant this one.
    pub(super) fn holder_meets_rival(&mut self, reason: &str) {
        let Some(holder) = &mut self.holder else { return };
        match holder.stage {
            Stage::Open => {
                holder.valid_until = Instant::ZERO;
                self.op_lease_lost(reason);
                self.lease_lost(reason, None);
                self.ask(false);
            }
            Stage::Reopening { .. } => self.ask(false),
            Stage::Activating | Stage::Asking { .. } | Stage::Taking => {}
        }
    }

    pub(super) fn secondary_at(&mut self, region: RegionName, durable: LogEnd) {
        let leaves = self.members.leaving.as_ref().is_some_and(|l| l.region == region);
        if let Some(holder) = self.holder.as_mut().filter(|_| !leaves) {
            holder.secondaries.insert(region, durable);
            self.judge_checks();
        }
    }

    pub(super) fn commit_rule(&mut self, sync: u8) {
        let Some(holder) = &mut self.holder else { return };
        if holder.rule.secondaries == sync {
            return;
        }
        holder.rule_told = holder.rule.secondaries < sync;
        holder.rule.version += 1;
        holder.rule.secondaries = sync;
        if holder.rule_told {
            self.outputs.push_back(Output::CommitRule { sync });
        } else if holder.is_open() {
            // Whoever waits for less waits for a majority to hear of it first.
            holder.next = self.now;
            self.renew_when_moved();
        }
    }

    pub(super) fn holder_timeout(&self) -> Option<Instant> {
        let holder = self.holder.as_ref()?;
        match &holder.stage {
            Stage::Open if holder.touched => Some(holder.valid_until),
            Stage::Open => Some(holder.valid_until.min(holder.next)),
            Stage::Reopening { until, .. } => Some(*until),
            Stage::Asking { began, resumes: true, .. } if self.now < *began + RESUME_GRACE => Some(holder.next.min(*began + RESUME_GRACE)),
            Stage::Asking { began, resumes: true, .. } if self.is_unproven() && self.now < *began + ALONE_PATIENCE => {
                Some(holder.next.min(*began + ALONE_PATIENCE))
            }
            Stage::Asking { .. } | Stage::Activating => Some(holder.next),
            Stage::Taking => None,
        }
    }

    pub(super) fn holder_timers(&mut self) {
        let now = self.now;
        let Some(holder) = &self.holder else { return };
        match &holder.stage {
            Stage::Open if now >= holder.valid_until => {
                let voters = self.st().voters.voters.len();
                let lease_ms = millis(self.who.settings.lease);
                let reason = format!("the lease ran out: no majority of the {voters} voters renewed it within {lease_ms} ms");
                self.op_lease_lost(&reason);
                self.lease_lost(&reason, None);
                self.ask(false);
            }
            Stage::Open => {
                if holder.overtaken_since.is_some_and(|since| now >= since + self.who.settings.renew_every * 2) {
                    self.holder.as_mut().expect("BUG: just seen").overtaken_since = None;
                    self.regain_wanted();
                }
                if self.holder.as_ref().is_some_and(|h| h.is_open() && now >= h.next) {
                    self.renew_when_moved();
                }
            }
            Stage::Reopening { until, .. } if now >= *until => self.ask(false),
            Stage::Asking { resumes, began, .. } => {
                let resumes = *resumes;
                if now >= holder.next {
                    self.ask(resumes);
                } else if resumes && now >= *began + RESUME_GRACE {
                    self.judge_asking();
                }
            }
            Stage::Activating if now >= holder.next => self.renew(),
            _ => {}
        }
    }

    /// Voters change: everybody hears of it at once.
    pub(super) fn renew_voters(&mut self) {
        if self.holder.as_ref().is_some_and(Holder::is_open) {
            let holder = self.holder.as_mut().expect("BUG: just seen");
            holder.next = self.now;
            self.renew_when_moved();
        }
    }

    /// What is left of the lease, for checks.
    pub(super) fn lease_left_ms(&self) -> u64 {
        millis_up(self.lease_until().since(self.now))
    }
}
