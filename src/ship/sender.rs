//! The sender: one per secondary, in the primary.
//!
//! Story: a secondary says hello with what it has. The sender compares histories, then streams from the very next frame; if
//! the log no longer reaches back so far, or the secondary is empty, it first sends pages as of one LSN (a seed), then the log.
//! A seed that an outage interrupted goes on behind the pages that the secondary has taken over.
//! What is in flight is bounded by what is *durable* over there; without progress it goes back to the last known point.
//!
//! Decides what to send next. Never reads: it asks (`ReadLog`, `ReadPages`) and is answered. Never ships above the VDL (S11).
//! Driven by the node: `handle_*`, `poll_effect`, `next_timeout`.

use super::LagReport;
use super::catchup::{CatchUpKind, CatchUpReport, RateMeter, UnfinishedSeed, estimate_bytes};
use super::wire::{Control, Heartbeat, HeartbeatReply, Hello, Message, Position, Refusal};
use crate::base::{Instant, Limits, LineageId, LogEnd, Lsn, Pace, PageNo, RegionName, Seq, UnixMicros};
use crate::log::redo::VolumeHeader;
use crate::log::{FRAME_HEADER_BYTES, History, LogOutcome, PagesOutcome, SeedBase};
use std::collections::VecDeque;
use std::time::Duration;

/// Steps of a seed under way to a secondary.
const SEED_STEPS_IN_FLIGHT: usize = 16;
/// So many reads of pages at one LSN may fail before a seed begins anew at another; one in each heartbeat's time.
const PAGE_READS_MAX: u32 = 20;
/// Behind by more than this, streaming is catching up.
pub const BEHIND_BYTES: u64 = 4 << 20;
/// While commits are made, a seed rests so many times as long as a read of its pages took before the next one.
const SEED_REST: u32 = 3;
/// The VDL moved within this: commits are being made.
const BUSY_WITHIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are Send, and none is kept")]
pub enum SenderEffect {
    Send(Message),
    ReadLog { from: Seq, bytes_max: usize },
    ReadPages { at: Lsn, from: PageNo, bytes_max: usize },
    SeedBegan { at: Lsn },
    SeedResumed { at: Lsn, from: PageNo },
    SeedDone,
}

/// Where the sender is with its secondary (after raft's `Progress`; paused means: nothing may be sent before something arrives).
#[derive(Debug)]
pub enum Progress {
    /// Waits for the secondary to say where it is.
    Probe,
    Stream {
        next: Seq,
        next_lsn: Lsn,
        /// A read of the log is under way.
        reading: bool,
    },
    CatchUp(CatchUp),
}

/// A seed under way.
#[derive(Debug)]
pub struct CatchUp {
    base: SeedBase,
    /// 0 until the header page was read.
    pages_in_all: u32,
    /// Stored over there: pages, by the last one's number, and their bytes.
    pages_done: u64,
    bytes_done: u64,
    resumed: u32,
    /// Next page to read; `None` when all were read.
    next_page: Option<PageNo>,
    reading: bool,
    next_step: u64,
    /// Sent and not yet stored, for sending again.
    unstored: VecDeque<(u64, Message)>,
    ended: bool,
    /// Reads of pages that failed, one after the other.
    failed_reads: u32,
    pace: Pace,
}

/// What becomes of a hello that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The log, from behind its position.
    Log,
    Seed,
    /// The seed that was interrupted.
    ResumedSeed,
    /// Nothing yet: its log goes on behind `common` as an earlier epoch's primary wrote it, and ours as a later one's did. It must be
    /// cut back first (protocol.md step 22). `end`: the position there, where a term of ours ends there.
    Rewind {
        common: Seq,
        end: Option<LogEnd>,
    },
}

