//! Copies that are slow, and copies on other machines: nothing waits for them that need not.

mod common;

use common::{Cluster, ensure, until};
use std::path::Path;

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

fn copy_of(cluster: &Cluster, region: &str, name: &str) -> Result<serde_json::Value, String> {
    let row = cluster.row(region, region)?;
    let copies = row["copies"].as_array().cloned().unwrap_or_default();
    copies.into_iter().find(|c| c["name"] == name).ok_or_else(|| format!("no copy {name}: {row}"))
}

#[test]
fn a_copy_is_replaced_while_writes_go_on_and_stays_replaced() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let primary = cluster.primary().clone();
    ready.must(&primary.writer, "create table t (id integer primary key, v text not null)");
    let write = |n: u32| {
        ready.must(&primary.writer, &format!("insert into t(v) values (printf('%.5000c', 'x')), ('{n}')"));
    };
    (0..20).for_each(&write);
    let elsewhere = tempfile::tempdir().unwrap();
    let new = elsewhere.path().join("new").display().to_string();
    let replace = |args: &[&str]| cluster.verb(&primary.name, &[&["copy", "replace", "a1"], args].concat());

    let refused = replace(&["--cancel"]).unwrap_err();
    assert!(refused.contains("a1 is not being replaced"), "{refused}");
    let said = replace(&["--with", &new]).unwrap();
    assert!(said.contains("a1 is being replaced") && said.contains("--cancel"), "{said}");
    let mut n = 100;
    until("a1 lives in the new directory for good", || {
        n += 1;
        write(n);
        let copy = copy_of(&cluster, &primary.name, "a1")?;
        ensure(copy["place"] == new.as_str() && copy["state"] == "up" && copy["reason"].is_null(), copy)
    });
    // Typed twice: the same state, said so.
    let again = replace(&["--with", &new]).unwrap();
    assert!(again.contains("lives in") && again.contains("already"), "{again}");
    let kinds: Vec<String> = cluster.events(&primary.name).unwrap().iter().filter_map(|e| e["kind"].as_str().map(str::to_owned)).collect();
    assert!(kinds.iter().any(|k| k == "copy_replacing") && kinds.iter().any(|k| k == "copy_replaced"), "{kinds:?}");

    // A replaced directory is no place for a new copy, and another copy's is none either.
    let data = cluster.dir.join("data").join(&primary.name).join("copies");
    let old = std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().path()).find(|p| p.ends_with("a1")).expect("it is kept");
    assert!(old.join("replaced").exists(), "the directory of the copy that left is marked");
    let refused = replace(&["--with", &data.display().to_string()]).unwrap_err();
    assert!(refused.contains("was replaced") && refused.contains("move it away"), "{refused}");

    // The note of where it lives is lost: the other copies know it.
    let count = ready.must(&primary.writer, "select count(*), sum(length(v)) from t");
    cluster.kill_region(&primary.name);
    std::fs::remove_file(data.join("PLACES")).unwrap();
    cluster.start_region(&primary.name);
    cluster.until_whole();
    let copy = copy_of(&cluster, &primary.name, "a1").unwrap();
    assert_eq!(copy["place"], new.as_str(), "{copy}");
    assert_eq!(ready.must(&primary.writer, "select count(*), sum(length(v)) from t"), count);
    assert!(Path::new(&new).join("a1").join("identity").exists());

    // Five others are needed for one that is cancelled to have begun: with three away it is refused with what to do.
    for copy in ["b1", "b2"] {
        cluster.verb(&primary.name, &["copy", "stop", copy]).unwrap();
    }
    let third = elsewhere.path().join("third").display().to_string();
    until("it is refused", || {
        let refused = cluster.verb(&primary.name, &["copy", "replace", "c1", "--with", &third]).err().ok_or("it was not refused")?;
        ensure(refused.contains("four of the other five"), refused)
    });
}

#[test]
fn a_replacement_is_cancelled_and_the_copy_comes_back() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let primary = cluster.primary().clone();
    ready.must(&primary.writer, "create table t (id integer primary key, v text not null)");
    let elsewhere = tempfile::tempdir().unwrap();
    let new = elsewhere.path().display().to_string();
    let verb = |cluster: &Cluster, args: &[&str]| cluster.verb(&primary.name, &[&["copy"], args].concat());

    // Stopped by an operator it opens no directory: the replacement stays where it is.
    verb(&cluster, &["stop", "b2"]).unwrap();
    until("its replacement begins", || verb(&cluster, &["replace", "b2", "--with", &new]));
    until("status shows where it goes", || {
        let copy = copy_of(&cluster, &primary.name, "b2")?;
        ensure(copy["place"] == new.as_str(), copy)
    });
    let busy = verb(&cluster, &["replace", "c1", "--with", &elsewhere.path().join("c1").display().to_string()]).unwrap_err();
    assert!(busy.contains("copy b2 is being replaced already"), "{busy}");
    ready.must(&primary.writer, "insert into t(v) values ('while it is replaced')");

    // A killed process goes on with it.
    cluster.kill_region(&primary.name);
    cluster.start_region(&primary.name);
    until("it goes on or is done", || {
        let copy = copy_of(&cluster, &primary.name, "b2")?;
        ensure(copy["place"] == new.as_str() && copy["state"] == "up" && copy["reason"].is_null(), copy)
    });

    // And back: another one, cancelled.
    let other = elsewhere.path().join("other").display().to_string();
    verb(&cluster, &["stop", "b2"]).unwrap();
    until("its replacement begins", || verb(&cluster, &["replace", "b2", "--with", &other]));
    until("it is cancelled", || verb(&cluster, &["replace", "b2", "--cancel"]));
    verb(&cluster, &["start", "b2"]).unwrap();
    until("the copy is back", || {
        let copy = copy_of(&cluster, &primary.name, "b2")?;
        ensure(copy["place"] == new.as_str() && copy["state"] == "up", copy)
    });
    until("the directory that was not to be is marked", || {
        ensure(Path::new(&other).join("b2").join("replaced").exists(), "there is no mark")
    });
    let refused = verb(&cluster, &["replace", "b2", "--cancel"]).unwrap_err();
    assert!(refused.contains("b2 is not being replaced"), "{refused}");
    assert_eq!(ready.must(&primary.writer, "select count(*) from t"), "1");
}
