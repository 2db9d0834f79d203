//! Rules of the role protocol switched off, one at a time, to show that their absence is noticed.
//!
//! Decides how each is broken: in what a member's storage gives back, in messages on their way, in a driver that takes a short cut, in
//! clocks. The core that runs is the one of production; it has no switch.

use super::{RolesOptions, run_roles_seed};
use crate::control::message::{Vote, Voted};
use crate::control::{ControlMessage, VoterState};
use crate::sim::runs::spread_over;
use std::fmt;

/// One broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleMutant {
    /// M1: a voter that restarted votes at once, whatever it granted before.
    VotesAfterRestart,
    /// M2: the lease is counted from the answer.
    LeaseFromReply,
    /// M3: a sealed primary whose handover did not come about writes on in the same epoch.
    UnsealsItself,
    /// M4: clocks are believed to run alike.
    NoDriftGuard,
    /// M5: the gate is asked, and the acknowledgement leaves some time later.
    CheckThenAck,
    /// M6: the holder's clock stands still while its machine is suspended, and nobody notices.
    SuspendUnnoticed,
    /// M7: a voter loses its state and goes on.
    VoterLosesState,
    /// M8: the chain of epochs is not kept by others than the primary.
    NoChainAtVoters,
    /// M9: a voter does not mind its own grant.
    IgnoresGrants,
    /// M10: commits are acknowledged without a lease.
    AckWithoutLease,
    /// M11: a candidate takes over without a majority.
    NoMajority,
    /// M12: a sealed primary that restarts goes on in its epoch.
    ResumesSealed,
    /// A primary that restarts believes that it still is one, without asking.
    ResumesUnasked,
    /// Answers of a voter leave before its promise is kept, and then the power goes.
    AnswersBeforeKept,
    /// A region acknowledges frames of a primary that it promised away.
    ReceivesOldEpoch,
    /// A change of voters needs only the new ones.
    VotersWithoutOld,
    /// Copies take frames whatever their clock says. The exhaustive model's: here regions have no copies.
    NoStorageGate,
    /// The copies' share of a lease is counted from what they said when the answer came. The exhaustive model's.
    GateFromAnswer,
}

const ALL: [(RoleMutant, &str, &[&str]); 16] = [
    (RoleMutant::VotesAfterRestart, "M1 a voter waits after a restart", &["S2:", "S5:"]),
    (RoleMutant::LeaseFromReply, "M2 a lease counts from sending", &["S2:", "S5:"]),
    (RoleMutant::UnsealsItself, "M3 a sealed epoch stays sealed", &["S2:", "S5:", "S6:"]),
    (RoleMutant::NoDriftGuard, "M4 the holder's share allows for drift", &["S2:", "S5:"]),
    (RoleMutant::CheckThenAck, "M5 the check is the commit point", &["S2:", "S5:"]),
    (RoleMutant::SuspendUnnoticed, "M6 a suspend voids the lease", &["S2:", "S5:"]),
    (RoleMutant::VoterLosesState, "M7 a voter keeps its state", &["S1:", "S2:", "S3:", "S5:", "S8:"]),
    (RoleMutant::NoChainAtVoters, "M8 voters keep the chain", &["S1:", "S2:", "S3:", "S5:", "S8:"]),
    (RoleMutant::IgnoresGrants, "M9 a voter minds its grants", &["S2:", "S5:"]),
    (RoleMutant::AckWithoutLease, "M10 no acknowledgement without lease", &["S2:", "S5:"]),
    (RoleMutant::NoMajority, "M11 a promotion needs a majority", &["S1:", "S2:", "S3:", "S5:", "S8:"]),
    (RoleMutant::ResumesSealed, "M12 a seal outlives a restart", &["S1:", "S2:", "S3:", "S5:", "S6:"]),
    (RoleMutant::ResumesUnasked, "a restarted primary asks first", &["S2:", "S5:"]),
    (RoleMutant::AnswersBeforeKept, "a promise is kept before it is given", &["S1:", "S2:", "S3:", "S5:", "S8:", "S21:"]),
    (RoleMutant::ReceivesOldEpoch, "what was promised away is not received", &["S5:"]),
    (RoleMutant::VotersWithoutOld, "a change of voters needs both majorities", &["S1:", "S2:", "S3:", "S5:", "S8:"]),
];

/// What became of one mutant.
#[derive(Clone, Debug)]
pub struct RoleMutantReport {
    pub mutant: RoleMutant,
    pub rule: &'static str,
    pub walks: u64,
    pub noticed: Option<String>,
}

impl fmt::Display for RoleMutantReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noticed: String = self.noticed.as_deref().unwrap_or("NOT NOTICED").chars().take(150).collect();
        write!(f, "{:<20}  {:<42}  {:>6} walks  {noticed}", format!("{:?}", self.mutant), self.rule, self.walks)
    }
}

/// Breaks every rule once; for each, at most `walks_max` walks from `first_seed` on.
pub fn catch_all(first_seed: u64, walks_max: u64, threads: usize, say: &(dyn Fn(&str) + Sync)) -> Vec<RoleMutantReport> {
    spread_over(&ALL, threads, &|(mutant, ..)| {
        let report = catch(*mutant, first_seed, walks_max);
        say(&report.to_string());
        report
    })
}

/// Breaks one rule, until something notices it.
pub(super) fn catch(mutant: RoleMutant, first_seed: u64, walks_max: u64) -> RoleMutantReport {
    let (_, rule, words) = ALL.iter().find(|(m, ..)| *m == mutant).expect("BUG: every mutant is in the list");
    let options = RolesOptions { mutant: Some(mutant), ..RolesOptions::default() };
    for walk in 0..walks_max {
        if let Err(failure) = run_roles_seed(first_seed.wrapping_add(walk), &options)
            && words.iter().any(|w| failure.what.starts_with(w))
            // What fails without the mutant too says nothing about it.
            && run_roles_seed(first_seed.wrapping_add(walk), &RolesOptions::default()).is_ok()
        {
            return RoleMutantReport { mutant, rule, walks: walk + 1, noticed: Some(failure.what) };
        }
    }
    RoleMutantReport { mutant, rule, walks: walks_max, noticed: None }
}

/// The vote of a voter that was not asked: as the candidate itself, which keeps `state`, would give it.
pub(super) fn forged_vote(state: &VoterState, vote: &Vote) -> ControlMessage {
    ControlMessage::Voted(Box::new(Voted {
        epoch: vote.epoch,
        round: vote.round,
        voters: state.voters.clone(),
        voters_next: state.voters_next.clone(),
        chain: state.chain.clone(),
        pending: Vec::new(),
        log: None,
        seen: Default::default(),
        sync: state.sync,
        auto: state.auto,
    }))
}
