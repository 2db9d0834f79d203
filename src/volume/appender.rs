//! The appender: one per region, over six copies.
//!
//! Story: a new incarnation raises its generation on the copies, learns what lies there, chooses one log, and from then on
//! appends: every frame goes to all six, in order; four acknowledgements make it durable. A copy that fell behind is fed
//! from memory, from another copy's log, or, when the log no longer reaches back, with pages and then the log.
//!
//! Decides: which tail survives, when a frame is durable, what each copy is sent next, when writes must stop. Never
//! decides who is primary: the node says `lead` (append a generation start, write) or `follow` (take the primary's frames).
//! Never touches a disk. Driven by the node: `handle_*` in, `poll_effect` out, `next_timeout`; the order does not matter.

use super::message::{CopyReply, CopyRequest, CopyState};
use super::quorum::{self, COPIES, WRITE_QUORUM};
use super::recovery::{self, Choice, Heard};
use super::repair::Repair;
use crate::base::{CopyId, Epoch, Generation, Instant, Limits, LineageId, LogEnd, Lsn, PageNo, Prng, Seq, UnixMicros};
use crate::log::{ControlFrame, FRAME_HEADER_BYTES, Frame, History, LogOutcome, PagesOutcome, Pen, SeedBase};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long recovery waits for more than the copies it needs, so that a copy that is merely slow to open takes part.
const RECOVERY_GRACE: Duration = Duration::from_millis(300);
/// Copies are told of a new VDL at the latest after this, when no frame carries it.
const VDL_NOTICE_AFTER: Duration = Duration::from_millis(2);
/// A copy that owes an answer is asked again after this.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The log is kept at least this far back, for copies and secondaries that are a little behind.
const LOG_KEEP_BYTES_MIN: u64 = 16 << 20;

/// What the appender wants done.
#[derive(Debug)]
pub enum AppenderEffect {
    ToCopy {
        copy: CopyId,
        request: CopyRequest,
    },
    /// Recovery is over as far as reading goes. The node answers with `lead`, `follow`, `found` or waits for a seed.
    Recovered {
        found: Found,
    },
    /// What `Recovered` said is void: it will be said again.
    RecoveryBeginsAnew,
    /// Recovery cannot decide yet; a sentence for status and the log.
    RecoveryWaits {
        reason: String,
    },
    /// Durable on 4 of 6 now, up to `vdl`, which is a consistency point. `frames` are those since the last time.
    Durable {
        vdl: LogEnd,
        frames: Vec<Frame>,
    },
    /// The volume was seeded (or recovered): everything before is void, it stands at `vdl`.
    Restarted {
        vdl: LogEnd,
    },
    ControlDurable,
    /// Fewer than four copies can take writes: nothing new becomes durable.
    QuorumLost {
        reason: String,
    },
    QuorumRegained,
    CopyChanged {
        copy: CopyId,
        health: CopyHealth,
    },
    /// A newer generation was promised to somebody else: this incarnation is over.
    Fenced {
        promised: Generation,
    },
    Log {
        tag: u64,
        outcome: LogOutcome,
    },
    Pages {
        tag: u64,
        outcome: PagesOutcome,
    },
    /// Step `step` of the region's seed is stored on 4 of 6.
    SeedStored {
        step: u64,
    },
    /// Copies were opened anew in the middle of the region's seed, and too few are left that can finish it: it must begin anew.
    SeedStalled,
}

/// What recovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// All six copies are new (or a founding or a seeding stopped half-way); what control state they hold.
    Empty { control: Vec<u8> },
    /// A log, with the control state kept beside it.
    Log { lineage: LineageId, end: LogEnd, consistent: LogEnd, control: Vec<u8> },
}

/// State of one copy, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyHealth {
    Starting,
    Up,
    /// Gets what it missed from the ring or from another copy's log.
    CatchingUp,
    /// Gets pages from another copy, then the log.
    Seeding,
    Down {
        reason: String,
    },
}

/// One copy as status shows it.
#[derive(Clone, Debug)]
pub struct CopyView {
    pub copy: CopyId,
    pub health: CopyHealth,
    /// Everything up to here is fsynced on this copy.
    pub durable_end: LogEnd,
    pub ingested: Lsn,
}

/// Where the volume is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumePhase {
    /// Raising the generation and hearing the copies.
    Recovering,
    /// Recovered; the node has not said how it goes on.
    Chosen,
    /// New and empty, waiting for pages from the primary.
    AwaitingSeed,
    Serving,
    Fenced,
}

#[derive(Debug)]
enum Contact {
    Down {
        reason: String,
    },
    /// Opened; `Raise` is under way.
    Raising,
    /// Raised, and what it said then.
    Raised(Box<CopyState>),
    /// Part of the appending set.
    Joined,
    /// Gets pages from a peer.
    Repairing(Box<Repair>),
}

#[derive(Debug)]
pub(super) struct Peer {
    contact: Contact,
    /// fsynced there, on the volume's history.
    acked: LogEnd,
    /// Sent (or asked to be read for it) up to here.
    sent: Seq,
    sent_lsn: Lsn,
    ingested: Lsn,
    /// What the copy was last told.
    told_vdl: Seq,
    last_heard: Instant,
    last_asked: Instant,
    /// A log read from another copy on this one's behalf.
    reading: Option<u64>,
    /// Frames collected for a copy whose tail diverges: they go as one request that ends in a newer term (see `Append`).
    splice: Option<Splice>,
    control_stored: u64,
    seed_step: Option<u64>,
    /// It last said another step than the next one (see `Repair::astray`).
    seed_said: Option<u64>,
    health: CopyHealth,
}

#[derive(Debug)]
struct Splice {
    frames: Vec<Frame>,
    tail: (Epoch, Generation),
}

#[derive(Debug)]
enum ReadPurpose {
    Backfill { copy: CopyId },
    Log { tag: u64, from: Seq, bytes_max: usize },
    Pages { tag: u64, at: Lsn, from: PageNo, bytes_max: usize },
    Repair { copy: CopyId },
}

#[derive(Debug)]
struct PendingRead {
    purpose: ReadPurpose,
    source: CopyId,
    asked: Instant,
    tried: Vec<CopyId>,
}

#[derive(Debug)]
pub struct Appender {
    limits: Limits,
    prng: Prng,
    pub(super) generation: Generation,
    phase: VolumePhase,
    /// Another region is the primary: see `recovery::choose`.
    reseedable: bool,
    /// The wall clock's second in which this incarnation began: see `generation_above`.
    began_s: u64,
    /// Copies that promised a newer generation to somebody else.
    refused_by: [bool; COPIES],
    lineage: Option<LineageId>,
    history: History,
    end: LogEnd,
    vdl: LogEnd,
    peers: [Peer; COPIES],
    /// Newest frames, contiguous, ending at `end`. Never shorter than what is not durable.
    ring: VecDeque<Frame>,
    ring_bytes: usize,
    /// What is known to have been durable before this incarnation has a VDL of its own: copies are rebuilt from there. Otherwise three
    /// good copies and three that need pages would wait for each other for ever.
    known_durable: LogEnd,
    /// Consistency points above the VDL.
    points: VecDeque<LogEnd>,
    recovery_since: Option<Instant>,
    recovery_said: String,
    quorum_ok: bool,
    /// The node was told, one way or the other, since the volume serves.
    quorum_said: bool,
    vdl_moved: Option<Instant>,
    reads: BTreeMap<u64, PendingRead>,
    next_read: u64,
    /// Seeds begun so far, of copies and of the region.
    seeds: u64,
    control: Vec<u8>,
    control_version: u64,
    control_reported: u64,
    seeding: Option<Seeding>,
    /// (when, VDL): what "an LSN so long ago" means, for the retention of page versions.
    moments: VecDeque<(Instant, Lsn)>,
    /// (seq, LSN) every so often: what "so many bytes back" means, for the retention of the log.
    milestones: VecDeque<(Seq, Lsn)>,
    readers_need: Lsn,
    pages_need: Option<Lsn>,
    secondaries_need: Option<Seq>,
    effects: VecDeque<AppenderEffect>,
}

