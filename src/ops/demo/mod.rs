//! `parhelion demo`: a whole global cluster on one machine, one process per region, with a WAN between them.
//!
//! Decides: the order of starting and stopping, and when the cluster counts as ready. Never touches a region's data and never
//! restarts a process that died: it says so, and how to restart it. Hosts the link emulator, so the regions are cut off from
//! one another when the demo ends; they end with it. [`plan`] knows where things lie, [`child`] the processes, [`poll`] what
//! they say of themselves, [`load`] the built-in writers, [`screen`] what is shown.

mod child;
mod load;
mod plan;
mod poll;
mod screen;

use self::child::{Child, Exit};
use self::load::{Load, Percentiles, histogram};
use self::plan::{Plan, Ready, write_whole};
use self::poll::Poller;
use self::screen::{RegionSummary, Screen, Summary};
use super::certs::{self, CertOptions};
use super::cli::Signals;
use super::client::DEMO_DIR;
use super::config::Config;
use super::failure::{FAILED, Failure, io_failure};
use super::netem::{Emulator, Options};
use super::status::ClusterStatus;
use crate::base::{Instant, RegionName};
use crate::io::clock;
use crate::node::report::{RegionState, Role};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// Ports of processes that just ended may take so long to be free.
const PORTS_TIMEOUT: Duration = Duration::from_secs(3);
/// A region with a long history, or a slow disk, may need a while; a region that fails ends its process, which is seen at once.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const STARTING_PACE: Duration = Duration::from_millis(20);
const RUNNING_PACE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Regions, the primary among them [default: 3, or as --dir has it]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..=6))]
    pub regions: Option<usize>,
    /// The network between them: world, europe, us, lan, none, lossy, or a TOML file [default: world, or as --dir has it]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Where everything is kept; the same directory continues with the data
    #[arg(long, value_name = "DIR", default_value = DEMO_DIR)]
    pub dir: PathBuf,
    /// Region i uses this port + 100 i (QUIC), and the ones above (writer, reader, HTTP)
    #[arg(long, value_name = "PORT", default_value_t = 7400)]
    pub base_port: u16,
    /// Write a JSON file there once every region serves; removed at the end
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Encrypt what the regions write, each with a key of its own in --dir; from the first start of a directory on, then by itself
    #[arg(long)]
    pub encrypt: bool,
    /// Commit so many small transactions a second through the primary
    #[arg(long, value_name = "TPS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub load: Option<u32>,
    /// End after this time, with a summary
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub lasts: Option<Duration>,
    /// Print JSON, one object per line
    #[arg(long)]
    pub json: bool,
}

/// Runs until Ctrl-C, SIGTERM, or the end of `--for`.
///
/// # Errors
/// When it cannot start: then everything that was started is ended, and the log of what failed is in the message.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let began = clock::now();
    let mut signals = Signals::new().map_err(io_failure("receive signals"))?;
    let plan = Plan::open(&args.dir, args.regions, args.profile.as_deref(), args.base_port)?;
    if let Some(file) = &args.ready_file {
        remove(file)?;
    }
    certs::create(&plan.certs_dir(), &plan.cluster, &plan.names(), &CertOptions::new(clock::unix_now()))?;
    if args.encrypt {
        plan.make_keys()?;
    }
    free_ports(&plan).await?;
    let emulator = start_emulator(&plan)?;
    plan.write_configs(|from, to| emulator.relay_addr(from, to).expect("BUG: the emulator has a link for every pair"))?;
    let password = Config::load(&plan.regions[0].config)?.password()?;

    let mut demo = Demo::start(plan, &args)?;
    let outcome = tokio::select! {
        outcome = demo.run(&args, &password, began) => outcome,
        () = signals.next() => Ok(()),
    };
    // Asked a second time: no more patience with processes that take theirs.
    let (hurry_tx, hurry) = watch::channel(false);
    let impatient = tokio::spawn(async move {
        signals.next().await;
        hurry_tx.send_replace(true);
        std::future::pending::<()>().await;
    });
    let mut failure = outcome.err();
    if let Some(failure) = &mut failure {
        demo.add_logs(failure);
    }
    demo.stop(hurry, failure.is_none()).await;
    impatient.abort();
    if let Some(file) = &args.ready_file {
        remove(file)?;
    }
    failure.map_or(Ok(()), Err)
}

