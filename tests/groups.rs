//! A volume in two protection groups, with segments of four pages so that nearly every transaction spans both: kills under load, a zone
//! of all groups stopped, and what is fixed at the founding.

mod common;

use common::{Cluster, ensure, metric, until};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const LAYOUT: &str = "\n[volume]\nsegment = \"16KiB\"\ngroups = 2\n";

/// A demo whose regions are founded anew with two groups, each started by hand.
fn in_two_groups() -> Cluster {
    let mut cluster = Cluster::start(2, "none");
    for name in cluster.names() {
        cluster.kill_region(&name);
        let region = cluster.region(&name);
        std::fs::remove_dir_all(&region.data_dir).expect("the data of before");
        let config = std::fs::read_to_string(&region.config).expect("a configuration");
        std::fs::write(&region.config, config + LAYOUT).expect("a configuration");
    }
    for name in cluster.names() {
        cluster.start_region(&name);
    }
    until("the new cluster takes writes", || {
        cluster.ready.sql(
            &cluster.primary().writer,
            "create table if not exists a (n integer primary key, v text not null);
             create table if not exists b (n integer primary key, v text not null)",
        )
    });
    cluster
}

/// Rows of 3000 characters: some two of them fill a page, and the tables' pages take turns.
fn insert(n: u64) -> String {
    let row = |table| format!("insert into {table} values ({n}, hex(zeroblob(1500)));");
    format!("begin; {} {} commit;", row("a"), row("b"))
}

fn totals(cluster: &Cluster, address: &str) -> Result<String, String> {
    cluster.ready.sql(address, "select count(*), sum(n), sum(length(v)) from a union all select count(*), sum(n), sum(length(v)) from b")
}

/// So many transactions are there at least, and none by half.
fn check(cluster: &Cluster, address: &str, acknowledged: u64) -> Result<String, String> {
    let got = totals(cluster, address)?;
    let (a, b) = got.split_once('\n').ok_or_else(|| got.clone())?;
    assert_eq!(a, b, "a transaction is there by half");
    let count: u64 = a.split('|').next().and_then(|n| n.parse().ok()).ok_or_else(|| got.clone())?;
    assert!(count >= acknowledged, "{acknowledged} commits were acknowledged, {count} are there");
    Ok(got)
}

fn copies(row: &Value) -> Vec<(String, u64, String)> {
    let copies = row["copies"].as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    copies.iter().map(|c| (text(&c["name"]), c["group"].as_u64().unwrap_or(99), text(&c["state"]))).collect()
}

