//! Dates and times between ISO text and PostgreSQL's numbers. Pure; driven by [`super::types`]. Years 1 to 9999; what does
//! not fit is `None`.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

/// PostgreSQL counts days and microseconds from 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS * 86_400_000_000;

/// The moment a text names; without an offset it is taken as UTC.
fn timestamp(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let text = text.strip_suffix(" UTC").unwrap_or(text);
    if let Ok(t) = text.parse::<Timestamp>() {
        return Some(t);
    }
    text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp())
}

pub fn micros(text: &str) -> Option<i64> {
    timestamp(text)?.as_microsecond().checked_sub(EPOCH_MICROS)
}

pub fn days(text: &str) -> Option<i64> {
    let date: Date = text.get(..10).filter(|_| text.len() > 10).unwrap_or(text).parse().ok()?;
    let at_midnight = date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
    Some(at_midnight.div_euclid(86_400) - EPOCH_DAYS)
}

pub fn time_micros(text: &str) -> Option<i64> {
    let t: Time = text.parse().ok()?;
    let seconds = i64::from(t.hour()) * 3600 + i64::from(t.minute()) * 60 + i64::from(t.second());
    Some(seconds * 1_000_000 + i64::from(t.subsec_nanosecond()) / 1000)
}

fn fraction(micros: i64) -> String {
    if micros == 0 { String::new() } else { format!(".{micros:06}").trim_end_matches('0').to_owned() }
}

pub fn datetime_text(micros_since_2000: i64, zone: &str) -> Option<String> {
    let t = Timestamp::from_microsecond(micros_since_2000.checked_add(EPOCH_MICROS)?).ok()?;
    let d = TimeZone::UTC.to_datetime(t);
    if d.year() < 1 {
        return None;
    }
    let (date, fraction) = (d.date(), fraction(i64::from(d.subsec_nanosecond()) / 1000));
    Some(format!("{date} {:02}:{:02}:{:02}{fraction}{zone}", d.hour(), d.minute(), d.second()))
}

pub fn date_text(days_since_2000: i64) -> Option<String> {
    let seconds = (days_since_2000 + EPOCH_DAYS).checked_mul(86_400)?;
    let d = TimeZone::UTC.to_datetime(Timestamp::from_second(seconds).ok()?).date();
    (d.year() >= 1).then(|| d.to_string())
}

pub fn time_text(micros: i64) -> Option<String> {
    let s = micros.checked_div(1_000_000).filter(|s| micros >= 0 && (0..86_400).contains(s))?;
    Some(format!("{:02}:{:02}:{:02}{}", s / 3600, s / 60 % 60, s % 60, fraction(micros % 1_000_000)))
}
