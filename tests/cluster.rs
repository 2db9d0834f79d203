//! Whole clusters through crashes: what "done" means, acknowledged commits, and copies that come and go.

mod common;

use common::{ByHand, Cluster, Ports, Ready, ensure, runs, until};
use parhelion::base::Prng;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Rows, and a sum that no lost or doubled row leaves alone.
fn content(ready: &Ready, address: &str) -> Result<String, String> {
    ready.sql(address, "select count(*), sum(id), sum(id * length(v)) from t")
}

fn until_equal(cluster: &Cluster, address: &str, expected: &str) {
    until("the rows are there", || {
        let got = content(&cluster.ready, address)?;
        ensure(got == expected, format!("{got}, expected {expected}"))
    });
}

fn until_equal_everywhere(cluster: &Cluster) -> String {
    let expected = content(&cluster.ready, &cluster.primary().writer).expect("the primary reads");
    for region in &cluster.ready.regions {
        until_equal(cluster, &region.reader, &expected);
    }
    expected
}

#[test]
fn a_scripted_session_survives_every_crash_and_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("demo");
    let mut cluster = Cluster::start_in(dir.clone(), Ports::reserve(3), &["--regions", "3", "--profile", "world"]);
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    assert_eq!(ready.regions.iter().map(|r| r.role.as_str()).collect::<Vec<_>>(), ["primary", "secondary", "secondary"]);

    // 10,000 rows, one by one, in one go, and in bulk.
    ready.must(&primary.writer, "create table t (id integer primary key, v text not null)");
    let single: String = (1..=3000).map(|i| format!("insert into t values ({i}, 'row {i}');\n")).collect();
    ready.must(&primary.writer, &format!("begin;\n{single}commit;"));
    let many: Vec<String> = (3001..=6000).map(|i| format!("({i}, 'row {i}')")).collect();
    ready.must(&primary.writer, &format!("insert into t values {}", many.join(",")));
    ready.must(&primary.writer, "insert into t select value, 'row ' || value from generate_series(6001, 10000)");
    let all = until_equal_everywhere(&cluster);
    assert!(all.starts_with("10000|50005000|"), "{all}");

    // A secondary dies; the demo says so, and does not bring it back by itself.
    cluster.kill_region(&second.name);
    let said = until("the demo reports the death", || {
        let output = cluster.output();
        let line = output.lines().find(|l| l.contains(&format!("pid {}", second.pid)) && l.contains("SIGKILL"));
        line.map(str::to_owned).ok_or(output.clone())
    });
    assert!(said.contains(&second.name) && said.contains(&format!("parhelion region --config {}", second.config.display())), "{said}");
    ready.must(&primary.writer, "insert into t select value, 'while away' from generate_series(10001, 10100)");
    until("the primary knows that it is gone", || {
        let row = cluster.row(&primary.name, &second.name)?;
        ensure(row["state"] == "disconnected" && row["lag_known"] == false && row["durability_lag_ms"].is_null(), row)
    });
    assert!(std::net::TcpStream::connect(&second.reader).is_err(), "nobody started it again");
    cluster.start_region(&second.name);
    until_equal_everywhere(&cluster);
    until("the demo sees it back", || ensure(cluster.output().contains(&format!("{} is back", second.name)), cluster.output()));

    // The primary dies. What it acknowledged is everywhere, reads go on without it, and it comes back as it was.
    let before = content(&ready, &primary.writer).unwrap();
    cluster.kill_region(&primary.name);
    for region in cluster.secondaries() {
        assert_eq!(content(&ready, &region.reader).unwrap(), before);
    }
    // Asked by its file, another region answers for it.
    let status = cluster.status_of(&primary.name).unwrap();
    assert!(status["answered_by"] != primary.name.as_str() && status["primary"] == primary.name.as_str(), "{status}");
    assert!(common::row(&status, &primary.name).is_ok_and(|r| r["state"] == "disconnected" && r["answered"] == false), "{status}");
    cluster.start_region(&primary.name);
    until("the primary reads again", || {
        let got = content(&ready, &primary.writer)?;
        ensure(got == before, got)
    });
    ready.must(&primary.writer, "insert into t values (20000, 'after')");
    let after = until_equal_everywhere(&cluster);
    assert!(after.starts_with("10101|"), "{after}");
    cluster.until_whole();

    // Ctrl-C: a clean end, and nothing left behind.
    let third = cluster.secondaries()[1].clone();
    assert!(runs(third.pid));
    let status = cluster.interrupt();
    assert_eq!(status.code(), Some(0), "{}", cluster.output());
    assert!(!runs(third.pid), "the demo's own region ended with it");
    assert!(!cluster.ready_file.exists(), "what is not ready has no ready file");
    cluster.stop_region(&primary.name);
    cluster.stop_region(&second.name);
    drop(cluster);

    // The same directory again, on other ports.
    let cluster = Cluster::start_in(dir, Ports::reserve(3), &[]);
    assert_eq!(cluster.ready.password, ready.password);
    assert_eq!(cluster.names(), ready.regions.iter().map(|r| r.name.clone()).collect::<Vec<_>>());
    assert_eq!(content(&cluster.ready, &cluster.primary().writer).unwrap(), after);
    cluster.ready.must(&cluster.primary().writer, "insert into t values (20001, 'again')");
    assert!(until_equal_everywhere(&cluster).starts_with("10102|"));
}

