//! The simulator itself: it repeats, and its checkers can fail. The seeds that CI runs are in tests/sim.rs.

use super::*;

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 4, 5] {
        let options = SimOptions::default();
        let first = run_seed(seed, &options).map_err(|f| f.to_string());
        let second = run_seed(seed, &options).map_err(|f| f.to_string());
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn explore() {
    let from = std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let count = std::env::var("SIM_COUNT").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let trace_lines = std::env::var("SIM_TRACE").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let options = SimOptions { trace_lines, ..SimOptions::default() };
    let summary = run_many(from, count, 1, &options, &|line| println!("{line}"));
    println!("failed: {:?}", summary.failures.iter().map(|f| f.seed).collect::<Vec<_>>());
}
