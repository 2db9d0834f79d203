//! The membership at work: which directories count, and the two steps in which one takes another's slot.
//!
//! Decides when a step may be taken; what a step and a quorum are is decided in [`crate::volume::membership`]. The record lies with the control
//! state on the copies of group 0. While a slot changes hands only one of the two directories is open in it, so a write quorum of both sets is
//! four of the other five. Never opens a directory: `Places` says where each slot lives by the record, and whoever drives the copies sees to it.

use super::*;
use crate::volume::membership::{Record, SEATS, Standing, Step};

/// A replacement under way, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacing {
    pub slot: CopyId,
    pub place: String,
}

/// A step that may be taken now.
#[derive(Debug)]
pub struct NextStep(Membership);

impl Appender {
    fn incarnation(&self, copy: MemberId) -> Incarnation {
        self.peers[copy.index()].incarnation
    }

    pub(super) fn standing(&self, copy: MemberId) -> Standing {
        let incarnation = self.incarnation(copy);
        match &self.membership {
            // Before there is a record everybody is what he says he is.
            None => Standing::Member,
            Some(m) => m.standing(copy.group.index(), m.seat(copy.group.index(), copy.copy, incarnation), incarnation),
        }
    }

    /// Whether what lies in the directory at `copy` may decide which log goes on, by `membership`.
    pub(super) fn has_vote(membership: Option<&Membership>, copy: MemberId, incarnation: Incarnation) -> bool {
        membership.is_none_or(|m| m.groups() <= copy.group.index() || m.member(copy.group.index(), copy.copy) == incarnation)
    }

    /// What a write quorum of `group` has reached: of both sets, while a slot changes hands.
    pub(super) fn reached_in<T: Ord + Copy + Default>(&self, group: GroupId, of: impl Fn(&Peer) -> T) -> T {
        let six = self.six(group);
        let Some(m) = self.membership.as_ref().filter(|m| m.groups() > group.index()) else {
            return quorum::durable(std::array::from_fn(|i| of(&six[i])));
        };
        let mut seats: [Option<T>; SEATS] = [None; SEATS];
        for copy in MemberId::of(group) {
            let incarnation = self.incarnation(copy);
            if m.counts(group.index(), copy.copy, incarnation) {
                seats[m.seat(group.index(), copy.copy, incarnation).index()] = Some(of(&six[copy.copy.index()]));
            }
        }
        m.durable(seats).unwrap_or_default()
    }

    // ---- the record ------------------------------------------------------------------------------------------------

    /// Puts the membership and the node's control state on the copies of group 0, in one piece and as this generation's.
    ///
    /// The version is above all that older generations put, also where this one has not seen it: a record that a crash left on one copy
    /// never comes back over this one.
    pub(super) fn put_kept(&mut self) {
        let (membership, control, holds_commits) = (self.membership.clone(), self.node_control.clone(), self.holds_commits);
        self.control = Record { membership, control, holds_commits, durable: self.durable_now(), seen: self.seen.clone() }.encode();
        self.control_version = (self.control_version + 1).max(self.generation.0.saturating_mul(1 << 12));
        self.in_force = false;
        for copy in self.members() {
            self.send_control(copy);
        }
    }

    pub(super) fn judge_control(&mut self) {
        let stored = self.reached_in(GroupId(0), |p| p.control_stored);
        // No step is taken before recovery knows the record that the copies have.
        if self.phase != VolumePhase::Recovering && !self.in_force && self.control_version > 0 && stored >= self.control_version {
            self.in_force = true;
            self.record_in_force();
        }
        if self.node_put.is_some_and(|version| stored >= version) {
            self.node_put = None;
            self.effects.push_back(AppenderEffect::ControlDurable);
        }
    }

    /// A new volume's record, when every directory says who it is.
    pub(super) fn membership_of_all(&self) -> Option<Membership> {
        let row = |g: GroupId| MemberId::of(g).map(|c| self.incarnation(c));
        let rows: Vec<[Incarnation; COPIES]> = self.layout.all_groups().map(row).collect();
        rows.iter().flatten().all(|i| *i != Incarnation::UNKNOWN).then(|| Membership::founded(rows))
    }

