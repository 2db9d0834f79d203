//! The state of the whole global cluster, merged from what each region says of itself.
//!
//! Decides: whom to believe where two regions say different things (a region about itself; the primary about a region that
//! is silent), and what to tell an operator in sentences. Never asks anyone (`ops::admin` does) and never shows a figure that
//! nobody measured: an unknown lag is `None`, with since when. Driven by the region that is asked, and by the demo.

use super::copy_lines;
use super::status_roles::{self, RolesStatus, WitnessAnswer};
use super::text;
use crate::base::{Epoch, Lsn, RegionName, UnixMicros};
use crate::node::report::{
    ArchivesReport, CatchUpKind, CatchUpReport, CopyReport, RegionReport, RegionState, RetentionReport, Role, SecondaryReport, VolumeReport,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A global cluster as one value. `status --json` is exactly this.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct ClusterStatus {
    pub cluster: String,
    /// The newest epoch that any region knows.
    pub epoch: Epoch,
    /// The primary of that epoch; `None` when no region that answers knows one.
    pub primary: Option<RegionName>,
    /// The region that asked the others.
    pub answered_by: RegionName,
    /// On the clock of `answered_by`.
    pub at: UnixMicros,
    /// In the order of the members.
    pub regions: Vec<RegionStatus>,
    /// Votes, leases, operations.
    #[serde(flatten)]
    pub roles: RolesStatus,
    /// A sentence for everything that is not as it should be; empty when all is well.
    pub notes: Vec<String>,
}

/// One region. Lags are null when they are not known; the primary's own are 0 with `lag_known` true, as it is by definition
/// not behind itself.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct RegionStatus {
    pub name: RegionName,
    pub role: Role,
    pub state: RegionState,
    pub reason: Option<String>,
    /// Whether it answered. If not, the figures are what the primary last knew of it.
    pub answered: bool,
    pub epoch: Option<Epoch>,
    /// null when nobody who answers knows.
    pub durable_lsn: Option<Lsn>,
    pub visible_lsn: Option<Lsn>,
    pub durability_lag_ms: Option<f64>,
    pub rpo_lag_ms: Option<f64>,
    pub visibility_lag_ms: Option<f64>,
    pub lag_known: bool,
    /// Microseconds since 1970 (UTC), as are all times here.
    pub lag_unknown_since: Option<UnixMicros>,
    pub lag_measured_at: Option<UnixMicros>,
    pub durability_lag_bytes: Option<u64>,
    pub visibility_lag_bytes: Option<u64>,
    pub round_trip_ms: Option<f64>,
    pub clock_offset_ms: Option<f64>,
    pub clock_error_ms: Option<f64>,
    pub disconnected_since: Option<UnixMicros>,
    /// How far it is, while it gets pages or is far behind in the log; the primary's word where it has one.
    pub catching_up: Option<CatchUpReport>,
    /// Old versions and log that it keeps; null when it did not answer.
    pub retention: Option<RetentionReport>,
    /// Lost tails that it keeps; null when it did not answer.
    pub archives: Option<ArchivesReport>,
    /// Empty when it did not answer.
    pub copies: Vec<CopyReport>,
    /// null when it did not answer.
    pub volume: Option<VolumeReport>,
    /// Instances that answer reads; null when it did not answer.
    pub readers: Option<u32>,
    pub version: Option<String>,
}

/// What the regions answered, or why they did not. `members` gives the order, and who should have answered.
#[must_use]
pub fn merge(
    answered_by: &RegionName,
    at: UnixMicros,
    members: &[RegionName],
    answers: &BTreeMap<RegionName, Result<RegionReport, String>>,
    witness: &WitnessAnswer,
) -> ClusterStatus {
    let reports = || answers.values().filter_map(|a| a.as_ref().ok());
    let epoch = reports().map(|r| r.epoch).max().unwrap_or_default();
    // Whoever is in the newest epoch knows who leads it; the leader's own word first.
    let newest = || reports().filter(|r| r.epoch == epoch);
    let primary = newest().find(|r| r.role == Role::Primary).map(|r| r.region.clone()).or_else(|| newest().find_map(|r| r.primary.clone()));
    let leader = primary.as_ref().and_then(|p| answers.get(p)).and_then(|a| a.as_ref().ok()).filter(|r| r.role == Role::Primary);
    let seen_by_primary = |name: &RegionName| leader.and_then(|l| l.secondaries.iter().find(|s| s.region == *name));
    let regions: Vec<RegionStatus> = members
        .iter()
        .map(|name| match answers.get(name) {
            Some(Ok(report)) => answered(report, seen_by_primary(name)),
            _ => silent(name, primary.as_ref() == Some(name), seen_by_primary(name), reports()),
        })
        .collect();
    let mut status = ClusterStatus {
        cluster: reports().next().map_or_else(String::new, |r| r.cluster.clone()),
        epoch,
        primary,
        answered_by: answered_by.clone(),
        at,
        regions,
        roles: status_roles::merge(answers, witness),
        notes: Vec::new(),
    };
    status.notes = status_roles::notes(&status.roles, answers);
    status.notes.extend(notes(&status, answers));
    status
}

