//! What readers may see, and what they still look at: the visible LSN and the pins on older ones.
//!
//! Decides which snapshot a new reader gets and which LSN is the oldest that somebody needs. A pin is taken under the same
//! lock that moves `visible`, so the oldest pin never goes back within one incarnation. Driven by the engine (`advance`,
//! `reset`) and by reader threads and sessions (pins).

use crate::base::{Instant, Lsn};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A consistent state of the database: an LSN, in the volume of one incarnation (a reset begins a new one, in which the
/// same LSN may mean other bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub lsn: Lsn,
    pub incarnation: u64,
}

#[derive(Default)]
struct State {
    /// Before the first reset, advance or writer nothing is known and nothing is served.
    ready: bool,
    incarnation: u64,
    visible: Lsn,
    next_pin: u64,
    pins: BTreeMap<(Lsn, u64), Weak<Pin>>,
}

#[derive(Default)]
pub struct Horizon {
    state: Mutex<State>,
}

/// Keeps a snapshot readable for as long as it lives (or, held by an idle transaction, until it expires).
pub struct Pin {
    horizon: Arc<Horizon>,
    id: u64,
    snapshot: Snapshot,
    /// Of a transaction whose client may think in between: expires when nobody uses it.
    interactive: bool,
    used_ns: AtomicU64,
    expired: AtomicBool,
}

impl Horizon {
    pub fn visible(&self) -> Lsn {
        self.state.lock().visible
    }

    pub fn is_ready(&self) -> bool {
        self.state.lock().ready
    }

    /// The oldest LSN that is pinned; `visible` when none is.
    pub fn oldest(&self) -> Lsn {
        let state = self.state.lock();
        state.pins.first_key_value().map_or(state.visible, |(&(lsn, _), _)| lsn.min(state.visible))
    }

    pub fn advance(&self, visible: Lsn) {
        let mut state = self.state.lock();
        state.ready = true;
        state.visible = state.visible.max(visible);
    }

    /// A new incarnation begins at `visible`; pins of the old one count no more. Returns its number.
    pub fn reset(&self, visible: Lsn) {
        let mut state = self.state.lock();
        state.ready = true;
        state.incarnation += 1;
        state.visible = visible;
        state.pins.clear();
    }

    /// Nothing is served before the next reset.
    pub fn hide(&self) {
        let mut state = self.state.lock();
        state.ready = false;
        state.pins.clear();
    }

    /// The number that the next [`Horizon::reset`] will give.
    pub fn next_incarnation(&self) -> u64 {
        self.state.lock().incarnation + 1
    }

    pub fn incarnation(&self) -> u64 {
        self.state.lock().incarnation
    }

    /// Pins what is visible now; `None` while nothing is known yet.
    pub fn pin(self: &Arc<Horizon>, interactive: bool, now: Instant) -> Option<Arc<Pin>> {
        let mut state = self.state.lock();
        if !state.ready {
            return None;
        }
        let id = state.next_pin;
        state.next_pin += 1;
        let snapshot = Snapshot { lsn: state.visible, incarnation: state.incarnation };
        let pin = Arc::new(Pin {
            horizon: self.clone(),
            id,
            snapshot,
            interactive,
            used_ns: AtomicU64::new(now.ns),
            expired: AtomicBool::new(false),
        });
        state.pins.insert((snapshot.lsn, id), Arc::downgrade(&pin));
        Some(pin)
    }

    /// Ends pins that a thinking client has not used for `idle_max`: old page versions cannot be kept for ever.
    pub fn expire(&self, now: Instant, idle_max: Duration) {
        // Collected first: dropping the last Arc takes the lock again.
        let mut looked_at = Vec::new();
        let mut state = self.state.lock();
        state.pins.retain(|_, weak| {
            let Some(pin) = weak.upgrade() else { return true };
            let idle = now.since(Instant { ns: pin.used_ns.load(Ordering::Relaxed) });
            // Two: this one, and the session's own. A running statement holds a third.
            let keep = !pin.interactive || Arc::strong_count(&pin) > 2 || idle <= idle_max;
            if !keep {
                pin.expired.store(true, Ordering::SeqCst);
            }
            looked_at.push(pin);
            keep
        });
        drop(state);
        drop(looked_at);
    }
}

impl Pin {
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    pub fn is_expired(&self) -> bool {
        self.expired.load(Ordering::SeqCst)
    }

    pub fn touch(&self, now: Instant) {
        self.used_ns.store(now.ns, Ordering::Relaxed);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.horizon.state.lock();
        if state.incarnation == self.snapshot.incarnation {
            state.pins.remove(&(self.snapshot.lsn, self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pin_holds_the_horizon_and_an_idle_one_expires() {
        let horizon = Arc::new(Horizon::default());
        assert!(horizon.pin(false, Instant::ZERO).is_none(), "nothing is known yet");
        horizon.advance(Lsn(10));
        let first = horizon.pin(true, Instant::ZERO).unwrap();
        horizon.advance(Lsn(20));
        let second = horizon.pin(false, Instant::ZERO).unwrap();
        assert_eq!((horizon.oldest(), horizon.visible()), (Lsn(10), Lsn(20)));
        let in_use = first.clone();
        horizon.expire(Instant { ns: 9_000_000_000 }, Duration::from_secs(1));
        assert!(!first.is_expired(), "a statement runs on it");
        drop(in_use);
        horizon.expire(Instant { ns: 9_000_000_000 }, Duration::from_secs(1));
        assert!(first.is_expired());
        assert!(!second.is_expired(), "a statement's own pin never expires");
        assert_eq!(horizon.oldest(), Lsn(20));
        horizon.reset(Lsn(5));
        drop(second);
        assert_eq!((horizon.oldest(), horizon.visible()), (Lsn(5), Lsn(5)));
    }
}
