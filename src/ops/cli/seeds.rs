//! `parhelion sim` and what stands below it: seeds as they are typed, and how a run of the simulators ends.

use super::say;
use crate::ops::failure::{FAILED, Failure, USAGE};
use crate::sim::roles::{self, RolesOptions};
use crate::sim::{self, RecoveryOptions, SimOptions};
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SimArgs {
    /// So many seeds, from --seed upwards
    #[arg(long, default_value_t = 1)]
    pub seeds: u64,
    /// The first (or only) seed: a number, decimal or 0x...; `random` draws one and prints it
    #[arg(long, default_value = "random")]
    pub seed: String,
    /// Threads; each runs whole seeds
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// An operator moves the primary again and again
    #[arg(long)]
    pub moves: bool,
    /// Show so many of the last steps before a failure
    #[arg(long, default_value_t = 40)]
    pub trace: usize,
    #[command(subcommand)]
    pub what: Option<SimVerb>,
}

#[derive(Debug, Subcommand)]
pub enum SimVerb {
    /// Enumerate recoveries: every set of copies, every message and every disk call to crash at, and again
    Recovery {
        /// Crashes in a row before a recovery is left alone: 0 to 3
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=3))]
        crashes: u8,
        /// Of the states that the last crash leads to, go on with one in so many
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        every: u64,
        /// Sets of copies that recover to the end from each state; 0: all
        #[arg(long, default_value_t = 0)]
        sets: usize,
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
    /// Change roles under faults: the control cores of two to six regions and a witness
    Roles {
        /// So many seeds, from --seed upwards
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// The first (or only) seed: a number, decimal or 0x...; `random` draws one and prints it
        #[arg(long, default_value = "random")]
        seed: String,
        /// Regions (2 to 6) instead of what the seed draws
        #[arg(long, value_parser = clap::value_parser!(u8).range(2..=6))]
        regions: Option<u8>,
        /// Switch off each rule once instead, for at most so many seeds, and show what notices it
        #[arg(long)]
        mutants: bool,
        /// Fail when all seeds together came to fewer switchovers, or to fewer failovers
        #[arg(long, default_value_t = 0, value_name = "N")]
        at_least: u64,
        /// Threads; each runs whole seeds
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Show so many of the last steps before a failure
        #[arg(long, default_value_t = 60)]
        trace: usize,
    },
    /// Every schedule of a few members' control cores, within bounds
    Model(roles::ModelArgs),
    /// Switch off each rule once, and show what notices it
    Mutants {
        /// Simulated clusters that are tried for each rule before it counts as not noticed
        #[arg(long, default_value_t = 400)]
        seeds: u64,
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
}

/// A seed as it is typed.
pub(in crate::ops) fn seed_of(typed: &str) -> Result<u64, Failure> {
    match typed {
        "random" => {
            let mut seed = [0u8; 4];
            aws_lc_rs::rand::fill(&mut seed).map_err(|_| Failure::new(FAILED, "the system gives no random numbers"))?;
            Ok(u64::from(u32::from_le_bytes(seed)))
        }
        text => {
            let parsed = text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok());
            parsed.ok_or_else(|| Failure::new(USAGE, format!("'{text}' is no seed: write a number, 0x..., or random")))
        }
    }
}

