//! What scripts get, when the same command goes on, and what people read.

use super::*;
use crate::base::{Lsn, UnixMicros};
use crate::control::TouchedTable;
use crate::node::report::{CheckReport, LossReport, PhaseReport};

fn name(text: &str) -> RegionName {
    RegionName::new(text).unwrap()
}

fn op(kind: &str, to: &str, state: &str, epoch: u64) -> OperationReport {
    OperationReport {
        id: format!("{epoch:032x}"),
        kind: kind.into(),
        from: Some(name("us-east")),
        to: Some(name(to)),
        region: None,
        witness: None,
        epoch: Some(Epoch(epoch)),
        state: state.into(),
        phase: (state == "running").then(|| "seal".into()),
        reason: (state == "refused" || state == "superseded").then(|| "because".into()),
        by: name("us-east"),
        actor: "me@here".into(),
        dry_run: false,
        began_at: UnixMicros(1_795_171_265_000_000),
        write_gap_ms: Some(310),
        predicted_gap_ms: Some(170),
        phases: vec![PhaseReport { name: "check".into(), ms: 12 }, PhaseReport { name: "drain".into(), ms: 3 }],
        checks: vec![CheckReport { name: "lag".into(), ok: true, says: "eu-west is 0 bytes behind".into() }],
        loss: None,
    }
}

fn lost() -> LossReport {
    LossReport {
        sure: "at_least".into(),
        unheard_ms: Some(6200),
        bytes: 4096,
        commits_at_most: 9,
        ms: Some(400),
        alone_ms: 6000,
        base_lsn: Lsn(100),
        known_end_lsn: Lsn(4196),
    }
}

fn touched(table: &str, rows_changed: u64, keys: &[&str]) -> TouchedTable {
    let keys: Vec<String> = keys.iter().map(|k| (*k).to_owned()).collect();
    TouchedTable { table: table.into(), rows_changed, more: rows_changed - keys.len() as u64, keys }
}

fn reign(epoch: u64, primary: &str) -> ControlReport {
    let view = crate::control::Control::new(
        crate::control::Who {
            name: name("us-east"),
            regions: vec![name("us-east")],
            witness: None,
            has_data: true,
            settings: Default::default(),
            addrs: Default::default(),
        },
        None,
        Instant::ZERO,
        crate::base::Prng::new(1),
    )
    .view(Instant::ZERO);
    ControlReport { epoch: Some(Epoch(epoch)), primary: Some(name(primary)), ..ControlReport::of(&name("us-east"), &view, None, None) }
}

#[test]
fn a_switchovers_json_is_the_documented_one() {
    let value = switchover_json(&op("switchover", "eu-west", "done", 4));
    assert_eq!(value["id"], "00000000000000000000000000000004");
    assert_eq!(
        (&value["from"], &value["to"], &value["epoch"], &value["write_gap_ms"]),
        (&"us-east".into(), &"eu-west".into(), &4.into(), &310.into())
    );
    assert_eq!(value["phases"], json!([{ "name": "check", "ms": 12 }, { "name": "drain", "ms": 3 }]));
    let dry = switchover_json(&OperationReport { dry_run: true, ..op("switchover", "eu-west", "done", 4) });
    assert_eq!((&dry["dry_run"], &dry["predicted_gap_ms"], &dry["checks"][0]["ok"]), (&true.into(), &170.into(), &true.into()));
}

#[test]
fn a_failovers_json_has_every_documented_key_also_while_nothing_is_known() {
    let keys = [
        "id",
        "from",
        "to",
        "old_epoch",
        "new_epoch",
        "complete",
        "lost_commits",
        "lost_from_lsn",
        "lost_to_lsn",
        "lost_from_time",
        "lost_to_time",
        "archive",
    ];
    let done = OperationReport { loss: Some(lost()), ..op("failover", "eu-west", "done", 4) };
    let record = FailoverReport {
        id: done.id.clone(),
        from: name("us-east"),
        to: name("eu-west"),
        old_epoch: Epoch(3),
        new_epoch: Epoch(4),
        complete: true,
        lost_commits: Some(7),
        lost_from_lsn: Some(Lsn(100)),
        lost_to_lsn: Some(Lsn(4196)),
        lost_from_time: Some(UnixMicros(1)),
        lost_to_time: Some(UnixMicros(2)),
        began_at: UnixMicros(0),
        actor: "me".into(),
        unproven: false,
        wrote_beside: None,
        loss: lost(),
        touched: Some(vec![touched("accounts", 7, &["3", "5"]), touched("orders\u{1b}", 1, &["eu,1"])]),
        touched_tables_more: 3,
        touched_unknown: None,
        archive: Some("857c17c4654608b8".into()),
    };
    for value in [failover_json(&done, None), failover_json(&done, Some(&record)), json!(record)] {
        for key in keys {
            assert!(value.get(key).is_some(), "{key} in {value}");
        }
    }
    let unknown = failover_json(&done, None);
    assert!(unknown["lost_commits"].is_null() && unknown["complete"] == false && unknown["old_epoch"] == 3, "{unknown}");
    let said = text::failover(&record);
    assert!(said.contains("7 commits were lost, LSN 100 to 4196"), "{said}");
    assert!(said.contains("accounts: 7 rows, with the keys 3, 5 and 5 more") && said.contains("and 3 more tables"), "{said}");
    let opened = format!("kept by copies of us-east as archive 857c17c4654608b8; there: parhelion salvage {} --config FILE", record.id);
    assert!(said.contains(&opened), "{said}");
    assert_eq!(json!(record)["touched"][0], json!({ "table": "accounts", "rows_changed": 7, "keys": ["3", "5"], "more": 5 }));
    let unread = FailoverReport { touched: None, touched_unknown: Some("the disk is full".into()), ..record.clone() };
    assert!(text::failover(&unread).contains("which rows that were is not known: the disk is full"));
    let open = FailoverReport { complete: false, lost_commits: None, lost_to_lsn: None, ..record };
    let said = text::failover(&open);
    assert!(said.contains("9 commits at most") && said.contains("once us-east is back"), "{said}");
}

