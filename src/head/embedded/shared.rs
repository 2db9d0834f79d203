//! What all threads of one engine share: settings, pages, positions, and what the driver said last.

use super::EngineSettings;
use super::horizon::Horizon;
use super::pool::Pool;
use super::progress::Progress;
use crate::head::sql::{SqlError, state};
use crate::head::{PageSource, StatusSource, WriteGate};
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

#[derive(Default)]
pub struct Counters {
    pub commits: AtomicU64,
    pub rollbacks: AtomicU64,
    pub statements: AtomicU64,
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
        }
    }

    pub fn gate(&self) -> WriteGate {
        self.gate.read().clone()
    }

    pub fn set_gate(&self, gate: WriteGate) {
        *self.gate.write() = gate;
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