#[derive(Debug)]
pub struct Sender {
    region: RegionName,
    limits: Limits,
    progress: Progress,
    received: LogEnd,
    /// Where it is behind, for windows and for what is kept for it: as its hello said, or further.
    durable: LogEnd,
    /// What it said to be durable there. Its hello says where its log ends, and the last frames of that may lie on one copy only.
    said_durable: LogEnd,
    visible: Lsn,
    lag: LagReport,
    last_heard: Instant,
    /// Durable moved, or nothing was owed.
    last_progress: Instant,
    next_heartbeat: Instant,
    heartbeat_no: u64,
    echo: Option<(UnixMicros, UnixMicros)>,
    /// The VDL that the last pump saw, and since when.
    vdl_seen: (Seq, Instant),
    meter: RateMeter,
    /// Where the present catching-up by log began.
    behind_since: Option<Lsn>,
    /// Pages handed to the link for seeds, sent again or not.
    pages_sent: u64,
    effects: VecDeque<SenderEffect>,
}

impl Sender {
    /// Judges a hello. The caller has checked that the certificate's region is the one in the hello. `log_from`: so far back the log
    /// surely reaches.
    ///
    /// # Errors
    /// [`Refusal`]: it is sent to the secondary, counted, and the link closed.
    pub fn greet(
        hello: &Hello,
        (lineage, volume): (LineageId, LineageId),
        history: &History,
        vdl: &LogEnd,
        log_from: Seq,
        limits: Limits,
        now: Instant,
    ) -> Result<(Sender, Start), Refusal> {
        let mut sender = Sender {
            region: hello.region.clone(),
            limits,
            progress: Progress::Probe,
            received: LogEnd::EMPTY,
            durable: LogEnd::EMPTY,
            said_durable: LogEnd::EMPTY,
            visible: Lsn(0),
            lag: LagReport::default(),
            last_heard: now,
            last_progress: now,
            next_heartbeat: now,
            heartbeat_no: 0,
            echo: None,
            vdl_seen: (vdl.seq, Instant::ZERO),
            meter: RateMeter::default(),
            behind_since: None,
            pages_sent: 0,
            effects: VecDeque::new(),
        };
        let Some(position) = &hello.position else {
            let Some(unfinished) = &hello.unfinished else { return Ok((sender, Start::Seed)) };
            let base = &unfinished.base;
            let known = base.lineage == volume && base.end.seq <= vdl.seq && history.contains(&base.end);
            // Behind a base that the log no longer reaches, its pages would be of no use.
            if !known || base.end.seq.next() < log_from {
                return Ok((sender, Start::Seed));
            }
            sender.resume_catch_up(now, unfinished.clone());
            return Ok((sender, Start::ResumedSeed));
        };
        if position.lineage != lineage {
            return Err(Refusal::OtherLineage { ours: lineage, theirs: position.lineage });
        }
        if !history.contains(&position.end) || history_before(history, position) != position.history.terms().len() {
            let common = history.common_seq(vdl.seq, &position.history, position.end.seq);
            // Within one epoch there is one writer, and it ships what is durable: a log that parts there is not of this history.
            if common == Seq::ZERO || position.end.epoch >= vdl.epoch {
                return Err(Refusal::Diverged {
                    theirs: position.end,
                    why: "it was written by a generation that the primary's log does not have there".into(),
                });
            }
            let end = history.end_of_term_at(common).or((vdl.seq == common).then_some(*vdl));
            return Ok((sender, Start::Rewind { common, end }));
        }
        if position.end.seq > vdl.seq {
            return Err(Refusal::Diverged { theirs: position.end, why: format!("the primary's log is durable only up to {vdl}") });
        }
        sender.received = position.end;
        sender.durable = position.end;
        sender.become_stream(position.end);
        Ok((sender, Start::Log))
    }

    #[must_use]
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    #[must_use]
    pub fn durable(&self) -> &LogEnd {
        &self.durable
    }

    /// What commits may count on, and what it may be blamed for.
    #[must_use]
    pub fn said_durable(&self) -> &LogEnd {
        &self.said_durable
    }