/// The region's own seed: pages from the primary go to all six copies.
#[derive(Debug)]
struct Seeding {
    base: SeedBase,
    /// Where its steps are counted from at the copies; here they count from 0.
    first: u64,
    /// Steps handed in and not yet stored on four.
    requests: VecDeque<(u64, CopyRequest)>,
    last_step: u64,
    stored: u64,
    /// `SeedEnd` was handed in.
    ending: bool,
    stalled: bool,
}

impl Peer {
    fn new() -> Peer {
        Peer {
            contact: Contact::Down { reason: "it has not been opened yet".into() },
            acked: LogEnd::EMPTY,
            sent: Seq(0),
            sent_lsn: Lsn(0),
            ingested: Lsn(0),
            told_vdl: Seq(0),
            last_heard: Instant::ZERO,
            last_asked: Instant::ZERO,
            reading: None,
            splice: None,
            control_stored: 0,
            seed_step: None,
            seed_said: None,
            health: CopyHealth::Starting,
        }
    }

    fn is_joined(&self) -> bool {
        matches!(self.contact, Contact::Joined)
    }

    fn bytes_in_flight(&self) -> u64 {
        self.sent_lsn.bytes_since(self.acked.end_lsn) + self.sent.0.saturating_sub(self.acked.seq.0) * FRAME_HEADER_BYTES as u64
    }
}

impl Appender {
    #[must_use]
    pub fn new(limits: Limits, prng: Prng, wall: UnixMicros, reseedable: bool) -> Appender {
        Appender {
            limits,
            prng,
            generation: Generation(0),
            phase: VolumePhase::Recovering,
            reseedable,
            // Bounded, so that a clock from the far future leaves room above.
            began_s: (wall.0 / 1_000_000).min(1 << 40),
            refused_by: [false; COPIES],
            lineage: None,
            history: History::default(),
            end: LogEnd::EMPTY,
            vdl: LogEnd::EMPTY,
            known_durable: LogEnd::EMPTY,
            peers: std::array::from_fn(|_| Peer::new()),
            ring: VecDeque::new(),
            ring_bytes: 0,
            points: VecDeque::new(),
            recovery_since: None,
            recovery_said: String::new(),
            quorum_ok: false,
            quorum_said: false,
            vdl_moved: None,
            reads: BTreeMap::new(),
            next_read: 1,
            seeds: 0,
            control: Vec::new(),
            control_version: 0,
            control_reported: 0,
            seeding: None,
            moments: VecDeque::new(),
            milestones: VecDeque::new(),
            readers_need: Lsn(u64::MAX),
            pages_need: None,
            secondaries_need: None,
            effects: VecDeque::new(),
        }
    }

    // ---- what the node asks ----------------------------------------------------------------------------------------

    #[must_use]
    pub fn phase(&self) -> &VolumePhase {
        &self.phase
    }

    /// Appended (assigned): the end of the log, durable or not.
    #[must_use]
    pub fn end(&self) -> &LogEnd {
        &self.end
    }

    /// The last consistency point that is durable on 4 of 6.
    #[must_use]
    pub fn vdl(&self) -> &LogEnd {
        &self.vdl
    }

    #[must_use]
    pub fn lineage(&self) -> Option<LineageId> {
        self.lineage
    }

    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    #[must_use]
    pub fn has_quorum(&self) -> bool {
        self.quorum_ok
    }

    /// Bytes appended and not yet durable.
    #[must_use]
    pub fn bytes_not_durable(&self) -> u64 {
        self.end.end_lsn.bytes_since(self.vdl.end_lsn)
    }

    #[must_use]
    pub fn copies(&self) -> Vec<CopyView> {
        CopyId::all()
            .into_iter()
            .zip(&self.peers)
            .map(|(copy, p)| CopyView { copy, health: p.health.clone(), durable_end: p.acked, ingested: p.ingested })
            .collect()
    }

    pub fn poll_effect(&mut self) -> Option<AppenderEffect> {
        self.effects.pop_front()
    }

