//! Who writes: the control core's wishes become this region's role, and the region's news become what the core decides by.
//!
//! Story: recovery is over, and the region knows what it promised. Whether it leads is not its own to say: it hands the core its log and
//! its state, and does what comes out, in that order: keep a promise on four copies, tell a member, drain, seal, begin a reign behind a
//! frame of the log, open, follow. A region that reigned when its process ended is closed to readers until a majority says how things are.
//!
//! Decides nothing about votes and leases ([`crate::control`]), nor what is durable. A crash between two of these steps is a restart: what
//! counts was kept before it was said.

use super::{Effect, Node, Stage};
use crate::base::{ConnId, Epoch, Instant, LogEnd, MemberId, RegionName, WriteGate};
use crate::control::{
    self, AuditEntry, AuditHead, Control, ControlState, ControlView, EpochEntry, Input, LogPosition, OpId, OpView, OrderKind, Output,
    Promotion, VoterState, Who,
};
use crate::log::{ControlFrame, Frame, Pen, Reign};
use crate::volume::{LostLog, VolumePhase};
use std::collections::BTreeMap;
use std::time::Duration;

/// A write through the new primary must be seen in a secondary within this.
const VERIFY_WITHIN: Duration = Duration::from_secs(10);
/// While none follows after so long, there is none to see it in: the only other region is the one that is down.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(3);
/// What another secondary has more is fetched within this, or it is gone without.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(20);
/// Operations whose events are remembered, so that none is told twice.
const OPS_REMEMBERED: usize = 64;
/// A link on which something came within this is alive.
const LIVE_WITHIN: Duration = Duration::from_secs(1);

/// How a recovery in the midst of a process's life goes on.
#[derive(Clone, Debug)]
pub(super) enum Intent {
    Resume(Epoch),
    Begin(EpochEntry),
}

/// What this region is on the way to become.
#[derive(Debug, Default)]
pub(super) struct Roles {
    core: Option<Control>,
    /// The active reign that this region knows of.
    pub(super) reign: Option<(Epoch, RegionName)>,
    /// The last state that is to be kept; it was handed to the volume (which takes nothing while it recovers).
    token: u64,
    handed: bool,
    /// Operations, and how many of their phases were told as events, by whoever carried them out.
    phases_told: BTreeMap<OpId, usize>,
    /// Entries of the audit up to this one were told.
    audited: u64,
    /// An empty record is on its way to the copies, to show that the disks are well.
    touching: bool,
    pub(super) intent: Option<Intent>,
    /// The pen of a reign whose first frame (this one) is on its way, or durable here and waits for its majority.
    pen: Option<(Pen, LogEnd)>,
    /// That first frame, durable and shown to nobody: without its majority it is no history (seed 38 of moves).
    pub(super) unshown: Vec<(LogEnd, Vec<Frame>)>,
    /// The first frame of this region's reign.
    start: LogEnd,
    /// The lease is over: why, and where writers go.
    fence: Option<(String, Option<RegionName>)>,
    /// Too few copies take writes: a sentence.
    pub(super) quorum_lost: Option<String>,
    sealing: Option<(OpId, LogEnd)>,
    verifying: Option<(OpId, LogEnd, Instant)>,
    /// What lies here may lie beyond the base of a later reign: readers are shown nothing of it before that is known.
    pub(super) unsettled: bool,
    /// This region wrote, and what it wrote may lie nowhere else.
    pub(super) holds_commits: bool,
    /// The log of this region, which wrote, ended there and was a prefix of the history that it follows now.
    pub(super) whole_at: Option<LogEnd>,
    /// As the primary: this region is about to be a member no more.
    pub(super) leaving: Option<RegionName>,
    /// Taken out, and nothing is shown.
    pub(super) hidden: bool,
}

impl Roles {
    pub(super) fn is_begun(&self) -> bool {
        self.core.is_some()
    }

    /// Frames of this epoch may be received and acknowledged (rule 5).
    pub(super) fn may_receive(&self, epoch: Epoch) -> bool {
        self.core.as_ref().is_some_and(|c| c.may_receive(epoch))
    }

