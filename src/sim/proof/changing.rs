//! A copy on the bench gets another directory, in two steps, or goes back to the one that it had.
//!
//! Decides, from the seed, which copy is replaced, when that is cancelled, and whether the note of where a copy lives is lost. Which
//! directory is open in a slot the volume says (`Places`), and this follows. Directories that a slot left stay, so that they can be met again.

use super::Checked;
use super::bench::Seen;
use super::rig::Rig;
use super::story::Said;
use crate::base::{ClusterName, CopyId, RegionName};
use crate::sim::disk::SimDisk;
use crate::volume::identity::{self, Home};
use crate::volume::membership::{Incarnation, Step};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of a million replacements so many are cancelled, if they last that long.
const CANCELLED: u64 = 400_000;

/// Directories that are open in no slot, by their places, with what was said by who was open there; and the place of the one that is.
#[derive(Clone, Default)]
pub(super) struct Elsewhere {
    places: [String; 6],
    disks: [BTreeMap<String, (Arc<SimDisk>, Said)>; 6],
}

impl Elsewhere {
    /// What would be left of them if the power went now, by the slots that they belong to.
    pub(super) fn image(&self, mut left: impl FnMut(&SimDisk, usize) -> SimDisk) -> Elsewhere {
        let mut image = self.clone();
        for (i, disks) in image.disks.iter_mut().enumerate() {
            disks.values_mut().for_each(|(disk, _)| *disk = Arc::new(left(disk, i)));
        }
        image
    }
}

/// The directory of a slot.
pub(super) fn home(slot: CopyId) -> Home {
    let (cluster, region) = (ClusterName::new("sun").expect("BUG: a name"), RegionName::new("us").expect("BUG: a name"));
    Home { cluster, region, group: 0, slot }
}

impl Rig {
    pub(super) fn fresh_incarnation(&mut self) -> Incarnation {
        Incarnation(u128::from(self.prng.next_u64()) << 64 | 1)
    }

    /// Before there is a record everybody does.
    pub(super) fn votes(&self, c: CopyId) -> bool {
        self.record.as_ref().is_none_or(|m| m.member(0, c) == self.incarnations[c.index()])
    }

    /// No slot changes hands, by the membership that was put on the copies last.
    pub(super) fn is_settled(&self) -> bool {
        self.record.as_ref().is_none_or(|m| *m.step() == Step::Settled)
    }

    /// To be called when the record changed, or who is open in a slot.
    pub(super) fn note_votes(&mut self) {
        let all_vote = self.is_settled() && CopyId::all().into_iter().all(|c| self.votes(c));
        self.bench.story.lock().all_vote = all_vote;
    }

    /// Begins what is wanted, or calls off what was begun, at some moment of it.
    pub(super) fn go_on_changing(&mut self) -> Checked {
        match (self.wanted, self.appender.replacing()) {
            (Some(c), None) if self.prng.chance(100_000) => self.replace(c),
            (_, Some(replacing)) if self.cancels && self.prng.chance(60_000) => self.cancel(replacing.slot),
            _ => Ok(()),
        }
    }

    /// Begins to replace `c`, unless a copy is without its data or its vote already (A3), or another one is being replaced.
    fn replace(&mut self, c: CopyId) -> Checked {
        if !self.ready || self.record.is_none() || !self.bench.story.lock().spares_a_zone() {
            return Ok(());
        }
        let (seed, incarnation) = (self.prng.next_u64(), self.fresh_incarnation());
        let disk = Arc::new(self.disk(c).another(seed));
        let seen = Seen { disk: Arc::clone(&disk), bench: Arc::clone(&self.bench) };
        self.do_as("membership change", |_| identity::settle(&seen, &home(c), incarnation)).map_err(|e| e.to_string())?;
        let place = format!("/{c}/{incarnation}");
        // It may say no: another step is not in force yet, or too few others are there.
        if let Ok(step) = self.appender.replacement(c, vec![incarnation], place.clone()) {
            self.candidate.clone_from(&place);
            self.bench.elsewhere.lock().disks[c.index()].insert(place, (disk, Said::default()));
            self.cancels = self.prng.chance(CANCELLED);
            self.wanted = None;
            self.appender.take_step(step);
        }
        self.effects()
    }

    fn cancel(&mut self, c: CopyId) -> Checked {
        if let Ok(step) = self.appender.cancellation(c) {
            self.cancels = false;
            self.appender.take_step(step);
        }
        self.effects()
    }

    /// From now on the slots live there.
    pub(super) fn follow(&mut self, places: BTreeMap<CopyId, Option<String>>) -> Checked {
        for (c, place) in places {
            let place = place.unwrap_or_default();
            if self.bench.elsewhere.lock().places[c.index()] != place {
                self.lose(c, "its slot changes its directory");
                self.move_to(c, place)?;
                self.open(c)?;
            }
        }
        Ok(())
    }

    pub(super) fn move_to(&mut self, c: CopyId, place: String) -> Checked {
        let i = c.index();
        let mut elsewhere = self.bench.elsewhere.lock();
        let Some((disk, said)) = elsewhere.disks[i].remove(&place) else {
            return Err(format!("copy {c} is to live in '{place}', and there is no such directory"));
        };
        let before = std::mem::replace(&mut self.bench.disks.lock()[i], disk);
        let said = std::mem::replace(&mut self.bench.story.lock().copies[i], said);
        let left = std::mem::replace(&mut elsewhere.places[i], place);
        elsewhere.disks[i].insert(left, (before, said));
        self.incarnations[i] = Incarnation::UNKNOWN;
        Ok(())
    }

    /// At a start: the note of where one of the copies lives was lost.
    pub(super) fn forget_a_place(&mut self) -> Checked {
        let c = self.any();
        let moved = !self.bench.elsewhere.lock().places[c.index()].is_empty();
        if moved { self.move_to(c, String::new()) } else { Ok(()) }
    }

    /// The directory of `slot` that was in `place` left for good: it is marked.
    pub(super) fn retired(&mut self, slot: CopyId, place: Option<&str>, by: Incarnation) {
        let (left, lives) = {
            let elsewhere = self.bench.elsewhere.lock();
            let left = elsewhere.disks[slot.index()].get(place.unwrap_or_default()).map(|(disk, _)| Arc::clone(disk));
            (left, elsewhere.places[slot.index()].clone())
        };
        self.changes[usize::from(place == Some(&self.candidate))] += 1;
        if let Some(disk) = left {
            disk.restart();
            let seen = Seen { disk, bench: Arc::clone(&self.bench) };
            // The mark is a courtesy: without it the directory has no vote either.
            let _ = self.do_as("membership change", |_| identity::retire(&seen, by, &lives));
        }
    }
}