#[test]
fn the_same_command_goes_on_with_what_it_ordered() {
    let to = |r: &str| OrderKind::Switchover { to: name(r) };
    let running = [op("switchover", "eu-west", "running", 4)];
    assert!(continues(&to("eu-west"), &running, &reign(3, "us-east")).is_some());
    assert!(continues(&to("ap-south"), &running, &reign(3, "us-east")).is_none(), "to another region it is another order");
    let failover = OrderKind::Failover { to: name("eu-west"), consent: Consent::default(), primary_is_down: None };
    assert!(continues(&failover, &running, &reign(3, "us-east")).is_none());
    let done = [op("switchover", "eu-west", "done", 4)];
    assert!(continues(&to("eu-west"), &done, &reign(4, "eu-west")).is_some(), "the reign that it made holds");
    assert!(continues(&to("eu-west"), &done, &reign(5, "us-east")).is_none(), "roles have changed since: it is ordered anew");
    let refused = [op("switchover", "eu-west", "refused", 4)];
    assert!(continues(&to("eu-west"), &refused, &reign(4, "us-east")).is_none());
    let dry = [OperationReport { dry_run: true, ..op("switchover", "eu-west", "running", 4) }];
    assert!(continues(&to("eu-west"), &dry, &reign(4, "us-east")).is_none());
}

#[test]
fn each_end_has_its_exit_code() {
    let code = |state: &str| outcome(&op("switchover", "eu-west", state, 4)).map_or_else(|f| f.code, |()| 0);
    assert_eq!(["done", "refused", "failed", "superseded"].map(code), [0, REFUSED, FAILED, SUPERSEDED]);
    assert_eq!(unfinished(OpId(7), "interrupted", None).code, UNFINISHED);
    let failure = unfinished(OpId(7), "interrupted", Some(&op("switchover", "eu-west", "running", 4)));
    assert!(failure.message.contains("goes on without this command: it was in seal"), "{}", failure.message);
}

#[test]
fn an_id_may_be_shortened_as_long_as_it_is_the_only_one() {
    let known = [op("switchover", "a", "done", 0x1a), op("switchover", "a", "done", 0x1b)];
    let find = |given: &str| by_id(&known, given, |o| &o.id).map(|o| o.id.clone());
    assert!(find("0000000000000000000000000000001A").is_ok());
    assert!(find("00").unwrap_err().contains("more than one"));
    assert!(find("f").unwrap_err().contains("is not"));
    assert!(find("").is_err() && find("xyz").unwrap_err().contains("no id"));
}

#[test]
fn what_people_read_says_what_is_sure() {
    assert!(
        text::loss(&lost()).contains("as far as is known; and whatever the old primary committed in the 6200 ms"),
        "{}",
        text::loss(&lost())
    );
    assert!(text::loss(&LossReport { sure: "proven".into(), ..lost() }).contains("nothing, which is proven"));
    let done = text::ended(&op("switchover", "eu-west", "done", 4));
    assert_eq!(done, "done: eu-west is the primary of epoch 4; writes stood still for about 310 ms\n");
    let dry = text::ended(&OperationReport { dry_run: true, ..op("switchover", "eu-west", "done", 4) });
    assert!(dry.contains("+ lag: eu-west is 0 bytes behind") && dry.contains("would stand still for about 170 ms"), "{dry}");
    assert!(text::list(&[op("failover", "eu-west", "running", 4)]).contains("running (seal)"));
    assert!(text::whole(&op("switchover", "eu-west", "superseded", 4)).contains("superseded: because"));
}
