//! The primary's side of shipping: one [`Sender`] per secondary that said hello.
//!
//! Decides who is welcomed and who is refused, and keeps what is known of a secondary after its link is gone. A secondary that
//! is gone holds nothing back but log within its budget, and for a while the pages of a seed that its outage interrupted.

use super::report::{RegionState, SecondaryReport};
use super::{Effect, Node, Stage};
use crate::base::{ConnId, Instant, Limits, LogEnd, Lsn, RegionName, Seq, UnixMicros};
use crate::control::Input;
use crate::log::{LogOutcome, PagesOutcome, SeedBase};
use crate::ship::wire::Control;
use crate::ship::{BEHIND_BYTES, Hello, LagReport, Message, Refusal, Sender, SenderEffect, Start};
use crate::volume::VolumePhase;
use std::collections::BTreeMap;
use std::time::Duration;

/// A link whose peer has been silent for so long is shown as disconnected; QUIC finds out later.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// What is remembered of a secondary that was here.
#[derive(Debug, Clone)]
struct Known {
    disconnected_since: Option<UnixMicros>,
    gone_at: Option<Instant>,
    durable: LogEnd,
    /// What it said to be durable there, since it was last seeded.
    said_durable: LogEnd,
    received: Lsn,
    visible: Lsn,
    /// The seed that its outage interrupted, and when.
    half_seed: Option<(LogEnd, Instant)>,
    /// By senders that are no more.
    seed_pages_sent: u64,
}

impl Known {
    /// The base of its half seed, as long as that is held for it.
    fn held(&self, now: Instant, limits: &Limits) -> Option<&LogEnd> {
        self.half_seed.as_ref().filter(|(_, since)| now.since(*since) < limits.seed_held).map(|(base, _)| base)
    }
}

#[derive(Debug, Default)]
pub(super) struct Leader {
    senders: BTreeMap<ConnId, Sender>,
    known: BTreeMap<RegionName, Known>,
    last_commit: Option<Instant>,
}

impl Leader {
    /// What each connected secondary has durable.
    pub(super) fn durable(&self) -> Vec<Seq> {
        self.senders.values().map(|s| s.said_durable().seq).collect()
    }

    pub(super) fn conns(&self) -> Vec<ConnId> {
        self.senders.keys().copied().collect()
    }

    /// Somebody is being shipped to.
    pub(super) fn ships(&self) -> bool {
        !self.senders.is_empty()
    }

    pub(super) fn has(&self, conn: ConnId) -> bool {
        self.senders.contains_key(&conn)
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.senders.values().map(Sender::next_timeout).min()
    }

    /// First seq that a secondary needs from the log, and the LSN whose pages a seed reads.
    pub(super) fn needs(&self, now: Instant, limits: &Limits, members: usize) -> (Option<Seq>, Option<Lsn>) {
        let away = || self.known.values().filter(|k| k.disconnected_since.is_some());
        let held = || away().filter_map(|k| k.held(now, limits));
        // Whoever went without anything, and whose half seed is no longer held, is seeded at a later LSN and needs nothing from now.
        let lately = || away().filter(|k| k.gone_at.is_none_or(|t| now.since(t) < limits.log_retain));
        let log_away =
            lately().filter_map(|k| k.held(now, limits).map(|b| b.seq).or((k.durable != LogEnd::EMPTY).then_some(k.durable.seq)));
        // A member that this process has not heard of may be anywhere behind: a restart must not cost it a seed.
        let unheard = (self.known.len() + 1 < members).then_some(Seq(0));
        let log = self.senders.values().map(Sender::needs_log_from).chain(log_away).chain(unheard).min();
        (log, self.senders.values().filter_map(Sender::needs_pages_at).chain(held().map(|b| b.end_lsn)).min())
    }

    /// Where the secondary that is farthest behind would begin its reign. One that is away for long, or never had anything, is not waited for.
    pub(super) fn fork(&self, now: Instant, limits: &Limits) -> Option<Lsn> {
        let of = |region: &RegionName, known: &Known| {
            self.senders.values().find(|s| s.region() == region).map_or(known.durable, |s| *s.durable())
        };
        let lately = self.known.iter().filter(|(_, k)| k.gone_at.is_none_or(|t| now.since(t) < limits.log_retain));
        lately.map(|(region, known)| of(region, known)).filter(|at| *at != LogEnd::EMPTY).map(|at| at.end_lsn).min()
    }

