//! What one direction of a link does to packets, as people write it: `delay=38ms loss=0.5% rate=100mbit`.
//!
//! Decides nothing about packets ([`super::link`] does). Every value is checked here, once, so that the model need not.

use super::NetemError;
use std::fmt;
use std::str::FromStr;

/// The keys of [`Settings`], with what each takes.
pub const KEYS: &str = "delay=38ms, jitter=2ms, loss=0.5%, burst=3 (packets), reorder=1%, duplicate=0.1%, rate=100mbit|unlimited, \
queue=1MB|auto, blackhole=on|off, or 'none' to clear all";

const DELAY_US_MAX: u64 = 60_000_000;
const RATE_BITS_PER_S: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;
const QUEUE_BYTES: std::ops::RangeInclusive<u64> = 2_000..=64 << 20;
const BURST_PACKETS_MAX: u32 = 10_000;

/// The impairments of one direction. The default impairs nothing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Added to every packet, 0 to 60 s.
    pub delay_us: u64,
    /// Up to so much more, uniformly drawn per packet. Never changes the order.
    pub jitter_us: u64,
    /// Lost packets per million.
    pub loss_ppm: u32,
    /// Mean number of packets lost in a row (a two-state Gilbert model); 1: each packet on its own.
    pub burst_packets: u32,
    /// Per million: packets that arrive late, so that those behind overtake them.
    pub reorder_ppm: u32,
    /// Per million: packets that arrive twice.
    pub duplicate_ppm: u32,
    /// None: unlimited.
    pub rate_bits_per_s: Option<u64>,
    /// Drop-tail queue before the rate limit. None: see [`Settings::queue_bytes_effective`].
    pub queue_bytes: Option<u64>,
    /// Everything is dropped.
    pub blackhole: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            delay_us: 0,
            jitter_us: 0,
            loss_ppm: 0,
            burst_packets: 1,
            reorder_ppm: 0,
            duplicate_ppm: 0,
            rate_bits_per_s: None,
            queue_bytes: None,
            blackhole: false,
        }
    }
}

impl Settings {
    /// These settings with the keys in `changes` (`key=value` each, or `none` for a clear link) replaced.
    ///
    /// # Errors
    /// When a key or a value is not known; the sentence names it and lists the good ones.
    pub fn with<S: AsRef<str>>(&self, changes: &[S]) -> Result<Settings, NetemError> {
        let mut new = self.clone();
        for change in changes {
            new.change(change.as_ref()).map_err(|reason| NetemError::Setting { given: change.as_ref().to_owned(), reason })?;
        }
        Ok(new)
    }

    /// Bytes that may wait for a limited rate: as set, or else the larger of 256 kB and one bandwidth-delay product (of
    /// the round trip, taking the way back to be as long as the way there).
    #[must_use]
    pub fn queue_bytes_effective(&self) -> u64 {
        let bdp = self.rate_bits_per_s.map_or(0, |rate| u128::from(rate) / 8 * u128::from(2 * self.delay_us) / 1_000_000);
        self.queue_bytes.unwrap_or_else(|| u64::try_from(bdp).unwrap_or(u64::MAX).clamp(256_000, *QUEUE_BYTES.end()))
    }

    fn change(&mut self, change: &str) -> Result<(), String> {
        if change == "none" {
            *self = Settings::default();
            return Ok(());
        }
        let (key, value) = change.split_once('=').ok_or_else(|| format!("write key=value; the keys are {KEYS}"))?;
        match key {
            "delay" => self.delay_us = micros(value)?,
            "jitter" => self.jitter_us = micros(value)?,
            "loss" => self.loss_ppm = ppm(value)?,
            "reorder" => self.reorder_ppm = ppm(value)?,
            "duplicate" => self.duplicate_ppm = ppm(value)?,
            "burst" => {
                self.burst_packets = value
                    .parse()
                    .ok()
                    .filter(|n| (1..=BURST_PACKETS_MAX).contains(n))
                    .ok_or_else(|| format!("burst is a number of packets, 1 to {BURST_PACKETS_MAX}"))?;
            }
            "rate" => self.rate_bits_per_s = rate(value)?,
            "queue" => self.queue_bytes = queue(value)?,
            "blackhole" => {
                self.blackhole = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err("blackhole is on or off".to_owned()),
                }
            }
            _ => return Err(format!("the keys are {KEYS}")),
        }
        Ok(())
    }
}

