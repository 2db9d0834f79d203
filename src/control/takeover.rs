//! How a campaign ends: a region takes over behind a base, or it does not.
//!
//! Decides what the new reign's entry and its failover say, and what becomes of the operation when it is refused, fails, or another
//! region is first. Driven by [`super::campaign`], which decided that it may.

use super::api::{Output, Promotion};
use super::audit::Action;
use super::campaign::{Campaign, FORCED_AHEAD, Stage, Why};
use super::chain::{EpochEntry, ReignKind};
use super::elect::{Evidence, Heard, NoOutcome, Outcome, describe};
use super::machine::Control;
use super::members::Membership;
use super::types::{Consent, FailoverRecord, OpId, Phase, VoterSet};
use crate::base::{Epoch, RegionName};
use std::collections::BTreeMap;

impl Control {
    // ---- taking over ----------------------------------------------------------------------------------------------------

    pub(super) fn take_over(&mut self, outcome: Outcome, consent: Consent) {
        let campaign = self.campaign.as_ref().expect("BUG: takes over for nobody");
        let (op, actor, forced) = match &campaign.why {
            // One that was told to have failed has no effect any more; what only this region can do is done all the same.
            Why::Handover(h) => {
                let op = Some(h.op.order.id).filter(|op| self.op(*op).is_none_or(|o| !o.state.is_final()));
                (op, h.op.order.actor.clone(), false)
            }
            Why::Failover { op, actor, forced, .. } => (Some(*op), actor.clone(), *forced),
            Why::Auto { op } => (Some(*op), "auto_failover".to_owned(), false),
            Why::Regain => (None, String::new(), false),
        };
        let auto = matches!(campaign.why, Why::Auto { .. });
        let epoch = campaign.epoch;
        let kind = if forced { ReignKind::Unproven } else { outcome.kind };
        let entry = EpochEntry {
            epoch,
            region: self.who.name.clone(),
            prev: outcome.prev,
            base: outcome.base,
            kind,
            op,
            // What the silent region may change alone meanwhile, its members and voters, is older than this.
            voters_version: self.st().voters.version + if forced { FORCED_AHEAD } else { 0 },
            began_at: self.wall,
        };
        let record = op.filter(|_| matches!(kind, ReignKind::Unplanned | ReignKind::Unproven)).map(|op| FailoverRecord {
            op,
            from: outcome.from.clone(),
            to: self.who.name.clone(),
            old_epoch: outcome.prev,
            new_epoch: epoch,
            began_at: self.wall,
            actor: actor.clone(),
            consent,
            unproven: forced,
            complete: outcome.loss.is_none_for_sure(),
            loss: outcome.loss.clone(),
            tail: None,
        });
        let who = if actor.is_empty() { format!("{}, which was the last primary", self.who.name) } else { actor.clone() };
        let what = format!(
            "takes epoch {epoch} behind {}, after {} of epoch {}: {}",
            entry.base,
            outcome.from,
            outcome.prev,
            describe(&outcome.loss)
        );
        let (by_word, promoted) = ("forced_promotion", "promotion");
        self.audit(Action { actor: who, op, kind: if forced { by_word } else { promoted }, what });
        let state = self.st_mut();
        if let Some(from) = outcome.cuts {
            // Until this reign is active another quorum may find an earlier last one, and this log then lacks what it cut.
            state.cut = Some(state.cut.map_or((from, epoch), |(before, reign)| (before.min(from), reign.max(epoch))));
        }
        // A failover that was won and never opened goes on in this reign: what it loses was agreed to then.
        state.pending = outcome.inherited.iter().cloned().chain(record).collect();
        for earlier in &outcome.path {
            // They come from a majority: it was asked whether any two of them disagree.
            if let Err(two) = state.chain.insert(earlier.clone()) {
                self.two_writers(two.to_string());
                return self.campaign_refused(two.to_string());
            }
        }
        self.keep();
        if auto {
            self.op_began_by_itself(op.expect("BUG: it has an id"), &outcome);
        }
        self.op_taking(&entry, &outcome);
        self.note("elected", format!("{} takes epoch {epoch} behind {} ({})", self.who.name, entry.base, describe(&outcome.loss)));
        let campaign = self.campaign.as_mut().expect("BUG: just seen");
        (campaign.stage, campaign.begun) = (Stage::Taking { entry: Box::new(entry.clone()) }, true);
        self.output_when_kept(Output::Promote { epoch, how: Promotion::Begin { entry } });
    }

    /// The volume is to be taken for this epoch, still.
    pub(super) fn is_taking(&self, epoch: Epoch) -> bool {
        let campaign = self.campaign.as_ref().is_some_and(|c| c.epoch == epoch && matches!(c.stage, Stage::Taking { .. }));
        campaign || self.holder.as_ref().is_some_and(|h| h.epoch() == epoch && h.is_taking())
    }

