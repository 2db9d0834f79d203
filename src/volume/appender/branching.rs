//! Timelines over all copies: a branch is whole when four copies of every group have it, and dropped when four forgot it.
//!
//! Decides which consistency point an LSN means and what each copy is still to be told; the copies decide whether they can
//! (`copy/branch.rs`). Everything may be said again: a copy answers the same. A copy that was away gets its order when it is back;
//! one that cannot branch any more has no such timeline, and the child's own appender rebuilds it there from its peers.

use super::*;
use crate::base::{GroupId, TimelineId};

/// Orders that are kept, at most; the oldest that came to an end go first.
const ORDERS_KEPT_MAX: usize = 1024;

/// How far the order for one timeline came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BranchState {
    /// Copies are being asked. Page versions and log are kept for it.
    Asked,
    /// It begins behind `at`, on four copies of every group: whoever opens it finds it.
    Whole { at: LogEnd },
    /// It is not to be; a sentence that says why. Copies that had made it may still have it: drop it.
    Refused { reason: String },
    /// It is forgotten on four copies of every group when `done`.
    Dropped { done: bool },
}

#[derive(Debug)]
pub(super) struct BranchOrder {
    /// Wanted here; `None`: it is to be dropped.
    lsn: Option<Lsn>,
    point: Option<LogEnd>,
    /// Where the search for the point goes on, and the last one found below.
    search: (Seq, Option<LogEnd>),
    said: BTreeMap<MemberId, Result<(), String>>,
    asked: Instant,
    state: BranchState,
}

impl Appender {
    /// Begins `child` behind the newest consistency point at or below `at`. [`Appender::branch_state`] tells how it goes. The same
    /// again, by this incarnation or a later one, comes to the same branch.
    ///
    /// `child` is an id that was never used in this volume.
    pub fn branch(&mut self, now: Instant, child: TimelineId, at: Lsn) {
        if self.branches.get(&child).is_some_and(|o| o.lsn == Some(at) && !matches!(o.state, BranchState::Refused { .. })) {
            return;
        }
        let from = self.milestones.iter().rev().find(|(_, lsn)| *lsn <= at).map_or(Seq(1), |(seq, _)| (*seq).max(Seq(1)));
        let mut order =
            BranchOrder { lsn: Some(at), point: None, search: (from, None), said: BTreeMap::new(), asked: now, state: BranchState::Asked };
        if self.phase != VolumePhase::Serving || at > self.vdl.end_lsn {
            let reason =
                format!("LSN {at} is not durable here yet, this volume is durable up to LSN {}; branch at or below it", self.vdl.end_lsn);
            order.state = BranchState::Refused { reason };
        } else if at == self.vdl.end_lsn {
            order.point = Some(self.vdl);
        }
        let (search, open) = (order.point.is_none(), order.state == BranchState::Asked);
        self.keep_order(child, order);
        match (open, search) {
            (true, true) => self.start_read(now, ReadPurpose::Point { child }, Vec::new()),
            (true, false) => self.ask_branch(now, child),
            (false, _) => {}
        }
    }

    /// Drops `child` on all copies. What its own children share with it stays as long as they do.
    pub fn drop_branch(&mut self, now: Instant, child: TimelineId) {
        if self.branches.get(&child).is_some_and(|o| o.lsn.is_none()) {
            return;
        }
        let state = BranchState::Dropped { done: false };
        let order = BranchOrder { lsn: None, point: None, search: (Seq(0), None), said: BTreeMap::new(), asked: now, state };
        self.keep_order(child, order);
        self.ask_branch(now, child);
    }

    /// How far an order of this incarnation came; `None`: there was none.
    #[must_use]
    pub fn branch_state(&self, child: TimelineId) -> Option<&BranchState> {
        self.branches.get(&child).map(|o| &o.state)
    }

    fn keep_order(&mut self, child: TimelineId, order: BranchOrder) {
        self.branches.insert(child, order);
        if self.branches.len() > ORDERS_KEPT_MAX {
            let ended = |o: &BranchOrder| !matches!(o.state, BranchState::Asked | BranchState::Dropped { done: false });
            let oldest = self.branches.iter().filter(|(c, o)| **c != child && ended(o)).min_by_key(|(_, o)| o.asked).map(|(c, _)| *c);
            oldest.map(|c| self.branches.remove(&c));
        }
    }

    /// From where on log and page versions must stay for branches that are being made.
    pub(super) fn branches_need(&self) -> Option<Lsn> {
        self.branches.values().filter(|o| o.state == BranchState::Asked).filter_map(|o| o.lsn).min()
    }

