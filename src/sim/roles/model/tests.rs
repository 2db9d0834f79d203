//! Searches come to their end, take no two states for one that behave differently, and notice what is switched off.

use super::scopes::{WHOLE_STATES_MAX, aimed_at, bounds};
use super::search::search;
use super::{Bounds, ModelReport};
use crate::sim::roles::RoleMutant;

fn scope(name: &str) -> Bounds {
    bounds(400, 1000).into_iter().find(|b| b.name == name).unwrap_or_else(|| panic!("no scope is called '{name}'"))
}

fn aimed(mutant: RoleMutant, with: Option<RoleMutant>) -> ModelReport {
    let states_max = 40_000;
    search(Bounds { states_max, ..aimed_at(mutant).expect("faults are aimed at it") }, with)
}

#[test]
fn a_search_comes_to_its_end_and_states_taken_for_one_lead_to_the_same() {
    let report = search(Bounds { twins: 3, ..scope("a failover, the old primary dies") }, None);
    assert!(report.exhausted && !report.failed(), "{report}");
    assert!(report.reigns >= 2 && report.states < WHOLE_STATES_MAX && report.twins > 100, "{report}");
}

#[test]
fn a_search_that_stops_before_its_end_has_failed_where_it_was_to_come_to_it() {
    let few = Bounds { states_max: 50, ..scope("a failover, the old primary dies") };
    let report = search(few.clone(), None);
    assert!(report.failed() && report.violation.is_none() && report.to_string().contains("NOT ALL OF THEM"), "{report}");
    let report = search(Bounds { whole: false, ..few }, None);
    assert!(!report.failed() && !report.exhausted && report.to_string().contains("stopped there"), "{report}");
}

#[test]
fn a_lease_counted_from_the_answer_is_noticed() {
    let report = aimed(RoleMutant::LeaseFromReply, Some(RoleMutant::LeaseFromReply));
    assert!(report.violation.as_ref().is_some_and(|(what, _)| what.starts_with("S2:")), "{report}");
    let report = aimed(RoleMutant::LeaseFromReply, None);
    assert!(report.violation.is_none(), "{report}");
}

/// The machine stands still with all of its clocks, and goes on without having heard anything: only its copies know.
#[test]
fn a_writer_that_stood_still_makes_nothing_durable_and_without_the_gate_it_is_noticed() {
    let report = aimed(RoleMutant::NoStorageGate, Some(RoleMutant::NoStorageGate));
    assert!(report.violation.as_ref().is_some_and(|(what, _)| what.starts_with("S2:")), "{report}");
    let report = aimed(RoleMutant::NoStorageGate, None);
    assert!(report.violation.is_none() && report.exhausted && report.reigns >= 2, "{report}");
    let report = aimed(RoleMutant::GateFromAnswer, Some(RoleMutant::GateFromAnswer));
    assert!(report.violation.as_ref().is_some_and(|(what, _)| what.starts_with("S2:")), "{report}");
}
