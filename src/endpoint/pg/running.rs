//! A statement while it runs: who may end it before its time, and the rows that come out of it.
//!
//! Decides what becomes of a statement when its client goes, its time is up, somebody cancels it or the server stops: the
//! engine is told to stop, and its error gets the name of the reason. Never runs SQL itself. Driven by the session.

use super::types::PgType;
use super::wire::{Stop, Wire};
use crate::head::sql::{Column, Row, RowStream, SqlError, Value, state};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Sleep;

/// How long a statement may go on after it was told to stop because the server does.
pub const STOP_GRACE: Duration = Duration::from_secs(2);
/// A cancel that falls between two steps of a statement is said again after this.
const CANCEL_AGAIN: Duration = Duration::from_millis(50);

/// What another connection may do to this one.
pub struct Target {
    pub cancel: Box<dyn Fn() + Send + Sync>,
    /// A cancel that arrives between messages must not hit the next one.
    busy: AtomicBool,
    requested: AtomicBool,
}

impl Target {
    pub fn new(cancel: Box<dyn Fn() + Send + Sync>) -> Target {
        Target { cancel, busy: AtomicBool::new(false), requested: AtomicBool::new(false) }
    }

    /// Cancels what the session does now, if it does anything.
    pub fn cancel(&self) {
        if self.busy.load(Ordering::Acquire) {
            self.requested.store(true, Ordering::Release);
            (self.cancel)();
        }
    }

    /// From here to [`Target::idle`] a cancel counts.
    pub fn busy(&self) {
        self.busy.store(true, Ordering::Release);
    }

    pub fn idle(&self) {
        self.busy.store(false, Ordering::Release);
        self.requested.store(false, Ordering::Release);
    }
}

/// Everything that may end a statement before its time.
pub struct Watch {
    pub target: Arc<Target>,
    pub shutdown: watch::Receiver<bool>,
    /// Runs while a statement with a timeout does.
    timer: Option<Pin<Box<Sleep>>>,
    timed_out: bool,
    gone: bool,
}

impl Watch {
    pub fn new(target: Arc<Target>, shutdown: watch::Receiver<bool>) -> Watch {
        Watch { target, shutdown, timer: None, timed_out: false, gone: false }
    }

    /// A statement begins, and may take this long.
    pub fn start(&mut self, timeout: Option<Duration>) {
        self.timer = timeout.map(|d| Box::pin(tokio::time::sleep(d)));
        self.timed_out = false;
    }

    /// The statement's time no longer runs.
    pub fn end(&mut self) {
        self.start(None);
    }

    /// Does the engine's work while looking out for a client that has gone, the timeout and the end of the server. These come
    /// first: rows that are always ready must not keep them waiting.
    pub async fn over<T>(&mut self, wire: &mut Wire, work: impl Future<Output = Result<T, SqlError>>) -> Result<T, Stop> {
        tokio::pin!(work);
        let mut grace: Option<Pin<Box<Sleep>>> = None;
        let result = loop {
            let stopping = grace.is_some();
            tokio::select! {
                biased;
                () = wire.peer_gone(), if !self.gone => self.gone = true,
                () = stopped(&mut self.shutdown), if !stopping => grace = Some(Box::pin(tokio::time::sleep(STOP_GRACE))),
                () = elapsed(&mut grace), if stopping => break Err(shutting_down()),
                () = elapsed(&mut self.timer), if !self.timed_out => self.timed_out = true,
                result = &mut work => break result,
                () = tokio::time::sleep(CANCEL_AGAIN) => {}
            }
            if self.gone || self.timed_out || grace.is_some() || self.target.requested.load(Ordering::Acquire) {
                (self.target.cancel)();
            }
        };
        result.map_err(|e| {
            let cancelled = e.code == state::QUERY_CANCELED;
            if self.gone {
                Stop::Gone
            } else if e.code == state::ADMIN_SHUTDOWN || (cancelled && grace.is_some()) {
                Stop::Fatal(shutting_down())
            } else if cancelled && self.timed_out {
                Stop::Sql(SqlError::new(state::QUERY_CANCELED, "canceling statement due to statement timeout"))
            } else {
                Stop::Sql(e)
            }
        })
    }
}

