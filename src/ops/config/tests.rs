use super::*;
use crate::control::AutoFailover;
use crate::io::quic::Congestion;

const GOOD: &str = r#"
cluster = "sun"
region = "us-east"
data_dir = "../data/us-east"
founder = "us-east"

[listen]
quic = "127.0.0.1:7400"
writer = "127.0.0.1:7401"
reader = "127.0.0.1:7402"
http = "127.0.0.1:7403"

[tls]
dir = "../certs"

[sql]
user = "app"
database = "app"

[[member]]
region = "us-east"
quic = "127.0.0.1:7400"

[[member]]
region = "eu-west"
quic = "127.0.0.1:7500"
"#;

fn load(text: &str) -> Result<Config, ConfigError> {
    load_env(text, &|_| None)
}

fn load_env(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let file = Path::new("regions/us-east.toml");
    Config::complete(parse(file, text)?, file, env)
}

fn error(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

#[test]
fn the_scrub_has_a_rate_and_a_period() {
    let with = |lines: &str| load(&format!("{GOOD}\n[volume]\n{lines}"));
    let limits = with("scrub_mb_per_s = 7\nscrub_every_s = 90").unwrap().limits;
    assert_eq!((limits.scrub_bytes_per_s, limits.scrub_every), (7 << 20, Duration::from_secs(90)));
    assert_eq!(with("scrub_mb_per_s = 0").unwrap().limits.scrub_bytes_per_s, 0);
    let refused = with("scrub_every_s = 0").unwrap_err().to_string();
    assert!(refused.contains("volume.scrub_every_s = 0"), "{refused}");
}

#[test]
fn a_good_file_is_completed() {
    let config = load(GOOD).unwrap();
    assert_eq!(config.data_dir, Path::new("regions/../data/us-east"));
    assert_eq!(config.tls_dir, Path::new("regions/../certs"));
    assert_eq!(config.sql.password_file, Path::new("regions/../certs/sql-password"));
    assert_eq!(config.listen.instance, "127.0.0.1:7410".parse().unwrap());
    assert_eq!(config.admin_addr(), "127.0.0.1:7400");
    assert_eq!(config.limits.secondaries_max, 5);
    assert_eq!(config.log.level, "info");
    assert_eq!(config.quic.congestion, Congestion::Cubic);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_known_ones() {
    let message = error(&GOOD.replace("founder = \"us-east\"", "founder = \"us-east\"\nprimary = \"us-east\""));
    assert!(message.starts_with("regions/us-east.toml:6: unknown key 'primary'; the keys here are 'cluster', 'region',"), "{message}");
    let message = error(&GOOD.replace("[tls]", "[tls]\ndri = \"x\""));
    assert_eq!(message, "regions/us-east.toml:14: unknown key 'dri'; the only key here is 'dir'");
    let message = error(&format!("{GOOD}\n[limits]\nreader = 3"));
    assert!(message.contains("unknown key 'reader'; the keys here are") && message.contains("'readers'"), "{message}");
}

#[test]
fn a_missing_key_is_named() {
    let message = error(&GOOD.replace("founder = \"us-east\"", ""));
    assert!(message.contains("the key 'founder' is missing: the region that creates the global cluster"), "{message}");
}

#[test]
fn a_sixth_secondary_is_refused() {
    let more: String = (2..7).map(|i| format!("\n[[member]]\nregion = \"r{i}\"\nquic = \"10.0.0.{i}:7400\"\n")).collect();
    let message = error(&format!("{GOOD}{more}"));
    assert!(message.contains("a global cluster has one primary and at most 5 secondaries, and here are 6"), "{message}");
    let raised = format!("{GOOD}{more}\n[limits]\nsecondaries_max = 6\n");
    assert_eq!(load(&raised).unwrap().members.len(), 7);
}

#[test]
fn members_that_do_not_fit_are_refused() {
    let alone = &GOOD[..GOOD.find("[[member]]\nregion = \"eu-west\"").unwrap()];
    assert!(error(alone).contains("at least 2 regions"));
    let message = error(&GOOD.replace("founder = \"us-east\"", "founder = \"us-west\""));
    assert!(message.contains("founder = \"us-west\" is not among the members (us-east, eu-west)"), "{message}");
    assert!(error(&GOOD.replace("region = \"eu-west\"", "region = \"us-east\"")).contains("listed twice"));
    assert!(error(&GOOD.replace("127.0.0.1:7500", "127.0.0.1")).contains("write host:port"));
    assert!(error(&GOOD.replace("127.0.0.1:7500", "0.0.0.0:7500")).contains("name its real address"));
    assert!(error(&GOOD.replace("region = \"eu-west\"", "region = \"EU west\"")).contains("cannot be a name"));
}

#[test]
fn other_machines_are_let_in_only_when_told() {
    let open = GOOD.replace("writer = \"127.0.0.1:7401\"", "writer = \"0.0.0.0:7401\"");
    let message = error(&open);
    assert!(message.contains("listen.writer = \"0.0.0.0:7401\" can be reached from other machines"), "{message}");
    load(&open.replace("[listen]", "[listen]\nexpose = true")).unwrap();
}

#[test]
fn addresses_and_bounds_are_checked() {
    assert!(error(&GOOD.replace("127.0.0.1:7402", "127.0.0.1:7401")).contains("listen.writer and listen.reader are both 127.0.0.1:7401"));
    assert!(error(&GOOD.replace("\"127.0.0.1:7403\"", "\"localhost:7403\"")).contains("write IP:port"));
    assert!(error(&format!("{GOOD}\n[limits]\nreaders = 0\n")).contains("limits.readers = 0: it must lie between 1 and 256"));
    assert!(error(&format!("{GOOD}\n[quic]\ncongestion = \"reno\"\n")).contains("'cubic'"));
    load(&GOOD.replace(":7402", ":0").replace(":7401", ":0")).unwrap();
}

#[test]
fn leases_and_the_witness_are_read_and_checked() {
    let plain = load(GOOD).unwrap();
    assert_eq!((plain.control, plain.witness.as_ref()), (ControlSettings::default(), None));
    assert_eq!(
        plain.founding_voters().voters,
        std::slice::from_ref(&plain.founder),
        "two regions without a witness have no majority without both"
    );
    let with = |text: &str| GOOD.replace("[tls]", &format!("{text}\n\n[tls]"));
    let full = load(&with(
        "[control]\nlease = \"3s\"\nrenew = \"0.5s\"\ndrain = \"250ms\"\nauto_failover = { max_loss = \"2s\" }\n[witness]\nquic = \"10.0.0.9:7400\"",
    ));
    let full = full.unwrap();
    let control = full.control;
    assert_eq!(
        (control.lease, control.renew, control.drain),
        (Duration::from_secs(3), Duration::from_millis(500), Duration::from_millis(250))
    );
    assert_eq!(control.auto_failover, Some(AutoFailover::MaxLoss(Duration::from_secs(2))));
    let witness = full.witness.clone().unwrap();
    assert_eq!((witness.name.as_str(), witness.quic.as_str()), ("witness", "10.0.0.9:7400"));
    let names = |voters: Vec<RegionName>| voters.iter().map(RegionName::to_string).collect::<Vec<_>>();
    assert_eq!(names(full.founding_voters().voters), ["eu-west", "us-east", "witness"]);
    assert_eq!(full.control_peers().iter().map(|p| p.subject).collect::<Vec<_>>(), [Subject::Region, Subject::Witness]);
    assert_eq!(load(&with("[control]\nlease = \"2s\"")).unwrap().control.renew, Duration::from_millis(500), "four in a lease");
    assert_eq!(load(&with("[control]\nauto_failover = \"lossless\"")).unwrap().control.auto_failover, Some(AutoFailover::Lossless));
    for auto in [AutoFailover::Off, AutoFailover::Lossless, AutoFailover::MaxLoss(Duration::from_millis(1500))] {
        assert_eq!(parse_auto_failover(&auto.to_string()), Ok(auto));
    }
    assert_eq!(parse_auto_failover("5s"), Ok(AutoFailover::MaxLoss(Duration::from_secs(5))));
    assert!(parse_auto_failover("always").unwrap_err().contains("write off, lossless, or max_loss=5s"));
    for (text, said) in [
        ("[control]\nlease = \"6\"", "control.lease = \"6\": write a time"),
        ("[control]\nlease = \"1ms\"", "it must lie between 500ms and 10m"),
        ("[control]\nlease = \"3s\"\nrenew = \"2s\"", "too long for a lease of 3s"),
        ("[control]\nauto_failover = \"on\"", "auto_failover is \"off\", \"lossless\", or a bound"),
        ("[control]\nauto_failover = true", "auto_failover is \"off\", \"lossless\", or a bound"),
        ("[control]\nauto_failover = { loss = \"5s\" }", "auto_failover has keys that mean nothing"),
        ("[control]\nauto_failover = { max_loss = \"much\" }", "control.auto_failover.max_loss = \"much\""),
        ("[control]\nleese = \"6s\"", "unknown key 'leese'"),
        ("[witness]\nname = \"eu-west\"\nquic = \"10.0.0.9:7400\"", "the witness is called eu-west, and so is a member"),
        ("[witness]\nquic = \"0.0.0.0:7400\"", "of the witness can be listened on but not reached"),
        ("[witness]\nquic = \"10.0.0.9:7400\"\nvotes = 2", "unknown key 'votes'"),
    ] {
        let message = error(&with(text));
        assert!(message.contains(said), "{text}: {message}");
    }
}

#[test]
fn a_witness_beside_a_region_is_warned_of() {
    let zoned = GOOD.replace("quic = \"127.0.0.1:7500\"", "quic = \"127.0.0.1:7500\"\nzone = \"fra\"");
    let with =
        |zone: &str| load(&zoned.replace("[tls]", &format!("[witness]\nquic = \"10.0.0.9:7400\"\nzone = \"{zone}\"\n\n[tls]"))).unwrap();
    assert_eq!(with("dub").warnings(), Vec::<String>::new());
    let warned = with("fra").warnings();
    assert!(warned.len() == 1 && warned[0].contains("in the zone of eu-west (fra)"), "{warned:?}");
}

#[test]
fn the_environment_overrides() {
    let env = |name: &str| match name {
        "PARHELION_DATA_DIR" => Some("/srv/p".to_owned()),
        "PARHELION_LOG" => Some("debug".to_owned()),
        "PARHELION_LOG_FORMAT" => Some("json".to_owned()),
        _ => None,
    };
    let config = load_env(GOOD, &env).unwrap();
    assert_eq!((config.data_dir.as_path(), config.log.level.as_str()), (Path::new("/srv/p"), "debug"));
    assert_eq!(config.log.format, LogFormat::Json);
    let bad = load_env(GOOD, &|name| (name == "PARHELION_LOG_FORMAT").then(|| "xml".to_owned())).unwrap_err().to_string();
    assert!(bad.contains("text or json"), "{bad}");
}

#[test]
fn what_is_rendered_reads_back_the_same() {
    let file = Path::new("a/b.toml");
    let full = format!("{GOOD}\n[netem]\ncontrol = \"../netem.sock\"\n[limits]\nreaders = 2\n[log]\nformat = \"json\"\n");
    let raw = parse(file, &full).unwrap();
    let text = render(&raw);
    assert_eq!(render(&parse(file, &text).unwrap()), text);
    let config = Config::complete(parse(file, &text).unwrap(), file, &|_| None).unwrap();
    assert_eq!(config.netem_control.as_deref(), Some(Path::new("a/../netem.sock")));
    assert_eq!(config.serving.readers, 2);
}

#[test]
fn the_example_of_three_regions_fits_together() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("regions");
    let names = ["us-east", "eu-west", "ap-northeast"];
    let configs: Vec<Config> = names.iter().map(|n| Config::load_with(&dir.join(format!("{n}.toml")), &|_| None).unwrap()).collect();
    let mut ports = std::collections::BTreeSet::new();
    let mut dirs = std::collections::BTreeSet::new();
    for (name, config) in names.iter().zip(&configs) {
        assert_eq!(config.region.as_str(), *name);
        assert_eq!((&config.cluster, &config.founder), (&configs[0].cluster, &configs[0].founder));
        assert_eq!(config.members, configs[0].members);
        assert_eq!(config.admin_addr(), config.listen.quic.to_string());
        let l = &config.listen;
        for addr in [l.quic, l.writer, l.reader, l.http, l.instance] {
            assert!(ports.insert(addr), "{addr} twice");
        }
        assert!(dirs.insert(config.data_dir.clone()));
    }
}

#[test]
fn the_example_of_three_zones_fits_together() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("regions");
    let region = Config::load_with(&dir.join("zones/us-east.toml"), &|_| None).unwrap();
    let plain = Config::load_with(&dir.join("us-east.toml"), &|_| None).unwrap();
    // Two of the three, so that the region starts without anybody else's vote.
    assert_eq!((&region.members[..], &region.listen), (&plain.members[..2], &plain.listen));
    assert_eq!(region.copies.len(), 6);
    for zone in ["zone-a", "zone-b", "zone-c"] {
        let copies = crate::ops::copy::config::CopyConfig::load(&dir.join(format!("zones/{zone}.toml"))).unwrap();
        assert_eq!((&copies.cluster, &copies.region), (&region.cluster, &region.region));
        assert_eq!(copies.tls_dir.file_name(), region.tls_dir.file_name());
        assert!(copies.copies.len() == 2 && copies.copies.iter().all(|c| region.copies[c] == copies.listen.to_string()), "{zone}");
    }
}

