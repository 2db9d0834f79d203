//! Rows that two states of the database do not share, table by table.
//!
//! Both states are written out as SQLite files into a directory that goes afterwards, and SQLite compares them by EXCEPT: what a row
//! is, and when two are the same, is its business. Takes as much room for a moment as the database is large, twice: in the system's directory
//! for temporary files, or in memory where the copies are encrypted.

use super::{Failure, Present, Salvaged, TimelineId, name};
use crate::base::{Lsn, PageNo};
use crate::head::PageSource;
use crate::head::embedded::PAGE_BYTES;
use crate::log::redo::VolumeHeader;
use crate::ops::config::Config;
use crate::ops::failure::{FAILED, REFUSED, io_failure};
use crate::ops::text;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A file system in memory.
const MEMORY: &str = "/dev/shm";
/// So much of a value is shown.
const SHOWN_CHARS_MAX: usize = 60;

/// What became of a row in the lost tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only the lost tail has it.
    Inserted,
    /// Both have it, with other values.
    Updated,
    /// Only the other state has it.
    Deleted,
}

/// One row by its key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RowDiff {
    pub change: Change,
    /// The primary key; the rowid where there is none.
    pub key: Vec<String>,
    /// All columns as the lost tail has them; null where it has no such row.
    pub lost: Option<Vec<Option<String>>>,
    /// As the other state has them.
    pub other: Option<Vec<Option<String>>>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TableDiff {
    pub table: String,
    /// `lost_only`, `other_only` (the table is in one state only), `both`.
    pub there: &'static str,
    /// The columns that were compared: those of both.
    pub columns: Vec<String>,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    /// The first of them, by key.
    pub rows: Vec<RowDiff>,
    /// There are more.
    pub more: bool,
}

/// Tables that the lost tail changed, and the rows in which it differs from what both histories have: at most `rows_max` of each table.
///
/// # Errors
/// When the archive cannot be opened, the base's versions are gone, or the database is larger than `database_max` bytes.
pub fn touched(config: &Config, id: TimelineId, rows_max: usize, database_max: u64) -> Result<Vec<TableDiff>, Failure> {
    let salvaged = Salvaged::open(config, id)?;
    let room = Room::new(config)?;
    let header = salvaged.page_at(PageNo::HEADER, salvaged.at().end_lsn).map_err(|e| Failure::new(FAILED, e.to_string()))?;
    let bytes = u64::from(VolumeHeader::from_page(&header).page_count) * PAGE_BYTES as u64;
    if bytes > database_max {
        return Err(Failure::new(
            REFUSED,
            format!(
                "the database has {}, and is compared by itself up to {} only; parhelion salvage {} --diff TABLE shows the rows of a table",
                text::bytes(bytes),
                text::bytes(database_max),
                name(id)
            ),
        ));
    }
    room.write("lost", &salvaged, salvaged.at().end_lsn)?;
    room.write("other", &salvaged, salvaged.base().end_lsn)?;
    let db = room.open()?;
    let mut all = Vec::new();
    for table in tables(&db)? {
        let diff = compare(&db, &table, rows_max)?;
        if diff.inserted + diff.updated + diff.deleted > 0 || diff.there != "both" {
            all.push(diff);
        }
    }
    Ok(all)
}

