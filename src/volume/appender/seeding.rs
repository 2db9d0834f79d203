//! Pages instead of log: rebuilding one copy from its peers, and replacing the whole volume by the primary's pages.

use super::*;

impl Appender {
    /// Rebuilds a copy from its peers: pages at the VDL, then the log. Writes go on meanwhile.
    pub(super) fn repair(&mut self, now: Instant, copy: MemberId) {
        // What is still being read for it was asked for by what ends here: pages of an earlier rebuilding would count as the first of
        // this one, and a log that was trimmed would begin it once more (seed 1785704779).
        self.drop_reads_of(copy);
        let peer = &mut self.peers[copy.index()];
        (peer.reading, peer.splice, peer.diverged) = (None, None, None);
        let at = if self.vdl == LogEnd::EMPTY { self.known_durable[copy.group.index()] } else { self.vdl };
        let (Some(lineage), true) = (self.lineage, at != LogEnd::EMPTY) else {
            // Nothing to copy from yet; the timer comes back.
            self.peers[copy.index()].contact = Contact::Repairing(Box::new(Repair::waiting()));
            self.peers[copy.index()].read_at = None;
            self.peers[copy.index()].last_asked = now;
            return;
        };
        let mut history = self.history.clone();
        history.cut_from(at.seq.next());
        let base = SeedBase { lineage, end: at, history };
        self.note_rebuilding(copy, at);
        let first = self.first_step();
        let (repair, request) = Repair::begin(now, self.generation, first, base);
        let peer = &mut self.peers[copy.index()];
        peer.contact = Contact::Repairing(Box::new(repair));
        peer.read_at = None;
        peer.acked = LogEnd::EMPTY;
        peer.last_asked = now;
        self.effects.push_back(AppenderEffect::ToCopy { copy, request });
        self.set_health(copy, CopyHealth::Seeding);
        self.judge_quorum();
    }

    /// The region's seed under way: its base, and the last step that was handed in. One whose end was handed in takes no more steps: its
    /// copies publish it, and it is nothing to go on with.
    #[must_use]
    pub fn seed_taken(&self) -> Option<(LogEnd, u64)> {
        self.seeding.as_ref().filter(|s| !s.stalled && !s.ending).map(|s| (s.base.end, s.last_step))
    }

    /// The log surely reaches back to here, as far as its budget goes.
    #[must_use]
    pub fn log_from(&self) -> Seq {
        self.milestones.front().map_or(Seq(0), |(seq, _)| *seq)
    }

    pub(super) fn seed_step(&mut self, now: Instant, ending: bool, request: impl FnOnce(u64) -> CopyRequest) -> u64 {
        let seeding = self.seeding.as_mut().expect("BUG: a seed step without a seed");
        seeding.last_step += 1;
        seeding.ending = ending;
        let step = seeding.last_step;
        seeding.requests.push_back((step, request(seeding.first + step)));
        for copy in self.members() {
            // Whoever has not stored the step before is fed when it has: what is under way is not sent again.
            if self.peers[copy.index()].seed_step.map(|s| s + 1) == Some(step) {
                self.feed_seed(now, copy);
            }
        }
        step
    }

    /// One request at a time for each copy: the one behind its last stored step.
    pub(super) fn feed_seed(&mut self, now: Instant, copy: MemberId) {
        let Some(seeding) = &self.seeding else { return };
        let peer = &mut self.peers[copy.index()];
        if !peer.is_joined() {
            return;
        }
        let wanted = peer.seed_step.map_or(0, |s| s + 1);
        if let Some((_, request)) = seeding.requests.iter().find(|(step, _)| *step == wanted) {
            peer.last_asked = now;
            let request = self.for_member(copy, request);
            self.effects.push_back(AppenderEffect::ToCopy { copy, request });
        } else {
            self.judge_seed();
        }
    }

