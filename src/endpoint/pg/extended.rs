//! The extended query protocol: Parse, Bind, Describe, Execute, Close, Sync.
//!
//! Decides which types a statement is described with, when a portal runs, and that statements between two Syncs are one
//! transaction. A statement that writes and is followed at once by Sync needs no transaction around it (the engine's own is
//! enough), which is what nearly every driver sends. Driven by the session.

use super::infer::{Plan, Schema};
use super::running::Rows;
use super::session::Session;
use super::split;
use super::types::{self, Format, PgType};
use super::utility::{Command, Tag, Utility};
use super::wire::Stop;
use crate::head::sql::{Column, Description, Outcome, SqlError, TxMode, TxState, Value, state};
use pgwire::messages::PgWireBackendMessage as Out;
use pgwire::messages::data::{NoData, ParameterDescription};
use pgwire::messages::extendedquery::{Bind, BindComplete, Close, CloseComplete, Describe, Execute, Parse, ParseComplete, PortalSuspended};
use pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};
use std::sync::Arc;

/// What one client may make the server remember.
const STATEMENTS_MAX: usize = 5000;
const PORTALS_MAX: usize = 1000;
const REMEMBERED_BYTES_MAX: usize = 64 << 20;
/// Rows of suspended portals that are kept while another statement runs.
const PORTAL_ROWS_BYTES_MAX: usize = 32 << 20;
const GUESSES_MAX: usize = 256;
const GUESSED_TEXT_BYTES_MAX: usize = 4096;

/// Types that nobody declared.
#[derive(Default)]
pub struct Guesses {
    parameters: Vec<Option<PgType>>,
    columns: Vec<Option<PgType>>,
}

/// A statement after Parse.
pub struct Prepared {
    /// Empty: an empty query.
    text: String,
    command: Command,
    tag: Tag,
    description: Option<Description>,
    /// Type, and whether the client named it.
    parameters: Vec<(PgType, bool)>,
    guesses: Arc<Guesses>,
}

impl Prepared {
    fn columns(&self) -> Arc<[Column]> {
        match (&self.command, &self.description) {
            (Command::Sql, Some(d)) => d.columns.clone(),
            (Command::Utility(Utility::Show(name)), _) => Rows::of(&[name], Vec::new()).columns().clone(),
            (Command::Utility(Utility::ShowAll), _) => Rows::of(&["name", "setting", "description"], Vec::new()).columns().clone(),
            _ => Arc::from([]),
        }
    }

    /// The types of the columns as far as they are known before the statement runs.
    fn types(&self) -> Vec<Option<PgType>> {
        let guess = |i: usize| self.guesses.columns.get(i).copied().flatten();
        self.columns().iter().enumerate().map(|(i, c)| c.declared_type.as_deref().map(PgType::from_declared).or_else(|| guess(i))).collect()
    }

    /// It gives no rows, changes no tables, and what follows need not wait for it.
    fn changes_rows_only(&self) -> bool {
        matches!(self.tag, Tag::Insert | Tag::Counted("UPDATE" | "DELETE"))
            && self.description.as_ref().is_some_and(|d| d.columns.is_empty())
    }

    fn reads_only(&self) -> bool {
        self.description.as_ref().is_some_and(|d| d.read_only)
    }
}

/// What became of a statement that was set going.
enum Started {
    /// It has no rows to give; so many were affected.
    Done(u64),
    Rows,
    /// It was sent ahead.
    Ahead,
}

enum State {
    Ready,
    Running { rows: Rows, types: Vec<PgType> },
    Done,
}

/// A statement with its parameters.
pub struct Portal {
    prepared: Arc<Prepared>,
    parameters: Vec<Value>,
    formats: Vec<i16>,
    bytes: usize,
    state: State,
}

impl Portal {
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }
}

impl Session {
    pub(super) async fn parse(&mut self, m: Parse) -> Result<(), Stop> {
        let name = m.name.unwrap_or_default();
        let mut statements = split::statements(&m.query);
        let text = statements.next().map_or("", |s| s.text);
        if statements.next().is_some() {
            return Err(SqlError::new(state::SYNTAX_ERROR, "cannot insert multiple commands into a prepared statement").into());
        }
        if !name.is_empty() && self.prepared.contains_key(&name) {
            return Err(SqlError::new("42P05", format!("prepared statement \"{name}\" already exists")).into());
        }
        let remembered: usize = self.prepared.values().map(|p| p.text.len()).sum();
        if self.prepared.len() >= STATEMENTS_MAX || remembered + text.len() > REMEMBERED_BYTES_MAX {
            let e = SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements in this session");
            return Err(e.hint("DEALLOCATE those that are no longer used.").into());
        }
        let prepared = self.prepare(text, &m.type_oids).await?;
        self.prepared.insert(name, Arc::new(prepared));
        self.wire.put(&Out::ParseComplete(ParseComplete::new()))
    }

