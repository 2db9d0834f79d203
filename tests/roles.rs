//! The commands that move the primary, on real processes: a demo of three regions, and two regions with a witness.

mod common;

use common::two::Two;
use common::{Cluster, ensure, must, signal, until, verb};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};

#[test]
fn a_switchover_is_checked_carried_out_and_told_again() {
    let cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (old, new, third) = (cluster.primary().clone(), cluster.secondaries()[0].clone(), cluster.secondaries()[1].clone());
    ready.must(&old.writer, "create table t (id integer primary key); insert into t values (1)");
    let status = cluster.until_whole();
    let seeds = seeds_begun(&cluster, &third.name);
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
    assert_eq!(seeds_begun(&cluster, &third.name), seeds, "they follow from where they were: nobody is seeded");
    let status = until("status knows", || {
        let status = cluster.status_of(&old.name)?;
        ensure(status["primary"] == new.name.as_str() && status["operation"]["id"] == id, &status).map(|()| status)
    });
    assert_eq!(status["failovers"].as_array().map(Vec::len), Some(0), "{status}");
    let page = common::http_get(&new.http, "/metrics").unwrap().1;
    assert_eq!(common::metric(&page, "parhelion_is_primary"), Some(1.0));
    assert!(common::metric(&page, "parhelion_lease_remaining_seconds").is_some_and(|s| s > 0.0), "{page}");
    assert!(page.contains("parhelion_switchover_phase_seconds{phase=\"seal\"}"), "{page}");
    assert_eq!(common::metric(&page, "parhelion_epoch"), done["epoch"].as_f64(), "{page}");
    assert_eq!(common::metric(&page, "parhelion_writers_seen"), Some(1.0), "{page}");
    assert!(common::metric(&page, "parhelion_switchover_write_gap_seconds").is_some_and(|s| s > 0.0), "{page}");

    // Every phase is an event of the region that went through it: by the command, over HTTP, and in SQL.
    let events = cluster.events(&third.name).expect("events");
    let of_op: Vec<&Value> = events.iter().filter(|e| e["op"] == id).collect();
    let phases: Vec<(&str, &str)> = (of_op.iter())
        .filter(|e| e["kind"] == "operation_phase")
        .map(|e| (e["region"].as_str().unwrap(), e["what"].as_str().unwrap().rsplit(": ").next().unwrap()))
        .collect();
    for (region, phase) in
        [(&old.name, "check is over"), (&old.name, "drain is over"), (&old.name, "seal is over"), (&new.name, "activate is over")]
    {
        assert!(phases.contains(&(region.as_str(), phase)), "{phase} in {phases:?}");
    }
    assert_eq!(phases.len(), done["phases"].as_array().unwrap().len(), "each of them once: {phases:?}");
    for event in &of_op {
        assert!(event["at"].as_u64() > Some(0) && event["durable_lsn"].is_u64() && event["epoch"].as_u64() > Some(0), "{event}");
        assert!(event["actor"].as_str().is_some_and(|a| a.contains("by way of")), "{event}");
        assert!(event["duration_ms"].is_u64() || event["kind"] == "operation_began", "{event}");
    }
    assert!(of_op.iter().any(|e| e["kind"] == "operation_began") && of_op.iter().any(|e| e["kind"] == "operation_ended"), "{of_op:?}");
    let page: Value = serde_json::from_str(&common::http_get(&new.http, "/events").unwrap().1).unwrap();
    let over_http = page["events"].as_array().unwrap().iter().filter(|e| e["op"] == id && e["kind"] == "operation_phase").count();
    assert!(over_http > 0, "{page}");
    let sql = format!(
        "select count(*), min(duration_in_msec) >= 0, min(actor) like '%by way of%' from parhelion_events() where operation = '{id}' and kind = 'operation_phase'"
    );
    assert_eq!(ready.must(&new.reader, &sql), format!("{over_http}|1|1"));
    let (_, people, _) = verb(&third.config, &["events"]);
    assert!(people.contains("drain is over") && people.contains(&format!("operation {}", &id[..8])), "{people}");
}

