//! Copies that are slow, and copies on other machines: nothing waits for them that need not.

mod common;

use common::{ByHand, Cluster, Ports, Ready, ensure, http_get, metric, parhelion, run, signal, tail, text, until, verb};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// The copies whose files belong to the process of that file: intact, and what `volume verify` says of each copy.
fn verified(config: &Path) -> (bool, Vec<Value>) {
    let (code, out, err) = verb(config, &["volume", "verify", "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!(code, Some(i32::from(report["intact"] != true)), "{report}{err}");
    (report["intact"] == true, report["copies"].as_array().cloned().unwrap())
}

/// All copies are looked at, are intact, and lie where `place` says.
fn all_intact(config: &Path, place: &[(&str, &str)]) {
    let (intact, copies) = verified(config);
    assert!(intact && copies.len() == 6 && copies.iter().all(|c| c["state"] == "intact"), "{copies:?}");
    for (name, place) in place {
        let copy = copies.iter().find(|c| c["name"] == *name).expect("one of six");
        assert_eq!(copy["directory"], Path::new(place).join(name).to_str().unwrap(), "{copy}");
    }
}

const ZONES: [&str; 3] = ["a", "b", "c"];

/// A region whose copies are in processes of their own, one for each zone.
struct Zones {
    dir: tempfile::TempDir,
    ports: Ports,
    ready: Ready,
    region: Option<ByHand>,
    zones: [Option<ByHand>; 3],
}

impl Zones {
    /// `remote`: the zones that are not in the region's process.
    fn new(remote: &[usize]) -> Zones {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::reserve(2);
        let base = ports.base;
        let [writer, reader, http, instance, other] = [1, 2, 3, 10, 100].map(|n| base + n);
        let copies: String = remote
            .iter()
            .flat_map(|z| [1, 2].map(|n| format!("{}{n} = \"127.0.0.1:{}\"\n", ZONES[*z], base + 50 + u16::try_from(*z).unwrap())))
            .collect();
        let region = format!(
            "cluster = \"sun\"\nregion = \"us\"\ndata_dir = \"data\"\nfounder = \"us\"\n\n[listen]\nquic = \"127.0.0.1:{base}\"\n\
             writer = \"127.0.0.1:{writer}\"\nreader = \"127.0.0.1:{reader}\"\nhttp = \"127.0.0.1:{http}\"\ninstance = \"127.0.0.1:{instance}\"\n\n\
             [copies]\n{copies}\n[tls]\ndir = \"certs\"\n\n[sql]\nuser = \"app\"\ndatabase = \"app\"\n\n\
             [[member]]\nregion = \"us\"\nquic = \"127.0.0.1:{base}\"\n\n[[member]]\nregion = \"eu\"\nquic = \"127.0.0.1:{other}\"\n"
        );
        std::fs::write(dir.path().join("us.toml"), region).unwrap();
        for (z, zone) in ZONES.iter().enumerate() {
            let port = base + 50 + u16::try_from(z).unwrap();
            let text = format!(
                "cluster = \"sun\"\nregion = \"us\"\ncopies = [\"{zone}1\", \"{zone}2\"]\ndata_dir = \"zone-{zone}\"\n\
                 listen = \"127.0.0.1:{port}\"\n\n[tls]\ndir = \"certs\"\n"
            );
            std::fs::write(dir.path().join(format!("zone-{zone}.toml")), text).unwrap();
        }
        let made = run(parhelion().args(["certs", "--config"]).arg(dir.path().join("us.toml")), "");
        assert!(made.status.success(), "{}", text(&made.stderr));
        let password = std::fs::read_to_string(dir.path().join("certs/sql-password")).unwrap().trim().to_owned();
        let ready = Ready { cluster: "sun".into(), user: "app".into(), password, database: "app".into(), regions: Vec::new() };
        let mut zones = Zones { dir, ports, ready, region: None, zones: [None, None, None] };
        for z in remote {
            zones.start_zone(*z);
        }
        zones.start_region();
        zones
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start_region(&mut self) {
        self.region = Some(ByHand::start(&self.file("us.toml"), &self.file("us.log")));
    }

    fn start_zone(&mut self, z: usize) {
        let (config, log) = (self.file(&format!("zone-{}.toml", ZONES[z])), self.file(&format!("zone-{}.log", ZONES[z])));
        let out = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = parhelion().args(["copy", "--config"]).arg(config).stdout(Stdio::null()).stderr(out).spawn().unwrap();
        self.zones[z] = Some(ByHand { child, log });
    }

    fn kill_zone(&mut self, z: usize) {
        self.zones[z].take().expect("it runs").kill();
    }

    fn writer(&self) -> String {
        format!("127.0.0.1:{}", self.ports.base + 1)
    }

    fn reader(&self) -> String {
        format!("127.0.0.1:{}", self.ports.base + 2)
    }

    fn insert(&self, id: u32) -> Result<String, String> {
        self.ready.sql(&self.writer(), &format!("insert into t values ({id}, 'v')"))
    }

    /// It may have been written although the answer was lost.
    fn until_inserted(&self, id: u32) {
        until("a row is written", || self.insert(id).map(drop).or_else(|e| if e.contains("23505") { Ok(()) } else { Err(e) }));
    }

    fn copy(&self, args: &[&str]) -> Result<String, String> {
        let output = run(parhelion().arg("copy").args(args).arg("--config").arg(self.file("us.toml")), "");
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn row(&self) -> Result<Value, String> {
        common::row(&common::json_of(parhelion().args(["status", "--json", "--config"]).arg(self.file("us.toml")))?, "us")
    }

    fn until_copy(&self, name: &str, state: &str) {
        until("the copy's state", || {
            let row = self.row()?;
            let copy = row["copies"].as_array().and_then(|c| c.iter().find(|c| c["name"] == name)).cloned().unwrap_or_default();
            ensure(copy["state"] == state, copy)
        });
    }

    /// All six are up, and equal.
    fn until_whole(&self) {
        until("all six are up and equal", || {
            let row = self.row()?;
            let copies = row["copies"].as_array().cloned().unwrap_or_default();
            let up = copies.iter().filter(|c| c["state"] == "up" && c["durable_lsn"] == row["durable_lsn"]).count();
            ensure(up == 6 && row["state"] == "writable", row)
        });
    }
}

impl Drop for Zones {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["us.log", "eu.log", "zone-a.log", "zone-b.log", "zone-c.log"] {
                eprintln!("--- {name}\n{}", tail(&self.file(name)));
            }
        }
    }
}

/// Inserts numbered rows, whatever the answers; those that were acknowledged.
fn insert_through_errors(ready: Ready, address: String, over: Arc<AtomicBool>) -> impl FnOnce() -> Vec<i64> {
    move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut acknowledged = Vec::new();
            let mut client = None;
            for n in 1.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                if client.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
                    client = ready.connect(&address).await.ok();
                }
                let inserted = match &client {
                    Some(client) => client.execute("insert into load (n) values ($1)", &[&n]).await.is_ok(),
                    None => false,
                };
                if inserted {
                    acknowledged.push(n);
                } else {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            }
            acknowledged
        })
    }
}

