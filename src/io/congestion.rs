//! What we add to a loss-based congestion controller for a log over a long path: a floor, and patience with loss that no queue made.
//!
//! The floor: while the log is thin (a few kilobytes per round trip) no loss is of our making, yet such controllers answer each lost
//! packet by sending less, until commits wait for the window: at 1 % loss and 80 ms a window of Cubic is some ten packets. So up to
//! [`WINDOW_BYTES_MIN`] may always be in flight. That is less than a megabyte per second over 80 ms, and bounded.
//!
//! Patience: one packet lost while Cubic still doubles leaves it growing for twenty seconds on such a path. A loss is only told to it
//! when it looks like congestion: more than [`LOSS_PPM_MAX`] of the recent bytes, or round trips that have grown as a queue makes them
//! grow. What is in flight stays bounded by the sender (32 MiB) and by the connection's window in any case.
//!
//! Decides nothing else; the chosen controller does. Driven by the transport.

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that may be in flight whatever the controller says.
pub const WINDOW_BYTES_MIN: u64 = 64 << 10;
/// Loss below this is not taken for congestion while round trips are short.
const LOSS_PPM_MAX: u64 = 20_000;
/// Round trips vary by this without any queue.
const QUEUE_SLACK: Duration = Duration::from_millis(5);
/// The recent past: after so many bytes older ones count half.
const RECENT_BYTES: u64 = 4 << 20;

pub struct FloorFactory {
    pub inner: Arc<dyn ControllerFactory + Send + Sync>,
}

impl ControllerFactory for FloorFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Floor { inner: Arc::clone(&self.inner).build(now, current_mtu), recent_bytes: 0, lost_bytes: 0, queued: false })
    }
}

struct Floor {
    inner: Box<dyn Controller>,
    /// Acknowledged or lost lately, and the lost part of it.
    recent_bytes: u64,
    lost_bytes: u64,
    /// Round trips are longer than the path: there is a queue.
    queued: bool,
}

impl Floor {
    fn count(&mut self, acked: u64, lost: u64) {
        self.recent_bytes += acked + lost;
        self.lost_bytes += lost;
        if self.recent_bytes > RECENT_BYTES {
            self.recent_bytes /= 2;
            self.lost_bytes /= 2;
        }
    }

    fn is_congestion(&self) -> bool {
        self.queued || self.lost_bytes.saturating_mul(1_000_000) > self.recent_bytes.max(RECENT_BYTES / 2).saturating_mul(LOSS_PPM_MAX)
    }
}

impl Controller for Floor {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.count(bytes, 0);
        self.queued = rtt.get() > rtt.min() + rtt.min() / 4 + QUEUE_SLACK;
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.count(0, lost_bytes);
        // Nothing lost: the path itself marked congestion (ECN).
        if lost_bytes == 0 || is_persistent_congestion || self.is_congestion() {
            self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().max(WINDOW_BYTES_MIN)
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Floor { inner: self.inner.clone_box(), recent_bytes: self.recent_bytes, lost_bytes: self.lost_bytes, queued: self.queued })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn::congestion::CubicConfig;

    #[test]
    fn losses_do_not_push_the_window_below_the_floor() {
        #[expect(clippy::disallowed_methods, reason = "the controller wants an instant of std's; where it lies does not matter here")]
        let begin = Instant::now();
        let factory = Arc::new(FloorFactory { inner: Arc::new(CubicConfig::default()) });
        let mut controller = factory.build(begin, 1200);
        for i in 1..100u64 {
            let at = begin + Duration::from_millis(100 * i);
            controller.on_congestion_event(at, at, false, 1200);
        }
        assert_eq!(controller.window(), WINDOW_BYTES_MIN);
        assert!(controller.metrics().congestion_window < WINDOW_BYTES_MIN, "the controller itself went lower");
    }

    #[test]
    fn a_stray_loss_is_not_told_and_many_are() {
        #[expect(clippy::disallowed_methods, reason = "the controller wants an instant of std's; where it lies does not matter here")]
        let begin = Instant::now();
        let factory = Arc::new(FloorFactory { inner: Arc::new(CubicConfig::default()) });
        let mut controller = factory.build(begin, 1200);
        let window = controller.metrics().congestion_window;
        let at = begin + Duration::from_secs(1);
        controller.on_congestion_event(at, at, false, 1200);
        assert_eq!(controller.metrics().congestion_window, window, "one packet of two megabytes is no congestion");
        for i in 2..60 {
            let at = begin + Duration::from_secs(i);
            controller.on_congestion_event(at, at, false, 1200);
        }
        assert!(controller.metrics().congestion_window < window);
    }
}
