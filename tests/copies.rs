//! Copies that are slow, and copies on other machines: nothing waits for them that need not.

mod common;

use common::{Cluster, ensure, until};

/// Longer than anything here waits for anything: a commit that needed the answer of a copy as slow as this would fail.
const FOR_EVER: &str = "60s";

#[test]
fn two_copies_that_are_slow_hold_up_nothing() {
    let cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key, v text not null)");
    for (copy, region) in [("a1", &primary), ("c2", &primary), ("b1", &second), ("b2", &second)] {
        let said = cluster.verb(&region.name, &["copy", "slow", copy, "--delay", FOR_EVER]).unwrap();
        assert!(said.contains("answers 1m later"), "{said}");
    }
    for i in 0..20 {
        ready.must(&primary.writer, &format!("insert into t values ({i}, printf('%.20000c', 'x'))"));
    }
    let all = ready.must(&primary.writer, "select count(*), sum(length(v)) from t");
    assert_eq!(all, "20|400000");
    until("the secondary has it", || {
        let there = ready.sql(&second.reader, "select count(*), sum(length(v)) from t")?;
        ensure(there == all, there)
    });
    let status = cluster.status_of(&primary.name).unwrap();
    let row = common::row(&status, &primary.name).unwrap();
    assert_eq!(row["state"], "writable", "{row}");
    let copies = row["copies"].as_array().unwrap();
    let slow: Vec<_> = copies.iter().filter(|c| c["reason"].as_str().is_some_and(|r| r.contains("made slow by an operator"))).collect();
    assert_eq!(slow.iter().map(|c| c["name"].as_str().unwrap()).collect::<Vec<_>>(), ["a1", "c2"]);
    assert!(slow.iter().all(|c| c["state"] != "down"), "slow is not dead: {row}");
    assert!(status["notes"].to_string().contains("copy slow a1 --delay 0"), "{status}");

    for (copy, region) in [("a1", &primary), ("c2", &primary), ("b1", &second), ("b2", &second)] {
        cluster.verb(&region.name, &["copy", "slow", copy, "--delay", "0"]).unwrap();
    }
    let status = cluster.until_whole();
    assert!(!status.to_string().contains("made slow"), "{status}");
}
