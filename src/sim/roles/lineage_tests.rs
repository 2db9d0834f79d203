//! Two histories, and two that claim one epoch: what control cores do when they meet.

use super::tests::{member, op, order, refusal, region, role, world};
use super::world::World;
use crate::base::{LogEnd, UnixMicros};
use crate::control::{ControlMessage, EpochEntry, Input, OpState, OrderKind, Renew, Role, Round};

fn lineage(world: &World, m: usize) -> crate::base::LineageId {
    member(world, m).control.as_ref().unwrap().state().unwrap().lineage
}

fn force(survivors: &[usize], stopped: usize) -> OrderKind {
    OrderKind::NewLineage { survivors: survivors.iter().map(|m| region(*m)).collect(), stopped: Some(region(stopped)) }
}

#[test]
fn a_lineage_is_forced_only_where_a_majority_is_gone_and_two_that_meet_write_nothing() {
    let mut world = world(3, false);
    for (id, kind, said) in [
        (1, force(&[2], 0), "r0 answers: it is not stopped"),
        (2, force(&[2], 1), "the last primary that is known here is r0"),
        (3, force(&[1], 0), "is not among the survivors"),
        (4, force(&[0, 2], 0), "cannot both be stopped and survive"),
    ] {
        order(&mut world, 2, id, kind);
        world.run_for(4000).unwrap();
        assert!(refusal(&world, 2, id).contains(said), "{}", refusal(&world, 2, id));
    }
    world.crash(0);
    order(&mut world, 2, 5, force(&[2], 0));
    world.run_for(4000).unwrap();
    assert!(refusal(&world, 2, 5).contains("a majority of the voters answers"), "{}", refusal(&world, 2, 5));
    world.crash(1);
    let was = lineage(&world, 2);
    world.run_for(8000).unwrap();
    order(&mut world, 2, 6, force(&[2], 0));
    world.run_for(6000).unwrap();
    assert_eq!(op(&world, 2, 6).state, OpState::Done);
    assert_eq!(role(&world, 2), Role::Primary);
    assert_ne!(lineage(&world, 2), was);
    // A restart is one of this lineage.
    world.crash(2);
    world.start(2);
    world.run_for(8000).unwrap();
    assert_eq!(role(&world, 2), Role::Primary);

    // The old primary was not stopped for good: they meet, and neither writes.
    world.start(0);
    world.run_for(6000).unwrap();
    assert_eq!(role(&world, 2), Role::Fenced);
    assert_ne!(role(&world, 0), Role::Primary);
    world.start(1);
    world.run_for(10_000).unwrap();
    for m in 0..3 {
        assert!(!member(&world, m).gate_open(world.now, None), "r{m} writes");
        let view = member(&world, m).control.as_ref().unwrap().view(member(&world, m).clock.local(world.now));
        assert!(!view.rivals.is_empty() && view.reason.unwrap().contains("parhelion retire"), "r{m}");
    }
    // Retired: what it had is elsewhere, and it is empty.
    for m in [0, 1] {
        world.crash(m);
        world.members[m].kept = None;
        world.members[m].log = Default::default();
        world.start(m);
    }
    world.run_for(10_000).unwrap();
    assert_eq!((role(&world, 0), role(&world, 1), role(&world, 2)), (Role::Secondary, Role::Secondary, Role::Primary));
    assert_eq!(lineage(&world, 0), lineage(&world, 2));
}

#[test]
fn those_that_survive_go_with_a_forced_lineage() {
    let mut world = world(5, false);
    for m in [0, 1, 2] {
        world.crash(m);
    }
    world.run_for(8000).unwrap();
    order(&mut world, 3, 1, force(&[3, 4], 0));
    world.run_for(8000).unwrap();
    assert_eq!(op(&world, 3, 1).state, OpState::Done);
    assert_eq!((role(&world, 3), role(&world, 4)), (Role::Primary, Role::Secondary));
    assert_eq!(lineage(&world, 3), lineage(&world, 4));
    assert!(member(&world, 3).control.as_ref().unwrap().state().unwrap().begun.is_none());
}

/// What must never be is found by the one that reigns: another one claims its epoch. It stops, and the rightful one too.
#[test]
fn two_that_claim_one_epoch_write_nothing() {
    let mut world = world(3, false);
    let state = member(&world, 0).control.as_ref().unwrap().state().unwrap().clone();
    let entry = EpochEntry { region: region(1), ..state.chain.top().unwrap().clone() };
    let renew = Renew {
        lineage: state.lineage,
        voters: state.voters,
        voters_next: None,
        round: Round::default(),
        lease_ms: 6000,
        entry,
        path: Vec::new(),
        active: true,
        durable: LogEnd::EMPTY,
        sent_at: UnixMicros(0),
        sync: state.sync,
        auto: state.auto,
        ledger_digest: 0,
    };
    world.input(0, Input::Message { from: region(1), message: ControlMessage::Renew(renew) });
    world.run_for(20_000).unwrap();
    assert_eq!(role(&world, 0), Role::Fenced);
    let view = member(&world, 0).control.as_ref().unwrap().view(member(&world, 0).clock.local(world.now));
    assert!(view.writers_seen == 2 && view.reason.as_ref().unwrap().contains("two regions claim epoch 1: r0 and r1"), "{view:?}");
    assert!((0..3).all(|m| !member(&world, m).gate_open(world.now, None)), "somebody writes");
    // The other one was stopped for good, and this one is told so by a restart.
    world.crash(0);
    world.start(0);
    world.run_for(10_000).unwrap();
    assert_eq!(role(&world, 0), Role::Primary);
}
