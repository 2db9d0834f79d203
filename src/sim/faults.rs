//! What goes wrong, when, as drawn from the plan; and the end of it.
//!
//! Bounded by the fault model (A3): at most two copies of a region are without their data at any time. Everything else may
//! happen at any time and in any number.

use super::checker::Checked;
use super::cipher::frame_at;
use super::copies::CutScope;
use super::disk::{Fault, SimDisk};
use super::world::{MS, What, World};
use crate::base::{CopyId, GroupId, MemberId};
use crate::volume::Disk;
use crate::volume::membership::Membership;

/// In the order of `Plan::weights`.
#[derive(Clone, Copy)]
enum Kind {
    RegionKilled,
    RegionLosesPowerInACall,
    CopyKilled,
    CopyLosesPowerInACall,
    DiskFails,
    DiskReplaced,
    CopiesStopped,
    CopySlow,
    PathCut,
    LinkBroken,
    ClockStepped,
    BytesRot,
}

const KINDS: [Kind; 12] = [
    Kind::RegionKilled,
    Kind::RegionLosesPowerInACall,
    Kind::CopyKilled,
    Kind::CopyLosesPowerInACall,
    Kind::DiskFails,
    Kind::DiskReplaced,
    Kind::CopiesStopped,
    Kind::CopySlow,
    Kind::PathCut,
    Kind::LinkBroken,
    Kind::ClockStepped,
    Kind::BytesRot,
];

/// Whether nothing is left at `at` of a log file because the file behind it begins before that: what a write tore, or what was cut, is never
/// read again, so nobody finds it damaged (seed 5000889).
fn is_void(disk: &SimDisk, names: &[String], name: &str, at: u64) -> bool {
    // Frames of a log file, and where each ends.
    let frames = |name: &str| {
        let bytes = disk.read(name, 0, usize::MAX).unwrap_or_default();
        let begins: Vec<usize> = (0..bytes.len().saturating_sub(4)).filter(|i| bytes[*i..].starts_with(b"PHL")).collect();
        let frame = move |at: usize| frame_at(disk.sim_cipher(), &bytes.slice(at..)).map(|(f, len)| (f.seq(), (at + len) as u64));
        begins.into_iter().filter_map(frame).collect::<Vec<_>>()
    };
    let Some(next) = names.iter().filter(|n| n.starts_with("log-") && n.as_str() > name).min().filter(|_| name.starts_with("log-")) else {
        return false;
    };
    let Some(&(voids_from, _)) = frames(next).first() else { return false };
    let ends = frames(name).into_iter().take_while(|(seq, _)| *seq < voids_from).last();
    ends.is_some_and(|(_, end)| at >= end)
}

impl World {
    pub(super) fn fault(&mut self) -> Checked {
        if !self.stormy {
            return Ok(());
        }
        let after = self.faults.between(self.plan.fault_every_us / 4, self.plan.fault_every_us * 7 / 4) * 1000;
        self.after(after, What::Fault);
        let all: u64 = self.plan.weights.iter().sum();
        let mut at = self.faults.below(all);
        let Some(kind) = KINDS.into_iter().zip(self.plan.weights).find_map(|(kind, weight)| {
            if at < weight {
                return Some(kind);
            }
            at -= weight;
            None
        }) else {
            return Ok(());
        };
        // The primary is half of what can go wrong.
        let r = if self.faults.chance(500_000) { self.primary() } else { self.pick(self.regions.len()) };
        let copy = CopyId(u8::try_from(self.faults.below(6)).expect("BUG: six copies"));
        // Nothing is drawn where there is nothing to choose.
        let groups = u64::from(self.plan.layout.groups);
        let group = if groups == 1 { 0 } else { self.faults.below(groups) };
        let c = MemberId { group: GroupId(u32::try_from(group).expect("BUG: few groups")), copy };
        match kind {
            Kind::RegionKilled => {
                let power = self.faults.chance(500_000);
                self.crash_region(r, power);
            }
            Kind::RegionLosesPowerInACall => self.cut_in_a_call(r, c, CutScope::Region),
            Kind::CopyLosesPowerInACall => self.cut_in_a_call(r, c, CutScope::Copy),
            Kind::CopyKilled => {
                if self.regions[r].copies[c.index()].copy.is_some() {
                    self.counts.copy_crashes += 1;
                    let power = self.faults.chance(500_000);
                    self.lose_copy(r, c, power, "killed".into());
                }
            }
            Kind::DiskFails => {
                self.counts.disk_faults += 1;
                let n = self.faults.between(1, 30);
                let fault = if self.faults.chance(500_000) { Fault::Full } else { Fault::Failed };
                self.regions[r].copies[c.index()].disk.fail_at(n, fault);
            }
            Kind::DiskReplaced => {
                let others = MemberId::of(c.group).into_iter().filter(|o| *o != c && self.is_sound(r, *o)).count();
                if others >= 4 && self.regions[r].copies[c.index()].has_data && self.regions[r].replacing != Some(c.copy) {
                    self.counts.wipes += 1;
                    self.wipe(r, c);
                }
            }
            Kind::CopiesStopped => self.stop_some_copies(r, c.group),
            Kind::CopySlow => {
                let lasts = self.faults.between(100, 3000) * MS;
                self.regions[r].copies[c.index()].slow_until = self.now + lasts;
            }
            Kind::PathCut => self.cut_some_path(),
            Kind::LinkBroken => self.break_some_link(),
            Kind::ClockStepped => {
                let us = i64::try_from(self.faults.below(400_000)).expect("BUG: below a second") - 200_000;
                self.regions[r].step_clock(us);
            }
            Kind::BytesRot => self.rot_a_byte(r, c),
        }
        Ok(())
    }

