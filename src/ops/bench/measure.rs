//! The measurements. Each starts its own cluster and says what it did.

use super::Figure;
use super::cluster::{Cluster, failed, memory_mib, sql};
use crate::base::Instant;
use crate::io::clock;
use crate::ops::failure::Failure;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub fn percentile(sorted: &[f64], p: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a slice in memory"
    )]
    let at = ((sorted.len().saturating_sub(1)) as f64 * p).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

pub fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

pub fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// `demo` with three regions from start to ready, and what an idle region process takes.
pub async fn start(dir: &Path, base_port: u16) -> Result<Vec<Figure>, Failure> {
    let cluster = Cluster::start(dir, base_port, 3, "world").await?;
    let first = ms(cluster.ready_after);
    // Idle means: everything that starting needs is done.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let memory = (0..3).map(|r| memory_mib(cluster.pid(r))).fold(0.0, f64::max);
    cluster.stop().await;
    let again = Cluster::start(dir, base_port, 3, "world").await?;
    let second = ms(again.ready_after);
    again.stop().await;
    Ok(vec![
        Figure::new("demo_ready_new_ms", first, "ms", "under 3000", "three regions, profile world, new directory"),
        Figure::new("demo_ready_again_ms", second, "ms", "under 3000", "the same directory again"),
        Figure::new("idle_memory_mib", memory, "MiB", "under 100", "the largest of three idle region processes"),
    ])
}

/// Commits per second and their latency in one region, by clients over the PostgreSQL port.
pub async fn commit(dir: &Path, base_port: u16, encrypt: bool) -> Result<Vec<Figure>, Failure> {
    let more: &[&str] = if encrypt { &["--encrypt"] } else { &[] };
    let cluster = Cluster::start_with(dir, base_port, 2, "none", more).await?;
    let client = cluster.connect(0, "writer").await?;
    client.batch_execute("create table bench (n integer primary key, c integer, what text)").await.map_err(sql)?;
    let mut figures = Vec::new();
    for clients in [1usize, 8, 32] {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = tokio::task::JoinSet::new();
        for c in (0i64..).take(clients) {
            let client = cluster.connect(0, "writer").await?;
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                let insert = client.prepare("insert into bench (c, what) values ($1, 'a row of some bytes')").await?;
                let mut took = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let began = clock::now();
                    client.execute(&insert, &[&c]).await?;
                    took.push(ms(clock::now().since(began)));
                }
                Ok::<_, tokio_postgres::Error>(took)
            });
        }
        let lasts = Duration::from_secs(5);
        tokio::time::sleep(lasts).await;
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some(task) = tasks.join_next().await {
            all.extend(task.map_err(|e| failed(format!("a client failed: {e}")))?.map_err(sql)?);
        }
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = all.len() as f64 / lasts.as_secs_f64();
        let all = sorted(all);
        let note = format!(
            "p50 {:.2} ms, p99 {:.2} ms; one-row inserts, six fsynced copies on one disk",
            percentile(&all, 0.5),
            percentile(&all, 0.99)
        );
        figures.push(Figure::new(format!("commits_{clients}_clients"), rate, "commits/s", "-", note));
    }
    cluster.stop().await;
    Ok(figures)
}

