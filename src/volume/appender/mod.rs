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
mod reads;
mod recovering;
mod retention;
mod rewinding;
mod room;
mod scrubbing;
mod seeding;

pub use retention::{HeldBy, Retention};

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

/// What the appender wants done.
#[derive(Debug)]
pub enum AppenderEffect {
    ToCopy {
        copy: MemberId,
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
        /// The control state kept on the copies of group 0 that answered.
        control: Vec<u8>,
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
    /// Four copies of every group went back to `at` ([`Appender::rewind`]); the volume follows on from there. `Restarted` comes when that is durable.
    Rewound {
        at: LogEnd,
    },
    /// Too many copies cannot go back so far: the volume must be seeded. A sentence that says why.
    RewindImpossible {
        reason: String,
    },
    ControlDurable,
    /// Where those slots live by the membership; `None`: where the configuration says.
    Places {
        places: BTreeMap<CopyId, Option<String>>,
    },
    /// The directories of `slot` in `place` have left the volume for good; those of `by` (one for each group) have the slot.
    Retired {
        slot: CopyId,
        place: Option<String>,
        by: Vec<Incarnation>,
    },
    /// No new writes should come: fewer than four copies can take them, and nothing new becomes durable; or fewer than four have room for them,
    /// and what is under way still does. A sentence, and when that ends.
    QuorumLost {
        reason: String,
        until: &'static str,
    },
    QuorumRegained,
    CopyChanged {
        copy: MemberId,
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
    /// Something in a copy is not what was written. It was healed on the spot, or the copy is rebuilt as soon as enough others take writes.
    CopyDamaged {
        copy: MemberId,
        damage: Damage,
    },
    /// Copies differ and nobody can tell which are right: a sentence.
    Undecided {
        reason: String,
    },
    /// A pass of the scrub over the copies of a group is over; [`Appender::copies`] has what it found.
    Scrubbed {
        group: GroupId,
    },
    /// Copies were opened anew in the middle of the region's seed, and too few are left that can finish it: it must begin anew.
    SeedStalled,
    /// The directory of a copy has forgotten what it had; it goes on as a new member. `what`: a sentence.
    CopyForgot {
        copy: MemberId,
        what: String,
    },
    /// A copy came that shows log which was durable, and this region's log went on without it. Where this region leads, the copy is left as it is.
    LogLost {
        copy: MemberId,
        lost: LostLog,
    },
}

/// What recovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// All copies are new (or a founding or a seeding stopped half-way); what control state they hold.
    Empty { control: Vec<u8> },
    /// A log, with the control state kept beside it. `lost`: some of it that was durable is missing.
    Log { lineage: LineageId, end: LogEnd, consistent: LogEnd, control: Vec<u8>, lost: Option<LostLog> },
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
    pub copy: MemberId,
    pub health: CopyHealth,
    /// Everything up to here is fsynced on this copy.
    pub durable_end: LogEnd,
    pub ingested: Lsn,
    /// What was found in it and is not repaired yet.
    pub damage: Option<Damage>,
    pub repair: Option<RepairView>,
    pub scrub: ScrubView,
    pub kept: Kept,
    /// Little room is left on its disk.
    pub low: bool,
}

/// Counted for each copy since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Damage found, by the scrub or when it was met.
    pub found: u64,
    /// Of that, what was repaired.
    pub repaired: u64,
    /// Of what was found: written, acknowledged by the disk, and not there.
    pub lost_writes: u64,
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
    /// Was told to cut a tail that the volume's history does not have, or to take up a reign.
    GoingBack(Box<rewinding::Told>),
}

#[derive(Debug)]
pub(super) struct Peer {
    contact: Contact,
    /// Which directory it is, as it said when it was raised.
    incarnation: Incarnation,
    /// What it had promised when it was opened; this generation, once it was judged.
    opened_with: Generation,
    /// When its clock was heard of, and what it said: oldest first.
    stamps: VecDeque<(Instant, Instant)>,
    /// From then on, by its clock, it takes nothing.
    gate: Option<Instant>,
    /// It takes nothing now: a lease that is renewed is waited for.
    shut: bool,
    /// fsynced there, on the volume's history.
    acked: LogEnd,
    /// Sent (or asked to be read for it) up to here.
    sent: Seq,
    sent_lsn: Lsn,
    ingested: Lsn,
    /// Little room is left on its disk, as it said last.
    low: bool,
    /// What the copy was last told.
    told_vdl: Seq,
    /// What had become pages there when it joined.
    joined_with: Seq,
    /// The newest reign that it took up.
    reign: Epoch,
    /// It has gone back with the volume.
    went_back: bool,
    /// Lost tails that it keeps.
    archives: Vec<ArchiveView>,
    last_heard: Instant,
    last_asked: Instant,
    /// A rebuilding of it goes at this pace; the next read waits until then.
    pace: Pace,
    read_at: Option<Instant>,
    /// A log read from another copy on this one's behalf.
    reading: Option<u64>,
    /// Frames collected for a copy whose tail diverges: they go as one request that ends in a newer term (see `Append`).
    splice: Option<Splice>,
    /// It ended off the volume's history when it was placed, as it said then, and has acknowledged nothing on it since: the splice
    /// may be lost, and then it is made again.
    diverged: Option<Box<(LogEnd, History)>>,
    control_stored: u64,
    seed_step: Option<u64>,
    /// It last said another step than the next one (see `Repair::astray`).
    seed_said: Option<u64>,
    /// Found and not repaired.
    damage: Option<Damage>,
    health: CopyHealth,
}

