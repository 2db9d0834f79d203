//! How long writes stand still when the primary moves, as clients see it: between the last acknowledged commit before and the first after.
//!
//! The load never reconnects on purpose: whoever loses its connection counts. Sessions that are idle while the primary moves, one in each
//! region, must live through it. After the run every commit that was acknowledged is looked for; one that is missing fails the run.

use super::Figure;
use super::cluster::{Cluster, failed, sql};
use super::measure::{ms, percentile, sorted};
use crate::base::Instant;
use crate::io::clock;
use crate::ops::failure::Failure;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::process::Command;

/// Clients of the load, in the region that is primary at the beginning; and commits per second of all together.
const CLIENTS: u64 = 32;
const COMMITS_PER_S: u64 = 1000;

/// What the clients saw.
#[derive(Default)]
struct Seen {
    acknowledged: Mutex<Vec<(Instant, u64)>>,
    /// Errors, by SQLSTATE or kind.
    errors: Mutex<BTreeMap<String, u64>>,
    reconnected: AtomicU64,
}

struct Load {
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    async fn start(cluster: &Arc<Cluster>, regions: &[usize]) -> Result<Load, Failure> {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let next = Arc::new(AtomicU64::new(1));
        let mut tasks = tokio::task::JoinSet::new();
        for c in 0..CLIENTS {
            let region = regions[usize::try_from(c).unwrap_or(0) % regions.len()];
            let client = cluster.connect(region, "writer").await?;
            let (cluster, seen, stop, next) = (Arc::clone(cluster), Arc::clone(&seen), Arc::clone(&stop), Arc::clone(&next));
            tasks.spawn(async move { commit_on_and_on(client, &cluster, region, &seen, &stop, &next).await });
        }
        Ok(Load { seen, stop, tasks })
    }

    async fn end(mut self) -> Arc<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.seen
    }
}

async fn commit_on_and_on(
    mut client: tokio_postgres::Client,
    cluster: &Cluster,
    region: usize,
    seen: &Seen,
    stop: &AtomicBool,
    next: &AtomicU64,
) {
    let pace = Duration::from_millis(1000 * CLIENTS / COMMITS_PER_S);
    let mut due = clock::now();
    while !stop.load(Ordering::Relaxed) {
        let id = next.fetch_add(1, Ordering::Relaxed);
        match client.batch_execute(&format!("insert into moved values ({id}, 'x')")).await {
            Ok(()) => seen.acknowledged.lock().push((clock::now(), id)),
            Err(e) => {
                let kind = e.code().map_or_else(|| "connection lost".to_owned(), |c| c.code().to_owned());
                *seen.errors.lock().entry(kind).or_default() += 1;
                while client.is_closed() && !stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if let Ok(again) = cluster.connect(region, "writer").await {
                        seen.reconnected.fetch_add(1, Ordering::Relaxed);
                        client = again;
                    }
                }
            }
        }
        due = due + pace;
        tokio::time::sleep(due.since(clock::now())).await;
    }
}

/// The longest time without an acknowledgement in a span.
fn longest_gap(acknowledged: &[(Instant, u64)], from: Instant, to: Instant) -> Duration {
    let mut times: Vec<Instant> = acknowledged.iter().map(|(at, _)| *at).filter(|at| *at >= from && *at <= to).collect();
    times.sort_unstable();
    times.windows(2).map(|w| w[1].since(w[0])).max().unwrap_or_else(|| to.since(from))
}

async fn missing(cluster: &Cluster, region: usize, seen: &Seen) -> Result<usize, Failure> {
    let client = cluster.connect(region, "writer").await?;
    let rows = client.query("select id from moved", &[]).await.map_err(sql)?;
    let there: std::collections::BTreeSet<i64> = rows.iter().map(|r| r.get(0)).collect();
    let lost = |id: u64| !i64::try_from(id).is_ok_and(|id| there.contains(&id));
    Ok(seen.acknowledged.lock().iter().filter(|(_, id)| lost(*id)).count())
}

/// A session in each region's writer port that says nothing while the primary moves.
struct Idle {
    sessions: Vec<tokio_postgres::Client>,
    failures: Vec<String>,
    next: i64,
}

impl Idle {
    async fn open(cluster: &Cluster, regions: usize) -> Result<Idle, Failure> {
        let mut sessions = Vec::new();
        for region in 0..regions {
            sessions.push(cluster.connect(region, "writer").await?);
        }
        Ok(Idle { sessions, failures: Vec::new(), next: 0 })
    }

