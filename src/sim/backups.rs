//! An operator who makes backups of copies' directories, and puts old ones back in their place.
//!
//! A backup is taken of whatever lies there, whether the copy is open or not, and comes back some time later: in a region that runs, or before the next start.
//! Such a copy lacks what it acknowledged since, so it is one of the two of a group that may be without their data (A3), until it has a vote again.

use super::checker::Checked;
use super::disk::Left;
use super::world::{MS, What, World};
use crate::base::{CopyId, GroupId, LogEnd, MemberId};
use crate::volume::membership::Incarnation;
use std::sync::Arc;

/// A copy's directory as it once was.
pub(super) struct Backup {
    pub region: usize,
    pub copy: MemberId,
    /// Of this place.
    place: String,
    incarnation: Incarnation,
    disk: super::disk::SimDisk,
}

impl World {
    pub(super) fn back_up(&mut self) -> Checked {
        let Some(every_ms) = self.plan.backup_every_ms.filter(|_| self.stormy) else { return Ok(()) };
        let after = self.backups_drawn.between(every_ms / 2, every_ms * 3 / 2) * MS;
        self.after(after, What::BackUp);
        if let Some(at) = self.backups.len().checked_sub(1).filter(|_| self.backups_drawn.chance(450_000)) {
            let which = usize::try_from(self.backups_drawn.below(at as u64 + 1)).expect("BUG: few");
            let backup = self.backups.swap_remove(which);
            self.put_back(backup);
            return Ok(());
        }
        let region = usize::try_from(self.backups_drawn.below(self.regions.len() as u64)).expect("BUG: few");
        let group = GroupId(u32::try_from(self.backups_drawn.below(u64::from(self.plan.layout.groups))).expect("BUG: few"));
        let copy = MemberId { group, copy: CopyId(u8::try_from(self.backups_drawn.below(6)).expect("BUG: six copies")) };
        let number = self.backups_drawn.next_u64();
        let slot = &self.regions[region].copies[copy.index()];
        if self.is_sound(region, copy) {
            let backup = Backup {
                region,
                copy,
                place: slot.place.clone(),
                incarnation: slot.incarnation,
                disk: slot.disk.image(Left::Cached, number),
            };
            self.backups.push(backup);
        }
        Ok(())
    }

    fn put_back(&mut self, backup: Backup) {
        let Backup { region: r, copy: c, place, incarnation: was, disk } = backup;
        let others = MemberId::of(c.group).into_iter().filter(|o| *o != c && self.is_sound(r, *o)).count();
        let there = &self.regions[r];
        if others < 4 || there.replacing == Some(c.copy) || there.copies[c.index()].place != place || !self.is_sound(r, c) {
            return;
        }
        // One from before the copy was taken in anew is refused until somebody moves it away (seed 183): nobody here would.
        if there.copies[c.index()].incarnation != was {
            return;
        }
        self.counts.backups_put_back += 1;
        self.say(|| format!("an old backup is put back as copy {c} of region {r}"));
        self.lose_copy(r, c, false, "an old backup is put back".into());
        self.drop_copy(r, c, false);
        let now = self.now;
        let region = &mut self.regions[r];
        region.rebuilt_at = now;
        let running = region.node.is_some();
        let slot = &mut region.copies[c.index()];
        slot.disk = Arc::new(disk);
        if slot.claim_before_wipe.seq < slot.claim.seq {
            slot.claim_before_wipe = slot.claim;
        }
        slot.old = Some((slot.incarnation, slot.claim));
        slot.claim = LogEnd::EMPTY;
        let life = slot.life;
        let (incarnation, after) = (region.incarnation, self.delays.between(MS, 3 * MS));
        if running {
            self.after(after, What::CopyLost { region: r, copy: c, life, incarnation, reason: "an old backup was put back".into() });
        }
    }
}
