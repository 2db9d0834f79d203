//! The commands that prove something about a simulated volume: what is typed, what is printed.
//!
//! Decides nothing: [`crate::sim::proof`] runs it. A failure is printed with the command that shows it again, and ends with code 1.

use super::cli::{say, seed_of};
use super::failure::{FAILED, Failure, USAGE};
use crate::sim::proof::flips::{self, FlipOptions};
use crate::sim::proof::powercut::{self, PowercutOptions};
use clap::Args;

#[derive(Debug, Args)]
pub struct PowercutArgs {
    /// Cut the power so often, at least
    #[arg(long, default_value_t = 10_000)]
    pub images: u64,
    /// The first life's seed: a number, decimal or 0x...; `random` draws one and prints it
    #[arg(long, default_value = "random")]
    pub seed: String,
    /// Threads; each runs whole lives
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Only this image of the life, as a failure names it
    #[arg(long, value_name = "CALL.IMAGE")]
    pub only: Option<String>,
}

/// # Errors
/// When a rule did not hold, or the arguments cannot be read.
pub fn powercut(args: &PowercutArgs) -> Result<(), Failure> {
    let only = match &args.only {
        None => None,
        Some(text) => {
            let parsed = text.split_once('.').and_then(|(call, image)| Some((call.parse().ok()?, image.parse().ok()?)));
            Some(parsed.ok_or_else(|| Failure::new(USAGE, format!("'{text}' names no image: write CALL.IMAGE, as a failure does")))?)
        }
    };
    let seed = seed_of(&args.seed)?;
    std::panic::set_hook(Box::new(|_| {}));
    say(&format!("seed {seed}\n"))?;
    let options = PowercutOptions { seed, images: args.images, threads: args.threads, only };
    let report = powercut::run(&options, &|line| println!("{line}"));
    say(&format!("{report}\n"))?;
    match report.failures.len() {
        0 => Ok(()),
        n => Err(Failure::new(FAILED, format!("{n} of {} images failed", report.images))),
    }
}

#[derive(Debug, Args)]
pub struct FlipsArgs {
    /// Flip so often
    #[arg(long, default_value_t = 5_000)]
    pub flips: u64,
    /// The volume's seed, and that of all flips: a number, decimal or 0x...; `random` draws one and prints it
    #[arg(long, default_value = "random")]
    pub seed: String,
    /// Threads; each does whole flips
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// The volume's files are encrypted
    #[arg(long)]
    pub sealed: bool,
    /// Only this one, as a failure names it
    #[arg(long, value_name = "FLIP")]
    pub only: Option<u64>,
}

/// # Errors
/// When a rule did not hold, or the arguments cannot be read.
pub fn flips(args: &FlipsArgs) -> Result<(), Failure> {
    let seed = seed_of(&args.seed)?;
    std::panic::set_hook(Box::new(|_| {}));
    say(&format!("seed {seed}\n"))?;
    let options = FlipOptions { seed, flips: args.flips, threads: args.threads, sealed: args.sealed, only: args.only };
    let report = flips::run(&options, &|line| println!("{line}")).map_err(|what| Failure::new(FAILED, what))?;
    say(&format!("{report}\n"))?;
    match report.failures.len() {
        0 => Ok(()),
        n => Err(Failure::new(FAILED, format!("{n} of {} flips failed", report.flips))),
    }
}