/// Whole global clusters under virtual time. A failing seed prints the command that replays it.
pub(super) fn run_sim(args: &SimArgs) -> Result<(), Failure> {
    match args.what {
        Some(SimVerb::Recovery { crashes, every, sets, threads }) => {
            let options = RecoveryOptions { crashes: crashes.into(), every, sets_each: sets, threads, mutant: None, layout: None };
            let summary = sim::enumerate_recoveries(&options, &|line| println!("{line}"));
            say(&format!("{summary}\n"))?;
            return summary.failure.map_or(Ok(()), |_| Err(Failure::new(FAILED, "a recovery did not end as it must")));
        }
        Some(SimVerb::Roles { seeds, ref seed, regions, mutants, at_least, threads, trace }) => {
            let first = seed_of(seed)?;
            std::panic::set_hook(Box::new(|_| {}));
            say(&format!("seeds {first} to {}\n", first.saturating_add(seeds.saturating_sub(1))))?;
            if mutants {
                let reports = roles::catch_role_mutants(first, seeds, threads, &|line| println!("{line}"));
                let unseen: Vec<String> = reports.iter().filter(|r| r.noticed.is_none()).map(|r| format!("{:?}", r.mutant)).collect();
                let sentence = format!("nothing notices {}", unseen.join(", "));
                return if unseen.is_empty() { Ok(()) } else { Err(Failure::new(FAILED, sentence)) };
            }
            let trace_lines = if seeds == 1 { trace } else { 0 };
            let options = RolesOptions { regions: regions.map(usize::from), mutant: None, trace_lines };
            let summary = roles::run_roles(first, seeds, threads, &options, &|line| println!("{line}"));
            let (failed, counts) = (summary.failures.len(), &summary.counts);
            let sentence = match counts.switchovers.min(counts.failovers) {
                _ if failed > 0 => format!("{failed} of {seeds} seeds failed"),
                fewest if fewest < at_least => {
                    let (switchovers, failovers) = (counts.switchovers, counts.failovers);
                    format!("{switchovers} switchovers and {failovers} failovers are fewer than {at_least} of each: give it more --seeds")
                }
                _ => return Ok(()),
            };
            return Err(Failure::new(FAILED, sentence));
        }
        Some(SimVerb::Model(ref model)) => return run_model(model),
        Some(SimVerb::Mutants { seeds, threads }) => {
            std::panic::set_hook(Box::new(|_| {}));
            let reports = sim::catch_all(seeds, threads, &|line| println!("{line}"));
            let unseen: Vec<String> = reports.iter().filter(|r| r.noticed.is_none()).map(|r| format!("{:?}", r.mutant)).collect();
            let sentence = format!("nothing notices {}", unseen.join(", "));
            return if unseen.is_empty() { Ok(()) } else { Err(Failure::new(FAILED, sentence)) };
        }
        None => {}
    }
    let first = seed_of(&args.seed)?;
    // Panics are caught and reported with their seed; the default message would come a hundred times.
    std::panic::set_hook(Box::new(|_| {}));
    let options = SimOptions { trace_lines: if args.seeds == 1 { args.trace } else { 0 }, moves: args.moves, ..SimOptions::default() };
    say(&format!("seeds {first} to {}\n", first.saturating_add(args.seeds.saturating_sub(1))))?;
    let summary = sim::run_many(first, args.seeds, args.threads.max(1), &options, &|line| println!("{line}"));
    if summary.failures.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(FAILED, format!("{} of {} seeds failed", summary.failures.len(), summary.seeds)))
    }
}

fn run_model(args: &roles::ModelArgs) -> Result<(), Failure> {
    let all = roles::model_bounds(args.steps, args.states);
    let reports = match args.mutants {
        true => roles::catch_by_model(&all, args.threads, &|line| println!("{line}")),
        false => roles::run_model(&all, None, args.threads, &|line| println!("{line}")),
    };
    let of = reports.len();
    if args.mutants {
        let unseen = reports.iter().filter(|r| r.violation.is_none()).count();
        let sentence = format!("the model does not notice {unseen} of {of} mutants within these bounds");
        return if unseen == 0 { Ok(()) } else { Err(Failure::new(FAILED, sentence)) };
    }
    let broken = reports.iter().filter(|r| r.violation.is_some()).count();
    match reports.iter().filter(|r| r.failed()).count() - broken {
        _ if broken > 0 => Err(Failure::new(FAILED, format!("a rule does not hold within {broken} of {of} bounds"))),
        0 => Ok(()),
        open => Err(Failure::new(
            FAILED,
            format!("{open} of the searches that must come to their end did not; look at what grows, or give more --states"),
        )),
    }
}
