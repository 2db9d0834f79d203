//! The metrics of one region as OpenMetrics text.
//!
//! Decides names and labels; they are stable. Made anew from one report at every scrape, so nothing can be stale and a
//! figure that is not known has no line at all. Never measures anything itself.
//!
//! `parhelion_lag_*` are this region's own measurements (label `region`: itself), absent in the primary;
//! `parhelion_secondary_*` are the primary's view of the others.

use super::http::{MemberView, RegionView};
use super::text;
use crate::base::Lsn;
use crate::node::report::{CatchUpKind, CatchUpReport, ControlReport, CopyReport, RegionState, Role, ScrubReport};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// The content type of [`render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Float = Gauge<f64, AtomicU64>;

const STATES: [RegionState; 8] = [
    RegionState::Writable,
    RegionState::Idle,
    RegionState::Streaming,
    RegionState::CatchingUp,
    RegionState::Stalled,
    RegionState::Disconnected,
    RegionState::Fenced,
    RegionState::Starting,
];

/// As `parhelion copy list` says them.
const COPY_STATES: [&str; 5] = ["starting", "up", "catching_up", "seeding", "down"];

struct Page {
    registry: Registry,
}

impl Page {
    fn int(&mut self, name: &str, help: &str, value: u64) {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.registry.register(name, help, gauge);
    }

    fn ints(&mut self, name: &str, help: &str, values: Vec<(Labels, u64)>) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.registry.register(name, help, family);
    }

    fn refusals(&mut self, counts: Vec<(String, u64)>) {
        let refusals = Family::<Labels, Counter>::default();
        for (kind, count) in counts {
            refusals.get_or_create(&vec![("kind", kind)]).inc_by(count);
        }
        self.registry.register("refusals", "Connections and requests refused, by kind", refusals);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("BUG: writing to a string failed");
        text
    }

    fn float(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Float::default();
        gauge.set(value);
        self.registry.register(name, help, gauge);
    }

    /// What is `None` gets no line.
    fn floats(&mut self, name: &str, help: &str, values: Vec<(Labels, Option<f64>)>) {
        let family = Family::<Labels, Float>::default();
        for (labels, value) in values {
            if let Some(value) = value {
                family.get_or_create(&labels).set(value);
            }
        }
        self.registry.register(name, help, family);
    }
}

/// Who may write, who votes, what the last change of roles took.
#[expect(clippy::cast_precision_loss, reason = "gauges")]
fn control(page: &mut Page, control: &ControlReport) {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let is_primary = control.role == "primary";
    page.int(
        "writers_seen",
        "Regions that claimed to write at the same time; more than 1 is an emergency",
        u64::from(control.writers_seen),
    );
    page.int(
        "lineage_conflict",
        "1 while members of another lineage are known: nobody writes before one of the two is retired",
        u64::from(!control.rivals.is_empty()),
    );
    page.int("promised_epoch", "This member grants nothing to an older epoch", control.promised.0);
    page.int("votes", "1 when this member is a voter", u64::from(control.votes));
    page.float("lease_remaining_seconds", "What is left of the lease of this primary; 0: it has none", seconds(control.lease_left_ms));
    page.float("grant_remaining_seconds", "Another primary gets nothing from this voter before", seconds(control.grant_left_ms));
    if is_primary {
        let heard = |v| (vec![("voter", format!("{v}"))], u64::from(control.voters_heard.contains(v)));
        page.ints("voter_heard", "1 when the voter granted within a lease", control.voters.iter().map(heard).collect());
    }
    let peer = |p: &crate::node::report::PeerReport| vec![("member", p.name.to_string())];
    let up = control.peers.iter().map(|p| (peer(p), u64::from(p.up))).collect();
    page.ints("member_connected", "1 while there is a control link with the member", up);
    page.floats(
        "member_round_trip_milliseconds",
        "Round trip of the control link",
        control.peers.iter().map(|p| (peer(p), p.round_trip_ms)).collect(),
    );
    let witness = control.witness.iter().map(|w| (vec![("member", w.to_string())], u64::from(control.voters.contains(w)))).collect();
    page.ints("witness_votes", "1 while the witness of the global cluster is a voter, 0 while the number of regions needs none", witness);
    if let Some(days) = control.certificate_days_left {
        page.float("certificate_days_left", "Whole days until this member's certificate ends and the others refuse it", days as f64);
    }
    let incomplete = control.failovers.iter().filter(|f| !f.complete).count();
    page.int("failovers_incomplete", "Failovers whose loss is not known exactly yet", incomplete as u64);
    for op in &control.durations {
        let kind = &op.kind;
        let phases = op.phases.iter().map(|p| (vec![("phase", p.name.clone())], Some(seconds(p.ms)))).collect();
        page.floats(&format!("{kind}_phase_seconds"), "What each phase of the last one took", phases);
        if let Some(gap) = op.write_gap_ms {
            page.float(&format!("{kind}_write_gap_seconds"), "How long writes stood still in the last one", seconds(gap));
        }
    }
}