    /// Each says one statement, which must be done.
    async fn wake(&mut self, round: u32) {
        for (region, session) in self.sessions.iter().enumerate() {
            self.next -= 1;
            if let Err(e) = session.batch_execute(&format!("insert into moved values ({}, 'idle')", self.next)).await {
                self.failures.push(format!("round {round}, region {region}: {e}"));
            }
        }
    }
}

/// Planned: there and back, again and again, with 80 ms between the regions and 1 000 commits/s.
pub async fn switchover(dir: &Path, base_port: u16, rounds: u32) -> Result<Vec<Figure>, Failure> {
    let cluster = Arc::new(Cluster::start(dir, base_port, 3, "none").await?);
    cluster.netem("*", "*", &["delay=40ms"]).await?;
    cluster.connect(0, "writer").await?.batch_execute("create table moved (id integer primary key, what text)").await.map_err(sql)?;
    let names = [cluster.text(0, "name"), cluster.text(1, "name")];
    let load = Load::start(&cluster, &[0]).await?;
    let mut idle = Idle::open(&cluster, 3).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut gaps, mut reported, mut phases) = (Vec::new(), Vec::new(), BTreeMap::<String, Vec<f64>>::new());
    for round in 0..rounds {
        let to = &names[usize::try_from(round + 1).unwrap_or(0) % 2];
        let began = clock::now();
        let done = cluster.json(0, &["switchover", "--to", to]).await?;
        idle.wake(round).await;
        tokio::time::sleep(Duration::from_millis(1000)).await;
        gaps.push(ms(longest_gap(&load.seen.acknowledged.lock(), began, clock::now())));
        reported.extend(done["write_gap_ms"].as_f64());
        for phase in done["phases"].as_array().into_iter().flatten() {
            if let (Some(name), Some(took)) = (phase["name"].as_str(), phase["ms"].as_f64()) {
                phases.entry(name.to_owned()).or_default().push(took);
            }
        }
    }
    let seen = load.end().await;
    let lost = missing(&cluster, 0, &seen).await?;
    let errors = format!("{:?}", seen.errors.lock());
    let (acknowledged, reconnected) = (seen.acknowledged.lock().len(), seen.reconnected.load(Ordering::Relaxed));
    Arc::try_unwrap(cluster).map_err(|_| failed("the load still runs"))?.stop().await;
    if lost > 0 || !idle.failures.is_empty() {
        let failures = idle.failures.join("; ");
        return Err(failed(format!(
            "{lost} acknowledged commits were lost in {rounds} switchovers; idle sessions that failed: [{failures}]"
        )));
    }
    let (gaps, reported) = (sorted(gaps), sorted(reported));
    let note = format!("{rounds} switchovers, 80 ms round trip, {COMMITS_PER_S} commits/s; errors {errors}, {reconnected} reconnections");
    let mut figures = vec![
        Figure::new("switchover_gap_p50_ms", percentile(&gaps, 0.5), "ms", "at most 500", note),
        Figure::new("switchover_gap_p99_ms", percentile(&gaps, 0.99), "ms", "at most 1500", "the same run"),
        Figure::new("switchover_gap_reported_p50_ms", percentile(&reported, 0.5), "ms", "", "what the command says"),
        Figure::new("switchover_lost", count(lost), "commits", "0", format!("of {acknowledged} acknowledged")),
        Figure::new("switchover_idle_failed", count(idle.failures.len()), "sessions", "0", "three idle ones, woken after each move"),
    ];
    for (name, took) in phases {
        figures.push(Figure::new(format!("switchover_{name}_p50_ms"), percentile(&sorted(took), 0.5), "ms", "", "phase; one way is 40"));
    }
    Ok(figures)
}

#[expect(clippy::cast_precision_loss, reason = "a count of lost commits for people")]
fn count(n: usize) -> f64 {
    n as f64
}

