//! The way back of an old primary (protocol.md rules 21 to 23): what it has beyond the new history is archived, cut, read and told.
//!
//! Story: the new primary compares the logs' terms and says where they part. The volume goes back to that point in all copies, and what was cut
//! stays there as an archive. Then it is read once, frame by frame, and counted, and opened as a database for the rows that it changed: the
//! failover's record becomes exact. A crash anywhere is
//! harmless: the volume is cut or it is not, and the archive is counted again by whoever starts next.
//!
//! Decides what counts as lost; never cuts anything itself (the volume does), and drops an archive by an operator's order only.

use super::roles::Intent;
use super::{Effect, Node, Stage};
use crate::base::{ConnId, Epoch, GroupId, Instant, LogEnd, RegionName, Seq, TimelineId, UnixMicros};
use crate::control::{Action, EpochEntry, Input, LostTail, ReignKind, Touched};
use crate::log::{Flags, Frame, LogOutcome};
use crate::volume::{ArchiveView, VolumePhase, archive_id};

/// Read at once.
const READ_BYTES: usize = 1 << 20;

/// An archive that is being counted.
#[derive(Debug)]
pub(super) struct Counting {
    tag: u64,
    archive: TimelineId,
    end: LogEnd,
    /// The frame that comes next.
    next: Seq,
    tail: LostTail,
}

impl Node {
    /// The primary of a later epoch says that this region's log goes on behind `common` otherwise than its own.
    pub(super) fn parts_at(&mut self, now: Instant, conn: ConnId, epoch: Epoch, primary: &RegionName, common: Seq, end: Option<LogEnd>) {
        // Before an election is settled nothing is cut: what the other one has more is then done without.
        if let Some((from, ..)) = self.follower.catching_up_to.take() {
            self.stop_following(now, "its log goes on otherwise than this one");
            return self.tell(now, Input::CaughtUp { from });
        }
        let own = *self.appender.end();
        let history = self.appender.history();
        let at = history.end_of_term_at(common).or(end.filter(|e| history.contains(e)));
        let (true, Some(at)) = (self.roles.may_receive(epoch) && epoch > own.epoch, at) else {
            let what = format!("{primary} of epoch {epoch} says that this log, which ends at {own}, parts from its own at seq {common}");
            return self.unlink(now, conn, what);
        };
        self.stop_following(now, "going back to where the histories part");
        self.note(
            "rewinding",
            format!("{primary} reigns since epoch {epoch} behind {at}; what this region has beyond, up to {own}, is archived and cut"),
        );
        self.stage = Stage::GoingBack { primary: primary.clone() };
        self.appender.rewind(now, archive_id(&at, own.epoch), at, epoch);
    }

    /// This region is to reign behind a point that its own log has gone on from otherwise: it parted from a reign that it never followed. What it
    /// has beyond is archived like that of any old primary, and the reign begins when the volume stands there (seed 820065 of moves). Whether that
    /// is under way.
    pub(super) fn goes_back_first(&mut self, now: Instant, entry: &EpochEntry) -> bool {
        let (base, own) = (entry.base, *self.appender.end());
        let last = match &self.stage {
            Stage::Closed { consistent } => *consistent,
            Stage::Following if *self.appender.phase() == VolumePhase::Serving => *self.appender.vdl(),
            _ => return false,
        };
        if base == LogEnd::EMPTY || base.seq >= last.seq || entry.epoch <= own.epoch || !self.appender.history().contains(&base) {
            return false;
        }
        self.stop_following(now, "this region takes over");
        self.leader.step_down();
        self.note(
            "rewinding",
            format!(
                "{} is to reign in epoch {} behind {base}; what it has beyond, up to {own}, is archived and cut",
                self.who.region, entry.epoch
            ),
        );
        self.roles.intent = Some(Intent::Begin(entry.clone()));
        self.stage = Stage::GoingBack { primary: self.who.region.clone() };
        self.appender.rewind(now, archive_id(&base, own.epoch), base, entry.epoch);
        true
    }

    /// The volume stands at `at`, which the history that is followed has, too.
    pub(super) fn rewound(&mut self, now: Instant, at: LogEnd) {
        self.note("rewound", format!("the volume went back to {at}; what was cut is archived"));
        let Stage::GoingBack { primary } = &self.stage else { return };
        let primary = primary.clone();
        self.stage = Stage::Following;
        self.roles.unsettled = false;
        if primary != self.who.region {
            self.follower.look_for(now, primary);
        }
        self.count_archives(now);
    }

    /// It went back in order to reign, and stands there now.
    pub(super) fn reigns_after_going_back(&mut self, now: Instant) {
        if let Some(Intent::Begin(entry)) = self.roles.intent.take() {
            self.take_up(now, entry.epoch, Intent::Begin(entry));
        }
    }

