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
use crate::head::sql::{Description, Outcome, RowStream, SqlError, TxMode, TxState, Value, state};
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
    /// Served by the writer or not at all.
    strict: bool,
    tx: Option<Transaction>,
    /// The reign whose answers have not gone out yet.
    unsent: Option<u64>,
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
    /// Of the writer that it belongs to, once it has begun.
    reign: Option<u64>,
    /// A statement of it was answered.
    begun: bool,
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
    pub(super) fn new(engine: Arc<Engine>, id: i32, port: Port, strict: bool) -> Session {
        engine.shared.counters.sessions.fetch_add(1, Ordering::Relaxed);
        let (canceller, token) = (Canceller::default(), Arc::default());
        Session { engine, id, port, strict, tx: None, unsent: None, last_commit: None, canceller, token }
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
        let result = self.describe_at_reader(sql).await;
        result.map_err(|error| self.fail(error))
    }

    async fn describe_at_reader(&mut self, sql: &str) -> Result<Description, SqlError> {
        let reign = self.reign()?;
        let pin = self.pinned();
        let (reply, answer) = oneshot::channel();
        self.engine.readers.submit(ReadJob::Describe { reading: self.reading(pin), sql: sql.to_string(), reply });
        let description = answer.await.unwrap_or_else(|_| Err(gone()));
        self.permitted(reign)?;
        description
    }

    /// The reign under which this session reads now; `None`: it reads as at a reader port, and nothing is checked.
    fn reign(&self) -> Result<Option<u64>, SqlError> {
        if self.port == Port::Reader {
            return Ok(None);
        }
        if let Some(Transaction { reign: Some(reign), .. }) = &self.tx {
            return Ok(Some(*reign));
        }
        match self.engine.writer() {
            Some(writer) => Ok(Some(writer.reign)),
            None if self.strict => Err(self.engine.shared.no_writer("it is not the writer")),
            None => Ok(None),
        }
    }

    fn permitted(&self, reign: Option<u64>) -> Result<(), SqlError> {
        reign.map_or(Ok(()), |reign| self.engine.shared.permits(reign))
    }

    /// What was read at the writer port goes out only as long as this region is the writer, whose reign it was when it was read.
    fn checked(&mut self, outcome: Outcome, reign: Option<u64>) -> Result<Outcome, SqlError> {
        self.permitted(reign)?;
        self.unsent = reign;
        Ok(match (outcome, reign) {
            (Outcome::Rows { columns, rows }, Some(reign)) => {
                let shared = self.engine.shared.clone();
                let check = move || shared.permits(reign).map_err(|error| interrupted(&error));
                Outcome::Rows { columns, rows: rows.checked(Box::new(check)) }
            }
            (outcome, _) => outcome,
        })
    }

    /// The last question before answers that were given leave the process: whether they still may.
    ///
    /// # Errors
    /// Why they must not.
    pub fn may_answer(&mut self) -> Result<(), SqlError> {
        let unsent = self.unsent.take();
        self.permitted(unsent).map_err(|error| interrupted(&error))
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
                Ok(Some(writer)) => self.begin_writing(&writer, |keep| Work::Statement { sql: sql.to_string(), params, keep }).await,
                Ok(None) => match self.start_reading() {
                    Ok(pin) => self.read_only(sql, params, pin).await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
        };
        self.note_begun(&result);
        result.map_err(|error| self.fail(error))
    }

    fn note_begun<T>(&mut self, result: &Result<T, SqlError>) {
        if let (Some(tx), true) = (&mut self.tx, result.as_ref().map_or_else(|e| !e.elsewhere, |_| true)) {
            tx.begun = true;
        }
    }

    /// # Errors
    /// When a transaction is open already (25001).
    pub async fn begin(&mut self, mode: TxMode) -> Result<(), SqlError> {
        if self.tx.is_some() {
            return Err(SqlError::new("25001", "there is already a transaction in progress"));
        }
        // The writer is taken, or a snapshot pinned, by the first statement.
        self.tx = Some(Transaction { mode, body: Body::Fresh, failed: Arc::default(), savepoints: Vec::new(), reign: None, begun: false });
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
        let committed = match self.in_hold(&hold, |_| Work::Commit).await {
            Ok(answer) => self.settle(&hold.writer, answer).await,
            Err(error) => Err(error),
        };
        committed.map(|_| true).map_err(lost)
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
                Ok(Some(writer)) => self.begin_writing(&writer, |keep| Work::Mark { sql, keep }).await.map(|_| ()),
                Ok(None) => self.start_reading().map(|_| ()),
                Err(error) => Err(error),
            },
        };
        self.note_begun(&result);
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
        let Some(tx) = &mut self.tx else { return error };
        tx.failed.store(true, Ordering::SeqCst);
        if error.elsewhere && tx.begun {
            // What came before is lost with the writer: the transaction cannot go on at another one.
            self.set_over();
            return lost(error);
        }
        error
    }

    fn writer_for_transaction(&mut self) -> Result<Option<Arc<Writer>>, SqlError> {
        if self.port == Port::Reader {
            return Ok(None);
        }
        let writer = self.engine.writer();
        match &writer {
            Some(writer) => self.engine.shared.permits(writer.reign)?,
            None if self.strict => return Err(self.engine.shared.no_writer("it is not the writer")),
            None => {}
        }
        let Some(tx) = &mut self.tx else { return Ok(None) };
        tx.reign = writer.as_ref().map(|w| w.reign);
        Ok(writer.filter(|_| !tx.mode.read_only))
    }

    fn pinned(&self) -> Option<Arc<Pin>> {
        match &self.tx {
            Some(Transaction { body: Body::Reading(pin), .. }) => Some(pin.clone()),
            _ => None,
        }
    }

    fn start_reading(&mut self) -> Result<Arc<Pin>, SqlError> {
        let pin = self.engine.shared.horizon.pin(true, clock::now()).ok_or_else(|| self.engine.shared.not_ready())?;
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

    async fn read(&mut self, sql: &str, params: Vec<Value>, pin: Option<Arc<Pin>>) -> Result<ReadReply, SqlError> {
        let reign = self.reign()?;
        let (reply, answer) = oneshot::channel();
        self.engine.readers.submit(ReadJob::Query { reading: self.reading(pin), sql: sql.to_string(), params, reply });
        let answer = answer.await.unwrap_or_else(|_| Err(gone()));
        self.permitted(reign)?;
        Ok(match answer? {
            ReadReply::Outcome(outcome) => ReadReply::Outcome(self.checked(outcome, reign)?),
            ReadReply::Writes(params) => ReadReply::Writes(params),
        })
    }

    async fn read_only(&mut self, sql: &str, params: Vec<Value>, pin: Arc<Pin>) -> Result<Outcome, SqlError> {
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
            if self.strict {
                return Err(self.engine.shared.no_writer("it is not the writer"));
            }
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
        self.engine.shared.may_write()?;
        let (request, answer) = self.request(&writer, Work::Statement { sql: sql.to_string(), params, keep: false });
        let id = writer.submit(request);
        let answer = self.answer(&writer, id, answer).await?;
        self.settle(&writer, answer).await
    }

    fn request(&self, writer: &Writer, work: Work) -> (Request, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (Request { session: self.id, cancel: self.token.clone(), work, reply, under_way: writer.under_way() }, answer)
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
        let (request, answer) = self.request(writer, work(false));
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
        let (request, answer) = self.request(&hold.writer, work(()));
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
        let Answer { result, seen, committed, under_way, .. } = answer;
        if let Err(error) = &result {
            // These say something about rows or tables; other errors saw nothing.
            if !matches!(&error.code[..2], "22" | "23") {
                return Err(error.clone());
            }
        }
        let at_most = self.engine.shared.settings.commit_wait_max;
        let settled = self.engine.shared.progress.wait(writer.reign, seen, at_most).await;
        drop(under_way);
        if let (Err(error), Ok(()) | Err(NotDurable::TimedOut)) = (&result, &settled) {
            return Err(error.clone());
        }
        if let Err(not_durable) = settled {
            return Err(self.not_durable(&not_durable, committed.is_some()));
        }
        let product = result?;
        self.unsent = Some(writer.reign);
        if committed.is_some() {
            self.last_commit = committed;
        }
        Ok(match product {
            Product::Rows { columns, rows } => {
                let (out, receiver) = mpsc::channel(1);
                out.try_send(Ok(rows)).expect("BUG: a new channel has room");
                let shared = self.engine.shared.clone();
                let reign = writer.reign;
                let check = move || shared.permits(reign).map_err(|error| interrupted(&error));
                Outcome::Rows { columns, rows: RowStream::new(receiver).checked(Box::new(check)) }
            }
            Product::Changed(changed) => Outcome::Done { changed },
            Product::Nothing | Product::Description(_) => Outcome::Done { changed: 0 },
        })
    }

    fn not_durable(&self, why: &NotDurable, committed: bool) -> SqlError {
        let shared = &self.engine.shared;
        let (role_lost, reason) = match (why, shared.gate()) {
            (NotDurable::Closed(reason) | NotDurable::Withheld(reason), _) => (true, reason.clone()),
            (NotDurable::TimedOut, WriteGate::Closed { reason } | WriteGate::Fenced { reason, .. }) => (false, reason),
            (NotDurable::TimedOut, WriteGate::Open) => {
                (false, format!("the copies did not acknowledge it within {:?}", shared.settings.commit_wait_max))
            }
        };
        let unknown = |code| {
            SqlError::new(code, format!("the commit's outcome is unknown: {reason}"))
                .hint("It may still become durable. Look for its effect before you repeat it.")
        };
        match (role_lost, committed) {
            (true, true) => unknown(state::RESOLUTION_UNKNOWN),
            (false, true) => unknown(state::COMMIT_UNKNOWN),
            (true, false) => shared.no_writer(&reason),
            (false, false) => SqlError::new(state::IO_ERROR, format!("what the statement saw is not durable yet: {reason}")),
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

/// The writer went, and a transaction with it.
fn lost(error: SqlError) -> SqlError {
    if !error.elsewhere {
        return error;
    }
    let code = if error.code == state::SERIALIZATION_FAILURE { error.code } else { state::ADMIN_SHUTDOWN };
    SqlError { code, elsewhere: false, ..error }
}

/// The writer went while a result was on its way out. What was given before must not be taken for the whole.
fn interrupted(error: &SqlError) -> SqlError {
    let text = format!("the result was not given as a whole, as this region ceased to be the writer: {}", error.message);
    SqlError::new(state::SERIALIZATION_FAILURE, text).hint("Run it again.")
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