    pub(super) fn unlinked(&mut self, now: Instant, wall: UnixMicros, conn: ConnId) -> Option<RegionName> {
        let sender = self.senders.remove(&conn)?;
        let region = sender.region().clone();
        if self.senders.values().any(|s| *s.region() == region) {
            return None; // it already came back on another link
        }
        let seed_pages_sent = self.known.get(&region).map_or(0, |k| k.seed_pages_sent) + sender.pages_sent();
        let known = Known {
            disconnected_since: Some(wall),
            gone_at: Some(now),
            durable: *sender.durable(),
            said_durable: self.known.get(&region).map_or(LogEnd::EMPTY, |k| k.said_durable).max(*sender.said_durable()),
            received: sender.received().end_lsn,
            visible: sender.visible(),
            half_seed: sender.seed_base().map(|base| (*base, now)),
            seed_pages_sent,
        };
        self.known.insert(region.clone(), known);
        Some(region)
    }

    /// Regions that are no members hold nothing back.
    pub(super) fn forget_all_but(&mut self, members: &[RegionName]) {
        self.known.retain(|region, _| members.contains(region));
    }

    /// This region leads no more: its conversations are over.
    pub(super) fn step_down(&mut self) {
        *self = Leader::default();
    }

    /// The regions that have everything up to `end` durable and visible there.
    pub(super) fn has_shown(&self, end: &LogEnd) -> Option<&RegionName> {
        self.senders.values().find(|s| s.durable().seq >= end.seq && s.visible() >= end.end_lsn).map(Sender::region)
    }

    pub(super) fn report(&self, now: Instant, limits: &Limits, vdl: &LogEnd) -> Vec<SecondaryReport> {
        let mut out = Vec::new();
        for (region, known) in &self.known {
            if let Some(sender) = self.senders.values().find(|s| s.region() == region) {
                let silent = now.since(sender.last_heard()) > SILENT_AFTER;
                let behind = vdl.end_lsn.bytes_since(sender.durable().end_lsn);
                let state = if silent {
                    RegionState::Disconnected
                } else if sender.durable().seq < vdl.seq && now.since(sender.last_progress()) > limits.stalled_after {
                    RegionState::Stalled
                } else if sender.is_catching_up() || behind > BEHIND_BYTES {
                    RegionState::CatchingUp
                } else if sender.durable().seq >= vdl.seq && self.last_commit.is_none_or(|t| now.since(t) > Duration::from_secs(1)) {
                    RegionState::Idle
                } else {
                    RegionState::Streaming
                };
                out.push(SecondaryReport {
                    region: region.clone(),
                    state,
                    disconnected_since: None,
                    shipped_lsn: sender.shipped_lsn(),
                    received_lsn: sender.received().end_lsn,
                    durable_lsn: sender.durable().end_lsn,
                    visible_lsn: sender.visible(),
                    bytes_in_flight: sender.bytes_in_flight(),
                    catching_up: sender.catching_up(vdl),
                    seed_pages_sent: known.seed_pages_sent + sender.pages_sent(),
                    lag: if silent { LagReport::default() } else { *sender.lag() },
                });
            } else {
                out.push(SecondaryReport {
                    region: region.clone(),
                    state: RegionState::Disconnected,
                    disconnected_since: known.disconnected_since,
                    shipped_lsn: known.received,
                    received_lsn: known.received,
                    durable_lsn: known.durable.end_lsn,
                    visible_lsn: known.visible,
                    bytes_in_flight: 0,
                    catching_up: None,
                    seed_pages_sent: known.seed_pages_sent,
                    lag: LagReport { unknown_since: known.disconnected_since, ..LagReport::default() },
                });
            }
        }
        out
    }
}

