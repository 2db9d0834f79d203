//! The storage gate (protocol.md rule 6): a writer whose clocks all stood still makes nothing durable once its lease is over.
//!
//! Each copy's answers carry its own clock. When a lease was granted, each copy's share of it ends as long after the last of its stamps that was received
//! before the renewal left as the holder's share lasts: so it ends no later than the lease, on a clock that does not stand still with the writer's. Every frame
//! carries that moment, and a copy takes none from then on. Nothing is kept in the copies, so nothing is in the way of a recovery, of a
//! secondary, or of the next lease. Decides which moment that is, and that copies are asked for their clock when nothing else is said; never how long a lease
//! lasts (the control core does, through the node).

use super::*;

/// A copy's clock is noted so often at most.
const STAMP_EVERY: Duration = Duration::from_millis(100);
/// Stamps that are kept: of the time in which a renewal is answered.
const STAMPS_MAX: usize = 100;

impl Appender {
    /// The lease was granted for a renewal that left at `sent`, by this machine's clock; the holder's share of it is `share`. It is renewed every so often:
    /// a copy that said nothing for half of that is asked.
    pub fn lease(&mut self, now: Instant, sent: Instant, share: Duration, renewed_every: Duration) {
        self.leased = Some(renewed_every / 2);
        for copy in self.members() {
            let peer = &mut self.peers[copy.index()];
            // One whose clock was not heard before is bound from the next renewal on.
            if let Some((_, said)) = peer.stamps.iter().rev().find(|(received, _)| *received <= sent) {
                let until = *said + share;
                peer.gate = Some(peer.gate.map_or(until, |before| before.max(until)));
            }
            if std::mem::take(&mut peer.shut) && peer.is_joined() {
                self.ask_again(now, copy);
            }
        }
    }

    /// Nothing that is appended from here on needs a lease: another region has it, or nobody.
    pub fn without_lease(&mut self) {
        self.leased = None;
        for peer in &mut self.peers {
            (peer.gate, peer.shut) = (None, false);
        }
    }

    /// A copy said what its clock says.
    pub(super) fn stamped(&mut self, now: Instant, copy: MemberId, said: Instant) {
        let stamps = &mut self.peers[copy.index()].stamps;
        if stamps.back().is_some_and(|(received, _)| now.since(*received) < STAMP_EVERY) {
            return;
        }
        stamps.push_back((now, said));
        if stamps.len() > STAMPS_MAX {
            stamps.pop_front();
        }
    }

    /// It took nothing, when its clock said `at`: what was sent comes again when the lease was renewed, or now when it was meanwhile.
    pub(super) fn gated(&mut self, now: Instant, copy: MemberId, at: Instant) {
        let peer = &mut self.peers[copy.index()];
        if !peer.is_joined() {
            return;
        }
        peer.shut = peer.gate.is_some_and(|gate| at >= gate);
        peer.last_heard = now;
        if !peer.shut {
            self.ask_again(now, copy);
        }
    }

    fn stamp_due(&self, copy: MemberId) -> Option<Instant> {
        let peer = &self.peers[copy.index()];
        let heard = peer.stamps.back().map_or(Instant::ZERO, |(received, _)| *received);
        let after = self.leased.filter(|_| self.phase == VolumePhase::Serving && peer.is_joined())?;
        Some(heard.max(peer.stamp_asked) + after)
    }

    pub(super) fn stamps_timeout(&self) -> Option<Instant> {
        self.members().filter_map(|copy| self.stamp_due(copy)).min()
    }

    pub(super) fn ask_for_stamps(&mut self, now: Instant) {
        for copy in self.members() {
            if self.stamp_due(copy).is_some_and(|due| now >= due) {
                // Not what `ask_again` counts from: a copy that owes an answer would never be asked for it again (seed 91108).
                let asked = self.peers[copy.index()].last_asked;
                self.send_append(now, copy, Vec::new());
                let peer = &mut self.peers[copy.index()];
                (peer.last_asked, peer.stamp_asked) = (asked, now);
            }
        }
    }
}