fn remove(file: &std::path::Path) -> Result<(), Failure> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_failure(format!("remove {}", file.display()))(e)),
        _ => Ok(()),
    }
}

/// The processes of a demo that was killed end by themselves, but not in the same instant.
async fn free_ports(plan: &Plan) -> Result<(), Failure> {
    let began = clock::now();
    loop {
        match plan.check_ports() {
            Err(_) if clock::now().since(began) < PORTS_TIMEOUT => tokio::time::sleep(Duration::from_millis(50)).await,
            other => return other,
        }
    }
}

fn start_emulator(plan: &Plan) -> Result<Emulator, Failure> {
    let regions = plan.names();
    let pairs = regions.iter().flat_map(|a| regions.iter().map(move |b| (a.clone(), b.clone()))).filter(|(a, b)| a != b);
    let emulator = Emulator::start(Options {
        targets: plan.regions.iter().map(|r| (r.name.clone(), r.quic)).collect(),
        settings: pairs.map(|pair| (pair.clone(), plan.profile.settings(&pair.0, &pair.1))).collect(),
        ports: plan.link_ports(),
        seed: clock::unix_now().0,
        regions,
    })?;
    emulator.serve_control(&plan.netem_socket())?;
    Ok(emulator)
}

/// A started demo.
struct Demo {
    plan: Plan,
    screen: Screen,
    poller: Poller,
    children: Vec<Child>,
    exits: mpsc::UnboundedReceiver<Exit>,
    exited: u64,
    /// Regions whose process of ours has ended, and whether they were seen to be silent since.
    dead: BTreeMap<RegionName, bool>,
    load: Option<Load>,
    writer: watch::Sender<SocketAddr>,
    lags: BTreeMap<RegionName, Lags>,
    ready_at: Option<Instant>,
}

struct Lags {
    visibility_us: Histogram<u64>,
    durability_us: Histogram<u64>,
    unknown: u64,
}

impl Demo {
    fn start(plan: Plan, args: &DemoArgs) -> Result<Demo, Failure> {
        let (tx, exits) = mpsc::unbounded_channel();
        // What was started before one that cannot be is ended by being dropped: its stdin ends.
        let children = plan.regions.iter().map(|site| child::start(site, tx.clone())).collect::<Result<Vec<_>, _>>()?;
        let poller = Poller::start(&plan, STARTING_PACE);
        let writer = watch::Sender::new(plan.regions[0].writer);
        let lags = |name: RegionName| (name, Lags { visibility_us: histogram(), durability_us: histogram(), unknown: 0 });
        let lags = plan.names().into_iter().map(lags).collect();
        let screen = Screen::new(args.json);
        Ok(Demo { plan, screen, poller, children, exits, exited: 0, dead: BTreeMap::new(), load: None, writer, lags, ready_at: None })
    }

    async fn run(&mut self, args: &DemoArgs, password: &str, began: Instant) -> Result<(), Failure> {
        let status = self.until_ready().await?;
        let ready = self.ready(&status, password);
        if let Some(file) = &args.ready_file {
            // It holds the password.
            write_whole(file, &format!("{}\n", serde_json::to_string_pretty(&ready).expect("BUG: plain data becomes JSON")), 0o600)?;
        }
        self.screen.ready(&self.plan, &ready, clock::now().since(began));
        self.poller.pace(RUNNING_PACE);
        self.follow_primary(&status);
        self.load = args.load.map(|tps| Load::start(tps, &ready, &self.writer.subscribe()));
        let from = clock::now();
        self.ready_at = Some(from);
        self.watch(args, from).await;
        Ok(())
    }

