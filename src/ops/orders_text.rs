//! How operations and failovers read for people.
//!
//! Decides nothing; what is not known is said to be.

use super::text;
use crate::node::report::{FailoverReport, LossReport, OperationReport, PhaseReport};
use std::fmt::Write as _;

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ms(ms: u64) -> String {
    if ms < 10_000 { format!("{ms} ms") } else { text::lag_ms(ms as f64) }
}

/// The line above the phases.
#[must_use]
pub fn head(op: &OperationReport) -> String {
    let from = op.from.as_ref().map_or_else(String::new, |from| format!(" from {from}"));
    if let Some(name) = op.region.as_ref().or(op.witness.as_ref()) {
        let dry = if op.dry_run { " (dry run: nothing is changed)" } else { "" };
        return format!("{} {name}{dry}, operation {}\n", op.kind, op.id);
    }
    let to = op.to.as_ref().map_or_else(String::new, |to| format!(" to {to}"));
    let dry = if op.dry_run { " (dry run: nothing is changed)" } else { "" };
    format!("{}{from}{to}{dry}, operation {}\n", op.kind, op.id)
}

#[must_use]
pub fn phase(phase: &PhaseReport) -> String {
    format!("  {:<10} {:>9}\n", phase.name, ms(phase.ms))
}

/// What a failover found before it went on.
#[must_use]
pub fn before(op: &OperationReport) -> String {
    let mut out = checks(op);
    if let Some(lost) = &op.loss {
        let _ = writeln!(out, "  {}", loss(lost));
    }
    out
}

fn checks(op: &OperationReport) -> String {
    op.checks.iter().fold(String::new(), |mut out, check| {
        let _ = writeln!(out, "  {} {}: {}", if check.ok { "+" } else { "!" }, check.name, check.says);
        out
    })
}

/// One sentence for what is, or would be, lost.
#[must_use]
pub fn loss(lost: &LossReport) -> String {
    let time = lost.ms.map_or_else(|| "over a time that is not known".to_owned(), |t| format!("over {}", ms(t)));
    let known = format!("{} of log, {} commits at most, {time}", text::bytes(lost.bytes), lost.commits_at_most);
    match (lost.sure.as_str(), lost.unheard_ms) {
        ("proven", _) => "lost: nothing, which is proven".to_owned(),
        ("exact", _) => format!("lost: {known}"),
        (_, Some(unheard)) => {
            format!(
                "lost: {known}, as far as is known; and whatever the old primary committed in the {} after it was last heard",
                ms(unheard)
            )
        }
        _ => format!("lost: {known}, as far as is known"),
    }
}

/// The last lines.
#[must_use]
pub fn ended(op: &OperationReport) -> String {
    if op.region.is_some() || op.witness.is_some() {
        return super::membership::cli::ended(op);
    }
    let to = op.to.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
    if op.dry_run && op.state == "done" {
        let gap = op.predicted_gap_ms.map_or_else(|| "cannot be predicted".to_owned(), |g| format!("about {}", ms(g)));
        let checks = if op.loss.is_some() { String::new() } else { checks(op) };
        return format!("{checks}it could be done now; writes would stand still for {gap}\n");
    }
    match op.state.as_str() {
        "done" => {
            let epoch = op.epoch.map_or_else(|| "?".to_owned(), |e| e.to_string());
            let gap = op.write_gap_ms.map_or_else(|| "a time that was not measured".to_owned(), |g| format!("about {}", ms(g)));
            format!("done: {to} is the primary of epoch {epoch}; writes stood still for {gap}\n")
        }
        _ if op.loss.is_some() => String::new(),
        _ => checks(op),
    }
}

