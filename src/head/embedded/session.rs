//! A session: what an endpoint uses for one client.
//!
//! Decides where a statement runs: alone and read-only on a reader at the newest visible LSN, alone and writing on the
//! writer, in a transaction on the writer which it then owns, in a read-only transaction on readers at one pinned LSN.
//! Decides when an answer may go: when everything it saw is durable. Never parses SQL: SQLite says what is read-only (the
//! first word of a statement is used to spare obvious writes the way over a reader, and is always safe to be wrong).
//! Owned by one task of an endpoint. Dropping it in a transaction rolls back.

use super::Engine;
use super::context::{Canceller, Token};
use super::horizon::Pin;
use super::progress::NotDurable;
use super::readers::{ReadJob, ReadReply, Reading};
use super::shared::verb;
use super::writer::{Answer, Hold, Product, Request, Work, Writer};
use crate::base::Lsn;
use crate::head::WriteGate;
use crate::head::sql::{Description, Outcome, SqlError, TxMode, TxState, Value, state};
use crate::io::clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Through which door a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// Reads and writes, where this region has the writer.
    Writer,
    /// Reads only, everywhere.
    Reader,
}

/// One client's connection to the engine.
pub struct Session {
    engine: Arc<Engine>,
    id: i32,
    port: Port,
    tx: Option<Transaction>,
    last_commit: Option<Lsn>,
    canceller: Canceller,
    /// Of the statement that runs now, or ran last.
    token: Arc<Token>,
}

struct Transaction {
    mode: TxMode,
    body: Body,
    /// Shared with readers: an error may come behind the first rows.
    failed: Arc<AtomicBool>,
    savepoints: Vec<String>,
}

/// Where a transaction lives.
#[derive(Clone)]
enum Body {
    /// Nothing was asked yet, and nothing is held.
    Fresh,
    Writing(Arc<Hold>),
    Reading(Arc<Pin>),
    /// It was rolled back; the client does not know yet, or has not said so.
    Over,
}

impl Session {
    pub(super) fn new(engine: Arc<Engine>, id: i32, port: Port) -> Session {
        engine.shared.counters.sessions.fetch_add(1, Ordering::Relaxed);
        Session { engine, id, port, tx: None, last_commit: None, canceller: Canceller::default(), token: Arc::default() }
    }

