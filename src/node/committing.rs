//! The last step of a commit in the primary: durable here, as far as the commit rules want it, elsewhere, and with its pages not far behind.
//!
//! Decides how far pages may be behind what is acknowledged; [`CommitRules`] says the rest. What may not be acknowledged yet is not shown to readers here either, or they would see
//! what a failover could still lose. It waits in order, and goes on by itself. Driven by the node: durable frames in, the head's advances out.

use super::{Effect, Node, Stage};
use crate::base::{CommitRules, CommitsPause, Instant, LogEnd, Lsn, Seq, UnixMicros};
use crate::control::{Action, AutoFailover, ControlState, Input};
use crate::log::Frame;
use crate::ship::Message;
use crate::ship::wire::Control;
use std::collections::VecDeque;
use std::time::Duration;

/// While commits pause, it is looked again so often.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A commit that waits for secondaries that are there for longer is told.
const SLOW_MS: u64 = 1000;
/// A commit is acknowledged when the pages are at most so many memtables of log behind it. What comes faster than the disks can write pages has to
/// wait for them; were it not held, whoever reads what was just written would wait for all of it, once it has left the cache.
const PAGES_BEHIND_MEMTABLES: u64 = 2;
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
    /// What is held waits for page versions up to here.
    pages_wanted: Option<Lsn>,
    /// What an operator set, while it is not kept with its entry in the audit: which state must be kept, and the rules.
    wanted: Option<(u64, CommitRules)>,
    /// The rule of synchronous commits that the control core was told.
    sync_told: u8,
    /// What a majority of the voters may still count on: no less is waited for, whatever the rules say by now.
    sync_floor: u8,
}

impl Committing {
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether what is held may go on: time passed, or the pages came nearer.
    pub(super) fn is_due(&self, now: Instant, readable: Lsn) -> bool {
        self.look_at.is_some_and(|at| now >= at) || self.pages_wanted.is_some_and(|wanted| readable >= wanted)
    }

    pub(super) fn pause(&self) -> Option<String> {
        self.paused.as_ref().map(ToString::to_string)
    }

    /// The reign is over: what is held is never acknowledged here.
    pub(super) fn stop(&mut self) {
        *self = Committing { rules: self.rules, ..Committing::default() };
    }

    /// As they are kept: what was set last.
    pub(super) fn kept(&self) -> CommitRules {
        self.wanted.map_or(self.rules, |(_, wanted)| wanted)
    }

    /// As commits are judged by.
    fn in_force(&self) -> CommitRules {
        CommitRules { sync: self.rules.sync.max(self.sync_floor), ..self.rules }
    }
}

