//! Merging with regions missing, the exact JSON keys, and what the table says of an unknown lag.

use super::*;
use crate::base::{CopyId, Layout};
use crate::node::report::{ArchivesReport, ControlReport, LagReport, RetentionReport, RulesReport, ScrubReport};

pub(crate) const NOW: UnixMicros = UnixMicros(1_795_171_265_000_000); // 10:41:05 UTC

pub(crate) fn name(text: &str) -> RegionName {
    RegionName::new(text).unwrap()
}

/// A healthy region: the primary, or a secondary 40 ms behind.
pub(crate) fn sample(region: &str, role: Role) -> RegionReport {
    let leads = role == Role::Primary;
    let ms = |v: f64| (!leads).then_some(v);
    RegionReport {
        cluster: "demo".into(),
        region: name(region),
        version: "0.1.0".into(),
        role,
        state: if leads { RegionState::Writable } else { RegionState::Streaming },
        reason: None,
        epoch: Epoch(1),
        lineage: None,
        primary: Some(name("us-east")),
        reported_at: NOW,
        written_lsn: Lsn(120),
        durable_lsn: Lsn(100),
        visible_lsn: Lsn(90),
        oldest_read_view_lsn: Lsn(80),
        disconnected_since: None,
        lag: LagReport {
            durability_ms: ms(40.0),
            rpo_ms: ms(40.5),
            visibility_ms: ms(41.0),
            durability_bytes: (!leads).then_some(20),
            visibility_bytes: (!leads).then_some(30),
            measured_at: (!leads).then_some(NOW),
            ..LagReport::default()
        },
        catching_up: None,
        retention: RetentionReport::default(),
        archives: ArchivesReport { count_max: 64, ..ArchivesReport::default() },
        copies: CopyId::all()
            .iter()
            .map(|c| CopyReport {
                name: c.to_string(),
                group: 0,
                az: c.az().to_string(),
                state: "up".into(),
                durable_lsn: Lsn(100),
                reason: None,
                place: None,
                damage: None,
                repair: None,
                scrub: ScrubReport::default(),
                low_on_room: false,
            })
            .collect(),
        volume: VolumeReport { segments: Some(1), used_bytes: Some(8192), ..VolumeReport::of(Layout::default()) },
        readers: 1,
        secondaries: if leads { ["eu-west", "ap-south"].map(seen).into() } else { Vec::new() },
        control: None,
    }
}

fn seen(region: &str) -> SecondaryReport {
    SecondaryReport {
        region: name(region),
        state: RegionState::Streaming,
        disconnected_since: None,
        shipped_lsn: Lsn(100),
        received_lsn: Lsn(99),
        durable_lsn: Lsn(97),
        visible_lsn: Lsn(95),
        bytes_in_flight: 1,
        catching_up: None,
        seed_pages_sent: 0,
        lag: LagReport::default(),
    }
}

fn members() -> Vec<RegionName> {
    ["us-east", "eu-west", "ap-south"].map(name).into()
}

fn healthy() -> BTreeMap<RegionName, Result<RegionReport, String>> {
    let roles = [("us-east", Role::Primary), ("eu-west", Role::Secondary), ("ap-south", Role::Secondary)];
    roles.into_iter().map(|(n, r)| (name(n), Ok(sample(n, r)))).collect()
}

fn merged(answers: &BTreeMap<RegionName, Result<RegionReport, String>>) -> ClusterStatus {
    merge(&name("eu-west"), NOW, &members(), answers, &None)
}

#[test]
fn a_healthy_cluster_in_the_documented_json() {
    let status = merged(&healthy());
    assert!(status.healthy() && status.notes.is_empty(), "{:?}", status.notes);
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!((&json["cluster"], &json["epoch"], &json["primary"]), (&"demo".into(), &1.into(), &"us-east".into()));
    let keys = [
        "name",
        "role",
        "state",
        "durable_lsn",
        "visible_lsn",
        "durability_lag_ms",
        "rpo_lag_ms",
        "visibility_lag_ms",
        "lag_known",
        "copies",
        "volume",
        "readers",
    ];
    for region in json["regions"].as_array().unwrap() {
        for key in keys {
            assert!(region.get(key).is_some(), "{key} is missing");
        }
        let copy = &region["copies"][5];
        assert_eq!((&copy["az"], &copy["state"], &copy["durable_lsn"]), (&"c".into(), &"up".into(), &100.into()));
    }
    let [primary, west] = [&json["regions"][0], &json["regions"][1]];
    assert_eq!((&primary["role"], &primary["state"], &primary["lag_known"]), (&"primary".into(), &"writable".into(), &true.into()));
    assert_eq!(primary["visibility_lag_ms"], 0.0, "the primary is not behind itself");
    assert_eq!((&west["visibility_lag_ms"], &west["durable_lsn"]), (&41.0.into(), &100.into()));
    assert_eq!(status.regions.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["us-east", "eu-west", "ap-south"]);
    let back: ClusterStatus = serde_json::from_value(json).unwrap();
    assert_eq!(back, status);
}

