//! The reader threads: each with a read-only connection, each statement at one pinned LSN.
//!
//! Decides which thread runs a read. A transaction is a pin, not a thread: its statements run on any reader, so a thinking
//! client holds no thread. A client that takes its rows slowly does hold one, so another thread stands in for it, up to a
//! bound. A panic here aborts the process (it is a bug, and nobody would answer this client).

use super::connection::{Db, Use, cancelled};
use super::context::{Context, Token};
use super::horizon::Pin;
use super::shared::Shared;
use super::snapshot::ReaderFile;
use super::vfs::Registration;
use super::{AbortOnPanic, EngineError, spawn};
use crate::head::sql::{Column, Description, Outcome, Row, RowStream, SqlError, Value, state};
use crate::io::clock;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, oneshot};

/// One message to the client's task holds about so much.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 64 << 10;
/// Batches that wait for a slow client before the thread does.
const BATCHES_AHEAD: usize = 4;
/// Threads that may stand in for others that wait for slow clients.
const STAND_INS_MAX: usize = 60;

/// For whom, and at which snapshot.
pub struct Reading {
    pub session: i32,
    pub in_recovery: bool,
    pub cancel: Arc<Token>,
    /// `None`: what is visible when it begins.
    pub pin: Option<Arc<Pin>>,
    /// Set when the statement fails, also after its first rows have gone out: the transaction has failed then.
    pub failed: Option<Arc<AtomicBool>>,
}

pub enum ReadReply {
    Outcome(Outcome),
    /// SQLite says that it would write; nothing was run. Here are the parameters back.
    Writes(Vec<Value>),
}

pub enum ReadJob {
    Describe { reading: Reading, sql: String, reply: oneshot::Sender<Result<Description, SqlError>> },
    Query { reading: Reading, sql: String, params: Vec<Value>, reply: oneshot::Sender<Result<ReadReply, SqlError>> },
}

#[derive(Default)]
struct State {
    jobs: VecDeque<ReadJob>,
    threads: usize,
    /// Of these, waiting for a slow client.
    held: usize,
    started: u64,
    closing: bool,
}

struct Inner {
    shared: Arc<Shared>,
    state: Mutex<State>,
    wake: Condvar,
}

pub struct Readers {
    inner: Arc<Inner>,
}

impl Readers {
    pub fn start(shared: &Arc<Shared>) -> Result<Readers, EngineError> {
        let readers = Readers { inner: Arc::new(Inner { shared: shared.clone(), state: Mutex::default(), wake: Condvar::new() }) };
        for _ in 0..shared.settings.readers.max(1) {
            readers.inner.start_thread(&mut readers.inner.state.lock())?;
        }
        Ok(readers)
    }

    pub fn submit(&self, job: ReadJob) {
        self.inner.state.lock().jobs.push_back(job);
        self.inner.wake.notify_one();
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.closing = true;
        state.jobs.clear();
        drop(state);
        self.inner.wake.notify_all();
    }
}

impl Inner {
    fn start_thread(self: &Arc<Inner>, state: &mut State) -> Result<(), EngineError> {
        let name = format!("r-{}-{}", self.shared.id, state.started);
        let inner = self.clone();
        let thread_name = name.clone();
        spawn(thread_name, move || {
            let _bug = AbortOnPanic("a reader thread");
            Thread::new(inner, name).work();
        })?;
        state.started += 1;
        state.threads += 1;
        self.shared.counters.readers.store(state.threads, Ordering::Relaxed);
        Ok(())
    }

    fn next(&self) -> Option<ReadJob> {
        let mut state = self.state.lock();
        loop {
            if !state.closing
                && let Some(job) = state.jobs.pop_front()
            {
                return Some(job);
            }
            let spare = state.threads - state.held > self.shared.settings.readers.max(1);
            if state.closing || spare {
                state.threads -= 1;
                self.shared.counters.readers.store(state.threads, Ordering::Relaxed);
                return None;
            }
            self.wake.wait(&mut state);
        }
    }

    /// `wait` may take long: meanwhile another thread stands in.
    fn held_up<T>(self: &Arc<Inner>, wait: impl FnOnce() -> T) -> T {
        let readers = self.shared.settings.readers.max(1);
        {
            let mut state = self.state.lock();
            state.held += 1;
            if !state.closing && state.threads - state.held < readers && state.threads < readers + STAND_INS_MAX {
                // Without a stand-in there is one reader less for a while.
                if let Err(e) = self.start_thread(&mut state) {
                    tracing::warn!(error = %e, "no stand-in for a reader that waits for a slow client");
                }
            }
        }
        let result = wait();
        self.state.lock().held -= 1;
        result
    }
}

struct Thread {
    inner: Arc<Inner>,
    name: String,
    context: Arc<Context>,
    file: Arc<ReaderFile>,
    registration: Option<Arc<Registration>>,
    /// Opened at the first statement: before, there may be nothing to read. Of one incarnation: SQLite keeps a schema for as
    /// long as its cookie stays, and another history may have another schema under the same cookie.
    db: Option<Db>,
    incarnation: u64,
}

impl Thread {
    fn new(inner: Arc<Inner>, name: String) -> Thread {
        let context = Arc::new(Context::default());
        let file = Arc::new(ReaderFile::new(inner.shared.clone(), context.clone()));
        Thread { inner, name, context, file, registration: None, db: None, incarnation: 0 }
    }