    #[must_use]
    pub fn received(&self) -> &LogEnd {
        &self.received
    }

    #[must_use]
    pub fn visible(&self) -> Lsn {
        self.visible
    }

    /// The secondary's own measurement, as it last said it.
    #[must_use]
    pub fn lag(&self) -> &LagReport {
        &self.lag
    }

    #[must_use]
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    #[must_use]
    pub fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// The end of what was handed to the link.
    #[must_use]
    pub fn shipped_lsn(&self) -> Lsn {
        match &self.progress {
            Progress::Stream { next_lsn, .. } => *next_lsn,
            Progress::Probe | Progress::CatchUp(_) => self.received.end_lsn,
        }
    }

    #[must_use]
    pub fn bytes_in_flight(&self) -> u64 {
        match &self.progress {
            Progress::Stream { next, next_lsn, .. } => {
                next_lsn.bytes_since(self.durable.end_lsn) + (next.0 - 1).saturating_sub(self.durable.seq.0) * FRAME_HEADER_BYTES as u64
            }
            Progress::Probe => 0,
            Progress::CatchUp(c) => c
                .unstored
                .iter()
                .map(|(_, m)| if let Message::Pages { pages, .. } = m { pages.iter().map(|(_, b)| b.len() as u64).sum() } else { 0 })
                .sum(),
        }
    }

    /// How far the secondary is, while it gets pages or is far behind in the log.
    #[must_use]
    pub fn catching_up(&self, vdl: &LogEnd) -> Option<CatchUpReport> {
        let report = match &self.progress {
            Progress::CatchUp(c) => {
                let pages_total = u64::from(c.pages_in_all);
                CatchUpReport {
                    kind: CatchUpKind::Seed,
                    pages_done: c.pages_done,
                    pages_total,
                    bytes_done: c.bytes_done,
                    bytes_total: estimate_bytes(c.bytes_done, c.pages_done, pages_total),
                    bytes_per_s: None,
                    time_left_ms: None,
                    resumed: c.resumed,
                }
            }
            Progress::Stream { .. } => {
                let from = self.behind_since?;
                CatchUpReport {
                    kind: CatchUpKind::Log,
                    pages_done: 0,
                    pages_total: 0,
                    bytes_done: self.durable.end_lsn.bytes_since(from),
                    bytes_total: vdl.end_lsn.bytes_since(from),
                    bytes_per_s: None,
                    time_left_ms: None,
                    resumed: 0,
                }
            }
            Progress::Probe => return None,
        };
        let (bytes_per_s, time_left_ms) = self.meter.rate(report.bytes_total.saturating_sub(report.bytes_done));
        Some(CatchUpReport { bytes_per_s, time_left_ms, ..report })
    }

    /// Pages handed to the link for seeds, those that were sent again among them.
    #[must_use]
    pub fn pages_sent(&self) -> u64 {
        self.pages_sent
    }

    /// The base of the seed under way.
    #[must_use]
    pub fn seed_base(&self) -> Option<&LogEnd> {
        if let Progress::CatchUp(c) = &self.progress { Some(&c.base.end) } else { None }
    }

    /// First seq that this secondary still needs from the log.
    #[must_use]
    pub fn needs_log_from(&self) -> Seq {
        if let Progress::CatchUp(c) = &self.progress { c.base.end.seq } else { self.durable.seq }
    }

    /// The LSN whose page versions must stay readable for the seed under way.
    #[must_use]
    pub fn needs_pages_at(&self) -> Option<Lsn> {
        if let Progress::CatchUp(c) = &self.progress { Some(c.base.end.end_lsn) } else { None }
    }

    #[must_use]
    pub fn is_catching_up(&self) -> bool {
        matches!(self.progress, Progress::CatchUp(_))
    }

    pub fn poll_effect(&mut self) -> Option<SenderEffect> {
        self.effects.pop_front()
    }

