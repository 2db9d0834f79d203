//! `parhelion switchover`, `failover`, `op`, `set`: what an operator orders, and how it is told how far it is.
//!
//! Decides the id of an operation and when to go on with one that is under way instead of ordering anew: the same command again continues
//! or tells the result. Never carries anything out, and a command that ends stops nothing: the regions do it (`crate::control`), and
//! remember it. The order goes to the region of the file, which passes it on; how it stands can be asked of any region.

use super::admin::{AdminAnswer, AdminRequest};
use super::cli::{AskArgs, Signals, say};
use super::client::Client;
use super::failure::{FAILED, Failure, REFUSED, SUPERSEDED, UNFINISHED, USAGE};
use super::orders_text as text;
use crate::base::{Epoch, Instant, RegionName};
use crate::control::{Consent, OpId, Order, OrderKind};
use crate::io::clock;
use crate::node::report::{ControlReport, FailoverReport, OperationReport};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// How it stands is asked so often.
const POLL_EVERY: Duration = Duration::from_millis(60);
/// Without news for so long the order is repeated: it has an id, so it is carried out once.
const REPEAT_AFTER: Duration = Duration::from_secs(1);
/// Beyond the time that the order itself has, for what cannot be called off any more.
const PATIENCE: Duration = Duration::from_secs(60);
/// A failover's record is there when it is done, in the region that did it.
const RECORD_WITHIN: Duration = Duration::from_secs(3);

/// How an order is carried out, whatever it is.
#[derive(Debug, Args)]
pub struct HowArgs {
    /// Make every check and say what it would cost; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// It is a drill's, and whoever looks into the audit is told.
    #[arg(skip)]
    pub drill: bool,
    /// Give up, with nothing changed, what has not passed the point of no return by then
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// The region that is to be the primary
    #[arg(long, value_name = "REGION")]
    pub to: RegionName,
    #[command(flatten)]
    pub how: HowArgs,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct FailoverArgs {
    #[command(subcommand)]
    pub what: Option<FailoverVerb>,
    /// The surviving region that is to be the primary
    #[arg(long, value_name = "REGION", required = true)]
    pub to: Option<RegionName>,
    /// Go on although commits of the old primary are, or may be, lost
    #[arg(long)]
    pub allow_data_loss: bool,
    /// But not if commits of more than this time are
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, requires = "allow_data_loss")]
    pub max_loss: Option<Duration>,
    /// Your word that this region is stopped: asked for where no majority can prove it
    #[arg(long, value_name = "REGION")]
    pub primary_is_down: Option<RegionName>,
    #[command(flatten)]
    pub how: HowArgs,
}

#[derive(Debug, Subcommand)]
pub enum FailoverVerb {
    /// Show what a failover cost: what was lost, exactly once the old primary is back
    Report {
        /// The id that the failover printed, or its beginning
        id: String,
        #[command(flatten)]
        ask: AskArgs,
    },
}

#[derive(Debug, Args)]
pub struct OpArgs {
    /// The id that the command printed, or its beginning; without it: all that are known
    pub id: Option<String>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Args)]
