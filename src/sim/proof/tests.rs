//! Fixed runs of the proofs; `parhelion powercut` does more of them.

use super::flips::{self, FlipOptions};
use super::powercut::{self, PowercutOptions};
use super::rig::{Disks, Harm, Rig, limits, new_disks};
use super::story::Story;
use crate::base::{ClusterName, CopyId, Limits, LogEnd, RegionName};
use crate::sim::disk::{Fault, Left};
use crate::volume::membership::Incarnation;
use crate::volume::{identity, proven_durable};
use std::sync::Arc;
use std::time::Duration;

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
        "membership change",
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

/// What the power is cut in, above: replacements that come to their end, and such as are cancelled.
#[test]
fn copies_get_another_directory_or_go_back_to_their_own_in_a_busy_life() {
    let mut changes = [0; 2];
    for seed in 0..8 {
        let mut rig = Rig::start(new_disks(seed), Story::new(), seed, Harm::None, None).unwrap();
        for step in 0..2500 {
            rig.live(step > 80).unwrap_or_else(|e| panic!("seed {seed}, step {step}: {e}"));
        }
        CopyId::all().into_iter().for_each(|c| rig.release(c));
        rig.rest().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        rig.check(&[]).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        changes = [changes[0] + rig.changes[0], changes[1] + rig.changes[1]];
    }
    println!("{} copies were replaced, {} replacements cancelled", changes[0], changes[1]);
    assert!(changes[0] > 3 && changes[1] > 3, "{changes:?}");
}