/// The metrics of a member without data.
#[must_use]
pub fn render_member(view: &dyn MemberView) -> String {
    let report = view.report();
    let mut page = Page { registry: Registry::with_prefix("parhelion") };
    if let Some(epoch) = report.epoch {
        page.int("epoch", "The newest epoch known here", epoch.0);
    }
    control(&mut page, &report);
    page.refusals(view.refusals());
    page.text()
}

/// Repair and scrub of each copy; what is not under way or was never done has no line.
fn copies(page: &mut Page, copies: &[CopyReport]) {
    let labels = |c: &CopyReport| vec![("copy", c.name.clone()), ("az", c.az.clone())];
    let all = |pick: fn(&CopyReport) -> u64| copies.iter().map(|c| (labels(c), pick(c))).collect::<Vec<_>>();
    let some = |pick: fn(&CopyReport) -> Option<u64>| copies.iter().filter_map(|c| Some((labels(c), pick(c)?))).collect::<Vec<_>>();
    let states = copies
        .iter()
        .flat_map(|c| COPY_STATES.map(|state| ([labels(c), vec![("state", state.to_owned())]].concat(), u64::from(c.state == state))));
    page.ints("copy_state", "1 for the state the copy is in", states.collect());
    page.ints("copy_low_on_room", "1 while the copy's disk is almost full", all(|c| u64::from(c.low_on_room)));
    page.ints("copy_damaged", "1 while something was found in the copy that is not repaired yet", all(|c| u64::from(c.damage.is_some())));
    page.ints("copy_repair_pages", "Pages stored so far in the copy that is being rebuilt", some(|c| c.repair.as_ref().map(|r| r.pages)));
    page.ints("copy_repair_pages_in_all", "Pages to be stored in all", some(|c| c.repair.as_ref().and_then(|r| r.pages_in_all)));
    page.ints("copy_repair_bytes", "Bytes of pages stored so far", some(|c| c.repair.as_ref().map(|r| r.bytes)));
    let rate = some(|c| c.repair.as_ref().and_then(|r| r.bytes_per_s));
    page.ints("copy_repair_bytes_per_second", "Speed of the rebuilding since it began", rate);
    page.ints("copy_scrub_running", "1 while a pass of the scrub is under way", all(|c| u64::from(c.scrub.running)));
    let ended = some(|c| c.scrub.ended_at.map(|at| at.0 / 1_000_000));
    page.ints("copy_scrub_ended_seconds", "When the last pass of the scrub ended, seconds since 1970", ended);
    let done = |pick: fn(&ScrubReport) -> u64| {
        copies.iter().filter(|c| c.scrub.ended_at.is_some()).map(|c| (labels(c), pick(&c.scrub))).collect::<Vec<_>>()
    };
    page.ints("copy_scrub_read_bytes", "Bytes of files read in the last pass", done(|s| s.read_bytes));
    page.ints("copy_scrub_pages", "Pages compared with the other copies in the last pass", done(|s| s.pages));
    page.ints("copy_scrub_found", "Damage found in the last pass", done(|s| s.found));
    let mut counts = |name: &str, help: &str, pick: fn(&ScrubReport) -> u64| {
        let family = Family::<Labels, Counter>::default();
        for copy in copies {
            family.get_or_create(&labels(copy)).inc_by(pick(&copy.scrub));
        }
        page.registry.register(name, help, family);
    };
    counts("copy_damage_found", "Damage found in the copy, by the scrub or when it was met", |s| s.found_total);
    counts("copy_damage_repaired", "Damage that was repaired", |s| s.repaired_total);
    counts("lost_write", "Writes that the disk acknowledged and that are not there", |s| s.lost_writes_total);
}

