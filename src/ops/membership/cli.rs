//! `parhelion region add` and `remove`, `parhelion witness add` and `remove`: what an operator types, and how it ends.
//!
//! Decides words and exit codes. Both are verbs of what they change: a witness is run by `parhelion witness --config`, as a region is by
//! `parhelion region --config`, and comes and goes by the same words. The order goes the way of all orders ([`crate::ops::orders`]); the primary decides and carries out.

use crate::base::RegionName;
use crate::control::OrderKind;
use crate::node::report::OperationReport;
use crate::ops::cli::say;
use crate::ops::client::config_file;
use crate::ops::config::{Config, Witness, reachable};
use crate::ops::failure::{Failure, USAGE};
use crate::ops::orders::{HowArgs, command, line, outcome};
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};

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

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct WitnessArgs {
    #[command(subcommand)]
    pub what: Option<WitnessVerb>,
    /// The witness's file, as in regions/witness.toml
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG", required = true)]
    pub config: Option<PathBuf>,
    /// End when stdin ends: the process that started this one is gone
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

#[derive(Debug, Subcommand)]
pub enum WitnessVerb {
    /// Make a witness a member; its file and certificate are made by hand (parhelion invite makes them by itself)
    Add {
        /// Its name, one that no witness and no region ever had
        name: RegionName,
        /// Where the regions reach it, over UDP
        #[arg(long, value_name = "HOST:PORT")]
        quic: String,
        /// Its failure domain, as the regions' files call theirs: where it is one of them, that is said
        #[arg(long, value_name = "ZONE")]
        zone: Option<String>,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Take the witness out, also one that is dead: its vote, its links. Its name is not used again
    Remove {
        /// Its name
        name: RegionName,
        #[command(flatten)]
        how: HowArgs,
    },
}

/// What zones say of a witness that is to come, by the file that is asked with (O6); to stderr.
pub(super) fn note_zones(config: Option<&Path>, name: &RegionName, zone: Option<&String>) -> Result<(), Failure> {
    let config = Config::load(&config_file(config)?)?;
    let witness = Witness { name: name.clone(), quic: String::new(), zone: zone.cloned() };
    for note in config.members.iter().filter_map(|m| config.beside(&witness, &m.region)) {
        eprintln!("note: {note}");
    }
    Ok(())
}

/// # Errors
/// As [`region`].
pub async fn witness(verb: WitnessVerb) -> Result<(), Failure> {
    let (kind, how) = match verb {
        WitnessVerb::Add { name, quic, zone, how } => {
            reachable(&quic).map_err(|why| Failure::new(USAGE, format!("--quic {quic} {why}")))?;
            note_zones(how.ask.config.as_deref(), &name, zone.as_ref())?;
            (OrderKind::AddWitness { witness: name, addr: quic, zone }, how)
        }
        WitnessVerb::Remove { name, how } => (OrderKind::RemoveWitness { witness: name }, how),
    };
    ordered(kind, how).await
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
    ordered(kind, how).await
}

async fn ordered(kind: OrderKind, how: HowArgs) -> Result<(), Failure> {
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
    let (key, name) = if op.witness.is_some() { ("witness", &op.witness) } else { ("region", &op.region) };
    json!({
        "id": op.id, "kind": op.kind, key: name, "state": op.state, "reason": op.reason, "by": op.by, "dry_run": op.dry_run,
        "phases": op.phases,
    })
}

/// The last line, for people.
#[must_use]
pub fn ended(op: &OperationReport) -> String {
    let name = op.region.as_ref().or(op.witness.as_ref()).map_or_else(|| "?".to_owned(), ToString::to_string);
    match (op.state.as_str(), op.kind.as_str()) {
        ("done", _) if op.dry_run => "it could be done now\n".to_owned(),
        ("done", "add_region") => {
            format!("done: {name} is a member; it is seeded when its process runs, and votes when its number makes it one\n")
        }
        ("done", "add_witness") => {
            format!("done: {name} is the witness; it votes as soon as its process is heard, where the number of regions is two or four\n")
        }
        ("done", "remove_witness") => {
            format!("done: {name} is the witness no more; stop its process where it lives, and use its name for no other one\n")
        }
        ("done", _) => format!("done: {name} is no member any more; stop its process where it lives, its data stays there\n"),
        _ => String::new(),
    }
}
