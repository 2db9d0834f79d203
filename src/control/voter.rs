//! The voter: whom this member lets reign.
//!
//! Decides grants of a lease and votes (protocol.md rules 2 and 10). Everything it promises is kept before the answer leaves. A member
//! without a vote goes through the same: it learns who reigns, and what it promises a candidate keeps an older primary's frames out.

use super::api::Output;
use super::audit::Action;
use super::machine::{Control, LastSeen, millis_up};
use super::message::{ControlMessage, Renew, Round, Vote, Voted};
use super::state::VoterState;
use crate::base::{Epoch, Instant, RegionName};
use std::time::Duration;

/// No lease is granted for longer, whatever is asked.
const LEASE_MAX: Duration = Duration::from_secs(60);

/// A lease that this member granted.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub epoch: Epoch,
    pub region: RegionName,
    /// On its own clock, counted from when it granted.
    pub until: Instant,
}

impl Control {
    // ---- grants ---------------------------------------------------------------------------------------------------------

    pub(super) fn on_renew(&mut self, from: RegionName, renew: Renew) {
        let (epoch, round) = (renew.entry.epoch, renew.round);
        if renew.entry.region != from {
            return;
        }
        if self.state.is_none() {
            self.adopt(&renew);
        }
        let ours = self.same_lineage(&from, renew.lineage);
        let member = renew.voters.members.as_ref().is_some_and(|m| m.contains(&self.who.name));
        if ours && member && self.members.refused_by.contains(&from) {
            self.said_in(); // also one whose reign is over, and who is about to hear of it
        }
        if let Err(reason) = self.may_grant(&renew) {
            if !ours {
                let stands = Box::new(self.stands(Round::default()));
                self.send(from.clone(), ControlMessage::Stands(stands));
            }
            let state = self.st();
            let (promised, reign) = (state.promised, self.reign.clone());
            self.send(from, ControlMessage::Refused { epoch, round, promised, reign, reason });
            return;
        }
        if let Err(two) = self.st_mut().chain.insert(renew.entry.clone()).map(|news| news.then(|| self.keep())) {
            self.two_writers(two.to_string());
            let (promised, reign) = (self.st().promised, self.reign.clone());
            self.send(from, ControlMessage::Refused { epoch, round, promised, reign, reason: two.to_string() });
            return;
        }
        for earlier in &renew.path {
            // They are on the path of a reign that is granted: whoever learns of them only knows more.
            match self.st_mut().chain.insert(earlier.clone()) {
                Ok(true) => self.keep(),
                Ok(false) => {}
                Err(two) => self.two_writers(two.to_string()),
            }
        }
        if epoch > self.st().promised {
            self.promise(epoch, &from);
        }
        self.said_in();
        self.take_voters(&renew);
        if renew.sync > self.st().sync {
            self.st_mut().sync = renew.sync;
            self.keep();
        }
        self.learn_auto(renew.auto);
        if from != self.who.name {
            let newer = (renew.durable.epoch, renew.durable.seq) >= (self.seen.durable.epoch, self.seen.durable.seq);
            let durable = if newer { renew.durable } else { self.seen.durable };
            self.seen = LastSeen { durable, sent_at: self.seen.sent_at.max(renew.sent_at), at: self.now };
        }
        if from != self.who.name {
            self.campaign_needless();
        }
        let lease = Duration::from_millis(renew.lease_ms).min(LEASE_MAX);
        if lease > self.st().grant_max() {
            self.st_mut().grant_ms_max = renew.lease_ms.min(millis_up(LEASE_MAX));
            self.keep();
        }
        self.grant = Some(Grant { epoch, region: from.clone(), until: self.now + lease });
        let ledger_digest = self.st().ledger.digest();
        if from != self.who.name && ledger_digest != renew.ledger_digest {
            self.tell_ledger(&from);
        }
        self.send(from.clone(), ControlMessage::Granted { epoch, round, ledger_digest });
        if renew.active {
            self.learn_reign(epoch, &from);
            if from != self.who.name {
                self.pending_settled(epoch);
                self.settle_left(epoch, &from);
            }
        }
        self.follow();
    }