/// No line for a region that does not catch up.
fn catching_up(page: &mut Page, prefix: &str, of: Vec<(Labels, Option<&CatchUpReport>)>) {
    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    let mut gauge = |name: &str, help: &str, pick: &dyn Fn(&CatchUpReport) -> Option<u64>| {
        let values = of.iter().map(|(labels, far)| (labels.clone(), far.and_then(pick).map(|n| n as f64))).collect();
        page.floats(&format!("{prefix}catch_up_{name}"), help, values);
    };
    let seed = |far: &CatchUpReport, n: u64| (far.kind == CatchUpKind::Seed).then_some(n);
    gauge("bytes_left", "Bytes of pages or log that are missing", &|f| Some(f.bytes_total.saturating_sub(f.bytes_done)));
    gauge("bytes_per_second", "Speed of the last seconds", &|f| f.bytes_per_s);
    gauge("left_milliseconds", "Time until the end at that speed", &|f| f.time_left_ms);
    gauge("pages", "Pages of the seed that are there", &|f| seed(f, f.pages_done));
    gauge("pages_total", "Pages of the whole seed", &|f| seed(f, f.pages_total));
    gauge("resumed", "Interruptions after which the seed went on", &|f| seed(f, u64::from(f.resumed)));
}

/// The whole page, ending in `# EOF`.
#[must_use]
pub fn render(view: &dyn RegionView) -> String {
    let report = view.report();
    let mut page = Page { registry: Registry::with_prefix("parhelion") };
    let own = || vec![("region", report.region.to_string())];
    let info = vec![("cluster", report.cluster.clone()), ("region", report.region.to_string()), ("version", report.version.clone())];
    page.ints("info", "What this is; always 1", vec![(info, 1)]);
    page.int("epoch", "The reign this region knows of", report.epoch.0);
    let is_primary = report.control.as_ref().map_or(report.role == Role::Primary, |c| c.role == "primary");
    page.int("is_primary", "1 while this region is the primary of the global cluster and holds its lease", u64::from(is_primary));
    let states = STATES.map(|s| (vec![("state", text::word(&s))], u64::from(s == report.state))).into();
    page.ints("state", "1 for the state this region is in", states);
    page.int("written_lsn", "Log position assigned (primary) or received (secondary)", report.written_lsn.0);
    page.int("durable_lsn", "Log position durable on 4 of 6 copies, the VDL", report.durable_lsn.0);
    page.int("visible_lsn", "Log position that readers here see", report.visible_lsn.0);
    page.int("oldest_read_view_lsn", "Oldest log position that a reader here still looks at", report.oldest_read_view_lsn.0);
    page.int("readers", "Instances that answer reads", u64::from(report.readers));

    page.int(
        "archives",
        "Lost tails that are kept here; a copy keeps no more than parhelion_archives_max",
        u64::from(report.archives.count),
    );
    page.int("archives_max", "The bound of that", u64::from(report.archives.count_max));
    page.int("archives_bytes", "Bytes of log in them", report.archives.log_bytes);
    let kept = &report.retention;
    page.int("retained_versions_bytes", "Bytes of log over which old page versions are kept", kept.versions_bytes);
    page.int("retained_versions_bytes_max", "The budget of that", kept.versions_bytes_max);
    page.int("retained_log_bytes", "Bytes of log that are kept", kept.log_bytes);
    page.int("retained_log_bytes_max", "The budget of that", kept.log_bytes_max);

    let copy = |c: &crate::node::report::CopyReport| vec![("copy", c.name.clone()), ("az", c.az.clone())];
    let up = report.copies.iter().map(|c| (copy(c), u64::from(c.state == "up"))).collect();
    page.ints("copy_up", "1 while the copy is up to date and acknowledges", up);
    let durable = report.copies.iter().map(|c| (copy(c), c.durable_lsn.0)).collect();
    page.ints("copy_durable_lsn", "Log position durable on the copy", durable);

    copies(&mut page, &report.copies);

    let volume = &report.volume;
    page.int("volume_groups", "Protection groups of the volume", u64::from(volume.groups));
    page.int("volume_segment_bytes", "Size of a segment of page space", volume.segment_bytes);
    let known = [
        ("volume_segments", "Segments that pages were ever in", volume.segments.map(u64::from)),
        ("volume_used_bytes", "Pages that the database has now", volume.used_bytes),
        ("volume_free_bytes", "Of the used bytes, pages that hold nothing", volume.free_bytes),
        ("volume_high_water_bytes", "The most that the used bytes ever were", volume.high_water_bytes),
        ("volume_allocated_bytes", "Log and page versions on the disks, one copy of each group", volume.allocated_bytes),
    ];
    for (name, help, value) in known {
        if let Some(value) = value {
            page.int(name, help, value);
        }
    }

    if report.role != Role::Primary {
        let lag = &report.lag;
        let known = lag.known();
        page.int("lag_known", "1 while the lags of this region are known", u64::from(known));
        let figure = |v: Option<f64>| vec![(own(), v.filter(|_| known))];
        page.floats("lag_durability_milliseconds", "Age of the oldest log that may not be durable here", figure(lag.durability_ms));
        page.floats("lag_rpo_milliseconds", "Commits younger than this may not be durable here", figure(lag.rpo_ms));
        page.floats("lag_visibility_milliseconds", "Age of what a reader sees here", figure(lag.visibility_ms));
        #[expect(clippy::cast_precision_loss, reason = "a gauge of bytes")]
        let amount = |v: Option<u64>| figure(v.map(|n| n as f64));
        page.floats("lag_durability_bytes", "Log bytes durable in the primary and not here", amount(lag.durability_bytes));
        page.floats("lag_visibility_bytes", "Log bytes durable in the primary and not visible here", amount(lag.visibility_bytes));
        page.floats("clock_offset_milliseconds", "The primary's clock minus this one, estimated", vec![(own(), lag.clock_offset_ms)]);
        page.floats("clock_error_milliseconds", "Bound of the error of that estimate", vec![(own(), lag.clock_error_ms)]);
        catching_up(&mut page, "", vec![(own(), report.catching_up.as_ref())]);
        page.floats("round_trip_milliseconds", "Round trip to the primary", vec![(own(), lag.round_trip_ms)]);
    }

    let secondaries = &report.secondaries;
    let of = |r: &crate::node::report::SecondaryReport| vec![("region", r.region.to_string())];
    let lsns = |pick: fn(&crate::node::report::SecondaryReport) -> Lsn| secondaries.iter().map(|s| (of(s), pick(s).0)).collect();
    if report.role == Role::Primary {
        let connected = secondaries.iter().map(|s| (of(s), u64::from(s.state != RegionState::Disconnected))).collect();
        page.ints("secondary_connected", "1 while the primary has a connection to the secondary", connected);
        page.ints("secondary_shipped_lsn", "Log position sent to the secondary", lsns(|s| s.shipped_lsn));
        page.ints("secondary_durable_lsn", "Log position durable in the secondary, as last heard", lsns(|s| s.durable_lsn));
        page.ints("secondary_visible_lsn", "Log position visible in the secondary, as last heard", lsns(|s| s.visible_lsn));
        let in_flight = secondaries.iter().map(|s| (of(s), s.bytes_in_flight)).collect();
        page.ints("secondary_in_flight_bytes", "Log bytes sent to the secondary and not yet durable there", in_flight);
        let lag = |pick: fn(&crate::node::report::LagReport) -> Option<f64>| {
            secondaries.iter().map(|s| (of(s), pick(&s.lag).filter(|_| s.lag.known()))).collect()
        };
        catching_up(&mut page, "secondary_", secondaries.iter().map(|s| (of(s), s.catching_up.as_ref())).collect());
        let sent = secondaries.iter().map(|s| (of(s), s.seed_pages_sent)).collect();
        page.ints("secondary_seed_pages_sent", "Pages sent for seeds since this process started, those sent again among them", sent);
        page.floats("secondary_lag_durability_milliseconds", "As the primary sees it", lag(|l| l.durability_ms));
        page.floats("secondary_lag_rpo_milliseconds", "As the primary sees it", lag(|l| l.rpo_ms));
        page.floats("secondary_lag_visibility_milliseconds", "As the primary sees it", lag(|l| l.visibility_ms));
    }

    if let Some(report) = &report.control {
        control(&mut page, report);
    }
    page.refusals(view.refusals());
    for (name, help, value) in view.counters() {
        let counter = Counter::<f64, AtomicU64>::default();
        counter.inc_by(value);
        page.registry.register(name, help, counter);
    }
    page.text()
}
