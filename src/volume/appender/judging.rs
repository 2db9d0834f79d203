//! What follows from how the copies are: who owes an answer, who counts as up, whether there is a write quorum, whether the control
//! state is durable.

use super::*;
use crate::volume::membership::Standing;

impl Appender {
    /// The control state is kept with group 0.
    pub(super) fn owes_control(&self, copy: MemberId) -> bool {
        let peer = &self.peers[copy.index()];
        copy.group == GroupId(0)
            && !self.control.is_empty()
            && peer.control_stored < self.control_version
            && matches!(peer.contact, Contact::Raised(_) | Contact::Joined | Contact::Repairing(_) | Contact::GoingBack(_))
    }

    pub(super) fn owes_answer(&self, copy: MemberId) -> bool {
        let peer = &self.peers[copy.index()];
        if self.owes_control(copy) {
            return true;
        }
        match &peer.contact {
            Contact::Down { .. } => false,
            Contact::Raising | Contact::Repairing(_) | Contact::GoingBack(_) => true,
            Contact::Raised(_) => false,
            Contact::Joined if self.seeding.is_some() => true,
            Contact::Joined => peer.acked.seq < peer.sent || (peer.sent < self.end.seq && peer.reading.is_none()) || peer.splice.is_some(),
        }
    }

    /// When a copy that owes an answer is asked again. One that waits for frames to be read elsewhere may be heard of for other reasons
    /// all the time, and is not put off by that (seed 1650475556).
    pub(super) fn asked_again_at(&self, copy: MemberId) -> Instant {
        let peer = &self.peers[copy.index()];
        let heard = if !peer.is_joined() || self.seeding.is_some() {
            peer.last_heard
        } else if peer.acked.seq < peer.sent {
            // It says what its clock says all the time, also when what it owes was lost (seed 121).
            peer.moved_at
        } else {
            Instant::ZERO
        };
        peer.last_asked.max(heard) + ASK_AGAIN_AFTER
    }

    /// A message was lost, or the copy is slow. Everything said again is harmless: copies skip what they have.
    pub(super) fn ask_again(&mut self, now: Instant, copy: MemberId) {
        self.peers[copy.index()].last_asked = now;
        self.send_control(copy);
        match &self.peers[copy.index()].contact {
            Contact::Raising => self.raise(now, copy),
            Contact::GoingBack(_) => self.say_back_again(copy),
            Contact::Repairing(repair) => match repair.ask_again() {
                crate::volume::repair::Next::Read => {
                    // Its time comes, or it is being read.
                    if self.peers[copy.index()].read_at.is_none()
                        && !self.reads.values().any(|r| matches!(r.purpose, ReadPurpose::Repair { copy: c } if c == copy))
                    {
                        self.start_read(now, ReadPurpose::Repair { copy }, vec![copy]);
                    }
                }
                crate::volume::repair::Next::Send(request) => self.effects.push_back(AppenderEffect::ToCopy { copy, request }),
                crate::volume::repair::Next::Nothing => self.repair(now, copy),
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
                let peer = &self.peers[copy.index()];
                let silent = peer.shut || now.since(peer.last_heard) >= self.limits.copy_silent_after;
                let splice_lost = !silent && self.peers[copy.index()].splice.is_none();
                if let Some(diverged) = self.peers[copy.index()].diverged.take_if(|_| splice_lost) {
                    // Frame by frame would not do: it replaces its tail only by one request that reaches the newer term (seed 701580).
                    let (end, history) = *diverged;
                    self.place(now, copy, end, &history);
                }
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

    pub(super) fn judge_health(&mut self, copy: MemberId) {
        let peer = &self.peers[copy.index()];
        if !peer.is_joined() {
            return;
        }
        let before = peer.health.clone();
        let health = if peer.acked.seq >= self.vdl.seq { CopyHealth::Up } else { CopyHealth::CatchingUp };
        // Between two acknowledgements every copy is a frame behind; that is not catching up.
        if health == CopyHealth::Up
            || peer.health != CopyHealth::Up
            || self.vdl.end_lsn.bytes_since(peer.acked.end_lsn) > self.limits.copy_window_bytes_max as u64
        {
            self.set_health(copy, health);
        }
        if self.is_changing() || before != self.peers[copy.index()].health || self.standing(copy) == Standing::New {
            self.judge_membership();
        }
        self.judge_quorum();
    }

    pub(super) fn set_health(&mut self, copy: MemberId, health: CopyHealth) {
        let peer = &mut self.peers[copy.index()];
        if peer.health != health {
            peer.health = health.clone();
            self.effects.push_back(AppenderEffect::CopyChanged { copy, health });
        }
    }

    /// Copies of a group that can take frames.
    fn able(&self, group: GroupId) -> usize {
        self.six(group).iter().filter(|p| p.is_joined()).count()
    }

    /// Four copies of every group must be able to take frames. Copies that catch up count: they take frames, they are only late.
    pub(super) fn judge_quorum(&mut self) {
        if self.phase != VolumePhase::Serving {
            return;
        }
        let lacking = self.layout.all_groups().find(|g| !self.reached_in(*g, Peer::is_joined));
        let without_room = if lacking.is_none() { self.group_without_room() } else { None };
        let (ok, short) = (lacking.is_none() && without_room.is_none(), without_room.is_some());
        if (ok, short) == (self.quorum_ok, self.short_of_room) && self.quorum_said {
            return;
        }
        (self.quorum_ok, self.short_of_room) = (ok, short);
        self.quorum_said = true;
        let group = match (lacking, without_room) {
            (Some(group), _) => group,
            (None, Some(group)) => {
                let reason = self.too_little_room(group);
                self.effects.push_back(AppenderEffect::QuorumLost { reason, until: "when there is room again" });
                return;
            }
            (None, None) => {
                self.effects.push_back(AppenderEffect::QuorumRegained);
                return;
            }
        };
        let missing: Vec<String> = MemberId::of(group)
            .into_iter()
            .filter(|c| !self.peers[c.index()].is_joined())
            .map(|c| match &self.peers[c.index()].contact {
                Contact::Down { reason } => format!("{c} ({reason})"),
                _ => format!("{c} (being rebuilt)"),
            })
            .collect();
        let of_group = if self.layout.groups == 1 { String::new() } else { format!(" of protection group {group}") };
        let (able, missing) = (self.able(group), missing.join(", "));
        let reason = match self.replacing() {
            Some(r) => format!(
                "{able} of 6 copies{of_group} can take writes, and while {slot} is being replaced {WRITE_QUORUM} others are needed \
                 (`parhelion copy replace {slot} --cancel` goes back); missing: {missing}",
                slot = r.slot
            ),
            None => format!("{able} of 6 copies{of_group} can take writes and {WRITE_QUORUM} are needed; missing: {missing}"),
        };
        self.effects.push_back(AppenderEffect::QuorumLost { reason, until: "when a copy returns" });
    }

    pub(super) fn send_control(&mut self, copy: MemberId) {
        if self.owes_control(copy) {
            let request = CopyRequest::PutControl {
                generation: self.generation,
                version: self.control_version,
                control: Bytes::from(self.control.clone()),
            };
            self.effects.push_back(AppenderEffect::ToCopy { copy, request });
        }
    }
}
