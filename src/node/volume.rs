//! What the volume says, carried on: to the copies, to the control core, to secondaries, to the head and to people.
//!
//! Decides nothing; what becomes of a recovery is in [`super::starting`], of what is durable in the parts that wait for it.

use super::{Effect, Node, Stage};
use crate::base::{GroupId, Instant, LogEnd, MemberId};
use crate::control::{ControlState, Input};
use crate::log::Frame;
use crate::volume::{AppenderEffect, CopyHealth};

impl Node {
    pub(super) fn drain_appender(&mut self, now: Instant) {
        while let Some(effect) = self.appender.poll_effect() {
            match effect {
                AppenderEffect::ToCopy { copy, request } => self.effects.push_back(Effect::ToCopy { copy, request }),
                AppenderEffect::Recovered { found } => self.recovered(now, found),
                AppenderEffect::RecoveryBeginsAnew => {
                    self.note(
                        "recovery_anew",
                        "the only copy with the newest, never acknowledged frames is lost; recovering without it".into(),
                    );
                    self.recover_for_the_same();
                    self.stage = Stage::Recovering;
                }
                AppenderEffect::RecoveryWaits { reason, control } => {
                    // Copies of a group that was never founded are empty for ever: that is said before anybody waits for them.
                    if !self.founded_like_this(ControlState::decode(&control).as_ref()) {
                        continue;
                    }
                    self.note("recovery_waits", reason.clone());
                    self.reason = Some(reason);
                }
                AppenderEffect::Restarted { vdl } => self.restarted(now, vdl),
                AppenderEffect::Durable { vdl, frames } => self.durable(now, vdl, frames),
                AppenderEffect::Rewound { at } => self.rewound(now, at),
                AppenderEffect::RewindImpossible { reason, kept } => self.cannot_rewind(now, &reason, kept),
                AppenderEffect::ControlDurable => self.control_durable(now),
                AppenderEffect::Places { places } => self.effects.push_back(Effect::Places { places }),
                AppenderEffect::Retired { slot, place, by } => {
                    let lives = self.appender.lives_in(slot).map_or_else(|| "its configured place".to_owned(), str::to_owned);
                    let left = place.clone().unwrap_or_else(|| "its configured place".to_owned());
                    self.note(
                        "copy_replaced",
                        format!("copy {slot} lives in {lives} for good; what lies in {left} takes no part any more"),
                    );
                    self.effects.push_back(Effect::Retired { slot, place, by });
                }
                AppenderEffect::QuorumLost { reason, until } => {
                    self.note("quorum_lost", format!("writes are stopped: {reason}. They resume by themselves {until}"));
                    // Whoever shows it says first that writes are stopped.
                    self.roles.quorum_lost = Some(format!("{reason}; writes resume by themselves {until}"));
                    self.say_gate();
                }
                AppenderEffect::QuorumRegained => {
                    if self.roles.quorum_lost.take().is_some() {
                        self.note("quorum_regained", "four copies take writes again".into());
                    }
                    self.say_gate();
                }
                AppenderEffect::CopyChanged { copy, health } => self.copy_changed(copy, &health),
                AppenderEffect::Fenced { promised } => {
                    let reason = format!(
                        "generation {promised} took over this region's copies; this process is fenced. Stop it, and look for the other one"
                    );
                    self.note("fenced", reason.clone());
                    self.effects.push_back(Effect::HeadStops { reason: reason.clone() });
                    self.stage = Stage::Halted { reason };
                }
                AppenderEffect::Log { tag, outcome } => {
                    if self.counted(now, tag, &outcome) {
                        continue;
                    }
                    if let Some(conn) = self.reads.remove(&tag) {
                        self.lead_log(now, conn, outcome);
                    }
                }
                AppenderEffect::Pages { tag, outcome } => {
                    if let Some(conn) = self.reads.remove(&tag) {
                        self.lead_pages(now, conn, outcome);
                    }
                }
                AppenderEffect::CopyForgot { copy, what } => {
                    let what = format!(
                        "what lies at copy {copy} is older than what it once acknowledged: {what}. An old backup or snapshot was put back, or its disk \
                         lost writes. It counts no more as what it was, gets what it lacks from the others, and is a new member then"
                    );
                    self.copies_forgot.insert(copy, what.clone());
                    self.note("copy_forgot", what);
                }
                AppenderEffect::LogLost { copy, lost } => self.log_lost_late(now, copy, lost),
                AppenderEffect::CopyDamaged { copy, damage } => {
                    let then = if damage.healed { "it was written again from memory" } else { "it is rebuilt from its peers" };
                    self.note("copy_damaged", format!("copy {copy}: {damage}; {then}"));
                }
                AppenderEffect::Undecided { reason } => {
                    let what = format!("{reason}; nothing is repaired. Stop the region and run: parhelion volume verify");
                    self.note("copies_differ", what);
                }
                AppenderEffect::Scrubbed { group } => self.scrubbed(group),
                AppenderEffect::SeedStalled => {
                    self.follower.give_up_seed();
                    // Also one whose hello offered to go on with it: the answer would be that (seed 9000374).
                    if let Some(conn) = self.follower.link() {
                        self.unlink(now, conn, "the seed was lost here; it begins anew".into());
                    }
                }
                AppenderEffect::SeedStored { step } => {
                    if self.follower.seed_stored(now, step) {
                        self.note("seeding_done", format!("the volume stands at {}", self.appender.end()));
                        self.count_archives(now);
                    }
                    self.drain_follower(now);
                }
            }
        }
    }

