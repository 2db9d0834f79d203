//! One region process, its cores wired together: a closed [`Event`] in, a closed [`Effect`] out.
//!
//! Story: the copies are opened, the volume recovers, control says whether this region leads or follows. A primary hands the pen
//! to the head, and ships what is durable to every secondary that says hello ([`lead`]). A secondary finds the primary, says
//! hello, appends what comes and lets its readers see what is durable here ([`follow`]).
//!
//! Decides nothing that a core below it could; it carries their effects to each other and to the driver. No clock, no thread,
//! no socket, no file. Driven by `io` for real and by `sim` under virtual time: `handle` an event, `poll_effect` until empty,
//! call again at `next_timeout`.

mod back;
mod committing;
mod control_report;
mod follow;
mod lead;
mod members;
pub mod report;
mod roles;

use crate::base::{
    ClusterName, ConnId, CopyId, Epoch, Generation, GroupId, Instant, Layout, Limits, LineageId, LogEnd, Lsn, MemberId, Prng, RegionName,
    TimelineId, UnixMicros, WriteGate,
};
use crate::control::{
    self, Action, AuditEntry, ControlMessage, ControlState, FailoverRecord, Input, LostTail, MembersView, OpId, OpView, Order, Start,
    Touched, VoterSet, VoterState,
};
use crate::log::{Frame, Pen};
use crate::ship::{Message, Refusal};
use crate::volume::membership::Incarnation;
use crate::volume::{Appender, AppenderEffect, CopyHealth, CopyReply, CopyRequest, Found, HeldBy, LostLog, VolumePhase};
use committing::Committing;
use follow::Follower;
use lead::Leader;
use report::{CopyReport, OperatorEvent, RegionReport, RegionState, Role};
use roles::{Intent, Roles};
use std::collections::{BTreeMap, VecDeque};

/// Everything that can wake a node.
#[derive(Debug)]
pub enum Event {
    CopyOpened {
        copy: MemberId,
        promised: Generation,
    },
    CopyLost {
        copy: MemberId,
        reason: String,
    },
    /// A copy that cannot be opened: its files show that the log was durable up to there.
    CopyProves {
        copy: MemberId,
        lineage: LineageId,
        durable: LogEnd,
    },
    CopyReplied {
        copy: MemberId,
        reply: CopyReply,
    },
    /// A link to `peer`, whose certificate was checked, is up. `dialled`: this side asked for it.
    Linked {
        conn: ConnId,
        peer: RegionName,
        dialled: bool,
    },
    Unlinked {
        conn: ConnId,
        reason: String,
    },
    DialFailed {
        region: RegionName,
        reason: String,
    },
    Received {
        conn: ConnId,
        message: Message,
    },
    /// Another member's control core says something; its certificate says that it is `from`.
    Member {
        from: RegionName,
        message: ControlMessage,
    },
    /// A member refused this region's connection: it was taken out.
    SaidOut {
        by: RegionName,
    },
    /// An operator's order, here or passed on.
    Order(Order),
    /// The clock that leases are counted on cannot be trusted since an unknown moment.
    ClockBroke {
        reason: String,
    },
    /// The head's answer to [`Effect::HeadDrain`]: it writes nothing before `HeadUndrain`, and every commit that it will acknowledge has been.
    HeadDrained {
        op: OpId,
    },
    /// The head's frames, in the order of its pen.
    Submitted {
        frames: Vec<Frame>,
    },
    /// The head's readers see everything up to `end`; the oldest LSN that one of them still pins.
    HeadSees {
        end: LogEnd,
        written_at: Option<UnixMicros>,
    },
    HeadPins {
        oldest: Lsn,
    },
    /// The answer to [`Effect::ReadTouched`].
    Touched {
        archive: TimelineId,
        touched: Result<Touched, String>,
    },
    Timeout,
}