/// Everything about one operation.
#[must_use]
pub fn whole(op: &OperationReport) -> String {
    let mut out = head(op);
    let _ = writeln!(out, "  ordered by {} at {}, carried out by {}", op.actor, text::rfc3339(op.began_at), op.by);
    out.push_str(&before(op));
    out.extend(op.phases.iter().map(phase));
    let reason = op.reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
    match (&op.phase, op.state.as_str()) {
        (Some(phase), _) => {
            let _ = writeln!(out, "under way: {phase}");
        }
        (None, "done") => out.push_str(&ended(op)),
        (None, state) => {
            let _ = writeln!(out, "{state}{reason}");
        }
    }
    out
}

/// A line for each.
#[must_use]
pub fn list(ops: &[OperationReport]) -> String {
    if ops.is_empty() {
        return "no operation is known\n".to_owned();
    }
    let name = |name: &Option<crate::base::RegionName>| name.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
    let rows = ops
        .iter()
        .map(|o| {
            let state = o.phase.as_ref().map_or_else(|| o.state.clone(), |phase| format!("{} ({phase})", o.state));
            let epoch = o.epoch.map_or_else(String::new, |e| e.to_string());
            vec![
                o.id.clone(),
                o.kind.clone(),
                name(&o.from),
                name([&o.region, &o.witness].into_iter().find(|m| m.is_some()).unwrap_or(&o.to)),
                state,
                epoch,
                text::rfc3339(o.began_at),
                o.actor.clone(),
            ]
        })
        .collect();
    text::table(&["OPERATION", "KIND", "FROM", "TO", "STATE", "EPOCH", "BEGAN", "BY"], &[5], rows)
}

/// Which rows the lost commits changed.
fn touched(out: &mut String, f: &FailoverReport) {
    if let Some(why) = &f.touched_unknown {
        let _ = writeln!(out, "  which rows that were is not known: {why}");
    }
    for table in f.touched.iter().flatten() {
        let rows = if table.rows_changed == 1 { "row" } else { "rows" };
        let more = if table.more == 0 { String::new() } else { format!(" and {} more", table.more) };
        let keys = if table.keys.is_empty() { String::new() } else { format!(", with the keys {}{more}", table.keys.join(", ")) };
        let _ = writeln!(out, "  {}: {} {rows}{keys}", table.table, table.rows_changed);
    }
    if f.touched_tables_more > 0 {
        let _ = writeln!(out, "  and {} more tables", f.touched_tables_more);
    }
}

/// What a failover cost.
#[must_use]
pub fn failover(f: &FailoverReport) -> String {
    let mut out = format!(
        "failover {} from {} (epoch {}) to {} (epoch {}), at {}, by {}\n",
        f.id,
        f.from,
        f.old_epoch,
        f.to,
        f.new_epoch,
        text::rfc3339(f.began_at),
        f.actor
    );
    if f.unproven {
        let _ = writeln!(out, "  no majority said that {} was out: only {} did", f.from, f.actor);
        if let Some(what) = &f.wrote_beside {
            let _ = writeln!(out, "  {what}");
        }
    }
    match (f.complete, f.lost_commits, f.lost_from_lsn, f.lost_to_lsn) {
        (true, Some(0), ..) => out.push_str("  complete: nothing was lost\n"),
        (true, Some(commits), Some(from), Some(to)) => {
            let time = |at: Option<crate::base::UnixMicros>| at.map_or_else(|| "?".to_owned(), text::rfc3339);
            let _ = writeln!(
                out,
                "  complete: {commits} commits were lost, LSN {from} to {to}, made from {} to {}",
                time(f.lost_from_time),
                time(f.lost_to_time)
            );
            touched(&mut out, f);
            if let Some(archive) = &f.archive {
                let _ =
                    writeln!(out, "  kept by copies of {} as archive {archive}; there: parhelion salvage {} --config FILE", f.from, f.id);
            }
        }
        _ => {
            let _ = writeln!(out, "  {}", loss(&f.loss));
            let _ = writeln!(out, "  not complete: exactly known once {} is back and its log was read", f.from);
        }
    }
    out
}