impl Node {
    /// Newly durable frames of this region's reign.
    pub(super) fn commit(&mut self, now: Instant, vdl: LogEnd, frames: Vec<Frame>) {
        if self.committing.in_force().are_none() && self.committing.held.is_empty() && self.pages_wanted(&vdl) <= self.appender.readable() {
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

    /// Readers read there or beyond: those that have begun, and those that begin while commits are held, however long that is (seed 830048).
    pub(super) fn pinned(&self) -> Lsn {
        let first = self.committing.held.front().and_then(|(_, frames)| frames.first());
        first.map_or(self.oldest_pin, |f| self.oldest_pin.min(f.header().first_lsn))
    }

    /// Up to where pages must be readable for `vdl` to be acknowledged.
    fn pages_wanted(&self, vdl: &LogEnd) -> Lsn {
        Lsn(vdl.end_lsn.0.saturating_sub(PAGES_BEHIND_MEMTABLES * self.limits.memtable_bytes_max as u64))
    }

    /// A secondary moved, the pages came nearer, or time passed.
    pub(super) fn release(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Leading) {
            return;
        }
        let durable = self.leader.durable();
        let best = durable.iter().max().copied().unwrap_or(Seq::ZERO);
        let c = &mut self.committing;
        if c.rules.max_rpo_ms.is_none() {
            c.missing.clear();
        }
        while c.missing.front().is_some_and(|(seq, _)| *seq <= best) {
            c.missing.pop_front();
        }
        let allowed = c.in_force().allowed(&durable, c.missing.front().map(|(_, at)| *at), self.wall);
        let (upto, paused) = match allowed {
            Ok(upto) => (upto, None),
            Err(pause) => (Seq::ZERO, Some(pause)),
        };
        let readable = self.appender.readable();
        self.committing.pages_wanted = None;
        while let Some((vdl, _)) = self.committing.held.front().filter(|(vdl, _)| vdl.seq <= upto) {
            let wanted = self.pages_wanted(vdl);
            if wanted > readable {
                self.committing.pages_wanted = Some(wanted);
                break;
            }
            let (vdl, frames) = self.committing.held.pop_front().expect("BUG: a front was seen");
            self.effects.push_back(Effect::HeadAdvances { vdl, frames });
        }
        let c = &mut self.committing;
        // That a commit waits is how a rule works; that it waits for long is what an operator wants to know.
        let waits_ms = c
            .held
            .front()
            .and_then(|(_, frames)| frames.first())
            .map_or(0, |f| self.wall.0.saturating_sub(f.header().source_time.0) / 1000);
        let paused = paused.or((waits_ms > SLOW_MS).then(|| match (c.pages_wanted, c.held.front()) {
            (Some(_), Some((vdl, _))) => CommitsPause::PagesBehind { behind_bytes: vdl.end_lsn.bytes_since(readable), waits_ms },
            _ => CommitsPause::SyncSlow { wanted: c.in_force().sync, waits_ms },
        }));
        // Also while nothing waits: what comes next would, and status says so before.
        c.look_at = (paused.is_some() || !c.held.is_empty() || !c.missing.is_empty()).then_some(now + LOOK_AGAIN);
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
                None => self.note("commits_resumed", "what commits waited for is near enough again".into()),
            }
        }
        if let Some(sync) = sync {
            self.committing.sync_told = sync;
            self.tell(now, Input::CommitRule { sync });
        }
    }

    /// The rules hold as soon as they are kept, with an entry in the audit, and are told to the secondaries.
    ///
    /// # Errors
    /// Who to ask instead.
    pub fn set_rules(&mut self, now: Instant, wall: UnixMicros, rules: CommitRules, actor: &str) -> Result<String, String> {
        self.wall = wall;
        if !matches!(self.stage, Stage::Leading) {
            let primary = self.roles.reign.as_ref().map_or_else(|| "nobody".to_owned(), |(_, p)| p.to_string());
            return Err(format!("commit rules are set in the primary, which is {primary} as far as {} knows", self.who.region));
        }
        let what = format!("{}; they were {}", shown(&rules), shown(&self.committing.kept()));
        self.tell(now, Input::Audit(Action { actor: actor.to_owned(), op: None, kind: "set", what }));
        // What the core hands out next has the entry, and these rules beside it.
        self.committing.wanted = Some((self.next_token(), rules));
        self.drive_roles(now);
        self.drain_appender(now);
        Ok(format!("the commit rules are {}", shown(&rules)))
    }

    /// A state is kept; with it, perhaps, rules that were set.
    pub(super) fn rules_kept(&mut self, now: Instant, token: u64) {
        let Some((_, rules)) = self.committing.wanted.take_if(|(with, _)| *with <= token) else { return };
        self.committing.rules = rules;
        self.weaken(now);
        for conn in self.leader.conns() {
            self.effects.push_back(Effect::Send { conn, message: Message::Control(Control::Rules(rules)) });
        }
        self.note("rules_set", format!("the commit rules are {}", shown(&rules)));
        self.release(now);
    }

    /// Nobody may count on a stronger rule any more before less is waited for: told first, acted on when [`Self::rule_in_force`] comes.
    fn weaken(&mut self, now: Instant) {
        let (wanted, c) = (self.committing.rules.sync, &mut self.committing);
        if wanted < c.sync_told {
            c.sync_told = wanted;
            self.tell(now, Input::CommitRule { sync: wanted });
        }
    }

    /// What the voters count on from here on: no less is waited for.
    pub(super) fn rule_in_force(&mut self, now: Instant, sync: u8) {
        self.committing.sync_floor = sync;
        // After a restart the core remembers a rule that this process has not told it.
        self.committing.sync_told = self.committing.sync_told.max(sync);
        self.weaken(now);
        self.release(now);
    }

    /// The rules as they were set last.
    #[must_use]
    pub fn rules(&self) -> CommitRules {
        self.committing.kept()
    }

    /// What the cluster does by itself from now on; the core tells when a majority keeps it.
    ///
    /// # Errors
    /// Who to ask instead.
    pub fn set_auto_failover(&mut self, now: Instant, wall: UnixMicros, auto: AutoFailover, actor: &str) -> Result<(), String> {
        self.wall = wall;
        if !matches!(self.stage, Stage::Leading) || now >= self.lease_until() {
            let primary = self.roles.reign.as_ref().map_or_else(|| "nobody".to_owned(), |(_, p)| p.to_string());
            return Err(format!(
                "auto_failover is set in a primary that holds its lease; that is {primary} as far as {} knows, and parhelion status shows whether it does",
                self.who.region
            ));
        }
        self.tell(now, Input::AutoFailover { auto, actor: actor.to_owned() });
        self.drive_roles(now);
        self.drain_appender(now);
        Ok(())
    }

    /// Told by the primary.
    pub(super) fn keep_rules(&mut self, rules: CommitRules) {
        (self.committing.rules, self.committing.wanted) = (rules, None);
        if let Some(control) = &mut self.control
            && control.rules != rules
        {
            *control = ControlState { rules, ..control.clone() };
            self.put_again();
        }
    }
}

/// As they are typed.
fn shown(rules: &CommitRules) -> String {
    let rpo = rules.max_rpo_ms.map_or_else(|| "off".to_owned(), |ms| format!("{ms}ms"));
    let alone = if rules.pause_alone { "yes" } else { "no" };
    format!("sync={} max_rpo={rpo} pause_alone={alone}", rules.sync)
}
