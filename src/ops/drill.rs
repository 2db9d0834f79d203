//! `parhelion drill`: the primary is moved to another region and back, as planned, and both ways are looked at from outside.
//!
//! Decides when a drill may begin (everybody is well, and every check of a switchover says yes), what is looked at after each way, and what is
//! said when it stops in the middle: where the primary is and which command goes on. Both ways are switchovers like any other, ordered by an
//! actor that says it is a drill; what is under way goes on without this command ([`super::orders`]). Never undoes anything by itself.

use super::admin::{AdminAnswer, AdminRequest};
use super::cli::{AskArgs, Signals, say};
use super::client::Client;
use super::failure::{FAILED, Failure, REFUSED, UNFINISHED, io_failure};
use super::orders::{HowArgs, command, line, outcome, unexpected};
use super::orders_text as text;
use super::status::ClusterStatus;
use crate::base::{Epoch, Instant, Lsn, RegionName};
use crate::control::OrderKind;
use crate::io::clock;
use crate::node::report::{OperationReport, PhaseReport};
use clap::Args;
use std::time::Duration;

/// The cluster is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Before anything is ordered everybody must be well within this.
const READY_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct DrillArgs {
    /// The region that is to be the primary for a moment
    #[arg(long, value_name = "REGION")]
    pub to: RegionName,
    /// For each of the two ways, and for everybody to follow after it
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// What was found. `--json` is exactly this.
#[derive(Debug, serde::Serialize)]
pub struct DrillReport {
    /// The primary before, and after.
    pub from: RegionName,
    pub to: RegionName,
    /// `passed`, `failed`; `interrupted`: it was not seen to its end.
    pub verdict: &'static str,
    /// A sentence, where it did not pass.
    pub reason: Option<String>,
    /// null: not over.
    pub there: Option<Way>,
    pub back: Option<Way>,
}

/// One switchover.
#[derive(Debug, serde::Serialize)]
pub struct Way {
    pub id: String,
    pub epoch: Option<Epoch>,
    pub write_gap_ms: Option<u64>,
    pub phases: Vec<PhaseReport>,
    /// Until every region followed the new primary and nothing that was durable before was missing; null: that was not seen.
    pub verified_ms: Option<u64>,
}

/// # Errors
/// [`Failure`]: refused, failed, or stopped in the middle, with the command that goes on.
pub async fn drill(args: DrillArgs) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(io_failure("receive signals"))?;
    let how = |dry_run: bool| HowArgs { dry_run, drill: true, timeout: args.timeout, ask: args.ask.clone() };
    let (from, durable) = ready(&args, &mut signals).await?;
    let checked = command(&how(true), OrderKind::Switchover { to: args.to.clone() }).await?;
    if !args.ask.json {
        say(&text::ended(&checked))?;
    }
    outcome(&checked)?;

    let mut report = DrillReport { from: from.clone(), to: args.to.clone(), verdict: "passed", reason: None, there: None, back: None };
    let ended = there_and_back(&how(false), durable, &mut report, &mut signals).await;
    if let Err(failure) = &ended {
        report.verdict = if failure.code == UNFINISHED { "interrupted" } else { "failed" };
        report.reason = Some(failure.message.clone());
    }
    say(&if args.ask.json { line(&report) } else { passed(&report) })?;
    ended
}

async fn there_and_back(how: &HowArgs, mut durable: Lsn, report: &mut DrillReport, signals: &mut Signals) -> Result<(), Failure> {
    let (from, to) = (report.from.clone(), report.to.clone());
    for target in [&to, &from] {
        let back = *target == from;
        let stopped = |failure| stopped(failure, &from, &to, back);
        let op = command(how, OrderKind::Switchover { to: target.clone() }).await.map_err(stopped)?;
        if !how.ask.json {
            say(&text::ended(&op))?;
        }
        let way = if back { &mut report.back } else { &mut report.there };
        let way = way.insert(Way::of(&op));
        outcome(&op).map_err(stopped)?;
        let (ms, vdl) =
            followed(&how.ask, how.timeout, target, durable, signals).await.map_err(|failure| left(failure, &from, &to, back))?;
        (way.verified_ms, durable) = (Some(ms), vdl);
        if !how.ask.json {
            say(&format!("verified: every region follows {target} and has what was durable before, {ms} ms later\n"))?;
        }
    }
    Ok(())
}

