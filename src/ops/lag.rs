//! The lag of every region, in milliseconds and bytes, with what it was measured by.
//!
//! Decides only what `parhelion lag` and the demo's live table show; the figures come from [`ClusterStatus`], and one that is
//! not known is said to be unknown, with since when.

use super::status::{ClusterStatus, RegionStatus, lag_cells};
use super::text;
use crate::base::{RegionName, UnixMicros};
use crate::node::report::{RegionState, Role};

/// `lag --json`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LagView {
    pub cluster: String,
    pub primary: Option<RegionName>,
    pub at: UnixMicros,
    pub regions: Vec<RegionLag>,
}

/// One region's lags; null where not known. See [`RegionStatus`] for the primary's own.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RegionLag {
    pub name: RegionName,
    pub role: Role,
    pub state: RegionState,
    pub lag_known: bool,
    pub lag_unknown_since: Option<UnixMicros>,
    pub measured_at: Option<UnixMicros>,
    pub durability_lag_ms: Option<f64>,
    pub durability_lag_bytes: Option<u64>,
    pub rpo_lag_ms: Option<f64>,
    pub visibility_lag_ms: Option<f64>,
    pub visibility_lag_bytes: Option<u64>,
    pub round_trip_ms: Option<f64>,
    pub clock_offset_ms: Option<f64>,
    pub clock_error_ms: Option<f64>,
}

impl LagView {
    #[must_use]
    pub fn of(status: &ClusterStatus) -> LagView {
        let region = |r: &RegionStatus| RegionLag {
            name: r.name.clone(),
            role: r.role,
            state: r.state,
            lag_known: r.lag_known,
            lag_unknown_since: r.lag_unknown_since,
            measured_at: r.lag_measured_at,
            durability_lag_ms: r.durability_lag_ms,
            durability_lag_bytes: r.durability_lag_bytes,
            rpo_lag_ms: r.rpo_lag_ms,
            visibility_lag_ms: r.visibility_lag_ms,
            visibility_lag_bytes: r.visibility_lag_bytes,
            round_trip_ms: r.round_trip_ms,
            clock_offset_ms: r.clock_offset_ms,
            clock_error_ms: r.clock_error_ms,
        };
        LagView {
            cluster: status.cluster.clone(),
            primary: status.primary.clone(),
            at: status.at,
            regions: status.regions.iter().map(region).collect(),
        }
    }
}

/// The table of lags, for a person.
#[must_use]
pub fn render(status: &ClusterStatus) -> String {
    let behind = |known: bool, bytes: Option<u64>| match bytes {
        Some(n) if known => text::bytes(n),
        _ => "?".to_owned(),
    };
    let rows = status
        .regions
        .iter()
        .map(|r| {
            let [durability, rpo, visibility] = lag_cells(r, status.at);
            let clock = match (r.clock_offset_ms, r.clock_error_ms) {
                (Some(offset), Some(error)) => format!("{offset:+.1} +-{error:.1} ms"),
                _ => "?".to_owned(),
            };
            let own = r.role == Role::Primary;
            let or_dash = |text: String| if own { "-".to_owned() } else { text };
            vec![
                r.name.to_string(),
                text::word(&r.state),
                durability,
                or_dash(behind(r.lag_known, r.durability_lag_bytes)),
                rpo,
                visibility,
                or_dash(behind(r.lag_known, r.visibility_lag_bytes)),
                or_dash(r.round_trip_ms.map_or_else(|| "?".to_owned(), |ms| format!("{ms:.1} ms"))),
                or_dash(clock),
            ]
        })
        .collect();
    let header = ["REGION", "STATE", "DURABILITY", "BYTES", "RPO", "VISIBILITY", "BYTES", "ROUND TRIP", "PRIMARY'S CLOCK"];
    text::table(&header, &[2, 3, 4, 5, 6, 7, 8], rows)
}

/// One line, for a pipe: `10:41:05 us-east writable | eu-west 41.0 ms | ap-south unknown since 10:40:35`. The figure is the
/// visibility lag.
#[must_use]
pub fn line(status: &ClusterStatus) -> String {
    let regions: Vec<String> = status
        .regions
        .iter()
        .map(|r| match r.visibility_lag_ms {
            Some(_) if r.role == Role::Primary => format!("{} {}", r.name, text::word(&r.state)),
            Some(ms) if r.lag_known => format!("{} {} {}", r.name, text::word(&r.state), text::lag_ms(ms)),
            _ => format!("{} {} {}", r.name, text::word(&r.state), lag_cells(r, status.at)[0]),
        })
        .collect();
    format!("{} {}", text::clock(status.at, status.at), regions.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::status::merge;
    use crate::ops::status::tests::{NOW, name, sample};

    #[test]
    fn unknown_is_never_zero() {
        let mut west = sample("eu-west", Role::Secondary);
        west.lag = crate::node::report::LagReport { unknown_since: Some(UnixMicros(NOW.0 - 30_000_000)), ..Default::default() };
        west.state = RegionState::Disconnected;
        let south = sample("ap-south", Role::Secondary);
        let members = [name("us-east"), name("eu-west"), name("ap-south")];
        let answers = [sample("us-east", Role::Primary), west, south].map(|r| (r.region.clone(), Ok(r))).into();
        let status = merge(&members[0], NOW, &members, &answers, &None);
        let text = render(&status);
        let row = text.lines().find(|l| l.starts_with("eu-west")).unwrap();
        assert!(row.contains("unknown since 10:40:35"), "{text}");
        assert!(text.lines().any(|l| l.starts_with("ap-south") && l.contains("41.0 ms") && l.contains("20 B")), "{text}");
        assert_eq!(line(&status), "10:41:05 us-east writable | eu-west disconnected unknown since 10:40:35 | ap-south streaming 41.0 ms");
        let json = serde_json::to_value(LagView::of(&status)).unwrap();
        assert!(json["regions"][1]["rpo_lag_ms"].is_null());
        assert_eq!((&json["regions"][1]["lag_known"], &json["regions"][2]["rpo_lag_ms"]), (&false.into(), &40.5.into()));
    }
}
