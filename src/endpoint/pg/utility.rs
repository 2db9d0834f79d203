//! Statements that the endpoint answers itself: transactions, session parameters, and what PostgreSQL has and we have not.
//!
//! Decides what kind of statement a text is, and keeps the session's parameters. It never runs anything: [`super::session`]
//! does, and drives it. What is not supported is refused by name (0A000), never ignored.

use super::parameters::Scope;
use super::split::{Kind, Token, words};
use crate::head::sql::{SqlError, TxMode, state};

/// A statement that the engine never sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Utility {
    Begin {
        tag: &'static str,
        mode: TxMode,
    },
    Commit,
    Rollback,
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    /// `None`: back to its default.
    Set {
        scope: Scope,
        name: String,
        value: Option<String>,
    },
    SetTransaction(TxMode),
    ResetAll,
    Show(String),
    ShowAll,
    DiscardAll,
    DiscardPlans,
    /// `None`: all.
    Deallocate(Option<String>),
    /// Is right because there is nothing that it would apply to (`UNLISTEN *`, `CLOSE ALL`).
    Nothing(&'static str),
}

/// What kind of statement a text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Utility(Utility),
    /// `COPY ...`; its text goes to [`super::copy`].
    Copy,
    /// Everything else goes to the engine.
    Sql,
}

impl Command {
    /// Whether it may run in a transaction that has failed.
    #[must_use]
    pub fn leaves_failed_transaction(&self) -> bool {
        matches!(self, Command::Utility(Utility::Commit | Utility::Rollback | Utility::RollbackTo(_)))
    }
}

/// Utility statements have few words; more than this is not one.
const WORDS_MAX: usize = 200;

