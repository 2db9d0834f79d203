//! The embedded head: SQLite, unmodified, on the volume's pages.
//!
//! Decides what a commit writes ([`commit`]), what a reader sees ([`snapshot`], [`pool`]) and when an answer may go
//! ([`progress`]). Never decides whether this region may write (the driver opens and closes the writer, and sets the
//! gate) nor when something is durable (it is told by [`Engine::advance`]). One writer thread, a few reader threads;
//! endpoints talk to [`Session`]s.
//!
//! ```text
//!  Session --request--> writer thread --SQLite--> vfs --> commit --frames--> LogSink
//!     |                                                      | new page versions
//!     '----statement--> reader threads --SQLite--> vfs --> snapshot --> pool --miss--> PageSource
//!                                                                        ^
//!  driver: advance(vdl, frames) --changes of cached pages----------------' then visible, then waiting replies
//! ```

mod authorizer;
mod commit;
mod connection;
mod context;
mod errors;
mod functions;
mod horizon;
mod pool;
mod progress;
mod readers;
mod session;
mod shared;
mod snapshot;
mod space;
#[expect(unsafe_code, reason = "SQLite's interface for virtual tables is C")]
mod tables;
#[cfg(test)]
pub(crate) mod tests;
#[expect(unsafe_code, reason = "SQLite's interface for file systems is C")]
mod vfs;
mod writer;

pub use context::Canceller;
pub use functions::timestamp;
pub use session::{Port, Session};
pub use space::GiveBack;

use super::sql::SqlError;
use super::{LogSink, PageSource, StatusSource, WriteGate};
use crate::base::{Instant, Layout, LogEnd, Lsn, PageNo, SEGMENT_PAGE_BYTES};
use crate::io::clock;
use crate::log::redo::{RECORD_HEADER_BYTES, VolumeHeader};
use crate::log::{Frame, Pen};
use parking_lot::RwLock;
use readers::Readers;
use shared::Shared;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;
pub use writer::Drained;
use writer::Writer;

/// Size of a page, fixed when a database is founded.
pub const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_BYTES as u64 == SEGMENT_PAGE_BYTES, "segments are given in bytes of such pages");
/// SQL runs deep: SQLite's parser and our limits on expressions want room.
const SQL_THREAD_STACK_BYTES: usize = 8 << 20;

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// This region's name, for messages.
    pub region: String,
    /// What `aurora_db_instance_identifier()` says.
    pub instance: String,
    /// What `current_database()` says.
    pub database: String,
    pub user: String,
    /// What `version()` says.
    pub server_version: String,
    /// How page space is cut: a frame carries pages of one protection group.
    pub layout: Layout,
    /// Reader threads, at least 1.
    pub readers: usize,
    /// Page versions kept in memory.
    pub pool_bytes_max: usize,
    /// Pages that one transaction may change.
    pub transaction_bytes_max: usize,
    /// What one result inside a writing transaction may hold; it is collected before it goes out.
    pub result_bytes_max: usize,
    /// A client that thinks longer than this inside a writing transaction loses it.
    pub idle_in_transaction_max: Duration,
    /// A read-only transaction that is not used for longer than this loses its snapshot.
    pub idle_snapshot_max: Duration,
    /// How long an answer waits for durability before it becomes 40003.
    pub commit_wait_max: Duration,
    /// What dropped tables leave goes out of the database, as far as this says.
    pub give_back: GiveBack,
}

impl Default for EngineSettings {
    fn default() -> EngineSettings {
        EngineSettings {
            region: "local".to_string(),
            instance: "local-1".to_string(),
            database: "parhelion".to_string(),
            user: "parhelion".to_string(),
            server_version: format!("Parhelion {} (embedded head, SQLite {})", env!("CARGO_PKG_VERSION"), rusqlite::version()),
            layout: Layout::default(),
            readers: 4,
            pool_bytes_max: 24 << 20,
            transaction_bytes_max: 64 << 20,
            result_bytes_max: 128 << 20,
            idle_in_transaction_max: Duration::from_secs(5),
            idle_snapshot_max: Duration::from_secs(60),
            commit_wait_max: Duration::from_secs(10),
            give_back: GiveBack::default(),
        }
    }
}

