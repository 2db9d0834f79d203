//! SQL functions that PostgreSQL and Aurora clients expect to find.
//!
//! Decides nothing; answers from the engine's settings and from what runs on the connection. Table-valued ones are in
//! [`super::tables`].

use super::context::Context;
use super::shared::Shared;
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, Error, Result};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Of this product, as `aurora_version()` gives it.
const ENGINE_VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn register(connection: &Connection, shared: &Arc<Shared>, context: &Arc<Context>) -> Result<()> {
    // Innocuous: they reveal nothing that a view or a default value may not use.
    let changing = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let constant = changing | FunctionFlags::SQLITE_DETERMINISTIC;

    let settings = &shared.settings;
    for (name, text) in [
        (c"version", settings.server_version.clone()),
        (c"current_database", settings.database.clone()),
        (c"current_catalog", settings.database.clone()),
        // With parentheses: bare, SQLite takes the words for columns.
        (c"current_user", settings.user.clone()),
        (c"session_user", settings.user.clone()),
        (c"current_schema", "public".to_string()),
        (c"aurora_version", ENGINE_VERSION.to_string()),
        (c"aurora_db_instance_identifier", settings.instance.clone()),
    ] {
        connection.create_scalar_function(name, 0, constant, move |_| Ok(text.clone()))?;
    }
    let c = context.clone();
    connection.create_scalar_function(c"pg_backend_pid", 0, changing, move |_| Ok(c.session.load(Ordering::Relaxed)))?;
    let c = context.clone();
    connection.create_scalar_function(c"pg_is_in_recovery", 0, changing, move |_| Ok(i32::from(c.in_recovery.load(Ordering::Relaxed))))?;
    for name in [c"now", c"transaction_timestamp", c"statement_timestamp"] {
        let c = context.clone();
        connection.create_scalar_function(name, 0, changing, move |_| Ok(timestamp(c.now_us.load(Ordering::Relaxed))))?;
    }
    connection.create_scalar_function(c"gen_random_uuid", 0, changing, |_| uuid_v4())?;
    Ok(())
}

/// `2026-11-20 10:41:00.123456+00`
pub fn timestamp(unix_us: u64) -> String {
    let at = i64::try_from(unix_us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok()).unwrap_or_default();
    at.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()
}

fn uuid_v4() -> Result<String> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|e| Error::UserFunctionError(Box::new(e)))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.into_iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("BUG: writing into a string");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_reads_as_postgresql_prints_it_and_a_uuid_is_of_version_4() {
        assert_eq!(timestamp(1_000_000_123_456), "1970-01-12 13:46:40.123456+00");
        let uuid = uuid_v4().unwrap();
        assert_eq!((uuid.len(), &uuid[14..15]), (36, "4"));
    }
}
