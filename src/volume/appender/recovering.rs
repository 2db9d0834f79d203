//! From "the copies are open" to "the volume serves": raising the generation, choosing one log, taking each copy into the appending
//! set where its log and the volume's part. The choice itself is a pure function in [`super::super::recovery`].

use super::*;
use crate::volume::membership::{Record, Standing};

impl Appender {
    pub(super) fn raise(&mut self, now: Instant, copy: MemberId) {
        let peer = &mut self.peers[copy.index()];
        peer.contact = Contact::Raising;
        (peer.went_back, peer.kept_tail) = (false, false);
        peer.last_asked = now;
        self.effects.push_back(AppenderEffect::ToCopy { copy, request: CopyRequest::Raise { generation: self.generation } });
    }

    pub(super) fn refused(&mut self, now: Instant, copy: MemberId, promised: Generation) {
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
        let of_its_group = MemberId::of(copy.group).into_iter().filter(|m| self.refused_by[m.index()]).count();
        if of_its_group < quorum::READ_QUORUM {
            let reason = format!("it promised generation {promised} to an earlier start of this region; restart the region to take it in");
            self.copy_lost(now, copy, reason);
        } else if self.phase != VolumePhase::Fenced {
            self.phase = VolumePhase::Fenced;
            self.effects.push_back(AppenderEffect::Fenced { promised });
        }
    }