const CLIENTS: usize = 4;

/// Inserts numbered rows until the first error, or until it is over (a session on a secondary's writer port may outlive the primary's process), and
/// counts them in another table in the same transaction; the last one acknowledged.
async fn insert_until_it_breaks(
    ready: Ready,
    address: String,
    who: usize,
    from: u64,
    acknowledged: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
) -> u64 {
    let who = i64::try_from(who).unwrap();
    let mut last = from;
    let Ok(mut client) = ready.connect(&address).await else { return last };
    while !over.load(Ordering::Relaxed) {
        let n = i64::try_from(last + 1).unwrap();
        let one = async {
            let transaction = client.transaction().await?;
            transaction.execute("insert into acked (who, n) values ($1, $2)", &[&who, &n]).await?;
            transaction.execute("insert or replace into counters (who, n) values ($1, $2)", &[&who, &n]).await?;
            transaction.commit().await
        };
        match one.await {
            Ok(()) => {
                last += 1;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => break,
        }
    }
    last
}

#[test]
fn every_acknowledged_commit_survives_a_kill_of_the_primary_under_load() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(
        &primary.writer,
        "create table acked (who bigint, n bigint, primary key (who, n)); create table counters (who bigint primary key, n bigint)",
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut prng = Prng::new(u64::from(std::process::id()));
    let mut acked = [0u64; CLIENTS];
    for round in 0..5u64 {
        let (count, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|who| {
                // Two come through the secondary's writer port.
                let address = if who % 2 == 0 { &primary.writer } else { &second.writer };
                let (count, over) = (Arc::clone(&count), Arc::clone(&over));
                runtime.spawn(insert_until_it_breaks(ready.clone(), address.clone(), who, acked[who], count, over))
            })
            .collect();
        let enough = 20 + prng.below(400);
        until("the load runs", || ensure(count.load(Ordering::Relaxed) >= enough, count.load(Ordering::Relaxed)));
        cluster.kill_region(&primary.name);
        // Now and then everything dies at once.
        let both = round % 2 == 1;
        if both {
            cluster.kill_region(&second.name);
        }
        cluster.start_region(&primary.name);
        if both {
            cluster.start_region(&second.name);
        }
        over.store(true, Ordering::Relaxed);
        for (who, client) in clients.into_iter().enumerate() {
            acked[who] = runtime.block_on(client).unwrap();
        }
        let counted = "select who, count(*), max(n), (select n from counters c where c.who = acked.who) from acked group by who";
        let there = until("the primary is back", || ready.sql(&primary.writer, counted));
        let there: Vec<Vec<u64>> = there.lines().map(|l| l.split('|').map(|c| c.parse().unwrap()).collect()).collect();
        for (who, last) in acked.iter_mut().enumerate().filter(|(_, last)| **last > 0) {
            let row = there.iter().find(|r| r[0] == who as u64).unwrap_or_else(|| panic!("round {round}: {who} has lost all of {last}"));
            assert_eq!(row[1], row[2], "round {round}: no holes in the rows of {who}: {there:?}");
            assert_eq!(row[2], row[3], "round {round}: a transaction of {who} is there as a whole or not at all: {there:?}");
            assert!(row[2] >= *last, "round {round}: {last} was acknowledged to {who} and {} is there", row[2]);
            assert!(row[2] <= *last + 1, "round {round}: only the statement without an answer may be there, too: {there:?}, {last}");
            *last = row[2];
        }
        // The forwarded clients need the link.
        until("the secondary's writer port works", || ready.sql(&second.writer, "select 1"));
    }
    let all = ready.must(&primary.writer, "select count(*), sum(n * (who + 1)) from acked");
    until("the secondary has the same", || {
        let there = ready.sql(&second.reader, "select count(*), sum(n * (who + 1)) from acked")?;
        ensure(there == all, there)
    });
    cluster.until_whole();
}

/// Inserts numbered rows, whatever the answers; those that were acknowledged.
fn insert_through_errors(ready: Ready, address: String, over: Arc<AtomicBool>) -> impl FnOnce() -> Vec<i64> {
    move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = ready.connect(&address).await.unwrap();
            let insert = client.prepare("insert into load (n) values ($1)").await.unwrap();
            let mut acknowledged = Vec::new();
            for n in 1.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                match client.execute(&insert, &[&n]).await {
                    Ok(_) => acknowledged.push(n),
                    Err(e) => {
                        let said = common::sql::said(&e);
                        assert!(said.contains("58030") || said.contains("40003"), "{said}");
                        // Refused at once: no reason to ask a thousand times a second.
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    }
                }
            }
            acknowledged
        })
    }
}

