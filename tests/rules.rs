//! Rules of a whole global cluster, on real processes: what commits wait for, and what happens by itself when the primary is gone.

mod common;

use common::two::Two;
use common::{Cluster, Ready, ensure, must, now, until, verb};
use serde_json::Value;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

/// A statement whose answer may take long.
fn later(ready: &Ready, port: &str, sql: &str) -> JoinHandle<Result<String, String>> {
    let (ready, port, sql) = (ready.clone(), port.to_owned(), sql.to_owned());
    std::thread::spawn(move || ready.sql(&port, &sql))
}

fn set(config: &Path, what: &str) -> String {
    let (code, out, err) = verb(config, &["set", what]);
    assert_eq!(code, Some(0), "{what}: {out}{err}");
    out
}

fn notes(status: &Value) -> String {
    let notes = status["notes"].as_array().cloned().unwrap_or_default();
    notes.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect::<Vec<_>>().join("\n")
}

/// The row of `region` says that commits pause, with these words.
fn until_paused(status: impl Fn() -> Result<Value, String>, region: &str, words: &str) {
    until("status says that commits pause", || {
        let row = common::row(&status()?, region)?;
        ensure(row["reason"].as_str().is_some_and(|r| r.contains(words)), row)
    });
}

/// Two regions and a witness: the primary keeps its lease without the other region, so what pauses is the rule and nothing else.
#[test]
fn commits_pause_while_the_only_secondary_is_gone_and_go_on_by_themselves() {
    let mut two = Two::start_with_table("");
    let ready = two.ready.clone();
    let (us, eu) = (ready.regions[0].clone(), ready.regions[1].clone());

    // With pause_alone commits wait while there is no secondary; they are not aborted, and go on by themselves when it is back.
    set(&eu.config, "max_rpo=2s");
    set(&eu.config, "pause_alone=yes");
    two.kill_region(1);
    until_paused(|| two.status(0), "us-east", "no secondary is connected, and pause_alone says to wait");
    let held = later(&ready, &us.writer, "insert into t values (1) returning id");
    let page = common::http_get(&us.http, "/metrics").unwrap().1;
    assert_eq!(common::metric(&page, "parhelion_is_primary"), Some(1.0), "it holds its lease, with the witness's vote");
    assert!(!held.is_finished(), "it pauses and is not aborted");
    two.start_region(1);
    assert_eq!(held.join().unwrap().as_deref(), Ok("1"), "it goes on by itself");
    until("status is quiet again", || {
        let row = common::row(&two.status(0)?, "us-east")?;
        ensure(row["reason"].is_null() && row["state"] == "writable", row)
    });

    // Without it commits pause only as long as the secondary that is behind is still thought to be there.
    set(&us.config, "pause_alone=no");
    two.kill_region(1);
    ready.must(&us.writer, "insert into t values (2)");
    until_paused(|| two.status(0), "us-east", "every secondary is behind by more than 2000 ms");
    assert_eq!(ready.must(&us.writer, "insert into t values (3) returning id"), "3", "alone it goes on");
    two.start_region(1);
    until("it is back", || ready.sql(&eu.reader, "select count(*) from t").and_then(|n| ensure(n == "3", n)));

    // The same with sync=1; and a weaker rule holds as soon as a majority of the voters knows of it, with the secondary still gone.
    set(&us.config, "max_rpo=off");
    set(&us.config, "sync=1");
    two.kill_region(1);
    let held = later(&ready, &us.writer, "insert into t values (4) returning id");
    until_paused(|| two.status(0), "us-east", "sync = 1 waits for that many secondaries, and 0 are connected");
    assert!(!held.is_finished(), "it pauses and is not aborted");
    set(&us.config, "sync=0");
    assert_eq!(held.join().unwrap().as_deref(), Ok("4"), "less is waited for from now on");
    set(&us.config, "sync=1");
    let held = later(&ready, &us.writer, "insert into t values (5) returning id");
    until_paused(|| two.status(0), "us-east", "sync = 1");
    two.start_region(1);
    assert_eq!(held.join().unwrap().as_deref(), Ok("5"), "a secondary is back");
    until("all of it is there", || ready.sql(&eu.reader, "select group_concat(id) from t").and_then(|n| ensure(n == "1,2,3,4,5", n)));
}

