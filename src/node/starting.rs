//! How a process begins: recovery chose a log, or found none, and by that and what is kept beside it the region founds, is closed, or follows.
//!
//! Decides nothing about who writes: until the control core has asked a majority, a region that reigned is closed. A process that recovers
//! again goes on with what it was about to become.

use super::roles::Intent;
use super::{Effect, Node, Stage};
use crate::base::{Instant, LineageId};
use crate::control::{self, ControlState, Input, Start, VoterSet, VoterState};
use crate::volume::Found;

impl Node {
    pub(super) fn recovered(&mut self, now: Instant, found: Found) {
        let (bytes, has_log) = match &found {
            Found::Empty { control } => (control, false),
            Found::Log { control, .. } => (control, true),
        };
        self.reason = None;
        if self.roles.is_begun() {
            return self.recovered_again(now, &found);
        }
        self.control = ControlState::decode(bytes);
        let control = self.control.clone();
        if !self.founded_like_this(control.as_ref()) {
            return;
        }
        let voter = control.as_ref().map(|c| c.voter.clone());
        self.committing.rules = control.as_ref().map(|c| c.rules).unwrap_or_default();
        self.roles.reign = control.as_ref().and_then(ControlState::top).map(|(epoch, primary)| (epoch, primary.clone()));
        let start = control::start(&self.who.region, &self.who.founder, self.control.as_ref(), has_log);
        match (start, found) {
            (Start::Closed, Found::Log { consistent, end, lost, .. }) => {
                self.note("recovered", format!("the log ends at {end}; asking a majority whether this region is still the primary"));
                self.reason = Some("it was the primary and asks a majority of the voters whether it still is".into());
                self.lost = lost;
                self.roles.holds_commits = true;
                self.stage = Stage::Closed { consistent };
                self.begin_roles(now, voter);
            }
            // A founding that crashed before its first frame: the same lineage goes on. Its state may lie on one copy only: four must keep it
            // before there is a log that asks for it (seed 700236).
            (Start::FoundAgain { lineage }, _) => {
                self.roles.holds_commits = true;
                self.stage = Stage::Founding { lineage };
                self.put_again();
            }
            (Start::Found, _) => {
                let lineage = LineageId((u128::from(self.prng.next_u64()) << 64) | u128::from(self.prng.next_u64()));
                let voters = VoterSet::founding(&self.who.region, &self.who.members, self.who.witness.as_ref());
                let voter = VoterState::founding(lineage, &self.who.region, voters, self.wall);
                self.control = Some(ControlState { layout: self.who.layout, rules: self.committing.rules, voter });
                self.roles.holds_commits = true;
                self.stage = Stage::Founding { lineage };
                self.put_again();
            }
            (Start::Follow, Found::Log { end, consistent, lost, .. }) => {
                self.note("recovered", format!("the log ends at {end}; following"));
                if let Some(lost) = &lost {
                    self.note(
                        "log_lost",
                        format!("this region's copies have lost log that was durable: {lost}. The primary has it, and it comes again"),
                    );
                }
                self.lost = lost;
                self.look_for_the_known();
                self.stage = Stage::Opening { pen: None };
                self.appender.follow(now, consistent);
                self.begin_roles(now, voter);
            }
            (Start::Closed | Start::Follow | Start::Join, _) => {
                self.look_for_the_known();
                self.note("joining", "the six copies are empty; looking for the primary to be seeded".into());
                self.stage = Stage::Following;
                self.begin_roles(now, voter);
            }
            (Start::Refuse { reason }, _) => {
                self.note("halted", reason.clone());
                self.stage = Stage::Halted { reason };
            }
        }
    }

    /// This process recovered before, and knows more than what it finds: it became something else, or the log it had chosen was lost.
    pub(super) fn recovered_again(&mut self, now: Instant, found: &Found) {
        self.put_again();
        let Found::Log { consistent, lost, .. } = found else {
            self.stage = Stage::Following;
            return;
        };
        self.lost.clone_from(lost);
        match self.roles.intent.take() {
            // What this process made durable, or the one before it, is not there any more.
            Some(Intent::Resume(epoch)) if self.lost.is_some() => {
                self.stage = Stage::Closed { consistent: *consistent };
                self.tell_lost(now);
                self.tell_log(now);
                self.tell(now, Input::PromotionFailed { epoch, reason: "its copies have lost log that was durable".into() });
            }
            Some(intent) => self.lead(now, intent, *consistent),
            None => {
                self.stage = Stage::Opening { pen: None };
                self.appender.follow(now, *consistent);
            }
        }
    }

    /// The log that was chosen is gone: what this region was about to become it is about to become again.
    pub(super) fn recover_for_the_same(&mut self) {
        if self.roles.intent.is_none()
            && let Stage::Opening { pen: Some(pen) } = &self.stage
        {
            self.roles.intent = Some(Intent::Resume(pen.epoch()));
        }
    }

    pub(super) fn look_for_the_known(&mut self) {
        if let Some((_, primary)) = self.roles.reign.clone().filter(|(_, p)| *p != self.who.region) {
            self.follower.primary_is(primary.clone());
            self.effects.push_back(Effect::PrimaryIs(Some(primary)));
        }
    }

    /// `false`, and it halts: the configuration cuts page space otherwise than the lineage was founded with.
    pub(super) fn founded_like_this(&mut self, control: Option<&ControlState>) -> bool {
        let Some(founded) = control.map(|c| c.layout).filter(|l| *l != self.who.layout) else {
            return !matches!(self.stage, Stage::Halted { .. });
        };
        if !matches!(self.stage, Stage::Halted { .. }) {
            let reason = format!(
                "the global cluster was founded with {founded} and [volume] in the configuration of {} says {}; put back what it was founded \
                 with, it cannot be changed",
                self.who.region, self.who.layout
            );
            self.note("halted", reason.clone());
            self.stage = Stage::Halted { reason };
        }
        false
    }

    pub(super) fn control_durable(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Founding { .. }) && !self.roles.is_begun() {
            // What this member founds is kept before anybody hears of it.
            let voter = self.control.as_ref().map(|c| c.voter.clone());
            return self.begin_roles(now, voter);
        }
        self.control_kept(now);
    }

    pub(super) fn open_founded(&mut self, now: Instant, lineage: LineageId) {
        self.note("founded", format!("global cluster {} of lineage {lineage}, primary {}", self.who.cluster, self.who.region));
        let pen = self.appender.found(now, self.wall, lineage);
        self.stage = Stage::Opening { pen: Some(pen) };
    }
}