    /// Why this region is no member any more.
    pub(super) fn out(&self) -> Option<String> {
        self.core.as_ref().and_then(Control::out)
    }

    /// It sealed its reign, and the target may lack what lies here.
    pub(super) fn lends_its_last(&self) -> bool {
        self.core.as_ref().is_some_and(Control::lends_its_last)
    }

    /// The member is a part of a global cluster that was founded.
    pub(super) fn is_member(&self) -> bool {
        self.core.as_ref().is_some_and(|c| c.state().is_some())
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let core = self.core.as_ref().and_then(Control::next_timeout);
        core.into_iter().chain(self.verifying.as_ref().map(|(_, _, until)| *until)).min()
    }

    pub(super) fn core(&self) -> Option<&Control> {
        self.core.as_ref()
    }

    /// Its copies lost log that was durable: the sentence that says so, and what to do.
    pub(super) fn lost(&self) -> Option<&str> {
        self.core.as_ref().and_then(Control::lost)
    }

    /// Why this region's reign may not write now.
    pub(super) fn stopped(&self) -> Option<String> {
        match self.gate() {
            WriteGate::Open => None,
            WriteGate::Closed { reason } | WriteGate::Fenced { reason, .. } => Some(reason),
        }
    }

    fn gate(&self) -> WriteGate {
        match (&self.fence, &self.quorum_lost) {
            // A disk that takes no writes renews no lease: that is what an operator must know first.
            (Some((reason, primary)), Some(lost)) => WriteGate::Fenced { reason: format!("{lost} ({reason})"), primary: primary.clone() },
            (Some((reason, primary)), None) => WriteGate::Fenced { reason: reason.clone(), primary: primary.clone() },
            (None, Some(reason)) => WriteGate::Closed { reason: reason.clone() },
            (None, None) => WriteGate::Open,
        }
    }
}

impl Node {
    // ---- the core's life -------------------------------------------------------------------------------------------

    /// Recovery said what this member promised; from here on the core decides who writes.
    pub(super) fn begin_roles(&mut self, now: Instant, kept: Option<VoterState>) {
        let who = Who {
            name: self.who.region.clone(),
            regions: self.who.members.clone(),
            witness: self.who.witness.clone(),
            has_data: true,
            settings: control::Settings { secondaries_max: self.limits.secondaries_max, ..self.who.control.clone() },
            addrs: self.who.addrs.clone(),
        };
        self.roles.core = Some(Control::new(who, kept, now, self.prng.fork("control")));
        if matches!(self.stage, Stage::Closed { .. }) {
            self.tell_lost(now);
        }
        self.tell_audit();
        self.tell_log(now);
    }

    pub(super) fn tell(&mut self, now: Instant, input: Input) {
        let wall = self.wall;
        if let Some(core) = &mut self.roles.core {
            core.handle(now, wall, input);
        }
    }

    /// This region's log, as far as it is durable; told before anybody else hears of it.
    pub(super) fn tell_log(&mut self, now: Instant) {
        let end = if let Stage::Closed { consistent } = &self.stage { *consistent } else { *self.appender.vdl() };
        if !self.roles.is_begun() || (end == LogEnd::EMPTY && *self.appender.phase() == VolumePhase::Serving) {
            return;
        }
        let mut history = self.appender.history().clone();
        history.cut_from(end.seq.next());
        let covers = self.follower.covers();
        self.tell(now, Input::Log(LogPosition { end, history, covers }));
    }

    /// What this region's own copies show to be missing in the log that it wrote.
    pub(super) fn tell_lost(&mut self, now: Instant) {
        if let Some(LostLog { known, by, end }) = self.lost.clone() {
            self.tell(now, Input::LogLost { known, end, by });
        }
    }