/// Time one way as half of a round trip, both in µs.
pub(super) fn half_of_rtt_us(rtt: &str) -> Result<u64, String> {
    micros(rtt).map(|us| us / 2)
}

fn split(value: &str) -> Option<(f64, String)> {
    let unit_at = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let number = value[..unit_at].parse::<f64>().ok().filter(|n| n.is_finite())?;
    Some((number, value[unit_at..].to_ascii_lowercase()))
}

/// `number * unit`, rounded; saturates, so that the range check that follows sees a value out of range.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative: a sign is no digit; a float cast saturates")]
fn scaled(number: f64, unit: f64) -> u64 {
    (number * unit).round() as u64
}

fn micros(value: &str) -> Result<u64, String> {
    let why = || "a time has a unit, us, ms or s, and is at most 60s, like 38ms".to_owned();
    let (number, unit) = split(value).ok_or_else(why)?;
    let unit = match unit.as_str() {
        "us" | "µs" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return Err(why()),
    };
    Some(scaled(number, unit)).filter(|us| *us <= DELAY_US_MAX).ok_or_else(why)
}

fn ppm(value: &str) -> Result<u32, String> {
    let why = || "a share is a percentage from 0% to 100%, like 0.5%".to_owned();
    let (number, unit) = split(value).ok_or_else(why)?;
    if unit != "%" {
        return Err(why());
    }
    u32::try_from(scaled(number, 1e4)).ok().filter(|n| *n <= 1_000_000).ok_or_else(why)
}

fn rate(value: &str) -> Result<Option<u64>, String> {
    let why = || "a rate is unlimited, or in kbit, mbit or gbit per second, at least 1kbit, like 100mbit".to_owned();
    if value == "unlimited" {
        return Ok(None);
    }
    let (number, unit) = split(value).ok_or_else(why)?;
    let unit = match unit.as_str() {
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(why()),
    };
    Some(scaled(number, unit)).filter(|r| RATE_BITS_PER_S.contains(r)).map(Some).ok_or_else(why)
}

fn queue(value: &str) -> Result<Option<u64>, String> {
    let why = || "a queue is auto, or from 2kB to 64MiB in B, kB, KiB, MB or MiB, like 256kB".to_owned();
    if value == "auto" {
        return Ok(None);
    }
    let (number, unit) = split(value).ok_or_else(why)?;
    let unit = match unit.as_str() {
        "b" => 1.0,
        "kb" => 1e3,
        "kib" => 1024.0,
        "mb" => 1e6,
        "mib" => 1_048_576.0,
        _ => return Err(why()),
    };
    Some(scaled(number, unit)).filter(|q| QUEUE_BYTES.contains(q)).map(Some).ok_or_else(why)
}

impl FromStr for Settings {
    type Err = NetemError;

    /// `key=value` pairs with spaces between them; what is not named is not impaired.
    fn from_str(given: &str) -> Result<Settings, NetemError> {
        Settings::default().with(&given.split_whitespace().collect::<Vec<_>>())
    }
}

/// A number of `unit`s without needless zeros: 38000 of 1000 is `38`, 250 of 1000 is `0.25`.
struct Decimal(u64, u64);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decimal(value, unit) = *self;
        write!(f, "{}", value / unit)?;
        if value % unit == 0 {
            return Ok(());
        }
        let width = unit.ilog10() as usize;
        write!(f, ".{}", format!("{:0width$}", value % unit).trim_end_matches('0'))
    }
}

