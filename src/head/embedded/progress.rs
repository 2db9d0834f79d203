//! Waiting for durability. The writer thread never waits: replies wait here until the VDL passes what they saw.
//!
//! Decides which reply may go. Waiters are sorted by LSN, so an advance wakes exactly those it releases. A reign is one
//! open writer: LSNs of another writer (a new primary's frames after our tail was cut) never release its waiters.
//!
//! The commit check of the role protocol stands here: durable, the writer still open, not fenced, and the lease not over by
//! the raw clock *at the moment of answering*. A process that was stopped and goes on wakes up with its answers ready; they
//! do not go out.

use crate::base::{Instant, Lsn};
use crate::io::clock;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// Why a wait ended without durability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotDurable {
    TimedOut,
    /// The writer was closed meanwhile: with this reason.
    Closed(String),
    /// The writer is open and may not answer: with this reason.
    Withheld(String),
}

#[derive(Default)]
struct State {
    /// Number of the writer that is, or was last, open.
    reign: u64,
    closed: Option<String>,
    fenced: Option<String>,
    /// How far that writer's log was durable when last heard.
    durable: Lsn,
    waiters: BTreeMap<Lsn, Vec<oneshot::Sender<Result<(), NotDurable>>>>,
}

pub struct Progress {
    state: Mutex<State>,
    /// Nothing is acknowledged from this moment of the raw clock on.
    lease_until_ns: AtomicU64,
    /// How long the machine had slept when the lease's clock was last known to be right: once it slept more, no lease counts.
    slept_ns: AtomicU64,
    /// Reads that from the machine.
    slept: fn() -> (u64, u64),
    /// Commits wait for another region by the commit rules: nobody's patience runs out meanwhile.
    paused: AtomicBool,
}

impl Default for Progress {
    fn default() -> Progress {
        // Without a lease holder there is no lease to lose.
        let progress = Progress {
            state: Mutex::default(),
            lease_until_ns: AtomicU64::new(u64::MAX),
            slept_ns: AtomicU64::new(0),
            slept: clock::slept,
            paused: AtomicBool::new(false),
        };
        progress.trust_clock();
        progress
    }
}

impl Progress {
    pub fn set_lease(&self, until: Instant) {
        self.lease_until_ns.store(until.ns, Ordering::SeqCst);
    }

    /// The control core knows by now that the machine slept, and has given up every lease from before: those that come are good.
    pub fn trust_clock(&self) {
        // The least of some readings from above: a thread that loses the processor between two clocks reads too much.
        let slept = (0..3).map(|_| (self.slept)().1).min().unwrap_or(0);
        self.slept_ns.store(slept, Ordering::SeqCst);
    }

    /// By the clock, now. Asked as the last thing before an answer goes. A machine that slept has a lease that is over and a clock that does
    /// not know it (protocol.md section 2): whoever wakes up with an answer in its hand looks at that itself, and waits for nobody to tell.
    pub fn may_acknowledge(&self) -> bool {
        let until = self.lease_until_ns.load(Ordering::SeqCst);
        if until == u64::MAX {
            return true;
        }
        // Twice what the driver takes for a sleep: what is seen here it sees as well, and trusts the clock again afterwards.
        let slept = (self.slept)().0 > self.slept_ns.load(Ordering::SeqCst).saturating_add(2 * clock::SLEPT_NS_MAX);
        !slept && clock::now().ns < until
    }

    pub fn fence(&self, reason: Option<String>) {
        self.state.lock().fenced = reason;
    }

    /// Whether writer `reign` may give an answer now.
    ///
    /// # Errors
    /// Why not.
    pub fn permits(&self, reign: u64) -> Result<(), NotDurable> {
        let state = self.state.lock();
        if state.reign != reign {
            return Err(NotDurable::Closed("another writer took over".to_string()));
        }
        if let Some(reason) = &state.closed {
            return Err(NotDurable::Closed(reason.clone()));
        }
        if let Some(reason) = &state.fenced {
            return Err(NotDurable::Withheld(reason.clone()));
        }
        if !self.may_acknowledge() {
            return Err(NotDurable::Withheld("the lease of this region as the primary is over".to_string()));
        }
        Ok(())
    }

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