    /// A copy came that shows it, after the volume went on.
    pub(super) fn log_lost_late(&mut self, now: Instant, copy: MemberId, lost: LostLog) {
        let led = matches!(self.stage, Stage::Leading | Stage::Pending | Stage::Opening { pen: Some(_) });
        if !led {
            self.note("log_lost", format!("copy {copy} has log that was durable and that this region's log does not have: {lost}"));
            return;
        }
        self.lost = Some(lost);
        self.tell_lost(now);
    }

    /// What the core wants, until it wants nothing.
    pub(super) fn drive_roles(&mut self, now: Instant) {
        self.judge_verified(now);
        self.judge_caught_up(now);
        for tail in std::mem::take(&mut self.untold) {
            self.tell(now, Input::TailRead(tail));
        }
        if self.roles.core.as_ref().and_then(Control::next_timeout).is_some_and(|at| now >= at) {
            self.tell(now, Input::Timeout);
        }
        while let Some(output) = self.roles.core.as_mut().and_then(Control::poll_output) {
            self.carry_out(now, output);
        }
    }

    #[must_use]
    pub fn control_view(&self, now: Instant) -> Option<ControlView> {
        self.roles.core.as_ref().map(|c| c.view(now))
    }

    /// What this member knows of operations and failovers.
    #[must_use]
    pub fn ledger(&self) -> Option<&crate::control::Ledger> {
        self.roles.core.as_ref().and_then(Control::state).map(|s| &s.ledger)
    }

    /// Commits may be acknowledged before this.
    #[must_use]
    pub fn lease_until(&self) -> Instant {
        self.roles.core.as_ref().map_or(Instant::ZERO, Control::lease_until)
    }

    fn carry_out(&mut self, now: Instant, output: Output) {
        match output {
            Output::Send { to, message } => self.effects.push_back(Effect::ToMember { to, message }),
            Output::Persist { token, state } => {
                self.control = Some(ControlState { layout: self.who.layout, rules: self.committing.kept(), voter: *state });
                self.roles.token = token;
                self.put_again();
            }
            Output::Lease { until } => {
                let share = self.who.control.holder_share();
                let sent = Instant { ns: until.ns.saturating_sub(u64::try_from(share.as_nanos()).unwrap_or(u64::MAX)) };
                self.appender.lease(now, sent, share, self.who.control.renew_every);
                self.effects.push_back(Effect::Lease { until });
                if self.roles.fence.take().is_some() {
                    self.note("lease_regained", "a majority of the voters granted the lease again".into());
                    self.say_gate();
                }
            }
            Output::LeaseLost { reason, next } => {
                self.note("lease_lost", reason.clone());
                self.roles.fence = Some((reason, next));
                self.say_gate();
            }
            Output::Touch => {
                self.roles.touching = true;
                self.put_again();
            }
            Output::Drain { op, deadline } => self.effects.push_back(Effect::HeadDrain { op, deadline }),
            Output::Undrain { op, reason } => {
                self.note("undrained", format!("operation {op} was given up before anything was sealed: {reason}; writes go on"));
                self.effects.push_back(Effect::HeadUndrain);
            }
            Output::Seal { op, epoch, to } => self.seal(now, op, epoch, to),
            Output::CatchUp { from, up_to } => {
                self.note("catching_up", format!("{from} has more of the log, up to {up_to}; it is fetched before this region takes over"));
                self.stop_following(now, "this region is about to take over");
                self.follower.look_for(now, from.clone());
                self.follower.catching_up_to = Some((from, up_to, now + CATCH_UP_WITHIN));
                self.judge_caught_up(now);
            }
            Output::Promote { epoch, how } => self.promote(now, epoch, how),
            Output::Open { epoch } => self.open_reign(now, epoch),
            Output::Follow { epoch, primary } => self.step_back(now, epoch, primary),
            Output::Verify { op, .. } => self.roles.verifying = Some((op, self.roles.start, now + VERIFY_WITHIN)),
            Output::CommitRule { sync } => self.rule_in_force(now, sync),
            Output::Members(members) => self.take_members(now, *members),
            Output::Leaving { region } => self.let_go(now, &region),
            Output::OpMoved(op) => {
                self.note_operation(&op);
                self.effects.push_back(Effect::OpMoved(op));
            }
            Output::Failover(record) => {
                self.effects.push_back(Effect::Failover(record));
                self.nothing_was_lost();
                self.count_archives(now);
            }
            Output::Note { kind, what } => self.note(kind, what),
        }
    }

