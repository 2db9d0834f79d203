//! The engine against a volume in memory that keeps the volume's promises: pages at any LSN up to the VDL, in order, and
//! nothing durable before it is told.

mod replication;
mod roles;
mod security;
mod space;
mod sql;
mod transactions;

use super::{Engine, EngineSettings, Port, Session};
use crate::base::{Epoch, Generation, LogEnd, Lsn, PageNo};
use crate::head::sql::{Outcome, Row, SqlError, Value};
use crate::head::{GlobalStatusRow, InstanceStatusRow, LogSink, PageError, PageSource, StatusSource};
use crate::log::{Frame, Pen, redo};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

#[derive(Default)]
struct State {
    pages: BTreeMap<PageNo, Vec<(Lsn, Vec<u8>)>>,
    /// Every durable frame, in order.
    log: Vec<Frame>,
    end: Option<LogEnd>,
    pending: Vec<Frame>,
    held: bool,
    stopping: bool,
}

#[derive(Default)]
pub struct Volume {
    state: Mutex<State>,
    wake: Condvar,
    engine: Mutex<Weak<Engine>>,
}

impl Volume {
    pub fn end(&self) -> LogEnd {
        self.state.lock().end.unwrap_or(LogEnd::EMPTY)
    }

    pub fn log(&self) -> Vec<Frame> {
        self.state.lock().log.clone()
    }

    /// From now on nothing becomes durable but by `release`.
    pub fn hold(&self) {
        self.state.lock().held = true;
    }

    pub fn go_on(&self) {
        self.state.lock().held = false;
        self.wake.notify_all();
    }

    pub fn pending(&self) -> usize {
        self.state.lock().pending.len()
    }

    /// Takes `frames` as durable, and tells the engine.
    pub fn settle(&self, frames: &[Frame]) {
        let end = {
            let mut state = self.state.lock();
            let mut point = Vec::new();
            for frame in frames {
                assert!(frame.follows(&state.end.unwrap_or(LogEnd::EMPTY)), "{frame:?} behind {:?}", state.end);
                state.end = Some(frame.log_end());
                state.log.push(frame.clone());
                point.extend(redo::records(&frame.payload()).unwrap());
                if frame.is_consistency_point() {
                    for record in point.drain(..) {
                        let versions = state.pages.entry(record.page).or_default();
                        let mut page = versions.last().map(|(_, page)| page.clone()).unwrap_or_default();
                        record.change.apply(&mut page);
                        versions.push((frame.end_lsn(), page));
                    }
                }
            }
            assert!(point.is_empty(), "frames end with a consistency point");
            state.end.unwrap()
        };
        let engine = self.engine.lock().upgrade();
        if let Some(engine) = engine {
            engine.advance(end, frames);
        }
    }

    /// Another history takes the place of this one, as when a copy is rewound; the engine is told.
    pub fn replace(&self, log: &[Frame]) {
        let engine = std::mem::take(&mut *self.engine.lock());
        *self.state.lock() = State::default();
        self.settle(log);
        engine.upgrade().expect("a region's engine").reset(self.end());
        *self.engine.lock() = engine;
    }

    fn drive(&self) {
        loop {
            let frames = {
                let mut state = self.state.lock();
                while !state.stopping && (state.held || state.pending.is_empty()) {
                    self.wake.wait(&mut state);
                }
                if state.stopping {
                    return;
                }
                std::mem::take(&mut state.pending)
            };
            self.settle(&frames);
        }
    }
}

impl LogSink for Volume {
    fn submit(&self, frames: Vec<Frame>) {
        self.state.lock().pending.extend(frames);
        self.wake.notify_all();
    }
}

impl PageSource for Volume {
    fn page_at(&self, page: PageNo, at: Lsn) -> Result<Bytes, PageError> {
        let state = self.state.lock();
        assert!(at <= state.end.unwrap_or(LogEnd::EMPTY).end_lsn, "page {page:?} was asked for at {at}, above the VDL");
        let found = state.pages.get(&page).and_then(|versions| versions.iter().rev().find(|(lsn, _)| *lsn <= at));
        Ok(found.map_or_else(Bytes::new, |(_, bytes)| {
            // Copies leave out what is zero at the end.
            let len = bytes.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
            Bytes::copy_from_slice(&bytes[..len])
        }))
    }
}

pub struct Status;

impl StatusSource for Status {
    fn global_status(&self) -> Vec<GlobalStatusRow> {
        let primary = GlobalStatusRow { aws_region: "us-east".to_string(), rpo_lag_in_msec: Some(-1), ..GlobalStatusRow::default() };
        vec![primary, GlobalStatusRow { aws_region: "eu-west".to_string(), rpo_lag_in_msec: Some(40), ..GlobalStatusRow::default() }]
    }