/// Secondaries that are connected and keep nothing: three copies of each are out of duty.
#[test]
fn commits_pause_while_every_secondary_is_too_far_behind() {
    let cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (primary, others) = (cluster.primary().clone(), cluster.secondaries().to_vec());
    ready.must(&primary.writer, "create table t (id integer primary key)");
    cluster.until_whole();
    let copies = |what: &str, region: &str| {
        for copy in ["a1", "b1", "c1"] {
            cluster.verb(region, &["copy", what, copy]).unwrap();
        }
    };
    for (no, (rule, words)) in [("max_rpo=500ms", "behind by more than 500 ms (max_rpo)"), ("sync=1", "sync = 1 waits")].iter().enumerate()
    {
        set(&others[0].config, rule);
        copies("stop", &others[0].name);
        copies("stop", &others[1].name);
        // The first may be acknowledged before max_rpo is over; then all that come wait.
        let waits = until("a commit waits", || {
            let insert = later(&ready, &primary.writer, "insert into t (id) values (null) returning id");
            let began = now();
            while !insert.is_finished() && now().since(began) < Duration::from_millis(1500) {
                std::thread::yield_now();
                std::thread::sleep(Duration::from_millis(10));
            }
            if insert.is_finished() { Err(format!("{:?}", insert.join())) } else { Ok(insert) }
        });
        until_paused(|| cluster.status_of(&primary.name), &primary.name, words);
        let page = common::http_get(&primary.http, "/metrics").unwrap().1;
        assert_eq!(common::metric(&page, "parhelion_is_primary"), Some(1.0), "round {no}: it holds its lease");
        copies("start", &others[1].name);
        waits.join().unwrap().expect("it goes on by itself when one of them is near enough");
        copies("start", &others[0].name);
        set(&primary.config, "max_rpo=off");
        set(&primary.config, "sync=0");
        cluster.until_whole();
    }
}

/// What the cluster does by itself is set at run time, in one place, for all; it is kept over restarts, and it is done.
#[test]
fn a_killed_primary_is_replaced_by_itself_when_that_is_set_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (old, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&old.writer, "create table t (id integer primary key)");
    cluster.until_whole();
    assert_eq!(cluster.status_of(&second.name).unwrap()["auto_failover"], "off", "the default");

    // Without it nobody takes over, and status says why and what to do.
    cluster.kill_region(&old.name);
    let status = until("the lease is over and that is said", || {
        let status = cluster.status_of(&second.name)?;
        ensure(notes(&status).contains("auto_failover=off"), &status).map(|()| status)
    });
    let grants = || {
        let voters = cluster.status_of(&second.name)?["voters"].as_array().cloned().unwrap_or_default();
        ensure(voters.iter().all(|v| v["grant_left_ms"].as_u64().unwrap_or(0) == 0), format!("{voters:?}"))
    };
    until("the grants are over", grants);
    let began = now();
    while now().since(began) < Duration::from_secs(3) {
        assert_eq!(cluster.status_of(&second.name).unwrap()["epoch"], status["epoch"], "nobody was promoted");
    }
    cluster.start_region(&old.name);
    until("it goes on", || ready.sql(&old.writer, "insert into t values (1)").map(drop));

    // From any region, with the rule that proves that nothing is lost.
    assert!(set(&second.config, "auto_failover=lossless").contains("a majority of the voters keeps it"));
    set(&second.config, "sync=1");
    for region in &ready.regions {
        until("every member knows", || {
            let status = cluster.status_of(&region.name)?;
            ensure(status["auto_failover"] == "lossless", status)
        });
    }
    // A member whose file says otherwise goes by the cluster's rule, and says so; also after a restart.
    cluster.kill_region(&second.name);
    let file = std::fs::read_to_string(&second.config).unwrap();
    std::fs::write(&second.config, file.replacen("[listen]", "[control]\nauto_failover = \"off\"\n[listen]", 1)).unwrap();
    cluster.start_region(&second.name);
    until("the file is overruled", || {
        let status = cluster.status_of(&second.name)?;
        let says = format!("the file of {} says auto_failover=off, and the cluster's rule is lossless", second.name);
        ensure(status["auto_failover"] == "lossless" && notes(&status).contains(&says), status)
    });
    cluster.until_whole();
    for id in 2..=20 {
        ready.must(&old.writer, &format!("insert into t values ({id})"));
    }

    let killed = now();
    cluster.kill_region(&old.name);
    let survivors = cluster.secondaries().to_vec();
    let first = until("somebody took over and writes", || ready.sql(&survivors[0].writer, "insert into t values (21) returning id"));
    println!("from the kill to the first acknowledged write: {} ms", now().since(killed).as_millis());
    assert_eq!(first, "21");
    let status = until("it is told", || {
        let status = cluster.status_of(&survivors[1].name)?;
        ensure(status["primary"] != old.name.as_str() && status["operation"]["state"] == "done", &status).map(|()| status)
    });
    assert_eq!((&status["operation"]["actor"], &status["operation"]["kind"]), (&"auto_failover".into(), &"failover".into()), "{status}");
    assert_eq!(status["operation"]["loss"]["sure"], "proven", "{status}");
    let rows = ready.must(&survivors[0].writer, "select count(*) from t");
    assert_eq!(rows, "21", "nothing that was acknowledged is lost");
    let writers = ready.regions.iter().filter(|r| r.name != old.name);
    let primary = writers.into_iter().find(|r| status["primary"] == r.name.as_str()).expect("one of them").clone();
    let audit = must(&primary.config, &["audit", "--json"]);
    let entries = audit["entries"].as_array().unwrap();
    assert!(entries.iter().any(|e| e["kind"] == "promotion" && e["actor"] == "auto_failover"), "{audit}");
    // The old one follows, and the new primary goes on with the rules.
    cluster.start_region(&old.name);
    until("it follows", || ready.sql(&old.reader, "select count(*) from t").and_then(|n| ensure(n == "21", n)));
    let status = cluster.status_of(&primary.name).unwrap();
    assert_eq!((&status["auto_failover"], &status["rules"]["sync"]), (&"lossless".into(), &1.into()), "{status}");
}

