//! A region that hears no primary asks the members that it knows whether they know of others.
//!
//! What comes from a stranger is not let in. A region that was added while this one was away may be the primary by now, and may never reach it:
//! those that both know tell of it. Decides when to ask, and what is believed of what comes back: newer voters and their members, which
//! majorities agreed on. Never who reigns, which the primary says for itself, nor who is taken out ([`super::membership`]). Where no order ever
//! changed the members there is nothing to ask. Driven by [`super::machine`].

use super::campaign::FORCED_AHEAD;
use super::machine::Control;
use super::message::{ControlMessage, Stands};
use crate::base::Instant;

impl Control {
    pub(super) fn news_timeout(&self) -> Option<Instant> {
        let idle = self.holder.is_none() && self.campaign.is_none() && !self.is_handing() && self.out().is_none();
        let changed = self.state.as_ref().is_some_and(|s| s.voters.members.is_some());
        (idle && changed).then(|| self.members.asks_at.max(self.seen.at + self.who.settings.lease * 2))
    }

    pub(super) fn news_timers(&mut self) {
        if self.news_timeout().is_some_and(|at| self.now >= at) {
            self.members.asks_at = self.now + self.who.settings.lease;
            let round = self.next_round();
            self.send_others(&ControlMessage::Probe { round });
        }
    }

    /// Seed 715099 of roles: a region was added and made primary while another one heard nobody.
    pub(super) fn news_in(&mut self, stands: &Stands) {
        let asked = stands.round.incarnation == self.incarnation && self.news_timeout().is_some();
        let known = self.state.as_ref().map_or(u64::MAX, |s| s.voters.version);
        // What an operator's word made the voters is told by whoever reigns by it.
        if asked && stands.voters.version > known && stands.voters.version - known < FORCED_AHEAD {
            self.hold_voters(stands.voters.clone());
            self.keep();
            self.take_members();
        }
    }
}