#[test]
fn every_flipped_byte_is_found_and_none_is_served() {
    for (sealed, flips) in [(false, 250), (true, 250)] {
        let options = FlipOptions { seed: 1, flips, threads: 2, sealed, only: None };
        let report = flips::run(&options, &|line| println!("{line}")).unwrap();
        println!("{report}");
        assert!(report.failures.is_empty(), "{}", report.failures[0]);
        assert!(report.regions.contains_key("log: mark") && report.regions.contains_key("log: frame payload"), "{report}");
    }
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
    for fault in [Some(Fault::Failed), Some(Fault::Full), Some(Fault::NamesUnsynced), None] {
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
            // What the copy said after it was opened again is true, also when the power goes now.
            rig.hold(c);
            disk.crash();
            rig.release(c);
            rig.rest().unwrap_or_else(|e| panic!("{label}, without power: {e}"));
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
    wait(&mut rig);
    assert!(rig.write().unwrap());
    rig.rest().unwrap();
    rig.check(&[acknowledged]).unwrap();
}

/// Limits with a reserve, and a volume within them that has a past.
fn roomy(seed: u64) -> (Disks, Rig) {
    let limits = Limits { log_file_bytes: 16 << 10, reserve_bytes: 8 << 10, ..limits() };
    let disks = new_disks(seed);
    let mut rig = Rig::start_with(limits, disks.clone(), Story::new(), seed, Harm::None, None).unwrap();
    rig.rest().unwrap();
    for _ in 0..25 {
        assert!(rig.write().unwrap());
        rig.rest().unwrap();
    }
    assert!(rig.appender.copies().iter().all(|c| !c.low));
    (disks, rig)
}

fn is_short(rig: &Rig) -> bool {
    let said = rig.stopped.as_deref().unwrap_or_default();
    rig.appender.is_short_of_room() && said.contains("have room on their disks") && said.contains("almost full")
}

/// Time for what the volume asks again by itself.
fn wait(rig: &mut Rig) {
    for _ in 0..6 {
        rig.pass(500_000_000).unwrap();
        rig.rest().unwrap();
    }
}

/// With [`Harm::None`] a copy that fails fails the test: none ever meets a full disk where it may not.
#[test]
fn writes_are_refused_before_the_log_is_full_and_what_must_be_written_still_is() {
    for seed in 0..20 {
        let (disks, mut rig) = roomy(seed);
        // The volume itself fills its disks.
        for disk in &disks {
            disk.set_quota(Some(disk.used_bytes() + (160 << 10)));
        }
        let mut written = 0;
        while rig.write().unwrap() {
            rig.rest().unwrap();
            written += 1;
            assert!(written < 5000, "so much fits nowhere");
        }
        assert!(is_short(&rig), "{:?}", rig.stopped);
        assert!(
            disks.iter().all(|d| crate::volume::Disk::room(&**d) >= 16 << 10),
            "there is room for a file of the log, and writes stopped"
        );

        // Somebody else takes what is left: the control state, a restart and its generation still find their room, more than once.
        for disk in &disks {
            disk.set_quota(Some(disk.used_bytes()));
        }
        for _ in 0..3 {
            rig.put_control();
            rig.rest().unwrap();
            let before = *rig.appender.vdl();
            rig.restart().unwrap();
            rig.rest().unwrap();
            assert!(rig.appender.vdl().seq > before.seq, "a generation began on full disks");
            assert!(!rig.write().unwrap() && is_short(&rig), "{:?}", rig.stopped);
        }

        // Room again: by itself, and the reserve is whole again, which the next time shows.
        for disk in &disks {
            disk.set_quota(None);
        }
        wait(&mut rig);
        assert!(rig.write().unwrap(), "{:?}", rig.stopped);
        rig.rest().unwrap();
        let acknowledged = rig.bench.story.lock().acknowledged;
        for disk in &disks {
            let names = crate::volume::Disk::list(&**disk).unwrap();
            assert_eq!(names.iter().filter(|n| n.starts_with("reserve-")).count(), 4, "{names:?}");
        }
        rig.check(&[acknowledged]).unwrap();
    }
}

#[test]
fn what_is_under_way_when_the_disks_are_suddenly_full_becomes_durable() {
    for seed in 100..140 {
        let (disks, mut rig) = roomy(seed);
        for _ in 0..seed % 5 {
            rig.write().unwrap();
        }
        for disk in &disks {
            disk.set_quota(Some(disk.used_bytes()));
        }
        assert!(rig.write().unwrap(), "nobody knows yet");
        rig.rest().unwrap();
        assert_eq!(rig.appender.vdl(), rig.appender.end());
        assert!(!rig.write().unwrap() && is_short(&rig), "{:?}", rig.stopped);
        for disk in &disks[..4] {
            disk.set_quota(None);
        }
        wait(&mut rig);
        assert!(rig.write().unwrap(), "four have room again: {:?}", rig.stopped);
        rig.rest().unwrap();
        let acknowledged = rig.bench.story.lock().acknowledged;
        for disk in &disks {
            disk.set_quota(None);
        }
        rig.check(&[acknowledged]).unwrap();
    }
}

/// A volume in which so much was written while `liars` acknowledged syncs that they did not do, after a power cut everywhere.
fn after_lies(seed: u64, liars: &[usize], writes: u64) -> (Disks, Story) {
    let (disks, story) = volume(seed);
    let mut rig = Rig::start(disks.clone(), story, seed, Harm::Damage, None).unwrap();
    rig.rest().unwrap();
    liars.iter().for_each(|liar| disks[*liar].set_lying(true));
    for _ in 0..writes {
        assert!(rig.write().unwrap());
        rig.rest().unwrap();
    }
    let story = rig.bench.story.lock().clone();
    drop(rig);
    for disk in &disks {
        disk.crash();
        disk.restart();
        disk.set_lying(false);
    }
    (disks, story)
}

/// One disk, or both of a zone, acknowledge syncs that they do not do, and then the power goes everywhere.
#[test]
fn disks_that_lie_cost_nothing_while_four_do_not() {
    let mut lost_something = 0;
    for seed in 0..60 {
        let liars: &[usize] = if seed % 2 == 0 { &[1] } else { &[2, 3] };
        let (disks, story) = after_lies(seed, liars, 20);
        let acknowledged = story.acknowledged;
        for liar in liars {
            let found = crate::volume::Copy::open(Arc::new(disks[*liar].image(Left::Cached, seed)), &limits());
            lost_something += u32::from(found.is_err() || found.is_ok_and(|copy| copy.state().end.seq < acknowledged.seq));
        }
        let mut rig = Rig::start(disks, story, seed, Harm::Damage, None).unwrap();
        rig.rest().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        rig.check(&[acknowledged]).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    assert!(lost_something > 40, "the liars lost something in {lost_something} cases");
}

/// D5 for all six: what was acknowledged is there, or the volume halts and says up to where it can be proven, and who knows of more. Where nothing was
/// left that could tell, every copy lost all that was said of the missing frames: no more than what was written since a mark reached the disk.
#[test]
fn six_disks_that_lie_are_told_by_whatever_evidence_they_left() {
    let (mut whole, mut halted, mut waited, mut untold) = (0, 0, 0, 0);
    // Of a hundred one halts; most wait, since directories that lack what the record says they had have no vote.
    for seed in 210..330 {
        let (disks, story) = after_lies(seed, &[0, 1, 2, 3, 4, 5], 1 + seed % 7);
        let acknowledged = story.acknowledged;
        let left: Vec<LogEnd> = disks.iter().filter_map(|disk| proven_durable(&**disk)).map(|(_, at)| at).collect();
        let known = left.into_iter().max().unwrap_or_default();
        let mut rig = match Rig::start(disks, story, seed, Harm::Lies, None) {
            Ok(rig) => rig,
            Err(e) => panic!("seed {seed}: {e}"),
        };
        match rig.rest() {
            Ok(()) => {
                rig.check(&[acknowledged]).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                whole += 1;
            }
            Err(_) if rig.lost.is_some() => {
                let lost = rig.lost.clone().unwrap();
                assert!(lost.end.seq < lost.known.seq && lost.known <= acknowledged, "seed {seed}: {lost}");
                assert_eq!(lost.known, known, "seed {seed}: the highest that is known is told");
                halted += 1;
            }
            Err(_) if rig.waits.is_some() => {
                let waits = rig.waits.clone().unwrap();
                assert!(known == LogEnd::EMPTY || waits.contains(&format!("durable up to {known} at least")), "seed {seed}: {waits}");
                waited += 1;
            }
            // What is left agrees with itself: no file of any copy says more.
            Err(e) => {
                assert!(e.contains("durability: ") && known.seq <= rig.behind.seq, "seed {seed}: {known} was known: {e}");
                untold += 1;
            }
        }
    }
    println!("{whole} whole, {halted} halted with the position, {waited} wait for copies that are damaged, {untold} nobody can tell");
    assert!(halted > 0 && waited > 5, "{halted} halted, {waited} waited");
}

/// D11: directories that are put back from a backup have no vote, whatever they hold, and are named; they come back as new members.
#[test]
fn a_directory_from_an_old_backup_has_no_vote_and_comes_back_as_a_new_member() {
    let [a1, a2, b1, b2, c1, c2] = CopyId::all();
    for (seed, restarted) in [(1, true), (2, true), (3, false), (4, false)] {
        let disks = new_disks(seed);
        for (slot, disk) in CopyId::all().into_iter().zip(&disks) {
            let (cluster, region) = (ClusterName::new("sun").unwrap(), RegionName::new("us").unwrap());
            let home = identity::Home { cluster, region, group: 0, slot };
            identity::settle(&**disk, &home, Incarnation(u128::from(slot.0) + 1)).unwrap();
        }
        let mut rig = Rig::start(disks, Story::new(), seed, Harm::Lies, None).unwrap();
        rig.rest().unwrap();
        rig.put_control();
        for _ in 0..3 {
            assert!(rig.write().unwrap());
            rig.rest().unwrap();
        }
        let backups = [a1, a2].map(|c| rig.disk(c).image(Left::Cached, seed));
        if restarted {
            // From now on they promised another generation. Otherwise it is by their positions that they are known.
            rig.restart().unwrap();
            rig.rest().unwrap();
        }
        rig.hold(c1);
        rig.hold(c2);
        for _ in 0..4 {
            assert!(rig.write().unwrap());
            rig.rest().unwrap();
        }
        rig.put_control();
        rig.rest().unwrap();
        let acknowledged = rig.bench.story.lock().acknowledged;

        // What is acknowledged lies on a1, a2, b1 and b2. Two of them come back old, and three that do not know of it are there.
        rig.hold(b2);
        for (c, backup) in [a1, a2].into_iter().zip(backups) {
            rig.bench.disks.lock()[c.index()] = Arc::new(backup);
        }
        rig.release(c1);
        rig.restart().unwrap();
        assert!(rig.rest().is_err());
        let waits = rig.waits.clone().unwrap_or_default();
        assert!(waits.contains("2 of six copies with data") && waits.contains("a1, a2 does not count"), "seed {seed}: {waits}");

        rig.release(b2);
        rig.rest().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        rig.check(&[acknowledged]).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(rig.forgot.len(), 2, "seed {seed}: {:?}", rig.forgot);
        let why = if restarted { "it promised generation" } else { "its log went up to" };
        assert!(rig.forgot.iter().all(|f| f.contains(why)), "seed {seed}: {:?}", rig.forgot);
        let incarnation = |rig: &Rig, c: CopyId| rig.slots[c.index()].copy.as_ref().unwrap().state().incarnation;
        assert!(incarnation(&rig, a1) > Incarnation(6) && incarnation(&rig, b1) == Incarnation(3));

        // They vote again, as soon as that is recorded.
        for _ in 0..3 {
            assert!(rig.write().unwrap());
            rig.rest().unwrap();
        }
        for c in [b1, b2, c2] {
            rig.hold(c);
        }
        rig.restart().unwrap();
        assert!(rig.rest().is_err() && rig.waits.is_none(), "seed {seed}: {:?}", rig.waits);
        assert!(rig.behind.seq >= acknowledged.seq, "seed {seed}: {} was acknowledged, {} is found", acknowledged, rig.behind);
    }
}

/// Rule 6: the copies look at the lease themselves. The writer's machine stands still for longer than that, all of its clocks too, and goes on.
#[test]
fn a_writer_whose_clocks_stood_still_past_its_lease_makes_nothing_durable() {
    for (seed, ungated) in [(1, false), (2, false), (3, true)] {
        let mut rig = Rig::start(new_disks(seed), Story::new(), seed, Harm::None, None).unwrap();
        rig.rest().unwrap();
        rig.ungated = ungated;
        let share = Duration::from_millis(5940);
        let (now, sent) = (rig.now, rig.now);
        rig.appender.lease(now, sent, share, Duration::from_millis(1500));
        assert!(rig.write().unwrap());
        rig.rest().unwrap();
        let before = *rig.appender.vdl();

        rig.ahead = Duration::from_secs(7);
        assert!(rig.write().unwrap());
        let rested = rig.rest();
        let moved = rig.appender.vdl().seq > before.seq;
        assert_eq!((rested.is_ok(), moved), (ungated, ungated), "seed {seed}: {rested:?}, {}", rig.appender.vdl());

        // A majority granted it again, for a renewal that was sent after the copies' clocks were heard: what waited goes on.
        let now = rig.now;
        rig.appender.lease(now, now, share, Duration::from_millis(1500));
        rig.rest().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(rig.appender.vdl().seq > before.seq);
        // What another region's reign needs no lease for is held up by none.
        rig.ahead += Duration::from_secs(60);
        rig.appender.without_lease();
        assert!(rig.write().unwrap());
        rig.rest().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}
