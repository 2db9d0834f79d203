//! Fixed runs of the proofs; `parhelion powercut` does more of them.

use super::powercut::{self, PowercutOptions};

#[test]
fn the_volume_survives_a_power_cut_at_every_call() {
    let options = PowercutOptions { seed: 1, images: 1500, threads: 2, only: None };
    let report = powercut::run(&options, &|line| println!("{line}"));
    println!("{report}");
    assert!(report.failures.is_empty(), "{}", report.failures[0]);
    assert!(report.images >= 1500 && report.lives > 1);
    for operation in [
        "commit",
        "group commit",
        "new log file",
        "generation raise",
        "cut of a tail",
        "control state",
        "layer write",
        "compaction",
        "manifest swap",
        "trim",
        "seed",
        "opening a copy",
        "recovery",
    ] {
        assert!(report.by_operation.contains_key(operation), "no power cut in: {operation}\n{report}");
    }
}
