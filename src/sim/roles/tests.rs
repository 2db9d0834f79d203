//! Roles changing: by hand, by rule and under faults; and what breaks a rule is noticed.

use super::member::Member;
use super::world::World;
use super::*;
use crate::base::{Epoch, RegionName};
use crate::control::{AutoFailover, Consent, Input, OpId, OpState, OpView, Order, OrderKind, ReignKind, Role, Settings};
use std::time::Duration;

// ---- under faults -------------------------------------------------------------------------------------------------------

#[test]
fn roles_change_without_two_writers_and_without_a_silent_loss() {
    let summary = run_roles(1, 60, 2, &RolesOptions::default(), &|line| println!("{line}"));
    assert!(summary.failures.is_empty(), "{}", summary.failures[0]);
    let c = &summary.counts;
    assert!(c.switchovers > 0 && c.failovers > 0 && c.regained > 0 && c.lost_and_named > 0 && c.voter_changes > 0, "{c}");
}

#[test]
fn rules_that_are_switched_off_are_noticed() {
    let early = [
        RoleMutant::VotesAfterRestart,
        RoleMutant::LeaseFromReply,
        RoleMutant::UnsealsItself,
        RoleMutant::CheckThenAck,
        RoleMutant::VoterLosesState,
        RoleMutant::NoChainAtVoters,
        RoleMutant::IgnoresGrants,
        RoleMutant::AckWithoutLease,
        RoleMutant::NoMajority,
        RoleMutant::ResumesUnasked,
    ];
    let reports = crate::sim::runs::spread_over(&early, 2, &|mutant| mutants::catch(*mutant, 1, 60));
    let unseen: Vec<String> = reports.iter().filter(|r| r.noticed.is_none()).map(ToString::to_string).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}

// ---- one thing at a time --------------------------------------------------------------------------------------------------

fn region(m: usize) -> RegionName {
    RegionName::new(&format!("r{m}")).unwrap()
}

/// Clocks differ as much in these worlds.
fn settings() -> Settings {
    Settings { rho_ppm: 100_000, ..Settings::default() }
}

fn world(regions: usize, witness: bool) -> World {
    let mut world = World::quiet(regions, witness, &settings());
    world.run_for(5000).unwrap();
    assert_eq!(role(&world, 0), Role::Primary);
    world
}

fn member(world: &World, m: usize) -> &Member {
    &world.members[m]
}

fn role(world: &World, m: usize) -> Role {
    let member = member(world, m);
    member.control.as_ref().unwrap().view(member.clock.local(world.now)).role
}

fn order(world: &mut World, at: usize, id: u128, kind: OrderKind) {
    let order = Order { id: OpId(id), kind, dry_run: false, timeout_ms: 20_000, at_epoch: None, actor: "test".into() };
    world.input(at, Input::Order(order));
}

fn switchover(to: usize) -> OrderKind {
    OrderKind::Switchover { to: region(to) }
}

fn failover(to: usize, allow_data_loss: bool) -> OrderKind {
    let consent = Consent { allow_data_loss, ..Consent::default() };
    OrderKind::Failover { to: region(to), consent, primary_is_down: None }
}

fn op(world: &World, m: usize, id: u128) -> OpView {
    member(world, m).control.as_ref().unwrap().op(OpId(id)).unwrap().clone()
}

fn refusal(world: &World, m: usize, id: u128) -> String {
    match op(world, m, id).state {
        OpState::Refused { reason } => reason,
        other => panic!("it is {other:?}"),
    }
}

#[test]
fn a_switchover_is_ordered_anywhere_and_told_the_same_when_it_is_ordered_again() {
    for (regions, witness) in [(2, true), (3, false), (6, false), (2, false)] {
        let mut world = world(regions, witness);
        order(&mut world, 1, 7, switchover(1));
        world.run_for(3000).unwrap();
        assert_eq!(role(&world, 1), Role::Primary, "{regions} regions");
        assert_eq!(role(&world, 0), Role::Secondary);
        for m in [0, 1] {
            let done = op(&world, m, 7);
            assert_eq!((done.state, done.epoch), (OpState::Done, Some(Epoch(2))));
        }
        order(&mut world, 0, 7, switchover(1));
        world.run_for(3000).unwrap();
        assert_eq!(member(&world, 1).control.as_ref().unwrap().reign().unwrap().0, Epoch(2));
        // And back.
        order(&mut world, 0, 8, switchover(0));
        world.run_for(3000).unwrap();
        assert_eq!(role(&world, 0), Role::Primary, "{regions} regions");
        assert!(world.truth.reigns().all(|e| matches!(e.kind, ReignKind::Planned | ReignKind::Founding)));
    }
}

