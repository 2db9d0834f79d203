//! The secondary's side: finding the primary, saying hello, taking over what comes, measuring the lag.
//!
//! Story: a secondary dials the primary it knows of, or one member after the other; a region that is not the primary names the
//! one it knows. After the welcome, what it learned of the reign is kept on four copies before a frame is taken over.

use super::report::{LagReport, RegionState};
use super::{Effect, Identity, Node};
use crate::base::{ConnId, Epoch, Instant, Limits, LineageId, LogEnd, Lsn, Prng, RegionName, UnixMicros};
use crate::log::{Flags, Frame};
use crate::ship::catchup::{RateMeter, estimate_bytes};
use crate::ship::wire::Control;
use crate::ship::{
    BEHIND_BYTES, CatchUpKind, CatchUpReport, HeartbeatReply, Hello, LagMeter, Message, Position, Receiver, ReceiverEffect, Refusal, Seed,
    SeedStep,
};
use crate::volume::{Appender, VolumePhase};
use std::time::Duration;

const DIAL_TIMEOUT: Duration = Duration::from_secs(8);
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// After a refusal: its cause is for an operator to mend.
const RETRY_REFUSED: Duration = Duration::from_secs(5);
/// Heartbeats come every 100 ms; without one for so long the primary counts as disconnected.
const SILENT_AFTER: Duration = Duration::from_secs(2);
const SHORT_OF_ROOM: &str = "the disks of the copies here are almost full; make room, then this region goes on by itself where it was";
/// Messages kept that came before the welcome.
const EARLY_MESSAGES_MAX: usize = 256;

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one per node, and it is Following for nearly all of its life")]
enum Contact {
    Waiting { until: Instant },
    Dialling { region: RegionName, since: Instant },
    Greeting { conn: ConnId, region: RegionName, since: Instant, early: Vec<Message> },
    Following(Following),
}

#[derive(Debug)]
struct Following {
    conn: ConnId,
    primary: RegionName,
    receiver: Receiver,
    last_heartbeat: Instant,
}

#[derive(Debug)]
pub(super) struct Follower {
    candidates: Vec<RegionName>,
    next_candidate: usize,
    known_primary: Option<RegionName>,
    contact: Contact,
    retry: Duration,
    prng: Prng,
    lag: LagMeter,
    /// Whose heartbeats it measured.
    measured: Option<RegionName>,
    durable: LogEnd,
    visible: LogEnd,
    last_moved: Instant,
    last_commit: Option<Instant>,
    disconnected_since: Option<UnixMicros>,
    /// What the last attempt came to.
    last_trouble: Option<String>,
    /// A seed whose link was lost. What was taken over of it stays: the next hello says so.
    unfinished: Option<Seed>,
    meter: RateMeter,
    /// Where the present catching-up by log began.
    behind_since: Option<Lsn>,
    /// This region is about to take over, and fetches what another secondary has more: from whom, up to where, until when.
    pub(super) catching_up_to: Option<(RegionName, LogEnd, Instant)>,
}

impl Follower {
    pub(super) fn new(who: &Identity, limits: &Limits, prng: Prng, wall: UnixMicros) -> Follower {
        Follower {
            candidates: who.members.iter().filter(|m| **m != who.region).cloned().collect(),
            next_candidate: 0,
            known_primary: None,
            contact: Contact::Waiting { until: Instant::ZERO },
            retry: RETRY_MIN,
            prng,
            lag: LagMeter::new(limits.heartbeat_every, wall),
            measured: None,
            durable: LogEnd::EMPTY,
            visible: LogEnd::EMPTY,
            last_moved: Instant::ZERO,
            last_commit: None,
            disconnected_since: Some(wall),
            last_trouble: None,
            unfinished: None,
            meter: RateMeter::default(),
            behind_since: None,
            catching_up_to: None,
        }
    }

    /// Whom to dial while no primary is known.
    pub(super) fn candidates_are(&mut self, candidates: Vec<RegionName>) {
        self.candidates = candidates;
    }

    pub(super) fn primary_is(&mut self, primary: RegionName) {
        self.known_primary = Some(primary);
    }

