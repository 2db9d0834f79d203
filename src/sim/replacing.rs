//! An operator who replaces copies while everything else fails, and goes back; and where the directories of a region's copies are.
//!
//! A directory that is not open is a disk in `CopySlot::elsewhere`. At a start the note of the places may be lost: then the copies are looked
//! for where they once were, and the record on the others says better.

use super::checker::Checked;
use super::disk::SimDisk;
use super::world::{MS, What, World};
use crate::base::{CopyId, LogEnd, MemberId};
use crate::node::Event;
use crate::volume::identity::{self, Home};
use crate::volume::membership::Incarnation;
use std::collections::BTreeMap;
use std::sync::Arc;

impl World {
    pub(super) fn home(&self, r: usize, c: MemberId) -> Home {
        let who = &self.regions[r].who;
        Home { cluster: who.cluster.clone(), region: who.region.clone(), group: c.group.0, slot: c.copy }
    }

    fn new_disk(&mut self, r: usize, c: MemberId) -> (Arc<SimDisk>, Incarnation) {
        let slot = &mut self.regions[r].copies[c.index()];
        slot.disks += 1;
        (Arc::new(slot.disk.another(slot.seed ^ slot.disks.wrapping_mul(0x9e37_79b9))), slot.incarnation_of_new())
    }

    /// Begins a replacement, or goes back.
    pub(super) fn replace(&mut self) -> Checked {
        let Some(every_ms) = self.plan.replace_every_ms.filter(|_| self.stormy) else { return Ok(()) };
        let after = self.operator.between(every_ms / 2, every_ms * 3 / 2) * MS;
        self.after(after, What::Replace);
        let r = usize::try_from(self.operator.below(self.regions.len() as u64)).expect("BUG: a small number");
        let slot = CopyId(u8::try_from(self.operator.below(6)).expect("BUG: six copies"));
        let back = self.operator.chance(350_000);
        let (now, local) = (self.now, self.regions[r].local(self.now));
        if self.regions[r].node.is_none() {
            return Ok(());
        }
        if let Some(slot) = self.regions[r].replacing {
            if back {
                let done = self.regions[r].node.as_mut().expect("BUG: it runs").cancel_replace(local, slot);
                self.counts.replacements_cancelled += u64::from(done.is_ok());
                self.say(|| format!("the operator goes back to {slot}: {done:?}"));
            }
        } else if MemberId::all(self.plan.layout.groups).all(|c| c.copy != slot || !self.regions[r].copies[c.index()].is_rotten()) {
            let place = format!("/new-{now}");
            let mut candidate = Vec::new();
            for group in self.plan.layout.all_groups() {
                let member = MemberId { group, copy: slot };
                let (disk, fresh) = self.new_disk(r, member);
                let settled = identity::settle(&*disk, &self.home(r, member), fresh);
                candidate.push(settled.map_err(|e| format!("a new directory is not settled: {e}"))?);
                self.regions[r].copies[member.index()].elsewhere.insert(place.clone(), disk);
            }
            let done = self.regions[r].node.as_mut().expect("BUG: it runs").replace_copy(local, slot, candidate, place);
            self.say(|| format!("the operator replaces {slot}: {done:?}"));
            if done.is_ok() {
                self.counts.replacements += 1;
                self.regions[r].replacing = Some(slot);
            }
        }
        let incarnation = self.regions[r].incarnation;
        self.to_node(r, incarnation, Event::Timeout)
    }

    /// The node says where the copies live: those that are open elsewhere are closed, and opened there.
    pub(super) fn move_copies(&mut self, r: usize, places: &BTreeMap<CopyId, Option<String>>) {
        for c in MemberId::all(self.plan.layout.groups) {
            let Some(wanted) = places.get(&c.copy) else { continue };
            let wanted = wanted.clone().unwrap_or_default();
            if self.regions[r].copies[c.index()].place != wanted {
                self.lose_copy(r, c, false, "its slot changes its directory".into());
                self.move_copy(r, c, wanted);
                if !self.regions[r].copies[c.index()].held {
                    let after = self.delays.between(5 * MS, 50 * MS);
                    self.open_copy_after(r, c, after);
                }
            }
        }
    }

    fn move_copy(&mut self, r: usize, c: MemberId, wanted: String) {
        let now = self.now;
        self.drop_copy(r, c, false);
        let (new, _) = self.new_disk(r, c);
        let region = &mut self.regions[r];
        region.rebuilt_at = now;
        let slot = &mut region.copies[c.index()];
        let disk = slot.elsewhere.remove(&wanted).unwrap_or(new);
        let before = std::mem::replace(&mut slot.disk, disk);
        slot.elsewhere.insert(std::mem::replace(&mut slot.place, wanted), before);
        if slot.claim_before_wipe.seq < slot.claim.seq {
            slot.claim_before_wipe = slot.claim;
        }
        slot.claim = LogEnd::EMPTY;
        slot.old = None;
        slot.has_data = false;
    }

    /// The directory is marked as replaced, with where its slot lived then: it is looked for there. `false`: there is nothing.
    pub(super) fn follow_mark(&mut self, r: usize, c: MemberId, place: String) -> bool {
        let known = self.regions[r].copies[c.index()].elsewhere.contains_key(&place);
        if known {
            self.move_copy(r, c, place);
            let after = self.delays.between(5 * MS, 50 * MS);
            self.open_copy_after(r, c, after);
        }
        known
    }

    /// At a start: the note of where the copies are is sometimes lost.
    pub(super) fn forget_places(&mut self, r: usize) {
        let moved: Vec<MemberId> =
            MemberId::all(self.plan.layout.groups).filter(|c| !self.regions[r].copies[c.index()].place.is_empty()).collect();
        if !moved.is_empty() && self.operator.chance(300_000) {
            for c in moved {
                self.move_copy(r, c, String::new());
            }
        }
    }

    pub(super) fn retired(&mut self, r: usize, slot: CopyId, place: Option<String>, by: &[Incarnation]) {
        let place = place.unwrap_or_default();
        self.regions[r].replacing = None;
        // The one that left is the one that was there before, or the one that was to come.
        let lives = self.regions[r].copies[MemberId { group: crate::base::GroupId(0), copy: slot }.index()].place.clone();
        self.counts.replacements_finished += u64::from(lives > place);
        for (group, by) in self.plan.layout.all_groups().zip(by) {
            let copy = &self.regions[r].copies[MemberId { group, copy: slot }.index()];
            if let Some(disk) = copy.elsewhere.get(&place).filter(|_| !self.now.is_multiple_of(4)) {
                // The mark is a courtesy: without it the directory has no vote either.
                let _ = identity::retire(&**disk, *by, &copy.place);
            }
        }
    }
}
