//! The target's half of a planned switchover: it takes over what its primary sealed.
//!
//! Decides whether a handover is taken, and for which epoch. Where two regions have one vote between them it came with the handover: then
//! this region alone can go on, and it does, however often the handover is interrupted (rule 20). Driven by [`super::machine`].

use super::campaign::{Stage, Why};
use super::machine::Control;
use super::message::{ControlMessage, Handover};
use super::types::{OpState, OpView, Phase};
use crate::base::{Epoch, RegionName};

impl Control {
    /// The old primary handed over, and its last frame is not here yet.
    pub(super) fn awaits_frame(&self) -> bool {
        self.campaign.as_ref().is_some_and(|c| match (&c.why, &c.stage) {
            (Why::Handover(h), Stage::Voting { .. }) => self.log.end.seq < h.at.seq,
            _ => false,
        })
    }

    /// The handover of its primary: its vote is in it, and its epoch is over.
    pub(super) fn on_handover(&mut self, from: RegionName, handover: Handover) {
        let Some(state) = &self.state else { return };
        let id = handover.op.order.id;
        let next = handover.epoch.next();
        let wrong = handover.lineage != state.lineage || handover.op.order.kind.to() != Some(&self.who.name);
        let over = self.reign.as_ref().is_some_and(|(e, _)| *e >= next) || state.chain.get(next).is_some();
        if wrong || over || !self.log_told || self.is_taking_handed(&handover) {
            return;
        }
        let state = self.st();
        let heir = handover.voters.version >= state.voters.version && handover.voters.voters == [self.who.name.clone()];
        let ended = state.ledger.op(id).filter(|v| v.state.is_final()).cloned();
        if let Some(view) = ended.clone() {
            // Given up here, for good, as far as the operation goes. Whoever handed over goes on, unless nobody but this region can.
            self.send(from.clone(), ControlMessage::Op(Box::new(view)));
            let ordered = self.campaign.as_ref().is_some_and(|c| matches!(c.why, Why::Failover { .. }));
            if !heir || ordered || self.now < self.not_before {
                return;
            }
        }
        let state = self.st();
        let own_vote = state.voted_for.as_ref() == Some(&self.who.name);
        if !heir && state.promised >= next && !own_vote {
            self.send(from, ControlMessage::Op(Box::new(self.cannot_take(handover.op, state.promised))));
            return;
        }
        // Of an only voter's earlier tries nothing may come back under the same number. Nor of a reign that this region began before it
        // restarted: what lies here of it may have been active, so its votes are asked for anew.
        let begun = self.log.end.epoch >= next || state.promised > next;
        let epoch = if heir || begun { next.max(state.promised.next()) } else { next };
        if handover.voters.version > state.voters.version {
            self.hold_voters(handover.voters.clone());
            self.keep();
            self.take_members();
        }
        self.st_mut().ledger.merge(&handover.ledger);
        self.learn_auto(handover.vote.auto);
        // The reign that is handed over was active, whether this region has heard of it or not.
        for entry in handover.vote.chain.path(handover.epoch).into_iter().rev() {
            match self.st_mut().chain.insert(entry.clone()) {
                Ok(true) => self.keep(),
                Ok(false) => {}
                Err(two) => return self.two_writers(two.to_string()),
            }
        }
        if self.holder.is_some() {
            return;
        }
        if self.campaign.as_ref().is_some_and(|c| matches!(c.why, Why::Failover { .. })) {
            self.campaign_refused(format!("{from} is handing over to this region"));
        }
        if ended.is_none() {
            self.op_handed(&from, handover.op.clone());
        }
        self.campaign_for(Why::Handover(Box::new(handover)), None, self.now);
        self.vote_for_own(epoch);
    }

    /// It is at this one already. After a restart of the old primary the same handover may end elsewhere: what was never durable there is
    /// gone, or what was only on a few of its copies counts; either way nothing was acknowledged behind either end.
    fn is_taking_handed(&mut self, handover: &Handover) -> bool {
        let Some(campaign) = &mut self.campaign else { return false };
        match (&mut campaign.why, &campaign.stage) {
            (Why::Handover(known), stage) if known.op.order.id == handover.op.order.id => {
                if known.at != handover.at && !matches!(stage, Stage::Taking { .. }) {
                    known.at = handover.at;
                    if let Some(from) = &handover.op.from {
                        campaign.handed_again(from.clone(), &handover.vote);
                    }
                }
                true
            }
            _ => false,
        }
    }

    fn op_handed(&mut self, from: &RegionName, view: OpView) {
        let watchers = self.orders.watchers.entry(view.order.id).or_default();
        watchers.insert(from.clone());
        let by = self.who.name.clone();
        self.orders.running = Some(OpView { by, state: OpState::Running(Phase::HandOver), ..view });
        self.orders.phase_since = self.now;
        self.publish_running();
    }

    fn cannot_take(&self, view: OpView, promised: Epoch) -> OpView {
        let reason = format!("{} cannot take over: it promised epoch {promised}, or its volume is not there", self.who.name);
        OpView { by: self.who.name.clone(), state: OpState::Failed { reason }, ..view }
    }
}
