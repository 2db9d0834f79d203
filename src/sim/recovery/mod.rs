//! Recovery, enumerated: every set of three to six copies, every message after which the process dies, every call of a disk in
//! which the power goes, and again in the recovery after that.
//!
//! Story: a small volume has frames on four copies, on three, on one ([`layouts`]). A recovery runs on some copies and is ended at
//! one point; the next one finds what is left. Disks that are the same are one state, with the number of ways that lead to it, so
//! two crashes in a row can be enumerated whole. From every state every set of copies recovers to the end, the others come back,
//! and then: what was announced as durable is there, all six have one log byte for byte, and writes go on.
//! Decides nothing; [`rig`] drives a real node and real copies without chance or time. Not verified here: more than one region.

mod layouts;
mod rig;
mod two;

pub(super) use layouts::FIGURE_8;

use super::Mutant;
use super::checker::Checked;
use super::checker::truth::Truth;
use super::disk::SimDisk;
use super::runs::spread_over;
use crate::base::{CopyId, LogEnd};
use rig::Rig;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// From one set of copies to the next that a state is tried with: prime, so that all come in turn.
const STRIDE: usize = 37;

/// How much is enumerated.
#[derive(Clone, Debug)]
pub struct RecoveryOptions {
    /// Crashes before the recovery that is not disturbed: 0 to 3.
    pub crashes: usize,
    /// Of the states that the last crash leads to, one in so many goes on, chosen by what lies on the disks. 1: all.
    pub every: u64,
    /// Sets of copies that recover to the end from each state, in turn; 0: every set.
    pub sets_each: usize,
    pub threads: usize,
    /// A rule that is broken, to show that it is noticed.
    pub mutant: Option<Mutant>,
    /// Only what follows from this one of the layouts; `None`: from all, and with two processes at a time.
    pub layout: Option<&'static str>,
}

/// What an enumeration came to.
#[derive(Clone, Debug, Default)]
pub struct RecoverySummary {
    /// Orders of crashes that were run to the end: the ways to each state, times the recoveries from there.
    pub schedules: u64,
    /// Different contents of six disks from which recovery was tried.
    pub states: u64,
    /// Recoveries that were really run.
    pub runs: u64,
    /// Of the schedules, those with an older process that is still there.
    pub two_processes: u64,
    /// For each layout: frames of the first writer that were kept in the end, and in how many runs.
    pub kept: BTreeMap<&'static str, BTreeMap<u64, u64>>,
    /// The first that did not hold, with the way to it.
    pub failure: Option<String>,
}

impl RecoverySummary {
    /// The first is kept, and the first that lost something rather than one that merely did not end.
    fn failed(&mut self, what: String) {
        if self.failure.as_ref().is_none_or(|known| !known.contains("durability") && what.contains("durability")) {
            self.failure = Some(what);
        }
    }
}

impl fmt::Display for RecoverySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} orders of crashes, {} states, {} recoveries run to the end or to a crash", self.schedules, self.states, self.runs)?;
        writeln!(f, "{} of them beside an older process that is still there", self.two_processes)?;
        for (layout, kept) in &self.kept {
            let kept: Vec<String> = kept.iter().map(|(frames, runs)| format!("{frames} ({runs} runs)")).collect();
            writeln!(f, "  {layout}: frames kept of the first writer: {}", kept.join(", "))?;
        }
        match &self.failure {
            Some(failure) => write!(f, "FAILED: {failure}"),
            None => write!(f, "what was durable was always there, and all six copies always ended with one log"),
        }
    }
}

/// Whose messages go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Fifo,
    Races(CopyId),
    Lags(CopyId),
}

/// What one recovery is run on.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Bit i: copy i takes part from the beginning.
    set: u8,
    order: Order,
    /// The power of a copy goes in the n-th call of its disk, and the process goes on.
    cut: Option<(CopyId, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Crash {
    plan: Plan,
    /// Messages delivered before it.
    step: usize,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// The process is gone; what it wrote is in the page cache.
    Killed,
    /// It is gone in the middle of a call of this copy's disk.
    KilledInCall(CopyId, u64),
    /// So is the power.
    PowerInCall(CopyId, u64),
}

/// What lies on six disks after some crashes.
#[derive(Clone)]
struct Image {
    disks: [(Arc<SimDisk>, u64); 6],
    claims: [LogEnd; 6],
    truth: Arc<Truth>,
    incarnation: u64,
    layout: &'static str,
    crashes: Vec<Crash>,
    ways: u64,
}

/// The same for two states that recovery cannot tell apart: what lies on the disks, and what was durable.
type Key = ([u64; 6], u64, u32);

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.copies().map(|c| c.to_string()).collect();
        write!(f, "recovery on {}", names.join(" "))?;
        match self.order {
            Order::Fifo => {}
            Order::Races(c) => write!(f, ", {c} ahead of the others")?,
            Order::Lags(c) => write!(f, ", {c} behind the others")?,
        }
        match self.cut {
            Some((c, call)) => write!(f, ", {c} loses its power in call {call} of its disk"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.plan)?;
        match self.how {
            How::Killed => write!(f, "killed after message {}", self.step),
            How::KilledInCall(c, call) => write!(f, "killed in message {}, call {call} of {c}'s disk", self.step),
            How::PowerInCall(c, call) => write!(f, "power cut in message {}, call {call} of {c}'s disk", self.step),
        }
    }
}

