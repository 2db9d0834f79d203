//! What the callbacks of one connection need to know about the statement that runs on it, and what they want to say.
//!
//! Decides nothing. The SQL thread sets it before each statement; the authorizer, the SQL functions, the progress handler
//! and the database file read it, and leave in it the sentence behind a bare SQLite result code.

use crate::base::UnixMicros;
use crate::head::sql::SqlError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// Cancels what one session is running. Cheap to clone, usable from any thread.
#[derive(Clone, Default)]
pub struct Canceller {
    pub(super) shared: Arc<CancelState>,
}

#[derive(Default)]
pub(super) struct CancelState {
    running: AtomicBool,
    cancelled: AtomicBool,
    pub wake: tokio::sync::Notify,
}

impl Canceller {
    /// Interrupts the statement that is running now; it ends with 57014. Between statements it does nothing. A commit that
    /// waits for durability is not taken back.
    pub fn cancel(&self) {
        if self.shared.running.load(Ordering::SeqCst) {
            self.shared.cancelled.store(true, Ordering::SeqCst);
            self.shared.wake.notify_one();
        }
    }
}

impl CancelState {
    pub fn begin(&self) {
        self.cancelled.store(false, Ordering::SeqCst);
        self.running.store(true, Ordering::SeqCst);
    }

    pub fn end(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
pub struct Context {
    /// Transaction control is being prepared by the SQL thread itself, not by a client.
    pub own_statement: AtomicBool,
    /// A statement is running (as opposed to being prepared): what SQLite prepares now, it prepares for itself.
    pub stepping: AtomicBool,
    /// The thread is to stop: interrupt whatever runs.
    pub stop: AtomicBool,
    pub session: AtomicI32,
    pub in_recovery: AtomicBool,
    /// `now()` of the statement or transaction, microseconds since 1970.
    pub now_us: AtomicU64,
    cancel: Mutex<Option<Arc<CancelState>>>,
    blame: Mutex<Option<SqlError>>,
}

impl Context {
    /// Who runs a statement, and when.
    pub fn enter(&self, session: i32, in_recovery: bool, now: UnixMicros, cancel: Arc<CancelState>) {
        self.session.store(session, Ordering::Relaxed);
        self.in_recovery.store(in_recovery, Ordering::Relaxed);
        self.now_us.store(now.0, Ordering::Relaxed);
        *self.cancel.lock() = Some(cancel);
        *self.blame.lock() = None;
    }

    pub fn leave(&self) {
        *self.cancel.lock() = None;
    }

    pub fn is_interrupted(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.cancel.lock().as_ref().is_some_and(|c| c.is_cancelled())
    }

    /// The sentence behind the result code that SQLite is about to get. The first one wins: later ones are consequences.
    pub fn blame(&self, error: SqlError) {
        self.blame.lock().get_or_insert(error);
    }

    pub fn take_blame(&self) -> Option<SqlError> {
        self.blame.lock().take()
    }
}