    /// Every phase of an operation is an event of the region that went through it, and so are its beginning and its end.
    fn note_operation(&mut self, view: &OpView) {
        let (id, actor) = (view.order.id, view.order.actor.clone());
        let own = view.by == self.who.region && !view.order.dry_run;
        let told = self.roles.phases_told.get(&id).copied();
        self.roles.phases_told.insert(id, view.phases.len());
        while self.roles.phases_told.len() > OPS_REMEMBERED {
            self.roles.phases_told.pop_first();
        }
        if !own {
            return;
        }
        let op = Some((&id, actor.as_str()));
        let what = view.order.kind.to_string();
        match told {
            None if view.phases.is_empty() && !view.state.is_final() => self.note_of("operation_began", what.clone(), op, None),
            // Phases that it had before it came here are events of the region that it came from.
            None => {}
            Some(told) => {
                for (phase, ms) in view.phases.iter().skip(told) {
                    self.note_of("operation_phase", format!("{what}: {phase} is over"), op, Some(*ms));
                }
            }
        }
        if view.state.is_final() {
            let all_ms = self.wall.0.saturating_sub(view.began_at.0) / 1000;
            self.note_of("operation_ended", format!("{what}: {}", view.state), op, Some(all_ms));
        }
    }

    // ---- what must be kept -----------------------------------------------------------------------------------------

    /// The control state goes to the copies once more, or as soon as they take it.
    pub(super) fn put_again(&mut self) {
        self.roles.handed = false;
        self.hand_control();
    }

    pub(super) fn hand_control(&mut self) {
        if self.roles.handed || *self.appender.phase() == VolumePhase::Recovering {
            return;
        }
        let Some(control) = &self.control else { return };
        self.roles.handed = true;
        self.appender.put_control(control.encode(), self.roles.holds_commits);
    }

    /// What the next state that is handed out will be kept as.
    pub(super) fn next_token(&self) -> u64 {
        self.roles.token + 1
    }

    /// What the audit has new, once it is kept.
    fn tell_audit(&mut self) {
        let Some(audit) = self.control.as_ref().map(|c| &c.voter.audit) else { return };
        let news: Vec<AuditEntry> = audit.entries().iter().filter(|e| e.no > self.roles.audited).cloned().collect();
        if let Some(last) = news.last() {
            self.roles.audited = last.no;
            self.effects.push_back(Effect::Audited(news));
        }
    }

    /// Where the chain of this member's audit ends, as its copies keep it.
    #[must_use]
    pub fn audit_head(&self) -> Option<AuditHead> {
        self.roles.core.as_ref().and_then(Control::state).map(|s| s.audit.head())
    }

    /// Four copies keep what was handed to them last.
    pub(super) fn control_kept(&mut self, now: Instant) {
        if !self.roles.handed {
            return; // an older one; the newer waits for the volume
        }
        let token = self.roles.token;
        self.rules_kept(now, token);
        self.tell_audit();
        self.tell(now, Input::Persisted { token });
        if std::mem::take(&mut self.roles.touching) {
            self.tell(now, Input::CommitPathMoved);
        }
    }

    // ---- becoming the primary --------------------------------------------------------------------------------------

    fn promote(&mut self, now: Instant, epoch: Epoch, how: Promotion) {
        self.roles.holds_commits = true;
        self.put_again();
        let intent = match how {
            Promotion::Begin { entry } => Intent::Begin(entry),
            Promotion::Resume => Intent::Resume(epoch),
        };
        self.take_up(now, epoch, intent);
    }

