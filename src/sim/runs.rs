//! One seed, or many: what is run, and what is said about it.

use super::SimOptions;
use super::plan::Plan;
use super::world::{Counts, Trace, World};
use crate::base::Prng;
use parking_lot::Mutex;
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A run in which everything held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimReport {
    pub seed: u64,
    /// Over everything that happened: the same seed gives the same number.
    pub trace_hash: u64,
    pub counts: Counts,
}

/// A run in which something did not hold.
#[derive(Clone, Debug)]
pub struct SimFailure {
    pub seed: u64,
    pub what: String,
    /// Virtual nanoseconds.
    pub at_ns: u64,
    pub plan: String,
    /// With an operator who moves the primary.
    pub moves: bool,
    /// The last steps, when they were asked for.
    pub trace: Vec<String>,
}

impl fmt::Display for SimFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "seed {} failed at +{}.{:06}s: {}", self.seed, self.at_ns / 1_000_000_000, self.at_ns / 1000 % 1_000_000, self.what)?;
        writeln!(f, "  drawn: {}", self.plan)?;
        write!(f, "  again: parhelion sim{} --seed {}", if self.moves { " --moves" } else { "" }, self.seed)
    }
}

impl std::error::Error for SimFailure {}

/// Runs one seed.
///
/// # Errors
/// [`SimFailure`]: a rule did not hold, or the code under test panicked.
pub fn run_seed(seed: u64, options: &SimOptions) -> Result<SimReport, Box<SimFailure>> {
    let trace = Arc::new(Mutex::new(Trace { lines_max: options.trace_lines, ..Trace::default() }));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, options, Arc::clone(&trace));
        world.run().map(|()| SimReport { seed, trace_hash: world.hash(), counts: world.counts.clone() })
    }));
    let what = match outcome {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(what)) => what,
        Err(panic) => format!("it panicked: {}", said(&*panic)),
    };
    let trace = trace.lock();
    let plan = Plan::draw(&mut Prng::new(seed).fork("plan"), options).to_string();
    Err(Box::new(SimFailure { seed, what, at_ns: trace.now_ns, plan, moves: options.moves, trace: trace.lines.iter().cloned().collect() }))
}

pub(super) fn said(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "without a word".into())
}

/// What many seeds came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub seeds: u64,
    pub failures: Vec<SimFailure>,
    pub counts: Counts,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counts;
        write!(
            f,
            "{} seeds, {} failed; {} virtual s, {} steps; {} commits acknowledged of {} written, {} page reads; {} region crashes, {} recoveries, \
             {} copy crashes, {} disk faults, {} disks replaced, {} old backups put back and {} copies reborn, {} copies stopped, {} copies rebuilt; {} path cuts, {} broken links, {} messages lost, \
             {} doubled, {} regions seeded, {} half seeds resumed; {} replacements of copies begun, {} done, {} cancelled; {} reigns, {} switchovers, {} failovers, \
             {} ways back, {} regions seeded instead",
            self.seeds,
            self.failures.len(),
            c.virtual_ms / 1000,
            c.steps,
            c.acknowledged,
            c.writes,
            c.page_reads,
            c.region_crashes,
            c.recoveries,
            c.copy_crashes,
            c.disk_faults,
            c.wipes,
            c.backups_put_back,
            c.copies_reborn,
            c.copies_stopped,
            c.copies_rebuilt,
            c.partitions,
            c.broken_links,
            c.messages_lost,
            c.messages_doubled,
            c.seeds_shipped,
            c.seeds_resumed,
            c.replacements,
            c.replacements_finished,
            c.replacements_cancelled,
            c.reigns,
            c.switchovers,
            c.failovers,
            c.ways_back,
            c.seeded_anew
        )
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.steps += other.steps;
        self.virtual_ms += other.virtual_ms;
        self.writes += other.writes;
        self.acknowledged += other.acknowledged;
        self.page_reads += other.page_reads;
        self.region_crashes += other.region_crashes;
        self.recoveries += other.recoveries;
        self.copy_crashes += other.copy_crashes;
        self.disk_faults += other.disk_faults;
        self.wipes += other.wipes;
        self.backups_put_back += other.backups_put_back;
        self.copies_reborn += other.copies_reborn;
        self.copies_stopped += other.copies_stopped;
        self.partitions += other.partitions;
        self.broken_links += other.broken_links;
        self.messages_lost += other.messages_lost;
        self.messages_doubled += other.messages_doubled;
        self.seeds_shipped += other.seeds_shipped;
        self.seeds_resumed += other.seeds_resumed;
        self.copies_rebuilt += other.copies_rebuilt;
        self.replacements += other.replacements;
        self.replacements_cancelled += other.replacements_cancelled;
        self.replacements_finished += other.replacements_finished;
        self.reigns += other.reigns;
        self.switchovers += other.switchovers;
        self.failovers += other.failovers;
        self.ways_back += other.ways_back;
        self.seeded_anew += other.seeded_anew;
    }
}

/// Does `work` on so many threads at once.
pub(super) fn spread(threads: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(&work);
        }
    });
}

/// Runs `count` seeds from `first_seed` on, each on one of `threads` threads. `say` is given one line per hundred seeds, each
/// failure as it is found, and a closing line.
pub fn run_many(first_seed: u64, count: u64, threads: usize, options: &SimOptions, say: &(dyn Fn(&str) + Sync)) -> Summary {
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        return;
                    }
                    let outcome = run_seed(first_seed.wrapping_add(i), options);
                    let mut summary = summary.lock();
                    summary.seeds += 1;
                    match outcome {
                        Ok(report) => summary.counts.add(&report.counts),
                        Err(failure) => {
                            say(&failure.to_string());
                            summary.failures.push(*failure);
                        }
                    }
                    if summary.seeds.is_multiple_of(100) && summary.seeds < count {
                        say(&summary.to_string());
                    }
                }
            });
        }
    });
    let summary = summary.into_inner();
    say(&summary.to_string());
    summary
}

/// `work` on each of `items`, spread over `threads`; the results in the order of the items.
pub(super) fn spread_over<T: Sync, R: Send>(items: &[T], threads: usize, work: &(dyn Fn(&T) -> R + Sync)) -> Vec<R> {
    let next = AtomicU64::new(0);
    let done = Mutex::new(Vec::new());
    spread(threads, || {
        loop {
            let i = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("BUG: no more than the items");
            let Some(item) = items.get(i) else { return };
            let result = work(item);
            done.lock().push((i, result));
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}
