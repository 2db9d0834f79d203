//! A real SQLite behind [`SqlService`], one connection and one thread per session: what the protocol is tested against.

use crate::endpoint::{Port, SqlService, SqlSession};
use crate::head::sql::{Column, Description, Outcome, Row, SqlError, TxMode, TxState, Value, state};
use async_trait::async_trait;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, InterruptHandle, Statement};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

pub struct Engine {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Engine {
    pub fn new() -> Engine {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("db");
        Connection::open(&path).and_then(|c| c.pragma_update(None, "journal_mode", "wal")).expect("a database");
        Engine { _dir: dir, path }
    }
}

type Job = Box<dyn FnOnce(&Connection) + Send>;

struct LiteSession {
    jobs: std::sync::mpsc::Sender<Job>,
    interrupt: Arc<InterruptHandle>,
    tx: TxState,
}

#[async_trait]
impl SqlService for Engine {
    async fn open(&self, port: Port) -> Result<Box<dyn SqlSession>, SqlError> {
        let connection = Connection::open(&self.path).expect("opens");
        connection.busy_timeout(std::time::Duration::from_secs(10)).expect("sets");
        connection.pragma_update(None, "query_only", port == Port::Reader).expect("sets");
        let interrupt = Arc::new(connection.get_interrupt_handle());
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for job in queue {
                job(&connection);
            }
        });
        Ok(Box::new(LiteSession { jobs, interrupt, tx: TxState::Idle }))
    }

    fn parameters(&self, port: Port) -> Vec<(String, String)> {
        let on = if port == Port::Reader { "on" } else { "off" };
        vec![("in_hot_standby".into(), on.into()), ("default_transaction_read_only".into(), on.into())]
    }
}

fn sql_error(e: &rusqlite::Error) -> SqlError {
    use rusqlite::ffi;
    let text = e.to_string();
    let code = match e {
        rusqlite::Error::SqliteFailure(f, _) => match (f.extended_code, f.extended_code & 0xff) {
            (ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY, _) => state::UNIQUE_VIOLATION,
            (_, ffi::SQLITE_CONSTRAINT) => state::INTEGRITY_VIOLATION,
            (_, ffi::SQLITE_INTERRUPT) => state::QUERY_CANCELED,
            (_, ffi::SQLITE_READONLY) => state::READ_ONLY,
            _ if text.contains("no such table") => state::UNDEFINED_TABLE,
            _ => state::SYNTAX_ERROR,
        },
        _ if text.contains("no such table") => state::UNDEFINED_TABLE,
        _ => state::SYNTAX_ERROR,
    };
    SqlError::new(code, text)
}

fn columns(s: &Statement) -> Arc<[Column]> {
    s.columns().map(|c| Column { name: c.name().to_owned(), declared_type: c.decl_type().map(str::to_owned) }).collect()
}

fn number(s: &Statement, index: usize) -> usize {
    s.parameter_name(index).and_then(|n| n[1..].parse().ok()).unwrap_or(index)
}

fn value(v: ValueRef) -> Value {
    match v {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(i) => Value::Integer(i),
        ValueRef::Real(f) => Value::Real(f),
        ValueRef::Text(t) => Value::Text(String::from_utf8_lossy(t).into_owned()),
        ValueRef::Blob(b) => Value::Blob(b.to_vec()),
    }
}

fn bind(s: &mut Statement, params: &[Value]) -> rusqlite::Result<()> {
    for index in 1..=s.parameter_count() {
        let n = number(s, index);
        match params.get(n - 1) {
            None | Some(Value::Null) => s.raw_bind_parameter(index, rusqlite::types::Null)?,
            Some(Value::Integer(i)) => s.raw_bind_parameter(index, i)?,
            Some(Value::Real(f)) => s.raw_bind_parameter(index, f)?,
            Some(Value::Text(t)) => s.raw_bind_parameter(index, t)?,
            Some(Value::Blob(b)) => s.raw_bind_parameter(index, b)?,
        }
    }
    Ok(())
}