/// How bad a secondary's state is. Both ends of a link may notice; the worse word holds.
fn badness(state: RegionState) -> u8 {
    match state {
        RegionState::Writable | RegionState::Idle => 0,
        RegionState::Streaming => 1,
        RegionState::CatchingUp => 2,
        RegionState::Stalled => 3,
        RegionState::Fenced => 4,
        RegionState::Disconnected => 5,
        RegionState::Starting => 6,
    }
}

fn answered(report: &RegionReport, seen: Option<&SecondaryReport>) -> RegionStatus {
    let leads = report.role == Role::Primary;
    let (mut state, mut disconnected_since) = (report.state, report.disconnected_since);
    if let Some(seen) = seen.filter(|s| report.role == Role::Secondary && s.state != RegionState::Starting) {
        // `idle` and `streaming` differ by the moment of asking: the region's own word is as good as the primary's.
        if badness(seen.state) > badness(state).max(1) {
            state = seen.state;
        }
        disconnected_since = disconnected_since.or(seen.disconnected_since);
    }
    let lag = &report.lag;
    let known = leads || lag.known();
    let figure = |ms: Option<f64>| if leads { Some(0.0) } else { ms.filter(|_| known) };
    let amount = |bytes: Option<u64>| if leads { Some(0) } else { bytes.filter(|_| known) };
    RegionStatus {
        name: report.region.clone(),
        role: report.role,
        state,
        reason: report.reason.clone(),
        answered: true,
        epoch: Some(report.epoch),
        durable_lsn: Some(report.durable_lsn),
        visible_lsn: Some(report.visible_lsn),
        durability_lag_ms: figure(lag.durability_ms),
        rpo_lag_ms: figure(lag.rpo_ms),
        visibility_lag_ms: figure(lag.visibility_ms),
        lag_known: known,
        lag_unknown_since: lag.unknown_since.filter(|_| !known).or(disconnected_since.filter(|_| !known)),
        lag_measured_at: if leads { Some(report.reported_at) } else { lag.measured_at },
        durability_lag_bytes: amount(lag.durability_bytes),
        visibility_lag_bytes: amount(lag.visibility_bytes),
        round_trip_ms: lag.round_trip_ms,
        clock_offset_ms: lag.clock_offset_ms,
        clock_error_ms: lag.clock_error_ms,
        disconnected_since,
        catching_up: seen.and_then(|s| s.catching_up).or(report.catching_up),
        retention: Some(report.retention.clone()),
        archives: Some(report.archives),
        copies: report.copies.clone(),
        volume: Some(report.volume.clone()),
        readers: Some(report.readers),
        version: Some(report.version.clone()),
    }
}

fn silent<'a>(
    name: &RegionName,
    leads: bool,
    seen: Option<&SecondaryReport>,
    others: impl Iterator<Item = &'a RegionReport>,
) -> RegionStatus {
    // Nobody but the primary knows a secondary; of a silent primary the secondaries know when they last heard it.
    let since = match seen {
        Some(s) => s.disconnected_since.or(s.lag.unknown_since).or(s.lag.measured_at),
        None if leads => others.filter_map(|r| r.disconnected_since).max(),
        None => None,
    };
    RegionStatus {
        name: name.clone(),
        role: if leads {
            Role::Primary
        } else if seen.is_some() {
            Role::Secondary
        } else {
            Role::Unknown
        },
        state: RegionState::Disconnected,
        reason: None,
        answered: false,
        epoch: None,
        durable_lsn: seen.map(|s| s.durable_lsn),
        visible_lsn: seen.map(|s| s.visible_lsn),
        durability_lag_ms: None,
        rpo_lag_ms: None,
        visibility_lag_ms: None,
        lag_known: false,
        lag_unknown_since: since,
        lag_measured_at: seen.and_then(|s| s.lag.measured_at),
        durability_lag_bytes: None,
        visibility_lag_bytes: None,
        round_trip_ms: None,
        clock_offset_ms: None,
        clock_error_ms: None,
        disconnected_since: since,
        catching_up: seen.and_then(|s| s.catching_up),
        retention: None,
        archives: None,
        copies: Vec::new(),
        volume: None,
        readers: None,
        version: None,
    }
}

