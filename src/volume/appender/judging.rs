//! What follows from how the copies are: who owes an answer, who counts as up, whether there is a write quorum, whether the control
//! state is durable.

use super::*;

impl Appender {
    pub(super) fn owes_control(&self, peer: &Peer) -> bool {
        !self.control.is_empty()
            && peer.control_stored < self.control_version
            && matches!(peer.contact, Contact::Raised(_) | Contact::Joined | Contact::Repairing(_))
    }

    pub(super) fn owes_answer(&self, peer: &Peer) -> bool {
        if self.owes_control(peer) {
            return true;
        }
        match &peer.contact {
            Contact::Down { .. } => false,
            Contact::Raising | Contact::Repairing(_) => true,
            Contact::Raised(_) => false,
            Contact::Joined if self.seeding.is_some() => true,
            Contact::Joined => peer.acked.seq < peer.sent || (peer.sent < self.end.seq && peer.reading.is_none()) || peer.splice.is_some(),
        }
    }

    /// A message was lost, or the copy is slow. Everything said again is harmless: copies skip what they have.
    pub(super) fn ask_again(&mut self, now: Instant, copy: MemberId) {
        self.peers[copy.index()].last_asked = now;
        self.send_control(copy);
        match &self.peers[copy.index()].contact {
            Contact::Raising => self.raise(now, copy),
            Contact::Repairing(repair) => match repair.ask_again() {
                crate::volume::repair::Next::Read => {
                    if !self.reads.values().any(|r| matches!(r.purpose, ReadPurpose::Repair { copy: c } if c == copy)) {
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
                let silent = now.since(self.peers[copy.index()].last_heard) >= self.limits.copy_silent_after;
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
        let health = if peer.acked.seq >= self.vdl.seq { CopyHealth::Up } else { CopyHealth::CatchingUp };
        // Between two acknowledgements every copy is a frame behind; that is not catching up.
        if health == CopyHealth::Up
            || peer.health != CopyHealth::Up
            || self.vdl.end_lsn.bytes_since(peer.acked.end_lsn) > self.limits.copy_window_bytes_max as u64
        {
            self.set_health(copy, health);
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
        let lacking = self.layout.all_groups().find(|g| self.able(*g) < WRITE_QUORUM);
        let ok = lacking.is_none();
        if ok == self.quorum_ok && self.quorum_said {
            return;
        }
        self.quorum_ok = ok;
        self.quorum_said = true;
        let Some(group) = lacking else {
            self.effects.push_back(AppenderEffect::QuorumRegained);
            return;
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
        let reason = format!("{able} of 6 copies{of_group} can take writes and {WRITE_QUORUM} are needed; missing: {missing}");
        self.effects.push_back(AppenderEffect::QuorumLost { reason });
    }

    pub(super) fn send_control(&mut self, copy: MemberId) {
        if self.owes_control(&self.peers[copy.index()]) {
            let request = CopyRequest::PutControl {
                generation: self.generation,
                version: self.control_version,
                control: Bytes::from(self.control.clone()),
            };
            self.effects.push_back(AppenderEffect::ToCopy { copy, request });
        }
    }

    pub(super) fn judge_control(&mut self) {
        let stored = quorum::durable(std::array::from_fn(|i| self.six(GroupId(0))[i].control_stored));
        if stored > self.control_reported {
            self.control_reported = stored;
            self.effects.push_back(AppenderEffect::ControlDurable);
        }
    }
}