#[derive(Debug)]
struct Splice {
    frames: Vec<Frame>,
    /// What goes: a frame of a newer writer must be among them.
    tail: (Epoch, Generation),
    /// The last of them must reach this far.
    upto: Seq,
}

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

impl Peer {
    fn new() -> Peer {
        Peer {
            contact: Contact::Down { reason: "it has not been opened yet".into() },
            incarnation: Incarnation::UNKNOWN,
            opened_with: Generation(u64::MAX),
            stamps: VecDeque::new(),
            gate: None,
            shut: false,
            acked: LogEnd::EMPTY,
            sent: Seq(0),
            sent_lsn: Lsn(0),
            ingested: Lsn(0),
            low: false,
            told_vdl: Seq(0),
            joined_with: Seq(0),
            reign: Epoch(0),
            went_back: false,
            archives: Vec::new(),
            last_heard: Instant::ZERO,
            last_asked: Instant::ZERO,
            pace: Pace::new(u64::MAX, REPAIR_REST),
            read_at: None,
            reading: None,
            splice: None,
            diverged: None,
            control_stored: 0,
            seed_step: None,
            seed_said: None,
            damage: None,
            health: CopyHealth::Starting,
        }
    }

    fn is_joined(&self) -> bool {
        matches!(self.contact, Contact::Joined)
    }

    /// Not damaged, which a read would notice: intact, and not what the others have.
    fn has_other_pages(&self) -> bool {
        self.damage.as_ref().is_some_and(|d| d.file == "pages")
    }