    #[must_use]
    pub fn next_timeout(&self) -> Instant {
        let mut next = self.next_heartbeat;
        if self.owes_progress() {
            next = next.min(self.last_progress + self.limits.resend_after);
        }
        match &self.progress {
            Progress::CatchUp(c) if c.wants_read() => next.min(c.pace.not_before()),
            _ => next,
        }
    }

    fn owes_progress(&self) -> bool {
        match &self.progress {
            Progress::Probe => false,
            Progress::Stream { next, .. } => self.durable.seq.next() < *next,
            Progress::CatchUp(c) => !c.unstored.is_empty(),
        }
    }

    fn become_stream(&mut self, behind: LogEnd) {
        self.progress = Progress::Stream { next: behind.seq.next(), next_lsn: behind.end_lsn, reading: false };
    }

    /// Begins a seed at `base`: pages as of its LSN, then the log behind it.
    pub fn become_catch_up(&mut self, now: Instant, base: SeedBase) {
        if let Progress::CatchUp(c) = &mut self.progress
            && c.base == base
        {
            c.failed_reads = 0; // nothing newer to begin at: its steps go on
            return;
        }
        let begin = Message::Control(Control::SeedBegin(base.clone()));
        self.effects.push_back(SenderEffect::SeedBegan { at: base.end.end_lsn });
        self.effects.push_back(SenderEffect::Send(begin.clone()));
        self.last_progress = now;
        self.progress = Progress::CatchUp(CatchUp {
            base,
            pages_in_all: 0,
            pages_done: 0,
            bytes_done: 0,
            resumed: 0,
            next_page: Some(PageNo(0)),
            reading: false,
            next_step: 1,
            unstored: VecDeque::from([(0, begin)]),
            ended: false,
            failed_reads: 0,
            pace: Pace::new(self.limits.seed_bytes_per_s_max, SEED_REST),
        });
        self.meter.clear();
        self.pump_seed(now);
    }

    /// Goes on with a seed that was interrupted: the same base, the steps behind those that the secondary has taken over.
    fn resume_catch_up(&mut self, now: Instant, unfinished: UnfinishedSeed) {
        let UnfinishedSeed { base, step, next_page, pages_total, bytes, resumed } = unfinished;
        self.effects.push_back(SenderEffect::SeedResumed { at: base.end.end_lsn, from: next_page });
        self.progress = Progress::CatchUp(CatchUp {
            base,
            pages_in_all: pages_total,
            pages_done: u64::from(next_page.0),
            bytes_done: bytes,
            resumed: resumed.saturating_add(1),
            next_page: Some(next_page),
            reading: false,
            next_step: step.saturating_add(1),
            unstored: VecDeque::new(),
            ended: false,
            failed_reads: 0,
            pace: Pace::new(self.limits.seed_bytes_per_s_max, SEED_REST),
        });
        self.pump_seed(now);
    }

    /// Sends what the window and the VDL allow. To be called when the VDL moved.
    pub fn pump(&mut self, now: Instant, vdl: &LogEnd) {
        let window = self.limits.ship_window_bytes_max as u64;
        let in_flight = self.bytes_in_flight();
        if vdl.seq > self.vdl_seen.0 {
            self.vdl_seen = (vdl.seq, now);
        }
        self.judge_behind(now, vdl);
        if !self.owes_progress() {
            self.last_progress = now;
        }
        let Progress::Stream { next, reading, .. } = &mut self.progress else { return };
        if *reading || *next > vdl.seq || in_flight >= window {
            return;
        }
        *reading = true;
        self.effects.push_back(SenderEffect::ReadLog { from: *next, bytes_max: self.limits.batch_bytes_max });
    }

