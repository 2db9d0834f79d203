//! Waiting for durability. The writer thread never waits: replies wait here until the VDL passes what they saw.
//!
//! Decides which reply may go. Waiters are sorted by LSN, so an advance wakes exactly those it releases. A reign is one
//! open writer: LSNs of another writer (a new primary's frames after our tail was cut) never release its waiters.

use crate::base::Lsn;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::oneshot;

/// Why a wait ended without durability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotDurable {
    TimedOut,
    /// The writer was closed meanwhile: with this reason.
    Closed(String),
}

#[derive(Default)]
struct State {
    /// Number of the writer that is, or was last, open.
    reign: u64,
    closed: Option<String>,
    /// How far that writer's log was durable when last heard.
    durable: Lsn,
    waiters: BTreeMap<Lsn, Vec<oneshot::Sender<Result<(), NotDurable>>>>,
}

#[derive(Default)]
pub struct Progress {
    state: Mutex<State>,
}

impl Progress {
    /// A writer takes over; everything up to `durable` is. Returns its reign.
    pub fn open(&self, durable: Lsn) -> u64 {
        let mut state = self.state.lock();
        state.reign += 1;
        state.closed = None;
        state.durable = durable;
        assert!(state.waiters.is_empty(), "BUG: commits of an older writer still wait");
        state.reign
    }

    pub fn advance(&self, reign: u64, durable: Lsn) {
        let mut state = self.state.lock();
        if state.reign != reign || state.closed.is_some() {
            return;
        }
        state.durable = state.durable.max(durable);
        let later = state.waiters.split_off(&durable.next());
        let released = std::mem::replace(&mut state.waiters, later);
        drop(state);
        for waiter in released.into_values().flatten() {
            let _ = waiter.send(Ok(()));
        }
    }

    /// The writer is gone. Whoever still waits is told that its outcome is not known.
    pub fn close(&self, reign: u64, reason: &str) {
        let mut state = self.state.lock();
        if state.reign != reign {
            return;
        }
        state.closed = Some(reason.to_string());
        let all = std::mem::take(&mut state.waiters);
        drop(state);
        for waiter in all.into_values().flatten() {
            let _ = waiter.send(Err(NotDurable::Closed(reason.to_string())));
        }
    }

    /// Returns when everything below `lsn` of writer `reign` is durable.
    ///
    /// # Errors
    /// [`NotDurable`]: it may still become durable later; nothing is known.
    pub async fn wait(&self, reign: u64, lsn: Lsn, at_most: Duration) -> Result<(), NotDurable> {
        let waiting = {
            let mut state = self.state.lock();
            if state.reign != reign {
                return Err(NotDurable::Closed("another writer took over".to_string()));
            }
            if state.durable >= lsn {
                return Ok(());
            }
            if let Some(reason) = &state.closed {
                return Err(NotDurable::Closed(reason.clone()));
            }
            let (tell, waiting) = oneshot::channel();
            state.waiters.entry(lsn).or_default().push(tell);
            waiting
        };
        match tokio::time::timeout(at_most, waiting).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NotDurable::Closed("the engine is gone".to_string())),
            Err(_) => {
                // Those that gave up leave their seats; an advance that comes just now finds nobody, which is the same.
                let mut state = self.state.lock();
                if let Some(seats) = state.waiters.get_mut(&lsn) {
                    seats.retain(|s| !s.is_closed());
                    if seats.is_empty() {
                        state.waiters.remove(&lsn);
                    }
                }
                Err(NotDurable::TimedOut)
            }
        }
    }

    pub fn waiting(&self) -> usize {
        self.state.lock().waiters.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_advance_releases_exactly_what_it_passes_and_another_writers_never() {
        let progress = Progress::default();
        let reign = progress.open(Lsn(10));
        let long = Duration::from_secs(30);
        progress.wait(reign, Lsn(10), long).await.unwrap();
        let (a, b, ()) = tokio::join!(progress.wait(reign, Lsn(20), long), progress.wait(reign, Lsn(30), long), async {
            tokio::task::yield_now().await;
            assert_eq!(progress.waiting(), 2);
            progress.advance(reign, Lsn(20));
            assert_eq!(progress.waiting(), 1);
            progress.close(reign, "gone");
        });
        assert_eq!((a, b), (Ok(()), Err(NotDurable::Closed("gone".to_string()))));
        assert_eq!(progress.wait(reign, Lsn(20), long).await, Ok(()), "it was durable before the writer went");
        let next = progress.open(Lsn(20));
        progress.advance(next, Lsn(99));
        assert!(progress.wait(reign, Lsn(30), long).await.is_err(), "the new writer's 30 is another 30");
        assert_eq!(progress.wait(next, Lsn(100), Duration::from_millis(1)).await, Err(NotDurable::TimedOut));
        assert_eq!(progress.waiting(), 0);
    }
}