impl Node {
    /// A region wants to follow.
    pub(super) fn greet(&mut self, now: Instant, conn: ConnId, peer: &RegionName, hello: &Hello) {
        if hello.cluster != self.who.cluster {
            let refusal = Refusal::OtherCluster { ours: self.who.cluster.clone(), theirs: hello.cluster.clone() };
            return self.refuse(conn, refusal, peer);
        }
        if !self.is_welcome(peer) {
            return self.refuse(conn, Refusal::NoMember { region: peer.clone() }, peer);
        }
        if hello.region != *peer {
            let refusal = Refusal::OtherRegion { certificate: peer.clone(), claimed: hello.region.clone() };
            return self.refuse(conn, refusal, peer);
        }
        // Whoever is about to take over may fetch what this secondary has more. A seed only from a region that sealed its reign for it: up to the seal
        // its log is the history, whoever reigns next, and nobody else may have it (seed 50016 of moves).
        let last = self.roles.lends_its_last();
        let stands = *self.appender.phase() == VolumePhase::Serving && *self.appender.vdl() != LogEnd::EMPTY;
        // Its log is of a reign that this region has not heard of: whether that ever opened is not known here, and nothing is wrong with it (seed 11
        // of moves).
        let newer = hello.position.as_ref().is_some_and(|p| p.end.epoch > self.epoch());
        let has_more = hello.position.is_some() && !self.roles.unsettled;
        let lends = hello.catches_up && stands && (last || has_more) && matches!(self.stage, Stage::Following);
        let leads = matches!(self.stage, Stage::Leading);
        let Some(lineage) = self.lineage().filter(|_| (lends || leads) && !newer) else {
            return self.not_primary(conn);
        };
        if hello.layout != self.who.layout {
            return self.refuse(conn, Refusal::OtherLayout { ours: self.who.layout, theirs: hello.layout }, peer);
        }
        let present: Vec<String> = self.leader.senders.values().map(|s| s.region().to_string()).filter(|r| r != peer.as_str()).collect();
        if present.len() >= self.limits.secondaries_max {
            let limit = u32::try_from(self.limits.secondaries_max).expect("BUG: a small limit");
            return self.refuse(conn, Refusal::TooManySecondaries { limit, present: present.join(", ") }, peer);
        }
        let vdl = *self.appender.vdl();
        let log_from = self.appender.log_from();
        let volume = self.appender.lineage().unwrap_or(lineage);
        match Sender::greet(hello, (lineage, volume), self.appender.history(), &vdl, log_from, self.limits.clone(), now) {
            // It wants what this secondary does not have: another one was named to it (seed 142 of moves).
            Err(_) if lends => self.not_primary(conn),
            Err(refusal) => {
                // It was shipped only what was durable here, in this very reign.
                if let (Refusal::Diverged { theirs, .. }, Stage::Leading) = (&refusal, &self.stage)
                    && theirs.epoch == self.epoch()
                {
                    let (known, by) = (*theirs, format!("the log of {peer}"));
                    self.tell(now, Input::LogLost { known, end: vdl, by });
                }
                self.refuse(conn, refusal, peer);
            }
            Ok((_, Start::Rewind { common, end })) => {
                self.note(
                    "secondary_parts",
                    format!("{peer}: its log goes on behind seq {common} otherwise than this one; it is to go back there"),
                );
                let (epoch, primary) = (self.epoch(), self.who.region.clone());
                let parts = Control::PartsAt { epoch, primary, common, end };
                self.effects.push_back(Effect::Send { conn, message: Message::Control(parts) });
            }
            Ok((sender, start)) => {
                // The same region on an older link: that one is dead, its process came back faster than the timeout.
                let older: Vec<ConnId> = self.leader.senders.iter().filter(|(_, s)| s.region() == peer).map(|(c, _)| *c).collect();
                for old in older {
                    self.unlink(now, old, "the region came back on a new link".into());
                }
                let how = match start {
                    Start::Seed => "new and empty, to be seeded".into(),
                    Start::ResumedSeed => "in the middle of a seed, which resumes".into(),
                    Start::Log | Start::Rewind { .. } => format!("resumes behind {}", sender.received()),
                };
                let said_durable = self.leader.known.get(peer).map_or(LogEnd::EMPTY, |k| k.said_durable);
                let said_durable = if start == Start::Log { said_durable } else { LogEnd::EMPTY };
                if let Some(had) = Some(said_durable).filter(|had| *had > *sender.durable()) {
                    let has = *sender.durable();
                    self.note("secondary_lost_log", format!("{peer} had everything durable up to {had} and has it up to {has} now: its disks lost what they said was synced. It comes again"));
                }
                let seed_pages_sent = self.leader.known.get(peer).map_or(0, |k| k.seed_pages_sent);
                self.note("secondary_connected", format!("{peer}: {how}"));
                let known = Known {
                    disconnected_since: None,
                    gone_at: None,
                    durable: *sender.durable(),
                    said_durable,
                    received: sender.received().end_lsn,
                    visible: Lsn(0),
                    half_seed: None,
                    seed_pages_sent,
                };
                self.leader.known.insert(peer.clone(), known);
                self.leader.senders.insert(conn, sender);
                let (seed, resumes) = (start != Start::Log, start == Start::ResumedSeed);
                let layout = self.who.layout;
                let reign = self.roles.reign.as_ref().filter(|_| lends).map(|(_, primary)| primary.clone());
                let primary = reign.unwrap_or_else(|| self.who.region.clone());
                let welcome =
                    Control::Welcome { lineage, layout, epoch: self.epoch(), primary, seed, resumes, rules: self.committing.rules };
                self.effects.push_back(Effect::Send { conn, message: Message::Control(welcome) });
                if start == Start::Seed {
                    self.begin_seed(now, conn);
                }
                self.drain_sender(now, conn);
                self.lead_timers(now);
            }
        }
    }