/// Everything a node can want.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "they are handed on one at a time, and none is kept")]
pub enum Effect {
    ToCopy {
        copy: MemberId,
        request: CopyRequest,
    },
    Dial {
        region: RegionName,
    },
    Send {
        conn: ConnId,
        message: Message,
    },
    Unlink {
        conn: ConnId,
        reason: String,
    },
    /// To another member's control core: may be lost, late, doubled.
    ToMember {
        to: RegionName,
        message: ControlMessage,
    },
    /// Commits may be acknowledged, and reads of the writer answered, before `until` and not at it.
    Lease {
        until: Instant,
    },
    /// Begin no write transaction; those that run may finish until the deadline. `HeadDrained` when nothing runs and all is answered.
    HeadDrain {
        op: OpId,
        deadline: Instant,
    },
    /// Go on writing.
    HeadUndrain,
    /// Commits wait for a secondary (by the commit rules), or do so no more: whoever waits for an answer goes on waiting.
    CommitsPause(bool),
    OpMoved(Box<OpView>),
    Failover(Box<FailoverRecord>),
    /// New in this member's audit, and kept on its copies: to be written to its file, too.
    Audited(Vec<AuditEntry>),
    /// Opens a lost tail as a database and says which rows it changed.
    ReadTouched {
        archive: TimelineId,
    },
    /// This region was taken out: whoever reads here is refused with that, until a reset.
    HeadHides {
        reason: String,
    },
    /// The volume stands at `at`: whatever the head cached is void.
    HeadReset {
        at: LogEnd,
    },
    /// This region writes: the head takes the pen.
    HeadWrites {
        pen: Pen,
    },
    /// Newly durable frames up to the VDL: visible to readers, and replies may go.
    HeadAdvances {
        vdl: LogEnd,
        frames: Vec<Frame>,
    },
    /// This region no longer writes, for good (in this incarnation).
    HeadStops {
        reason: String,
    },
    Gate(WriteGate),
    PrimaryIs(Option<RegionName>),
    /// Who is a member from here on.
    Members(Box<MembersView>),
    /// Where copies live; `None`: where the configuration says. One that is open elsewhere is closed and opened there.
    Places {
        places: BTreeMap<CopyId, Option<String>>,
    },
    /// The directories of `slot` in `place` have left the volume for good; those of `by` (one for each group) have the slot.
    Retired {
        slot: CopyId,
        place: Option<String>,
        by: Vec<Incarnation>,
    },
    Note(OperatorEvent),
}

/// Who this node is. The members are names only; who is primary is state.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cluster: ClusterName,
    pub region: RegionName,
    pub founder: RegionName,
    pub members: Vec<RegionName>,
    /// How this region reaches them, by its file.
    pub addrs: BTreeMap<RegionName, String>,
    /// The member without data that only votes.
    pub witness: Option<RegionName>,
    /// Leases and patience.
    pub control: control::Settings,
    pub version: String,
    /// How page space is cut, as configured; what counts is what the lineage was founded with.
    pub layout: Layout,
}

#[derive(Debug)]
enum Stage {
    Recovering,
    /// Control state is being kept on the copies before the log begins.
    Founding {
        lineage: LineageId,
    },
    /// The log goes on; the pen waits until its first frame is durable.
    Opening {
        pen: Option<Pen>,
    },
    /// This region reigned when its process ended. Readers wait until a majority says whether it still does.
    Closed {
        consistent: LogEnd,
    },
    /// The reign's first frame is on its way, or durable here, and a majority has not granted the reign yet.
    Pending,
    Leading,
    Following,
    /// The volume goes back to the last point that it has in common with the primary's.
    GoingBack {
        primary: RegionName,
    },
    /// Cannot go on; the sentence says why and what to do.
    Halted {
        reason: String,
    },
}

#[derive(Debug)]
pub struct Node {
    who: Identity,
    limits: Limits,
    prng: Prng,
    wall: UnixMicros,
    stage: Stage,
    /// Why writes stand still, or what recovery waits for.
    reason: Option<String>,
    control: Option<ControlState>,
    roles: Roles,
    counting: Option<back::Counting>,
    /// Log that was durable is missing here, as this region's copies show.
    lost: Option<LostLog>,
    /// What an old primary lost, and the core was not told yet.
    untold: Vec<LostTail>,
    committing: Committing,
    appender: Appender,
    leader: Leader,
    follower: Follower,
    links: BTreeMap<ConnId, RegionName>,
    /// When something last came on a link.
    heard: BTreeMap<ConnId, Instant>,
    /// Who asked for a read of the log or of pages: (connection, what its tag stands for).
    reads: BTreeMap<u64, ConnId>,
    next_tag: u64,
    oldest_pin: Lsn,
    event_no: u64,
    /// The last that was noted of each copy: one that fails in the same way every second is one event.
    copies_noted: BTreeMap<MemberId, String>,
    /// Copies that came with less than they once had, and are not up yet.
    copies_forgot: BTreeMap<MemberId, String>,
    effects: VecDeque<Effect>,
}

