//! `parhelion drill` with real processes: two regions and a witness; there and back, refused, and left in the middle.

mod common;

use common::two::Two;
use common::{ensure, must, parhelion, signal, text, until, verb, wait};
use rustix::process::Signal;
use serde_json::Value;
use std::io::Read as _;
use std::process::Stdio;

#[test]
fn a_drill_goes_there_and_back_and_is_on_record() {
    let mut two = Two::start_with_table("");
    let ready = two.ready.clone();
    let (us, eu) = (ready.regions[0].clone(), ready.regions[1].clone());
    ready.must(&us.writer, "insert into t values (1)");
    let epoch = two.status(0).unwrap()["epoch"].as_u64().expect("an epoch");

    // What a switchover would be refused for, a drill is; and nothing was changed.
    for (to, said) in [("us-east", "us-east is the primary already"), ("mars", "mars")] {
        let (code, _, err) = verb(&eu.config, &["drill", "--to", to]);
        assert!(code == Some(4) && err.contains("refused, and nothing was changed") && err.contains(said), "{to}: {code:?} {err}");
    }
    assert_eq!(two.status(0).unwrap()["epoch"], epoch);

    let drill = must(&eu.config, &["drill", "--to", "eu-west", "--json"]);
    assert!(drill["verdict"] == "passed" && drill["from"] == "us-east" && drill["to"] == "eu-west" && drill["reason"].is_null(), "{drill}");
    for way in [&drill["there"], &drill["back"]] {
        assert!(way["write_gap_ms"].is_u64() && way["verified_ms"].is_u64() && way["id"].is_string(), "{drill}");
        let names: Vec<&str> = way["phases"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(["check", "drain", "seal", "activate", "verify"].iter().all(|p| names.contains(p)), "{drill}");
    }
    assert!(
        Some(epoch) < drill["there"]["epoch"].as_u64() && drill["there"]["epoch"].as_u64() < drill["back"]["epoch"].as_u64(),
        "{drill}"
    );
    assert_eq!(two.status(1).unwrap()["primary"], "us-east");
    ready.must(&us.writer, "insert into t values (2)");
    until("it is there", || ready.sql(&eu.reader, "select count(*) from t").and_then(|n| ensure(n == "2", n)));

    // Whoever looks later is told that it was one: in the audit of both, and in the events.
    for (region, way) in [(&us, "there"), (&eu, "back")] {
        let audit = must(&region.config, &["audit", "--json", "--verify"]);
        let entries = audit["entries"].as_array().unwrap();
        let order =
            entries.iter().find(|e| e["kind"] == "order" && e["op"] == drill[way]["id"]).unwrap_or_else(|| panic!("{way}: {audit}"));
        let actor = order["actor"].as_str().unwrap();
        assert!(actor.starts_with("a drill of ") && actor.contains("by way of eu-west"), "{order}");
    }
    let (code, out, err) = verb(&us.config, &["events", "--json"]);
    assert_eq!(code, Some(0), "{err}");
    let events: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of_drill = |kind: &str| {
        events.iter().filter(|e| e["kind"] == kind && e["actor"].as_str().is_some_and(|a| a.starts_with("a drill of"))).count()
    };
    assert!(of_drill("operation_began") >= 2 && of_drill("operation_ended") >= 2 && of_drill("operation_phase") >= 10, "{out}");

    // For people; and not while a region is away.
    let (code, out, err) = verb(&us.config, &["drill", "--to", "eu-west"]);
    assert!(code == Some(0) && out.contains("passed: us-east is the primary again and nothing was lost"), "{out}{err}");
    let epoch = two.status(0).unwrap()["epoch"].clone();
    two.kill_region(1);
    let (code, _, err) = verb(&us.config, &["drill", "--to", "eu-west"]);
    assert!(code == Some(4) && err.contains("a drill begins where everybody is well, and eu-west"), "{code:?} {err}");
    assert_eq!(two.status(0).unwrap()["epoch"], epoch);
}

/// Ctrl-C on the way there: the switchover goes on, the way back is not ordered, and the command that goes on is named.
#[test]
fn a_drill_that_is_interrupted_says_where_the_primary_is_and_what_goes_on() {
    let two = Two::start_with_table("drain = \"4s\"");
    let ready = two.ready.clone();
    let us = ready.regions[0].clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let open = runtime.block_on(async {
        let client = ready.connect(&us.writer).await.unwrap();
        client.batch_execute("begin; insert into t values (1)").await.unwrap();
        client
    });
    let mut command = parhelion();
    command.args(["drill", "--to", "eu-west", "--config"]).arg(&us.config).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut drill = command.spawn().expect("the program runs");
    until("the way there is under way", || {
        let ops = must(&us.config, &["op", "--json"]);
        let ops = ops["operations"].as_array().cloned().unwrap_or_default();
        ensure(ops.iter().any(|o| o["phase"] == "drain" && o["dry_run"] == false), ops)
    });
    signal(drill.id(), Signal::INT);
    assert_eq!(wait(&mut drill, "a drill that is interrupted").code(), Some(5));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    drill.stdout.take().expect("piped").read_to_end(&mut out).unwrap();
    drill.stderr.take().expect("piped").read_to_end(&mut err).unwrap();
    let (out, err) = (text(&out), text(&err));
    assert!(out.ends_with("interrupted\n"), "{out}");
    assert!(
        err.contains("the drill stopped on the way from us-east to eu-west: interrupted") && err.contains("goes on without this command"),
        "{err}"
    );
    assert!(err.contains("`parhelion switchover --to us-east` goes back"), "{err}");

    until("the switchover goes on by itself", || {
        let status = two.status(1)?;
        ensure(status["primary"] == "eu-west" && status["operation"]["state"] == "done", status)
    });
    drop(open);
    two.until_all_vote();
    // Nobody ordered the way back; the command that was named does.
    assert_eq!(two.status(1).unwrap()["primary"], "eu-west");
    let back = must(&us.config, &["switchover", "--to", "us-east", "--json"]);
    assert_eq!((back["from"].as_str(), back["to"].as_str(), back["state"].as_str()), (Some("eu-west"), Some("us-east"), Some("done")));
    until("it writes", || ready.sql(&us.writer, "insert into t values (2)").map(drop));
}