/// Why the driver's call was refused.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the writer is already open; close it before another pen is handed over")]
    WriterOpen,
    #[error("frames of at most {bytes_max} payload bytes cannot carry a page of {PAGE_BYTES}; raise frame_payload_bytes_max")]
    FramesTooSmall { bytes_max: usize },
    #[error("SQLite did not take the file system (result code {code}); this is a fault of the build")]
    Vfs { code: i32 },
    #[error("the system gave no thread for SQL: {0}. Raise the limit on threads")]
    Thread(#[from] std::io::Error),
}

/// A look at the engine, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineStats {
    pub sessions: usize,
    pub readers: usize,
    pub readers_busy: usize,
    /// Requests waiting for the writer thread.
    pub writer_queue: usize,
    /// Answers waiting for durability.
    pub commits_waiting: usize,
    pub pool_bytes: usize,
    pub pool_hits: u64,
    pub pool_misses: u64,
    pub commits: u64,
    pub rollbacks: u64,
    pub statements: u64,
    /// Free pages that went out of the database by themselves.
    pub given_back_bytes: u64,
}

/// How large the database is, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseSize {
    pub pages: u32,
    /// Of these, pages that hold nothing.
    pub free_pages: u32,
    /// The most pages there ever were.
    pub high_water: u32,
}

/// SQL over one region's volume.
pub struct Engine {
    shared: Arc<Shared>,
    readers: Readers,
    writer: RwLock<Option<Arc<Writer>>>,
    next_session: AtomicI32,
}

