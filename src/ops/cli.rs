//! The command line: what one can type, and which part of the program does it.
//!
//! Decides: names, defaults and help of verbs and flags; how answers are printed; how a process is told to end. Never knows
//! how anything works. With `--json` stdout carries JSON and nothing else; errors go to stderr in both cases.

use super::admin::{AdminAnswer, AdminRequest};
use super::certs::{self, CertOptions};
use super::client::{Client, DEMO_DIR};
use super::config::{Config, LogFormat, LogSettings};
use super::copy::{self, config::CopyConfig};
use super::demo::{self, DemoArgs};
use super::events::{self, Follower};
use super::failure::{EXIT_CODES, FAILED, Failure, REFUSED, USAGE};
use super::lag::{self, LagView};
use super::membership::{self, cli::RegionArgs};
use super::netem::{self, CONTROL_SOCKET};
use super::orders::{self, FailoverArgs, OpArgs, SetArgs, SwitchoverArgs};
use super::region::{self, RunOptions};
use super::salvage;
use super::status::{self, ClusterStatus};
use super::text;
use super::witness::{self, config::WitnessConfig};
use crate::base::{ClusterName, CopyId, RegionName, TimelineId};
use crate::io::clock;
use crate::io::copies::slow::DELAY_MAX;
use crate::sim::roles::{self, RolesOptions};
use crate::sim::{self, RecoveryOptions, SimOptions};
use clap::{Args, Parser, Subcommand};
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

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
    /// Run a witness: a member that votes between two regions and holds no data
    Witness(WitnessArgs),
    /// Invite a new region: print a token that is good once, for parhelion join
    Invite(membership::join::InviteArgs),
    /// On a new machine: make a region's key, get its certificate and write its file, by an invitation
    Join(membership::join::JoinArgs),
    /// Make a secondary a stand-alone primary of its own lineage, on purpose
    Detach(membership::lineages::DetachArgs),
    /// UNSAFE: go on without a majority, in a new lineage, when most voters are lost for good
    ForceNewLineage(membership::lineages::ForceArgs),
    /// Of two lineages that have met, give up the one of this region: it keeps what it has and comes back as a secondary
    Retire(membership::lineages::RetireArgs),
    /// Make the CA, the regions' certificates and the SQL password, where they are missing
    Certs(CertsArgs),
    /// Show the global cluster: roles, states, positions, lags, copies
    Status(StatusArgs),
    /// Show how far each region is behind, and how that was measured
    Lag(WatchArgs),
    /// Show what happened in all regions
    Events(EventsArgs),
    /// Move the primary to another region, as planned: nothing is lost
    Switchover(SwitchoverArgs),
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
pub struct WitnessArgs {
    /// The witness's file, as in regions/witness.toml
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
    pub config: PathBuf,
    /// End when stdin ends: the process that started this one is gone
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
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

#[derive(Debug, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    pub ask: AskArgs,
    /// Show it again and again, until Ctrl-C (with --json: one line each time)
    #[arg(long)]
    pub watch: bool,
    /// With --watch: how often
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub every: Duration,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Exit with 4 unless the primary takes writes and every other region follows it with a known lag
    #[arg(long, conflicts_with = "watch")]
    pub check: bool,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    pub ask: AskArgs,
    /// Go on as they happen, until Ctrl-C
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, Args)]
pub struct NetemArgs {
    /// The demo's directory [default: ./parhelion-demo]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Or the file of any of its regions
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum NetemVerb {
    /// Change one direction: parhelion netem set us-east eu-west delay=38ms loss=0.5%
    Set {
        /// A region, or * for all
        from: String,
        /// A region, or * for all
        to: String,
        #[arg(required = true, value_name = "KEY=VALUE", help = netem::settings::KEYS)]
        settings: Vec<String>,
        /// The way back, too
        #[arg(long)]
        both: bool,
        #[command(flatten)]
        at: NetemArgs,
    },
    /// Show every direction, with what it did to packets
    Show(NetemArgs),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct CopyArgs {
    #[command(subcommand)]
    pub what: Option<CopyVerb>,
    /// The file of a process of copies, as in regions/zones/zone-a.toml
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Option<PathBuf>,
    /// End when stdin ends: the process that started this one is gone
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

#[derive(Debug, Subcommand)]
pub enum CopyVerb {
    /// Take a copy out of duty, as if its disk had gone
    Stop {
        /// a1 a2 b1 b2 c1 or c2
        copy: CopyId,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Bring it back: it catches up from its peers
    Start {
        /// a1 a2 b1 b2 c1 or c2
        copy: CopyId,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Make a copy slow without being dead: its answers come so much later, until --delay 0
    Slow {
        /// a1 a2 b1 b2 c1 or c2
        copy: CopyId,
        /// How much later: 50ms, 2s; 0 ends it
        #[arg(long, value_name = "TIME", value_parser = delay)]
        delay: Duration,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Replace a copy by a new one in another directory, while writes go on; --cancel goes back as long as it is not done
    Replace {
        /// a1 a2 b1 b2 c1 or c2
        copy: CopyId,
        /// The directory for the new copy, on the region's machine
        #[arg(long, value_name = "DIR", required_unless_present = "cancel", conflicts_with = "cancel")]
        with: Option<PathBuf>,
        /// Go back to the copy that is being replaced
        #[arg(long)]
        cancel: bool,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Show the six copies of the region
    List(AskArgs),
}

#[derive(Debug, Args)]
pub struct SalvageArgs {
    /// The archive; without it all that the region keeps are listed
    #[arg(value_name = "ARCHIVE", value_parser = salvage::parse_name)]
    pub id: Option<TimelineId>,
    /// The region's file
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
    pub config: PathBuf,
    /// Serve it as a read-only database to psql, on a loopback address; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", requires = "id", conflicts_with_all = ["diff", "json"])]
    pub listen: Option<SocketAddr>,
    /// The rows of this table in which it differs from the history that goes on
    #[arg(long, value_name = "TABLE", requires = "id")]
    pub diff: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Read every copy of a stopped or running region: what is intact, what is damaged, where copies differ. Changes nothing. Exit code 1: damage
    Verify {
        /// The region's file
        #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

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

/// Does what was typed.
///
/// # Errors
/// [`Failure`], for `main` to print.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.verb {
        Verb::Demo(args) => runtime(true)?.block_on(demo::run(args)),
        Verb::Region(RegionArgs { what: Some(what), .. }) => runtime(false)?.block_on(membership::cli::region(what)),
        Verb::Region(args) => run_region(&args),
        Verb::Witness(args) => run_witness(&args),
        Verb::Invite(args) => runtime(false)?.block_on(membership::join::invite(args)),
        Verb::Join(args) => runtime(false)?.block_on(membership::join::join(args)),
        Verb::Detach(args) => runtime(false)?.block_on(membership::lineages::detach(args)),
        Verb::ForceNewLineage(args) => runtime(false)?.block_on(membership::lineages::force(args)),
        Verb::Retire(args) => runtime(false)?.block_on(membership::lineages::retire(args)),
        Verb::Certs(args) => make_certs(args),
        Verb::Status(args) => runtime(false)?.block_on(show_status(&args)),
        Verb::Lag(args) => {
            runtime(false)?.block_on(watch(&args, |status| if args.ask.json { json(&LagView::of(status)) } else { lag::render(status) }))
        }
        Verb::Events(args) => runtime(false)?.block_on(show_events(&args)),
        Verb::Switchover(args) => runtime(false)?.block_on(orders::switchover(args)),
        Verb::Failover(args) => runtime(false)?.block_on(orders::failover(args)),
        Verb::Audit(args) => runtime(false)?.block_on(super::audit::run(args)),
        Verb::Op(args) => runtime(false)?.block_on(orders::op(args)),
        Verb::Set(args) => runtime(false)?.block_on(orders::set(args)),
        Verb::Netem { what } => run_netem(what),
        Verb::Copy(CopyArgs { what: Some(what), .. }) => runtime(false)?.block_on(run_copy(what)),
        Verb::Copy(args) => run_copies(&args),
        Verb::Salvage(args) => run_salvage(args),
        Verb::Volume { what: VolumeVerb::Verify { config, json } } => super::verify::run(&Config::load(&config)?, json, say),
        Verb::Bench(args) => runtime(true)?.block_on(super::bench::run(args)),
        Verb::Sim(args) => run_sim(&args),
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

/// A seed as it is typed.
pub(super) fn seed_of(typed: &str) -> Result<u64, Failure> {
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
fn run_sim(args: &SimArgs) -> Result<(), Failure> {
    match args.what {
        Some(SimVerb::Recovery { crashes, every, sets, threads }) => {
            let options = RecoveryOptions { crashes: crashes.into(), every, sets_each: sets, threads, mutant: None, layout: None };
            let summary = sim::enumerate_recoveries(&options, &|line| println!("{line}"));
            say(&format!("{summary}\n"))?;
            return summary.failure.map_or(Ok(()), |_| Err(Failure::new(FAILED, "a recovery did not end as it must")));
        }
        Some(SimVerb::Roles { seeds, ref seed, regions, mutants, threads, trace }) => {
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
            let failed = summary.failures.len();
            return if failed == 0 { Ok(()) } else { Err(Failure::new(FAILED, format!("{failed} of {seeds} seeds failed"))) };
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
    let wrong = reports.iter().filter(|r| r.violation.is_some() != args.mutants).count();
    match (wrong, args.mutants) {
        (0, _) => Ok(()),
        (n, true) => Err(Failure::new(FAILED, format!("the model does not notice {n} of {} mutants within these bounds", reports.len()))),
        (n, false) => Err(Failure::new(FAILED, format!("a rule does not hold within {n} of {} bounds", reports.len()))),
    }
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

fn run_region(args: &RegionArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_ref().expect("BUG: it is required where there is no verb"))?;
    start_logging(&config.log)?;
    until_signalled(args.exit_with_parent, async |options, shutdown| region::run(config, options, shutdown).await)
}

fn run_witness(args: &WitnessArgs) -> Result<(), Failure> {
    let config = WitnessConfig::load(&args.config)?;
    start_logging(&config.log)?;
    until_signalled(args.exit_with_parent, async |options, shutdown| witness::run(config, options, shutdown).await)
}

fn run_salvage(args: SalvageArgs) -> Result<(), Failure> {
    let config = Config::load(&args.config)?;
    if let (Some(id), Some(listen)) = (args.id, args.listen) {
        return runtime(true)?.block_on(async {
            let (tx, shutdown) = watch::channel(false);
            tokio::spawn(end_on_signals(tx));
            salvage::serve(config, id, listen, shutdown, say).await
        });
    }
    let what = args.diff.map_or(salvage::What::Summary, |table| salvage::What::Diff { table });
    salvage::run(&config, args.id, &what, args.json, say)
}

fn run_copies(args: &CopyArgs) -> Result<(), Failure> {
    let file = args.config.as_ref().expect("BUG: it is required where there is no verb");
    let config = CopyConfig::load(file)?;
    start_logging(&config.log)?;
    until_signalled(args.exit_with_parent, async |options, shutdown| copy::run(config, options, shutdown).await)
}

fn until_signalled(
    exit_with_stdin: bool,
    run: impl AsyncFnOnce(RunOptions, watch::Receiver<bool>) -> anyhow::Result<()>,
) -> Result<(), Failure> {
    runtime(true)?.block_on(async {
        let (tx, shutdown) = watch::channel(false);
        tokio::spawn(end_on_signals(tx));
        Ok(run(RunOptions { exit_with_stdin }, shutdown).await?)
    })
}

/// True once SIGINT, SIGTERM or SIGHUP came; a second one ends the process on the spot.
async fn end_on_signals(shutdown: watch::Sender<bool>) {
    let Ok(mut signals) = Signals::new() else { return tracing::error!("signals cannot be received; end this process with SIGKILL") };
    signals.next().await;
    tracing::info!("asked to end");
    shutdown.send_replace(true);
    signals.next().await;
    tracing::warn!("asked again: ending at once");
    std::process::exit(i32::from(FAILED));
}

/// SIGINT, SIGTERM and SIGHUP as one.
pub(super) struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    pub(super) fn new() -> std::io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    pub(super) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} _ = hangup.recv() => {} }
    }
}

fn start_logging(settings: &LogSettings) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.level).map_err(|e| {
        Failure::new(FAILED, format!("log.level = \"{}\" is no filter: {e}", settings.level))
            .hint("write one of error, warn, info, debug, trace; or per module: info,quinn=warn")
    })?;
    let ansi = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).with_target(false);
    match settings.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
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

async fn cluster(client: &Client) -> Result<ClusterStatus, Failure> {
    match client.ask_any(&AdminRequest::Cluster).await? {
        AdminAnswer::Cluster(status) => Ok(*status),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: AdminAnswer) -> Failure {
    match answer {
        AdminAnswer::Refused(why) => Failure::new(REFUSED, why),
        _ => Failure::new(FAILED, "the region answered something else than was asked; is it the same version of parhelion?"),
    }
}

async fn show_status(args: &StatusArgs) -> Result<(), Failure> {
    if let Some(config) = args.watch.ask.config.as_deref().and_then(witness::ask::witness_file) {
        return match witness::ask::ask(&config, &AdminRequest::Voter).await? {
            AdminAnswer::Voter(report) if args.watch.ask.json => say(&json(&*report)),
            AdminAnswer::Voter(report) => say(&witness::ask::render(&report)),
            other => Err(unexpected(other)),
        };
    }
    let show = |status: &ClusterStatus| if args.watch.ask.json { json(status) } else { status::render(status) };
    if !args.check {
        return watch(&args.watch, show).await;
    }
    let status = cluster(&Client::open(args.watch.ask.config.as_deref())?).await?;
    say(&show(&status))?;
    if status.healthy() {
        return Ok(());
    }
    let first = status.notes.first().cloned().unwrap_or_else(|| "a region is not as it should be".to_owned());
    Err(Failure::new(REFUSED, format!("not healthy: {first}")).hint("parhelion events shows how it came to this"))
}

/// Once, or until Ctrl-C. While watching, a cluster that does not answer is an observation and not the end.
async fn watch(args: &WatchArgs, show: impl Fn(&ClusterStatus) -> String) -> Result<(), Failure> {
    let client = Client::open(args.ask.config.as_deref())?;
    if !args.watch {
        return say(&show(&cluster(&client).await?));
    }
    // Home and clear to the end, so that the picture stands still.
    let clear = if std::io::stdout().is_terminal() && !args.ask.json { "\x1b[2J\x1b[H" } else { "" };
    let blank = if args.ask.json || !clear.is_empty() { "" } else { "\n" };
    loop {
        match cluster(&client).await {
            Ok(status) => say(&format!("{clear}{}{blank}", show(&status)))?,
            Err(failure) => {
                if !clear.is_empty() {
                    say(clear)?;
                }
                failure.print();
            }
        }
        tokio::time::sleep(args.every.max(Duration::from_millis(100))).await;
    }
}

async fn show_events(args: &EventsArgs) -> Result<(), Failure> {
    let client = Client::open(args.ask.config.as_deref())?;
    let mut follower = Follower::default();
    let mut told_silent = Vec::new();
    loop {
        let answer = client.ask_any(&AdminRequest::ClusterEvents { after: follower.cursors() }).await;
        let answered = match answer {
            Ok(AdminAnswer::ClusterEvents { events, silent }) => Ok((events, silent)),
            Ok(other) => Err(unexpected(other)),
            Err(failure) => Err(failure),
        };
        match answered {
            Ok((events, silent)) => {
                follower.note(&events);
                let text: String = events.iter().map(|e| if args.ask.json { json(e) } else { format!("{}\n", events::line(e)) }).collect();
                say(&text)?;
                let names: Vec<RegionName> = silent.iter().map(|(region, _)| region.clone()).collect();
                if names != told_silent {
                    for (region, why) in &silent {
                        eprintln!("note: the events of {region} are missing: {why}");
                    }
                    told_silent = names;
                }
            }
            Err(failure) if args.follow => failure.print(),
            Err(failure) => return Err(failure),
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn netem_socket(at: &NetemArgs) -> Result<PathBuf, Failure> {
    match (&at.dir, &at.config) {
        (Some(dir), _) => Ok(dir.join(CONTROL_SOCKET)),
        (None, Some(file)) => Config::load(file)?.netem_control.ok_or_else(|| {
            Failure::new(USAGE, format!("{} has no [netem]: its links are real ones", file.display()))
                .hint("netem works on a demo: name its directory with --dir")
        }),
        (None, None) => Ok(Path::new(DEMO_DIR).join(CONTROL_SOCKET)),
    }
}

fn run_netem(verb: NetemVerb) -> Result<(), Failure> {
    let (at, requests) = match verb {
        NetemVerb::Show(at) => (at, vec![netem::Request::Show {}]),
        NetemVerb::Set { from, to, settings, both, at } => {
            let there = netem::Request::Set { from: from.clone(), to: to.clone(), settings: settings.clone() };
            let back = both.then_some(netem::Request::Set { from: to, to: from, settings });
            (at, std::iter::once(there).chain(back).collect())
        }
    };
    let socket = netem_socket(&at)?;
    let mut directions = Vec::new();
    for request in &requests {
        directions.extend(netem::control(&socket, request)?.directions);
    }
    if at.json {
        return say(&json(&serde_json::json!({ "directions": directions })));
    }
    let rows = directions
        .iter()
        .map(|d| {
            let dropped = d.counts.dropped_loss + d.counts.dropped_queue + d.counts.dropped_blackhole + d.counts.dropped_host;
            let (packets, bytes) = (d.counts.packets.to_string(), text::bytes(d.counts.bytes));
            vec![d.from.to_string(), d.to.to_string(), packets, bytes, dropped.to_string(), d.settings.to_string()]
        })
        .collect();
    say(&text::table(&["FROM", "TO", "PACKETS", "BYTES", "DROPPED", "SETTINGS"], &[2, 3, 4], rows))
}

fn delay(text: &str) -> Result<Duration, String> {
    let delay = if text == "0" { Duration::ZERO } else { humantime::parse_duration(text).map_err(|e| e.to_string())? };
    if delay > DELAY_MAX {
        Err(format!("at most {}; `parhelion copy stop` takes a copy out", humantime::Duration::from(DELAY_MAX)))
    } else {
        Ok(delay)
    }
}

async fn run_copy(verb: CopyVerb) -> Result<(), Failure> {
    let (ask, request) = match verb {
        CopyVerb::List(ask) => (ask, AdminRequest::Report),
        CopyVerb::Stop { copy, ask } => (ask, AdminRequest::StopCopy { copy }),
        CopyVerb::Start { copy, ask } => (ask, AdminRequest::StartCopy { copy }),
        CopyVerb::Replace { copy, with, ask, .. } => {
            let place = match with {
                Some(dir) => {
                    let whole = std::path::absolute(&dir).map_err(super::failure::io_failure("find the directory"))?;
                    let text = whole.into_os_string().into_string();
                    Some(text.map_err(|_| Failure::new(USAGE, "the name of the directory is not UTF-8; give another one"))?)
                }
                None => None,
            };
            (ask, AdminRequest::ReplaceCopy { copy, place })
        }
        CopyVerb::Slow { copy, delay, ask } => {
            let delay_us = u64::try_from(delay.as_micros()).expect("BUG: the parser bounds a delay");
            (ask, AdminRequest::SlowCopy { copy, delay_us })
        }
    };
    let client = Client::open(ask.config.as_deref())?;
    match client.ask(&request).await? {
        AdminAnswer::Report(report) if ask.json => say(&json(&report.copies)),
        AdminAnswer::Report(report) => {
            let rows = report.copies.iter().map(|c| {
                let repair = c.repair.as_ref().map(super::copy_lines::repair);
                let reason = c.reason.clone().or(repair).or_else(|| c.damage.clone()).unwrap_or_default();
                vec![c.name.clone(), c.az.clone(), c.state.clone(), c.durable_lsn.to_string(), reason]
            });
            say(&text::table(&["COPY", "AZ", "STATE", "DURABLE", "REASON"], &[3], rows.collect()))
        }
        AdminAnswer::Done(what) if ask.json => say(&json(&serde_json::json!({ "ok": true, "what": what }))),
        AdminAnswer::Done(what) => say(&format!("{what}\n")),
        other => Err(unexpected(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("parhelion").chain(line.split(' ')))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains("3 no region could be reached"), "{help}");
    }

    #[test]
    fn what_the_issue_names_can_be_typed() {
        for line in [
            "demo --regions 3 --profile world --dir d --base-port 7400 --ready-file f --load 200 --for 30s --json",
            "demo",
            "region --config regions/us-east.toml",
            "region add ap-south --quic 10.0.0.9:7400 --json --config f",
            "region remove ap-south --dry-run --timeout 10s",
            "detach eu-west --confirm eu-west --config f --json",
            "force-new-lineage --survivors a,b --i-confirm-old-primary-is-stopped=us-east --config f",
            "retire --lineage 00ff00ff --confirm us-east --config f",
            "invite --region ap-south --ttl 1h --listen 127.0.0.1:0 --address there:7404 --json --config f",
            "join --token-file - --config regions/ap-south.toml --listen 127.0.0.1:7700 --address there:7700 --json",
            "witness --config regions/witness.toml",
            "certs --config regions/us-east.toml --renew",
            "certs --dir certs --cluster demo --region us-east --region eu-west",
            "status --watch --json",
            "status --check --config f",
            "lag --json",
            "events --follow",
            "switchover --to eu-west --dry-run --timeout 30s --json",
            "failover --to eu-west --allow-data-loss --max-loss 2s --json",
            "failover --to eu-west --allow-data-loss --primary-is-down us-east --config f",
            "failover report 3f --json",
            "op 3f --json",
            "op",
            "set max_rpo=2s sync=1",
            "netem set us-east eu-west delay=38ms loss=0.5% --dir d",
            "netem set * eu-west blackhole=on --both",
            "netem show --config f",
            "copy stop a1 --config f",
            "copy start c2",
            "copy --config regions/zones/zone-a.toml",
            "copy replace a1 --with /mnt/new",
            "copy replace a1 --cancel",
            "copy slow a1 --delay 50ms",
            "copy slow a1 --delay 0 --config f",
            "volume verify --config f --json",
            "salvage --config f --json",
            "salvage 80000000000000ff --config f --listen 127.0.0.1:0",
            "salvage 80000000000000ff --config f --diff accounts --json",
            "sim --seeds 1 --seed 7",
            "version --json",
        ] {
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (line, reason) in [
            ("demo --for 30", "time unit needed"),
            ("demo --for soon", "invalid"),
            ("demo --regions 1", "2..=6"),
            ("demo --regions 7", "2..=6"),
            ("demo --base-port 70000", "70000"),
            ("copy stop d1", "the six are a1 a2 b1 b2 c1 c2"),
            ("copy slow a1", "--delay"),
            ("copy", "--config"),
            ("copy slow a1 --delay 2h", "at most 1m"),
            ("salvage --config f --diff t", "ARCHIVE"),
            ("salvage 12 --config f", "names no archive"),
            ("copy replace a1", "--with"),
            ("copy replace a1 --with /x --cancel", "cannot be used with"),
            ("certs", "--config"),
            ("certs --dir d --cluster demo", "--region"),
            ("netem set a b", "KEY=VALUE"),
            ("status --watch --check", "cannot be used with"),
            ("switchover", "--to"),
            ("failover", "--to"),
            ("failover --to eu-west --max-loss 2s", "--allow-data-loss"),
            ("switchover --to EU", "cannot be a name"),
            ("set", "KEY=VALUE"),
            ("region", "--config"),
            ("invite", "--region"),
            ("detach eu-west", "--confirm"),
            ("force-new-lineage --survivors a", "--i-confirm-old-primary-is-stopped"),
            ("retire --lineage 00ff00ff", "--confirm"),
            ("join --token secret --config f", "--token"),
            ("region add ap-south", "--quic"),
            ("lag --watch --every 1", "time unit needed"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