    /// The log that was asked for. `true` when the log does not reach back and a seed is needed.
    #[must_use]
    pub fn handle_log(&mut self, now: Instant, outcome: LogOutcome, vdl: &LogEnd) -> bool {
        let Progress::Stream { next, next_lsn, reading } = &mut self.progress else { return false };
        *reading = false;
        match outcome {
            LogOutcome::Frames(mut frames) => {
                if frames.first().is_none_or(|f| f.seq() != *next) {
                    self.pump(now, vdl); // an answer to a question from before a step back
                    return false;
                }
                frames.retain(|f| f.seq() <= vdl.seq);
                if let Some(last) = frames.last() {
                    *next = last.seq().next();
                    *next_lsn = last.end_lsn();
                    self.effects.push_back(SenderEffect::Send(Message::Frames(frames)));
                    self.pump(now, vdl);
                }
                false
            }
            LogOutcome::Trimmed { .. } => true,
            LogOutcome::Unreadable { .. } => false, // the timer asks again
        }
    }

    /// Pages that were asked for. `true` when they can no longer be read at that LSN: the seed must begin anew.
    #[must_use]
    pub fn handle_pages(&mut self, now: Instant, outcome: PagesOutcome) -> bool {
        let busy = now.since(self.vdl_seen.1) < BUSY_WITHIN;
        let Progress::CatchUp(c) = &mut self.progress else { return false };
        c.reading = false;
        match outcome {
            PagesOutcome::Pages { at, pages, next } if at == c.base.end.end_lsn => {
                if let Some((PageNo::HEADER, header)) = pages.first() {
                    c.pages_in_all = VolumeHeader::from_page(header).page_count;
                }
                c.failed_reads = 0;
                c.next_page = next;
                self.pages_sent += pages.len() as u64;
                c.pace.answered(now, pages.iter().map(|(_, b)| b.len() as u64).sum(), busy);
                let step = c.next_step;
                c.next_step += 1;
                let message = Message::Pages { base: c.base.end.seq, step, pages };
                c.unstored.push_back((step, message.clone()));
                self.effects.push_back(SenderEffect::Send(message));
                self.pump_seed(now);
                false
            }
            PagesOutcome::Pages { .. } => false,
            // No copy can give them now: none has come so far, or none is up. The timer asks again, for a while.
            PagesOutcome::Unreadable { .. } => {
                c.failed_reads += 1;
                c.pace.failed(now + self.limits.heartbeat_every);
                c.failed_reads > PAGE_READS_MAX
            }
        }
    }

    fn pump_seed(&mut self, now: Instant) {
        let Progress::CatchUp(c) = &mut self.progress else { return };
        if !c.wants_read() || now < c.pace.not_before() {
            return;
        }
        if let Some(from) = c.next_page {
            c.reading = true;
            c.pace.asked(now);
            self.effects.push_back(SenderEffect::ReadPages { at: c.base.end.end_lsn, from, bytes_max: self.limits.batch_bytes_max / 2 });
        } else {
            c.ended = true;
            let message = Message::Control(Control::SeedEnd { base: c.base.end.seq, step: c.next_step });
            c.unstored.push_back((c.next_step, message.clone()));
            self.effects.push_back(SenderEffect::Send(message));
        }
    }

    /// The secondary stored a step of the seed.
    pub fn handle_seed_stored(&mut self, now: Instant, base: Seq, step: u64, vdl: &LogEnd) {
        self.last_heard = now;
        let Progress::CatchUp(c) = &mut self.progress else { return };
        if c.base.end.seq != base {
            return; // of a seed that was given up
        }
        while c.unstored.front().is_some_and(|(s, _)| *s <= step) {
            if let Some((_, Message::Pages { pages, .. })) = c.unstored.pop_front() {
                c.bytes_done += pages.iter().map(|(_, b)| b.len() as u64).sum::<u64>();
                c.pages_done = pages.last().map_or(c.pages_done, |(page, _)| u64::from(page.0) + 1);
            }
            self.last_progress = now;
        }
        self.meter.observe(now, c.bytes_done, 0);
        if c.ended && c.unstored.is_empty() {
            let base = c.base.end;
            self.received = base;
            self.durable = base;
            self.said_durable = base;
            self.effects.push_back(SenderEffect::SeedDone);
            self.meter.clear();
            self.become_stream(base);
            self.pump(now, vdl);
        } else {
            self.pump_seed(now);
        }
    }

