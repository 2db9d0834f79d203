//! What may happen while the primary moves, on real processes under load: each participant is killed at each phase, stands still, or hears
//! and is not heard. Whatever happens: one writer in the end, by itself; what was acknowledged is there, or counted by name.
//!
//! How often: `PARHELION_DRILL_ROUNDS` (few without it; CONTRIBUTING.md has the figures of long runs).

mod common;

use common::two::{NAMES, Two, WITNESS};
use common::{Ready, ensure, parhelion, run, text, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Clients that commit on and on through the writer ports of all regions, and what they were told.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    next: Arc<AtomicI64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(ready: &Ready) -> Load {
        let mut load = Load { stop: Arc::default(), acknowledged: Arc::default(), next: Arc::new(AtomicI64::new(1)), threads: Vec::new() };
        for region in &ready.regions {
            let (stop, acknowledged, next) = (load.stop.clone(), load.acknowledged.clone(), load.next.clone());
            let (ready, writer) = (ready.clone(), region.writer.clone());
            load.threads.push(std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    while !stop.load(Ordering::SeqCst) {
                        let Ok(client) = ready.connect(&writer).await else {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            continue;
                        };
                        while !stop.load(Ordering::SeqCst) && !client.is_closed() {
                            let id = next.fetch_add(1, Ordering::SeqCst);
                            let insert = format!("insert into drill values ({id})");
                            if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(20), client.batch_execute(&insert)).await {
                                acknowledged.lock().expect("a set").insert(id);
                            }
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                });
            }));
        }
        load
    }

    fn acknowledged(&self) -> BTreeSet<i64> {
        self.acknowledged.lock().expect("a set").clone()
    }

    fn forget(&self, ids: &[i64]) {
        self.acknowledged.lock().expect("a set").retain(|id| !ids.contains(id));
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client");
        }
    }
}

fn rounds(few: usize) -> usize {
    std::env::var("PARHELION_DRILL_ROUNDS").ok().map_or(few, |n| n.parse().expect("PARHELION_DRILL_ROUNDS is a number"))
}

/// Both regions are well and follow one primary, all three vote; which one it is, and its epoch.
fn until_settled(two: &Two) -> (usize, u64) {
    until("one primary, followed by the other", || {
        let seen: Vec<Value> = (0..2).map(|i| two.status(i)).collect::<Result<_, _>>()?;
        let primary = seen[0]["primary"].as_str().ok_or_else(|| format!("no primary: {}", seen[0]))?.to_owned();
        ensure(seen.iter().all(|s| s["primary"] == primary.as_str() && s["epoch"] == seen[0]["epoch"]), &seen)?;
        let rows = seen[0]["regions"].as_array().cloned().unwrap_or_default();
        let well = |r: &Value| match r["role"].as_str() {
            Some("primary") => r["state"] == "writable" && r["name"] == primary.as_str(),
            Some("secondary") => r["lag_known"] == true && ["streaming", "idle"].contains(&r["state"].as_str().unwrap_or_default()),
            _ => false,
        };
        ensure(rows.len() == 2 && rows.iter().all(well), &rows)?;
        let at = NAMES.iter().position(|n| *n == primary).expect("a region");
        let voters = seen[at]["voters"].as_array().cloned().unwrap_or_default();
        ensure(voters.len() == 3 && voters.iter().all(|v| v["heard_by_primary"] == true), &voters)?;
        Ok((at, seen[0]["epoch"].as_u64().expect("an epoch")))
    })
}

/// An order as an operator gives it, in a terminal of its own: what it ended with.
fn order(two: &Two, asked: usize, args: &[&str]) -> std::thread::JoinHandle<(Option<i32>, String)> {
    let mut command = parhelion();
    command.args(args).args(["--json", "--config"]).arg(&two.ready.regions[asked].config);
    std::thread::spawn(move || {
        let output = run(&mut command, "");
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    })
}

/// A killed process is started again, and all is well by itself: one primary, followed, and every row that counts in both.
fn comes_back(two: &mut Two, load: &Load, died: &str, at: &str) -> (usize, u64) {
    two.restart(died);
    let settled = until_settled(two);
    for region in &two.ready.regions {
        let before = load.acknowledged().len();
        until(&format!("writes go on through {} after {at}", region.name), || {
            ensure(load.acknowledged().len() > before + 5, "too few commits")
        });
    }
    settled
}