fn notes(status: &ClusterStatus, answers: &BTreeMap<RegionName, Result<RegionReport, String>>) -> Vec<String> {
    let mut notes = Vec::new();
    let since = |at: Option<UnixMicros>| at.map_or(String::new(), |t| format!(" since {}", text::clock(t, status.at)));
    match &status.primary {
        None => notes.push("no region that answers knows a primary; the first start of the founder region makes one".to_owned()),
        Some(primary) => {
            let row = status.regions.iter().find(|r| r.name == *primary);
            if let Some(row) = row.filter(|r| r.answered && r.state != RegionState::Writable) {
                let why = row.reason.as_deref().unwrap_or("no reason given");
                notes.push(format!("writes are stopped: the primary {primary} is {}: {why}", text::word(&row.state)));
            }
        }
    }
    for region in &status.regions {
        let name = &region.name;
        if let Some(Err(why)) = answers.get(name) {
            let last = region.disconnected_since.map_or(String::new(), |t| format!("; last heard of at {}", text::clock(t, status.at)));
            notes.push(format!(
                "{name} does not answer ({why}){last}; if its process ended, start it where it lives: parhelion region --config <the file of {name}>"
            ));
            continue;
        }
        if region.role == Role::Primary && status.primary.as_ref() != Some(name) {
            let epoch = region.epoch.unwrap_or_default();
            notes.push(format!("{name} still believes it is the primary of epoch {epoch}; epoch {} has another", status.epoch));
        }
        match region.state {
            RegionState::Disconnected => {
                notes.push(format!(
                    "{name} has no connection to the primary{}; it serves what it had then",
                    since(region.disconnected_since)
                ));
            }
            RegionState::Stalled => notes.push(format!("{name} is connected and behind, and its durable position does not move")),
            RegionState::CatchingUp => notes.push(match (&region.catching_up, region.durability_lag_bytes) {
                (Some(far), _) => format!("{name} is {}", catching_up(far)),
                (None, Some(behind)) => format!("{name} is catching up: {} behind", text::bytes(behind)),
                (None, None) => format!("{name} is catching up"),
            }),
            RegionState::Starting | RegionState::Fenced if region.role != Role::Primary || status.primary.as_ref() != Some(name) => {
                let why = region.reason.as_deref().map_or(String::new(), |r| format!(": {r}"));
                notes.push(format!("{name} is {}{why}", text::word(&region.state)));
            }
            _ => {
                if !region.lag_known && region.role == Role::Secondary {
                    notes.push(format!("the lag of {name} is not known{}", since(region.lag_unknown_since)));
                }
            }
        }
        if let Some(kept) = region.retention.as_ref().filter(|r| r.held_by == "budget" && r.log_bytes_max > 0) {
            let most = text::bytes(kept.versions_bytes_max);
            notes.push(format!("{name} keeps no page versions older than {most} of log, and the retention by time, a reader or a seed asks for more (limits.version_retain_bytes)"));
        }
        if let Some(kept) = region.archives.filter(ArchivesReport::almost_full) {
            notes.push(format!(
                "{name} keeps {} lost tails, and a copy of it makes no more than {}: look at them where it lives (parhelion salvage --config <the file of {name}>), and let some go with --drop",
                kept.count, kept.count_max
            ));
        }
        copy_notes(region, &mut notes);
    }
    let versions: std::collections::BTreeSet<&str> = status.regions.iter().filter_map(|r| r.version.as_deref()).collect();
    if versions.len() > 1 {
        let list: Vec<&str> = versions.into_iter().collect();
        notes.push(format!("the regions run different versions: {}", list.join(", ")));
    }
    notes
}