/// Rows of `table` in which the lost tail differs from the history that is followed now, as this region has it.
///
/// # Errors
/// When one of them cannot be opened, or neither has the table.
pub fn diff(config: &Config, id: TimelineId, table: &str) -> Result<TableDiff, Failure> {
    let salvaged = Salvaged::open(config, id)?;
    let present = Present::open(config)?;
    let room = Room::new(config)?;
    room.write("lost", &salvaged, salvaged.at().end_lsn)?;
    room.write("other", &present, present.at().end_lsn)?;
    let db = room.open()?;
    let known = tables(&db)?;
    let Some(table) = known.iter().find(|t| t.eq_ignore_ascii_case(table)) else {
        return Err(Failure::new(REFUSED, format!("neither history has a table '{table}'"))
            .hint(format!("they have: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })));
    };
    compare(&db, table, usize::MAX)
}

/// A directory for the two files.
struct Room {
    dir: PathBuf,
}

impl Room {
    /// Where the region's files are sealed nothing of them is written to a disk: the room is in memory.
    fn new(config: &Config) -> Result<Room, Failure> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut bits = [0u8; 8];
        aws_lc_rs::rand::fill(&mut bits).map_err(|_| Failure::new(FAILED, "the system gives no random numbers"))?;
        let below = match &config.key_file {
            None => std::env::temp_dir(),
            Some(_) if Path::new(MEMORY).is_dir() => MEMORY.into(),
            Some(_) => {
                return Err(Failure::new(FAILED, format!("the copies are encrypted, so rows are compared in memory only, and there is no {MEMORY} here"))
                    .hint("run this on Linux with a tmpfs mounted there, or look at the tail with parhelion salvage ARCHIVE --listen 127.0.0.1:PORT"));
            }
        };
        let dir = below.join(format!("parhelion-salvage-{:016x}", u64::from_le_bytes(bits)));
        std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(io_failure(format!("make {}", dir.display())))?;
        Ok(Room { dir })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sqlite"))
    }

    /// The database as of `at`. Pages that do not exist stay holes.
    fn write(&self, name: &str, pages: &dyn PageSource, at: Lsn) -> Result<(), Failure> {
        let path = self.file(name);
        let page = |n: u32| pages.page_at(PageNo(n), at).map_err(|e| Failure::new(FAILED, e.to_string()));
        let header = VolumeHeader::from_page(&page(PageNo::HEADER.0)?);
        let failed = || io_failure(format!("write {}", path.display()));
        let mut file = std::io::BufWriter::new(std::fs::File::create_new(&path).map_err(failed())?);
        for n in 1..=header.page_count {
            let mut bytes = page(n)?.to_vec();
            bytes.resize(PAGE_BYTES, 0);
            file.write_all(&bytes).map_err(failed())?;
        }
        file.flush().map_err(failed())
    }

    fn open(&self) -> Result<Connection, Failure> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(self.file("lost"), flags).map_err(sqlite)?;
        // What SQLite sorts would else go to a file of its own.
        db.execute_batch("PRAGMA temp_store = MEMORY").map_err(sqlite)?;
        let other = path_text(&self.file("other"))?;
        db.execute("ATTACH DATABASE ?1 AS other", [other]).map_err(sqlite)?;
        Ok(db)
    }
}

fn path_text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| Failure::new(FAILED, format!("{} is no text", path.display())))
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!("{} cannot be removed: {e}; remove it by hand", self.dir.display());
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is mapped over errors")]
fn sqlite(e: rusqlite::Error) -> Failure {
    Failure::new(FAILED, format!("SQLite cannot read it: {e}"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn strings(db: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Vec<String>, Failure> {
    let mut statement = db.prepare(sql).map_err(sqlite)?;
    let rows = statement.query_map(params, |row| row.get::<_, String>(0)).map_err(sqlite)?;
    rows.collect::<Result<_, _>>().map_err(sqlite)
}

/// Of both states.
fn tables(db: &Connection) -> Result<Vec<String>, Failure> {
    let of = |schema: &str| {
        format!("SELECT name FROM {schema}.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND rootpage > 0")
    };
    strings(db, &format!("{} UNION {} ORDER BY 1", of("main"), of("other")), [])
}

fn columns(db: &Connection, schema: &str, table: &str, which: &str) -> Result<Vec<String>, Failure> {
    strings(db, &format!("SELECT name FROM pragma_table_info(?1, '{schema}') WHERE {which}"), [table])
}

fn has_table(db: &Connection, schema: &str, table: &str) -> Result<bool, Failure> {
    let found = strings(db, &format!("SELECT name FROM {schema}.sqlite_schema WHERE type = 'table' AND name = ?1"), [table])?;
    Ok(!found.is_empty())
}

fn shown(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(n) => Some(n.to_string()),
        ValueRef::Real(x) => Some(x.to_string()),
        ValueRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Blob(bytes) => Some(format!("\\x{}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())),
    }
}

type Shown = Vec<Option<String>>;
/// A row as the lost tail has it, and as the other state does.
type Both = (Option<Shown>, Option<Shown>);

fn compare(db: &Connection, table: &str, rows_max: usize) -> Result<TableDiff, Failure> {
    let there = match (has_table(db, "main", table)?, has_table(db, "other", table)?) {
        (true, true) => "both",
        (true, false) => "lost_only",
        (false, _) => "other_only",
    };
    let side = |schema: &str| columns(db, schema, table, "1");
    let all = match there {
        "both" => {
            let other = side("other")?;
            side("main")?.into_iter().filter(|c| other.contains(c)).collect()
        }
        "lost_only" => side("main")?,
        _ => side("other")?,
    };
    let of_schema = if there == "other_only" { "other" } else { "main" };
    // The key in its own order; tables without one have a rowid.
    let primary: Vec<String> = columns(db, of_schema, table, "pk > 0 ORDER BY pk")?.into_iter().filter(|k| all.contains(k)).collect();
    let key = if primary.is_empty() { "rowid".to_owned() } else { primary.iter().map(|k| quoted(k)).collect::<Vec<_>>().join(", ") };
    let key_len = primary.len().max(1);
    let listed = all.iter().map(|c| quoted(c)).collect::<Vec<_>>().join(", ");
    let rows_of = |schema: &str| format!("SELECT {key}, {listed} FROM {schema}.{}", quoted(table));
    let only = |this: &str, that: &str| match there {
        "both" => format!("{} EXCEPT {}", rows_of(this), rows_of(that)),
        _ => rows_of(this),
    };
    let mut found: BTreeMap<Shown, Both> = BTreeMap::new();
    for (schema, that) in [("main", "other"), ("other", "main")] {
        if there != "both" && schema != of_schema {
            continue;
        }
        let mut statement = db.prepare(&only(schema, that)).map_err(sqlite)?;
        let count = statement.column_count();
        let mut rows = statement.query([]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let values: Result<Shown, rusqlite::Error> = (0..count).map(|i| row.get_ref(i).map(shown)).collect();
            let mut values = values.map_err(sqlite)?;
            let rest = values.split_off(key_len);
            let entry = found.entry(values).or_default();
            if schema == "main" { entry.0 = Some(rest) } else { entry.1 = Some(rest) }
        }
    }
    let mut out =
        TableDiff { table: table.to_owned(), there, columns: all, inserted: 0, updated: 0, deleted: 0, rows: Vec::new(), more: false };
    let mut ordered: Vec<_> = found.into_iter().collect();
    // Keys that are numbers, in the order of numbers.
    let number = |key: &[Option<String>]| key.first().cloned().flatten().and_then(|k| k.parse::<i64>().ok());
    ordered.sort_by_cached_key(|(key, _)| (number(key), key.clone()));
    for (key, (lost, other)) in ordered {
        let change = match (&lost, &other) {
            (Some(_), Some(_)) => Change::Updated,
            (Some(_), None) => Change::Inserted,
            (None, _) => Change::Deleted,
        };
        *match change {
            Change::Inserted => &mut out.inserted,
            Change::Updated => &mut out.updated,
            Change::Deleted => &mut out.deleted,
        } += 1;
        if out.rows.len() < rows_max {
            let key = key.into_iter().map(|k| k.unwrap_or_else(|| "NULL".to_owned())).collect();
            out.rows.push(RowDiff { change, key, lost, other });
        } else {
            out.more = true;
        }
    }
    Ok(out)
}

fn short(value: Option<&String>) -> String {
    let text = value.map_or_else(|| "NULL".to_owned(), |v| v.replace(['\n', '\r', '\t', '\x1b'], " "));
    if text.chars().count() <= SHOWN_CHARS_MAX { text } else { text.chars().take(SHOWN_CHARS_MAX - 3).collect::<String>() + "..." }
}

/// `+` only the lost tail has it, `-` only the present history has it; a row that both have comes twice.
pub(super) fn render(diff: &TableDiff) -> String {
    let mut rows = Vec::new();
    let line = |sign: &str, values: &[Option<String>]| {
        std::iter::once(sign.to_owned()).chain(values.iter().map(|v| short(v.as_ref()))).collect::<Vec<_>>()
    };
    for row in &diff.rows {
        rows.extend(row.other.as_ref().map(|values| line("-", values)));
        rows.extend(row.lost.as_ref().map(|values| line("+", values)));
    }
    let header: Vec<&str> = std::iter::once("").chain(diff.columns.iter().map(String::as_str)).collect();
    let mut out = if rows.is_empty() { String::new() } else { text::table(&header, &[], rows) };
    let _ = writeln!(
        out,
        "{}: {} rows only in the lost tail (+), {} only in the present history (-), {} in both with other values",
        diff.table, diff.inserted, diff.deleted, diff.updated
    );
    out
}
