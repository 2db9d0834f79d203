//! The control core of one member: voter, lease holder, candidate and operations in one machine.
//!
//! Decides who may write. Never reads a clock, keeps a file or sends a byte: whoever drives it (the node, the witness, a simulated
//! world) hands in what happened and does what comes out. What a voter promised is handed out for keeping before any answer that
//! depends on it.

use super::api::{ControlView, Input, Output, Role};
use super::message::{ControlMessage, Seen};
use super::state::VoterState;
use super::types::{FailoverRecord, LogPosition, OpId, OpView, Who};
use crate::base::{Epoch, Instant, Prng, RegionName, UnixMicros};
use std::collections::VecDeque;

#[derive(Debug)]
#[expect(dead_code, reason = "the rest of the machine is being written")]
pub struct Control {
    who: Who,
    prng: Prng,
    /// Drawn anew at each start: answers to an earlier incarnation's rounds count for nothing.
    incarnation: u64,
    now: Instant,
    wall: UnixMicros,
    state: Option<VoterState>,
    log: LogPosition,
    seen: Seen,
    token: u64,
    persisted: u64,
    /// What waits until the state before it is kept.
    held: VecDeque<(u64, Output)>,
    outputs: VecDeque<Output>,
}

impl Control {
    /// `kept` is what was persisted last; `None`: this member never was part of a global cluster (the founder's driver passes
    /// [`VoterState::founding`], and keeps it before anything else).
    #[must_use]
    pub fn new(who: Who, kept: Option<VoterState>, now: Instant, mut prng: Prng) -> Control {
        let incarnation = prng.next_u64();
        Control {
            who,
            prng,
            incarnation,
            now,
            wall: UnixMicros(0),
            state: kept,
            log: LogPosition::default(),
            seen: Seen::default(),
            token: 0,
            persisted: 0,
            held: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call with `Timeout`, if nothing else happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// The commit gate: a commit of this region's reign may be acknowledged at `now` only while `now < lease_until()`. Zero when it
    /// does not reign, is sealed, or is not open.
    #[must_use]
    pub fn lease_until(&self) -> Instant {
        Instant::ZERO
    }

    /// Whether frames of `epoch` may be received from its primary, and acknowledged to it (rule 5).
    #[must_use]
    pub fn may_receive(&self, epoch: Epoch) -> bool {
        self.state.as_ref().is_none_or(|s| epoch >= s.promised)
    }

    #[must_use]
    pub fn op(&self, id: OpId) -> Option<&OpView> {
        self.state.as_ref()?.ledger.op(id)
    }

    /// Newest first.
    #[must_use]
    pub fn failovers(&self) -> &[FailoverRecord] {
        self.state.as_ref().map_or(&[], |s| s.ledger.failovers())
    }

    #[must_use]
    pub fn state(&self) -> Option<&VoterState> {
        self.state.as_ref()
    }

    #[must_use]
    pub fn view(&self, now: Instant) -> ControlView {
        let _ = now;
        let state = self.state.as_ref();
        ControlView {
            role: if self.who.has_data() { Role::Secondary } else { Role::Witness },
            reign: state.and_then(|s| s.chain.top()).map(|e| (e.epoch, e.region.clone())),
            promised: state.map_or(Epoch(0), |s| s.promised),
            voters: state.map_or_else(|| super::VoterSet { version: 0, voters: Vec::new(), heard: Vec::new() }, |s| s.voters.clone()),
            votes: state.is_some_and(|s| s.voters.contains(&self.who.name)),
            unproven: state.is_some_and(|s| s.voters.voters.len() == 1 && self.who.regions.len() > 1),
            lease_left_ms: 0,
            voters_heard: Vec::new(),
            grant_left_ms: 0,
            writers_seen: 0,
            reason: None,
            op: None,
            chain: state.map_or_else(Vec::new, |s| s.chain.entries().to_vec()),
            sync: state.map_or(0, |s| s.sync.1),
        }
    }

    /// Takes one input. `wall` is this machine's wall clock, for people and for estimates.
    pub fn handle(&mut self, now: Instant, wall: UnixMicros, input: Input) {
        // A clock that steps back is broken by whoever reads it; here it only never goes back.
        self.now = self.now.max(now);
        self.wall = wall;
        match input {
            Input::Persisted { token } => {
                self.persisted = self.persisted.max(token);
                self.release_held();
            }
            Input::Log(log) => self.log = log,
            _ => {}
        }
    }

    fn release_held(&mut self) {
        while self.held.front().is_some_and(|(token, _)| *token <= self.persisted) {
            let (_, output) = self.held.pop_front().expect("BUG: just seen");
            self.outputs.push_back(output);
        }
    }

    /// Sends once everything decided so far is kept.
    #[expect(dead_code, reason = "the rest of the machine is being written")]
    fn send(&mut self, to: RegionName, message: ControlMessage) {
        self.held.push_back((self.token, Output::Send { to, message }));
        self.release_held();
    }
}