#[test]
fn a_switchover_to_nobody_to_itself_and_to_one_that_is_away_changes_nothing() {
    let mut world = world(3, false);
    world.crash(2);
    for (id, to, word) in [(1, 0, "is the primary already"), (2, 2, "r2 does not answer")] {
        order(&mut world, 1, id, switchover(to));
        world.run_for(3000).unwrap();
        assert!(refusal(&world, 0, id).contains(word), "{}", refusal(&world, 0, id));
    }
    order(&mut world, 0, 3, OrderKind::Switchover { to: RegionName::new("mars").unwrap() });
    assert!(refusal(&world, 0, 3).contains("the regions are r0, r1, r2"));
    assert_eq!(role(&world, 0), Role::Primary);
}

#[test]
fn a_primary_whose_target_vanished_after_the_seal_writes_again_and_lost_nothing() {
    let mut world = world(3, false);
    order(&mut world, 0, 1, switchover(1));
    while member(&world, 0).control.as_ref().unwrap().state().unwrap().handed_to.is_none() {
        world.run_for(1).unwrap();
    }
    world.crash(1);
    world.run_for(12_000).unwrap();
    assert_eq!(role(&world, 0), Role::Primary);
    assert!(matches!(op(&world, 0, 1).state, OpState::Failed { .. }));
    assert!(world.truth.reigns().any(|e| e.kind == ReignKind::Regained));
    assert_eq!(world.truth.lost(), 0);
}

#[test]
fn a_failover_waits_for_the_lease_asks_for_consent_and_the_old_primary_comes_back_by_itself() {
    let mut world = world(3, false);
    order(&mut world, 1, 1, failover(1, true));
    world.run_for(1000).unwrap();
    assert!(refusal(&world, 1, 1).contains("parhelion switchover --to r1"));
    world.crash(0);
    order(&mut world, 1, 2, failover(1, false));
    world.run_for(1000).unwrap();
    assert!(refusal(&world, 1, 2).contains("--allow-data-loss"), "{}", refusal(&world, 1, 2));
    order(&mut world, 2, 3, failover(1, true));
    world.run_for(10_000).unwrap();
    assert_eq!(role(&world, 1), Role::Primary);
    assert_eq!(op(&world, 2, 3).state, OpState::Done);
    let record = member(&world, 2).control.as_ref().unwrap().failovers()[0].clone();
    assert_eq!((record.from.clone(), record.to.clone(), record.complete), (region(0), region(1), false));
    world.start(0);
    world.run_for(20_000).unwrap();
    assert_eq!(role(&world, 0), Role::Secondary);
    assert!(member(&world, 1).log.holds(&member(&world, 0).log.end()));
    let record = member(&world, 1).control.as_ref().unwrap().failovers()[0].clone();
    assert!(record.complete && record.tail.is_some(), "{record:?}");
}

#[test]
fn two_operators_at_once_make_one_primary_and_the_other_is_told() {
    let mut world = world(3, false);
    world.crash(0);
    world.run_for(100).unwrap();
    order(&mut world, 1, 1, failover(1, true));
    order(&mut world, 2, 2, failover(2, true));
    world.run_for(25_000).unwrap();
    let primaries: Vec<usize> = [1, 2].into_iter().filter(|m| role(&world, *m) == Role::Primary).collect();
    assert_eq!(primaries.len(), 1);
    let (won, lost) = (primaries[0], 3 - primaries[0]);
    assert_eq!(op(&world, won, won as u128).state, OpState::Done);
    match op(&world, lost, lost as u128).state {
        OpState::Superseded { by, region: reigns, .. } => assert_eq!((by, reigns), (Some(OpId(won as u128)), region(won))),
        other => panic!("it is {other:?}"),
    }
}

#[test]
fn one_voter_of_two_regions_is_replaced_only_by_the_operators_word() {
    let mut world = world(2, false);
    world.crash(0);
    order(&mut world, 1, 1, failover(1, true));
    assert!(refusal(&world, 1, 1).contains("--primary-is-down r0"));
    let kind = |down: usize| OrderKind::Failover {
        to: region(1),
        consent: Consent { allow_data_loss: true, ..Consent::default() },
        primary_is_down: Some(region(down)),
    };
    world.start(0);
    world.run_for(5000).unwrap();
    order(&mut world, 1, 2, kind(0));
    world.run_for(5000).unwrap();
    assert!(refusal(&world, 1, 2).contains("r0"), "it answers, so it is not down");
    world.crash(0);
    order(&mut world, 1, 3, kind(0));
    world.run_for(5000).unwrap();
    assert_eq!(role(&world, 1), Role::Primary);
    assert!(member(&world, 1).control.as_ref().unwrap().failovers()[0].unproven);
    // Back again, it asks before it goes on, and follows.
    world.start(0);
    world.run_for(10_000).unwrap();
    assert_eq!((role(&world, 0), role(&world, 1)), (Role::Secondary, Role::Primary));
}