    /// When `handle_timeout` wants to be called, at the latest.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut at = |t: Instant| next = Some(next.map_or(t, |n| n.min(t)));
        if let Some(since) = self.recovery_since
            && self.phase == VolumePhase::Recovering
        {
            at(since + RECOVERY_GRACE);
        }
        if let Some(moved) = self.vdl_moved {
            at(moved + VDL_NOTICE_AFTER);
        }
        for peer in &self.peers {
            if self.owes_answer(peer) {
                at(peer.last_asked.max(peer.last_heard) + ASK_AGAIN_AFTER);
            }
        }
        for read in self.reads.values() {
            at(read.asked + self.limits.copy_silent_after);
        }
        next
    }

    // ---- what happens ----------------------------------------------------------------------------------------------

    /// A copy was opened (again); `promised` is what it promised in an earlier life.
    pub fn copy_opened(&mut self, now: Instant, copy: CopyId, promised: Generation) {
        self.drop_reads_of(copy);
        let peer = &mut self.peers[copy.index()];
        *peer = Peer { health: CopyHealth::Starting, last_heard: now, ..Peer::new() };
        peer.contact = Contact::Raising;
        if self.phase == VolumePhase::Recovering {
            self.recovery_since.get_or_insert(now);
            if self.generation <= promised {
                self.generation = self.generation_above(promised);
                for id in CopyId::all() {
                    if matches!(self.peers[id.index()].contact, Contact::Raising | Contact::Raised(_)) {
                        self.raise(now, id);
                    }
                }
                return;
            }
        }
        self.raise(now, copy);
    }

    /// A copy stopped, failed, or its process is gone.
    pub fn copy_lost(&mut self, now: Instant, copy: CopyId, reason: String) {
        self.drop_reads_of(copy);
        let peer = &mut self.peers[copy.index()];
        peer.contact = Contact::Down { reason: reason.clone() };
        peer.reading = None;
        peer.splice = None;
        peer.seed_step = None;
        self.set_health(copy, CopyHealth::Down { reason });
        if self.lost_the_chosen_tail() {
            self.recover_again(now);
        }
        self.retry_orphaned_reads(now);
        self.judge_quorum();
    }

    pub fn handle_reply(&mut self, now: Instant, copy: CopyId, reply: CopyReply) {
        if matches!(self.peers[copy.index()].contact, Contact::Down { .. }) {
            return; // an answer from before it went down
        }
        self.peers[copy.index()].last_heard = now;
        match reply {
            CopyReply::Raised { generation, state } => self.raised(now, copy, generation, state),
            CopyReply::Refused { promised } => self.refused(now, copy, promised),
            CopyReply::Appended { generation, end, ingested } => {
                if generation == self.generation {
                    self.appended(now, copy, end, ingested);
                }
            }
            CopyReply::Misplaced { generation, end, history } => {
                if generation == self.generation && self.peers[copy.index()].is_joined() {
                    self.place(now, copy, end, &history);
                    self.pump(now, copy);
                }
            }
            CopyReply::ControlStored { generation, version } => {
                if generation == self.generation {
                    let peer = &mut self.peers[copy.index()];
                    peer.control_stored = peer.control_stored.max(version);
                    self.judge_control();
                }
            }
            CopyReply::Log { id, frames } => self.log_read(now, id, LogOutcome::Frames(frames)),
            CopyReply::LogTrimmed { id, first } => self.log_read(now, id, LogOutcome::Trimmed { first }),
            CopyReply::Pages { id, at, pages, next } => self.pages_read(now, id, at, pages, next),
            CopyReply::Unreadable { id, reason } => self.unreadable(now, id, reason),
            CopyReply::Seeded { generation, step } => {
                if generation == self.generation {
                    self.seeded(now, copy, step);
                }
            }
            CopyReply::SeedLost { generation, .. } => {
                if generation == self.generation {
                    self.seed_lost(now, copy);
                }
            }
            CopyReply::Failed { reason } => self.copy_lost(now, copy, reason),
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.phase == VolumePhase::Recovering {
            self.try_choose(now);
        }
        if self.vdl_moved.is_some_and(|moved| now >= moved + VDL_NOTICE_AFTER) {
            self.vdl_moved = None;
            for copy in CopyId::all() {
                let peer = &self.peers[copy.index()];
                if peer.is_joined() && peer.told_vdl < self.vdl.seq {
                    self.send_append(now, copy, Vec::new());
                }
            }
        }
        for copy in CopyId::all() {
            let peer = &self.peers[copy.index()];
            if self.owes_answer(peer) && now >= peer.last_asked.max(peer.last_heard) + ASK_AGAIN_AFTER {
                self.ask_again(now, copy);
            }
        }
        let late: Vec<u64> = self.reads.iter().filter(|(_, r)| now >= r.asked + self.limits.copy_silent_after).map(|(id, _)| *id).collect();
        for id in late {
            self.unreadable(now, id, "the copy did not answer in time".into());
        }
    }

    // ---- what the node orders --------------------------------------------------------------------------------------

    /// Goes on as the primary: cuts the tail above the last consistency point by a generation start. Returns the pen; nothing
    /// it writes, and nothing of the old tail, is durable before that frame is.
    ///
    /// # Panics
    /// When recovery has not chosen a log.
    pub fn lead(&mut self, now: Instant, wall: UnixMicros, epoch: Epoch, consistent: LogEnd) -> Pen {
        assert_eq!(self.phase, VolumePhase::Chosen, "BUG: lead before recovery chose a log");
        let start = ControlFrame::GenerationStart.encode(&consistent, epoch, self.generation, wall);
        self.end = consistent;
        self.history.cut_from(consistent.seq.next());
        self.vdl = LogEnd::EMPTY;
        self.push(start);
        self.serve(now);
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Founds a new global cluster on six empty copies.
    ///
    /// # Panics
    /// When the copies are not all empty.
    pub fn found(&mut self, now: Instant, wall: UnixMicros, lineage: LineageId) -> Pen {
        assert!(self.phase == VolumePhase::AwaitingSeed && self.seeding.is_none(), "BUG: founding on a volume that is not empty");
        let epoch = Epoch(1);
        self.lineage = Some(lineage);
        self.end = LogEnd::EMPTY;
        self.push(ControlFrame::EpochStart { lineage }.encode(&LogEnd::EMPTY, epoch, self.generation, wall));
        self.serve(now);
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Goes on as a secondary behind the log that was chosen.
    ///
    /// # Panics
    /// When recovery has not chosen a log.
    pub fn follow(&mut self, now: Instant, consistent: LogEnd) {
        assert_eq!(self.phase, VolumePhase::Chosen, "BUG: follow before recovery chose a log");
        self.vdl = LogEnd::EMPTY;
        // The beginning of a mini-transaction behind it comes again, and copies skip what they have: so whoever is told of newly
        // durable frames is told of all of them.
        self.end = consistent;
        self.history.cut_from(consistent.seq.next());
        self.points.push_back(consistent);
        self.known_durable = consistent;
        self.serve(now);
    }

    /// Appends frames that follow `end`: the pen's, or those that a primary shipped.
    ///
    /// # Panics
    /// When a frame does not follow the log's end: the caller (the pen's holder, the receiver) has checked it.
    pub fn append(&mut self, now: Instant, frames: Vec<Frame>) {
        assert_eq!(self.phase, VolumePhase::Serving, "BUG: append to a volume that does not serve");
        for frame in frames {
            assert!(frame.follows(&self.end), "BUG: {frame:?} does not follow {}", self.end);
            self.push(frame);
        }
        for copy in CopyId::all() {
            self.pump(now, copy);
        }
    }

    /// Keeps `control` on all six; `ControlDurable` when four have it.
    pub fn put_control(&mut self, control: Vec<u8>) {
        self.control = control;
        self.control_version += 1;
        for copy in CopyId::all() {
            self.send_control(copy);
        }
    }

    /// Frames from `from` on; answered by an effect, from memory or from the copy that can.
    pub fn read_log(&mut self, now: Instant, tag: u64, from: Seq, bytes_max: usize) {
        if let Some(frames) = self.ring_from(from, bytes_max) {
            self.effects.push_back(AppenderEffect::Log { tag, outcome: LogOutcome::Frames(frames) });
            return;
        }
        self.start_read(now, ReadPurpose::Log { tag, from, bytes_max }, Vec::new());
    }

    /// All pages as of `at`, from `from` on; answered by an effect.
    pub fn read_pages(&mut self, now: Instant, tag: u64, at: Lsn, from: PageNo, bytes_max: usize) {
        self.start_read(now, ReadPurpose::Pages { tag, at, from, bytes_max }, Vec::new());
    }

    /// What must stay readable: the oldest LSN that a reader pins, the LSN that a seed is being read at, and the first seq
    /// that a secondary still needs. Bounded by the limits; nothing holds the log back longer than its budget.
    pub fn set_needs(&mut self, readers: Lsn, pages: Option<Lsn>, secondaries: Option<Seq>) {
        self.readers_need = readers;
        self.pages_need = pages;
        self.secondaries_need = secondaries;
    }

    /// Begins to replace the whole volume by the primary's pages at `base`.
    pub fn seed_begin(&mut self, now: Instant, base: SeedBase) {
        self.phase = VolumePhase::AwaitingSeed;
        self.ring.clear();
        self.ring_bytes = 0;
        self.points.clear();
        self.reads.clear();
        self.milestones.clear();
        self.vdl = LogEnd::EMPTY;
        self.known_durable = LogEnd::EMPTY;
        let first = self.first_step();
        let request = CopyRequest::SeedBegin { generation: self.generation, step: first, base: base.clone() };
        self.seeding =
            Some(Seeding { base, first, requests: VecDeque::from([(0, request)]), last_step: 0, stored: 0, ending: false, stalled: false });
        for copy in CopyId::all() {
            let peer = &mut self.peers[copy.index()];
            if matches!(peer.contact, Contact::Raised(_) | Contact::Joined | Contact::Repairing(_)) {
                peer.contact = Contact::Joined;
                peer.acked = LogEnd::EMPTY;
                peer.reading = None;
                peer.splice = None;
                peer.seed_step = None;
                peer.seed_said = None;
                self.set_health(copy, CopyHealth::Seeding);
            }
            self.feed_seed(now, copy);
        }
    }

    /// The next pages of the region's seed. Returns the step's number.
    pub fn seed_pages(&mut self, now: Instant, pages: Vec<(PageNo, Bytes)>) -> u64 {
        let generation = self.generation;
        self.seed_step(now, false, |step| CopyRequest::SeedPages { generation, step, pages })
    }

    /// The seed is complete: publish it. `SeedStored` with the returned step says it is on four.
    pub fn seed_end(&mut self, now: Instant) -> u64 {
        let generation = self.generation;
        self.seed_step(now, true, |step| CopyRequest::SeedEnd { generation, steps: step - 1 })
    }

    // ---- raising and choosing --------------------------------------------------------------------------------------

    fn raise(&mut self, now: Instant, copy: CopyId) {
        let peer = &mut self.peers[copy.index()];
        peer.contact = Contact::Raising;
        peer.last_asked = now;
        self.effects.push_back(AppenderEffect::ToCopy { copy, request: CopyRequest::Raise { generation: self.generation } });
    }

    fn refused(&mut self, now: Instant, copy: CopyId, promised: Generation) {
        if promised <= self.generation {
            return; // an answer to an older request of ours
        }
        if self.phase == VolumePhase::Recovering {
            self.copy_opened(now, copy, promised);
            return;
        }
        // So many that a newer appender could recover with them: this one is over. One or two are left from a recovery that never
        // came to an end; they take no part until the next start.
        self.refused_by[copy.index()] = true;
        if self.refused_by.iter().filter(|r| **r).count() < quorum::READ_QUORUM {
            let reason = format!("it promised generation {promised} to an earlier start of this region; restart the region to take it in");
            self.copy_lost(now, copy, reason);
        } else if self.phase != VolumePhase::Fenced {
            self.phase = VolumePhase::Fenced;
            self.effects.push_back(AppenderEffect::Fenced { promised });
        }
    }

    fn raised(&mut self, now: Instant, copy: CopyId, generation: Generation, state: CopyState) {
        if generation != self.generation || !matches!(self.peers[copy.index()].contact, Contact::Raising) {
            return;
        }
        self.peers[copy.index()].contact = Contact::Raised(Box::new(state));
        match self.phase {
            VolumePhase::Recovering => self.try_choose(now),
            VolumePhase::Serving => self.join(now, copy),
            VolumePhase::AwaitingSeed if self.seeding.is_some() => {
                self.peers[copy.index()].contact = Contact::Joined;
                self.set_health(copy, CopyHealth::Seeding);
                self.feed_seed(now, copy);
            }
            VolumePhase::Chosen | VolumePhase::AwaitingSeed | VolumePhase::Fenced => {}
        }
        self.send_control(copy);
    }

    fn try_choose(&mut self, now: Instant) {
        let raised = self.peers.iter().filter(|p| matches!(p.contact, Contact::Raised(_))).count();
        let grace_over = self.recovery_since.is_some_and(|since| now >= since + RECOVERY_GRACE);
        if raised < COPIES && !grace_over {
            return;
        }
        let heard: [Heard<'_>; COPIES] = std::array::from_fn(|i| match &self.peers[i].contact {
            Contact::Raised(state) => Heard::Raised(state),
            _ => Heard::Nothing,
        });
        let newest = heard.iter().filter_map(|h| if let Heard::Raised(s) = h { Some((s.control_version, &s.control)) } else { None }).max();
        let (control_version, control) = newest.map_or((0, Vec::new()), |(v, c)| (v, c.clone()));
        match recovery::choose(&heard, self.reseedable) {
            Choice::Wait { reason } => {
                // Asked again with every copy that answers; said once for each change.
                self.recovery_since = None;
                if reason != self.recovery_said {
                    self.recovery_said.clone_from(&reason);
                    self.effects.push_back(AppenderEffect::RecoveryWaits { reason });
                }
            }
            Choice::Empty => {
                self.phase = VolumePhase::AwaitingSeed;
                self.control_version = control_version;
                self.effects.push_back(AppenderEffect::Recovered { found: Found::Empty { control } });
            }
            Choice::Log { source } => {
                let Contact::Raised(state) = &self.peers[source.index()].contact else { unreachable!("BUG: the chosen copy was raised") };
                let state = state.clone();
                self.phase = VolumePhase::Chosen;
                self.lineage = state.lineage;
                self.history = state.history.clone();
                self.end = state.end;
                self.known_durable = (heard.iter())
                    .filter_map(|h| if let Heard::Raised(s) = h { Some(*s) } else { None })
                    .filter(|s| s.lineage == state.lineage && s.flushed.seq <= state.end.seq && state.history.contains(&s.flushed))
                    .map(|s| s.flushed)
                    .max_by_key(|flushed| flushed.seq)
                    .unwrap_or(LogEnd::EMPTY);
                self.control_version = control_version;
                self.control = control;
                self.milestones = VecDeque::from([(state.first, Lsn(0)), (state.end.seq, state.end.end_lsn)]);
                let found = Found::Log {
                    lineage: state.lineage.expect("BUG: a chosen copy has a lineage"),
                    end: state.end,
                    consistent: state.consistent,
                    control: self.control.clone(),
                };
                self.effects.push_back(AppenderEffect::Recovered { found });
            }
        }
    }

    /// The copy whose log recovery chose is gone before anybody else had all of it, and nothing is durable yet: what is missing was
    /// never acknowledged, and may never come back.
    fn lost_the_chosen_tail(&self) -> bool {
        let best = self.peers.iter().filter(|p| p.is_joined()).map(|p| p.acked.seq).max().unwrap_or(Seq(0));
        self.phase == VolumePhase::Serving && self.vdl == LogEnd::EMPTY && self.first_in_ring().unwrap_or(self.end.seq.next()) > best.next()
    }

    /// From the beginning, as a new generation: the one that was begun has nothing durable and ends here.
    fn recover_again(&mut self, now: Instant) {
        self.phase = VolumePhase::Recovering;
        self.recovery_since = Some(now);
        self.recovery_said.clear();
        self.quorum_said = false;
        self.ring.clear();
        self.ring_bytes = 0;
        self.points.clear();
        self.reads.clear();
        self.generation = self.generation_above(self.generation);
        self.effects.push_back(AppenderEffect::RecoveryBeginsAnew);
        for id in CopyId::all() {
            let peer = &mut self.peers[id.index()];
            if !matches!(peer.contact, Contact::Down { .. }) {
                *peer = Peer { health: CopyHealth::Starting, last_heard: now, ..Peer::new() };
                self.raise(now, id);
            }
        }
    }

    /// A generation above `promised`, and above that of every earlier incarnation, also of one that this one has not heard of:
    /// a recovery that crashed may have raised only copies that are away now, and they would refuse a lower number for ever.
    /// The counter is therefore at least the second this incarnation began in. Nothing is unsafe if the clock lies: such a copy
    /// then stays out until the next start. The 16 random bits below it: two incarnations never share a number.
    fn generation_above(&mut self, promised: Generation) -> Generation {
        let counter = ((promised.0 >> 16) + 1).max(self.began_s);
        Generation((counter << 16) | self.prng.below(1 << 16))
    }

    fn serve(&mut self, now: Instant) {
        self.phase = VolumePhase::Serving;
        for copy in CopyId::all() {
            if matches!(self.peers[copy.index()].contact, Contact::Raised(_)) {
                self.join(now, copy);
            }
        }
        self.judge_quorum();
        self.judge_durable(now);
    }

    /// Takes a raised copy into the appending set: finds where its log and the volume's part, and goes on from there.
    fn join(&mut self, now: Instant, copy: CopyId) {
        let Contact::Raised(state) = std::mem::replace(&mut self.peers[copy.index()].contact, Contact::Joined) else {
            unreachable!("BUG: only a raised copy joins")
        };
        self.peers[copy.index()].ingested = state.ingested;
        self.set_health(copy, CopyHealth::CatchingUp);
        let foreign = state.lineage.is_some() && state.lineage != self.lineage;
        let pages_exist = self.vdl != LogEnd::EMPTY || self.known_durable != LogEnd::EMPTY;
        if foreign || (state.lineage.is_none() && self.first_in_ring() != Some(Seq(1)) && pages_exist) {
            self.repair(now, copy);
        } else {
            self.place(now, copy, state.end, &state.history);
            self.introduce(now, copy);
            self.pump(now, copy);
        }
        self.judge_quorum();
        self.judge_durable(now);
    }

    /// A copy that came (back) is told the VDL even when nothing is written: it makes pages up to there, and its answer shows
    /// that it is up.
    fn introduce(&mut self, now: Instant, copy: CopyId) {
        self.peers[copy.index()].told_vdl = Seq(0);
        if self.vdl != LogEnd::EMPTY {
            self.vdl_moved.get_or_insert(now);
        }
    }

    /// Where a copy stands on the volume's history: what counts as acknowledged, and what must be sent next.
    fn place(&mut self, now: Instant, copy: CopyId, end: LogEnd, history: &History) {
        let common = self.history.common_seq(self.end.seq, history, end.seq);
        let peer = &mut self.peers[copy.index()];
        peer.reading = None;
        peer.splice = None;
        peer.last_heard = now;
        if end.seq == common {
            // Its whole log is on ours.
            peer.acked = end;
            peer.sent = end.seq;
            peer.sent_lsn = end.end_lsn;
        } else if common == self.end.seq && self.history.contains(&end) {
            // It is ahead, on the same term: a secondary's copy that has more than recovery chose. It skips what it has.
            peer.acked = self.end;
            peer.sent = common;
            peer.sent_lsn = self.end.end_lsn;
        } else {
            // A tail that recovery cut. It acknowledges nothing before its successor frame replaced it.
            peer.acked = LogEnd::EMPTY;
            peer.sent = common;
            peer.sent_lsn = Lsn(0);
            peer.splice = Some(Splice { frames: Vec::new(), tail: (end.epoch, end.generation) });
        }
    }

    // ---- appending -------------------------------------------------------------------------------------------------

    fn push(&mut self, frame: Frame) {
        self.end = frame.log_end();
        self.history.note(&frame);
        if frame.is_consistency_point() {
            self.points.push_back(self.end);
        }
        if self.milestones.back().is_none_or(|(_, l)| self.end.end_lsn.bytes_since(*l) >= 1 << 20 || self.limits.log_retain_bytes < 1 << 20)
        {
            self.milestones.push_back((self.end.seq, self.end.end_lsn));
        }
        self.ring_bytes += frame.bytes().len();
        self.ring.push_back(frame);
        while self.ring_bytes > self.limits.ring_bytes_max && self.ring.front().is_some_and(|f| f.seq() <= self.vdl.seq) {
            let gone = self.ring.pop_front().expect("BUG: a front was seen");
            self.ring_bytes -= gone.bytes().len();
        }
    }

    fn first_in_ring(&self) -> Option<Seq> {
        self.ring.front().map(Frame::seq)
    }

    /// Frames from `from` on out of memory; `None` when memory does not reach back so far. Empty when `from` is past the end.
    fn ring_from(&self, from: Seq, bytes_max: usize) -> Option<Vec<Frame>> {
        if from > self.end.seq {
            return Some(Vec::new());
        }
        let first = self.first_in_ring()?;
        let skip = usize::try_from(from.0.checked_sub(first.0)?).expect("BUG: the ring is in memory");
        let mut bytes = 0;
        let frames = self.ring.range(skip..).take_while(|f| {
            let fits = bytes == 0 || bytes + f.bytes().len() <= bytes_max;
            bytes += f.bytes().len();
            fits
        });
        Some(frames.cloned().collect())
    }

    /// Sends a joined copy what it lacks, as far as its window allows.
    fn pump(&mut self, now: Instant, copy: CopyId) {
        loop {
            let peer = &self.peers[copy.index()];
            if !peer.is_joined() || peer.reading.is_some() || self.phase != VolumePhase::Serving || peer.sent >= self.end.seq {
                return;
            }
            let window = self.limits.copy_window_bytes_max as u64;
            if peer.splice.is_none() && peer.bytes_in_flight() >= window {
                return;
            }
            let from = peer.sent.next();
            let Some(frames) = self.ring_from(from, self.limits.batch_bytes_max) else {
                self.start_read(now, ReadPurpose::Backfill { copy }, vec![copy]);
                return;
            };
            self.feed(now, copy, frames);
        }
    }

    /// Sends `frames`, which follow what was sent; a splice is collected until it ends in a newer term.
    fn feed(&mut self, now: Instant, copy: CopyId, frames: Vec<Frame>) {
        let Some(last) = frames.last() else { return };
        let peer = &mut self.peers[copy.index()];
        peer.sent = last.seq();
        peer.sent_lsn = last.end_lsn();
        if let Some(splice) = &mut peer.splice {
            splice.frames.extend(frames);
            let newer = splice.frames.iter().any(|f| (f.header().epoch, f.header().generation) > splice.tail);
            if newer {
                let splice = peer.splice.take().expect("BUG: it was just there");
                self.send_append(now, copy, splice.frames);
            }
        } else {
            self.send_append(now, copy, frames);
        }
    }

    fn send_append(&mut self, now: Instant, copy: CopyId, frames: Vec<Frame>) {
        let request =
            CopyRequest::Append { generation: self.generation, frames, vdl: self.vdl, horizon: self.horizon(now), trim: self.trim() };
        let peer = &mut self.peers[copy.index()];
        peer.told_vdl = self.vdl.seq;
        peer.last_asked = now;
        self.effects.push_back(AppenderEffect::ToCopy { copy, request });
    }

    fn appended(&mut self, now: Instant, copy: CopyId, end: LogEnd, ingested: Lsn) {
        if let Some(seeding) = &self.seeding
            && self.phase == VolumePhase::AwaitingSeed
        {
            // The answer to SeedEnd.
            if seeding.ending && end == seeding.base.end {
                let last = seeding.first + seeding.last_step;
                self.seeded(now, copy, last);
            }
            return;
        }
        if self.phase != VolumePhase::Serving {
            return;
        }
        let peer = &mut self.peers[copy.index()];
        if let Contact::Repairing(repair) = &peer.contact {
            if repair.is_done_at(&end) {
                peer.contact = Contact::Joined;
                peer.ingested = ingested;
                self.set_health(copy, CopyHealth::CatchingUp);
                let history = self.history.clone();
                self.place(now, copy, end, &history);
                self.introduce(now, copy);
                self.pump(now, copy);
                self.judge_quorum();
                self.judge_durable(now);
            }
            return;
        }
        // An acknowledgement of frames that are not on the volume's history counts nothing (it was sent before a splice).
        if !peer.is_joined() || !self.history.contains(&end) || peer.splice.is_some() {
            return;
        }
        // Ahead on the same term: it has all that is here.
        let end = if end.seq > self.end.seq { self.end } else { end };
        peer.ingested = ingested.max(peer.ingested);
        if end.seq >= peer.acked.seq {
            peer.acked = end;
        }
        if peer.sent < end.seq {
            peer.sent = end.seq;
            peer.sent_lsn = end.end_lsn;
        }
        self.judge_durable(now);
        self.judge_health(copy);
        self.pump(now, copy);
    }

    /// Durable = the 4th highest acknowledged seq; VDL = the last consistency point at or below it.
    fn judge_durable(&mut self, now: Instant) {
        if self.phase != VolumePhase::Serving {
            return;
        }
        let durable = quorum::durable(std::array::from_fn(|i| self.peers[i].acked.seq));
        let mut vdl = None;
        while self.points.front().is_some_and(|p| p.seq <= durable) {
            vdl = self.points.pop_front();
        }
        let Some(vdl) = vdl else { return };
        let first = self.vdl == LogEnd::EMPTY;
        let before = self.vdl.seq;
        self.vdl = vdl;
        self.vdl_moved.get_or_insert(now);
        if self.moments.back().is_none_or(|(t, _)| now.since(*t) >= Duration::from_secs(1)) {
            self.moments.push_back((now, vdl.end_lsn));
        }
        if first {
            self.effects.push_back(AppenderEffect::Restarted { vdl });
            return;
        }
        let skip =
            self.first_in_ring().map_or(0, |f| usize::try_from(before.next().0.saturating_sub(f.0)).expect("BUG: the ring is in memory"));
        let frames: Vec<Frame> = self.ring.range(skip.min(self.ring.len())..).take_while(|f| f.seq() <= vdl.seq).cloned().collect();
        debug_assert_eq!(frames.len() as u64, vdl.seq.0 - before.0, "BUG: the ring lost a frame that was not durable");
        self.effects.push_back(AppenderEffect::Durable { vdl, frames });
    }

    fn horizon(&mut self, now: Instant) -> Lsn {
        while self.moments.len() > 1 && now.since(self.moments[1].0) >= self.limits.version_retain {
            self.moments.pop_front();
        }
        let by_time = self.moments.front().filter(|(t, _)| now.since(*t) >= self.limits.version_retain).map_or(Lsn(0), |(_, l)| *l);
        let repairs = self.peers.iter().filter_map(|p| if let Contact::Repairing(r) = &p.contact { Some(r.at()) } else { None }).min();
        by_time.min(self.readers_need).min(self.pages_need.unwrap_or(Lsn(u64::MAX))).min(repairs.unwrap_or(Lsn(u64::MAX)))
    }

    fn trim(&mut self) -> Seq {
        let end = self.vdl.end_lsn;
        let budget = self.limits.log_retain_bytes;
        let keep_min = LOG_KEEP_BYTES_MIN.min(budget);
        let needed = self.secondaries_need.unwrap_or(Seq(u64::MAX)).min(self.peers.iter().map(|p| p.acked.seq).min().unwrap_or(Seq(0)));
        while self.milestones.len() > 1 {
            let (seq, at) = self.milestones[1];
            let back = end.bytes_since(at);
            if back > budget || (back > keep_min && seq <= needed) {
                self.milestones.pop_front();
            } else {
                break;
            }
        }
        self.milestones.front().map_or(Seq(0), |(s, _)| *s)
    }

    // ---- reads on behalf of others ---------------------------------------------------------------------------------

    fn source_for(&self, purpose: &ReadPurpose, tried: &[CopyId]) -> Option<CopyId> {
        let able = |p: &Peer| match purpose {
            ReadPurpose::Backfill { copy } => p.acked.seq > self.peers[copy.index()].sent,
            ReadPurpose::Log { from, .. } => p.acked.seq >= *from,
            ReadPurpose::Pages { at, .. } => p.ingested >= *at || p.acked.end_lsn >= *at,
            ReadPurpose::Repair { .. } => p.acked.seq >= self.vdl.seq.max(self.known_durable.seq),
        };
        CopyId::all()
            .into_iter()
            .filter(|c| self.peers[c.index()].is_joined() && !tried.contains(c) && able(&self.peers[c.index()]))
            .max_by_key(|c| (self.peers[c.index()].ingested, std::cmp::Reverse(*c)))
    }

    fn start_read(&mut self, now: Instant, purpose: ReadPurpose, tried: Vec<CopyId>) {
        let Some(source) = self.source_for(&purpose, &tried) else {
            self.read_failed(now, purpose, "no copy can answer".into());
            return;
        };
        let id = self.next_read;
        self.next_read += 1;
        let request = match &purpose {
            ReadPurpose::Backfill { copy } => {
                let peer = &mut self.peers[copy.index()];
                peer.reading = Some(id);
                CopyRequest::ReadLog { id, from: peer.sent.next(), bytes_max: self.limits.batch_bytes_max }
            }
            ReadPurpose::Log { from, bytes_max, .. } => CopyRequest::ReadLog { id, from: *from, bytes_max: *bytes_max },
            ReadPurpose::Pages { at, from, bytes_max, .. } => CopyRequest::ReadPages { id, at: *at, from: *from, bytes_max: *bytes_max },
            ReadPurpose::Repair { copy } => {
                let Contact::Repairing(repair) = &self.peers[copy.index()].contact else { return };
                CopyRequest::ReadPages { id, at: repair.at(), from: repair.next_page(), bytes_max: self.limits.batch_bytes_max }
            }
        };
        self.reads.insert(id, PendingRead { purpose, source, asked: now, tried });
        self.effects.push_back(AppenderEffect::ToCopy { copy: source, request });
    }

    fn log_read(&mut self, now: Instant, id: u64, outcome: LogOutcome) {
        let Some(read) = self.reads.remove(&id) else { return };
        match read.purpose {
            ReadPurpose::Log { tag, .. } => self.effects.push_back(AppenderEffect::Log { tag, outcome }),
            ReadPurpose::Backfill { copy } => {
                let peer = &mut self.peers[copy.index()];
                if peer.reading != Some(id) {
                    return;
                }
                peer.reading = None;
                match outcome {
                    // What is read is only fed as it follows; a copy may have moved on meanwhile.
                    LogOutcome::Frames(frames) if frames.first().is_some_and(|f| f.seq() == peer.sent.next()) => {
                        self.feed(now, copy, frames);
                        self.pump(now, copy);
                    }
                    LogOutcome::Frames(_) => self.pump(now, copy),
                    LogOutcome::Trimmed { .. } => self.repair(now, copy),
                    LogOutcome::Unreadable { .. } => {}
                }
            }
            ReadPurpose::Pages { .. } | ReadPurpose::Repair { .. } => {}
        }
    }

    fn pages_read(&mut self, now: Instant, id: u64, at: Lsn, pages: Vec<(PageNo, Bytes)>, next: Option<PageNo>) {
        let Some(read) = self.reads.remove(&id) else { return };
        match read.purpose {
            ReadPurpose::Pages { tag, .. } => {
                self.effects.push_back(AppenderEffect::Pages { tag, outcome: PagesOutcome::Pages { at, pages, next } })
            }
            ReadPurpose::Repair { copy } => {
                let generation = self.generation;
                if let Contact::Repairing(repair) = &mut self.peers[copy.index()].contact {
                    let request = repair.pages_arrived(generation, pages, next);
                    self.peers[copy.index()].last_asked = now;
                    self.effects.push_back(AppenderEffect::ToCopy { copy, request });
                }
            }
            ReadPurpose::Log { .. } | ReadPurpose::Backfill { .. } => {}
        }
    }

    fn unreadable(&mut self, now: Instant, id: u64, reason: String) {
        let Some(mut read) = self.reads.remove(&id) else { return };
        read.tried.push(read.source);
        if let ReadPurpose::Backfill { copy } = read.purpose {
            self.peers[copy.index()].reading = None;
        }
        if self.source_for(&read.purpose, &read.tried).is_some() {
            self.start_read(now, read.purpose, read.tried);
        } else {
            self.read_failed(now, read.purpose, reason);
        }
    }

    fn read_failed(&mut self, now: Instant, purpose: ReadPurpose, reason: String) {
        match purpose {
            ReadPurpose::Log { tag, .. } => self.effects.push_back(AppenderEffect::Log { tag, outcome: LogOutcome::Unreadable { reason } }),
            ReadPurpose::Pages { tag, .. } => {
                self.effects.push_back(AppenderEffect::Pages { tag, outcome: PagesOutcome::Unreadable { reason } })
            }
            // Asked again by the timer, when another copy may have what is needed.
            ReadPurpose::Backfill { copy } => self.peers[copy.index()].last_asked = now,
            // The versions at the base are gone or unreadable: begin anew at the present VDL, by the timer.
            ReadPurpose::Repair { copy } => {
                self.peers[copy.index()].last_asked = now;
                if let Contact::Repairing(repair) = &mut self.peers[copy.index()].contact {
                    repair.restart_later();
                }
            }
        }
    }

    fn drop_reads_of(&mut self, copy: CopyId) {
        self.reads.retain(|_, r| !matches!(r.purpose, ReadPurpose::Backfill { copy: c } | ReadPurpose::Repair { copy: c } if c == copy));
    }

    fn retry_orphaned_reads(&mut self, now: Instant) {
        let orphans: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, r)| matches!(self.peers[r.source.index()].contact, Contact::Down { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in orphans {
            self.unreadable(now, id, "the copy went down".into());
        }
    }

    /// Where the next seed's steps are counted from: no two seeds share a step.
    fn first_step(&mut self) -> u64 {
        self.seeds += 1;
        self.seeds << 32
    }

    // ---- repair from peers -----------------------------------------------------------------------------------------

    /// Rebuilds a copy from its peers: pages at the VDL, then the log. Writes go on meanwhile.
    fn repair(&mut self, now: Instant, copy: CopyId) {
        let at = if self.vdl == LogEnd::EMPTY { self.known_durable } else { self.vdl };
        let (Some(lineage), true) = (self.lineage, at != LogEnd::EMPTY) else {
            // Nothing to copy from yet; the timer comes back.
            self.peers[copy.index()].contact = Contact::Repairing(Box::new(Repair::waiting()));
            self.peers[copy.index()].last_asked = now;
            return;
        };
        let mut history = self.history.clone();
        history.cut_from(at.seq.next());
        let base = SeedBase { lineage, end: at, history };
        let first = self.first_step();
        let (repair, request) = Repair::begin(self.generation, first, base);
        let peer = &mut self.peers[copy.index()];
        peer.contact = Contact::Repairing(Box::new(repair));
        peer.acked = LogEnd::EMPTY;
        peer.last_asked = now;
        self.effects.push_back(AppenderEffect::ToCopy { copy, request });
        self.set_health(copy, CopyHealth::Seeding);
        self.judge_quorum();
    }

    // ---- the region's own seed -------------------------------------------------------------------------------------

    fn seed_step(&mut self, now: Instant, ending: bool, request: impl FnOnce(u64) -> CopyRequest) -> u64 {
        let seeding = self.seeding.as_mut().expect("BUG: a seed step without a seed");
        seeding.last_step += 1;
        seeding.ending = ending;
        let step = seeding.last_step;
        seeding.requests.push_back((step, request(seeding.first + step)));
        for copy in CopyId::all() {
            // Whoever has not stored the step before is fed when it has: what is under way is not sent again.
            if self.peers[copy.index()].seed_step.map(|s| s + 1) == Some(step) {
                self.feed_seed(now, copy);
            }
        }
        step
    }

    /// One request at a time for each copy: the one behind its last stored step.
    fn feed_seed(&mut self, now: Instant, copy: CopyId) {
        let Some(seeding) = &self.seeding else { return };
        let peer = &mut self.peers[copy.index()];
        if !peer.is_joined() {
            return;
        }
        let wanted = peer.seed_step.map_or(0, |s| s + 1);
        if let Some((_, request)) = seeding.requests.iter().find(|(step, _)| *step == wanted) {
            peer.last_asked = now;
            self.effects.push_back(AppenderEffect::ToCopy { copy, request: request.clone() });
        } else {
            self.judge_seed();
        }
    }

    /// Four copies must be able to finish the seed: those that wait for a step that is no longer in memory cannot.
    fn judge_seed(&mut self) {
        let Some(seeding) = &mut self.seeding else { return };
        let oldest = seeding.requests.front().map_or(seeding.last_step + 1, |(step, _)| *step);
        let left_behind = self.peers.iter().filter(|p| p.is_joined() && p.seed_step.map_or(0, |s| s + 1) < oldest).count();
        if COPIES - left_behind < WRITE_QUORUM && !seeding.stalled {
            seeding.stalled = true;
            self.effects.push_back(AppenderEffect::SeedStalled);
        }
    }

    fn seeded(&mut self, now: Instant, copy: CopyId, step: u64) {
        let generation = self.generation;
        if let Contact::Repairing(repair) = &mut self.peers[copy.index()].contact {
            match repair.stored(generation, step) {
                super::repair::Next::Read => self.start_read(now, ReadPurpose::Repair { copy }, vec![copy]),
                super::repair::Next::Send(request) => {
                    self.peers[copy.index()].last_asked = now;
                    self.effects.push_back(AppenderEffect::ToCopy { copy, request });
                }
                super::repair::Next::Nothing => {}
            }
            return;
        }
        let Some(seeding) = &mut self.seeding else { return };
        let Some(step) = step.checked_sub(seeding.first) else { return };
        let peer = &mut self.peers[copy.index()];
        if !peer.is_joined() || Some(step) != peer.seed_step.map_or(Some(0), |s| s.checked_add(1)) {
            peer.seed_said = Some(step);
            return;
        }
        peer.seed_said = None;
        peer.seed_step = Some(step);
        let steps: [u64; COPIES] = std::array::from_fn(|i| self.peers[i].seed_step.map_or(0, |s| s + 1));
        let stored_by_four = quorum::durable(steps);
        let mut newly = Vec::new();
        while seeding.stored < stored_by_four {
            newly.push(seeding.stored);
            seeding.stored += 1;
        }
        // A step stays in memory until all copies that take part have it; a slow copy past the window is repaired later.
        let slowest = self.peers.iter().filter(|p| p.is_joined()).map(|p| p.seed_step.map_or(0, |s| s + 1)).min().unwrap_or(0);
        let keep_from = slowest.max(seeding.stored.saturating_sub(64));
        while seeding.requests.front().is_some_and(|(s, _)| *s < keep_from) {
            seeding.requests.pop_front();
        }
        let done = seeding.ending && seeding.stored == seeding.last_step + 1;
        for step in newly {
            self.effects.push_back(AppenderEffect::SeedStored { step });
        }
        if done {
            self.seed_done(now);
        } else {
            self.feed_seed(now, copy);
        }
    }

    /// The copy was opened anew in the middle of a seed and knows nothing of it.
    fn seed_lost(&mut self, now: Instant, copy: CopyId) {
        if matches!(self.peers[copy.index()].contact, Contact::Repairing(_)) {
            self.repair(now, copy);
        } else if self.seeding.is_some() {
            // From the beginning, if that is still in memory; otherwise it is repaired when the others are done.
            self.peers[copy.index()].seed_step = None;
            self.feed_seed(now, copy);
        }
    }

    fn seed_done(&mut self, now: Instant) {
        let seeding = self.seeding.take().expect("BUG: a seed that was not begun is done");
        let base = seeding.base;
        self.lineage = Some(base.lineage);
        self.history = base.history.clone();
        self.end = base.end;
        self.milestones = VecDeque::from([(base.end.seq, base.end.end_lsn)]);
        self.moments.clear();
        self.phase = VolumePhase::Serving;
        self.points.push_back(base.end);
        for copy in CopyId::all() {
            if !self.peers[copy.index()].is_joined() {
                continue;
            }
            if self.peers[copy.index()].seed_step == Some(seeding.last_step) {
                self.place(now, copy, base.end, &base.history);
                self.judge_health(copy);
            }
        }
        self.judge_quorum();
        self.judge_durable(now);
        for copy in CopyId::all() {
            let peer = &self.peers[copy.index()];
            if peer.is_joined() && peer.seed_step != Some(seeding.last_step) {
                self.repair(now, copy);
            }
        }
    }

    // ---- judging ---------------------------------------------------------------------------------------------------

    fn owes_control(&self, peer: &Peer) -> bool {
        !self.control.is_empty()
            && peer.control_stored < self.control_version
            && matches!(peer.contact, Contact::Raised(_) | Contact::Joined | Contact::Repairing(_))
    }

    fn owes_answer(&self, peer: &Peer) -> bool {
        if self.owes_control(peer) {
            return true;
        }
        match &peer.contact {
            Contact::Down { .. } => false,
            Contact::Raising | Contact::Repairing(_) => true,
            Contact::Raised(_) => false,
            Contact::Joined if self.seeding.is_some() => true,
            Contact::Joined => peer.acked.seq < peer.sent || (peer.sent < self.end.seq && peer.reading.is_none()) || peer.splice.is_some(),
        }
    }

    /// A message was lost, or the copy is slow. Everything said again is harmless: copies skip what they have.
    fn ask_again(&mut self, now: Instant, copy: CopyId) {
        self.peers[copy.index()].last_asked = now;
        self.send_control(copy);
        match &self.peers[copy.index()].contact {
            Contact::Raising => self.raise(now, copy),
            Contact::Repairing(repair) => match repair.ask_again() {
                super::repair::Next::Read => {
                    if !self.reads.values().any(|r| matches!(r.purpose, ReadPurpose::Repair { copy: c } if c == copy)) {
                        self.start_read(now, ReadPurpose::Repair { copy }, vec![copy]);
                    }
                }
                super::repair::Next::Send(request) => self.effects.push_back(AppenderEffect::ToCopy { copy, request }),
                super::repair::Next::Nothing => self.repair(now, copy),
            },
            Contact::Joined if self.seeding.is_some() => {
                let peer = &mut self.peers[copy.index()];
                if let Some(said) = peer.seed_said.take()
                    && peer.seed_step.is_some_and(|step| said < step)
                {
                    peer.seed_step = Some(said);
                }
                self.feed_seed(now, copy);
            }
            Contact::Joined => {
                let silent = now.since(self.peers[copy.index()].last_heard) >= self.limits.copy_silent_after;
                let peer = &mut self.peers[copy.index()];
                if peer.splice.is_none() {
                    peer.sent = peer.acked.seq;
                    peer.sent_lsn = peer.acked.end_lsn;
                }
                if silent {
                    // One question instead of the whole window: it answers with where it is.
                    self.send_append(now, copy, Vec::new());
                } else {
                    self.pump(now, copy);
                }
                self.judge_quorum();
            }
            Contact::Raised(_) | Contact::Down { .. } => {}
        }
    }

    fn judge_health(&mut self, copy: CopyId) {
        let peer = &self.peers[copy.index()];
        if !peer.is_joined() {
            return;
        }
        let health = if peer.acked.seq >= self.vdl.seq { CopyHealth::Up } else { CopyHealth::CatchingUp };
        // Between two acknowledgements every copy is a frame behind; that is not catching up.
        if health == CopyHealth::Up
            || peer.health != CopyHealth::Up
            || self.vdl.end_lsn.bytes_since(peer.acked.end_lsn) > self.limits.copy_window_bytes_max as u64
        {
            self.set_health(copy, health);
        }
        self.judge_quorum();
    }

    fn set_health(&mut self, copy: CopyId, health: CopyHealth) {
        let peer = &mut self.peers[copy.index()];
        if peer.health != health {
            peer.health = health.clone();
            self.effects.push_back(AppenderEffect::CopyChanged { copy, health });
        }
    }

    /// Four copies must be able to take frames. Copies that catch up count: they take frames, they are only late.
    fn judge_quorum(&mut self) {
        if self.phase != VolumePhase::Serving {
            return;
        }
        let able = self.peers.iter().filter(|p| p.is_joined()).count();
        let ok = able >= WRITE_QUORUM;
        if ok == self.quorum_ok && self.quorum_said {
            return;
        }
        self.quorum_ok = ok;
        self.quorum_said = true;
        if ok {
            self.effects.push_back(AppenderEffect::QuorumRegained);
        } else {
            let missing: Vec<String> = CopyId::all()
                .into_iter()
                .filter(|c| !self.peers[c.index()].is_joined())
                .map(|c| match &self.peers[c.index()].contact {
                    Contact::Down { reason } => format!("{c} ({reason})"),
                    _ => format!("{c} (being rebuilt)"),
                })
                .collect();
            let reason = format!("{able} of 6 copies can take writes and {WRITE_QUORUM} are needed; missing: {}", missing.join(", "));
            self.effects.push_back(AppenderEffect::QuorumLost { reason });
        }
    }

    fn send_control(&mut self, copy: CopyId) {
        if self.owes_control(&self.peers[copy.index()]) {
            let request = CopyRequest::PutControl {
                generation: self.generation,
                version: self.control_version,
                control: Bytes::from(self.control.clone()),
            };
            self.effects.push_back(AppenderEffect::ToCopy { copy, request });
        }
    }

    fn judge_control(&mut self) {
        let stored = quorum::durable(std::array::from_fn(|i| self.peers[i].control_stored));
        if stored > self.control_reported {
            self.control_reported = stored;
            self.effects.push_back(AppenderEffect::ControlDurable);
        }
    }
}