    pub(super) fn promoted(&mut self, epoch: Epoch) {
        if self.resumed(epoch) {
            return;
        }
        let taking = self.campaign.as_ref().is_some_and(|c| c.epoch == epoch && matches!(c.stage, Stage::Taking { .. }));
        if !taking {
            return;
        }
        let Some(Campaign { stage: Stage::Taking { entry }, why, .. }) = self.campaign.take() else { unreachable!("BUG: just seen") };
        self.op_phase_of(entry.op, Phase::Activate);
        if entry.kind == ReignKind::Unproven && entry.voters_version > self.st().voters.version {
            // The operator's word stands for the majority: this region is the only voter from here on. In one piece with its reign, so that a
            // crash before leaves the old vote where it was, and one after goes on here (seed 68 of roles).
            let name = self.who.name.clone();
            let members = self.st_mut().voters.members.take();
            self.hold_voters(VoterSet { version: entry.voters_version, voters: vec![name.clone()], heard: vec![name], members });
            if let Err(two) = self.st_mut().chain.insert((*entry).clone()) {
                self.two_writers(two.to_string());
                return self.op_failed(entry.op.unwrap_or(OpId(0)), two.to_string());
            }
            self.keep();
        }
        self.activate(*entry, Some(why));
    }

    pub(super) fn promotion_failed(&mut self, epoch: Epoch, reason: &str) {
        if self.not_resumed(epoch) {
            self.reason = Some(format!("the volume could not be taken: {reason}"));
            return;
        }
        if self.campaign.as_ref().is_some_and(|c| c.epoch == epoch && matches!(c.stage, Stage::Taking { .. })) {
            self.campaign_failed(format!("the volume could not be taken: {reason}"));
        }
    }

    pub(super) fn weigh(&self, heard: &BTreeMap<RegionName, Heard>) -> Result<Outcome, NoOutcome> {
        let handed = self.campaign.as_ref().and_then(|c| match &c.why {
            Why::Handover(h) => Some((h.epoch, h.at)),
            _ => None,
        });
        // A change of the members that is not agreed on here may be in the primary: whoever may be a secondary there counts as one.
        let mut regions = self.who.regions.clone();
        let next = self.st().voters_next.as_ref().and_then(|n| n.members.as_ref());
        regions.extend(next.into_iter().flat_map(Membership::names).filter(|r| !self.who.regions.contains(r)));
        let (own, voters, log) = (&self.who.name, &self.st().voters, &self.log);
        let forced = self.campaign.as_ref().is_some_and(|c| matches!(c.why, Why::Failover { forced: true, .. }));
        // A primary that votes alone holds its lease from itself.
        let lease = (!forced).then(|| self.st().grant_max().max(self.who.settings.lease));
        let mut outcome = Evidence { own, regions: &regions, voters, log, heard, lease, handed }.weigh()?;
        if forced
            && outcome.from == *own
            && let Some(voter) = voters.voters.iter().find(|v| *v != own)
        {
            // It handed over and never heard how that ended: whoever got the only vote is who may have written since.
            outcome.from = voter.clone();
        }
        Ok(outcome)
    }

    // ---- ending ---------------------------------------------------------------------------------------------------------

    /// Not now: again after a while, as long as there is time.
    pub(super) fn rest(&mut self, why: &str) {
        self.reason = Some(why.to_owned());
        let next = self.back_off();
        let Some(campaign) = &mut self.campaign else { return };
        match campaign.why {
            Why::Handover(_) => self.campaign_failed(why.to_owned()),
            Why::Auto { .. } => {
                self.campaign = None;
                self.not_before = next;
            }
            _ => (campaign.stage, campaign.next) = (Stage::Rests, next),
        }
    }

    /// Nothing was changed, and nothing will be.
    pub(super) fn campaign_refused(&mut self, reason: String) {
        let Some(campaign) = self.campaign.take() else { return };
        self.reason = Some(reason.clone());
        self.not_before = self.back_off();
        match campaign.why {
            Why::Failover { op, .. } if campaign.begun => {
                self.op_failed(
                    op,
                    format!("{reason}. An epoch of it was begun before and never opened; parhelion status shows who is the primary"),
                );
            }
            Why::Failover { op, .. } => self.op_refused(op, reason),
            Why::Handover(h) => self.op_failed(h.op.order.id, reason),
            Why::Regain | Why::Auto { .. } => {}
        }
    }

    pub(super) fn campaign_failed(&mut self, reason: String) {
        let Some(campaign) = self.campaign.take() else { return };
        self.not_before = self.back_off();
        match campaign.why {
            Why::Failover { op, .. } | Why::Auto { op } => self.op_failed(op, reason),
            Why::Handover(h) => self.op_failed(h.op.order.id, reason),
            Why::Regain => {}
        }
    }

    /// Another region reigns by now.
    pub(super) fn campaign_superseded(&mut self, epoch: Epoch, region: &RegionName) {
        let Some(campaign) = self.campaign.take() else { return };
        match campaign.why {
            Why::Failover { op, .. } | Why::Auto { op } => self.op_superseded(op, epoch, region),
            Why::Handover(h) => self.op_superseded(h.op.order.id, epoch, region),
            Why::Regain => {}
        }
    }

    /// It promised another candidate more than it asks for itself.
    pub(super) fn campaign_overtaken(&mut self, epoch: Epoch, by: &RegionName) {
        let overtaken =
            self.campaign.as_ref().is_some_and(|c| c.epoch < epoch && matches!(c.stage, Stage::Voting { .. } | Stage::Taking { .. }));
        if !overtaken {
            return;
        }
        // An operator's order waits for who reigns in the end, and is told.
        let waits = |c: &Campaign| matches!(c.stage, Stage::Voting { .. }) || matches!(c.why, Why::Failover { .. });
        let rests = self.campaign.as_ref().is_some_and(waits);
        let what = format!("{by} was promised epoch {epoch} in between");
        if rests { self.rest(&what) } else { self.campaign_failed(what) }
    }
}
