//! The appender: one per region, over the six copies of each protection group.
//!
//! Story: a new incarnation raises its generation on the copies, learns what lies there, chooses one log, and from then on
//! appends: every frame goes to all six, in order; four acknowledgements make it durable. A copy that fell behind is fed
//! from memory, from another copy's log, or, when the log no longer reaches back, with pages and then the log.
//!
//! Decides: which tail survives, when a frame is durable, what each copy is sent next, when writes must stop. Never
//! decides who is primary: the node says `lead` (append a generation start, write) or `follow` (take the primary's frames).
//! Never touches a disk. Driven by the node: `handle_*` in, `poll_effect` out, `next_timeout`; the order does not matter.

mod appending;
mod branching;
mod changing;
mod forgetting;
mod gate;
mod gathering;
mod judging;
mod losing;
mod ordered;
mod peer;
mod reads;
mod recovering;
mod retention;
mod rewinding;
mod room;
mod scrubbing;
mod seeding;
mod view;

pub use retention::{HeldBy, Retention};
pub use view::{AppenderEffect, CopyHealth, CopyView, Found, Kept, VolumePhase};

use crate::base::{
    CopyId, Epoch, Generation, GroupId, Instant, Layout, Limits, LineageId, LogEnd, Lsn, MemberId, Pace, PageNo, Prng, Seq, TimelineId,
    UnixMicros,
};
use crate::log::{ControlFrame, FRAME_HEADER_BYTES, Frame, History, LogOutcome, PagesOutcome, Pen, Reign, SeedBase};
use crate::volume::agreement::{self, Choice};
use crate::volume::evidence::{self, LostLog};
use crate::volume::membership::{Incarnation, Membership, Seen};
use crate::volume::message::{ArchiveView, CopyReply, CopyRequest, CopyState, Damage};
use crate::volume::quorum::{self, COPIES, WRITE_QUORUM};
use crate::volume::recovery::Heard;
use crate::volume::repair::{Repair, RepairView};
use crate::volume::scrub::{Scrub, ScrubView};
use bytes::Bytes;
pub use changing::Replacing;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use branching::BranchState;
use peer::{Contact, Peer, Splice};

/// How long recovery waits for more than the copies it needs, so that a copy that is merely slow to open takes part.
const RECOVERY_GRACE: Duration = Duration::from_millis(300);
/// Copies are told of a new VDL at the latest after this, when no frame carries it.
const VDL_NOTICE_AFTER: Duration = Duration::from_millis(2);
/// A copy that owes an answer is asked again after this.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// While commits are made, a copy that is rebuilt rests so many times as long as a step took before the next one.
const REPAIR_REST: u32 = 1;
/// The VDL moved within this: commits are being made.
const BUSY_WITHIN: Duration = Duration::from_millis(500);
/// The log is kept at least this far back, for copies and secondaries that are a little behind.
const LOG_KEEP_BYTES_MIN: u64 = 16 << 20;

#[derive(Debug)]
enum ReadPurpose {
    Backfill {
        copy: MemberId,
    },
    Log {
        tag: u64,
        from: Seq,
        bytes_max: usize,
    },
    LogPart {
        gather: u64,
        group: GroupId,
        from: Seq,
        bytes_max: usize,
    },
    PagesPart {
        gather: u64,
        group: GroupId,
        at: Lsn,
        from: PageNo,
    },
    Pages {
        tag: u64,
        at: Lsn,
        from: PageNo,
        bytes_max: usize,
    },
    Repair {
        copy: MemberId,
    },
    /// The search for the consistency point that a branch begins behind.
    Point {
        child: TimelineId,
    },
    Archive {
        tag: u64,
        group: GroupId,
        archive: TimelineId,
        from: Seq,
        bytes_max: usize,
    },
}

#[derive(Debug)]
struct PendingRead {
    purpose: ReadPurpose,
    source: MemberId,
    asked: Instant,
    tried: Vec<MemberId>,
}