/// Seeds that began in any region, as `asked` hears of them: the first ones of each secondary, and any later one.
fn seeds_begun(cluster: &Cluster, asked: &str) -> usize {
    let events = cluster.events(asked).expect("events");
    for region in cluster.names() {
        assert!(events.iter().any(|e| e["region"] == region.as_str()), "{region} is missing");
    }
    events.iter().filter(|e| e["kind"] == "seeding_began").count()
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
    let (code, _, err) = verb(&second.config, &["set", "auto_failover=always"]);
    assert!(code == Some(4) && err.contains("write off, lossless, or max_loss=5s"), "{err}");
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
    let status = two.until_all_vote();
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
    // What each phase took is a metric, as the command told it.
    let page = common::http_get(&eu.http, "/metrics").unwrap().1;
    for phase in done["phases"].as_array().unwrap() {
        let metric = format!("parhelion_failover_phase_seconds{{phase=\"{}\"}}", phase["name"].as_str().unwrap());
        assert_eq!(common::metric(&page, &metric).map(|s| (s * 1000.0).round()), phase["ms"].as_f64(), "{phase} in {page}");
    }
    assert!(["wait", "activate"].iter().all(|p| page.contains(&format!("parhelion_failover_phase_seconds{{phase=\"{p}\"}}"))), "{page}");
    assert!(common::metric(&page, "parhelion_failover_write_gap_seconds").is_some_and(|s| s > 0.0), "{page}");
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
    cluster.until_whole();
    let seeds = seeds_begun(&cluster, &west.name);
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
    // Which rows that were is known in every region, and to people.
    let rows = serde_json::json!([{ "table": "t", "rows_changed": 5, "keys": ["1001", "1002", "1003", "1004", "1005"], "more": 0 }]);
    for region in &ready.regions {
        until("the rows are known there", || {
            let report = must(&region.config, &["failover", "report", &id, "--json"]);
            ensure(report["complete"] == true && report["touched"] == rows, report)
        });
    }
    let (_, people, _) = verb(&west.config, &["failover", "report", &id]);
    assert!(people.contains("t: 5 rows, with the keys 1001, 1002, 1003, 1004, 1005\n"), "{people}");
    until("the old primary follows, without a seed", || {
        let there = ready.sql(&east.reader, "select count(*), sum(v = 'lost') from t")?;
        ensure(there == "101|0", there)
    });
    let events = cluster.events(&west.name).expect("events");
    assert!(events.iter().any(|e| e["kind"] == "rewound" && e["region"] == east.name.as_str()), "{events:?}");
    assert_eq!(seeds_begun(&cluster, &west.name), seeds, "nobody was seeded, neither it nor the third region");
    let salvage = must(&east.config, &["salvage", "--json"]);
    assert!(salvage.to_string().contains("\"lost_commits\":5"), "{salvage}");
    assert_eq!(salvage[0]["id"], report["archive"], "{salvage} {report}");
    assert!(people.contains(&format!("parhelion salvage {id} --config")), "{people}");
    the_lost_tail_is_a_database(&cluster, &east, &west, &id);
    let archive = report["archive"].as_str().expect("an archive").to_owned();
    the_archive_goes_by_order_only(&cluster, &east, &west, &id, &archive);
    // An older process of the test would count as a second writer.
    let page = common::http_get(&west.http, "/metrics").expect("metrics").1;
    assert_eq!(common::metric(&page, "parhelion_epoch"), Some(2.0), "{page}");
}

