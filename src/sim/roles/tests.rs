//! Roles changing under faults: what must hold does, and what breaks a rule is noticed.

use super::*;

#[test]
fn roles_change_without_two_writers_and_without_a_silent_loss() {
    let summary = run_roles(1, 60, 2, &RolesOptions::default(), &|line| println!("{line}"));
    assert!(summary.failures.is_empty(), "{}", summary.failures[0]);
}