#[derive(Debug)]
pub struct Appender {
    limits: Limits,
    layout: Layout,
    prng: Prng,
    pub(super) generation: Generation,
    phase: VolumePhase,
    /// Another region founds, so that this one may be seeded anew as long as it never wrote: see `recovery::choose`.
    reseedable: bool,
    /// This region wrote and was not followed up since: kept beside the control state.
    holds_commits: Option<bool>,
    /// The wall clock's second in which this incarnation began: see `generation_above`.
    began_s: u64,
    /// Copies that promised a newer generation to somebody else.
    refused_by: Vec<bool>,
    lineage: Option<LineageId>,
    history: History,
    end: LogEnd,
    vdl: LogEnd,
    /// In the order of [`MemberId::all`].
    peers: Vec<Peer>,
    /// Newest frames, contiguous, ending at `end`. Never shorter than what is not durable.
    ring: VecDeque<Frame>,
    ring_bytes: usize,
    /// What is known to have been durable before this incarnation has a VDL of its own: copies are rebuilt from there. Otherwise three
    /// good copies and three that need pages would wait for each other for ever. By group: up to here one of its copies has pages
    /// whatever this incarnation comes to.
    known_durable: Vec<LogEnd>,
    /// Consistency points above the VDL.
    points: VecDeque<LogEnd>,
    recovery_since: Option<Instant>,
    recovery_said: String,
    quorum_ok: bool,
    /// It is lost for want of room on the disks only.
    short_of_room: bool,
    /// The node was told, one way or the other, since the volume serves.
    quorum_said: bool,
    vdl_moved: Option<Instant>,
    /// When it last moved.
    vdl_at: Instant,
    reads: BTreeMap<u64, PendingRead>,
    gathers: BTreeMap<u64, gathering::Gather>,
    next_read: u64,
    /// Seeds begun so far, of copies and of the region.
    seeds: u64,
    /// What is kept on the copies beside the log: `membership` and `node_control`, encoded.
    control: Vec<u8>,
    control_version: u64,
    /// Quorums keep `control`, as this generation's.
    in_force: bool,
    membership: Option<Membership>,
    /// What each directory had, as far as this process, or the record that it found, knows. In the order of [`MemberId::all`].
    seen: Vec<Seen>,
    /// What the record that was found says to be durable.
    durable_kept: Option<(LineageId, LogEnd)>,
    recorded_at: Instant,
    node_control: Vec<u8>,
    /// The version in which the node's last order was put, until it is durable.
    node_put: Option<u64>,
    seeding: Option<Seeding>,
    /// (when, VDL): what "an LSN so long ago" means, for the retention of page versions.
    moments: VecDeque<(Instant, Lsn)>,
    /// The horizon that copies were last told, and why it is no later.
    held: (Lsn, HeldBy),
    /// (seq, LSN) every so often: what "so many bytes back" means, for the retention of the log.
    milestones: VecDeque<(Seq, Lsn)>,
    readers_need: Lsn,
    pages_need: Option<Lsn>,
    fork_need: Option<Lsn>,
    secondaries_need: Option<Seq>,
    branches: BTreeMap<TimelineId, branching::BranchOrder>,
    way_back: Option<rewinding::WayBack>,
    /// Orders to go back that were given to copies so far.
    rewinds: u64,
    /// Copies took up this reign behind `reign_at`, and the log may not have reached it yet. See [`rewinding`].
    reign: Epoch,
    reign_at: LogEnd,
    archives: BTreeMap<TimelineId, ArchiveView>,
    /// What the files of copies show that cannot be opened.
    proofs: BTreeMap<MemberId, (LineageId, LogEnd)>,
    /// The pen is this region's own.
    leads: bool,
    /// Copies take frames under a lease; one that says nothing for so long is asked for its clock.
    leased: Option<Duration>,
    /// One for each group: its copies are compared with one another.
    scrubs: Vec<Scrub>,
    /// As `peers`, for longer than a copy is open.
    kept: Vec<Kept>,
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

impl Appender {
    #[must_use]
    pub fn new(limits: Limits, layout: Layout, prng: Prng, wall: UnixMicros, reseedable: bool) -> Appender {
        let members = MemberId::all(layout.groups).count();
        Appender {
            scrubs: (0..layout.groups).map(|_| Scrub::new(&limits)).collect(),
            kept: vec![Kept::default(); members],
            limits,
            layout,
            prng,
            generation: Generation(0),
            phase: VolumePhase::Recovering,
            reseedable,
            holds_commits: None,
            // Bounded, so that a clock from the far future leaves room above.
            began_s: (wall.0 / 1_000_000).min(1 << 34),
            refused_by: vec![false; members],
            lineage: None,
            history: History::default(),
            end: LogEnd::EMPTY,
            vdl: LogEnd::EMPTY,
            known_durable: vec![LogEnd::EMPTY; members / COPIES],
            peers: (0..members).map(|_| Peer::new()).collect(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            points: VecDeque::new(),
            recovery_since: None,
            recovery_said: String::new(),
            quorum_ok: false,
            short_of_room: false,
            quorum_said: false,
            vdl_moved: None,
            vdl_at: Instant::ZERO,
            reads: BTreeMap::new(),
            gathers: BTreeMap::new(),
            next_read: 1,
            seeds: 0,
            control: Vec::new(),
            control_version: 0,
            in_force: false,
            membership: None,
            seen: vec![Seen::NOTHING; members],
            durable_kept: None,
            recorded_at: Instant::ZERO,
            node_control: Vec::new(),
            node_put: None,
            seeding: None,
            moments: VecDeque::new(),
            held: (Lsn(0), HeldBy::Time),
            milestones: VecDeque::new(),
            readers_need: Lsn(u64::MAX),
            pages_need: None,
            fork_need: None,
            secondaries_need: None,
            branches: BTreeMap::new(),
            way_back: None,
            rewinds: 0,
            reign: Epoch(0),
            reign_at: LogEnd::EMPTY,
            archives: BTreeMap::new(),
            proofs: BTreeMap::new(),
            leads: false,
            leased: None,
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

    /// Under which the copies are written now. Whoever reads pages asks only copies that promised it (`PageStore::serves`).
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
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

    fn members(&self) -> impl Iterator<Item = MemberId> + use<> {
        MemberId::all(self.layout.groups)
    }

    /// The six of one group.
    fn six(&self, group: GroupId) -> &[Peer] {
        &self.peers[group.index() * COPIES..][..COPIES]
    }

    /// What four copies of *every* group have reached: the lowest, over the groups, of the 4th highest.
    fn reached_in_all<T: Ord + Copy + Default>(&self, of: impl Fn(&Peer) -> T) -> T {
        let by_group = self.layout.all_groups().map(|g| self.reached_in(g, &of));
        by_group.min().expect("BUG: a volume has a group")
    }

    /// Up to where some copy of every group has page versions, as far as they said.
    #[must_use]
    pub fn readable(&self) -> Lsn {
        let best = |group| self.six(group).iter().filter(|p| p.is_joined()).map(|p| p.ingested).max().unwrap_or(Lsn(0));
        self.layout.all_groups().map(best).min().expect("BUG: a volume has a group")
    }

    #[must_use]
    pub fn copies(&self) -> Vec<CopyView> {
        self.members()
            .zip(&self.peers)
            .map(|(copy, p)| CopyView {
                copy,
                health: p.health.clone(),
                durable_end: p.acked,
                ingested: p.ingested,
                damage: p.damage.clone(),
                repair: if let Contact::Repairing(repair) = &p.contact { repair.view() } else { None },
                scrub: self.scrubs[copy.group.0 as usize].view(copy.copy),
                kept: self.kept[copy.index()],
                low: p.low,
            })
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
        for copy in self.members().filter(|c| self.owes_answer(*c)) {
            at(self.asked_again_at(copy));
        }
        for read_at in self.peers.iter().filter_map(|p| p.read_at) {
            at(read_at);
        }
        for read in self.reads.values() {
            at(read.asked + self.limits.copy_silent_after);
        }
        if let Some(asked) = self.branch_timeout() {
            at(asked);
        }
        if let Some(due) = self.room_timeout() {
            at(due);
        }
        if let Some(due) = self.stamps_timeout() {
            at(due);
        }
        if let Some(due) = self.scrub_timeout() {
            at(due);
        }
        if let Some(due) = self.way_back_timeout() {
            at(due);
        }
        next
    }

    // ---- what happens ----------------------------------------------------------------------------------------------

    /// A copy was opened (again); `promised` is what it promised in an earlier life.
    pub fn copy_opened(&mut self, now: Instant, copy: MemberId, promised: Generation) {
        self.drop_reads_of(copy);
        let peer = &mut self.peers[copy.index()];
        *peer = Peer { health: CopyHealth::Starting, last_heard: now, opened_with: promised, ..Peer::new() };
        peer.contact = Contact::Raising;
        if self.phase == VolumePhase::Recovering {
            self.recovery_since.get_or_insert(now);
            if self.generation <= promised {
                self.generation = self.generation_above(promised);
                for id in self.members() {
                    if matches!(self.peers[id.index()].contact, Contact::Raising | Contact::Raised(_) | Contact::GoingBack(_)) {
                        self.raise(now, id);
                    }
                }
                return;
            }
        }
        self.raise(now, copy);
    }

    /// A copy stopped, failed, or its process is gone.
    pub fn copy_lost(&mut self, now: Instant, copy: MemberId, reason: String) {
        self.drop_reads_of(copy);
        let peer = &mut self.peers[copy.index()];
        peer.contact = Contact::Down { reason: reason.clone() };
        peer.reading = None;
        peer.read_at = None;
        peer.splice = None;
        peer.seed_step = None;
        self.set_health(copy, CopyHealth::Down { reason });
        if self.lost_the_chosen_tail() {
            self.recover_again(now);
        }
        if self.phase == VolumePhase::Recovering && self.peers.iter().all(|p| matches!(p.health, CopyHealth::Down { .. })) {
            // Nobody will answer: that is said.
            self.recovery_since.get_or_insert(now);
        }
        self.retry_orphaned_reads(now);
        self.judge_quorum();
    }

    pub fn handle_reply(&mut self, now: Instant, copy: MemberId, reply: CopyReply) {
        if matches!(self.peers[copy.index()].contact, Contact::Down { .. }) {
            return; // an answer from before it went down
        }
        // Kept control states come again and again while a primary idles, and say nothing of the frames that a copy owes (seed 11).
        if !matches!(reply, CopyReply::ControlStored { .. }) {
            self.peers[copy.index()].last_heard = now;
        }
        match reply {
            CopyReply::Raised { generation, state } => self.raised(now, copy, generation, state),
            CopyReply::Refused { promised } => self.refused(now, copy, promised),
            CopyReply::Gated { generation, at } => {
                if generation == self.generation {
                    self.stamped(now, copy, at);
                    self.gated(now, copy, at);
                }
            }
            CopyReply::Appended { generation, end, ingested, low, at } => {
                if generation == self.generation {
                    self.stamped(now, copy, at);
                    self.peers[copy.index()].low = low;
                    self.appended(now, copy, end, ingested);
                }
            }
            CopyReply::Misplaced { generation, end, history } => {
                if generation == self.generation && self.peers[copy.index()].is_joined() {
                    let common = self.history.common_seq(self.end.seq, &history, end.seq);
                    if common < end.seq && common < self.peers[copy.index()].joined_with {
                        // What became pages there is not on the volume's history: it says anew where it is, and goes back.
                        self.raise(now, copy);
                    } else {
                        self.place(now, copy, end, &history);
                        self.pump(now, copy);
                    }
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
            CopyReply::Unreadable { id, reason } => {
                self.digested(now, copy, id, None);
                self.unreadable(now, id, reason);
            }
            CopyReply::Checked { id, bytes, next } => self.checked(now, copy, id, bytes, next),
            CopyReply::Digested { id, digest } => self.digested(now, copy, id, Some(digest)),
            CopyReply::Damaged { damage } => self.damaged(now, copy, damage),
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
            CopyReply::Branched { generation, child } => {
                if generation == self.generation {
                    self.branch_said(copy, child, false, Ok(()));
                }
            }
            CopyReply::BranchDropped { generation, child } => {
                if generation == self.generation {
                    self.branch_said(copy, child, true, Ok(()));
                }
            }
            CopyReply::BranchRefused { generation, child, reason } => {
                if generation == self.generation {
                    self.branch_said(copy, child, false, Err(reason));
                }
            }
            CopyReply::Rewound { generation, number, state } => {
                if generation == self.generation {
                    self.rewound(now, copy, number, state);
                }
            }
            CopyReply::RewindRefused { generation, number, reason } => {
                if generation == self.generation {
                    self.rewind_refused(now, copy, number, reason);
                }
            }
            CopyReply::TailKept { generation, number, reason, state } => {
                if generation == self.generation {
                    self.tail_kept(now, copy, number, reason, &state);
                }
            }
            CopyReply::ArchiveDropped { .. } => {}
            CopyReply::Failed { reason } => self.copy_lost(now, copy, reason),
        }
        // A copy may have come back, so that another one can be spared.
        self.mend(now);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.phase == VolumePhase::Recovering {
            self.try_choose(now);
        }
        if self.vdl_moved.is_some_and(|moved| now >= moved + VDL_NOTICE_AFTER) {
            self.vdl_moved = None;
            for copy in self.members() {
                let peer = &self.peers[copy.index()];
                if peer.is_joined() && peer.told_vdl < self.vdl_for(copy).seq {
                    self.send_append(now, copy, Vec::new());
                }
            }
        }
        for copy in self.members() {
            if self.owes_answer(copy) && now >= self.asked_again_at(copy) {
                self.ask_again(now, copy);
            }
        }
        self.ask_for_room(now);
        self.ask_for_stamps(now);
        self.read_paced(now);
        let late: Vec<u64> = self.reads.iter().filter(|(_, r)| now >= r.asked + self.limits.copy_silent_after).map(|(id, _)| *id).collect();
        for id in late {
            self.unreadable(now, id, "the copy did not answer in time".into());
        }
        self.ask_branches_again(now);
        self.scrub(now);
        if self.way_back_timeout().is_some_and(|due| now >= due) {
            self.judge_cut(now);
        }
    }
}
