//! The built-in load: small commits at a steady rate through the primary's writer port, as an application would send them.
//!
//! The rate is a schedule and does not wait for slow answers, up to as many commits at a time as there are connections. A
//! commit that fails is counted, never repeated: what the summary calls committed was acknowledged once.

use super::plan::Ready;
use crate::io::clock;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

const CONNECTIONS_MAX: u32 = 16;
const COMMITS_PER_CONNECTION: u32 = 50;
const RECONNECT_AFTER: Duration = Duration::from_millis(200);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ROWS: u64 = 100_000;
const TABLE: &str = "CREATE TABLE IF NOT EXISTS parhelion_load (id INTEGER PRIMARY KEY, written_at_us BIGINT NOT NULL)";

struct Counts {
    committed: AtomicU64,
    errors: AtomicU64,
    /// Commit latency, microseconds.
    latency_us: Mutex<Histogram<u64>>,
    last_error: Mutex<Option<String>>,
}

/// A running load. Dropping it ends it.
pub struct Load {
    asked_tps: u32,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

/// What the load did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LoadSummary {
    pub asked_tps: u32,
    pub committed: u64,
    pub errors: u64,
    pub tps: f64,
    /// null when nothing was committed.
    pub commit_ms: Option<Percentiles>,
    pub last_error: Option<String>,
}

#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Percentiles {
    /// From a histogram of microseconds; `None` when it is empty.
    #[must_use]
    pub fn of(us: &Histogram<u64>) -> Option<Percentiles> {
        #[expect(clippy::cast_precision_loss, reason = "microseconds for people")]
        let ms = |us: u64| us as f64 / 1000.0;
        (!us.is_empty()).then(|| Percentiles { p50: ms(us.value_at_quantile(0.5)), p99: ms(us.value_at_quantile(0.99)), max: ms(us.max()) })
    }
}

/// A histogram of 1 us to one hour, three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("BUG: the bounds of a histogram")
}

impl Load {
    /// `tps` commits a second to whatever address `writer` holds; it follows the primary.
    #[must_use]
    pub fn start(tps: u32, ready: &Ready, writer: &watch::Receiver<SocketAddr>) -> Load {
        let counts = Arc::new(Counts {
            committed: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency_us: Mutex::new(histogram()),
            last_error: Mutex::new(None),
        });
        let connections = tps.div_ceil(COMMITS_PER_CONNECTION).clamp(1, CONNECTIONS_MAX);
        let mut tasks = JoinSet::new();
        for worker in 0..connections {
            let period = Duration::from_secs_f64(f64::from(connections) / f64::from(tps.max(1)));
            let worker = Worker {
                counts: Arc::clone(&counts),
                writer: writer.clone(),
                config: login(ready),
                period,
                first: period.mul_f64(f64::from(worker) / f64::from(connections)),
                next_row: u64::from(worker) * (ROWS / u64::from(CONNECTIONS_MAX)),
            };
            tasks.spawn(worker.run());
        }
        Load { asked_tps: tps, counts, _tasks: tasks }
    }

    #[must_use]
    pub fn committed(&self) -> u64 {
        self.counts.committed.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn summary(&self, lasted: Duration) -> LoadSummary {
        let committed = self.committed();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let tps = committed as f64 / lasted.as_secs_f64().max(0.001);
        LoadSummary {
            asked_tps: self.asked_tps,
            committed,
            errors: self.counts.errors.load(Ordering::Relaxed),
            tps: (tps * 10.0).round() / 10.0,
            commit_ms: Percentiles::of(&self.counts.latency_us.lock()),
            last_error: self.counts.last_error.lock().clone(),
        }
    }
}

fn login(ready: &Ready) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.user(&ready.user).password(&ready.password).dbname(&ready.database).application_name("parhelion demo --load");
    config
}

fn sentence(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| format!("{}: {}", db.code().code(), db.message()))
}

struct Worker {
    counts: Arc<Counts>,
    writer: watch::Receiver<SocketAddr>,
    config: tokio_postgres::Config,
    period: Duration,
    first: Duration,
    next_row: u64,
}

impl Worker {
    async fn run(mut self) {
        let mut due = clock::now() + self.first;
        loop {
            match tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await {
                Ok(Ok(client)) => {
                    if let Err(error) = self.commit_on_schedule(&client, &mut due).await {
                        self.failed(sentence(&error));
                    }
                }
                Ok(Err(error)) => self.failed(sentence(&error)),
                Err(_) => self.failed(format!("the writer port lets nobody in within {} s", CONNECT_TIMEOUT.as_secs())),
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
            // What could not be tried meanwhile is left out, not made up for in a burst.
            due = due.max(clock::now());
        }
    }

    fn failed(&self, sentence: String) {
        self.counts.errors.fetch_add(1, Ordering::Relaxed);
        *self.counts.last_error.lock() = Some(sentence);
    }

    async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let addr = *self.writer.borrow();
        let mut config = self.config.clone();
        config.host(addr.ip().to_string()).port(addr.port());
        let (client, connection) = config.connect(NoTls).await?;
        // It ends with the client, and its error comes to the client's next call.
        tokio::spawn(connection);
        client.batch_execute(TABLE).await?;
        Ok(client)
    }

    /// Until a commit fails on a broken connection. One that the server refuses is counted, and the next one is tried.
    async fn commit_on_schedule(&mut self, client: &Client, due: &mut crate::base::Instant) -> Result<(), tokio_postgres::Error> {
        loop {
            tokio::time::sleep(due.since(clock::now())).await;
            let row = self.next_row % ROWS;
            self.next_row += 1;
            let at_us = clock::unix_now().0;
            let sql = format!(
                "INSERT INTO parhelion_load (id, written_at_us) VALUES ({row}, {at_us}) \
                 ON CONFLICT (id) DO UPDATE SET written_at_us = excluded.written_at_us"
            );
            let began = clock::now();
            match client.batch_execute(&sql).await {
                Ok(()) => {
                    let us = u64::try_from(clock::now().since(began).as_micros()).unwrap_or(u64::MAX);
                    self.counts.latency_us.lock().saturating_record(us);
                    self.counts.committed.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if client.is_closed() => return Err(error),
                Err(error) => self.failed(sentence(&error)),
            }
            let now = clock::now();
            // A connection that is late by more than a second drops what it missed, so that the rate never bursts.
            *due = if now.since(*due) > Duration::from_secs(1) { now } else { *due + self.period };
        }
    }
}