    /// Until the primary takes writes, every other region follows it, and all SQL ports accept.
    async fn until_ready(&mut self) -> Result<ClusterStatus, Failure> {
        let began = clock::now();
        loop {
            tokio::select! {
                Some(exit) = self.exits.recv() => {
                    self.dead.insert(exit.region.clone(), false);
                    return Err(Failure::new(FAILED, format!("the region {} could not start: its process {}", exit.region, exit.how())));
                }
                () = tokio::time::sleep(STARTING_PACE) => {}
            }
            let status = self.poller.status(clock::unix_now());
            if serves(&status) && self.accepts().await {
                return Ok(status);
            }
            if clock::now().since(began) > READY_TIMEOUT {
                self.dead.extend(status.regions.iter().filter(|r| !row_serves(r)).map(|r| (r.name.clone(), false)));
                let waits: Vec<String> = status
                    .regions
                    .iter()
                    .filter(|r| !row_serves(r))
                    .map(|r| format!("{} is {}", r.name, r.reason.clone().unwrap_or_else(|| super::text::word(&r.state))))
                    .collect();
                let secs = READY_TIMEOUT.as_secs();
                return Err(Failure::new(FAILED, format!("the cluster is not ready after {secs} s: {}", waits.join("; "))));
            }
        }
    }

    async fn accepts(&self) -> bool {
        for site in &self.plan.regions {
            for addr in [site.writer, site.reader] {
                if TcpStream::connect(addr).await.is_err() {
                    return false;
                }
            }
        }
        true
    }

    fn ready(&self, status: &ClusterStatus, password: &str) -> Ready {
        let role = |name: &RegionName| status.regions.iter().find(|r| r.name == *name).map_or(Role::Unknown, |r| r.role);
        let pid = |name: &RegionName| self.children.iter().find(|c| c.region == *name).map_or(0, |c| c.pid);
        self.plan.ready(password, role, pid)
    }

    fn follow_primary(&self, status: &ClusterStatus) {
        // One that joined later is none of the demo's: any region's writer port leads there.
        let site = |name: &RegionName| self.plan.regions.iter().find(|r| r.name == *name);
        if let Some(site) = status.primary.as_ref().and_then(site) {
            let addr = site.writer;
            self.writer.send_if_modified(|now| std::mem::replace(now, addr) != addr);
        }
    }