#[test]
fn a_silent_secondary_is_disconnected_with_what_the_primary_last_knew() {
    let mut answers = healthy();
    answers.insert(name("ap-south"), Err("no answer within 1.5 s".into()));
    if let Some(Ok(primary)) = answers.get_mut(&name("us-east")) {
        primary.secondaries[1].state = RegionState::Disconnected;
        primary.secondaries[1].disconnected_since = Some(UnixMicros(NOW.0 - 30_000_000));
    }
    let status = merged(&answers);
    let row = &status.regions[2];
    assert_eq!((row.role, row.state, row.answered, row.lag_known), (Role::Secondary, RegionState::Disconnected, false, false));
    assert_eq!((row.durable_lsn, row.visible_lsn), (Some(Lsn(97)), Some(Lsn(95))));
    let text = render(&status);
    assert!(text.contains("unknown since 10:40:35"), "{text}");
    assert!(text.contains("! ap-south does not answer (no answer within 1.5 s)"), "{text}");
    assert!(!status.healthy());
    let json = serde_json::to_value(&status).unwrap();
    assert!(json["regions"][2]["durability_lag_ms"].is_null() && json["regions"][2]["lag_known"] == false);
}

#[test]
fn a_silent_primary_is_still_named_and_what_it_had_is_unknown() {
    let mut answers = healthy();
    answers.insert(name("us-east"), Err("timed out".into()));
    for (region, since) in [("eu-west", 20), ("ap-south", 10)] {
        if let Some(Ok(r)) = answers.get_mut(&name(region)) {
            r.state = RegionState::Disconnected;
            r.disconnected_since = Some(UnixMicros(NOW.0 - since * 1_000_000));
            r.lag.unknown_since = r.disconnected_since;
        }
    }
    let status = merged(&answers);
    assert_eq!(status.primary, Some(name("us-east")));
    let row = &status.regions[0];
    assert_eq!((row.role, row.state, row.durable_lsn, row.lag_known), (Role::Primary, RegionState::Disconnected, None, false));
    assert_eq!(row.disconnected_since, Some(UnixMicros(NOW.0 - 10_000_000)), "the last time anyone heard it");
    // A lag that was measured before does not count: it is unknown, and no old figure is shown.
    assert_eq!((status.regions[1].visibility_lag_ms, status.regions[1].lag_known), (None, false));
    let text = render(&status);
    assert!(text.contains("unknown since 10:40:45") && !text.contains("41.0 ms"), "{text}");
}

#[test]
fn nobody_answers_or_nobody_knows_a_primary() {
    let nobody = members().into_iter().map(|m| (m, Err("timed out".to_owned()))).collect();
    let status = merged(&nobody);
    assert_eq!((status.primary.as_ref(), status.epoch), (None, Epoch(0)));
    assert!(status.regions.iter().all(|r| r.role == Role::Unknown && r.state == RegionState::Disconnected && r.readers.is_none()));
    assert!(render(&status).contains("primary not known"));
    let status = merged(&BTreeMap::new());
    assert_eq!(status.regions.len(), 3);
}

#[test]
fn the_newest_epoch_names_the_primary_and_the_deposed_one_is_told() {
    let mut answers = healthy();
    if let Some(Ok(west)) = answers.get_mut(&name("eu-west")) {
        *west = sample("eu-west", Role::Primary);
        (west.epoch, west.primary) = (Epoch(2), Some(name("eu-west")));
    }
    let status = merged(&answers);
    assert_eq!((status.epoch, status.primary.as_ref()), (Epoch(2), Some(&name("eu-west"))));
    assert!(status.notes.iter().any(|n| n.starts_with("us-east still believes it is the primary of epoch 1")), "{:?}", status.notes);
}