    pub(super) fn is_on(&self, conn: ConnId) -> bool {
        match &self.contact {
            Contact::Greeting { conn: c, .. } => *c == conn,
            Contact::Following(f) => f.conn == conn,
            _ => false,
        }
    }

    /// A later reign's primary: it is dialled at once.
    pub(super) fn look_for(&mut self, now: Instant, primary: RegionName) {
        self.retry = RETRY_MIN;
        // Somebody else is being asked who does not reign.
        let elsewhere = match &self.contact {
            Contact::Waiting { .. } => true,
            Contact::Dialling { region, .. } | Contact::Greeting { region, .. } => *region != primary,
            Contact::Following(_) => false,
        };
        if elsewhere {
            self.contact = Contact::Waiting { until: now };
        }
        self.known_primary = Some(primary);
    }

    /// Everything up to this time of the primary's clock is durable here.
    pub(super) fn covers(&self) -> Option<UnixMicros> {
        self.lag.covers()
    }

    /// With whom this region speaks, as one that follows or wants to.
    pub(super) fn partner(&self) -> Option<&RegionName> {
        match &self.contact {
            Contact::Greeting { region, .. } => Some(region),
            Contact::Following(f) => Some(&f.primary),
            Contact::Waiting { .. } | Contact::Dialling { .. } => None,
        }
    }

    /// The link of the conversation with the primary, or with one that may be.
    pub(super) fn any_conn(&self) -> Option<ConnId> {
        match &self.contact {
            Contact::Greeting { conn, .. } => Some(*conn),
            Contact::Following(f) => Some(f.conn),
            Contact::Waiting { .. } | Contact::Dialling { .. } => None,
        }
    }

    /// The link on which this region follows.
    pub(super) fn conn(&self) -> Option<ConnId> {
        if let Contact::Following(f) = &self.contact { Some(f.conn) } else { None }
    }

    /// The link on which this region follows, or has said how far it is and waits for the answer.
    pub(super) fn link(&self) -> Option<ConnId> {
        if let Contact::Greeting { conn, .. } = &self.contact { Some(*conn) } else { self.conn() }
    }

    pub(super) fn visible(&self) -> Lsn {
        self.visible.end_lsn
    }

    pub(super) fn disconnected_since(&self) -> Option<UnixMicros> {
        self.disconnected_since
    }

    pub(super) fn lag(&self, now: Instant, wall: UnixMicros) -> LagReport {
        self.lag.report(now, wall)
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let fetched = self.catching_up_to.as_ref().map(|(_, _, until)| *until);
        self.contact_timeout().into_iter().chain(fetched).min()
    }

    fn contact_timeout(&self) -> Option<Instant> {
        match &self.contact {
            Contact::Waiting { until } => Some(*until),
            Contact::Dialling { since, .. } => Some(*since + DIAL_TIMEOUT),
            Contact::Greeting { since, .. } => Some(*since + HELLO_TIMEOUT),
            Contact::Following(f) => self.disconnected_since.is_none().then_some(f.last_heartbeat + SILENT_AFTER),
        }
    }