pub struct SetArgs {
    /// max_rpo=2s or off, sync=K, pause_alone=yes or no, auto_failover=off, lossless or max_loss=5s
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub what: Vec<String>,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// # Errors
/// [`Failure`]: refused, failed, superseded, or not known to be over.
pub async fn switchover(args: SwitchoverArgs) -> Result<(), Failure> {
    let kind = OrderKind::Switchover { to: args.to };
    let done = command(&args.how, kind).await?;
    if args.how.ask.json {
        say(&line(&switchover_json(&done)))?;
    } else {
        say(&text::ended(&done))?;
    }
    outcome(&done)
}

/// # Errors
/// As [`switchover`].
pub async fn failover(args: FailoverArgs) -> Result<(), Failure> {
    if let Some(FailoverVerb::Report { id, ask }) = args.what {
        return failover_report(&id, &ask).await;
    }
    let to = args.to.expect("BUG: it is required where there is no verb");
    let ms = |bound: Duration| u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
    let consent = Consent { allow_data_loss: args.allow_data_loss, max_loss_ms: args.max_loss.map(ms), max_loss_bytes: None };
    let kind = OrderKind::Failover { to, consent, primary_is_down: args.primary_is_down };
    let done = command(&args.how, kind).await?;
    // Whatever it says in the end: an epoch that began has its record.
    let record = if done.epoch.is_some() && !done.dry_run { record_of(&args.how.ask, &done.id).await } else { None };
    if args.how.ask.json {
        say(&line(&failover_json(&done, record.as_ref())))?;
    } else {
        say(&text::ended(&done))?;
        if let Some(record) = &record {
            say(&text::failover(record))?;
        }
    }
    outcome(&done)
}

async fn failover_report(id: &str, ask: &AskArgs) -> Result<(), Failure> {
    let record = failover_known(id, ask.config.as_deref()).await?;
    say(&if ask.json { line(&record) } else { text::failover(&record) })
}

/// The record of a failover, by its id or the beginning of it, as a region that answers has it.
///
/// # Errors
/// When none answers, or it is not known there.
pub(super) async fn failover_known(id: &str, config: Option<&Path>) -> Result<FailoverReport, Failure> {
    let (client, _) = Client::open_to_any(config).await?;
    let known = failovers(&client).await?;
    let record = by_id(&known, id, |f| &f.id);
    record.cloned().map_err(|why| Failure::new(REFUSED, format!("{why} among the failovers that {} knows", client.asked)))
}

/// Shows one operation, or all.
///
/// # Errors
/// [`Failure`]
pub async fn op(args: OpArgs) -> Result<(), Failure> {
    let (client, _) = Client::open_to_any(args.ask.config.as_deref()).await?;
    let known = ops(&client).await?;
    let Some(id) = args.id else {
        return say(&if args.ask.json { line(&json!({ "operations": known })) } else { text::list(&known) });
    };
    let op = by_id(&known, &id, |o| &o.id)
        .map_err(|why| Failure::new(REFUSED, format!("{why} among the operations that {} knows", client.asked)))?;
    say(&if args.ask.json { line(op) } else { text::whole(op) })
}

/// Changes rules, one after the other.
///
/// # Errors
/// [`Failure`]
pub async fn set(args: SetArgs) -> Result<(), Failure> {
    let (client, _) = Client::open_to_any(args.ask.config.as_deref()).await?;
    for word in &args.what {
        let Some((key, value)) = word.split_once('=') else {
            return Err(Failure::new(USAGE, format!("'{word}' changes nothing: write KEY=VALUE, as in max_rpo=2s")));
        };
        match client.ask(&AdminRequest::Set { key: key.to_owned(), value: value.to_owned(), actor: actor(&client.asked) }).await? {
            AdminAnswer::Done(what) if args.ask.json => say(&line(&json!({ "ok": true, "set": word, "what": what })))?,
            AdminAnswer::Done(what) => say(&format!("{what}\n"))?,
            other => return Err(unexpected(other)),
        }
    }
    Ok(())
}

/// Orders, or goes on with what was ordered before, until it is over.
pub(super) async fn command(how: &HowArgs, kind: OrderKind) -> Result<OperationReport, Failure> {
    let HowArgs { dry_run, drill, timeout, ref ask } = *how;
    let (client, report) = Client::open_to_any(ask.config.as_deref()).await?;
    let known = ops(&client).await?;
    let mut told = Told { quiet: ask.json, shown: 0, loss: false, head: false };
    if !dry_run && let Some(before) = continues(&kind, &known, &report) {
        told.note(&format!("operation {} was ordered before and is {}", before.id, if before.is_running() { "under way" } else { "done" }));
        if !before.is_running() {
            told.news(before)?;
            return Ok(before.clone());
        }
        let id = before.id.parse().map_err(|e: String| Failure::new(FAILED, e))?;
        return follow(&client, id, None, timeout, told).await;
    }
    let leaves = matches!((&kind, &report.member), (OrderKind::RemoveRegion { region }, asked) if region == asked);
    if report.role == "removed" && !leaves && !matches!(kind, OrderKind::NewLineage { .. }) {
        // This is the first that anybody hears of it, which that region cannot know.
        let why = report.reason.clone().unwrap_or_else(|| format!("{} is no member of the global cluster", report.member));
        return Err(
            Failure::new(REFUSED, format!("refused, and nothing was changed: {why}")).hint("order it with --config of a member's file")
        );
    }
    let order = Order {
        id: new_id()?,
        kind,
        dry_run,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        // Said here, so that a repeated order is the same order: it takes effect in this epoch or never.
        at_epoch: report.epoch,
        actor: if drill { format!("a drill of {}", actor(&client.asked)) } else { actor(&client.asked) },
    };
    follow(&client, order.id, Some(order), timeout, told).await
}

/// Sends `order`, if it is to be sent, and waits for the end of operation `id`.
async fn follow(client: &Client, id: OpId, order: Option<Order>, timeout: Duration, mut told: Told) -> Result<OperationReport, Failure> {
    let began = clock::now();
    let mut signals = Signals::new().map_err(super::failure::io_failure("receive signals"))?;
    let mut repeated: Option<Instant> = None;
    let mut last: Option<OperationReport> = None;
    let mut unknown_since: Option<Instant> = None;
    loop {
        let ordered = order.as_ref().filter(|_| repeated.is_none_or(|at| clock::now().since(at) >= REPEAT_AFTER));
        let request = match ordered {
            Some(order) => {
                repeated = Some(clock::now());
                AdminRequest::Order(Box::new(order.clone()))
            }
            None => AdminRequest::Ops,
        };
        let answer = tokio::select! {
            () = signals.next() => return Err(unfinished(id, "interrupted", last.as_ref())),
            answer = client.ask(&request) => answer,
        };
        let found = match answer {
            Ok(AdminAnswer::Op(op)) => Some(*op),
            Ok(AdminAnswer::Ops(ops)) => ops.into_iter().find(|o| o.id == id.to_string()),
            Ok(AdminAnswer::Refused(why)) if last.is_none() && ordered.is_some() => return Err(Failure::new(REFUSED, why)),
            Err(failure) if last.is_none() && ordered.is_some() => return Err(failure),
            // It knows nothing yet, or is away for the moment; others may know the end.
            Ok(_) => None,
            Err(_) => match client.ask_any(&AdminRequest::Ops).await {
                Ok(AdminAnswer::Ops(ops)) => ops.into_iter().find(|o| o.id == id.to_string()),
                _ => None,
            },
        };
        if let Some(op) = found {
            told.news(&op)?;
            if last.as_ref().is_none_or(|l| *l != op) {
                repeated = Some(clock::now());
            }
            if !op.is_running() {
                return Ok(op);
            }
            unknown_since = (op.state == "unknown").then(|| unknown_since.unwrap_or_else(clock::now));
            last = Some(op);
        }
        // Whoever says so for as long as the order has will not say anything else soon.
        if unknown_since.is_some_and(|since| clock::now().since(since) > timeout) {
            return Err(unfinished(id, "its end is not known there", last.as_ref()));
        }
        if clock::now().since(began) > timeout + PATIENCE {
            return Err(unfinished(id, "it takes longer than it should", last.as_ref()));
        }
        tokio::select! {
            () = signals.next() => return Err(unfinished(id, "interrupted", last.as_ref())),
            () = tokio::time::sleep(POLL_EVERY) => {}
        }
    }
}

fn unfinished(id: OpId, why: &str, last: Option<&OperationReport>) -> Failure {
    let how = match last {
        Some(OperationReport { phase: Some(phase), .. }) => format!("it was in {phase} when last heard of"),
        Some(OperationReport { reason: Some(reason), .. }) => reason.clone(),
        _ => "nothing was heard of it yet".to_owned(),
    };
    Failure::new(UNFINISHED, format!("{why}; operation {id} goes on without this command: {how}"))
        .hint(format!("parhelion op {id} shows how it stands; the same command again goes on with it"))
}

/// The operation that the same command ordered before: one under way, or one that made the reign that holds now.
fn continues<'a>(kind: &OrderKind, known: &'a [OperationReport], report: &ControlReport) -> Option<&'a OperationReport> {
    let word = match kind {
        OrderKind::Switchover { .. } => "switchover",
        OrderKind::Failover { .. } => "failover",
        OrderKind::AddRegion { .. } => "add_region",
        OrderKind::RemoveRegion { .. } => "remove_region",
        OrderKind::AddWitness { .. } => "add_witness",
        OrderKind::RemoveWitness { .. } => "remove_witness",
        OrderKind::NewLineage { .. } => return known.iter().find(|o| o.kind == "new_lineage" && o.is_running()),
        OrderKind::SetVoters { .. } => return None,
    };
    if kind.changes_members() {
        let member = |o: &OperationReport| o.region.as_ref().or(o.witness.as_ref()) == kind.member();
        return known.iter().find(|o| o.kind == word && member(o) && o.is_running());
    }
    let same = |o: &&OperationReport| o.kind == word && o.to.as_ref() == kind.to() && !o.dry_run;
    let mut before = known.iter().filter(same);
    let made = |o: &OperationReport| o.state == "done" && o.epoch.is_some() && o.epoch == report.epoch && o.to == report.primary;
    before.find(|o| o.is_running() || made(o))
}