    /// What recovery found, taken apart.
    pub(super) fn take_kept(&mut self, version: u64, kept: Record) {
        // No two records share a number, also when an older one is found than this process put last (seed 7000172).
        self.control_version = version.max(self.control_version);
        self.node_put = None;
        self.in_force = false;
        self.take_seen(&kept);
        self.membership = kept.membership;
        self.node_control = kept.control;
        self.holds_commits = kept.holds_commits;
    }

    /// What recovery found is put again, before any step builds on it.
    pub(super) fn put_what_was_found(&mut self) {
        if !self.node_control.is_empty() {
            self.put_kept();
        }
    }

    /// A slot changes hands, until the end of that is in force.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.membership.as_ref().is_some_and(|m| !matches!(m.step(), Step::Settled))
    }

    fn record_in_force(&mut self) {
        let Some(m) = self.membership.clone() else { return };
        self.say_where(&m, |_| true);
        if let Step::Leaving { slot, place, .. } = m.step() {
            let by = self.layout.all_groups().map(|g| m.member(g.index(), *slot)).collect();
            self.effects.push_back(AppenderEffect::Retired { slot: *slot, place: place.clone(), by });
        }
        if let Some(settled) = m.settle() {
            self.membership = Some(settled);
            self.put_kept();
            self.judge_quorum();
        }
        self.judge_membership();
    }

    /// Where those slots live by `record`.
    fn say_where(&mut self, record: &Membership, which: impl Fn(CopyId) -> bool) {
        let slots = CopyId::all().into_iter().filter(|slot| which(*slot));
        let places: BTreeMap<CopyId, Option<String>> = slots.map(|slot| (slot, record.lives_in(slot).map(str::to_owned))).collect();
        if !places.is_empty() {
            self.effects.push_back(AppenderEffect::Places { places });
        }
    }

    /// Recovery has heard enough to know the members: whoever was looked for elsewhere is opened where he lives. Not only when the record is
    /// in force again, because the copies that are to keep it may be among them (seed 5000248).
    pub(super) fn say_where_members_live(&mut self) {
        if let Some(m) = self.membership.clone() {
            self.say_where(&m, |_| true);
        }
    }

    /// Recovery waits, perhaps because copies were looked for where they once were. By the newest record that was heard (it may be an old one,
    /// so nobody is moved who did not answer, or who is a member by it) the slots are told in which nothing else than strangers is open.
    pub(super) fn look_elsewhere(&mut self, record: &Membership) {
        let stranger = |c: MemberId| matches!(&self.peers[c.index()].contact, Contact::Raised(s) if !Appender::has_vote(Some(record), c, s.incarnation));
        let strangers = CopyId::all().map(|copy| self.layout.all_groups().all(|group| stranger(MemberId { group, copy })));
        self.say_where(record, |slot| strangers[slot.index()]);
    }

    /// Directories that were replaced are turned away, whatever they hold.
    pub(super) fn turn_away(&mut self, now: Instant, copy: MemberId) -> bool {
        let replaced = self.standing(copy) == Standing::Replaced;
        if replaced {
            let reason = "its directory was replaced by another one and takes no part any more; move it away".into();
            self.copy_lost(now, copy, reason);
        }
        replaced
    }

    // ---- steps -----------------------------------------------------------------------------------------------------

    #[must_use]
    pub fn replacing(&self) -> Option<Replacing> {
        match self.membership.as_ref()?.step() {
            Step::Joint { slot, place, .. } => Some(Replacing { slot: *slot, place: place.clone() }),
            Step::Settled | Step::Leaving { .. } => None,
        }
    }

    /// Where the copy of `slot` lives when it is not where the configuration says.
    #[must_use]
    pub fn lives_in(&self, slot: CopyId) -> Option<&str> {
        self.membership.as_ref()?.lives_in(slot)
    }

    /// Step 1 of a replacement, to be taken with [`Appender::take_step`]: `candidate`, new directories (one for each group) in `place`, shall
    /// take `slot`.
    ///
    /// # Errors
    /// A sentence: another replacement is under way, or without this copy fewer than four of a group would be left to take writes.
    pub fn replacement(&self, slot: CopyId, candidate: Vec<Incarnation>, place: String) -> Result<NextStep, String> {
        let ready = self.phase == VolumePhase::Serving && self.vdl != LogEnd::EMPTY;
        let Some(m) = self.membership.as_ref().filter(|_| ready) else {
            return Err("the volume does not serve yet; try again when the region has started".into());
        };
        let next = m.begin(slot, candidate, place).map_err(|e| e.to_string())?;
        self.is_settled_here()?;
        let left = |g: GroupId| MemberId::of(g).into_iter().filter(|c| c.copy != slot && self.peers[c.index()].is_joined()).count();
        if let Some(group) = self.layout.all_groups().find(|g| left(*g) < WRITE_QUORUM) {
            return Err(format!(
                "while {slot} is replaced, four of the other five copies must take all writes, and {} of protection group {group} do now; \
                 bring another copy back first",
                left(group)
            ));
        }
        Ok(NextStep(next))
    }

    /// Goes back to the copy that is being replaced, with [`Appender::take_step`].
    ///
    /// # Errors
    /// A sentence: that copy is not being replaced, or the record of it is not on the copies yet.
    pub fn cancellation(&self, slot: CopyId) -> Result<NextStep, String> {
        let busy = self.replacing().filter(|r| r.slot == slot);
        let Some(m) = self.membership.as_ref().filter(|_| busy.is_some()) else {
            return Err(format!("copy {slot} is not being replaced; there is nothing to cancel"));
        };
        self.is_settled_here()?;
        m.cancel().map(NextStep).map_err(|e| e.to_string())
    }

    /// A step builds only on a membership that a quorum has.
    fn is_settled_here(&self) -> Result<(), String> {
        if self.in_force { Ok(()) } else { Err("the membership is being recorded on the copies; try again in a moment".into()) }
    }

    /// To be taken in the same breath as it was asked for: meanwhile the control state may be put anew, and the membership does not change.
    pub fn take_step(&mut self, next: NextStep) {
        self.membership = Some(next.0);
        self.put_kept();
    }

    /// A copy is up: one that was emptied and rebuilt gets its vote, and a candidate that has everything gets its slot.
    pub(super) fn judge_membership(&mut self) {
        if self.phase != VolumePhase::Serving || self.vdl == LogEnd::EMPTY || !self.in_force {
            return;
        }
        // Everything that is durable, and not only what was when nothing was known to be.
        let has_all = |c: &MemberId| {
            let peer = &self.peers[c.index()];
            peer.is_joined() && peer.health == CopyHealth::Up && peer.acked.seq >= self.vdl.seq
        };
        let Some(m) = self.membership.clone() else {
            // The record was begun before all directories had said who they are.
            if self.members().all(|c| has_all(&c)) {
                self.membership = self.membership_of_all();
                self.put_what_was_found();
            }
            return;
        };
        let next = match m.step() {
            Step::Joint { slot, candidate, .. } => {
                let there = |c: &MemberId| self.incarnation(*c) == candidate[c.group.index()] && has_all(c);
                let all = self.layout.all_groups().all(|group| there(&MemberId { group, copy: *slot }));
                // All that was ever durable is so in both sets: the VDL of this generation is, and everything lies before it.
                let both = self.reached_in_all(|p| p.acked.seq) >= self.vdl.seq;
                if all && both { m.finish().ok() } else { None }
            }
            Step::Settled => {
                let mut next = m.clone();
                for c in self.members().filter(has_all) {
                    if let Some(with) = next.rejoin(c.group.index(), c.copy, self.incarnation(c)) {
                        next = with;
                    }
                }
                (next != m).then_some(next)
            }
            Step::Leaving { .. } => None,
        };
        if let Some(next) = next {
            self.membership = Some(next);
            self.put_kept();
        }
    }
}
