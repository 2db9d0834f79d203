//! From SQLite's result codes and sentences to SQLSTATEs.
//!
//! Decides the five characters a driver looks at. The message stays SQLite's own, except where the engine knows better
//! (a denial, a refused commit, an unreadable page): then the context's sentence goes out.

use super::context::Context;
use crate::head::sql::{SqlError, state};
use rusqlite::{Error, ffi};

/// The error for the client. Takes what the callbacks left in `context`.
pub fn from_sqlite(error: &Error, context: &Context) -> SqlError {
    let blame = context.take_blame();
    let (code, message) = match error {
        Error::SqliteFailure(e, message) => (Some(e), message.clone()),
        Error::SqlInputError { error, msg, .. } => (Some(error), Some(msg.clone())),
        Error::MultipleStatement => return SqlError::new(state::SYNTAX_ERROR, "only one statement at a time can be executed here"),
        Error::NulError(_) => return SqlError::new("22021", "a statement cannot hold a zero byte"),
        other => return SqlError::new(state::INTERNAL_ERROR, other.to_string()),
    };
    let Some(code) = code else {
        return SqlError::new(state::INTERNAL_ERROR, error.to_string());
    };
    if let Some(blame) = blame {
        // A callback spoke: the code is the consequence of what it said.
        let primary = code.extended_code & 0xff;
        if matches!(primary, ffi::SQLITE_AUTH | ffi::SQLITE_FULL | ffi::SQLITE_IOERR | ffi::SQLITE_READONLY | ffi::SQLITE_ERROR) {
            return blame;
        }
    }
    let message = message.unwrap_or_else(|| ffi::code_to_str(code.extended_code).to_string());
    SqlError::new(sqlstate(code.extended_code, &message), message)
}

fn sqlstate(extended: i32, message: &str) -> &'static str {
    match extended {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => return state::UNIQUE_VIOLATION,
        ffi::SQLITE_CONSTRAINT_NOTNULL => return state::NOT_NULL_VIOLATION,
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => return state::FOREIGN_KEY_VIOLATION,
        ffi::SQLITE_CONSTRAINT_CHECK => return state::CHECK_VIOLATION,
        ffi::SQLITE_CONSTRAINT_DATATYPE => return state::DATATYPE_MISMATCH,
        _ => {}
    }
    match extended & 0xff {
        ffi::SQLITE_CONSTRAINT => state::INTEGRITY_VIOLATION,
        ffi::SQLITE_MISMATCH => state::DATATYPE_MISMATCH,
        ffi::SQLITE_TOOBIG => state::PROGRAM_LIMIT_EXCEEDED,
        ffi::SQLITE_FULL => "53100",
        ffi::SQLITE_NOMEM => "53200",
        ffi::SQLITE_INTERRUPT => state::QUERY_CANCELED,
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => state::DATA_CORRUPTED,
        ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED | ffi::SQLITE_SCHEMA => state::SERIALIZATION_FAILURE,
        ffi::SQLITE_READONLY => state::READ_ONLY,
        ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN => state::IO_ERROR,
        ffi::SQLITE_AUTH => state::INSUFFICIENT_PRIVILEGE,
        ffi::SQLITE_RANGE => "08P01",
        ffi::SQLITE_ERROR => from_message(message),
        _ => state::INTERNAL_ERROR,
    }
}

/// SQLITE_ERROR says nothing but its sentence.
fn from_message(message: &str) -> &'static str {
    // one line per family; the first that is found decides
    const SENTENCES: &[(&str, &str)] = &[
        ("syntax error", state::SYNTAX_ERROR),
        ("incomplete input", state::SYNTAX_ERROR),
        ("unrecognized token", state::SYNTAX_ERROR),
        ("values for", state::SYNTAX_ERROR),
        ("values were supplied", state::SYNTAX_ERROR),
        ("no such table", state::UNDEFINED_TABLE),
        ("no such view", state::UNDEFINED_TABLE),
        ("no such index", "42704"),
        ("no such trigger", "42704"),
        ("no such module", "42704"),
        ("no such collation", "42704"),
        ("no such savepoint", "3B001"),
        ("no such column", state::UNDEFINED_COLUMN),
        ("has no column named", state::UNDEFINED_COLUMN),
        ("unknown column", state::UNDEFINED_COLUMN),
        ("no such function", state::UNDEFINED_FUNCTION),
        ("wrong number of arguments to function", state::UNDEFINED_FUNCTION),
        ("too many arguments on", state::UNDEFINED_FUNCTION),
        ("already exists", state::DUPLICATE_TABLE),
        ("already another table or index", state::DUPLICATE_TABLE),
        ("duplicate column name", "42701"),
        ("ambiguous column name", "42702"),
        ("integer overflow", "22003"),
        ("malformed JSON", "22P02"),
        ("foreign key mismatch", "42830"),
        ("within a transaction", "25001"),
        ("misuse of aggregate", "42803"),
        ("too many", state::PROGRAM_LIMIT_EXCEEDED),
        ("too large", state::PROGRAM_LIMIT_EXCEEDED),
        ("too deep", state::PROGRAM_LIMIT_EXCEEDED),
        ("Expression tree", state::PROGRAM_LIMIT_EXCEEDED),
        ("parser stack overflow", state::PROGRAM_LIMIT_EXCEEDED),
    ];
    SENTENCES.iter().find(|(part, _)| message.contains(part)).map_or("42000", |(_, code)| code)
}
