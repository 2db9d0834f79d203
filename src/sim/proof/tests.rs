//! Fixed runs of the proofs; `parhelion powercut` does more of them.

use super::flips::{self, FlipOptions};
use super::powercut::{self, PowercutOptions};
use super::rig::{Disks, Harm, Rig, new_disks};
use super::story::Story;
use crate::base::CopyId;
use crate::sim::disk::{Fault, Left};
use std::sync::Arc;

#[test]
fn the_volume_survives_a_power_cut_at_every_call() {
    let options = PowercutOptions { seed: 1, images: 600, threads: 2, only: None };
    let report = powercut::run(&options, &|line| println!("{line}"));
    println!("{report}");
    assert!(report.failures.is_empty(), "{}", report.failures[0]);
    assert!(report.images >= 600 && report.lives > 1);
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

#[test]
fn every_flipped_byte_is_found_and_none_is_served() {
    let options = FlipOptions { seed: 1, flips: 250, threads: 2, only: None };
    let report = flips::run(&options, &|line| println!("{line}")).unwrap();
    println!("{report}");
    assert!(report.failures.is_empty(), "{}", report.failures[0]);
}

/// A volume with a past, and the end of what was acknowledged in it.
fn volume(seed: u64) -> (Disks, Story) {
    let mut rig = Rig::start(new_disks(seed), Story::new(), seed, Harm::None, None).unwrap();
    rig.rest().unwrap();
    for _ in 0..25 {
        rig.write().unwrap();
        rig.rest().unwrap();
    }
    let disks = std::array::from_fn(|i| Arc::new(rig.disk(CopyId::all()[i]).image(Left::Cached, i as u64)));
    let story = rig.bench.story.lock().clone();
    (disks, story)
}

#[test]
fn each_call_of_one_copys_disk_fails_once_and_the_volume_goes_on() {
    let (base, story) = volume(3);
    let acknowledged = story.acknowledged;
    let c = CopyId(2);
    for fault in [Some(Fault::Failed), Some(Fault::Full), None] {
        let mut n = 1;
        loop {
            let disks: Disks = std::array::from_fn(|i| Arc::new(base[i].image(Left::Cached, n)));
            match fault {
                Some(fault) => disks[c.index()].fail_at(n, fault),
                None => disks[c.index()].fail_read_at(n),
            }
            let disk = Arc::clone(&disks[c.index()]);
            let label = format!("{fault:?} at call {n}");
            let mut rig = Rig::start(disks, story.clone(), n, Harm::Errors, None).unwrap();
            rig.rest().unwrap_or_else(|e| panic!("{label}: {e}"));
            for _ in 0..8 {
                assert!(rig.write().unwrap(), "{label}: five copies take writes");
                rig.rest().unwrap_or_else(|e| panic!("{label}: {e}"));
            }
            let met = if fault.is_some() { disk.calls() } else { disk.reads() };
            disk.forget_faults();
            rig.check(&[acknowledged]).unwrap_or_else(|e| panic!("{label}: {e}"));
            if met < n {
                assert!(n > 20, "{label}: the volume met {met} calls");
                break;
            }
            n += 1 + n / 8;
        }
    }
}

#[test]
fn six_full_disks_stop_writes_and_room_lets_them_go_on() {
    let (disks, story) = volume(4);
    let acknowledged = story.acknowledged;
    let mut rig = Rig::start(disks.clone(), story, 4, Harm::Errors, None).unwrap();
    rig.rest().unwrap();
    for disk in &disks {
        disk.set_quota(Some(disk.used_bytes() + 700));
    }
    let mut written = 0;
    let stopped = loop {
        if !rig.write().unwrap() {
            break rig.stopped.clone().expect("the volume says why it takes no writes");
        }
        written += 1;
        assert!(written < 400, "so much fits nowhere");
        if rig.rest().is_err() {
            break rig.stopped.clone().expect("the volume says why it takes no writes");
        }
    };
    assert!(stopped.contains("full"), "{stopped}");
    for disk in &disks {
        disk.set_quota(None);
    }
    rig.rest().unwrap();
    assert!(rig.write().unwrap());
    rig.rest().unwrap();
    rig.check(&[acknowledged]).unwrap();
}