/// `being seeded: 1200 of 5000 pages, 10.2 MB of about 42.5 MB, 8.1 MB/s, about 4.0 s left`.
#[must_use]
pub fn catching_up(far: &CatchUpReport) -> String {
    let speed = far.bytes_per_s.map_or_else(|| "speed not known yet".to_owned(), |n| format!("{}/s", text::bytes(n)));
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let left = far.time_left_ms.map_or_else(|| "time left not known".to_owned(), |ms| format!("about {} left", text::lag_ms(ms as f64)));
    match far.kind {
        CatchUpKind::Seed => {
            let again = if far.resumed == 0 { String::new() } else { format!(", resumed {} times", far.resumed) };
            let (done, total) = (text::bytes(far.bytes_done), text::bytes(far.bytes_total));
            format!("being seeded: {} of {} pages, {done} of about {total}, {speed}, {left}{again}", far.pages_done, far.pages_total)
        }
        CatchUpKind::Log => {
            let behind = text::bytes(far.bytes_total.saturating_sub(far.bytes_done));
            format!("catching up: {behind} of log behind, {speed}, {left}")
        }
    }
}

fn copy_notes(region: &RegionStatus, notes: &mut Vec<String>) {
    for copy in &region.copies {
        if let Some(damage) = &copy.damage {
            notes.push(format!("{}: copy {} is damaged ({damage}); {}", region.name, copy.name, copy_lines::damage_ends(copy)));
        }
    }
    for (copy, why) in region.copies.iter().filter(|c| c.state != "down").filter_map(|c| c.reason.as_ref().map(|why| (c, why))) {
        notes.push(format!("{}: copy {} is {why}", region.name, copy.name));
    }
    for six in region.copies.chunk_by(|a, b| a.group == b.group) {
        group_notes(region, six, notes);
    }
}

/// The six of one protection group.
fn group_notes(region: &RegionStatus, six: &[CopyReport], notes: &mut Vec<String>) {
    let up = six.iter().filter(|c| c.state == "up").count();
    let off: Vec<&CopyReport> = six.iter().filter(|c| c.state == "down").collect();
    if off.is_empty() {
        return;
    }
    let mut note = String::new();
    for (i, copy) in off.iter().enumerate() {
        let why = copy.reason.as_deref().map_or(String::new(), |r| format!(" ({r})"));
        let _ = write!(note, "{}{}{why}", if i == 0 { "" } else { ", " }, copy.name);
    }
    let name = &region.name;
    let rule = if up >= 4 { "4 are enough, nothing stops" } else { "4 are needed: nothing becomes durable there until one is back" };
    notes.push(format!("{name}: copy {note} down; {up} of 6 are up ({rule})"));
}

/// One mark per copy, by AZ: `a:++ b:++ c:+-`; with several protection groups one such row for each, in order.
#[must_use]
pub fn copy_marks(copies: &[CopyReport]) -> String {
    let groups: Vec<String> = copies.chunk_by(|a, b| a.group == b.group).map(group_marks).collect();
    if groups.is_empty() { "?".to_owned() } else { groups.join(" | ") }
}

fn group_marks(copies: &[CopyReport]) -> String {
    let mut by_az: BTreeMap<&str, String> = BTreeMap::new();
    for copy in copies {
        by_az.entry(&copy.az).or_default().push(match copy.state.as_str() {
            "up" => '+',
            "catching_up" | "seeding" => '~',
            "starting" => '.',
            "down" => '-',
            _ => '?',
        });
    }
    by_az.iter().map(|(az, marks)| format!("{az}:{marks}")).collect::<Vec<_>>().join(" ")
}

const LEGEND: &str = "copies by zone: + up  ~ catching up  . starting  - down  ? not known.  Times are UTC.";

/// The three lag cells of a region.
#[must_use]
pub fn lag_cells(region: &RegionStatus, now: UnixMicros) -> [String; 3] {
    if region.role == Role::Primary && region.lag_known {
        return ["-".to_owned(), "-".to_owned(), "-".to_owned()];
    }
    if !region.lag_known {
        let first = region.lag_unknown_since.map_or_else(|| "unknown".to_owned(), |t| format!("unknown since {}", text::clock(t, now)));
        return [first, "unknown".to_owned(), "unknown".to_owned()];
    }
    [region.durability_lag_ms, region.rpo_lag_ms, region.visibility_lag_ms].map(|ms| ms.map_or_else(|| "unknown".to_owned(), text::lag_ms))
}