    fn not_primary(&mut self, conn: ConnId) {
        let primary = self.roles.reign.as_ref().map(|(_, p)| p.clone()).filter(|p| *p != self.who.region);
        let message = Message::Control(Control::NotPrimary { primary, epoch: self.epoch() });
        self.effects.push_back(Effect::Send { conn, message });
    }

    fn begin_seed(&mut self, now: Instant, conn: ConnId) {
        let vdl = *self.appender.vdl();
        let mut history = self.appender.history().clone();
        history.cut_from(vdl.seq.next());
        let Some(lineage) = self.appender.lineage() else { return };
        let Some(sender) = self.leader.senders.get_mut(&conn) else { return };
        sender.become_catch_up(now, SeedBase { lineage, end: vdl, history });
        self.drain_sender(now, conn);
    }

    pub(super) fn lead_received(&mut self, now: Instant, conn: ConnId, message: Message) {
        let vdl = *self.appender.vdl();
        let wall = self.wall;
        let Some(sender) = self.leader.senders.get_mut(&conn) else { return };
        let position = match &message {
            Message::Control(Control::Progress { durable, .. }) => Some(*durable),
            Message::HeartbeatReply(reply) => Some(reply.durable),
            _ => None,
        };
        if let Some(durable) = position {
            let region = sender.region().clone();
            self.tell(now, Input::Secondary { region, durable });
        }
        let Some(sender) = self.leader.senders.get_mut(&conn) else { return };
        match message {
            Message::Control(Control::Progress { received, durable, visible }) => {
                sender.handle_progress(now, received, durable, visible, &vdl)
            }
            Message::Control(Control::SeedStored { base, step }) => sender.handle_seed_stored(now, base, step, &vdl),
            Message::HeartbeatReply(reply) => sender.handle_heartbeat_reply(now, wall, reply, &vdl),
            Message::Control(Control::Hello(_)) => {} // it came twice
            // What it shipped while it was the primary.
            Message::Frames(_) | Message::Pages { .. } | Message::Heartbeat(_) => return,
            other => {
                let what = format!("a secondary sent what only a primary sends: {:?}", other.lane());
                self.unlink(now, conn, what);
                return;
            }
        }
        self.drain_sender(now, conn);
        self.release(now);
    }

    pub(super) fn lead_pump(&mut self, now: Instant, vdl: &LogEnd) {
        self.leader.last_commit = Some(now);
        let conns: Vec<ConnId> = self.leader.senders.keys().copied().collect();
        for conn in conns {
            if let Some(sender) = self.leader.senders.get_mut(&conn) {
                sender.pump(now, vdl);
            }
            self.drain_sender(now, conn);
        }
    }

    pub(super) fn lead_timers(&mut self, now: Instant) {
        let vdl = *self.appender.vdl();
        let wall = self.wall;
        let due: Vec<ConnId> = self.leader.senders.iter().filter(|(_, s)| now >= s.next_timeout()).map(|(c, _)| *c).collect();
        for conn in due {
            if let Some(sender) = self.leader.senders.get_mut(&conn) {
                sender.handle_timeout(now, wall, &vdl);
            }
            self.drain_sender(now, conn);
        }
    }