/// By the failover's id, where the lost tail's copies are, and read-only.
fn the_lost_tail_is_a_database(cluster: &Cluster, east: &common::Region, west: &common::Region, id: &str) {
    let (code, _, err) = verb(&west.config, &["salvage", id]);
    assert!(code == Some(4) && err.contains(&format!("the file of {}", east.name)), "{code:?} {err}");
    let (code, _, err) = verb(&east.config, &["salvage", "abc"]);
    assert!(code == Some(4) && err.contains("abc is not among the failovers"), "{code:?} {err}");
    let diff = must(&east.config, &["salvage", &id[..8], "--diff", "t", "--json"]);
    assert!(diff.to_string().contains("1005"), "{diff}");
    let mut command = common::parhelion();
    command.args(["salvage", id, "--listen", "127.0.0.1:0", "--config"]).arg(&east.config).stdout(Stdio::piped());
    let mut served = Ending(command.spawn().expect("the program runs"));
    let lines = BufReader::new(served.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let port = lines.into_iter().find_map(|line| line.split_once("port=")?.1.split(' ').next()?.parse::<u16>().ok()).expect("its port");
    let at = format!("127.0.0.1:{port}");
    let ready = &cluster.ready;
    assert_eq!(ready.must(&at, "select count(*), sum(v = 'lost'), sum(v = 'after') from t"), "105|5|0");
    assert_eq!(ready.must(&at, "select group_concat(id order by id) from t where v = 'lost'"), "1001,1002,1003,1004,1005");
    let said = ready.sql(&at, "insert into t values (3000, 'no')").expect_err("a lost tail is not written to");
    assert!(said.contains("25006"), "{said}");
    signal(served.0.id(), Signal::INT);
    assert_eq!(common::wait(&mut served.0, "a lost tail that is served").code(), Some(0));
}

/// It is counted in status and metrics, and kept until somebody says its name twice; that is on record.
fn the_archive_goes_by_order_only(cluster: &Cluster, east: &common::Region, west: &common::Region, id: &str, archive: &str) {
    let kept = |count: u64| {
        until("status counts it", || {
            let row = cluster.row(&west.name, &east.name)?;
            let fits = row["archives"]["count"] == count && (row["archives"]["log_bytes"].as_u64() > Some(0)) == (count > 0);
            ensure(fits, row)
        });
        let page = common::http_get(&east.http, "/metrics").expect("metrics").1;
        assert_eq!(common::metric(&page, "parhelion_archives").map(|n| n.to_string()), Some(count.to_string()), "{page}");
    };
    kept(1);
    let (_, people, _) = verb(&west.config, &["status"]);
    assert!(people.contains(&format!("{} keeps 1 lost tail of at most 64", east.name)), "{people}");

    let (code, _, err) = verb(&east.config, &["salvage", archive, "--drop"]);
    assert!(code == Some(2) && err.contains("--confirm"), "{code:?} {err}");
    let (code, _, err) = verb(&east.config, &["salvage", archive, "--drop", "--confirm", "80000000000000ff"]);
    assert!(code == Some(2) && err.contains("nothing was done"), "{code:?} {err}");
    kept(1);
    let dropped = must(&east.config, &["salvage", id, "--drop", "--confirm", id, "--json"]);
    assert!(dropped["ok"] == true && dropped["archive"] == archive, "{dropped}");
    kept(0);
    until("the copies have forgotten it", || {
        let kept = must(&east.config, &["salvage", "--json"]);
        ensure(kept.as_array().is_some_and(Vec::is_empty), kept)
    });
    let (code, _, err) = verb(&east.config, &["salvage", archive, "--drop", "--confirm", archive]);
    assert!(code == Some(4) && err.contains("keeps no archive"), "{code:?} {err}");

    // What is known of it stays, and who did it is told.
    assert_eq!(must(&west.config, &["failover", "report", id, "--json"])["lost_commits"], 5);
    let audit = must(&east.config, &["audit", "--json"]);
    let entries = audit["entries"].as_array().expect("entries");
    let entry = entries.iter().find(|e| e["kind"] == "archive").unwrap_or_else(|| panic!("{audit}"));
    assert!(entry["what"].as_str().is_some_and(|w| w.contains(archive)), "{entry}");
    assert!(entry["actor"].as_str().is_some_and(|a| a.contains("by way of")), "{entry}");
    let events = cluster.events(&west.name).expect("events");
    assert!(events.iter().any(|e| e["kind"] == "archive_dropped" && e["region"] == east.name.as_str()), "{events:?}");
}

/// A command that is ended when its test fails.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

/// The same for a client of another region, whose statement was on its way to the primary when that was stopped.
#[test]
fn a_stopped_primary_acknowledges_nothing_to_clients_of_other_regions_either() {
    let cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (east, west, third) = (cluster.primary().clone(), cluster.secondaries()[0].clone(), cluster.secondaries()[1].clone());
    ready.must(&east.writer, "create table t (id integer primary key, v text)");
    cluster.until_whole();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        // A session whose way to the primary was used a moment ago: the next statement goes there without a question first.
        let client = ready.connect(&third.writer).await.unwrap();
        client.batch_execute("insert into t values (1, 'before')").await.unwrap();
        signal(east.pid, Signal::STOP);
        let zombie = tokio::spawn(async move { client.batch_execute("insert into t values (2, 'zombie')").await });
        let (config, name) = (west.config.clone(), west.name.clone());
        tokio::task::spawn_blocking(move || {
            until("another region takes over", || {
                let (code, out, err) = verb(&config, &["failover", "--to", &name, "--allow-data-loss", "--json"]);
                ensure(code == Some(0), format!("{out} {err}"))
            });
        })
        .await
        .unwrap();
        signal(east.pid, Signal::CONT);
        let said = zombie.await.unwrap();
        until("the old primary follows", || {
            let row = cluster.row(&west.name, &east.name)?;
            ensure(row["role"] == "secondary" && row["state"] != "disconnected", row)
        });
        let rows = ready.must(&west.writer, "select count(*) from t where v = 'zombie'");
        let code = said.as_ref().err().and_then(|e| e.code()).map(|c| c.code().to_owned());
        match said {
            Ok(()) => assert_eq!(rows, "1", "acknowledged means that the new primary has it"),
            // That nobody knows whether it was done is what may be said of it, and nothing else; it surely was not run twice.
            Err(_) => assert!(rows == "0" && matches!(code.as_deref(), Some("08007" | "57P03")), "{code:?} {rows}"),
        }
    });
}