impl Way {
    fn of(op: &OperationReport) -> Way {
        Way { id: op.id.clone(), epoch: op.epoch, write_gap_ms: op.write_gap_ms, phases: op.phases.clone(), verified_ms: None }
    }
}

/// The primary, and up to where its log is durable, when a drill may begin.
async fn ready(args: &DrillArgs, signals: &mut Signals) -> Result<(RegionName, Lsn), Failure> {
    let status = cluster(&args.ask).await?;
    let refused = |why: String| Failure::new(REFUSED, format!("refused, and nothing was changed: {why}"));
    let Some(primary) = status.primary.clone() else {
        return Err(refused("no primary is known".to_owned()).hint("parhelion status shows what is going on"));
    };
    if primary == args.to {
        return Err(refused(format!("{primary} is the primary already"))
            .hint("a drill moves it to another region and back: name that one with --to"));
    }
    // A region that hears of the last change a moment later is no reason.
    match followed(&args.ask, READY_WITHIN, &primary, Lsn(0), signals).await {
        Ok((_, durable)) => Ok((primary, durable)),
        Err(Failure { code: FAILED, message, .. }) => {
            let why = format!("a drill begins where everybody is well, and {message}");
            Err(refused(why).hint("parhelion status --check says when that is so"))
        }
        Err(other) => Err(other),
    }
}