impl Plan {
    fn copies(&self) -> impl Iterator<Item = CopyId> + use<> {
        let set = self.set;
        CopyId::all().into_iter().filter(move |c| set & (1 << c.0) != 0)
    }
}

impl Image {
    fn key(&self) -> Key {
        let committed = self.truth.committed();
        (std::array::from_fn(|i| self.disks[i].1), committed.seq.0, committed.checksum)
    }

    fn way(&self) -> String {
        let mut way = vec![self.layout.to_owned()];
        way.extend(self.crashes.iter().map(ToString::to_string));
        way.join("; then ")
    }
}

fn mixed(key: &Key) -> u64 {
    let (disks, seq, checksum) = key;
    disks.iter().fold(seq ^ u64::from(*checksum), |h, d| (h ^ d).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)) >> 7
}

/// The sets of at least `least` copies; `orders`: each also with one copy ahead of the others, and one behind.
fn plans(least: u32, orders: bool) -> Vec<Plan> {
    let mut plans = Vec::new();
    for set in (0..64u8).filter(|set| set.count_ones() >= least) {
        let plan = Plan { set, order: Order::Fifo, cut: None };
        plans.push(plan);
        if orders {
            plans.extend(plan.copies().map(|c| Plan { order: Order::Races(c), ..plan }));
            plans.extend(plan.copies().map(|c| Plan { order: Order::Lags(c), ..plan }));
        }
    }
    plans
}

/// A recovery on the copies of `plan`, and one transaction if it comes so far.
fn recover(image: &Image, plan: &Plan, mutant: Option<Mutant>, look: bool, each: &mut dyn FnMut(&mut Rig) -> Checked) -> Checked<Rig> {
    let mut rig = Rig::new(image, plan.order, mutant, look);
    if let Some((c, call)) = plan.cut {
        rig.cut_power_at(c, call);
    }
    let process = rig.start(image.incarnation);
    for c in plan.copies() {
        rig.connect(process, c)?;
        each(&mut rig)?;
    }
    rig.settle(None, each)?;
    if rig.processes[process].pen.is_some() {
        rig.write(process, 1)?;
        rig.settle(None, each)?;
    }
    Ok(rig)
}

/// All that a crash in the recovery `plan` may leave behind.
fn crash_everywhere(image: &Image, plan: &Plan, every: u64, mutant: Option<Mutant>) -> Checked<Vec<Image>> {
    let mut left: BTreeMap<Key, Image> = BTreeMap::new();
    let mut step = 0;
    let mut each = |rig: &mut Rig| {
        let points = rig.crash_points();
        let base = Image {
            disks: rig.disks(),
            claims: rig.claims,
            truth: Arc::clone(&rig.truth),
            incarnation: image.incarnation + 1,
            layout: image.layout,
            crashes: Vec::new(),
            ways: image.ways,
        };
        let mut leave = |at: Option<(CopyId, SimDisk)>, how: How| {
            let mut left_behind = Image { crashes: image.crashes.clone(), ..base.clone() };
            left_behind.crashes.push(Crash { plan: *plan, step, how });
            if let Some((c, disk)) = at {
                let hash = disk.content_hash();
                left_behind.disks[c.index()] = (Arc::new(disk), hash);
            }
            let key = left_behind.key();
            if every > 1 && !mixed(&key).is_multiple_of(every) {
                return;
            }
            left.entry(key).and_modify(|same| same.ways += image.ways).or_insert(left_behind);
        };
        for point in points {
            if point.disk.has_unsynced() {
                // What was not synced is gone, torn or kept, as two throws of the dice say.
                for dice in 0..2 {
                    let disk = point.disk.fork(dice + point.call);
                    disk.crash();
                    leave(Some((point.copy, disk)), How::PowerInCall(point.copy, point.call));
                }
            }
            leave(Some((point.copy, point.disk)), How::KilledInCall(point.copy, point.call));
        }
        leave(None, How::Killed);
        step += 1;
        Ok(())
    };
    recover(image, plan, mutant, true, &mut each)?;
    Ok(left.into_values().collect())
}