    /// The versions of pages of where the histories part are gone. What this region has beyond is archived (`kept`), and it gets the primary's pages
    /// instead; or it is not, and somebody has to look.
    pub(super) fn cannot_rewind(&mut self, now: Instant, reason: &str, kept: bool) {
        if let Some(Intent::Begin(entry)) = self.roles.intent.take() {
            let reason = format!("what it has beyond {} cannot be taken back: {reason}", entry.base);
            self.tell(now, Input::PromotionFailed { epoch: entry.epoch, reason });
        }
        if let (true, Stage::GoingBack { primary }) = (kept, &self.stage) {
            let primary = primary.clone();
            let what = format!(
                "this region's log goes on otherwise than that of {primary}, and cannot be taken back: {reason}. What it has beyond is archived, as far \
                 back as its log goes (`parhelion salvage` reads it); it is seeded anew"
            );
            self.note("seeded_anew", what.clone());
            self.effects.push_back(Effect::HeadHides { reason: what });
            // Nothing of it is shown: the volume stands nowhere before it was seeded.
            self.roles.unsettled = false;
            self.stage = Stage::Following;
            self.follower.restarted(now, self.wall, LogEnd::EMPTY);
            self.tell_log(now);
            if primary != self.who.region {
                self.follower.look_for(now, primary);
            }
            return;
        }
        let reason = format!(
            "this region's log goes on otherwise than the primary's, and cannot be taken back: {reason}. What it has that the primary has not is \
             kept. Move its data directory away (it is what `parhelion salvage` reads) and start it again: it is seeded"
        );
        self.note("halted", reason.clone());
        self.stage = Stage::Halted { reason };
    }

    /// The log of an old primary is a prefix of the new history: its failover lost nothing, and that is exact once its record is known here.
    pub(super) fn nothing_was_lost(&mut self) {
        let Some(end) = self.roles.whole_at else { return };
        let Some(new_epoch) = self.epoch_after(&end) else { return };
        // The record of a reign comes after it. One that was handed over has none: then it waits here for nothing.
        if self.ledger().is_none_or(|l| l.failover_into(new_epoch).is_none()) {
            return;
        }
        self.roles.whole_at = None;
        // What it lost itself nobody can count.
        let state = self.roles.core().and_then(crate::control::Control::state);
        if state.and_then(|s| s.cut).is_some_and(|(from, reign)| from <= end.epoch && end.epoch < reign) {
            let what = format!("this region lost log of epoch {} itself: how many commits the failover lost stays unknown", end.epoch);
            self.note("loss_uncounted", what);
            return;
        }
        // Whoever went back to there has the rest in an archive, which is counted.
        if self.appender.archives().iter().all(|a| a.base != end) {
            self.untold.push(LostTail {
                new_epoch,
                from: end,
                to: end,
                commits: 0,
                from_time: None,
                to_time: None,
                touched: Ok(Touched::default()),
            });
        }
    }

    /// The first reign that did not take what a log has that ends there.
    fn epoch_after(&self, end: &LogEnd) -> Option<Epoch> {
        let chain = &self.control.as_ref()?.voter.chain;
        chain.entries().iter().find(|e| e.epoch > end.epoch).map(|e| e.epoch)
    }

    /// The failover whose record is not complete before this archive was read: into which epoch.
    fn completes(&self, archive: &ArchiveView) -> Option<Epoch> {
        let chain = &self.control.as_ref()?.voter.chain;
        // The reign that began behind the base or before it, after the tail's own.
        // By an operator's word one may have begun further on another line, which the tail's reign had not taken.
        let took = |e: &&EpochEntry| e.base.seq <= archive.end.seq || e.kind == ReignKind::Unproven;
        let reign = chain.entries().iter().find(|e| e.epoch > archive.end.epoch && took(e))?;
        let record = self.ledger()?.failover_into(reign.epoch)?;
        (!record.complete && archive.end.seq > archive.base.seq).then_some(reign.epoch)
    }

    /// Reads the archives that no complete record tells of.
    pub(super) fn count_archives(&mut self, now: Instant) {
        if self.counting.is_some() {
            return;
        }
        let archives = self.appender.archives();
        let next = archives.into_iter().find_map(|archive| Some((archive, self.completes(&archive)?)));
        let Some((archive, new_epoch)) = next else { return };
        let tag = self.next_tag;
        self.next_tag += 1;
        let tail = LostTail {
            new_epoch,
            from: archive.base,
            to: archive.end,
            commits: 0,
            from_time: None,
            to_time: None,
            touched: Ok(Touched::default()),
        };
        let next = archive.base.seq.next();
        self.counting = Some(Counting { tag, archive: archive.id, end: archive.end, next, tail });
        self.appender.read_archive(now, tag, GroupId(0), archive.id, archive.base.seq.next(), READ_BYTES);
    }