#[test]
fn the_worse_word_of_both_ends_holds() {
    let mut answers = healthy();
    if let Some(Ok(primary)) = answers.get_mut(&name("us-east")) {
        primary.secondaries[0].state = RegionState::Stalled;
        primary.secondaries[1].state = RegionState::Idle;
    }
    let status = merged(&answers);
    assert_eq!(status.regions[1].state, RegionState::Stalled);
    assert_eq!(status.regions[2].state, RegionState::Streaming);
    assert!(status.notes[0].contains("eu-west is connected and behind"));
}

#[test]
fn lost_tails_are_counted_and_said_before_a_copy_makes_no_more_of_them() {
    let with = |count: u32| {
        let mut report = sample("us-east", Role::Primary);
        report.archives = ArchivesReport { count, log_bytes: 4096, ..report.archives };
        merge(&name("us-east"), NOW, &[name("us-east")], &BTreeMap::from([(name("us-east"), Ok(report))]), &None)
    };
    let said = |count: u32| render(&with(count));
    assert!(!said(0).contains("lost tail"), "{}", said(0));
    assert!(said(1).contains("us-east keeps 1 lost tail of at most 64, 4.0 kB of log: parhelion salvage"), "{}", said(1));
    assert!(with(47).notes.iter().all(|n| !n.contains("lost tails")), "{:?}", with(47).notes);
    assert!(with(48).notes.iter().any(|n| n.contains("us-east keeps 48 lost tails") && n.contains("--drop")), "{:?}", with(48).notes);
}

#[test]
fn copies_are_one_mark_each_and_a_lost_quorum_is_a_sentence() {
    let mut answers = healthy();
    if let Some(Ok(primary)) = answers.get_mut(&name("us-east")) {
        for i in [3, 4, 5] {
            primary.copies[i].state = "down".into();
            primary.copies[i].reason = Some("stopped by an operator".into());
        }
        primary.copies[0].state = "catching_up".into();
        primary.state = RegionState::Fenced;
        primary.reason = Some("3 of 6 copies are up, 4 are needed".into());
    }
    let status = merged(&answers);
    let text = render(&status);
    assert!(text.contains("a:~+ b:+- c:--"), "{text}");
    assert!(text.contains("! writes are stopped: the primary us-east is fenced: 3 of 6"), "{text}");
    assert!(text.contains("4 are needed"), "{text}");
    assert_eq!(copy_marks(&[]), "?");
    let mut copies = sample("us-east", Role::Primary).copies;
    copies.extend(copies.clone().into_iter().map(|c| CopyReport { name: format!("{}.g1", c.name), group: 1, ..c }));
    copies[6].state = "down".into();
    assert_eq!(copy_marks(&copies), "a:++ b:++ c:++ | a:-+ b:++ c:++");
}

/// As a member of three would say it: `us-east` leads epoch 4, all vote.
fn roles(member: &str, role: &str) -> ControlReport {
    let leads = role == "primary";
    let voters = || ["ap-south", "eu-west", "us-east"].map(name).to_vec();
    ControlReport {
        member: name(member),
        role: role.into(),
        epoch: Some(Epoch(4)),
        primary: Some(name("us-east")),
        promised: Epoch(4),
        voters: voters(),
        voters_version: 1,
        votes: true,
        unproven: false,
        lease_left_ms: if leads { 4800 } else { 0 },
        voters_heard: if leads { voters() } else { Vec::new() },
        grant_left_ms: if leads { 0 } else { 5100 },
        writers_seen: u32::from(leads),
        rivals: Vec::new(),
        members_version: 0,
        witness: None,
        stale: Vec::new(),
        rules: leads.then_some(RulesReport { sync: 0, max_rpo_ms: Some(2000), pause_alone: false }),
        auto_failover: "lossless".into(),
        auto_failover_of_file: None,
        auto_failover_told: true,
        reason: None,
        operation: None,
        durations: Vec::new(),
        failovers: Vec::new(),
        peers: Vec::new(),
        certificate_days_left: None,
    }
}

fn with_roles(region: &str, role: Role) -> RegionReport {
    let word = if role == Role::Primary { "primary" } else { "secondary" };
    RegionReport { control: Some(Box::new(roles(region, word))), ..sample(region, role) }
}

