//! The lag meter: a secondary's own measure of how far behind it is. It keeps its figures when the primary is gone.
//!
//! Three lags, never mixed. Each is *how old the newest primary time is up to which everything is here*: a frame that becomes
//! durable proves the time it was written at; a heartbeat (VDL, time) proves its time as soon as everything up to its VDL is
//! here, so an idle secondary differs from one that is behind, and one whose heartbeats stop sees its lag grow.
//!
//! Decides nothing but numbers. Clock offset after NTP (RFC 5905, section 8): from the round trip with the smallest delay among the last
//! ones; half of that delay bounds the error, and is shown. What was never measured is `None`.

use super::wire::Heartbeat;
use crate::base::{Instant, LogEnd, Lsn, Seq, UnixMicros};
use std::collections::VecDeque;
use std::time::Duration;

/// The three lags of one secondary. Milliseconds on the primary's clock, which is estimated (see `clock_error_ms`).
#[derive(Clone, Copy, Debug, Default, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct LagReport {
    /// How old the oldest log byte may be that is durable in the primary and not here.
    pub durability_ms: Option<f64>,
    /// User commits younger than this in the primary may not be durable here.
    pub rpo_ms: Option<f64>,
    /// How old what a reader sees here is.
    pub visibility_ms: Option<f64>,
    /// Log bytes durable in the primary and not here, by the last that was heard of the primary.
    pub durability_bytes: Option<u64>,
    pub visibility_bytes: Option<u64>,
    /// When the figures were last measured; `None`: never.
    pub measured_at: Option<UnixMicros>,
    /// Set while the figures are not known: since when.
    pub unknown_since: Option<UnixMicros>,
    /// The primary's clock minus this region's, estimated from round trips.
    pub clock_offset_ms: Option<f64>,
    /// The estimate is at most this far off (half the best round trip).
    pub clock_error_ms: Option<f64>,
    pub round_trip_ms: Option<f64>,
}

impl LagReport {
    /// Whether the three lags are known now.
    #[must_use]
    pub fn known(&self) -> bool {
        self.unknown_since.is_none() && self.durability_ms.is_some() && self.visibility_ms.is_some()
    }
}

/// Round trips remembered for the offset's estimate.
const ROUND_TRIPS: usize = 32;
/// Heartbeats remembered that are ahead of what is here.
const HEARTBEATS_AHEAD: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Series {
    /// Everything up to this time of the primary's clock is here.
    through: Option<UnixMicros>,
    /// The age of `through` at the moment it was proven.
    last_ms: Option<f64>,
    sampled_at: Instant,
}

impl Series {
    fn prove(&mut self, now: Instant, primary_now: i64, through: UnixMicros) {
        if self.through.is_some_and(|t| t > through) {
            return;
        }
        self.through = Some(through);
        self.last_ms = Some(age_ms(primary_now, through));
        self.sampled_at = now;
    }

    fn value(&self, now: Instant, primary_now: i64, overdue: Duration) -> Option<f64> {
        let (through, last) = (self.through?, self.last_ms?);
        // No proof for a while: it is as old as the last one is by now.
        Some(if now.since(self.sampled_at) > overdue { age_ms(primary_now, through).max(last) } else { last })
    }
}

#[expect(clippy::cast_precision_loss, reason = "an age in microseconds is far below 2^52")]
fn age_ms(primary_now: i64, then: UnixMicros) -> f64 {
    let then = i64::try_from(then.0).unwrap_or(i64::MAX);
    (primary_now.saturating_sub(then).max(0)) as f64 / 1000.0
}

#[derive(Debug)]
pub struct LagMeter {
    heartbeat_every: Duration,
    /// (offset, round trip), microseconds; the primary's clock minus ours.
    round_trips: VecDeque<(i64, i64)>,
    primary_vdl: LogEnd,
    /// Heartbeats whose VDL is not here yet: durable, visible.
    ahead: [VecDeque<(Seq, UnixMicros)>; 2],
    reached: [Seq; 2],
    reached_lsn: [Lsn; 2],
    durability: Series,
    rpo: Series,
    visibility: Series,
    measured_at: Option<UnixMicros>,
    unknown_since: Option<UnixMicros>,
}

const DURABLE: usize = 0;
const VISIBLE: usize = 1;

impl LagMeter {
    #[must_use]
    pub fn new(heartbeat_every: Duration, wall: UnixMicros) -> LagMeter {
        LagMeter {
            heartbeat_every,
            round_trips: VecDeque::new(),
            primary_vdl: LogEnd::EMPTY,
            ahead: [VecDeque::new(), VecDeque::new()],
            reached: [Seq(0); 2],
            reached_lsn: [Lsn(0); 2],
            durability: Series::default(),
            rpo: Series::default(),
            visibility: Series::default(),
            measured_at: None,
            unknown_since: Some(wall),
        }
    }

