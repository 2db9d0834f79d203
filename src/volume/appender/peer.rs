//! One of a group's copies as the appender knows it: what it has, what it was sent, what it was asked.
//!
//! Decides nothing; [`super`] and its parts do.

use super::*;

#[derive(Debug)]
pub(super) enum Contact {
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
    pub(super) contact: Contact,
    /// Which directory it is, as it said when it was raised.
    pub(super) incarnation: Incarnation,
    /// What it had promised when it was opened; this generation, once it was judged.
    pub(super) opened_with: Generation,
    /// When its clock was heard of, and what it said: oldest first.
    pub(super) stamps: VecDeque<(Instant, Instant)>,
    /// From then on, by its clock, it takes nothing.
    pub(super) gate: Option<Instant>,
    /// It takes nothing now: a lease that is renewed is waited for.
    pub(super) shut: bool,
    /// fsynced there, on the volume's history.
    pub(super) acked: LogEnd,
    /// Sent (or asked to be read for it) up to here.
    pub(super) sent: Seq,
    pub(super) sent_lsn: Lsn,
    pub(super) ingested: Lsn,
    /// Little room is left on its disk, as it said last.
    pub(super) low: bool,
    /// What the copy was last told.
    pub(super) told_vdl: Seq,
    /// What had become pages there when it joined.
    pub(super) joined_with: Seq,
    /// The newest reign that it took up.
    pub(super) reign: Epoch,
    /// It has gone back with the volume.
    pub(super) went_back: bool,
    /// It could not, and archived what it has beyond.
    pub(super) kept_tail: bool,
    /// Lost tails that it keeps.
    pub(super) archives: Vec<ArchiveView>,
    pub(super) last_heard: Instant,
    pub(super) last_asked: Instant,
    /// What it acknowledged grew.
    pub(super) moved_at: Instant,
    /// For its clock only.
    pub(super) stamp_asked: Instant,
    /// A rebuilding of it goes at this pace; the next read waits until then.
    pub(super) pace: Pace,
    pub(super) read_at: Option<Instant>,
    /// A log read from another copy on this one's behalf.
    pub(super) reading: Option<u64>,
    /// Frames collected for a copy whose tail diverges: they go as one request that ends in a newer term (see `Append`).
    pub(super) splice: Option<Splice>,
    /// It ended off the volume's history when it was placed, as it said then, and has acknowledged nothing on it since: the splice
    /// may be lost, and then it is made again.
    pub(super) diverged: Option<Box<(LogEnd, History)>>,
    pub(super) control_stored: u64,
    pub(super) seed_step: Option<u64>,
    /// It last said another step than the next one (see `Repair::astray`).
    pub(super) seed_said: Option<u64>,
    /// Found and not repaired.
    pub(super) damage: Option<Damage>,
    pub(super) health: CopyHealth,
}

#[derive(Debug)]
pub(super) struct Splice {
    pub(super) frames: Vec<Frame>,
    /// What goes: a frame of a newer writer must be among them.
    pub(super) tail: (Epoch, Generation),
    /// The last of them must reach this far.
    pub(super) upto: Seq,
}

impl Peer {
    pub(super) fn new() -> Peer {
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
            kept_tail: false,
            archives: Vec::new(),
            last_heard: Instant::ZERO,
            last_asked: Instant::ZERO,
            moved_at: Instant::ZERO,
            stamp_asked: Instant::ZERO,
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

    pub(super) fn is_joined(&self) -> bool {
        matches!(self.contact, Contact::Joined)
    }

    /// Not damaged, which a read would notice: intact, and not what the others have.
    pub(super) fn has_other_pages(&self) -> bool {
        self.damage.as_ref().is_some_and(|d| d.file == "pages")
    }

    pub(super) fn bytes_in_flight(&self) -> u64 {
        self.sent_lsn.bytes_since(self.acked.end_lsn) + self.sent.0.saturating_sub(self.acked.seq.0) * FRAME_HEADER_BYTES as u64
    }
}
