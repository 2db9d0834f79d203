//! A process that was thought dead, and is not: it goes on writing to copies that a newer one recovers from.
//!
//! The older one has a transaction on three copies and under way to the others when the newer one begins, on three copies; after each
//! message of it a copy may lose its power, and then the older one gets on with its work, with all its connections. Whatever either of
//! them announced must be there in the end, and the newer one must get through.

use super::super::checker::Checked;
use super::super::runs::spread_over;
use super::rig::Rig;
use super::{Order, RecoveryOptions, RecoverySummary, layouts};
use crate::base::CopyId;

/// More messages than a recovery on three copies has before it waits.
const STEPS: usize = 40;

struct Schedule {
    /// Copies that have the older one's transaction.
    holders: u8,
    /// Copies that the newer one begins with.
    set: u8,
    /// The one that loses its power.
    cycled: Option<CopyId>,
}

fn of(set: u8) -> impl Iterator<Item = CopyId> {
    CopyId::all().into_iter().filter(move |c| set & (1 << c.0) != 0)
}

pub(super) fn enumerate(options: &RecoveryOptions, summary: &mut RecoverySummary) {
    let threes: Vec<u8> = (0..64u8).filter(|s| s.count_ones() == 3).collect();
    let mut schedules = Vec::new();
    for &holders in &threes {
        for &set in &threes {
            schedules.push(Schedule { holders, set, cycled: None });
            schedules.extend(of(set).map(|c| Schedule { holders, set, cycled: Some(c) }));
        }
    }
    // As bounded as the last crash is: one in so many, with a stride that meets all kinds.
    let every = usize::try_from(options.every.clamp(1, 64)).expect("BUG: a small number");
    let schedules: Vec<Schedule> = schedules.into_iter().step_by(every).collect();
    for (schedule, result) in schedules.iter().zip(spread_over(&schedules, options.threads, &|s: &Schedule| run(s, options))) {
        match result {
            Ok(runs) => {
                summary.runs += runs;
                summary.schedules += runs;
                summary.two_processes += runs;
            }
            Err((step, what)) => {
                let names = |set| of(set).map(|c| c.to_string()).collect::<Vec<_>>().join(" ");
                let cycled = schedule.cycled.map_or("no copy".to_owned(), |c| c.to_string());
                summary.failed(format!(
                    "an older process has a transaction on {}; a newer one recovers on {}; after {step} messages {cycled} loses its power and the \
                     older one goes on: {what}",
                    names(schedule.holders),
                    names(schedule.set)
                ));
            }
        }
    }
}

/// The older one comes back after each message of the newer one.
fn run(schedule: &Schedule, options: &RecoveryOptions) -> Result<u64, (usize, String)> {
    for step in 0..STEPS {
        if !once(schedule, step, options).map_err(|e| (step, e))? {
            return Ok(step as u64 + 1);
        }
    }
    Ok(STEPS as u64)
}

/// `false`: the newer one was quiet before `steps` messages.
fn once(schedule: &Schedule, steps: usize, options: &RecoveryOptions) -> Checked<bool> {
    let mut rig = Rig::new(&layouts::nothing(), Order::Fifo, options.mutant, false);
    let older = rig.start(1);
    for c in CopyId::all() {
        rig.connect(older, c)?;
    }
    rig.settle(None, &mut |_| Ok(()))?;
    rig.write(older, 1)?;
    rig.settle(None, &mut |_| Ok(()))?;
    rig.write(older, 1)?;
    while rig.step(&|_, c| schedule.holders & (1 << c.0) != 0)? {}

    let newer = rig.start(2);
    for c in of(schedule.set) {
        rig.connect(newer, c)?;
    }
    let mut moved = true;
    for _ in 0..steps {
        moved = rig.advance(Some(newer))?;
    }
    if let Some(c) = schedule.cycled {
        rig.power_cycle(c)?;
    }
    rig.settle(Some(older), &mut |_| Ok(()))?;
    rig.settle(Some(newer), &mut |_| Ok(()))?;
    for c in CopyId::all() {
        if schedule.set & (1 << c.0) == 0 {
            rig.connect(newer, c)?;
        }
    }
    rig.settle(None, &mut |_| Ok(()))?;
    let end = rig.write(newer, 1)?;
    rig.settle(None, &mut |_| Ok(()))?;
    if *rig.truth.committed() != end {
        return Err(format!("the newer process writes and it does not become durable: {}", rig.describe()));
    }
    rig.compare_logs()?;
    Ok(moved)
}
