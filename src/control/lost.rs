//! A region whose copies have lost log that was durable: its disks lied, or old directories were put back.
//!
//! Decides what evidence of that counts (a position of this region's own reign that somebody knows to have been durable and that is not in its log),
//! and what such a region does: it writes nothing, asks for no epoch by itself, and votes for nobody else, because what it promised may be
//! lost as well. It goes on when another region reigns, or when an operator consents to the loss and has it promoted again. Never cuts
//! anything, and never takes a region for healthy because nobody contradicts: what no evidence is left of cannot be told.

use super::machine::Control;
use super::message::Stands;
use crate::base::{Epoch, LogEnd, RegionName};

/// What is known to be missing.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// The reign in which it was durable.
    pub epoch: Epoch,
    pub reason: String,
}

impl Control {
    /// Why this region does not write, and what to do, while its copies lack log that was durable.
    #[must_use]
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_ref().map(|lost| lost.reason.as_str())
    }

    /// `by`, a noun, shows that the log was durable up to `known`, and this region, which wrote it, has it up to `end` only.
    pub(super) fn log_lost(&mut self, known: LogEnd, end: LogEnd, by: &str) {
        let own = self.who.name.clone();
        let Some(top) = self.state.as_ref().and_then(|s| s.chain.top()).cloned() else { return };
        if top.region != own || self.reign.as_ref().is_some_and(|(epoch, region)| *epoch > known.epoch && *region != own) {
            return; // another region reigns by now: whatever is missing here it has, or it was consented to
        }
        let newer = (known.epoch, known.seq) > (self.seen.durable.epoch, self.seen.durable.seq);
        if newer {
            self.seen.durable = known;
        }
        if self.lost.is_some() {
            return;
        }
        let reason = format!(
            "this region's copies have lost log that was durable: what can be proven ends at {end}, and {by} shows that it was durable up to {known}. Disks said that they had \
             synced what they had not, or old directories were put back. Nothing is written here. If another region has more: parhelion failover --to REGION \
             --allow-data-loss; to go on with what is here: parhelion failover --to {own} --allow-data-loss"
        );
        self.note("log_lost", reason.clone());
        self.lost = Some(Lost { epoch: known.epoch, reason: reason.clone() });
        // About that epoch this log proves nothing to anybody, until a later reign is active.
        let until = top.epoch.max(known.epoch).next();
        let state = self.st_mut();
        let cut = state.cut.map_or((known.epoch, until), |(from, reign)| (from.min(known.epoch), reign.max(until)));
        if state.cut != Some(cut) {
            state.cut = Some(cut);
            self.keep();
        }
        self.reason = Some(reason.clone());
        self.lose_reign(&reason, None);
        if self.campaign.as_ref().is_some_and(|c| matches!(c.why, super::campaign::Why::Regain)) {
            self.campaign_refused(reason);
        }
        self.follow();
    }

    /// What another member knows of this region's own reign: as a voter that was told with the renewals, and as a secondary that was shipped only
    /// what was durable.
    pub(super) fn judge_known(&mut self, from: &RegionName, stands: &Stands) {
        if !self.log_told || stands.lineage != self.st().lineage {
            return;
        }
        let Some(top) = self.st().chain.top().filter(|top| top.region == self.who.name) else { return };
        let told = (stands.seen.durable, format!("what it told {from} itself"));
        let has = stands.log.as_ref().map(|log| (log.end, format!("the log of {from}")));
        let epoch = top.epoch;
        let missing = |(at, _): &(LogEnd, String)| at.epoch == epoch && !(at.seq <= self.log.end.seq && self.log.history.contains(at));
        let known = [Some(told), has].into_iter().flatten().filter(missing).max_by_key(|(at, _)| at.seq);
        if let Some((known, by)) = known {
            self.log_lost(known, self.log.end, &by);
        }
    }

    /// A later reign: what was missing is on nobody's mind any more.
    pub(super) fn lost_settled(&mut self, epoch: Epoch) {
        if self.lost.take_if(|lost| epoch > lost.epoch).is_some() {
            self.reason = None;
        }
    }
}