    fn work(&mut self) {
        while let Some(job) = self.inner.next() {
            let busy = &self.inner.shared.clone().counters.readers_busy;
            busy.fetch_add(1, Ordering::Relaxed);
            match job {
                ReadJob::Describe { reading, sql, reply } => {
                    let result = self.prepare(&reading).and_then(|_pin| {
                        self.db().look_at_schema()?;
                        self.db().describe(&sql)
                    });
                    self.context.leave();
                    self.file.set_snapshot(None);
                    let _ = reply.send(result);
                }
                ReadJob::Query { reading, sql, params, reply } => self.query(&reading, &sql, params, reply),
            }
            busy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn db(&self) -> &Db {
        self.db.as_ref().expect("BUG: prepare opened it")
    }

    /// Sets the snapshot and opens the connection if it is not. The pin must live as long as the statement.
    fn prepare(&mut self, reading: &Reading) -> Result<Arc<Pin>, SqlError> {
        let shared = self.inner.shared.clone();
        shared.counters.statements.fetch_add(1, Ordering::Relaxed);
        let now = clock::now();
        let pin = match &reading.pin {
            Some(pin) => pin.clone(),
            None => shared.horizon.pin(false, now).ok_or_else(|| shared.not_ready())?,
        };
        if pin.is_expired() {
            return Err(SqlError::new(
                state::IDLE_IN_TRANSACTION_TIMEOUT,
                "the snapshot of this read-only transaction was not used for too long and is no longer kept; begin a new transaction",
            ));
        }
        pin.touch(now);
        self.context.enter(reading.session, reading.in_recovery, clock::unix_now(), reading.cancel.clone());
        self.file.set_snapshot(Some(pin.snapshot()));
        let incarnation = pin.snapshot().incarnation;
        if self.incarnation != incarnation {
            (self.db, self.incarnation) = (None, incarnation);
        }
        if self.db.is_none() {
            let registration = match &self.registration {
                Some(registration) => registration.clone(),
                None => {
                    let made = Registration::new(self.name.clone(), self.file.clone())
                        .map_err(|code| SqlError::new(state::INTERNAL_ERROR, format!("SQLite refused the file system: code {code}")))?;
                    self.registration.insert(Arc::new(made)).clone()
                }
            };
            self.db = Some(Db::open(&shared, &self.context, &registration, Use::Reading)?);
        }
        Ok(pin)
    }

    fn query(&mut self, reading: &Reading, sql: &str, params: Vec<Value>, reply: oneshot::Sender<Result<ReadReply, SqlError>>) {
        let (out, rows) = mpsc::channel(BATCHES_AHEAD);
        let mut answer = Answer { inner: self.inner.clone(), reply: Some(reply), rows: Some(rows), out, batch: Vec::new(), bytes: 0 };
        let pin = self.prepare(reading);
        let result = match &pin {
            Err(error) => Err(error.clone()),
            Ok(_) if reading.cancel.is_cancelled() => Err(cancelled()),
            Ok(_) => self.run(sql, params, &mut answer),
        };
        self.context.leave();
        self.file.set_snapshot(None);
        if let (Ok(pin), Some(_)) = (&pin, &reading.pin) {
            pin.touch(clock::now());
        }
        if result.is_err()
            && let Some(failed) = &reading.failed
        {
            failed.store(true, Ordering::SeqCst);
        }
        answer.end(result);
    }

    fn run(&self, sql: &str, params: Vec<Value>, answer: &mut Answer) -> Result<Option<Outcome>, SqlError> {
        let prepared = self.db().prepare(sql)?;
        if !prepared.is_read_only() {
            answer.writes(params);
            return Ok(None);
        }
        let finished = prepared.run(&params, |columns, row, bytes| answer.row(columns, row, bytes))?;
        match finished.columns {
            None => Ok(Some(Outcome::Done { changed: 0 })),
            Some(columns) => {
                answer.flush(&columns);
                Ok(None)
            }
        }
    }
}

/// The way of a result to its client: the first batch with the answer, so that an early error is the answer.
struct Answer {
    inner: Arc<Inner>,
    reply: Option<oneshot::Sender<Result<ReadReply, SqlError>>>,
    rows: Option<mpsc::Receiver<Result<Vec<Row>, SqlError>>>,
    out: mpsc::Sender<Result<Vec<Row>, SqlError>>,
    batch: Vec<Row>,
    bytes: usize,
}

impl Answer {
    fn row(&mut self, columns: &Arc<[Column]>, row: Row, bytes: usize) -> ControlFlow<SqlError> {
        self.batch.push(row);
        self.bytes += bytes;
        if (self.batch.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES) && !self.flush(columns) {
            // Nobody listens any more.
            return ControlFlow::Break(cancelled());
        }
        ControlFlow::Continue(())
    }

    fn flush(&mut self, columns: &Arc<[Column]>) -> bool {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() && !self.send(Ok(batch)) {
            return false;
        }
        match (self.reply.take(), self.rows.take()) {
            (Some(reply), Some(rows)) => {
                reply.send(Ok(ReadReply::Outcome(Outcome::Rows { columns: columns.clone(), rows: RowStream::new(rows) }))).is_ok()
            }
            _ => true,
        }
    }

    fn send(&self, message: Result<Vec<Row>, SqlError>) -> bool {
        match self.out.try_send(message) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(message)) => self.inner.held_up(|| self.out.blocking_send(message).is_ok()),
        }
    }

    fn writes(&mut self, params: Vec<Value>) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(Ok(ReadReply::Writes(params)));
        }
    }

    fn end(mut self, result: Result<Option<Outcome>, SqlError>) {
        match (self.reply.take(), result) {
            (Some(reply), Ok(outcome)) => {
                let outcome = outcome.expect("BUG: a result with columns was flushed");
                let _ = reply.send(Ok(ReadReply::Outcome(outcome)));
            }
            (Some(reply), Err(error)) => {
                let _ = reply.send(Err(error));
            }
            (None, Err(error)) => {
                self.send(Err(error));
            }
            (None, Ok(_)) => {}
        }
    }
}