#[test]
fn commits_that_span_groups_are_atomic_under_kills_and_a_zone_is_one_of_all_groups() {
    let mut cluster = in_two_groups();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    let mut next = 1;
    let acknowledged = Arc::new(AtomicU64::new(0));
    for round in 0..3 {
        // Written until the process is killed in the middle of it.
        let (before, stop) = (acknowledged.load(Ordering::SeqCst), Arc::new(AtomicBool::new(false)));
        let writer = {
            let (ready, address) = (cluster.ready.clone(), primary.writer.clone());
            let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
            std::thread::spawn(move || {
                for n in next.. {
                    if stop.load(Ordering::SeqCst) || ready.sql(&address, &insert(n)).is_err() {
                        return n;
                    }
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                unreachable!()
            })
        };
        until("some commits", || ensure(acknowledged.load(Ordering::SeqCst) >= before + 15, "too few"));
        let killed = if round == 2 { &second.name } else { &primary.name };
        cluster.kill_region(killed);
        stop.store(true, Ordering::SeqCst);
        let tried = writer.join().expect("the writer ends");
        cluster.start_region(killed);
        let count = acknowledged.load(Ordering::SeqCst);
        let all = until("the primary reads again", || check(&cluster, &primary.writer, count));
        until("the secondary has the same", || {
            let got = check(&cluster, &second.reader, 0)?;
            ensure(got == all, format!("{got}, expected {all}"))
        });
        next = tried + 1;
    }
    let status = cluster.until_whole();
    let row = common::row(&status, &primary.name).unwrap();
    let names: Vec<String> = copies(&row).into_iter().map(|(name, group, _)| format!("{name}/{group}")).collect();
    assert_eq!(names.join(" "), "a1/0 a2/0 b1/0 b2/0 c1/0 c2/0 a1.g1/1 a2.g1/1 b1.g1/1 b2.g1/1 c1.g1/1 c2.g1/1");

    // What it takes: both groups' files hold some of it, and status says how much.
    let volume = until("the volume is measured", || {
        let volume = cluster.row(&primary.name, &primary.name)?["volume"].clone();
        ensure(volume["used_bytes"].as_u64().is_some_and(|b| b > 200_000), &volume)?;
        Ok(volume)
    });
    assert_eq!((&volume["groups"], &volume["segment_bytes"]), (&2.into(), &(16 << 10).into()), "{volume}");
    let used = volume["used_bytes"].as_u64().unwrap();
    assert!(volume["high_water_bytes"].as_u64().unwrap() >= used && volume["allocated_bytes"].as_u64().unwrap() > 0, "{volume}");
    assert_eq!(volume["segments"].as_u64().unwrap(), used / (16 << 10) + 1, "{volume}");
    let page = common::http_get(&primary.http, "/metrics").unwrap().1;
    assert_eq!(metric(&page, "parhelion_copy_up{copy=\"b2.g1\",az=\"b\"}"), Some(1.0));
    assert!(metric(&page, "parhelion_volume_used_bytes").is_some_and(|b| b > 200_000.0), "{page}");
    let shown = cluster.verb(&primary.name, &["status"]).unwrap();
    assert!(shown.contains("a:++ b:++ c:++ | a:++ b:++ c:++") && shown.contains("in 2 protection groups"), "{shown}");

    // A zone, in both groups: nothing stops.
    let copy = |what: &str, id: &str| cluster.verb(&primary.name, &["copy", what, id]).unwrap();
    for id in ["a1", "a2"] {
        copy("stop", id);
    }
    until("the zone is down in all groups", || {
        let down = copies(&cluster.row(&primary.name, &primary.name)?).into_iter().filter(|(_, _, state)| state == "down");
        let down: Vec<String> = down.map(|(name, _, _)| name).collect();
        ensure(down == ["a1", "a2", "a1.g1", "a2.g1"], down)
    });
    cluster.ready.must(&primary.writer, &insert(next));
    copy("stop", "c2");
    let refused = until("writes stop", || match cluster.ready.sql(&primary.writer, &insert(next + 1)) {
        Ok(_) => Err("it was written".to_owned()),
        Err(e) => Ok(e),
    });
    assert!(refused.contains("58030") || refused.contains("40003"), "{refused}");
    let reason = cluster.row(&primary.name, &primary.name).unwrap()["reason"].to_string();
    assert!(reason.contains("of protection group g"), "the group is named: {reason}");
    for id in ["c2", "a1", "a2"] {
        copy("start", id);
    }
    until("writes resume", || cluster.ready.sql(&primary.writer, &insert(next + 2)));
    let all = check(&cluster, &primary.writer, 0).unwrap();
    until("the secondary follows", || check(&cluster, &second.reader, 0).and_then(|got| ensure(got == all, got)));
    cluster.until_whole();

    // What it was founded with stays.
    cluster.stop_region(&second.name);
    let config = std::fs::read_to_string(&second.config).unwrap();
    std::fs::write(&second.config, config.replace("groups = 2", "groups = 3")).unwrap();
    cluster.start_region(&second.name);
    let reason = until("the other layout is refused", || {
        let row = cluster.row(&primary.name, &second.name)?;
        let reason = row["reason"].as_str().unwrap_or_default().to_owned();
        if reason.contains("founded with") { Ok(reason) } else { Err(row.to_string()) }
    });
    assert!(reason.contains("segment = \"16KiB\", groups = 2") && reason.contains("says segment = \"16KiB\", groups = 3"), "{reason}");
    cluster.kill_region(&second.name);
    std::fs::write(&second.config, config).unwrap();
    // Empty again: it is seeded, each page into its own group.
    std::fs::remove_dir_all(&second.data_dir).unwrap();
    cluster.start_region(&second.name);
    until("the secondary is seeded", || check(&cluster, &second.reader, 0).and_then(|got| ensure(got == all, got)));
    cluster.until_whole();
}
