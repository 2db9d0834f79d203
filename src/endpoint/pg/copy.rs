//! COPY: bulk data in (text and CSV) as INSERTs inside one transaction, and out.
//!
//! Decides how lines become values and back. Nothing is kept but the line that is being read and one batch of rows. A bad line
//! is an error that names it, and nothing of the COPY stays. Driven by the session.

use super::copy_format::{BAD_COPY, Fields, Lines, Shape, unescape};
use super::extended::quote;
use super::running::Rows;
use super::session::Session;
use super::split::{Kind, Token, words};
use super::types::{self, Format, PgType};
use super::wire::Stop;
use crate::head::sql::{Outcome, SqlError, TxMode, TxState, Value, state};
use bytes::BytesMut;
use pgwire::messages::copy::{CopyData, CopyDone, CopyInResponse, CopyOutResponse};
use pgwire::messages::{PgWireBackendMessage as Out, PgWireFrontendMessage as In};

/// The engine takes at most 32766 parameters in a statement.
const PARAMETERS_MAX: usize = 30_000;
const BATCH_ROWS_MAX: usize = 200;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A COPY statement.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Copy {
    source: Source,
    columns: Vec<String>,
    from_client: bool,
    shape: Shape,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// As it is written in SQL.
    Table(String),
    Query(String),
}

struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl Reader<'_> {
    fn accept(&mut self, what: &str) -> bool {
        let hit = self.tokens.get(self.at).is_some_and(|t| t.is(what));
        self.at += usize::from(hit);
        hit
    }

    fn error(&self) -> SqlError {
        let near = self.tokens.get(self.at).map_or("end of input".to_owned(), |t| format!("or near \"{}\"", t.text));
        SqlError::new(state::SYNTAX_ERROR, format!("syntax error in COPY at {near}"))
    }

    fn name(&mut self) -> Result<String, SqlError> {
        let t = self.tokens.get(self.at).filter(|t| matches!(t.kind, Kind::Word | Kind::QuotedName)).ok_or_else(|| self.error())?;
        self.at += 1;
        Ok(t.unquoted())
    }

    /// A string, also as `E'\t'`.
    fn text(&mut self) -> Result<String, SqlError> {
        self.accept("AS");
        let escaped = self.accept("E");
        let t = self.tokens.get(self.at).filter(|t| t.kind == Kind::Text).ok_or_else(|| self.error())?;
        self.at += 1;
        let text = t.unquoted();
        if escaped { String::from_utf8(unescape(text.as_bytes())).map_err(|_| self.error()) } else { Ok(text) }
    }

    fn byte(&mut self, what: &str) -> Result<u8, SqlError> {
        match self.text()?.as_bytes() {
            [b] if !matches!(b, b'\n' | b'\r') => Ok(*b),
            _ => Err(SqlError::new(state::FEATURE_NOT_SUPPORTED, format!("COPY {what} must be a single one-byte character"))),
        }
    }

    fn flag(&mut self) -> bool {
        if self.accept("FALSE") || self.accept("OFF") {
            return false;
        }
        let _ = self.accept("TRUE") || self.accept("ON");
        true
    }
}

fn parse(sql: &str) -> Result<Copy, SqlError> {
    let mut r = Reader { tokens: words(sql).collect(), at: 1 };
    let refuse = |what: &str| SqlError::new(state::FEATURE_NOT_SUPPORTED, format!("{what} is not supported"));
    let mut columns = Vec::new();
    let source = if r.accept("(") {
        let start = r.at;
        let mut depth = 1;
        while depth > 0 {
            let t = r.tokens.get(r.at).ok_or_else(|| r.error())?;
            depth = if t.is("(") {
                depth + 1
            } else if t.is(")") {
                depth - 1
            } else {
                depth
            };
            r.at += 1;
        }
        let offset = |i: usize| r.tokens[i].text.as_ptr() as usize - sql.as_ptr() as usize;
        Source::Query(sql[offset(start)..offset(r.at - 1)].to_owned())
    } else {
        let mut table = quote(&r.name()?);
        if r.accept(".") {
            let name = r.name()?;
            // PostgreSQL's default schema is SQLite's "main".
            let schema = if table.eq_ignore_ascii_case("\"public\"") { quote("main") } else { table };
            table = format!("{schema}.{}", quote(&name));
        }
        if r.accept("(") {
            loop {
                columns.push(r.name()?);
                if !r.accept(",") {
                    break;
                }
            }
            if !r.accept(")") {
                return Err(r.error());
            }
        }
        Source::Table(table)
    };
    let from_client = r.accept("FROM");
    if !from_client && !r.accept("TO") || (from_client && matches!(source, Source::Query(_))) {
        return Err(r.error());
    }
    if !r.accept(if from_client { "STDIN" } else { "STDOUT" }) {
        return Err(refuse("COPY with files or programs of the server")
            .hint("Use STDIN or STDOUT; in psql, \\copy reads and writes files of the client."));
    }
    let shape = shape(&mut r)?;
    Ok(Copy { source, columns, from_client, shape })
}