/// Two operators who do not know of one another (O2): one region is promoted, and the other one's operator is told which, and by what.
#[test]
fn of_two_failovers_to_different_regions_one_wins_and_the_other_is_told_which() {
    let mut cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (old, others) = (cluster.primary().clone(), cluster.secondaries().to_vec());
    ready.must(&old.writer, "create table t (id integer primary key)");
    cluster.until_whole();
    cluster.kill_region(&old.name);
    until("the grants are over", || {
        let voters = cluster.status_of(&others[0].name)?["voters"].as_array().cloned().unwrap_or_default();
        ensure(voters.iter().all(|v| v["grant_left_ms"].as_u64().unwrap_or(0) == 0), format!("{voters:?}"))
    });
    let started = std::sync::Arc::new(std::sync::Barrier::new(2));
    let operators: Vec<_> = (others.iter().cloned())
        .map(|to| {
            let started = std::sync::Arc::clone(&started);
            std::thread::spawn(move || {
                started.wait();
                let (code, out, err) = verb(&to.config, &["failover", "--to", &to.name, "--allow-data-loss", "--json"]);
                (to, code, out, err)
            })
        })
        .collect();
    let ended: Vec<_> = operators.into_iter().map(|o| o.join().expect("an operator")).collect();
    let (won, lost): (Vec<_>, Vec<_>) = ended.iter().partition(|(_, code, ..)| *code == Some(0));
    let ([(winner, _, out, _)], [(_, code, _, err)]) = (&won[..], &lost[..]) else { panic!("one of them: {ended:?}") };
    let done: Value = serde_json::from_str(out).unwrap();
    assert_eq!(*code, Some(6), "superseded: {err}");
    let id = done["id"].as_str().unwrap();
    // The winner may have been overtaken by the other one's promise before it opened, and go on in a later epoch: the loser is told of that.
    let told = format!("operation {id}, which made {} the primary of epoch ", winner.name);
    let epoch: Option<u64> = err.split_once(&told).and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    assert!(epoch >= done["new_epoch"].as_u64() && epoch == cluster.status_of(&winner.name).unwrap()["epoch"].as_u64(), "{done}: {err}");
    ready.must(&others[0].writer, "insert into t values (1)");
    // The founder's file, whose region is down, is as good as any: another region is asked.
    until("the same again tells the same", || {
        let (code, out, err) = verb(&old.config, &["failover", "--to", &winner.name, "--allow-data-loss", "--json"]);
        ensure(code == Some(0) && err.contains("is asked") && out.contains(id), format!("{code:?} {out}{err}"))
    });
}

