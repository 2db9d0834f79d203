//! The last step of a commit in the primary: durable here, and as far as the commit rules want it, elsewhere.
//!
//! Decides nothing: [`CommitRules`] says up to where. What may not be acknowledged yet is not shown to readers here either, or they would see
//! what a failover could still lose. It waits in order, and goes on by itself. Driven by the node: durable frames in, the head's advances out.

use super::{Effect, Node, Stage};
use crate::base::{CommitRules, CommitsPause};
use crate::base::{Instant, LogEnd, Seq, UnixMicros};
use crate::control::{ControlState, Input};
use crate::log::Frame;
use crate::ship::Message;
use crate::ship::wire::Control;
use std::collections::VecDeque;
use std::time::Duration;

/// While commits pause, it is looked again so often.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Commits that no secondary has are dated so coarsely, and so many dates are kept: what counts is the oldest.
const DATE_EVERY_US: u64 = 10_000;
const DATES_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Committing {
    pub(super) rules: CommitRules,
    /// Durable here and not acknowledged.
    held: VecDeque<(LogEnd, Vec<Frame>)>,
    /// Commits that not even the nearest secondary has: up to where, since when.
    missing: VecDeque<(Seq, UnixMicros)>,
    paused: Option<CommitsPause>,
    look_at: Option<Instant>,
    /// The rule that the control core counts on.
    sync_told: u8,
}

impl Committing {
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.look_at
    }

    pub(super) fn pause(&self) -> Option<String> {
        self.paused.as_ref().map(ToString::to_string)
    }

    /// The reign is over: what is held is never acknowledged here.
    pub(super) fn stop(&mut self) {
        *self = Committing { rules: self.rules, ..Committing::default() };
    }
}

impl Node {
    /// Newly durable frames of this region's reign.
    pub(super) fn commit(&mut self, now: Instant, vdl: LogEnd, frames: Vec<Frame>) {
        if self.committing.rules.are_none() && self.committing.held.is_empty() {
            self.effects.push_back(Effect::HeadAdvances { vdl, frames });
            return;
        }
        if let Some(first) = frames.first().filter(|_| self.committing.rules.max_rpo_ms.is_some()) {
            let (at, missing) = (first.header().source_time, &mut self.committing.missing);
            if missing.len() < DATES_MAX && missing.back().is_none_or(|(_, last)| at.0 >= last.0 + DATE_EVERY_US) {
                missing.push_back((vdl.seq, at));
            }
        }
        self.committing.held.push_back((vdl, frames));
        self.release(now);
    }

    /// A secondary moved, or time passed.
    pub(super) fn release(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Leading) {
            return;
        }
        let durable = self.leader.durable();
        let best = durable.iter().max().copied().unwrap_or(Seq::ZERO);
        let c = &mut self.committing;
        while c.missing.front().is_some_and(|(seq, _)| *seq <= best) {
            c.missing.pop_front();
        }
        let allowed = c.rules.allowed(&durable, c.missing.front().map(|(_, at)| *at), self.wall);
        let (upto, paused) = match allowed {
            Ok(upto) => (upto, None),
            Err(pause) => (Seq::ZERO, Some(pause)),
        };
        while c.held.front().is_some_and(|(vdl, _)| vdl.seq <= upto) {
            let (vdl, frames) = c.held.pop_front().expect("BUG: a front was seen");
            self.effects.push_back(Effect::HeadAdvances { vdl, frames });
        }
        c.look_at = (paused.is_some() || !c.held.is_empty()).then_some(now + LOOK_AGAIN);
        let news = paused.is_some() != c.paused.is_some();
        c.paused = paused;
        // What was acknowledged before the rule is now there, too: it may be counted on.
        let whole = c.held.is_empty() && upto >= self.appender.vdl().seq;
        let sync = (c.rules.sync > c.sync_told && whole).then_some(c.rules.sync);
        if news {
            let pause = self.committing.pause();
            self.effects.push_back(Effect::CommitsPause(pause.is_some()));
            match pause {
                Some(why) => self.note("commits_paused", why),
                None => self.note("commits_resumed", "a secondary is near enough again".into()),
            }
        }
        if let Some(sync) = sync {
            self.committing.sync_told = sync;
            self.tell(now, Input::CommitRule { sync });
        }
    }

    /// The rules hold from now on, are kept, and told to the secondaries.
    ///
    /// # Errors
    /// Who to ask instead.
    pub fn set_rules(&mut self, now: Instant, rules: CommitRules) -> Result<String, String> {
        if !matches!(self.stage, Stage::Leading) {
            let primary = self.roles.reign.as_ref().map_or_else(|| "nobody".to_owned(), |(_, p)| p.to_string());
            return Err(format!("commit rules are set in the primary, which is {primary} as far as {} knows", self.who.region));
        }
        let weaker = rules.sync < self.committing.sync_told;
        self.keep_rules(rules);
        if weaker {
            // Nobody may count on it any more before less is waited for; until then the stronger one would be harmless, and is not kept up.
            self.committing.sync_told = rules.sync;
            self.tell(now, Input::CommitRule { sync: rules.sync });
        }
        for conn in self.leader.conns() {
            self.effects.push_back(Effect::Send { conn, message: Message::Control(Control::Rules(rules)) });
        }
        self.note("rules_set", format!("{rules:?}"));
        self.release(now);
        let rpo = rules.max_rpo_ms.map_or_else(|| "off".to_owned(), |ms| format!("{ms}ms"));
        let alone = if rules.pause_alone { "yes" } else { "no" };
        Ok(format!("the commit rules are sync={} max_rpo={rpo} pause_alone={alone}", rules.sync))
    }

    /// The rules as they are now.
    #[must_use]
    pub fn rules(&self) -> CommitRules {
        self.committing.rules
    }

    /// Told by the primary, or set here.
    pub(super) fn keep_rules(&mut self, rules: CommitRules) {
        self.committing.rules = rules;
        if let Some(control) = &mut self.control
            && control.rules != rules
        {
            *control = ControlState { rules, ..control.clone() };
            self.put_again();
        }
    }
}