    /// The first word that this member hears: from now on it is one of them.
    fn adopt(&mut self, renew: &Renew) {
        self.amnesiac = renew.voters.heard.contains(&self.who.name);
        if self.amnesiac {
            self.note("voter_lost_state", self.lost_its_promises());
        }
        let joining = VoterState::joining(renew.lineage, renew.voters.clone());
        self.state = Some(VoterState { lost_promises: self.amnesiac, ..joining });
        self.keep();
        self.take_members();
    }

    /// A sentence for an operator.
    pub(super) fn lost_its_promises(&self) -> String {
        let name = &self.who.name;
        let then = if self.who.has_data {
            format!("take its vote away and give it back: parhelion region remove {name}, then invite it again")
        } else {
            format!("replace it: parhelion witness remove {name}, then invite one by another name")
        };
        format!("the others remember what {name} granted and it does not: its state was lost, and it votes no more. {then}")
    }

    fn may_grant(&self, renew: &Renew) -> Result<(), String> {
        let (epoch, state) = (renew.entry.epoch, self.st());
        if renew.lineage != state.lineage {
            let what = format!(
                "{} writes in lineage {} and this is {}: two histories are never merged",
                renew.entry.region, renew.lineage, state.lineage
            );
            return Err(what);
        }
        if renew.voters.version < state.voters.version {
            return Err(format!(
                "its voters are of version {} and those of version {} have been agreed on",
                renew.voters.version, state.voters.version
            ));
        }
        if epoch < state.promised {
            return Err(format!(
                "epoch {} was promised to {}",
                state.promised,
                state.voted_for.as_ref().map_or("another region", |r| r.as_str())
            ));
        }
        if epoch <= state.released {
            return Err(format!("epoch {epoch} was handed over"));
        }
        // Whoever reigns already needs no vote of it, and takes it along.
        let needs_it = self.lost.as_ref().is_some_and(|lost| !(renew.active && epoch > lost.epoch));
        if needs_it && self.who.name != renew.entry.region {
            return Err("this region lost log that was durable, and may have lost what it promised; see its status".into());
        }
        if self.amnesiac && self.who.name != renew.entry.region {
            return Err(self.lost_its_promises());
        }
        Ok(())
    }

    fn take_voters(&mut self, renew: &Renew) {
        if renew.entry.region == self.who.name {
            return; // what it says itself may be older than what it knows: a change that it proposed meanwhile
        }
        let state = self.state.as_mut().expect("BUG: granted without a state");
        if renew.voters.version > state.voters.version {
            state.voters = renew.voters.clone();
            state.voters_next = renew.voters_next.clone();
            if state.lost_promises && !state.voters.contains(&self.who.name) {
                // It votes for nobody of those that it may have promised something: they are older than this, and are refused for that.
                (state.lost_promises, self.amnesiac) = (false, false);
            }
            self.keep();
            return self.take_members();
        }
        let before = state.voters.heard.len();
        for heard in &renew.voters.heard {
            if !state.voters.heard.contains(heard) {
                state.voters.heard.push(heard.clone());
            }
        }
        state.voters.heard.sort();
        if state.voters.heard.len() != before || state.voters_next != renew.voters_next {
            state.voters_next = renew.voters_next.clone();
            self.keep();
        }
    }

    /// Nothing older is granted, voted for or received from here on.
    pub(super) fn promise(&mut self, epoch: Epoch, to: &RegionName) {
        let state = self.state.as_mut().expect("BUG: promised without a state");
        assert!(epoch > state.promised, "BUG: a promise of epoch {epoch} behind one of {}", state.promised);
        (state.promised, state.voted_for) = (epoch, Some(to.clone()));
        self.audit(Action { actor: to.to_string(), op: None, kind: "promise", what: format!("epoch {epoch} is promised to {to}") });
        if self.holder.as_ref().is_some_and(|h| h.epoch() < epoch) {
            let next = (*to != self.who.name).then(|| to.clone());
            self.lose_reign(&format!("epoch {epoch} was promised to {to}"), next);
        }
        if *to != self.who.name {
            self.campaign_overtaken(epoch, to);
        }
        self.follow();
    }