/// What has been printed of an operation.
struct Told {
    quiet: bool,
    head: bool,
    shown: usize,
    loss: bool,
}

impl Told {
    fn note(&self, what: &str) {
        if !self.quiet {
            eprintln!("note: {what}");
        }
    }

    /// Prints what is new, for people.
    fn news(&mut self, op: &OperationReport) -> Result<(), Failure> {
        if self.quiet {
            return Ok(());
        }
        if !self.head {
            self.head = true;
            say(&text::head(op))?;
        }
        if !self.loss && op.loss.is_some() {
            self.loss = true;
            say(&text::before(op))?;
        }
        for phase in op.phases.iter().skip(self.shown) {
            say(&text::phase(phase))?;
        }
        self.shown = self.shown.max(op.phases.len());
        Ok(())
    }
}

/// The exit code and its sentence.
pub(super) fn outcome(op: &OperationReport) -> Result<(), Failure> {
    let reason = || op.reason.clone().unwrap_or_else(|| "no reason was given".to_owned());
    match op.state.as_str() {
        "done" => Ok(()),
        "refused" => Err(Failure::new(REFUSED, format!("refused, and nothing was changed: {}", reason()))),
        "superseded" => {
            Err(Failure::new(SUPERSEDED, format!("superseded: {}", reason())).hint("parhelion status shows who is the primary"))
        }
        _ => {
            Err(Failure::new(FAILED, reason()).hint("parhelion status shows who is the primary, and parhelion events how it came to this"))
        }
    }
}