/// Two regions, one vote, and an operator at each who swears that the other region is down. First neither is, they only do not hear one
/// another; then each of them dies while the other one writes. There is one history in the end, nothing of the other is merged into it, and
/// what was lost is counted, kept and said to rest on a word.
#[test]
fn two_words_of_two_operators_make_one_history_and_what_the_other_had_is_counted() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (east, west) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&east.writer, "create table t (id integer primary key, v text); insert into t values (1, 'kept')");
    cluster.until_whole();
    let swears = |at: &common::Region, down: &common::Region| {
        verb(&at.config, &["failover", "--to", &at.name, "--allow-data-loss", "--primary-is-down", &down.name, "--json"])
    };
    let told = |what: &str, id: &str, lost: u64| {
        let report = until(what, || {
            let report = must(&west.config, &["failover", "report", id, "--json"]);
            ensure(report["complete"] == true, &report).map(|()| report)
        });
        assert!(report["lost_commits"] == lost && report["unproven"] == true && report["from"] == east.name.as_str(), "{report}");
    };
    let follows = |what: &str, rows: &str| {
        until(what, || {
            let there = ready.sql(&east.reader, "select group_concat(id order by id) from t")?;
            ensure(there == rows, there)
        });
        let here = ready.must(&west.writer, "select group_concat(id order by id) from t");
        assert_eq!(here, rows);
    };

    // While they hear one another, a word is not taken.
    let (code, _, err) = swears(&west, &east);
    assert!(code == Some(4) && err.contains("switchover --to"), "{code:?} {err}");
    cluster.netem(&["set", &east.name, "*", "blackhole=on", "--both"]);
    let first = until("the word is taken where the other region is not heard", || {
        let (code, out, err) = swears(&west, &east);
        ensure(code == Some(0), format!("{code:?} {err}")).map(|()| serde_json::from_str::<Value>(&out).unwrap())
    });
    let first = first["id"].as_str().expect("an id").to_owned();
    // The other operator's word is not needed: that region has never stopped. This is what a word costs that is not true.
    let (code, _, err) = swears(&east, &west);
    assert!(code == Some(4) && err.contains("is the primary already"), "{code:?} {err}");
    ready.must(&west.instance(), "insert into t values (2, 'west')");
    for id in 11..=13 {
        ready.must(&east.instance(), &format!("insert into t values ({id}, 'east')"));
    }
    cluster.netem(&["set", &east.name, "*", "blackhole=off", "--both"]);
    follows("the one of the older epoch follows", "1,2");
    told("its commits are counted", &first, 3);

    // Back to the east, as it should be done; then both die, and each is promoted while the other one is away.
    must(&west.config, &["switchover", "--to", &east.name, "--json"]);
    ready.must(&east.writer, "insert into t values (3, 'kept')");
    cluster.until_whole();
    cluster.kill_region(&east.name);
    let (code, out, err) = swears(&west, &east);
    assert_eq!(code, Some(0), "{out}{err}");
    let second: Value = serde_json::from_str(&out).unwrap();
    ready.must(&west.writer, "insert into t values (4, 'west')");
    cluster.kill_region(&west.name);
    cluster.start_region(&east.name);
    // It votes alone, as far as it knows: nobody is there who could tell it otherwise, and its operator has nothing to swear.
    until("it writes again", || ready.sql(&east.writer, "insert into t values (21, 'east')").map(drop));
    let (code, _, err) = swears(&east, &west);
    assert!(code == Some(4) && err.contains("is the primary already"), "{code:?} {err}");
    ready.must(&east.writer, "insert into t values (22, 'east')");
    cluster.start_region(&west.name);
    follows("the later epoch goes on, and the other follows", "1,2,3,4");
    told("what it had is counted", second["id"].as_str().expect("an id"), 2);
    let salvage = must(&east.config, &["salvage", "--json"]);
    assert!(salvage.to_string().contains("\"lost_commits\":2") && salvage.to_string().contains("\"lost_commits\":3"), "{salvage}");
    let events = cluster.events(&west.name).expect("events");
    // What came after the word that ended the reign is said by whoever reads it back, and to all.
    // Of all regions, since they were started last.
    let loud: Vec<&Value> = events.iter().filter(|e| e["kind"] == "two_writers").collect();
    assert!(loud.len() == 1 && loud[0]["region"] == east.name.as_str(), "no two claimed the same epoch, and a word was not true: {loud:?}");
    for region in [&east, &west] {
        let status = cluster.status_of(&region.name).expect("a status");
        let loud = format!("EMERGENCY: two regions wrote at the same time: {} went on after {} had taken over", east.name, west.name);
        assert!(status["notes"].as_array().is_some_and(|n| n.iter().any(|n| n.as_str().is_some_and(|n| n.starts_with(&loud)))), "{status}");
    }
    // A region that has heard of the other's reign does not resume its own, also when it is alone again.
    cluster.kill_region(&west.name);
    cluster.kill_region(&east.name);
    cluster.start_region(&east.name);
    until("it knows that the vote is elsewhere", || {
        let status = cluster.status_of(&east.name)?;
        ensure(status["voters"].as_array().is_some_and(|v| v.len() == 1 && v[0]["name"] == west.name.as_str()), &status)
    });
    assert!(ready.sql(&east.instance(), "insert into t values (31, 'east')").is_err());
}