    /// The number that `pg_backend_pid()` gives.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.id
    }

    #[must_use]
    pub fn tx(&self) -> TxState {
        match &self.tx {
            None => TxState::Idle,
            Some(tx) if tx.failed.load(Ordering::SeqCst) => TxState::Failed,
            Some(_) => TxState::InTransaction,
        }
    }

    /// Cancels this session's running statement, from anywhere.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// End of this session's last acknowledged commit that wrote something.
    #[must_use]
    pub fn last_commit_lsn(&self) -> Option<Lsn> {
        self.last_commit
    }

    /// What one statement is, without running it. In a transaction it sees the transaction's own tables.
    ///
    /// # Errors
    /// As running it would, as far as preparing tells.
    pub async fn describe(&mut self, sql: &str) -> Result<Description, SqlError> {
        self.token = self.canceller.begin();
        self.refuse_if_failed()?;
        if let Some(Transaction { body: Body::Writing(hold), .. }) = &self.tx {
            let hold = hold.clone();
            let keep = self.keeps();
            let answer = self.in_hold(&hold, |_| Work::Describe { sql: sql.to_string(), keep }).await?;
            return match answer.result {
                Ok(Product::Description(description)) => Ok(description),
                Ok(_) => unreachable!("BUG: a description was asked for"),
                Err(error) => Err(self.fail(error)),
            };
        }
        let pin = self.pinned();
        let (reply, answer) = oneshot::channel();
        self.engine.readers.submit(ReadJob::Describe { reading: self.reading(pin), sql: sql.to_string(), reply });
        match answer.await.unwrap_or_else(|_| Err(gone())) {
            Ok(description) => Ok(description),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Runs one statement with its `$n` parameters.
    ///
    /// # Errors
    /// [`SqlError`], with which a transaction has failed. 40003 alone leaves open whether the statement's commit happened.
    pub async fn execute(&mut self, sql: &str, params: Vec<Value>) -> Result<Outcome, SqlError> {
        self.token = self.canceller.begin();
        self.refuse_if_failed()?;
        let Some(tx) = &self.tx else {
            return self.alone(sql, params).await;
        };
        let body = tx.body.clone();
        let result = match body {
            Body::Writing(hold) => {
                let keep = self.keeps();
                match self.in_hold(&hold, |_| Work::Statement { sql: sql.to_string(), params, keep }).await {
                    Ok(answer) => self.settle(&hold.writer, answer).await,
                    Err(error) => Err(error),
                }
            }
            Body::Reading(pin) => self.read_only(sql, params, pin).await,
            Body::Over => Err(over()),
            Body::Fresh => match self.writer_for_transaction() {
                Some(writer) => self.begin_writing(&writer, |keep| Work::Statement { sql: sql.to_string(), params, keep }).await,
                None => match self.start_reading() {
                    Ok(pin) => self.read_only(sql, params, pin).await,
                    Err(error) => Err(error),
                },
            },
        };
        result.map_err(|error| self.fail(error))
    }

    /// # Errors
    /// When a transaction is open already (25001).
    pub async fn begin(&mut self, mode: TxMode) -> Result<(), SqlError> {
        if self.tx.is_some() {
            return Err(SqlError::new("25001", "there is already a transaction in progress"));
        }
        // The writer is taken, or a snapshot pinned, by the first statement.
        self.tx = Some(Transaction { mode, body: Body::Fresh, failed: Arc::default(), savepoints: Vec::new() });
        Ok(())
    }

    /// Ends the transaction, whatever comes of it. `false`: it had failed and was rolled back.
    ///
    /// # Errors
    /// Why it did not commit; 40003 when that is not known.
    pub async fn commit(&mut self) -> Result<bool, SqlError> {
        self.token = self.canceller.begin();
        if self.tx() == TxState::Failed {
            self.rollback().await?;
            return Ok(false);
        }
        let Some(tx) = self.tx.take() else { return Ok(true) };
        let Body::Writing(hold) = tx.body else { return Ok(true) };
        let answer = self.in_hold(&hold, |_| Work::Commit).await?;
        self.settle(&hold.writer, answer).await.map(|_| true)
    }

    /// Rolls back; nothing happens without a transaction.
    ///
    /// # Errors
    /// None at present.
    pub async fn rollback(&mut self) -> Result<(), SqlError> {
        if let Some(Transaction { body: Body::Writing(hold), .. }) = self.tx.take() {
            // One that is over already was rolled back, which is what is wanted.
            let _ = self.in_hold(&hold, |_| Work::Rollback).await;
        }
        Ok(())
    }

    /// # Errors
    /// Outside a transaction (25P01), in a failed one (25P02).
    pub async fn savepoint(&mut self, name: &str) -> Result<(), SqlError> {
        self.need_transaction("SAVEPOINT")?;
        self.refuse_if_failed()?;
        self.mark(format!("SAVEPOINT {}", quoted(name))).await?;
        self.savepoints().push(name.to_string());
        Ok(())
    }

    /// # Errors
    /// As [`Session::savepoint`]; 3B001 when there is none of that name.
    pub async fn release(&mut self, name: &str) -> Result<(), SqlError> {
        self.need_transaction("RELEASE SAVEPOINT")?;
        self.refuse_if_failed()?;
        let at = self.find_savepoint(name)?;
        self.mark(format!("RELEASE {}", quoted(name))).await?;
        self.savepoints().truncate(at);
        Ok(())
    }

    /// Also heals a failed transaction.
    ///
    /// # Errors
    /// As [`Session::release`]; 25P02 when the transaction as a whole was rolled back already.
    pub async fn rollback_to(&mut self, name: &str) -> Result<(), SqlError> {
        self.need_transaction("ROLLBACK TO SAVEPOINT")?;
        let at = self.find_savepoint(name)?;
        self.mark(format!("ROLLBACK TO {}", quoted(name))).await?;
        self.savepoints().truncate(at + 1);
        if let Some(tx) = &mut self.tx {
            // A new flag: a read that fails late belongs to what was rolled back.
            tx.failed = Arc::default();
        }
        Ok(())
    }

    fn savepoints(&mut self) -> &mut Vec<String> {
        &mut self.tx.as_mut().expect("BUG: savepoints are of a transaction").savepoints
    }

    fn need_transaction(&self, what: &str) -> Result<(), SqlError> {
        if self.tx.is_some() { Ok(()) } else { Err(SqlError::new("25P01", format!("{what} can only be used in transaction blocks"))) }
    }

    fn find_savepoint(&mut self, name: &str) -> Result<usize, SqlError> {
        match self.savepoints().iter().rposition(|s| s.eq_ignore_ascii_case(name)) {
            Some(at) => Ok(at),
            None => Err(self.fail(SqlError::new("3B001", format!("savepoint \"{name}\" does not exist")))),
        }
    }

    /// Savepoint control; on readers there is nothing to undo.
    async fn mark(&mut self, sql: String) -> Result<(), SqlError> {
        self.token = self.canceller.begin();
        let body = self.tx.as_ref().map_or(Body::Over, |tx| tx.body.clone());
        let result = match body {
            Body::Writing(hold) => {
                let keep = self.keeps();
                match self.in_hold(&hold, |_| Work::Mark { sql, keep }).await {
                    Ok(answer) => answer.result.map(|_| ()),
                    Err(error) => Err(error),
                }
            }
            Body::Reading(_) => Ok(()),
            Body::Over => Err(over()),
            Body::Fresh => match self.writer_for_transaction() {
                Some(writer) => self.begin_writing(&writer, |keep| Work::Mark { sql, keep }).await.map(|_| ()),
                None => self.start_reading().map(|_| ()),
            },
        };
        result.map_err(|error| self.fail(error))
    }

    /// Whether there is a savepoint to go back to.
    fn keeps(&self) -> bool {
        self.tx.as_ref().is_some_and(|tx| !tx.savepoints.is_empty())
    }

    fn refuse_if_failed(&self) -> Result<(), SqlError> {
        if self.tx() == TxState::Failed {
            let message = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(SqlError::new(state::IN_FAILED_TRANSACTION, message));
        }
        Ok(())
    }

    /// Notes that the transaction, if there is one, has failed.
    fn fail(&mut self, error: SqlError) -> SqlError {
        if let Some(tx) = &mut self.tx {
            tx.failed.store(true, Ordering::SeqCst);
        }
        error
    }

    fn writer_for_transaction(&self) -> Option<Arc<Writer>> {
        let read_only = self.tx.as_ref().is_some_and(|tx| tx.mode.read_only);
        if self.port == Port::Reader || read_only { None } else { self.engine.writer() }
    }

    fn pinned(&self) -> Option<Arc<Pin>> {
        match &self.tx {
            Some(Transaction { body: Body::Reading(pin), .. }) => Some(pin.clone()),
            _ => None,
        }
    }

    fn start_reading(&mut self) -> Result<Arc<Pin>, SqlError> {
        let pin = self.engine.shared.horizon.pin(true, clock::now()).ok_or_else(super::not_ready)?;
        if let Some(tx) = &mut self.tx {
            tx.body = Body::Reading(pin.clone());
        }
        Ok(pin)
    }

    fn reading(&self, pin: Option<Arc<Pin>>) -> Reading {
        Reading {
            session: self.id,
            in_recovery: self.port == Port::Reader || self.engine.writer().is_none(),
            cancel: self.token.clone(),
            failed: pin.as_ref().and_then(|_| self.tx.as_ref().map(|tx| tx.failed.clone())),
            pin,
        }
    }

    async fn read(&self, sql: &str, params: Vec<Value>, pin: Option<Arc<Pin>>) -> Result<ReadReply, SqlError> {
        let (reply, answer) = oneshot::channel();
        self.engine.readers.submit(ReadJob::Query { reading: self.reading(pin), sql: sql.to_string(), params, reply });
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn read_only(&self, sql: &str, params: Vec<Value>, pin: Arc<Pin>) -> Result<Outcome, SqlError> {
        match self.read(sql, params, Some(pin)).await? {
            ReadReply::Outcome(outcome) => Ok(outcome),
            ReadReply::Writes(_) if self.port == Port::Writer && self.engine.writer().is_some() => {
                Err(SqlError::new(state::READ_ONLY, format!("cannot execute {} in a read-only transaction", verb(sql))))
            }
            ReadReply::Writes(_) => Err(self.no_writes(sql)),
        }
    }

    fn no_writes(&self, sql: &str) -> SqlError {
        self.engine.shared.read_only(sql, self.engine.writer().is_some())
    }

    /// A statement outside a transaction.
    async fn alone(&mut self, sql: &str, params: Vec<Value>) -> Result<Outcome, SqlError> {
        let writer = if self.port == Port::Writer { self.engine.writer() } else { None };
        let Some(writer) = writer else {
            return match self.read(sql, params, None).await? {
                ReadReply::Outcome(outcome) => Ok(outcome),
                ReadReply::Writes(_) => Err(self.no_writes(sql)),
            };
        };
        let params = if is_surely_a_write(sql) {
            params
        } else {
            match self.read(sql, params, None).await? {
                ReadReply::Outcome(outcome) => return Ok(outcome),
                ReadReply::Writes(params) => params,
            }
        };
        if let WriteGate::Closed { reason } = self.engine.shared.gate() {
            return Err(SqlError::new(state::IO_ERROR, super::writes_stopped(&reason)));
        }
        let (request, answer) = self.request(Work::Statement { sql: sql.to_string(), params, keep: false });
        let id = writer.submit(request);
        let answer = self.answer(&writer, id, answer).await?;
        self.settle(&writer, answer).await
    }

    fn request(&self, work: Work) -> (Request, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (Request { session: self.id, cancel: self.token.clone(), work, reply }, answer)
    }

    /// Waits for the writer thread; a cancel takes back what has not begun.
    async fn answer(&self, writer: &Writer, id: u64, mut answer: oneshot::Receiver<Answer>) -> Result<Answer, SqlError> {
        let cancel = &self.token;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer.map_err(|_| gone()),
                () = cancel.wake.notified() => {
                    if cancel.is_cancelled() && writer.withdraw(id) {
                        return Err(super::connection::cancelled());
                    }
                }
            }
        }
    }

    /// The first statement of a writing transaction.
    async fn begin_writing(&mut self, writer: &Arc<Writer>, work: impl FnOnce(bool) -> Work) -> Result<Outcome, SqlError> {
        let (request, answer) = self.request(work(false));
        let hold = Arc::new(writer.begin(request));
        if let Some(tx) = &mut self.tx {
            tx.body = Body::Writing(hold.clone());
        }
        match self.answer(writer, hold.id(), answer).await {
            Ok(answer) => {
                self.note_end(&answer);
                self.settle(writer, answer).await
            }
            Err(error) => {
                self.set_over();
                Err(error)
            }
        }
    }

    /// A further request in the transaction that owns the writer. `Err`: the transaction is already over.
    async fn in_hold(&mut self, hold: &Arc<Hold>, work: impl FnOnce(()) -> Work) -> Result<Answer, SqlError> {
        let (request, answer) = self.request(work(()));
        let answer = match hold.submit(request) {
            Ok(()) => answer.await.map_err(|_| gone()),
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => {
                self.note_end(&answer);
                Ok(answer)
            }
            Err(error) => {
                self.set_over();
                Err(self.fail(error))
            }
        }
    }

    fn note_end(&mut self, answer: &Answer) {
        if answer.over {
            self.set_over();
        }
    }

    fn set_over(&mut self) {
        if let Some(tx) = &mut self.tx {
            tx.body = Body::Over;
        }
    }

    /// Holds an answer back until everything it saw is durable.
    async fn settle(&mut self, writer: &Writer, answer: Answer) -> Result<Outcome, SqlError> {
        if let Err(error) = &answer.result {
            // These say something about rows or tables; other errors saw nothing.
            if !matches!(&error.code[..2], "22" | "23") {
                return Err(error.clone());
            }
        }
        let at_most = self.engine.shared.settings.commit_wait_max;
        let settled = self.engine.shared.progress.wait(writer.reign, answer.seen, at_most).await;
        let product = answer.result?;
        if let Err(not_durable) = settled {
            return Err(self.not_durable(&not_durable, answer.committed.is_some()));
        }
        if answer.committed.is_some() {
            self.last_commit = answer.committed;
        }
        Ok(match product {
            Product::Rows { columns, rows } => {
                let (out, receiver) = mpsc::channel(1);
                out.try_send(Ok(rows)).expect("BUG: a new channel has room");
                Outcome::Rows { columns, rows: receiver }
            }
            Product::Changed(changed) => Outcome::Done { changed },
            Product::Nothing | Product::Description(_) => Outcome::Done { changed: 0 },
        })
    }

    fn not_durable(&self, why: &NotDurable, committed: bool) -> SqlError {
        let why = match (why, self.engine.shared.gate()) {
            (NotDurable::Closed(reason), _) => reason.clone(),
            (NotDurable::TimedOut, WriteGate::Closed { reason }) => reason,
            (NotDurable::TimedOut, WriteGate::Open) => {
                format!("the copies did not acknowledge it within {:?}", self.engine.shared.settings.commit_wait_max)
            }
        };
        if committed {
            SqlError::new(state::COMMIT_UNKNOWN, format!("the commit's outcome is unknown: {why}"))
                .hint("It may still become durable. Look for its effect before you repeat it.")
        } else {
            SqlError::new(state::IO_ERROR, format!("what the statement saw is not durable yet: {why}"))
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.engine.shared.counters.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

fn gone() -> SqlError {
    SqlError::new(state::ADMIN_SHUTDOWN, "the engine is shutting down")
}

fn over() -> SqlError {
    SqlError::new(state::IN_FAILED_TRANSACTION, "the transaction was rolled back as a whole; send ROLLBACK")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Statements that begin so write; the others are asked about at a reader first.
fn is_surely_a_write(sql: &str) -> bool {
    matches!(
        verb(sql).as_str(),
        "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "CREATE" | "DROP" | "ALTER" | "VACUUM" | "REINDEX" | "ANALYZE"
    )
}