impl Engine {
    /// Starts the reader threads. Until the driver says where the volume stands ([`Engine::reset`], [`Engine::open_writer`] or
    /// [`Engine::advance`]) statements are refused with 57P03.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(settings: EngineSettings, pages: Arc<dyn PageSource>, status: Arc<dyn StatusSource>) -> Result<Arc<Engine>, EngineError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared::new(id, settings, pages, status));
        let readers = Readers::start(&shared)?;
        Ok(Arc::new(Engine { shared, readers, writer: RwLock::default(), next_session: AtomicI32::new(1) }))
    }

    /// This region writes from now on, with this pen. `pen.end()` is the durable end of the log; an empty volume becomes an
    /// empty database. Reads no page and returns at once. As often as the role comes back: after [`Engine::close_writer`] the
    /// engine is a reader's (fed by [`Engine::advance`] or [`Engine::reset`]) until the next one.
    ///
    /// # Errors
    /// When a writer is open, or the pen's frames are too small for a page.
    pub fn open_writer(&self, pen: Pen, log: Arc<dyn LogSink>) -> Result<(), EngineError> {
        let mut writer = self.writer.write();
        if writer.is_some() {
            return Err(EngineError::WriterOpen);
        }
        if pen.payload_bytes_max() < PAGE_BYTES + RECORD_HEADER_BYTES {
            return Err(EngineError::FramesTooSmall { bytes_max: pen.payload_bytes_max() });
        }
        let end = pen.end().end_lsn;
        if !self.shared.horizon.is_ready() || self.shared.horizon.visible() != end || self.shared.pool.applied() != end {
            self.start_anew(end);
        }
        let reign = self.shared.progress.open(end);
        self.shared.pool.admit(reign);
        *writer = Some(Writer::open(&self.shared, pen, log, reign)?);
        Ok(())
    }

    /// The role is lost, or the process stops. When this returns, no frame leaves any more. Open transactions end with
    /// 57P01; commits whose answer has not gone are told that their outcome is unknown (08007), durable or not; what has not
    /// begun is refused as to be run elsewhere. Does nothing without a writer.
    pub fn close_writer(&self, reason: String) {
        let Some(writer) = self.writer.write().take() else { return };
        self.shared.progress.close(writer.reign, &reason);
        writer.close(reason);
        self.shared.pool.admit(0);
        self.shared.pool.forget_unsettled(self.shared.horizon.visible());
        self.shared.forget_schema();
    }

    pub fn set_gate(&self, gate: WriteGate) {
        self.shared.set_gate(gate);
    }

    /// Nothing is acknowledged at the writer port at or after `until`, of the clock that [`crate::io::clock::now`] reads:
    /// looked at in the moment of answering. May be moved both ways, from any thread. Until it is called there is no lease.
    pub fn set_lease(&self, until: Instant) {
        self.shared.progress.set_lease(until);
    }

    /// The control core was told that the machine slept: leases that come from here on are counted on a clock that is right.
    pub fn trust_clock(&self) {
        self.shared.progress.trust_clock();
    }

    /// Whether the lease is not over at this moment.
    pub fn may_acknowledge(&self) -> bool {
        self.shared.progress.may_acknowledge()
    }

    /// For a planned switchover: no write transaction begins from now on (they wait, until [`Engine::close_writer`] sends them
    /// elsewhere or [`Engine::undrain`] lets them in); those that run may come to their end until `until` and are rolled back
    /// then, with 40001. `done` is called once, on the writer's thread, when nothing runs and every answer has been given, and
    /// at the latest soon after `until`; it is dropped uncalled when the drain is called off or the writer closed before.
    /// Without a writer it is called at once. Reads go on.
    pub fn drain(&self, until: Instant, done: impl FnOnce(Drained) + Send + 'static) {
        match self.writer() {
            Some(writer) => writer.drain(until, Box::new(done)),
            None => done(Drained { rolled_back: 0, unanswered: 0 }),
        }
    }

    /// Commits wait for another region by the commit rules, or do so no more: whoever waits for an answer goes on waiting meanwhile.
    pub fn commits_pause(&self, paused: bool) {
        self.shared.progress.pause(paused);
    }

    /// The drain is called off: what waited goes on. Does nothing without one.
    pub fn undrain(&self) {
        if let Some(writer) = self.writer() {
            writer.undrain();
        }
    }

    /// The newest version of the schema (SQLite's cookie) that a statement here has met; `None`: nobody has looked since the
    /// role changed.
    pub fn schema_version(&self) -> Option<u32> {
        self.shared.schema_version()
    }

    /// Whether a statement at the writer port can be served here now.
    ///
    /// # Errors
    /// The refusal; it may be run elsewhere.
    pub fn serves_writer_port(&self) -> Result<(), SqlError> {
        match self.writer() {
            Some(writer) => self.shared.permits(writer.reign),
            None => Err(self.shared.no_writer("it is not the writer")),
        }
    }

    /// `frames` became durable, ending with the consistency point `vdl`. First the pages, then what is visible, then the
    /// answers that waited for it.
    pub fn advance(&self, vdl: LogEnd, frames: &[Frame]) {
        let shared = &self.shared;
        shared.horizon.expire(clock::now(), shared.settings.idle_snapshot_max);
        shared.pool.advance(&vdl, frames, shared.horizon.oldest());
        shared.horizon.advance(vdl.end_lsn);
        if let Some(writer) = &*self.writer.read()
            && writer.wrote_as().is_none_or(|term| term == (vdl.epoch, vdl.generation))
        {
            shared.progress.advance(writer.reign, vdl.end_lsn);
        }
    }

    /// The volume was seeded or recovered: it stands at `at`, and nothing that was cached counts. Running reads end with
    /// 40001. An open writer is closed.
    pub fn reset(&self, at: LogEnd) {
        self.close_writer("the region's volume was replaced".to_string());
        self.start_anew(at.end_lsn);
    }

    /// Nothing is read here before the next reset: whoever tries is told `reason`, and running reads end with 40001.
    pub fn hide(&self, reason: String) {
        self.close_writer(reason.clone());
        self.start_anew(self.shared.horizon.visible());
        self.shared.set_hidden(Some(reason));
        self.shared.horizon.hide();
    }

    fn start_anew(&self, at: Lsn) {
        self.shared.set_hidden(None);
        self.shared.pool.reset(at, self.shared.horizon.next_incarnation());
        self.shared.horizon.reset(at);
        self.shared.forget_schema();
    }

    /// Who writes to the global cluster, for the message of 25006.
    pub fn set_primary(&self, name: Option<String>) {
        self.shared.set_primary(name);
    }

    /// What new readers see.
    pub fn visible(&self) -> Lsn {
        self.shared.horizon.visible()
    }

    /// The oldest LSN that a reader still needs pages at; `visible` when there is none.
    pub fn oldest_pin(&self) -> Lsn {
        self.shared.horizon.oldest()
    }

    pub fn stats(&self) -> EngineStats {
        let counters = &self.shared.counters;
        let (pool_hits, pool_misses) = self.shared.pool.hits_and_misses();
        EngineStats {
            sessions: counters.sessions.load(Ordering::Relaxed),
            readers: counters.readers.load(Ordering::Relaxed),
            readers_busy: counters.readers_busy.load(Ordering::Relaxed),
            writer_queue: self.writer().map_or(0, |w| w.waiting()),
            commits_waiting: self.shared.progress.waiting(),
            pool_bytes: self.shared.pool.bytes(),
            pool_hits,
            pool_misses,
            commits: counters.commits.load(Ordering::Relaxed),
            rollbacks: counters.rollbacks.load(Ordering::Relaxed),
            statements: counters.statements.load(Ordering::Relaxed),
            given_back_bytes: counters.given_back_bytes.load(Ordering::Relaxed),
        }
    }

    /// The database's size as readers see it now; `None` while nothing can be read. May wait for a page.
    pub fn database_size(&self) -> Option<DatabaseSize> {
        let shared = &self.shared;
        let pin = shared.horizon.pin(false, clock::now())?;
        let page = |number| shared.pool.at(number, pin.snapshot(), &*shared.source).ok();
        let VolumeHeader { page_count, high_water, .. } = VolumeHeader::from_page(&page(PageNo::HEADER)?);
        let free = if page_count == 0 { 0 } else { space::Free::of(&page(PageNo(1))?).pages };
        Some(DatabaseSize { pages: page_count, free_pages: free, high_water })
    }

    pub fn settings(&self) -> &EngineSettings {
        &self.shared.settings
    }

    /// Whether this region has the writer.
    pub fn has_writer(&self) -> bool {
        self.writer.read().is_some()
    }

    /// A session for one client.
    pub fn session(self: &Arc<Engine>, port: Port) -> Session {
        Session::new(self.clone(), self.next_session.fetch_add(1, Ordering::Relaxed), port, false)
    }

    /// A session that is served by the writer or not at all: without one, statements are refused as to be run elsewhere, where
    /// [`Engine::session`] would read what this region has.
    pub fn writer_session(self: &Arc<Engine>) -> Session {
        Session::new(self.clone(), self.next_session.fetch_add(1, Ordering::Relaxed), Port::Writer, true)
    }

    fn writer(&self) -> Option<Arc<Writer>> {
        self.writer.read().clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close_writer("the engine is shutting down".to_string());
    }
}

/// A panic on an SQL thread ends the process, with a message, instead of leaving clients without an answer for ever.
struct AbortOnPanic(&'static str);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(thread = self.0, "a bug: an SQL thread panicked; the process ends and recovers at its next start");
            std::process::abort();
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
    std::thread::Builder::new().name(name).stack_size(SQL_THREAD_STACK_BYTES).spawn(body)?;
    Ok(())
}

fn writes_stopped(reason: &str) -> String {
    format!("writes are stopped: {reason}. Reads go on")
}

/// Page number and offset within the page of an offset in SQLite's file.
fn place(offset: u64) -> (u32, usize) {
    let page = offset / PAGE_BYTES as u64 + 1;
    let at = usize::try_from(offset % PAGE_BYTES as u64).expect("BUG: a remainder is below a page");
    (u32::try_from(page).expect("BUG: SQLite has at most 2^32 - 2 pages"), at)
}

/// Copies what `page` has from `at` on; the rest of `out` is zero.
fn copy_part(page: &[u8], at: usize, out: &mut [u8]) {
    let have = page.get(at..).unwrap_or_default();
    let len = have.len().min(out.len());
    out[..len].copy_from_slice(&have[..len]);
    out[len..].fill(0);
}