    /// Takes the volume for a reign.
    pub(super) fn take_up(&mut self, now: Instant, epoch: Epoch, intent: Intent) {
        if let Intent::Begin(entry) = &intent
            && self.goes_back_first(now, entry)
        {
            return;
        }
        match (&self.stage, &intent) {
            (Stage::Founding { lineage }, Intent::Resume(_)) => {
                let lineage = *lineage;
                self.open_founded(now, lineage);
            }
            (Stage::Closed { consistent }, _) => {
                let consistent = *consistent;
                self.lead(now, intent, consistent);
            }
            // All of the log is durable here and the reign begins at its end: nothing is cut, and this process's generation holds the copies.
            (Stage::Following, Intent::Begin(entry))
                if self.appender.end() == self.appender.vdl() && entry.base == *self.appender.end() && self.reign_of(entry).is_some() =>
            {
                let reign = self.reign_of(entry).expect("BUG: it was just there");
                let entry = entry.clone();
                self.stop_following(now, "this region takes over");
                self.leader.step_down();
                let pen = self.appender.begin_reign(now, self.wall, entry.epoch, reign);
                self.roles.pen = Some((pen, *self.appender.end()));
                self.roles.unshown.clear();
                self.stage = Stage::Pending;
            }
            (Stage::Following | Stage::Leading | Stage::Pending, _) if *self.appender.phase() == VolumePhase::Serving => {
                self.stop_following(now, "this region takes over");
                self.leader.step_down();
                self.roles.intent = Some(intent);
                self.stage = Stage::Recovering;
                self.appender.recover_again(now);
            }
            _ => {
                let reason = "its volume is not there to write to: it recovers, or is being seeded".to_owned();
                self.tell(now, Input::PromotionFailed { epoch, reason });
            }
        }
    }

    fn reign_of(&self, entry: &EpochEntry) -> Option<Reign> {
        let lineage = self.appender.lineage()?;
        let op = entry.op.map_or(0, |op| op.0);
        let region = self.who.region.clone();
        Some(Reign { lineage, prev: entry.prev, base: entry.base, region, op, config: entry.voters_version })
    }

    /// Recovery chose a log; the reign goes on in it, or begins behind a frame of it.
    pub(super) fn lead(&mut self, now: Instant, intent: Intent, consistent: LogEnd) {
        let wall = self.wall;
        let pen = match intent {
            Intent::Resume(epoch) => self.appender.lead(now, wall, epoch, consistent),
            Intent::Begin(entry) => {
                let base = entry.base;
                let end = *self.appender.end();
                let reign = self.reign_of(&entry).filter(|_| {
                    base != LogEnd::EMPTY
                        && base.seq <= consistent.seq
                        && self.appender.history().contains(&base)
                        && entry.epoch > end.epoch
                });
                let Some(reign) = reign else {
                    let reason = format!("epoch {} would begin behind {base}, and this region's log ends at {end}", entry.epoch);
                    self.stage = Stage::Closed { consistent };
                    self.tell_log(now);
                    return self.tell(now, Input::PromotionFailed { epoch: entry.epoch, reason });
                };
                self.appender.lead_epoch(now, wall, entry.epoch, reign)
            }
        };
        self.stage = Stage::Opening { pen: Some(pen) };
    }

    /// The reign's first frame is durable here. Nothing is shipped before a majority granted it.
    pub(super) fn reign_is_durable(&mut self, now: Instant, start: LogEnd) {
        self.roles.start = start;
        self.tell_log(now);
        self.tell(now, Input::Promoted { epoch: start.epoch, start });
    }

    pub(super) fn pend(&mut self, now: Instant, pen: Pen, start: LogEnd) {
        self.roles.pen = Some((pen, start));
        self.roles.unshown.clear();
        self.stage = Stage::Pending;
        self.reign_is_durable(now, start);
    }