    fn bytes_in_flight(&self) -> u64 {
        self.sent_lsn.bytes_since(self.acked.end_lsn) + self.sent.0.saturating_sub(self.acked.seq.0) * FRAME_HEADER_BYTES as u64
    }
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
        self.leads = true;
        self.serve(now);
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Goes on as the primary of a new epoch: cuts everything behind the reign's base by the reign's first frame, also what became pages
    /// (copies that have such are rewound, and what is cut stays as an archive). Returns the pen; nothing it writes is durable before
    /// that frame is.
    ///
    /// # Panics
    /// When recovery has not chosen a log, when the base is not on it, or when the epoch is not newer than all of it.
    pub fn lead_epoch(&mut self, now: Instant, wall: UnixMicros, epoch: Epoch, reign: Reign) -> Pen {
        assert_eq!(self.phase, VolumePhase::Chosen, "BUG: lead before recovery chose a log");
        let base = reign.base;
        let ours = base.seq <= self.end.seq && base != LogEnd::EMPTY && self.history.contains(&base);
        assert!(ours && Some(reign.lineage) == self.lineage, "BUG: {base} is not on the log that ends at {}", self.end);
        assert!(epoch > self.end.epoch, "BUG: epoch {epoch} does not outrank {}", self.end);
        let start = ControlFrame::Reign(reign).encode(&base, epoch, self.generation, wall);
        self.end = base;
        self.history.cut_from(base.seq.next());
        self.vdl = LogEnd::EMPTY;
        self.push(start);
        self.leads = true;
        self.serve(now);
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Founds a new global cluster on empty copies, or once more where a founding stopped half-way over the groups.
    ///
    /// # Panics
    /// When the copies are not all empty.
    pub fn found(&mut self, now: Instant, wall: UnixMicros, lineage: LineageId) -> Pen {
        assert!(self.phase == VolumePhase::AwaitingSeed && self.seeding.is_none(), "BUG: founding on a volume that is not empty");
        let epoch = Epoch(1);
        self.lineage = Some(lineage);
        self.end = LogEnd::EMPTY;
        self.leads = true;
        self.push(ControlFrame::EpochStart { lineage }.encode(&LogEnd::EMPTY, epoch, self.generation, wall));
        self.serve(now);
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Begins a reign behind the end of a log that this process holds already: as a secondary, all of it durable. Its generation is the
    /// one that the copies promised, so nobody else can append. Returns the pen; nothing it writes is durable before the first frame is.
    ///
    /// # Panics
    /// When the log's end is not durable, or is not the reign's base.
    pub fn begin_reign(&mut self, now: Instant, wall: UnixMicros, epoch: Epoch, reign: Reign) -> Pen {
        assert!(self.phase == VolumePhase::Serving && self.vdl == self.end, "BUG: a reign behind what is not durable");
        assert!(reign.base == self.end && epoch > self.end.epoch, "BUG: epoch {epoch} behind {}", self.end);
        let start = ControlFrame::Reign(reign).encode(&self.end, epoch, self.generation, wall);
        self.leads = true;
        self.append(now, vec![start]);
        self.pen(epoch)
    }

    /// A pen that goes on at the log's end. There is no other one, or it was given back.
    #[must_use]
    pub fn pen(&self, epoch: Epoch) -> Pen {
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Goes on as a secondary behind the log that was chosen.
    ///
    /// # Panics
    /// When recovery has not chosen a log.
    pub fn follow(&mut self, now: Instant, consistent: LogEnd) {
        assert_eq!(self.phase, VolumePhase::Chosen, "BUG: follow before recovery chose a log");
        self.leads = false;
        self.vdl = LogEnd::EMPTY;
        // The beginning of a mini-transaction behind it comes again, and copies skip what they have: so whoever is told of newly
        // durable frames is told of all of them.
        self.end = consistent;
        self.history.cut_from(consistent.seq.next());
        self.points.push_back(consistent);
        self.serve(now);
    }

    /// Appends frames that follow `end`: the pen's, or those that a primary shipped.
    ///
    /// # Panics
    /// When a frame does not follow the log's end: the caller (the pen's holder, the receiver) has checked it.
    pub fn append(&mut self, now: Instant, frames: Vec<Frame>) {
        assert_eq!(self.phase, VolumePhase::Serving, "BUG: append to a volume that does not serve");
        assert!(!self.is_rewinding(), "BUG: append to a volume that goes back");
        for frame in frames {
            assert!(frame.follows(&self.end), "BUG: {frame:?} does not follow {}", self.end);
            self.push(frame);
        }
        for copy in self.members() {
            self.pump(now, copy);
        }
    }

    /// Keeps `control` on the six copies of group 0; `ControlDurable` when four have it. `holds_commits`: what lies here may lie nowhere else.
    pub fn put_control(&mut self, control: Vec<u8>, holds_commits: bool) {
        self.node_control = control;
        self.holds_commits = Some(holds_commits);
        if self.membership.is_none() {
            self.membership = self.membership_of_all();
        }
        self.put_kept();
        self.node_put = Some(self.control_version);
    }

    /// Frames from `from` on; answered by an effect, from memory or from the copy that can.
    pub fn read_log(&mut self, now: Instant, tag: u64, from: Seq, bytes_max: usize) {
        if let Some(frames) = self.ring_from(from, bytes_max) {
            self.effects.push_back(AppenderEffect::Log { tag, outcome: LogOutcome::Frames(frames) });
            return;
        }
        if self.layout.groups > 1 {
            return self.gather_log(now, tag, from, bytes_max);
        }
        self.start_read(now, ReadPurpose::Log { tag, from, bytes_max }, Vec::new());
    }

    /// All pages as of `at`, from `from` on; answered by an effect.
    pub fn read_pages(&mut self, now: Instant, tag: u64, at: Lsn, from: PageNo, bytes_max: usize) {
        self.start_read(now, ReadPurpose::Pages { tag, at, from, bytes_max }, Vec::new());
    }

    /// What must stay readable: the oldest LSN that a reader pins, the LSN that a seed is being read at, and the first seq
    /// that a secondary still needs. `fork`: the oldest LSN at which a later reign may begin, so that this region would have to go back to there.
    /// Bounded by the limits; nothing holds the log back longer than its budget.
    pub fn set_needs(&mut self, readers: Lsn, pages: Option<Lsn>, secondaries: Option<Seq>, fork: Option<Lsn>) {
        self.fork_need = fork;
        self.readers_need = readers;
        self.pages_need = pages;
        self.secondaries_need = secondaries;
    }

    /// Begins to replace the whole volume by the primary's pages at `base`.
    pub fn seed_begin(&mut self, now: Instant, base: SeedBase) {
        self.phase = VolumePhase::AwaitingSeed;
        self.way_back = None;
        (self.reign, self.reign_at) = (Epoch(0), LogEnd::EMPTY);
        self.scrubs.iter_mut().for_each(Scrub::stop);
        self.ring.clear();
        self.ring_bytes = 0;
        self.points.clear();
        self.reads.clear();
        self.gathers.clear();
        self.milestones.clear();
        self.vdl = LogEnd::EMPTY;
        self.known_durable.fill(LogEnd::EMPTY);
        self.forget_what_was_seen();
        let first = self.first_step();
        let request = CopyRequest::SeedBegin { generation: self.generation, step: first, base: base.clone() };
        self.seeding =
            Some(Seeding { base, first, requests: VecDeque::from([(0, request)]), last_step: 0, stored: 0, ending: false, stalled: false });
        for copy in self.members() {
            let peer = &mut self.peers[copy.index()];
            if matches!(peer.contact, Contact::Raised(_) | Contact::Joined | Contact::Repairing(_) | Contact::GoingBack(_)) {
                peer.contact = Contact::Joined;
                peer.acked = LogEnd::EMPTY;
                peer.reading = None;
                peer.splice = None;
                peer.seed_step = None;
                peer.seed_said = None;
                self.set_health(copy, CopyHealth::Seeding);
            } else {
                peer.acked = LogEnd::EMPTY;
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
}