/// What the volume takes, as the primary measures it.
fn primary_volume(status: &ClusterStatus) -> Option<String> {
    let volume = status.regions.iter().find(|r| Some(&r.name) == status.primary.as_ref())?.volume.as_ref()?;
    let amount = |bytes: Option<u64>| bytes.map_or_else(|| "not known".to_owned(), text::bytes);
    let segments = volume.segments.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let groups = if volume.groups == 1 { String::new() } else { format!(" in {} protection groups", volume.groups) };
    Some(format!(
        "volume: used {} ({} of it free), at most so far {}, on each copy's disk {}; segments of {}: {segments}{groups}",
        amount(volume.used_bytes),
        amount(volume.free_bytes),
        amount(volume.high_water_bytes),
        amount(volume.allocated_bytes),
        text::bytes(volume.segment_bytes),
    ))
}

/// The table and the sentences, for a person.
#[must_use]
pub fn render(status: &ClusterStatus) -> String {
    let primary = status.primary.as_ref().map_or_else(|| "not known".to_owned(), ToString::to_string);
    let mut out = format!(
        "global cluster {}   epoch {}   primary {primary}   {} UTC, told by {}\n\n",
        status.cluster,
        status.epoch,
        text::clock(status.at, status.at),
        status.answered_by
    );
    let number = |lsn: Option<Lsn>| lsn.map_or_else(|| "?".to_owned(), |l| l.to_string());
    let rows = status
        .regions
        .iter()
        .map(|r| {
            let [durability, rpo, visibility] = lag_cells(r, status.at);
            vec![
                r.name.to_string(),
                text::word(&r.role),
                text::word(&r.state),
                number(r.durable_lsn),
                number(r.visible_lsn),
                durability,
                rpo,
                visibility,
                r.readers.map_or_else(|| "?".to_owned(), |n| n.to_string()),
                copy_marks(&r.copies),
            ]
        })
        .collect();
    let header = ["REGION", "ROLE", "STATE", "DURABLE", "VISIBLE", "DURABILITY", "RPO", "VISIBILITY", "READERS", "COPIES"];
    out.push_str(&text::table(&header, &[3, 4, 5, 6, 7, 8], rows));
    let _ = writeln!(out, "\n{LEGEND}");
    out.push_str(&status_roles::lines(status));
    if let Some(volume) = primary_volume(status) {
        let _ = writeln!(out, "{volume}");
    }
    let width = status.regions.iter().map(|r| r.name.as_str().len()).max().unwrap_or(0);
    for region in status.regions.iter().filter(|r| !r.copies.is_empty()) {
        let mut name = region.name.as_str();
        for line in copy_lines::lines(&region.copies, status.at) {
            let _ = writeln!(out, "{name:width$}  {line}");
            name = "";
        }
    }
    for (name, kept) in status.regions.iter().filter_map(|r| Some((&r.name, r.retention.as_ref()?))) {
        let (versions, versions_max) = (text::bytes(kept.versions_bytes), text::bytes(kept.versions_bytes_max));
        let (log, log_max) = (text::bytes(kept.log_bytes), text::bytes(kept.log_bytes_max));
        let _ =
            writeln!(out, "{name} keeps old versions over {versions} of log (at most {versions_max}) and {log} of log (at most {log_max})");
    }
    for (name, kept) in status.regions.iter().filter_map(|r| Some((&r.name, r.archives.filter(|a| a.count > 0)?))) {
        let (count, bytes) = (kept.count, text::bytes(kept.log_bytes));
        let tails = if count == 1 { "lost tail" } else { "lost tails" };
        let _ = writeln!(out, "{name} keeps {count} {tails} of at most {}, {bytes} of log: parhelion salvage", kept.count_max);
    }
    for note in &status.notes {
        let _ = writeln!(out, "! {note}");
    }
    out
}

impl ClusterStatus {
    /// Whether there is a primary that takes writes and every other region is connected to it with a known lag.
    #[must_use]
    pub fn healthy(&self) -> bool {
        let fine = |r: &RegionStatus| match r.role {
            Role::Primary => Some(&r.name) == self.primary.as_ref() && r.state == RegionState::Writable,
            Role::Secondary => r.lag_known && matches!(r.state, RegionState::Idle | RegionState::Streaming),
            Role::Unknown => false,
        };
        self.primary.is_some() && self.regions.iter().all(fine)
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
pub(crate) mod tests;
