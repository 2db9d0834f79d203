//! `bench volume`: what a commit costs while something is wrong with the copies, or somebody is rebuilt, as ratios to healthy.
//!
//! One load runs all the time. Around each trouble the healthy state is measured before and behind it, so that whatever else the
//! machine does weighs on both; with several rounds the median counts. Bytes written are the kernel's own count of the region process.

use super::Figure;
use super::cluster::{Cluster, failed, sql};
use super::measure::{fill, megabytes, ms, percentile, sorted};
use crate::base::Instant;
use crate::io::clock;
use crate::ops::failure::Failure;
use parking_lot::Mutex;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// What `bench volume` is asked for.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// One measurement lasts so long.
    pub window: Duration,
    /// Each trouble so often; the median of the ratios counts.
    pub rounds: u32,
    /// Pages in the volume when a copy or a region is rebuilt, MiB.
    pub rebuild_mib: u64,
    /// Restarts with so many commits of history, one after the other.
    pub history: Vec<u64>,
}

const CLIENTS: usize = 8;
/// The load's rows: it updates them in turn, so that the volume stays as large as it was filled.
const ROWS: i64 = 1000;

/// Commits of one row each, by some clients, each as soon as the one before is answered.
struct Load {
    samples: Arc<Mutex<Vec<(Instant, f64)>>>,
    tasks: JoinSet<Result<(), tokio_postgres::Error>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Load {
    async fn start(cluster: &Cluster) -> Result<Load, Failure> {
        let samples: Arc<Mutex<Vec<(Instant, f64)>>> = Arc::default();
        let mut tasks = JoinSet::new();
        for c in (0i64..).take(CLIENTS) {
            let client = cluster.connect(0, "writer").await?;
            let samples = Arc::clone(&samples);
            tasks.spawn(async move {
                let update = client.prepare("update load set c = c + 1 where n = $1").await?;
                for i in 0i64.. {
                    let began = clock::now();
                    client.execute(&update, &[&((i * 13 + c * 125) % ROWS)]).await?;
                    let now = clock::now();
                    samples.lock().push((now, ms(now.since(began))));
                }
                Ok(())
            });
        }
        Ok(Load { samples, tasks })
    }

    /// What it did between the two.
    fn between(&self, from: Instant, to: Instant) -> Result<Window, Failure> {
        let took: Vec<f64> = self.samples.lock().iter().filter(|(at, _)| *at >= from && *at < to).map(|(_, ms)| *ms).collect();
        if took.is_empty() {
            return Err(failed(format!("no commit was answered in {:.2} s of a measurement", to.since(from).as_secs_f64())));
        }
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = took.len() as f64 / to.since(from).as_secs_f64();
        let took = sorted(took);
        Ok(Window { rate, p50_ms: percentile(&took, 0.5), p99_ms: percentile(&took, 0.99) })
    }

    async fn measure(&mut self, window: Duration) -> Result<Window, Failure> {
        let from = clock::now();
        tokio::time::sleep(window).await;
        if let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(|e| failed(format!("a client of the load failed: {e}")))?.map_err(sql)?;
        }
        self.between(from, clock::now())
    }