    /// Two histories, or two reigns of one epoch: whoever finds them writes no more, be it the rightful one. Not kept: after a restart it is found
    /// again as soon as the two speak, and one that was stopped for good holds nobody up.
    pub(super) fn two_writers(&mut self, what: String) {
        if self.conflict.as_ref() != Some(&what) {
            self.note("two_writers", what.clone());
            self.conflict = Some(what.clone());
        }
        self.holder_meets_rival(&what);
    }

    // ---- votes ----------------------------------------------------------------------------------------------------------

    pub(super) fn on_vote(&mut self, from: RegionName, vote: Vote) {
        self.same_lineage(&from, vote.lineage);
        let Some(state) = &mut self.state else { return };
        if let Some(released) = vote.released
            && vote.lineage == state.lineage
            && released > state.released
        {
            state.released = released;
            self.keep();
        }
        if let Err((wait, reason)) = self.may_vote(&from, &vote) {
            let answer = ControlMessage::NotVoted {
                epoch: vote.epoch,
                round: vote.round,
                promised: self.st().promised,
                wait_ms: millis_up(wait),
                reason,
            };
            self.send(from, answer);
            return;
        }
        if vote.epoch > self.st().promised {
            self.promise(vote.epoch, &from);
        }
        let voted = self.voted(vote.epoch, vote.round);
        self.send(from, ControlMessage::Voted(Box::new(voted)));
    }

    /// What stands behind a vote: as much as the candidate needs to know where history ends.
    pub(super) fn voted(&self, epoch: Epoch, round: Round) -> Voted {
        let state = self.st();
        Voted {
            epoch,
            round,
            voters: state.voters.clone(),
            voters_next: state.voters_next.clone(),
            chain: state.chain.clone(),
            pending: state.pending.clone(),
            log: (self.log_told && self.who.has_data).then(|| self.log.standing(state.cut)),
            seen: self.seen(),
            sync: state.sync,
            auto: state.auto,
        }
    }

    fn may_vote(&self, from: &RegionName, vote: &Vote) -> Result<(), (Duration, String)> {
        let (state, own) = (self.st(), *from == self.who.name);
        let never = |reason: String| Err((Duration::ZERO, reason));
        if vote.lineage != state.lineage {
            return never(format!("this is lineage {}", state.lineage));
        }
        // Newer ones were agreed on by a majority of these: its vote counts among them.
        if vote.voters_version < state.voters.version {
            return never(format!("its voters are of version {}, here they are of version {}", vote.voters_version, state.voters.version));
        }
        if self.amnesiac && !own {
            return never(self.lost_its_promises());
        }
        if self.lost.is_some() && !own {
            return never("this region lost log that was durable, and may have lost what it promised; see its status".into());
        }
        let again = vote.epoch == state.promised && state.voted_for.as_ref() == Some(from);
        if vote.epoch <= state.promised && !again {
            return never(format!("epoch {} was promised", state.promised));
        }
        if let Some(grant) = self.grant.as_ref().filter(|g| g.region != *from && g.epoch > state.released && self.now < g.until) {
            let reason = format!("{} holds a lease from this voter", grant.region);
            return Err((grant.until.since(self.now), reason));
        }
        // Who held the grants that a restart forgot: nobody but the primary of the promised epoch, and nobody once that gave it back.
        let holder = state.chain.get(state.promised).map(|e| &e.region).or(state.voted_for.as_ref());
        let forgot_another = holder != Some(from) && state.released < state.promised;
        if forgot_another && self.now < self.votes_from {
            return Err((self.votes_from.since(self.now), "this voter started a moment ago and may have granted a lease before".into()));
        }
        Ok(())
    }

    pub(super) fn lease_lost(&mut self, reason: &str, next: Option<RegionName>) {
        self.reason = Some(reason.to_owned());
        self.outputs.push_back(Output::LeaseLost { reason: reason.to_owned(), next });
    }
}
