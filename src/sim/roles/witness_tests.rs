//! A witness that comes and goes: added, taken out, replaced, without its state; and whoever dies meanwhile.

use super::tests::{failover, member, op, order, refusal, region, role, settings, voters};
use super::world::World;
use crate::base::RegionName;
use crate::control::{OpState, OrderKind, Role};

fn name(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn add(witness: &str) -> OrderKind {
    OrderKind::AddWitness { witness: name(witness), addr: format!("{witness}:7700"), zone: None }
}

fn remove(witness: &str) -> OrderKind {
    OrderKind::RemoveWitness { witness: name(witness) }
}

/// With `w2` and `w3`, which run and are no members.
fn world(regions: usize, witness: bool) -> World {
    let mut world = World::quiet_with_spares(regions, (witness, 2), &settings());
    world.run_for(5000).unwrap();
    assert_eq!(role(&world, 0), Role::Primary);
    world
}

fn votes(world: &World, m: usize) -> (bool, Option<String>) {
    let view = member(world, m).control.as_ref().unwrap().view(member(world, m).clock.local(world.now));
    (view.votes, view.reason)
}

fn done(world: &mut World, at: usize, id: u128, kind: OrderKind) {
    order(world, at, id, kind);
    world.run_for(6000).unwrap();
    assert_eq!(op(world, at, id).state, OpState::Done, "{id}");
}

fn refused(world: &mut World, at: usize, id: u128, kind: OrderKind, said: &str) {
    order(world, at, id, kind);
    world.run_for(1500).unwrap();
    let why = refusal(world, at, id);
    assert!(why.contains(said), "{why}");
}

#[test]
fn a_witness_comes_proves_a_failover_and_goes() {
    let mut world = world(2, false);
    assert_eq!(voters(&world, 0), [region(0)]);
    refused(&mut world, 1, 1, remove("w2"), "there is no witness 'w2', nor any other");
    refused(&mut world, 1, 2, add("r1"), "the region r1 has that name");
    done(&mut world, 1, 3, add("w2"));
    for m in [0, 1, 2] {
        assert_eq!(voters(&world, m), [region(0), region(1), name("w2")]);
    }
    assert!(votes(&world, 2).0);
    done(&mut world, 1, 4, add("w2"));
    refused(&mut world, 1, 5, add("w3"), "w2 is the witness, and there is one at most; take it out first: parhelion witness remove w2");
    refused(&mut world, 1, 6, remove("w3"), "there is no witness 'w3'; the witness is w2");
    refused(&mut world, 1, 7, OrderKind::AddRegion { region: name("w2"), addr: "x:1".into() }, "the witness is called w2");

    // The primary dies, and nobody's word is asked for.
    world.crash(0);
    order(&mut world, 1, 8, failover(1, true));
    world.run_for(12_000).unwrap();
    assert_eq!((role(&world, 1), op(&world, 1, 8).state), (Role::Primary, OpState::Done));
    assert!(!member(&world, 1).control.as_ref().unwrap().failovers()[0].unproven);
    world.start(0);
    world.run_for(10_000).unwrap();
    assert_eq!(role(&world, 0), Role::Secondary);

    done(&mut world, 0, 9, remove("w2"));
    assert_eq!((voters(&world, 0), voters(&world, 1)), (vec![region(1)], vec![region(1)]));
    let (votes, why) = votes(&world, 2);
    let why = why.unwrap();
    assert!(!votes && why.contains("was taken out") && why.contains("parhelion invite --witness NAME"), "{why}");
    assert_eq!(role(&world, 2), Role::Removed);
    // What one says that is out itself is nothing, also to a region that votes alone.
    world.input(1, crate::control::Input::SaidOut { by: name("w2") });
    assert_eq!(role(&world, 1), Role::Primary);
    done(&mut world, 0, 10, remove("w2"));
    refused(&mut world, 0, 11, add("w2"), "a witness has a name that was never used");
    refused(&mut world, 0, 12, OrderKind::AddRegion { region: name("w2"), addr: "x:1".into() }, "its name is not used again");
    done(&mut world, 0, 13, add("w3"));
    assert_eq!(voters(&world, 0), [region(0), region(1), name("w3")]);
}

#[test]
fn a_witness_that_is_dead_is_replaced_and_votes_no_more_when_it_comes_back() {
    let mut world = world(2, true);
    world.crash(2);
    world.run_for(3000).unwrap();
    refused(&mut world, 1, 1, add("w2"), "take it out first: parhelion witness remove witness");
    done(&mut world, 1, 2, remove("witness"));
    assert_eq!(voters(&world, 1), [region(0)]);
    done(&mut world, 1, 3, add("w2"));
    assert_eq!(voters(&world, 1), [region(0), region(1), name("w2")]);
    // It has all that it promised, and asks nobody: whoever it dials tells it. A restart changes nothing.
    for _ in 0..2 {
        world.start(2);
        world.run_for(5000).unwrap();
        let by = [region(0), region(1)];
        for by in by {
            world.input(2, crate::control::Input::SaidOut { by });
        }
        assert!(!votes(&world, 2).0 && role(&world, 2) == Role::Removed, "{:?}", votes(&world, 2));
        world.crash(2);
    }
    world.crash(0);
    order(&mut world, 1, 4, failover(1, true));
    world.run_for(12_000).unwrap();
    assert_eq!(role(&world, 1), Role::Primary);
}

#[test]
fn a_witness_without_its_state_votes_no_more_however_often_it_is_started() {
    let mut world = world(2, true);
    world.crash(2);
    world.members[2].kept = None;
    world.truth.emptied(2);
    for _ in 0..3 {
        world.start(2);
        world.run_for(4000).unwrap();
        let (votes, why) = votes(&world, 2);
        assert!(!votes && why.as_ref().is_some_and(|w| w.contains("parhelion witness remove witness")), "{why:?}");
        world.crash(2);
    }
    world.start(2);
    world.run_for(4000).unwrap();
    world.crash(0);
    order(&mut world, 1, 1, failover(1, true));
    world.run_for(20_000).unwrap();
    assert_ne!(role(&world, 1), Role::Primary, "one of three has a vote");
    world.start(0);
    world.run_for(20_000).unwrap();
    let primary = [0, 1].into_iter().find(|m| role(&world, *m) == Role::Primary).expect("two of three are a majority");
    done(&mut world, primary, 2, remove("witness"));
    done(&mut world, primary, 3, add("w3"));
    assert_eq!(voters(&world, primary), [region(0), region(1), name("w3")]);
}

#[test]
fn votes_follow_the_witness_as_they_follow_the_regions() {
    let mut world = world(4, false);
    let three = voters(&world, 0);
    assert_eq!(three.len(), 3);
    done(&mut world, 1, 1, add("w2"));
    world.run_for(5000).unwrap();
    assert_eq!(voters(&world, 0), [region(0), region(1), region(2), region(3), name("w2")]);
    done(&mut world, 2, 2, OrderKind::RemoveRegion { region: region(3) });
    world.run_for(5000).unwrap();
    assert_eq!(voters(&world, 0), [region(0), region(1), region(2)], "three regions need none");
    assert_eq!(votes(&world, 4), (false, None), "it is the witness still");
    done(&mut world, 2, 3, OrderKind::AddRegion { region: region(3), addr: String::new() });
    world.run_for(5000).unwrap();
    assert_eq!(voters(&world, 0).len(), 5);
    done(&mut world, 2, 4, remove("w2"));
    world.run_for(5000).unwrap();
    assert_eq!(voters(&world, 0).len(), 3);
}

#[test]
fn a_witness_that_is_not_heard_gets_no_vote_and_one_that_is_needed_is_not_taken_out() {
    let mut world = world(2, false);
    world.crash(2);
    done(&mut world, 0, 1, add("w2"));
    world.run_for(10_000).unwrap();
    assert_eq!(voters(&world, 0), [region(0)], "two of two would be worse than one of one");
    world.start(2);
    world.run_for(5000).unwrap();
    assert_eq!(voters(&world, 0), [region(0), region(1), name("w2")]);
    world.crash(1);
    world.run_for(8000).unwrap();
    refused(&mut world, 0, 2, remove("w2"), "no majority of them answers (silent: r1)");
    assert_eq!(role(&world, 0), Role::Primary);
}

/// One voter at a time, whoever dies at whatever moment: in the end one region reigns, and the order has been carried out or can be repeated.
#[test]
fn a_witness_comes_and_goes_whenever_anybody_dies_in_it() {
    for victim in 0..3 {
        for at in (0..1200).step_by(31) {
            let mut world = world(2, false);
            for (id, kind, expected) in [(1, add("w2"), 3), (2, remove("w2"), 1)] {
                order(&mut world, 0, id, kind.clone());
                world.run_for(at).unwrap();
                world.crash(victim);
                world.run_for(300).unwrap();
                world.start(victim);
                world.run_for(20_000).unwrap();
                let primaries: Vec<usize> = [0, 1].into_iter().filter(|m| role(&world, *m) == Role::Primary).collect();
                let [primary] = primaries[..] else { panic!("{victim} died {at} ms into {kind:?}: {primaries:?}") };
                let told = member(&world, 0).control.as_ref().unwrap().op(crate::control::OpId(id)).map(|o| o.state.clone());
                assert!(told.as_ref().is_none_or(OpState::is_final), "{victim} died {at} ms into {kind:?}: {told:?}");
                done(&mut world, primary, 10 + id, kind);
                world.run_for(5000).unwrap();
                let set = voters(&world, primary);
                assert_eq!(set.len(), expected, "{victim} died {at} ms into it: {set:?}");
                assert_eq!(voters(&world, 1 - primary), set);
            }
        }
    }
}