    /// Everything that the primary committed up to this time of its clock is durable here.
    #[must_use]
    pub fn covers(&self) -> Option<UnixMicros> {
        self.rpo.through
    }

    /// The primary's VDL, as last heard.
    #[must_use]
    pub fn primary_vdl(&self) -> &LogEnd {
        &self.primary_vdl
    }

    /// No connection: nothing is known of the primary from now on.
    pub fn disconnected(&mut self, wall: UnixMicros) {
        self.unknown_since.get_or_insert(wall);
        self.ahead = [VecDeque::new(), VecDeque::new()];
    }

    /// A conversation begins; `another`: with another primary than the last one, whose clock is not the one that was measured. What the last one had
    /// committed may be lost by now.
    pub fn connected(&mut self, another: bool) {
        self.primary_vdl = LogEnd::EMPTY;
        if another {
            self.round_trips.clear();
        }
    }

    pub fn heartbeat(&mut self, now: Instant, wall: UnixMicros, heartbeat: &Heartbeat) {
        if let Some((replied_at, arrived_at)) = heartbeat.echo {
            let there = arrived_at.micros_since(replied_at);
            let back = heartbeat.sent_at.micros_since(wall);
            let round_trip = there.saturating_sub(back);
            if round_trip >= 0 {
                self.round_trips.push_back((there.midpoint(back), round_trip));
                if self.round_trips.len() > ROUND_TRIPS {
                    self.round_trips.pop_front();
                }
            }
        }
        if heartbeat.vdl.seq > self.primary_vdl.seq {
            self.primary_vdl = heartbeat.vdl;
        }
        for which in [DURABLE, VISIBLE] {
            if self.ahead[which].back().is_none_or(|(_, t)| *t < heartbeat.sent_at) && self.ahead[which].len() < HEARTBEATS_AHEAD {
                self.ahead[which].push_back((heartbeat.vdl.seq, heartbeat.sent_at));
            }
            self.settle(which, now, wall);
        }
        if self.offset().is_some() {
            self.unknown_since = None;
        }
    }

    /// Everything up to `end` is durable here; `written_at` is the last frame's source time, `committed_at` that of the last
    /// user commit among them.
    pub fn durable(
        &mut self,
        now: Instant,
        wall: UnixMicros,
        end: &LogEnd,
        written_at: Option<UnixMicros>,
        committed_at: Option<UnixMicros>,
    ) {
        self.reached[DURABLE] = end.seq;
        self.reached_lsn[DURABLE] = end.end_lsn;
        if let Some(primary_now) = self.primary_now(wall) {
            if let Some(t) = written_at {
                self.durability.prove(now, primary_now, t);
            }
            if let Some(t) = committed_at {
                self.rpo.prove(now, primary_now, t);
            }
            self.measured_at = Some(wall);
        }
        self.settle(DURABLE, now, wall);
    }

    /// Readers see everything up to `end`.
    pub fn visible(&mut self, now: Instant, wall: UnixMicros, end: &LogEnd, written_at: Option<UnixMicros>) {
        self.reached[VISIBLE] = end.seq;
        self.reached_lsn[VISIBLE] = end.end_lsn;
        if let (Some(primary_now), Some(t)) = (self.primary_now(wall), written_at) {
            self.visibility.prove(now, primary_now, t);
        }
        self.settle(VISIBLE, now, wall);
    }

    #[must_use]
    pub fn report(&self, now: Instant, wall: UnixMicros) -> LagReport {
        let mut report = LagReport { measured_at: self.measured_at, unknown_since: self.unknown_since, ..LagReport::default() };
        if let Some((offset, round_trip)) = self.offset() {
            report.clock_offset_ms = Some(micros_to_ms(offset));
            report.clock_error_ms = Some(micros_to_ms(round_trip) / 2.0);
            report.round_trip_ms = Some(micros_to_ms(round_trip));
        }
        if self.unknown_since.is_some() {
            return report;
        }
        if let Some(primary_now) = self.primary_now(wall) {
            let overdue = self.heartbeat_every * 3;
            report.durability_ms = self.durability.value(now, primary_now, overdue);
            report.rpo_ms = self.rpo.value(now, primary_now, overdue);
            report.visibility_ms = self.visibility.value(now, primary_now, overdue);
            report.durability_bytes = Some(self.primary_vdl.end_lsn.bytes_since(self.reached_lsn[DURABLE]));
            report.visibility_bytes = Some(self.primary_vdl.end_lsn.bytes_since(self.reached_lsn[VISIBLE]));
        }
        report
    }