/// By hand: the primary is killed, its lease runs out, and an operator promotes another region.
pub async fn failover(dir: &Path, base_port: u16, rounds: u32) -> Result<Vec<Figure>, Failure> {
    let (mut gaps, mut commands, mut returns) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let dir = dir.join(round.to_string());
        let mut cluster = Cluster::start(&dir, base_port, 3, "none").await?;
        cluster.netem("*", "*", &["delay=40ms"]).await?;
        cluster.connect(0, "writer").await?.batch_execute("create table moved (id integer primary key, what text)").await.map_err(sql)?;
        cluster.until(1, "the secondary streams", |r| r["lag_known"] == true || r["lag"]["rpo_ms"].is_number()).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let to = cluster.text(1, "name");
        let killed = clock::now();
        cluster.kill(0)?;
        // The lease of 6 s is over for sure.
        tokio::time::sleep(Duration::from_secs(8)).await;
        let ordered = clock::now();
        let config = cluster.text(1, "config");
        let ordering = tokio::spawn(async move {
            let exe = std::env::current_exe().map_err(|e| failed(format!("this program cannot find itself: {e}")))?;
            let said = Command::new(exe).args(["failover", "--to", &to, "--allow-data-loss", "--json", "--config", &config]).output().await;
            let said = said.map_err(|e| failed(format!("failover cannot be run: {e}")))?;
            if said.status.success() { Ok(()) } else { Err(failed(String::from_utf8_lossy(&said.stderr).into_owned())) }
        });
        let first = loop {
            let tried = async { cluster.connect(1, "writer").await?.batch_execute("insert into moved values (1, 'x')").await.map_err(sql) };
            match tokio::time::timeout(Duration::from_secs(5), tried).await {
                Ok(Ok(())) => break clock::now(),
                _ if clock::now().since(ordered) > Duration::from_secs(60) => return Err(failed("no write after a failover")),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        ordering.await.map_err(|e| failed(e.to_string()))??;
        gaps.push(ms(first.since(killed)));
        commands.push(ms(first.since(ordered)));
        let back = clock::now();
        cluster.restart(0)?;
        let at = cluster
            .until(0, "the old primary follows", |r| r["role"] == "secondary" && r["state"] != "disconnected" && r["state"] != "starting");
        returns.push(ms(at.await?.since(back)));
        cluster.stop().await;
    }
    let (commands, returns) = (sorted(commands), sorted(returns));
    Ok(vec![
        Figure::new(
            "failover_by_hand_ms",
            percentile(&commands, 0.5),
            "ms",
            "under 1000",
            "from the command to the first acknowledged write",
        ),
        Figure::new("old_primary_returns_ms", percentile(&returns, 0.5), "ms", "under 30000", "from its start to following, small tail"),
        Figure::new("failover_by_hand_gap_ms", percentile(&sorted(gaps), 0.5), "ms", "", "from kill -9, with 8 s of waiting for the lease"),
    ])
}

/// By itself: the primary of a cluster that may lose up to 5 s is killed under load, and clients of the other regions wait for their next
/// acknowledgement.
pub async fn automatic(dir: &Path, base_port: u16, rounds: u32) -> Result<Vec<Figure>, Failure> {
    let mut gaps = Vec::new();
    for round in 0..rounds {
        let dir = dir.join(round.to_string());
        let cluster = Arc::new(Cluster::start(&dir, base_port, 3, "none").await?);
        cluster.netem("*", "*", &["delay=40ms"]).await?;
        cluster.connect(0, "writer").await?.batch_execute("create table moved (id integer primary key, what text)").await.map_err(sql)?;
        cluster.command(&["set", "auto_failover=max_loss=5s", "--config", &cluster.text(0, "config")]).await?;
        for region in [1, 2] {
            cluster.until(region, "the secondary streams", |r| r["state"] == "streaming" || r["state"] == "idle").await?;
        }
        let load = Load::start(&cluster, &[1, 2]).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let killed = clock::now();
        cluster.kill(0)?;
        let first = loop {
            // What was on its way when it died does not count.
            let after = killed + Duration::from_secs(1);
            if let Some(at) = load.seen.acknowledged.lock().iter().map(|(at, _)| *at).filter(|at| *at > after).min() {
                break at;
            }
            if clock::now().since(killed) > Duration::from_secs(90) {
                return Err(failed("nobody took over by itself within 90 s"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        gaps.push(ms(first.since(killed)));
        load.end().await;
        Arc::try_unwrap(cluster).map_err(|_| failed("the load still runs"))?.stop().await;
    }
    let gaps = sorted(gaps);
    let note = format!(
        "{rounds} times kill -9 at {COMMITS_PER_S} commits/s, 80 ms round trip, lease 6 s; from the kill to the first acknowledgement"
    );
    Ok(vec![
        Figure::new("failover_automatic_p50_ms", percentile(&gaps, 0.5), "ms", "at most 9000", note),
        Figure::new("failover_automatic_p99_ms", percentile(&gaps, 0.99), "ms", "at most 14000", "the same"),
    ])
}
