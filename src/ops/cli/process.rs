//! Verbs that run until they are told to end: a region, a witness, a process of copies, a lost tail that is served.
//!
//! Decides how a process is told to end, and where its log goes.

use super::{runtime, say};
use crate::ops::config::{Config, LogFormat, LogSettings};
use crate::ops::copy::{self, config::CopyConfig};
use crate::ops::failure::{FAILED, Failure, UNREACHABLE, USAGE};
use crate::ops::membership::cli::{RegionArgs, WitnessArgs};
use crate::ops::orders;
use crate::ops::region::{self, RunOptions};
use crate::ops::salvage::{self, Named};
use crate::ops::witness::{self, config::WitnessConfig};
use clap::Args;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::sync::watch;

#[derive(Debug, Args)]
pub struct SalvageArgs {
    /// The archive, or the id of the failover that lost it; without it all that the region keeps are listed
    #[arg(value_name = "ID", value_parser = salvage::parse_name)]
    pub id: Option<Named>,
    /// The region's file
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
    pub config: PathBuf,
    /// Serve it as a read-only database to psql, on a loopback address; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", requires = "id", conflicts_with_all = ["diff", "json"])]
    pub listen: Option<SocketAddr>,
    /// The rows of this table in which it differs from the history that goes on
    #[arg(long, value_name = "TABLE", requires = "id")]
    pub diff: Option<String>,
    /// Keep it no longer: it is gone for good, on all copies of the region, which must run
    #[arg(long, requires_all = ["id", "confirm"], conflicts_with_all = ["listen", "diff"])]
    pub drop: bool,
    /// With --drop: its name again
    #[arg(long, value_name = "ID", value_parser = salvage::parse_name, requires = "drop")]
    pub confirm: Option<Named>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run_region(args: &RegionArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_ref().expect("BUG: it is required where there is no verb"))?;
    start_logging(&config.log)?;
    until_signalled(args.exit_with_parent, async |options, shutdown| region::run(config, options, shutdown).await)
}

pub(super) fn run_witness(args: &WitnessArgs) -> Result<(), Failure> {
    let config = WitnessConfig::load(args.config.as_ref().expect("BUG: it is required where there is no verb"))?;
    start_logging(&config.log)?;
    until_signalled(args.exit_with_parent, async |options, shutdown| witness::run(config, options, shutdown).await)
}

pub(super) fn run_copies(args: &super::CopyArgs) -> Result<(), Failure> {
    let file = args.config.as_ref().expect("BUG: it is required where there is no verb");
    let config = CopyConfig::load(file)?;
    start_logging(&config.log)?;
    until_signalled(args.exit_with_parent, async |options, shutdown| copy::run(config, options, shutdown).await)
}

pub(super) fn run_salvage(args: SalvageArgs) -> Result<(), Failure> {
    let config = Config::load(&args.config)?;
    if args.drop && args.id != args.confirm {
        return Err(Failure::new(USAGE, "--confirm names something else than what is to be dropped: nothing was done"));
    }
    let id = match args.id {
        Some(Named::Archive(id)) => Some(id),
        Some(Named::Failover(id)) => {
            let asked = runtime(false)?.block_on(orders::failover_known(&id, Some(args.config.as_path())));
            let record = asked.map_err(|failure| match failure.code {
                // The archive itself needs nobody who runs.
                UNREACHABLE => failure.hint(format!(
                    "start a region, which knows the failover's record; or name the archive: parhelion salvage --config {} lists them",
                    args.config.display()
                )),
                _ => failure,
            })?;
            Some(salvage::archive_of(&config, &record)?)
        }
        None => None,
    };
    if let (Some(id), true) = (id, args.drop) {
        return runtime(false)?.block_on(salvage::drop_archive(&args.config, id, args.json, say));
    }
    if let (Some(id), Some(listen)) = (id, args.listen) {
        return runtime(true)?.block_on(async {
            let (tx, shutdown) = watch::channel(false);
            tokio::spawn(end_on_signals(tx));
            salvage::serve(config, id, listen, shutdown, say).await
        });
    }
    let what = args.diff.map_or(salvage::What::Summary, |table| salvage::What::Diff { table });
    salvage::run(&config, id, &what, args.json, say)
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
pub(in crate::ops) struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    pub(in crate::ops) fn new() -> std::io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    pub(in crate::ops) async fn next(&mut self) {
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