    fn instance_status(&self) -> Vec<InstanceStatusRow> {
        vec![InstanceStatusRow {
            server_id: "us-east-1".to_string(),
            session_id: "MASTER_SESSION_ID".to_string(),
            visibility_lag_in_msec: Some(-1),
            ..InstanceStatusRow::default()
        }]
    }
}

/// A primary region: an engine with an open writer, and its volume.
pub struct Region {
    pub engine: Arc<Engine>,
    pub volume: Arc<Volume>,
}

impl Drop for Region {
    fn drop(&mut self) {
        self.volume.state.lock().stopping = true;
        self.volume.wake.notify_all();
    }
}

impl Region {
    pub fn empty(settings: EngineSettings) -> Region {
        let volume = Arc::new(Volume::default());
        let engine = Engine::start(settings, volume.clone(), Arc::new(Status)).unwrap();
        *volume.engine.lock() = Arc::downgrade(&engine);
        let driven = volume.clone();
        std::thread::spawn(move || driven.drive());
        Region { engine, volume }
    }

    pub fn primary(settings: EngineSettings) -> Region {
        let region = Region::empty(settings);
        region.open(1);
        region
    }

    pub fn open(&self, generation: u64) {
        self.open_as(1, generation);
    }

    pub fn open_as(&self, epoch: u64, generation: u64) {
        let pen = Pen::new(Epoch(epoch), Generation(generation), self.volume.end(), 64 << 10);
        self.engine.open_writer(pen, self.volume.clone()).unwrap();
    }

    /// Fed with frames only.
    pub fn secondary(settings: EngineSettings) -> Region {
        let region = Region::empty(settings);
        region.engine.reset(LogEnd::EMPTY);
        region.engine.set_primary(Some("us-east".to_string()));
        region
    }

    pub fn writer(&self) -> Session {
        self.engine.session(Port::Writer)
    }

    pub fn reader(&self) -> Session {
        self.engine.session(Port::Reader)
    }
}

pub fn settings() -> EngineSettings {
    EngineSettings { region: "us-east".to_string(), readers: 2, ..EngineSettings::default() }
}

pub async fn rows(session: &mut Session, sql: &str) -> Result<Vec<Row>, SqlError> {
    rows_with(session, sql, Vec::new()).await
}

pub async fn rows_with(session: &mut Session, sql: &str, params: Vec<Value>) -> Result<Vec<Row>, SqlError> {
    match session.execute(sql, params).await? {
        Outcome::Done { .. } => Ok(Vec::new()),
        Outcome::Rows { mut rows, .. } => {
            let mut all = Vec::new();
            while let Some(batch) = rows.recv().await {
                all.extend(batch?);
            }
            Ok(all)
        }
    }
}

/// Rows changed.
pub async fn run(session: &mut Session, sql: &str) -> Result<u64, SqlError> {
    match session.execute(sql, Vec::new()).await? {
        Outcome::Done { changed } => Ok(changed),
        Outcome::Rows { mut rows, .. } => {
            while let Some(batch) = rows.recv().await {
                batch?;
            }
            Ok(0)
        }
    }
}

pub async fn number(session: &mut Session, sql: &str) -> i64 {
    match &rows(session, sql).await.unwrap()[..] {
        [row] => match row[..] {
            [Value::Integer(n)] => n,
            ref other => panic!("{sql}: {other:?}"),
        },
        other => panic!("{sql}: {} rows", other.len()),
    }
}

pub async fn text(session: &mut Session, sql: &str) -> String {
    match &rows(session, sql).await.unwrap()[..] {
        [row] => match &row[..] {
            [Value::Text(s)] => s.clone(),
            other => panic!("{sql}: {other:?}"),
        },
        other => panic!("{sql}: {} rows", other.len()),
    }
}

pub async fn code(session: &mut Session, sql: &str) -> &'static str {
    match rows(session, sql).await {
        Ok(rows) => panic!("{sql} gave {} rows instead of an error", rows.len()),
        Err(e) => e.code,
    }
}

/// Everything that is in the database, as text.
pub async fn dump(session: &mut Session) -> Result<String, SqlError> {
    session.begin(crate::head::sql::TxMode { read_only: true }).await?;
    let mut out = String::new();
    for row in rows(session, "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name").await? {
        out += &format!("{row:?}\n");
        let Value::Text(name) = &row[0] else { panic!("a table has a name") };
        for row in rows(session, &format!("SELECT rowid, * FROM \"{name}\" ORDER BY rowid")).await? {
            out += &format!("{row:?}\n");
        }
    }
    session.commit().await?;
    Ok(out)
}

/// Waits until `done`, giving other tasks and threads the processor.
pub async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
}
