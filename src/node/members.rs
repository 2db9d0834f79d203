//! Regions that come and go: what the rest of a region does when the members change.
//!
//! Decides nothing: the control core says who is a member ([`crate::control::membership`]). Here conversations with those that are none
//! any more end, what was kept for them is forgotten, and a region that was taken out shows its readers nothing.

use super::{Effect, Node};
use crate::base::{ConnId, Instant, LineageId, RegionName};
use crate::control::MembersView;

impl Node {
    /// Which history this region's data is. The volume keeps the name of the one that it was founded with, whatever goes on in it.
    pub(super) fn lineage(&self) -> Option<LineageId> {
        let of_the_volume = self.appender.lineage()?;
        Some(self.control.as_ref().map_or(of_the_volume, |c| c.voter.lineage))
    }

    pub(super) fn take_members(&mut self, now: Instant, view: MembersView) {
        self.roles.leaving = None;
        self.who.members = view.regions.iter().map(|m| m.name.clone()).collect();
        self.follower.candidates_are(self.who.members.iter().filter(|m| **m != self.who.region).cloned().collect());
        self.leader.forget_all_but(&self.who.members);
        let strangers = |peer: &RegionName| *peer != self.who.region && !self.who.members.contains(peer);
        let gone: Vec<(ConnId, RegionName)> = self.links.iter().filter(|(_, p)| strangers(p)).map(|(c, p)| (*c, p.clone())).collect();
        for (conn, peer) in gone {
            self.unlink(now, conn, format!("{peer} is no member any more"));
        }
        self.leader.forget_all_but(&self.who.members);
        self.effects.push_back(Effect::Members(Box::new(view)));
        self.release(now);
    }

    /// The primary counts on it no more, before anybody agrees that it leaves.
    pub(super) fn let_go(&mut self, now: Instant, region: &RegionName) {
        self.roles.leaving = Some(region.clone());
        let conns: Vec<ConnId> = self.links.iter().filter(|(_, p)| *p == region).map(|(c, _)| *c).collect();
        for conn in conns {
            self.unlink(now, conn, format!("{region} is being taken out of the global cluster"));
        }
    }

    /// Whether `peer` may follow this region.
    pub(super) fn is_welcome(&self, peer: &RegionName) -> bool {
        self.who.members.contains(peer) && self.roles.leaving.as_ref() != Some(peer)
    }

    /// A region that was taken out serves nothing; one that is back is read again when it follows.
    pub(super) fn judge_out(&mut self, now: Instant) {
        let out = self.roles.out();
        if out.is_some() == self.roles.hidden {
            return;
        }
        self.roles.hidden = out.is_some();
        match out {
            Some(reason) => {
                self.roles.unsettled = true;
                self.stop_following(now, "this region was taken out of the global cluster");
                self.effects.push_back(Effect::HeadHides { reason });
            }
            None => self.note("taken_in", format!("{} is a member again", self.who.region)),
        }
    }
}
