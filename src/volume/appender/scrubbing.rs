//! The scrub's requests, and what follows from damage: a copy that is damaged or differs leaves its duty and is rebuilt from its peers,
//! one after the other while enough others take writes. Until then it goes on as far as it can.

use super::*;
use crate::base::CopyId;
use crate::volume::message::{CheckPlace, Damage, Digest};
use crate::volume::scrub::{Ask, Verdict};

impl Appender {
    pub(super) fn scrub_timeout(&self) -> Option<Instant> {
        if self.phase != VolumePhase::Serving || self.vdl == LogEnd::EMPTY {
            return None;
        }
        self.scrubs.iter().filter_map(Scrub::next_timeout).min()
    }

    /// Asks for what is due.
    pub(super) fn scrub(&mut self, now: Instant) {
        if self.scrub_timeout().is_none_or(|t| now < t) {
            return;
        }
        for g in 0..self.layout.groups {
            let on_duty: Vec<CopyId> =
                MemberId::of(GroupId(g)).into_iter().filter(|m| self.peers[m.index()].is_joined()).map(|m| m.copy).collect();
            for ask in self.scrubs[g as usize].due(now, &on_duty, self.vdl.end_lsn) {
                let (copy, request) = match ask {
                    Ask::Check { copy, id, from, bytes_max } => (copy, CopyRequest::Check { id, from, bytes_max }),
                    Ask::Digest { copy, id, at, from, pages_max } => (copy, CopyRequest::Digest { id, at, from, pages_max }),
                };
                self.effects.push_back(AppenderEffect::ToCopy { copy: MemberId { group: GroupId(g), copy }, request });
            }
            self.scrub_ended(now, GroupId(g));
        }
    }

    fn scrub_ended(&mut self, now: Instant, group: GroupId) {
        if self.scrubs[group.0 as usize].ended(now) {
            self.effects.push_back(AppenderEffect::Scrubbed { group });
        }
    }

    pub(super) fn checked(&mut self, now: Instant, copy: MemberId, id: u64, bytes: u64, next: Option<CheckPlace>) {
        if self.scrubs[copy.group.0 as usize].checked(now, copy.copy, id, bytes, next) {
            self.effects.push_back(AppenderEffect::Scrubbed { group: copy.group });
        }
    }

    /// `None`: it cannot tell (not yet, or no longer, at that LSN; or it is damaged, and says so).
    pub(super) fn digested(&mut self, now: Instant, copy: MemberId, id: u64, digest: Option<Digest>) {
        match self.scrubs[copy.group.0 as usize].digested(now, copy.copy, id, digest) {
            None | Some((_, _, Verdict::Same)) => {}
            Some((at, from, Verdict::Odd(odd))) => {
                for odd in odd {
                    let copy = MemberId { group: copy.group, copy: odd };
                    let reason = format!("from page {} on they are not those of the other copies at LSN {at}", from.0);
                    self.effects.push_back(AppenderEffect::ToCopy {
                        copy,
                        request: CopyRequest::Distrust { generation: self.generation, reason: reason.clone() },
                    });
                    let damage = Damage { file: "pages".into(), reason, lost_write: true, healed: false };
                    self.forsake(now, copy);
                    self.damaged(now, copy, damage);
                }
            }
            Some((at, from, Verdict::Undecided)) => {
                let reason = format!("the copies differ from page {} on at LSN {at}, and no majority agrees", from.0);
                self.effects.push_back(AppenderEffect::Undecided { reason });
            }
        }
        self.scrub_ended(now, copy.group);
    }

    /// What was read from a copy with other pages counts for nothing: repairs begin anew, and reads go to another copy.
    fn forsake(&mut self, now: Instant, copy: MemberId) {
        for peer in &mut self.peers {
            if let Contact::Repairing(repair) = &mut peer.contact {
                repair.restart_later();
            }
        }
        let pages =
            |r: &PendingRead| matches!(r.purpose, ReadPurpose::Pages { .. } | ReadPurpose::PagesPart { .. } | ReadPurpose::Repair { .. });
        let reads: Vec<u64> = self.reads.iter().filter(|(_, r)| r.source == copy && pages(r)).map(|(id, _)| *id).collect();
        for id in reads {
            self.unreadable(now, id, "the copy has other pages than the others".into());
        }
    }

    /// A copy told of damage, or was found to differ.
    pub(super) fn damaged(&mut self, now: Instant, copy: MemberId, damage: Damage) {
        let peer = &mut self.peers[copy.index()];
        // What is being replaced as a whole, and what was told before.
        let known = peer.damage.as_ref().is_some_and(|d| !damage.healed && (*d == damage || d.file == "pages"));
        if known || matches!(peer.contact, Contact::Repairing(_)) {
            return;
        }
        let kept = &mut self.kept[copy.index()];
        kept.found += 1;
        kept.lost_writes += u64::from(damage.lost_write);
        kept.repaired += u64::from(damage.healed);
        self.scrubs[copy.group.0 as usize].found(copy.copy);
        if !damage.healed {
            peer.damage = Some(damage.clone());
        }
        self.effects.push_back(AppenderEffect::CopyDamaged { copy, damage });
        self.mend(now);
    }

    /// Rebuilds what is damaged, while four others take writes: a damaged copy still counts for what it acknowledges, and a write quorum
    /// is not given up for a repair.
    pub(super) fn mend(&mut self, now: Instant) {
        if self.phase != VolumePhase::Serving || self.vdl == LogEnd::EMPTY {
            return;
        }
        for copy in self.members() {
            let peer = &self.peers[copy.index()];
            if peer.damage.is_none() || !peer.is_joined() {
                continue;
            }
            let others = MemberId::of(copy.group).into_iter().filter(|c| *c != copy && self.peers[c.index()].is_joined()).count();
            if others >= WRITE_QUORUM {
                self.repair(now, copy);
            }
        }
    }

    /// A copy was rebuilt as a whole.
    pub(super) fn mended(&mut self, copy: MemberId) {
        if self.peers[copy.index()].damage.take().is_some() {
            self.kept[copy.index()].repaired += 1;
        }
    }
}
