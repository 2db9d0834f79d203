//! Whole clusters through crashes: what "done" means, acknowledged commits, and copies that come and go.

mod common;

use common::{Cluster, Ports, Ready, ensure, runs, until};
use parhelion::base::Prng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Inserts numbered rows until the connection breaks; the last one acknowledged.
async fn insert_until_it_breaks(ready: Ready, address: String, who: usize, from: u64, acknowledged: Arc<AtomicU64>) -> u64 {
    let who = i64::try_from(who).unwrap();
    let mut last = from;
    let Ok(client) = ready.connect(&address).await else { return last };
    let Ok(insert) = client.prepare("insert into acked (who, n) values ($1, $2)").await else { return last };
    loop {
        let n = i64::try_from(last + 1).unwrap();
        match client.execute(&insert, &[&who, &n]).await {
            Ok(_) => {
                last += 1;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => return last,
        }
    }
}

#[test]
fn every_acknowledged_commit_survives_a_kill_of_the_primary_under_load() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table acked (who bigint, n bigint, primary key (who, n))");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut prng = Prng::new(u64::from(std::process::id()));
    let mut acked = [0u64; CLIENTS];
    for round in 0..5u64 {
        let count = Arc::new(AtomicU64::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|who| {
                // Two come through the secondary's writer port.
                let address = if who % 2 == 0 { &primary.writer } else { &second.writer };
                runtime.spawn(insert_until_it_breaks(ready.clone(), address.clone(), who, acked[who], Arc::clone(&count)))
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
        for (who, client) in clients.into_iter().enumerate() {
            acked[who] = runtime.block_on(client).unwrap();
        }
        let there = until("the primary is back", || {
            ready.sql(&primary.writer, "select who, count(*), max(n) from acked group by who order by who")
        });
        let there: Vec<Vec<u64>> = there.lines().map(|l| l.split('|').map(|c| c.parse().unwrap()).collect()).collect();
        for (who, last) in acked.iter_mut().enumerate().filter(|(_, last)| **last > 0) {
            let row = there.iter().find(|r| r[0] == who as u64).unwrap_or_else(|| panic!("round {round}: {who} has lost all of {last}"));
            assert_eq!(row[1], row[2], "round {round}: no holes in the rows of {who}: {there:?}");
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

#[test]
fn copies_stop_and_return_and_nothing_is_lost() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key, v text not null)");
    let insert = |id: u32| ready.sql(&primary.writer, &format!("insert into t values ({id}, 'v')"));
    let copy = |what: &str, id: &str| cluster.verb(&primary.name, &["copy", what, id]).unwrap();
    let state_of = |id: &str| {
        let copies = cluster.row(&second.name, &primary.name)?["copies"].clone();
        let copy = copies.as_array().and_then(|c| c.iter().find(|c| c["name"] == id)).cloned();
        copy.map(|c| c["state"].as_str().unwrap_or_default().to_owned()).ok_or(copies.to_string())
    };
    let is_down = |id: &str| until("the copy is down", || state_of(id).and_then(|s| ensure(s == "down", s)));
    insert(1).unwrap();

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
    cluster.until_whole();
    let ids = ready.must(&second.reader, "select group_concat(id) from (select id from t order by id)");
    assert!(ids == "1,2,4" || ids == "1,2,3,4", "{ids}");

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