/// With a bound, nobody takes over when more than that is known to be lost; status says why, and an operator's bound counts also the time in
/// which nothing was heard.
#[test]
fn a_bound_on_the_loss_holds_for_the_cluster_and_for_an_operator() {
    let mut cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (old, west) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&old.writer, "create table t (id integer primary key, v blob)");
    cluster.until_whole();
    assert!(set(&west.config, "max_loss=500ms").contains("auto_failover=max_loss=500ms"));
    // Thin lines: the log falls behind by seconds while votes and renewals, which are small, still come through.
    cluster.netem(&["set", &old.name, "*", "rate=2mbit", "queue=20KB"]);
    for _ in 0..40 {
        ready.must(&old.writer, "insert into t (v) values (randomblob(100000))");
    }
    until("both are behind", || {
        let status = cluster.status_of(&old.name)?;
        let behind =
            |name: &str| common::row(&status, name).is_ok_and(|r| r["durability_lag_bytes"].as_u64().is_some_and(|b| b > 1_000_000));
        ensure(cluster.secondaries().iter().all(|s| behind(&s.name)), &status)
    });
    std::thread::sleep(Duration::from_secs(2));
    cluster.kill_region(&old.name);
    let status = until("status says why nobody takes over", || {
        let status = cluster.status_of(&west.name)?;
        ensure(notes(&status).contains("no failover by itself, since auto_failover=max_loss=500ms"), &status).map(|()| status)
    });
    assert_ne!(status["primary"], west.name.as_str());
    let (code, out, err) = verb(&west.config, &["failover", "--to", &west.name, "--allow-data-loss", "--max-loss", "1s", "--json"]);
    assert!(
        code == Some(4) && err.contains("may have gone on before its lease was over") && err.contains("--max-loss allows 1000 ms"),
        "{out}{err}"
    );
    let loss = &serde_json::from_str::<Value>(&out).unwrap()["loss"];
    assert!(loss["ms"].as_u64().is_some_and(|ms| ms > 500) && loss["alone_ms"].as_u64().is_some_and(|ms| ms > 0), "{out}");
    // Nothing was changed: the old one goes on when it is back, and loses nothing.
    cluster.start_region(&old.name);
    until("it goes on", || ready.sql(&old.writer, "select count(*) from t").and_then(|n| ensure(n == "40", n)));
    assert_eq!(cluster.status_of(&old.name).unwrap()["epoch"], status["epoch"]);
}
