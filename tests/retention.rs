//! What is kept for those who look back: so much and no more, and whoever wants more is told.

mod common;

use common::{Cluster, ensure, until};
use std::io::Write as _;

/// One MiB of old versions, one of log.
const TIGHT: &str =
    "\n[limits]\nversion_retain_bytes = 1048576\nlog_retain_bytes = 1048576\nmemtable_bytes_max = 65536\nversion_retain_s = 1\n";

fn tight() -> Cluster {
    let mut cluster = Cluster::start(2, "none");
    for region in cluster.ready.regions.clone() {
        cluster.kill_region(&region.name);
        std::fs::File::options().append(true).open(&region.config).unwrap().write_all(TIGHT.as_bytes()).unwrap();
        cluster.start_region(&region.name);
    }
    let primary = cluster.primary().writer.clone();
    until("the primary writes", || cluster.ready.sql(&primary, "create table if not exists t (id integer primary key, v blob)"));
    cluster.ready.must(&primary, "insert into t select value, randomblob(8000) from generate_series(1, 100)");
    cluster
}

/// Some MB of log.
fn churn(cluster: &Cluster) {
    for _ in 0..8 {
        cluster.ready.must(&cluster.primary().writer, "update t set v = randomblob(8000)");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_looks_back_further_than_the_budget_is_told_and_holds_nothing() {
    let cluster = tokio::task::block_in_place(tight);
    let second = cluster.secondaries()[0].clone();
    let ready = cluster.ready.clone();
    let count = "select count(*) from t";
    tokio::task::block_in_place(|| until("the rows", || ready.sql(&second.reader, count).and_then(|n| ensure(n == "100", n))));

    let mut config = tokio_postgres::Config::new();
    let (host, port) = second.reader.rsplit_once(':').unwrap();
    config.host(host).port(port.parse().unwrap()).user(&ready.user).password(&ready.password).dbname(&ready.database);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("begin read only").await.unwrap();
    let before: i64 = client.query_one("select length(v) from t where id = 1", &[]).await.unwrap().get(0);
    assert_eq!(before, 8000);

    tokio::task::block_in_place(|| {
        churn(&cluster);
        until("the versions are no longer kept for it", || {
            ready.must(&cluster.primary().writer, "update t set v = randomblob(8000) where id < 20");
            let kept = cluster.row(&second.name, &second.name)?["retention"].clone();
            ensure(kept["held_by"] == "budget" && kept["versions_bytes"].as_u64() <= Some(1 << 20), kept)
        });
    });
    // A statement each: its pages may lie in the reader's memory, or in no layer yet.
    let error = loop {
        match client.query_one("select sum(length(hex(v))) from t", &[]).await {
            Err(error) => break error,
            Ok(row) => {
                assert_eq!(row.get::<_, i64>(0), 1_600_000, "what it sees is what it saw");
                tokio::task::block_in_place(|| churn(&cluster));
            }
        }
    };
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(error.code().code(), "72000", "{error}");
    assert!(error.message().contains("snapshot too old") && error.message().contains("begin a new transaction"), "{error}");
    client.batch_execute("rollback").await.unwrap();
    let row = client.query_one("select sum(length(hex(v))) from t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1_600_000);
    tokio::task::block_in_place(|| cluster.until_whole());
}

#[test]
fn a_secondary_that_is_gone_holds_back_no_more_log_than_the_budget() {
    let mut cluster = tight();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    cluster.until_whole();
    cluster.kill_region(&second.name);
    // More than the primary has in memory.
    for _ in 0..4 {
        churn(&cluster);
    }
    let logs = || {
        let files = std::fs::read_dir(primary.data_dir.join("copies").join("a1")).unwrap().map(|f| f.unwrap());
        files.filter(|f| f.path().extension().is_some_and(|e| e == "log")).map(|f| f.metadata().unwrap().len()).sum::<u64>()
    };
    until("the log is trimmed", || {
        cluster.ready.must(&primary.writer, "update t set v = randomblob(8000) where id < 10");
        let kept = cluster.row(&primary.name, &primary.name)?["retention"].clone();
        ensure(kept["log_bytes"].as_u64() <= Some(1 << 20) && logs() < 3 << 20, format!("{kept}, {} in files", logs()))
    });
    let page = common::http_get(&primary.http, "/metrics").unwrap().1;
    assert!(common::metric(&page, "parhelion_retained_log_bytes").is_some_and(|n| n <= 1_048_576.0), "{page}");
    cluster.start_region(&second.name);
    cluster.until_whole();
    let events = cluster.events(&primary.name).unwrap();
    assert!(events.iter().any(|e| e["what"].as_str().is_some_and(|w| w.contains("behind the retained log"))), "{events:?}");
}

#[test]
fn a_database_that_shrinks_gives_its_space_back() {
    let cluster = tight();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    let volume = |region: &str| -> Result<[u64; 3], String> {
        let row = cluster.row(&primary.name, region)?;
        let figure = |name: &str| row["volume"][name].as_u64().ok_or_else(|| row.to_string());
        Ok([figure("used_bytes")?, figure("allocated_bytes")?, figure("high_water_bytes")?])
    };
    // Beside the 0.8 MB of `t`: 24 MB, in every copy.
    cluster.ready.must(&primary.writer, "create table big (id integer primary key, v blob)");
    for from in (1..3000).step_by(500) {
        let rows = format!("insert into big select value, randomblob(8000) from generate_series({from}, {})", from + 499);
        cluster.ready.must(&primary.writer, &rows);
    }
    let [used, allocated, _] = until("what was written is measured", || {
        let figures = volume(&primary.name)?;
        ensure(figures[0] > 24 << 20 && figures[1] > 24 << 20, figures)?;
        Ok(figures)
    });

    // What is dropped goes by itself: out of the database at once, from the disks when nobody looks back any more. A little goes on being
    // written. The secondary follows.
    cluster.ready.must(&primary.writer, "drop table big");
    for region in [&primary, &second] {
        until("the space is given back", || {
            cluster.ready.sql(&primary.writer, "update t set v = randomblob(8000) where id <= 10")?;
            let [now_used, now_allocated, high] = volume(&region.name)?;
            let whole = now_used < 2 << 20 && high >= used && now_allocated < allocated / 2;
            ensure(whole, format!("{}: {now_used} used, {now_allocated} allocated of {allocated}, at most {high}", region.name))
        });
    }
    for region in [&primary, &second] {
        assert_eq!(cluster.ready.must(&region.reader, "select count(*), sum(length(v)) from t"), "100|800000");
        assert_eq!(cluster.ready.must(&region.reader, "pragma integrity_check"), "ok");
    }
    let metrics = common::http_get(&primary.http, "/metrics").unwrap().1;
    assert!(common::metric(&metrics, "parhelion_volume_used_bytes").is_some_and(|b| b < f64::from(2 << 20)), "{metrics}");
    assert!(common::metric(&metrics, "parhelion_given_back_bytes_total").is_some_and(|b| b > f64::from(20 << 20)), "{metrics}");
    assert!(common::metric(&metrics, "parhelion_volume_free_bytes").is_some_and(|b| b < f64::from(2 << 20)), "{metrics}");
    let shown = cluster.verb(&primary.name, &["status"]).unwrap();
    assert!(shown.contains("volume: used ") && shown.contains("at most so far "), "{shown}");
    cluster.until_whole();
}