    /// The volume's log is durable again, up to `vdl`.
    pub(super) fn restarted(&mut self, now: Instant, vdl: LogEnd) {
        if !self.roles.unsettled {
            self.effects.push_back(Effect::HeadReset { at: vdl });
        }
        match std::mem::replace(&mut self.stage, Stage::Recovering) {
            Stage::Opening { pen: Some(pen) } => self.pend(now, pen, vdl),
            Stage::Opening { pen: None } | Stage::Following => {
                self.stage = Stage::Following;
                self.follower.restarted(now, self.wall, vdl);
                self.tell_log(now);
                self.reigns_after_going_back(now);
            }
            other => self.stage = other,
        }
    }

    pub(super) fn durable(&mut self, now: Instant, vdl: LogEnd, frames: Vec<Frame>) {
        match self.stage {
            Stage::Leading => {
                self.tell_log(now);
                self.tell(now, Input::CommitPathMoved);
                self.lead_pump(now, &vdl);
                self.judge_sealed(now, &vdl);
                return self.commit(now, vdl, frames);
            }
            Stage::Pending => {
                self.roles.unshown.push((vdl, frames));
                return self.reign_is_durable(now, vdl);
            }
            Stage::Following => {
                self.follower.durable(now, self.wall, &vdl, &frames);
                self.tell_log(now);
                if self.leader.ships() {
                    self.lead_pump(now, &vdl);
                }
                self.judge_caught_up(now);
            }
            _ => {}
        }
        if !self.roles.unsettled {
            self.effects.push_back(Effect::HeadAdvances { vdl, frames });
        }
    }

    pub(super) fn scrubbed(&mut self, group: GroupId) {
        let copies = self.appender.copies();
        let (read, found) =
            copies.iter().filter(|c| c.copy.group == group).fold((0, 0), |(r, f), c| (r + c.scrub.read_bytes, f + c.scrub.found));
        let what = format!("a scrub of the six copies ended: {read} bytes read, {found} found damaged");
        self.note("scrubbed", what);
    }

    pub(super) fn copy_changed(&mut self, copy: MemberId, health: &CopyHealth) {
        let (kind, what) = match health {
            CopyHealth::Down { reason } => ("copy_down", format!("copy {copy} is down: {reason}")),
            CopyHealth::Up => {
                self.copies_forgot.remove(&copy);
                ("copy_up", format!("copy {copy} is up"))
            }
            CopyHealth::Seeding => ("copy_seeding", format!("copy {copy} is being rebuilt")),
            CopyHealth::Starting | CopyHealth::CatchingUp => return,
        };
        if self.copies_noted.get(&copy) != Some(&what) {
            self.note(kind, what.clone());
            self.copies_noted.insert(copy, what);
        }
    }
}