    fn pick(&mut self, n: usize) -> usize {
        usize::try_from(self.faults.below(n as u64)).expect("BUG: a small number")
    }

    /// One bit of one file changes. Not in the newest log file: behind its last mark that looks like a write that tore, and is cut.
    fn rot_a_byte(&mut self, r: usize, c: MemberId) {
        let sound = |w: &World, o: MemberId| w.is_sound(r, o);
        if !sound(self, c) || MemberId::of(c.group).into_iter().filter(|o| *o != c && sound(self, *o)).count() < 4 {
            return;
        }
        let disk = std::sync::Arc::clone(&self.regions[r].copies[c.index()].disk);
        let Ok(mut names) = disk.list() else { return };
        // A layer that is still being written has no footer.
        let whole = |n: &String| {
            let bytes = disk.read(n, 0, usize::MAX).unwrap_or_default();
            !n.starts_with("layer-") || bytes.len() > 88 && bytes[bytes.len() - 88..].starts_with(b"PHLY")
        };
        names.retain(|n| !n.contains(".tmp") && whole(n));
        names.sort();
        let all = names.clone();
        if let Some(newest) = names.iter().rposition(|n| n.starts_with("log-")) {
            names.remove(newest);
        }
        let name = names.swap_remove(self.pick(names.len()));
        // Space that is reserved and not used says nothing.
        let used = disk.read(&name, 0, usize::MAX).map_or(0, |b| b.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1));
        let at = self.faults.below(used.max(1) as u64);
        if is_void(&disk, &all, &name, at) {
            return;
        }
        if disk.flip(&name, at) {
            self.counts.bytes_rotted += 1;
            self.say(|| format!("copy {c} of region {r}: '{name}' rots at {at}"));
            self.regions[r].copies[c.index()].rotted(name);
        }
    }

    fn cut_in_a_call(&mut self, r: usize, c: MemberId, scope: CutScope) {
        let n = self.faults.between(1, 60);
        let slot = &mut self.regions[r].copies[c.index()];
        if slot.copy.is_some() && slot.cut.is_none() {
            slot.disk.cut_power_at(n);
            slot.cut = Some(scope);
        }
    }

    fn stop_some_copies(&mut self, r: usize, only: GroupId) {
        let first = self.pick(6);
        let zone = self.faults.chance(600_000);
        let count = if zone { 2 } else { 1 + self.pick(4) };
        let lasts = self.faults.between(50, 3000) * MS;
        for i in 0..count {
            // A zone is a pair: 0 and 1, 2 and 3, 4 and 5.
            let c = CopyId::all()[if zone { first / 2 * 2 + i } else { (first + i) % 6 }];
            // A zone is the same machines for all groups; one copy less may be one of one group only.
            for group in self.plan.layout.all_groups() {
                let c = MemberId { group, copy: c };
                if !self.regions[r].copies[c.index()].held && (zone || group == only) {
                    self.hold(r, c);
                    self.after(lasts, What::Release { region: r, copy: c });
                }
            }
        }
    }

    pub(super) fn hold(&mut self, r: usize, c: MemberId) {
        self.counts.copies_stopped += 1;
        self.regions[r].copies[c.index()].held = true;
        self.lose_copy(r, c, false, "stopped".into());
    }

    pub(super) fn release(&mut self, r: usize, c: MemberId) {
        let slot = &mut self.regions[r].copies[c.index()];
        if std::mem::replace(&mut slot.held, false) && slot.copy.is_none() {
            let after = self.delays.between(5 * MS, 50 * MS);
            self.open_copy_after(r, c, after);
        }
    }

    /// A copy has its data, and a vote with it: one that was emptied and rebuilt, and is not recorded yet, is still one of the two that may be
    /// lost (seed 9000019).
    pub(super) fn is_sound(&self, r: usize, c: MemberId) -> bool {
        let region = &self.regions[r];
        let slot = &region.copies[c.index()];
        let votes = |m: &Membership| m.member(c.group.index(), c.copy) == slot.incarnation;
        slot.is_sound() && region.membership.as_ref().is_none_or(votes)
    }

    /// Whether a copy of the region may say that something in it is not what was written.
    pub(super) fn damage_is_expected(&self, r: usize) -> bool {
        self.regions[r].copies.iter().any(|slot| slot.was_rotten())
    }

    /// All faults are over: the power is back, processes start, paths carry.
    pub(super) fn heal(&mut self) -> Checked {
        self.say(|| "all faults are over".into());
        self.stormy = false;
        self.heal_network();
        for r in 0..self.regions.len() {
            for c in self.members() {
                let slot = &mut self.regions[r].copies[c.index()];
                slot.slow_until = 0;
                slot.cut = None;
                slot.disk.forget_faults();
                self.release(r, c);
            }
            if self.regions[r].incarnation > 0 {
                self.start(r);
            }
        }
        Ok(())
    }

    /// A zone is stopped: commits go on. One copy more: nothing is acknowledged, nothing is lost. Back: they resume.
    pub(super) fn drill(&mut self) -> Checked {
        // While a copy is being replaced four of the other five are needed: with a zone away nothing goes on (seed 9000211).
        let changing = |w: &World| w.regions[0].node.as_ref().is_none_or(|n| n.is_replacing());
        if !self.until(self.now + 10_000 * MS, |w| Ok(!changing(w)))? {
            return Err(format!("a replacement does not end although all copies are there: {}", self.describe()));
        }
        // What was ordered before may move the primary still, and then its commits go on elsewhere (seed 850402 of moves).
        let moving = |w: &World| {
            let ledger = w.regions[w.primary()].node.as_ref().and_then(|n| n.ledger());
            ledger.is_some_and(|l| l.ops().iter().any(|o| !o.state.is_final()))
        };
        self.until(self.now + 20_000 * MS, |w| Ok(!moving(w)))?;
        self.writing = true;
        let p = self.primary();
        let zone = self.pick(3) * 2;
        for group in self.plan.layout.all_groups() {
            self.hold(p, MemberId { group, copy: CopyId::all()[zone] });
            self.hold(p, MemberId { group, copy: CopyId::all()[zone + 1] });
        }
        self.say(|| "drill: a zone is stopped".into());
        let before = self.counts.writes;
        if !self.until(self.now + 10_000 * MS, |w| Ok(w.regions[p].head.acknowledged_write > before))? {
            return Err(format!("a zone is stopped and commits do not go on: {}", self.describe()));
        }
        // In one group: that is enough to stop all commits.
        let group = GroupId(self.plan.layout.groups - 1);
        self.hold(p, MemberId { group, copy: CopyId::all()[(zone + 2) % 6] });
        self.say(|| "drill: a third copy is stopped".into());
        self.until(self.now + 500 * MS, |_| Ok(false))?;
        let (acknowledged, committed) = (self.regions[p].head.acknowledged_write, *self.truth.committed());
        self.until(self.now + 1500 * MS, |_| Ok(false))?;
        if self.regions[p].head.acknowledged_write != acknowledged || *self.truth.committed() != committed {
            return Err("three copies are stopped and a commit was acknowledged".into());
        }
        if self.regions[p].head.gate_open || self.regions[p].head.gate_reason.is_empty() {
            return Err("three copies are stopped and the head may still begin writes".into());
        }
        for c in self.members() {
            self.release(p, c);
        }
        self.say(|| "drill: all copies are back".into());
        self.converge()
    }
}