    fn wait(&mut self, now: Instant, at_least: Duration) {
        // Jitter, so that five secondaries do not come back in one instant.
        let spread = self.prng.below(u64::try_from(self.retry.as_nanos()).unwrap_or(u64::MAX) / 2 + 1);
        self.contact = Contact::Waiting { until: now + self.retry.max(at_least) + Duration::from_nanos(spread) };
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    pub(super) fn dial_failed(&mut self, now: Instant, region: &RegionName, reason: String) {
        if matches!(&self.contact, Contact::Dialling { region: r, .. } if r == region) {
            self.last_trouble = Some(format!("{region} cannot be reached: {reason}"));
            self.next_candidate += 1;
            self.wait(now, RETRY_MIN);
        }
    }

    /// The first word on a link that this side dialled.
    pub(super) fn hello(
        &mut self,
        now: Instant,
        conn: ConnId,
        who: &Identity,
        appender: &Appender,
        lineage: Option<LineageId>,
        epoch: Epoch,
    ) -> Option<Message> {
        let Contact::Dialling { region, .. } = &self.contact else { return None };
        let region = region.clone();
        self.greet(now, conn, region);
        Some(self.first_word(who, appender, lineage, epoch))
    }

    /// A conversation begins, on a link that is there.
    pub(super) fn greet(&mut self, now: Instant, conn: ConnId, region: RegionName) {
        self.contact = Contact::Greeting { conn, region, since: now, early: Vec::new() };
    }

    pub(super) fn first_word(&mut self, who: &Identity, appender: &Appender, lineage: Option<LineageId>, epoch: Epoch) -> Message {
        let position = match (appender.phase(), lineage) {
            (VolumePhase::Serving, Some(lineage)) => Some(Position { lineage, end: *appender.end(), history: appender.history().clone() }),
            _ => None,
        };
        // Only what the volume still holds the steps of can go on.
        let taken = appender.seed_taken();
        self.unfinished = self.unfinished.take().filter(|s| taken == Some((s.base().end, s.steps_taken())));
        let unfinished = self.unfinished.as_ref().map(Seed::unfinished);
        let (cluster, region) = (who.cluster.clone(), who.region.clone());
        Message::Control(Control::Hello(Hello {
            cluster,
            region,
            epoch,
            layout: who.layout,
            position,
            unfinished,
            catches_up: self.catching_up_to.is_some(),
        }))
    }

    /// The link is gone. The primary's name when this ended a following.
    pub(super) fn unlinked(&mut self, now: Instant, wall: UnixMicros, conn: ConnId) -> Option<RegionName> {
        if !self.is_on(conn) {
            return None;
        }
        let was = if let Contact::Following(f) = &mut self.contact {
            self.unfinished = f.receiver.interrupted().or(self.unfinished.take());
            Some(f.primary.clone())
        } else {
            None
        };
        self.disconnected_since.get_or_insert(wall);
        self.lag.disconnected(wall);
        self.wait(now, RETRY_MIN);
        was
    }

    /// The volume stands at `vdl` (recovered or seeded).
    pub(super) fn restarted(&mut self, now: Instant, wall: UnixMicros, vdl: LogEnd) {
        self.durable = vdl;
        self.last_moved = now;
        self.lag.durable(now, wall, &vdl, None, None);
    }

    pub(super) fn durable(&mut self, now: Instant, wall: UnixMicros, vdl: &LogEnd, frames: &[Frame]) {
        self.durable = *vdl;
        self.last_moved = now;
        let written_at = frames.last().map(|f| f.header().source_time);
        let committed_at = frames.iter().rev().find(|f| f.header().flags.has(Flags::USER_COMMIT)).map(|f| f.header().source_time);
        if committed_at.is_some() {
            self.last_commit = Some(now);
        }
        self.lag.durable(now, wall, vdl, written_at, committed_at);
    }

    pub(super) fn head_sees(&mut self, now: Instant, wall: UnixMicros, end: LogEnd, written_at: Option<UnixMicros>) {
        self.visible = end;
        self.lag.visible(now, wall, &end, written_at);
        let durable = self.durable;
        if let Contact::Following(f) = &mut self.contact {
            f.receiver.progress(durable, end.end_lsn);
        }
    }

    /// A step of the seed is on four copies; `true` when the region has all of it.
    pub(super) fn seed_stored(&mut self, now: Instant, step: u64) -> bool {
        match &mut self.contact {
            Contact::Following(f) if f.receiver.seed().is_some() => {
                self.meter.observe(now, f.receiver.seed().map_or(0, Seed::bytes), 0);
                f.receiver.seed_stored(step)
            }
            // Between two links what was taken over goes on becoming durable.
            _ => {
                let whole = self.unfinished.as_mut().is_some_and(|s| s.stored(step));
                if whole {
                    self.unfinished = None;
                }
                whole
            }
        }
    }

    /// The seed under way cannot be finished: the next one begins anew.
    pub(super) fn give_up_seed(&mut self) {
        self.unfinished = None;
        if let Contact::Following(f) = &mut self.contact {
            f.receiver.interrupted();
        }
    }

    /// Far behind in the log is catching up, until everything of the moment is here.
    fn judge_behind(&mut self, now: Instant) {
        let vdl = self.lag.primary_vdl().end_lsn;
        let behind = vdl.bytes_since(self.durable.end_lsn);
        match self.behind_since {
            None if behind > BEHIND_BYTES && self.durable != LogEnd::EMPTY => {
                self.meter.clear();
                self.behind_since = Some(self.durable.end_lsn);
            }
            Some(_) if behind <= BEHIND_BYTES / 4 => self.behind_since = None,
            _ => {}
        }
        if let Some(from) = self.behind_since {
            self.meter.observe(now, self.durable.end_lsn.bytes_since(from), vdl.bytes_since(from));
        }
    }

    /// How far this region is, while it gets pages or is far behind in the log. Also between two links.
    pub(super) fn catching_up(&self) -> Option<CatchUpReport> {
        let following = if let Contact::Following(f) = &self.contact { Some(f) } else { None };
        let seed = following.and_then(|f| f.receiver.seed()).or(self.unfinished.as_ref()).map(Seed::unfinished);
        let log = |from: Lsn| (self.durable.end_lsn.bytes_since(from), self.lag.primary_vdl().end_lsn.bytes_since(from));
        let (kind, pages, bytes_done, bytes_total, resumed) = match (seed, self.behind_since) {
            (Some(s), _) => {
                let (done, total) = (u64::from(s.next_page.0), u64::from(s.pages_total));
                (CatchUpKind::Seed, (done, total), s.bytes, estimate_bytes(s.bytes, done, total), s.resumed)
            }
            (None, Some(from)) => (CatchUpKind::Log, (0, 0), log(from).0, log(from).1, 0),
            (None, None) => return None,
        };
        let (bytes_per_s, time_left_ms) = self.meter.rate(bytes_total.saturating_sub(bytes_done));
        let (pages_done, pages_total) = pages;
        Some(CatchUpReport { kind, pages_done, pages_total, bytes_done, bytes_total, bytes_per_s, time_left_ms, resumed })
    }

    pub(super) fn state(&self, now: Instant, limits: &Limits, appender: &Appender) -> (RegionState, Option<String>) {
        let Contact::Following(f) = &self.contact else {
            return (RegionState::Disconnected, self.last_trouble.clone());
        };
        if self.disconnected_since.is_some() {
            return (RegionState::Disconnected, Some(format!("no heartbeat from {}", f.primary)));
        }
        let vdl = self.lag.primary_vdl();
        let behind = vdl.end_lsn.bytes_since(self.durable.end_lsn);
        let is_behind = self.durable.seq < vdl.seq;
        let state = if f.receiver.is_being_seeded() {
            RegionState::CatchingUp
        } else if is_behind && (now.since(self.last_moved) > limits.stalled_after || !appender.has_quorum()) {
            RegionState::Stalled
        } else if behind > BEHIND_BYTES {
            RegionState::CatchingUp
        } else if !is_behind && self.last_commit.is_none_or(|t| now.since(t) > Duration::from_secs(1)) {
            RegionState::Idle
        } else {
            RegionState::Streaming
        };
        (state, None)
    }
}

impl Node {
    pub(super) fn follow_timers(&mut self, now: Instant) {
        self.follower.judge_behind(now);
        // The log here would fill up to the last byte: nothing more is taken over until there is room.
        let short = self.appender.is_short_of_room();
        if let Some(conn) = self.follower.conn().filter(|_| short) {
            self.follower.last_trouble = Some(SHORT_OF_ROOM.into());
            self.unlink(now, conn, SHORT_OF_ROOM.into());
        }
        let ready = !short && !self.roles.hidden && matches!(self.appender.phase(), VolumePhase::Serving | VolumePhase::AwaitingSeed);
        match &self.follower.contact {
            Contact::Waiting { until } if now >= *until && ready && self.roles.is_member() && !self.follower.candidates.is_empty() => {
                let source = self.follower.catching_up_to.as_ref().map(|(from, ..)| from.clone());
                let region = match source.or(self.follower.known_primary.take()) {
                    Some(primary) if primary != self.who.region => primary,
                    _ => self.follower.candidates[self.follower.next_candidate % self.follower.candidates.len()].clone(),
                };
                self.follower.contact = Contact::Dialling { region: region.clone(), since: now };
                self.effects.push_back(Effect::Dial { region });
            }
            Contact::Waiting { until } if now >= *until => self.follower.contact = Contact::Waiting { until: now + RETRY_MAX },
            Contact::Dialling { region, since } if now >= *since + DIAL_TIMEOUT => {
                let region = region.clone();
                self.follower.dial_failed(now, &region, "no answer".into());
            }
            Contact::Greeting { conn, region, since, .. } if now >= *since + HELLO_TIMEOUT => {
                let (conn, reason) = (*conn, format!("{region} did not answer the hello"));
                self.follower.last_trouble = Some(reason.clone());
                self.follower.next_candidate += 1;
                self.unlink(now, conn, reason);
            }
            Contact::Following(f) if self.follower.disconnected_since.is_none() && now >= f.last_heartbeat + SILENT_AFTER => {
                self.follower.disconnected_since = Some(self.wall);
                self.follower.lag.disconnected(self.wall);
            }
            _ => {}
        }
    }