#[test]
fn copies_stop_and_return_and_nothing_is_lost() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key, v text not null); create table load (n bigint primary key)");
    let insert = |id: u32| ready.sql(&primary.writer, &format!("insert into t values ({id}, 'v')"));
    let copy = |what: &str, id: &str| cluster.verb(&primary.name, &["copy", what, id]).unwrap();
    let state_of = |id: &str| {
        let copies = cluster.row(&second.name, &primary.name)?["copies"].clone();
        let copy = copies.as_array().and_then(|c| c.iter().find(|c| c["name"] == id)).cloned();
        copy.map(|c| c["state"].as_str().unwrap_or_default().to_owned()).ok_or(copies.to_string())
    };
    let is_down = |id: &str| until("the copy is down", || state_of(id).and_then(|s| ensure(s == "down", s)));
    insert(1).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn(insert_through_errors(ready.clone(), primary.writer.clone(), Arc::clone(&over)));

    // An AZ: nothing stops.
    copy("stop", "a1");
    copy("stop", "a2");
    is_down("a1");
    is_down("a2");
    insert(2).unwrap();
    assert_eq!(cluster.row(&primary.name, &primary.name).unwrap()["state"], "writable");

    // A third: writes stop with a clear error, reads go on.
    copy("stop", "b1");
    is_down("b1");
    let refusal = until("writes are refused", || match insert(3) {
        Ok(_) => Err("it was written".to_owned()),
        Err(e) => Ok(e),
    });
    assert!(refusal.contains("58030") || refusal.contains("40003"), "{refusal}");
    assert!(["a1", "a2", "b1"].iter().all(|c| refusal.contains(c)), "the copies are named: {refusal}");
    let row = cluster.row(&second.name, &primary.name).unwrap();
    assert!(row["state"] != "writable" && row["reason"].as_str().is_some_and(|r| r.contains("b1")), "{row}");
    for address in [&primary.writer, &primary.reader, &second.reader, &second.writer] {
        assert_eq!(ready.must(address, "select v from t where id = 2"), "v");
    }

    // One returns: writes resume by themselves.
    copy("start", "b1");
    until("writes resume", || insert(4).map(|_| ()).or_else(|e| if e.contains("23505") { Ok(()) } else { Err(e) }));
    copy("start", "a1");
    copy("start", "a2");
    // All of an AZ and one more, and back at once: who was waiting for a commit gets it.
    for id in ["c1", "c2", "b2"] {
        copy("stop", id);
    }
    for id in ["b2", "c2", "c1"] {
        copy("start", id);
    }
    until("writes resume", || insert(5).map(drop).or_else(|e| if e.contains("23505") { Ok(()) } else { Err(e) }));
    over.store(true, Ordering::Relaxed);
    let acknowledged = load.join().unwrap();
    assert!(!acknowledged.is_empty());
    cluster.until_whole();
    let there = ready.must(&second.reader, "select group_concat(n) from (select n from load order by n)");
    let there: BTreeSet<i64> = there.split(',').map(|n| n.parse().unwrap()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
    assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
    let ids = ready.must(&second.reader, "select group_concat(id) from (select id from t order by id)");
    assert!(ids == "1,2,4,5" || ids == "1,2,3,4,5", "{ids}");

    // A copy that is gone and one with a flipped byte: both are rebuilt from their peers.
    ready.must(&primary.writer, "insert into t select value, 'much ' || value from generate_series(1000, 9000)");
    let before = until_equal_everywhere(&cluster);
    cluster.kill_region(&primary.name);
    let copies = primary.data_dir.join("copies");
    std::fs::remove_dir_all(copies.join("c2")).unwrap();
    flip_in_the_middle(&copies.join("b1"));
    cluster.start_region(&primary.name);
    until("all rows are there", || content(&ready, &primary.writer).and_then(|got| ensure(got == before, got)));
    ready.must(&primary.writer, "insert into t values (20000, 'after')");
    let whole = cluster.until_whole();
    assert_eq!(whole["primary"], primary.name.as_str());
    until_equal_everywhere(&cluster);
}