#[test]
fn where_copies_are_is_checked() {
    let with = |line: &str| GOOD.replace("[tls]", &format!("[copies]\n{line}\n\n[tls]"));
    assert_eq!(load(&with("b1 = \"10.0.0.2:7480\"")).unwrap().copies, BTreeMap::from([(CopyId(2), "10.0.0.2:7480".to_owned())]));
    for (line, said) in [
        ("d1 = \"10.0.0.2:7480\"", "the six are a1 a2 b1 b2 c1 c2"),
        ("b1 = \"10.0.0.2\"", "write host:port"),
        ("b1 = \"0.0.0.0:7480\"", "name its real address"),
    ] {
        let message = error(&with(line));
        assert!(message.contains("[copies]") && message.contains(said), "{message}");
    }
}

#[test]
fn a_password_file_is_read_only_when_it_is_private() {
    use std::os::unix::fs::OpenOptionsExt as _;
    let tmp = tempfile::tempdir().unwrap();
    let mut config = load(GOOD).unwrap();
    config.sql.password_file = tmp.path().join("pw");
    let missing = config.password().unwrap_err().to_string();
    assert!(missing.ends_with("run: parhelion certs --config regions/us-east.toml"), "{missing}");
    let write = |mode: u32, text: &str| {
        let _ = std::fs::remove_file(tmp.path().join("pw"));
        let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(tmp.path().join("pw")).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    };
    write(0o644, "secret\n");
    assert!(config.password().unwrap_err().to_string().contains("chmod 600"));
    write(0o600, "\n");
    assert!(config.password().unwrap_err().to_string().contains("is empty"));
    write(0o600, "secret\n");
    assert_eq!(config.password().unwrap(), "secret");
}