    pub(super) fn raised(&mut self, now: Instant, copy: MemberId, generation: Generation, state: CopyState) {
        if generation != self.generation || !matches!(self.peers[copy.index()].contact, Contact::Raising) {
            return;
        }
        self.peers[copy.index()].incarnation = state.incarnation;
        self.peers[copy.index()].reign = state.reign;
        self.note_archives(copy, &state);
        self.peers[copy.index()].contact = Contact::Raised(Box::new(state));
        if (self.phase != VolumePhase::Recovering || self.is_cutting()) && self.turn_away(now, copy) {
            return;
        }
        match self.phase {
            VolumePhase::Recovering if self.is_cutting() => self.cut_raised(now, copy),
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

    pub(super) fn try_choose(&mut self, now: Instant) {
        if self.is_cutting() {
            self.recovery_since = None;
            return; // the log is chosen
        }
        let raised = self.peers.iter().filter(|p| matches!(p.contact, Contact::Raised(_))).count();
        let grace_over = self.recovery_since.is_some_and(|since| now >= since + RECOVERY_GRACE);
        if raised < self.peers.len() && !grace_over {
            return;
        }
        let heard: Vec<Heard<'_>> = (self.peers.iter())
            .map(|p| match &p.contact {
                Contact::Raised(state) => Heard::Raised(state),
                _ => Heard::Nothing,
            })
            .collect();
        let (control_version, bytes) = agreement::control(&heard);
        let kept = Record::decode(&bytes).unwrap_or(Record { control: bytes, ..Record::default() });
        // Who wrote may hold what nobody else has; who only followed is seeded anew.
        let reseedable = kept.holds_commits.map_or(self.reseedable, |holds| !holds);
        // A directory that the membership does not know, or that was replaced, has no vote: what it holds may be old.
        let strangers: Vec<Option<CopyState>> = (self.members().zip(&heard))
            .map(|(c, h)| match h {
                Heard::Raised(s)
                    if s.lineage.is_some()
                        && (!Appender::has_vote(kept.membership.as_ref(), c, s.incarnation) || self.has_forgotten(&kept.seen, c, s)) =>
                {
                    Some(CopyState { lineage: None, ..(*s).clone() })
                }
                _ => None,
            })
            .collect();
        let voters: Vec<Heard<'_>> =
            heard.iter().zip(&strangers).map(|(h, stranger)| stranger.as_ref().map_or_else(|| h.clone(), Heard::Raised)).collect();
        let control = kept.control.clone();
        let choice = match agreement::choose(&voters, reseedable) {
            // There is data, only it is not that of the members.
            Choice::Empty if !reseedable && strangers.iter().any(Option::is_some) => Choice::Wait {
                reason: "the directories with data are not those of the region's members; put the members' directories back".into(),
            },
            choice => choice,
        };
        match choice {
            Choice::Wait { reason } => {
                let reason = self.with_proofs(reason);
                let reason = self.forgetful(&kept.seen).map_or(reason.clone(), |who| format!("{reason}; {who}"));
                // Asked again with every copy that answers; said once for each change.
                self.recovery_since = None;
                if let Some(record) = &kept.membership {
                    self.look_elsewhere(record);
                }
                if reason != self.recovery_said {
                    self.recovery_said.clone_from(&reason);
                    self.effects.push_back(AppenderEffect::RecoveryWaits { reason, control });
                }
            }
            Choice::Empty => {
                self.phase = VolumePhase::AwaitingSeed;
                // Whose the empty directories are is recorded with the next control state.
                self.take_kept(control_version, Record { membership: None, ..kept });
                self.effects.push_back(AppenderEffect::Recovered { found: Found::Empty { control } });
            }
            Choice::Log(chosen) => {
                let flushed = heard.chunks(COPIES).map(|six| {
                    let states = six.iter().filter_map(|h| if let Heard::Raised(s) = h { Some(*s) } else { None });
                    let ours = |s: &&CopyState| s.lineage == Some(chosen.lineage) && s.flushed.seq <= chosen.end.seq;
                    let flushed = states.filter(ours).map(|s| s.flushed).filter(|f| chosen.history.contains(f));
                    flushed.max_by_key(|f| f.seq).unwrap_or(LogEnd::EMPTY)
                });
                self.known_durable = flushed.collect();
                let lost = self.judge_lost(&chosen, &heard, &kept);
                self.phase = VolumePhase::Chosen;
                self.lineage = Some(chosen.lineage);
                self.history = chosen.history;
                self.end = chosen.end;
                (self.reign, self.reign_at) = (chosen.reign, chosen.consistent);
                self.take_kept(control_version, kept);
                self.say_where_members_live();
                self.milestones = VecDeque::from([(chosen.first, Lsn(0)), (chosen.end.seq, chosen.end.end_lsn)]);
                let found = Found::Log { lineage: chosen.lineage, end: chosen.end, consistent: chosen.consistent, control, lost };
                self.effects.push_back(AppenderEffect::Recovered { found });
            }
        }
    }

    /// The copy whose log recovery chose is gone before anybody else had all of it, and nothing is durable yet: what is missing was
    /// never acknowledged, and may never come back.
    pub(super) fn lost_the_chosen_tail(&self) -> bool {
        let best = |g| self.six(g).iter().filter(|p| p.is_joined()).map(|p| p.acked.seq).max().unwrap_or(Seq(0));
        let first = self.first_in_ring().unwrap_or(self.end.seq.next());
        self.phase == VolumePhase::Serving && self.vdl == LogEnd::EMPTY && self.layout.all_groups().any(|g| first > best(g).next())
    }

    /// From the beginning, as a new generation: what the one that was begun has not made durable may be lost. Also the way from following to
    /// leading in one process: `Recovered` comes again, and the node answers anew.
    pub fn recover_again(&mut self, now: Instant) {
        self.way_back = None;
        self.begin_generation(now);
        self.effects.push_back(AppenderEffect::RecoveryBeginsAnew);
    }

    /// A new generation raises all copies that are there.
    pub(super) fn begin_generation(&mut self, now: Instant) {
        self.phase = VolumePhase::Recovering;
        self.without_lease();
        self.recovery_since = Some(now);
        self.recovery_said.clear();
        self.quorum_said = false;
        self.ring.clear();
        self.ring_bytes = 0;
        self.points.clear();
        self.reads.clear();
        self.gathers.clear();
        self.generation = self.generation_above(self.generation);
        for id in self.members() {
            let peer = &mut self.peers[id.index()];
            if let Contact::Down { reason } = &peer.contact {
                // What it acknowledged may be the tail that is about to be cut, and counts for nothing any more (seed 1785704162).
                let contact = Contact::Down { reason: reason.clone() };
                *peer = Peer { contact, health: peer.health.clone(), incarnation: peer.incarnation, ..Peer::new() };
            } else {
                let opened_with = peer.opened_with;
                *peer = Peer { health: CopyHealth::Starting, last_heard: now, opened_with, ..Peer::new() };
                self.raise(now, id);
            }
        }
    }

    /// A copy that was not heard when the log was chosen may have later pages, and a log that begins behind them: whoever is rebuilt from pages
    /// before them would never get what lies between (seed 9000673).
    fn note_flushed(&mut self, copy: MemberId) {
        let Contact::Raised(state) = &self.peers[copy.index()].contact else { return };
        let (flushed, known) = (state.flushed, &mut self.known_durable[copy.group.index()]);
        let ours = state.lineage == self.lineage && flushed.seq <= self.end.seq && self.history.contains(&flushed);
        if ours && flushed.seq > known.seq {
            *known = flushed;
        }
    }

    /// A generation above `promised`, and above that of every earlier incarnation, also of one that this one has not heard of:
    /// a recovery that crashed may have raised only copies that are away now, and they would refuse a lower number for ever.
    /// The counter is therefore at least the second this incarnation began in. Nothing is unsafe if the clock lies: such a copy
    /// then stays out until the next start. The 16 random bits below it: two incarnations never share a number.
    pub(super) fn generation_above(&mut self, promised: Generation) -> Generation {
        let counter = ((promised.0 >> 16) + 1).max(self.began_s);
        Generation((counter << 16) | self.prng.below(1 << 16))
    }

    pub(super) fn serve(&mut self, now: Instant) {
        self.phase = VolumePhase::Serving;
        self.put_what_was_found();
        for scrub in &mut self.scrubs {
            scrub.serve(now);
        }
        let replaced = |a: &Appender, c: MemberId| a.standing(c) == Standing::Replaced;
        for copy in self.members() {
            if matches!(self.peers[copy.index()].contact, Contact::Raised(_)) && !replaced(self, copy) {
                self.join(now, copy);
            }
        }
        // Behind the others: the log that was chosen is theirs, and is not lost with these.
        for copy in self.members() {
            if matches!(self.peers[copy.index()].contact, Contact::Raised(_)) {
                self.turn_away(now, copy);
            }
        }
        self.judge_quorum();
        self.judge_durable(now);
    }

    /// Takes a raised copy into the appending set: finds where its log and the volume's part, and goes on from there.
    pub(super) fn join(&mut self, now: Instant, copy: MemberId) {
        if self.came_too_late(now, copy) || self.born_again(now, copy) {
            return;
        }
        self.note_seen(copy);
        self.note_flushed(copy);
        let Contact::Raised(state) = std::mem::replace(&mut self.peers[copy.index()].contact, Contact::Joined) else {
            unreachable!("BUG: only a raised copy joins")
        };
        self.peers[copy.index()].ingested = state.ingested.end_lsn;
        self.peers[copy.index()].joined_with = state.ingested.seq;
        self.set_health(copy, CopyHealth::CatchingUp);
        let foreign = state.lineage.is_some() && state.lineage != self.lineage;
        let pages_exist = self.vdl != LogEnd::EMPTY || self.known_durable[copy.group.index()] != LogEnd::EMPTY;
        if foreign || (state.lineage.is_none() && self.first_in_ring() != Some(Seq(1)) && pages_exist) {
            self.repair(now, copy);
        } else if let Some((at, archive)) = self.must_go_back(&state) {
            self.send_back(now, copy, at, Some(archive), *state);
        } else if state.rank().epoch < self.reign && self.has_point(&state) {
            let at = self.reign_at;
            self.send_back(now, copy, at, None, *state);
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
    pub(super) fn introduce(&mut self, now: Instant, copy: MemberId) {
        self.peers[copy.index()].told_vdl = Seq(0);
        if self.vdl_for(copy) != LogEnd::EMPTY {
            self.vdl_moved.get_or_insert(now);
        }
    }

    /// Where a copy stands on the volume's history: what counts as acknowledged, and what must be sent next.
    pub(super) fn place(&mut self, now: Instant, copy: MemberId, end: LogEnd, history: &History) {
        let common = self.history.common_seq(self.end.seq, history, end.seq);
        let peer = &mut self.peers[copy.index()];
        peer.reading = None;
        peer.splice = None;
        peer.diverged = None;
        peer.last_heard = now;
        if end.seq == common {
            // Its whole log is on ours.
            peer.acked = end;
            peer.sent = end.seq;
            peer.sent_lsn = end.end_lsn;
            if end == LogEnd::EMPTY && self.end.seq > Seq(1) {
                // Empty, and perhaps the new disk of a copy that acknowledged what is durable. With a part of the log it would have a vote
                // in the next recovery, and two like it could outvote what they lost: it gets all that there is in one step, or nothing.
                peer.splice = Some(Splice { frames: Vec::new(), tail: (end.epoch, end.generation), upto: self.end.seq });
                peer.diverged = Some(Box::new((end, history.clone())));
            }
        } else if common == self.end.seq && common > Seq::ZERO {
            // It has all of the volume's log and more: a secondary's copy that is ahead of what recovery chose, perhaps in a later
            // term. It skips what it has. (A primary's log ends with a frame of its own, which no cut tail has.)
            peer.acked = self.end;
            peer.sent = common;
            peer.sent_lsn = self.end.end_lsn;
        } else {
            // A tail that recovery cut. It acknowledges nothing before its successor frame replaced it.
            peer.acked = LogEnd::EMPTY;
            peer.sent = common;
            peer.sent_lsn = Lsn(0);
            peer.splice = Some(Splice { frames: Vec::new(), tail: (end.epoch, end.generation), upto: Seq(0) });
            peer.diverged = Some(Box::new((end, history.clone())));
        }
    }
}