#[test]
fn who_votes_and_what_is_left_of_the_lease_is_shown() {
    let mut answers = healthy();
    for (region, answer) in &mut answers {
        let role = answer.as_ref().unwrap().role;
        *answer = Ok(with_roles(region.as_str(), role));
    }
    let status = merged(&answers);
    assert_eq!(status.notes, Vec::<String>::new());
    let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
    assert_eq!((&json["lease_left_ms"], &json["writers_seen"], &json["rules"]["max_rpo_ms"]), (&4800.into(), &1.into(), &2000.into()));
    let voter = &json["voters"][1];
    assert_eq!((&voter["name"], &voter["answered"], &voter["promised"]), (&"eu-west".into(), &true.into(), &4.into()));
    assert_eq!((&voter["heard_by_primary"], &voter["witness"]), (&true.into(), &false.into()));
    let text = render(&status);
    assert!(text.contains("voters: ap-south epoch 4, eu-west epoch 4, us-east epoch 4"), "{text}");
    assert!(text.contains("lease: us-east may write for 4800.0 ms more") && text.contains("max_rpo"), "{text}");
}

#[test]
fn two_writers_two_histories_and_a_missing_majority_are_said_first_and_loudly() {
    let mut answers = healthy();
    answers.insert(name("us-east"), Ok(with_roles("us-east", Role::Primary)));
    let mut second = with_roles("eu-west", Role::Primary);
    second.lineage = Some(crate::node::report::LineageIdText("b".into()));
    second.control.as_mut().unwrap().epoch = Some(Epoch(5));
    answers.insert(name("eu-west"), Ok(second));
    let mut third = with_roles("ap-south", Role::Secondary);
    third.lineage = Some(crate::node::report::LineageIdText("a".into()));
    answers.insert(name("ap-south"), Ok(third));
    let status = merged(&answers);
    assert!(status.notes[0].starts_with("EMERGENCY: the regions hold 2 histories"), "{:?}", status.notes);
    assert!(status.notes[1].starts_with("EMERGENCY: 2 regions claimed to write"), "{:?}", status.notes);

    answers.insert(name("us-east"), Err("gone".into()));
    answers.insert(name("eu-west"), Err("gone".into()));
    let status = merged(&answers);
    assert!(status.notes.iter().any(|n| n.contains("2 of 3 are needed: without them no primary keeps its lease")), "{:?}", status.notes);
    assert_eq!(status.roles.lease_left_ms, None, "nobody who answers knows");
}

#[test]
fn the_end_of_a_certificate_is_said_in_time_of_a_witness_too() {
    let days = |region: Option<i64>, of_witness: Option<i64>| {
        let mut report = with_roles("us-east", Role::Primary);
        report.control.as_mut().unwrap().certificate_days_left = region;
        let word = ControlReport { certificate_days_left: of_witness, ..roles("witness", "witness") };
        let answers = BTreeMap::from([(name("us-east"), Ok(report))]);
        merge(&name("us-east"), NOW, &[name("us-east")], &answers, &Some((name("witness"), Ok(word)))).notes
    };
    assert!(days(Some(31), Some(300)).iter().all(|n| !n.contains("certificate")), "{:?}", days(Some(31), Some(300)));
    let said = days(Some(7), Some(30));
    assert!(said.iter().any(|n| n.starts_with("soon: the certificate of us-east ends in 7 days")), "{said:?}");
    assert!(said.iter().any(|n| n.starts_with("the certificate of witness ends in 30 days") && n.contains("--renew")), "{said:?}");
}

#[test]
fn a_silent_witness_is_missed() {
    let mut answers = healthy();
    let mut primary = with_roles("us-east", Role::Primary);
    let control = primary.control.as_mut().unwrap();
    control.voters = ["eu-west", "us-east", "witness"].map(name).to_vec();
    control.voters_version = 2;
    answers.insert(name("us-east"), Ok(primary));
    answers.insert(name("eu-west"), Ok(with_roles("eu-west", Role::Secondary)));
    let silent: WitnessAnswer = Some((name("witness"), Err("no answer".into())));
    let status = merge(&name("eu-west"), NOW, &members(), &answers, &silent);
    assert!(status.notes.iter().any(|n| n == "the witness witness does not answer (no answer); 2 of 3 are enough"), "{:?}", status.notes);
    let heard: WitnessAnswer = Some((name("witness"), Ok(ControlReport { grant_left_ms: 7, ..roles("witness", "witness") })));
    let status = merge(&name("eu-west"), NOW, &members(), &answers, &heard);
    let witness = status.roles.voters.iter().find(|v| v.witness).unwrap();
    assert_eq!((witness.name.as_str(), witness.answered, witness.grant_left_ms), ("witness", true, Some(7)));
}
