//! What a session and an endpoint say to each other: values, columns, outcomes, errors. No wire format here
//! ([`crate::endpoint`] has it) and no engine ([`super::embedded`] has it).

use std::sync::Arc;
use tokio::sync::mpsc;

/// A value as the engine has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

pub type Row = Vec<Value>;

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The type the table's column was declared with (`INTEGER`, `timestamptz` ...); `None` for an expression.
    pub declared_type: Option<String>,
}

/// What preparing a statement tells, without running it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Highest `$n` (or `?n`) in the statement.
    pub parameters: usize,
    pub columns: Arc<[Column]>,
    /// As SQLite says (`sqlite3_stmt_readonly`), not a parser of ours.
    pub read_only: bool,
}

/// What a statement came to.
#[derive(Debug)]
pub enum Outcome {
    /// Rows arrive in batches; the last may be an error. Everything in them is durable when it is handed out.
    Rows { columns: Arc<[Column]>, rows: RowStream },
    /// A statement without columns. `changed`: rows inserted, updated or deleted by it.
    Done { changed: u64 },
}

/// Says whether what was read may still be given out.
pub type Check = Box<dyn Fn() -> Result<(), SqlError> + Send + Sync>;

/// The rows of a result, in batches. Dropping it stops the statement.
pub struct RowStream {
    batches: mpsc::Receiver<Result<Vec<Row>, SqlError>>,
    /// Looked at after each batch, right before it goes out: the reader may have lost its right to answer meanwhile.
    check: Option<Check>,
    over: bool,
}

impl RowStream {
    #[must_use]
    pub fn new(batches: mpsc::Receiver<Result<Vec<Row>, SqlError>>) -> RowStream {
        RowStream { batches, check: None, over: false }
    }

    #[must_use]
    pub fn checked(self, check: Check) -> RowStream {
        RowStream { check: Some(check), ..self }
    }

    /// The next batch; `None`: there are no more. An error is the last thing that comes.
    pub async fn recv(&mut self) -> Option<Result<Vec<Row>, SqlError>> {
        if self.over {
            return None;
        }
        let batch = self.batches.recv().await;
        let refused = self.check.as_ref().and_then(|check| check().err());
        self.over = refused.is_some() || !matches!(batch, Some(Ok(_)));
        match refused {
            Some(error) => Some(Err(error)),
            None => batch,
        }
    }
}

impl std::fmt::Debug for RowStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowStream").field("checked", &self.check.is_some()).field("over", &self.over).finish_non_exhaustive()
    }
}

/// Transaction state of a session, as the PostgreSQL protocol reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxState {
    Idle,
    InTransaction,
    /// An error happened inside; everything but ROLLBACK (or COMMIT, which rolls back) is refused with 25P02.
    Failed,
}

/// `BEGIN`'s options that mean something here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxMode {
    pub read_only: bool,
}

/// An error for the client: five characters of SQLSTATE and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
pub struct SqlError {
    pub code: &'static str,
    pub message: String,
    pub hint: Option<String>,
    /// The statement surely did nothing, and only because there is no writer here (now): it may be run again where there is one.
    pub elsewhere: bool,
}

impl SqlError {
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> SqlError {
        SqlError { code, message: message.into(), hint: None, elsewhere: false }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> SqlError {
        self.hint = Some(hint.into());
        self
    }

    /// See [`SqlError::elsewhere`].
    #[must_use]
    pub fn run_elsewhere(mut self) -> SqlError {
        self.elsewhere = true;
        self
    }
}

/// SQLSTATEs that Parhelion itself raises.
pub mod state {
    /// Whether the commit happened is not known: the writer, or the way to it, went while it was under way.
    pub const RESOLUTION_UNKNOWN: &str = "08007";
    /// A write on a reader; the message names the primary.
    pub const READ_ONLY: &str = "25006";
    pub const IN_FAILED_TRANSACTION: &str = "25P02";
    pub const IDLE_IN_TRANSACTION_TIMEOUT: &str = "25P03";
    pub const SERIALIZATION_FAILURE: &str = "40001";
    /// The commit was handed to the copies but did not become durable in time: it may or may not have happened.
    pub const COMMIT_UNKNOWN: &str = "40003";
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub const SYNTAX_ERROR: &str = "42601";
    pub const UNDEFINED_TABLE: &str = "42P01";
    pub const UNDEFINED_COLUMN: &str = "42703";
    pub const UNDEFINED_FUNCTION: &str = "42883";
    pub const DUPLICATE_TABLE: &str = "42P07";
    pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
    pub const QUERY_CANCELED: &str = "57014";
    /// The role changed or the server is stopping: this session ends.
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    /// Writes are stopped: too few copies.
    pub const IO_ERROR: &str = "58030";
    /// A reader looked at a state so old that its page versions are no longer kept.
    pub const SNAPSHOT_TOO_OLD: &str = "72000";
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    pub const UNIQUE_VIOLATION: &str = "23505";
    pub const NOT_NULL_VIOLATION: &str = "23502";
    pub const FOREIGN_KEY_VIOLATION: &str = "23503";
    pub const CHECK_VIOLATION: &str = "23514";
    pub const INTEGRITY_VIOLATION: &str = "23000";
    pub const DATATYPE_MISMATCH: &str = "42804";
    pub const INTERNAL_ERROR: &str = "XX000";
    pub const DATA_CORRUPTED: &str = "XX001";
}