/// One byte, in the middle of what the copy has logged.
fn flip_in_the_middle(copy: &std::path::Path) {
    let mut logs: Vec<_> =
        std::fs::read_dir(copy).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
    logs.sort();
    let mut bytes = std::fs::read(&logs[0]).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).expect("something is logged");
    bytes[end / 2] ^= 0x10;
    std::fs::write(&logs[0], bytes).unwrap();
}

fn kinds(cluster: &Cluster, kind: &str) -> Vec<String> {
    let events = cluster.events(&cluster.primary().name).unwrap();
    let own = events.iter().filter(|e| e["region"] == cluster.primary().name.as_str());
    own.filter(|e| e["kind"] == kind).map(|e| e["what"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_secondary_that_was_away_resumes_and_an_empty_one_is_seeded() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("demo");
    let mut cluster = Cluster::start_in(dir.clone(), Ports::reserve(3), &["--regions", "2", "--profile", "us"]);
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key, v blob)");
    let seeded = kinds(&cluster, "seeding_began").len();

    // More than the memory of the sender: what is missing comes from the copies, from the exact position on.
    cluster.kill_region(&second.name);
    let insert = |from: u32| {
        let one = |i: u32| format!("insert into t values ({i}, randomblob(200000));\n");
        ready.must(&primary.writer, &(from..from + 150).map(one).collect::<String>());
    };
    insert(1);
    cluster.start_region(&second.name);
    until_equal_everywhere(&cluster);
    assert_eq!(kinds(&cluster, "seeding_began").len(), seeded, "the log was enough");
    assert!(kinds(&cluster, "secondary_connected").last().is_some_and(|w| w.contains("resum")));

    // Nothing left of it: pages at a position, then the log; and a crash in the middle of that is one more restart.
    cluster.kill_region(&second.name);
    std::fs::remove_dir_all(&second.data_dir).unwrap();
    cluster.start_region(&second.name);
    until("the seeding begins", || ensure(kinds(&cluster, "seeding_began").len() > seeded, "no event"));
    cluster.kill_region(&second.name);
    insert(1001);
    cluster.start_region(&second.name);
    until_equal_everywhere(&cluster);
    cluster.until_whole();
    let all = content(&ready, &primary.writer).unwrap();

    // A third region joins a cluster that has data.
    assert_eq!(cluster.interrupt().code(), Some(0));
    cluster.stop_region(&second.name);
    drop(cluster);
    let cluster = Cluster::start_in(dir, Ports::reserve(3), &["--regions", "3"]);
    assert_eq!(cluster.ready.regions.len(), 3);
    assert_eq!(until_equal_everywhere(&cluster), all);
    cluster.until_whole();
}

#[test]
fn a_frozen_process_is_seen_and_goes_on_when_it_thaws() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key, v text not null)");
    cluster.until_whole();

    common::signal(second.pid, Signal::STOP);
    ready.must(&primary.writer, "insert into t values (1, 'v')");
    until("it does not answer", || {
        let row = cluster.row(&primary.name, &second.name)?;
        ensure(row["answered"] == false && row["lag_known"] == false && row["state"] == "disconnected", row)
    });
    common::signal(second.pid, Signal::CONT);
    until_equal_everywhere(&cluster);

    common::signal(primary.pid, Signal::STOP);
    until("the secondary is alone", || {
        let row = cluster.row(&second.name, &second.name)?;
        ensure(row["state"] == "disconnected" && row["lag_known"] == false && row["visibility_lag_ms"].is_null(), row)
    });
    assert_eq!(ready.must(&second.reader, "select v from t"), "v");
    common::signal(primary.pid, Signal::CONT);
    until("it writes again", || ready.sql(&second.writer, "insert or replace into t values (2, 'v')").map(drop));
    until_equal_everywhere(&cluster);

    // The demo itself is killed: nothing of it stays behind, and the next one takes over where it ended.
    let all = content(&ready, &primary.writer).unwrap();
    let dir = cluster.dir.clone();
    cluster.kill_demo();
    until("the regions end with it", || ensure(!runs(primary.pid) && !runs(second.pid), "they run"));
    let again = Cluster::start_in(dir, Ports::reserve(2), &[]);
    assert_eq!(until_equal_everywhere(&again), all);
}

