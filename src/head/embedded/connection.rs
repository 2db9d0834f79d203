//! A SQLite connection over one of our files, set up alike for the writer and the readers, and the running of statements.
//!
//! Decides the limits and switches of a connection, how `$n` parameters are bound, and how a row is read. Never decides
//! which connection a statement goes to. Used on the SQL thread that owns the connection only.

use super::context::Context;
use super::shared::Shared;
use super::tables::borrowed;
use super::vfs::{Registration, VFS_NAME};
use super::{authorizer, errors, functions, tables};
use crate::head::sql::{Column, Description, Row, SqlError, Value, state};
use rusqlite::config::DbConfig;
use rusqlite::hooks::AuthContext;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, OpenFlags, Statement};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Longest string, BLOB or row, in bytes.
const VALUE_BYTES_MAX: i32 = 256 << 20;
const STATEMENT_BYTES_MAX: i32 = 16 << 20;
/// Between two looks at the cancel flag, in instructions of SQLite's machine.
const STEPS_BETWEEN_CHECKS: i32 = 1000;
const STATEMENTS_CACHED: usize = 64;
/// What a value costs in a result beside its own bytes.
const VALUE_OVERHEAD_BYTES: usize = 32;

/// Which way a connection is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Writing,
    Reading,
}

/// An open and configured connection.
pub struct Db {
    // Dropped in this order: the name must outlive the connection.
    connection: Connection,
    context: Arc<Context>,
    _name: Arc<Registration>,
}

/// What a statement that ran to its end came to.
pub struct Finished {
    pub columns: Option<Arc<[Column]>>,
    pub changed: u64,
}

impl Db {
    /// # Errors
    /// When SQLite cannot read the database; it may be tried again.
    pub fn open(shared: &Arc<Shared>, context: &Arc<Context>, name: &Arc<Registration>, kind: Use) -> Result<Db, SqlError> {
        let connection = configured(shared, context, name.name(), kind).map_err(|e| errors::from_sqlite(&e, context))?;
        Ok(Db { connection, context: context.clone(), _name: name.clone() })
    }

    /// Whether no transaction is open (SQLite ends one by itself on some errors).
    pub fn is_autocommit(&self) -> bool {
        self.connection.is_autocommit()
    }

    fn error(&self, error: &rusqlite::Error) -> SqlError {
        let error = errors::from_sqlite(error, &self.context);
        if error.code == state::QUERY_CANCELED { cancelled() } else { error }
    }

    /// Transaction control of our own.
    pub fn control(&self, sql: &str) -> Result<(), SqlError> {
        self.context.own_statement.store(true, Ordering::Relaxed);
        let result = self.connection.prepare_cached(sql).and_then(|mut statement| statement.raw_execute());
        self.context.own_statement.store(false, Ordering::Relaxed);
        result.map(|_| ()).map_err(|e| self.error(&e))
    }

    /// Gives up to `pages_max` free pages back, and fewer when `enough` says so before; in a transaction of its own. Returns how many.
    ///
    /// # Errors
    /// Nothing was given back.
    pub fn give_back(&self, pages_max: u32, enough: impl FnMut() -> bool) -> Result<u32, SqlError> {
        self.control("BEGIN IMMEDIATE")?;
        let given = self.take_free_pages(pages_max, enough).and_then(|pages| self.control("COMMIT").map(|()| pages));
        if given.is_err() && !self.is_autocommit() {
            self.control("ROLLBACK")?;
        }
        given
    }

    fn take_free_pages(&self, pages_max: u32, mut enough: impl FnMut() -> bool) -> Result<u32, SqlError> {
        self.context.own_statement.store(true, Ordering::Relaxed);
        let prepared = self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages_max})"));
        self.context.own_statement.store(false, Ordering::Relaxed);
        let mut statement = prepared.map_err(|e| self.error(&e))?;
        // A row, without columns, for each page that is out.
        let (mut rows, mut pages) = (statement.raw_query(), 0);
        while rows.next().map_err(|e| self.error(&e))?.is_some() {
            pages += 1;
            if enough() {
                break;
            }
        }
        Ok(pages)
    }

    /// Preparing alone believes the schema that was read last, which may be an older snapshot's; running anything compares it.
    ///
    /// # Errors
    /// When the snapshot cannot be read.
    pub fn look_at_schema(&self) -> Result<(), SqlError> {
        let looked =
            self.connection.prepare_cached("SELECT 1 FROM sqlite_schema LIMIT 0").and_then(|mut s| s.raw_query().next().map(|_| ()));
        looked.map_err(|e| self.error(&e))
    }

    /// What `sql` is, without running it.
    pub fn describe(&self, sql: &str) -> Result<Description, SqlError> {
        let statement = self.connection.prepare(sql).map_err(|e| self.error(&e))?;
        let parameters = parameter_numbers(&statement)?.into_iter().max().unwrap_or(0);
        Ok(Description { parameters, columns: columns(&statement), read_only: statement.readonly() })
    }

    pub fn prepare(&self, sql: &str) -> Result<Prepared<'_>, SqlError> {
        let statement = self.connection.prepare_cached(sql).map_err(|e| self.error(&e))?;
        Ok(Prepared { db: self, statement })
    }
}

/// A statement that is ready to run.
pub struct Prepared<'c> {
    db: &'c Db,
    statement: CachedStatement<'c>,
}