    async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// A trouble beside the healthy state around it.
struct Compared {
    healthy: Window,
    trouble: Window,
}

fn compare(before: Window, trouble: Window, after: Window) -> Compared {
    let mean = |pick: fn(&Window) -> f64| f64::midpoint(pick(&before), pick(&after));
    Compared { healthy: Window { rate: mean(|w| w.rate), p50_ms: mean(|w| w.p50_ms), p99_ms: mean(|w| w.p99_ms) }, trouble }
}

fn figures(name: &str, rounds: &[Compared], targets: [&'static str; 3], what: &str) -> Vec<Figure> {
    let last = rounds.last().expect("BUG: at least one round");
    let note = format!(
        "{what}; healthy {:.0}/s p50 {:.2} p99 {:.2} ms, then {:.0}/s p50 {:.2} p99 {:.2} ms",
        last.healthy.rate, last.healthy.p50_ms, last.healthy.p99_ms, last.trouble.rate, last.trouble.p50_ms, last.trouble.p99_ms
    );
    let ratio = |pick: fn(&Window) -> f64| percentile(&sorted(rounds.iter().map(|c| pick(&c.trouble) / pick(&c.healthy)).collect()), 0.5);
    vec![
        Figure::new(format!("{name}_rate_ratio"), ratio(|w| w.rate), "x", targets[0], note.clone()),
        Figure::new(format!("{name}_p50_ratio"), ratio(|w| w.p50_ms), "x", targets[1], note.clone()),
        Figure::new(format!("{name}_p99_ratio"), ratio(|w| w.p99_ms), "x", targets[2], note),
    ]
}

/// Bytes that the process had written to disks, as the kernel counts them.
fn written_bytes(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|l| l.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0)
}

async fn copy(cluster: &Cluster, args: &[&str]) -> Result<(), Failure> {
    let config = cluster.text(0, "config");
    let args: Vec<&str> = ["copy"].into_iter().chain(args.iter().copied()).chain(["--config", &config]).collect();
    cluster.command(&args).await.map(drop)
}

async fn until_all_up(cluster: &Cluster) -> Result<Instant, Failure> {
    let up = |r: &serde_json::Value| {
        r["copies"].as_array().is_some_and(|copies| !copies.is_empty() && copies.iter().all(|c| c["state"] == "up"))
    };
    cluster.until(0, "all copies are up", up).await
}

pub async fn measure(dir: &Path, base_port: u16, options: &VolumeOptions) -> Result<Vec<Figure>, Failure> {
    let mut found = Vec::new();
    let mut cluster = Cluster::start(&dir.join("copies"), base_port, 2, "none").await?;
    let client = cluster.connect(0, "writer").await?;
    client.batch_execute("create table load (n integer primary key, c integer)").await.map_err(sql)?;
    client.batch_execute(&format!("insert into load select value, 0 from generate_series(0, {ROWS})")).await.map_err(sql)?;
    client.batch_execute("create table bench (n integer primary key, what bytea)").await.map_err(sql)?;

    let before = (written_bytes(cluster.pid(0)), cluster.lsn(0, "durable_lsn").await?);
    fill(&client, options.rebuild_mib).await?;
    let bulk = (written_bytes(cluster.pid(0)), cluster.lsn(0, "durable_lsn").await?);
    found.push(amplification("write_amplification_bulk", before, bulk, "transactions of many MB"));

    let mut load = Load::start(&cluster).await?;
    load.measure(options.window).await?; // to get warm
    let small = (written_bytes(cluster.pid(0)), cluster.lsn(0, "durable_lsn").await?);
    let healthy = load.measure(options.window).await?;
    let then = (written_bytes(cluster.pid(0)), cluster.lsn(0, "durable_lsn").await?);
    found.push(amplification("write_amplification_small", small, then, "commits of one row; what an fsync rounds up counts"));

    // 100 times as slow as a copy is when all is well: a commit waits for one write and one fsync.
    let delay = format!("{}ms", (healthy.p50_ms * 100.0).clamp(20.0, 5000.0).round());
    for (name, slow, targets) in
        [("one_slow", &["a1"][..], ["-", "-", "at most 1.3"]), ("two_slow", &["a1", "b1"], ["more than 0", "-", "-"])]
    {
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            let before = load.measure(options.window).await?;
            for c in slow {
                copy(&cluster, &["slow", c, "--delay", &delay]).await?;
            }
            let trouble = load.measure(options.window).await.map_err(|e| during(name, &e))?;
            for c in slow {
                copy(&cluster, &["slow", c, "--delay", "0"]).await?;
            }
            until_all_up(&cluster).await?;
            rounds.push(compare(before, trouble, load.measure(options.window).await?));
        }
        found.extend(figures(name, &rounds, targets, &format!("{} slow by {delay}", slow.join(" and "))));
    }

    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        let before = load.measure(options.window).await?;
        for c in ["b1", "b2"] {
            copy(&cluster, &["stop", c]).await?;
        }
        let trouble = load.measure(options.window).await.map_err(|e| during("zone_down", &e))?;
        for c in ["b1", "b2"] {
            copy(&cluster, &["start", c]).await?;
        }
        until_all_up(&cluster).await?;
        rounds.push(compare(before, trouble, load.measure(options.window).await?));
    }
    found.extend(figures("zone_down", &rounds, ["-", "-", "-"], "both copies of zone b stopped"));

    found.extend(repair(&cluster, &mut load, options).await.map_err(|e| during("repair", &e))?);
    found.extend(seed(&mut cluster, &mut load, options).await.map_err(|e| during("region_seed", &e))?);
    load.stop().await;
    cluster.stop().await;
    found.extend(compaction(&dir.join("compaction"), base_port, options).await.map_err(|e| during("compaction", &e))?);
    found.extend(restarts(dir, base_port, &options.history).await?);
    Ok(found)
}

/// Restarts behind so many commits each, one after the other; told as they are measured, because millions take their time.
pub async fn restarts(dir: &Path, base_port: u16, history_of: &[u64]) -> Result<Vec<Figure>, Failure> {
    let mut found = Vec::new();
    for commits in history_of {
        let figure = history(&dir.join(format!("history-{commits}")), base_port, *commits).await?;
        eprintln!("{}: {:.0} ms, {}", figure.name, figure.value, figure.note);
        found.push(figure);
    }
    Ok(found)
}

