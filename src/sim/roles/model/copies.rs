//! A region's copies as the storage gate sees them (protocol.md rule 6): a clock of their own, and until when on it they take frames.
//!
//! Decides what the writer knows of that clock and what a lease makes of it, as `volume::appender::gate` does. All six are one here: their
//! clocks and links differ in nothing. Never looks at the member's clock to say whether a frame is taken. Driven by [`super::steps`].

use std::collections::VecDeque;

/// Stamps that a renewal under way may still be counted from: of its tick, of the one before, and what was heard since.
const STAMPS_MAX: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct Copies {
    /// Goes on while the member's stands still.
    pub clock: u64,
    /// When the member heard of it, in half ticks of its own clock, and what it was; the newest last.
    stamps: VecDeque<(u64, u64)>,
    /// From then on they take no frames.
    gate: Option<u64>,
}

impl Copies {
    pub fn new(clock: u64) -> Copies {
        Copies { clock, stamps: VecDeque::new(), gate: None }
    }

    /// They say what their clock says. `after`: what the member says in this tick it has said.
    pub fn heard(&mut self, now: u64, after: bool) {
        self.stamps.push_back((now * 2 + u64::from(after), self.clock));
        if self.stamps.len() > STAMPS_MAX {
            self.stamps.pop_front();
        }
    }

    /// A lease was granted for a renewal that left at `sent`: counted from what they had said before that.
    pub fn leased(&mut self, sent: u64, share: u64) {
        self.leased_by(sent * 2, share);
    }

    /// What must not be: counted from the answer.
    pub fn leased_by_answer(&mut self, now: u64, share: u64) {
        self.leased_by(now * 2 + 1, share);
    }

    fn leased_by(&mut self, at: u64, share: u64) {
        if let Some((_, said)) = self.stamps.iter().rev().find(|(heard, _)| *heard <= at) {
            self.gate = self.gate.max(Some(said + share));
        }
    }

    /// Nothing that is written from here on needs a lease.
    pub fn without_lease(&mut self) {
        self.gate = None;
    }

    /// Whoever wrote is gone, and what it knew.
    pub fn forgotten(&mut self) {
        (self.gate, self.stamps) = (None, VecDeque::new());
    }

    pub fn takes(&self) -> bool {
        self.gate.is_none_or(|gate| self.clock < gate)
    }

    /// The same for what will behave alike: ticks from now, on either clock. What they said a whole share ago binds a lease that is over for them.
    pub fn canonical(&self, now: u64, share: u64) -> (Option<u64>, Vec<(u64, u64)>) {
        let stamps = self.stamps.iter().map(|(heard, said)| ((now * 2 + 1 - heard).min(share * 2), (self.clock - said).min(share)));
        (self.gate.map(|gate| gate.saturating_sub(self.clock)), stamps.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_counted_from_what_the_copies_said_before_the_renewal_left() {
        let mut copies = Copies::new(50);
        assert!(copies.takes(), "what needs no lease is held up by none");
        copies.heard(7, false);
        // The member stands still, goes on and hears the copies again, and then the answer to what it said before comes.
        copies.clock = 59;
        copies.heard(7, true);
        let mut wrong = copies.clone();
        copies.leased(7, 2);
        wrong.leased_by_answer(7, 2);
        assert!(!copies.takes() && wrong.takes() && copies.canonical(7, 2) == (Some(0), vec![(1, 2), (0, 0)]));
        copies.heard(8, false);
        copies.leased(8, 2);
        assert!(copies.takes());
        copies.clock += 2;
        assert!(!copies.takes());
        copies.without_lease();
        assert!(copies.takes());
    }
}