    /// Frames in which the search goes on.
    pub(super) fn point_read(&mut self, now: Instant, child: TimelineId, outcome: LogOutcome) {
        let Some(order) = self.branches.get_mut(&child).filter(|o| o.state == BranchState::Asked && o.point.is_none()) else { return };
        let at = order.lsn.expect("BUG: a branch that is asked for has its LSN");
        let (from, best) = &mut order.search;
        let mut over = false;
        match outcome {
            LogOutcome::Frames(frames) => {
                over = frames.is_empty();
                for frame in frames {
                    if frame.end_lsn() > at {
                        over = true;
                        break;
                    }
                    *from = frame.seq().next();
                    if frame.is_consistency_point() {
                        *best = Some(frame.log_end());
                    }
                }
            }
            LogOutcome::Trimmed { first } if first > *from => *from = first,
            LogOutcome::Trimmed { .. } => over = true,
            LogOutcome::Unreadable { reason } => {
                order.state = BranchState::Refused { reason };
                return;
            }
        }
        if !over {
            self.start_read(now, ReadPurpose::Point { child }, Vec::new());
        } else if let Some(best) = *best {
            order.point = Some(best);
            self.ask_branch(now, child);
        } else {
            let reason = format!("the log no longer reaches back to LSN {at}; branch at a newer LSN");
            order.state = BranchState::Refused { reason };
        }
    }

    /// The volume went back: there is nothing above `at` to branch from.
    pub(super) fn refuse_branches_above(&mut self, at: &LogEnd) {
        for order in self.branches.values_mut() {
            if order.state == BranchState::Asked && order.lsn.is_some_and(|lsn| lsn > at.end_lsn) {
                let reason = format!("the volume went back to LSN {}; branch at or below it", at.end_lsn);
                order.state = BranchState::Refused { reason };
            }
        }
    }

    pub(super) fn point_from(&self, child: TimelineId) -> Seq {
        self.branches.get(&child).map_or(Seq(1), |o| o.search.0)
    }

    /// Tells the copies that have not answered yet.
    fn ask_branch(&mut self, now: Instant, child: TimelineId) {
        let generation = self.generation;
        let Some(order) = self.branches.get_mut(&child) else { return };
        order.asked = now;
        let request = match (order.lsn, order.point) {
            (None, _) => CopyRequest::DropBranch { generation, child },
            (Some(_), Some(at)) => CopyRequest::Branch { generation, child, at },
            (Some(_), None) => return,
        };
        let to = self.branch_owing(child);
        self.effects.extend(to.into_iter().map(|copy| AppenderEffect::ToCopy { copy, request: request.clone() }));
    }

    fn branch_owing(&self, child: TimelineId) -> Vec<MemberId> {
        let Some(order) = self.branches.get(&child) else { return Vec::new() };
        let found = order.lsn.is_none() || order.point.is_some();
        if self.phase != VolumePhase::Serving || !found || matches!(order.state, BranchState::Refused { .. }) {
            return Vec::new();
        }
        self.members().filter(|c| self.peers[c.index()].is_joined() && !order.said.contains_key(c)).collect()
    }

    /// The search for its point was lost with a recovery.
    fn search_ended(&self, child: TimelineId) -> bool {
        let wanted = self.branches.get(&child).is_some_and(|o| o.state == BranchState::Asked && o.point.is_none());
        let read = |r: &PendingRead| matches!(r.purpose, ReadPurpose::Point { child: c } if c == child);
        wanted && self.phase == VolumePhase::Serving && !self.reads.values().any(read)
    }

    /// Branches that wait for copies, or for their point, are taken up again from then on.
    pub(super) fn branch_timeout(&self) -> Option<Instant> {
        let waits = |c: TimelineId| !self.branch_owing(c).is_empty() || self.search_ended(c);
        self.branches.iter().filter(|(c, _)| waits(**c)).map(|(_, o)| o.asked + ASK_AGAIN_AFTER).min()
    }

    pub(super) fn ask_branches_again(&mut self, now: Instant) {
        let late: Vec<TimelineId> = self.branches.iter().filter(|(_, o)| now >= o.asked + ASK_AGAIN_AFTER).map(|(c, _)| *c).collect();
        for child in late {
            if self.search_ended(child) {
                self.start_read(now, ReadPurpose::Point { child }, Vec::new());
            } else {
                self.ask_branch(now, child);
            }
        }
    }

    /// A copy made or dropped `child`, or says why not. `dropped`: which of the two.
    pub(super) fn branch_said(&mut self, copy: MemberId, child: TimelineId, dropped: bool, outcome: Result<(), String>) {
        let Some(order) = self.branches.get_mut(&child).filter(|o| o.lsn.is_none() == dropped || outcome.is_err()) else { return };
        order.said.insert(copy, outcome);
        let of =
            |group: GroupId, ok: bool| MemberId::of(group).iter().filter(|c| order.said.get(c).is_some_and(|s| s.is_ok() == ok)).count();
        if self.layout.all_groups().all(|g| of(g, true) >= WRITE_QUORUM) {
            order.state = match order.point {
                Some(at) => BranchState::Whole { at },
                None => BranchState::Dropped { done: true },
            };
        } else if order.state == BranchState::Asked && self.layout.all_groups().any(|g| of(g, false) > COPIES - WRITE_QUORUM) {
            let reason = order.said.values().find_map(|s| s.clone().err()).unwrap_or_default();
            order.state = BranchState::Refused { reason };
        }
    }
}
