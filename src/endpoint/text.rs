//! How numbers, times and tables look to a person: one place, so that every verb says the same thing the same way.
//!
//! Decides only looks. Times are UTC, because regions lie in different zones and their logs must line up. What is not known
//! is `?` or `unknown`, never 0.

use crate::base::UnixMicros;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// `2026-11-20T10:41:05.123Z`.
#[must_use]
pub fn rfc3339(at: UnixMicros) -> String {
    match jiff::Timestamp::from_microsecond(i64::try_from(at.0).unwrap_or(i64::MAX)) {
        Ok(t) => t.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        Err(_) => format!("{} us after 1970", at.0),
    }
}

/// `10:41:05` while that is unambiguous (within 20 hours of `now`), else with the date.
#[must_use]
pub fn clock(at: UnixMicros, now: UnixMicros) -> String {
    let format = if at.micros_since(now).unsigned_abs() < 20 * 3_600_000_000 { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    match jiff::Timestamp::from_microsecond(i64::try_from(at.0).unwrap_or(i64::MAX)) {
        Ok(t) => t.strftime(format).to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// `3m12s` between the two; `0s` when `now` is earlier.
#[must_use]
pub fn ago(at: UnixMicros, now: UnixMicros) -> String {
    let s = u64::try_from(now.micros_since(at)).unwrap_or(0) / 1_000_000;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, _, _) => format!("{d}d{h:02}h"),
    }
}

/// A lag: `0.8 ms`, `41.0 ms`, `12.4 s`, `3m12s`.
#[must_use]
pub fn lag_ms(ms: f64) -> String {
    if ms < 10_000.0 {
        format!("{ms:.1} ms")
    } else if ms < 120_000.0 {
        format!("{:.1} s", ms / 1000.0)
    } else {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and a lag of ages may be shown as one")]
        let us = (ms * 1000.0) as u64;
        ago(UnixMicros(0), UnixMicros(us))
    }
}

/// `812 B`, `12.4 kB`, `3.1 MB`, `1.0 GB` (powers of 1000).
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    match UNITS.iter().find(|(_, size)| n >= *size) {
        Some((unit, size)) => {
            let tenths = u128::from(n) * 10 / u128::from(*size);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{n} B"),
    }
}

/// A table without lines: columns by two spaces, so that `awk` and eyes both manage. `right` lists the columns of numbers.
#[must_use]
pub fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The lower-case word that a state or role has in JSON, with blanks for people.
#[must_use]
pub fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("BUG: {other:?} is not a word"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_times_read_well() {
        let at = UnixMicros(1_795_171_265_123_456);
        assert_eq!(rfc3339(at), "2026-11-20T10:41:05.123Z");
        assert_eq!(clock(at, UnixMicros(at.0 + 5_000_000)), "10:41:05");
        assert_eq!(clock(at, UnixMicros(at.0 + 86_400_000_000)), "2026-11-20 10:41:05");
        assert_eq!(ago(at, UnixMicros(at.0 + 192_000_000)), "3m12s");
        assert_eq!(ago(at, UnixMicros(at.0 - 1)), "0s");
        assert_eq!(
            [0.81, 41.0, 12_400.0, 192_000.0].map(lag_ms),
            ["0.8 ms".to_owned(), "41.0 ms".to_owned(), "12.4 s".to_owned(), "3m12s".to_owned()]
        );
        assert_eq!(
            [0, 999, 12_400, u64::MAX].map(bytes),
            ["0 B".to_owned(), "999 B".to_owned(), "12.4 kB".to_owned(), "18446744.0 TB".to_owned()]
        );
        let text = table(&["REGION", "N"], &[1], vec![vec!["us-east".into(), "7".into()], vec!["b".into(), "123".into()]]);
        assert_eq!(text, "REGION    N\nus-east   7\nb       123\n");
    }
}