    /// Far behind in the log is catching up, until it has everything of the moment.
    fn judge_behind(&mut self, now: Instant, vdl: &LogEnd) {
        if !matches!(self.progress, Progress::Stream { .. }) {
            self.behind_since = None;
            return;
        }
        let behind = vdl.end_lsn.bytes_since(self.durable.end_lsn);
        match self.behind_since {
            None if behind > BEHIND_BYTES => {
                self.meter.clear();
                self.behind_since = Some(self.durable.end_lsn);
            }
            Some(_) if behind <= BEHIND_BYTES / 4 => self.behind_since = None,
            _ => {}
        }
        if let Some(from) = self.behind_since {
            self.meter.observe(now, self.durable.end_lsn.bytes_since(from), vdl.end_lsn.bytes_since(from));
        }
    }

    pub fn handle_progress(&mut self, now: Instant, received: LogEnd, durable: LogEnd, visible: Lsn, vdl: &LogEnd) {
        self.last_heard = now;
        if !matches!(self.progress, Progress::Stream { .. }) {
            return;
        }
        if received.seq > self.received.seq {
            self.received = received;
        }
        if durable.seq > self.durable.seq {
            self.durable = durable;
            self.last_progress = now;
        }
        if durable.seq > self.said_durable.seq {
            self.said_durable = durable;
        }
        self.visible = self.visible.max(visible);
        self.pump(now, vdl);
    }

    pub fn handle_heartbeat_reply(&mut self, now: Instant, wall: UnixMicros, reply: HeartbeatReply, vdl: &LogEnd) {
        self.echo = Some((reply.replied_at, wall));
        self.lag = reply.lag;
        self.handle_progress(now, reply.received, reply.durable, reply.visible, vdl);
        self.last_heard = now;
    }

    /// Heartbeats, and stepping back when nothing moves.
    pub fn handle_timeout(&mut self, now: Instant, wall: UnixMicros, vdl: &LogEnd) {
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + self.limits.heartbeat_every;
            self.heartbeat_no += 1;
            let heartbeat = Heartbeat { no: self.heartbeat_no, sent_at: wall, vdl: *vdl, echo: self.echo };
            self.effects.push_back(SenderEffect::Send(Message::Heartbeat(heartbeat)));
        }
        if self.owes_progress() && now >= self.last_progress + self.limits.resend_after {
            self.last_progress = now;
            match &mut self.progress {
                Progress::Probe => {}
                // What was received without a gap is there or on its way to its disks; go on behind it.
                Progress::Stream { .. } => self.become_stream(self.received),
                Progress::CatchUp(c) => {
                    for (_, message) in &c.unstored {
                        if let Message::Pages { pages, .. } = message {
                            self.pages_sent += pages.len() as u64;
                        }
                        self.effects.push_back(SenderEffect::Send(message.clone()));
                    }
                }
            }
        }
        self.pump(now, vdl);
        self.pump_seed(now);
    }
}

impl CatchUp {
    /// Whether the next step may be read, as far as what is in flight goes.
    fn wants_read(&self) -> bool {
        !self.reading && !self.ended && self.unstored.len() < SEED_STEPS_IN_FLIGHT
    }
}

/// How many terms of `history` lie at or before the position: they must be exactly the position's own.
fn history_before(history: &History, position: &Position) -> usize {
    let same = history.terms().iter().zip(position.history.terms()).take_while(|(a, b)| a == b).count();
    if same == position.history.terms().len() { same } else { usize::MAX }
}