#[test]
fn zones_in_processes_of_their_own_die_and_return_and_nothing_is_lost() {
    let mut zones = Zones::new(&[0, 1, 2]);
    let (writer, reader, ready) = (zones.writer(), zones.reader(), zones.ready.clone());
    until("it writes", || {
        ready.sql(
            &writer,
            "create table if not exists t (id integer primary key, v text); create table if not exists load (n bigint primary key)",
        )
    });
    let over = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn(insert_through_errors(ready.clone(), writer.clone(), Arc::clone(&over)));
    zones.until_inserted(1);

    // A zone's process is killed: nothing stops.
    zones.kill_zone(2);
    zones.insert(2).unwrap();
    zones.until_copy("c1", "down");
    zones.insert(3).unwrap();
    assert_eq!(zones.row().unwrap()["state"], "writable");

    // A second one: writes stop with the reason, reads go on.
    zones.kill_zone(1);
    zones.until_copy("b2", "down");
    let refusal = until("writes are refused", || match zones.insert(4) {
        Ok(_) => Err("it was written".to_owned()),
        Err(e) => Ok(e),
    });
    assert!(refusal.contains("58030") || refusal.contains("40003"), "{refusal}");
    assert!(["missing: b", "c1 (", "c2 ("].iter().all(|c| refusal.contains(c)), "the copies are named: {refusal}");
    let row = zones.row().unwrap();
    assert!(row["reason"].as_str().is_some_and(|r| r.contains("parhelion copy")), "it says what to look at: {row}");
    for address in [&writer, &reader] {
        assert_eq!(ready.must(address, "select count(*) from t where id in (1, 2, 3)"), "3");
    }

    // One returns: writes resume by themselves. Then the other, and all are equal.
    zones.start_zone(1);
    zones.until_inserted(5);
    zones.start_zone(2);

    // A zone's process stands still with its connections open (D7): nothing stops, and what it missed it gets when it goes on.
    until("all are back", || ensure(zones.copy(&["list"])?.matches(" up ").count() == 6, "not yet"));
    let still = zones.zones[1].as_ref().expect("it runs").child.id();
    signal(still, Signal::STOP);
    for id in 100..120 {
        zones.insert(id).unwrap();
    }
    assert_eq!(zones.row().unwrap()["state"], "writable");
    assert_eq!(ready.must(&reader, "select count(*) from t where id >= 100"), "20");
    let missed = zones.row().unwrap()["durable_lsn"].as_u64().unwrap();
    signal(still, Signal::CONT);
    until("all six have it", || {
        let row = zones.row()?;
        let copies = row["copies"].as_array().cloned().unwrap_or_default();
        let whole = |c: &&Value| c["state"] == "up" && c["durable_lsn"].as_u64() >= Some(missed);
        ensure(copies.iter().filter(whole).count() == 6, &row)
    });

    // The region's process is killed and started again: it finds what was durable on the other machines.
    zones.region.take().unwrap().kill();
    zones.start_region();
    zones.until_inserted(6);
    over.store(true, Ordering::Relaxed);
    let acknowledged = load.join().unwrap();
    assert!(acknowledged.len() > 10, "{acknowledged:?}");
    zones.until_whole();
    for address in [&writer, &reader] {
        let there = ready.must(address, "select group_concat(n) from (select n from load order by n)");
        let there: BTreeSet<i64> = there.split(',').map(|n| n.parse().unwrap()).collect();
        let lost: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
        assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
    }

    // Drills reach them: two that are slow hold up nothing, and one that is stopped is down until it is started.
    for copy in ["a1", "b1"] {
        zones.copy(&["slow", copy, "--delay", FOR_EVER]).unwrap();
    }
    for i in 10..20 {
        zones.insert(i).unwrap();
        assert_eq!(ready.must(&reader, "select count(*) > 0 from t"), "1");
    }
    for copy in ["a1", "b1"] {
        zones.copy(&["slow", copy, "--delay", "0"]).unwrap();
    }
    zones.copy(&["stop", "b2"]).unwrap();
    zones.until_copy("b2", "down");
    assert!(zones.copy(&["list"]).unwrap().contains("stopped by an operator"));
    zones.insert(20).unwrap();
    zones.copy(&["start", "b2"]).unwrap();
    zones.until_whole();

    // What lies in other processes is said to be there, and verified by their files.
    let (intact, copies) = verified(&zones.file("us.toml"));
    assert!(intact && copies.len() == 6 && copies.iter().all(|c| c["state"] == "elsewhere"), "{copies:?}");
    let address = format!("127.0.0.1:{}", zones.ports.base + 51);
    assert!(copies[2]["name"] == "b1" && copies[2]["elsewhere"] == address.as_str(), "{copies:?}");
    let (code, shown, _) = verb(&zones.file("us.toml"), &["volume", "verify"]);
    assert!(code == Some(0) && shown.contains(&format!("elsewhere: {address}")) && shown.contains("no copy lives here"), "{shown}");
    for zone in ZONES {
        let (intact, copies) = verified(&zones.file(&format!("zone-{zone}.toml")));
        let names: Vec<String> =
            copies.iter().map(|c| format!("{} {}", c["name"].as_str().unwrap(), c["state"].as_str().unwrap())).collect();
        assert!(intact && names == [format!("{zone}1 intact"), format!("{zone}2 intact")], "{copies:?}");
    }
    zones.kill_zone(1);
    let file = zones.file("zone-b/copies/b1/MANIFEST");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (intact, copies) = verified(&zones.file("zone-b.toml"));
    assert!(!intact && copies[0]["state"] == "damaged" && copies[1]["state"] == "intact", "{copies:?}");
}