/// It is said before the others refuse it: in status, wherever that is asked, as a metric, and in the log.
#[test]
fn a_certificate_that_ends_soon_is_shown_until_a_new_one_is_taken_up() {
    let mut cluster = Cluster::start(2, "none");
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    cluster.until_whole();
    let days = |region: &common::Region| {
        let page = common::http_get(&region.http, "/metrics").expect("metrics").1;
        common::metric(&page, "parhelion_certificate_days_left").unwrap_or_else(|| panic!("{page}"))
    };
    assert!((363.0..=365.0).contains(&days(&primary)) && (363.0..=365.0).contains(&days(&second)));
    let made_for = |days: &str| cluster.verb(&primary.name, &["certs", "--renew", "--days", days]).expect("new certificates");
    made_for("5");
    assert!(days(&second) > 360.0, "what lies on the disk is taken up at the next start");
    cluster.kill_region(&second.name);
    cluster.start_region(&second.name);
    let note = format!("soon: the certificate of {} ends in 4 days", second.name);
    until("it is said, by whoever is asked", || {
        let status = cluster.status_of(&primary.name)?;
        let notes = status["notes"].as_array().cloned().unwrap_or_default();
        ensure(notes.iter().any(|n| n.as_str().is_some_and(|n| n.starts_with(&note))), status)
    });
    assert!(days(&second) == 4.0 && days(&primary) > 360.0);
    let log = std::fs::read_to_string(cluster.dir.join("logs").join(format!("{}.by-hand.log", second.name))).unwrap();
    assert!(log.contains("ends in 4 days, and other regions refuse it then"), "{log}");
}