/// From issuing a commit in the primary to seeing its row in the secondary, as two clients see it.
pub async fn lag(dir: &Path, base_port: u16) -> Result<Vec<Figure>, Failure> {
    let cluster = Cluster::start(dir, base_port, 2, "none").await?;
    let client = cluster.connect(0, "writer").await?;
    client.batch_execute("create table bench (n bigint primary key, what text)").await.map_err(sql)?;
    let mut figures = Vec::new();
    let mut first = 0i64;
    for (name, loss) in [("lag_rtt80_loss0", "loss=0%"), ("lag_rtt80_loss1", "loss=1%")] {
        cluster.netem("*", "*", &["delay=40ms", loss]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let lags = lag_run(&cluster, &client, first, 4000).await?;
        first += 4000;
        let lags = sorted(lags);
        let note = format!(
            "over the one-way delay of 40 ms: p50 +{:.2} ms, p99 +{:.2} ms; 200 commits/s",
            percentile(&lags, 0.5) - 40.0,
            percentile(&lags, 0.99) - 40.0
        );
        let (t50, t99) = if loss == "loss=0%" { ("at most 43", "at most 55") } else { ("-", "PostgreSQL 15: 142") };
        figures.push(Figure::new(format!("{name}_p50_ms"), percentile(&lags, 0.5), "ms", t50, note.clone()));
        figures.push(Figure::new(format!("{name}_p99_ms"), percentile(&lags, 0.99), "ms", t99, note));
    }
    cluster.stop().await;
    Ok(figures)
}

async fn lag_run(cluster: &Cluster, writer: &tokio_postgres::Client, first: i64, count: i64) -> Result<Vec<f64>, Failure> {
    let reader = cluster.connect(1, "reader").await?;
    let last = first + count;
    let watching = tokio::spawn(async move {
        let newest = reader.prepare("select max(n) from bench").await?;
        let mut seen: Vec<Instant> = Vec::new();
        let mut upto = first;
        while upto < last {
            let row = reader.query_one(&newest, &[]).await?;
            let at = clock::now();
            let n = row.try_get::<_, Option<i64>>(0)?.unwrap_or(-1) + 1;
            while upto < n {
                seen.push(at);
                upto += 1;
            }
        }
        Ok::<_, tokio_postgres::Error>(seen)
    });
    let insert = writer.prepare("insert into bench (n, what) values ($1, 'a row of some bytes')").await.map_err(sql)?;
    let mut issued = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    for n in first..last {
        tick.tick().await;
        issued.push(clock::now());
        writer.execute(&insert, &[&n]).await.map_err(sql)?;
    }
    let seen = tokio::time::timeout(Duration::from_secs(60), watching).await.map_err(|_| failed("the secondary did not show all rows"))?;
    let seen = seen.map_err(|e| failed(format!("the reader failed: {e}")))?.map_err(sql)?;
    Ok(issued.iter().zip(&seen).map(|(i, s)| ms(s.since(*i))).collect())
}

/// Shipping of a backlog over 80 ms, from the healing of the link: received, and durable on four of six.
pub async fn ship(dir: &Path, base_port: u16, mib: u64) -> Result<Vec<Figure>, Failure> {
    let cluster = Cluster::start(dir, base_port, 2, "none").await?;
    cluster.netem("*", "*", &["delay=40ms"]).await?;
    let client = cluster.connect(0, "writer").await?;
    client.batch_execute("create table bench (n integer primary key, what bytea)").await.map_err(sql)?;
    cluster.until(1, "the secondary has the table", |r| r["durable_lsn"].as_u64().unwrap_or(0) > 0).await?;
    cluster.netem("*", "*", &["blackhole=on"]).await?;
    let wrote = clock::now();
    fill(&client, mib).await?;
    let write_rate = megabytes(mib << 20) / clock::now().since(wrote).as_secs_f64();
    let end = cluster.lsn(0, "durable_lsn").await?;
    let begin = cluster.lsn(1, "written_lsn").await?;
    // Let both sides notice, so that what is measured is a reconnect and a backlog.
    cluster.until(1, "the secondary sees the link is gone", |r| r["state"] == "disconnected").await?;
    settle(&cluster, 0).await?;
    cluster.netem("*", "*", &["none", "delay=40ms"]).await?;
    let moving = cluster.until(1, "the backlog begins to arrive", |r| r["written_lsn"].as_u64().unwrap_or(0) > begin).await?;
    let at_begin = cluster.lsn(1, "written_lsn").await?;
    let received = cluster.until(1, "the backlog is received", |r| r["written_lsn"].as_u64().unwrap_or(0) >= end).await?;
    let durable = cluster.until(1, "the backlog is durable", |r| r["durable_lsn"].as_u64().unwrap_or(0) >= end).await?;
    cluster.stop().await;
    let bytes = megabytes(end - at_begin);
    let rate = |until: Instant| bytes / until.since(moving).as_secs_f64();
    Ok(vec![
        Figure::new(
            "ship_backlog_received_mb_s",
            rate(received),
            "MB/s",
            "at least 100",
            format!("{bytes:.0} MB over 80 ms round trip, no loss"),
        ),
        Figure::new(
            "ship_backlog_durable_mb_s",
            rate(durable),
            "MB/s",
            "at least 100",
            "the same, fsynced on four of six copies on one disk",
        ),
        disk(dir)?,
        Figure::new("write_backlog_mb_s", write_rate, "MB/s", "-", "the primary writing it, six copies on the same disk"),
    ])
}

/// What the disk takes of one file, fsynced: six copies of a log share it, and their layers.
fn disk(dir: &Path) -> Result<Figure, Failure> {
    use std::io::Write;
    let path = dir.join("disk.tmp");
    let measured = (|| {
        let mut file = std::fs::File::create(&path)?;
        let chunk = vec![7u8; 1 << 20];
        let began = clock::now();
        for _ in 0..512 {
            file.write_all(&chunk)?;
        }
        file.sync_data()?;
        let took = clock::now().since(began);
        std::fs::remove_file(&path)?;
        Ok::<_, std::io::Error>(took)
    })();
    let took = measured.map_err(|e| failed(format!("{} cannot be written: {e}", path.display())))?;
    let rate = megabytes(512 << 20) / took.as_secs_f64();
    let note = format!("one file, fsynced; a sixth of it, for six logs and no layers, is {:.0} MB/s", rate / 6.0);
    Ok(Figure::new("disk_mb_s", rate, "MB/s", "-", note))
}

/// Random bytes, so that nothing on the way can shorten them.
pub async fn fill(client: &tokio_postgres::Client, mib: u64) -> Result<(), Failure> {
    let insert = client.prepare("insert into bench (what) values (randomblob(1000000))").await.map_err(sql)?;
    for _ in 0..(mib << 20).div_ceil(1_000_000) {
        client.execute(&insert, &[]).await.map_err(sql)?;
    }
    Ok(())
}

/// Waits until the region's disk is quiet: layers are written in the background, and would be measured too.
async fn settle(cluster: &Cluster, region: usize) -> Result<(), Failure> {
    let pid = cluster.pid(region);
    let written = || {
        std::fs::read_to_string(format!("/proc/{pid}/io"))
            .unwrap_or_default()
            .lines()
            .find_map(|l| l.strip_prefix("write_bytes: ")?.parse::<u64>().ok())
    };
    let mut last = written();
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = written();
        if now == last {
            return Ok(());
        }
        last = now;
    }
    Err(failed("the disk does not become quiet"))
}