/// Ctrl-C, and a terminal that goes away, end the command that watches a switchover and not the switchover; the same command again tells it.
#[test]
fn a_command_that_is_interrupted_says_so_and_the_switchover_goes_on() {
    let two = Two::start_with_table("drain = \"4s\"");
    let ready = two.ready.clone();
    let (us, eu) = (ready.regions[0].clone(), ready.regions[1].clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for (sent, from, to) in [(Signal::INT, &us, &eu), (Signal::HUP, &eu, &us)] {
        // As long as this transaction is open the drain lasts, up to its 4 s.
        let open = runtime.block_on(async {
            let client = ready.connect(&from.writer).await.unwrap();
            client.batch_execute("begin; insert into t values (1)").await.unwrap();
            client
        });
        let mut command = common::parhelion();
        command.args(["switchover", "--to", &to.name, "--config"]).arg(&from.config).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut ordered = Ending(command.spawn().expect("the program runs"));
        let mut lines = BufReader::new(ordered.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let mut said = Vec::new();
        // The first phase that is over: the drain is under way.
        while !said.last().is_some_and(|line: &String| line.trim_start().starts_with("check ")) {
            said.push(lines.next().unwrap_or_else(|| panic!("it ended: {said:?}")));
        }
        signal(ordered.0.id(), sent);
        assert_eq!(common::wait(&mut ordered.0, "an interrupted command").code(), Some(5), "{sent:?}");
        let mut err = String::new();
        ordered.0.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
        let told = err.split_once("interrupted; operation ").unwrap_or_else(|| panic!("{err}")).1;
        let (id, rest) = told.split_once(' ').expect("its id");
        assert!(rest.contains("goes on without this command: it was in drain") && rest.contains("the same command again"), "{err}");
        assert_eq!(must(&from.config, &["op", id, "--json"])["state"], "running", "{sent:?}: it goes on");

        // Nobody watches, and it comes to its end.
        let op = until("the operation ends by itself", || {
            let op = must(&from.config, &["op", id, "--json"]);
            ensure(op["state"] != "running" && op["state"] != "unknown", &op).map(|()| op)
        });
        assert!(op["state"] == "done" && op["to"] == to.name.as_str(), "{op}");
        let (code, again, err) = verb(&from.config, &["switchover", "--to", &to.name]);
        assert!(code == Some(0) && err.contains(&format!("operation {id} was ordered before and is done")), "{code:?} {again}{err}");
        assert!(again.contains(&format!("done: {} is the primary of epoch {}", to.name, op["epoch"])), "{again}");
        let said = runtime.block_on(open.batch_execute("commit"));
        assert_eq!(said.unwrap_err().code().map(tokio_postgres::error::SqlState::code), Some("40001"));
        two.until_all_vote();
    }
    assert_eq!(ready.must(&us.writer, "select count(*) from t"), "0");
}

/// What runs when the role moves gets as long as the file says, and no longer.
#[test]
fn a_drain_lasts_as_long_as_the_file_says() {
    let two = Two::start_with_table("drain = \"700ms\"");
    let ready = two.ready.clone();
    let (us, eu) = (ready.regions[0].clone(), ready.regions[1].clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (done, said) = runtime.block_on(async {
        let client = ready.connect(&us.writer).await.unwrap();
        client.batch_execute("begin; insert into t values (1)").await.unwrap();
        let config = eu.config.clone();
        let ordered = tokio::task::spawn_blocking(move || must(&config, &["switchover", "--to", "eu-west", "--json"]));
        (ordered.await.unwrap(), client.batch_execute("commit").await)
    });
    let drain = done["phases"].as_array().unwrap().iter().find(|p| p["name"] == "drain").and_then(|p| p["ms"].as_u64());
    assert!(drain.is_some_and(|ms| (650..4000).contains(&ms)), "{done}");
    assert_eq!(said.unwrap_err().code().map(tokio_postgres::error::SqlState::code), Some("40001"));
    assert_eq!(ready.must(&eu.writer, "select count(*) from t"), "0");
}