fn shape(r: &mut Reader) -> Result<Shape, SqlError> {
    let refuse = |what: &str| SqlError::new(state::FEATURE_NOT_SUPPORTED, format!("{what} is not supported in COPY"));
    let (mut csv, mut header) = (false, false);
    let (mut delimiter, mut null, mut quote, mut escape) = (None, None, None, None);
    while r.at < r.tokens.len() {
        if r.accept("WITH") || r.accept("(") || r.accept(")") || r.accept(",") {
        } else if r.accept("FORMAT") {
            match r.name()?.to_ascii_lowercase().as_str() {
                "csv" => csv = true,
                "text" => csv = false,
                other => return Err(refuse(&format!("format \"{other}\""))),
            }
        } else if r.accept("CSV") {
            csv = true;
        } else if r.accept("HEADER") {
            if r.accept("MATCH") {
                return Err(refuse("HEADER MATCH"));
            }
            header = r.flag();
        } else if r.accept("DELIMITER") || r.accept("DELIMITERS") {
            delimiter = Some(r.byte("delimiter")?);
        } else if r.accept("NULL") {
            null = Some(r.text()?);
        } else if r.accept("QUOTE") {
            quote = Some(r.byte("quote")?);
        } else if r.accept("ESCAPE") {
            escape = Some(r.byte("escape")?);
        } else if r.accept("FREEZE") {
            r.flag();
        } else if r.accept("ENCODING") {
            if !matches!(r.text()?.to_ascii_uppercase().as_str(), "UTF8" | "UTF-8") {
                return Err(refuse("an encoding other than UTF8"));
            }
        } else if r.accept("BINARY") || r.accept("FORCE_QUOTE") || r.accept("FORCE_NULL") || r.accept("FORCE_NOT_NULL") || r.accept("FORCE")
        {
            let what = r.tokens[r.at - 1].text.to_ascii_uppercase();
            return Err(refuse(&what));
        } else if r.accept("WHERE") {
            return Err(refuse("WHERE"));
        } else {
            return Err(r.error());
        }
    }
    let quote = quote.unwrap_or(b'"');
    let shape = Shape {
        csv,
        delimiter: delimiter.unwrap_or(if csv { b',' } else { b'\t' }),
        null: null.unwrap_or_else(|| if csv { String::new() } else { "\\N".into() }),
        header,
        quote,
        escape: escape.unwrap_or(quote),
    };
    if (csv && shape.delimiter == shape.quote) || (!csv && (shape.delimiter == b'\\' || shape.delimiter.is_ascii_alphanumeric())) {
        return Err(SqlError::new("22023", "COPY delimiter cannot be this character"));
    }
    Ok(shape)
}

/// Where the lines go.
struct Target {
    insert_head: String,
    columns: Vec<(String, PgType)>,
    batch_rows: usize,
}

impl Target {
    fn insert(&self, rows: usize) -> String {
        let n = self.columns.len();
        let row = |r: usize| format!("({})", (1..=n).map(|c| format!("${}", r * n + c)).collect::<Vec<_>>().join(","));
        format!("{}{}", self.insert_head, (0..rows).map(row).collect::<Vec<_>>().join(","))
    }

    fn values(&self, line: u64, fields: Fields) -> Result<Vec<Value>, SqlError> {
        if fields.len() > self.columns.len() {
            return Err(SqlError::new(BAD_COPY, format!("extra data after last expected column (COPY line {line})")));
        }
        if let Some((missing, _)) = self.columns.get(fields.len()) {
            return Err(SqlError::new(BAD_COPY, format!("missing data for column \"{missing}\" (COPY line {line})")));
        }
        let value = |(field, (name, ty)): (Option<String>, &(String, PgType))| match field {
            None => Ok(Value::Null),
            Some(text) => types::decode(text.as_bytes(), *ty, true, Format::Text)
                .map_err(|e| SqlError { message: format!("{} (COPY line {line}, column {name})", e.message), ..e }),
        };
        fields.into_iter().zip(&self.columns).map(value).collect()
    }
}

impl Session {
    pub(super) async fn copy(&mut self, text: &str) -> Result<(), Stop> {
        let copy = parse(text)?;
        if copy.from_client { self.copy_in(copy).await } else { self.copy_out(copy).await }
    }