/// What scripts get of a switchover.
fn switchover_json(op: &OperationReport) -> Value {
    let mut value = json!({
        "id": op.id, "from": op.from, "to": op.to, "epoch": op.epoch, "write_gap_ms": op.write_gap_ms, "phases": op.phases,
        "state": op.state, "reason": op.reason,
    });
    if op.dry_run {
        value["dry_run"] = true.into();
        value["predicted_gap_ms"] = json!(op.predicted_gap_ms);
    }
    if op.dry_run || op.state != "done" {
        value["checks"] = json!(op.checks);
    }
    value
}

/// What scripts get of a failover: its record as far as it is known, else what is known of the operation.
fn failover_json(op: &OperationReport, record: Option<&FailoverReport>) -> Value {
    let mut value = match record {
        Some(record) => json!(record),
        None => {
            let old_epoch: Option<Epoch> = op.epoch.map(|e| Epoch(e.0.saturating_sub(1)));
            json!({
                "id": op.id, "from": op.from, "to": op.to, "old_epoch": old_epoch, "new_epoch": op.epoch, "complete": false,
                "lost_commits": null, "lost_from_lsn": op.loss.as_ref().map(|l| l.base_lsn), "lost_to_lsn": null,
                "lost_from_time": null, "lost_to_time": null, "loss": op.loss, "archive": null,
            })
        }
    };
    value["state"] = json!(op.state);
    value["reason"] = json!(op.reason);
    value["write_gap_ms"] = json!(op.write_gap_ms);
    value["phases"] = json!(op.phases);
    if op.dry_run || op.state != "done" {
        value["dry_run"] = op.dry_run.into();
        value["checks"] = json!(op.checks);
    }
    value
}