/// Runs a statement; its rows go through the channel once the outcome has been handed over.
fn run(c: &Connection, sql: &str, params: &[Value], reply: oneshot::Sender<Result<Outcome, SqlError>>) {
    let mut reply = Some(reply);
    let mut stream = None;
    let result = (|| {
        let mut s = c.prepare_cached(sql)?;
        bind(&mut s, params)?;
        if s.column_count() == 0 {
            let changed = s.raw_execute()? as u64;
            let _ = reply.take().expect("once").send(Ok(Outcome::Done { changed }));
            return Ok(());
        }
        let (to, rows) = mpsc::channel(2);
        let _ = reply.take().expect("once").send(Ok(Outcome::Rows { columns: columns(&s), rows: crate::head::sql::RowStream::new(rows) }));
        stream = Some(to.clone());
        let width = s.column_count();
        let mut found = s.raw_query();
        let mut batch: Vec<Row> = Vec::new();
        while let Some(row) = found.next()? {
            batch.push((0..width).map(|i| value(row.get_ref_unwrap(i))).collect());
            if batch.len() == 50 && to.blocking_send(Ok(std::mem::take(&mut batch))).is_err() {
                return Ok(());
            }
        }
        if !batch.is_empty() {
            let _ = to.blocking_send(Ok(batch));
        }
        Ok::<(), rusqlite::Error>(())
    })();
    if let Err(e) = result {
        let e = sql_error(&e);
        match (reply, stream) {
            (Some(reply), _) => drop(reply.send(Err(e))),
            (None, Some(stream)) => drop(stream.blocking_send(Err(e))),
            (None, None) => {}
        }
    }
}

impl LiteSession {
    async fn job<T: Send + 'static>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static) -> Result<T, SqlError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move |c: &Connection| drop(reply.send(f(c).map_err(|e| sql_error(&e)))));
        self.jobs.send(job).expect("the thread runs");
        answer.await.expect("the thread answers")
    }

    async fn say(&self, sql: String) -> Result<(), SqlError> {
        self.job(move |c| c.execute_batch(&sql)).await
    }
}

#[async_trait]
impl SqlSession for LiteSession {
    fn tx(&self) -> TxState {
        self.tx
    }

    async fn describe(&mut self, sql: &str) -> Result<Description, SqlError> {
        let sql = sql.to_owned();
        self.job(move |c| {
            let s = c.prepare(&sql)?;
            let parameters = (1..=s.parameter_count()).map(|i| number(&s, i)).max().unwrap_or(0);
            Ok(Description { parameters, columns: columns(&s), read_only: s.readonly() })
        })
        .await
    }

    async fn execute(&mut self, sql: &str, params: Vec<Value>) -> Result<Outcome, SqlError> {
        let (reply, answer) = oneshot::channel();
        let sql = sql.to_owned();
        self.jobs.send(Box::new(move |c| run(c, &sql, &params, reply))).expect("the thread runs");
        let outcome = answer.await.expect("the thread answers");
        if outcome.is_err() && self.tx == TxState::InTransaction {
            self.tx = TxState::Failed;
        }
        outcome
    }

    async fn begin(&mut self, mode: TxMode) -> Result<(), SqlError> {
        self.say(if mode.read_only { "begin; pragma query_only = on".into() } else { "begin".into() }).await?;
        self.tx = TxState::InTransaction;
        Ok(())
    }

    async fn commit(&mut self) -> Result<bool, SqlError> {
        if self.tx == TxState::Failed {
            self.rollback().await?;
            return Ok(false);
        }
        self.say("commit".into()).await?;
        self.tx = TxState::Idle;
        Ok(true)
    }

    async fn rollback(&mut self) -> Result<(), SqlError> {
        self.job(|c| if c.is_autocommit() { Ok(()) } else { c.execute_batch("rollback") }).await?;
        self.tx = TxState::Idle;
        Ok(())
    }

    async fn savepoint(&mut self, name: &str) -> Result<(), SqlError> {
        self.say(format!("savepoint \"{name}\"")).await
    }

    async fn release(&mut self, name: &str) -> Result<(), SqlError> {
        self.say(format!("release \"{name}\"")).await
    }

    async fn rollback_to(&mut self, name: &str) -> Result<(), SqlError> {
        self.say(format!("rollback to \"{name}\"")).await?;
        self.tx = TxState::InTransaction;
        Ok(())
    }

    fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
        let interrupt = self.interrupt.clone();
        Box::new(move || interrupt.interrupt())
    }
}