    pub(super) fn follow_received(&mut self, now: Instant, conn: ConnId, message: Message) {
        if let Contact::Greeting { region, early, .. } = &mut self.follower.contact {
            let region = region.clone();
            match message {
                Message::Control(control) => self.greeted(now, conn, region, control),
                // Batches come on streams of their own and may overtake the welcome.
                other if early.len() < EARLY_MESSAGES_MAX => early.push(other),
                _ => {} // sent again when nothing moves
            }
            return;
        }
        let wall = self.wall;
        let Contact::Following(f) = &mut self.follower.contact else { return };
        match message {
            Message::Frames(frames) => f.receiver.handle_frames(frames),
            Message::Pages { base, step, pages } => f.receiver.handle_seed_step(base, step, SeedStep::Pages(pages)),
            Message::Control(Control::SeedBegin(base)) => f.receiver.handle_seed_begin(base),
            Message::Control(Control::SeedEnd { base, step }) => f.receiver.handle_seed_step(base, step, SeedStep::End),
            Message::Heartbeat(heartbeat) => {
                f.last_heartbeat = now;
                self.follower.disconnected_since = None;
                self.follower.lag.heartbeat(now, wall, &heartbeat);
                let reply = HeartbeatReply {
                    no: heartbeat.no,
                    replied_at: wall,
                    received: *f.receiver.received(),
                    durable: self.follower.durable,
                    visible: self.follower.visible.end_lsn,
                    lag: self.follower.lag.report(now, wall),
                };
                self.effects.push_back(Effect::Send { conn, message: Message::HeartbeatReply(reply) });
            }
            Message::Control(Control::Welcome { .. }) => {} // it came twice
            Message::Control(Control::Rules(rules)) => return self.keep_rules(rules),
            Message::HeartbeatReply(_) | Message::Control(Control::Progress { .. } | Control::SeedStored { .. }) => {} // as above
            Message::Control(_) => {
                return self.unlink(now, conn, "the primary sent what only a secondary sends".into());
            }
        }
        self.drain_follower(now);
    }