async fn record_of(ask: &AskArgs, id: &str) -> Option<FailoverReport> {
    let (client, _) = Client::open_to_any(ask.config.as_deref()).await.ok()?;
    let began = clock::now();
    loop {
        if let Some(record) = failovers(&client).await.ok().and_then(|known| known.into_iter().find(|f| f.id == id)) {
            return Some(record);
        }
        if clock::now().since(began) > RECORD_WITHIN {
            return None;
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

async fn ops(client: &Client) -> Result<Vec<OperationReport>, Failure> {
    match client.ask(&AdminRequest::Ops).await? {
        AdminAnswer::Ops(ops) => Ok(ops),
        other => Err(unexpected(other)),
    }
}

async fn failovers(client: &Client) -> Result<Vec<FailoverReport>, Failure> {
    match client.ask(&AdminRequest::Failovers).await? {
        AdminAnswer::Failovers(failovers) => Ok(failovers),
        other => Err(unexpected(other)),
    }
}

/// The only one whose id begins like that.
fn by_id<'a, T>(known: &'a [T], given: &str, id: impl Fn(&T) -> &String) -> Result<&'a T, String> {
    if given.is_empty() || !given.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("'{given}' is no id (0-9 and a-f), so it is not"));
    }
    let given = given.to_ascii_lowercase();
    let mut found = known.iter().filter(|k| id(k).starts_with(&given));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(format!("more than one id begins with {given}")),
        (None, _) => Err(format!("{given} is not")),
    }
}

fn refused(answer: AdminAnswer) -> Result<AdminAnswer, Failure> {
    match answer {
        AdminAnswer::Refused(why) => Err(Failure::new(REFUSED, why)),
        other => Ok(other),
    }
}

pub(super) fn unexpected(answer: AdminAnswer) -> Failure {
    refused(answer).map_or_else(|failure| failure, |_| unexpected_answer())
}

fn unexpected_answer() -> Failure {
    Failure::new(FAILED, "the region answered something else than was asked; is it the same version of parhelion?")
}

fn new_id() -> Result<OpId, Failure> {
    let mut id = [0u8; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| Failure::new(FAILED, "the system gives no random numbers"))?;
    Ok(OpId(u128::from_le_bytes(id)))
}

/// Who ordered it: for the audit, and no proof of anything.
pub(super) fn actor(region: &RegionName) -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "somebody".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let whole = format!("{user}@{} by way of {region}", host.trim());
    whole.chars().filter(|c| !c.is_control()).take(120).collect()
}

pub(super) fn line(value: &impl serde::Serialize) -> String {
    format!("{}\n", serde_json::to_string(value).expect("BUG: plain data becomes JSON"))
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