    pub(super) fn lead_log(&mut self, now: Instant, conn: ConnId, outcome: LogOutcome) {
        let vdl = *self.appender.vdl();
        let Some(sender) = self.leader.senders.get_mut(&conn) else { return };
        if sender.handle_log(now, outcome, &vdl) {
            let region = sender.region().clone();
            self.note("seeding_began", format!("{region} is behind the retained log; it gets pages, then the log"));
            self.begin_seed(now, conn);
        }
        self.drain_sender(now, conn);
    }

    pub(super) fn lead_pages(&mut self, now: Instant, conn: ConnId, outcome: PagesOutcome) {
        let Some(sender) = self.leader.senders.get_mut(&conn) else { return };
        if sender.handle_pages(now, outcome) {
            self.begin_seed(now, conn);
        }
        self.drain_sender(now, conn);
    }

    fn drain_sender(&mut self, now: Instant, conn: ConnId) {
        while let Some(effect) = self.leader.senders.get_mut(&conn).and_then(Sender::poll_effect) {
            match effect {
                SenderEffect::Send(message) => self.effects.push_back(Effect::Send { conn, message }),
                SenderEffect::ReadLog { from, bytes_max } => {
                    let tag = self.tag_for(conn);
                    self.appender.read_log(now, tag, from, bytes_max);
                    self.drain_appender(now);
                }
                SenderEffect::ReadPages { at, from, bytes_max } => {
                    // The pages at `at` must not be folded away before they are read.
                    let (log, pages) = self.leader.needs(now, &self.limits, self.who.members.len());
                    let fork = self.leader.fork(now, &self.limits);
                    self.appender.set_needs(self.pinned(), pages, log, fork);
                    let tag = self.tag_for(conn);
                    self.appender.read_pages(now, tag, at, from, bytes_max);
                }
                SenderEffect::SeedBegan { at } => self.note("seeding_began", format!("pages as of LSN {at}")),
                SenderEffect::SeedResumed { at, from } => {
                    self.note("seeding_resumed", format!("pages as of LSN {at}, from page {} on", from.0));
                }
                SenderEffect::SeedDone => {
                    if let Some(region) = self.leader.senders.get(&conn).map(|s| s.region().clone()) {
                        self.note("seeding_done", format!("{region} has the pages; the log follows"));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ClusterName, Epoch, Generation, Layout, LineageId};
    use crate::log::{ControlFrame, History};
    use crate::ship::wire::Position;

    const LINEAGE: LineageId = LineageId(7);

    /// However few bytes it is: how long a region may be gone for its log is a setting of its own.
    #[test]
    fn a_secondary_that_is_gone_holds_log_back_until_its_age_and_no_longer() {
        let at = |s: u64| Instant { ns: s * 1_000_000_000 };
        let aged = |s: u64| Limits { log_retain: Duration::from_secs(s), ..Limits::tiny() };
        let frame = ControlFrame::EpochStart { lineage: LINEAGE }.encode(&LogEnd::EMPTY, Epoch(1), Generation(1), UnixMicros(1));
        let mut history = History::default();
        history.note(&frame);
        let vdl = frame.log_end();
        let hello = Hello {
            cluster: ClusterName::new("sun").unwrap(),
            region: RegionName::new("eu-west").unwrap(),
            epoch: Epoch(1),
            layout: Layout::default(),
            position: Some(Position { lineage: LINEAGE, end: vdl, history: history.clone() }),
            unfinished: None,
            catches_up: false,
        };
        let (sender, start) = Sender::greet(&hello, (LINEAGE, LINEAGE), &history, &vdl, Seq(1), aged(60), at(100)).unwrap();
        assert_eq!(start, Start::Log);
        let mut leader = Leader::default();
        leader.senders.insert(ConnId(1), sender);
        assert!(leader.needs(at(5000), &aged(60), 2).0.is_some(), "while it is linked nothing is too old");
        leader.unlinked(at(5000), UnixMicros(1), ConnId(1));
        for (limits, seconds) in [(aged(60), 60), (aged(7200), 7200)] {
            for (after, held) in [(0, true), (seconds - 1, true), (seconds, false), (seconds + 100_000, false)] {
                let now = at(5000 + after);
                let (log, pages) = leader.needs(now, &limits, 2);
                assert_eq!((log, pages), (held.then_some(vdl.seq), None), "{after} s of {seconds}");
                assert_eq!(leader.fork(now, &limits), held.then_some(vdl.end_lsn), "{after} s of {seconds}");
            }
        }
    }
}
