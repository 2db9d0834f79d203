//! The emulated WAN under a running cluster: what is set shows in what is measured, and no outage costs anything.

mod common;

use common::{Cluster, ensure, until};
use serde_json::Value;

const SLACK_MS: f64 = 30.0;

fn figure(row: &Value, name: &str) -> Result<f64, String> {
    row[name].as_f64().ok_or_else(|| format!("{name} is not known: {row}"))
}

/// Waits until the region's round trip lies in `bounds`, and gives its row. The round trip is the smallest of the last three
/// seconds, so what the machine adds now and then does not matter.
fn until_round_trip(cluster: &Cluster, region: &str, least: f64) -> Value {
    until("the round trip", || {
        let row = cluster.row(region, region)?;
        let ms = figure(&row, "round_trip_ms")?;
        ensure(ms >= least && ms <= least + SLACK_MS, &row)?;
        Ok(row)
    })
}

#[test]
fn what_is_set_one_way_is_added_one_way_and_to_nobody_else() {
    let cluster = Cluster::start(3, "none");
    let primary = cluster.primary().name.clone();
    let [far, near] = [0, 1].map(|i| cluster.secondaries()[i].name.clone());
    until_round_trip(&cluster, &far, 0.0);
    until_round_trip(&cluster, &near, 0.0);

    // 80 ms there, nothing back: a round trip of 80. The estimate cannot know which way it is (it takes half), and says so.
    cluster.netem(&["set", &primary, &far, "delay=80ms"]);
    until_round_trip(&cluster, &far, 80.0);
    until("the lag, within the error that is shown", || {
        let row = cluster.row(&far, &far)?;
        let (lag, error) = (figure(&row, "durability_lag_ms")?, figure(&row, "clock_error_ms")?);
        ensure(row["lag_known"] == true && error >= 40.0 && lag >= 39.0 && (lag - 80.0).abs() <= error + SLACK_MS, row)
    });
    until_round_trip(&cluster, &near, 0.0);

    // 80 ms back as well: now half of the round trip is the truth.
    cluster.netem(&["set", &far, &primary, "delay=80ms"]);
    until_round_trip(&cluster, &far, 160.0);
    until("the lag is the way there", || {
        let row = cluster.row(&far, &far)?;
        let lags = ["durability_lag_ms", "rpo_lag_ms", "visibility_lag_ms"].map(|n| figure(&row, n));
        for lag in lags {
            let lag = lag?;
            ensure((79.0..80.0 + SLACK_MS).contains(&lag), &row)?;
        }
        Ok(())
    });
    let row = until_round_trip(&cluster, &near, 0.0);
    assert!(figure(&row, "clock_error_ms").unwrap() <= SLACK_MS, "{row}");
    // As the primary's functions show it to SQL.
    until("SQL has the same", || {
        let asked = format!("select durability_lag_in_msec from aurora_global_db_status() where aws_region = '{far}'");
        let ms: f64 = cluster.ready.sql(&cluster.primary().writer, &asked)?.parse().map_err(|e| format!("{e}"))?;
        ensure((79.0..80.0 + SLACK_MS).contains(&ms), ms)
    });

    // And away again, while it runs.
    cluster.netem(&["set", &primary, &far, "none", "--both"]);
    until_round_trip(&cluster, &far, 0.0);
}

#[test]
fn the_profile_shows_in_the_lag() {
    let cluster = Cluster::start(3, "world");
    let primary = cluster.primary().name.clone();
    let shown = common::json_of(common::parhelion().args(["netem", "show", "--json", "--dir"]).arg(&cluster.dir)).unwrap();
    let delay_ms = |from: &str, to: &str| {
        let directions = shown["directions"].as_array().unwrap();
        let one = directions.iter().find(|d| d["from"] == from && d["to"] == to).unwrap_or_else(|| panic!("{shown}"));
        one["settings"]["delay_us"].as_f64().unwrap() / 1000.0
    };
    for second in cluster.secondaries() {
        let (there, back) = (delay_ms(&primary, &second.name), delay_ms(&second.name, &primary));
        assert!(there >= 30.0 && (there - back).abs() < 0.1, "the profile has real distances: {there} {back}");
        until_round_trip(&cluster, &second.name, there + back);
        until("the lag", || {
            let row = cluster.row(&second.name, &second.name)?;
            let lag = figure(&row, "durability_lag_ms")?;
            ensure((there - 1.0..there + SLACK_MS).contains(&lag), row)
        });
    }
}