    /// An operator wants a lost tail to be kept no longer: it is gone for good, on all copies that are there. On record first.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn drop_archive(&mut self, now: Instant, wall: UnixMicros, archive: TimelineId, actor: &str) -> Result<String, String> {
        self.wall = wall;
        let (region, name) = (&self.who.region, format!("{:016x}", archive.0));
        let Some(kept) = self.appender.archives().into_iter().find(|a| a.id == archive) else {
            return Err(format!("{region} keeps no archive {name}; `parhelion salvage` lists those that it keeps"));
        };
        if *self.appender.phase() != VolumePhase::Serving || self.appender.is_rewinding() {
            return Err(format!("the volume of {region} recovers or goes back and drops nothing meanwhile; try again in a moment"));
        }
        if self.counting.as_ref().is_some_and(|c| c.archive == archive) {
            return Err(format!("archive {name} is being read for its failover's record; try again in a moment"));
        }
        let uncounted = self.completes(&kept).map_or_else(String::new, |epoch| {
            format!("; what the failover into epoch {epoch} lost was not counted, and its record says \"at least\" for good")
        });
        let what = format!(
            "the lost tail of epoch {} behind {} up to {}, archive {name} of {region}, is to be kept no longer{uncounted}",
            kept.end.epoch, kept.base, kept.end
        );
        self.tell(now, Input::Audit(Action { actor: actor.to_owned(), op: None, kind: "archive", what: what.clone() }));
        self.drive_roles(now);
        let away = self.appender.drop_archive(archive);
        self.note("archive_dropped", format!("{what}, by order of {actor}"));
        self.drain_appender(now);
        let left = match away {
            0 => String::new(),
            n => format!("; {n} copies are away and keep it: the same command again once they are back"),
        };
        Ok(format!("archive {name} is dropped by the copies of {}{uncounted}{left}", self.who.region))
    }

    /// A part of the archive that is counted; `false`: it is somebody else's read.
    pub(super) fn counted(&mut self, now: Instant, tag: u64, outcome: &LogOutcome) -> bool {
        let Some(counting) = self.counting.as_mut().filter(|c| c.tag == tag) else { return false };
        let LogOutcome::Frames(frames) = outcome else {
            self.note("archive_unreadable", format!("a lost tail cannot be read yet: {outcome:?}; it is tried again at the next start"));
            self.counting = None;
            return true;
        };
        let first = frames.first().map_or(counting.end.seq.next(), Frame::seq);
        if first > counting.next {
            let (from, new_epoch) = (counting.tail.from, counting.tail.new_epoch);
            self.counting = None;
            self.note(
                "loss_uncounted",
                format!(
                    "of the log behind {from}, which the failover into epoch {new_epoch} lost, what lies before seq {first} was kept no longer: how many \
                     commits were lost stays unknown"
                ),
            );
            return true;
        }
        for frame in frames {
            let h = frame.header();
            if h.flags.has(Flags::USER_COMMIT) {
                let at: UnixMicros = h.source_time;
                counting.tail.commits += 1;
                counting.tail.from_time = Some(counting.tail.from_time.map_or(at, |t| t.min(at)));
                counting.tail.to_time = Some(counting.tail.to_time.map_or(at, |t| t.max(at)));
            }
        }
        let (archive, last) = (counting.archive, frames.last().map(Frame::seq));
        counting.next = last.map_or(counting.next, Seq::next);
        if let Some(last) = last.filter(|last| *last < counting.end.seq) {
            self.appender.read_archive(now, tag, GroupId(0), archive, last.next(), READ_BYTES);
            return true;
        }
        // Which rows these are, SQL knows and the log does not.
        self.effects.push_back(Effect::ReadTouched { archive });
        true
    }

    /// The archive was opened as a database, or could not be: that its rows are not known holds nothing up.
    pub(super) fn touched(&mut self, now: Instant, archive: TimelineId, touched: Result<Touched, String>) {
        let Some(Counting { mut tail, .. }) = self.counting.take_if(|c| c.archive == archive) else { return };
        if let Err(why) = &touched {
            self.note("lost_rows_unreadable", format!("which rows a lost tail changed is not known: {why}"));
        }
        self.note(
            "lost_tail_read",
            format!("{} commits of this region were lost by the failover into epoch {}", tail.commits, tail.new_epoch),
        );
        tail.touched = touched;
        self.tell(now, Input::TailRead(tail));
    }
}