    fn greeted(&mut self, now: Instant, conn: ConnId, region: RegionName, control: Control) {
        match control {
            Control::Welcome { lineage, layout, epoch, primary, seed, resumes, rules } => {
                if self.lineage().is_some_and(|own| own != lineage) && *self.appender.phase() == VolumePhase::Serving {
                    let reason = format!("{region} is of lineage {lineage}, this region's data is not; two histories are never merged");
                    self.follower.last_trouble = Some(reason.clone());
                    self.follower.wait(now, RETRY_REFUSED);
                    self.effects.push_back(Effect::Unlink { conn, reason });
                    return;
                }
                if layout != self.who.layout {
                    let reason = Refusal::OtherLayout { ours: layout, theirs: self.who.layout }.to_string();
                    self.follower.last_trouble = Some(reason.clone());
                    self.follower.wait(now, RETRY_REFUSED);
                    self.effects.push_back(Effect::Unlink { conn, reason });
                    return;
                }
                if !self.roles.may_receive(epoch) {
                    let reason = format!("{region} speaks for epoch {epoch}, and a later one was promised here");
                    self.follower.last_trouble = Some(reason.clone());
                    self.follower.next_candidate += 1;
                    return self.unlink(now, conn, reason);
                }
                self.follower.retry = RETRY_MIN;
                self.follower.last_trouble = None;
                // Another secondary's log says nothing of what the history is.
                if primary == region {
                    self.follower.known_primary = Some(primary.clone());
                    self.settled(seed);
                    self.keep_rules(rules);
                    if !seed {
                        self.count_archives(now);
                    }
                    if self.roles.reign.as_ref().is_none_or(|(known, _)| *known < epoch) {
                        self.roles.reign = Some((epoch, primary.clone()));
                    }
                    self.effects.push_back(Effect::PrimaryIs(Some(primary.clone())));
                }
                let durable = self.follower.durable;
                let end = *self.appender.end();
                let unfinished = self.follower.unfinished.take().filter(|_| resumes);
                // Without the half seed it is whole by now (or given up, then the link was, too).
                let receiver = match unfinished {
                    Some(half) => Receiver::resuming(epoch, end, durable, half, &self.limits),
                    None => Receiver::new(epoch, end, durable, seed && !resumes, &self.limits),
                };
                self.follower.meter.clear();
                self.follower.behind_since = None;
                let before = self.follower.measured.replace(region.clone());
                self.follower.lag.connected(before.is_some_and(|before| before != region));
                let early =
                    if let Contact::Greeting { early, .. } = &mut self.follower.contact { std::mem::take(early) } else { Vec::new() };
                self.follower.contact = Contact::Following(Following { conn, primary: primary.clone(), receiver, last_heartbeat: now });
                let how = if resumes {
                    "the seed goes on".into()
                } else if seed {
                    "to be seeded".into()
                } else {
                    format!("resuming behind {}", self.appender.end())
                };
                self.note("primary_connected", format!("{region}, epoch {epoch}: {how}"));
                for message in early {
                    self.follow_received(now, conn, message);
                }
            }
            Control::PartsAt { epoch, primary, common, end } => self.parts_at(now, conn, epoch, &primary, common, end),
            Control::NotPrimary { primary, .. } => {
                self.follower.last_trouble = Some(match &primary {
                    Some(p) => format!("{region} is not the primary and names {p}"),
                    None => format!("{region} is not the primary and knows of none"),
                });
                self.follower.known_primary = primary.filter(|p| *p != region && *p != self.who.region);
                self.follower.next_candidate += 1;
                self.unlink(now, conn, "it is not the primary".into());
            }
            Control::Refused(refusal) => {
                self.note("refused", format!("{region} refuses this region: {refusal}"));
                self.follower.last_trouble = Some(format!("{region} refuses this region: {refusal}"));
                self.unlink(now, conn, "refused".into());
                self.follower.wait(now, RETRY_REFUSED);
            }
            // What it said while it followed this region, on the same link.
            Control::Progress { .. } | Control::SeedStored { .. } => {}
            _ => self.unlink(now, conn, "it answered a hello with something else".into()),
        }
    }

    pub(super) fn drain_follower(&mut self, now: Instant) {
        loop {
            let Contact::Following(f) = &mut self.follower.contact else { return };
            let conn = f.conn;
            let Some(effect) = f.receiver.poll_effect() else { return };
            match effect {
                ReceiverEffect::Append(frames) => self.appender.append(now, frames),
                ReceiverEffect::SeedBegin(base) => {
                    self.note("seeding_began", format!("pages as of {}", base.end));
                    // What was read of an archive is read again when the volume is there.
                    self.counting = None;
                    self.appender.seed_begin(now, base);
                }
                ReceiverEffect::SeedPages(pages) => {
                    self.appender.seed_pages(now, pages);
                }
                ReceiverEffect::SeedEnd => {
                    self.appender.seed_end(now);
                }
                ReceiverEffect::Send(message) => self.effects.push_back(Effect::Send { conn, message }),
                ReceiverEffect::Violation { reason } => {
                    self.note("violation", reason.clone());
                    self.follower.last_trouble = Some(reason.clone());
                    self.unlink(now, conn, reason);
                }
            }
        }
    }
}
