//! How far each search goes: which members, orders and faults.
//!
//! Decides what is gone through in CI, and which faults are aimed at which rule. Goes through nothing itself ([`super::search`]).

use super::Bounds;
use super::state::{failover, switchover, voters};
use super::steps::Step;
use crate::control::OrderKind;
use crate::sim::roles::RoleMutant;

/// A search that is to come to its end is given up beyond.
const WHOLE_STATES_MAX: usize = 60_000;

/// Two regions and a witness, and nothing goes wrong.
fn quiet(name: &'static str) -> Bounds {
    Bounds {
        name,
        regions: 2,
        witness: true,
        epochs: 3,
        losses: 0,
        held: 0,
        crashes: 0,
        script: Vec::new(),
        drift: 0,
        commits: 1,
        orders: Vec::new(),
        steps: u16::MAX,
        states_max: usize::MAX,
        whole: false,
    }
}

/// Every schedule of an order at any time and these faults at any time: few enough that the search comes to its end.
fn around(name: &'static str, order: (usize, OrderKind), script: Vec<(Step, bool)>) -> Bounds {
    Bounds { whole: true, epochs: 2, orders: vec![order], script, states_max: WHOLE_STATES_MAX, ..quiet(name) }
}

/// What CI goes through; `steps` and `states_max` more or less by a flag, except where all schedules are gone through.
#[must_use]
pub fn bounds(steps: u16, states_max: usize) -> Vec<Bounds> {
    let base = Bounds { held: 1, steps, states_max, ..quiet("") };
    let three = Bounds { regions: 3, witness: false, ..base.clone() };
    vec![
        around("a failover, the old primary cut off", (1, failover(1)), vec![(Step::Alone { m: 0 }, false)]),
        around("a failover, the old primary dies", (1, failover(1)), vec![(Step::Dies { m: 0, silent: false }, false)]),
        around("a switchover, its target dies", (0, switchover(1)), vec![(Step::Dies { m: 1, silent: false }, false)]),
        Bounds { name: "two regions and a witness, a failover", orders: vec![(1, failover(1))], drift: 1, ..base.clone() },
        Bounds { name: "two regions and a witness, a switchover", orders: vec![(0, switchover(1))], crashes: 1, ..base.clone() },
        Bounds { name: "three regions, two failovers", orders: vec![(1, failover(1)), (2, failover(2))], ..three.clone() },
        Bounds {
            name: "three regions, a switchover and a failover",
            orders: vec![(0, switchover(1)), (2, failover(2))],
            crashes: 1,
            ..three
        },
        Bounds {
            name: "four regions, a change of voters and a failover",
            regions: 4,
            witness: false,
            orders: vec![(0, voters(&[0, 1, 3])), (1, failover(1))],
            ..base
        },
    ]
}

/// Faults aimed at one rule: as few as break it when it is off. `None`: what is gone through anyway is good enough.
pub(super) fn aimed_at(mutant: RoleMutant) -> Option<Bounds> {
    use RoleMutant as M;
    let (old, new, witness) = (0, 1, 2);
    let dies = |m| (Step::Dies { m, silent: false }, false);
    let (name, order, script) = match mutant {
        M::VotesAfterRestart => (
            "the old primary is cut off, and those that granted restart",
            (new, failover(new)),
            vec![(Step::Alone { m: old }, false), dies(new), dies(witness)],
        ),
        M::LeaseFromReply => (
            "the old primary hears of its last grants late, then nothing, and its clock is slow",
            (new, failover(new)),
            vec![
                (Step::Alone { m: old }, true),
                (Step::Mute { m: old }, false),
                (Step::Alone { m: old }, false),
                (Step::Tick { slow: Some(old) }, false),
            ],
        ),
        M::VoterLosesState => (
            "the witness hears one region, restarts, and hears the other",
            (new, failover(new)),
            vec![(Step::Alone { m: old }, false), dies(witness), (Step::Instead { m: new }, false)],
        ),
        M::ResumesSealed => (
            "the target is not heard after it was handed the reign, and the old primary restarts",
            (old, switchover(new)),
            vec![(Step::Mute { m: new }, true), dies(old), (Step::LetGo, false)],
        ),
        M::AnswersBeforeKept => (
            "the witness dies as it answers one region, and hears the other",
            (new, failover(new)),
            vec![
                (Step::Alone { m: old }, false),
                (Step::Dies { m: witness, silent: false }, true),
                (Step::Instead { m: new }, false),
                (Step::LetGo, false),
            ],
        ),
        _ => return None,
    };
    Some(Bounds { orders: vec![order], script, ..quiet(name) })
}

/// Mutants that the model's steps can show, and the bounds in which they do.
#[must_use]
pub(super) fn mutants() -> Vec<RoleMutant> {
    use RoleMutant as M;
    vec![
        M::VotesAfterRestart,
        M::LeaseFromReply,
        M::NoDriftGuard,
        M::CheckThenAck,
        M::VoterLosesState,
        M::IgnoresGrants,
        M::AckWithoutLease,
        M::NoMajority,
        M::ResumesSealed,
        M::AnswersBeforeKept,
    ]
}