    fn open_reign(&mut self, now: Instant, epoch: Epoch) {
        let Some((pen, start)) = self.roles.pen.take() else { return };
        self.roles.leaving = None;
        self.roles.reign = Some((epoch, self.who.region.clone()));
        if std::mem::take(&mut self.roles.unsettled) {
            // What became durable while it was not known to be history is shown now, the reign's first frame too.
            let at = *self.appender.vdl();
            self.effects.push_back(Effect::HeadReset { at });
        } else {
            let shown = std::mem::take(&mut self.roles.unshown).into_iter().map(|(vdl, frames)| Effect::HeadAdvances { vdl, frames });
            self.effects.extend(shown);
        }
        self.roles.unshown.clear();
        self.roles.fence = None;
        self.reason = None;
        self.stage = Stage::Leading;
        self.say_gate();
        self.effects.push_back(Effect::PrimaryIs(Some(self.who.region.clone())));
        self.effects.push_back(Effect::HeadWrites { pen });
        self.note("writable", format!("epoch {epoch}, generation {}", start.generation));
        let vdl = *self.appender.vdl();
        self.lead_pump(now, &vdl);
        self.release(now);
    }

    /// What another secondary had more is here, or it cannot be had.
    pub(super) fn judge_caught_up(&mut self, now: Instant) {
        let done = |(_, up_to, until): &mut (RegionName, LogEnd, Instant)| self.appender.vdl().seq >= up_to.seq || now >= *until;
        if let Some((from, ..)) = self.follower.catching_up_to.take_if(done) {
            self.stop_following(now, "what it had more is here");
            self.tell_log(now);
            self.tell(now, Input::CaughtUp { from });
        }
    }

    fn judge_verified(&mut self, now: Instant) {
        let Some((op, start, until)) = self.roles.verifying else { return };
        // After a failover there may be nobody left who follows. A switchover had somebody, and is not done before that is seen.
        let planned =
            self.roles.core.as_ref().and_then(|c| c.op(op)).is_some_and(|view| matches!(view.order.kind, OrderKind::Switchover { .. }));
        let nobody_follows = !planned && !self.leader.ships() && now + (VERIFY_WITHIN - FOLLOWED_WITHIN) >= until;
        let outcome = if self.who.members.len() == 1 || nobody_follows || self.leader.has_shown(&start).is_some() {
            Ok(())
        } else if now >= until {
            Err(format!("no secondary has shown epoch {}'s first frame within {} s", start.epoch, VERIFY_WITHIN.as_secs()))
        } else {
            return;
        };
        self.roles.verifying = None;
        self.tell(now, Input::Verified { op, outcome });
    }

    // ---- giving it away --------------------------------------------------------------------------------------------

    pub(super) fn say_gate(&mut self) {
        self.effects.push_back(Effect::Gate(self.roles.gate()));
    }

    fn seal(&mut self, now: Instant, op: OpId, epoch: Epoch, to: RegionName) {
        if !matches!(self.stage, Stage::Leading) {
            let reason = "the region does not write any more".to_owned();
            return self.tell(now, Input::NotDrained { op, reason });
        }
        let handover = ControlFrame::Handover { epoch, to, op: op.0 };
        let frame = handover.encode(self.appender.end(), epoch, self.appender.generation(), self.wall);
        self.roles.sealing = Some((op, frame.log_end()));
        self.appender.append(now, vec![frame]);
    }

    pub(super) fn judge_sealed(&mut self, now: Instant, vdl: &LogEnd) {
        if let Some((op, at)) = self.roles.sealing.take_if(|(_, at)| vdl.seq >= at.seq) {
            self.tell(now, Input::Sealed { op, at });
        }
    }

