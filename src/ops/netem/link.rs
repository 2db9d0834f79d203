//! One direction of a link: what happens to a packet and when it arrives.
//!
//! A pure queueing model: it is told the time and the size of each packet and answers with a verdict. Order on the link:
//! drop-tail queue, serialisation at the rate, loss, delay and jitter, delivery. It never delivers earlier than the
//! delay after the arrival, and keeps the order unless `reorder` is set. New settings hold for packets offered from then
//! on; what is on its way keeps its time. Driven by [`super::relay`], which owns the sockets and the clock.

use super::Settings;
use crate::base::{Instant, Prng};
use std::time::Duration;

/// Packets on their way in one direction take at most so much memory, whatever the settings say.
pub const IN_FLIGHT_BYTES_MAX: u64 = 64 << 20;

/// What keeping one packet costs beside its bytes, so that tiny ones are bounded too.
const PACKET_OVERHEAD_BYTES: u64 = 96;

/// A late packet of `reorder` is held back for up to a quarter of the delay, but at least up to this.
const REORDER_HOLD_US_MIN: u64 = 2_000;

/// What becomes of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    /// It arrives at `at`, and once more if `twice`.
    Deliver {
        at: Instant,
        twice: bool,
    },
}

/// Since the start. Packets are offered = dropped + delivered + in flight, where a duplicate counts as offered again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    pub packets: u64,
    pub bytes: u64,
    pub dropped_loss: u64,
    /// By the queue in front of the rate limit, or because too much was in flight.
    pub dropped_queue: u64,
    pub dropped_blackhole: u64,
    /// Not by the model: this machine's own socket buffers were full.
    pub dropped_host: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub delivered: u64,
    pub in_flight_packets: u64,
    pub in_flight_bytes: u64,
}

/// The state of one direction.
#[derive(Debug)]
pub struct Link {
    settings: Settings,
    prng: Prng,
    /// When the last packet taken has left the serialiser.
    busy_until: Instant,
    /// The latest delivery promised to a packet in order.
    last_due: Instant,
    /// The Gilbert model is in its losing state.
    in_burst: bool,
    counts: Counts,
}

