//! `parhelion detach`, `force-new-lineage`, `retire`: histories that part on purpose, and the end of one of two.
//!
//! Decides words, confirmations and exit codes; what may be done is decided by the region that is asked ([`crate::control::lineage`]).
//! Each is asked for at the region that it is about, with that region's file, and wants its name a second time.

use crate::base::RegionName;
use crate::control::OrderKind;
use crate::io::clock;
use crate::node::report::{ControlReport, OperationReport};
use crate::ops::admin::{AdminAnswer, AdminRequest};
use crate::ops::cli::{AskArgs, say};
use crate::ops::client::Client;
use crate::ops::failure::{FAILED, Failure, REFUSED, USAGE};
use crate::ops::orders::{HowArgs, command, line, outcome};
use clap::Args;
use serde_json::json;
use std::time::Duration;

/// A region that was taken out hears of it within this.
const OUT_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The secondary that is to stand alone: the region of --config
    pub region: RegionName,
    /// Its name again
    #[arg(long, value_name = "REGION")]
    pub confirm: RegionName,
    /// Give up, with nothing changed, what is not begun by then
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Args)]
pub struct ForceArgs {
    /// Everybody who lives, the region of --config among them: a,b
    #[arg(long, value_name = "REGIONS", value_delimiter = ',', required = true)]
    pub survivors: Vec<RegionName>,
    /// Your word that the last primary is stopped. If it is not, both write, and one of the two histories is given up when they meet
    #[arg(long, value_name = "REGION")]
    pub i_confirm_old_primary_is_stopped: RegionName,
    #[command(flatten)]
    pub how: HowArgs,
}

#[derive(Debug, Args)]
pub struct RetireArgs {
    /// The lineage that is given up, as parhelion status shows it: the one of the region of --config
    #[arg(long, value_name = "LINEAGE")]
    pub lineage: String,
    /// The region's name
    #[arg(long, value_name = "REGION")]
    pub confirm: RegionName,
    #[command(flatten)]
    pub ask: AskArgs,
}

fn asked_at(client: &Client, region: &RegionName, confirm: &RegionName) -> Result<(), Failure> {
    if region != confirm {
        return Err(Failure::new(USAGE, format!("--confirm {confirm} is not {region}: nothing was done")));
    }
    if client.config.region != *region {
        let what =
            format!("this is asked for at {region} itself, and {} is the file of {}", client.config.file.display(), client.config.region);
        return Err(Failure::new(USAGE, what).hint(format!("--config <the file of {region}>")));
    }
    Ok(())
}

async fn roles(client: &Client) -> Result<ControlReport, Failure> {
    match client.ask(&AdminRequest::Voter).await? {
        AdminAnswer::Voter(report) => Ok(*report),
        AdminAnswer::Refused(why) => Err(Failure::new(REFUSED, why)),
        _ => Err(Failure::new(FAILED, "the region answered something else than was asked; is it the same version of parhelion?")),
    }
}

/// # Errors
/// [`Failure`]: refused, failed, or not known to be over. The same command again goes on where it was.
pub async fn detach(args: DetachArgs) -> Result<(), Failure> {
    let client = Client::open(args.ask.config.as_deref())?;
    asked_at(&client, &args.region, &args.confirm)?;
    let region = args.region.clone();
    let how = HowArgs { dry_run: false, drill: false, timeout: args.timeout, ask: args.ask };
    if roles(&client).await?.role != "removed" {
        let out = command(&how, OrderKind::RemoveRegion { region: region.clone() }).await?;
        outcome(&out)?;
        let began = clock::now();
        while roles(&client).await?.role != "removed" {
            if clock::now().since(began) > OUT_WITHIN {
                let what = format!("{region} is no member any more and has not heard of it yet; the same command again goes on");
                return Err(Failure::new(FAILED, what));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    let kind = OrderKind::NewLineage { survivors: vec![region.clone()], stopped: None };
    let done = command(&how, kind).await?;
    told(&how.ask, &region, &done, "stands alone, in a lineage of its own, and writes").await
}

/// # Errors
/// [`Failure`]: refused, failed, or not known to be over.
pub async fn force(args: ForceArgs) -> Result<(), Failure> {
    let client = Client::open(args.how.ask.config.as_deref())?;
    let region = client.config.region.clone();
    let mut survivors = args.survivors;
    survivors.sort();
    survivors.dedup();
    let kind = OrderKind::NewLineage { survivors, stopped: Some(args.i_confirm_old_primary_is_stopped) };
    let done = command(&args.how, kind).await?;
    told(&args.how.ask, &region, &done, "is the primary of a new lineage").await
}

async fn told(ask: &AskArgs, region: &RegionName, done: &OperationReport, what: &str) -> Result<(), Failure> {
    let client = Client::open(ask.config.as_deref())?;
    let lineage = match client.ask(&AdminRequest::Report).await {
        Ok(AdminAnswer::Report(report)) => report.lineage.map(|l| l.0),
        _ => None,
    };
    if ask.json {
        say(&line(&json!({
            "id": done.id, "region": region, "lineage": lineage, "epoch": done.epoch, "state": done.state, "reason": done.reason,
            "dry_run": done.dry_run,
        })))?;
    } else if done.state == "done" && done.dry_run {
        say("it could be done now\n")?;
    } else if done.state == "done" {
        let lineage = lineage.unwrap_or_else(|| "?".to_owned());
        say(&format!("done: {region} {what} (lineage {lineage}); it is never merged with what it came from\n"))?;
    }
    outcome(done)
}

/// # Errors
/// [`Failure`]: refused.
pub async fn retire(args: RetireArgs) -> Result<(), Failure> {
    let client = Client::open(args.ask.config.as_deref())?;
    asked_at(&client, &args.confirm, &args.confirm)?;
    match client.ask(&AdminRequest::Retire { lineage: args.lineage }).await? {
        AdminAnswer::Done(what) if args.ask.json => say(&line(&json!({ "ok": true, "region": args.confirm, "what": what }))),
        AdminAnswer::Done(what) => say(&format!("{what}\n")),
        AdminAnswer::Refused(why) => Err(Failure::new(REFUSED, why)),
        _ => Err(Failure::new(FAILED, "the region answered something else than was asked; is it the same version of parhelion?")),
    }
}