fn during(what: &str, e: &Failure) -> Failure {
    failed(format!("{what}: {}", e.message))
}

fn amplification(name: &str, from: (u64, u64), to: (u64, u64), what: &str) -> Figure {
    let (written, committed) = (to.0.saturating_sub(from.0), to.1.saturating_sub(from.1));
    let ratio = megabytes(written) / 6.0 / megabytes(committed.max(1));
    let note = format!("{:.1} MB of log, {:.1} MB written by the process to six copies; {what}", megabytes(committed), megabytes(written));
    Figure::new(name, ratio, "B/B", "-", note)
}

/// A copy loses its directory and is rebuilt from its peers, under load.
async fn repair(cluster: &Cluster, load: &mut Load, options: &VolumeOptions) -> Result<Vec<Figure>, Failure> {
    let lost = Path::new(&cluster.text(0, "data_dir")).join("copies").join("c2");
    let mut rounds = Vec::new();
    let mut took = Vec::new();
    for _ in 0..options.rounds {
        let before = load.measure(options.window).await?;
        copy(cluster, &["stop", "c2"]).await?;
        cluster
            .until(0, "the copy is down", |r| {
                r["copies"].as_array().is_some_and(|all| all.iter().any(|c| c["name"] == "c2" && c["state"] == "down"))
            })
            .await?;
        std::fs::remove_dir_all(&lost).map_err(|e| failed(format!("{} cannot be removed: {e}", lost.display())))?;
        let from = clock::now();
        copy(cluster, &["start", "c2"]).await?;
        let to = until_all_up(cluster).await?;
        took.push(to.since(from).as_secs_f64());
        let trouble = load.between(from, to)?;
        rounds.push(compare(before, trouble, load.measure(options.window).await?));
    }
    let took = percentile(&sorted(took), 0.5);
    let what = format!("a copy of {} MiB is rebuilt from its peers", options.rebuild_mib);
    let mut found = figures("repair", &rounds, ["-", "-", "-"], &what);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let per_gib = took * 1024.0 / options.rebuild_mib as f64;
    found.push(Figure::new("repair_s", took, "s", "-", format!("{what}, under load: {per_gib:.1} s for each GiB")));
    Ok(found)
}

/// The secondary loses everything and is seeded at 20 MB/s, under load.
async fn seed(cluster: &mut Cluster, load: &mut Load, options: &VolumeOptions) -> Result<Vec<Figure>, Failure> {
    let name = cluster.text(1, "name");
    let mut rounds = Vec::new();
    let mut lags = Vec::new();
    cluster.netem("*", "*", &["rate=160mbit"]).await?;
    for _ in 0..options.rounds {
        let before = load.measure(options.window).await?;
        cluster.kill(1)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let data = cluster.text(1, "data_dir");
        std::fs::remove_dir_all(&data).map_err(|e| failed(format!("{data} cannot be removed: {e}")))?;
        cluster.restart(1)?;
        let of_it = |r: &serde_json::Value, what: &dyn Fn(&serde_json::Value) -> bool| {
            r["secondaries"].as_array().is_some_and(|all| all.iter().any(|s| s["region"] == name.as_str() && what(s)))
        };
        let seeded = |s: &serde_json::Value| s["catching_up"]["kind"] == "seed" && s["catching_up"]["pages_done"].as_u64() > Some(0);
        let from = cluster.until(0, "the seed begins", |r| of_it(r, &seeded)).await?;
        let to = cluster.until(0, "the seed ends", |r| of_it(r, &|s| s["catching_up"]["kind"] != "seed")).await?;
        lags.push(to.since(from).as_secs_f64());
        let trouble = load.between(from, to)?;
        cluster.until(1, "the secondary follows", |r| r["state"] == "streaming").await?;
        rounds.push(compare(before, trouble, load.measure(options.window).await?));
    }
    cluster.netem("*", "*", &["none"]).await?;
    let what = format!("a region of {} MiB is seeded in {:.1} s", options.rebuild_mib, percentile(&sorted(lags), 0.5));
    Ok(figures("region_seed", &rounds, ["at least 0.9", "-", "-"], &what))
}

