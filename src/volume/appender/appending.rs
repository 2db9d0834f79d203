//! Frames to six copies, in order: the ring, each copy's window, what its acknowledgements make durable, and how far back the log
//! and the page versions must be kept.

use super::retention::Wants;
use super::*;

/// The first of `frames`, at least one, about `bytes_max` of them.
fn up_to(frames: impl Iterator<Item = Frame>, bytes_max: usize) -> Vec<Frame> {
    let mut bytes = 0;
    let fit = frames.take_while(|f| {
        let fits = bytes == 0 || bytes + f.bytes().len() <= bytes_max;
        bytes += f.bytes().len();
        fits
    });
    fit.collect()
}

impl Appender {
    pub(super) fn push(&mut self, frame: Frame) {
        self.end = frame.log_end();
        self.history.note(&frame);
        if frame.is_consistency_point() {
            self.points.push_back(self.end);
        }
        let step = (self.limits.log_retain_bytes / 16).min(1 << 20);
        if self.milestones.back().is_none_or(|(_, l)| self.end.end_lsn.bytes_since(*l) >= step) {
            self.milestones.push_back((self.end.seq, self.end.end_lsn));
        }
        self.ring_bytes += frame.bytes().len();
        self.ring.push_back(frame);
        while self.ring_bytes > self.limits.ring_bytes_max && self.ring.front().is_some_and(|f| f.seq() <= self.vdl.seq) {
            let gone = self.ring.pop_front().expect("BUG: a front was seen");
            self.ring_bytes -= gone.bytes().len();
        }
    }

    pub(super) fn first_in_ring(&self) -> Option<Seq> {
        self.ring.front().map(Frame::seq)
    }

    /// Frames from `from` on out of memory; `None` when memory does not reach back so far. Empty when `from` is past the end.
    pub(super) fn ring_from(&self, from: Seq, bytes_max: usize) -> Option<Vec<Frame>> {
        if from > self.end.seq {
            return Some(Vec::new());
        }
        let first = self.first_in_ring()?;
        let skip = usize::try_from(from.0.checked_sub(first.0)?).expect("BUG: the ring is in memory");
        Some(up_to(self.ring.range(skip..).cloned(), bytes_max))
    }

    /// As [`Appender::ring_from`], as the frames lie in the logs of `group`.
    fn ring_for(&self, group: GroupId, from: Seq, bytes_max: usize) -> Option<Vec<Frame>> {
        if from > self.end.seq {
            return Some(Vec::new());
        }
        let skip = usize::try_from(from.0.checked_sub(self.first_in_ring()?.0)?).expect("BUG: the ring is in memory");
        Some(up_to(self.ring.range(skip..).map(|f| f.for_group(group)), bytes_max))
    }