    async fn watch(&mut self, args: &DemoArgs, from: Instant) {
        let mut shown: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(exit) = self.exits.recv() => self.note_exit(&exit),
                () = tokio::time::sleep(RUNNING_PACE) => {}
            }
            let status = self.poller.status(clock::unix_now());
            self.note_returns(&status);
            self.follow_primary(&status);
            self.sample(&status);
            let now = clock::now();
            if shown.is_none_or(|at| now.since(at) >= self.screen.every()) {
                let load = self.load.as_ref().and_then(|l| Some((args.load?, l.committed())));
                self.screen.status(&status, load);
                shown = Some(now);
            }
            if args.lasts.is_some_and(|lasts| now.since(from) >= lasts) {
                return;
            }
        }
    }

    fn note_exit(&mut self, exit: &Exit) {
        self.exited += 1;
        self.dead.insert(exit.region.clone(), false);
        let config = self.plan.site(&exit.region).config.display().to_string();
        self.screen.exited(exit, &format!("parhelion region --config {config}"));
    }

    /// A region whose process died answers again: somebody started it by hand.
    fn note_returns(&mut self, status: &ClusterStatus) {
        for region in &status.regions {
            let Some(silent) = self.dead.get_mut(&region.name) else { continue };
            // The last answer of the process that died stands until the next round of asking.
            *silent |= !region.answered;
            if *silent && row_serves(region) {
                self.dead.remove(&region.name);
                let what = format!("{} is back; it was started by hand and will not end with this demo", region.name);
                self.screen.say("region_back", Some(&region.name), &what);
            }
        }
    }

    fn sample(&mut self, status: &ClusterStatus) {
        for region in status.regions.iter().filter(|r| r.role != Role::Primary) {
            let Some(lags) = self.lags.get_mut(&region.name) else { continue };
            match (region.lag_known, region.visibility_lag_ms, region.durability_lag_ms) {
                (true, Some(visibility), Some(durability)) => {
                    lags.visibility_us.saturating_record(micros(visibility));
                    lags.durability_us.saturating_record(micros(durability));
                }
                _ => lags.unknown += 1,
            }
        }
    }

    /// The last lines of what failed.
    fn add_logs(&self, failure: &mut Failure) {
        for child in self.children.iter().filter(|c| self.dead.contains_key(&c.region)) {
            let log = &self.plan.site(&child.region).log;
            let _ = write!(failure.message, "\nthe end of {}:\n{}", log.display(), child.log_tail(log).trim_end());
        }
        if failure.hint.is_none() {
            failure.hint = Some(format!("the logs are in {}", self.plan.dir.join("logs").display()));
        }
    }

    async fn stop(mut self, hurry: watch::Receiver<bool>, summarise: bool) {
        self.screen.leave_table();
        let summary = self.ready_at.filter(|_| summarise).map(|from| self.summary(clock::now().since(from)));
        // The load first: its last commits should not end as errors of ours.
        self.load = None;
        let killed = child::stop_all(std::mem::take(&mut self.children), hurry).await;
        for region in killed {
            self.screen.say(
                "region_killed",
                Some(&region),
                &format!("{region} did not end in time and was killed; nothing is lost by that"),
            );
        }
        if let Some(summary) = summary {
            self.screen.summary(&summary);
        }
    }

    fn summary(&self, lasted: Duration) -> Summary {
        let status = self.poller.status(clock::unix_now());
        let region = |name: RegionName| {
            let lags = &self.lags[&name];
            RegionSummary {
                role: status.regions.iter().find(|r| r.name == name).map_or(Role::Unknown, |r| r.role),
                visibility_lag_ms: Percentiles::of(&lags.visibility_us),
                durability_lag_ms: Percentiles::of(&lags.durability_us),
                samples: lags.visibility_us.len(),
                samples_unknown: lags.unknown,
                name,
            }
        };
        Summary {
            cluster: self.plan.cluster.to_string(),
            profile: self.plan.profile.name.clone(),
            seconds: (lasted.as_secs_f64() * 10.0).round() / 10.0,
            load: self.load.as_ref().map(|l| l.summary(lasted)),
            regions: self.plan.names().into_iter().map(region).collect(),
            exits: self.exited,
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn micros(ms: f64) -> u64 {
    ((ms * 1000.0) as u64).max(1)
}

/// Whether every region does what its role is for.
fn serves(status: &ClusterStatus) -> bool {
    let primaries = status.regions.iter().filter(|r| r.role == Role::Primary).count();
    primaries == 1 && status.regions.iter().all(row_serves)
}

fn row_serves(region: &super::status::RegionStatus) -> bool {
    match region.role {
        Role::Primary => region.state == RegionState::Writable,
        Role::Secondary => matches!(region.state, RegionState::Idle | RegionState::Streaming) && region.readers.is_some_and(|n| n > 0),
        Role::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::status::merge;
    use crate::ops::status::tests::{NOW, name, sample};

    #[test]
    fn ready_means_that_every_region_serves_its_role() {
        let members = [name("us-east"), name("eu-west")];
        let mut answers: BTreeMap<_, _> =
            [sample("us-east", Role::Primary), sample("eu-west", Role::Secondary)].map(|r| (r.region.clone(), Ok(r))).into();
        let check = |answers: &BTreeMap<_, _>| serves(&merge(&members[0], NOW, &members, answers, &None));
        assert!(check(&answers));
        for state in [RegionState::Starting, RegionState::CatchingUp, RegionState::Disconnected] {
            let mut west = sample("eu-west", Role::Secondary);
            west.state = state;
            answers.insert(west.region.clone(), Ok(west));
            assert!(!check(&answers), "{state:?}");
        }
        answers.insert(name("eu-west"), Err("nothing listens".into()));
        assert!(!check(&answers));
    }
}
