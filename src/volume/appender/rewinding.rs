//! The way back of a whole volume, and of copies that were away meanwhile.
//!
//! A volume that follows a history which does not have its tail goes back to the last point that both have. First that point is made
//! durable here, then a new generation raises the copies (so that nothing late of the old one arrives), and each cuts its own tail and takes up
//! the reign for whose sake it was. When four of every group have done both, no recovery takes the old tail up again: a copy
//! that took up a reign outranks every log of an older one, and everything durable before lies on four that did, or was outranked by them.
//! That only holds while copies without the reign do not count: until the log itself has reached the reign, their acknowledgements wait.
//!
//! Decides which copies must go back, to where, and when it is done; the copies decide whether they can (`copy/rewind.rs`). A copy that
//! cannot is rebuilt. Driven by the node: [`Appender::rewind`].

use super::*;
use crate::volume::message::archive_id;

/// Copies that may be able to go back are waited for so long when some of those that are here are not; then the volume is seeded.
const ABSENT_PATIENCE: Duration = Duration::from_secs(5);

/// The volume is on its way back.
#[derive(Debug)]
pub(super) struct WayBack {
    archive: TimelineId,
    at: LogEnd,
    reign: Epoch,
    /// The point is durable here, and copies are told.
    cutting: bool,
    refused: BTreeMap<MemberId, String>,
    /// Some cannot go back, and those that could make up for them are not here.
    waits_since: Option<Instant>,
}

/// What one copy was told.
#[derive(Debug)]
pub(super) struct Told {
    number: u64,
    request: CopyRequest,
    /// As it was before.
    state: CopyState,
}

impl Appender {
    /// Goes back to `at`, a consistency point that lies on the log here and on the history that is followed from now on; what is behind it
    /// stays as `archive` (see [`archive_id`]). `reign` is the newest epoch known, above that of everything here. `Rewound` when four copies of
    /// every group did it, and then `Restarted` at `at`: the volume follows. Or `RewindImpossible`: it must be seeded. The same again, by a
    /// later incarnation too, comes to the same.
    ///
    /// # Panics
    /// When recovery has not chosen a log, when the point is not on it, or when the reign does not outrank the tail.
    pub fn rewind(&mut self, now: Instant, archive: TimelineId, at: LogEnd, reign: Epoch) {
        let ready = matches!(self.phase, VolumePhase::Chosen | VolumePhase::Serving);
        assert!(ready, "BUG: a rewind of a volume that is {:?}", self.phase);
        let ours = at.seq > Seq::ZERO && at.seq <= self.end.seq && self.history.contains(&at);
        assert!(ours && reign > self.end.epoch, "BUG: {at} of epoch {reign} is not below the log that ends at {}", self.end);
        self.way_back = Some(WayBack { archive, at, reign, cutting: false, refused: BTreeMap::new(), waits_since: None });
        if self.phase == VolumePhase::Chosen {
            self.follow(now, at);
        }
        self.judge_way_back(now);
    }

    /// The volume goes back: nothing is appended meanwhile.
    #[must_use]
    pub fn is_rewinding(&self) -> bool {
        self.way_back.is_some()
    }

    /// Lost tails that copies of this volume keep, each as far as the copy reaches that has most of it.
    #[must_use]
    pub fn archives(&self) -> Vec<ArchiveView> {
        self.archives.values().copied().collect()
    }

    /// Frames of an archive as they lie in the logs of `group`, from `from` on; answered by a `Log` effect, without frames behind its end.
    pub fn read_archive(&mut self, now: Instant, tag: u64, group: GroupId, archive: TimelineId, from: Seq, bytes_max: usize) {
        self.start_read(now, ReadPurpose::Archive { tag, group, archive, from, bytes_max }, Vec::new());
    }

    /// Forgets an archive on all copies that are there. Those that are away keep it until they are told again: so many.
    pub fn drop_archive(&mut self, archive: TimelineId) -> usize {
        self.archives.remove(&archive);
        let generation = self.generation;
        let mut away = 0;
        for copy in self.members() {
            self.peers[copy.index()].archives.retain(|a| a.id != archive);
            if self.peers[copy.index()].is_joined() {
                self.effects.push_back(AppenderEffect::ToCopy { copy, request: CopyRequest::DropArchive { generation, archive } });
            } else {
                away += 1;
            }
        }
        away
    }

    pub(super) fn note_archives(&mut self, copy: MemberId, state: &CopyState) {
        self.peers[copy.index()].archives.clone_from(&state.archives);
        for archive in &state.archives {
            let known = self.archives.entry(archive.id).or_insert(*archive);
            if archive.end > known.end {
                *known = *archive;
            }
        }
    }

    /// How much of the archive that is read a copy has.
    pub(super) fn archived_upto(&self, copy: MemberId, purpose: &ReadPurpose) -> Option<LogEnd> {
        let ReadPurpose::Archive { archive, .. } = purpose else { return None };
        self.peers[copy.index()].archives.iter().find(|a| a.id == *archive).map(|a| a.end)
    }

    // ---- the volume ------------------------------------------------------------------------------------------------

