//! Links to other regions: a message goes to the conversation that its link carries.
//!
//! Decides nothing: [`super::lead`] and [`super::follow`] have the two sides of a conversation.

use super::{Effect, Node, Stage};
use crate::base::{ConnId, Instant, RegionName};
use crate::ship::wire::Control;
use crate::ship::{Message, Refusal};

impl Node {
    pub(super) fn linked(&mut self, now: Instant, conn: ConnId, peer: RegionName, dialled: bool) {
        self.links.insert(conn, peer.clone());
        if dialled {
            let epoch = self.epoch();
            let lineage = self.lineage();
            let hello = self.follower.hello(now, conn, &self.who, &self.appender, lineage, epoch);
            if let (Stage::Following, Some(message)) = (&self.stage, hello) {
                self.effects.push_back(Effect::Send { conn, message });
            } else {
                self.effects.push_back(Effect::Unlink { conn, reason: "this region does not look for a primary now".into() });
            }
        }
    }

    pub(super) fn unlinked(&mut self, now: Instant, conn: ConnId, reason: &str) {
        self.links.remove(&conn);
        self.heard.remove(&conn);
        self.reads.retain(|_, c| *c != conn);
        if let Some(region) = self.leader.unlinked(now, self.wall, conn) {
            self.note("secondary_disconnected", format!("{region}: {reason}"));
            // Whether commits may go on without it is a matter of the rules, also while none waits.
            self.release(now);
        }
        if let Some(primary) = self.follower.unlinked(now, self.wall, conn) {
            self.note("primary_disconnected", format!("{primary}: {reason}"));
        }
    }

    pub(super) fn unlink(&mut self, now: Instant, conn: ConnId, reason: String) {
        self.effects.push_back(Effect::Unlink { conn, reason: reason.clone() });
        self.unlinked(now, conn, &reason);
    }

    pub(super) fn received(&mut self, now: Instant, conn: ConnId, message: Message) {
        let Some(peer) = self.links.get(&conn).cloned() else { return };
        self.heard.insert(conn, now);
        if self.leader.has(conn) {
            self.lead_received(now, conn, message);
        } else if self.follower.is_on(conn) {
            self.follow_received(now, conn, message);
        } else if let Message::Control(Control::Hello(hello)) = message {
            self.greet(now, conn, &peer, &hello);
        }
        // Anything else on a link without a conversation is late: its conversation is over.
    }

    pub(super) fn refuse(&mut self, conn: ConnId, refusal: Refusal, region: &RegionName) {
        self.note("refused", format!("region {region} may not follow: {refusal}"));
        self.effects.push_back(Effect::Send { conn, message: Message::Control(Control::Refused(refusal)) });
    }

    pub(super) fn tag_for(&mut self, conn: ConnId) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.reads.insert(tag, conn);
        tag
    }
}