/// Every one of these is in both regions.
fn until_there(two: &Two, acknowledged: &BTreeSet<i64>, after: &str) {
    for region in &two.ready.regions {
        until(&format!("what was acknowledged is in {} after {after}", region.name), || {
            let rows = two.ready.sql(&region.reader, "select id from drill")?;
            let there = ids(&rows);
            let missing: Vec<_> = acknowledged.difference(&there).take(20).collect();
            ensure(missing.is_empty(), missing)
        });
    }
}

fn ids(rows: &str) -> BTreeSet<i64> {
    rows.lines().map(|id| id.parse().expect("an id")).collect()
}

/// Which of these are in neither region, once both have the same.
fn missing_everywhere(two: &Two, acknowledged: &BTreeSet<i64>) -> Vec<i64> {
    until("both regions have the same of them", || {
        let in_either: Vec<BTreeSet<i64>> = (two.ready.regions.iter())
            .map(|r| two.ready.sql(&r.reader, "select id from drill").map(|rows| acknowledged.difference(&ids(&rows)).copied().collect()))
            .collect::<Result<_, _>>()?;
        ensure(in_either[0] == in_either[1], &in_either).map(|()| in_either[0].iter().copied().collect())
    })
}

/// Who dies, and where. The epoch of the points is the one that is to be.
fn switchover_points(old: &str, new: &str) -> Vec<(String, &'static str)> {
    let of = |who: &str, points: &[&'static str]| points.iter().map(|p| (who.to_owned(), *p)).collect::<Vec<_>>();
    [
        of(
            old,
            &[
                "before:begin-check",
                "before:drain",
                "after:drain",
                "before:begin-seal",
                "before:handover",
                "after:handover",
                "before:stops",
            ],
        ),
        of(
            new,
            &[
                "before:vote",
                "after:vote",
                "before:begin-promote",
                "before:renew",
                "after:renew",
                "before:writes",
                "after:writes",
                "before:begin-verify",
            ],
        ),
        of(WITNESS, &["before:voted", "after:voted", "before:granted", "after:granted"]),
    ]
    .concat()
}

fn kill_in_switchovers(share: usize, of: usize) {
    let mut two = Two::start();
    let ready = two.ready.clone();
    until("it writes", || ready.sql(&ready.regions[0].writer, "create table drill (id integer primary key)").map(drop));
    let (mut primary, mut epoch) = until_settled(&two);
    let load = Load::start(&ready);
    let names = switchover_points("old", "new").len();
    for n in (share..names).step_by(of) {
        let (from, to) = (NAMES[primary], NAMES[1 - primary]);
        let (victim, point) = switchover_points(from, to).swap_remove(n);
        // The handover is said in the old epoch.
        let armed =
            if ["vote", "renew", "granted"].iter().any(|w| point.contains(w)) { format!("{point}@{}", epoch + 1) } else { point.into() };
        two.arm(&victim, &armed);
        let asked = if victim == to { primary } else { 1 - primary };
        let ordered = order(&two, asked, &["switchover", "--to", to, "--timeout", "10s"]);
        until(&format!("{victim} comes to {point}"), || ensure(two.at_its_point(&victim), "not yet"));
        two.until_dead(&victim);
        let (now, e) = comes_back(&mut two, &load, &victim, point);
        let (code, said) = ordered.join().expect("an order");
        assert!(e == epoch || e > epoch && code.is_some(), "{victim} at {point}: {code:?} {said}");
        // Nothing is ever lost in a planned one.
        until_there(&two, &load.acknowledged(), &format!("{victim} died {point}"));
        eprintln!("{victim} died {point}: epoch {epoch} -> {e}, primary {}, the command ended with {code:?}", NAMES[now]);
        (primary, epoch) = (now, e);
    }
    load.end();
}

#[test]
fn whoever_dies_wherever_in_a_switchover_nothing_is_lost_1() {
    kill_in_switchovers(0, 3);
}

#[test]
fn whoever_dies_wherever_in_a_switchover_nothing_is_lost_2() {
    kill_in_switchovers(1, 3);
}

#[test]
fn whoever_dies_wherever_in_a_switchover_nothing_is_lost_3() {
    kill_in_switchovers(2, 3);
}

/// The primary dies, an operator fails over, and the new primary or the voter dies too, wherever.
fn failover_points() -> Vec<(&'static str, &'static str)> {
    let new = [
        "before:vote",
        "after:vote",
        "before:begin-promote",
        "before:renew",
        "after:renew",
        "before:writes",
        "after:writes",
        "before:begin-verify",
    ];
    let witness = ["before:voted", "after:voted", "before:granted", "after:granted"];
    new.into_iter().map(|p| ("new", p)).chain(witness.into_iter().map(|p| (WITNESS, p))).collect()
}

fn kill_in_failovers(share: usize, of: usize) {
    let mut two = Two::start();
    let ready = two.ready.clone();
    until("it writes", || ready.sql(&ready.regions[0].writer, "create table drill (id integer primary key)").map(drop));
    let (mut primary, mut epoch) = until_settled(&two);
    let load = Load::start(&ready);
    for (who, point) in failover_points().into_iter().skip(share).step_by(of) {
        let (from, to) = (NAMES[primary], NAMES[1 - primary]);
        let victim = if who == WITNESS { WITNESS } else { to };
        let before = load.acknowledged();
        two.arm(victim, &if point.contains("begin") || point.contains("writes") { point.into() } else { format!("{point}@{}", epoch + 1) });
        two.kill_region(primary);
        let asked = 1 - primary;
        let mut ordered = order(&two, asked, &["failover", "--to", to, "--allow-data-loss", "--timeout", "10s"]);
        until(&format!("{victim} comes to {point}"), || {
            if ordered.is_finished() && !two.at_its_point(victim) {
                // A grant of the dead primary, or a link that is not there yet: an operator orders it again.
                let (code, said) =
                    std::mem::replace(&mut ordered, order(&two, asked, &["failover", "--to", to, "--allow-data-loss", "--timeout", "10s"]))
                        .join()
                        .expect("an order");
                assert_ne!(code, Some(0), "{victim} did not come to {point}: {said}");
            }
            ensure(two.at_its_point(victim), "not yet")
        });
        two.until_dead(victim);
        two.restart(victim);
        // The order may have been forgotten with whoever carried it out; then it says so, and is given again.
        let (code, said) = ordered.join().expect("an order");
        until("the failover came about", || {
            let status = two.status(asked)?;
            if status["primary"] == to && status["epoch"].as_u64() > Some(epoch) {
                return Ok(());
            }
            let (code, said) =
                order(&two, asked, &["failover", "--to", to, "--allow-data-loss", "--timeout", "10s"]).join().expect("an order");
            ensure(code == Some(0), said)
        });
        let (now, e) = comes_back(&mut two, &load, from, point);
        assert!(now == 1 - primary && e > epoch, "{victim} at {point}: primary {} in epoch {e}; {code:?} {said}", NAMES[now]);
        // What is gone was counted, exactly.
        let missing = missing_everywhere(&two, &before);
        let counted = until("the records are exact", || {
            let output = run(parhelion().args(["status", "--json", "--config"]).arg(&ready.regions[now].config), "");
            let status: Value = serde_json::from_str(&text(&output.stdout)).map_err(|e| e.to_string())?;
            let records = status["failovers"].as_array().cloned().unwrap_or_default();
            let of_this: Vec<&Value> = records.iter().filter(|f| f["old_epoch"].as_u64() >= Some(epoch)).collect();
            ensure(!of_this.is_empty() && of_this.iter().all(|f| f["complete"] == true), &records)?;
            Ok(of_this.iter().filter_map(|f| f["lost_commits"].as_u64()).sum::<u64>())
        });
        assert!(missing.len() as u64 <= counted, "{victim} at {point}: {missing:?} are gone, and {counted} were counted");
        eprintln!(
            "{victim} died {point}: epoch {epoch} -> {e}, {counted} commits lost and counted, {} of them acknowledged",
            missing.len()
        );
        load.forget(&missing);
        (primary, epoch) = (now, e);
    }
    until_there(&two, &load.acknowledged(), "all of it");
    load.end();
}

#[test]
fn whoever_dies_wherever_in_a_failover_what_is_lost_is_counted_1() {
    kill_in_failovers(0, 2);
}

#[test]
fn whoever_dies_wherever_in_a_failover_what_is_lost_is_counted_2() {
    kill_in_failovers(1, 2);
}