    /// The point is durable: the copies go back.
    pub(super) fn judge_way_back(&mut self, now: Instant) {
        let Some(way) = &mut self.way_back else { return };
        if way.cutting || self.phase != VolumePhase::Serving || self.vdl.seq < way.at.seq {
            return;
        }
        way.cutting = true;
        let at = way.at;
        self.end = at;
        self.history.cut_from(at.seq.next());
        self.vdl = LogEnd::EMPTY;
        self.begin_generation(now);
        self.recovery_since = None;
    }

    pub(super) fn is_cutting(&self) -> bool {
        self.way_back.as_ref().is_some_and(|w| w.cutting)
    }

    /// A copy was raised while the volume goes back.
    pub(super) fn cut_raised(&mut self, now: Instant, copy: MemberId) {
        let Contact::Raised(state) = &self.peers[copy.index()].contact else { return };
        let Some(way) = &self.way_back else { return };
        // What is empty, foreign or behind is fed or rebuilt afterwards, and counts then.
        if state.lineage == self.lineage && state.rank().epoch < way.reign {
            let state = (**state).clone();
            if let Some((at, archive)) = self.must_go_back(&state) {
                self.send_back(now, copy, at, Some(archive), state);
            } else if state.end == way.at {
                let at = state.end;
                self.send_back(now, copy, at, None, state);
            }
        } else {
            let common = self.history.common_seq(self.end.seq, &state.history, state.end.seq);
            self.peers[copy.index()].went_back = state.lineage == self.lineage && common >= way.at.seq;
        }
        self.judge_cut(now);
    }

    pub(super) fn judge_cut(&mut self, now: Instant) {
        let Some(way) = self.way_back.as_ref().filter(|w| w.cutting) else { return };
        if self.reached_in_all(|p| p.went_back) {
            return self.went_back(now);
        }
        let too_many =
            |g: GroupId, of: &dyn Fn(&MemberId) -> bool| MemberId::of(g).iter().filter(|c| of(c)).count() > COPIES - WRITE_QUORUM;
        let refused = |c: &MemberId| way.refused.contains_key(c);
        let keeps_nothing = |c: &MemberId| refused(c) && !self.peers[c.index()].kept_tail;
        let hopeless = self.layout.all_groups().any(|g| too_many(g, &refused));
        // Nothing is replaced before what only this region has is kept as often as it was.
        let kept = self.reached_in_all(|p| p.went_back || p.kept_tail);
        // Whoever is here has answered. The others may be able to go back, or never come again (seed 60009 of moves).
        let answered = !way.refused.is_empty() && !self.peers.iter().any(|p| matches!(p.contact, Contact::Raising | Contact::GoingBack(_)));
        let waited = way.waits_since.is_some_and(|since| now >= since + ABSENT_PATIENCE);
        let seeded = kept && (hopeless || (answered && waited));
        let halts = hopeless && self.layout.all_groups().any(|g| too_many(g, &keeps_nothing));
        if !seeded && !halts {
            let waits = kept && answered;
            let way = self.way_back.as_mut().expect("BUG: the way back was just there");
            way.waits_since = if waits { way.waits_since.or(Some(now)) } else { None };
            return;
        }
        let reason = way.refused.values().next().cloned().unwrap_or_default();
        self.way_back = None;
        self.phase = if seeded { VolumePhase::AwaitingSeed } else { VolumePhase::Chosen };
        self.effects.push_back(AppenderEffect::RewindImpossible { reason, kept: seeded });
    }

    pub(super) fn way_back_timeout(&self) -> Option<Instant> {
        Some(self.way_back.as_ref()?.waits_since? + ABSENT_PATIENCE)
    }

    fn went_back(&mut self, now: Instant) {
        let way = self.way_back.take().expect("BUG: the way back was just there");
        self.reign = way.reign;
        self.reign_at = way.at;
        for (i, known) in self.known_durable.iter_mut().enumerate() {
            let of_group = self.peers[i * COPIES..][..COPIES].iter();
            let flushed = of_group.filter_map(|p| if let Contact::Raised(s) = &p.contact { Some(s.flushed) } else { None });
            let ours = flushed.filter(|f| f.seq <= way.at.seq && self.history.contains(f));
            *known = ours.max_by_key(|f| f.seq).unwrap_or(LogEnd::EMPTY);
        }
        self.milestones.retain(|(seq, _)| *seq < way.at.seq);
        self.milestones.push_back((way.at.seq, way.at.end_lsn));
        self.moments.clear();
        self.refuse_branches_above(&way.at);
        self.effects.push_back(AppenderEffect::Rewound { at: way.at });
        self.phase = VolumePhase::Chosen;
        self.follow(now, way.at);
    }

    // ---- one copy --------------------------------------------------------------------------------------------------

