//! How far each search goes: which members, orders and faults.
//!
//! Decides what is gone through in CI, and which faults are aimed at which rule. Goes through nothing itself ([`super::search`]).

use super::Bounds;
use super::state::{failover, switchover, voters};
use super::steps::Step;
use crate::control::OrderKind;
use crate::sim::roles::RoleMutant;

/// A search that is to come to its end has failed when it goes beyond.
pub(super) const WHOLE_STATES_MAX: usize = 1_000_000;

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
        writes_late: false,
        gates: false,
        orders: Vec::new(),
        steps: u16::MAX,
        states_max: usize::MAX,
        whole: false,
        twins: 0,
    }
}

impl Bounds {
    fn ordered(self, orders: Vec<(usize, OrderKind)>) -> Bounds {
        Bounds { orders, ..self }
    }
}

/// Every schedule of these orders at any time and these faults at any time: few enough that the search comes to its end.
fn whole(name: &'static str, orders: Vec<(usize, OrderKind)>, script: Vec<(Step, bool)>) -> Bounds {
    Bounds { whole: true, twins: 10, epochs: 4, orders, script, states_max: WHOLE_STATES_MAX, ..quiet(name) }
}

/// What CI goes through; `steps` and `states_max` more or less by a flag, except where all schedules are gone through.
#[must_use]
pub fn bounds(steps: u16, states_max: usize) -> Vec<Bounds> {
    let dies = |m| vec![(Step::Dies { m, silent: false }, true)];
    let away = |m| vec![(Step::Alone { m }, true), (Step::LetGo, false)];
    let stands_still = |m| vec![(Step::Alone { m }, true), (Step::Suspends { m }, false), (Step::Resumes { m }, false)];
    let (three, four) = (|b| Bounds { regions: 3, witness: false, ..b }, |b| Bounds { regions: 4, witness: false, ..b });
    let fails = || vec![(1, failover(1))];
    let switches = || vec![(0, switchover(1))];
    let changes = || vec![(0, voters(&[0, 1, 3])), (1, failover(1))];
    let all = [
        whole("a failover, the old primary cut off for a while", fails(), away(0)),
        whole("a failover, the old primary dies", fails(), dies(0)),
        Bounds { losses: 1, ..whole("a failover, the old primary dies and a message is lost", fails(), dies(0)) },
        Bounds { held: 1, drift: 1, ..whole("a failover, a link is held and a clock is slow", fails(), Vec::new()) },
        whole("a switchover, the old primary cut off for a while", switches(), away(0)),
        whole("a switchover, the old primary dies", switches(), dies(0)),
        whole("a switchover, its target cut off for a while", switches(), away(1)),
        whole("a switchover, its target dies", switches(), dies(1)),
        Bounds { losses: 1, ..whole("a switchover, a message is lost", switches(), Vec::new()) },
        Bounds { held: 1, ..whole("a switchover, a link is held", switches(), Vec::new()) },
        Bounds {
            gates: true,
            drift: 1,
            ..whole("a failover, the old primary cut off, stands still and goes on", fails(), stands_still(0))
        },
        three(whole("three regions, a failover, the old primary cut off for a while", fails(), away(0))),
        three(Bounds {
            held: 1,
            ..whole("three regions, two failovers, a link is held", vec![(1, failover(1)), (2, failover(2))], Vec::new())
        }),
        four(Bounds { held: 1, ..whole("four regions, a change of voters and a failover, a link is held", changes(), Vec::new()) }),
        four(whole("four regions, a change of voters and a failover, the primary dies", changes(), dies(0))),
        four(whole("four regions, a change of voters and a failover, the primary cut off for a while", changes(), away(0))),
        Bounds { held: 1, crashes: 1, ..quiet("a switchover, a link is held and a member dies") }.ordered(switches()),
        three(Bounds { held: 1, crashes: 1, ..quiet("three regions, a switchover and a failover, a link is held and a member dies") })
            .ordered(vec![(0, switchover(1)), (2, failover(2))]),
    ];
    let within = |b: Bounds| match b.whole {
        true => Bounds { states_max: b.states_max.max(states_max), ..b },
        false => Bounds { steps, states_max, ..b },
    };
    all.into_iter().map(within).collect()
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
            "the old primary hears of its last grants late, and then nothing",
            (new, failover(new)),
            vec![(Step::Alone { m: old }, true), (Step::Mute { m: old }, false), (Step::Alone { m: old }, false)],
        ),
        M::NoStorageGate => (
            "the old primary is cut off and stands still, and goes on",
            (new, failover(new)),
            vec![(Step::Alone { m: old }, false), (Step::Suspends { m: old }, false), (Step::Resumes { m: old }, false)],
        ),
        M::GateFromAnswer => (
            "the old primary stands still, goes on and hears of a grant from before",
            (new, failover(new)),
            vec![
                (Step::Alone { m: old }, true),
                (Step::Suspends { m: old }, false),
                (Step::Resumes { m: old }, false),
                (Step::Mute { m: old }, false),
                (Step::Alone { m: old }, true),
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
    Some(Bounds {
        orders: vec![order],
        script,
        writes_late: true,
        gates: matches!(mutant, M::NoStorageGate | M::GateFromAnswer),
        ..quiet(name)
    })
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
        M::NoStorageGate,
        M::GateFromAnswer,
    ]
}
