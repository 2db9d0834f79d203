//! What all threads of one engine share: settings, pages, positions, and what the driver said last.

use super::EngineSettings;
use super::horizon::Horizon;
use super::pool::Pool;
use super::progress::{NotDurable, Progress};
use crate::base::Lsn;
use crate::head::sql::{SqlError, state};
use crate::head::{PageSource, StatusSource, WriteGate};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Where SQLite keeps its schema cookie in page 1.
const SCHEMA_VERSION_AT: usize = 40;

#[derive(Default)]
pub struct Counters {
    pub commits: AtomicU64,
    pub rollbacks: AtomicU64,
    pub statements: AtomicU64,
    pub given_back_bytes: AtomicU64,
    pub sessions: AtomicUsize,
    pub readers: AtomicUsize,
    pub readers_busy: AtomicUsize,
}

pub struct Shared {
    pub id: u64,
    pub settings: EngineSettings,
    pub pool: Pool,
    pub horizon: Arc<Horizon>,
    pub progress: Progress,
    pub source: Arc<dyn PageSource>,
    pub status: Arc<dyn StatusSource>,
    pub counters: Counters,
    gate: RwLock<WriteGate>,
    primary: RwLock<Option<String>>,
    schema: Mutex<Option<(u64, Lsn, u32)>>,
    /// Why nothing is read here, if that is so for good.
    hidden: RwLock<Option<String>>,
}

impl Shared {
    pub fn new(id: u64, settings: EngineSettings, source: Arc<dyn PageSource>, status: Arc<dyn StatusSource>) -> Shared {
        Shared {
            id,
            pool: Pool::new(settings.pool_bytes_max),
            settings,
            horizon: Arc::default(),
            progress: Progress::default(),
            source,
            status,
            counters: Counters::default(),
            gate: RwLock::new(WriteGate::Open),
            primary: RwLock::default(),
            schema: Mutex::default(),
            hidden: RwLock::default(),
        }
    }

    pub fn gate(&self) -> WriteGate {
        self.gate.read().clone()
    }

    pub fn set_gate(&self, gate: WriteGate) {
        let fence = match &gate {
            WriteGate::Fenced { reason, .. } => Some(reason.clone()),
            WriteGate::Open | WriteGate::Closed { .. } => None,
        };
        *self.gate.write() = gate;
        self.progress.fence(fence);
    }

    pub fn set_hidden(&self, reason: Option<String>) {
        *self.hidden.write() = reason;
    }

    /// Nothing can be read here now.
    pub fn not_ready(&self) -> SqlError {
        let starts = || "the region is starting: its volume is not recovered yet; try again in a moment".to_owned();
        SqlError::new(state::CANNOT_CONNECT_NOW, self.hidden.read().clone().unwrap_or_else(starts))
    }

    /// Whether a write may begin, as the node and the lease say.
    ///
    /// # Errors
    /// The refusal.
    pub fn may_write(&self) -> Result<(), SqlError> {
        match self.gate() {
            WriteGate::Closed { reason } => Err(SqlError::new(state::IO_ERROR, super::writes_stopped(&reason))),
            WriteGate::Fenced { reason, .. } => Err(self.no_writer(&reason)),
            WriteGate::Open if self.progress.may_acknowledge() => Ok(()),
            WriteGate::Open => Err(self.no_writer("the lease of this region as the primary is over")),
        }
    }

    /// Whether an answer of writer `reign` may go out now.
    ///
    /// # Errors
    /// The refusal of a statement that did nothing: it may be run where there is a writer.
    pub fn permits(&self, reign: u64) -> Result<(), SqlError> {
        self.progress.permits(reign).map_err(|why| self.not_the_writer(&why))
    }

    fn not_the_writer(&self, why: &NotDurable) -> SqlError {
        let reason = match why {
            NotDurable::Closed(reason) | NotDurable::Withheld(reason) => reason.as_str(),
            NotDurable::TimedOut => "the copies do not answer",
        };
        self.no_writer(reason)
    }

    /// Nothing can be answered at the writer port of this region now.
    pub fn no_writer(&self, reason: &str) -> SqlError {
        let region = &self.settings.region;
        let error = SqlError::new(state::CANNOT_CONNECT_NOW, format!("{region} does not serve the writer port now: {reason}"));
        match self.primary_hint() {
            Some(primary) if primary != *region => error.hint(format!("The primary is {primary}.")),
            _ => error.hint("Run it again in a moment."),
        }
        .run_elsewhere()
    }

    fn primary_hint(&self) -> Option<String> {
        match self.gate() {
            WriteGate::Fenced { primary: Some(primary), .. } => Some(primary.to_string()),
            _ => self.primary.read().clone(),
        }
    }

    /// Somebody has seen page 1 as of `at`.
    pub fn note_schema(&self, incarnation: u64, at: Lsn, page_one: &[u8]) {
        let mut version = [0; 4];
        super::copy_part(page_one, SCHEMA_VERSION_AT, &mut version);
        let seen = (incarnation, at, u32::from_be_bytes(version));
        let mut schema = self.schema.lock();
        if schema.is_none_or(|known| (known.0, known.1) <= (seen.0, seen.1)) {
            *schema = Some(seen);
        }
    }

    /// What was seen last may be cut away.
    pub fn forget_schema(&self) {
        *self.schema.lock() = None;
    }

    /// The newest version of the schema that anybody here has seen.
    pub fn schema_version(&self) -> Option<u32> {
        self.schema.lock().map(|(_, _, version)| version)
    }

    pub fn set_primary(&self, name: Option<String>) {
        *self.primary.write() = name;
    }

    /// The refusal of a write that came to a reader.
    pub fn read_only(&self, sql: &str, has_writer: bool) -> SqlError {
        let (verb, region) = (verb(sql), &self.settings.region);
        let message = match (&*self.primary.read(), has_writer) {
            (_, true) => format!("cannot execute {verb} on a reader: this session came in through the reader port of {region}"),
            (Some(primary), false) => {
                format!(
                    "cannot execute {verb} in a read-only region: {region} is a secondary; the primary is {primary}. Use the writer port"
                )
            }
            (None, false) => format!("cannot execute {verb} in a read-only region: {region} does not know of a primary at present"),
        };
        let error = SqlError::new(state::READ_ONLY, message);
        if has_writer { error.hint("Use the writer port.") } else { error }
    }
}

/// The first word of a statement, for people: `INSERT`.
pub fn verb(sql: &str) -> String {
    let mut rest = sql.trim_start();
    loop {
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, rest)| rest).trim_start();
        } else {
            break;
        }
    }
    let word: String = rest.chars().take_while(char::is_ascii_alphabetic).take(20).collect();
    if word.is_empty() { "this".to_string() } else { word.to_ascii_uppercase() }
}