#[test]
fn a_demo_with_a_load_sums_up() {
    let temp = tempfile::tempdir().unwrap();
    let ports = Ports::reserve(2);
    let mut command = common::parhelion();
    command
        .args(["demo", "--regions", "2", "--profile", "us", "--load", "100", "--for", "2s", "--json", "--dir"])
        .arg(temp.path().join("d"));
    let output = common::run(command.args(["--base-port", &ports.base.to_string()]), "");
    assert!(output.status.success(), "{}", common::text(&output.stderr));
    let lines: Vec<serde_json::Value> =
        common::text(&output.stdout).lines().map(|l| serde_json::from_str(l).expect("JSON, line by line")).collect();
    assert!(lines[0]["type"] == "ready" && lines[0]["regions"][1]["writer"].is_string(), "{}", lines[0]);
    assert!(lines.iter().any(|l| l["type"] == "status" && l["regions"].is_array()));
    let summary = lines.last().unwrap();
    assert!(summary["type"] == "summary" && summary["load"]["committed"].as_u64() > Some(20), "{summary}");
    assert!(summary["load"]["errors"] == 0 && summary["exits"] == 0, "{summary}");
    assert!(summary["regions"][1]["durability_lag_ms"]["p50"].as_f64() >= Some(25.0), "the network of the profile shows: {summary}");
}

#[test]
fn the_example_works_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let ports = Ports::reserve(3);
    // As it is but for the ports, which others here may have.
    std::fs::create_dir(temp.path().join("regions")).unwrap();
    let names = ["us-east", "eu-west", "ap-northeast"];
    let file = |name: &str| temp.path().join("regions").join(format!("{name}.toml"));
    for name in names {
        let mut config = std::fs::read_to_string(format!("{}/regions/{name}.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for i in 0..3 {
            for n in [0, 1, 2, 3, 10] {
                config = config.replace(&format!(":{}\"", 7400 + 100 * i + n), &format!(":{}\"", ports.base + 100 * i + n));
            }
        }
        std::fs::write(file(name), config).unwrap();
    }
    let made = common::run(common::parhelion().args(["certs", "--config"]).arg(file("us-east")), "");
    assert!(made.status.success(), "{}", common::text(&made.stderr));
    let processes: Vec<_> = names.iter().map(|n| ByHand::start(&file(n), &temp.path().join(format!("{n}.log")))).collect();
    until("it is healthy, whichever is asked", || {
        for name in names {
            let output = common::run(common::parhelion().args(["status", "--check", "--config"]).arg(file(name)), "");
            ensure(output.status.success(), common::text(&output.stderr))?;
        }
        Ok(())
    });
    let password = std::fs::read_to_string(temp.path().join("certs/sql-password")).unwrap().trim().to_owned();
    let ready = Ready { cluster: "sun".into(), user: "parhelion".into(), password, database: "parhelion".into(), regions: Vec::new() };
    let port = |n: u16| format!("127.0.0.1:{}", ports.base + n);
    ready.must(&port(201), "create table t (id integer primary key, v text); insert into t values (7, 'from far away')");
    until("it is everywhere", || {
        for n in [2, 102, 202] {
            let got = ready.sql(&port(n), "select v from t where id = 7")?;
            ensure(got == "from far away", got)?;
        }
        Ok(())
    });
    for process in processes {
        process.stop();
    }
}