    fn settle(&mut self, which: usize, now: Instant, wall: UnixMicros) {
        let Some(primary_now) = self.primary_now(wall) else { return };
        let mut through = None;
        while self.ahead[which].front().is_some_and(|(seq, _)| *seq <= self.reached[which]) {
            through = self.ahead[which].pop_front().map(|(_, t)| t);
        }
        if let Some(t) = through {
            if which == DURABLE {
                self.durability.prove(now, primary_now, t);
                self.rpo.prove(now, primary_now, t);
            } else {
                self.visibility.prove(now, primary_now, t);
            }
            self.measured_at = Some(wall);
        }
    }

    fn offset(&self) -> Option<(i64, i64)> {
        self.round_trips.iter().min_by_key(|(_, rtt)| *rtt).copied()
    }

    fn primary_now(&self, wall: UnixMicros) -> Option<i64> {
        self.offset().map(|(offset, _)| i64::try_from(wall.0).unwrap_or(i64::MAX).saturating_add(offset))
    }
}

#[expect(clippy::cast_precision_loss, reason = "an offset in microseconds is far below 2^52")]
fn micros_to_ms(micros: i64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Epoch, Generation};

    const EVERY: Duration = Duration::from_millis(100);

    fn end(seq: u64) -> LogEnd {
        LogEnd { epoch: Epoch(1), generation: Generation(1), seq: Seq(seq), end_lsn: Lsn(seq * 100), checksum: 0 }
    }

    fn at(ms: u64) -> Instant {
        Instant { ns: ms * 1_000_000 }
    }

    fn wall(ms: u64) -> UnixMicros {
        UnixMicros(ms * 1000)
    }

    /// The primary's clock is 5 s ahead, 40 ms one way.
    fn heartbeat(no: u64, arrives_ms: u64, seq: u64) -> Heartbeat {
        let sent = arrives_ms - 40 + 5000;
        Heartbeat { no, sent_at: wall(sent), vdl: end(seq), echo: Some((wall(arrives_ms - 100), wall(arrives_ms - 60 + 5000))) }
    }

    #[test]
    fn nothing_measured_is_unknown_and_not_zero() {
        let meter = LagMeter::new(EVERY, wall(0));
        let report = meter.report(at(10), wall(10));
        assert!(!report.known());
        assert_eq!((report.durability_ms, report.rpo_ms, report.visibility_ms), (None, None, None));
        assert_eq!(report.unknown_since, Some(wall(0)));
    }

    #[test]
    fn an_idle_secondary_lags_by_the_way_and_a_skewed_clock_does_not_matter() {
        let mut meter = LagMeter::new(EVERY, wall(0));
        meter.durable(at(900), wall(900), &end(7), None, None);
        meter.visible(at(900), wall(900), &end(7), None);
        meter.heartbeat(at(1000), wall(1000), &heartbeat(1, 1000, 7));
        let report = meter.report(at(1001), wall(1001));
        assert!(report.known());
        assert_eq!(report.clock_offset_ms, Some(5000.0));
        assert_eq!(report.clock_error_ms, Some(40.0));
        assert_eq!(report.durability_ms, Some(40.0));
        assert_eq!(report.visibility_ms, Some(40.0));
        assert_eq!(report.durability_bytes, Some(0));
    }

    #[test]
    fn behind_grows_with_time_until_the_position_is_reached() {
        let mut meter = LagMeter::new(EVERY, wall(0));
        meter.durable(at(900), wall(900), &end(7), None, None);
        meter.heartbeat(at(1000), wall(1000), &heartbeat(1, 1000, 7));
        for (no, ms) in (2..40).map(|n| (n, 900 + n * 100)) {
            meter.heartbeat(at(ms), wall(ms), &heartbeat(no, ms, 9));
        }
        let report = meter.report(at(4800), wall(4800));
        assert_eq!(report.durability_bytes, Some(200));
        assert_eq!(report.durability_ms, Some(3840.0), "the last proof is the heartbeat sent 40 ms before 1000");
        meter.durable(at(4850), wall(4850), &end(9), Some(wall(4500 + 5000)), Some(wall(4500 + 5000)));
        let report = meter.report(at(4850), wall(4850));
        assert_eq!(report.durability_ms, Some(90.0), "the heartbeat of 4800 was sent at 4760 and is proven now");
        assert_eq!(report.durability_bytes, Some(0));
    }

    #[test]
    fn without_a_connection_the_lag_is_unknown_since_then() {
        let mut meter = LagMeter::new(EVERY, wall(0));
        meter.durable(at(900), wall(900), &end(7), None, None);
        meter.visible(at(900), wall(900), &end(7), None);
        meter.heartbeat(at(1000), wall(1000), &heartbeat(1, 1000, 7));
        meter.disconnected(wall(2000));
        let report = meter.report(at(2001), wall(2001));
        assert!(!report.known());
        assert_eq!(report.unknown_since, Some(wall(2000)));
        assert_eq!(report.durability_ms, None);
        meter.heartbeat(at(3000), wall(3000), &heartbeat(2, 3000, 7));
        assert!(meter.report(at(3000), wall(3000)).known());
    }
}