    /// Sends a joined copy what it lacks, as far as its window allows.
    pub(super) fn pump(&mut self, now: Instant, copy: MemberId) {
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
            let Some(frames) = self.ring_for(copy.group, from, self.limits.batch_bytes_max) else {
                self.start_read(now, ReadPurpose::Backfill { copy }, vec![copy]);
                return;
            };
            self.feed(now, copy, frames);
        }
    }

    /// Sends `frames`, which follow what was sent; a splice is collected until it is whole.
    pub(super) fn feed(&mut self, now: Instant, copy: MemberId, frames: Vec<Frame>) {
        let Some(last) = frames.last() else { return };
        let last_seq = last.seq();
        let peer = &mut self.peers[copy.index()];
        peer.sent = last_seq;
        peer.sent_lsn = last.end_lsn();
        if let Some(splice) = &mut peer.splice {
            splice.frames.extend(frames);
            let newer = splice.frames.iter().any(|f| (f.header().epoch, f.header().generation) > splice.tail);
            if newer && last_seq >= splice.upto {
                let splice = peer.splice.take().expect("BUG: it was just there");
                self.send_append(now, copy, splice.frames);
            }
        } else {
            self.send_append(now, copy, frames);
        }
    }

    pub(super) fn send_append(&mut self, now: Instant, copy: MemberId, frames: Vec<Frame>) {
        let vdl = self.vdl_for(copy);
        let request = CopyRequest::Append {
            generation: self.generation,
            frames,
            vdl,
            horizon: self.horizon(now),
            trim: self.trim(),
            gate: self.peers[copy.index()].gate,
        };
        let peer = &mut self.peers[copy.index()];
        peer.told_vdl = vdl.seq;
        peer.last_asked = now;
        self.effects.push_back(AppenderEffect::ToCopy { copy, request });
    }

    /// What a copy is told to be durable: before this incarnation has a VDL, what surely was. It serves pages from where it is told that its log
    /// and the volume's are the same.
    pub(super) fn vdl_for(&self, copy: MemberId) -> LogEnd {
        if self.vdl == LogEnd::EMPTY { self.known_durable[copy.group.index()] } else { self.vdl }
    }

    pub(super) fn appended(&mut self, now: Instant, copy: MemberId, end: LogEnd, ingested: Lsn) {
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
                // Its pages are the volume's; a reign it takes up anew.
                (peer.joined_with, peer.reign) = (end.seq, Epoch(0));
                self.note_rebuilt(copy, end);
                self.mended(copy);
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
        if end != LogEnd::EMPTY {
            peer.diverged = None;
        }
        // Ahead on the same term: it has all that is here.
        let end = if end.seq > self.end.seq { self.end } else { end };
        peer.ingested = ingested.max(peer.ingested);
        if end.seq > peer.acked.seq {
            peer.moved_at = now;
        }
        if end.seq >= peer.acked.seq {
            peer.acked = end;
        }
        self.note_acked(copy);
        let peer = &mut self.peers[copy.index()];
        if peer.sent < end.seq {
            peer.sent = end.seq;
            peer.sent_lsn = end.end_lsn;
        }
        if self.lacks_reign(&self.peers[copy.index()]) && end.seq >= self.reign_at.seq && self.reign_at != LogEnd::EMPTY {
            // It was behind and has everything now: it takes up the reign, and counts.
            self.raise(now, copy);
            return;
        }
        self.judge_durable(now);
        self.judge_health(copy);
        self.pump(now, copy);
    }

    /// Durable = the 4th highest acknowledged seq, in the group where that is lowest; VDL = the last consistency point at or below it.
    pub(super) fn judge_durable(&mut self, now: Instant) {
        if self.phase != VolumePhase::Serving {
            return;
        }
        let durable = self.reached_in_all(|p| self.counted(p));
        let mut vdl = None;
        while self.points.front().is_some_and(|p| p.seq <= durable) {
            vdl = self.points.pop_front();
        }
        let Some(vdl) = vdl else { return };
        self.record_again(now);
        let first = self.vdl == LogEnd::EMPTY;
        let before = self.vdl.seq;
        self.vdl = vdl;
        self.vdl_moved.get_or_insert(now);
        self.vdl_at = now;
        if self.moments.back().is_none_or(|(t, _)| now.since(*t) >= Duration::from_secs(1)) {
            self.moments.push_back((now, vdl.end_lsn));
        }
        if self.reign <= vdl.epoch {
            (self.reign, self.reign_at) = (Epoch(0), LogEnd::EMPTY); // the log has reached it
        }
        if first {
            self.effects.push_back(AppenderEffect::Restarted { vdl });
            self.judge_membership();
            self.judge_way_back(now);
            return;
        }
        let skip =
            self.first_in_ring().map_or(0, |f| usize::try_from(before.next().0.saturating_sub(f.0)).expect("BUG: the ring is in memory"));
        let frames: Vec<Frame> = self.ring.range(skip.min(self.ring.len())..).take_while(|f| f.seq() <= vdl.seq).cloned().collect();
        debug_assert_eq!(frames.len() as u64, vdl.seq.0 - before.0, "BUG: the ring lost a frame that was not durable");
        self.effects.push_back(AppenderEffect::Durable { vdl, frames });
        self.judge_way_back(now);
    }

    pub(super) fn horizon(&mut self, now: Instant) -> Lsn {
        while self.moments.len() > 1 && now.since(self.moments[1].0) >= self.limits.version_retain {
            self.moments.pop_front();
        }
        let by_time = self.moments.front().filter(|(t, _)| now.since(*t) >= self.limits.version_retain).map_or(Lsn(0), |(_, l)| *l);
        let repairs = self.peers.iter().filter_map(|p| if let Contact::Repairing(r) = &p.contact { Some(r.at()) } else { None }).min();
        let wants = Wants {
            vdl: self.vdl.end_lsn,
            by_time,
            // A branch that is being made is read at its point.
            readers: self.branches_need().map_or(self.readers_need, |at| at.min(self.readers_need)),
            seed: self.pages_need,
            fork: self.fork_need,
            repair: repairs,
            bytes_max: self.limits.version_retain_bytes,
        };
        self.held = wants.horizon();
        self.held.0
    }

    /// How far back versions and log are kept now, for status.
    #[must_use]
    pub fn retention(&self) -> Retention {
        let log_from = self.milestones.front().map_or(self.vdl.end_lsn, |(_, at)| *at);
        Retention {
            versions_bytes: self.vdl.end_lsn.bytes_since(self.held.0),
            versions_bytes_max: self.limits.version_retain_bytes,
            held_by: self.held.1,
            log_bytes: self.vdl.end_lsn.bytes_since(log_from),
            log_bytes_max: self.limits.log_retain_bytes,
        }
    }

    pub(super) fn trim(&mut self) -> Seq {
        let end = self.vdl.end_lsn;
        let budget = self.limits.log_retain_bytes;
        let keep_min = LOG_KEEP_BYTES_MIN.min(budget);
        let needed = self.secondaries_need.unwrap_or(Seq(u64::MAX)).min(self.peers.iter().map(|p| p.acked.seq).min().unwrap_or(Seq(0)));
        while self.milestones.len() > 1 {
            let (seq, at) = self.milestones[1];
            let over_budget = end.bytes_since(self.milestones[0].1) > budget;
            if over_budget || (end.bytes_since(at) > keep_min && seq <= needed && self.branches_need().is_none_or(|lsn| at <= lsn)) {
                self.milestones.pop_front();
            } else {
                break;
            }
        }
        self.milestones.front().map_or(Seq(0), |(s, _)| *s)
    }
}
