//! What SQL may not do: reach a file, leave something behind on a connection that others share, or change how the engine
//! keeps its pages.
//!
//! Decides while SQLite prepares a statement; a denial is 42501 (or 0A000 for what merely is not there) with a sentence.
//! Driven by SQLite on the SQL threads. Statements that were prepared once stay allowed.

use super::context::Context;
use crate::head::sql::{SqlError, state};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use std::sync::atomic::Ordering;

/// PRAGMAs that only look, with an argument or without.
const LOOKING: &[&str] = &[
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
    "foreign_key_check",
    "integrity_check",
    "quick_check",
    "database_list",
    "compile_options",
    "collation_list",
    "function_list",
    "optimize",
    // These two numbers belong to the user and lie in the database like any row.
    "user_version",
    "application_id",
    // Ends by itself with the transaction.
    "defer_foreign_keys",
];

/// PRAGMAs that may be asked and not set.
const ASKED_ONLY: &[&str] = &["page_count", "page_size", "encoding", "foreign_keys", "freelist_count", "schema_version", "data_version"];

const FUNCTIONS_DENIED: &[&str] = &["load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"];

const TEMPORARY: &str = "temporary tables, views and triggers are not supported: connections are shared";

/// The hook of one connection.
pub fn decide(context: &Context, asked: &AuthContext<'_>) -> Authorization {
    match refusal(context, asked) {
        None => Authorization::Allow,
        Some(error) => {
            context.blame(error);
            Authorization::Deny
        }
    }
}

fn refusal(context: &Context, asked: &AuthContext<'_>) -> Option<SqlError> {
    let denied = |sentence: &str| Some(SqlError::new(state::INSUFFICIENT_PRIVILEGE, sentence));
    let missing = |sentence: &str| Some(SqlError::new(state::FEATURE_NOT_SUPPORTED, sentence));
    // VACUUM prepares statements for itself while it runs: BEGIN, and ATTACH of a nameless database in memory. A client's
    // own are denied when they are prepared, so they never run.
    let stepping = context.stepping.load(Ordering::Relaxed);
    let own = stepping || context.own_statement.load(Ordering::Relaxed);
    match asked.action {
        AuthAction::Attach { filename: "" } if stepping => None,
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
            denied("ATTACH, DETACH and VACUUM INTO are not allowed: SQL reaches no files here")
        }
        AuthAction::Pragma { pragma_name, pragma_value } => {
            let name = pragma_name.to_ascii_lowercase();
            let looks = LOOKING.contains(&name.as_str()) || (ASKED_ONLY.contains(&name.as_str()) && pragma_value.is_none());
            let gives_back = name == "incremental_vacuum" && context.own_statement.load(Ordering::Relaxed);
            if looks || gives_back {
                None
            } else {
                denied(&format!("PRAGMA {name} is not allowed here: the engine decides how pages are kept"))
            }
        }
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } if !own => {
            missing("this form of transaction control is not supported; use BEGIN, COMMIT, ROLLBACK, SAVEPOINT, RELEASE and ROLLBACK TO")
        }
        AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. } => missing(TEMPORARY),
        AuthAction::CreateTable { .. }
        | AuthAction::CreateView { .. }
        | AuthAction::CreateTrigger { .. }
        | AuthAction::CreateIndex { .. }
        | AuthAction::CreateVtable { .. }
            if asked.database_name == Some("temp") =>
        {
            missing(TEMPORARY)
        }
        AuthAction::Function { function_name } if FUNCTIONS_DENIED.contains(&function_name.to_ascii_lowercase().as_str()) => {
            denied(&format!("the function {function_name} is not allowed here"))
        }
        AuthAction::Unknown { code, .. } => denied(&format!("this statement is not allowed here (SQLite action {code})")),
        _ => None,
    }
}
