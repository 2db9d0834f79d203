//! A floor under the congestion window.
//!
//! While the log is thin (a few kilobytes per round trip) no loss is of our making, yet loss-based controllers answer each lost
//! packet by sending less, until commits wait for the window: at 1 % loss and 80 ms a window of Cubic is some ten packets. So up to
//! [`WINDOW_BYTES_MIN`] may always be in flight; above it the controller decides. That is less than a megabyte per second
//! over 80 ms, and bounded: a path that cannot carry it still loses what it must.

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

/// Bytes that may be in flight whatever the controller says.
pub const WINDOW_BYTES_MIN: u64 = 64 << 10;

pub struct FloorFactory {
    pub inner: Arc<dyn ControllerFactory + Send + Sync>,
}

impl ControllerFactory for FloorFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Floor { inner: Arc::clone(&self.inner).build(now, current_mtu) })
    }
}

struct Floor {
    inner: Box<dyn Controller>,
}

impl Controller for Floor {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
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
        Box::new(Floor { inner: self.inner.clone_box() })
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
    use std::time::Duration;

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
}