pub async fn elapsed(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Returns when the server stops, also when nobody is left to say so.
pub async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

pub fn shutting_down() -> SqlError {
    SqlError::new(state::ADMIN_SHUTDOWN, "terminating connection: the server is stopping or its role has changed")
        .hint("Connect again; what was acknowledged is safe, a transaction that was open is rolled back.")
}

/// Rows on their way from the engine.
pub struct Rows {
    columns: Arc<[Column]>,
    receiver: Option<RowStream>,
    ready: VecDeque<Row>,
    /// An error that came while the rows were taken in ahead of time; it is reported after them.
    late: Option<SqlError>,
}

impl Rows {
    pub fn new(columns: Arc<[Column]>, receiver: RowStream) -> Rows {
        Rows { columns, receiver: Some(receiver), ready: VecDeque::new(), late: None }
    }

    /// Rows that are here already.
    pub fn of(names: &[&str], rows: Vec<Row>) -> Rows {
        let columns = names.iter().map(|n| Column { name: (*n).to_owned(), declared_type: Some("text".into()) }).collect();
        Rows { columns, receiver: None, ready: rows.into(), late: None }
    }

    pub fn columns(&self) -> &Arc<[Column]> {
        &self.columns
    }

    /// Waits until there is a row, or none will come; true: there is one.
    pub async fn any(&mut self, wire: &mut Wire, watch: &mut Watch) -> Result<bool, Stop> {
        while self.ready.is_empty() {
            let Some(receiver) = &mut self.receiver else {
                return self.late.take().map_or(Ok(false), |e| Err(Stop::Sql(e)));
            };
            match watch.over(wire, async { receiver.recv().await.transpose() }).await {
                Ok(Some(batch)) => self.ready.extend(batch),
                Ok(None) => self.receiver = None,
                Err(e) => {
                    self.receiver = None;
                    return Err(e);
                }
            }
        }
        Ok(true)
    }

    /// A row that [`Rows::any`] has promised.
    pub fn pop(&mut self) -> Option<Row> {
        self.ready.pop_front()
    }

    pub async fn next(&mut self, wire: &mut Wire, watch: &mut Watch) -> Result<Option<Row>, Stop> {
        Ok(if self.any(wire, watch).await? { self.ready.pop_front() } else { None })
    }

    /// Takes in all that is left, so that the engine is free for another statement; at most `bytes_max`.
    pub async fn take_in(&mut self, wire: &mut Wire, watch: &mut Watch, bytes_max: usize) -> Result<(), Stop> {
        let mut bytes = 0;
        while let Some(receiver) = &mut self.receiver {
            match watch.over(wire, async { receiver.recv().await.transpose() }).await {
                Ok(Some(batch)) => {
                    bytes += batch.iter().flatten().map(value_bytes).sum::<usize>();
                    self.ready.extend(batch);
                }
                Ok(None) => self.receiver = None,
                Err(Stop::Sql(e)) => {
                    self.receiver = None;
                    self.late = Some(e);
                }
                Err(stop) => return Err(stop),
            }
            if bytes > bytes_max && self.receiver.is_some() {
                self.receiver = None;
                let text = "the rows left of a suspended portal are too many to keep while another statement runs";
                self.late = Some(SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, text).hint("Read the portal to its end first."));
            }
        }
        Ok(())
    }

    /// The types to describe the columns with: declared, else guessed, else the first row's.
    pub fn types(&self, guessed: &[Option<PgType>]) -> Vec<PgType> {
        let first = self.ready.front();
        let kind = |i: usize, c: &Column| {
            let declared = c.declared_type.as_deref().map(PgType::from_declared);
            let seen = || self.ready.iter().take(100).find_map(|row| PgType::of_value(row.get(i)?));
            declared.or_else(|| guessed.get(i).copied().flatten()).or_else(|| first.and_then(|_| seen())).unwrap_or(PgType::Text)
        };
        self.columns.iter().enumerate().map(|(i, c)| kind(i, c)).collect()
    }
}

fn value_bytes(v: &Value) -> usize {
    32 + match v {
        Value::Text(t) => t.len(),
        Value::Blob(b) => b.len(),
        _ => 0,
    }
}
