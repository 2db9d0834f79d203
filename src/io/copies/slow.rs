//! A drill: copies that are slow without being dead.
//!
//! Decides how long the answers of a copy are held back, after it did what was asked: as if its disk took so much longer. Never
//! loses anything. Set by an operator from any thread, paused at by whoever answers for the copy; a pause ends early when the drill does.

use crate::base::{CopyId, Instant};
use crate::io::clock;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// Longer would be a copy that is dead in all but name.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// How slow one copy is made to be. Shared by the one who sets it and the threads that answer for the copy.
#[derive(Debug, Default)]
pub struct Slowness {
    delay: Mutex<Duration>,
    changed: Condvar,
}

impl Slowness {
    /// Zero ends the drill, and every pause that is under way. At most [`DELAY_MAX`].
    pub fn set(&self, delay: Duration) {
        *self.delay.lock() = delay.min(DELAY_MAX);
        self.changed.notify_all();
    }

    #[must_use]
    pub fn delay(&self) -> Duration {
        *self.delay.lock()
    }

    /// Waits until so much time has passed since `began` as the drill says by then.
    pub fn pause(&self, began: Instant) {
        let mut delay = self.delay.lock();
        while !delay.is_zero() {
            let left = (began + *delay).since(clock::now());
            if left.is_zero() {
                return;
            }
            self.changed.wait_for(&mut delay, left);
        }
    }
}

/// The drills of a region, by copy.
#[derive(Clone, Debug, Default)]
pub struct Drills {
    slow: Arc<[Slowness; 6]>,
}

impl Drills {
    #[must_use]
    pub fn of(&self, copy: CopyId) -> &Slowness {
        &self.slow[copy.index()]
    }

    /// Nothing is held back any more: for the end of the process.
    pub fn end(&self) {
        self.slow.iter().for_each(|s| s.set(Duration::ZERO));
    }

    /// What status says of a copy that is made slow.
    #[must_use]
    pub fn note(&self, copy: CopyId) -> Option<String> {
        let delay = self.of(copy).delay();
        (!delay.is_zero()).then(|| {
            format!(
                "made slow by an operator: answers {} late; end it with `parhelion copy slow {copy} --delay 0`",
                humantime::Duration::from(delay)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_with_the_drill_and_costs_nothing_without_one() {
        let drills = Drills::default();
        let copy = CopyId(3);
        drills.of(copy).pause(clock::now());
        assert_eq!(drills.note(copy), None);
        drills.of(copy).set(Duration::from_secs(3600));
        assert_eq!(drills.of(copy).delay(), DELAY_MAX);
        assert!(
            drills.note(copy).is_some_and(|n| n.contains("1m late") && n.contains("copy slow b2 --delay 0")),
            "{:?}",
            drills.note(copy)
        );
        assert_eq!(drills.note(CopyId(2)), None, "the others are not slow");
        // It would take a minute if its end were not heard.
        let waits = {
            let drills = drills.clone();
            std::thread::spawn(move || drills.of(copy).pause(clock::now()))
        };
        drills.end();
        waits.join().unwrap();
        drills.of(copy).set(Duration::from_millis(1));
        let began = clock::now();
        drills.of(copy).pause(began);
        assert!(clock::now() >= began + Duration::from_millis(1));
    }
}
