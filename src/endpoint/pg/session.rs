//! One client's session after its login: messages in, statements to the engine, answers out.
//!
//! Decides the order of things as PostgreSQL has it: several statements in one message, or between two Syncs, are one
//! transaction; after an error a transaction accepts nothing but its end; the state at every ReadyForQuery. Knows no SQL beyond
//! the words in [`super::utility`]. Driven by its connection's task. A crash here loses this session only; dropping it rolls
//! its transaction back.

use super::extended::{Guesses, Portal, Prepared};
use super::parameters::{Parameters, Report, Scope};
use super::running::{Rows, STOP_GRACE, Watch, elapsed, shutting_down, stopped};
use super::split;
use super::types::{self, Format, PgType};
use super::utility::{Command, Tag, Utility, classify};
use super::wire::{Stop, Wire};
use crate::endpoint::{Port, SqlSession};
use crate::head::sql::{Column, Outcome, Row, SqlError, TxMode, TxState, Value, state};
use bytes::{BufMut, BytesMut};
use pgwire::messages::data::{DataRow, FieldDescription, RowDescription};
use pgwire::messages::response::{CommandComplete, EmptyQueryResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::ParameterStatus;
use pgwire::messages::{PgWireBackendMessage as Out, PgWireFrontendMessage as In};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Statements sent ahead, and output that waits for them.
const AHEAD_MAX: usize = 1000;
const AHEAD_OUTPUT_BYTES_MAX: usize = 256 << 10;

pub struct Session {
    pub(super) wire: Wire,
    pub(super) sql: Box<dyn SqlSession>,
    pub(super) watch: Watch,
    pub(super) parameters: Parameters,
    pub(super) port: Port,
    pub(super) prepared: BTreeMap<String, Arc<Prepared>>,
    pub(super) portals: BTreeMap<String, Portal>,
    /// By the text of the statement; only guesses, so that they may be old.
    pub(super) guesses: BTreeMap<String, Arc<Guesses>>,
    /// An error happened in the open transaction, whatever the engine thinks of it.
    pub(super) failed: bool,
    /// The open transaction was not begun by the client but by several statements arriving together.
    pub(super) implicit: bool,
    pub(super) scratch: BytesMut,
    /// Statements that were sent ahead to a writer that is far away: where in the output each one's completion belongs.
    pub(super) ahead: Vec<(usize, Tag)>,
}

impl Session {
    pub fn new(wire: Wire, sql: Box<dyn SqlSession>, watch: Watch, parameters: Parameters, port: Port) -> Session {
        Session {
            wire,
            sql,
            watch,
            parameters,
            port,
            prepared: BTreeMap::new(),
            portals: BTreeMap::new(),
            guesses: BTreeMap::new(),
            failed: false,
            implicit: false,
            scratch: BytesMut::new(),
            ahead: Vec::new(),
        }
    }

    /// Serves the client until it leaves, breaks the protocol or the server stops.
    pub async fn run(mut self) {
        if let Stop::Fatal(e) = self.serve().await {
            // What is still to be sent may be large and the client slow or gone; the connection ends either way.
            let _ = tokio::time::timeout(STOP_GRACE, self.wire.farewell(&e)).await;
        }
    }

    async fn serve(&mut self) -> Stop {
        let mut skipping = false;
        loop {
            let message = match self.receive().await {
                Ok(m) => m,
                Err(stop) => return stop,
            };
            let is_extended = message.is_extended_query();
            self.watch.target.busy();
            let goes_ahead = match &message {
                In::Bind(_) | In::Execute(_) => true,
                In::Describe(m) => m.target_type == b'P',
                In::Close(m) => m.target_type == b'P',
                _ => false,
            };
            // What else comes wants to know what became of those before it.
            let settled = if goes_ahead || skipping { Ok(()) } else { self.settle_ahead().await };
            self.stop_timer();
            let result = match message {
                In::Terminate(_) => return Stop::Gone,
                In::Sync(_) if settled.is_err() => self.sync_after(settled, &mut skipping).await,
                _ if settled.is_err() => settled,
                In::Sync(_) => {
                    skipping = false;
                    self.sync().await
                }
                In::Query(q) => {
                    skipping = false;
                    self.simple(&q.query).await
                }
                _ if skipping => Ok(()),
                In::Parse(m) => self.parse(m).await,
                In::Bind(m) => self.bind(m),
                In::Describe(m) => self.describe(m).await,
                In::Execute(m) => self.execute(m).await,
                In::Close(m) => self.close(m),
                In::Flush(_) => self.wire.flush().await,
                // The rest of a COPY that has failed; PostgreSQL ignores it too.
                In::CopyData(_) | In::CopyDone(_) | In::CopyFail(_) => Ok(()),
                _ => Err(Stop::Fatal(SqlError::new("08P01", "unexpected message"))),
            };
            match result {
                Ok(()) => {}
                Err(Stop::Sql(mut e)) => {
                    // One that was sent ahead failed before it.
                    match self.settle_ahead().await {
                        Ok(()) => {}
                        Err(Stop::Sql(earlier)) => e = earlier,
                        Err(stop) => return stop,
                    }
                    // After an error in the extended protocol everything up to the next Sync is skipped.
                    skipping = is_extended;
                    if let Err(stop) = self.report(&e).await {
                        return stop;
                    }
                }
                Err(stop) => return stop,
            }
        }
    }

    /// A Sync that comes when one of those sent ahead has failed.
    async fn sync_after(&mut self, settled: Result<(), Stop>, skipping: &mut bool) -> Result<(), Stop> {
        *skipping = false;
        match settled {
            Err(Stop::Sql(e)) => self.report(&e).await?,
            other => return other,
        }
        self.sync().await
    }

    /// Sends a statement of the open transaction ahead: its completion is put where it belongs when it is known, which is before
    /// anything leaves.
    pub(super) async fn go_ahead(&mut self, text: &str, parameters: Vec<Value>, tag: &Tag) -> Result<(), Stop> {
        self.watch.over(&mut self.wire, self.sql.feed(text, parameters)).await?;
        self.ahead.push((self.wire.gathered(), tag.clone()));
        if self.ahead.len() >= AHEAD_MAX || self.wire.gathered() >= AHEAD_OUTPUT_BYTES_MAX {
            self.settle_ahead().await?;
        }
        Ok(())
    }

    /// Waits for what was sent ahead. After one that failed nothing of what came behind it is said.
    pub(super) async fn settle_ahead(&mut self) -> Result<(), Stop> {
        let Some((start, _)) = self.ahead.first() else { return Ok(()) };
        let start = *start;
        self.start_timer();
        let fed = self.watch.over(&mut self.wire, async { Ok(self.sql.fed().await) }).await?;
        let ahead = std::mem::take(&mut self.ahead);
        let gathered = self.wire.take_from(start);
        let mut done = 0;
        for (i, (at, tag)) in ahead.iter().enumerate() {
            self.wire.put_back(&gathered[done..at - start]);
            done = at - start;
            match fed.changed.get(i) {
                Some(changed) => self.put_complete(tag.with(*changed))?,
                None => {
                    let lost = || SqlError::new(state::INTERNAL_ERROR, "a statement that was sent ahead was not answered");
                    return Err(Stop::Sql(fed.failed.unwrap_or_else(lost)));
                }
            }
        }
        self.wire.put_back(&gathered[done..]);
        fed.failed.map_or(Ok(()), |e| Err(Stop::Sql(e)))
    }

    /// The next message. Between statements the server may stop, and a client that forgets its transaction is cut off.
    async fn receive(&mut self) -> Result<In, Stop> {
        if *self.watch.shutdown.borrow() {
            return Err(Stop::Fatal(shutting_down()));
        }
        let idle = self.parameters.idle_in_transaction_timeout().filter(|_| self.sql.tx() != TxState::Idle);
        let mut timer = idle.map(|d| Box::pin(tokio::time::sleep(d)));
        tokio::select! {
            biased;
            message = self.wire.next() => message,
            () = stopped(&mut self.watch.shutdown) => Err(Stop::Fatal(shutting_down())),
            () = elapsed(&mut timer) => {
                let text = "terminating connection due to idle-in-transaction timeout";
                Err(Stop::Fatal(SqlError::new(state::IDLE_IN_TRANSACTION_TIMEOUT, text)))
            }
        }
    }

    /// The next message of a COPY, which is not idleness.
    pub(super) async fn receive_copy(&mut self) -> Result<In, Stop> {
        tokio::select! {
            biased;
            message = self.wire.next() => message,
            () = stopped(&mut self.watch.shutdown) => Err(Stop::Fatal(shutting_down())),
        }
    }

    pub(super) fn status(&self) -> TransactionStatus {
        match self.sql.tx() {
            TxState::Idle => TransactionStatus::Idle,
            TxState::Failed => TransactionStatus::Error,
            TxState::InTransaction if self.failed => TransactionStatus::Error,
            TxState::InTransaction => TransactionStatus::Transaction,
        }
    }

    /// Tells the client of an error and lets the transaction fail, or end if the client did not begin it.
    pub(super) async fn report(&mut self, e: &SqlError) -> Result<(), Stop> {
        self.portals.retain(|_, p| !p.is_running());
        // What was fed of a COPY that failed has nobody to tell it.
        self.watch.over(&mut self.wire, async { Ok(self.sql.fed().await) }).await?;
        if self.implicit {
            self.implicit = false;
            if let Err(Stop::Fatal(e)) = self.watch.over(&mut self.wire, self.sql.rollback()).await {
                return Err(Stop::Fatal(e));
            }
            self.failed = false;
        } else {
            self.failed = self.sql.tx() != TxState::Idle;
        }
        self.wire.put_error("ERROR", e)
    }

    /// Closes a transaction's business, says where the session stands and sends everything.
    pub(super) async fn ready(&mut self) -> Result<(), Stop> {
        if self.sql.tx() == TxState::Idle {
            self.failed = false;
            self.portals.clear();
            for report in self.parameters.end_transaction() {
                self.put_parameter(report)?;
            }
        }
        self.watch.target.idle();
        let status = self.status();
        self.wire.put(&Out::ReadyForQuery(ReadyForQuery::new(status)))?;
        if let Err(e) = self.sql.may_answer() {
            self.wire.discard();
            return Err(Stop::Fatal(SqlError { code: state::ADMIN_SHUTDOWN, ..e }));
        }
        self.wire.flush().await
    }

    pub(super) fn put_parameter(&mut self, r: Report) -> Result<(), Stop> {
        self.wire.put(&Out::ParameterStatus(ParameterStatus::new(r.name, r.value)))
    }

    pub(super) fn put_complete(&mut self, tag: String) -> Result<(), Stop> {
        self.wire.put(&Out::CommandComplete(CommandComplete::new(tag)))
    }

    /// A statement begins: its timeout runs from here.
    pub(super) fn start_timer(&mut self) {
        self.watch.start(self.parameters.statement_timeout());
    }

    pub(super) fn stop_timer(&mut self) {
        self.watch.end();
    }

    async fn simple(&mut self, text: &str) -> Result<(), Stop> {
        self.portals.remove("");
        let mut result = self.simple_statements(text).await;
        if let (Ok(()) | Err(Stop::Sql(_)), Err(earlier)) = (&result, self.settle_ahead().await) {
            result = Err(earlier);
        }
        self.stop_timer();
        match result {
            Ok(()) => {}
            Err(Stop::Sql(e)) => self.report(&e).await?,
            Err(stop) => return Err(stop),
        }
        self.ready().await
    }

    async fn simple_statements(&mut self, text: &str) -> Result<(), Stop> {
        self.commit_implicit().await?;
        let mut rest = split::statements(text).peekable();
        if rest.peek().is_none() {
            return self.wire.put(&Out::EmptyQueryResponse(EmptyQueryResponse::new()));
        }
        let mut alone = true;
        while let Some(statement) = rest.next() {
            let last = rest.peek().is_none();
            self.start_timer();
            self.free_engine().await?;
            let command = self.admit(statement.text)?;
            match command {
                Command::Utility(u) => {
                    self.settle_ahead().await?;
                    self.utility_simple(u).await?;
                }
                Command::Copy => {
                    self.settle_ahead().await?;
                    self.copy(statement.text).await?;
                }
                Command::Sql => {
                    if statement.has_parameter {
                        return Err(SqlError::new("42P02", "a simple query has no parameters: there is no parameter $1").into());
                    }
                    if !(alone && last) && self.sql.tx() == TxState::Idle {
                        self.begin(TxMode { read_only: self.parameters.read_only() && self.port == Port::Writer }).await?;
                        self.implicit = true;
                    }
                    self.refuse_write(statement.text).await?;
                    let tag = Tag::of(statement.text);
                    if !last && self.sql.feeds() && changes_rows_only(statement.text, &tag) {
                        self.go_ahead(statement.text, Vec::new(), &tag).await?;
                        continue;
                    }
                    self.settle_ahead().await?;
                    let outcome = self.watch.over(&mut self.wire, self.sql.execute(statement.text, Vec::new())).await?;
                    self.answer_simple(outcome, &tag, last).await?;
                }
            }
            alone = false;
        }
        self.commit_implicit().await
    }

    /// Sorts a statement, and refuses it if the transaction has failed.
    pub(super) fn admit(&self, text: &str) -> Result<Command, SqlError> {
        let command = classify(text);
        let leaves = command.as_ref().is_ok_and(Command::leaves_failed_transaction);
        if self.status() == TransactionStatus::Error && !leaves {
            let text = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(SqlError::new(state::IN_FAILED_TRANSACTION, text));
        }
        command
    }

    /// `default_transaction_read_only` set by the client (an instance that cannot write refuses by itself, and better).
    pub(super) async fn refuse_write(&mut self, text: &str) -> Result<(), Stop> {
        if self.parameters.read_only() && self.port == Port::Writer && self.sql.tx() == TxState::Idle {
            let description = self.watch.over(&mut self.wire, self.sql.describe(text)).await?;
            if !description.read_only {
                let e = SqlError::new(state::READ_ONLY, "cannot execute a write in a read-only transaction");
                return Err(e.hint("default_transaction_read_only is on in this session.").into());
            }
        }
        Ok(())
    }

    async fn answer_simple(&mut self, outcome: Outcome, tag: &Tag, last: bool) -> Result<(), Stop> {
        let count = match outcome {
            Outcome::Done { changed } => changed,
            Outcome::Rows { columns, rows } => {
                let mut rows = Rows::new(columns, rows);
                rows.any(&mut self.wire, &mut self.watch).await?;
                let types = rows.types(&[]);
                self.put_row_description(rows.columns(), &types, &[])?;
                self.send_rows(&mut rows, &types, &[], u64::MAX).await?.0
            }
        };
        // The last answer of a message is given when the transaction around it is durable.
        if last {
            self.commit_implicit().await?;
        }
        self.put_complete(tag.with(count))
    }

    pub(super) async fn begin(&mut self, mode: TxMode) -> Result<(), Stop> {
        self.watch.over(&mut self.wire, self.sql.begin(mode)).await
    }

    /// Commits what several statements arriving together began.
    pub(super) async fn commit_implicit(&mut self) -> Result<(), Stop> {
        if self.implicit {
            self.free_engine().await?;
            self.implicit = false;
            self.watch.over(&mut self.wire, self.sql.commit()).await?;
        }
        Ok(())
    }

    pub(super) fn put_row_description(&mut self, columns: &[Column], types: &[PgType], formats: &[i16]) -> Result<(), Stop> {
        let mut fields = Vec::with_capacity(columns.len());
        for (i, (c, t)) in columns.iter().zip(types).enumerate() {
            let format = Format::nth(formats, i)?.code();
            fields.push(FieldDescription::new(c.name.clone(), 0, 0, t.oid(), t.size(), -1, format));
        }
        self.wire.put(&Out::RowDescription(RowDescription::new(fields)))
    }

    /// Sends up to `max` rows; the count, and whether there are more.
    pub(super) async fn send_rows(&mut self, rows: &mut Rows, types: &[PgType], formats: &[i16], max: u64) -> Result<(u64, bool), Stop> {
        let formats: Vec<Format> = (0..types.len()).map(|i| Format::nth(formats, i)).collect::<Result<_, _>>()?;
        let mut sent = 0;
        while rows.any(&mut self.wire, &mut self.watch).await? {
            if sent == max {
                return Ok((sent, true));
            }
            let Some(row) = rows.pop() else { break };
            if row.len() != types.len() {
                return Err(SqlError::new(state::INTERNAL_ERROR, "a row has another number of columns than its description").into());
            }
            self.put_row(&row, types, &formats)?;
            self.wire.relieve().await?;
            sent += 1;
        }
        Ok((sent, false))
    }

    fn put_row(&mut self, row: &Row, types: &[PgType], formats: &[Format]) -> Result<(), Stop> {
        for ((value, ty), format) in row.iter().zip(types).zip(formats) {
            if *value == Value::Null {
                self.scratch.put_i32(-1);
                continue;
            }
            let start = self.scratch.len();
            self.scratch.put_i32(0);
            if let Err(e) = types::encode(value, *ty, *format, &mut self.scratch) {
                self.scratch.clear();
                return Err(e.into());
            }
            let length = self.scratch.len() - start - 4;
            let length = i32::try_from(length).map_err(|_| SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, "a value is larger than 2 GiB"))?;
            self.scratch[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
        let fields = i16::try_from(row.len()).map_err(|_| SqlError::new("54011", "a row has more than 32767 columns"))?;
        let row = Out::DataRow(DataRow::new(self.scratch.split(), fields));
        self.wire.put(&row)
    }

    async fn utility_simple(&mut self, utility: Utility) -> Result<(), Stop> {
        let (mut rows, tag) = self.utility(utility).await?;
        if let Some(rows) = &mut rows {
            let types = rows.types(&[]);
            self.put_row_description(rows.columns(), &types, &[])?;
            self.send_rows(rows, &types, &[], u64::MAX).await?;
        }
        self.put_complete(tag)
    }

    /// Runs a utility statement; its rows, if it has any, and its tag.
    pub(super) async fn utility(&mut self, utility: Utility) -> Result<(Option<Rows>, String), Stop> {
        let open = self.sql.tx() != TxState::Idle && !self.implicit;
        let outside = |what: &str| SqlError::new("25P01", format!("{what} can only be used in transaction blocks"));
        let tag = match utility {
            Utility::Begin { tag, mode } => {
                if open {
                    self.wire.put_warning(&SqlError::new("25001", "there is already a transaction in progress"))?;
                } else if self.implicit {
                    // As in PostgreSQL: what came before in the same message belongs to the block.
                    self.implicit = false;
                } else {
                    let default = self.parameters.read_only() && self.port == Port::Writer;
                    self.begin(TxMode { read_only: mode.read_only || default }).await?;
                    self.set_transaction_parameters(mode.read_only || self.parameters.read_only())?;
                }
                tag.to_owned()
            }
            Utility::Commit => {
                self.warn_outside(open)?;
                self.end_transaction(true).await?.to_owned()
            }
            Utility::Rollback => {
                self.warn_outside(open)?;
                self.end_transaction(false).await?.to_owned()
            }
            Utility::Savepoint(name) => {
                if !open {
                    return Err(outside("SAVEPOINT").into());
                }
                self.watch.over(&mut self.wire, self.sql.savepoint(&name)).await?;
                "SAVEPOINT".into()
            }
            Utility::Release(name) => {
                if !open {
                    return Err(outside("RELEASE SAVEPOINT").into());
                }
                self.watch.over(&mut self.wire, self.sql.release(&name)).await?;
                "RELEASE".into()
            }
            Utility::RollbackTo(name) => {
                if !open {
                    return Err(outside("ROLLBACK TO SAVEPOINT").into());
                }
                self.watch.over(&mut self.wire, self.sql.rollback_to(&name)).await?;
                self.failed = false;
                "ROLLBACK".into()
            }
            Utility::Set { scope, name, value } => {
                if scope == Scope::Transaction && !open {
                    self.wire.put_warning(&SqlError::new("25P01", "SET LOCAL can only be used in transaction blocks"))?;
                } else if name == "transaction_read_only" {
                    self.set_transaction(value.as_deref().and_then(types::bool_text).unwrap_or(false), open).await?;
                } else if let Some(report) = self.parameters.set(scope, &name, value.as_deref())? {
                    self.put_parameter(report)?;
                }
                if value.is_none() { "RESET" } else { "SET" }.into()
            }
            Utility::SetTransaction(mode) => {
                self.set_transaction(mode.read_only, open).await?;
                "SET".into()
            }
            Utility::ResetAll => {
                for report in self.parameters.reset() {
                    self.put_parameter(report)?;
                }
                "RESET".into()
            }
            Utility::Show(name) => {
                let (name, mut value) = self.parameters.get(&name)?;
                if name == "transaction_read_only" && !open {
                    value = self.parameters.get("default_transaction_read_only")?.1;
                }
                return Ok((Some(Rows::of(&[&name], vec![vec![Value::Text(value)]])), "SHOW".into()));
            }
            Utility::ShowAll => {
                let row = |(n, v): (String, String)| vec![Value::Text(n), Value::Text(v), Value::Text(String::new())];
                let rows = self.parameters.all().into_iter().map(row).collect();
                return Ok((Some(Rows::of(&["name", "setting", "description"], rows)), "SHOW".into()));
            }
            Utility::DiscardAll => {
                if open {
                    return Err(SqlError::new("25001", "DISCARD ALL cannot run inside a transaction block").into());
                }
                self.prepared.clear();
                self.portals.clear();
                for report in self.parameters.reset() {
                    self.put_parameter(report)?;
                }
                "DISCARD ALL".into()
            }
            Utility::DiscardPlans => "DISCARD".into(),
            Utility::Deallocate(None) => {
                self.prepared.clear();
                "DEALLOCATE ALL".into()
            }
            Utility::Deallocate(Some(name)) => {
                if self.prepared.remove(&name).is_none() {
                    return Err(SqlError::new("26000", format!("prepared statement \"{name}\" does not exist")).into());
                }
                "DEALLOCATE".into()
            }
            Utility::Nothing(tag) => tag.to_owned(),
        };
        Ok((None, tag))
    }

    fn warn_outside(&mut self, open: bool) -> Result<(), Stop> {
        if open { Ok(()) } else { self.wire.put_warning(&SqlError::new("25P01", "there is no transaction in progress")) }
    }

    fn set_transaction_parameters(&mut self, read_only: bool) -> Result<(), Stop> {
        self.parameters.set(Scope::Transaction, "transaction_read_only", Some(if read_only { "on" } else { "off" }))?;
        Ok(())
    }

    /// SET TRANSACTION: a transaction can become read-only, by beginning it again, as long as it has done nothing; whether it
    /// has, only the engine knows, so only what changes nothing is granted.
    async fn set_transaction(&mut self, read_only: bool, open: bool) -> Result<(), Stop> {
        if !open {
            return self.wire.put_warning(&SqlError::new("25P01", "SET TRANSACTION can only be used in transaction blocks"));
        }
        let now = self.parameters.get("transaction_read_only")?.1 == "on";
        if now == read_only {
            return Ok(());
        }
        let e = SqlError::new(state::FEATURE_NOT_SUPPORTED, "a transaction's mode cannot be changed after BEGIN");
        Err(e.hint("Say BEGIN READ ONLY or BEGIN READ WRITE, or set default_transaction_read_only before.").into())
    }

    async fn end_transaction(&mut self, commit: bool) -> Result<&'static str, Stop> {
        let failed = self.status() == TransactionStatus::Error;
        self.portals.clear();
        self.implicit = false;
        if self.sql.tx() == TxState::Idle {
            return Ok(if commit { "COMMIT" } else { "ROLLBACK" });
        }
        let committed = if commit && !failed {
            self.watch.over(&mut self.wire, self.sql.commit()).await?
        } else {
            self.watch.over(&mut self.wire, self.sql.rollback()).await?;
            false
        };
        self.failed = false;
        for report in self.parameters.end_transaction() {
            self.put_parameter(report)?;
        }
        Ok(if committed { "COMMIT" } else { "ROLLBACK" })
    }
}

/// A statement that inserts, updates or deletes, and gives no rows.
fn changes_rows_only(text: &str, tag: &Tag) -> bool {
    let writes = matches!(tag, Tag::Insert | Tag::Counted("UPDATE" | "DELETE"));
    writes && !split::words(text).any(|word| word.is("RETURNING"))
}
