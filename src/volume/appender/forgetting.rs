//! Directories that have forgotten what they had: put back from an old backup or a snapshot, or on disks that lost what they said was synced.
//!
//! Such a copy acknowledged what it no longer has, and would make a quorum of three that lacks what four had. Its files are sound and it cannot know it
//! itself. So the record beside the control state says what each directory had when it was put (which generation it promised: each start of the
//! region raises that; and up to where its log went), and this process remembers it from one opening to the next. A directory that comes with less has no vote
//! in recovery; it gets a new incarnation, is fed or rebuilt as a new member is, and votes again when it has everything and that was
//! recorded. Its old incarnation never comes back. Decides that, and never what is sent to it.

use super::*;
use crate::volume::membership::{Record, Seen};

/// While commits are made, what was seen is recorded anew after this.
const RECORD_EVERY: Duration = Duration::from_secs(10);

impl Appender {
    /// Whether the directory at `copy`, which says `state`, has forgotten what `seen`, or this process, knows of it.
    pub(super) fn has_forgotten(&self, seen: &[Seen], copy: MemberId, state: &CopyState) -> bool {
        let opened_with = self.peers[copy.index()].opened_with;
        let by = |seen: &[Seen]| seen.get(copy.index()).is_some_and(|s| s.is_forgotten_by(state.incarnation, opened_with, &state.rank()));
        by(seen) || by(&self.seen)
    }

    /// Copies that were heard and have no vote for that, as a sentence's end.
    pub(super) fn forgetful(&self, seen: &[Seen]) -> Option<String> {
        let names: Vec<String> = (self.members())
            .filter(|c| matches!(&self.peers[c.index()].contact, Contact::Raised(state) if self.has_forgotten(seen, *c, state)))
            .map(|c| c.to_string())
            .collect();
        (!names.is_empty()).then(|| {
            format!(
                "{} does not count: what lies there is older than what it once acknowledged (an old backup or snapshot was put back, or its disk lost \
                 writes). Put back the directories as they were last",
                names.join(", ")
            )
        })
    }

    /// Before a copy joins: `true` when it is told to be somebody else first.
    pub(super) fn born_again(&mut self, now: Instant, copy: MemberId) -> bool {
        let Contact::Raised(state) = &self.peers[copy.index()].contact else { return false };
        if !self.has_forgotten(&[], copy, state) {
            return false;
        }
        let (had, was, promised) = (self.seen[copy.index()], state.rank(), self.peers[copy.index()].opened_with);
        let generation = self.generation;
        let incarnation = Incarnation((u128::from(self.prng.next_u64()) << 64) | u128::from(self.prng.next_u64()) | 1);
        let what = if promised < had.promised {
            format!("it promised generation {} and knows of {promised}", had.promised)
        } else {
            format!("its log went up to {} and ends at {was}", had.end)
        };
        self.effects.push_back(AppenderEffect::CopyForgot { copy, what });
        let peer = &mut self.peers[copy.index()];
        peer.contact = Contact::Raising;
        peer.last_asked = now;
        self.effects.push_back(AppenderEffect::ToCopy { copy, request: CopyRequest::Reborn { generation, incarnation } });
        true
    }

    /// It promised this generation, and is what it says.
    pub(super) fn note_seen(&mut self, copy: MemberId) {
        let Contact::Raised(state) = &self.peers[copy.index()].contact else { return };
        let now_seen = Seen { incarnation: state.incarnation, promised: self.generation, end: state.rank() };
        self.peers[copy.index()].opened_with = self.generation;
        self.seen[copy.index()] = now_seen;
    }

    /// It acknowledged this on the volume's history.
    pub(super) fn note_acked(&mut self, copy: MemberId) {
        let acked = self.peers[copy.index()].acked;
        let seen = self.seen_of(copy);
        seen.end = seen.end.max(acked);
    }

    /// It is about to be rebuilt from a seed that ends at `end`, or to go back to there. When it once had more, the record hears of that first: after a
    /// crash it is not taken for an old backup (seeds 275 and 911264 of moves).
    pub(super) fn note_rebuilding(&mut self, copy: MemberId, end: LogEnd) {
        if self.seen_of(copy).end > end {
            self.seen_of(copy).end = end;
            self.put_what_was_found();
        }
    }

    /// It is rebuilt from a seed that ends at `end`, which may be before what it once had.
    pub(super) fn note_rebuilt(&mut self, copy: MemberId, end: LogEnd) {
        self.seen_of(copy).end = end;
    }

    /// Of the directory that is open at `copy` now: what is seen of it says nothing of the one that was there before (seed 910724 of moves).
    fn seen_of(&mut self, copy: MemberId) -> &mut Seen {
        let (peer, promised) = (&mut self.peers[copy.index()], self.generation);
        let seen = &mut self.seen[copy.index()];
        if seen.incarnation != peer.incarnation {
            // It was raised, or nothing would be asked of it.
            peer.opened_with = promised;
            *seen = Seen { incarnation: peer.incarnation, promised, end: LogEnd::EMPTY };
        }
        seen
    }

    /// What recovery's record knows is remembered, for copies that come later.
    pub(super) fn take_seen(&mut self, kept: &Record) {
        for (own, kept) in self.seen.iter_mut().zip(&kept.seen) {
            if own.incarnation != kept.incarnation {
                *own = *kept;
            } else {
                (own.promised, own.end) = (own.promised.max(kept.promised), own.end.max(kept.end));
            }
        }
        self.durable_kept = kept.durable;
    }

    /// For the record that is put now.
    pub(super) fn durable_now(&self) -> Option<(LineageId, LogEnd)> {
        let now = self.lineage.filter(|_| self.vdl != LogEnd::EMPTY).map(|lineage| (lineage, self.vdl));
        now.or(self.durable_kept)
    }

    /// The whole volume gets other contents.
    pub(super) fn forget_what_was_seen(&mut self) {
        self.durable_kept = None;
        for seen in &mut self.seen {
            seen.end = LogEnd::EMPTY;
        }
    }

    /// Commits were made since the record was put: it is put again, so that an old directory is not taken for one that is only behind.
    pub(super) fn record_again(&mut self, now: Instant) {
        let due = now.since(self.recorded_at) >= RECORD_EVERY;
        if due && self.in_force && self.phase == VolumePhase::Serving && self.membership.is_some() && !self.is_changing() {
            self.recorded_at = now;
            self.put_what_was_found();
        }
    }
}
