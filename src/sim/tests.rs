//! The simulator itself: it repeats, and its checkers can fail. The seeds that CI runs are in tests/sim.rs.

use super::*;

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 41, 86] {
        let options = SimOptions::default();
        let first = run_seed(seed, &options).map_err(|f| f.to_string()).expect("the seed holds");
        let second = run_seed(seed, &options).map_err(|f| f.to_string()).expect("the seed holds");
        assert_eq!(first, second, "seed {seed}");
        let other = run_seed(seed + 1000, &options).map_err(|f| f.to_string()).expect("the seed holds");
        assert_ne!(first.trace_hash, other.trace_hash, "another seed is another run");
    }
}

/// Breaks one rule and looks for a seed whose checkers say so, in these words.
fn caught(mutant: Mutant, words: &[&str]) {
    let options = SimOptions { mutant: Some(mutant), ..SimOptions::default() };
    let failures: Vec<SimFailure> = (0..40).filter_map(|seed| run_seed(seed, &options).err()).map(|f| *f).collect();
    assert!(
        failures.iter().any(|f| words.iter().any(|w| f.what.contains(w))),
        "{mutant:?}: {} of 40 seeds failed, none for this; the first: {:?}",
        failures.len(),
        failures.first().map(ToString::to_string)
    );
}

#[test]
fn an_acknowledgement_before_the_sync_is_caught() {
    caught(Mutant::AckBeforeSync, &["copies have fsynced it", "durability"]);
}

#[test]
fn a_disk_that_lies_is_caught() {
    caught(Mutant::LyingSync, &["durability", "cannot be opened after nothing worse than a crash", "nobody wrote"]);
}

#[test]
fn shipping_above_the_vdl_is_caught() {
    caught(Mutant::ShipAboveVdl, &["S11"]);
}

#[test]
fn an_acknowledgement_counted_for_others_is_caught() {
    caught(Mutant::AckFromTwo, &["copies have fsynced it"]);
}

#[test]
fn a_failure_says_how_to_see_it_again() {
    let options = SimOptions { mutant: Some(Mutant::ShipAboveVdl), trace_lines: 20, ..SimOptions::default() };
    let failure = (0..40).find_map(|seed| run_seed(seed, &options).err()).expect("a mutant is caught");
    let text = failure.to_string();
    assert!(text.contains(&format!("parhelion sim --seed {}", failure.seed)), "{text}");
    assert_eq!(failure.trace.len(), 20);
}

#[test]
fn every_order_of_crashes_in_a_recovery_ends_in_the_same_log() {
    // One state in so many; `parhelion sim recovery` goes through all.
    let options = RecoveryOptions { crashes: 1, every: 64, sets_each: 1, threads: 2, mutant: None, layout: None };
    let summary = enumerate_recoveries(&options, &|line| println!("{line}"));
    println!("{summary}");
    assert_eq!(summary.failure, None);
    assert!(summary.schedules > 3_000 && summary.two_processes > 300, "{summary}");
}

/// `parhelion sim mutants` switches off every rule; here those that are noticed at once.
fn noticed(mutant: Mutant) {
    let report = catch(mutant, 120, 2);
    println!("{report}");
    assert!(report.noticed.is_some(), "{report}");
}

#[test]
fn rules_of_a_disk_are_noticed_when_they_are_off() {
    for mutant in [Mutant::PublishedBeforeSync, Mutant::TrimAboveFlushed] {
        noticed(mutant);
    }
}

#[test]
fn rules_of_a_copy_are_noticed_when_they_are_off() {
    for mutant in [Mutant::CutWithoutSuccessor, Mutant::FoldedUnderReaders, Mutant::DamagedSource] {
        noticed(mutant);
    }
}

#[test]
fn a_recovery_that_hears_two_copies_is_noticed() {
    noticed(Mutant::RecoverFromTwo);
}

#[test]
fn an_empty_copy_with_a_vote_is_noticed() {
    noticed(Mutant::EmptyCopiesVote);
}

#[test]
fn an_old_tail_that_counts_without_a_generation_start_is_noticed() {
    noticed(Mutant::OldTailCounts);
}

#[test]
fn a_promise_that_is_forgotten_is_noticed() {
    noticed(Mutant::PromiseForgotten);
}
