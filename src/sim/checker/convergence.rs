//! The healthy end: all six copies of all regions are the same, byte for byte, and the lag is known.

use super::Checked;
use super::truth::without_zeros;
use crate::base::{PageNo, Seq};
use crate::node::report::RegionState;
use crate::sim::world::World;
use crate::volume::{CopyReply, CopyRequest};

impl World {
    /// What keeps the cluster from being converged; `None` when nothing does.
    pub(in crate::sim) fn trouble(&self) -> Option<String> {
        let end = *self.truth.at(self.truth.committed().seq)?;
        for (r, region) in self.regions.iter().enumerate() {
            let name = &region.name;
            let Some(node) = &region.node else { return Some(format!("{name} does not run")) };
            let positions = node.log_positions();
            if positions != (end, end) {
                return Some(format!("{name} has its end at {} and its VDL at {}, the primary committed {end}", positions.0, positions.1));
            }
            if region.head.visible != end || !region.head.waiting.is_empty() {
                return Some(format!("{name}: readers see {}", region.head.visible));
            }
            for (c, slot) in self.members().zip(&region.copies) {
                if slot.is_rotten() && !slot.rots_unread() {
                    return Some(format!("{name}: a file of copy {c} is damaged and nobody repaired it"));
                }
                let Some(copy) = &slot.copy else { return Some(format!("{name}: copy {c} is down")) };
                if slot.claim != end {
                    return Some(format!("{name}: copy {c} ends at {}", slot.claim));
                }
                if copy.pages().ingested() != end.end_lsn {
                    return Some(format!("{name}: copy {c} has pages up to {} of {}", copy.pages().ingested(), end.end_lsn));
                }
            }
            let report = node.report(region.local(self.now), region.wall(self.now));
            if report.copies.iter().any(|c| c.state != "up") {
                let states: Vec<&str> = report.copies.iter().map(|c| c.state.as_str()).collect();
                return Some(format!("{name}: not all copies count as up: {}", states.join(" ")));
            }
            if r == self.primary() {
                if report.state != RegionState::Writable || !region.head.gate_open {
                    return Some(format!("{name}: {:?}", report.state));
                }
                let following = report.secondaries.iter().filter(|s| s.state != RegionState::Disconnected && s.lag.known()).count();
                if following + 1 < self.regions.len() {
                    return Some(format!("{name} knows the lag of {following} secondaries"));
                }
            } else if !report.lag.known() || report.state == RegionState::Disconnected || report.disconnected_since.is_some() {
                return Some(format!("{name}: {:?}, lag {:?}", report.state, report.lag));
            } else if report.lag.durability_bytes != Some(0) || report.lag.visibility_bytes != Some(0) {
                return Some(format!("{name}: everything is there and the lag is {:?}", report.lag));
            }
        }
        None
    }

    /// Every log and every page of every copy against the model.
    pub(in crate::sim) fn compare_everything(&mut self) -> Checked {
        let end = *self.truth.committed();
        for r in 0..self.regions.len() {
            for c in self.members() {
                let name = self.regions[r].name.clone();
                let slot = &mut self.regions[r].copies[c.index()];
                let Some(copy) = &mut slot.copy else { return Err(format!("{name}: copy {c} went down while nothing failed")) };
                let mut at = copy.state().first;
                while at <= end.seq {
                    let mut replies = Vec::new();
                    copy.handle(CopyRequest::ReadLog { id: 1, from: at, bytes_max: 1 << 16 }, &mut replies);
                    let Some(CopyReply::Log { frames, .. }) = replies.pop() else {
                        return Err(format!("{name}: copy {c} cannot read its own log at seq {at}"));
                    };
                    for frame in &frames {
                        let same = self.truth.has(&frame.log_end())
                            && self.truth.frame(&frame.log_end()).is_some_and(|f| f.for_group(c.group).bytes() == frame.bytes());
                        if !same {
                            return Err(format!(
                                "{name}: copy {c} has {frame:?}, the primary's history has {:?}",
                                self.truth.at(frame.seq())
                            ));
                        }
                    }
                    let Some(last) = frames.last() else { return Err(format!("{name}: copy {c} reads nothing at seq {at}")) };
                    at = Seq(last.seq().0 + 1);
                }
                let pages = copy.pages();
                for page in self.truth.page_numbers().into_iter().filter(|p| self.plan.layout.group_of(PageNo(*p)) == c.group) {
                    let got = pages.read(PageNo(page), end.end_lsn).map_err(|e| format!("{name}: copy {c}, page {page}: {e}"))?;
                    if without_zeros(&got) != self.truth.page(PageNo(page), end.end_lsn) {
                        return Err(format!("{name}: copy {c} has another page {page} at LSN {} than the model", end.end_lsn));
                    }
                }
            }
        }
        Ok(())
    }

    /// Where everybody is, for a failure's text.
    pub(in crate::sim) fn describe(&self) -> String {
        let regions: Vec<String> = self
            .regions
            .iter()
            .map(|region| {
                let Some(node) = &region.node else { return format!("{} is down", region.name) };
                let report = node.report(region.local(self.now), region.wall(self.now));
                let copies: Vec<String> = report
                    .copies
                    .iter()
                    .zip(&region.copies)
                    .map(|(c, slot)| format!("{} {} @{}", c.name, c.state, slot.claim.seq))
                    .collect();
                let (end, vdl) = node.log_positions();
                format!(
                    "{} {:?} ({}) end {} VDL {} [{}]",
                    region.name,
                    report.state,
                    report.reason.unwrap_or_default(),
                    end.seq,
                    vdl.seq,
                    copies.join(", ")
                )
            })
            .collect();
        regions.join("; ")
    }
}