#[test]
fn a_primary_alone_goes_on_after_a_restart_and_hands_its_only_vote_over_across_one() {
    let mut world = world(2, false);
    world.crash(1);
    world.crash(0);
    world.start(0);
    world.run_for(5000).unwrap();
    assert_eq!(role(&world, 0), Role::Primary);
    world.start(1);
    world.run_for(3000).unwrap();
    order(&mut world, 0, 1, switchover(1));
    while member(&world, 0).kept_state().unwrap().handed_to.is_none() {
        world.run_for(1).unwrap();
    }
    world.crash(1);
    world.crash(0);
    world.start(0);
    world.run_for(20_000).unwrap();
    assert_eq!(role(&world, 0), Role::Sealed, "only the target may go on");
    world.start(1);
    world.run_for(20_000).unwrap();
    assert_eq!((role(&world, 0), role(&world, 1)), (Role::Secondary, Role::Primary));
    assert_eq!(world.truth.lost(), 0);
}

#[test]
fn a_primary_with_a_stuck_disk_loses_its_lease_and_one_cut_off_stops_within_it() {
    let mut world = world(3, false);
    world.members[0].disk_stuck_until = u64::MAX / 2;
    world.run_for(8000).unwrap();
    assert_eq!(role(&world, 0), Role::Fenced);
    world.members[0].disk_stuck_until = 0;
    let mut world = self::world(3, false);
    // Its renewals arrive, their answers do not: it must stop, and stop renewing.
    for other in [1, 2] {
        world.network.cut.insert((other, 0));
    }
    world.run_for(8000).unwrap();
    assert_eq!(role(&world, 0), Role::Fenced);
    order(&mut world, 1, 1, failover(1, true));
    world.run_for(12_000).unwrap();
    assert_eq!(role(&world, 1), Role::Primary);
}

#[test]
fn a_cluster_fails_over_by_itself_as_far_as_its_rule_allows() {
    for (auto, sync, expected) in [
        (AutoFailover::Off, true, false),
        (AutoFailover::Lossless, false, false),
        (AutoFailover::Lossless, true, true),
        (AutoFailover::MaxLoss(Duration::from_secs(5)), false, true),
    ] {
        let settings = Settings { auto_failover: auto, ..settings() };
        let mut world = World::quiet(3, false, &settings);
        world.run_for(5000).unwrap();
        if sync {
            world.set_rule(0, 1);
        }
        world.run_for(5000).unwrap();
        world.crash(0);
        world.run_for(9000).unwrap();
        let promoted = [1, 2].into_iter().any(|m| role(&world, m) == Role::Primary);
        assert_eq!(promoted, expected, "{auto:?}, sync {sync}");
    }
}

#[test]
fn voters_change_one_at_a_time() {
    let mut world = world(4, false);
    let set = |names: &[usize]| OrderKind::SetVoters { voters: names.iter().map(|m| region(*m)).collect() };
    order(&mut world, 1, 1, set(&[0, 3]));
    world.run_for(3000).unwrap();
    assert!(refusal(&world, 0, 1).contains("one at a time"), "{}", refusal(&world, 0, 1));
    order(&mut world, 1, 2, set(&[0, 1, 3]));
    world.run_for(3000).unwrap();
    assert_eq!(op(&world, 1, 2).state, OpState::Done);
    // With the new one and without the one that left.
    world.crash(0);
    world.crash(2);
    order(&mut world, 1, 3, failover(1, true));
    world.run_for(12_000).unwrap();
    assert_eq!(role(&world, 1), Role::Primary);
}

// ---- plots --------------------------------------------------------------------------------------------------------------

/// Five regions with patient candidates; the same schedule with the rule and without.
fn split_vote(mutant: Option<RoleMutant>) -> Result<(), String> {
    let settings = Settings { vote_patience: Duration::from_secs(12), ..settings() };
    let mut world = World::quiet(5, false, &settings);
    world.mutant = mutant;
    world.run_for(5000).unwrap();
    world.plot_of_a_split_vote(0, &[1, 2, 3, 4]);
    world.run_for(40_000)
}

#[test]
fn a_vote_says_the_last_of_what_a_region_takes_from_the_reign_before() {
    split_vote(None).unwrap();
    let noticed = split_vote(Some(RoleMutant::ReceivesOldEpoch)).unwrap_err();
    assert!(noticed.starts_with("S5"), "{noticed}");
}
