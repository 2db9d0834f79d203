//! One member of the simulated cluster: its clock, its stable storage, its part of a region's node, around a real control core.
//!
//! Carries out what the core wants, as the node will: in order, persisting first, with a commit gate that is asked at the commit point.

use super::log::RegionLog;
use super::mutants::RoleMutant;
use crate::base::{Epoch, Instant, LogEnd, RegionName, UnixMicros};
use crate::control::{Control, MembersView, OpId, Promotion, VoterState, Who};
use crate::log::Frame;
use std::collections::{BTreeMap, VecDeque};

/// A clock that is fast or slow by a constant, and may stand still while its machine is suspended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    anchor_real: u64,
    anchor_local: u64,
    /// Parts per million faster than real time.
    pub rate_ppm: i64,
}

impl Clock {
    pub fn new(real: u64, local: u64, rate_ppm: i64) -> Clock {
        Clock { anchor_real: real, anchor_local: local, rate_ppm }
    }

    pub fn local(&self, real: u64) -> Instant {
        let passed = i128::from(real - self.anchor_real);
        let ns = passed + passed * i128::from(self.rate_ppm) / 1_000_000;
        Instant { ns: self.anchor_local + u64::try_from(ns).expect("BUG: clocks go forward") }
    }

    /// When it will show `local`, at the earliest.
    pub fn real(&self, local: Instant, now: u64) -> u64 {
        let ahead = i128::from(local.ns) - i128::from(self.anchor_local);
        let real = i128::from(self.anchor_real) + ahead * 1_000_000 / i128::from(1_000_000 + self.rate_ppm) + 1;
        u64::try_from(real).unwrap_or(0).max(now)
    }

    /// It stood still since `from`.
    pub fn stood_still(&mut self, from: u64, until: u64) {
        let local = self.local(from).ns;
        (self.anchor_real, self.anchor_local) = (until, local);
    }
}

/// A commit on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub id: u64,
    pub end: LogEnd,
    pub durable: bool,
}

/// The region is the primary, as far as its node goes.
#[derive(Debug)]
pub(super) struct Lead {
    pub epoch: Epoch,
    pub generation: u64,
    /// The control core said so.
    pub open: bool,
    pub draining: Option<OpId>,
    pub sealing: Option<(OpId, LogEnd)>,
    pub pending: VecDeque<Pending>,
    pub acked_end: LogEnd,
    pub secondaries: BTreeMap<RegionName, LogEnd>,
    /// Secondaries that must have a commit before it is acknowledged.
    pub enforced: u8,
    /// Is being taken out, and counts for nothing any more.
    pub leaving: Option<RegionName>,
    /// Strengthening under way: said to the core when all that was acknowledged is there.
    pub strengthens: Option<u8>,
}

impl Lead {
    pub fn new(epoch: Epoch, generation: u64) -> Lead {
        Lead {
            epoch,
            generation,
            open: false,
            draining: None,
            sealing: None,
            pending: VecDeque::new(),
            acked_end: LogEnd::EMPTY,
            secondaries: BTreeMap::new(),
            enforced: 0,
            leaving: None,
            strengthens: None,
        }
    }

    /// In how many secondaries everything up to `end` is durable.
    pub fn copies_of(&self, end: &LogEnd) -> usize {
        self.secondaries.values().filter(|s| s.seq >= end.seq).count()
    }
}

#[derive(Debug)]
pub(super) struct Member {
    pub who: Who,
    pub control: Option<Control>,
    /// Of its process: events of an earlier one are void.
    pub life: u64,
    pub clock: Clock,
    /// Persisted for certain.
    pub kept: Option<Vec<u8>>,
    /// On its way to the disk: (token, bytes).
    pub writing: VecDeque<(u64, Vec<u8>)>,
    pub log: RegionLog,
    pub generation: u64,
    pub lead: Option<Lead>,
    pub following: Option<(Epoch, RegionName)>,
    /// A promotion under way; void when the number changed.
    pub promoting: Option<(Epoch, Promotion)>,
    pub promotion_no: u64,
    pub fetching: Option<(RegionName, LogEnd)>,
    /// Events wait until then.
    pub paused_until: Option<u64>,
    pub suspended_since: Option<u64>,
    pub disk_stuck_until: u64,
    pub timer: Option<u64>,
    /// The primary's time up to which everything is here.
    pub covers: Option<UnixMicros>,
    /// A mutant counts its lease from the answer.
    pub gate_from_reply: Instant,
    /// A mutant goes on in an epoch that it sealed.
    pub unsealed: Option<Epoch>,
    /// Every tail that was cut.
    pub archive: Vec<Frame>,
    /// Of the process: who is a member, and who was taken out. Empty: all are.
    pub known: MembersView,
}

impl Member {
    pub fn new(who: Who, clock: Clock) -> Member {
        Member {
            who,
            control: None,
            life: 0,
            clock,
            kept: None,
            writing: VecDeque::new(),
            log: RegionLog::default(),
            generation: 0,
            lead: None,
            following: None,
            promoting: None,
            promotion_no: 0,
            fetching: None,
            paused_until: None,
            suspended_since: None,
            disk_stuck_until: 0,
            timer: None,
            covers: None,
            gate_from_reply: Instant::ZERO,
            unsealed: None,
            archive: Vec::new(),
            known: MembersView::default(),
        }
    }

    pub fn name(&self) -> &RegionName {
        &self.who.name
    }

    /// Whether its process speaks with a member of that name.
    pub fn lets_in(&self, name: &RegionName) -> bool {
        !self.known.removed.iter().chain(&self.known.witnesses_removed).any(|(r, _)| r == name)
    }

    pub fn kept_state(&self) -> Option<VoterState> {
        self.kept.as_ref().map(|bytes| VoterState::decode(bytes).expect("BUG: what was kept can be read"))
    }

    /// Whether a commit may be acknowledged now: the commit point.
    pub fn gate_open(&self, real: u64, mutant: Option<RoleMutant>) -> bool {
        let (Some(lead), Some(control)) = (&self.lead, &self.control) else { return false };
        if !lead.open {
            return false;
        }
        let now = self.clock.local(real);
        match mutant {
            Some(RoleMutant::AckWithoutLease) => true,
            Some(RoleMutant::LeaseFromReply | RoleMutant::ResumesUnasked) => now < control.lease_until().max(self.gate_from_reply),
            Some(RoleMutant::UnsealsItself) if self.unsealed == Some(lead.epoch) => true,
            _ => now < control.lease_until(),
        }
    }
}