impl Prepared<'_> {
    /// As SQLite says.
    pub fn is_read_only(&self) -> bool {
        self.statement.readonly()
    }

    pub fn has_columns(&self) -> bool {
        self.statement.column_count() > 0
    }

    /// Runs it. `take` gets each row with about how many bytes it holds, and the columns; it may stop it.
    pub fn run(
        mut self,
        params: &[Value],
        mut take: impl FnMut(&Arc<[Column]>, Row, usize) -> ControlFlow<SqlError>,
    ) -> Result<Finished, SqlError> {
        bind(&mut self.statement, params)?;
        if !self.has_columns() && self.is_read_only() && self.statement.expanded_sql().is_none() {
            return Ok(Finished { columns: None, changed: 0 }); // nothing but blanks and comments
        }
        let context = &self.db.context;
        let connection = &self.db.connection;
        let changes_before = connection.total_changes();
        // Named at the first step, not before: a cached statement may be prepared anew by it.
        let mut named: Option<Arc<[Column]>> = None;
        context.stepping.store(true, Ordering::Relaxed);
        let mut rows = self.statement.raw_query();
        let end = loop {
            match rows.next() {
                Ok(Some(row)) => {
                    let columns = named.get_or_insert_with(|| columns(row.as_ref()));
                    let mut bytes = 0;
                    let values = (0..columns.len()).map(|i| read(row.get_ref_unwrap(i), &mut bytes)).collect();
                    if let ControlFlow::Break(error) = take(columns, values, bytes) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(self.db.error(&e)),
            }
        };
        drop(rows);
        context.stepping.store(false, Ordering::Relaxed);
        end?;
        if named.is_none() && self.statement.column_count() > 0 {
            named = Some(columns(&self.statement));
        }
        // changes() keeps its value over statements that count nothing, such as DDL.
        let changed = if connection.total_changes() == changes_before { 0 } else { connection.changes() };
        Ok(Finished { columns: named, changed })
    }
}

pub fn cancelled() -> SqlError {
    SqlError::new(state::QUERY_CANCELED, "canceling statement due to user request")
}

fn configured(shared: &Arc<Shared>, context: &Arc<Context>, name: &str, kind: Use) -> rusqlite::Result<Connection> {
    let access = match kind {
        Use::Writing => OpenFlags::SQLITE_OPEN_READ_WRITE,
        Use::Reading => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let mut connection = Connection::open_with_flags_and_vfs(name, access | OpenFlags::SQLITE_OPEN_NO_MUTEX, VFS_NAME)?;
    connection.execute_batch("PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;")?;
    match kind {
        // A transaction larger than the cache spills into the file's buffer, which is where its size is limited.
        Use::Writing => connection.execute_batch(
            "PRAGMA page_size = 4096; PRAGMA journal_mode = MEMORY; PRAGMA locking_mode = NORMAL; PRAGMA synchronous = NORMAL;
             PRAGMA cache_size = -8192;",
        )?,
        Use::Reading => connection.execute_batch("PRAGMA cache_size = -1024;")?,
    }
    if kind == Use::Writing {
        // Prepared and never run: that alone says how a database is to be that has no table yet, or is written anew by a VACUUM. To run it
        // would write, each time a writer opens.
        drop(connection.prepare("PRAGMA auto_vacuum = INCREMENTAL")?);
    }
    for (switch, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false),
        (DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, false),
    ] {
        connection.set_db_config(switch, on)?;
    }
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, STATEMENT_BYTES_MAX),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 100),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
        // One, for VACUUM; the authorizer keeps it from everybody else.
        (Limit::SQLITE_LIMIT_ATTACHED, 1),
    ] {
        connection.set_limit(limit, value)?;
    }
    functions::register(&connection, shared, context)?;
    tables::register(&connection, shared)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    let c = context.clone();
    connection.progress_handler(STEPS_BETWEEN_CHECKS, Some(move || c.is_interrupted()))?;
    // Last: what stands above is not for clients.
    let c = context.clone();
    connection.authorizer(Some(move |asked: AuthContext<'_>| authorizer::decide(&c, &asked)))?;
    Ok(connection)
}

/// For each of SQLite's parameters, the number that the client means: `$2`, `$2::int` and `?2` are 2.
fn parameter_numbers(statement: &Statement<'_>) -> Result<Vec<usize>, SqlError> {
    (1..=statement.parameter_count())
        .map(|index| {
            let Some(name) = statement.parameter_name(index) else { return Ok(index) };
            let digits = name.strip_prefix(['$', '?']).map_or("", |rest| {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                &rest[..end]
            });
            digits
                .parse::<usize>()
                .ok()
                .filter(|n| (1..=65535).contains(n))
                .ok_or_else(|| SqlError::new("42P02", format!("there is no parameter {name}: write $1, $2 ...")))
        })
        .collect()
}

fn bind(statement: &mut Statement<'_>, params: &[Value]) -> Result<(), SqlError> {
    let numbers = parameter_numbers(statement)?;
    let needed = numbers.iter().copied().max().unwrap_or(0);
    if needed > params.len() {
        return Err(SqlError::new("08P01", format!("the statement needs {needed} parameters; {} were given", params.len())));
    }
    for (index, number) in numbers.into_iter().enumerate() {
        statement
            .raw_bind_parameter(index + 1, borrowed(&params[number - 1]))
            .map_err(|e| SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, format!("parameter ${number} cannot be bound: {e}")))?;
    }
    Ok(())
}

fn columns(statement: &Statement<'_>) -> Arc<[Column]> {
    statement.columns().map(|c| Column { name: c.name().to_string(), declared_type: c.decl_type().map(str::to_string) }).collect()
}

fn read(value: ValueRef<'_>, bytes: &mut usize) -> Value {
    *bytes += VALUE_OVERHEAD_BYTES;
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => Value::Integer(n),
        ValueRef::Real(x) => Value::Real(x),
        ValueRef::Text(text) => {
            *bytes += text.len();
            Value::Text(String::from_utf8_lossy(text).into_owned())
        }
        ValueRef::Blob(blob) => {
            *bytes += blob.len();
            Value::Blob(blob.to_vec())
        }
    }
}
