//! The audit of real members: what was done to them, by whom, before it took effect; and that nobody changes it unnoticed.

mod common;

use common::two::Two;
use common::{ensure, must, until, verb};
use serde_json::Value;

fn kinds(audit: &Value) -> Vec<String> {
    audit["entries"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap().to_owned()).collect()
}

fn last<'a>(audit: &'a Value, kind: &str) -> &'a Value {
    audit["entries"].as_array().unwrap().iter().rfind(|e| e["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {audit}"))
}

#[test]
fn what_was_done_is_on_record_and_a_changed_entry_is_named() {
    let mut two = Two::start_with_table("");
    let ready = two.ready.clone();
    let (us, eu) = (ready.regions[0].clone(), ready.regions[1].clone());

    // Set from the other region, and a switchover: who, what, when, in which epoch, with the operation's id.
    let (code, _, err) = verb(&eu.config, &["set", "max_rpo=5s", "auto_failover=lossless"]);
    assert_eq!(code, Some(0), "{err}");
    let done = must(&eu.config, &["switchover", "--to", "eu-west", "--json"]);
    let id = done["id"].as_str().unwrap().to_owned();
    let old = must(&us.config, &["audit", "--json", "--verify"]);
    assert!(old["intact"] == true && old["compared"] == true && old["member"] == "us-east", "{old}");
    let set: Vec<&Value> = old["entries"].as_array().unwrap().iter().filter(|e| e["kind"] == "set").collect();
    assert!(set[0]["what"].as_str().unwrap().contains("max_rpo=5000ms") && set[1]["what"].as_str().unwrap().contains("lossless"), "{old}");
    assert!(set.iter().all(|e| e["actor"].as_str().unwrap().contains("by way of eu-west")), "{old}");
    let (order, seal) = (last(&old, "order"), last(&old, "seal"));
    assert_eq!((order["op"].as_str(), seal["op"].as_str()), (Some(id.as_str()), Some(id.as_str())), "{old}");
    assert!(order["no"].as_u64() < seal["no"].as_u64() && seal["durable_lsn"].as_u64() > Some(0) && seal["epoch"] == 1, "{old}");
    let new = must(&eu.config, &["audit", "--json", "--verify"]);
    let promotion = last(&new, "promotion");
    assert!(promotion["op"] == id.as_str() && promotion["epoch"] == done["epoch"] && promotion["at"].as_u64() > Some(0), "{new}");
    let ended = until("its end is on record", || {
        let new = must(&eu.config, &["audit", "--json"]);
        ensure(kinds(&new).contains(&"ended".to_owned()), &new).map(|()| new)
    });
    assert!(last(&ended, "ended")["what"].as_str().unwrap().ends_with("done"), "{ended}");
    // The witness says what it promised to whom; its own file asks it.
    let witness = must(&two.witness_file, &["audit", "--json", "--verify"]);
    assert!(witness["member"] == "witness" && last(&witness, "promise")["actor"] == "eu-west", "{witness}");
    let (code, people, _) = verb(&us.config, &["audit"]);
    assert!(code == Some(0) && people.contains("by way of eu-west") && people.contains("handed over to eu-west"), "{people}");
    // And what it knows of roles.
    let known = must(&two.witness_file, &["status", "--json"]);
    assert!(known["role"] == "witness" && known["primary"] == "eu-west" && known["votes"] == true, "{known}");
    let (_, people, _) = verb(&two.witness_file, &["status"]);
    assert!(people.contains("is a witness") && people.contains("primary: eu-west"), "{people}");

    // A crash tears the last line: it is cut off, said, and written again from what the copies keep.
    let log = us.data_dir.join("audit/log");
    let entries = old["entries_in_all"].as_u64().unwrap();
    two.stop_region(0);
    let whole = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, &whole[..whole.len() - 40]).unwrap();
    let (code, _, err) = verb(&us.config, &["audit", "--json", "--verify"]);
    assert!(code == Some(0) && err.contains("its files are read without it"), "{err}");
    two.start_region(0);
    let mended = until("it is whole again", || {
        let (code, out, err) = verb(&us.config, &["audit", "--json", "--verify"]);
        let audit: Value = serde_json::from_str(&out).map_err(|e| format!("{e} {err}"))?;
        ensure(code == Some(0) && audit["compared"] == true && audit["entries_in_all"].as_u64() >= Some(entries), &audit).map(|()| audit)
    });
    assert!(mended["intact"] == true, "{mended}");
    assert!(std::fs::read_to_string(two.log("us-east")).unwrap().contains("was torn after"), "it is said");

    // An entry that was changed is named, whether the region runs or not; and an entry that was taken out.
    let whole = std::fs::read_to_string(&log).unwrap();
    let (line, no) = (whole.lines().find(|l| l.contains("\"kind\":\"order\"")).expect("a line"), order["no"].as_u64().unwrap());
    std::fs::write(&log, whole.replace(line, &line.replace("eu-west", "us-east"))).unwrap();
    let found = |no: u64, words: &str| {
        let (code, out, err) = verb(&us.config, &["audit", "--verify", "--json"]);
        let audit: Value = serde_json::from_str(&out).unwrap();
        assert!(code == Some(4) && audit["first_broken"] == no && err.contains(words), "{code:?} {out} {err}");
    };
    found(no, &format!("entry {no} was changed"));
    std::fs::write(&log, whole.replace(&format!("{line}\n"), "")).unwrap();
    found(no, &format!("entry {no} is missing"));
    two.stop_region(0);
    found(no, &format!("entry {no} is missing"));
    two.start_region(0);
    until("it runs, and nothing was glossed over", || {
        let (code, out, _) = verb(&us.config, &["audit", "--verify", "--json"]);
        let audit: Value = serde_json::from_str(&out).map_err(|e| e.to_string())?;
        ensure(code == Some(4) && audit["compared"] == true && audit["first_broken"] == no, audit)
    });
}
