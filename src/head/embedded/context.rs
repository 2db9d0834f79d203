//! What the callbacks of one connection need to know about the statement that runs on it, and what they want to say.
//!
//! Decides nothing. The SQL thread sets it before each statement; the authorizer, the SQL functions, the progress handler
//! and the database file read it, and leave in it the sentence behind a bare SQLite result code.

use crate::base::UnixMicros;
use crate::head::sql::SqlError;
use crate::io::clock;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Cancels what one session is running. Cheap to clone, usable from any thread.
#[derive(Clone, Default)]
pub struct Canceller {
    live: Arc<Mutex<Vec<Weak<Token>>>>,
}

/// One statement's side of it. It counts as running for as long as somebody but the canceller holds it: the session that
/// waits for it, or the thread that still produces its rows.
#[derive(Default)]
pub struct Token {
    cancelled: AtomicBool,
    pub wake: tokio::sync::Notify,
}

impl Canceller {
    /// Interrupts the statements that are running now, also those whose rows are still on their way; they end with 57014.
    /// Between statements it does nothing. A commit that waits for durability is not taken back.
    pub fn cancel(&self) {
        for token in self.live.lock().iter().filter_map(Weak::upgrade) {
            token.cancelled.store(true, Ordering::SeqCst);
            token.wake.notify_one();
        }
    }

    /// A statement begins.
    pub(super) fn begin(&self) -> Arc<Token> {
        let token = Arc::new(Token::default());
        let mut live = self.live.lock();
        live.retain(|t| t.strong_count() > 0);
        live.push(Arc::downgrade(&token));
        token
    }
}

impl Token {
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

pub struct Context {
    /// Transaction control is being prepared by the SQL thread itself, not by a client.
    pub own_statement: AtomicBool,
    /// A statement is running (as opposed to being prepared): what SQLite prepares now, it prepares for itself.
    pub stepping: AtomicBool,
    /// The thread is to stop: interrupt whatever runs.
    pub stop: AtomicBool,
    /// From this moment on whatever runs is interrupted (a drain has come to its end).
    pub until_ns: AtomicU64,
    pub session: AtomicI32,
    pub in_recovery: AtomicBool,
    /// `now()` of the statement or transaction, microseconds since 1970.
    pub now_us: AtomicU64,
    cancel: Mutex<Option<Arc<Token>>>,
    blame: Mutex<Option<SqlError>>,
}

impl Default for Context {
    fn default() -> Context {
        Context {
            own_statement: AtomicBool::default(),
            stepping: AtomicBool::default(),
            stop: AtomicBool::default(),
            until_ns: AtomicU64::new(u64::MAX),
            session: AtomicI32::default(),
            in_recovery: AtomicBool::default(),
            now_us: AtomicU64::default(),
            cancel: Mutex::default(),
            blame: Mutex::default(),
        }
    }
}

impl Context {
    /// Who runs a statement, and when.
    pub fn enter(&self, session: i32, in_recovery: bool, now: UnixMicros, cancel: Arc<Token>) {
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
        self.stop.load(Ordering::Relaxed) || self.is_due() || self.cancel.lock().as_ref().is_some_and(|c| c.is_cancelled())
    }

    /// A drain has come to its end.
    pub fn is_due(&self) -> bool {
        let until = self.until_ns.load(Ordering::Relaxed);
        until != u64::MAX && clock::now().ns >= until
    }

    /// The sentence behind the result code that SQLite is about to get. The first one wins: later ones are consequences.
    pub fn blame(&self, error: SqlError) {
        self.blame.lock().get_or_insert(error);
    }

    pub fn take_blame(&self) -> Option<SqlError> {
        self.blame.lock().take()
    }
}