    /// An epoch from `epoch` on is somebody else's, or nobody's yet.
    fn step_back(&mut self, now: Instant, epoch: Epoch, primary: Option<RegionName>) {
        // What was fetched in order to take over is not wanted any more, and may be on no history by now (seed 47 of moves).
        if let Some((from, ..)) = self.follower.catching_up_to.take() {
            self.stop_following(now, "another region takes over");
            self.tell(now, Input::CaughtUp { from });
        }
        let led = matches!(self.stage, Stage::Leading | Stage::Pending | Stage::Opening { pen: Some(_) });
        if led {
            let who = primary.as_ref().map_or_else(|| "nobody yet".to_owned(), RegionName::to_string);
            let reason = format!("the primary of epoch {epoch} is {who}; {} follows", self.who.region);
            self.note("stepped_down", reason.clone());
            self.effects.push_back(Effect::HeadStops { reason: reason.clone() });
            self.appender.without_lease();
            // The links stay: what goes over them next is another conversation.
            self.leader.step_down();
            self.committing.stop();
            self.reads.clear();
            // Who sealed its reign has nothing beyond the handover.
            let sealed = self.roles.core.as_ref().and_then(Control::state).is_some_and(|s| s.sealed >= self.appender.end().epoch);
            self.roles.unsettled = !(sealed && self.appender.end() == self.appender.vdl());
            (self.roles.pen, self.roles.sealing, self.roles.verifying) = (None, None, None);
            self.roles.unshown.clear();
            self.roles.fence = None;
            self.say_gate();
            self.stage = if self.appender.vdl() == &LogEnd::EMPTY { Stage::Opening { pen: None } } else { Stage::Following };
            let vdl = *self.appender.vdl();
            self.follower.restarted(now, self.wall, vdl);
        } else if let Stage::GoingBack { primary: to } = &mut self.stage {
            // Wherever it goes back to, the next primary will say whether that is far enough.
            if let Some(primary) = &primary {
                to.clone_from(primary);
            }
        } else if let Stage::Closed { consistent } = &self.stage {
            let consistent = *consistent;
            self.roles.unsettled = true;
            self.stage = Stage::Opening { pen: None };
            self.appender.follow(now, consistent);
        } else if let Stage::Founding { .. } = &self.stage {
            self.stage = Stage::Following;
        }
        self.roles.intent = None;
        let news = self.roles.reign.as_ref().is_none_or(|(known, _)| *known < epoch);
        // A conversation with the primary of this very epoch goes on.
        let goes_on = !news && self.follower.partner().is_some_and(|p| Some(p) == primary.as_ref());
        if !led && !goes_on {
            self.stop_following(now, "another epoch began");
        }
        if let Some(primary) = &primary {
            self.roles.reign = Some((epoch, primary.clone()));
            if !goes_on {
                self.follower.look_for(now, primary.clone());
                self.greet_on_a_live_link(now, primary);
            }
        }
        self.effects.push_back(Effect::PrimaryIs(primary));
    }

    /// A new primary that was heard a moment ago is greeted on the link that is there: a handshake less without a writer.
    fn greet_on_a_live_link(&mut self, now: Instant, primary: &RegionName) {
        let live = |c: &&ConnId| self.heard.get(c).is_some_and(|at| now.since(*at) < LIVE_WITHIN);
        let conn = self.links.iter().filter(|(_, peer)| *peer == primary).map(|(conn, _)| conn).rfind(live).copied();
        let ready = *self.appender.phase() == VolumePhase::Serving && matches!(self.stage, Stage::Following);
        if let (Some(conn), true) = (conn, ready) {
            let epoch = self.epoch();
            let lineage = self.lineage();
            self.follower.greet(now, conn, primary.clone());
            let message = self.follower.first_word(&self.who, &self.appender, lineage, epoch);
            self.effects.push_back(Effect::Send { conn, message });
        }
    }

    /// The conversation with the primary, or with one that may be, is over. Its link stays.
    pub(super) fn stop_following(&mut self, now: Instant, why: &str) {
        if let Some(conn) = self.follower.any_conn()
            && let Some(primary) = self.follower.unlinked(now, self.wall, conn)
        {
            self.note("primary_left", format!("{primary}: {why}"));
        }
    }

    /// This region's log is a prefix of the primary's: whatever lies here lies there, too. `seeded`: nothing lies here, or what does is replaced.
    pub(super) fn settled(&mut self, seeded: bool) {
        if std::mem::take(&mut self.roles.unsettled) {
            let at = *self.appender.vdl();
            self.effects.push_back(Effect::HeadReset { at });
        }
        if std::mem::take(&mut self.roles.holds_commits) {
            self.put_again();
            if !seeded {
                self.roles.whole_at = Some(*self.appender.vdl());
                self.nothing_was_lost();
            }
        }
    }
}
