//! Table-valued functions about the global cluster: `aurora_global_db_status()` and `aurora_global_db_instance_status()`,
//! with the columns that Aurora PostgreSQL documents, `parhelion_events()`, and `generate_series(start, stop[, step])`, whose column is `value`.
//!
//! Decides nothing: the rows are the driver's last known state, taken once per scan. The trait that SQLite's bindings want
//! for a virtual table is an unsafe one; what it asks for stands at each implementation.

use super::shared::Shared;
use crate::head::StatusSource;
use crate::head::sql::Value;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::vtab::{
    Context, Filters, IndexInfo, Module, VTab, VTabConfig, VTabConnection, VTabCursor, sqlite3_vtab, sqlite3_vtab_cursor,
};
use rusqlite::{Connection, Result};
use std::borrow::Cow;
use std::ffi::{CStr, c_int};
use std::marker::PhantomData;
use std::sync::Arc;

pub fn register(connection: &Connection, shared: &Arc<Shared>) -> Result<()> {
    const MODULE: Module<StatusTable> = Module::eponymous_only_module();
    rusqlite::vtab::series::load_module(connection)?;
    let all = [
        (c"aurora_global_db_status", Which::Global),
        (c"aurora_global_db_instance_status", Which::Instances),
        (c"parhelion_events", Which::Events),
    ];
    for (name, which) in all {
        connection.create_module(name, &MODULE, Some((which, shared.status.clone())))?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Which {
    Global,
    Instances,
    Events,
}

impl Which {
    fn declaration(self) -> &'static CStr {
        match self {
            Which::Global => {
                c"CREATE TABLE x(aws_region text, highest_lsn_written bigint, durability_lag_in_msec bigint, rpo_lag_in_msec bigint,
                  last_lag_calculation_time timestamptz, feedback_epoch bigint, feedback_xmin bigint)"
            }
            Which::Instances => {
                c"CREATE TABLE x(server_id text, session_id text, aws_region text, durable_lsn bigint, highest_lsn_rcvd bigint,
                  feedback_epoch bigint, feedback_xmin bigint, oldest_read_view_lsn bigint, visibility_lag_in_msec bigint)"
            }
            Which::Events => {
                c"CREATE TABLE x(no bigint, at timestamptz, aws_region text, kind text, epoch bigint, durable_lsn bigint, what text,
                  operation text, actor text, duration_in_msec bigint)"
            }
        }
    }

    fn rows(self, source: &dyn StatusSource) -> Vec<Vec<Value>> {
        let number = |n: Option<i64>| n.map_or(Value::Null, Value::Integer);
        match self {
            Which::Global => {
                let row = |r: crate::head::GlobalStatusRow| {
                    vec![
                        Value::Text(r.aws_region),
                        number(r.highest_lsn_written),
                        number(r.durability_lag_in_msec),
                        number(r.rpo_lag_in_msec),
                        r.last_lag_calculation_time.map_or(Value::Null, Value::Text),
                        number(r.feedback_epoch),
                        number(r.feedback_xmin),
                    ]
                };
                source.global_status().into_iter().map(row).collect()
            }
            Which::Instances => {
                let row = |r: crate::head::InstanceStatusRow| {
                    vec![
                        Value::Text(r.server_id),
                        Value::Text(r.session_id),
                        Value::Text(r.aws_region),
                        number(r.durable_lsn),
                        number(r.highest_lsn_rcvd),
                        number(r.feedback_epoch),
                        number(r.feedback_xmin),
                        number(r.oldest_read_view_lsn),
                        number(r.visibility_lag_in_msec),
                    ]
                };
                source.instance_status().into_iter().map(row).collect()
            }
            Which::Events => {
                let text = |t: Option<String>| t.map_or(Value::Null, Value::Text);
                let row = |r: crate::head::EventRow| {
                    vec![
                        Value::Integer(r.no),
                        text(r.at),
                        Value::Text(r.aws_region),
                        Value::Text(r.kind),
                        Value::Integer(r.epoch),
                        number(r.durable_lsn),
                        Value::Text(r.what),
                        text(r.operation),
                        text(r.actor),
                        number(r.duration_in_msec),
                    ]
                };
                source.events().into_iter().map(row).collect()
            }
        }
    }
}

#[repr(C)]
struct StatusTable {
    /// SQLite's part; must be first.
    base: sqlite3_vtab,
    which: Which,
    source: Arc<dyn StatusSource>,
}

// SAFETY: `StatusTable` is repr(C) and begins with its sqlite3_vtab, which is all that the trait asks for.
unsafe impl<'vtab> VTab<'vtab> for StatusTable {
    type Aux = (Which, Arc<dyn StatusSource>);
    type Cursor = StatusCursor<'vtab>;

    fn connect(
        db: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module: &[u8],
        _database: &[u8],
        _table: &[u8],
        _args: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        let (which, source) = aux.expect("BUG: the module is registered with its source").clone();
        db.config(VTabConfig::Innocuous)?;
        Ok((Cow::Borrowed(which.declaration()), StatusTable { base: sqlite3_vtab::default(), which, source }))
    }

    fn best_index(&self, info: &mut IndexInfo) -> Result<bool> {
        info.set_estimated_rows(10);
        Ok(true)
    }

    fn open(&'vtab mut self) -> Result<StatusCursor<'vtab>> {
        let rows = self.which.rows(&*self.source);
        Ok(StatusCursor { base: sqlite3_vtab_cursor::default(), rows, at: 0, table: PhantomData })
    }
}

#[repr(C)]
struct StatusCursor<'vtab> {
    /// SQLite's part; must be first.
    base: sqlite3_vtab_cursor,
    rows: Vec<Vec<Value>>,
    at: usize,
    table: PhantomData<&'vtab StatusTable>,
}

// SAFETY: `StatusCursor` is repr(C) and begins with its sqlite3_vtab_cursor, which is all that the trait asks for.
unsafe impl VTabCursor for StatusCursor<'_> {
    fn filter(&mut self, _index: c_int, _name: Option<&str>, _args: &Filters<'_>) -> Result<()> {
        self.at = 0;
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.at += 1;
        Ok(())
    }

    fn eof(&self) -> bool {
        self.at >= self.rows.len()
    }

    fn column(&self, context: &mut Context, column: c_int) -> Result<()> {
        let column = usize::try_from(column).ok();
        let value = self.rows.get(self.at).and_then(|row| row.get(column?)).unwrap_or(&Value::Null);
        context.set_result(borrowed(value))
    }

    fn rowid(&self) -> Result<i64> {
        Ok(i64::try_from(self.at).unwrap_or(i64::MAX))
    }
}

/// A value as SQLite's bindings take it.
pub fn borrowed(value: &Value) -> ToSqlOutput<'_> {
    ToSqlOutput::Borrowed(match value {
        Value::Null => ValueRef::Null,
        Value::Integer(n) => ValueRef::Integer(*n),
        Value::Real(x) => ValueRef::Real(*x),
        Value::Text(s) => ValueRef::Text(s.as_bytes()),
        Value::Blob(b) => ValueRef::Blob(b),
    })
}
