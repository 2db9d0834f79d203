//! What a region says of itself: nothing unknown is shown as 0, positions keep their order.

use super::Checked;
use crate::base::Lsn;
use crate::node::report::{LagReport, RegionReport, RegionState, Role};
use crate::sim::world::{MS, What, World};

fn shows_a_figure(lag: &LagReport) -> bool {
    lag.durability_ms.is_some() || lag.rpo_ms.is_some() || lag.visibility_ms.is_some()
}

impl World {
    pub(in crate::sim) fn check_status(&mut self) -> Checked {
        self.after(150 * MS, What::Status);
        for r in 0..self.regions.len() {
            let region = &self.regions[r];
            let Some(node) = &region.node else { continue };
            let report = node.report(region.local(self.now), region.wall(self.now));
            let primary = self.primary();
            let linked = r != primary && self.network.is_linked(r, primary);
            let wrong = judge(&report, linked, self.regions[r].copies.len());
            if let Some(wrong) = wrong {
                return Err(format!("status: {}: {wrong}", region.name));
            }
        }
        Ok(())
    }
}

fn judge(report: &RegionReport, linked: bool, members: usize) -> Option<String> {
    let ordered = [("written", report.written_lsn), ("durable", report.durable_lsn), ("visible", report.visible_lsn)];
    // While a volume is seeded anew its readers still see the old one.
    if report.durable_lsn != Lsn(0)
        && let Some(pair) = ordered.windows(2).find(|w| w[0].1 < w[1].1)
    {
        return Some(format!("{} {} is behind {} {}", pair[0].0, pair[0].1, pair[1].0, pair[1].1));
    }
    if report.copies.len() != members {
        return Some("it does not show six copies of each group".into());
    }
    if report.role == Role::Secondary && report.state == RegionState::Disconnected {
        if shows_a_figure(&report.lag) {
            return Some("disconnected, and a lag is shown".into());
        }
        if report.lag.unknown_since.is_none() || report.disconnected_since.is_none() {
            return Some("disconnected, and not since when".into());
        }
    }
    if report.lag.known() && report.lag.clock_error_ms.is_none() {
        return Some("a lag is known and its error is not".into());
    }
    if report.role == Role::Secondary && report.state == RegionState::Idle && !linked && report.lag.unknown_since.is_none() {
        // Heartbeats stop with the link; for two seconds it may not know.
        return None;
    }
    if report.role == Role::Primary && (shows_a_figure(&report.lag) || report.disconnected_since.is_some()) {
        return Some("the primary shows a lag of its own".into());
    }
    if report.state == RegionState::Fenced && report.reason.is_none() {
        return Some("writes are stopped and no reason is given".into());
    }
    report
        .secondaries
        .iter()
        .find(|s| s.state == RegionState::Disconnected && shows_a_figure(&s.lag))
        .map(|s| format!("secondary {} is disconnected, and a lag is shown", s.region))
}
