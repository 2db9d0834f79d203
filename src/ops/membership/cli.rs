//! `parhelion region add` and `region remove`: what an operator types, and how it ends.
//!
//! Decides words and exit codes. The order goes the way of all orders ([`crate::ops::orders`]); the primary decides and carries out.

use crate::base::RegionName;
use crate::control::OrderKind;
use crate::node::report::OperationReport;
use crate::ops::cli::say;
use crate::ops::config::reachable;
use crate::ops::failure::{Failure, USAGE};
use crate::ops::orders::{HowArgs, command, line, outcome};
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct RegionArgs {
    #[command(subcommand)]
    pub what: Option<RegionVerb>,
    /// The region's file
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG", required = true)]
    pub config: Option<PathBuf>,
    /// End when stdin ends: the process that started this one is gone
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

#[derive(Debug, Subcommand)]
pub enum RegionVerb {
    /// Make a region a member; its files and certificate are made by hand (parhelion invite makes them by itself)
    Add {
        /// Its name
        name: RegionName,
        /// Where the others reach it, over UDP
        #[arg(long, value_name = "HOST:PORT")]
        quic: String,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Take a secondary out: its vote, its log, its links; it serves nothing from then on
    Remove {
        /// Its name
        name: RegionName,
        #[command(flatten)]
        how: HowArgs,
    },
}

/// # Errors
/// [`Failure`]: refused, failed, superseded, or not known to be over.
pub async fn region(verb: RegionVerb) -> Result<(), Failure> {
    let (kind, how) = match verb {
        RegionVerb::Add { name, quic, how } => {
            reachable(&quic).map_err(|why| Failure::new(USAGE, format!("--quic {quic} {why}")))?;
            (OrderKind::AddRegion { region: name, addr: quic }, how)
        }
        RegionVerb::Remove { name, how } => (OrderKind::RemoveRegion { region: name }, how),
    };
    let done = command(&how, kind).await?;
    if how.ask.json {
        say(&line(&as_json(&done)))?;
    } else {
        say(&ended(&done))?;
    }
    outcome(&done)
}

/// What scripts get.
fn as_json(op: &OperationReport) -> serde_json::Value {
    json!({
        "id": op.id, "kind": op.kind, "region": op.region, "state": op.state, "reason": op.reason, "by": op.by, "dry_run": op.dry_run,
        "phases": op.phases,
    })
}

/// The last line, for people.
#[must_use]
pub fn ended(op: &OperationReport) -> String {
    let region = op.region.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
    match (op.state.as_str(), op.kind.as_str()) {
        ("done", _) if op.dry_run => "it could be done now\n".to_owned(),
        ("done", "add_region") => {
            format!("done: {region} is a member; it is seeded when its process runs, and votes when its number makes it one\n")
        }
        ("done", _) => format!("done: {region} is no member any more; stop its process where it lives, its data stays there\n"),
        _ => String::new(),
    }
}