    async fn copy_in(&mut self, copy: Copy) -> Result<(), Stop> {
        // The time is the client's while it sends.
        self.stop_timer();
        let Source::Table(table) = &copy.source else {
            return Err(SqlError::new(state::SYNTAX_ERROR, "COPY FROM needs a table").into());
        };
        let names = if copy.columns.is_empty() { "*".to_owned() } else { list(&copy.columns) };
        let description = self.watch.over(&mut self.wire, self.sql.describe(&format!("SELECT {names} FROM {table}"))).await?;
        let columns: Vec<(String, PgType)> = description
            .columns
            .iter()
            .map(|c| (c.name.clone(), c.declared_type.as_deref().map_or(PgType::Text, PgType::from_declared)))
            .collect();
        let insert_head = format!("INSERT INTO {table} ({}) VALUES ", list(columns.iter().map(|c| &c.0)));
        let batch_rows = (PARAMETERS_MAX / columns.len().max(1)).clamp(1, BATCH_ROWS_MAX);
        let target = Target { insert_head, columns, batch_rows };

        let own = self.sql.tx() == TxState::Idle;
        if own {
            self.begin(TxMode::default()).await?;
            // An error rolls it back like any transaction that the client did not begin.
            self.implicit = true;
        }
        let n = i16::try_from(target.columns.len()).map_err(|_| SqlError::new("54011", "too many columns"))?;
        self.wire.put(&Out::CopyInResponse(CopyInResponse::new(0, n, vec![0; target.columns.len()])))?;
        self.wire.flush().await?;
        let rows = self.copy_lines(copy.shape, &target).await?;
        if own {
            self.commit_implicit().await?;
        }
        self.put_complete(format!("COPY {rows}"))
    }

    async fn copy_lines(&mut self, shape: Shape, target: &Target) -> Result<u64, Stop> {
        let mut lines = Lines::new(shape);
        let mut batch: Vec<Value> = Vec::new();
        let (mut rows, mut batched, mut bytes) = (0_u64, 0_usize, 0_usize);
        let full = target.insert(target.batch_rows);
        loop {
            let end = match self.receive_copy().await? {
                In::CopyData(m) => {
                    bytes += m.data.len();
                    lines.push(&m.data)?;
                    false
                }
                In::CopyDone(_) => true,
                In::CopyFail(m) => {
                    return Err(SqlError::new(state::QUERY_CANCELED, format!("COPY from stdin failed: {}", m.message)).into());
                }
                In::Flush(_) | In::Sync(_) => continue,
                In::Terminate(_) => return Err(Stop::Gone),
                _ => return Err(Stop::Fatal(SqlError::new("08P01", "unexpected message type during COPY from stdin"))),
            };
            let mut read = Vec::new();
            lines.take(end, |line, fields| read.push((line, fields)))?;
            for (line, fields) in read {
                batch.extend(target.values(line, fields)?);
                batched += 1;
                rows += 1;
                if batched == target.batch_rows {
                    self.watch.over(&mut self.wire, self.sql.feed(&full, std::mem::take(&mut batch))).await?;
                    (batched, bytes) = (0, 0);
                }
            }
            if batched > 0 && (end || bytes > BATCH_BYTES_MAX) {
                self.watch.over(&mut self.wire, self.sql.feed(&target.insert(batched), std::mem::take(&mut batch))).await?;
                (batched, bytes) = (0, 0);
            }
            if end {
                let fed = self.watch.over(&mut self.wire, async { Ok(self.sql.fed().await) }).await?;
                return fed.failed.map_or(Ok(rows), |e| Err(e.into()));
            }
        }
    }

    async fn copy_out(&mut self, copy: Copy) -> Result<(), Stop> {
        let query = match &copy.source {
            Source::Query(q) => q.clone(),
            Source::Table(t) if copy.columns.is_empty() => format!("SELECT * FROM {t}"),
            Source::Table(t) => format!("SELECT {} FROM {t}", list(&copy.columns)),
        };
        self.refuse_write(&query).await?;
        let mut rows = match self.watch.over(&mut self.wire, self.sql.execute(&query, Vec::new())).await? {
            Outcome::Rows { columns, rows } => Rows::new(columns, rows),
            Outcome::Done { .. } => return Err(SqlError::new(state::FEATURE_NOT_SUPPORTED, "COPY query must have a result").into()),
        };
        rows.any(&mut self.wire, &mut self.watch).await?;
        let types = rows.types(&[]);
        let n = i16::try_from(types.len()).map_err(|_| SqlError::new("54011", "too many columns"))?;
        self.wire.put(&Out::CopyOutResponse(CopyOutResponse::new(0, n, vec![0; types.len()])))?;
        let mut line = Vec::new();
        if copy.shape.header {
            let names: Fields = rows.columns().iter().map(|c| Some(c.name.clone())).collect();
            copy.shape.write(&names, &mut line);
            self.wire.put(&Out::CopyData(CopyData::new(std::mem::take(&mut line).into())))?;
        }
        let mut count = 0_u64;
        while let Some(row) = rows.next(&mut self.wire, &mut self.watch).await? {
            let mut fields = Vec::with_capacity(row.len());
            for (value, ty) in row.iter().zip(&types) {
                let mut text = BytesMut::new();
                types::encode(value, *ty, Format::Text, &mut text)?;
                fields.push(if *value == Value::Null { None } else { Some(String::from_utf8_lossy(&text).into_owned()) });
            }
            copy.shape.write(&fields, &mut line);
            self.wire.put(&Out::CopyData(CopyData::new(std::mem::take(&mut line).into())))?;
            self.wire.relieve().await?;
            count += 1;
        }
        self.wire.put(&Out::CopyDone(CopyDone::new()))?;
        self.put_complete(format!("COPY {count}"))
    }
}