/// The same writes with layers that are written and merged all the time, and with none.
async fn compaction(dir: &Path, base_port: u16, options: &VolumeOptions) -> Result<Vec<Figure>, Failure> {
    let mut rounds = Vec::new();
    let mut layers = 0;
    for round in 0..options.rounds {
        let mut windows = Vec::new();
        for (n, memtable) in [(0, None), (1, Some(1 << 20)), (2, None)] {
            let mut cluster = Cluster::start(&dir.join(format!("{round}-{n}")), base_port, 2, "none").await?;
            if let Some(bytes) = memtable {
                cluster.kill(0)?;
                tokio::time::sleep(Duration::from_millis(500)).await;
                let config = cluster.text(0, "config");
                let text = format!("\n[limits]\nmemtable_bytes_max = {bytes}\n");
                std::fs::File::options()
                    .append(true)
                    .open(&config)
                    .and_then(|mut f| f.write_all(text.as_bytes()))
                    .map_err(|e| failed(format!("{config} cannot be written: {e}")))?;
                cluster.restart(0)?;
                cluster.until(0, "the primary writes", |r| r["state"] == "writable").await?;
            }
            let client = cluster.connect(0, "writer").await?;
            client.batch_execute("create table load (n integer primary key, c integer)").await.map_err(sql)?;
            client.batch_execute(&format!("insert into load select value, 0 from generate_series(0, {ROWS})")).await.map_err(sql)?;
            client.batch_execute("create table wide (n integer primary key, v blob)").await.map_err(sql)?;
            client.batch_execute("insert into wide select value, randomblob(8000) from generate_series(0, 999)").await.map_err(sql)?;
            let mut load = Load::start(&cluster).await?;
            // Beside the load: pages that change as a whole, at a steady rate.
            let writer = tokio::spawn(async move {
                let mut tick = tokio::time::interval(Duration::from_millis(25));
                for i in 0i64.. {
                    tick.tick().await;
                    let from = i * 20 % 980;
                    client.batch_execute(&format!("update wide set v = randomblob(8000) where n between {from} and {}", from + 19)).await?;
                }
                Ok::<_, tokio_postgres::Error>(())
            });
            load.measure(options.window).await?;
            windows.push(load.measure(options.window).await?);
            let copies = Path::new(&cluster.text(0, "data_dir")).join("copies").join("a1");
            if memtable.is_some() {
                layers = std::fs::read_dir(&copies).map_or(0, |files| {
                    let named = files.flatten().filter_map(|f| f.path().file_stem()?.to_str()?.rsplit('-').next()?.parse::<u64>().ok());
                    named.max().unwrap_or(0)
                });
            }
            writer.abort();
            load.stop().await;
            cluster.stop().await;
        }
        rounds.push(compare(windows[0], windows[1], windows[2]));
    }
    let what = format!("layers of 1 MiB, {layers} written and merged by one copy, against none; 6 MB/s of pages beside the load");
    Ok(figures("compaction", &rounds, ["-", "-", "-"], &what))
}

/// `kill -9` of the primary behind so many commits, and the time to the first answered query.
async fn history(dir: &Path, base_port: u16, commits: u64) -> Result<Figure, Failure> {
    // Each waits for its own commit only, and what comes together is fsynced together: the more there are, the sooner it is millions.
    const WRITERS: u64 = 64;
    let mut cluster = Cluster::start(dir, base_port, 2, "none").await?;
    let client = cluster.connect(0, "writer").await?;
    client.batch_execute("create table load (n integer primary key, c integer)").await.map_err(sql)?;
    client.batch_execute(&format!("insert into load select value, 0 from generate_series(0, {ROWS})")).await.map_err(sql)?;
    let began = clock::now();
    let mut writers = JoinSet::new();
    for w in 0..WRITERS {
        let client = cluster.connect(0, "writer").await?;
        writers.spawn(async move {
            let update = client.prepare("update load set c = c + 1 where n = $1").await?;
            for i in 0..commits.div_ceil(WRITERS) {
                let row = i64::try_from((i * 7 + w * 15) % 1000).expect("BUG: below a thousand");
                client.execute(&update, &[&row]).await?;
            }
            Ok::<_, tokio_postgres::Error>(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.map_err(|e| failed(format!("a writer failed: {e}")))?.map_err(sql)?;
    }
    let wrote = clock::now().since(began);
    let log = cluster.lsn(0, "durable_lsn").await?;
    cluster.kill(0)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = clock::now();
    cluster.restart(0)?;
    loop {
        if let Ok(client) = cluster.connect(0, "writer").await
            && client.query_one("select sum(c) from load", &[]).await.is_ok()
        {
            break;
        }
        if clock::now().since(began) > Duration::from_secs(60) {
            return Err(failed("the region did not come back"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = ms(clock::now().since(began));
    cluster.stop().await;
    let note = format!("kill -9 behind {commits} commits ({:.0} MB of log, written in {:.0} s)", megabytes(log), wrote.as_secs_f64());
    Ok(Figure::new(format!("restart_{commits}_commits_ms"), took, "ms", "under 2000, whatever the history", note))
}