/// Recovers undisturbed, on the copies of `plan` first and then on all six; gives how many frames of the first writer were kept.
fn to_the_end(image: &Image, plan: &Plan, mutant: Option<Mutant>) -> Checked<u64> {
    let mut rig = recover(image, plan, mutant, false, &mut |_| Ok(()))?;
    let process = rig.processes.len() - 1;
    for c in CopyId::all() {
        if plan.set & (1 << c.0) == 0 {
            rig.connect(process, c)?;
        }
    }
    rig.settle(None, &mut |_| Ok(()))?;
    let end = rig.write(process, 2)?;
    rig.settle(None, &mut |_| Ok(()))?;
    if *rig.truth.committed() != end {
        return Err(format!("all six are back and a write does not become durable: {}", rig.describe()));
    }
    rig.compare_logs()?;
    let first = rig.truth.at(crate::base::Seq(1)).map(|e| e.generation);
    Ok((1..=end.seq.0).filter(|seq| rig.truth.at(crate::base::Seq(*seq)).map(|e| e.generation) == first).count() as u64)
}

/// Enumerates. `say` is given a line for each number of crashes.
pub fn enumerate(options: &RecoveryOptions, say: &dyn Fn(&str)) -> RecoverySummary {
    let mut summary = RecoverySummary::default();
    let mut images = match layouts::all() {
        Ok(images) => images,
        Err(what) => {
            summary.failure = Some(what);
            return summary;
        }
    };
    let mutant = options.mutant;
    match options.layout {
        Some(layout) => images.retain(|image| image.layout == layout),
        None => two::enumerate(options, &mut summary),
    }
    for crashes in 0..=options.crashes {
        finish_all(&images, options, &mut summary);
        say(&format!("{crashes} crashes: {} states, {} runs so far", images.len(), summary.runs));
        if summary.failure.is_some() || crashes == options.crashes {
            break;
        }
        let least = if mutant == Some(Mutant::RecoverFromTwo) { 2 } else { 3 };
        let plans = plans(least, crashes == 0);
        let every = if crashes + 1 == options.crashes { options.every } else { 1 };
        let results = spread_over(&images, options.threads, &|image: &Image| {
            plans.iter().map(|plan| crash_everywhere(image, plan, every, mutant).map_err(|e| (*plan, e))).collect::<Result<Vec<_>, _>>()
        });
        let mut next: BTreeMap<Key, Image> = BTreeMap::new();
        for (image, result) in images.iter().zip(results) {
            summary.runs += plans.len() as u64;
            match result {
                Ok(left) => {
                    for image in left.into_iter().flatten() {
                        let ways = image.ways;
                        next.entry(image.key()).and_modify(|same| same.ways += ways).or_insert(image);
                    }
                }
                Err((plan, what)) => {
                    summary.failed(format!("{}; then {plan}: {what}", image.way()));
                }
            }
        }
        images = next.into_values().collect();
    }
    summary
}

fn finish_all(images: &[Image], options: &RecoveryOptions, summary: &mut RecoverySummary) {
    let least = if options.mutant == Some(Mutant::RecoverFromTwo) { 2 } else { 3 };
    let plans = plans(least, false);
    let each = if options.sets_each == 0 { plans.len() } else { options.sets_each.min(plans.len()) };
    let results = spread_over(images, options.threads, &|image: &Image| {
        let from = usize::try_from(mixed(&image.key()) % plans.len() as u64).expect("BUG: few plans");
        let chosen = (0..each).map(|i| &plans[(from + i * STRIDE) % plans.len()]);
        chosen.map(|plan| to_the_end(image, plan, options.mutant).map_err(|e| (*plan, e))).collect::<Result<Vec<u64>, _>>()
    });
    for (image, result) in images.iter().zip(results) {
        summary.states += 1;
        summary.runs += each as u64;
        summary.schedules += image.ways * each as u64;
        match result {
            Ok(kept) => {
                let of_layout = summary.kept.entry(image.layout).or_default();
                for frames in kept {
                    *of_layout.entry(frames).or_default() += 1;
                }
            }
            Err((plan, what)) => {
                summary.failed(format!("{}; then {plan}: {what}", image.way()));
            }
        }
    }
}