fn list<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|n| quote(n.as_ref())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(options: &str, data: &str, piece: usize) -> Result<Vec<Fields>, SqlError> {
        let mut lines = Lines::new(parse(&format!("copy t from stdin {options}"))?.shape);
        let mut all = Vec::new();
        for chunk in data.as_bytes().chunks(piece) {
            lines.push(chunk)?;
            lines.take(false, |_, f| all.push(f))?;
        }
        lines.take(true, |_, f| all.push(f))?;
        Ok(all)
    }

    fn fields(f: &[Option<&str>]) -> Fields {
        f.iter().map(|f| f.map(str::to_owned)).collect()
    }

    #[test]
    fn copy_statements_of_psql_and_drivers() {
        let c = parse("COPY  public.\"T t\" (a, \"B\") FROM STDIN WITH (FORMAT csv, HEADER true, DELIMITER ';', NULL 'x')").unwrap();
        assert_eq!(c.source, Source::Table("\"main\".\"T t\"".into()));
        assert_eq!(c.columns, ["a", "B"]);
        assert_eq!(c.shape, Shape { csv: true, delimiter: b';', null: "x".into(), header: true, quote: b'"', escape: b'"' });
        let c = parse("copy t from stdin csv header delimiter as E'\\t' quote ''''").unwrap();
        assert!(c.shape.csv && c.shape.header && c.shape.delimiter == b'\t' && c.shape.quote == b'\'');
        let c = parse("copy (select (1), 'x') to stdout").unwrap();
        assert_eq!((c.source, c.from_client), (Source::Query("select (1), 'x'".into()), false));
        for (sql, code) in [
            ("copy t from '/etc/passwd'", "0A000"),
            ("copy t to program 'x'", "0A000"),
            ("copy t from stdin binary", "0A000"),
            ("copy t from stdin where a > 1", "0A000"),
            ("copy t", "42601"),
            ("copy (select 1) from stdin", "42601"),
            ("copy t from stdin csv quote ','", "22023"),
        ] {
            assert_eq!(parse(sql).unwrap_err().code, code, "{sql}");
        }
    }

    #[test]
    fn the_text_format() {
        for piece in [1, 3, 1000] {
            let rows = read("", "1\ta\\tb\n\\N\t\\\\N\r\n3\tx\\\ny\\x41\\101\n\\.\nafter", piece).unwrap();
            assert_eq!(rows, [fields(&[Some("1"), Some("a\tb")]), fields(&[None, Some("\\N")]), fields(&[Some("3"), Some("x\nyAA")])]);
        }
    }

    #[test]
    fn the_csv_format() {
        for piece in [1, 3, 1000] {
            let rows = read("csv header", "h1,h2\n1,\"a,\"\"b\"\"\nc\"\n,\"\"\r\nlast,", piece).unwrap();
            assert_eq!(rows, [fields(&[Some("1"), Some("a,\"b\"\nc")]), fields(&[None, Some("")]), fields(&[Some("last"), None])]);
        }
        assert_eq!(read("csv", "a,\"never", 4).unwrap_err().code, BAD_COPY);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in prop::collection::vec(prop::collection::vec(prop::option::of("[a-c,;\"'\\\\\t\n\ré|.]{0,6}"), 2..3), 0..6), csv in any::<bool>(), piece in 1_usize..9) {
            let options = if csv { "csv" } else { "" };
            let shape = parse(&format!("copy t to stdout {options}")).unwrap().shape;
            let mut data = Vec::new();
            for row in &rows {
                shape.write(row, &mut data);
            }
            prop_assert_eq!(read(options, std::str::from_utf8(&data).unwrap(), piece).unwrap(), rows);
        }

        #[test]
        fn no_bytes_panic(data in "[a\\\\x0\"',\n\r\t.N]{0,30}", csv in any::<bool>(), piece in 1_usize..9) {
            let _ = read(if csv { "csv escape '\\'" } else { "" }, &data, piece);
        }
    }
}