#[test]
fn an_outage_ends_where_it_began_and_a_bad_line_loses_nothing() {
    let cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    let rows = "select count(*), sum(id), sum(length(v)) from t";
    let until_same = || {
        let all = ready.must(&primary.writer, rows);
        until("the secondary has everything", || ready.sql(&second.reader, rows).and_then(|got| ensure(got == all, got)));
    };
    ready.must(&primary.writer, "create table t (id integer primary key, v text); insert into t values (0, 'first')");
    until_same();
    let seedings = || {
        cluster
            .events(&primary.name)
            .unwrap()
            .iter()
            .filter(|e| e["kind"] == "seeding_began" && e["region"] == primary.name.as_str())
            .count()
    };
    let seeded_before = seedings();

    // Nothing gets through in either direction: commits go on, the lag becomes unknown, readers see what was there.
    cluster.netem(&["set", &primary.name, &second.name, "blackhole=on", "--both"]);
    for i in 1..=40 {
        ready.must(&primary.writer, &format!("insert into t select value, 'unheard' from generate_series({i}00, {i}99)"));
    }
    for asked in [&primary.name, &second.name] {
        until("the cut is seen at both ends", || {
            let row = cluster.row(asked, &second.name)?;
            ensure(row["state"] == "disconnected" && row["lag_known"] == false && row["durability_lag_ms"].is_null(), row)
        });
    }
    assert_eq!(ready.must(&second.reader, "select count(*) from t"), "1");
    // Until the connection itself is given up: the healed link needs a new one, and a position to resume at.
    let wanted = |kind: &str| {
        let events = cluster.events(&primary.name)?;
        let found = events.iter().rev().find(|e| e["kind"] == kind).map(|e| e["what"].as_str().unwrap_or_default().to_owned());
        found.ok_or_else(|| format!("{events:?}"))
    };
    until("the connection is given up", || wanted("secondary_disconnected"));
    let before_heal = ready.must(&primary.writer, rows);
    cluster.netem(&["set", &primary.name, &second.name, "none", "--both"]);
    until("it resumes", || wanted("secondary_connected").and_then(|w| ensure(w.contains("resum"), w)));
    until_same();
    assert_eq!(ready.must(&second.reader, rows), before_heal);
    assert_eq!(seedings(), seeded_before, "nothing was sent a second time");
    cluster.until_whole();

    // One way only, for a moment shorter than a connection lasts: nobody reconnects, nothing is missing.
    cluster.netem(&["set", &primary.name, &second.name, "blackhole=on"]);
    ready.must(&primary.writer, "insert into t values (100000, 'into the hole')");
    cluster.netem(&["set", &primary.name, &second.name, "none"]);
    until_same();

    // Loss, reordering, duplicates and jitter while clients write.
    cluster.netem(&["set", "*", "*", "delay=10ms", "jitter=5ms", "loss=5%", "reorder=5%", "duplicate=5%"]);
    let through_link = "insert into t select value, 'bad line' from generate_series";
    for i in 0..20 {
        let from = 200_000 + i * 500;
        let address = if i % 4 == 0 { &second.writer } else { &primary.writer };
        ready.must(address, &format!("{through_link}({from}, {})", from + 499));
    }
    until_same();
    cluster.netem(&["set", "*", "*", "none"]);
    cluster.until_whole();
}