    async fn prepare(&mut self, text: &str, oids: &[u32]) -> Result<Prepared, Stop> {
        let mut prepared = Prepared {
            text: text.to_owned(),
            command: Command::Sql,
            tag: Tag::of(text),
            description: None,
            parameters: Vec::new(),
            guesses: Arc::default(),
        };
        if text.is_empty() {
            return Ok(prepared);
        }
        prepared.command = self.admit(text)?;
        if prepared.command != Command::Sql {
            return Ok(prepared);
        }
        self.free_engine().await?;
        let description = self.watch.over(&mut self.wire, self.sql.describe(text)).await?;
        let count = description.parameters.max(oids.len());
        if count > usize::from(u16::MAX) {
            return Err(SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, "more than 65535 parameters").into());
        }
        let named = |i: usize| oids.get(i).copied().filter(|oid| *oid != 0 && *oid != PgType::Unknown.oid());
        let open_parameters = (0..count).any(|i| named(i).is_none());
        let open_columns = description.columns.iter().any(|c| c.declared_type.is_none());
        if open_parameters || open_columns {
            prepared.guesses = self.guess(text).await?;
        }
        for i in 0..count {
            prepared.parameters.push(match named(i) {
                Some(oid) => match PgType::from_oid(oid) {
                    Some(t) => (t, true),
                    None => {
                        let e =
                            SqlError::new(state::FEATURE_NOT_SUPPORTED, format!("parameters of the type with OID {oid} are not supported"));
                        return Err(e.hint("Send the value as text, a number, a boolean, bytes, a date or time, a UUID or JSON.").into());
                    }
                },
                None => (prepared.guesses.parameters.get(i).copied().flatten().unwrap_or(PgType::Text), false),
            });
        }
        prepared.description = Some(description);
        Ok(prepared)
    }

    /// The types of parameters and expressions that can be guessed. Asks the engine for the columns of the tables in the
    /// statement; it has just been prepared, so they exist.
    async fn guess(&mut self, text: &str) -> Result<Arc<Guesses>, Stop> {
        if let Some(known) = self.guesses.get(text) {
            return Ok(known.clone());
        }
        let plan = Plan::of(text);
        let mut schema = Schema::new();
        if !plan.parameters.is_empty() || !plan.columns.is_empty() {
            for (_, table) in &plan.tables {
                let question = format!("SELECT * FROM {}", quote(table));
                match self.watch.over(&mut self.wire, self.sql.describe(&question)).await {
                    Ok(d) => {
                        let column = |c: &Column| Some((c.name.to_ascii_lowercase(), PgType::from_declared(c.declared_type.as_deref()?)));
                        schema.insert(table.clone(), d.columns.iter().filter_map(column).collect());
                    }
                    // Not a table after all: then nothing is known of its columns.
                    Err(Stop::Sql(_)) => {}
                    Err(stop) => return Err(stop),
                }
            }
        }
        let last = plan.parameters.keys().max().copied().unwrap_or(0).min(usize::from(u16::MAX));
        let guesses = Arc::new(Guesses {
            parameters: (1..=last).map(|n| plan.parameters.get(&n).and_then(|h| plan.resolve(h, &schema))).collect(),
            columns: plan.columns.iter().map(|h| plan.resolve(h, &schema)).collect(),
        });
        if text.len() <= GUESSED_TEXT_BYTES_MAX {
            if self.guesses.len() >= GUESSES_MAX {
                self.guesses.clear();
            }
            self.guesses.insert(text.to_owned(), guesses.clone());
        }
        Ok(guesses)
    }

    fn find_prepared(&self, name: &str) -> Result<Arc<Prepared>, SqlError> {
        self.prepared.get(name).cloned().ok_or_else(|| match name {
            "" => SqlError::new("26000", "unnamed prepared statement does not exist"),
            name => SqlError::new("26000", format!("prepared statement \"{name}\" does not exist")),
        })
    }

    fn refuse_in_failed(&self, prepared: &Prepared) -> Result<(), SqlError> {
        if self.status() == TransactionStatus::Error && !prepared.command.leaves_failed_transaction() {
            let text = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(SqlError::new(state::IN_FAILED_TRANSACTION, text));
        }
        Ok(())
    }

    pub(super) fn bind(&mut self, m: Bind) -> Result<(), Stop> {
        let prepared = self.find_prepared(m.statement_name.as_deref().unwrap_or(""))?;
        self.refuse_in_failed(&prepared)?;
        let (given, needed) = (m.parameters.len(), prepared.parameters.len());
        if given != needed {
            let text = format!("bind message supplies {given} parameters, but the prepared statement requires {needed}");
            return Err(SqlError::new("08P01", text).into());
        }
        let mut parameters = Vec::with_capacity(given);
        let mut bytes = 0;
        for (i, (value, (ty, declared))) in m.parameters.iter().zip(&prepared.parameters).enumerate() {
            parameters.push(match value {
                None => Value::Null,
                Some(value) => {
                    bytes += value.len();
                    let format = Format::nth(&m.parameter_format_codes, i)?;
                    types::decode(value, *ty, *declared, format)
                        .map_err(|e| SqlError { message: format!("{} (parameter ${})", e.message, i + 1), ..e })?
                }
            });
        }
        let formats = m.result_column_format_codes;
        let columns = prepared.columns().len();
        if formats.len() > 1 && formats.len() != columns {
            let text = format!("bind message has {} result formats but query has {columns} columns", formats.len());
            return Err(SqlError::new("08P01", text).into());
        }
        let name = m.portal_name.unwrap_or_default();
        if !name.is_empty() && self.portals.contains_key(&name) {
            return Err(SqlError::new("42P03", format!("portal \"{name}\" already exists")).into());
        }
        let remembered: usize = self.portals.values().map(|p| p.bytes).sum();
        if self.portals.len() >= PORTALS_MAX || remembered + bytes > 2 * REMEMBERED_BYTES_MAX {
            return Err(SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, "too many open portals in this session").into());
        }
        self.portals.insert(name, Portal { prepared, parameters, formats, bytes, state: State::Ready });
        self.wire.put(&Out::BindComplete(BindComplete::new()))
    }

    pub(super) async fn describe(&mut self, m: Describe) -> Result<(), Stop> {
        let name = m.name.unwrap_or_default();
        if m.target_type == b'S' {
            let prepared = self.find_prepared(&name)?;
            self.refuse_in_failed(&prepared)?;
            let oids = prepared.parameters.iter().map(|(t, _)| t.oid()).collect();
            self.wire.put(&Out::ParameterDescription(ParameterDescription::new(oids)))?;
            let types: Vec<PgType> = prepared.types().into_iter().map(|t| t.unwrap_or(PgType::Text)).collect();
            return self.describe_columns(&prepared.columns(), &types, &[]);
        }
        let mut portal = self.take_portal(&name)?;
        self.refuse_in_failed(&portal.prepared)?;
        let result = self.describe_portal(&mut portal).await;
        self.portals.insert(name, portal);
        result
    }

    fn describe_columns(&mut self, columns: &[Column], types: &[PgType], formats: &[i16]) -> Result<(), Stop> {
        if columns.is_empty() { self.wire.put(&Out::NoData(NoData::new())) } else { self.put_row_description(columns, types, formats) }
    }

    async fn describe_portal(&mut self, portal: &mut Portal) -> Result<(), Stop> {
        let known = portal.prepared.types();
        // A result with expressions of unknown type is best described by what is in it. That needs the statement to start now,
        // which makes no difference for one that only reads.
        let look = known.contains(&None) && portal.prepared.reads_only() && matches!(portal.state, State::Ready);
        if look {
            self.start_timer();
            let outcome = self.start_portal(portal).await;
            self.stop_timer();
            outcome?;
        }
        let types = match &portal.state {
            State::Running { types, .. } => types.clone(),
            _ => known.into_iter().map(|t| t.unwrap_or(PgType::Text)).collect(),
        };
        let (columns, formats) = (portal.prepared.columns(), portal.formats.clone());
        self.describe_columns(&columns, &types, &formats)
    }

    fn take_portal(&mut self, name: &str) -> Result<Portal, SqlError> {
        self.portals.remove(name).ok_or_else(|| SqlError::new("34000", format!("portal \"{name}\" does not exist")))
    }

    /// Sets a statement of the engine going.
    async fn start_portal(&mut self, portal: &mut Portal) -> Result<Started, Stop> {
        self.free_engine().await?;
        let prepared = portal.prepared.clone();
        let text = prepared.text.as_str();
        self.refuse_write(text).await?;
        let followed_by_sync = self.wire.peek() == Some(b'S');
        if self.sql.tx() == TxState::Idle && !prepared.reads_only() && !followed_by_sync {
            self.begin(TxMode::default()).await?;
            self.implicit = true;
        }
        let parameters = std::mem::take(&mut portal.parameters);
        portal.state = State::Done;
        if !followed_by_sync && self.sql.feeds() && prepared.changes_rows_only() {
            self.go_ahead(text, parameters, &prepared.tag).await?;
            return Ok(Started::Ahead);
        }
        self.settle_ahead().await?;
        match self.watch.over(&mut self.wire, self.sql.execute(text, parameters)).await? {
            Outcome::Done { changed } => {
                if matches!(prepared.tag, Tag::Plain(_)) {
                    // The schema may have changed.
                    self.guesses.clear();
                }
                Ok(Started::Done(changed))
            }
            Outcome::Rows { columns, rows } => {
                let mut rows = Rows::new(columns, rows);
                rows.any(&mut self.wire, &mut self.watch).await?;
                let known = prepared.types();
                // A statement that was described already keeps its description.
                let types = if prepared.reads_only() && known.contains(&None) {
                    rows.types(&known)
                } else {
                    known.into_iter().map(|t| t.unwrap_or(PgType::Text)).collect()
                };
                portal.state = State::Running { rows, types };
                Ok(Started::Rows)
            }
        }
    }

    pub(super) async fn execute(&mut self, m: Execute) -> Result<(), Stop> {
        let name = m.name.unwrap_or_default();
        let mut portal = self.take_portal(&name)?;
        self.refuse_in_failed(&portal.prepared)?;
        let max = u64::try_from(m.max_rows).ok().filter(|n| *n > 0).unwrap_or(u64::MAX);
        self.start_timer();
        let result = self.execute_portal(&mut portal, max).await;
        self.stop_timer();
        if result.is_ok() {
            self.portals.insert(name, portal);
        }
        result?;
        // What waits for statements that were sent ahead stays together.
        if self.ahead.is_empty() { self.wire.relieve().await } else { Ok(()) }
    }

    async fn execute_portal(&mut self, portal: &mut Portal, max: u64) -> Result<(), Stop> {
        let prepared = portal.prepared.clone();
        if prepared.text.is_empty() {
            return self.wire.put(&Out::EmptyQueryResponse(EmptyQueryResponse::new()));
        }
        if matches!(portal.state, State::Ready) {
            match &prepared.command {
                Command::Sql => match self.start_portal(portal).await? {
                    Started::Done(changed) => return self.put_complete(prepared.tag.with(changed)),
                    Started::Ahead => return Ok(()),
                    Started::Rows => {}
                },
                Command::Copy => {
                    portal.state = State::Done;
                    self.settle_ahead().await?;
                    self.free_engine().await?;
                    return self.copy(&prepared.text).await;
                }
                Command::Utility(utility) => {
                    portal.state = State::Done;
                    self.settle_ahead().await?;
                    self.free_engine().await?;
                    let (rows, tag) = self.utility(utility.clone()).await?;
                    match rows {
                        None => return self.put_complete(tag),
                        Some(rows) => portal.state = State::Running { types: rows.types(&[]), rows },
                    }
                }
            }
        }
        let State::Running { rows, types } = &mut portal.state else {
            return self.put_complete(prepared.tag.with(0));
        };
        if max != u64::MAX && !prepared.reads_only() {
            // What RETURNING gives may be read in parts or not at all; the write itself is done as a whole.
            rows.take_in(&mut self.wire, &mut self.watch, PORTAL_ROWS_BYTES_MAX).await?;
        }
        let (sent, more) = self.send_rows(rows, types, &portal.formats, max).await?;
        if more {
            return self.wire.put(&Out::PortalSuspended(PortalSuspended::new()));
        }
        portal.state = State::Done;
        self.put_complete(prepared.tag.with(sent))
    }

    pub(super) fn close(&mut self, m: Close) -> Result<(), Stop> {
        let name = m.name.unwrap_or_default();
        if m.target_type == b'S' {
            self.prepared.remove(&name);
        } else {
            self.portals.remove(&name);
        }
        self.wire.put(&Out::CloseComplete(CloseComplete::new()))
    }

    pub(super) async fn sync(&mut self) -> Result<(), Stop> {
        match self.commit_implicit().await {
            Ok(()) => {}
            Err(Stop::Sql(e)) => self.report(&e).await?,
            Err(stop) => return Err(stop),
        }
        self.ready().await
    }

    /// Takes in what running portals still have, so that the engine can run another statement.
    pub(super) async fn free_engine(&mut self) -> Result<(), Stop> {
        for portal in self.portals.values_mut() {
            if let State::Running { rows, .. } = &mut portal.state {
                rows.take_in(&mut self.wire, &mut self.watch, PORTAL_ROWS_BYTES_MAX).await?;
            }
        }
        Ok(())
    }
}

/// A name as SQL has it.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