impl Node {
    /// Under which this region's copies are written: pages are read from copies that have heard of it.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.appender.generation()
    }

    #[must_use]
    pub fn new(who: Identity, limits: Limits, mut prng: Prng, wall: UnixMicros) -> Node {
        let reseedable = who.region != who.founder;
        let appender = Appender::new(limits.clone(), who.layout, prng.fork("appender"), wall, reseedable);
        let follower = Follower::new(&who, &limits, prng.fork("follower"), wall);
        Node {
            leader: Leader::default(),
            follower,
            who,
            limits,
            prng,
            wall,
            stage: Stage::Recovering,
            reason: None,
            control: None,
            roles: Roles::default(),
            counting: None,
            lost: None,
            untold: Vec::new(),
            committing: Committing::default(),
            appender,
            links: BTreeMap::new(),
            heard: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_tag: 1,
            oldest_pin: Lsn(u64::MAX),
            event_no: 0,
            copies_noted: BTreeMap::new(),
            copies_forgot: BTreeMap::new(),
            effects: VecDeque::new(),
        }
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let mut next = self.appender.next_timeout();
        let more = match &self.stage {
            Stage::Leading => self.leader.next_timeout(),
            Stage::Following => self.follower.next_timeout().into_iter().chain(self.leader.next_timeout()).min(),
            _ => None,
        };
        if let Some(at) = more {
            next = Some(next.map_or(at, |n| n.min(at)));
        }
        next.into_iter().chain(self.roles.next_timeout()).chain(self.committing.next_timeout()).min()
    }

    /// Takes one event. `wall` is this process's wall clock, for lag and for people.
    pub fn handle(&mut self, now: Instant, wall: UnixMicros, event: Event) {
        self.wall = wall;
        match event {
            Event::Member { from, message } => self.tell(now, Input::Message { from, message }),
            Event::SaidOut { by } => self.tell(now, Input::SaidOut { by }),
            Event::Order(order) => self.tell(now, Input::Order(order)),
            Event::ClockBroke { reason } => self.tell(now, Input::ClockBroke { reason }),
            Event::HeadDrained { op } => self.tell(now, Input::Drained { op }),
            Event::CopyOpened { copy, promised } => self.appender.copy_opened(now, copy, promised),
            Event::CopyLost { copy, reason } => self.appender.copy_lost(now, copy, reason),
            Event::CopyProves { copy, lineage, durable } => self.appender.copy_proves(copy, lineage, durable),
            Event::CopyReplied { copy, reply } => self.appender.handle_reply(now, copy, reply),
            Event::Submitted { frames } => {
                if matches!(self.stage, Stage::Leading) {
                    self.appender.append(now, frames);
                }
            }
            Event::HeadSees { end, written_at } => {
                self.follower.head_sees(now, wall, end, written_at);
                self.drain_follower(now);
            }
            Event::HeadPins { oldest } => self.oldest_pin = oldest,
            Event::Touched { archive, touched } => self.touched(now, archive, touched),
            Event::Linked { conn, peer, dialled } => self.linked(now, conn, peer, dialled),
            Event::Unlinked { conn, reason } => self.unlinked(now, conn, &reason),
            Event::DialFailed { region, reason } => self.follower.dial_failed(now, &region, reason),
            Event::Received { conn, message } => self.received(now, conn, message),
            Event::Timeout => {}
        }
        self.timers(now);
        self.drain_appender(now);
        self.drive_roles(now);
        self.judge_out(now);
        self.drain_appender(now);
    }

    fn timers(&mut self, now: Instant) {
        if self.appender.next_timeout().is_some_and(|t| now >= t) {
            self.appender.handle_timeout(now);
        }
        match &self.stage {
            Stage::Leading => {
                self.lead_timers(now);
                if self.committing.next_timeout().is_some_and(|at| now >= at) {
                    self.release(now);
                }
            }
            Stage::Following => {
                self.follow_timers(now);
                self.lead_timers(now);
            }
            _ => {}
        }
        let leads = matches!(self.stage, Stage::Leading) || self.leader.ships();
        let (log, pages) = if leads { self.leader.needs(now, &self.limits, self.who.members.len()) } else { (None, None) };
        let fork = if leads { self.leader.fork(now, &self.limits) } else { None };
        self.appender.set_needs(self.oldest_pin, pages, log, fork);
    }

    // ---- the volume's effects --------------------------------------------------------------------------------------

    fn drain_appender(&mut self, now: Instant) {
        while let Some(effect) = self.appender.poll_effect() {
            match effect {
                AppenderEffect::ToCopy { copy, request } => self.effects.push_back(Effect::ToCopy { copy, request }),
                AppenderEffect::Recovered { found } => self.recovered(now, found),
                AppenderEffect::RecoveryBeginsAnew => {
                    self.note(
                        "recovery_anew",
                        "the only copy with the newest, never acknowledged frames is lost; recovering without it".into(),
                    );
                    self.recover_for_the_same();
                    self.stage = Stage::Recovering;
                }
                AppenderEffect::RecoveryWaits { reason, control } => {
                    // Copies of a group that was never founded are empty for ever: that is said before anybody waits for them.
                    if !self.founded_like_this(ControlState::decode(&control).as_ref()) {
                        continue;
                    }
                    self.note("recovery_waits", reason.clone());
                    self.reason = Some(reason);
                }
                AppenderEffect::Restarted { vdl } => self.restarted(now, vdl),
                AppenderEffect::Durable { vdl, frames } => self.durable(now, vdl, frames),
                AppenderEffect::Rewound { at } => self.rewound(now, at),
                AppenderEffect::RewindImpossible { reason } => self.cannot_rewind(&reason),
                AppenderEffect::ControlDurable => self.control_durable(now),
                AppenderEffect::Places { places } => self.effects.push_back(Effect::Places { places }),
                AppenderEffect::Retired { slot, place, by } => {
                    let lives = self.appender.lives_in(slot).map_or_else(|| "its configured place".to_owned(), str::to_owned);
                    let left = place.clone().unwrap_or_else(|| "its configured place".to_owned());
                    self.note(
                        "copy_replaced",
                        format!("copy {slot} lives in {lives} for good; what lies in {left} takes no part any more"),
                    );
                    self.effects.push_back(Effect::Retired { slot, place, by });
                }
                AppenderEffect::QuorumLost { reason, until } => {
                    self.note("quorum_lost", format!("writes are stopped: {reason}. They resume by themselves {until}"));
                    // Whoever shows it says first that writes are stopped.
                    self.roles.quorum_lost = Some(format!("{reason}; writes resume by themselves {until}"));
                    self.say_gate();
                }
                AppenderEffect::QuorumRegained => {
                    if self.roles.quorum_lost.take().is_some() {
                        self.note("quorum_regained", "four copies take writes again".into());
                    }
                    self.say_gate();
                }
                AppenderEffect::CopyChanged { copy, health } => self.copy_changed(copy, &health),
                AppenderEffect::Fenced { promised } => {
                    let reason = format!(
                        "generation {promised} took over this region's copies; this process is fenced. Stop it, and look for the other one"
                    );
                    self.note("fenced", reason.clone());
                    self.effects.push_back(Effect::HeadStops { reason: reason.clone() });
                    self.stage = Stage::Halted { reason };
                }
                AppenderEffect::Log { tag, outcome } => {
                    if self.counted(now, tag, &outcome) {
                        continue;
                    }
                    if let Some(conn) = self.reads.remove(&tag) {
                        self.lead_log(now, conn, outcome);
                    }
                }
                AppenderEffect::Pages { tag, outcome } => {
                    if let Some(conn) = self.reads.remove(&tag) {
                        self.lead_pages(now, conn, outcome);
                    }
                }
                AppenderEffect::CopyForgot { copy, what } => {
                    let what = format!(
                        "what lies at copy {copy} is older than what it once acknowledged: {what}. An old backup or snapshot was put back, or its disk                          lost writes. It counts no more as what it was, gets what it lacks from the others, and is a new member then"
                    );
                    self.copies_forgot.insert(copy, what.clone());
                    self.note("copy_forgot", what);
                }
                AppenderEffect::LogLost { copy, lost } => self.log_lost_late(now, copy, lost),
                AppenderEffect::CopyDamaged { copy, damage } => {
                    let then = if damage.healed { "it was written again from memory" } else { "it is rebuilt from its peers" };
                    self.note("copy_damaged", format!("copy {copy}: {damage}; {then}"));
                }
                AppenderEffect::Undecided { reason } => {
                    let what = format!("{reason}; nothing is repaired. Stop the region and run: parhelion volume verify");
                    self.note("copies_differ", what);
                }
                AppenderEffect::Scrubbed { group } => self.scrubbed(group),
                AppenderEffect::SeedStalled => {
                    self.follower.give_up_seed();
                    // Also one whose hello offered to go on with it: the answer would be that (seed 9000374).
                    if let Some(conn) = self.follower.link() {
                        self.unlink(now, conn, "the seed was lost here; it begins anew".into());
                    }
                }
                AppenderEffect::SeedStored { step } => {
                    if self.follower.seed_stored(now, step) {
                        self.note("seeding_done", format!("the volume stands at {}", self.appender.end()));
                    }
                    self.drain_follower(now);
                }
            }
        }
    }

    fn recovered(&mut self, now: Instant, found: Found) {
        let (bytes, has_log) = match &found {
            Found::Empty { control } => (control, false),
            Found::Log { control, .. } => (control, true),
        };
        self.reason = None;
        if self.roles.is_begun() {
            return self.recovered_again(now, &found);
        }
        self.control = ControlState::decode(bytes);
        let control = self.control.clone();
        if !self.founded_like_this(control.as_ref()) {
            return;
        }
        let voter = control.as_ref().map(|c| c.voter.clone());
        self.committing.rules = control.as_ref().map(|c| c.rules).unwrap_or_default();
        self.roles.reign = control.as_ref().and_then(ControlState::top).map(|(epoch, primary)| (epoch, primary.clone()));
        let start = control::start(&self.who.region, &self.who.founder, self.control.as_ref(), has_log);
        match (start, found) {
            (Start::Closed, Found::Log { consistent, end, lost, .. }) => {
                self.note("recovered", format!("the log ends at {end}; asking a majority whether this region is still the primary"));
                self.reason = Some("it was the primary and asks a majority of the voters whether it still is".into());
                self.lost = lost;
                self.roles.holds_commits = true;
                self.stage = Stage::Closed { consistent };
                self.begin_roles(now, voter);
            }
            // A founding that crashed before its first frame: the same lineage goes on. Its state may lie on one copy only: four must keep it
            // before there is a log that asks for it (seed 700236).
            (Start::FoundAgain { lineage }, _) => {
                self.roles.holds_commits = true;
                self.stage = Stage::Founding { lineage };
                self.put_again();
            }
            (Start::Found, _) => {
                let lineage = LineageId((u128::from(self.prng.next_u64()) << 64) | u128::from(self.prng.next_u64()));
                let voters = VoterSet::founding(&self.who.region, &self.who.members, self.who.witness.as_ref());
                let voter = VoterState::founding(lineage, &self.who.region, voters, self.wall);
                self.control = Some(ControlState { layout: self.who.layout, rules: self.committing.rules, voter });
                self.roles.holds_commits = true;
                self.stage = Stage::Founding { lineage };
                self.put_again();
            }
            (Start::Follow, Found::Log { end, consistent, lost, .. }) => {
                self.note("recovered", format!("the log ends at {end}; following"));
                if let Some(lost) = &lost {
                    self.note(
                        "log_lost",
                        format!("this region's copies have lost log that was durable: {lost}. The primary has it, and it comes again"),
                    );
                }
                self.lost = lost;
                self.look_for_the_known();
                self.stage = Stage::Opening { pen: None };
                self.appender.follow(now, consistent);
                self.begin_roles(now, voter);
            }
            (Start::Closed | Start::Follow | Start::Join, _) => {
                self.look_for_the_known();
                self.note("joining", "the six copies are empty; looking for the primary to be seeded".into());
                self.stage = Stage::Following;
                self.begin_roles(now, voter);
            }
            (Start::Refuse { reason }, _) => {
                self.note("halted", reason.clone());
                self.stage = Stage::Halted { reason };
            }
        }
    }

    /// This process recovered before, and knows more than what it finds: it became something else, or the log it had chosen was lost.
    fn recovered_again(&mut self, now: Instant, found: &Found) {
        self.put_again();
        let Found::Log { consistent, lost, .. } = found else {
            self.stage = Stage::Following;
            return;
        };
        self.lost.clone_from(lost);
        match self.roles.intent.take() {
            // What this process made durable, or the one before it, is not there any more.
            Some(Intent::Resume(epoch)) if self.lost.is_some() => {
                self.stage = Stage::Closed { consistent: *consistent };
                self.tell_lost(now);
                self.tell_log(now);
                self.tell(now, Input::PromotionFailed { epoch, reason: "its copies have lost log that was durable".into() });
            }
            Some(intent) => self.lead(now, intent, *consistent),
            None => {
                self.stage = Stage::Opening { pen: None };
                self.appender.follow(now, *consistent);
            }
        }
    }

    /// The log that was chosen is gone: what this region was about to become it is about to become again.
    fn recover_for_the_same(&mut self) {
        if self.roles.intent.is_none()
            && let Stage::Opening { pen: Some(pen) } = &self.stage
        {
            self.roles.intent = Some(Intent::Resume(pen.epoch()));
        }
    }

    fn look_for_the_known(&mut self) {
        if let Some((_, primary)) = self.roles.reign.clone().filter(|(_, p)| *p != self.who.region) {
            self.follower.primary_is(primary.clone());
            self.effects.push_back(Effect::PrimaryIs(Some(primary)));
        }
    }

    /// `false`, and it halts: the configuration cuts page space otherwise than the lineage was founded with.
    fn founded_like_this(&mut self, control: Option<&ControlState>) -> bool {
        let Some(founded) = control.map(|c| c.layout).filter(|l| *l != self.who.layout) else {
            return !matches!(self.stage, Stage::Halted { .. });
        };
        if !matches!(self.stage, Stage::Halted { .. }) {
            let reason = format!(
                "the global cluster was founded with {founded} and [volume] in the configuration of {} says {}; put back what it was founded \
                 with, it cannot be changed",
                self.who.region, self.who.layout
            );
            self.note("halted", reason.clone());
            self.stage = Stage::Halted { reason };
        }
        false
    }

    fn control_durable(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Founding { .. }) && !self.roles.is_begun() {
            // What this member founds is kept before anybody hears of it.
            let voter = self.control.as_ref().map(|c| c.voter.clone());
            return self.begin_roles(now, voter);
        }
        self.control_kept(now);
    }

    fn open_founded(&mut self, now: Instant, lineage: LineageId) {
        self.note("founded", format!("global cluster {} of lineage {lineage}, primary {}", self.who.cluster, self.who.region));
        let pen = self.appender.found(now, self.wall, lineage);
        self.stage = Stage::Opening { pen: Some(pen) };
    }

    /// The volume's log is durable again, up to `vdl`.
    fn restarted(&mut self, now: Instant, vdl: LogEnd) {
        if !self.roles.unsettled {
            self.effects.push_back(Effect::HeadReset { at: vdl });
        }
        match std::mem::replace(&mut self.stage, Stage::Recovering) {
            Stage::Opening { pen: Some(pen) } => self.pend(now, pen, vdl),
            Stage::Opening { pen: None } | Stage::Following => {
                self.stage = Stage::Following;
                self.follower.restarted(now, self.wall, vdl);
                self.tell_log(now);
            }
            other => self.stage = other,
        }
    }

    fn durable(&mut self, now: Instant, vdl: LogEnd, frames: Vec<Frame>) {
        match self.stage {
            Stage::Leading => {
                self.tell_log(now);
                self.tell(now, Input::CommitPathMoved);
                self.lead_pump(now, &vdl);
                self.judge_sealed(now, &vdl);
                return self.commit(now, vdl, frames);
            }
            Stage::Pending => self.reign_is_durable(now, vdl),
            Stage::Following => {
                self.follower.durable(now, self.wall, &vdl, &frames);
                self.tell_log(now);
                if self.leader.ships() {
                    self.lead_pump(now, &vdl);
                }
                self.judge_caught_up(now);
            }
            _ => {}
        }
        if !self.roles.unsettled {
            self.effects.push_back(Effect::HeadAdvances { vdl, frames });
        }
    }

    fn scrubbed(&mut self, group: GroupId) {
        let copies = self.appender.copies();
        let (read, found) =
            copies.iter().filter(|c| c.copy.group == group).fold((0, 0), |(r, f), c| (r + c.scrub.read_bytes, f + c.scrub.found));
        let what = format!("a scrub of the six copies ended: {read} bytes read, {found} found damaged");
        self.note("scrubbed", what);
    }

    fn copy_changed(&mut self, copy: MemberId, health: &CopyHealth) {
        let (kind, what) = match health {
            CopyHealth::Down { reason } => ("copy_down", format!("copy {copy} is down: {reason}")),
            CopyHealth::Up => {
                self.copies_forgot.remove(&copy);
                ("copy_up", format!("copy {copy} is up"))
            }
            CopyHealth::Seeding => ("copy_seeding", format!("copy {copy} is being rebuilt")),
            CopyHealth::Starting | CopyHealth::CatchingUp => return,
        };
        if self.copies_noted.get(&copy) != Some(&what) {
            self.note(kind, what.clone());
            self.copies_noted.insert(copy, what);
        }
    }

    // ---- links -----------------------------------------------------------------------------------------------------

    fn linked(&mut self, now: Instant, conn: ConnId, peer: RegionName, dialled: bool) {
        self.links.insert(conn, peer.clone());
        if dialled {
            let epoch = self.epoch();
            let lineage = self.lineage();
            let hello = self.follower.hello(now, conn, &self.who, &self.appender, lineage, epoch);
            if let (Stage::Following, Some(message)) = (&self.stage, hello) {
                self.effects.push_back(Effect::Send { conn, message });
            } else {
                self.effects.push_back(Effect::Unlink { conn, reason: "this region does not look for a primary now".into() });
            }
        }
    }

    fn unlinked(&mut self, now: Instant, conn: ConnId, reason: &str) {
        self.links.remove(&conn);
        self.heard.remove(&conn);
        self.reads.retain(|_, c| *c != conn);
        if let Some(region) = self.leader.unlinked(now, self.wall, conn) {
            self.note("secondary_disconnected", format!("{region}: {reason}"));
            // Whether commits may go on without it is a matter of the rules, also while none waits.
            self.release(now);
        }
        if let Some(primary) = self.follower.unlinked(now, self.wall, conn) {
            self.note("primary_disconnected", format!("{primary}: {reason}"));
        }
    }

    fn unlink(&mut self, now: Instant, conn: ConnId, reason: String) {
        self.effects.push_back(Effect::Unlink { conn, reason: reason.clone() });
        self.unlinked(now, conn, &reason);
    }

    fn received(&mut self, now: Instant, conn: ConnId, message: Message) {
        let Some(peer) = self.links.get(&conn).cloned() else { return };
        self.heard.insert(conn, now);
        if self.leader.has(conn) {
            self.lead_received(now, conn, message);
        } else if self.follower.is_on(conn) {
            self.follow_received(now, conn, message);
        } else if let Message::Control(crate::ship::wire::Control::Hello(hello)) = message {
            self.greet(now, conn, &peer, &hello);
        }
        // Anything else on a link without a conversation is late: its conversation is over.
    }

    fn refuse(&mut self, conn: ConnId, refusal: Refusal, region: &RegionName) {
        self.note("refused", format!("region {region} may not follow: {refusal}"));
        self.effects.push_back(Effect::Send { conn, message: Message::Control(crate::ship::wire::Control::Refused(refusal)) });
    }

    fn tag_for(&mut self, conn: ConnId) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.reads.insert(tag, conn);
        tag
    }

    // ---- what an operator orders -----------------------------------------------------------------------------------

    /// Begins to replace the copy of `slot` by new directories in `place`, `candidate`: one for each group.
    ///
    /// # Errors
    /// A sentence that says why not, or what it waits for.
    pub fn replace_copy(&mut self, now: Instant, slot: CopyId, candidate: Vec<Incarnation>, place: String) -> Result<String, String> {
        let step = self.appender.replacement(slot, candidate, place.clone())?;
        let what = format!("copy {slot} is to be replaced by a new one in {place}");
        self.tell(now, Input::Audit(Action { actor: "an operator of this region".into(), op: None, kind: "copy", what }));
        self.drive_roles(now);
        self.appender.take_step(step);
        self.note("copy_replacing", format!("copy {slot} is being replaced by a new one in {place}"));
        self.drain_appender(now);
        Ok(format!(
            "copy {slot} is being replaced by a new one in {place}, which is rebuilt from the others while writes go on; \
             `parhelion copy list` shows how far it is, `parhelion copy replace {slot} --cancel` goes back"
        ))
    }

    /// Goes back to the copy that is being replaced.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn cancel_replace(&mut self, now: Instant, slot: CopyId) -> Result<String, String> {
        let step = self.appender.cancellation(slot)?;
        let what = format!("copy {slot} is not to be replaced any more");
        self.tell(now, Input::Audit(Action { actor: "an operator of this region".into(), op: None, kind: "copy", what }));
        self.drive_roles(now);
        self.appender.take_step(step);
        self.note("copy_replace_cancelled", format!("copy {slot} is not replaced: it comes back and catches up"));
        self.drain_appender(now);
        Ok(format!("copy {slot} is not replaced: it comes back and catches up by itself"))
    }

    // ---- what others see -------------------------------------------------------------------------------------------

    fn note(&mut self, kind: &str, what: String) {
        self.note_of(kind, what, None, None);
    }

    /// As [`Self::note`], of an operation.
    fn note_of(&mut self, kind: &str, what: String, op: Option<(&OpId, &str)>, duration_ms: Option<u64>) {
        self.event_no += 1;
        let event = OperatorEvent {
            no: self.event_no,
            at: self.wall,
            region: self.who.region.clone(),
            kind: kind.into(),
            epoch: self.epoch(),
            durable_lsn: self.appender.vdl().end_lsn,
            what,
            op: op.map(|(id, _)| id.to_string()),
            actor: op.map(|(_, actor)| actor.to_owned()),
            duration_ms,
        };
        self.effects.push_back(Effect::Note(event));
    }

    fn epoch(&self) -> Epoch {
        self.roles.reign.as_ref().map_or(Epoch(0), |(epoch, _)| *epoch)
    }

    /// What this region says of itself now.
    #[must_use]
    pub fn report(&self, now: Instant, wall: UnixMicros) -> RegionReport {
        let role = match &self.stage {
            Stage::Leading | Stage::Founding { .. } | Stage::Pending | Stage::Opening { pen: Some(_) } => Role::Primary,
            Stage::Following | Stage::GoingBack { .. } | Stage::Opening { pen: None } => Role::Secondary,
            // Its copies say it was the primary, and only a majority can say that it is.
            Stage::Closed { .. } => Role::Unknown,
            Stage::Recovering | Stage::Halted { .. } => match &self.roles.reign {
                Some((_, primary)) if *primary == self.who.region => Role::Primary,
                Some(_) => Role::Secondary,
                None => Role::Unknown,
            },
        };
        let (state, reason) = match &self.stage {
            Stage::Leading if self.appender.has_quorum() && now < self.lease_until() => (RegionState::Writable, self.committing.pause()),
            Stage::Leading => (RegionState::Fenced, self.roles.stopped().or_else(|| Some("it waits for its lease".into()))),
            Stage::Halted { reason } => (RegionState::Fenced, Some(reason.clone())),
            Stage::Following if self.roles.lost().is_some() => (RegionState::Fenced, self.roles.lost().map(str::to_owned)),
            Stage::Following => self.follower.state(now, &self.limits, &self.appender),
            Stage::GoingBack { primary } => {
                (RegionState::CatchingUp, Some(format!("what {primary} does not have is archived and cut; then this region follows it")))
            }
            Stage::Closed { .. } if self.roles.lost().is_some() => (RegionState::Fenced, self.roles.lost().map(str::to_owned)),
            Stage::Recovering | Stage::Founding { .. } | Stage::Opening { .. } | Stage::Closed { .. } | Stage::Pending => {
                (RegionState::Starting, self.reason.clone())
            }
        };
        let out = self.roles.out();
        let (state, reason) = if out.is_some() { (RegionState::Fenced, out) } else { (state, reason) };
        let vdl = self.appender.vdl();
        let ago = |at: Instant| UnixMicros(wall.0.saturating_sub(u64::try_from(now.since(at).as_micros()).unwrap_or(u64::MAX)));
        let copies = self.appender.copies().into_iter().map(|c| {
            let (state, reason) = match c.health {
                CopyHealth::Starting => ("starting", None),
                CopyHealth::Up => ("up", None),
                CopyHealth::CatchingUp => ("catching_up", None),
                CopyHealth::Seeding => ("seeding", None),
                CopyHealth::Down { reason } => ("down", Some(reason)),
            };
            let replacing = self.appender.replacing().filter(|r| r.slot == c.copy.copy);
            let low = || {
                c.low.then(|| "its disk is almost full: make room there; new writes stop when fewer than four copies have any".to_owned())
            };
            let reason = reason.or_else(|| self.copies_forgot.get(&c.copy).cloned()).or_else(low).or_else(|| {
                replacing.map(|r| {
                    format!("takes the slot of the copy before it, in {}; `parhelion copy replace {} --cancel` goes back", r.place, r.slot)
                })
            });
            CopyReport {
                name: c.copy.to_string(),
                group: c.copy.group.0,
                az: c.copy.copy.az().to_string(),
                state: state.into(),
                durable_lsn: c.durable_end.end_lsn,
                reason,
                place: self.appender.lives_in(c.copy.copy).map(str::to_owned),
                damage: c.damage.as_ref().map(ToString::to_string),
                repair: c.repair.map(|r| report::RepairReport {
                    since: ago(r.began),
                    pages: r.pages,
                    pages_in_all: r.pages_in_all,
                    bytes: r.bytes,
                    bytes_per_s: u64::try_from(u128::from(r.bytes) * 1000 / now.since(r.began).as_millis().max(1))
                        .ok()
                        .filter(|_| r.pages > 0),
                }),
                scrub: report::ScrubReport {
                    running: c.scrub.running,
                    ended_at: c.scrub.ended.map(ago),
                    read_bytes: c.scrub.read_bytes,
                    pages: c.scrub.pages,
                    found: c.scrub.found,
                    found_total: c.kept.found,
                    repaired_total: c.kept.repaired,
                    lost_writes_total: c.kept.lost_writes,
                },
                low_on_room: c.low,
            }
        });
        RegionReport {
            cluster: self.who.cluster.to_string(),
            region: self.who.region.clone(),
            version: self.who.version.clone(),
            role,
            state,
            reason,
            epoch: self.epoch(),
            lineage: self.lineage().map(Into::into),
            primary: self.roles.reign.as_ref().map(|(_, primary)| primary.clone()),
            reported_at: wall,
            written_lsn: self.appender.end().end_lsn,
            durable_lsn: vdl.end_lsn,
            visible_lsn: if role == Role::Secondary { self.follower.visible() } else { vdl.end_lsn },
            oldest_read_view_lsn: self.oldest_pin.min(vdl.end_lsn),
            disconnected_since: if role == Role::Secondary { self.follower.disconnected_since() } else { None },
            lag: if role == Role::Secondary { self.follower.lag(now, wall) } else { report::LagReport::default() },
            catching_up: if role == Role::Primary { None } else { self.follower.catching_up() },
            retention: self.retention(),
            copies: copies.collect(),
            volume: report::VolumeReport::of(self.who.layout),
            readers: u32::from(!self.roles.hidden),
            secondaries: if matches!(self.stage, Stage::Leading) { self.leader.report(now, &self.limits, vdl) } else { Vec::new() },
            control: self
                .control_view(now)
                .map(|view| Box::new(report::ControlReport::of(&self.who.region, &view, self.ledger(), Some(self.rules())))),
        }
    }

    /// Whether recovery has chosen a log and goes on with it. From then on a copy that cannot be opened may be moved aside and rebuilt:
    /// also before anything is durable again, which with three damaged copies takes one of them.
    #[must_use]
    pub fn rebuilds_copies(&self) -> bool {
        *self.appender.phase() == VolumePhase::Serving
    }

    fn retention(&self) -> report::RetentionReport {
        let kept = self.appender.retention();
        let held_by = match kept.held_by {
            HeldBy::Time => "time",
            HeldBy::Reader => "reader",
            HeldBy::Seed => "seed",
            HeldBy::Fork => "fork",
            HeldBy::Repair => "repair",
            HeldBy::Budget => "budget",
        };
        report::RetentionReport {
            versions_bytes: kept.versions_bytes,
            versions_bytes_max: kept.versions_bytes_max,
            versions_s: self.limits.version_retain.as_secs(),
            held_by: held_by.into(),
            log_bytes: kept.log_bytes,
            log_bytes_max: kept.log_bytes_max,
            log_s: self.limits.log_retain.as_secs(),
        }
    }

    /// A copy is being replaced, or the end of that is still being recorded: four of the other five are needed.
    #[must_use]
    pub fn is_replacing(&self) -> bool {
        self.appender.is_changing()
    }

    /// Whether this region's readers have something to read.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        matches!(self.stage, Stage::Leading | Stage::Pending | Stage::Following)
            && !self.roles.unsettled
            && self.roles.out().is_none()
            && *self.appender.phase() == VolumePhase::Serving
            && *self.appender.vdl() != LogEnd::EMPTY
    }

    /// The region's end of the log and its VDL, for checkers and status.
    #[must_use]
    pub fn log_positions(&self) -> (LogEnd, LogEnd) {
        (*self.appender.end(), *self.appender.vdl())
    }
}