    /// A write quorum must be able to finish the seed: those that wait for a step that is no longer in memory cannot.
    pub(super) fn judge_seed(&mut self) {
        let Some(seeding) = &self.seeding else { return };
        let oldest = seeding.requests.front().map_or(seeding.last_step + 1, |(step, _)| *step);
        let (groups, stalled) = (self.layout.all_groups(), seeding.stalled);
        let behind = |p: &Peer| p.is_joined() && p.seed_step.map_or(0, |s| s + 1) < oldest;
        // While a slot changes hands, four of the other five (seed 6003641).
        let lost = |group| !self.reached_in(group, |p| !behind(p));
        if !stalled && groups.into_iter().any(lost) {
            if let Some(seeding) = &mut self.seeding {
                seeding.stalled = true;
            }
            self.effects.push_back(AppenderEffect::SeedStalled);
        }
    }

    pub(super) fn seeded(&mut self, now: Instant, copy: MemberId, step: u64) {
        let generation = self.generation;
        if let Contact::Repairing(repair) = &mut self.peers[copy.index()].contact {
            match repair.stored(generation, step) {
                crate::volume::repair::Next::Read => {
                    let busy = now.since(self.vdl_at) < BUSY_WITHIN;
                    let peer = &mut self.peers[copy.index()];
                    peer.pace.answered(now, 0, busy);
                    peer.read_at = Some(peer.pace.not_before());
                    self.read_paced(now);
                }
                crate::volume::repair::Next::Send(request) => {
                    self.peers[copy.index()].last_asked = now;
                    self.effects.push_back(AppenderEffect::ToCopy { copy, request });
                }
                crate::volume::repair::Next::Nothing => {}
            }
            return;
        }
        let Some(seeding) = &mut self.seeding else { return };
        let Some(step) = step.checked_sub(seeding.first) else { return };
        let peer = &mut self.peers[copy.index()];
        // More than is known of it is believed: a late answer may have put what is known back, and the copy is not asked to store again
        // what it has (seed 5002606).
        if !peer.is_joined() || step > seeding.last_step || peer.seed_step.is_some_and(|known| step <= known) {
            peer.seed_said = Some(step);
            return;
        }
        peer.seed_said = None;
        peer.seed_step = Some(step);
        let stored_by_four = self.reached_in_all(|p| p.seed_step.map_or(0, |s| s + 1));
        let Some(seeding) = &mut self.seeding else { return };
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

    /// The next pages for copies that are rebuilt, where their time has come.
    pub(super) fn read_paced(&mut self, now: Instant) {
        for copy in self.members() {
            if self.peers[copy.index()].read_at.take_if(|at| now >= *at).is_some() {
                self.start_read(now, ReadPurpose::Repair { copy }, vec![copy]);
            }
        }
    }

    /// The copy was opened anew in the middle of a seed and knows nothing of it.
    pub(super) fn seed_lost(&mut self, now: Instant, copy: MemberId) {
        if matches!(self.peers[copy.index()].contact, Contact::Repairing(_)) {
            self.repair(now, copy);
        } else if self.seeding.is_some() {
            // From the beginning, if that is still in memory; otherwise it is repaired when the others are done.
            self.peers[copy.index()].seed_step = None;
            self.feed_seed(now, copy);
        }
    }

    pub(super) fn seed_done(&mut self, now: Instant) {
        let seeding = self.seeding.take().expect("BUG: a seed that was not begun is done");
        let base = seeding.base;
        self.lineage = Some(base.lineage);
        self.history = base.history.clone();
        self.end = base.end;
        self.milestones = VecDeque::from([(base.end.seq, base.end.end_lsn)]);
        self.moments.clear();
        self.phase = VolumePhase::Serving;
        for scrub in &mut self.scrubs {
            scrub.serve(now);
        }
        self.points.push_back(base.end);
        self.put_what_was_found();
        for copy in self.members() {
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
        for copy in self.members() {
            let peer = &self.peers[copy.index()];
            if peer.is_joined() && peer.seed_step != Some(seeding.last_step) {
                self.repair(now, copy);
            }
        }
    }
}