impl Link {
    #[must_use]
    pub fn new(settings: Settings, prng: Prng) -> Link {
        Link { settings, prng, busy_until: Instant::ZERO, last_due: Instant::ZERO, in_burst: false, counts: Counts::default() }
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// From now on these. Where the delay or the rate changes, the path counts as a new one: packets offered later do not
    /// wait behind those still on the old one (they would otherwise get more than their delay), and so may overtake them once.
    pub fn set(&mut self, new: Settings) {
        let old = &self.settings;
        if (old.rate_bits_per_s, old.delay_us, old.jitter_us) != (new.rate_bits_per_s, new.delay_us, new.jitter_us) {
            self.last_due = Instant::ZERO;
        }
        if old.rate_bits_per_s != new.rate_bits_per_s {
            self.busy_until = Instant::ZERO;
        }
        self.settings = new;
    }

    /// A packet of `bytes` arrives at `now`. Times must not go backwards.
    pub fn offer(&mut self, now: Instant, bytes: usize) -> Verdict {
        let bytes = bytes as u64;
        self.counts.packets += 1;
        self.counts.bytes += bytes;
        if self.settings.blackhole {
            self.counts.dropped_blackhole += 1;
            return Verdict::Drop;
        }
        if self.memory_bytes() + bytes + PACKET_OVERHEAD_BYTES > IN_FLIGHT_BYTES_MAX {
            self.counts.dropped_queue += 1;
            return Verdict::Drop;
        }
        let Some(departed) = self.serialise(now, bytes) else {
            self.counts.dropped_queue += 1;
            return Verdict::Drop;
        };
        if self.is_lost() {
            self.counts.dropped_loss += 1;
            return Verdict::Drop;
        }
        let jitter_ns = self.prng.below(if self.settings.jitter_us == 0 { 0 } else { self.settings.jitter_us * 1000 + 1 });
        let due = departed + Duration::from_micros(self.settings.delay_us) + Duration::from_nanos(jitter_ns);
        let mut at = due.max(self.last_due);
        if self.happens(self.settings.reorder_ppm) {
            // Late rather than early: no packet is faster than the path, and round trips keep their floor.
            let hold_us = (self.settings.delay_us / 4).max(REORDER_HOLD_US_MIN);
            at = at + Duration::from_micros(self.prng.between(hold_us / 2, hold_us));
            self.counts.reordered += 1;
        } else {
            self.last_due = at;
        }
        let twice = self.happens(self.settings.duplicate_ppm);
        if twice {
            self.counts.duplicated += 1;
            self.counts.packets += 1;
            self.counts.bytes += bytes;
            self.take(bytes);
        }
        self.take(bytes);
        Verdict::Deliver { at, twice }
    }

    /// `packets` that were in flight, `bytes` together, have been handed over.
    pub fn delivered(&mut self, packets: u64, bytes: u64) {
        self.counts.delivered += packets;
        self.leave(packets, bytes);
    }

    /// `packets` that were in flight, `bytes` together, could not be handed over: the machine would not take them.
    pub fn dropped_by_host(&mut self, packets: u64, bytes: u64) {
        self.counts.dropped_host += packets;
        self.leave(packets, bytes);
    }

    /// `packets`, `bytes` together, came in but could not even be offered: the machine has no socket for their sender.
    pub fn refused_by_host(&mut self, packets: u64, bytes: u64) {
        self.counts.packets += packets;
        self.counts.bytes += bytes;
        self.counts.dropped_host += packets;
    }

    fn take(&mut self, bytes: u64) {
        self.counts.in_flight_packets += 1;
        self.counts.in_flight_bytes += bytes;
    }

    fn leave(&mut self, packets: u64, bytes: u64) {
        let c = &mut self.counts;
        c.in_flight_packets = c.in_flight_packets.checked_sub(packets).expect("BUG: more packets left the link than entered it");
        c.in_flight_bytes = c.in_flight_bytes.checked_sub(bytes).expect("BUG: more bytes left the link than entered it");
    }

    fn memory_bytes(&self) -> u64 {
        self.counts.in_flight_bytes + self.counts.in_flight_packets * PACKET_OVERHEAD_BYTES
    }

    /// When the packet's last bit has left, or None when the queue is full. An empty queue takes any packet.
    fn serialise(&mut self, now: Instant, bytes: u64) -> Option<Instant> {
        let Some(rate) = self.settings.rate_bits_per_s else { return Some(now) };
        let start = self.busy_until.max(now);
        let waiting_bytes = start.since(now).as_nanos() * u128::from(rate) / 8_000_000_000;
        if waiting_bytes > 0 && waiting_bytes + u128::from(bytes) > u128::from(self.settings.queue_bytes_effective()) {
            return None;
        }
        let ns = u64::try_from((u128::from(bytes) * 8_000_000_000).div_ceil(u128::from(rate))).unwrap_or(u64::MAX);
        self.busy_until = start + Duration::from_nanos(ns);
        Some(self.busy_until)
    }

    fn is_lost(&mut self) -> bool {
        let loss = u64::from(self.settings.loss_ppm);
        if loss == 0 || loss >= 1_000_000 {
            return loss > 0;
        }
        let burst = u64::from(self.settings.burst_packets);
        if burst <= 1 {
            return self.prng.chance(loss);
        }
        // Stationary share of the losing state = enter / (enter + leave). Where `enter` would pass 1 the bursts get
        // longer than asked for instead, so that the share of lost packets stays what was set.
        let kept = 1_000_000 - loss;
        let enter = loss * 1_000_000 / (burst * kept);
        let (enter, leave) = if enter <= 1_000_000 { (enter, 1_000_000 / burst) } else { (1_000_000, kept * 1_000_000 / loss) };
        self.in_burst = if self.in_burst { !self.prng.chance(leave) } else { self.prng.chance(enter) };
        self.in_burst
    }

    fn happens(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.prng.chance(ppm.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(settings: &str, seed: u64) -> Link {
        Link::new(settings.parse().unwrap(), Prng::new(seed))
    }

    fn at_us(us: u64) -> Instant {
        Instant { ns: us * 1000 }
    }

    /// Offers `n` packets of `bytes`, one every `every_us`, and delivers each at once; the delivery times of those that arrive.
    fn run(link: &mut Link, n: u64, bytes: usize, every_us: u64) -> Vec<(u64, Instant)> {
        (0..n)
            .filter_map(|i| match link.offer(at_us(i * every_us), bytes) {
                Verdict::Drop => None,
                Verdict::Deliver { at, twice } => {
                    let copies = 1 + u64::from(twice);
                    link.delivered(copies, copies * bytes as u64);
                    Some((i, at))
                }
            })
            .collect()
    }

    #[test]
    fn a_delay_adds_exactly_itself() {
        for (i, at) in run(&mut link("delay=38.5ms", 1), 1000, 1200, 7) {
            assert_eq!(at, at_us(i * 7 + 38_500));
        }
        for (i, at) in run(&mut link("none", 1), 1000, 1200, 7) {
            assert_eq!(at, at_us(i * 7));
        }
    }

    #[test]
    fn a_rate_spaces_packets_and_a_full_queue_drops_the_tail() {
        // 8 mbit/s is a byte per microsecond: a 1000-byte packet takes 1 ms.
        let mut l = link("rate=8mbit queue=10kB delay=5ms", 1);
        let arrivals = run(&mut l, 100, 1000, 0);
        assert_eq!(arrivals.len(), 10, "ten packets fill the queue");
        for (n, (_, at)) in arrivals.iter().enumerate() {
            assert_eq!(*at, at_us((n as u64 + 1) * 1000 + 5000));
        }
        assert_eq!(l.counts().dropped_queue, 90);
        // Offered at twice the rate, half is dropped; the rest leaves at the rate.
        let mut l = link("rate=8mbit queue=10kB", 1);
        let arrivals = run(&mut l, 10_000, 1000, 500);
        assert!((4_990..=5_020).contains(&arrivals.len()), "{}", arrivals.len());
        let last = arrivals.last().unwrap().1;
        assert!((4_990_000..=5_020_000).contains(&(last.ns / 1000)), "{last}");
    }

    #[test]
    fn an_empty_queue_takes_a_packet_larger_than_itself() {
        let mut l = link("rate=8mbit queue=2kB", 1);
        assert_eq!(l.offer(at_us(0), 60_000), Verdict::Deliver { at: at_us(60_000), twice: false });
        assert_eq!(l.offer(at_us(1), 60_000), Verdict::Drop);
    }

    #[test]
    fn loss_has_the_share_and_the_burst_length_that_were_set() {
        for (settings, percent, mean_burst) in [
            ("loss=1%", 1.0, 1.01),
            ("loss=0.1%", 0.1, 1.0),
            ("loss=30%", 30.0, 1.43),
            ("loss=1% burst=3", 1.0, 3.0),
            ("loss=5% burst=10", 5.0, 10.0),
            ("loss=95% burst=2", 95.0, 20.0),
            ("loss=100%", 100.0, 400_000.0),
            ("loss=100% burst=5", 100.0, 400_000.0),
        ] {
            let n = 400_000;
            let mut l = link(settings, 7);
            let arrived = run(&mut l, n, 1200, 1);
            let lost = n - arrived.len() as u64;
            assert_eq!(lost, l.counts().dropped_loss);
            let share = lost as f64 * 100.0 / n as f64;
            assert!((share - percent).abs() <= percent * 0.12, "{settings}: lost {share} %");
            let mut bursts = 0;
            let mut next = 0;
            for i in arrived.iter().map(|a| a.0).chain([n]) {
                bursts += u64::from(i > next);
                next = i + 1;
            }
            let mean = lost as f64 / bursts as f64;
            assert!((mean - mean_burst).abs() <= mean_burst * 0.12, "{settings}: mean burst {mean}");
        }
    }

    #[test]
    fn the_same_seed_loses_the_same_packets() {
        let settings = "loss=10% jitter=3ms reorder=5% duplicate=2%";
        assert_eq!(run(&mut link(settings, 3), 5000, 100, 10), run(&mut link(settings, 3), 5000, 100, 10));
        assert_ne!(run(&mut link(settings, 3), 5000, 100, 10), run(&mut link(settings, 4), 5000, 100, 10));
    }

    #[test]
    fn reorder_lets_packets_pass_and_none_is_faster_than_the_path() {
        let mut l = link("delay=20ms reorder=2%", 5);
        let arrivals = run(&mut l, 50_000, 1200, 100);
        assert_eq!(arrivals.len(), 50_000);
        assert!(arrivals.iter().all(|(i, at)| *at >= at_us(i * 100 + 20_000)));
        let passed = arrivals.windows(2).filter(|w| w[1].1 < w[0].1).count();
        assert!((800..1200).contains(&passed), "{passed}");
        assert!((800..1200).contains(&l.counts().reordered));
        // Everybody else keeps the exact delay.
        assert_eq!(arrivals.iter().filter(|(i, at)| *at == at_us(i * 100 + 20_000)).count() as u64, 50_000 - l.counts().reordered);
    }

    #[test]
    fn duplicates_are_counted_in_flight_twice() {
        let mut l = link("duplicate=100%", 1);
        assert_eq!(l.offer(at_us(0), 500), Verdict::Deliver { at: at_us(0), twice: true });
        assert_eq!((l.counts().in_flight_packets, l.counts().in_flight_bytes, l.counts().duplicated), (2, 1000, 1));
        l.delivered(1, 500);
        l.dropped_by_host(1, 500);
        assert_eq!((l.counts().in_flight_packets, l.counts().delivered, l.counts().dropped_host), (0, 1, 1));
    }

    #[test]
    fn a_blackhole_takes_everything_and_a_change_holds_from_then_on() {
        let mut l = link("delay=200ms", 1);
        assert_eq!(l.offer(at_us(0), 100), Verdict::Deliver { at: at_us(200_000), twice: false });
        l.set("blackhole=on".parse().unwrap());
        assert_eq!(l.offer(at_us(1), 100), Verdict::Drop);
        assert_eq!(l.counts().dropped_blackhole, 1);
        l.set("delay=10ms".parse().unwrap());
        assert_eq!(l.offer(at_us(2), 100), Verdict::Deliver { at: at_us(10_002), twice: false }, "not behind the old path's packets");
    }

    #[test]
    fn lifting_a_rate_frees_the_queue_for_what_comes_next() {
        let mut l = link("rate=8kbit", 1);
        assert_eq!(l.offer(at_us(0), 1000), Verdict::Deliver { at: at_us(1_000_000), twice: false });
        l.set(Settings::default());
        assert_eq!(l.offer(at_us(5), 1000), Verdict::Deliver { at: at_us(5), twice: false });
    }

    #[test]
    fn memory_is_bounded_for_large_and_for_empty_packets() {
        for bytes in [0, 1200, 60_000] {
            let mut l = link("delay=60s", 1);
            let taken = (0..1_000_000).take_while(|i| l.offer(at_us(*i), bytes) != Verdict::Drop).count() as u64;
            assert_eq!(taken, IN_FLIGHT_BYTES_MAX / (bytes as u64 + PACKET_OVERHEAD_BYTES));
        }
    }

    proptest! {
        #[test]
        fn order_is_kept_and_nothing_is_early_unless_reorder_is_set(
            seed: u64,
            delay_us in 0u64..300_000,
            jitter_us in 0u64..50_000,
            loss_ppm in 0u32..500_000,
            burst_packets in 1u32..8,
            rate_bits_per_s in proptest::option::of(100_000u64..1_000_000_000),
            packets in proptest::collection::vec((0u64..5_000, 0usize..1500), 1..300),
        ) {
            let settings = Settings { delay_us, jitter_us, loss_ppm, burst_packets, rate_bits_per_s, ..Settings::default() };
            let mut l = Link::new(settings, Prng::new(seed));
            let (mut now_us, mut last) = (0, Instant::ZERO);
            for (gap_us, bytes) in packets {
                now_us += gap_us;
                if let Verdict::Deliver { at, .. } = l.offer(at_us(now_us), bytes) {
                    prop_assert!(at >= last);
                    prop_assert!(at >= at_us(now_us + delay_us));
                    if rate_bits_per_s.is_none() {
                        prop_assert!(at <= at_us(now_us + delay_us + jitter_us).max(last));
                    }
                    last = at;
                }
            }
            let c = *l.counts();
            prop_assert_eq!(c.packets, c.in_flight_packets + c.dropped_loss + c.dropped_queue);
        }
    }
}