#[test]
fn another_regions_certificate_is_refused_by_copies_and_copies_of_another_region_by_a_region() {
    // Zone a in the region's process, the others not: any mix works.
    let mut zones = Zones::new(&[1, 2]);
    let ready = zones.ready.clone();
    until("it writes", || ready.sql(&zones.writer(), "create table if not exists t (id integer primary key, v text)"));
    zones.until_whole();

    // The neighbour's file names copies that are not its own.
    let base = zones.ports.base;
    let own = std::fs::read_to_string(zones.file("us.toml")).unwrap();
    let mut neighbour = own.replacen("region = \"us\"", "region = \"eu\"", 1).replacen("data_dir = \"data\"", "data_dir = \"eu-data\"", 1);
    for n in [0, 1, 2, 3, 10] {
        let (listen, members) = neighbour.split_once("[copies]").unwrap();
        neighbour = format!("{}[copies]{members}", listen.replacen(&format!(":{}\"", base + n), &format!(":{}\"", base + 100 + n), 1));
    }
    std::fs::write(zones.file("eu.toml"), neighbour).unwrap();
    let eu = ByHand::start(&zones.file("eu.toml"), &zones.file("eu.log"));
    until("the refusal is counted", || {
        let (_, page) = http_get(&format!("127.0.0.1:{}", base + 103), "/metrics")?;
        let count = metric(&page, "parhelion_refusals_total{kind=\"foreign_copies\"}");
        ensure(count.is_some_and(|c| c > 0.0), page.lines().filter(|l| l.contains("refused")).collect::<Vec<_>>().join("\n"))
    });
    let said = tail(&zones.file("eu.log"));
    assert!(said.contains("a region takes only copies of its own"), "{said}");
    eu.stop();
    // It cost nobody anything.
    zones.insert(1).unwrap();
    zones.until_whole();
    let (intact, copies) = verified(&zones.file("us.toml"));
    let states: Vec<&str> = copies.iter().map(|c| c["state"].as_str().unwrap()).collect();
    assert!(intact && states == ["intact", "intact", "elsewhere", "elsewhere", "elsewhere", "elsewhere"], "{copies:?}");
    for z in [1, 2] {
        zones.zones[z].take().unwrap().stop();
    }
    zones.until_copy("c2", "down");
    assert_eq!(ready.must(&zones.reader(), "select count(*) from t"), "1");
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
    all_intact(&primary.config, &[("a1", &new)]);
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
    // Whoever looks from outside follows the mark in the directory that it left.
    all_intact(&primary.config, &[("a1", &new)]);
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
    all_intact(&primary.config, &[("b2", &new)]);
    let refused = verb(&cluster, &["replace", "b2", "--cancel"]).unwrap_err();
    assert!(refused.contains("b2 is not being replaced"), "{refused}");
    assert_eq!(ready.must(&primary.writer, "select count(*) from t"), "1");
}
