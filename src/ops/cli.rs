//! The command line: what one can type, and which part of the program does it.
//!
//! Decides: names, defaults and help of verbs and flags; how answers are printed. Never knows
//! how anything works. With `--json` stdout carries JSON and nothing else; errors go to stderr in both cases.

mod drill;
mod process;
mod seeds;
mod show;

pub use drill::{CopyArgs, CopyVerb, NetemArgs, NetemVerb};
pub use process::SalvageArgs;
pub(super) use process::Signals;
pub(super) use seeds::seed_of;
pub use seeds::{SimArgs, SimVerb};
pub use show::{EventsArgs, StatusArgs, WatchArgs};

use super::admin::AdminAnswer;
use super::certs::{self, CertOptions};
use super::config::Config;
use super::demo::{self, DemoArgs};
use super::failure::{EXIT_CODES, FAILED, Failure, REFUSED, USAGE};
use super::membership;
use super::membership::cli::{RegionArgs, WitnessArgs};
use super::orders::{self, FailoverArgs, OpArgs, SetArgs, SwitchoverArgs};
use crate::base::{ClusterName, RegionName};
use crate::io::clock;
use clap::{Args, Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;

/// One primary region, up to five images of it.
#[derive(Debug, Parser)]
#[command(name = "parhelion", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a whole global cluster on this machine, one process per region, with a WAN between them
    Demo(DemoArgs),
    /// Run one region; or add one to the global cluster, or take one out
    Region(RegionArgs),
    /// Run a witness: a member that votes between two regions and holds no data; or add one to the global cluster, or take it out
    Witness(WitnessArgs),
    /// Invite a new region, or a witness: print a token that is good once, for parhelion join
    Invite(membership::join::InviteArgs),
    /// On a new machine: make the key of a region or a witness, get its certificate and write its file, by an invitation
    Join(membership::join::JoinArgs),
    /// Make a secondary a stand-alone primary of its own lineage, on purpose
    Detach(membership::lineages::DetachArgs),
    /// UNSAFE: go on without a majority, in a new lineage, when most voters are lost for good
    ForceNewLineage(membership::lineages::ForceArgs),
    /// Of two lineages that have met, give up the one of this region: it keeps what it has and comes back as a secondary
    Retire(membership::lineages::RetireArgs),
    /// Make the CA, the regions' certificates and the SQL password, where they are missing
    Certs(CertsArgs),
    /// Make the key that a region's copies are encrypted with, or change it
    Key(super::keys::KeyArgs),
    /// Show the global cluster: roles, states, positions, lags, copies
    Status(StatusArgs),
    /// Show how far each region is behind, and how that was measured
    Lag(WatchArgs),
    /// Show what happened in all regions
    Events(EventsArgs),
    /// Move the primary to another region, as planned: nothing is lost
    Switchover(SwitchoverArgs),
    /// Move the primary to another region and back, look at both ways from outside, and say whether that went as it should
    Drill(super::drill::DrillArgs),
    /// Make a surviving region the primary, and say what that costs
    Failover(FailoverArgs),
    /// Show who did what to a member, and whether that record is whole
    Audit(super::audit::AuditArgs),
    /// Show operations: how far they are, how they ended
    Op(OpArgs),
    /// Change a rule of the running global cluster: parhelion set max_rpo=2s
    Set(SetArgs),
    /// Look at or change the demo's emulated network
    Netem {
        #[command(subcommand)]
        what: NetemVerb,
    },
    /// Run some of a region's copies as a process of their own; or a drill with one of the six
    Copy(CopyArgs),
    /// Look at what a region lost when it followed another one: as figures, as rows that differ, as a read-only database
    Salvage(SalvageArgs),
    /// Look at a region's copies in their files
    Volume {
        #[command(subcommand)]
        what: VolumeVerb,
    },
    /// Measure this build on this machine: start, commits, lag, shipping, restart
    Bench(super::bench::BenchArgs),
    /// Run simulated global clusters from seeds
    Sim(SimArgs),
    /// Cut the power of a simulated volume at every disk call, and recover from what is left
    Powercut(super::proof::PowercutArgs),
    /// Flip bytes in each region of each file of a simulated volume, and see that they are found
    Flips(super::proof::FlipsArgs),
    /// Show the version
    Version {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which region to ask.
#[derive(Clone, Debug, Args)]
pub struct AskArgs {
    /// The file of any region [default: that of the founder in ./parhelion-demo/regions]
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CertsArgs {
    /// The file of any region: it names the cluster, the members and the directory
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG", required_unless_present = "dir")]
    pub config: Option<PathBuf>,
    /// Without --config: the directory to put them in
    #[arg(long, value_name = "DIR", requires_all = ["cluster", "region"])]
    pub dir: Option<PathBuf>,
    /// With --dir: the name of the global cluster
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<ClusterName>,
    /// With --dir: a region (repeat it for each)
    #[arg(long, value_name = "NAME")]
    pub region: Vec<RegionName>,
    /// With --dir: the witness
    #[arg(long, value_name = "NAME", requires = "dir")]
    pub witness: Option<RegionName>,
    /// Make the regions' certificates anew, even where they are fit
    #[arg(long)]
    pub renew: bool,
    /// Validity of a new certificate
    #[arg(long, default_value_t = 365, value_name = "DAYS")]
    pub days: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Read every copy of a stopped or running region: what is intact, what is damaged, where copies differ. Changes nothing. Exit code 1: damage
    Verify {
        /// The file of the region, or of a process of copies: those that live there are read
        #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Does what was typed.
///
/// # Errors
/// [`Failure`], for `main` to print.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.verb {
        Verb::Demo(args) => runtime(true)?.block_on(demo::run(args)),
        Verb::Region(RegionArgs { what: Some(what), .. }) => runtime(false)?.block_on(membership::cli::region(what)),
        Verb::Region(args) => process::run_region(&args),
        Verb::Witness(WitnessArgs { what: Some(what), .. }) => runtime(false)?.block_on(membership::cli::witness(what)),
        Verb::Witness(args) => process::run_witness(&args),
        Verb::Invite(args) => runtime(false)?.block_on(membership::join::invite(args)),
        Verb::Join(args) => runtime(false)?.block_on(membership::join::join(args)),
        Verb::Detach(args) => runtime(false)?.block_on(membership::lineages::detach(args)),
        Verb::ForceNewLineage(args) => runtime(false)?.block_on(membership::lineages::force(args)),
        Verb::Retire(args) => runtime(false)?.block_on(membership::lineages::retire(args)),
        Verb::Certs(args) => make_certs(args),
        Verb::Key(args) => say(&super::keys::run(&args)?),
        Verb::Status(args) => runtime(false)?.block_on(show::show_status(&args)),
        Verb::Lag(args) => runtime(false)?.block_on(show::show_lag(&args)),
        Verb::Events(args) => runtime(false)?.block_on(show::show_events(&args)),
        Verb::Switchover(args) => runtime(false)?.block_on(orders::switchover(args)),
        Verb::Drill(args) => runtime(false)?.block_on(super::drill::drill(args)),
        Verb::Failover(args) => runtime(false)?.block_on(orders::failover(args)),
        Verb::Audit(args) => runtime(false)?.block_on(super::audit::run(args)),
        Verb::Op(args) => runtime(false)?.block_on(orders::op(args)),
        Verb::Set(args) => runtime(false)?.block_on(orders::set(args)),
        Verb::Netem { what } => drill::run_netem(what),
        Verb::Copy(CopyArgs { what: Some(what), .. }) => runtime(false)?.block_on(drill::run_copy(what)),
        Verb::Copy(args) => process::run_copies(&args),
        Verb::Salvage(args) => process::run_salvage(args),
        Verb::Volume { what: VolumeVerb::Verify { config, json } } => super::verify::run(&config, json, say),
        Verb::Bench(args) => runtime(true)?.block_on(super::bench::run(args)),
        Verb::Sim(args) => seeds::run_sim(&args),
        Verb::Powercut(args) => super::proof::powercut(&args),
        Verb::Flips(args) => super::proof::flips(&args),
        Verb::Version { json: true } => say(&json(&serde_json::json!({
            "name": "parhelion", "version": env!("CARGO_PKG_VERSION"), "admin_protocol": super::admin::ADMIN_VERSION,
        }))),
        Verb::Version { json: false } => say(concat!("parhelion ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

fn runtime(threads: bool) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = if threads { tokio::runtime::Builder::new_multi_thread() } else { tokio::runtime::Builder::new_current_thread() };
    builder.enable_all().build().map_err(super::failure::io_failure("start the async runtime"))
}

/// One line of JSON.
fn json(value: &impl serde::Serialize) -> String {
    format!("{}\n", serde_json::to_string(value).expect("BUG: plain data becomes JSON"))
}

/// To stdout. A reader that went away (`| head`) ends the command quietly.
pub(super) fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(super::failure::io_failure("write to stdout")),
    }
}

fn unexpected(answer: AdminAnswer) -> Failure {
    match answer {
        AdminAnswer::Refused(why) => Failure::new(REFUSED, why),
        _ => Failure::new(FAILED, "the region answered something else than was asked; is it the same version of parhelion?"),
    }
}

fn make_certs(args: CertsArgs) -> Result<(), Failure> {
    // What was typed goes before what the environment says.
    let (dir, cluster, regions, copies_of, witness) = match (args.config, args.dir, args.cluster) {
        (_, Some(dir), Some(cluster)) => (dir, cluster, args.region, Vec::new(), args.witness),
        (Some(file), ..) => {
            let config = Config::load(&file)?;
            for warning in config.warnings() {
                eprintln!("note: {warning}");
            }
            let regions = config.regions();
            let copies_of = if config.copies.is_empty() { Vec::new() } else { vec![config.region] };
            (config.tls_dir, config.cluster, regions, copies_of, config.witness.map(|w| w.name))
        }
        _ => return Err(Failure::new(USAGE, "name --config FILE, or --dir DIR --cluster NAME --region NAME")),
    };
    let options = CertOptions { days: args.days, renew: args.renew, now: clock::unix_now(), copies_of, witness };
    let report = certs::create(&dir, &cluster, &regions, &options)?;
    say(&if args.json { json(&report) } else { report.to_string() })
}

#[cfg(test)]
mod tests;