    /// Up to where a copy is on the volume's history, and the archive for what it has behind that, when that must be cut before it can go on.
    pub(super) fn must_go_back(&self, state: &CopyState) -> Option<(LogEnd, TimelineId)> {
        if state.lineage != self.lineage || state.end == LogEnd::EMPTY {
            return None;
        }
        let common = self.history.common_seq(self.end.seq, &state.history, state.end.seq);
        let reign = self.way_back.as_ref().filter(|w| w.cutting).map_or(self.reign, |w| w.reign);
        let void = if common == state.end.seq {
            false // all of it is on the history
        } else if common == self.end.seq {
            // It goes on where the volume ends. It may be ahead, or it was away when the others went back.
            state.rank().epoch < reign
        } else {
            // What did not become pages is replaced by the frames that come.
            self.is_cutting() || state.ingested.seq > common
        };
        if !void {
            return None;
        }
        let ends = self.history.ends_of_terms().chain(state.history.ends_of_terms()).chain([self.end]);
        let at = ends.filter(|e| e.seq == common).max().unwrap_or(LogEnd::EMPTY);
        let archive = match &self.way_back {
            Some(way) if way.at == at => way.archive,
            _ => archive_id(&at, state.end.epoch),
        };
        Some((at, archive))
    }

    /// A copy whose log reaches the point and that has not taken up the reign: its acknowledgements do not count.
    pub(super) fn lacks_reign(&self, peer: &Peer) -> bool {
        peer.reign < self.reign && peer.acked.epoch < self.reign
    }

    /// Whether its log has everything behind which copies took up the reign.
    pub(super) fn has_point(&self, state: &CopyState) -> bool {
        self.history.common_seq(self.end.seq, &state.history, state.end.seq) >= self.reign_at.seq
    }

    /// What it acknowledged, as far as that counts.
    pub(super) fn counted(&self, peer: &Peer) -> Seq {
        if self.lacks_reign(peer) { Seq(0) } else { peer.acked.seq }
    }

    pub(super) fn send_back(&mut self, now: Instant, copy: MemberId, at: LogEnd, archive: Option<TimelineId>, state: CopyState) {
        // One that parted before the volume's point lacks what others have: it takes up the reign that the log has there, which all who have that
        // outrank.
        let of_log = self.history.term_of(at.seq.next()).filter(|_| at.seq < self.end.seq).map_or(self.end.epoch, |t| t.epoch);
        let (reign, point) = self.way_back.as_ref().filter(|w| w.cutting).map_or((self.reign, self.reign_at), |w| (w.reign, w.at));
        let reign = if at.seq >= point.seq { reign.max(of_log) } else { of_log };
        let after = if reign > at.epoch { LogEnd { epoch: reign, generation: Generation(0), ..at } } else { at };
        self.note_rebuilding(copy, after);
        self.rewinds += 1;
        let number = self.rewinds;
        let request = CopyRequest::Rewind { generation: self.generation, number, archive, at, reign };
        let peer = &mut self.peers[copy.index()];
        peer.last_asked = now;
        peer.contact = Contact::GoingBack(Box::new(Told { number, request: request.clone(), state }));
        self.effects.push_back(AppenderEffect::ToCopy { copy, request });
    }

    pub(super) fn say_back_again(&mut self, copy: MemberId) {
        if let Contact::GoingBack(told) = &self.peers[copy.index()].contact {
            let request = told.request.clone();
            self.effects.push_back(AppenderEffect::ToCopy { copy, request });
        }
    }

    fn told(&self, copy: MemberId, number: u64) -> Option<&Told> {
        match &self.peers[copy.index()].contact {
            Contact::GoingBack(told) if told.number == number => Some(told),
            _ => None,
        }
    }

    pub(super) fn rewound(&mut self, now: Instant, copy: MemberId, number: u64, state: CopyState) {
        if self.told(copy, number).is_none() {
            return;
        }
        self.note_archives(copy, &state);
        if self.is_cutting() {
            let (at, reign) = self.way_back.as_ref().map(|w| (w.at, w.reign)).expect("BUG: it is cutting");
            // One that parted earlier than the others, or is behind, is fed first.
            self.peers[copy.index()].went_back = state.end.seq >= at.seq && state.reign >= reign;
        }
        self.peers[copy.index()].reign = state.reign;
        self.peers[copy.index()].contact = Contact::Raised(Box::new(state));
        match self.phase {
            VolumePhase::Serving => self.join(now, copy),
            _ => self.judge_cut(now),
        }
    }

    /// As [`Self::rewind_refused`], and what it has is archived.
    pub(super) fn tail_kept(&mut self, now: Instant, copy: MemberId, number: u64, reason: String, state: &CopyState) {
        if self.told(copy, number).is_some() {
            self.note_archives(copy, state);
            self.peers[copy.index()].kept_tail = true;
            self.rewind_refused(now, copy, number, reason);
        }
    }

    pub(super) fn rewind_refused(&mut self, now: Instant, copy: MemberId, number: u64, reason: String) {
        let Some(told) = self.told(copy, number) else { return };
        let state = told.state.clone();
        self.peers[copy.index()].contact = Contact::Raised(Box::new(state));
        if self.phase == VolumePhase::Serving {
            return self.repair(now, copy);
        }
        if let Some(way) = &mut self.way_back {
            way.refused.insert(copy, reason);
        }
        self.judge_cut(now);
    }
}