struct Words<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Words<'a> {
    fn accept(&mut self, what: &str) -> bool {
        let hit = self.tokens.get(self.at).is_some_and(|t| t.is(what));
        self.at += usize::from(hit);
        hit
    }

    fn accept_any(&mut self, whats: &[&'static str]) -> Option<&'static str> {
        whats.iter().copied().find(|w| self.accept(w))
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn name(&mut self) -> Result<String, SqlError> {
        match self.peek() {
            Some(t) if t.kind == Kind::Word => {
                self.at += 1;
                Ok(t.text.to_ascii_lowercase())
            }
            Some(t) if matches!(t.kind, Kind::QuotedName | Kind::Text) => {
                self.at += 1;
                Ok(t.unquoted())
            }
            _ => Err(self.syntax()),
        }
    }

    fn end(&self) -> Result<(), SqlError> {
        if self.at >= self.tokens.len() { Ok(()) } else { Err(self.syntax()) }
    }

    fn syntax(&self) -> SqlError {
        match self.peek() {
            Some(t) => SqlError::new(state::SYNTAX_ERROR, format!("syntax error at or near \"{}\"", t.text)),
            None => SqlError::new(state::SYNTAX_ERROR, "syntax error at end of input"),
        }
    }
}

fn unsupported(what: &str) -> SqlError {
    SqlError::new(state::FEATURE_NOT_SUPPORTED, format!("{what} is not supported"))
}

/// Sorts a statement.
///
/// # Errors
/// 42601 for a utility statement with a mistake in it; 0A000 for PostgreSQL's statements that do not exist here.
pub fn classify(sql: &str) -> Result<Command, SqlError> {
    let Some(first) = words(sql).next().filter(|t| t.kind == Kind::Word) else { return Ok(Command::Sql) };
    let verb = first.text.to_ascii_uppercase();
    let mut w = Words { tokens: Vec::new(), at: 1 };
    let mut load = || w.tokens = words(sql).take(WORDS_MAX).collect();
    let utility = match verb.as_str() {
        "BEGIN" => {
            load();
            w.accept_any(&["WORK", "TRANSACTION", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"]);
            w.accept("TRANSACTION");
            Utility::Begin { tag: "BEGIN", mode: tx_mode(&mut w)? }
        }
        "START" => {
            load();
            if !w.accept("TRANSACTION") {
                return Err(w.syntax());
            }
            Utility::Begin { tag: "START TRANSACTION", mode: tx_mode(&mut w)? }
        }
        "COMMIT" | "END" => {
            load();
            if w.accept("PREPARED") {
                return Err(unsupported("COMMIT PREPARED"));
            }
            transaction_word(&mut w)?;
            Utility::Commit
        }
        "ABORT" => {
            load();
            transaction_word(&mut w)?;
            Utility::Rollback
        }
        "ROLLBACK" => {
            load();
            if w.accept("PREPARED") {
                return Err(unsupported("ROLLBACK PREPARED"));
            }
            w.accept_any(&["WORK", "TRANSACTION"]);
            if w.accept("TO") {
                w.accept("SAVEPOINT");
                Utility::RollbackTo(w.name()?)
            } else {
                transaction_word(&mut w)?;
                Utility::Rollback
            }
        }
        "SAVEPOINT" => {
            load();
            Utility::Savepoint(w.name()?)
        }
        "RELEASE" => {
            load();
            w.accept("SAVEPOINT");
            Utility::Release(w.name()?)
        }
        "SET" => {
            load();
            set(&mut w)?
        }
        "RESET" => {
            load();
            if w.accept("ALL") { Utility::ResetAll } else { Utility::Set { scope: Scope::Session, name: variable(&mut w)?, value: None } }
        }
        "SHOW" => {
            load();
            if w.accept("ALL") { Utility::ShowAll } else { Utility::Show(variable(&mut w)?) }
        }
        "DISCARD" => {
            load();
            match w.accept_any(&["ALL", "PLANS", "SEQUENCES", "TEMP", "TEMPORARY"]) {
                Some("ALL") => Utility::DiscardAll,
                Some("PLANS" | "SEQUENCES") => Utility::DiscardPlans,
                Some(_) => return Err(unsupported("DISCARD TEMP")),
                None => return Err(w.syntax()),
            }
        }
        "DEALLOCATE" => {
            load();
            w.accept("PREPARE");
            if w.accept("ALL") { Utility::Deallocate(None) } else { Utility::Deallocate(Some(w.name()?)) }
        }
        "UNLISTEN" => {
            load();
            if w.accept("*") { Utility::Nothing("UNLISTEN") } else { return Err(unsupported("UNLISTEN of a channel")) }
        }
        "CLOSE" => {
            load();
            if w.accept("ALL") { Utility::Nothing("CLOSE CURSOR ALL") } else { return Err(unsupported("CLOSE of a cursor")) }
        }
        "COPY" => return Ok(Command::Copy),
        "LISTEN" | "NOTIFY" | "PREPARE" | "EXECUTE" | "DECLARE" | "FETCH" | "MOVE" | "LOCK" | "GRANT" | "REVOKE" | "DO" | "CALL"
        | "TRUNCATE" | "COMMENT" | "CLUSTER" | "CHECKPOINT" | "LOAD" | "REFRESH" | "IMPORT" | "REASSIGN" | "SECURITY" => {
            let e = unsupported(&verb);
            return Err(match verb.as_str() {
                "TRUNCATE" => e.hint("Use DELETE FROM without WHERE."),
                "PREPARE" | "EXECUTE" => e.hint("Prepare statements through the driver (the extended query protocol)."),
                "DECLARE" | "FETCH" | "MOVE" => e.hint("Read a large result in parts through the driver's row limit (portals)."),
                _ => e,
            });
        }
        "CREATE" | "DROP" | "ALTER" => {
            // What the engine would call a syntax error is known and named.
            let mut rest = words(sql).skip(1).filter(|t| !t.is("OR") && !t.is("REPLACE"));
            let what = rest.next().map(|t| t.text.to_ascii_uppercase()).unwrap_or_default();
            let known = [
                "ROLE",
                "USER",
                "DATABASE",
                "SCHEMA",
                "EXTENSION",
                "FUNCTION",
                "PROCEDURE",
                "SEQUENCE",
                "TYPE",
                "DOMAIN",
                "PUBLICATION",
                "SUBSCRIPTION",
                "POLICY",
                "TABLESPACE",
                "SYSTEM",
                "SERVER",
                "MATERIALIZED",
            ];
            if known.contains(&what.as_str()) {
                return Err(unsupported(&format!("{verb} {what}")));
            }
            return match serial_column(sql) {
                Some(t) => Err(unsupported(&format!("the column type {}", t.to_ascii_uppercase()))
                    .hint("Write INTEGER PRIMARY KEY: it numbers the rows by itself.")),
                None => Ok(Command::Sql),
            };
        }
        _ => return Ok(Command::Sql),
    };
    w.end()?;
    Ok(Command::Utility(utility))
}

/// A column that is defined with one of PostgreSQL's counting types. The engine would take the word for a type that it does not
/// know, and leave the column NULL.
fn serial_column(sql: &str) -> Option<&str> {
    let tokens: Vec<Token> = words(sql).collect();
    let begins_column = |t: &Token| t.is("(") || t.is(",") || t.is("ADD") || t.is("COLUMN");
    let name = |t: &Token| matches!(t.kind, Kind::Word | Kind::QuotedName);
    let counts = |t: &Token| ["SERIAL", "BIGSERIAL", "SMALLSERIAL"].iter().any(|s| t.is(s));
    tokens.windows(3).find(|w| begins_column(&w[0]) && name(&w[1]) && !w[1].is("COLUMN") && counts(&w[2])).map(|w| w[2].text)
}

fn transaction_word(w: &mut Words) -> Result<(), SqlError> {
    w.accept_any(&["WORK", "TRANSACTION"]);
    if w.accept("AND") {
        let no = w.accept("NO");
        if !w.accept("CHAIN") {
            return Err(w.syntax());
        }
        if !no {
            return Err(unsupported("AND CHAIN"));
        }
    }
    Ok(())
}

/// The options of BEGIN. Every isolation level is granted as SERIALIZABLE, which is at least what was asked for.
fn tx_mode(w: &mut Words) -> Result<TxMode, SqlError> {
    let mut mode = TxMode::default();
    while w.peek().is_some() {
        w.accept(",");
        if w.accept("ISOLATION") {
            let level = w.accept("LEVEL")
                && (w.accept("SERIALIZABLE")
                    || (w.accept("REPEATABLE") && w.accept("READ"))
                    || (w.accept("READ") && w.accept_any(&["COMMITTED", "UNCOMMITTED"]).is_some()));
            if !level {
                return Err(w.syntax());
            }
        } else if w.accept("READ") {
            mode.read_only = match w.accept_any(&["ONLY", "WRITE"]) {
                Some(word) => word == "ONLY",
                None => return Err(w.syntax()),
            };
        } else {
            w.accept("NOT");
            if !w.accept("DEFERRABLE") {
                return Err(w.syntax());
            }
        }
    }
    Ok(mode)
}

fn set(w: &mut Words) -> Result<Utility, SqlError> {
    let scope = match w.accept_any(&["SESSION", "LOCAL"]) {
        Some("LOCAL") => Scope::Transaction,
        Some(_) if w.accept("CHARACTERISTICS") => {
            if !(w.accept("AS") && w.accept("TRANSACTION")) {
                return Err(w.syntax());
            }
            let value = if tx_mode(w)?.read_only { "on" } else { "off" };
            return Ok(Utility::Set { scope: Scope::Session, name: "default_transaction_read_only".into(), value: Some(value.into()) });
        }
        _ => Scope::Session,
    };
    if w.accept("TRANSACTION") {
        if w.accept("SNAPSHOT") {
            return Err(unsupported("SET TRANSACTION SNAPSHOT"));
        }
        return Ok(Utility::SetTransaction(tx_mode(w)?));
    }
    if w.accept("CONSTRAINTS") {
        return Err(unsupported("SET CONSTRAINTS"));
    }
    if w.accept("NAMES") {
        return Ok(Utility::Set { scope, name: "client_encoding".into(), value: values(w)? });
    }
    let short_time_zone = w.accept("TIME");
    let name = if short_time_zone {
        if !w.accept("ZONE") {
            return Err(w.syntax());
        }
        "timezone".to_owned()
    } else {
        dotted(w)?
    };
    if !short_time_zone && !w.accept("=") && !w.accept("TO") {
        return Err(w.syntax());
    }
    Ok(Utility::Set { scope, name, value: values(w)? })
}

/// The value of SET: one or more words, joined by commas; `DEFAULT` is `None`.
fn values(w: &mut Words) -> Result<Option<String>, SqlError> {
    if w.accept("DEFAULT") {
        return Ok(None);
    }
    let mut all = Vec::new();
    loop {
        let minus = w.accept("-");
        match w.peek() {
            Some(t) if matches!(t.kind, Kind::Word | Kind::QuotedName | Kind::Text | Kind::Number) => {
                w.at += 1;
                all.push(format!("{}{}", if minus { "-" } else { "" }, t.unquoted()));
            }
            _ => return Err(w.syntax()),
        }
        if !w.accept(",") {
            return Ok(Some(all.join(", ")));
        }
    }
}

fn dotted(w: &mut Words) -> Result<String, SqlError> {
    let mut name = w.name()?;
    while w.accept(".") {
        name = format!("{name}.{}", w.name()?);
    }
    Ok(name)
}

/// A parameter's name in SHOW and RESET, with PostgreSQL's names of several words.
fn variable(w: &mut Words) -> Result<String, SqlError> {
    if w.accept("TIME") {
        return if w.accept("ZONE") { Ok("timezone".into()) } else { Err(w.syntax()) };
    }
    if w.accept("TRANSACTION") {
        return if w.accept("ISOLATION") && w.accept("LEVEL") { Ok("transaction_isolation".into()) } else { Err(w.syntax()) };
    }
    if w.accept("SESSION") {
        return if w.accept("AUTHORIZATION") { Ok("session_authorization".into()) } else { Err(w.syntax()) };
    }
    dotted(w)
}

/// How a statement's end is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    /// `INSERT 0 n`
    Insert,
    /// `UPDATE n`, `DELETE n`, `SELECT n` ...
    Counted(&'static str),
    Plain(String),
}

impl Tag {
    #[must_use]
    pub fn with(&self, rows: u64) -> String {
        match self {
            Tag::Insert => format!("INSERT 0 {rows}"),
            Tag::Counted(verb) => format!("{verb} {rows}"),
            Tag::Plain(tag) => tag.clone(),
        }
    }

    /// The tag of a statement of the engine.
    #[must_use]
    pub fn of(sql: &str) -> Tag {
        let mut tokens = words(sql);
        let Some(first) = tokens.next() else { return Tag::Plain(String::new()) };
        let verb = first.text.to_ascii_uppercase();
        match verb.as_str() {
            "WITH" => {
                // The verb of the statement itself is the first one outside the parentheses of its common tables.
                let mut depth = 0_usize;
                for t in tokens {
                    match t.text {
                        "(" => depth += 1,
                        ")" => depth = depth.saturating_sub(1),
                        _ if depth == 0 => {
                            if let Some(tag) = Tag::of_verb(&t.text.to_ascii_uppercase()) {
                                return tag;
                            }
                        }
                        _ => {}
                    }
                }
                Tag::Counted("SELECT")
            }
            "CREATE" | "DROP" | "ALTER" => {
                let adjective = ["TEMP", "TEMPORARY", "UNIQUE", "VIRTUAL"];
                let what = tokens.find(|t| !adjective.iter().any(|a| t.is(a))).map(|t| t.text.to_ascii_uppercase()).unwrap_or_default();
                Tag::Plain(format!("{verb} {what}").trim().to_owned())
            }
            verb => Tag::of_verb(verb).unwrap_or_else(|| Tag::Plain(verb.to_owned())),
        }
    }

    fn of_verb(verb: &str) -> Option<Tag> {
        Some(match verb {
            "INSERT" | "REPLACE" => Tag::Insert,
            "UPDATE" => Tag::Counted("UPDATE"),
            "DELETE" => Tag::Counted("DELETE"),
            "SELECT" | "VALUES" => Tag::Counted("SELECT"),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utility(sql: &str) -> Utility {
        match classify(sql) {
            Ok(Command::Utility(u)) => u,
            other => panic!("{sql}: {other:?}"),
        }
    }

    fn code(sql: &str) -> &'static str {
        classify(sql).expect_err(sql).code
    }

    #[test]
    fn transactions_in_all_their_spellings() {
        let begin = |read_only| Utility::Begin { tag: "BEGIN", mode: TxMode { read_only } };
        assert_eq!(utility("begin"), begin(false));
        assert_eq!(utility("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"), begin(true));
        assert_eq!(utility("/* x */ begin immediate transaction"), begin(false));
        assert_eq!(utility("begin isolation level read committed read write not deferrable"), begin(false));
        assert!(matches!(
            utility("start transaction read only"),
            Utility::Begin { tag: "START TRANSACTION", mode: TxMode { read_only: true } }
        ));
        assert_eq!(utility("end work"), Utility::Commit);
        assert_eq!(utility("commit and no chain"), Utility::Commit);
        assert_eq!(utility("abort"), Utility::Rollback);
        assert_eq!(utility("rollback transaction to savepoint \"A b\""), Utility::RollbackTo("A b".into()));
        assert_eq!(utility("release s1"), Utility::Release("s1".into()));
        assert_eq!(utility("SAVEPOINT S1"), Utility::Savepoint("s1".into()));
        assert_eq!(code("begin nonsense"), "42601");
        assert_eq!(code("commit and chain"), "0A000");
        assert_eq!(code("prepare transaction 'x'"), "0A000");
    }

    #[test]
    fn parameters() {
        let set = |scope, name: &str, value: Option<&str>| Utility::Set { scope, name: name.into(), value: value.map(Into::into) };
        assert_eq!(utility("set DateStyle = 'ISO', mdy"), set(Scope::Session, "datestyle", Some("ISO, mdy")));
        assert_eq!(utility("set local statement_timeout to 500"), set(Scope::Transaction, "statement_timeout", Some("500")));
        assert_eq!(utility("set session time zone 'UTC'"), set(Scope::Session, "timezone", Some("UTC")));
        assert_eq!(utility("set names 'utf8'"), set(Scope::Session, "client_encoding", Some("utf8")));
        assert_eq!(utility("reset my.thing"), set(Scope::Session, "my.thing", None));
        assert_eq!(
            utility("set session characteristics as transaction read only"),
            set(Scope::Session, "default_transaction_read_only", Some("on"))
        );
        assert_eq!(utility("show transaction isolation level"), Utility::Show("transaction_isolation".into()));
        assert_eq!(utility("discard all"), Utility::DiscardAll);
        assert_eq!(utility("deallocate all"), Utility::Deallocate(None));
        assert_eq!(utility("unlisten *"), Utility::Nothing("UNLISTEN"));
        assert_eq!(code("set x"), "42601");
        assert_eq!(code("listen news"), "0A000");
        assert_eq!(code("create role x"), "0A000");
        for sql in
            ["create table t (a text, id bigserial primary key)", "create table t(\"id\" Serial)", "alter table t add column n serial"]
        {
            assert_eq!(code(sql), "0A000", "{sql}");
        }
    }

    #[test]
    fn the_rest_goes_to_the_engine_under_its_tag() {
        for (sql, rows, tag) in [
            ("insert into t values (1)", 1, "INSERT 0 1"),
            ("replace into t values (1)", 2, "INSERT 0 2"),
            ("with a as (select 1), b(x) as (delete from q) update t set a = 1", 3, "UPDATE 3"),
            ("with a as (select 1) select * from a", 1, "SELECT 1"),
            ("create unique index i on t(a)", 0, "CREATE INDEX"),
            ("create temp table t(a)", 0, "CREATE TABLE"),
            ("drop table t", 0, "DROP TABLE"),
            ("create table t (serial text, a int)", 0, "CREATE TABLE"),
            ("create table t as select serial from u", 0, "CREATE TABLE"),
            ("alter table t add column serial text", 0, "ALTER TABLE"),
            ("alter table t add column b", 0, "ALTER TABLE"),
            ("vacuum", 0, "VACUUM"),
            ("-- note\ndelete from t", 0, "DELETE 0"),
            ("values (1)", 1, "SELECT 1"),
        ] {
            assert_eq!(classify(sql), Ok(Command::Sql), "{sql}");
            assert_eq!(Tag::of(sql).with(rows), tag, "{sql}");
        }
        assert_eq!(classify("copy t from stdin"), Ok(Command::Copy));
    }
}
