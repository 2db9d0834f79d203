//! What a running global cluster is asked for and shows: status, lag, events; once, or again and again.

use super::{AskArgs, json, say, unexpected};
use crate::base::RegionName;
use crate::ops::admin::{AdminAnswer, AdminRequest};
use crate::ops::client::Client;
use crate::ops::events::{self, Follower};
use crate::ops::failure::{Failure, REFUSED};
use crate::ops::lag::{self, LagView};
use crate::ops::status::{self, ClusterStatus};
use crate::ops::witness;
use clap::Args;
use std::io::IsTerminal as _;
use std::time::Duration;

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

pub(super) async fn show_status(args: &StatusArgs) -> Result<(), Failure> {
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

pub(super) async fn show_lag(args: &WatchArgs) -> Result<(), Failure> {
    watch(args, |status| if args.ask.json { json(&LagView::of(status)) } else { lag::render(status) }).await
}

pub(super) async fn show_events(args: &EventsArgs) -> Result<(), Failure> {
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

async fn cluster(client: &Client) -> Result<ClusterStatus, Failure> {
    match client.ask_any(&AdminRequest::Cluster).await? {
        AdminAnswer::Cluster(status) => Ok(*status),
        other => Err(unexpected(other)),
    }
}