/// From starting a killed region again to its first answer, with much log behind it.
pub async fn restart(dir: &Path, base_port: u16, mib: u64) -> Result<Vec<Figure>, Failure> {
    let mut cluster = Cluster::start(dir, base_port, 2, "none").await?;
    let client = cluster.connect(0, "writer").await?;
    client.batch_execute("create table bench (n integer primary key, what bytea)").await.map_err(sql)?;
    fill(&client, mib).await?;
    let end = cluster.lsn(0, "durable_lsn").await?;
    cluster.until(1, "the secondary has everything", |r| r["durable_lsn"].as_u64().unwrap_or(0) >= end).await?;
    let mut figures = Vec::new();
    for (region, port, name) in [(0, "writer", "restart_primary_ms"), (1, "reader", "restart_secondary_ms")] {
        cluster.kill(region)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = clock::now();
        cluster.restart(region)?;
        loop {
            if let Ok(client) = cluster.connect(region, port).await
                && client.query_one("select count(*) from bench where n < 10", &[]).await.is_ok()
            {
                break;
            }
            if clock::now().since(began) > Duration::from_secs(60) {
                return Err(failed("the region did not come back"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = ms(clock::now().since(began));
        figures.push(Figure::new(
            name,
            took,
            "ms",
            "under 2000",
            format!("kill -9, then the first answered query; {:.0} MB of log behind it", megabytes(end)),
        ));
    }
    cluster.stop().await;
    Ok(figures)
}
