//! The commands that move the primary, on real processes: a demo of three regions, and two regions with a witness.

mod common;

use common::two::Two;
use common::{Cluster, ensure, parhelion, run, signal, text, until};
use rustix::process::Signal;
use serde_json::Value;
use std::path::Path;

/// A verb with `--config`; exit code, stdout, stderr.
fn verb(config: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = run(parhelion().args(args).arg("--config").arg(config), "");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Its JSON, where it must succeed.
fn must(config: &Path, args: &[&str]) -> Value {
    let (code, out, err) = verb(config, args);
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: JSON and nothing else on stdout: {e}: {out}"))
}

#[test]
fn a_switchover_is_checked_carried_out_and_told_again() {
    let cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (old, new, third) = (cluster.primary().clone(), cluster.secondaries()[0].clone(), cluster.secondaries()[1].clone());
    ready.must(&old.writer, "create table t (id integer primary key); insert into t values (1)");
    let status = cluster.until_whole();
    assert_eq!(status["voters"].as_array().map(Vec::len), Some(3), "{status}");
    assert!(status["voters"].as_array().unwrap().iter().all(|v| v["answered"] == true), "{status}");
    assert!(status["lease_left_ms"].as_u64().is_some_and(|ms| ms > 0) && status["writers_seen"].as_u64() <= Some(1), "{status}");
    let epoch = status["epoch"].as_u64().unwrap();

    // Every check, and nothing changes; from a region that is neither.
    let dry = must(&third.config, &["switchover", "--to", &new.name, "--dry-run", "--json"]);
    assert!(dry["dry_run"] == true && dry["predicted_gap_ms"].is_u64() && dry["checks"].as_array().is_some_and(|c| c.len() >= 3), "{dry}");
    assert_eq!(cluster.status_of(&third.name).unwrap()["epoch"], epoch);

    // What makes no sense is refused with the reason, and changes nothing (O1).
    for (to, said) in [("mars", "there is no region 'mars'"), (old.name.as_str(), "is the primary already")] {
        let (code, _, err) = verb(&third.config, &["switchover", "--to", to]);
        assert!(code == Some(4) && (err.contains(said) || err.contains("cannot be a primary")), "{to}: {code:?} {err}");
    }

    // The real one.
    let done = must(&third.config, &["switchover", "--to", &new.name, "--json"]);
    assert_eq!((done["from"].as_str(), done["to"].as_str()), (Some(old.name.as_str()), Some(new.name.as_str())), "{done}");
    assert!(done["epoch"].as_u64() > Some(epoch) && done["write_gap_ms"].is_u64(), "{done}");
    let names: Vec<&str> = done["phases"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    for phase in ["check", "drain", "seal", "activate", "verify"] {
        assert!(names.contains(&phase), "{phase} in {done}");
    }
    let id = done["id"].as_str().unwrap();

    // The same again tells the same, from any region; and it is kept.
    for region in [&old, &new, &third] {
        let again = until("it is known there", || {
            let (code, out, err) = verb(&region.config, &["switchover", "--to", &new.name, "--json"]);
            ensure(code == Some(0), format!("{code:?} {err}")).map(|()| serde_json::from_str::<Value>(&out).unwrap())
        });
        assert_eq!(again["id"], id, "{again}");
        assert_eq!(must(&region.config, &["op", &id[..8], "--json"])["state"], "done");
    }
    let (_, people, _) = verb(&third.config, &["op", id]);
    assert!(people.contains("writes stood still for about") && people.contains("ordered by"), "{people}");

    // It writes there, everybody follows, nothing is lost.
    until("writes go to the new primary", || ready.sql(&new.writer, "insert into t values (2)").map(drop));
    for region in &ready.regions {
        until("it is everywhere", || ready.sql(&region.reader, "select count(*) from t").and_then(|n| ensure(n == "2", n)));
    }
    let status = until("status knows", || {
        let status = cluster.status_of(&old.name)?;
        ensure(status["primary"] == new.name.as_str() && status["operation"]["id"] == id, &status).map(|()| status)
    });
    assert_eq!(status["failovers"].as_array().map(Vec::len), Some(0), "{status}");
    let page = common::http_get(&new.http, "/metrics").unwrap().1;
    assert_eq!(common::metric(&page, "parhelion_is_primary"), Some(1.0));
    assert!(common::metric(&page, "parhelion_lease_remaining_seconds").is_some_and(|s| s > 0.0), "{page}");
    assert!(page.contains("parhelion_switchover_phase_seconds{phase=\"seal\"}"), "{page}");
}

#[test]
fn rules_are_set_from_any_region() {
    let cluster = Cluster::start(2, "none");
    let second = cluster.secondaries()[0].clone();
    let (code, out, err) = verb(&second.config, &["set", "max_rpo=2s"]);
    assert!(code == Some(0) && out.contains("max_rpo=2000ms"), "{out}{err}");
    until("status shows it", || {
        let status = cluster.status_of(&second.name)?;
        ensure(status["rules"]["max_rpo_ms"] == 2000, status)
    });
    let (code, _, err) = verb(&second.config, &["set", "max_rpo=often"]);
    assert!(code == Some(4) && err.contains("max_rpo=often"), "{err}");
    let (code, _, err) = verb(&second.config, &["set", "max_rpo"]);
    assert!(code == Some(2) && err.contains("KEY=VALUE"), "{err}");
    let (code, _, err) = verb(&second.config, &["set", "auto_failover=lossless"]);
    assert!(code == Some(4) && err.contains("[control]"), "{err}");
    let (code, _, err) = verb(&second.config, &["op", "ab12"]);
    assert!(code == Some(4) && err.contains("ab12 is not among the operations"), "{err}");
}

#[test]
fn a_failover_says_what_it_costs_and_the_old_primary_comes_back() {
    let mut two = Two::start();
    let ready = two.ready.clone();
    let (us, eu) = (ready.regions[0].clone(), ready.regions[1].clone());
    until("it writes", || ready.sql(&us.writer, "create table t (id integer primary key)").map(drop));
    ready.must(&us.writer, "insert into t values (1)");
    until("it is there", || ready.sql(&eu.reader, "select count(*) from t").and_then(|n| ensure(n == "1", n)));
    let status = until("all three vote", || {
        let status = two.status(1)?;
        let voters = status["voters"].as_array().cloned().unwrap_or_default();
        let all = voters.len() == 3 && voters.iter().all(|v| v["answered"] == true && v["heard_by_primary"] == true);
        ensure(all, &status).map(|()| status)
    });
    assert!(status["voters"].as_array().unwrap().iter().any(|v| v["name"] == "witness" && v["witness"] == true), "{status}");

    // While the primary lives, nobody is promoted beside it: not by mistake either.
    let (code, _, err) = verb(&eu.config, &["failover", "--to", "us-east", "--allow-data-loss"]);
    assert!(code == Some(4) && err.contains("is the primary already"), "{code:?} {err}");

    two.kill_region(0);
    let looked = must(&eu.config, &["failover", "--to", "eu-west", "--dry-run", "--json"]);
    assert!(looked["dry_run"] == true && looked["state"] == "done", "{looked}");
    let done = must(&eu.config, &["failover", "--to", "eu-west", "--allow-data-loss", "--json"]);
    assert_eq!((done["from"].as_str(), done["to"].as_str()), (Some("us-east"), Some("eu-west")), "{done}");
    for key in
        ["id", "old_epoch", "new_epoch", "complete", "lost_commits", "lost_from_lsn", "lost_to_lsn", "lost_from_time", "lost_to_time"]
    {
        assert!(done.get(key).is_some(), "{key} in {done}");
    }
    let id = done["id"].as_str().unwrap();
    until("writes go on", || ready.sql(&eu.writer, "insert into t values (2)").map(drop));
    let again = must(&eu.config, &["failover", "--to", "eu-west", "--allow-data-loss", "--json"]);
    assert_eq!(again["id"], id, "the same again tells the same");
    let (code, people, err) = verb(&eu.config, &["failover", "report", &id[..6]]);
    assert!(code == Some(0) && people.contains("from us-east"), "{people}{err}");

    // The old one comes back and follows.
    two.start_region(0);
    until("it follows", || ready.sql(&us.reader, "select count(*) from t").and_then(|n| ensure(n == "2", n)));
}

/// Commits that only the old primary has are lost by name: the record becomes exact, the tail stays readable, and nobody rebuilds a region.
#[test]
fn what_a_cut_off_primary_committed_alone_is_counted_kept_and_readable() {
    let cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (east, west) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(
        &east.writer,
        "create table t (id integer primary key, v text); insert into t select value, 'kept' from generate_series(1, 100)",
    );
    until("the secondary has them", || {
        let there = ready.sql(&west.reader, "select count(*) from t")?;
        ensure(there == "100", there)
    });
    cluster.netem(&["set", &east.name, "*", "blackhole=on", "--both"]);
    for i in 1..=5 {
        ready.must(&east.writer, &format!("insert into t values ({}, 'lost')", 1000 + i));
    }
    // Without a majority its lease ends, and with it every answer at its writer port.
    until("the old primary is fenced", || match ready.sql(&east.writer, "select count(*) from t") {
        Err(said) if said.contains("57P03") && said.contains("lease") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let done = must(&west.config, &["failover", "--to", &west.name, "--allow-data-loss", "--json"]);
    let id = done["id"].as_str().expect("an id").to_owned();
    assert_eq!(
        (&done["from"], &done["to"], &done["complete"]),
        (&east.name.clone().into(), &west.name.clone().into(), &false.into()),
        "{done}"
    );
    ready.must(&west.writer, "insert into t values (2000, 'after')");

    cluster.netem(&["set", &east.name, "*", "blackhole=off", "--both"]);
    let report = until("the record is exact", || {
        let report = must(&west.config, &["failover", "report", &id, "--json"]);
        ensure(report["complete"] == true, &report).map(|()| report)
    });
    assert_eq!(report["lost_commits"], 5, "{report}");
    until("the old primary follows, without a seed", || {
        let there = ready.sql(&east.reader, "select count(*), sum(v = 'lost') from t")?;
        ensure(there == "101|0", there)
    });
    let events = cluster.events(&west.name).expect("events");
    let seeds = events.iter().filter(|e| e["kind"] == "seeding_began" && e["region"] == east.name.as_str()).count();
    let first = events.iter().filter(|e| e["kind"] == "seeding_done" && e["region"] == east.name.as_str()).count();
    assert!(events.iter().any(|e| e["kind"] == "rewound" && e["region"] == east.name.as_str()), "{events:?}");
    assert_eq!(seeds, first, "seeds that it sent in the beginning, and none that it got");
    let salvage = must(&east.config, &["salvage", "--json"]);
    assert!(salvage.to_string().contains("\"lost_commits\":5"), "{salvage}");
    // An older process of the test would count as a second writer.
    let page = common::http_get(&west.http, "/metrics").expect("metrics").1;
    assert_eq!(common::metric(&page, "parhelion_epoch"), Some(2.0), "{page}");
}

/// A primary that stands still for longer than its lease and goes on acknowledges nothing afterwards, and follows.
#[test]
fn a_primary_that_was_stopped_past_its_lease_acknowledges_nothing() {
    let cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (east, west) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&east.writer, "create table t (id integer primary key, v text)");
    until("the secondary has it", || ready.sql(&west.reader, "select count(*) from t"));
    signal(east.pid, Signal::STOP);
    let zombie = {
        let (ready, writer) = (ready.clone(), east.writer.clone());
        std::thread::spawn(move || ready.sql(&writer, "insert into t values (1, 'zombie')"))
    };
    until("another region takes over", || {
        let (code, out, err) = verb(&west.config, &["failover", "--to", &west.name, "--allow-data-loss", "--json"]);
        ensure(code == Some(0), format!("{out} {err}"))
    });
    ready.must(&west.writer, "insert into t values (2, 'new')");
    signal(east.pid, Signal::CONT);
    // It was routed to the new primary, or refused; never acknowledged by the old one.
    let said = zombie.join().expect("a client");
    until("the old primary follows", || {
        let row = cluster.row(&west.name, &east.name)?;
        ensure(row["role"] == "secondary" && row["state"] != "disconnected", row)
    });
    let rows = ready.must(&west.writer, "select count(*) from t where v = 'zombie'");
    assert_eq!(rows == "1", said.is_ok(), "acknowledged means it is there, and an error that it is not: {said:?}, {rows}");
}