/// Waits until every region follows `primary` and has the log up to `durable`. How long that took, and what is durable by then.
async fn followed(
    ask: &AskArgs,
    within: Duration,
    primary: &RegionName,
    durable: Lsn,
    signals: &mut Signals,
) -> Result<(u64, Lsn), Failure> {
    let began = clock::now();
    let ms = |since: Instant| u64::try_from(clock::now().since(since).as_millis()).unwrap_or(u64::MAX);
    loop {
        let looked = tokio::select! {
            () = signals.next() => return Err(Failure::new(UNFINISHED, "interrupted")),
            status = cluster(ask) => status.map_err(|f| f.message).and_then(|s| settled(&s, primary, durable)),
        };
        match looked {
            Ok(durable) => return Ok((ms(began), durable)),
            Err(why) if clock::now().since(began) > within => return Err(Failure::new(FAILED, why)),
            Err(_) => {}
        }
        tokio::select! {
            () = signals.next() => return Err(Failure::new(UNFINISHED, "interrupted")),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Up to where the log of `primary` is durable, when everybody follows it in its epoch and nothing up to `durable` is missing anywhere; or what
/// is not as it should be.
fn settled(status: &ClusterStatus, primary: &RegionName, durable: Lsn) -> Result<Lsn, String> {
    if status.primary.as_ref() != Some(primary) {
        let who = status.primary.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        return Err(format!("the primary is {who} and not {primary}"));
    }
    if !status.healthy() {
        return Err(status.notes.first().cloned().unwrap_or_else(|| "a region is not as it should be".to_owned()));
    }
    if let Some(late) = status.regions.iter().find(|r| r.epoch != Some(status.epoch)) {
        return Err(format!("{} has not heard of epoch {}", late.name, status.epoch));
    }
    if let Some(short) = status.regions.iter().find(|r| r.durable_lsn.is_none_or(|lsn| lsn < durable)) {
        let has = short.durable_lsn.map_or_else(|| "nothing".to_owned(), |lsn| format!("LSN {lsn}"));
        return Err(format!("{} has {has}, and the log was durable up to LSN {durable} before", short.name));
    }
    let row = status.regions.iter().find(|r| r.name == *primary);
    row.and_then(|r| r.durable_lsn).ok_or_else(|| format!("{primary} does not say up to where its log is durable"))
}

async fn cluster(ask: &AskArgs) -> Result<ClusterStatus, Failure> {
    match Client::open(ask.config.as_deref())?.ask_any(&AdminRequest::Cluster).await? {
        AdminAnswer::Cluster(status) => Ok(*status),
        other => Err(unexpected(other)),
    }
}

/// One of the two switchovers did not come to a good end, or goes on alone.
fn stopped(failure: Failure, from: &RegionName, to: &RegionName, back: bool) -> Failure {
    let way = if back { format!("on the way back from {to} to {from}") } else { format!("on the way from {from} to {to}") };
    let hint = match (back, failure.code) {
        (false, UNFINISHED) => {
            format!(
                "parhelion op shows how it ends; once {to} is the primary, `parhelion switchover --to {from}` goes back, as the drill would have"
            )
        }
        (false, _) => format!("parhelion status shows who is the primary; if it is {to}, `parhelion switchover --to {from}` goes back"),
        (true, _) => format!("`parhelion switchover --to {from}` goes on with it, or orders it again"),
    };
    Failure::new(failure.code, format!("the drill stopped {way}: {}", failure.message)).hint(hint)
}

/// Nobody saw everybody follow.
fn left(failure: Failure, from: &RegionName, to: &RegionName, back: bool) -> Failure {
    if back {
        let what =
            format!("the drill stopped when {from} was the primary again, before everybody was seen to follow it: {}", failure.message);
        return Failure::new(failure.code, what).hint("parhelion status --check says whether they do");
    }
    let what = format!("the drill stopped when {to} was the primary, before everybody was seen to follow it: {}", failure.message);
    Failure::new(failure.code, what)
        .hint(format!("`parhelion switchover --to {from}` goes back, once parhelion status --check says that all is well"))
}

/// The last line, for people; the reason why it did not pass is the command's error.
fn passed(report: &DrillReport) -> String {
    let gap = |way: &Option<Way>| {
        let ms = way.as_ref().and_then(|w| w.write_gap_ms);
        ms.map_or_else(|| "a time that was not measured".to_owned(), |ms| format!("about {ms} ms"))
    };
    match report.verdict {
        "passed" => format!(
            "passed: {} is the primary again and nothing was lost; writes stood still for {} on the way to {} and {} on the way back\n",
            report.from,
            gap(&report.there),
            report.to,
            gap(&report.back)
        ),
        other => format!("{other}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::report::Role;
    use crate::ops::status::merge;
    use crate::ops::status::tests::{NOW, name, sample};
    use std::collections::BTreeMap;

    fn status(late: Option<&str>) -> ClusterStatus {
        let members = [name("us-east"), name("eu-west")];
        let answers = [("us-east", Role::Primary), ("eu-west", Role::Secondary)].map(|(region, role)| {
            let mut report = sample(region, role);
            if late == Some(region) {
                report.epoch = Epoch(0);
            }
            (name(region), Ok(report))
        });
        merge(&name("us-east"), NOW, &members, &BTreeMap::from(answers), &None)
    }

    #[test]
    fn a_way_is_verified_when_everybody_follows_and_nothing_is_missing() {
        let (east, west) = (name("us-east"), name("eu-west"));
        assert_eq!(settled(&status(None), &east, Lsn(100)), Ok(Lsn(100)));
        assert!(settled(&status(None), &west, Lsn(100)).unwrap_err().contains("the primary is us-east and not eu-west"));
        assert!(settled(&status(None), &east, Lsn(101)).unwrap_err().contains("durable up to LSN 101 before"));
        assert!(settled(&status(Some("eu-west")), &east, Lsn(100)).unwrap_err().contains("eu-west has not heard of epoch 1"));
        let mut away = status(None);
        away.regions[1].lag_known = false;
        assert!(settled(&away, &east, Lsn(100)).is_err());
    }

    #[test]
    fn whoever_stops_a_drill_is_told_where_the_primary_is_and_what_goes_on() {
        let (east, west) = (name("us-east"), name("eu-west"));
        let interrupted = || Failure::new(UNFINISHED, "interrupted; operation 7 goes on");
        let hint = |failure: Failure| {
            assert_eq!(failure.code, UNFINISHED);
            (failure.message, failure.hint.unwrap())
        };
        let (what, next) = hint(stopped(interrupted(), &east, &west, false));
        assert!(what.contains("on the way from us-east to eu-west: interrupted; operation 7 goes on"), "{what}");
        assert!(next.contains("`parhelion switchover --to us-east` goes back"), "{next}");
        let (what, next) = hint(stopped(interrupted(), &east, &west, true));
        assert!(
            what.contains("on the way back from eu-west to us-east") && next.contains("switchover --to us-east` goes on with it"),
            "{what} {next}"
        );
        let (what, next) = hint(left(interrupted(), &east, &west, false));
        assert!(what.contains("eu-west was the primary") && next.contains("switchover --to us-east"), "{what} {next}");
        let (what, _) = hint(left(interrupted(), &east, &west, true));
        assert!(what.contains("us-east was the primary again"), "{what}");
    }
}