/// What [`Settings::from_str`] reads back: only what impairs, or `none`.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let mut part = |shown: bool, text: String| {
            if shown {
                parts.push(text);
            }
        };
        part(self.delay_us > 0, format!("delay={}ms", Decimal(self.delay_us, 1000)));
        part(self.jitter_us > 0, format!("jitter={}ms", Decimal(self.jitter_us, 1000)));
        part(self.loss_ppm > 0, format!("loss={}%", Decimal(self.loss_ppm.into(), 10_000)));
        part(self.burst_packets != 1, format!("burst={}", self.burst_packets));
        part(self.reorder_ppm > 0, format!("reorder={}%", Decimal(self.reorder_ppm.into(), 10_000)));
        part(self.duplicate_ppm > 0, format!("duplicate={}%", Decimal(self.duplicate_ppm.into(), 10_000)));
        if let Some(rate) = self.rate_bits_per_s {
            part(
                true,
                if rate >= 1_000_000 {
                    format!("rate={}mbit", Decimal(rate, 1_000_000))
                } else {
                    format!("rate={}kbit", Decimal(rate, 1000))
                },
            );
        }
        if let Some(queue) = self.queue_bytes {
            part(true, if queue % 1000 == 0 { format!("queue={}kB", queue / 1000) } else { format!("queue={queue}B") });
        }
        part(self.blackhole, "blackhole=on".to_owned());
        f.write_str(&if parts.is_empty() { "none".to_owned() } else { parts.join(" ") })
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;
    use proptest::prelude::*;

    #[test]
    fn every_key_is_read_and_only_the_named_ones_change() {
        let all: Settings =
            "delay=38ms jitter=2.5ms loss=0.5% burst=3 reorder=1% duplicate=0.01% rate=100mbit queue=1MB blackhole=on".parse().unwrap();
        assert_eq!(
            all,
            Settings {
                delay_us: 38_000,
                jitter_us: 2_500,
                loss_ppm: 5_000,
                burst_packets: 3,
                reorder_ppm: 10_000,
                duplicate_ppm: 100,
                rate_bits_per_s: Some(100_000_000),
                queue_bytes: Some(1_000_000),
                blackhole: true,
            }
        );
        let changed = all.with(&["rate=unlimited", "blackhole=off"]).unwrap();
        assert_eq!(changed, Settings { rate_bits_per_s: None, blackhole: false, ..all.clone() });
        assert_eq!(all.with(&["none"]).unwrap(), Settings::default());
    }

    #[test]
    fn a_bad_setting_names_itself_and_the_good_ones() {
        for bad in [
            "delay",
            "delay=",
            "delay=38",
            "delay=-1ms",
            "delay=61s",
            "delay=ms",
            "loss=5",
            "loss=101%",
            "loss=x%",
            "burst=0",
            "burst=1.5",
            "rate=0mbit",
            "rate=10",
            "rate=9999gbit",
            "queue=1",
            "queue=65MiB",
            "queue=10B",
            "blackhole=yes",
            "color=blue",
            "=1",
            "",
            "delay=1.2.3ms",
            "jitter=99999999999999999999999s",
        ] {
            let error = Settings::default().with(&[bad]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{bad}' is not a link setting: ")), "{error}");
        }
        let error = Settings::default().with(&["color=blue"]).unwrap_err().to_string();
        for key in ["delay", "jitter", "loss", "burst", "reorder", "duplicate", "rate", "queue", "blackhole"] {
            assert!(error.contains(&format!("{key}=")), "{key} is missing in: {error}");
        }
    }

    #[test]
    fn a_queue_left_to_itself_holds_one_bandwidth_delay_product() {
        let queue = |s: &str| s.parse::<Settings>().unwrap().queue_bytes_effective();
        assert_eq!(queue("rate=100mbit delay=40ms"), 1_000_000);
        assert_eq!(queue("rate=1mbit delay=1ms"), 256_000);
        assert_eq!(queue("rate=100mbit delay=40ms queue=30kB"), 30_000);
        assert_eq!(queue("rate=1000gbit delay=60s"), 64 << 20);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(
            (delay_us, jitter_us) in (0u64..=60_000_000, 0u64..=60_000_000),
            (loss_ppm, reorder_ppm, duplicate_ppm) in (0u32..=1_000_000, 0u32..=1_000_000, 0u32..=1_000_000),
            burst_packets in 1u32..=10_000,
            rate_bits_per_s in proptest::option::of(1_000u64..=1_000_000_000_000),
            queue_bytes in proptest::option::of(2_000u64..=64 << 20),
            blackhole in any::<bool>(),
        ) {
            // The printed rate has three decimals of a kbit and six of a mbit: whole bits per second.
            let s = Settings {
                delay_us, jitter_us, loss_ppm, burst_packets, reorder_ppm, duplicate_ppm, rate_bits_per_s, queue_bytes, blackhole,
            };
            prop_assert_eq!(s.to_string().parse::<Settings>().unwrap(), s.clone());
            let json = serde_json::to_string(&s).unwrap();
            prop_assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), s);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-z]{0,9}=?[0-9.µ%a-zA-Z]{0,12}") {
            let _ = Settings::default().with(&[text]);
        }
    }
}