    /// Returns when everything below `lsn` of writer `reign` is durable and may be acknowledged.
    ///
    /// # Errors
    /// [`NotDurable`]: it may still become durable later, or be so already; nothing is known.
    pub async fn wait(&self, reign: u64, lsn: Lsn, at_most: Duration) -> Result<(), NotDurable> {
        self.durable(reign, lsn, at_most).await?;
        self.permits(reign)
    }

    async fn durable(&self, reign: u64, lsn: Lsn, at_most: Duration) -> Result<(), NotDurable> {
        let waiting = {
            let mut state = self.state.lock();
            if state.reign != reign {
                return Err(NotDurable::Closed("another writer took over".to_string()));
            }
            if let Some(reason) = &state.closed {
                return Err(NotDurable::Closed(reason.clone()));
            }
            if state.durable >= lsn {
                return Ok(());
            }
            let (tell, waiting) = oneshot::channel();
            state.waiters.entry(lsn).or_default().push(tell);
            waiting
        };
        let mut waiting = std::pin::pin!(waiting);
        let ended = loop {
            let ended = tokio::time::timeout(at_most, waiting.as_mut()).await;
            if ended.is_ok() || !self.paused.load(Ordering::Relaxed) {
                break ended;
            }
        };
        match ended {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NotDurable::Closed("the engine is gone".to_string())),
            Err(_) => {
                // Those that gave up leave their seats; an advance that comes just now finds nobody, which is the same.
                waiting.as_mut().close();
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

    /// Commits pause, or go on.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
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
        let gone = || Err(NotDurable::Closed("gone".to_string()));
        assert_eq!((a, b), (gone(), gone()), "released, and the writer was closed before the answer could go");
        let late = progress.wait(reign, Lsn(20), long).await;
        assert!(matches!(late, Err(NotDurable::Closed(_))), "durable before the writer went, and nobody here may say so any more");
        let next = progress.open(Lsn(20));
        progress.advance(next, Lsn(99));
        assert!(progress.wait(reign, Lsn(30), long).await.is_err(), "the new writer's 30 is another 30");
        assert_eq!(progress.wait(next, Lsn(100), Duration::from_millis(1)).await, Err(NotDurable::TimedOut));
        assert_eq!(progress.waiting(), 0);
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_when_the_lease_is_over_or_the_fence_up() {
        let progress = Progress::default();
        let long = Duration::from_secs(30);
        let reign = progress.open(Lsn(10));
        progress.set_lease(clock::now() + long);
        assert_eq!(progress.wait(reign, Lsn(10), long).await, Ok(()));
        let (late, ()) = tokio::join!(progress.wait(reign, Lsn(20), long), async {
            tokio::task::yield_now().await;
            // The process stood still, say: it becomes durable, and the lease is over when the answer could go.
            progress.advance(reign, Lsn(20));
            progress.set_lease(clock::now());
        });
        assert!(matches!(late, Err(NotDurable::Withheld(_))), "{late:?}");
        progress.set_lease(clock::now() + long);
        progress.fence(Some("eu-west was promoted".to_string()));
        assert_eq!(progress.wait(reign, Lsn(20), long).await, Err(NotDurable::Withheld("eu-west was promoted".to_string())));
        progress.fence(None);
        assert_eq!(progress.wait(reign, Lsn(20), long).await, Ok(()));
    }

    #[tokio::test]
    async fn after_a_sleep_nothing_is_acknowledged_by_a_lease_from_before_it() {
        static SLEPT_NS: AtomicU64 = AtomicU64::new(7_000_000_000);
        let slept = || (SLEPT_NS.load(Ordering::SeqCst) - 300, SLEPT_NS.load(Ordering::SeqCst) + 300);
        let progress = Progress { slept, ..Progress::default() };
        progress.trust_clock();
        let reign = progress.open(Lsn(10));
        let long = Duration::from_secs(30);
        progress.set_lease(clock::now() + long);
        progress.wait(reign, Lsn(10), long).await.unwrap();
        // Half a minute without the processor is no sleep of the machine; three milliseconds of sleep are one.
        SLEPT_NS.fetch_add(3_000_000, Ordering::SeqCst);
        assert!(matches!(progress.wait(reign, Lsn(10), long).await, Err(NotDurable::Withheld(_))));
        // A lease that was on its way does not help; only that the core has heard of it.
        progress.set_lease(clock::now() + long);
        assert!(progress.permits(reign).is_err());
        progress.trust_clock();
        progress.set_lease(clock::now() + long);
        progress.permits(reign).unwrap();
    }
}
